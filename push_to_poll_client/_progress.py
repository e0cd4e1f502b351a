"""What is settled and not yet committed, and its way into the store.

There is one commit at a time. What is settled while it is under way is the next, as databases do it (group
commit): the faster the messages come and the slower the disk is, the more of them share a commit.
"""

from contextlib import suppress

import anyio
from anyio.abc import TaskGroup

from push_to_poll_client._status import Tally
from push_to_poll_client._types import Clock, Cursor, Record, Session

__all__ = ["Progress"]

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
        due: When all has to be committed that is settled by now, also what is on its way (G7).
    """

    def __init__(self, session: Session, tally: Tally, *, flush_interval: float, clock: Clock) -> None:
        self.pending: list[Record] = []
        self.cursor: Cursor | None = None
        self.due = 0.0
        self._session = session
        self._tally = tally
        self._flush_interval = flush_interval
        self._clock = clock
        self._taken = 0
        self._pending_keys = set[str]()
        self._moving_keys = set[str]()
        self._committing: anyio.Event | None = None

    @property
    def saved(self) -> Cursor | None:
        """The saved cursor; `None` is the inception."""
        return self._session.cursor

    @property
    def settled(self) -> int:
        """How many messages were settled, committed or not."""
        return self._taken + len(self.pending)

    async def unsettled(self, keys: list[str]) -> set[str]:
        """Those of a page's keys that have no record and are not about to have one.

        Raises:
            StoreError: The store failed, now or with what an earlier page left to it.
        """
        if self._committing is None:
            await self.flush()
        uncommitted = self._moving_keys, self._pending_keys  # by now: it may be committed before the store answers
        unseen = await self._session.unseen(keys)
        for settled in uncommitted:
            if not unseen.isdisjoint(settled):
                unseen = unseen - settled
        return unseen

    async def flush(self) -> None:
        """Commit all of it now.

        Raises:
            StoreError: The store failed. What is not committed is kept, and tried again by the next flush.
        """
        if self._committing is not None:
            await self._committing.wait()
        await self._commit()
        self.due = self._clock() + self._flush_interval

    async def finish(self) -> None:
        """Flush, when nothing runs beside any more: all that was started there has ended, however it did.

        Raises:
            StoreError: As for `flush`.
        """
        self._committing = None
        await self.flush()

    async def commit_beside(self, tasks: TaskGroup, keys: list[str]) -> None:
        """Commit while the caller goes on with the next page. What fails is tried again by the next flush.

        Args:
            tasks: Where.
            keys: Of the page that is settled.

        Raises:
            StoreError: As for `flush`, which it comes to when too much is pending.
        """
        self._pending_keys.update(keys)
        if len(self._pending_keys) > MAX_PENDING:
            await self.flush()
        elif self._committing is None:
            self._committing = anyio.Event()
            tasks.start_soon(self._commit_all, self._committing)

    async def _commit_all(self, done: anyio.Event) -> None:
        try:
            with suppress(Exception):  # tried again, by who can raise it
                while self._is_left:
                    await self._commit()
        finally:
            self._committing = None
            done.set()

    @property
    def _is_left(self) -> bool:
        return bool(self.pending) or self.cursor not in {None, self.saved}

    async def _commit(self) -> None:
        """Commit what is there now. More may come meanwhile."""
        if not self._is_left:
            self.cursor, self._pending_keys = None, set()
            return
        began = self._clock()
        records = self.pending.copy()
        self.pending.clear()
        self._taken += len(records)
        cursor, self.cursor = self.cursor, None
        self._moving_keys, self._pending_keys = self._pending_keys, set()
        try:
            with anyio.CancelScope(shield=True):
                await self._session.commit(cursor=None if cursor == self.saved else cursor, records=records)
        except BaseException:
            self.pending[:0] = records
            self._taken -= len(records)
            self.cursor = cursor if self.cursor is None else self.cursor
            raise
        finally:
            self._moving_keys = set()
        self.due = began + self._flush_interval
        self._tally.committed(len(records))
