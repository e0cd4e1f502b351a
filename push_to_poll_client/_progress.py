"""Collect what is settled, and commit it to the store in groups.

There is one commit at a time. What is settled while it is under way is the next, as databases do it (group
commit): the faster the messages come and the slower the disk is, the more of them share a commit.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TypedDict

import anyio
from anyio.abc import TaskGroup

from push_to_poll_client._event_loop import TimeOfDay
from push_to_poll_client._failure_policy import Attempts
from push_to_poll_client._protocols import Session, is_transactional
from push_to_poll_client._status import ConsumerStats
from push_to_poll_client._types import Clock, Cursor, DeadLetter, Record

__all__ = [
    "Progress",
]


MAX_PENDING = 50_000
"""Keys of settled pages that wait for their commit. With more, the next page waits too (G11)."""


class Progress:
    """The progress of one session.

    Args:
        session: Where it is committed.
        tally: Told of what was committed.
        flush_interval: Seconds of work that may be uncommitted.
        clock: The event loop's.

    Attributes:
        pending: The records of what is settled and not on its way yet, in order; always the same list.
        cursor: Safe to save with them; `None` leaves the saved one.
        read_at: When the page arrived that it is of, on the event loop's clock.
        dead_letters: Of those that died.
        time_of_day: Of the event loop.
        attempts: Of messages that fail.
        due: When all has to be committed that is settled by now, also what is on its way (G7).

    Raises:
        StoreError: The session keeps what this library does not write.
    """

    def __init__(self, session: Session, tally: ConsumerStats, *, flush_interval: float, clock: Clock) -> None:
        self.pending: list[Record] = []
        self.cursor: Cursor | None = None
        self.read_at = clock()
        self.dead_letters: list[DeadLetter] = []
        self.time_of_day = TimeOfDay(clock)
        self.attempts = Attempts(session.state, self.time_of_day)
        self.due = 0.0
        self._session = session
        self._stats = tally
        self._flush_interval = flush_interval
        self._clock = clock
        self._taken_count = 0
        self._pending_keys = set[str]()
        self._committing_keys = set[str]()
        self._committing: anyio.Event | None = None
        self._lock = anyio.Lock(fast_acquire=True)
        self._transactional = is_transactional(session)

    @property
    def saved(self) -> Cursor | None:
        """The saved cursor; `None` is the inception."""
        return self._session.cursor

    @property
    def dead_letter_count(self) -> int:
        """How many dead letters there are, committed or not."""
        return self._session.dead + len(self.dead_letters)

    @property
    def settled_count(self) -> int:
        """How many messages were settled, committed or not."""
        return self._taken_count + len(self.pending)

    async def unsettled(self, keys: list[str]) -> set[str]:
        """Those of a page's keys that have no record and are not about to have one.

        Raises:
            StoreError: The store failed, now or with what an earlier page left to it.
        """
        if self._committing is None:
            await self.flush()
        uncommitted = (
            self._committing_keys,
            self._pending_keys,
        )  # by now: it may be committed before the store answers
        unseen = await self._session.unseen(keys)
        for settled in uncommitted:
            if not unseen.isdisjoint(settled):
                unseen = unseen - settled
        return unseen

    async def fingerprints(self, keys: list[str]) -> Mapping[str, int]:
        """The fingerprints of those of the keys that were settled with one.

        Raises:
            StoreError: As for `unsettled`.
        """
        await self.flush()
        return await self._session.fingerprints(keys)

    def advance(self, cursor: Cursor | None, read_at: float) -> None:
        """All before this cursor is settled; `None`: nothing new is."""
        if cursor is not None:
            self.cursor, self.read_at = cursor, read_at

    async def flush(self) -> None:
        """Commit all of it now.

        Raises:
            StoreError: The store failed. What is not committed is kept, and tried again by the next flush.
        """
        if self._committing is not None:
            await self._committing.wait()
        await self._commit()
        self.due = self._clock() + self._flush_interval

    def discard_uncommitted(self) -> None:
        """What was settled since the last commit is not, after all (G8)."""
        self.pending.clear()
        self.cursor, self.dead_letters, self._pending_keys = None, [], set()

    async def finish(self) -> None:
        """Flush, when nothing runs beside any more: all that was started there has ended, however it did.

        Raises:
            StoreError: As for `flush`.
        """
        self._committing = None
        await self.flush()

    async def commit_in_background(self, tasks: TaskGroup, keys: list[str]) -> None:
        """Commit while the caller goes on with the next page. What fails is tried again by the next flush.

        A transactional session has one transaction: there the caller waits.

        Args:
            tasks: Where.
            keys: Of the page that is settled.

        Raises:
            StoreError: As for `flush`, which it comes to when too much is pending.
        """
        self._pending_keys.update(keys)
        if self._transactional or len(self._pending_keys) > MAX_PENDING:
            await self.flush()
        elif self._committing is None:
            self._committing = anyio.Event()
            tasks.start_soon(self._commit_all, self._committing)

    async def _commit_all(self, done: anyio.Event) -> None:
        try:
            with suppress(Exception):  # tried again, by who can raise it
                while self._has_uncommitted:
                    await self._commit()
        finally:
            self._committing = None
            done.set()

    @property
    def _has_uncommitted(self) -> bool:
        unsaved = self.cursor not in {None, self.saved}
        return bool(self.pending or self.dead_letters) or unsaved or self.attempts.changed

    async def _commit(self) -> None:
        """Commit what is there now. More may come meanwhile. A cancellation waits for it."""
        with anyio.CancelScope(shield=True):
            async with self._lock:
                if self._has_uncommitted:
                    await self._save_uncommitted()
                else:
                    self.cursor, self._pending_keys = None, set()

    async def _save_uncommitted(self) -> None:
        began = self._clock()
        taken = self._take()
        try:
            await self._session.commit(**taken)
        except BaseException:
            self._put_back(taken)
            raise
        finally:
            self._committing_keys = set()
        self.due = began + self._flush_interval
        self._stats.committed(len(taken["records"]))

    def _take(self) -> "_Uncommitted":
        taken = _Uncommitted(
            cursor=None if self.cursor == self.saved else self.cursor,
            records=self.pending.copy(),
            dead_letters=self.dead_letters,
            state=self.attempts.take_changes(),
            read_at=self.time_of_day.of(self.read_at),
        )
        self._taken_count += len(self.pending)
        self.pending.clear()
        self.cursor, self.dead_letters = None, []
        self._committing_keys, self._pending_keys = self._pending_keys, set()
        return taken

    def _put_back(self, taken: "_Uncommitted") -> None:
        """For the next flush; but what a store has undone is to be processed again, not to be recorded (G8)."""
        if taken["state"]:
            self.attempts.changed = True
        if self._transactional:
            return
        self.pending[:0] = taken["records"]
        self.dead_letters[:0] = taken["dead_letters"]
        self._taken_count -= len(taken["records"])
        self.cursor = taken["cursor"] if self.cursor is None else self.cursor
        self._pending_keys |= self._committing_keys


class _Uncommitted(TypedDict):
    """What one commit is to save."""

    cursor: Cursor | None
    records: Sequence[Record]
    dead_letters: Sequence[DeadLetter]
    state: Mapping[str, str | None]
    read_at: float
