"""WHAT TO DO WITH MESSAGES, as the user said it: wrong arguments are found here, at construction."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tenacity import AsyncRetrying

from push_to_poll_client._arguments import check_number
from push_to_poll_client._polling.fetches import check_latest
from push_to_poll_client._polling.position import LATEST, OnCursorExpired, Resync, check_cursor
from push_to_poll_client._processing.failures import Failures, OnFailure
from push_to_poll_client._processing.handler import BatchHandler, Handler
from push_to_poll_client._processing.hooks import Hooks, check_hooks
from push_to_poll_client._processing.intake import DedupeKey, Fingerprint, Key
from push_to_poll_client._protocols import Feed, Store
from push_to_poll_client._types import Cursor

__all__ = ["Processing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Processing:
    """The arguments of a consumer that are about messages and positions; see there.

    Attributes:
        handler: Processes one message.
        batch: Processes several; `None`: there is but `handler`.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: It has no meaning, or two contradict each other.
    """

    handler: Handler
    batch: BatchHandler | None
    retry: AsyncRetrying | None
    on_failure: OnFailure
    batch_size: int
    batch_wait: float
    concurrency: int
    key: Key | None
    dedupe_key: DedupeKey | None
    fingerprint: Fingerprint | None
    prefetch: int
    start: Cursor
    on_cursor_expired: OnCursorExpired
    overlap: float
    overlap_cursors: int
    hooks: Hooks | None

    def __post_init__(self) -> None:
        for name in ("batch_size", "concurrency"):
            _check_count(name, getattr(self, name), least=1)
        for name in ("prefetch", "overlap_cursors"):
            _check_count(name, getattr(self, name), least=0)
        for name in ("batch_wait", "overlap"):
            check_number(name, getattr(self, name))
        for name in ("key", "dedupe_key", "fingerprint"):
            _check_function(name, getattr(self, name))
        Failures(self.retry, self.on_failure)
        check_hooks(self.hooks)
        self._check_concurrency()
        self._check_position()

    def _check_concurrency(self) -> None:
        if self.concurrency > 1 and self.key is None:
            raise ValueError(
                f"concurrency={self.concurrency} needs key=: what messages share that must keep their order, as "
                "key=lambda message: message.subject; where no order matters, key=lambda message: message.id"
            )

    def _check_position(self) -> None:
        check_cursor("start", self.start)
        said = self.on_cursor_expired
        if said != "stop" and not isinstance(said, Resync) and not callable(said):
            raise TypeError(f"on_cursor_expired must be 'stop', a Resync or a function, not {said!r}")

    def check_parts(self, feed: Feed, store: Store) -> None:
        """Check it against the parts.

        Raises:
            ValueError: The feed has no end to start at, or the store cannot do several messages at a time.
        """
        says_latest = isinstance(self.on_cursor_expired, Resync) and self.on_cursor_expired.to == LATEST
        if self.start == LATEST or says_latest:
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
    def overlaps(self) -> bool:
        """Whether polls start behind the saved cursor."""
        return bool(self.overlap or self.overlap_cursors)

    @property
    def plain(self) -> bool:
        """Whether messages are simply done one after the other."""
        return self.concurrency == 1 and not self.batch and not self.fingerprint and not self.hooks


def _check_count(name: str, value: Any, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


def _check_function(name: str, value: Callable[..., Any] | None) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a function of a message or None, not {value!r}")
