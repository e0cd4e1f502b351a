"""What goes wrong at the reference server, and when."""

from dataclasses import dataclass, field, fields
from typing import get_type_hints

import msgspec

from push_to_poll_client.testing._spoiled import Spoiled

__all__ = ["Faults"]


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
    spoil_as: Spoiled = "garbage"
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
