"""Check the start of polls, as the server sees it: G1, G2, G3 and G4.

The consumer is idle while no request, no call of the handler and no slow call of the store is in progress. While
it is idle, a poll is due at a time that the oracle can compute from outside. If the clock passes that time, a wake
was lost (G1), or the fallback (G4).

A request starts a poll unless the server can tell that it continues one: by a page token, because the last answer
said "begin again", or because the poll has lasted for `max_poll_time`. A request after a failed request always
starts a poll, and so does each one after ten pages in a row without a message.
"""

import math

from push_to_poll_client import CursorExpired, FeedRefused, PagesChanged
from tests.simulation.journal import Event
from tests.simulation.oracle import POLLING_CALLS, Oracle, Watcher

__all__ = ["Timing"]

SLACK = 0.1
"""Seconds that a poll may be late."""

JITTER = 1.1
"""Factor of the longest jitter, which lengthens a requested pause by a tenth."""

EPS = 1e-6

MAX_EMPTY_PAGES = 10
"""Pages in a row without a message that belong to one poll."""

NAMED_WITHIN = 1.0
"""Seconds after which a message that all others wait for must be named."""


class Timing(Watcher):
    """Watch the starts of polls."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__(oracle)
        self.client = 0
        self.postponed = -math.inf
        self.longest_wait = 0.0
        self.set_back = False
        self._new_client(0.0)

    def _new_client(self, now: float) -> None:
        self.running = self.paused = False
        self.in_progress: set[str] = set()
        self.held: set[str] = set()
        self.idle_since = now
        self.not_before = self.not_before_at_most = -math.inf
        self.backoff_until = -math.inf
        self.backoff = 0.0
        self.failures = 0
        self.failed = False
        self.owed: float | None = None
        self.owed_by = ""
        self.covered = False
        self.calls: dict[str, float] = {}
        self.exclusive = 0
        # Polls as the server sees them
        self.credits: dict[str | None, int] = {}
        self.may_begin_again = self.may_be_long = self.poll_failed = False
        self.began_again = self.expired = False
        self.resumed_at = -math.inf
        self.empty_pages = 0
        self.had_next = False
        self.started = self.answered = self.took_token = -math.inf
        self.last_start = now
        self.full_at = -math.inf
        self.asked_latest: float | None = None

    def watch(self, event: Event) -> None:
        """Handle an event, after the time that has passed before it."""
        if event.client in {0, self.client}:
            self._check_idle(event.at)
            super().watch(event)

    # Lives of consumer objects

    def on_consumer(self, event: Event) -> None:
        """Record a new consumer object."""

    def begin(self, client: int, now: float) -> None:
        """Watch this consumer object from now on."""
        self.client = client
        self._new_client(now)

    def on_run(self, event: Event) -> None:
        self.running = True
        self._owe(event.at, "run() began")

    def on_stopping(self, event: Event) -> None:
        self.running = False
        self.owed = None

    on_crash = on_stopping

    def on_run_ended(self, event: Event) -> None:
        self.on_stopping(event)
        self.had_next = False  # the next run begins a poll
        self._poll_failed(event.at)

    def on_pause(self, event: Event) -> None:
        self.paused = True

    def on_resume(self, event: Event) -> None:
        self.paused = False
        if self.owed is not None:
            self.owed = event.at
        self.idle_since = self.resumed_at = max(self.idle_since, event.at)

    # Wakes

    def on_wake(self, event: Event) -> None:
        if not event.facts.get("hint"):
            self._owe(event.at, event.facts.get("by", "a wake"))

    def _owe(self, now: float, by: str) -> None:
        if not self.running:
            return
        if self.owed is None or self.covered:
            self.owed, self.owed_by, self.covered = now, by, False

    # Work in progress

    def _begin(self, what: str) -> None:
        self.in_progress.add(what)

    def _end(self, what: str, now: float) -> None:
        self.in_progress.discard(what)
        if not self.in_progress:
            self.idle_since = now

    def on_handle(self, event: Event) -> None:
        self._begin(f"call {event.facts['call']}")

    def on_handled(self, event: Event) -> None:
        self._end(f"call {event.facts['call']}", event.at)

    on_interrupted = on_handled

    def on_failed(self, event: Event) -> None:
        after = event.facts["after"]
        wait = self.plan.consumer.retry_wait if after is None else after
        self.postponed = max(self.postponed, event.at + wait)
        self.longest_wait = max(self.longest_wait, wait)
        self.on_handled(event)

    def on_store_begins(self, event: Event) -> None:
        self._begin(f"store {event.facts['what']}")

    def on_store_ends(self, event: Event) -> None:
        self._end(f"store {event.facts['what']}", event.at)

    def on_store_fails(self, event: Event) -> None:
        # The poll fails, unless the commit was one in the background; without a request it has taken a token.
        self._poll_failed(event.at)
        if not self.in_progress:
            self.idle_since = event.at
        self.last_start = event.at
        self.failed = self.may_begin_again = True
        if not any(what.startswith("request") for what in self.in_progress):
            # The next request begins a poll. A request in progress is cut (`on_cut`), or the poll continues.
            self.covered = self.had_next = False

    def on_clock_jumps(self, event: Event) -> None:
        self.set_back = self.set_back or event.facts["by"] < 0
        if self.set_back and self.longest_wait:
            self.oracle.after = ", after the clock was set back"

    def on_claimed(self, event: Event) -> None:
        self._end("", event.at)

    def on_commit(self, event: Event) -> None:
        if not self.in_progress:
            self.idle_since = event.at

    on_released = on_commit

    def on_reset(self, event: Event) -> None:
        if self.exclusive:  # a rewind: the next request does not continue the last poll
            self.had_next = False
            self.may_begin_again = self.may_begin_again and self.expired  # or the poll continues at another place
        self.on_commit(event)

    def on_asks_latest(self, event: Event) -> None:
        self._begin("latest")
        self._check_not_before(event, "latest()")
        if event.facts["who"] != "rewind":
            self.asked_latest = event.at  # it is the first request of a poll

    def on_tells_latest(self, event: Event) -> None:
        self._end("latest", event.at)

    def on_call(self, event: Event) -> None:
        """Record a waiting caller; no other caller polls meanwhile."""
        what = event.facts["what"]
        if what in POLLING_CALLS:
            self.calls[event.facts["call"]] = event.at
        else:
            self.exclusive += 1

    def on_returns(self, event: Event) -> None:
        if event.facts["what"] in POLLING_CALLS:
            self.calls.pop(event.facts["call"], None)
        else:
            self.exclusive -= 1
        if event.facts.get("error"):
            self._poll_failed(event.at)
        self.idle_since = max(self.idle_since, event.at)
        self.last_start = event.at

    # Requests

    def on_request(self, event: Event) -> None:
        facts = event.facts
        others = self.in_progress | self.held
        fetching = [what for what in others if what.startswith("request")]
        if fetching:
            self.oracle.broken("G2", "two requests at a time", f"request {facts['n']} beside {fetching[0]}")
        if not self.server.plan.read_ahead and facts["who"] != "replay":
            handling = [what for what in others if what.startswith("call")]
            if handling:
                self.oracle.broken("G2", "a request while a message is processed, without read_ahead")
        self._check_not_before(event, f"request {facts['n']}")
        if facts["who"] != "replay":
            self._poll_request(event)
        name = f"request {facts['n']}"
        (self.held if facts["wait"] else self.in_progress).add(name)

    def _check_not_before(self, event: Event, what: str) -> None:
        if event.at < self.not_before - EPS:
            self.oracle.broken(
                "G3", "the server was asked before the time that it had asked for",
                f"{what}, {self.not_before - event.at:.3f} s too early",
            )  # fmt: skip

    def _poll_request(self, event: Event) -> None:
        now, facts, options = event.at, event.facts, self.plan.consumer
        idled = not self.in_progress and (now > self.idle_since + EPS or now == self.resumed_at)
        self.resumed_at = -math.inf
        ended = self.idle_since if not self.in_progress else now
        # The last answer may be of a page that was fetched ahead, and say nothing about the poll.
        had_more = self.had_next or self.server.plan.read_ahead
        lasted = ended - self.started
        was_long = had_more and (self.may_be_long or lasted >= options.max_poll_time - EPS)
        credit = self.credits.get(facts["cursor"], 0)
        if not credit:
            self.empty_pages = 0
        # Without page tokens the server cannot tell whether a new walk has begun.
        counted = self.empty_pages if self.plan.feed.tokens else 0
        goes_on = credit and counted < MAX_EMPTY_PAGES
        after_overlap = options.overlap and facts["wait"] and not idled
        # A page that failed when it was fetched ahead is dropped if the time of the poll is over before its turn.
        free = bool(was_long or (not self.poll_failed and (goes_on or self.may_begin_again or after_overlap)))
        self.poll_failed = False
        if credit:
            self.credits[facts["cursor"]] = credit - 1
        self.may_begin_again = False
        facts["starts"] = "no" if free else "yes"
        if not free:
            self._take_token(now if self.asked_latest is None else self.asked_latest)
        self.asked_latest = None
        starts = not free or idled or was_long or not self.had_next
        if starts and (not free or not self.may_be_long):
            self.started = now
        if not free:
            self.took_token, self.began_again = now, False
        # A page that was fetched ahead, or a walk that began again, hides when the time of a poll was over.
        hidden = self.began_again or self.server.plan.read_ahead
        may_start = hidden and now - self.took_token >= options.max_poll_time - EPS
        if starts or may_start or self.empty_pages >= MAX_EMPTY_PAGES:  # the last: without page tokens
            self.last_start = now
            # A long poll never answers a wake.
            if not facts["wait"] and self.owed is not None:
                self.covered = True
            if not facts["wait"]:
                for call in self.calls:
                    self.calls[call] = math.inf
        # If the time of the poll is over at this moment, the next request may be the first one of the next poll.
        self.may_be_long = not self.may_be_long and abs(lasted - options.max_poll_time) <= EPS
        self.had_next = False

    def _take_token(self, now: float) -> None:
        options, store = self.plan.consumer, self.plan.store
        if options.rate is None:
            return
        spacing = 1.0 / options.rate
        tolerance = 3 * max(store.slow and store.slow_time, store.hanging and store.hanging_time)
        early = self.full_at - spacing * (options.burst - 1) - now
        if early > tolerance + EPS:
            self.oracle.broken("G3", "more polls than the rate allows", f"{early:.3f} s too early")
        self.full_at = max(self.full_at, now) + spacing

    def on_answer(self, event: Event) -> None:
        page = event.facts["page"]
        self._request_ended(event)
        self.answered = event.at
        if page.next_page is not None:
            # A page that was fetched ahead may be dropped, and asked for again by the continuation.
            self.credits[page.next_page] = 2 if self.server.plan.read_ahead else 1
        if event.facts["who"] == "replay":
            self._asked_for(event.at, page.retry_after)
            return
        self.had_next = page.next_page is not None
        self.empty_pages = self.empty_pages + 1 if self.had_next and not page.messages else 0
        self.may_begin_again = self.had_next and page.retry_after is not None
        self._asked_for(event.at, page.retry_after)
        if page.next_page is None and self.covered:
            self.owed, self.covered = None, False

    def on_error(self, event: Event) -> None:
        error = event.facts["error"]
        self.answered = event.at
        self._asked_for(event.at, event.facts["asks"])
        self.expired = isinstance(error, CursorExpired)
        if isinstance(error, PagesChanged | CursorExpired):
            self.may_begin_again = self.began_again = True
        self._poll_failed(event.at)
        if isinstance(error, FeedRefused):
            self.backoff = 300.0
            self.backoff_until = max(self.backoff_until, event.at + self.backoff)
        self.failed = True
        if not isinstance(error, PagesChanged | CursorExpired):  # these do not end the poll
            self.covered, self.poll_failed = False, True
        self._request_ended(event)

    def _poll_failed(self, now: float) -> None:
        self.failures += 1
        self.backoff = min(2.0 ** min(self.failures, 16), 60.0)
        self.backoff_until = max(self.backoff_until, now + self.backoff)

    def on_log(self, event: Event) -> None:
        if (
            "poll failed, retrying in" in event.facts["line"]
        ):  # a page that was fetched ahead fails when it is needed
            self.backoff_until = max(self.backoff_until, event.at + self.backoff)

    def on_cut(self, event: Event) -> None:
        self._request_ended(event)
        if not event.facts["wait"]:
            self.covered = False

    def _request_ended(self, event: Event) -> None:
        name = f"request {event.facts['n']}"
        self.held.discard(name)
        self._end(name, event.at)

    def _asked_for(self, now: float, seconds: float | None) -> None:
        if seconds is not None:
            self.not_before = max(self.not_before, now + seconds)
            self.not_before_at_most = max(self.not_before_at_most, now + seconds * JITTER)

    # Due polls

    @property
    def may_start(self) -> float:
        """Latest time at which a poll may start, whatever its reason."""
        spacing = 1.0 / self.plan.consumer.rate if self.plan.consumer.rate else 0.0
        return max(self.not_before_at_most, self.last_start + spacing, self.backoff_until, self.postponed)

    def _check_idle(self, now: float) -> None:
        """Check if a poll was due in the time that has passed."""
        if self.in_progress or self.exclusive:
            return
        if self.failed and now > self.idle_since + EPS:
            # A page that was fetched ahead fails when it is needed.
            self.failed, self.backoff_until = False, max(self.backoff_until, self.idle_since + self.backoff)
        was_asked = self.answered > -math.inf and now > max(self.idle_since, self.not_before_at_most) + EPS
        if self.set_back and self.longest_wait and was_asked:
            # A waiting message is retried after its whole wait at the latest, when a poll meets it again.
            self.postponed = max(self.postponed, self.idle_since + self.longest_wait)
        limits = max(self.idle_since, self.may_start)
        for call, since in self.calls.items():
            if now > max(since, limits) + SLACK:
                self.oracle.broken("G2", "a call does not start its poll", f"{call}, called at {since:.3f}")
        if self.running and not self.paused:
            self._check_wishes(now, limits)

    def _check_wishes(self, now: float, limits: float) -> None:
        options = self.plan.consumer
        if self.owed is not None and not self.covered:
            due = max(self.owed + options.wake_delay, limits)
            if now > due + SLACK:
                seen = f"{self.owed_by} at {self.owed:.3f}, a poll was due at {due:.3f}, none by {now:.3f}"
                self.oracle.broken("G1", "a wake is not followed by a poll", seen)
        if not self.held:
            due = max(limits, self.idle_since + options.fallback_interval)
            if now > due + SLACK:
                seen = f"due at {due:.3f}, none by {now:.3f}"
                self.oracle.broken("G4", "no poll within the fallback interval", seen)
            spacing = 1.0 / options.rate if options.rate else 0.0
            otherwise = max(self.not_before_at_most, self.backoff_until, self.last_start + spacing)
            if now > max(self.idle_since, otherwise) + NAMED_WITHIN:
                self.oracle.idle()
