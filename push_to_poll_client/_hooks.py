"""Tell what a consumer does: to the user's hooks, in counters, and in the log of a run.

Hooks are typed calls for telemetry and tests. They decide nothing: an exception of a hook is logged, and changes
nothing. `ConsumerStats` counts for the status, and knows the hooks. `RunLog` writes the few lines of a run.
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
    """Override what you want to hear of. Called in the event loop, so they must be short, and never block.

    `Hooks[Entry]` are for a `Consumer[Entry]`, bare `Hooks` for any.
    """

    def message_started(self, message: M_contra) -> None:
        """The handler is about to get a message; for each further attempt, and part of a batch, again.

        What is cancelled then comes again, and nothing more is said of it until it does.
        """

    def message_settled(self, message: M_contra | UnreadableMessage, state: Settlement) -> None:
        """It is processed, dead or skipped; that is committed soon after."""

    def message_failed(
        self, message: M_contra | UnreadableMessage, error: Exception, attempt: int, action: FailureAction
    ) -> None:
        """The `attempt`th attempt failed, and this becomes of the message."""

    def message_postponed(self, message: M_contra | UnreadableMessage, failing: FailingMessage) -> None:
        """It failed before a restart, and still waits for its next attempt, perhaps for hours.

        Called once, when a poll meets it; `message_failed` was called by the run before. Messages that may not
        overtake it wait too.
        """

    def resynced(self, event: ResyncEvent) -> None:
        """The consumer goes on from another place of the feed than the saved cursor."""

    def gap(self, event: Gap) -> None:
        """Messages may be missing that the feed can no longer give."""

    def caught_up(self, result: PollResult) -> None:
        """A poll reached the end of the feed."""


HOOK_NAMES: Final = [name for name in vars(Hooks) if not name.startswith("_")]


class SafeHooks(Hooks):
    """Call the user's hooks, and log what they raise: the first failure of each hook as a WARNING.

    Args:
        hooks: The user's hooks.

    Raises:
        TypeError: It is not a `Hooks`, or one of its methods is a coroutine function, which would not be awaited.
    """

    def __init__(self, hooks: Hooks[Any]) -> None:
        if not isinstance(hooks, Hooks):
            raise TypeError(f"hooks must be a Hooks or None, not {hooks!r}")
        for name in HOOK_NAMES:
            if inspect.iscoroutinefunction(getattr(hooks, name)):
                raise TypeError(
                    f"hooks are called and not awaited: {type(hooks).__name__}.{name} must be a plain def"
                )
            setattr(self, name, partial(self._call, name))
        self._hooks = hooks
        self._failed = set[str]()

    def _call(self, name: str, *args: Any) -> None:
        try:
            getattr(self._hooks, name)(*args)
        except Exception as error:  # the user's hook can raise anything
            level = logging.DEBUG if name in self._failed else logging.WARNING  # G11: most are for each message
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
    """Collects the figures of `Status`, across runs, and tells the hooks.

    Attributes:
        failing: By dedupe key, in the order of their last failures.
    """

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
        """Keep the failure of the message with this dedupe key, as the one that failed last."""
        self.failing.pop(key, None)
        self.failing[key] = failing

    def resynced(self, event: ResyncEvent) -> None:
        """Count a resync."""
        self.counts["resyncs"] += 1
        self.last_resync = event
        self.hooks.resynced(event)

    def gap(self, gap: Gap) -> None:
        """Count a gap in the feed."""
        self.counts["gaps"] += 1
        self.last_gap = gap
        self.hooks.gap(gap)

    def poll_ended(self, result: PollResult | Exception, *, began: float) -> None:
        """Count a poll that began at this time of day."""
        self.counts["polls"] += 1
        self.last_poll = time.time()
        if isinstance(result, Exception):
            self.counts["failed_polls"] += 1
            self.last_error = describe(result)
        elif result.caught_up:
            self.last_caught_up = began
            self.hooks.caught_up(result)


LONG_BACKLOG: Final = 60.0
"""Seconds without reaching the end of the feed after which that is logged when it is reached. A feed that grows
faster than its handler writes a line a minute at most."""


def place_of(cursor: Cursor | None) -> str:
    """Name a place in the feed, for the log."""
    return "the inception" if cursor is None else f"cursor {quoted(cursor)}"


@dataclass(eq=False, repr=False)
class RunLog:
    """The log of one call of `run()`: its start, when it caught up or recovered, and its end.

    A poll that succeeds is silent unless something was wrong before it, so an idle consumer writes nothing, and a
    busy one no line for each poll or push.

    Attributes:
        stats: Counts the messages.
        clock: The event loop's clock.
    """

    stats: ConsumerStats
    clock: Clock
    _behind_since: float | None = None  # the start of the first poll after the last catch-up
    _is_news: bool = True  # to have caught up
    _failures: int = 0
    _failing_since: float = 0.0

    def __post_init__(self) -> None:
        self._messages = self.stats.counts["messages"]  # at the last catch-up

    def started(self, place: str, feed: str, interval: float | None, listeners: int) -> None:
        """Log where the run begins, and when it polls: every `interval` seconds at least, and when woken."""
        polling = "only when woken" if interval is None else f"every {interval:g} s"
        count = _number(listeners, "listener")
        logger.info("started at %s of %s: polling %s, %s", place, one_line(feed), polling, count)

    def poll_ended(self, result: PollResult | Exception, *, started: float) -> None:
        """Log that the feed works again, or that its end is reached again.

        Args:
            result: What the poll did, or why it failed.
            started: When it started, on the event loop's clock.
        """
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
        """Log where the next run goes on, and why this one ended."""
        logger.info("stopped at %s: %s", place_of(cursor), why)


def _number(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
