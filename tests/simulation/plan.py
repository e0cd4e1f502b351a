"""What is to happen in one life."""

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
    """Shows the fields that differ from their defaults."""

    def __str__(self) -> str:
        shown = (f for f in fields(self) if f.default != getattr(self, f.name) and f.repr)  # type: ignore[arg-type]
        return " ".join(f"{f.name}={_short(getattr(self, f.name))}" for f in shown)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass
class FeedPlan(Described):
    """The server.

    Attributes:
        cursors: Where cursors are: on each "message", on each "page", at the end of a "chain".
        tokens: Whether `Page.next` is a token, and not the cursor of the page.
        page_size: Messages of a page at most.
        latency: Seconds that an answer travels.
        late: Seconds after which a message becomes visible at the latest.
        late_share: Share of the messages that are late.
        filtered: Share of the entries that the server leaves out, page by page.
        repeats: Share of the messages that are published again.
        max_wait: Seconds for which the server says that it can hold an answer.
        holding: What it does then: "hold", "early" or "refuse".
        read_ahead: As for a feed.
        ends_empty: Whether each page with messages has a `next`.
        poll_interval: Seconds that each page asks for during trouble.
        weather: Share of the requests that fail at any time, also when all is calm.
        failing: Share of the requests that fail during trouble.
        failing_asks: Seconds that some failures ask to be left alone.
        refused: Share of the failures that are refusals.
        slow: Share of the answers that take `slow_latency` during trouble.
        outages: When the server is down, in seconds from the start.
        expires: When cursors expire: the time, whether all of them or old ones, whether a start is offered.
        expired_asks: Seconds that an expired cursor asks to be left alone.
        tokens_expire: When page tokens expire.
        restarts: Share of further pages that make the chain begin again, during trouble.
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
    """The store: shares of its calls that fail, are slow, or hang for a while, during trouble.

    Attributes:
        failing: Share of the calls that fail.
        for_good: Share of these failures that the store does not call passing.
        slow: Share of the calls that take `slow_time`, in seconds.
        hanging: Share of the calls that take `hanging_time`, in seconds.
        outages: When all calls fail, in seconds from the start.
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
    """The user's handler.

    Attributes:
        takes: Seconds for each message, or batch.
        failing: Share of the messages that fail at first.
        attempts: How often such a message fails at most.
        poison: Share of the messages that fail until all is calm.
        verdicts: What failing messages may raise.
        retry_after: Seconds of each `RetryMessage`.
        overlong: Share of the calls that take longer than `shutdown_timeout` during trouble.
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
    """The consumer's options. `retry_wait` is the longest wait of its `retry`."""

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
    flush_interval: float = 0.05
    shutdown_timeout: float = 10.0
    start: str = "inception"
    on_cursor_expired: str = "stop"
    listener: bool = False
    hooks: bool = False

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of `Consumer`."""
        names = (
            "batch_size", "batch_wait", "concurrency", "overlap", "rate", "burst", "fallback_interval",
            "degraded_interval", "wake_delay", "max_poll_time", "flush_interval", "shutdown_timeout", "start",
        )  # fmt: skip
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        options["on_cursor_expired"] = EXPIRED_POLICIES[self.on_cursor_expired]
        options["on_failure"] = _policy_by_id if self.on_failure == "mixed" else self.on_failure
        if self.retry != "default":
            options["retry"] = RETRIES[self.retry]
        if self.concurrency > 1:
            options["key"] = lambda message: int(message.id) % 7
        return options


def share(*what: object) -> float:
    """Return a number from 0 to 1 that looks random, and is the same for the same arguments."""
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
    """What a caller does at a time: seconds after the session began."""

    at: float
    what: str
    value: float = 0.0


@dataclass
class SessionPlan:
    """One consumer object, from its start to its end.

    Attributes:
        how: "run", or "cron": bare `poll_now()` again and again.
        lasts: Seconds.
        ends: How: "stop", "cancel", "native", or "crash".
        actions: What callers do meanwhile.
        every: Seconds between the polls of cron.
        timeout: The time-out of cron's polls.
        patience: Seconds after which cron cancels its call.
        same_object: Whether all calls are of one consumer object, where one can be used again.
        catches_up: Whether cron calls `catch_up()` in place of `poll_now()`.
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
    """Messages that are published together, at a time, and the push that says so.

    Attributes:
        at: Seconds from the start of the life.
        count: How many.
        lag: Seconds until they are visible.
        push: Seconds from the publication to the push, below 0 if the push beats the messages; `None`: no push.
        hint: Whether the push names the newest cursor.
    """

    at: float
    count: int
    lag: float = 0.0
    push: float | None = None
    hint: bool = False


@dataclass
class Plan:
    """One life."""

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
