"""Faults and counters of the reference server, for a test to set and to read."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Literal, TypeAlias, get_type_hints

import msgspec

SpoiledKind: TypeAlias = Literal["type", "encoding", "truncated", "bomb", "garbage"]


@dataclass(slots=True)
class Faults:
    """The switches. Set them at any time, from any thread, or by `POST /faults` with a JSON object of their names.

    What ends in `_next` counts down with each time it happened. Where several apply to one fetch, the one that
    stands first here happens.

    Attributes:
        authorization: The value of the `Authorization` header that feed and push channels want, else they answer
            401; `None` wants none. Webhooks are signed instead.
        fail_next: How many of the next fetches are answered with `fail_status`.
        fail_status: The status of such an answer; 304 is one, too.
        retry_after: `Retry-After` of such an answer, and of one with `refuse_status`: seconds, or any text (a
            date, nonsense); `None` sends none.
        redirect_next: How many of the next fetches are answered with 307.
        redirect_to: Where such an answer points.
        latency: Seconds between the freezing of an answer and its departure.
        cut_next: How many of the next bodies end in the middle: the length is announced, half is sent, and the
            connection closed.
        stall_next: How many of the next bodies stop in the middle, until the client or the server gives up.
        spoil_next: How many of the next pages are spoiled as `spoil_as` says.
        spoil_as: "type": a login page in HTML; "encoding": one that nobody asked for; "truncated": half of a gzip
            body, whose length is right; "bomb": 64 MiB of zeros in 65,000 bytes of gzip; "garbage": no JSON.
        repeat_next: How many of the next pages are the page before, whatever is asked.
        grow_next: Before how many of the next pages a page of events is published, without a push: a feed that
            grows as fast as it is read has no end.
        undecodable_next: How many of the next published events are JSON but no CloudEvents. They stay that way.
        drop_fraction: Which part of the pushes is dropped, evenly: 0.2 drops each fifth.
        drop_next: How many of the next pushes are dropped.
        push_latency: Seconds from a publication to its push, on every channel.
        push_twice_next: How many of the next pushes come twice on each connection.
        forge_next: How many of the next requests of webhooks are signed by somebody else.
        early_next: How many of the next long polls on `/changes` are answered at once, as if nothing were new.
        backoff: Seconds for which the answers of `/changes` ask to be left alone; `None`: they do not.
        refuse_status: The status with which the push channels refuse to open; `None` does not refuse.
        accept_and_close: The code with which a websocket is closed as soon as it was accepted; an event stream
            ends as soon, and a long poll on `/changes` is answered as if nothing were new. `None` leaves them
            open.
        half_open: Connections of the push channels stay open and say nothing: no push, no keep-alive, no answer.
            No webhook is sent.
            `serve_in_thread` ignores whatever a websocket's client sends, pings and close frames included. Under
            another ASGI server pongs are still sent, since no application sees a ping.
    """

    authorization: str | None = None
    fail_next: int = 0
    fail_status: int = 503
    retry_after: float | str | None = None
    redirect_next: int = 0
    redirect_to: str = "/feed"
    latency: float = 0.0
    cut_next: int = 0
    stall_next: int = 0
    spoil_next: int = 0
    spoil_as: SpoiledKind = "garbage"
    repeat_next: int = 0
    grow_next: int = 0
    undecodable_next: int = 0
    drop_fraction: float = 0.0
    drop_next: int = 0
    push_latency: float = 0.0
    push_twice_next: int = 0
    forge_next: int = 0
    early_next: int = 0
    backoff: float | None = None
    refuse_status: int | None = None
    accept_and_close: int | None = None
    half_open: bool = False
    _dropped: float = field(default=0.0, init=False, repr=False)

    def set(self, **changes: object) -> None:
        """Set the switches named.

        Raises:
            ValueError: There is no switch of such a name; nothing was set.
            msgspec.ValidationError: A value is of the wrong type; nothing was set.
        """
        types = get_type_hints(Faults)
        known = {switch.name for switch in fields(self) if switch.init}
        if not known.issuperset(changes):
            raise ValueError(f"No such fault: {sorted(changes.keys() - known)}. There are: {sorted(known)}.")
        values = {name: msgspec.convert(value, types[name]) for name, value in changes.items()}
        for name, value in values.items():
            setattr(self, name, value)

    def clear(self) -> None:
        """Let everything go well again."""
        for switch in fields(self):
            setattr(self, switch.name, switch.default)

    def takes(self, name: str) -> bool:
        """Whether the fault that counts down as `name` happens now; counts it."""
        left: int = getattr(self, name)
        if left > 0:
            setattr(self, name, left - 1)
        return left > 0

    def drops_push(self) -> bool:
        """Whether the push that is due now is dropped; counts it."""
        if self.takes("drop_next"):
            return True
        self._dropped += self.drop_fraction
        if self._dropped < 1 - 1e-9:  # five fifths may add up to a little less than one
            return False
        self._dropped -= 1
        return True


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

    def count_status(self, counter: dict[int, int], status: int) -> None:
        """Count an answer, in one of the counters by status."""
        with self._changed:
            counter[status] = counter.get(status, 0) + 1
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
