"""Collect the progress of a session, and commit it in groups.

`Progress` commits records, dead letters and the cursor. `Attempts` counts the attempts of failing messages. The
same commits save these counts.

Commits
-------
One commit runs at a time. Records that arrive while it runs go into the next one, as in databases (group commit).
So more messages share a commit if messages are fast and the disk is slow.

If the outcome of a commit is unknown, or a session with a lease is lost, everything in memory is dropped. The next
session reads the state anew, and messages whose processing was not recorded are processed again.

Any other failed commit loses nothing: its records are put back, and the next flush tries again. Each poll begins
with a flush, so nothing more is processed until the commit succeeds. If the session ends before that, the consumer
keeps `uncommitted`, and the next session begins with `restore`. A transactional store has already committed each
handler's effects with the record (G8). Passing the record to a commit again changes nothing.

A commit finishes even if its caller is cancelled, unless it exceeds the time that the consumer has to stop.

The cursor of the next commit moves in two places: in `_processor.py`, where messages are processed one by one, and
in `_work_queue.py`, where several are processed at a time.

Attempts
--------
Attempts are stored with times of day, since no other clock outlives a process. While a process runs, the time of
day is read from the event loop's clock, which does not jump. If the next attempt is further away than its delay,
the system's clock was set back between two runs. Then the message waits for its delay from now on. The new time is
stored, so the next run does not start the wait again.

Attempts of messages that do not come again are dropped, for example if a feed replaces the failing version of an
entry. A walk to the end of the feed meets all waiting messages. A walk that ends at such a message may not have
met the others, so they are kept for another hour. A feed that lags may omit a message for a while, so attempts are
dropped only after the wait of their message.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypedDict

import anyio
import msgspec

from push_to_poll_client import _event_loop
from push_to_poll_client._event_loop import Background, in_own_task
from push_to_poll_client._exceptions import CommitInDoubt, OwnershipLost, StoreError, StoreUnavailable
from push_to_poll_client._json import Decoder
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._options import SessionPart
from push_to_poll_client._protocols import is_leased, is_transactional
from push_to_poll_client._types import Cursor, DeadLetter, Record, SavedCursor

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))


class TimeOfDay:
    """Time of day in seconds since the epoch, by the event loop's clock, which does not jump."""

    def __init__(self, clock: Callable[[], float], now: float | None = None) -> None:
        """Start at `now`. None means the time of day of this machine."""
        self._clock = clock
        self._epoch = (_event_loop.wall_clock() if now is None else now) - clock()

    def now(self) -> float:
        return self._epoch + self._clock()

    def of(self, moment: float) -> float:
        """Convert a time of the event loop's clock to a time of day."""
        return self._epoch + moment


ATTEMPTS_KEY: Final = "attempts"

# `_workers.py` allows this many unsettled messages at a time. So the forgotten message is not one of them: it did
# not come again.
MAX_FAILING: Final = 10_000
"""Failing messages whose attempts are kept (G11). With more, the one with the oldest last failure is forgotten."""

MAX_ERROR: Final = 200
"""Characters of an error that are stored with the attempts."""

MAX_ERRORS: Final = 1_000
"""Attempts that are stored with an error. If more messages fail at a time, their errors are about the same."""

# All attempts are one text: a million characters for 10,000 ids of 36 characters. A poll in which 10,000 messages
# fail writes 5 MB to a state file in 4 s. Without this limit it wrote 4,200 MB in 149 s.
MAX_WRITTEN: Final = 1_000_000
"""Most characters of attempts written in a second; a write at the end of a poll is always allowed."""


OVERDUE: Final = 3_600.0
"""Seconds to keep the attempts of a due message that does not come again, such as a replaced entry."""


class Attempt(msgspec.Struct, array_like=True, frozen=True):
    """Stored attempts of one failing message. Times are in seconds since the epoch."""

    count: int
    first: float  # time of the first failure
    again: float = 0.0  # time from which it may be retried
    delay: float = 0.0  # seconds from the last failure to `again`
    error: str = ""  # start of the last error; "" with more than MAX_ERRORS messages, and from earlier versions


_decode = Decoder(dict[str, Attempt]).decode


def unreadable_state(what: str, why: str) -> StoreError:
    """Create the error for an invalid value of a session's state."""
    text = f"cannot read {what} from the store: {why}"
    return StoreError(
        f"{text}; the state is damaged or was written by another version; restore a copy, or use that version"
    )


class Attempts:
    """Attempts of one session's failing messages, by dedupe key."""

    def __init__(self, state: Mapping[str, str], time_of_day: TimeOfDay) -> None:
        try:
            self._attempts = _decode(state.get(ATTEMPTS_KEY, "{}"))
        except (ValueError, RecursionError) as error:
            raise unreadable_state("the attempts of failing messages", str(error)) from error
        self._time_of_day = time_of_day
        self._write_at = 0.0  # time of day from which MAX_WRITTEN allows the next write
        self.changed = False  # True if `take_changes()` has not returned everything

    def __len__(self) -> int:
        return len(self._attempts)

    def knows(self, key: str) -> bool:
        return key in self._attempts

    def count(self, key: str) -> int:
        return self._attempts[key].count if key in self._attempts else 0

    def record_failure(self, key: str) -> Attempt:
        before = self._attempts.pop(key, None)
        now = self.now
        attempt = Attempt(1, now) if before is None else Attempt(before.count + 1, before.first)
        return self._set(key, attempt)

    def postpone(self, key: str, delay: float, error: str) -> Attempt:
        """Set the delay until the next attempt. Keep the start of the error."""
        # The entry is missing if more than MAX_FAILING messages fail at a time.
        attempt = self._attempts.get(key) or self.record_failure(key)
        kept = error[:MAX_ERROR] if len(self) <= MAX_ERRORS else ""
        return self._set(key, Attempt(attempt.count, attempt.first, self.now + delay, delay, kept))

    def discard(self, key: str) -> None:
        """Forget a message that is settled or stops the consumer."""
        if self._attempts.pop(key, None) is not None:
            self.changed = True

    def forget(self) -> None:
        """Forget all attempts, after the session has deleted them."""
        self._attempts.clear()
        self.changed = False

    def wait_of(self, key: str) -> Attempt | None:
        """Return the attempts of a message that must wait; None if it need not wait."""
        attempt, now = self._attempts.get(key), self.now
        if attempt is not None and attempt.again > now + attempt.delay:  # the clock was set back
            attempt = self._set(key, msgspec.structs.replace(attempt, again=now + attempt.delay))
        return None if attempt is None or attempt.again <= now else attempt

    def end_walk(self, *, caught_up: bool) -> None:
        """Drop messages that are due and have not come again."""
        # At the end of the feed each message that came is settled, so all due messages are dropped. A walk that
        # ends at a waiting message may not have met the others, so they stay for `OVERDUE` seconds.
        due_until = self.now - (0.0 if caught_up else OVERDUE)
        for key, attempt in list(self._attempts.items()):
            if attempt.again <= due_until:
                self.discard(key)

    def write_soon(self) -> None:
        """Let the next `take_changes()` ignore the limit `MAX_WRITTEN`."""
        self._write_at = 0.0

    def take_changes(self) -> dict[str, str | None]:
        """Return the changes of the session's state to commit now."""
        if not self.writable:
            return {}
        self.changed = False
        text = msgspec.json.encode(self._attempts).decode() if self._attempts else None
        self._write_at = self.now + len(text or "") / MAX_WRITTEN
        return {ATTEMPTS_KEY: text}

    def restore(self, text: str | None) -> None:
        """Continue with the `take_changes()` that an earlier session could not commit."""
        self._attempts = _decode(text or "{}")
        self.changed = True

    def put_back(self) -> None:
        """Leave the changes of a failed commit to the next one."""
        self.changed = True
        self.write_soon()

    @property
    def writable(self) -> bool:
        """True if there are changes and `MAX_WRITTEN` allows to write them."""
        return self.changed and self.now >= self._write_at

    @property
    def now(self) -> float:
        return self._time_of_day.now()

    def _set(self, key: str, attempt: Attempt) -> Attempt:
        self._attempts[key] = attempt
        self.changed = True
        if len(self._attempts) > MAX_FAILING:
            self.discard(next(iter(self._attempts)))
        return attempt


MAX_PENDING = 50_000
"""Settled messages that may wait for their commit (G11). With more, the next page waits for it."""

MIN_COMMIT_TIMEOUT: Final = 5.0
"""Minimum seconds for a commit while stopping: the last message may have ended close to the deadline."""


class CommitArguments(TypedDict):
    cursor: Cursor | None
    records: Sequence[Record]
    dead_letters: Sequence[DeadLetter]
    state: Mapping[str, str | None]
    read_at: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Uncommitted:
    """A commit that a session could not make before it ended."""

    history: Sequence[SavedCursor]  # if it has changed since, another consumer has moved the name
    token: int  # fencing token of the session
    commit: CommitArguments


@dataclass(kw_only=True, eq=False, repr=False)
class Progress(SessionPart):
    # Records of settled messages that no commit has taken, in order. Always the same list: others keep it.
    pending: list[Record] = field(default_factory=list, init=False)
    cursor: Cursor | None = field(default=None, init=False)  # to save with `pending`; None keeps the saved one
    dead_letters: list[DeadLetter] = field(default_factory=list, init=False)  # that no commit has taken
    # Error of the last commit, if the store may recover; None if the commit succeeded.
    refusal: StoreUnavailable | None = field(default=None, init=False)
    # Time by which everything settled so far must be committed, including a running commit (G7).
    due: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.read_at = self.clock()  # arrival of the page of `cursor`, on the event loop's clock
        # Stored times must not depend on the machine that owns the name.
        self.time_of_day = TimeOfDay(self.clock, self.session.time() if is_leased(self.session) else None)
        self.attempts = Attempts(self.session.state, self.time_of_day)
        self._taken: CommitArguments | None = None  # arguments of the running commit
        self._taken_keys = set[str]()  # keys of its records: several pages may be checked during one commit
        self._refused_since = 0.0  # start of the first of the failed commits in a row
        self._committing: anyio.Event | None = None  # set when the running background commits end; else None
        self._lock = anyio.Lock(fast_acquire=True)
        self._commit_scope = anyio.CancelScope()
        self._stop_deadline = self._cancel_deadline = math.inf
        self._is_abandoned = False

    @property
    def dead_letter_count(self) -> int:
        """Number of dead letters, committed or not."""
        return self.session.dead_letter_count + len(self.dead_letters)

    @property
    def settled_count(self) -> int:
        """Number of messages settled by this consumer, committed or not."""
        return self.stats.counts["messages"] + self.uncommitted_count

    async def unsettled(self, keys: list[str]) -> set[str]:
        """Return the keys that have neither a pending nor a stored record."""
        # The flushes also raise the StoreError of a commit of an earlier page.
        running = self._committing
        if running is None:
            await self.flush()
        # Read these keys before the query: they may be committed before the store answers.
        committing, settled_since = self._taken_keys, {record.key for record in self.pending}
        unseen = await self.session.unseen(keys)
        if running is not None and self._committing is None:  # it has ended, perhaps with an error (G7)
            await self.flush()
        return unseen - committing - settled_since

    async def fingerprints(self, keys: list[str]) -> Mapping[str, int]:
        await self.flush()
        return await self.session.fingerprints(keys)

    def advance(self, cursor: Cursor | None, read_at: float) -> None:
        """Move the cursor to save; everything before it is settled. `None` leaves it."""
        if cursor is not None:
            self.cursor, self.read_at = cursor, read_at

    async def flush(self) -> None:
        """Commit everything now. If it raises `StoreError`, the next flush tries again."""
        if self._committing is not None:
            await self._committing.wait()
        await self._commit(self.caller_cancelled)
        self.due = self.clock() + self.options.commit_interval

    def finish_by(self, deadline: float) -> None:
        """Set a deadline for commits, on the event loop's clock."""
        self._stop_deadline = deadline
        self._limit_commit()

    @property
    def uncommitted_count(self) -> int:
        """Number of settled messages that are not committed yet."""
        return len(self.pending) + (0 if self._taken is None else len(self._taken["records"]))

    def uncommitted(self) -> Uncommitted | None:
        """Take the uncommitted progress when the session ends; None if everything is committed."""
        if self._taken is not None:  # the event loop ended during a commit
            self._put_back(self._taken)
        self.attempts.write_soon()
        if not self.has_uncommitted or is_leased(self.session):  # another replica may process the messages
            return None
        return Uncommitted(tuple(self.session.history), self.session.fencing_token, self._take())

    def abandon(self) -> None:
        """Drop everything that is not committed, now and later, because the session is lost."""
        if self._is_abandoned:
            return
        self._is_abandoned = True
        if count := len(self.pending):
            logger.warning(
                "%d processed messages may be processed again: the session was lost before a commit", count
            )

    async def restore(self, uncommitted: Uncommitted) -> bool:
        """Continue with the last session's commit; False if another consumer has moved the name since."""
        if tuple(uncommitted.history) != tuple(self.session.history):
            return False
        commit = uncommitted.commit
        if self.session.fencing_token != uncommitted.token + 1:  # another consumer has been the owner since
            commit = await self._without_recorded(commit)
        for text in commit["state"].values():  # at most one: the attempts
            self.attempts.restore(text)
        self._put_back(commit)
        self.read_at = self.clock() - (self.time_of_day.now() - commit["read_at"])
        return True

    async def _without_recorded(self, commit: CommitArguments) -> CommitArguments:
        """Return the commit without messages that another consumer has recorded, and without attempts."""
        unseen = await self.session.unseen([record.key for record in commit["records"]])
        return {
            **commit,
            "records": [record for record in commit["records"] if record.key in unseen],
            "dead_letters": [letter for letter in commit["dead_letters"] if letter.dedupe_key in unseen],
            "state": {},
        }

    async def finish(self) -> None:
        """Flush at the end of a poll, after all background commits."""
        self._committing = None
        if self.attempts.changed:
            self.attempts.write_soon()
        await self.flush()

    async def page_settled(self, background: Background | None) -> None:
        """Commit at the end of a page, if possible in the background. The next flush retries a failed commit."""
        # A transactional session has one transaction, so the caller waits.
        if background is None or is_transactional(self.session) or len(self.pending) > MAX_PENDING:
            await self.flush()
        elif self._committing is None:
            self._committing = anyio.Event()
            background.tasks.start_soon(self._commit_all, self._committing)

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
        """True if there is anything to commit now."""
        if self._is_abandoned:
            return False
        unsaved = self.cursor not in {None, self.session.cursor}
        return bool(self.pending or self.dead_letters) or unsaved or self.attempts.writable

    async def _commit(self, on_cancel: Callable[[], object] = lambda: None) -> None:
        """Commit everything so far; more may arrive meanwhile. A cancellation waits for the commit."""
        if not self.has_uncommitted and not self._lock.locked():
            self.cursor = None
            return
        try:
            await in_own_task(self._commit_in_turn, cancel_later=True, on_cancel=on_cancel)
        finally:
            if not self._lock.locked():
                self._cancel_deadline = math.inf

    async def _commit_in_turn(self) -> None:
        async with self._lock:
            if not self.has_uncommitted:
                self.cursor = None
                return
            began = self.clock()
            taken = self._taken = self._take()
            self._taken_keys = {record.key for record in taken["records"]}
            try:
                await self._save(taken)
            except BaseException as error:
                self._put_back(taken)
                if is_leased(self.session) and isinstance(error, CommitInDoubt | OwnershipLost):
                    self.abandon()
                    raise
                if isinstance(error, StoreUnavailable):
                    self._refused_since = began if self.refusal is None else self._refused_since
                    self.refusal = error
                raise
            finally:
                self._taken, self._taken_keys = None, set()
            if self.refusal is not None:
                logger.info(
                    "store available again after %.1f s, saved %d processed messages",
                    self.clock() - self._refused_since,
                    len(taken["records"]),
                )
                self.refusal = None
            self.due = began + self.options.commit_interval
            if taken["records"]:
                self.stats.counts["messages"] += len(taken["records"])
                self.stats.last_progress = time.time()

    async def _save(self, taken: CommitArguments) -> None:
        began = self.clock()
        with anyio.CancelScope() as self._commit_scope:
            self._limit_commit()
            await self.session.commit(**taken)
        if self._commit_scope.cancelled_caught:
            raise StoreUnavailable(
                f"cancelled a commit of {len(taken['records'])} messages after {self.clock() - began:.1f} s, "
                "since the consumer is stopping; check what blocks the store"
            )

    def caller_cancelled(self) -> None:
        """Limit the running and waiting commits, because a caller was cancelled."""
        self._cancel_deadline = min(self._cancel_deadline, self.clock() + self.options.shutdown_timeout)
        self._limit_commit()

    def _limit_commit(self) -> None:
        deadline = min(self._stop_deadline, self._cancel_deadline)
        self._commit_scope.deadline = max(deadline, self.clock() + MIN_COMMIT_TIMEOUT)

    def _take(self) -> CommitArguments:
        taken = CommitArguments(
            cursor=None if self.cursor == self.session.cursor else self.cursor,
            records=self.pending.copy(),
            dead_letters=self.dead_letters,
            state=self.attempts.take_changes(),
            read_at=self.time_of_day.of(self.read_at),
        )
        self.pending.clear()
        self.cursor, self.dead_letters = None, []
        return taken

    def _put_back(self, taken: CommitArguments) -> None:
        if taken["state"]:
            self.attempts.put_back()
        self.pending[:0] = taken["records"]
        self.dead_letters[:0] = taken["dead_letters"]
        self.cursor = taken["cursor"] if self.cursor is None else self.cursor
