"""What does one consumer name read and write? The session of a `SQLiteStore`, one transaction a call at most."""

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from itertools import chain, groupby, islice
from operator import attrgetter
from typing import Annotated, NamedTuple, TypeVar, TypeVarTuple

import msgspec
from anyio import CancelScope, CapacityLimiter, to_thread

from push_to_poll_client._exceptions import OwnershipLost, StoreMismatch
from push_to_poll_client._text import quoted
from push_to_poll_client._types import Cursor, Record, RecordState
from push_to_poll_client.stores._retention import Retention
from push_to_poll_client.stores._sqlite_file import OpenFile, named_damage, named_errors
from push_to_poll_client.stores._sqlite_text import restored, stored, stored_keys

__all__ = ["SQLiteSession"]

_Ts = TypeVarTuple("_Ts")
_T = TypeVar("_T")

# One statement for all keys, given as one JSON array: while it runs, other threads run too. Statement by statement
# the thread would wait for them a thousand times.
_FIND = """
    SELECT record.key FROM json_each(:keys) AS asked
    CROSS JOIN record ON record.consumer = :consumer AND record.key = asked.value
"""
_ADD = """
    INSERT INTO record(consumer, position, key, state, at)
    SELECT :consumer, :last + 1 + key, value, :state, :now FROM json_each(:keys) WHERE true
    ON CONFLICT(consumer, key) DO NOTHING
"""
_REPLACE = """
    UPDATE record SET position = :last + 1 + given.key, state = :state, at = :now FROM json_each(:keys) AS given
    WHERE record.consumer = :consumer AND record.key = given.value
"""
_SAVE = """
    UPDATE consumer SET cursor = coalesce(?, cursor), last = ?, behind = ?, size = ? WHERE id = ? AND token = ?
"""

_key_of, _state_of = attrgetter("key"), attrgetter("state")

_FEED = 300
"""Characters of a feed's name that are shown: most addresses are shorter, and the two can be compared."""

_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
"""No consumer gets that far, and what is added to it is still an integer to SQLite."""


class _Counts(NamedTuple):
    """The position of the newest record, up to which records may be swept, and how many there are."""

    last: _Count
    behind: _Count
    size: _Count


class _Row(NamedTuple):
    """What stands in the file for a name."""

    id: int
    token: _Count
    cursor: str | None
    feed: str
    last: _Count
    behind: _Count
    size: _Count


class _Settled(NamedTuple):
    """The keys of records of one state, in order, as they stand in the file."""

    state: RecordState
    keys: Sequence[str]


class SQLiteSession:
    """A claimed name of a `SQLiteStore`.

    Methods named `_do_…` run in a worker thread, one hop each, and never two on one file at a time.

    Args:
        file: Its mutex is held while the session is made.
        name: What is claimed.
        feed: What the name is bound to.
        retention: Which records may go.
        clock: Seconds since the epoch.
        limiter: Belongs to the event loop that claims, as the session does.
        let_go: Called with the session by its first `release()`.

    Raises:
        StoreMismatch: The name was used with another feed.
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
        let_go: Callable[["SQLiteSession"], None],
    ) -> None:
        self.name = name
        self._file = file
        self._retention = retention
        self._clock = clock
        self._limiter = limiter
        self._token: int
        self._oldest = -math.inf  # the time of the oldest record, once it was looked at
        self._let_go = let_go
        self._released = False
        with file.transaction():
            self._do_claim(stored(name), feed)
            self._highest = self._do_find_highest()

    def _do_claim(self, name: str | bytes, feed: str) -> None:
        execute = self._file.connection.execute
        execute(
            "INSERT INTO consumer(name, feed) VALUES (?, ?) ON CONFLICT(name) DO NOTHING", (name, stored(feed))
        )
        execute("UPDATE consumer SET token = token + 1 WHERE name = ?", (name,))
        query = "SELECT id, token, cursor, feed, last, behind, size FROM consumer WHERE name = ?"
        with named_damage(self._file.path):
            row = msgspec.convert(list(map(restored, execute(query, (name,)).fetchone())), _Row)
        self._consumer, self._token, self._cursor = row.id, row.token, row.cursor
        self._counts = _Counts(row.last, row.behind, row.size)
        if row.feed != feed:
            raise StoreMismatch(
                f"{self._file.path}: the name {quoted(self.name)} was used with the feed "
                f"{quoted(row.feed, _FEED)}, not {quoted(feed, _FEED)}; use another name"
            )

    def _do_find_highest(self) -> str | None:
        """See `_are_new`. `None`: this library did not write it so, and it says nothing about others."""
        execute = self._file.connection.execute
        query = "SELECT key FROM record WHERE consumer = ? ORDER BY key DESC LIMIT 1"
        (highest,) = execute(query, (self._consumer,)).fetchone() or ("",)
        (encoding,) = execute("PRAGMA encoding").fetchone()
        return highest if isinstance(highest, str) and encoding == "UTF-8" else None

    @property
    def cursor(self) -> Cursor | None:
        """The saved cursor; `None` is the inception."""
        return self._cursor

    @property
    def token(self) -> int:
        """The fencing token: larger for each claim of the name."""
        return self._token

    @property
    def size(self) -> int:
        """How many dedupe records the name has."""
        return self._counts.size

    async def unseen(self, keys: Sequence[str], /) -> set[str]:
        """Those of `keys` without a record.

        Raises:
            OwnershipLost: The session was released.
            StoreError: The file cannot be read.
        """
        known_as = stored_keys(keys)
        if self._are_new(known_as):
            self._check_process()
            self._check_released()
            return set(keys)
        return await self._hop(self._do_unseen, tuple(keys), tuple(known_as))

    def _are_new(self, keys: Sequence[str]) -> bool:
        """Whether none can have a record, for each is above all that have: most feeds count their messages up.

        Then no thread has to ask the file. SQLite orders UTF-8 as Python orders strings, by code points.
        """
        return not keys or (self._highest is not None and min(keys) > self._highest)

    async def commit(self, *, cursor: Cursor | None, records: Sequence[Record]) -> None:
        """Save the cursor (`None` leaves the saved one) and add the records: both or neither.

        A record whose key has one already replaces it. Once begun, a commit ends even when its task is cancelled.

        Raises:
            OwnershipLost: The session was released, or the name claimed by somebody else; nothing was written.
            StoreError: The file cannot be written, or holds what this library does not write; nothing was written.
        """
        settled = _by_state(records)
        if self._highest is not None:  # before the thread has it: it writes also for a task that has gone
            self._highest = max([self._highest, *(max(keys) for _, keys in settled)])
        await self._hop(self._do_commit, cursor, settled)

    async def release(self) -> None:
        """Give the name back. Never raises; a second call does nothing."""
        if self._file.process == os.getpid():
            with CancelScope(shield=True):
                await to_thread.run_sync(self._do_release, limiter=self._limiter)

    async def _hop(self, work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        self._check_process()
        return await to_thread.run_sync(self._do, work, *args, limiter=self._limiter)

    def _do(self, work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        with self._file.mutex:
            self._check_released()
            return work(*args)

    def _check_process(self) -> None:
        if self._file.process != os.getpid():  # the mutex may be locked for ever in a forked child
            raise self._lost("belongs to the process that this one was forked from")

    def _check_released(self) -> None:
        if self._released:
            raise self._lost("was released")

    def _do_release(self) -> None:
        with self._file.mutex:
            first, self._released = not self._released, True
        if first:
            self._let_go(self)

    def _do_unseen(self, keys: tuple[str, ...], known_as: tuple[str, ...]) -> set[str]:
        asked = {"consumer": self._consumer, "keys": _as_json(known_as)}
        with named_errors(self._file.path):
            seen = {key for (key,) in self._file.connection.execute(_FIND, asked)}
        return (
            {key for key, stored_key in zip(keys, known_as, strict=True) if stored_key not in seen}
            if seen
            else set(keys)
        )

    def _do_commit(self, cursor: Cursor | None, settled: Sequence[_Settled]) -> None:
        last, behind, size = self._counts
        number = sum(len(keys) for _, keys in settled)
        with self._file.transaction():
            counts = _Counts(last + number, behind if cursor is None else last, size + number)
            self._do_save(cursor, counts)
            now = self._clock()
            added = self._do_record(settled, last, now)
            size += added - self._do_sweep(counts.behind, size + added, added, now)
            self._do_correct(size, counts.size)
        self._counts = counts._replace(size=size)
        self._cursor = self._cursor if cursor is None else cursor

    def _do_save(self, cursor: Cursor | None, counts: _Counts) -> None:
        """Still the owner? Locks beside the database can be deleted, the token cannot."""
        values = (None if cursor is None else stored(cursor), *counts, self._consumer, self._token)
        if not self._file.connection.execute(_SAVE, values).rowcount:
            raise self._lost("was claimed by somebody else")

    def _do_correct(self, size: int, saved: int) -> None:
        """Some records were there already, or were swept."""
        if size != saved:
            self._file.connection.execute("UPDATE consumer SET size = ? WHERE id = ?", (size, self._consumer))

    def _do_record(self, settled: Sequence[_Settled], last: int, now: float) -> int:
        """Add or replace; how many were added."""
        added = 0
        for state, keys in settled:
            added += self._do_record_as(state, keys, last, now)
            last += len(keys)
        return added

    def _do_record_as(self, state: RecordState, keys: Sequence[str], last: int, now: float) -> int:
        execute = self._file.connection.execute
        values = {
            "consumer": self._consumer,
            "last": last,
            "state": state.value,
            "now": now,
            "keys": _as_json(keys),
        }
        added = execute(_ADD, values).rowcount
        if added < len(keys):  # rare, and the one way to learn how many there were
            execute(_REPLACE, values)
        return added

    def _do_sweep(self, behind: int, size: int, added: int, now: float) -> int:
        """Take away what may go; how many went."""
        if not self._retention.may_be_due(size=size, oldest=self._oldest, now=now):
            return 0
        last = self._do_find_last_to_go(behind, size, added, now)
        if last is None:
            return 0
        statement = "DELETE FROM record WHERE consumer = ? AND position <= ?"
        return self._file.connection.execute(statement, (self._consumer, last)).rowcount

    def _do_find_last_to_go(self, behind: int, size: int, added: int, now: float) -> int | None:
        query = "SELECT position, at FROM record WHERE consumer = ? AND position <= ? ORDER BY position"
        with (
            contextlib.closing(self._file.connection.execute(query, (self._consumer, behind))) as oldest,
            named_damage(self._file.path),  # a time that is none cannot be compared
        ):
            first = list(islice(oldest, 1))
            last = self._retention.sweep(chain(first, oldest), size=size, added=added, now=now)
        if first and last is None:
            self._oldest = first[0][1]
        return last

    def _lost(self, why: str) -> OwnershipLost:
        return OwnershipLost(
            f"{self._file.path}: the name {quoted(self.name)} {why}; nothing was written; claim it again"
        )


def _by_state(records: Sequence[Record]) -> Sequence[_Settled]:
    return [
        _Settled(state, stored_keys(list(map(_key_of, of_this_state))))
        for state, of_this_state in groupby(records, key=_state_of)
    ]


def _as_json(keys: Sequence[str]) -> str:
    return msgspec.json.encode(keys).decode()
