"""Run one poll at a time (G2).

Polls are started by `run()`, `poll_now()`, `catch_up()` and wakes.

The holder of the lock runs a poll. Callers wait without the lock until a poll may start. Polls are numbered in the
order of their starts. A caller that gets the lock compares numbers: if a poll that started after its call has
ended, it takes the result of that poll. Otherwise it runs the next one. A cancelled caller leaves no result, and
another caller runs a poll instead.
"""

import logging
import math
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import anyio

from push_to_poll_client._event_loop import error_for_cancellation
from push_to_poll_client._exceptions import (
    CommitInDoubt,
    CursorExpired,
    FeedError,
    FeedGone,
    FeedRefused,
    PushToPollError,
    StoreUnavailable,
    Throttled,
)
from push_to_poll_client._hooks import RunLog
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._options import SessionPart
from push_to_poll_client._poll_state import Poll
from push_to_poll_client._poller import Poller
from push_to_poll_client._retry import StopSignal
from push_to_poll_client._schedule import Cause, PollOutcome, Schedule, WakeResult
from push_to_poll_client._status import NOTHING_DONE, PollResult, add_results
from push_to_poll_client._types import NO_HINT, Push
from push_to_poll_client._validation import describe

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

BYPASS_CACHE_CAUSES = {Cause.WAKE, Cause.REPOLL, Cause.MANUAL}
"""Causes that announce new messages, which a cache may not have yet."""

MAX_TOPICS = 64
"""Most topics of a merged hint (G11). A hint with more gets none, which means all topics."""

LONG_PAUSE = 600.0
"""Seconds. If the server asks for a longer pause after a successful poll, the log shows it (G13)."""

_enclosing_polls: ContextVar[tuple[Poll, ...]] = ContextVar("push_to_poll_client_inside", default=())
"""Polls that the current task is part of. A handler's task is part of its poll, and so are tasks it starts."""


@dataclass(kw_only=True, eq=False, repr=False)
class Polls(SessionPart):
    schedule: Schedule
    poller: Poller
    worth_a_poll: Callable[[Push], bool]  # True if the hint of a push should cause a poll
    # True if the session stays open after a call. If it closes, the place in the feed is lost, so the call
    # continues until a cursor can be saved.
    place_is_kept: Callable[[], bool]
    # True if the last poll settled the last message of a feed that has ended.
    closed: bool = field(default=False, init=False)
    run_log: RunLog | None = field(default=None, init=False)  # None while `run()` does not run

    def __post_init__(self) -> None:
        self._lock = anyio.Lock(fast_acquire=True)
        self._started = self._last_finished = 0  # numbers of the last polls that started and ended
        self._calls: list[_Call] = []
        self._news = anyio.Event()  # set, and replaced, when the schedule has changed
        self._last_result: PollResult | Exception = NOTHING_DONE
        self._hint: Push | None = None  # merged hint for the next poll
        self._current: Poll | None = None

    # Wakes

    def wake(self, push: Push | None) -> None:
        """Poll soon. Call it in the event loop."""
        # A wake without a hint is never redundant.
        overlaps = self.options.overlap > 0
        redundant = push is not None and push != NO_HINT and not overlaps and not self.worth_a_poll(push)
        if push is not None and not redundant:
            self._hint = _merge_hints(self._hint, push)
        result = self.schedule.wake(self.clock(), push=push is not None, known=redundant)
        self.stats.counts["wakes"] += 1
        if result is not WakeResult.PENDING:
            self.stats.counts[result.value] += 1
        self.cancel_waiting_fetch()
        self.schedule_changed()

    def begin(self, run_log: RunLog) -> None:
        self.closed, self.run_log = False, run_log
        self.schedule.begin()

    def position_changed(self) -> None:
        """Poll soon at another place, without waiting for a message's retry."""
        self.schedule.resume_now()
        self.wake(None)

    def cancel_waiting_fetch(self) -> None:
        """Cancel the long poll of the running poll, if there is one."""
        if self._current is not None:
            self._current.give_way()

    def schedule_changed(self) -> None:
        """Let waiting tasks read the schedule again."""
        self._news.set()
        self._news = anyio.Event()

    # Polls

    async def poll_now(self, timeout: float | None) -> PollResult:  # noqa: ASYNC109  # limits the start, not the poll
        """Poll, or join a poll that starts after this call. See `Consumer.poll_now`."""
        logged = False
        failure: FeedError | None = None
        with self._sum_polls() as call:
            while True:
                try:
                    failure = await self._poll_or_keep_place(timeout)
                except Throttled as throttled:
                    if failure is not None:
                        raise failure from None
                    if not call.done.pages:
                        raise
                    if self.poller.has_unsaved_place:
                        logger.warning(
                            "no cursor to save yet, the next call reads the same pages again: %s", throttled
                        )
                    return call.done
                if not self._goes_on:
                    return call.done
                if not logged and self.poller.has_unsaved_place:
                    logged = True
                    logger.info(
                        "no cursor to save yet, continuing until there is one; otherwise the next call would read "
                        "the same pages again"
                    )

    async def catch_up(self) -> PollResult:
        """Poll until the feed ends or does not advance. See `Consumer.catch_up`."""
        with self._sum_polls() as call:
            while not call.done.caught_up and call.done.standstill is None:
                await self._poll_or_keep_place(None)
            return call.done

    @property
    def _goes_on(self) -> bool:
        """True if a call continues after its poll, since its place in the feed would be lost."""
        return self.poller.should_go_on_if_bare and not self.place_is_kept()

    async def _poll_or_keep_place(self, timeout: float | None) -> FeedError | None:  # noqa: ASYNC109
        """Poll. Return the error of a failed fetch if the call continues after it."""
        try:
            await self._poll_or_join(timeout)
        except FeedError as error:
            if not self._goes_on:
                raise
            logger.warning("poll failed, retrying in %.1f s: %s", self.delay, describe(error))
            return error
        return None

    @contextmanager
    def _sum_polls(self) -> Iterator["_Call"]:
        """Sum up the results of the polls that start in the block."""
        call = _Call(self._started, NOTHING_DONE)
        self._calls.append(call)
        try:
            yield call
        finally:
            self._calls.remove(call)

    async def _poll_or_join(self, timeout: float | None) -> None:  # noqa: ASYNC109
        """Run a poll or join one that starts after this call. Raise its error."""
        since, until = self._started, math.inf if timeout is None else self.clock() + timeout
        while True:
            self._raise_if_throttled(until)
            self.cancel_waiting_fetch()
            async with self._lock:
                if self._last_finished <= since and self.schedule.earliest <= self.clock():
                    await self._lead(Cause.MANUAL)
                if self._last_finished > since:
                    if isinstance(self._last_result, Exception):
                        raise _copy(self._last_result)
                    return
            # Wait without the lock: rewind(), dead letters and listeners that save their state need it.
            with anyio.CancelScope(deadline=self.schedule.earliest):
                await self._news.wait()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Prevent polls in the block. The block counts as a poll, so it cannot wait for one."""
        self.cancel_waiting_fetch()
        async with self._lock:
            now = self.clock()
            with self._running(Poll(number=self._started, cause=Cause.MANUAL, started=now, answered_at=now)):
                yield

    @contextmanager
    def _running(self, poll: Poll) -> Iterator[None]:
        """Make this the running poll. Everything that the task does in the block is part of it."""
        self._current = poll
        token = _enclosing_polls.set((*(outer for outer in _enclosing_polls.get() if outer.running), poll))
        try:
            yield
        finally:
            _enclosing_polls.reset(token)
            self._current, poll.running = None, False
            self.schedule_changed()

    async def poll_until_stopped(self, stop: StopSignal) -> None:
        """Poll by the schedule until a stop or the feed's end. Raise errors that another poll cannot fix."""
        while not (stop.requested or self.closed):
            await self._poll_when_due(stop)

    async def _poll_when_due(self, stop: StopSignal) -> None:
        news = self._news
        async with self._lock:
            # The server may hold its answer if the feed supports that, and no caller waits.
            waits = self._calls or self._lock.statistics().tasks_waiting
            can_wait = self.poller.fetcher.max_wait > 0 and not waits
            decision = self.schedule.next_poll(self.clock(), can_wait=can_wait)
            is_due = decision.at <= self.clock()
            result = await self._lead(decision.cause, stop) if is_due else None
        if isinstance(result, Exception):
            self._log_failure(result, stop)
        if not is_due:
            with anyio.CancelScope(deadline=decision.at):
                await news.wait()

    def _log_failure(self, error: Exception, stop: StopSignal) -> None:
        """Log a failed poll. Raise the error if another poll cannot fix it."""
        if not isinstance(error, FeedError | StoreUnavailable) or isinstance(
            error, CursorExpired | FeedGone | CommitInDoubt
        ):
            raise error
        if isinstance(error, FeedError):
            logger.warning("poll failed, retrying in %.1f s: %s", self.delay, describe(error))
            logger.debug("traceback of the failed poll", exc_info=error)
        elif stop.requested:  # the runner retries the commit
            return
        elif count := self.poller.progress.uncommitted_count:
            logger.warning(
                "store unavailable, retrying in %.1f s; processing is paused, unsaved messages: %d: %s",
                self.delay,
                count,
                describe(error),
            )
        else:
            logger.warning("store unavailable, retrying in %.1f s: %s", self.delay, describe(error))

    def set_in_flight_deadline(self, deadline: float) -> None:
        """Set a deadline for the messages in flight of `run()`."""
        if self._current is not None and self._current.cause is not Cause.MANUAL:
            self._current.in_flight.deadline = deadline

    def cancel_in_flight(self) -> None:
        """Cancel the messages in flight, because another replica may own the name now."""
        if self._current is not None:
            self._current.in_flight.cancel()

    @property
    def delay(self) -> float:
        """Seconds until the next poll, if no event comes first."""
        return max(0.0, self.schedule.next_poll(self.clock()).at - self.clock())

    @property
    def called_from_poll(self) -> bool:
        """True if the caller is part of the running poll. Then it cannot wait for another one."""
        return self._current is not None and self._current in _enclosing_polls.get()

    async def _lead(self, cause: Cause, stop: StopSignal | None = None) -> PollResult | Exception | None:
        """Run a poll and return its result or error; None if its waiting fetch was cancelled."""
        now = self.clock()
        wait = (
            min(self.poller.fetcher.max_wait, self.schedule.interval or math.inf) if cause is Cause.WAIT else 0.0
        )
        bypass_cache = cause in BYPASS_CACHE_CAUSES or self.schedule.owes
        self._started += 1
        hint, self._hint = self._hint, None
        poll = Poll(
            number=self._started,
            cause=cause,
            started=now,
            answered_at=now,
            stop=stop or StopSignal(),
            wait=wait,
            hint=hint,
            bypass_cache=bypass_cache,
        )
        result: PollResult | Exception | None = None
        try:
            with self._running(poll):
                self.schedule.poll_started(now, cause, wait=wait)
                result = await self.poller.poll(poll)
        except Exception as error:  # noqa: BLE001  # the result for each caller that waits for this poll
            result = error
        except anyio.get_cancelled_exc_class() as cancelled:
            result = error_for_cancellation(cancelled, "a poll")
        finally:
            self._end(poll, result)
        return result

    def _end(self, poll: Poll, result: PollResult | Exception | None) -> None:
        self.closed = isinstance(result, PollResult) and result.closed
        self.schedule.poll_ended(
            self.clock(),
            _outcome_of(result),
            found=result.messages if isinstance(result, PollResult) else 0,
            free=poll.continues_freely,
            answered_at=poll.answered_at,
            jitter=random.random(),  # noqa: S311  # not for secrets
            resume_at=poll.postponed_until,
            poll_within=poll.poll_within,
        )
        # The hint of a failed or abandoned poll goes into the next poll. But drop it if the feed refused the poll,
        # or if a retry failed: the hint may be the cause, since the sender of a push can write anything into it.
        if result is None or not (isinstance(result, PollResult | FeedRefused) or poll.cause is Cause.RETRY):
            self._hint = _merge_hints(poll.hint, self._hint)
        for call in self._calls:
            if poll.number > call.since:
                call.done = add_results(call.done, poll.done)
        if result is not None:
            self._last_finished, self._last_result = poll.number, result
            pause = self.schedule.server_not_before - self.clock()
            if pause > LONG_PAUSE and not isinstance(result, Exception):  # a failed poll is logged with its delay
                logger.warning("the server asked for a pause, polling again in %.0f s; pushes wait too", pause)
            self.stats.poll_ended(result, began=poll.began)
            if self.run_log is not None:
                self.run_log.poll_ended(result, started=poll.started)

    def _raise_if_throttled(self, until: float) -> None:
        # `until` may have passed while the caller waited for another poll.
        now = self.clock()
        if (earliest := self.schedule.earliest) > max(until, now):
            raise Throttled(
                f"the next poll must wait {earliest - now:.1f} s ({self.schedule.mode(now)}), longer than the "
                "timeout; call again after that time, pass a longer timeout=, or use run()",
                until=earliest,
                retry_after=earliest - now,
            )


@dataclass(slots=True, eq=False)
class _Call:
    """A running call of `poll_now` or `catch_up`."""

    since: int  # number of the last poll that started before the call
    done: PollResult  # sum of the later polls that have ended


def _merge_hints(old: Push | None, new: Push | None) -> Push | None:
    """Merge two hints: the newer cursor, and the topics of both. A hint without topics means all topics."""
    if old is None or new is None:
        return old or new
    topics = tuple(dict.fromkeys((*old.topics, *new.topics))) if old.topics and new.topics else ()
    count = old.count if new.count is None else new.count
    return Push(new.cursor or old.cursor, topics if len(topics) <= MAX_TOPICS else (), count)


def _outcome_of(result: PollResult | Exception | None) -> PollOutcome:
    if result is None:
        return PollOutcome.ABANDONED
    if isinstance(result, Exception):
        return PollOutcome.REFUSED if isinstance(result, FeedRefused) else PollOutcome.FAILED
    if result.standstill is not None:
        return PollOutcome.STANDSTILL
    return PollOutcome.CAUGHT_UP if result.caught_up else PollOutcome.MORE


def _copy(error: Exception) -> Exception:
    """Copy an error. Otherwise the callers of one poll would extend the same traceback."""
    cls = type(error)
    if not isinstance(error, PushToPollError) or cls.__new__ is not PushToPollError.__new__:
        return error
    copied = cls.__new__(cls, *error.args)
    copied.__dict__.update(error.__dict__)
    copied.__cause__, copied.__suppress_context__ = error.__cause__, error.__suppress_context__
    return copied.with_traceback(error.__traceback__)
