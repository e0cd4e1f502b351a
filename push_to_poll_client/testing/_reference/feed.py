"""Feed of the reference server, by the HTTP Feeds specification (http-feeds.org)."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

import anyio
import msgspec

from push_to_poll_client.testing._reference.asgi import (
    Header,
    Receive,
    Scope,
    Send,
    header,
    respond,
    retry_after,
    run_until_disconnect,
    start,
    wait_for_disconnect,
)
from push_to_poll_client.testing._reference.control import BATCH_TYPE, Faults, Stats, spoil
from push_to_poll_client.testing._virtual_time import Bell

DEFAULT_DATA = {"note": "x" * 80}
"""The data of an event that is published without data; with it the event has about 300 bytes."""

_DIGITS = 12


class EventLog:
    """Events in the order of their publication; ids are their places, padded so that they sort as text too.

    Args:
        source: The `source` of each event.
        type: The `type` of each event.
    """

    def __init__(self, *, source: str = "https://reference.example/orders", type: str = "example.order") -> None:
        self._source = source
        self._type = type
        self._events: list[bytes] = []

    def append(self, data: Any = DEFAULT_DATA, *, undecodable: bool = False) -> str:
        """Append an event.

        Args:
            data: What it carries. An object gets a member `sent`, if it has none: the time of its publication in
                seconds on the clock of `time.monotonic()`, which the processes of one machine share.
            undecodable: Make it a JSON object that is no CloudEvent, since its source is a number.

        Returns:
            Its id.
        """
        place = f"{len(self._events) + 1:0{_DIGITS}d}"
        event = {
            "specversion": "1.0",
            "id": place,
            "source": 7 if undecodable else self._source,
            "type": self._type,
            "time": datetime.now(UTC).isoformat(),
            "subject": f"orders/{place}",
            "region": "north",  # an extension attribute, which clients must keep
            "data": {"sent": time.monotonic(), **data} if isinstance(data, dict) else data,
        }
        self._events.append(msgspec.json.encode(event))
        return place

    @property
    def newest(self) -> str:
        """The id of the newest event; "" when there is none."""
        return f"{len(self._events):0{_DIGITS}d}" if self._events else ""

    def page(self, after: str | None, size: int) -> list[bytes]:
        """At most `size` encoded events after the id; from the first when there is no event of this id."""
        start = 0
        if after is not None and len(after) == _DIGITS and after.isdecimal() and int(after) <= len(self._events):
            start = int(after)
        return self._events[start : start + size]


LONGEST_HOLD = 60.0
"""Seconds for which a long poll is held at most: an idle client makes one request a minute."""

_BATCH = (b"content-type", BATCH_TYPE)


class FeedEndpoint:
    """The feed. An unknown `lastEventId` reads from the beginning: the specification names no error for it.

    Args:
        log: The events.
        faults: The switches.
        stats: The counters.
        page_size: Events on a page, at most.
    """

    def __init__(self, log: EventLog, faults: Faults, stats: Stats, *, page_size: int) -> None:
        self.page_size = page_size
        self._log = log
        self._faults = faults
        self._stats = stats
        self._bell = Bell()
        self._shut = False
        self._previous_body = b"[]"

    def published(self) -> None:
        """Answer the long polls that are held."""
        self._bell.ring()

    def open(self) -> None:
        """Hold long polls, and stall, until `shut()`."""
        self._shut = False

    def shut(self) -> None:
        """Answer what is held and give up what is stalled, for a server that ends."""
        self._shut = True
        self._bell.ring()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        self._stats.fetched_at.append(time.monotonic())
        self._stats.count(fetches=1)
        refusal = self._fault_response(scope)
        if refusal is not None:
            await self._respond(send, *refusal)
            return
        body = self._previous_body if self._faults.takes("repeat_next") else await self._read_body(scope, receive)
        self._previous_body = body
        await anyio.sleep(self._faults.latency)
        await self._deliver(scope, receive, send, body)

    def _fault_response(self, scope: Scope) -> tuple[int, list[Header]] | None:
        faults = self._faults
        if faults.authorization is not None and header(scope, b"authorization") != faults.authorization:
            return 401, [(b"www-authenticate", b"Bearer")]
        if faults.takes("fail_next"):
            return faults.fail_status, retry_after(faults.retry_after)
        if faults.takes("redirect_next"):
            return 307, [(b"location", faults.redirect_to.encode())]
        return None

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        """Read the body of the answer, before any latency."""
        if self._faults.takes("grow_next"):
            for _ in range(self.page_size):
                self._log.append()
            self._stats.count(published=self.page_size)
        query = parse_qs(scope["query_string"].decode("latin-1"))
        after = query.get("lastEventId", [None])[0]
        events = self._log.page(after, self.page_size)
        timeout = query.get("timeout", ["0"])[0]
        # HTTP Feeds has milliseconds. Anything that is not a number asks for no wait.
        wait = min(int(timeout) / 1000, LONGEST_HOLD) if timeout.isdecimal() else 0.0
        if not events and wait > 0:
            await self._hold(after, wait, receive)
            events = self._log.page(after, self.page_size)
        self._stats.count(empty=not events)
        return b"[" + b",".join(events) + b"]"

    async def _hold(self, after: str | None, wait: float, receive: Receive) -> None:
        """Wait for an event after the id, the end of the wait, the client's disconnect or the server's end."""
        self._stats.count(held=1)
        try:
            with anyio.move_on_after(wait):
                await run_until_disconnect(receive, lambda: self._until(lambda: bool(self._log.page(after, 1))))
        finally:
            self._stats.count(held=-1)

    async def _until(self, happened: Callable[[], bool]) -> None:
        while not self._shut and not happened():
            await self._bell.wait()

    async def _deliver(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        if self._faults.takes("cut_next"):
            await self._send_half(send, body)
        elif self._faults.takes("stall_next"):
            await self._send_half(send, body)
            await run_until_disconnect(receive, lambda: self._until(lambda: False))
        elif self._faults.takes("spoil_next"):
            await self._respond(send, 200, *spoil(self._faults.spoil_as, body))
            return
        else:
            await self._respond(send, 200, [_BATCH], body)
            return
        # Close the connection in the middle of the answer, where the server lets an application do so.
        if (close := scope.get("state", {}).get("hang_up")) is not None:
            close()
            await wait_for_disconnect(receive)

    async def _send_half(self, send: Send, body: bytes) -> None:
        self._stats.count_status(self._stats.statuses, 200)
        await start(send, 200, [_BATCH, (b"content-length", b"%d" % len(body))])
        await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})

    async def _respond(self, send: Send, status: int, headers: list[Header], body: bytes = b"") -> None:
        self._stats.count_status(self._stats.statuses, status)
        await respond(send, status, headers, body)
