"""The cursor, the cursors saved before it, and the state of one consumer name in the file."""

import sqlite3
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from push_to_poll_client._types import SavedCursor
from push_to_poll_client.stores._retention import MAX_HISTORY, extend_history
from push_to_poll_client.stores._sqlite.file import wrap_invalid_values
from push_to_poll_client.stores._sqlite.schema import decode_text, encode_text

__all__ = [
    "CursorState",
    "StoredCursors",
    "read_history",
]


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
    """Where a name stands.

    Attributes:
        saved: The saved cursor.
        before: Those that were saved before, as far as they are remembered, the oldest first.
        state: What was committed as state.
    """

    saved: SavedCursor
    previous: tuple[SavedCursor, ...]
    state: Mapping[str, str]


class StoredCursors:
    """The place of one name. Every method asks the file, in a worker thread, and changes nothing else.

    Args:
        connection: To the file.
        path: For errors.
        consumer: Its number in the file.
        token: The fencing token.
    """

    def __init__(self, connection: sqlite3.Connection, path: str, consumer: int, token: int) -> None:
        self._connection = connection
        self._path = path
        self._consumer = consumer
        self._token = token

    def read(self, saved: SavedCursor) -> CursorState:
        """Where the name stands, whose row has this cursor."""
        rows = self._connection.execute(
            "SELECT name, value FROM push_to_poll_state WHERE consumer = ?", (self._consumer,)
        )
        with wrap_invalid_values(self._path):
            state = msgspec.convert(
                {decode_text(name): decode_text(value) for name, value in rows}, dict[str, str]
            )
        before = read_history(self._connection, self._path, self._consumer)
        return CursorState(saved, before, MappingProxyType(state))

    def save(self, saved: SavedCursor, *, behind: int) -> bool:
        """Write the cursor and which segments may go; whether the name is still owned."""
        cursor = None if saved.cursor is None else encode_text(saved.cursor)
        values = (cursor, saved.at, behind, self._consumer, self._token)
        return bool(self._connection.execute(_SAVE, values).rowcount)

    def write_changes(
        self, place: CursorState, saved: SavedCursor, state: Mapping[str, str | None]
    ) -> CursorState:
        """Write what else there is to write when this cursor takes the place of the saved one.

        Args:
            place: Where the name stands.
            saved: Where it will stand; its own cursor, if that does not change.
            state: What to change.

        Returns:
            Where it stands then.
        """
        before = place.previous if saved is place.saved else extend_history(place.previous, place.saved)
        if before is not place.previous:
            self._append_history(place.saved)
        return CursorState(saved, before, self._change_state(place.state, state))

    def restart(self, place: CursorState, saved: SavedCursor, state: Mapping[str, str | None]) -> CursorState:
        """As `write_changes`, with nothing remembered of what was before."""
        self._connection.execute("DELETE FROM push_to_poll_history WHERE consumer = ?", (self._consumer,))
        return CursorState(saved, (), self._change_state(place.state, state))

    def _append_history(self, saved: SavedCursor) -> None:
        cursor = None if saved.cursor is None else encode_text(saved.cursor)
        self._connection.execute(
            _REMEMBER, {"consumer": self._consumer, "most": MAX_HISTORY, "cursor": cursor, "at": saved.at}
        )

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
    """The cursors that were saved before the saved one, the oldest first.

    Args:
        connection: To the file.
        path: For errors.
        consumer: The number of the name in the file.

    Raises:
        StoreError: The file holds what this library does not write.
        sqlite3.Error: It cannot be read.
    """
    rows = connection.execute(_HISTORY, (consumer,))
    with wrap_invalid_values(path):
        return msgspec.convert(tuple((decode_text(cursor), at) for cursor, at in rows), tuple[SavedCursor, ...])
