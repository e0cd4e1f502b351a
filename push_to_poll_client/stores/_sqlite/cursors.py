"""Cursor, history and state of one consumer name in the file."""

import sqlite3
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from push_to_poll_client._types import SavedCursor
from push_to_poll_client.stores._retention import MAX_HISTORY, extend_history
from push_to_poll_client.stores._sqlite.file import wrap_invalid_values
from push_to_poll_client.stores._sqlite.schema import decode_text, encode_text

__all__ = ["CursorState", "StoredCursors", "read_history"]


_HISTORY = """
    SELECT cursor, at FROM push_to_poll_history WHERE consumer = ? ORDER BY number
"""
_REMEMBER = """
    INSERT OR REPLACE INTO push_to_poll_history(consumer, slot, number, cursor, at)
    SELECT :consumer, number % :most, number, :cursor, :at
    FROM (SELECT coalesce(max(number), 0) + 1 AS number FROM push_to_poll_history WHERE consumer = :consumer)
"""
_SAVE = """
    UPDATE push_to_poll_consumer SET cursor = ?, at = ?, behind = ? WHERE id = ? AND token = ?
"""


class CursorState(NamedTuple):
    """Cursor, history and state of a name.

    Attributes:
        saved: The saved cursor.
        previous: The remembered cursors that were saved before it, the oldest first.
        state: The names and values committed as state.
    """

    saved: SavedCursor
    previous: tuple[SavedCursor, ...]
    state: Mapping[str, str]


class StoredCursors:
    """Reads and writes `CursorState` of one name. Runs in a worker thread and changes only the file.

    Args:
        connection: The connection to the file.
        path: The path of the file, for errors.
        consumer: The number of the name in the file.
        token: The fencing token.
    """

    def __init__(self, connection: sqlite3.Connection, path: str, consumer: int, token: int) -> None:
        self._connection = connection
        self._path = path
        self._consumer = consumer
        self._token = token

    def read(self, saved: SavedCursor) -> CursorState:
        """Read history and state, and return them with the saved cursor of the row."""
        rows = self._connection.execute(
            "SELECT name, value FROM push_to_poll_state WHERE consumer = ?", (self._consumer,)
        )
        with wrap_invalid_values(self._path):
            state = msgspec.convert(
                {decode_text(name): decode_text(value) for name, value in rows}, dict[str, str]
            )
        previous = read_history(self._connection, self._path, self._consumer)
        return CursorState(saved, previous, MappingProxyType(state))

    def save(self, saved: SavedCursor, *, prunable_before: int) -> bool:
        """Write the cursor and which segments may be dropped. Return False if the name is not owned any more."""
        cursor = None if saved.cursor is None else encode_text(saved.cursor)
        values = (cursor, saved.read_at, prunable_before, self._consumer, self._token)
        return bool(self._connection.execute(_SAVE, values).rowcount)

    def write_changes(
        self, current: CursorState, saved: SavedCursor, state: Mapping[str, str | None]
    ) -> CursorState:
        """Write the history and the changes of the state when a cursor replaces the saved one.

        Args:
            current: What the file holds.
            saved: The cursor that replaces `current.saved`; the same object if it does not change.
            state: The changes of the state.

        Returns:
            What the file holds then.
        """
        previous = current.previous
        if saved is not current.saved:
            previous = extend_history(previous, current.saved)
        if previous is not current.previous:
            cursor = None if current.saved.cursor is None else encode_text(current.saved.cursor)
            self._connection.execute(
                _REMEMBER,
                {"consumer": self._consumer, "most": MAX_HISTORY, "cursor": cursor, "at": current.saved.read_at},
            )
        return CursorState(saved, previous, self._change_state(current.state, state))

    def restart(self, current: CursorState, saved: SavedCursor, state: Mapping[str, str | None]) -> CursorState:
        """As `write_changes`, but forget the history."""
        self._connection.execute("DELETE FROM push_to_poll_history WHERE consumer = ?", (self._consumer,))
        return CursorState(saved, (), self._change_state(current.state, state))

    def _change_state(self, state: Mapping[str, str], changes: Mapping[str, str | None]) -> Mapping[str, str]:
        if not changes:
            return state
        changed = dict(state)
        for name, value in changes.items():
            key = (self._consumer, encode_text(name))
            if value is None:
                changed.pop(name, None)
                self._connection.execute("DELETE FROM push_to_poll_state WHERE consumer = ? AND name = ?", key)
            else:
                changed[name] = value
                self._connection.execute(
                    "INSERT OR REPLACE INTO push_to_poll_state VALUES (?, ?, ?)", (*key, encode_text(value))
                )
        return MappingProxyType(changed)


def read_history(connection: sqlite3.Connection, path: str, consumer: int) -> tuple[SavedCursor, ...]:
    """Read the remembered cursors that were saved before the saved one, the oldest first.

    Args:
        connection: The connection to the file.
        path: The path of the file, for errors.
        consumer: The number of the name in the file.

    Raises:
        StoreError: The file holds what this library does not write.
        sqlite3.Error: It cannot be read.
    """
    rows = connection.execute(_HISTORY, (consumer,))
    with wrap_invalid_values(path):
        return msgspec.convert(tuple((decode_text(cursor), at) for cursor, at in rows), tuple[SavedCursor, ...])
