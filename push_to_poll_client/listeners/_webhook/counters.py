"""Count and log the requests of a webhook.

A stranger can cause most failures at will. So the first failure of each kind is logged at its level and the others
at DEBUG. An error of the caller's code is logged by its class only, since its text may hold a secret.
"""

import inspect
import logging
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import anyio

from push_to_poll_client._exceptions import PushToPollError
from push_to_poll_client._log import ConsumerLog


@dataclass(frozen=True, slots=True)
class WebhookCounters:
    """Counters of a webhook since it was created.

    Attributes:
        received: All requests.
        woken: Authentic pushes that woke a consumer.
        unheard: Authentic pushes while no consumer listened; each consumer polls when it connects.
        ignored: Authentic requests that the hint declared not to be a push (a ping).
        controls: Authentic requests about the subscription itself.
        replayed: Authentic requests that this process had already received; they wake no consumer.
        handshakes: Handshakes answered.
        unknown_names: Names in pushes for which no consumer listens.
        refused: Requests that were not authentic (401).
        not_ready: Requests that could not be verified while no consumer kept the subscription (503).
        limited: Requests beyond the rate limit (429). Pushes may be among them.
        busy: Requests beyond the limit of bodies in memory (503). Pushes may be among them.
        too_large: Requests with a body larger than `max_body` (413).
        too_slow: Requests whose body took longer than `body_timeout` (408).
        gone: Requests whose sender disconnected before the body was complete.
        unasked: Requests that are neither a push nor an expected handshake (405).
    """

    received: int = 0
    woken: int = 0
    unheard: int = 0
    ignored: int = 0
    controls: int = 0
    replayed: int = 0
    handshakes: int = 0
    unknown_names: int = 0
    refused: int = 0
    not_ready: int = 0
    limited: int = 0
    busy: int = 0
    too_large: int = 0
    too_slow: int = 0
    gone: int = 0
    unasked: int = 0


_T = TypeVar("_T")

CALLBACK_TIMEOUT = 8.0
"""Seconds for an async verifier or handshake. Dropbox, Graph and GitHub wait 10 s for a response."""


class WebhookJournal:
    """Counts requests, calls the caller's functions, and logs failures. `name` is the webhook's."""

    def __init__(self, name: str, log: ConsumerLog) -> None:
        self.name = name
        self._log = log
        self._logged: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, name: str, by: int = 1) -> None:
        """Increase the counter of that name in `WebhookCounters`. Thread-safe."""
        with self._lock:
            self._counts[name] += by

    def counters(self) -> WebhookCounters:
        """Return a snapshot. Thread-safe."""
        with self._lock:
            return WebhookCounters(**self._counts)

    async def call_safely(
        self, what: str, call: Callable[[], _T | Awaitable[_T]], *, check: Callable[[_T], _T]
    ) -> _T | None:
        """Return the checked result of a function, async or not; None if it fails. The log calls it `what`."""
        try:
            result = call()
            if inspect.isawaitable(result):
                with anyio.fail_after(CALLBACK_TIMEOUT):
                    result = await result
            return check(cast("_T", result))
        except Exception as error:  # noqa: BLE001  # a stranger's request may have caused any error
            self.log_failure(what, error)
            return None

    def log_failure(self, what: str, error: Exception) -> None:
        level = self.level(what, logging.WARNING)
        self._log.log(level, "%s: %s failed with %s", self.name, what, type(error).__name__)

    def log_flood(self) -> PushToPollError:
        """Log that pushes may be among rejected requests; return the error for the status of the channel."""
        self._log.log(
            self.level("flood", logging.WARNING),
            "%s: rate limit reached, rejecting requests; pushes may be among them",
            self.name,
        )
        return PushToPollError(f"{self.name}: rate limit reached, rejecting requests; pushes may be among them")

    def level(self, what: str, first: int) -> int:
        """Return `first` for the first line of its kind, then DEBUG."""
        level = logging.DEBUG if what in self._logged else first
        self._logged.add(what)
        return level
