"""Run one poll at a time, whoever asks for it: `run()`, `poll_now()` or a wake (G2).

Whoever holds the lock leads a poll. Polls are numbered as they start, so that whoever waited for the lock can tell
whether a poll that started after its call has ended meanwhile: that one is its answer, and otherwise it leads the
next. A leader that is cancelled leaves no answer, and the next in the queue leads in its place.
"""

import math
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import anyio

from push_to_poll_client._event_loop import error_for_cancellation
from push_to_poll_client._exceptions import FeedRefused, Throttled
from push_to_poll_client._hooks import Hooks
from push_to_poll_client._poller import Poller
from push_to_poll_client._processor import Processor
from push_to_poll_client._protocols import Session
from push_to_poll_client._retry import StopSignal
from push_to_poll_client._schedule import Cause, PollOutcome, Schedule
from push_to_poll_client._status import ConsumerStats, PollResult
from push_to_poll_client._types import Clock, Push

__all__ = [
    "Polls",
]


BYPASS_CACHE_CAUSES = {Cause.WAKE, Cause.REPOLL, Cause.MANUAL}
"""Somebody says that there is something new; a cache might say otherwise."""

MAX_TOPICS = 64
"""Topics that a hint gathers from pushes before it speaks of all: a flood of pushes must not grow it."""

_enclosing_polls: ContextVar[tuple["_Poll", ...]] = ContextVar("push_to_poll_client_inside", default=())
"""The polls that the current task is part of: a handler's task, and whatever it starts."""


class Polls:
    """The polls of one session.

    Args:
        schedule: Decides when.
        session: Knows the saved cursor.
        processor: Has the message in hand.
        poller: Does it.
        tally: Told of each wake and each poll.
        hooks: Told of polls that reached the end of the feed.
        overlaps: Polls start behind the saved cursor, so that no hint says that there is nothing new.
        worth_a_poll: Whether the hint of a push is.
        clock: The event loop's.

    Attributes:
        session: As given.
        closed: The last poll reached the end of a feed that has ended, and settled all of it.
    """

    def __init__(
        self,
        schedule: Schedule,
        session: Session,
        processor: Processor,
        poller: Poller,
        *,
        tally: ConsumerStats,
        hooks: Hooks,
        overlaps: bool,
        worth_a_poll: Callable[[Push], bool],
        clock: Clock,
    ) -> None:
        self.session = session
        self.closed = False
        self._schedule = schedule
        self._processor = processor
        self._poller = poller
        self._stats = tally
        self._hooks = hooks
        self._overlaps = overlaps
        self._worth_a_poll = worth_a_poll
        self._clock = clock
        self._lock = anyio.Lock(fast_acquire=True)
        self._started = self._last_finished = 0
        self._last_result: PollResult | Exception = PollResult(0, 0, 0, caught_up=False)
        self._hint: Push | None = None
        self._changed = anyio.Event()
        self._current: _Poll | None = None

    # Wakes

    def wake(self, push: Push | None) -> None:
        """Somebody says "poll soon"; in the event loop."""
        known = push is not None and self._is_redundant(push)
        result = self._schedule.wake(self._clock(), push=push is not None, known=known)
        self._stats.wake_received(result)
        if push is not None and not known:
            self._hint = _merge_hints(self._hint, push)
        self._poller.cancel_waiting_fetch()
        self.schedule_changed()

    def _is_redundant(self, push: Push) -> bool:
        """Whether it says of itself that it is not worth a poll."""
        return push != Push() and not self._overlaps and not self._worth_a_poll(push)

    def begin(self) -> None:
        """`run()` begins: poll once, now."""
        self.closed = False
        self._schedule.begin()

    def position_changed(self) -> None:
        """Polls go on from another place: soon, whatever message was waited for."""
        self._schedule.resume_now()
        self.wake(None)

    def cancel_waiting_fetch(self) -> None:
        """Cancel a waiting fetch."""
        self._poller.cancel_waiting_fetch()

    def schedule_changed(self) -> None:
        """Something changed that the schedule may decide differently for."""
        self._changed.set()

    # Polls

    async def poll_now(self, timeout: float | None) -> PollResult:  # noqa: ASYNC109  # not that of the poll
        """Lead a poll, or be answered by one that starts from here on. See `Consumer.poll_now`."""
        since, until = self._started, math.inf if timeout is None else self._clock() + timeout
        self._raise_if_throttled(until)
        self._poller.cancel_waiting_fetch()
        async with self._lock:
            if self._last_finished <= since:
                self._raise_if_throttled(until)
                await anyio.sleep_until(self._schedule.earliest)
                await self._lead(Cause.MANUAL)
            if isinstance(self._last_result, Exception):
                raise self._last_result
            return self._last_result

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """No poll runs meanwhile, and what is done within is part of none: it cannot wait for one."""
        self._poller.cancel_waiting_fetch()
        async with self._lock:
            work = self._current = _Poll(self._started, 0.0, None, fresh=False, stop=None, before=0)
            inside = _enclosing_polls.set((*(outer for outer in _enclosing_polls.get() if outer.running), work))
            try:
                yield
            finally:
                _enclosing_polls.reset(inside)
                self._current, work.running = None, False
                self.schedule_changed()

    async def poll_when_due(self, stop: StopSignal) -> None:
        """Wait until the schedule decides for a poll, or something changes; if a poll is due, lead it.

        Args:
            stop: As for `Processor.settle`.

        Raises:
            Exception: Why the poll failed.
        """
        self._changed = anyio.Event()
        async with self._lock:
            decision = self._schedule.next_poll(self._clock(), can_wait=self._can_wait)
            if decision.at <= self._clock():
                answer = await self._lead(decision.cause, stop)
                if isinstance(answer, Exception):
                    raise answer
                return
        with anyio.CancelScope(deadline=decision.at):
            await self._changed.wait()

    def set_in_flight_deadline(self, deadline: float) -> None:
        """Give the message in hand until then, if `poll_when_due` leads; other leaders see to themselves."""
        if self._current is not None and self._current.stop is not None:
            self._processor.in_flight_scope.deadline = deadline

    @property
    def delay(self) -> float:
        """Seconds until the next poll, if nothing happens."""
        return max(0.0, self._schedule.next_poll(self._clock()).at - self._clock())

    @property
    def called_from_poll(self) -> bool:
        """Whether the caller is part of the poll that runs: it cannot wait for another one."""
        return self._current is not None and self._current in _enclosing_polls.get()

    # How

    @property
    def _can_wait(self) -> bool:
        """Whether a fetch may be held: the feed can, and nobody waits for the lock to poll now."""
        return self._poller.max_wait > 0 and not self._lock.statistics().tasks_waiting

    async def _lead(self, cause: Cause, stop: StopSignal | None = None) -> PollResult | Exception | None:
        """The only code that polls.

        Returns:
            What was done, or why it failed; `None`: it gave way.
        """
        poll = self._current = self._start(cause, stop)
        answer: PollResult | Exception | None = None
        inside = _enclosing_polls.set((*(outer for outer in _enclosing_polls.get() if outer.running), poll))
        try:
            answer = await self._poller.poll(wait=poll.wait, hint=poll.hint, bypass_cache=poll.fresh, stop=stop)
        except Exception as error:  # noqa: BLE001  # the answer of everybody who waits for it
            answer = error
        except anyio.get_cancelled_exc_class() as cancelled:
            answer = error_for_cancellation(cancelled, "a poll")
        finally:
            _enclosing_polls.reset(inside)
            self._end(poll, answer)
        return answer

    def _start(self, cause: Cause, stop: StopSignal | None) -> "_Poll":
        wait = min(self._poller.max_wait, self._schedule.interval or math.inf) if cause is Cause.WAIT else 0.0
        fresh = cause in BYPASS_CACHE_CAUSES or self._schedule.owes
        self._schedule.poll_started(self._clock(), cause, wait=wait)
        self._started += 1
        hint, self._hint = self._hint, None
        again = cause is Cause.RETRY
        return _Poll(self._started, wait, hint, fresh, stop, self._stats.counts["messages"], again=again)

    def _end(self, poll: "_Poll", answer: PollResult | Exception | None) -> None:
        self._current, poll.running = None, False
        self.closed = isinstance(answer, PollResult) and answer.closed
        found = self._stats.counts["messages"] - poll.before
        self._schedule.poll_ended(
            self._clock(),
            _outcome_of(answer),
            found=found,
            jitter=random.random(),  # noqa: S311  # not for secrets
            resume_at=self._poller.postponed_until,
        )
        # Refused, or failed again: perhaps for the hint, in which whoever may push can write anything.
        if answer is None or not (isinstance(answer, PollResult | FeedRefused) or poll.again):
            self._hint = _merge_hints(poll.hint, self._hint)
        if answer is not None:
            self._last_finished, self._last_result = poll.number, answer
            self._stats.poll_ended(answer, began=poll.began)
            if isinstance(answer, PollResult) and answer.caught_up:
                self._hooks.caught_up(answer)
        self.schedule_changed()

    def _raise_if_throttled(self, until: float) -> None:
        if (earliest := self._schedule.earliest) > until:
            raise Throttled(
                f"a poll may not start for {earliest - self._clock():.1f} s "
                f"({self._schedule.mode(self._clock())}), which is beyond the timeout; call again then, or let "
                "run() wait",
                until=earliest,
            )


@dataclass(slots=True, eq=False)
class _Poll:
    """A poll, while it runs and after."""

    number: int
    wait: float
    hint: Push | None
    fresh: bool
    stop: StopSignal | None
    before: int
    again: bool = False
    began: float = field(default_factory=time.time)
    running: bool = True


def _merge_hints(old: Push | None, new: Push | None) -> Push | None:
    """What both say: the newer cursor, and the topics of both; one that names no topics speaks of all."""
    if old is None or new is None:
        return old or new
    topics = tuple(dict.fromkeys((*old.topics, *new.topics))) if old.topics and new.topics else ()
    count = old.count if new.count is None else new.count
    return Push(new.cursor or old.cursor, topics if len(topics) <= MAX_TOPICS else (), count)


def _outcome_of(answer: PollResult | Exception | None) -> PollOutcome:
    if answer is None:
        return PollOutcome.ABANDONED
    if isinstance(answer, Exception):
        return PollOutcome.REFUSED if isinstance(answer, FeedRefused) else PollOutcome.FAILED
    return PollOutcome.CAUGHT_UP if answer.caught_up else PollOutcome.MORE
