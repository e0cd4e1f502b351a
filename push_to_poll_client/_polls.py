"""One poll at a time, whoever asks for it (G2): `run()`, `poll_now()`, or a wake.

Whoever holds the lock leads a poll. Polls are numbered as they start, so that whoever waited for the lock can tell
whether a poll that started after its call has ended meanwhile: that one is its answer, and otherwise it leads the
next. A leader that is cancelled leaves no answer, and the next in the queue leads in its place.
"""

import math
import random
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

import anyio

from push_to_poll_client._exceptions import FeedRefused, Throttled
from push_to_poll_client._poller import Poller
from push_to_poll_client._processor import Processor
from push_to_poll_client._schedule import Cause, Outcome, Schedule
from push_to_poll_client._status import PollResult, Tally
from push_to_poll_client._types import Clock, Push, Session

__all__ = ["Polls"]

FRESH = {Cause.WAKE, Cause.REPOLL, Cause.MANUAL}
"""Somebody says that there is something new; a cache might say otherwise."""

_inside: ContextVar[tuple["_Poll", ...]] = ContextVar("push_to_poll_client_inside", default=())
"""The polls that the current task is part of: a handler's task, and whatever it starts."""


class Polls:
    """The polls of one session.

    Args:
        schedule: Decides when.
        session: Knows the saved cursor.
        processor: Has the message in hand.
        poller: Does it.
        tally: Told of each wake and each poll.
        clock: The event loop's.
    """

    def __init__(
        self,
        schedule: Schedule,
        session: Session,
        processor: Processor,
        poller: Poller,
        *,
        tally: Tally,
        clock: Clock,
    ) -> None:
        self.session = session
        self._schedule = schedule
        self._processor = processor
        self._poller = poller
        self._tally = tally
        self._clock = clock
        self._lock = anyio.Lock()
        self._started = self._answered = 0
        self._answer: PollResult | Exception = PollResult(0, 0, 0, caught_up=False)
        self._hint: Push | None = None
        self._changed = anyio.Event()
        self._current: _Poll | None = None

    # Wakes

    def wake(self, push: Push | None) -> None:
        """Somebody says "poll soon"; in the event loop."""
        known = push is not None and push.cursor is not None and push.cursor == self.session.cursor
        result = self._schedule.wake(self._clock(), push=push is not None, known=known)
        self._tally.wake(result)
        if push is not None and not known:
            self._hint = push
        self._poller.give_way()
        self.look_again()

    def look_again(self) -> None:
        """Something changed that the schedule may decide differently for."""
        self._changed.set()

    # Polls

    async def poll_now(self, timeout: float | None) -> PollResult:  # noqa: ASYNC109  # not that of the poll
        """Lead a poll, or be answered by one that starts from here on. See `Consumer.poll_now`."""
        since = self._started
        self._refuse_to_wait_beyond(timeout)
        self._poller.give_way()
        async with self._lock:
            if self._answered <= since:
                self._refuse_to_wait_beyond(timeout)
                await anyio.sleep_until(self._schedule.earliest)
                await self._lead(Cause.MANUAL)
            if isinstance(self._answer, Exception):
                raise self._answer
            return self._answer

    async def poll_when_due(self, stopping: Callable[[], bool]) -> None:
        """Wait until the schedule decides for a poll, or something changes; if a poll is due, lead it.

        Args:
            stopping: As for `Processor.settle`.

        Raises:
            Exception: Why the poll failed.
        """
        self._changed = anyio.Event()
        async with self._lock:
            decision = self._schedule.next_poll(self._clock(), can_wait=self._poller.max_wait > 0)
            if decision.at <= self._clock():
                answer = await self._lead(decision.cause, stopping)
                if isinstance(answer, Exception):
                    raise answer
                return
        with anyio.CancelScope(deadline=decision.at):
            await self._changed.wait()

    def finish_until(self, deadline: float) -> None:
        """Give the message in hand until then, if `poll_when_due` leads; other leaders see to themselves."""
        if self._current is not None and self._current.stopping is not None:
            self._processor.hand.deadline = deadline

    @property
    def pause(self) -> float:
        """Seconds until the next poll, if nothing happens."""
        return max(0.0, self._schedule.next_poll(self._clock()).at - self._clock())

    @property
    def inside(self) -> bool:
        """Whether the caller is part of the poll that runs: it cannot wait for another one."""
        return self._current is not None and self._current in _inside.get()

    # How

    async def _lead(
        self, cause: Cause, stopping: Callable[[], bool] | None = None
    ) -> PollResult | Exception | None:
        """The only code that polls.

        Returns:
            What was done, or why it failed; `None`: it gave way.
        """
        poll = self._current = self._start(cause, stopping)
        answer: PollResult | Exception | None = None
        inside = _inside.set((*_inside.get(), poll))
        try:
            answer = await self._poller.poll(
                wait=poll.wait, hint=poll.hint, fresh=cause in FRESH, stopping=stopping
            )
        except Exception as error:  # noqa: BLE001  # the answer of everybody who waits for it
            answer = error
        finally:
            _inside.reset(inside)
            self._end(poll, answer)
        return answer

    def _start(self, cause: Cause, stopping: Callable[[], bool] | None) -> "_Poll":
        wait = min(self._poller.max_wait, self._schedule.interval or math.inf) if cause is Cause.WAIT else 0.0
        self._schedule.poll_started(self._clock(), cause, wait=wait)
        self._started += 1
        hint, self._hint = self._hint, None
        return _Poll(self._started, wait, hint, stopping, self._tally.counts["messages"])

    def _end(self, poll: "_Poll", answer: PollResult | Exception | None) -> None:
        self._current = None
        found = self._tally.counts["messages"] - poll.before
        self._schedule.poll_ended(self._clock(), _outcome(answer), found=found, jitter=random.random())  # noqa: S311
        if not isinstance(answer, PollResult):
            self._hint = self._hint or poll.hint
        if answer is not None:
            self._answered, self._answer = poll.number, answer
            self._tally.poll_ended(answer, began=poll.began)

    def _refuse_to_wait_beyond(self, timeout: float | None) -> None:
        delay = self._schedule.earliest - self._clock()
        if timeout is not None and delay > timeout:
            raise Throttled(
                f"a poll may not start for {delay:.1f} s ({self._schedule.mode(self._clock())}), "
                f"which is beyond the timeout of {timeout} s; call again then, or let run() wait",
                until=self._schedule.earliest,
            )


@dataclass(frozen=True, slots=True, eq=False)
class _Poll:
    """A poll that runs."""

    number: int
    wait: float
    hint: Push | None
    stopping: Callable[[], bool] | None
    before: int
    began: float = field(default_factory=time.time)


def _outcome(answer: PollResult | Exception | None) -> Outcome:
    if answer is None:
        return Outcome.ABANDONED
    if isinstance(answer, Exception):
        return Outcome.REFUSED if isinstance(answer, FeedRefused) else Outcome.FAILED
    return Outcome.CAUGHT_UP if answer.caught_up else Outcome.MORE
