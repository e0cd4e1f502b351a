"""A claimed name in the file: its cursor, history and state, its dedupe records and its dead letters.

`ClaimedName` runs in the thread of the store. It keeps in memory what the session's properties show. The copy in
memory changes only after the transaction that changes the file is committed, so an error leaves both as they were.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, NamedTuple

import msgspec

from push_to_poll_client._exceptions import OwnershipLost, StoreMismatch
from push_to_poll_client._types import Cursor, DeadLetter, SavedCursor
from push_to_poll_client._validation import quoted
from push_to_poll_client.stores._retention import MAX_HISTORY, Retention, extend_history
from push_to_poll_client.stores._sqlite.dead_letters import StoredDeadLetters
from push_to_poll_client.stores._sqlite.file import OpenFile, wrap_invalid_values, wrap_sqlite_errors
from push_to_poll_client.stores._sqlite.names import OtherNames
from push_to_poll_client.stores._sqlite.records import EncodedRecords, Records
from push_to_poll_client.stores._sqlite.schema import decode_text, encode_text

_CLAIM = """
    INSERT INTO push_to_poll_consumer(name, feed, token, at) VALUES (?, ?, 1, ?)
    ON CONFLICT(name) DO UPDATE SET token = token + 1
"""
_SELECT_CONSUMER = "SELECT id, token, cursor, at, feed, first, behind FROM push_to_poll_consumer WHERE name = ?"
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

_MAX_FEED_SHOWN = 300
"""Characters of a feed's name that are shown: most addresses are shorter, and the two can be compared."""

_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
"""No consumer counts that far, and a sum with it is still an integer to SQLite."""


class _ConsumerRow(NamedTuple):
    """Row of a name, in the order of `_SELECT_CONSUMER`."""

    id: int
    token: _Count
    cursor: str | None
    at: float
    feed: str
    first: _Count
    prunable_before: _Count


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


class ClaimedName:
    """A name of a `SQLiteStore`, claimed by the constructor. For the arguments see `SQLiteSession`.

    Attributes:
        name: The claimed name.
        token: The fencing token.
        cursor_state: Its cursor, history and state.
        dead_letter_index: The number and keys of its dead letters.
        records: Its dedupe records.

    Raises:
        StoreMismatch: The name is bound to another feed.
        StoreError: The file cannot be written, or holds what this library does not write.
    """

    def __init__(
        self, file: OpenFile, name: str, feed: str, *, retention: Retention, clock: Callable[[], float]
    ) -> None:
        self.name = name
        self._file = file
        self._clock = clock
        with file.transaction():
            row = self._claim(encode_text(name), feed)
            self.token = row.token
            self._consumer = row.id
            consumer = (file.connection, file.path, row.id)
            self.records = Records(*consumer, retention, first=row.first, prunable_before=row.prunable_before)
            self._stored_dead_letters = StoredDeadLetters(*consumer)
            self.dead_letter_index = self._stored_dead_letters.read_index()
            self.cursor_state = CursorState(
                SavedCursor(row.cursor, row.at), read_history(*consumer), read_state(*consumer)
            )
            others = OtherNames.read(file.connection, name, feed) if row.token == 1 else None
        if others is not None:
            others.log(file.path, name, feed)

    def _claim(self, name: str | bytes, feed: str) -> _ConsumerRow:
        execute = self._file.connection.execute
        execute(_CLAIM, (name, encode_text(feed), self._clock()))
        with wrap_invalid_values(self._file.path):
            row = msgspec.convert(
                list(map(decode_text, execute(_SELECT_CONSUMER, (name,)).fetchone())), _ConsumerRow
            )
        if row.feed != feed:
            raise StoreMismatch(
                f"{self._file.path}: the name {quoted(self.name)} is bound to the feed "
                f"{quoted(row.feed, _MAX_FEED_SHOWN)}, not to {quoted(feed, _MAX_FEED_SHOWN)}; if that is the "
                "same feed at another address, rebind the name (push-to-poll rebind), else use another name",
                bound_to=row.feed,
            )
        return row

    def known_keys(self, keys: Sequence[str]) -> set[str]:
        """Return those of the encoded keys that have a record."""
        with wrap_sqlite_errors(self._file.path):
            return self.records.find(keys)

    def fingerprints(self, keys: Sequence[str]) -> Mapping[str, int]:
        """Return the fingerprint of each encoded key whose newest record has one."""
        with wrap_sqlite_errors(self._file.path), wrap_invalid_values(self._file.path):
            return msgspec.convert(self.records.search.fingerprints(keys), dict[str, int])

    def some_dead_letters(self, after: DeadLetter | None, retry_requested: bool) -> Sequence[DeadLetter]:  # noqa: FBT001
        """See `Session.dead_letters`."""
        with wrap_sqlite_errors(self._file.path):
            return self._stored_dead_letters.read_some(after, retry_requested=retry_requested)

    def dead_letter(self, key: str) -> DeadLetter | None:
        """See `Session.dead_letter`."""
        with wrap_sqlite_errors(self._file.path):
            return self._stored_dead_letters.read_one(key)

    def commit(
        self,
        cursor: Cursor | None,
        records: EncodedRecords,
        dead_letters: Sequence[DeadLetter],
        state: Mapping[str, str | None],
        read_at: float | None,
    ) -> None:
        """See `Session.commit`."""
        replaced = self.records.segments_of(records)
        with self._file.transaction():
            now, before, segments = self._clock(), self.cursor_state, self.records.segments
            saved, previous = before.saved, before.previous
            if cursor is not None and cursor != saved.cursor:
                previous = extend_history(previous, saved)
                saved = SavedCursor(cursor, now if read_at is None else read_at)
            prunable_before = segments.prunable_before if cursor is None else segments.current(now).number
            self._save(saved, prunable_before, remember=before.saved if previous is not before.previous else None)
            cursor_state = CursorState(saved, previous, self._change_state(state) if state else before.state)
            changes = self.records.write(records, replaced, prunable_before=prunable_before, now=now)
            index = self.dead_letter_index
            if dead_letters or index.total:
                index = self._stored_dead_letters.write(index, records.settled, dead_letters)
        self.records.apply(changes)
        self.dead_letter_index, self.cursor_state = index, cursor_state

    def reset(self, cursor: Cursor | None, forget: bool, state: Mapping[str, str | None]) -> None:  # noqa: FBT001
        """See `Session.reset`."""
        with self._file.transaction():
            now = self._clock()
            saved, prunable_before = SavedCursor(cursor, now), self.records.segments.current(now).number
            self._save(saved, prunable_before)
            self._file.connection.execute("DELETE FROM push_to_poll_history WHERE consumer = ?", (self._consumer,))
            cursor_state = CursorState(saved, (), self._change_state(state))
            if forget:
                self.records.forget_all()
        self.cursor_state = cursor_state
        self.records.apply_reset(prunable_before, forget=forget)

    def _save(self, saved: SavedCursor, prunable_before: int, *, remember: SavedCursor | None = None) -> None:
        """Write the cursor, and add the one before it to the history if that is given."""
        execute = self._file.connection.execute
        cursor = None if saved.cursor is None else encode_text(saved.cursor)
        # Fails unless the fencing token is still ours: the lock file can be deleted, the token cannot.
        if not execute(_SAVE, (cursor, saved.read_at, prunable_before, self._consumer, self.token)).rowcount:
            raise ownership_lost(self._file.path, self.name, "was claimed by somebody else")
        if remember is not None:
            cursor = None if remember.cursor is None else encode_text(remember.cursor)
            values = {"consumer": self._consumer, "most": MAX_HISTORY, "cursor": cursor, "at": remember.read_at}
            execute(_REMEMBER, values)

    def _change_state(self, changes: Mapping[str, str | None]) -> Mapping[str, str]:
        """Write changes of the state, and return the state then."""
        execute, state = self._file.connection.execute, dict(self.cursor_state.state)
        for name, value in changes.items():
            key = (self._consumer, encode_text(name))
            if value is None:
                state.pop(name, None)
                execute("DELETE FROM push_to_poll_state WHERE consumer = ? AND name = ?", key)
            else:
                state[name] = value
                execute("INSERT OR REPLACE INTO push_to_poll_state VALUES (?, ?, ?)", (*key, encode_text(value)))
        return MappingProxyType(state)


def ownership_lost(path: str, name: str, why: str) -> OwnershipLost:
    """Build the error for a session that does not own its name any more."""
    return OwnershipLost(f"{path}: the name {quoted(name)} {why}; nothing was written; claim it again")


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


def read_state(connection: sqlite3.Connection, path: str, consumer: int) -> Mapping[str, str]:
    """Read the names and values committed as state. For arguments and errors see `read_history`."""
    rows = connection.execute("SELECT name, value FROM push_to_poll_state WHERE consumer = ?", (consumer,))
    with wrap_invalid_values(path):
        state = {decode_text(name): decode_text(value) for name, value in rows}
        return MappingProxyType(msgspec.convert(state, dict[str, str]))
