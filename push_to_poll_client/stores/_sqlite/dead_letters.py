"""Dead letters of one consumer name in the file."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from push_to_poll_client._types import DeadLetter
from push_to_poll_client.stores._retention import limit_dead_letters
from push_to_poll_client.stores._sqlite.records import as_json, encode_keys
from push_to_poll_client.stores._sqlite.schema import decode_text, encode_text

_COLUMNS = "key, marked, id, attempts, first_failed, last_failed, error, traceback, raw"

_ATTRIBUTES = (
    "dedupe_key", "marked", "id", "attempts", "first_failed", "last_failed", "error", "traceback"
)  # fmt: skip
"""Attributes of `DeadLetter` for the columns, without the last one. `marked` stands for two of them."""

_RETRY, _DROP = 1, 2
"""Values of the column `marked`."""

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
"""Most keys kept in memory. With more dead letters, each commit searches the file."""


class DeadLetterIndex(NamedTuple):
    """Number and keys of the dead letters, kept in memory."""

    total: int
    keys: frozenset[str] | None  # encoded; None if they are too many


class StoredDeadLetters:
    """Reads and writes the dead letters of one name. Runs in a worker thread and changes only the file."""

    def __init__(self, connection: sqlite3.Connection, consumer: int) -> None:
        self._connection = connection
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
        """Remove the dead letters of settled keys, add new ones, and return the new index."""
        removed: Iterable[str] = settled if index.keys is None else index.keys.intersection(settled)
        if not removed and not dead_letters:
            return index
        self._connection.execute(_REMOVE, (self._consumer, as_json(list(removed))))
        self._connection.executemany(_ADD, self._rows(dead_letters))
        return self.read_index()

    def read_some(self, after: str | None, *, retry_requested: bool = False) -> list[DeadLetter]:
        """Read dead letters with keys after `after`, within the limits of `limit_dead_letters`."""
        query = (
            f"{_SELECT} AND key {'>=' if after is None else '>'} ? {'AND marked' * retry_requested} ORDER BY key"
        )
        rows = self._connection.execute(query, (self._consumer, _key_bytes(after or "")))
        return limit_dead_letters(map(_decode_row, rows))

    def read_one(self, key: str) -> DeadLetter | None:
        row = self._connection.execute(f"{_SELECT} AND key = ?", (self._consumer, _key_bytes(key))).fetchone()
        return None if row is None else _decode_row(row)

    def keys_of_message(self, id: str, *, limit: int) -> list[str]:
        """Read the dedupe keys of the dead letters with this message id, in their order."""
        rows = self._connection.execute(_KEYS_OF_MESSAGE, (self._consumer, encode_text(id), limit))
        return msgspec.convert([decode_text(key) for (key,) in rows], list[str])

    def _rows(self, dead_letters: Sequence[DeadLetter]) -> Iterator[tuple[Any, ...]]:
        stored_keys = encode_keys([letter.dedupe_key for letter in dead_letters])
        for letter, stored_key in zip(dead_letters, stored_keys, strict=True):
            yield (
                self._consumer,
                stored_key,
                _key_bytes(letter.dedupe_key),
                _DROP if letter.drop_requested else _RETRY * letter.retry_requested,
                encode_text(letter.id),
                letter.attempts,
                letter.first_failed,
                letter.last_failed,
                encode_text(letter.error),
                encode_text(letter.traceback),
                letter.raw,
            )


def _decode_row(row: Sequence[Any]) -> DeadLetter:
    *stored, raw = row
    values = dict(zip(_ATTRIBUTES, map(decode_text, stored), strict=True))
    marked = msgspec.convert(values.pop("marked"), int)
    requests = {"retry_requested": marked == _RETRY, "drop_requested": marked == _DROP}
    return msgspec.convert({**values, **requests, "raw": raw}, DeadLetter)


def _key_bytes(key: str) -> bytes:
    # As bytes SQLite orders keys as Python does, by code points, and any key can be encoded like this.
    return key.encode("utf-8", "surrogatepass")
