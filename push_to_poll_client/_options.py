"""The options of a consumer: their types, and their checks in the constructor."""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tenacity import AsyncRetrying

from push_to_poll_client._exceptions import CursorExpired
from push_to_poll_client._hooks import ConsumerStats, Hooks
from push_to_poll_client._protocols import Feed, Listener, Session, Store
from push_to_poll_client._types import Clock, Cursor, FailureAction, M, UnreadableMessage
from push_to_poll_client._validation import check_count, check_number

INCEPTION, LATEST = "inception", "latest"

# Words of other libraries for the two positions. Words that an API may use as a cursor are left out: "now"
# (CouchDB, Durable Streams), "all" (ntfy), "newest" and "oldest" (Zulip).
OTHER_WORDS = {"beginning": INCEPTION, "earliest": INCEPTION, "start": INCEPTION, "end": LATEST}


def check_cursor(name: str, value: object, *, optional: bool = False) -> None:
    """Check an argument that is a position in the feed."""
    # A cursor is opaque, so any string may be one. But many servers answer an unknown cursor with nothing, or with
    # everything. So a word that probably means "inception" or "latest" is rejected.
    if value is None and optional:
        return
    if not isinstance(value, str):
        raise TypeError(f"{name} must be 'inception', 'latest' or a cursor, got {value!r}")
    meant = meant_position(value)
    if meant not in {None, value}:
        raise ValueError(
            f"{name} must be 'inception', 'latest' or a cursor of the feed, got {value!r}; use {meant!r}"
        )


def meant_position(value: str) -> str | None:
    """Return "inception" or "latest" if the value is, or probably means, that word."""
    typed = value.strip().lower()
    return OTHER_WORDS.get(typed) or next((word for word in (INCEPTION, LATEST) if _is_slip(typed, word)), None)


def _is_slip(typed: str, word: str) -> bool:
    """Return True for the word with at most one typing error."""
    shorter = min(len(typed), len(word))
    same = next((place for place in range(shorter) if typed[place] != word[place]), shorter)
    rest, right = typed[same:], word[same:]
    swapped = right[1::-1] + right[2:]
    return rest[1:] in {right, right[1:]} or rest in {right[1:], swapped}


@dataclass(frozen=True, slots=True)
class Resync:
    """The place where a consumer continues after its cursor has expired.

    Attributes:
        to: A cursor, or "inception" (the beginning of the feed), or "latest" (its end).
        forget: True for a feed that was reset and may use ids again: a new dedupe epoch starts, so all messages
            are processed. False for a feed that repeats its messages: those with a record in the store are ignored
            as duplicates.

    Raises:
        TypeError: An attribute has the wrong type.
        ValueError: `to` is probably a misspelt "inception" or "latest".
    """

    to: Cursor
    forget: bool

    def __post_init__(self) -> None:
        check_cursor("to", self.to)
        if not isinstance(self.forget, bool):
            raise TypeError(f"forget must be True or False, got {self.forget!r}")


ResyncFunction: TypeAlias = Callable[[CursorExpired], Resync | Awaitable[Resync | None] | None]

OnCursorExpired: TypeAlias = Literal["stop"] | Resync | ResyncFunction
"""Action when the cursor has expired; a function returns `None` to stop."""


FINAL_ACTIONS = (FailureAction.STOP, FailureAction.DEAD_LETTER, FailureAction.SKIP)

FinalAction: TypeAlias = FailureAction | Literal["stop", "dead_letter", "skip"]
"""Action for a message that failed for good; `FailureAction.RETRY` is not allowed."""

OnFailure: TypeAlias = (
    FinalAction | Callable[[M | UnreadableMessage, Exception], FinalAction | Awaitable[FinalAction]]
)
"""One action for all messages, or a function that chooses one."""


def check_final_action(action: object) -> FailureAction:
    """Return the action as a `FailureAction`, or raise a `ValueError`."""
    if action not in FINAL_ACTIONS:
        names = ", ".join(repr(str(one)) for one in FINAL_ACTIONS)
        raise ValueError(f"on_failure must be or return one of {names}, got {action!r}")
    return FailureAction(str(action))


DedupeKey: TypeAlias = Callable[[M], str]
OrderingKey: TypeAlias = Callable[[M], Hashable]
Fingerprint: TypeAlias = Callable[[M], bytes]


ProcessFunction: TypeAlias = Callable[[M], Awaitable[None] | None]

Handler: TypeAlias = Callable[[M], Awaitable[None]]
BatchHandler: TypeAlias = Callable[[Sequence[M]], Awaitable[None]]


def check_latest(feed: Feed) -> None:
    """Raise a `ValueError` if the feed has no `latest()`."""
    if not callable(getattr(feed, "latest", None)):
        text = f"{type(feed).__name__} has no latest(), so 'latest' cannot be used; use 'inception' or a cursor"
        raise ValueError(text)  # noqa: TRY004  # the option is wrong for this feed; the feed's type is fine


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a consumer, checked alone and against each other. See `Consumer`."""

    # Any: only the consumer knows the type of its messages.
    handler: Handler[Any]
    batch_handler: BatchHandler[Any] | None
    fallback_interval: float | None
    degraded_interval: float | None
    rate: float | None
    burst: int
    wake_delay: float
    max_poll_time: float
    commit_interval: float
    shutdown_timeout: float
    retry: AsyncRetrying | None
    on_failure: OnFailure[Any]
    batch_size: int
    batch_wait: float
    concurrency: int
    ordering_key: OrderingKey[Any] | None
    dedupe_key: DedupeKey[Any] | None
    fingerprint: Fingerprint[Any] | None
    start: Cursor
    on_cursor_expired: OnCursorExpired
    overlap: float
    standby: bool
    hooks: Hooks | None

    def __post_init__(self) -> None:
        self._check_numbers()
        for name in ("ordering_key", "dedupe_key", "fingerprint"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be a function of a message or None, got {value!r}")
        if self.retry is not None and not isinstance(self.retry, AsyncRetrying):
            raise TypeError(f"retry must be a tenacity.AsyncRetrying or None, got {self.retry!r}")
        if not callable(self.on_failure):
            check_final_action(self.on_failure)
        if self.concurrency > 1 and self.ordering_key is None:
            raise ValueError(
                f"concurrency={self.concurrency} requires ordering_key=, a function that returns the same for "
                "messages that must keep their order, such as ordering_key=lambda message: message.subject; "
                "if no order matters, use ordering_key=lambda message: message.id"
            )
        check_cursor("start", self.start)
        expired = self.on_cursor_expired
        if expired != "stop" and not isinstance(expired, Resync) and not callable(expired):
            raise TypeError(f"on_cursor_expired must be 'stop', a Resync or a function, got {expired!r}")

    def _check_numbers(self) -> None:
        for name in ("fallback_interval", "degraded_interval", "rate"):
            check_number(name, getattr(self, name), above_zero=True, optional=True)
        for name in ("wake_delay", "commit_interval", "shutdown_timeout", "batch_wait", "overlap"):
            check_number(name, getattr(self, name))
        check_number("max_poll_time", self.max_poll_time, above_zero=True)
        for name in ("burst", "batch_size", "concurrency"):
            check_count(name, getattr(self, name))
        # The rate must allow the polls of the timer, and a wake must come sooner than the timer (G4).
        for name in ("fallback_interval", "degraded_interval"):
            interval = getattr(self, name)
            if interval is None:
                continue
            if self.rate is not None and interval * self.rate < 1:
                raise ValueError(
                    f"{name}={interval} is too short for rate={self.rate}; "
                    f"use at least 1 / rate, about {1 / self.rate:.3g} seconds"
                )
            if interval < self.wake_delay:
                raise ValueError(f"{name}={interval} must not be shorter than wake_delay={self.wake_delay}")

    def check_parts(self, feed: Feed, store: Store, listeners: Sequence[Listener]) -> None:
        """Check the options against the feed, the store and the listeners."""
        if listeners and self.fallback_interval is None:  # a push channel can lose pushes unnoticed (G4)
            raise ValueError(
                "fallback_interval=None cannot be used with listeners, because pushes can be lost; "
                "pass the longest acceptable delay in seconds"
            )
        resyncs_to_latest = isinstance(self.on_cursor_expired, Resync) and self.on_cursor_expired.to == LATEST
        if self.start == LATEST or resyncs_to_latest:
            check_latest(feed)
        one_at_a_time = getattr(store, "transactional", False) and not getattr(
            store, "concurrent_transactions", False
        )
        if self.concurrency > 1 and one_at_a_time:
            raise ValueError(
                f"concurrency={self.concurrency} cannot be used with a transactional {type(store).__name__}: it "
                "has one transaction at a time; use concurrency=1, or a store with several connections"
            )

    @property
    def plain(self) -> bool:
        """True if messages are processed one by one, without batches, fingerprints or hooks."""
        return self.concurrency == 1 and not self.batch_handler and not self.fingerprint and not self.hooks


@dataclass(eq=False, repr=False)
class SessionPart:
    options: Options
    session: Session
    stats: ConsumerStats
    clock: Clock
