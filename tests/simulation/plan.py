"""Plan of one life."""

import zlib
from dataclasses import dataclass, field, fields
from typing import Any

from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

from push_to_poll_client import CursorExpired, Resync

__all__ = [
    "Action",
    "ConsumerPlan",
    "FeedPlan",
    "HandlerPlan",
    "Plan",
    "SessionPlan",
    "StorePlan",
    "share",
]


class Described:
    """Show the fields that differ from their defaults."""

    def __str__(self) -> str:
        shown = (f for f in fields(self) if f.default != getattr(self, f.name) and f.repr)  # type: ignore[arg-type]
        return " ".join(f"{f.name}={_short(getattr(self, f.name))}" for f in shown)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass
class FeedPlan(Described):
    """Behaviour of the server.

    Attributes:
        cursors: Where cursors are: on each "message", on each "page", at the end of a "chain".
        tokens: True if `Page.next_page` is a token, and not the cursor of the page.
        page_size: Most messages of a page.
        latency: Seconds that an answer travels.
        late: Most seconds after which a message becomes visible.
        late_share: Share of late messages.
        filtered: Share of the entries that the server leaves out, page by page.
        repeats: Share of the messages that are published again.
        max_wait: Seconds for which the server offers to hold an answer.
        holding: Reaction to such a request: "hold", "early" or "refuse".
        read_ahead: As for a feed.
        ends_empty: True if each page with messages has a `next`.
        poll_interval: Pause in seconds that each page requests during faults.
        weather: Share of the requests that fail at any time, also without faults.
        failing: Share of the requests that fail during faults.
        failing_asks: Pause in seconds that some failures request.
        refused: Share of the failures that are refusals.
        slow: Share of the answers that take `slow_latency` during faults.
        outages: Times when the server is down, in seconds from the start.
        expires: When cursors expire: the time, all cursors or old ones, and if a start is offered.
        expired_asks: Pause in seconds that an expired cursor requests.
        tokens_expire: When page tokens expire.
        restarts: Share of further pages that restart the chain, during faults.
    """

    cursors: str = "message"
    tokens: bool = True
    page_size: int = 20
    latency: float = 0.0
    late: float = 0.0
    late_share: float = 0.0
    filtered: float = 0.0
    repeats: float = 0.0
    max_wait: float | None = None
    holding: str = "hold"
    read_ahead: bool = False
    ends_empty: bool = False
    poll_interval: float | None = None
    weather: float = 0.0
    failing: float = 0.0
    failing_asks: float | None = None
    refused: float = 0.0
    slow: float = 0.0
    slow_latency: float = 0.0
    outages: tuple[tuple[float, float], ...] = ()
    expires: tuple[tuple[float, str, bool], ...] = ()
    expired_asks: float | None = None
    tokens_expire: tuple[float, ...] = ()
    restarts: float = 0.0


@dataclass
class StorePlan(Described):
    """Behaviour of the store: shares of its calls during faults.

    Attributes:
        failing: Share of the calls that fail.
        for_good: Share of these failures that are permanent.
        slow: Share of the calls that take `slow_time`, in seconds.
        hanging: Share of the calls that take `hanging_time`, in seconds.
        outages: Times when all calls fail, in seconds from the start.
    """

    failing: float = 0.0
    for_good: float = 0.0
    outages: tuple[tuple[float, float], ...] = ()
    slow: float = 0.0
    slow_time: float = 0.0
    hanging: float = 0.0
    hanging_time: float = 0.0


@dataclass
class HandlerPlan(Described):
    """Behaviour of the user's handler.

    Attributes:
        takes: Seconds for each message or batch.
        failing: Share of the messages that fail at first.
        attempts: Most failures of such a message.
        poison: Share of the messages that fail until the faults end.
        verdicts: Decisions that failing messages may raise.
        retry_after: Seconds of each `RetryMessage`.
        overlong: Share of the calls that take longer than `shutdown_timeout` during faults.
    """

    takes: float = 0.0
    failing: float = 0.0
    attempts: int = 1
    poison: float = 0.0
    verdicts: tuple[str, ...] = ("error",)
    retry_after: float = 1.5
    overlong: float = 0.0


@dataclass
class ConsumerPlan(Described):
    """Options of the consumer. `retry_wait` is the longest wait of its `retry`."""

    batches: bool = False
    batch_size: int = 100
    batch_wait: float = 0.0
    concurrency: int = 1
    overlap: float = 0.0
    retry: str = "default"
    retry_wait: float = 10.0
    on_failure: str = "stop"
    rate: float | None = 5.0
    burst: int = 10
    fallback_interval: float = 60.0
    degraded_interval: float | None = 10.0
    wake_delay: float = 0.0
    max_poll_time: float = 30.0
    commit_interval: float = 0.05
    shutdown_timeout: float = 10.0
    start: str = "inception"
    on_cursor_expired: str = "stop"
    listener: bool = False
    hooks: bool = False

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of `Consumer`."""
        names = (
            "batch_size", "batch_wait", "concurrency", "overlap", "rate", "burst", "fallback_interval",
            "degraded_interval", "wake_delay", "max_poll_time", "commit_interval", "shutdown_timeout", "start",
        )  # fmt: skip
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        options["on_cursor_expired"] = EXPIRED_POLICIES[self.on_cursor_expired]
        options["on_failure"] = _policy_by_id if self.on_failure == "mixed" else self.on_failure
        if self.retry != "default":
            options["retry"] = RETRIES[self.retry]
        if self.concurrency > 1:
            options["ordering_key"] = lambda message: int(message.id) % 7
        return options


def share(*what: object) -> float:
    """Return a number from 0 to 1 that looks random, but depends only on the arguments."""
    return (zlib.crc32(repr(what).encode()) * 2654435761 % 2**32) / 2**32


def _policy_by_id(message: Any, error: Exception) -> str:
    return "skip" if int(message.id) % 2 else "dead_letter"


def _to_start(error: CursorExpired) -> Resync | None:
    return Resync("inception" if error.start is None else error.start, forget=False)


RETRIES = {
    "none": None,
    "quick": AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(0.2)),
    "slow": AsyncRetrying(stop=stop_after_attempt(4), wait=wait_fixed(7.0)),
    "for ever": AsyncRetrying(wait=wait_fixed(3.0)),
}
RETRY_WAITS = {"default": 10.0, "none": 0.0, "quick": 0.2, "slow": 7.0, "for ever": 3.0}

EXPIRED_POLICIES: dict[str, Any] = {
    "stop": "stop",
    "inception": Resync("inception", forget=False),
    "forget": Resync("inception", forget=True),
    "latest": Resync("latest", forget=False),
    "offered": _to_start,
}


@dataclass
class Action:
    """Action of a caller, at a time in seconds after the session began."""

    at: float
    what: str
    value: float = 0.0


@dataclass
class SessionPlan:
    """One consumer object, from its start to its end.

    Attributes:
        how: "run", or "cron": bare `poll_now()` again and again.
        lasts: Duration in seconds.
        ends: "stop", "cancel", "native", or "crash".
        actions: Actions of callers meanwhile.
        every: Seconds between the polls of cron.
        timeout: The timeout of cron's polls.
        patience: Seconds after which cron cancels its call.
        same_object: True if all calls use one consumer object, where this is possible.
        catches_up: True if cron calls `catch_up()` instead of `poll_now()`.
        clock_jump: Seconds that the time of day jumps before the session.
    """

    how: str
    lasts: float
    ends: str
    actions: list[Action]
    every: float = 10.0
    timeout: float | None = 10.0
    patience: float | None = None
    same_object: bool = True
    catches_up: bool = False
    clock_jump: float = 0.0

    def __str__(self) -> str:
        return f"{self.how} {self.lasts:.0f} s, then {self.ends}"


@dataclass
class Publication:
    """Messages that are published together, and their push.

    Attributes:
        at: Seconds from the start of the life.
        count: Number of messages.
        lag: Seconds until they are visible.
        push: Seconds from the publication to the push, below 0 if the push is faster; `None` for no push.
        hint: True if the push names the newest cursor.
    """

    at: float
    count: int
    lag: float = 0.0
    push: float | None = None
    hint: bool = False


@dataclass
class Plan:
    """Plan of one life."""

    seed: int
    feed: FeedPlan
    store: StorePlan
    handler: HandlerPlan
    consumer: ConsumerPlan
    trouble: float = 100.0
    backlog: int = 0
    publications: list[Publication] = field(default_factory=list)
    sessions: list[SessionPlan] = field(default_factory=list)
    last: SessionPlan = field(default_factory=lambda: SessionPlan("run", 0.0, "stop", []))

    def __str__(self) -> str:
        sessions = "; ".join(map(str, [*self.sessions, f"calm: {self.last.how}"]))
        parts = f"feed({self.feed}) store({self.store}) handler({self.handler}) consumer({self.consumer})"
        return f"{parts} backlog={self.backlog} trouble={self.trouble:.0f}s sessions({sessions})"
