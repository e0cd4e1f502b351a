"""Session of a `SQLiteStore`: one claimed name, read and written in worker threads.

`ClaimedName` does the work within the caller's thread, and `SQLiteSession` calls it with at most one hop to a
worker thread for each call. Both keep in memory what the session's properties show. The copy in memory changes
only after the transaction that changes the file is committed, so an error leaves both as they were.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, NamedTuple, TypeVar, TypeVarTuple

import msgspec
from anyio import CancelScope, CapacityLimiter, to_thread

from push_to_poll_client._exceptions import OwnershipLost, StoreMismatch
from push_to_poll_client._types import Cursor, DeadLetter, Record, SavedCursor
from push_to_poll_client._validation import quoted
from push_to_poll_client.stores._retention import Retention
from push_to_poll_client.stores._sqlite.cursors import StoredCursors
from push_to_poll_client.stores._sqlite.dead_letters import StoredDeadLetters
from push_to_poll_client.stores._sqlite.file import OpenFile, wrap_invalid_values, wrap_sqlite_errors
from push_to_poll_client.stores._sqlite.names import OtherNames
from push_to_poll_client.stores._sqlite.records import EncodedRecords, Records, encode_records
from push_to_poll_client.stores._sqlite.schema import decode_text, encode_keys, encode_text

__all__ = ["NO_CHANGES", "ClaimedName", "SQLiteSession", "ownership_lost"]


_CLAIM = """
    INSERT INTO push_to_poll_consumer(name, feed, token, at) VALUES (?, ?, 1, ?)
    ON CONFLICT(name) DO UPDATE SET token = token + 1
"""
_SELECT_CONSUMER = "SELECT id, token, cursor, at, feed, first, behind FROM push_to_poll_consumer WHERE name = ?"

_MAX_FEED_SHOWN = 300
"""Characters of a feed's name that are shown: most addresses are shorter, and the two can be compared."""

NO_CHANGES: Mapping[str, str | None] = MappingProxyType({})

_Ts = TypeVarTuple("_Ts")
_T = TypeVar("_T")

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
            consumer = (file.connection, file.path, row.id)
            self.records = Records(*consumer, retention, first=row.first, prunable_before=row.prunable_before)
            self._stored_dead_letters = StoredDeadLetters(*consumer)
            self.dead_letter_index = self._stored_dead_letters.read_index()
            self._stored_cursors = StoredCursors(*consumer, row.token)
            self.cursor_state = self._stored_cursors.read(SavedCursor(row.cursor, row.at))
            others = OtherNames.read(file.connection, name, feed) if row.token == 1 else None
        self.token = row.token
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

    def some_dead_letters(self, after: DeadLetter | None, marked: bool) -> Sequence[DeadLetter]:  # noqa: FBT001
        """See `Session.dead_letters`."""
        with wrap_sqlite_errors(self._file.path):
            return self._stored_dead_letters.read_some(after, marked=marked)

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
        with wrap_sqlite_errors(self._file.path):
            replaced = self.records.segments_of(records)
        with self._file.transaction():
            now, saved = self._clock(), self.cursor_state.saved
            if cursor is not None and cursor != saved.cursor:
                saved = SavedCursor(cursor, now if read_at is None else read_at)
            prunable_before = self.records.prunable_before(now, saves_cursor=cursor is not None)
            self._save(saved, prunable_before)
            changes = self.records.write(records, replaced, prunable_before=prunable_before, now=now)
            index = self._stored_dead_letters.write(self.dead_letter_index, records.settled, dead_letters)
            cursor_state = self._stored_cursors.write_changes(self.cursor_state, saved, state)
        self.records.apply(changes)
        self.dead_letter_index, self.cursor_state = index, cursor_state

    def reset(self, cursor: Cursor | None, forget: bool, state: Mapping[str, str | None]) -> None:  # noqa: FBT001
        """See `Session.reset`."""
        with self._file.transaction():
            now = self._clock()
            saved = SavedCursor(cursor, now)
            prunable_before = self.records.prunable_before(now, saves_cursor=True)
            self._save(saved, prunable_before)
            cursor_state = self._stored_cursors.restart(self.cursor_state, saved, state)
            if forget:
                self.records.forget_all()
        self.cursor_state = cursor_state
        self.records.apply_reset(prunable_before, forget=forget)

    def _save(self, saved: SavedCursor, prunable_before: int) -> None:
        # Fails unless the fencing token is still ours: the lock file can be deleted, the token cannot.
        if not self._stored_cursors.save(saved, prunable_before=prunable_before):
            raise ownership_lost(self._file.path, self.name, "was claimed by somebody else")


def ownership_lost(path: str, name: str, why: str) -> OwnershipLost:
    """Build the error for a session that does not own its name any more."""
    return OwnershipLost(f"{path}: the name {quoted(name)} {why}; nothing was written; claim it again")


class SQLiteSession:
    """A claimed name of a `SQLiteStore`.

    Args:
        file: The open file; the caller holds its mutex while it makes the session.
        name: The name to claim.
        feed: The feed that the name is bound to.
        retention: Which records may be dropped.
        clock: Seconds since the epoch.
        limiter: Limits the session to one worker thread at a time; belongs to the event loop that claims.
        on_release: Called with the session by its first `release()`.

    Raises:
        StoreMismatch: The name is bound to another feed.
        StoreError: The file cannot be written, or holds what this library does not write.
    """

    def __init__(
        self,
        file: OpenFile,
        name: str,
        feed: str,
        *,
        retention: Retention,
        clock: Callable[[], float],
        limiter: CapacityLimiter,
        on_release: Callable[["SQLiteSession"], None],
    ) -> None:
        self.name = name
        self._file = file
        self._limiter = limiter
        self._on_release = on_release
        self._released = False
        self._claimed = ClaimedName(file, name, feed, retention=retention, clock=clock)

    @property
    def cursor(self) -> Cursor | None:
        """The saved cursor; `None` is the inception."""
        return self._claimed.cursor_state.saved.cursor

    @property
    def token(self) -> int:
        """The fencing token: one more for each claim of the name."""
        return self._claimed.token

    @property
    def size(self) -> int:
        """Number of dedupe records of the name."""
        return self._claimed.records.size

    @property
    def dead(self) -> int:
        """How many dead letters the name has."""
        return self._claimed.dead_letter_index.total

    @property
    def state(self) -> Mapping[str, str]:
        """What was committed as `state`."""
        return self._claimed.cursor_state.state

    @property
    def history(self) -> Sequence[SavedCursor]:
        """The cursors that were saved, the oldest first; the last is the saved one."""
        cursor_state = self._claimed.cursor_state
        return (*cursor_state.previous, cursor_state.saved)

    async def unseen(self, keys: Sequence[str], /) -> set[str]:
        """Those of `keys` without a record.

        Raises:
            OwnershipLost: The session was released.
            StoreError: The file cannot be read.
        """
        stored_keys = encode_keys(keys)
        if self._claimed.records.are_new(stored_keys):  # then no thread has to ask the file
            self._check_process()
            self._check_released()
            return set(keys)
        seen = await self._run_in_thread(self._claimed.known_keys, tuple(stored_keys))
        if not seen:
            return set(keys)
        return {key for key, stored_key in zip(keys, stored_keys, strict=True) if stored_key not in seen}

    async def fingerprints(self, keys: Sequence[str], /) -> Mapping[str, int]:
        """The fingerprints of those of `keys` that have a record with one; of several, the newest.

        Raises:
            OwnershipLost: The session was released.
            StoreError: The file cannot be read.
        """
        stored_keys = tuple(encode_keys(keys))
        found = await self._run_in_thread(self._claimed.fingerprints, stored_keys)
        return {
            key: found[stored_key]
            for key, stored_key in zip(keys, stored_keys, strict=True)
            if stored_key in found
        }

    async def commit(
        self,
        *,
        cursor: Cursor | None,
        records: Sequence[Record],
        dead_letters: Sequence[DeadLetter] = (),
        state: Mapping[str, str | None] = NO_CHANGES,
        read_at: float | None = None,
    ) -> None:
        """Save all of it, or nothing. Once begun, a commit ends even when its task is cancelled.

        Args:
            cursor: The cursor to save; `None` leaves the saved one.
            records: To add. One whose key has a record already replaces it; one that is not dead takes the dead
                letter of its key away.
            dead_letters: To add; one whose key has a dead letter already replaces it.
            state: What to change of `state`; `None` takes a name away.
            read_at: When the page arrived that the cursor is of, in seconds since the epoch;
                `None`: now.

        Raises:
            OwnershipLost: The session was released, or the name claimed by somebody else; nothing was written.
            StoreError: The file cannot be written, or holds what this library does not write; nothing was written.
        """
        encoded = encode_records(records)
        # Before the thread starts: it goes on writing when this task is cancelled.
        self._claimed.records.expect_keys(encoded.keys)
        await self._run_in_thread(self._claimed.commit, cursor, encoded, tuple(dead_letters), dict(state), read_at)

    async def reset(
        self, cursor: Cursor | None, *, forget: bool, state: Mapping[str, str | None] = NO_CHANGES
    ) -> None:
        """Go on from another place: `history` begins anew with this cursor.

        Args:
            cursor: Where to go on; `None` is the inception.
            forget: Begin a new dedupe epoch: what was recorded counts no more. Dead letters stay.
            state: As for `commit`.

        Raises:
            OwnershipLost: As for `commit`.
            StoreError: As for `commit`.
        """
        await self._run_in_thread(self._claimed.reset, cursor, forget, dict(state))

    async def dead_letters(self, *, after: DeadLetter | None = None, marked: bool = False) -> Sequence[DeadLetter]:
        """Some dead letters, in the order of their keys: 100 at most, or fewer that have 16 MiB together.

        Args:
            after: The last one that the caller has; `None`: from the first.
            marked: Those alone that are marked.

        Raises:
            OwnershipLost: The session was released.
            StoreError: The file cannot be read, or holds what this library does not write.
        """
        return await self._run_in_thread(self._claimed.some_dead_letters, after, marked)

    async def dead_letter(self, key: str, /) -> DeadLetter | None:
        """The dead letter of a key; `None`: it has none.

        Raises:
            OwnershipLost: The session was released.
            StoreError: The file cannot be read, or holds what this library does not write.
        """
        return await self._run_in_thread(self._claimed.dead_letter, key)

    async def release(self) -> None:
        """Give the name back. Never raises; a second call does nothing."""
        if self._file.process == os.getpid():
            # Not by the limiter of the session, whose event loop may have ended while a thread used it.
            with CancelScope(shield=True):
                await to_thread.run_sync(self._release_locked, limiter=CapacityLimiter(1))

    async def _run_in_thread(self, work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        self._check_process()
        return await to_thread.run_sync(self._run_locked, work, *args, limiter=self._limiter)

    def _run_locked(self, work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        with self._file.mutex:
            self._check_released()
            return work(*args)

    def _check_process(self) -> None:
        if self._file.process != os.getpid():  # in a forked child the mutex may stay locked for ever
            raise ownership_lost(
                self._file.path, self.name, "belongs to the process that this one was forked from"
            )

    def _check_released(self) -> None:
        if self._released:
            raise ownership_lost(self._file.path, self.name, "was released")

    def _release_locked(self) -> None:
        with self._file.mutex:
            first, self._released = not self._released, True
        if first:
            self._on_release(self)
