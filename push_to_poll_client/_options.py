"""The options of a consumer: their types, and their checks at construction.

The user's mistakes are found here, when the consumer is made, and not at the first message.
"""

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

OTHER_WORDS = {"beginning": INCEPTION, "earliest": INCEPTION, "start": INCEPTION, "end": LATEST}
"""Words for the two positions from other libraries. Words that an API may take as a cursor are not among them:
"now" (CouchDB, Durable Streams), "all" (ntfy), "newest" and "oldest" (Zulip)."""


def check_cursor(name: str, value: object, *, optional: bool = False) -> None:
    """Check an argument that is a position in the feed.

    A cursor is opaque, so any string may be one. But many servers answer a cursor that they do not know with
    nothing, or with everything; so a word that is most likely meant for "inception" or "latest" is refused.

    Args:
        name: The argument's name.
        value: The value given.
        optional: Whether it may be `None`.

    Raises:
        TypeError: The value has the wrong type.
        ValueError: The value is most likely meant for "inception" or "latest".
    """
    if value is None and optional:
        return
    if not isinstance(value, str):
        raise TypeError(f"{name} must be 'inception', 'latest' or a cursor, not {value!r}")
    meant = meant_position(value)
    if meant not in {None, value}:
        raise ValueError(
            f"{name} must be 'inception', 'latest' or a cursor of the feed, got {value!r}; use {meant!r}"
        )


def meant_position(value: str) -> str | None:
    """Return "inception" or "latest" if the value is one of them, or is most likely meant for it."""
    typed = value.strip().lower()
    return OTHER_WORDS.get(typed) or next((word for word in (INCEPTION, LATEST) if _is_slip(typed, word)), None)


def _is_slip(typed: str, word: str) -> bool:
    """Return True for the word itself, and with one letter wrong, missing, added, or swapped with the next."""
    shorter = min(len(typed), len(word))
    same = next((place for place in range(shorter) if typed[place] != word[place]), shorter)
    rest, right = typed[same:], word[same:]
    swapped = right[1::-1] + right[2:]
    return rest[1:] in {right, right[1:]} or rest in {right[1:], swapped}


@dataclass(frozen=True, slots=True)
class Resync:
    """Where to go on, and whether what comes again is processed again.

    Attributes:
        to: A cursor, or "inception": the beginning of the feed, or "latest": its end.
        forget: True for a feed that was reset, and may use ids again: a new dedupe epoch begins. False for one
            that repeats what it has: dedupe drops what was processed, as long as the store keeps its record.

    Raises:
        TypeError: One of them is of the wrong kind.
        ValueError: `to` is most likely meant for "inception" or "latest".
    """

    to: Cursor
    forget: bool

    def __post_init__(self) -> None:
        check_cursor("to", self.to)
        if not isinstance(self.forget, bool):
            raise TypeError(f"forget must be True or False, not {self.forget!r}")


ResyncFunction: TypeAlias = Callable[[CursorExpired], Resync | Awaitable[Resync | None] | None]

OnCursorExpired: TypeAlias = Literal["stop"] | Resync | ResyncFunction
"""What to do when the feed no longer knows the cursor; a function, `async` or not, returns `None` to stop."""


FINAL_ACTIONS = (FailureAction.STOP, FailureAction.DEAD_LETTER, FailureAction.SKIP)

FinalAction: TypeAlias = FailureAction | Literal["stop", "dead_letter", "skip"]
"""What becomes of a message that failed for good: all but `FailureAction.RETRY`."""

OnFailure: TypeAlias = (
    FinalAction | Callable[[M | UnreadableMessage, Exception], FinalAction | Awaitable[FinalAction]]
)
"""One for all messages, or a function that chooses one for each message and its exception."""


def check_final_action(action: object) -> FailureAction:
    """Return what becomes of a message that failed for good.

    Raises:
        ValueError: The action is unknown, or `FailureAction.RETRY`.
    """
    if action not in FINAL_ACTIONS:
        names = ", ".join(repr(str(one)) for one in FINAL_ACTIONS)
        raise ValueError(f"on_failure must be or return one of {names}, not {action!r}")
    return FailureAction(str(action))


DedupeKey: TypeAlias = Callable[[M], str]
OrderingKey: TypeAlias = Callable[[M], Hashable]
Fingerprint: TypeAlias = Callable[[M], bytes]


ProcessFunction: TypeAlias = Callable[[M], Awaitable[None] | None]

Handler: TypeAlias = Callable[[M], Awaitable[None]]
BatchHandler: TypeAlias = Callable[[Sequence[M]], Awaitable[None]]


def check_latest(feed: Feed) -> None:
    """Check that the feed can tell the cursor of its end.

    Raises:
        ValueError: The feed has no `latest()`.
    """
    if not callable(getattr(feed, "latest", None)):
        text = f"{type(feed).__name__} has no latest(), so nothing can start at its end"
        raise ValueError(text)  # noqa: TRY004  # the option is wrong for this feed; the feed's type is fine


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a consumer, checked one by one and against each other. `Consumer` documents most of them.

    Attributes:
        handler: Processes one message.
        batch_handler: Processes several messages; `None` if there is only `handler`.

    Raises:
        TypeError: An option has the wrong type.
        ValueError: An option is out of range, or two contradict each other.
    """

    # Any: the consumer knows the type of its messages, what is below it only that they are messages.
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
    hooks: Hooks | None

    def __post_init__(self) -> None:
        self._check_numbers()
        for name in ("ordering_key", "dedupe_key", "fingerprint"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be a function of a message or None, not {value!r}")
        if self.retry is not None and not isinstance(self.retry, AsyncRetrying):
            raise TypeError(f"retry must be a tenacity.AsyncRetrying or None, not {self.retry!r}")
        if not callable(self.on_failure):
            check_final_action(self.on_failure)
        if self.concurrency > 1 and self.ordering_key is None:
            raise ValueError(
                f"concurrency={self.concurrency} needs ordering_key=: what messages share that must keep their "
                "order, as ordering_key=lambda message: message.subject; where no order matters, "
                "ordering_key=lambda message: message.id"
            )
        check_cursor("start", self.start)
        expired = self.on_cursor_expired
        if expired != "stop" and not isinstance(expired, Resync) and not callable(expired):
            raise TypeError(f"on_cursor_expired must be 'stop', a Resync or a function, not {expired!r}")

    def _check_numbers(self) -> None:
        for name in ("fallback_interval", "degraded_interval", "rate"):
            check_number(name, getattr(self, name), above_zero=True, optional=True)
        for name in ("wake_delay", "commit_interval", "shutdown_timeout", "batch_wait", "overlap"):
            check_number(name, getattr(self, name))
        check_number("max_poll_time", self.max_poll_time, above_zero=True)
        for name in ("burst", "batch_size", "concurrency"):
            check_count(name, getattr(self, name))
        # The rate must allow the polls of the timer, and a wake must not be slower than the timer (G4).
        for name in ("fallback_interval", "degraded_interval"):
            interval = getattr(self, name)
            if interval is None:
                continue
            if self.rate is not None and interval * self.rate < 1:
                raise ValueError(f"{name}={interval} asks for more polls than rate={self.rate} a second allows")
            if interval < self.wake_delay:
                raise ValueError(f"{name}={interval} is shorter than wake_delay={self.wake_delay}")

    def check_parts(self, feed: Feed, store: Store, listeners: Sequence[Listener]) -> None:
        """Check the options against the feed, the store and the listeners.

        Raises:
            ValueError: The feed cannot tell its end to start there, the store cannot process several messages at a
                time, or lost pushes would not be noticed.
        """
        if listeners and self.fallback_interval is None:  # a push channel loses pushes without a sign (G4)
            raise ValueError(
                "fallback_interval=None together with listeners would lose every message whose push is lost; "
                "give the longest delay in seconds that is still acceptable"
            )
        resyncs_to_latest = isinstance(self.on_cursor_expired, Resync) and self.on_cursor_expired.to == LATEST
        if self.start == LATEST or resyncs_to_latest:
            check_latest(feed)
        one_at_a_time = getattr(store, "transactional", False) and not getattr(
            store, "concurrent_transactions", False
        )
        if self.concurrency > 1 and one_at_a_time:
            raise ValueError(
                f"concurrency={self.concurrency} on a transactional {type(store).__name__}, which has one "
                "transaction at a time; use concurrency=1, or a store with several connections"
            )

    @property
    def plain(self) -> bool:
        """Whether messages are processed one by one, without batches, fingerprints or hooks."""
        return self.concurrency == 1 and not self.batch_handler and not self.fingerprint and not self.hooks


@dataclass(eq=False, repr=False)
class SessionPart:
    """What each part of a session works with.

    Attributes:
        session: The claimed name, with its saved progress.
        stats: Counts for the status, and tells the hooks.
        clock: The event loop's clock.
    """

    options: Options
    session: Session
    stats: ConsumerStats
    clock: Clock
