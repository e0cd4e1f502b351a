"""What the reference server counts, so that a test need not believe the client's own counters."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields

__all__ = ["PushRecord", "Stats"]


@dataclass(slots=True)
class PushRecord:
    """The push of one publication.

    Attributes:
        cursor: The id of the newest event then.
        at: When, in seconds on the clock of `time.monotonic()`.
        dropped: Whether a fault dropped it.
        sent: How many connections it was sent to, those of long polls and receivers of webhooks included.
        times: How often on each.
    """

    cursor: str
    at: float
    dropped: bool
    sent: int = 0
    times: int = 1


@dataclass(slots=True)
class Stats:
    """The counters, from the first start of the server on.

    Attributes:
        published: Events.
        fetches: Requests to the feed that arrived, whatever became of them.
        fetched_at: When each arrived, in seconds on the clock of `time.monotonic()`.
        statuses: Answers of the feed by status.
        empty: Answers of the feed without an event. Each poll that catches up ends with one.
        held: Long polls that are held now.
        pushes_sent: Pushes sent to websockets, event streams and long polls, and begun to be sent by webhook, all
            connections together.
        pushes_dropped: Publications whose push was dropped.
        websockets_accepted: Websockets accepted.
        websockets_refused: Websockets refused.
        websockets_open: Websockets that are open now.
        streams_accepted: Event streams begun.
        streams_refused: Event streams refused.
        streams_open: Event streams that are open now.
        long_polls: Requests for `/changes`.
        long_polls_held: Those that are held now.
        webhooks: Requests of webhooks that are over, by the status of their answer; 0: there was none.
        webhooks_given_up: Pushes by webhook that no attempt delivered.
    """

    published: int = 0
    fetches: int = 0
    fetched_at: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    empty: int = 0
    held: int = 0
    pushes_sent: int = 0
    pushes_dropped: int = 0
    websockets_accepted: int = 0
    websockets_refused: int = 0
    websockets_open: int = 0
    streams_accepted: int = 0
    streams_refused: int = 0
    streams_open: int = 0
    long_polls: int = 0
    long_polls_held: int = 0
    webhooks: dict[int, int] = field(default_factory=dict)
    webhooks_given_up: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False, repr=False)

    def as_dict(self) -> dict[str, object]:
        """The counters by name."""
        return {counter.name: getattr(self, counter.name) for counter in fields(self) if counter.init}

    def count(self, **steps: int) -> None:
        """Add to the counters named."""
        with self._changed:
            for name, step in steps.items():
                setattr(self, name, getattr(self, name) + step)
            self._changed.notify_all()

    def count_fetch(self, at: float) -> None:
        """Count a request that arrived at this time."""
        self.fetched_at.append(at)
        self.count(fetches=1)

    def count_status(self, status: int) -> None:
        """Count an answer of the feed."""
        with self._changed:
            self.statuses[status] = self.statuses.get(status, 0) + 1
            self._changed.notify_all()

    def count_webhook(self, status: int) -> None:
        """Count an answer to a webhook."""
        with self._changed:
            self.webhooks[status] = self.webhooks.get(status, 0) + 1
            self._changed.notify_all()

    def wait_for(self, happened: Callable[["Stats"], object], *, timeout: float = 60.0) -> None:
        """Block until something is so, in another thread than the server's; never wait for it with a sleep.

        Args:
            happened: Looks at the counters.
            timeout: Seconds. The default is no more than a guard against a test that hangs.

        Raises:
            TimeoutError: It was not so in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: happened(self), timeout):
                raise TimeoutError(f"It did not happen within {timeout} s: {self}")
