"""What does one consumer name read and write? The session of a `SQLiteStore`, one transaction a call."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import TypeVar, TypeVarTuple

from anyio import CancelScope, CapacityLimiter, to_thread

from push_to_poll_client._exceptions import OwnershipLost, StoreMismatch
from push_to_poll_client._types import Cursor, Record
from push_to_poll_client.stores._retention import Retention
from push_to_poll_client.stores._sqlite_file import OpenFile, named_errors

__all__ = ["SQLiteSession"]

_Ts = TypeVarTuple("_Ts")
_T = TypeVar("_T")

_KEYS_PER_QUERY = 500  # variables of a statement; SQLite before 3.32 allows 999

_LONGEST_KEY = 200
"""Bytes. A longer key is kept as a digest of 32: what spills out of its page of the index is slow to find."""


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
        StoreError: The file cannot be written.
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
        self._size: int
        self._let_go = let_go
        self._released = False
        with file.transaction():
            self._do_claim(_stored(name), _stored(feed))

    def _do_claim(self, name: str | bytes, feed: str | bytes) -> None:
        execute = self._file.connection.execute
        execute("INSERT INTO consumer(name, feed) VALUES (?, ?) ON CONFLICT(name) DO NOTHING", (name, feed))
        execute("UPDATE consumer SET token = token + 1 WHERE name = ?", (name,))
        row = execute("SELECT id, token, cursor, size, feed FROM consumer WHERE name = ?", (name,)).fetchone()
        cursor: str | bytes | None
        bound: str | bytes
        self._consumer, self._token, cursor, self._size, bound = row
        self._cursor = None if cursor is None else _restored(cursor)
        if bound != feed:
            raise StoreMismatch(
                f"{self._file.path}: the name {self.name!r} was used with the feed {_restored(bound)!r}, not "
                f"{_restored(feed)!r}; use another name"
            )

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
        return self._size

    async def unseen(self, keys: Sequence[str], /) -> set[str]:
        """Those of `keys` without a record.

        Raises:
            OwnershipLost: The session was released.
            StoreError: The file cannot be read.
        """
        return await self._hop(self._do_unseen, tuple(keys))

    async def commit(self, *, cursor: Cursor | None, records: Sequence[Record]) -> None:
        """Save the cursor (`None` leaves the saved one) and add the records: both or neither.

        A record whose key has one already replaces it. Once begun, a commit ends even when its task is cancelled.

        Raises:
            OwnershipLost: The session was released, or the name claimed by somebody else; nothing was written.
            StoreError: Nothing was written.
        """
        await self._hop(self._do_commit, cursor, tuple(records))

    async def release(self) -> None:
        """Give the name back. Never raises; a second call does nothing."""
        if self._file.process == os.getpid():
            with CancelScope(shield=True):
                await to_thread.run_sync(self._do_release, limiter=self._limiter)

    async def _hop(self, work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        if self._file.process != os.getpid():  # the mutex may be locked for ever in a forked child
            raise self._lost("belongs to the process that this one was forked from")
        return await to_thread.run_sync(self._do, work, *args, limiter=self._limiter)

    def _do(self, work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        with self._file.mutex:
            if self._released:
                raise self._lost("was released")
            return work(*args)

    def _do_release(self) -> None:
        with self._file.mutex:
            first, self._released = not self._released, True
        if first:
            self._let_go(self)

    def _do_unseen(self, keys: tuple[str, ...]) -> set[str]:
        unseen = {_stored_key(key): key for key in keys}
        asked = list(unseen)
        with named_errors(self._file.path):
            for start in range(0, len(asked), _KEYS_PER_QUERY):
                for key in self._do_find(asked[start : start + _KEYS_PER_QUERY]):
                    del unseen[key]
        return set(unseen.values())

    def _do_find(self, keys: list[str | bytes]) -> list[str | bytes]:
        marks = ",".join("?" * len(keys))
        query = f"SELECT key FROM record WHERE consumer = ? AND key IN ({marks})"  # noqa: S608  # marks alone
        return [key for (key,) in self._file.connection.execute(query, (self._consumer, *keys))]

    def _do_commit(self, cursor: Cursor | None, records: tuple[Record, ...]) -> None:
        with self._file.transaction():
            last, behind, size = self._do_check()
            if cursor is not None:
                behind = last
            now = self._clock()
            added = self._do_record(records, last, now)
            size += added - self._do_sweep(behind, size + added, added, now)
            self._file.connection.execute(
                "UPDATE consumer SET cursor = coalesce(?, cursor), last = ?, behind = ?, size = ? WHERE id = ?",
                (None if cursor is None else _stored(cursor), last + len(records), behind, size, self._consumer),
            )
        self._size = size
        self._cursor = self._cursor if cursor is None else cursor

    def _do_check(self) -> tuple[int, int, int]:
        """Within the transaction: still the owner? Locks beside the database can be deleted, this cannot."""
        query = "SELECT last, behind, size FROM consumer WHERE id = ? AND token = ?"
        row: tuple[int, int, int] | None
        row = self._file.connection.execute(query, (self._consumer, self._token)).fetchone()
        if row is None:
            raise self._lost("was claimed by somebody else")
        return row

    def _do_record(self, records: tuple[Record, ...], last: int, now: float) -> int:
        """Add or replace; how many were added."""
        states = {_stored_key(record.key): record.state.value for record in records}
        rows = [
            (last + number, state, now, self._consumer, key)
            for number, (key, state) in enumerate(states.items(), start=1)
        ]
        if not rows:
            return 0
        added = self._file.connection.executemany(
            "INSERT INTO record(position, state, at, consumer, key) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT(consumer, key) DO NOTHING",
            rows,
        ).rowcount
        if added < len(rows):  # rare, and the one way to learn how many there were
            self._file.connection.executemany(
                "UPDATE record SET position = ?, state = ?, at = ? WHERE consumer = ? AND key = ?", rows
            )
        return added

    def _do_sweep(self, behind: int, size: int, added: int, now: float) -> int:
        """Take away what may go; how many went."""
        execute = self._file.connection.execute
        query = "SELECT position, at FROM record WHERE consumer = ? AND position <= ? ORDER BY position"
        with contextlib.closing(execute(query, (self._consumer, behind))) as oldest:
            last = self._retention.sweep(oldest, size=size, added=added, now=now)
        if last is None:
            return 0
        return execute("DELETE FROM record WHERE consumer = ? AND position <= ?", (self._consumer, last)).rowcount

    def _lost(self, why: str) -> OwnershipLost:
        return OwnershipLost(
            f"{self._file.path}: the name {self.name!r} {why}; nothing was written; claim it again"
        )


def _stored(text: str) -> str | bytes:
    """Any string as SQLite can keep it: TEXT, or a BLOB, which equals no TEXT, when UTF-8 has no word for it."""
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair
        return text.encode("utf-8", "surrogatepass")
    return text


def _restored(stored: str | bytes) -> str:
    return stored if isinstance(stored, str) else stored.decode("utf-8", "surrogatepass")


def _stored_key(key: str) -> str | bytes:
    if len(key) * 4 > _LONGEST_KEY:
        spelled = key.encode("utf-8", "surrogatepass")
        if len(spelled) > _LONGEST_KEY:
            # 0xFF begins no character, so that a digest is no other key's spelling.
            return b"\xff" + hashlib.blake2b(spelled, digest_size=32).digest()
    return _stored(key)
