"""Faults and counters of the reference server."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Literal, TypeAlias, get_type_hints

import msgspec

SpoiledKind: TypeAlias = Literal["type", "encoding", "truncated", "bomb", "garbage"]


@dataclass(slots=True)
class Faults:
    """Faults to switch on, at any time and from any thread, or by `POST /faults` with a JSON object.

    A fault whose name ends in `_next` counts down each time it happens. If several faults apply to one fetch, the
    first one in this list happens.

    Attributes:
        authorization: Value of the `Authorization` header that feed and push channels require; without it they
            answer 401. None requires nothing. Webhooks are signed instead.
        fail_next: Number of fetches answered with `fail_status`.
        fail_status: Status of these answers. 304 is possible too.
        retry_after: `Retry-After` of these answers and of those with `refuse_status`: seconds, or any text (a
            date, nonsense). None sends no header.
        redirect_next: Number of fetches answered with 307.
        redirect_to: Target of these redirects.
        latency: Seconds between the freezing of an answer and its departure.
        cut_next: Number of bodies that are cut: the full length is announced, half is sent, and the connection is
            closed.
        stall_next: Number of bodies that stop halfway, until the client disconnects or the server stops.
        spoil_next: Number of pages spoiled as `spoil_as` says.
        spoil_as: "type": a login page in HTML; "encoding": an encoding that was not requested; "truncated": half
            of a gzip body with the right length; "bomb": 64 MiB of zeros in 65,000 bytes of gzip; "garbage": not
            JSON.
        repeat_next: Number of pages that repeat the page before, whatever the cursor.
        grow_next: Number of pages before which a page of events is published, without a push, so that the feed
            grows as fast as it is read.
        undecodable_next: Number of published events that are JSON but not CloudEvents. They stay so.
        drop_fraction: Share of the pushes that is dropped, evenly: 0.2 drops each fifth.
        drop_next: Number of pushes that are dropped.
        push_latency: Seconds from a publication to its push, on every channel.
        push_twice_next: Number of pushes that are sent twice on each connection.
        forge_next: Number of webhook requests with a wrong signature.
        early_next: Number of long polls on `/changes` answered at once as if nothing were new.
        backoff: Seconds until the next request that answers of `/changes` request. None requests nothing.
        refuse_status: Status with which the push channels reject connections. None accepts them.
        accept_and_close: Code with which a websocket is closed directly after it was accepted. An event stream
            ends then too, and a long poll on `/changes` is answered as if nothing were new. None keeps them open.
        half_open: Connections of the push channels stay open without any data: no push, no keep-alive, no answer.
            No webhook is sent. `serve_in_thread` ignores all data of a websocket's client, including pings and
            close frames. Another ASGI server still sends pongs, because an application sees no pings.
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
        """Set faults by name.

        Raises:
            ValueError: A name is unknown; nothing was set.
            msgspec.ValidationError: A value has the wrong type; nothing was set.
        """
        types = get_type_hints(Faults)
        known = {switch.name for switch in fields(self) if switch.init}
        if not known.issuperset(changes):
            raise ValueError(f"unknown faults {sorted(changes.keys() - known)}; use some of {sorted(known)}")
        values = {name: msgspec.convert(value, types[name]) for name, value in changes.items()}
        for name, value in values.items():
            setattr(self, name, value)

    def clear(self) -> None:
        """Switch off all faults."""
        for switch in fields(self):
            setattr(self, switch.name, switch.default)

    def takes(self, name: str) -> bool:
        """Return True if the fault `name` happens now, and count it down."""
        left: int = getattr(self, name)
        if left > 0:
            setattr(self, name, left - 1)
        return left > 0

    def drops_push(self) -> bool:
        """Return True if the current push is dropped, and count it."""
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
        cursor: The id of the newest event at that time.
        at: Time of the push, on the clock of `time.monotonic()`.
        dropped: True if a fault dropped the push.
        sent: Number of connections that got the push, including long polls and receivers of webhooks.
        times: Number of times that each connection got it.
    """

    cursor: str
    at: float
    dropped: bool
    sent: int = 0
    times: int = 1


@dataclass(slots=True)
class Stats:
    """Counters since the first start of the server.

    Attributes:
        published: Published events.
        fetches: Requests to the feed.
        fetched_at: Arrival time of each request, on the clock of `time.monotonic()`.
        statuses: Answers of the feed by status.
        empty: Answers of the feed without an event. Each poll that catches up ends with one.
        held: Long polls that are held now.
        pushes_sent: Pushes sent on all connections: websockets, event streams, long polls, and webhooks at their
            first attempt.
        pushes_dropped: Publications whose push was dropped.
        websockets_accepted: Websockets accepted.
        websockets_refused: Websockets rejected.
        websockets_open: Websockets that are open now.
        streams_accepted: Event streams started.
        streams_refused: Event streams rejected.
        streams_open: Event streams that are open now.
        long_polls: Requests for `/changes`.
        long_polls_held: Requests for `/changes` that are held now.
        webhooks: Finished webhook requests by status of the answer; 0 means no answer.
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
        """Return the counters by name."""
        return {counter.name: getattr(self, counter.name) for counter in fields(self) if counter.init}

    def count(self, **steps: int) -> None:
        """Add to the counters named."""
        with self._changed:
            for name, step in steps.items():
                setattr(self, name, getattr(self, name) + step)
            self._changed.notify_all()

    def count_status(self, counter: dict[int, int], status: int) -> None:
        """Count an answer by its status."""
        with self._changed:
            counter[status] = counter.get(status, 0) + 1
            self._changed.notify_all()

    def wait_for(self, happened: Callable[["Stats"], object], *, timeout: float = 60.0) -> None:
        """Block until the counters fulfil a condition. Call it outside the server's thread, instead of sleeping.

        Args:
            happened: Function that gets the counters and returns True when the condition holds.
            timeout: Seconds. The default only prevents a test from hanging.

        Raises:
            TimeoutError: The condition did not hold in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: happened(self), timeout):
                raise TimeoutError(f"the condition did not become true within {timeout} s: {self}")
