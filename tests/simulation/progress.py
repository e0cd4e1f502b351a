"""Check progress: G13, and G1 for messages that arrive after their push."""

import math

from tests.simulation.journal import Event
from tests.simulation.oracle import POLLING_CALLS, Oracle, Watcher
from tests.simulation.records import Records
from tests.simulation.timing import Timing

__all__ = ["Progress"]

REPOLLS = 5.25
"""Fewest seconds from an empty poll after a push to its last repetition."""


class Progress(Watcher):
    """Watch the results of calls, and the way to the end of the feed.

    Attributes:
        until: Time by which everything must be settled.
    """

    def __init__(self, oracle: Oracle, timing: Timing, records: Records) -> None:
        super().__init__(oracle)
        self.timing = timing
        self.records = records
        self.calm_since = math.inf
        self.until = math.inf
        self.requests_left = 0
        self.walk_began = self.ended_walk_began = -math.inf
        self.calls: dict[str, tuple[float, int]] = {}
        self.requests = 0
        self.last_disturbance = -math.inf
        self.in_vain = False
        self.pushed_at = -math.inf
        self.beaten: tuple[float, float, tuple[str, ...]] | None = None
        self.client = 0
        self.moved = -math.inf
        self.asked_at: str | None = None
        self.following: str | None = None
        self.failed_at: tuple[
            str | None, ...
        ] = ()  # where the next poll continues, without reading an overlap again

    # Results of calls

    def on_request(self, event: Event) -> None:
        self.requests += 1
        cursor = event.facts["cursor"]
        continues = cursor in self.failed_at or (cursor is not None and cursor == self.following)
        if event.facts.get("starts") == "yes" and not continues:
            self.walk_began = event.at
        self.asked_at, self.failed_at, self.following = cursor, (), None

    def on_call(self, event: Event) -> None:
        if event.facts["what"] in POLLING_CALLS:
            self.calls[event.facts["call"]] = event.at, self.requests

    def on_returns(self, event: Event) -> None:
        if event.facts["what"] not in POLLING_CALLS:
            self.last_disturbance = event.at
            return
        called, requests = self.calls.pop(event.facts["call"])
        result = event.facts.get("result")
        if result is None:
            return
        if self.requests == requests:
            self.oracle.broken("G2", "a call is answered by a poll that began before it")
        if event.facts["what"] == "catch_up" and not result.caught_up and result.standstill is None:
            self.oracle.broken("G13", "catch_up() returns before it has caught up")
        if result.caught_up:
            called = min(called, self.ended_walk_began)  # the next walk may begin before the caller is told
            self._check_caught_up(called, event.facts["what"])

    def on_caught_up(self, event: Event) -> None:
        self._check_caught_up(self.walk_began, "a poll of run()")

    def on_reset(self, event: Event) -> None:
        self._disturbed(event)
        self.moved = event.at

    def _check_caught_up(self, began: float, who: str) -> None:
        if self.moved >= began:  # it may have caught up before the move
            return
        left = self.records.unsettled(began - 1e-6)
        if left:
            self.oracle.broken(
                "G13", "it says that it has caught up, and has not",
                f"{who}, which began at {began:.3f}: {len(left)} messages, the first is {left[0]}",
            )  # fmt: skip

    # Pushes that beat their messages

    def on_wake(self, event: Event) -> None:
        # Polls after a push without messages are not repeated for the next push.
        alone = event.at > self.last_disturbance + 10.0 and event.facts.get("by") == "a push" and not self.in_vain
        self._disturbed(event)
        self.in_vain, self.pushed_at = True, event.at
        by, timing = event.facts.get("beats"), self.timing
        ready = timing.running and not timing.paused and not timing.in_progress and timing.may_start <= event.at
        if by and alone and ready and not event.facts.get("hint"):
            self.beaten = event.at, event.at + by, ()

    def on_publish(self, event: Event) -> None:
        if self.beaten is None:
            return
        pushed, visible, ids = self.beaten
        if ids or event.facts["lag"] or abs(event.at - visible) > 1e-6:
            self._disturbed(event)
        else:
            new = tuple(name for name in event.facts["ids"] if name not in self.records.recorded)
            self.beaten = (pushed, visible, new) if new else None

    def _disturbed(self, event: Event) -> None:
        self.last_disturbance = event.at
        self.beaten = None

    def on_run(self, event: Event) -> None:
        self._disturbed(event)
        self.in_vain = False

    def on_answer(self, event: Event) -> None:
        page = event.facts["page"]
        self.following = page.next_page
        if self.following is None:
            self.ended_walk_began = self.walk_began
        elif not page.messages:  # many such pages take time
            self._disturbed(event)

    def on_error(self, event: Event) -> None:
        self._disturbed(event)
        self.in_vain = True  # the retry may come after the announced messages
        self.failed_at = (self.asked_at,)

    on_failed = on_stopping = on_run_ended = on_crash = on_pause = _disturbed
    on_store_begins = on_store_fails = on_channel = _disturbed

    def on_handle(self, event: Event) -> None:
        if self.walk_began >= self.pushed_at:  # an older poll tells nothing about the push
            self.in_vain = False
        if self.beaten is None:
            self.last_disturbance = event.at
        elif not set(event.facts["ids"]) & set(self.beaten[2]):
            self._disturbed(event)
        else:
            self._check_beaten(event.at)
            self.beaten = None

    def watch(self, event: Event) -> None:
        """Handle an event, after a push that has waited for its messages."""
        if self.beaten is not None:
            self._check_beaten(event.at)
        super().watch(event)

    def _check_beaten(self, now: float) -> None:
        assert self.beaten is not None
        pushed, _, _ = self.beaten
        plan, feed = self.plan.consumer, self.plan.feed
        if plan.rate is not None and plan.rate < 1:
            return
        spacing = 0.0 if plan.rate is None else 4 / plan.rate
        asks = 4 * (feed.poll_interval or 0.0) * 1.1
        latency = feed.slow_latency if feed.slow else feed.latency
        latest = pushed + plan.wake_delay + REPOLLS * 1.1 + 5 * latency + spacing + asks + 0.5
        if now > latest:
            self.oracle.broken(
                "G1", "a push that came before its messages is not followed by polls that find them",
                f"pushed at {pushed:.3f}, not found by {now:.3f}",
            )  # fmt: skip

    # The way to the end

    def calm(self, now: float, postponed: float) -> None:
        """Begin to count, since there are no faults from now on.

        Args:
            now: The time.
            postponed: Latest time at which a message may still wait for its retry.
        """
        self.calm_since = now
        seconds, requests = self._bounds(postponed)
        self.until, self.requests_left = now + seconds, self.requests + requests

    def settled(self) -> bool:
        """Return True if everything is settled, or it takes too long."""
        now = self.oracle.journal.clock()
        late = max((entry.visible for entry in self.server.entries), default=0.0)
        left = self.records.unsettled(now)
        if now > late and not left:
            return True
        if now > self.until or self.requests > self.requests_left:
            who = "run()" if self.plan.last.how == "run" else "a bare call"
            who += " with an overlap" if self.plan.consumer.overlap else ""
            what = "time" if now > self.until else "requests"
            self.oracle.broken(
                "G13",
                f"{who} does not reach the end of the feed in the {what} that it needs",
                f"{len(left)} messages left, {now - self.calm_since:.0f} s after all was calm",
            )
        return self.oracle.violation is not None

    def _bounds(self, postponed: float) -> tuple[float, int]:
        """Return the most seconds and requests until all is settled."""
        feed, consumer, now = self.plan.feed, self.plan.consumer, self.calm_since
        entries = len(self.server.entries)
        left = len([entry for entry in self.server.entries if entry.id not in self.records.recorded])
        pages = entries / feed.page_size + 2
        walk = pages * feed.latency + left * self.plan.handler.takes
        interval = consumer.fallback_interval
        if self.plan.last.how == "cron":
            interval = self.plan.last.every * (1 + walk / consumer.max_poll_time)
        interval += 1 / consumer.rate if consumer.rate else 0.0
        again = 0.0
        if self.plan.last.how == "cron" and consumer.overlap:
            # A bare call keeps no place. Each reads the overlap again, and gets a bit further.
            again = pages * (1 + walk / consumer.max_poll_time)
        failures = feed.weather * pages * 3
        waits = max(postponed - now, 0.0) + feed.late + 2 * consumer.overlap + failures * 30.0
        if feed.filtered and consumer.rate:  # pages without messages may take a token each
            waits += pages / consumer.rate
        seconds = 2 * (waits + 3 * interval + 4 * walk + again * feed.latency + 20.0)
        polls = seconds / interval + 4 + failures
        return seconds, int(2 * (4 * pages + again + 8 * polls + 3 * pages * failures)) + 20
