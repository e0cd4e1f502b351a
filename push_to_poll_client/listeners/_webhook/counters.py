"""HOW OFTEN what happened at a webhook."""

import threading
from collections import Counter
from dataclasses import dataclass

__all__ = ["Tally", "WebhookCounters"]


@dataclass(frozen=True, slots=True)
class WebhookCounters:
    """What a webhook has seen since it was made.

    Attributes:
        received: Requests, of any kind.
        woken: Authentic pushes that woke somebody.
        unheard: Authentic pushes for which nobody listened: each connect polls anyway.
        ignored: Authentic requests of which the hint said that they are no push (a ping).
        controls: Authentic requests that spoke of the subscription itself.
        replayed: Authentic requests that had come before; they woke nobody.
        handshakes: Questions that were answered.
        unknown_names: Names in pushes for which nobody listens.
        refused: Requests that were not authentic: 401.
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
    limited: int = 0
    busy: int = 0
    too_large: int = 0
    too_slow: int = 0
    gone: int = 0
    unasked: int = 0


class Tally:
    """Counts, from any thread."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, name: str, by: int = 1) -> None:
        """Count one more.

        Args:
            name: A field of `WebhookCounters`.
            by: How many more.
        """
        with self._lock:
            self._counts[name] += by

    def counters(self) -> WebhookCounters:
        """A snapshot."""
        with self._lock:
            return WebhookCounters(**self._counts)
