"""Count and log what happens at a webhook.

A stranger can cause most failures at will. So the first of each kind is logged at its level, the others at DEBUG;
and an error of the caller's code is logged by its class only, since its text may hold a secret.
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
    """What a webhook has seen since it was made.

    Attributes:
        received: Requests, of any kind.
        woken: Authentic pushes that woke somebody.
        unheard: Authentic pushes for which nobody listened: each connect polls anyway.
        ignored: Authentic requests of which the hint said that they are no push (a ping).
        controls: Authentic requests that spoke of the subscription itself.
        replayed: Authentic requests that this process had received before; they wake no consumer.
        handshakes: Questions that were answered.
        unknown_names: Names in pushes for which nobody listens.
        refused: Requests that were not authentic: 401.
        not_ready: Requests that could not be verified while no consumer kept the subscription: 503.
        limited: Requests beyond the rate: 429. Pushes may have been among them.
        busy: Requests beyond the bodies that are in hand at a time: 503. Likewise.
        too_large: Requests with a body beyond `max_body`: 413.
        too_slow: Requests whose body took longer than `body_timeout`: 408.
        gone: Requests whose sender hung up before their body was whole.
        unasked: Requests that are neither a push nor a question that is expected: 405.
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
"""Seconds for an async verifier or handshake, since a body is held meanwhile. Dropbox, Graph and GitHub wait 10 s
for a response."""


class WebhookJournal:
    """Counts what happens at a webhook, calls the caller's functions, and logs what goes wrong.

    Args:
        name: The webhook's.
        log: Where it is logged: the first of each kind as a warning or info, the others for debugging.

    Attributes:
        name: As given.
    """

    def __init__(self, name: str, log: ConsumerLog) -> None:
        self.name = name
        self._log = log
        self._logged: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, name: str, by: int = 1) -> None:
        """Increase a counter, named as the field of `WebhookCounters`. From any thread."""
        with self._lock:
            self._counts[name] += by

    def counters(self) -> WebhookCounters:
        """Return a snapshot. From any thread."""
        with self._lock:
            return WebhookCounters(**self._counts)

    async def call_safely(
        self, what: str, call: Callable[[], _T | Awaitable[_T]], *, check: Callable[[_T], _T]
    ) -> _T | None:
        """Call a function, async or not, and return its checked result; None if it fails.

        Args:
            what: The kind of function, for the log.
            call: Calls it.
            check: Returns the result, or raises if it has the wrong type.
        """
        try:
            result = call()
            if inspect.isawaitable(result):
                with anyio.fail_after(CALLBACK_TIMEOUT):
                    result = await result
            return check(cast("_T", result))
        except Exception as error:  # noqa: BLE001  # a stranger may have caused it, whatever it is
            self.log_failure(what, error)
            return None

    def log_failure(self, what: str, error: Exception) -> None:
        """Log that a function of the caller failed."""
        level = self.level(what, logging.WARNING)
        self._log.log(level, "%s: %s failed with %s", self.name, what, type(error).__name__)

    def log_flood(self) -> PushToPollError:
        """Log that requests are refused that may be pushes; return why the channel is down until that ends."""
        self._log.log(
            self.level("flood", logging.WARNING),
            "%s: requests are refused, since more come than are looked at; pushes may be among them",
            self.name,
        )
        return PushToPollError(
            f"{self.name}: requests are refused, since more come than are looked at; pushes may be among them"
        )

    def level(self, what: str, first: int) -> int:
        """Return the level for a line: `first` for the first of its kind, then DEBUG."""
        level = logging.DEBUG if what in self._logged else first
        self._logged.add(what)
        return level
