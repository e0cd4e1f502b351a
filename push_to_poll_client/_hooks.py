"""Hooks, counters and run log: everything that reports on a consumer.

Hooks are for telemetry and tests. They decide nothing: an exception in a hook is logged and has no other effect.
"""

import inspect
import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic

from push_to_poll_client._exceptions import FeedError, StoreUnavailable
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._status import FailingMessage, Gap, PollResult, ResyncEvent
from push_to_poll_client._types import Clock, Cursor, FailureAction, M_contra, Settlement, UnreadableMessage
from push_to_poll_client._validation import describe, one_line, quoted

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))


class Hooks(Generic[M_contra]):
    """Methods that are called when something happens; override the ones you need.

    They are called in the event loop, so they must be short and must not block. `Hooks[Entry]` are for a
    `Consumer[Entry]`; bare `Hooks` are for any consumer.
    """

    def message_started(self, message: M_contra) -> None:
        """Called before the handler gets a message.

        Called for each attempt, and again for each part of a batch. If the attempt is cancelled, there is no
        further call until the message comes again.
        """

    def message_settled(self, message: M_contra | UnreadableMessage, state: Settlement) -> None:
        """Called when a message is processed, dead-lettered or skipped; the commit follows."""

    def message_failed(
        self, message: M_contra | UnreadableMessage, error: Exception, attempt: int, action: FailureAction
    ) -> None:
        """Called when an attempt to process a message has failed.

        Args:
            message: The message.
            error: The exception.
            attempt: Number of this attempt, from 1.
            action: What happens to the message now.
        """

    def message_postponed(self, message: M_contra | UnreadableMessage, failing: FailingMessage) -> None:
        """Called when a message still waits for its retry after a restart.

        Called once, when a poll reaches the message. `message_failed` was called in the earlier run. Messages that
        must not overtake it wait too. The wait can be hours.
        """

    def resynced(self, event: ResyncEvent) -> None:
        """Called when the consumer continues from another place than the saved cursor."""

    def gap(self, event: Gap) -> None:
        """Called when messages may be missing that the feed can no longer return."""

    def caught_up(self, result: PollResult) -> None:
        """Called when a poll has reached the end of the feed."""


HOOK_NAMES: Final = [name for name in vars(Hooks) if not name.startswith("_")]


class SafeHooks(Hooks):
    """Call the user's hooks and log what they raise: the first failure of each at WARNING, later at DEBUG."""

    def __init__(self, hooks: Hooks[Any]) -> None:
        if not isinstance(hooks, Hooks):
            raise TypeError(f"hooks must be a Hooks object or None, got {hooks!r}")
        for name in HOOK_NAMES:
            if inspect.iscoroutinefunction(getattr(hooks, name)):
                raise TypeError(
                    f"{type(hooks).__name__}.{name} must be a plain def, got an async def: hooks are not awaited"
                )
            setattr(self, name, partial(self._call, name))
        self._hooks = hooks
        self._failed = set[str]()

    def _call(self, name: str, *args: Any) -> None:
        try:
            getattr(self._hooks, name)(*args)
        except Exception as error:  # a hook can raise anything
            # Most hooks are called for each message (G11).
            level = logging.DEBUG if name in self._failed else logging.WARNING
            self._failed.add(name)
            logger.log(
                level,
                "hook %s failed; its further failures are logged at DEBUG: %s",
                name,
                describe(error),
                exc_info=error,
            )


@dataclass(eq=False, repr=False)
class ConsumerStats:
    """Collect the values of `Status` across runs, and call the hooks."""

    hooks: Hooks
    counts: Counter[str] = field(default_factory=Counter)
    last_poll: float | None = None
    last_progress: float | None = None
    last_caught_up: float | None = None
    last_error: str | None = None
    last_resync: ResyncEvent | None = None
    last_gap: Gap | None = None
    failing: dict[str, FailingMessage] = field(default_factory=dict)
    standstill: str | None = None

    def message_failed(self, key: str, failing: FailingMessage) -> None:
        """Store a failing message under its dedupe key, as the latest one."""
        self.failing.pop(key, None)
        self.failing[key] = failing

    def resynced(self, event: ResyncEvent) -> None:
        self.counts["resyncs"] += 1
        self.last_resync = event
        self.hooks.resynced(event)

    def gap(self, gap: Gap) -> None:
        self.counts["gaps"] += 1
        self.last_gap = gap
        self.hooks.gap(gap)

    def poll_ended(self, result: PollResult | Exception, *, began: float) -> None:
        """Count a poll; `began` is its start as a time of day."""
        self.counts["polls"] += 1
        self.last_poll = time.time()
        if isinstance(result, Exception):
            self.counts["failed_polls"] += 1
            self.last_error = describe(result)
        elif result.caught_up:
            self.last_caught_up = began
            self.hooks.caught_up(result)


# Seconds. Reaching the end of the feed is logged if the consumer was behind for this long: at most one line a
# minute.
LONG_BACKLOG: Final = 60.0


def place_of(cursor: Cursor | None) -> str:
    """Name a place in the feed, for the log."""
    return "the inception" if cursor is None else f"cursor {quoted(cursor)}"


@dataclass(eq=False, repr=False)
class RunLog:
    """Log of one `run()`: its start, catching up, recovery, and end."""

    # A successful poll is logged only if something was wrong before it: an idle consumer logs nothing.

    stats: ConsumerStats
    clock: Clock
    _behind_since: float | None = None  # the start of the first poll after the last catch-up
    _is_news: bool = True  # log the next time that the end is reached
    _failures: int = 0
    _failing_since: float = 0.0

    def __post_init__(self) -> None:
        self._messages = self.stats.counts["messages"]  # at the last catch-up

    def started(self, place: str, feed: str, interval: float | None, listeners: int) -> None:
        polling = "only when woken" if interval is None else f"every {interval:g} s"
        count = _number(listeners, "listener")
        logger.info("started at %s of %s: polling %s, %s", place, one_line(feed), polling, count)

    def poll_ended(self, result: PollResult | Exception, *, started: float) -> None:
        """Log that the feed works again, or that its end is reached again."""
        if isinstance(result, PollResult):
            self._poll_succeeded(started, caught_up=result.caught_up)
        elif isinstance(result, FeedError | StoreUnavailable):
            self._failing_since = self._failing_since if self._failures else started
            self._failures, self._is_news = self._failures + 1, True
            self._be_behind(started)

    def _be_behind(self, since: float) -> None:
        self._behind_since = since if self._behind_since is None else self._behind_since

    def _poll_succeeded(self, started: float, *, caught_up: bool) -> None:
        now, count = self.clock(), self.stats.counts["messages"]
        if self._failures:
            polls = _number(self._failures, "failed poll")
            logger.info("recovered after %s in %.1f s", polls, now - self._failing_since)
            self._failures = 0
        if not caught_up:
            self._be_behind(started)
            return
        # One long poll is not a backlog: the server may have held its answer.
        seconds = 0.0 if self._behind_since is None else now - self._behind_since
        if self._is_news or seconds >= LONG_BACKLOG:
            messages = _number(count - self._messages, "message")
            logger.info("caught up: %s in %.1f s", messages, seconds or now - started)
        self._behind_since, self._is_news, self._messages = None, False, count

    def stopped(self, cursor: Cursor | None, why: str) -> None:
        """Log the place where the next run continues, and why this one ended."""
        logger.info("stopped at %s: %s", place_of(cursor), why)


def _number(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
