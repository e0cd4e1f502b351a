"""Collect the records of settled messages, and commit them to the store in groups.

There is one commit at a time. Records that arrive while it runs go into the next one, as databases do it (group
commit): the faster the messages come and the slower the disk is, the more messages share a commit.

A commit that fails loses nothing: its records are put back, and the next flush tries again. Each poll begins with
a flush, so nothing more is processed until the commit succeeds. If the session ends before that, `uncommitted` is
kept by the consumer, and the next session begins with `restore`. A transactional store has committed the effects
of its handlers before, each with its record (G8): that a record is given to a commit again changes nothing.

A commit ends although its caller is cancelled, unless it takes longer than the consumer may take to stop.

The cursor of the next commit moves in two places: in `_processor.py`, where messages are processed one by one,
and in `_work_queue.py`, where several are processed at a time.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypedDict

import anyio
from anyio.abc import TaskGroup

from push_to_poll_client._event_loop import TimeOfDay, in_own_task
from push_to_poll_client._exceptions import StoreUnavailable
from push_to_poll_client._failure_policy import Attempts
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._protocols import Session, is_transactional
from push_to_poll_client._status import ConsumerStats
from push_to_poll_client._types import Clock, Cursor, DeadLetter, Record, SavedCursor

__all__ = ["Progress", "Uncommitted"]


logger = ConsumerLog(logging.getLogger("push_to_poll_client"))


MAX_PENDING = 50_000
"""Keys of settled pages that may wait for their commit (G11). With more, the next page waits until they are
committed."""

MIN_COMMIT_TIMEOUT: Final = 5.0
"""Seconds that a commit gets in any case while the consumer stops: it may be of a message that ended late."""


class CommitArguments(TypedDict):
    """The arguments of one commit."""

    cursor: Cursor | None
    records: Sequence[Record]
    dead_letters: Sequence[DeadLetter]
    state: Mapping[str, str | None]
    read_at: float


@dataclass(frozen=True, slots=True)
class Uncommitted:
    """A commit that a session could not make before it ended.

    Attributes:
        history: The saved cursors of the session. If they change, another consumer has moved the name meanwhile,
            and what is left may be of no use any more.
        token: The fencing token of the session.
        commit: The arguments of the commit that is due.
    """

    history: Sequence[SavedCursor]
    token: int
    commit: CommitArguments


class Progress:
    """The progress of one session.

    Args:
        session: Where the progress is committed.
        stats: Are told of what was committed.
        flush_interval: Seconds of work that may be uncommitted.
        shutdown_timeout: Seconds that a commit gets when its caller is cancelled.
        clock: The event loop's clock.

    Attributes:
        pending: Records of settled messages that no commit has taken yet, in order; always the same list.
        cursor: The cursor that may be saved with them; `None` leaves the saved one.
        read_at: When the page of this cursor arrived, on the event loop's clock.
        dead_letters: Dead letters that no commit has taken yet.
        time_of_day: The time of day by the event loop's clock.
        attempts: Attempts of failing messages.
        refusal: Why the last commit failed, if the store may recover; `None` if it did not fail.
        due: When everything that is settled by now has to be committed, also what a running commit has taken (G7).

    Raises:
        StoreError: The session's state has a value that this library does not write.
    """

    def __init__(
        self,
        session: Session,
        stats: ConsumerStats,
        *,
        flush_interval: float,
        shutdown_timeout: float,
        clock: Clock,
    ) -> None:
        self.pending: list[Record] = []
        self.cursor: Cursor | None = None
        self.read_at = clock()
        self.dead_letters: list[DeadLetter] = []
        self.time_of_day = TimeOfDay(clock)
        self.attempts = Attempts(session.state, self.time_of_day)
        self.refusal: StoreUnavailable | None = None
        self.due = 0.0
        self._session = session
        self._stats = stats
        self._flush_interval = flush_interval
        self._shutdown_timeout = shutdown_timeout
        self._clock = clock
        self._taken: CommitArguments | None = None  # by the commit that runs
        self._refused_since = 0.0  # when the first of the commits began that were refused in a row
        self._taken_count = 0
        self._pending_keys = set[str]()
        self._committing_keys = set[str]()
        self._committing: anyio.Event | None = None
        self._lock = anyio.Lock(fast_acquire=True)
        self._commit_scope = anyio.CancelScope()
        self._stop_deadline = self._cancel_deadline = math.inf
        self._transactional = is_transactional(session)

    @property
    def saved(self) -> Cursor | None:
        """The saved cursor; `None` is the inception."""
        return self._session.cursor

    @property
    def dead_letter_count(self) -> int:
        """Number of dead letters, committed or not."""
        return self._session.dead + len(self.dead_letters)

    @property
    def settled_count(self) -> int:
        """Number of messages settled in this session, committed or not."""
        return self._taken_count + len(self.pending)

    async def unsettled(self, keys: list[str]) -> set[str]:
        """Return the keys of a page that have no record and are not about to have one.

        Raises:
            StoreError: The store failed, now or while it committed an earlier page.
        """
        if self._committing is None:
            await self.flush()
        # Read before the store is asked: these keys may be committed before it answers.
        # Messages that waited to fill a batch are of earlier pages than the keys of the page that is settled.
        settled_since = {record.key for record in self.pending}
        uncommitted = (self._committing_keys, self._pending_keys, settled_since)
        unseen = await self._session.unseen(keys)
        for settled in uncommitted:
            if not unseen.isdisjoint(settled):
                unseen = unseen - settled
        return unseen

    async def fingerprints(self, keys: list[str]) -> Mapping[str, int]:
        """Return the fingerprints of the keys whose messages were settled with one.

        Raises:
            StoreError: As for `unsettled`.
        """
        await self.flush()
        return await self._session.fingerprints(keys)

    def advance(self, cursor: Cursor | None, read_at: float) -> None:
        """Move the cursor that may be saved, since everything before it is settled; `None` leaves it."""
        if cursor is not None:
            self.cursor, self.read_at = cursor, read_at

    async def flush(self) -> None:
        """Commit everything now.

        Raises:
            StoreError: The store failed. The next flush tries again.
        """
        if self._committing is not None:
            await self._committing.wait()
        await self._commit(self.caller_cancelled)
        self.due = self._clock() + self._flush_interval

    def finish_by(self, deadline: float) -> None:
        """Give up a commit that has not ended by the deadline, on the event loop's clock; `math.inf` for none."""
        self._stop_deadline = deadline
        self._limit_commit()

    @property
    def uncommitted_count(self) -> int:
        """Number of settled messages that are not committed yet."""
        return len(self.pending) + (0 if self._taken is None else len(self._taken["records"]))

    def uncommitted(self) -> Uncommitted | None:
        """Take what was not committed when the session ends; `None` if everything was."""
        if self._taken is not None:  # the event loop ended during a commit
            self._put_back(self._taken)
        self.attempts.write_soon()
        if not self.has_uncommitted:
            return None
        return Uncommitted(tuple(self._session.history), self._session.token, self._take())

    async def restore(self, uncommitted: Uncommitted) -> bool:
        """Continue with the commit that the last session of this consumer could not make.

        Returns:
            False if another consumer has moved the name since: then nothing is restored.

        Raises:
            StoreError: The store failed; nothing is restored.
        """
        if tuple(uncommitted.history) != tuple(self._session.history):
            return False
        commit = uncommitted.commit
        if self._session.token != uncommitted.token + 1:
            commit = await self._without_recorded(commit)
        for text in commit["state"].values():  # at most one: the attempts
            self.attempts.restore(text)
        self._put_back(commit)
        self.read_at = self._clock() - (self.time_of_day.now() - commit["read_at"])
        return True

    async def _without_recorded(self, commit: CommitArguments) -> CommitArguments:
        """Leave out what has a record by now, as another consumer may have claimed the name in between."""
        unseen = await self._session.unseen([record.key for record in commit["records"]])
        return CommitArguments(
            cursor=commit["cursor"],
            records=[record for record in commit["records"] if record.key in unseen],
            dead_letters=[letter for letter in commit["dead_letters"] if letter.key in unseen],
            state={},
            read_at=commit["read_at"],
        )

    async def finish(self) -> None:
        """Flush at the end of a poll, when every commit in the background has ended or was cancelled.

        Raises:
            StoreError: As for `flush`.
        """
        self._committing = None
        if self.attempts.changed:
            self.attempts.write_soon()
        await self.flush()

    async def commit_in_background(self, tasks: TaskGroup, keys: list[str]) -> None:
        """Commit while the caller continues with the next page. The next flush tries a failed commit again.

        A transactional session has one transaction, so there the caller waits.

        Args:
            tasks: Run the commit.
            keys: The keys of the page that is settled.

        Raises:
            StoreError: As for `flush`, if the caller had to wait.
        """
        self._pending_keys.update(keys)
        if self._transactional or len(self._pending_keys) > MAX_PENDING:
            await self.flush()
        elif self._committing is None:
            self._committing = anyio.Event()
            tasks.start_soon(self._commit_all, self._committing)

    async def _commit_all(self, done: anyio.Event) -> None:
        try:
            with suppress(Exception):  # the next flush tries again, and can raise
                while self.has_uncommitted:
                    await self._commit()
        finally:
            self._committing = None
            done.set()

    @property
    def has_uncommitted(self) -> bool:
        """Whether a commit is due."""
        unsaved = self.cursor not in {None, self.saved}
        return bool(self.pending or self.dead_letters) or unsaved or self.attempts.writable

    async def _commit(self, on_cancel: Callable[[], object] = lambda: None) -> None:
        """Commit what is there now; more may arrive meanwhile. A cancellation waits for the commit."""
        if not self.has_uncommitted and not self._lock.locked():
            self.cursor, self._pending_keys = None, set()
            return
        try:
            await in_own_task(self._commit_in_turn, cancel_later=True, on_cancel=on_cancel)
        finally:
            if not self._lock.locked():
                self._cancel_deadline = math.inf

    async def _commit_in_turn(self) -> None:
        async with self._lock:
            if not self.has_uncommitted:
                self.cursor, self._pending_keys = None, set()
                return
            began = self._clock()
            taken = self._taken = self._take()
            try:
                await self._save(taken)
            except BaseException as error:
                self._put_back(taken)
                if isinstance(error, StoreUnavailable):
                    self._refused_since = began if self.refusal is None else self._refused_since
                    self.refusal = error
                raise
            finally:
                self._taken, self._committing_keys = None, set()
            if self.refusal is not None:
                logger.info(
                    "the store is available again after %.1f s: %d processed messages are recorded",
                    self._clock() - self._refused_since,
                    len(taken["records"]),
                )
                self.refusal = None
            self.due = began + self._flush_interval
            self._stats.committed(len(taken["records"]))

    async def _save(self, taken: CommitArguments) -> None:
        began = self._clock()
        with anyio.CancelScope() as self._commit_scope:
            self._limit_commit()
            await self._session.commit(**taken)
        if self._commit_scope.cancelled_caught:
            raise StoreUnavailable(
                f"a commit of {len(taken['records'])} messages did not end within {self._clock() - began:.1f} s "
                "and was given up, since the consumer was to stop; find out what keeps the store"
            )

    def caller_cancelled(self) -> None:
        """Limit this commit and those that wait for it, since a caller was cancelled."""
        self._cancel_deadline = min(self._cancel_deadline, self._clock() + self._shutdown_timeout)
        self._limit_commit()

    def _limit_commit(self) -> None:
        deadline = min(self._stop_deadline, self._cancel_deadline)
        self._commit_scope.deadline = max(deadline, self._clock() + MIN_COMMIT_TIMEOUT)

    def _take(self) -> CommitArguments:
        taken = CommitArguments(
            cursor=None if self.cursor == self.saved else self.cursor,
            records=self.pending.copy(),
            dead_letters=self.dead_letters,
            state=self.attempts.take_changes(),
            read_at=self.time_of_day.of(self.read_at),
        )
        self._committing_keys = self._pending_keys.union(record.key for record in self.pending)
        self._taken_count += len(self.pending)
        self.pending.clear()
        self.cursor, self.dead_letters, self._pending_keys = None, [], set()
        return taken

    def _put_back(self, taken: CommitArguments) -> None:
        """Leave a failed commit to the next flush."""
        if taken["state"]:
            self.attempts.put_back()
        self.pending[:0] = taken["records"]
        self.dead_letters[:0] = taken["dead_letters"]
        self._taken_count -= len(taken["records"])
        self.cursor = taken["cursor"] if self.cursor is None else self.cursor
        self._pending_keys |= self._committing_keys
