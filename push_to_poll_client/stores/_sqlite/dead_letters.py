"""Dead letters of one consumer name in the file."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from push_to_poll_client._types import DeadLetter
from push_to_poll_client.stores._retention import limit_dead_letters
from push_to_poll_client.stores._sqlite.file import wrap_invalid_values
from push_to_poll_client.stores._sqlite.records import as_json, encode_keys
from push_to_poll_client.stores._sqlite.schema import decode_text, encode_text

_COLUMNS = "key, marked, id, attempts, first_failed, last_failed, error, traceback, raw"

_SELECT = f"SELECT {_COLUMNS} FROM push_to_poll_dead_letter WHERE consumer = ?"  # noqa: S608

_ADD = f"""
    INSERT OR REPLACE INTO push_to_poll_dead_letter(consumer, known_as, {_COLUMNS})
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""  # noqa: S608
_REMOVE = """
    DELETE FROM push_to_poll_dead_letter
    WHERE consumer = ? AND known_as IN (SELECT value FROM json_each(?))
"""
_COUNT = "SELECT count(*) FROM push_to_poll_dead_letter WHERE consumer = ?"
_KEYS_OF_MESSAGE = """
    SELECT key FROM push_to_poll_dead_letter WHERE consumer = ? AND id = ? ORDER BY key LIMIT ?
"""
_KEYS = "SELECT known_as FROM push_to_poll_dead_letter WHERE consumer = ? LIMIT ?"

_MAX_INDEXED_KEYS = 10_000
"""Keys kept in memory. With more dead letters, each commit looks in the file for those that it settles."""


class DeadLetterIndex(NamedTuple):
    """Number and keys of the dead letters, kept in memory.

    Attributes:
        total: The number of dead letters.
        keys: Their encoded keys, or None if they are too many.
    """

    total: int
    keys: frozenset[str] | None


class StoredDeadLetters:
    """Reads and writes the dead letters of one name. Runs in a worker thread and changes only the file.

    Args:
        connection: The connection to the file.
        path: The path of the file, for errors.
        consumer: The number of the name in the file.
    """

    def __init__(self, connection: sqlite3.Connection, path: str, consumer: int) -> None:
        self._connection = connection
        self._path = path
        self._consumer = consumer

    def read_index(self) -> DeadLetterIndex:
        """Count the dead letters, and read their keys if they are not too many."""
        (total,) = self._connection.execute(_COUNT, (self._consumer,)).fetchone()
        if total > _MAX_INDEXED_KEYS:
            return DeadLetterIndex(total, None)
        keys = self._connection.execute(_KEYS, (self._consumer, _MAX_INDEXED_KEYS))
        return DeadLetterIndex(total, frozenset(key for (key,) in keys))

    def write(
        self, index: DeadLetterIndex, settled: Sequence[str], dead_letters: Sequence[DeadLetter]
    ) -> DeadLetterIndex:
        """Remove the dead letters of settled keys, and add new ones.

        Args:
            index: The dead letters in the file.
            settled: Encoded keys of settled messages.
            dead_letters: To be added; each replaces the one of its key.

        Returns:
            The dead letters in the file then.
        """
        removed: Iterable[str] = settled if index.keys is None else index.keys.intersection(settled)
        if not removed and not dead_letters:
            return index
        self._connection.execute(_REMOVE, (self._consumer, as_json(list(removed))))
        self._connection.executemany(_ADD, self._rows(dead_letters))
        return self.read_index()

    def read_some(self, after: DeadLetter | None, *, retry_requested: bool) -> list[DeadLetter]:
        """See `Session.dead_letters`."""
        return select_dead_letters(
            self._connection,
            self._path,
            self._consumer,
            after=None if after is None else after.dedupe_key,
            retry_requested=retry_requested,
        )

    def read_one(self, key: str) -> DeadLetter | None:
        """See `Session.dead_letter`."""
        row = self._connection.execute(f"{_SELECT} AND key = ?", (self._consumer, _key_bytes(key))).fetchone()
        return None if row is None else _decode_row(self._path, row)

    def _rows(self, dead_letters: Sequence[DeadLetter]) -> Iterator[tuple[Any, ...]]:
        stored_keys = encode_keys([letter.dedupe_key for letter in dead_letters])
        for letter, stored_key in zip(dead_letters, stored_keys, strict=True):
            yield (
                self._consumer,
                stored_key,
                _key_bytes(letter.dedupe_key),
                letter.retry_requested,
                encode_text(letter.id),
                letter.attempts,
                letter.first_failed,
                letter.last_failed,
                encode_text(letter.error),
                encode_text(letter.traceback),
                letter.raw,
            )


def select_dead_letters(
    connection: sqlite3.Connection,
    path: str,
    consumer: int,
    *,
    after: str | None = None,
    retry_requested: bool = False,
) -> list[DeadLetter]:
    """Read some dead letters in the order of their keys, within the limits of `limit_dead_letters`.

    Args:
        connection: The connection to the file.
        path: The path of the file, for errors.
        consumer: The number of the name in the file.
        after: The key after which to begin; None for the first one.
        retry_requested: Only those that the next run is to try again.

    Raises:
        StoreError: The file holds what this library does not write.
        sqlite3.Error: It cannot be read.
    """
    query = f"{_SELECT} AND key > ? {'AND marked' if retry_requested else ''} ORDER BY key"
    values = (consumer, b"" if after is None else _key_bytes(after))
    if after is None:
        query = query.replace(" > ", " >= ", 1)
    return limit_dead_letters(_decode_row(path, row) for row in connection.execute(query, values))


def select_keys_of_message(
    connection: sqlite3.Connection, path: str, consumer: int, id: str, *, limit: int
) -> list[str]:
    """Read the dedupe keys of the dead letters with this message id, in their order.

    Raises:
        StoreError: The file holds what this library does not write.
        sqlite3.Error: It cannot be read.
    """
    rows = connection.execute(_KEYS_OF_MESSAGE, (consumer, encode_text(id), limit)).fetchall()
    with wrap_invalid_values(path):
        return msgspec.convert([decode_text(key) for (key,) in rows], list[str])


def _decode_row(path: str, row: Sequence[Any]) -> DeadLetter:
    key, marked, id_, attempts, first_failed, last_failed, error, traceback, raw = row
    with wrap_invalid_values(path):
        return msgspec.convert(
            {
                "dedupe_key": decode_text(key),
                "id": decode_text(id_),
                "raw": raw,
                "error": decode_text(error),
                "traceback": decode_text(traceback),
                "attempts": attempts,
                "first_failed": first_failed,
                "last_failed": last_failed,
                "retry_requested": bool(marked),
            },
            DeadLetter,
        )


def _key_bytes(key: str) -> bytes:
    # As bytes SQLite orders keys as Python does, by code points, and any key can be encoded like this.
    return key.encode("utf-8", "surrogatepass")
