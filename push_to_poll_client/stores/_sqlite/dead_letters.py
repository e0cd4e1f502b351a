"""The dead letters of one consumer name in the file."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from push_to_poll_client._types import DeadLetter
from push_to_poll_client.stores._retention import limit_dead_letters
from push_to_poll_client.stores._sqlite.file import wrap_invalid_values
from push_to_poll_client.stores._sqlite.schema import as_json, decode_text, encode_keys, encode_text

__all__ = [
    "DeadLetterIndex",
    "StoredDeadLetters",
    "select_dead_letters",
]


_COLUMNS = "key, marked, id, attempts, first_failed, last_failed, error, traceback, raw"

_SELECT = f"SELECT {_COLUMNS} FROM push_to_poll_dead_letter WHERE consumer = ?"  # noqa: S608

_ADD = f"""
    INSERT INTO push_to_poll_dead_letter(consumer, known_as, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET marked = excluded.marked, id = excluded.id, attempts = excluded.attempts,
        first_failed = excluded.first_failed, last_failed = excluded.last_failed, error = excluded.error,
        traceback = excluded.traceback, raw = excluded.raw
"""  # noqa: S608
_REMOVE = """
    DELETE FROM push_to_poll_dead_letter
    WHERE consumer = ? AND known_as IN (SELECT value FROM json_each(?))
"""
_COUNT = "SELECT count(*) FROM push_to_poll_dead_letter WHERE consumer = ?"
_KEYS = "SELECT known_as FROM push_to_poll_dead_letter WHERE consumer = ? LIMIT ?"

_MAX_INDEXED_KEYS = 10_000
"""Keys that are kept in memory. With more dead letters, each commit asks the file whether it settles one."""


class DeadLetterIndex(NamedTuple):
    """What is known without asking the file.

    Attributes:
        total: How many there are.
        keys: Of which keys, as they stand in the file; `None`: too many.
    """

    total: int
    keys: frozenset[str] | None


class StoredDeadLetters:
    """The dead letters of one name. Every method asks the file, in a worker thread, and changes nothing else.

    Args:
        connection: To the file.
        path: For errors.
        consumer: Its number in the file.
    """

    def __init__(self, connection: sqlite3.Connection, path: str, consumer: int) -> None:
        self._connection = connection
        self._path = path
        self._consumer = consumer

    def read_index(self) -> DeadLetterIndex:
        """Ask what there is."""
        (total,) = self._connection.execute(_COUNT, (self._consumer,)).fetchone()
        if total > _MAX_INDEXED_KEYS:
            return DeadLetterIndex(total, None)
        keys = self._connection.execute(_KEYS, (self._consumer, _MAX_INDEXED_KEYS))
        return DeadLetterIndex(total, frozenset(key for (key,) in keys))

    def write(
        self, known: DeadLetterIndex, settled: Sequence[str], letters: Sequence[DeadLetter]
    ) -> DeadLetterIndex:
        """Take away those that are settled, and add these.

        Args:
            known: What there is.
            settled: Keys as they stand in the file.
            letters: What to add; one whose key has one already replaces it.

        Returns:
            What there is then.
        """
        if not letters and not known.total:
            return known
        gone: Iterable[str] = settled if known.keys is None else known.keys.intersection(settled)
        if not gone and not letters:
            return known
        self._connection.execute(_REMOVE, (self._consumer, as_json(list(gone))))
        self._connection.executemany(_ADD, self._rows(letters))
        return self.read_index()

    def read_some(self, after: DeadLetter | None, *, marked: bool) -> list[DeadLetter]:
        """See `Session.dead_letters`."""
        return select_dead_letters(
            self._connection, self._path, self._consumer, after=None if after is None else after.key, marked=marked
        )

    def read_one(self, key: str) -> DeadLetter | None:
        """See `Session.dead_letter`."""
        row = self._connection.execute(f"{_SELECT} AND key = ?", (self._consumer, _key_bytes(key))).fetchone()
        return None if row is None else _decode_row(self._path, row)

    def _rows(self, letters: Sequence[DeadLetter]) -> Iterator[tuple[Any, ...]]:
        known_as = encode_keys([letter.key for letter in letters])
        for letter, key in zip(letters, known_as, strict=True):
            yield (
                self._consumer,
                key,
                _key_bytes(letter.key),
                letter.marked,
                encode_text(letter.id),
                letter.attempts,
                letter.first_failed,
                letter.last_failed,
                encode_text(letter.error),
                encode_text(letter.traceback),
                letter.raw,
            )


def select_dead_letters(
    connection: sqlite3.Connection, path: str, consumer: int, *, after: str | None = None, marked: bool = False
) -> list[DeadLetter]:
    """Read some dead letters in the order of their keys, no more of them than may be in memory together.

    Args:
        connection: To the file.
        path: For errors.
        consumer: The number of the name in the file.
        after: The key after which to begin; `None`: at the first.
        marked: Those alone that are marked.

    Raises:
        StoreError: The file holds what this library does not write.
        sqlite3.Error: It cannot be read.
    """
    query = f"{_SELECT} AND key > ? {'AND marked' if marked else ''} ORDER BY key"
    values = (consumer, b"" if after is None else _key_bytes(after))
    if after is None:
        query = query.replace(" > ", " >= ", 1)
    return limit_dead_letters(_decode_row(path, row) for row in connection.execute(query, values))


def _decode_row(path: str, row: Sequence[Any]) -> DeadLetter:
    key, marked, id_, attempts, first_failed, last_failed, error, traceback, raw = row
    with wrap_invalid_values(path):
        return msgspec.convert(
            {
                "key": decode_text(key),
                "id": decode_text(id_),
                "raw": raw,
                "error": decode_text(error),
                "traceback": decode_text(traceback),
                "attempts": attempts,
                "first_failed": first_failed,
                "last_failed": last_failed,
                "marked": bool(marked),
            },
            DeadLetter,
        )


def _key_bytes(key: str) -> bytes:
    """In this form SQLite orders keys as Python does, by code points, and any key has it."""
    return key.encode("utf-8", "surrogatepass")
