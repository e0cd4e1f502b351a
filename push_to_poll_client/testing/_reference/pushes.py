"""The push channels of the reference server: websocket, server-sent events and long polls."""

import sys
import time
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

import anyio
import msgspec

from push_to_poll_client.testing._reference.asgi import (
    JSON,
    Header,
    Receive,
    Scope,
    Send,
    header,
    respond,
    respond_to_websocket,
    retry_after,
    run_until_disconnect,
    start,
)
from push_to_poll_client.testing._reference.control import Faults, PushRecord, Stats
from push_to_poll_client.testing._reference.feed import EventLog
from push_to_poll_client.testing._virtual_time import Bell


class PushLog:
    """All pushes so far, and what goes wrong with them on every channel.

    Args:
        faults: The switches.
        stats: The counters.

    Attributes:
        faults: As given.
        stats: As given.
        pushes: The push of each publication, oldest first.
        closings: The code of each time that all connections were to be closed.
        bell: Rings when there is something new in either.
    """

    def __init__(self, faults: Faults, stats: Stats) -> None:
        self.pushes: list[PushRecord] = []
        self.closings: list[int] = []
        self.bell = Bell()
        self.faults = faults
        self.stats = stats

    def open(self) -> None:
        """Begin with a new server, whose event loop is another one: tasks that wait in the old one are gone."""
        self.bell = Bell()

    def push(self, cursor: str) -> None:
        """Tell every connection that `cursor` is the newest."""
        record = PushRecord(cursor, time.monotonic(), dropped=self.faults.drops_push())
        record.times += self.faults.takes("push_twice_next")
        self.stats.count(pushes_dropped=record.dropped)
        self.pushes.append(record)
        self.bell.ring()

    def close_all(self, code: int) -> None:
        """Close all connections with this code."""
        self.closings.append(code)
        self.bell.ring()

    def fault_response(self, scope: Scope) -> tuple[int, list[Header]] | None:
        """The status and headers with which a connection is refused; `None`: it is not."""
        wanted = self.faults.authorization
        if wanted is not None and header(scope, b"authorization") != wanted:
            return 401, []
        status = self.faults.refuse_status
        return None if status is None else (status, retry_after(self.faults.retry_after))

    def sends(self, record: PushRecord) -> bool:
        """Whether this push goes out on one more connection; counts it."""
        if record.dropped or self.faults.half_open:
            return False
        record.sent += 1
        self.stats.count(pushes_sent=record.times)
        return True

    async def until_due(self, record: PushRecord) -> None:
        """Wait for as long as pushes are late."""
        if self.faults.push_latency:
            await anyio.sleep(record.at + self.faults.push_latency - time.monotonic())


class PushSubscription:
    """One connection's place in the log: it hears what comes after it was made.

    Args:
        log: The log.
        closes: Whether it ends when all connections are closed.
    """

    def __init__(self, log: PushLog, *, closes: bool = True) -> None:
        self._log = log
        self._pushed = len(log.pushes)
        self._closed = len(log.closings) if closes else sys.maxsize
        self._repeats: list[PushRecord] = []

    @property
    def code(self) -> int | None:
        """The code with which to close; `None`: stay open."""
        return next(iter(self._log.closings[self._closed :]), None)

    async def next(self) -> PushRecord | None:
        """Wait for the next push to send; `None`: close instead."""
        while self.code is None:
            if self._repeats:
                return self._repeats.pop()
            if self._pushed == len(self._log.pushes):
                await self._log.bell.wait()
                continue
            record = self._log.pushes[self._pushed]
            await self._log.until_due(record)
            self._pushed += 1
            if self._log.sends(record):
                self._repeats = [record] * (record.times - 1)
                return record
        return None


class _PushEndpoint:
    """A push channel, of any kind.

    Args:
        log: The pushes.
    """

    def __init__(self, log: PushLog) -> None:
        self._log = log
        self._faults = log.faults
        self._stats = log.stats
        self._open: set[anyio.CancelScope] = set()

    def shut(self) -> None:
        """End what is open, for a server that ends: it would wait for it."""
        for scope in self._open:
            scope.cancel()

    async def _run(self, receive: Receive, work: Callable[[], Awaitable[None]], counter: str) -> None:
        """Run `work` until it ends, the client has gone or the server ends; count it as long as it runs."""
        scope = anyio.CancelScope()
        self._open.add(scope)
        self._stats.count(**{counter: 1})
        try:
            with scope:
                await run_until_disconnect(receive, work)
        finally:
            self._open.remove(scope)
            self._stats.count(**{counter: -1})


DEFAULT_WAIT = "30"
"""Seconds for which an answer is held if nobody says for how long, Dropbox's default."""

LONGEST_WAIT = 480.0
"""Seconds for which an answer is held at most, Dropbox's limit."""


class ChangesEndpoint(_PushEndpoint):
    """The push channel as a long poll. Who does not say after which event waits for the next one.

    Args:
        events: What is in the feed.
        log: The pushes.
    """

    def __init__(self, events: EventLog, log: PushLog) -> None:
        super().__init__(log)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        self._stats.count(long_polls=1)
        refusal = self._log.fault_response(scope)
        if refusal is not None:
            await respond(send, *refusal)
            return
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        after = query.get("after", [self._events.newest])[0]
        early = self._faults.accept_and_close is not None or self._faults.takes("early_next")
        if not early and (self._faults.half_open or not self._is_news(after)):
            wait = query.get("wait", [DEFAULT_WAIT])[0]
            # Anything that is not a number asks for no wait.
            seconds = min(float(wait), LONGEST_WAIT) if wait.replace(".", "", 1).isdecimal() else 0.0
            subscription = PushSubscription(self._log)
            await self._run(receive, lambda: self._until_push(subscription, seconds), "long_polls_held")
        news = not early and self._is_news(after)
        answer: dict[str, object] = {"changes": news, "cursor": self._events.newest if news else after}
        if self._faults.backoff is not None:
            answer["backoff"] = self._faults.backoff
        await respond(send, 200, [JSON], msgspec.json.encode(answer))

    def _is_news(self, after: str) -> bool:
        return bool(self._events.page(after, 1))

    async def _until_push(self, subscription: PushSubscription, wait: float) -> None:
        with anyio.move_on_after(wait):
            await subscription.next()
        if self._faults.half_open:
            await anyio.sleep_forever()


KEEP_ALIVE = b": keep-alive\n\n"


class EventEndpoint(_PushEndpoint):
    """The push channel as an event stream. Nobody is told again what came before: `Last-Event-ID` is not read.

    Args:
        log: The pushes.
        keep_alive: Seconds without a push after which a comment is sent; `None` sends none.
    """

    def __init__(self, log: PushLog, *, keep_alive: float | None) -> None:
        super().__init__(log)
        self._keep_alive = keep_alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one stream."""
        refusal = self._log.fault_response(scope)
        if refusal is not None:
            self._stats.count(streams_refused=1)
            await respond(send, *refusal)
            return
        subscription = PushSubscription(self._log)
        await start(send, 200, [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")])
        self._stats.count(streams_accepted=1)
        if self._faults.accept_and_close is None:
            await self._run(receive, lambda: self._send_events(send, subscription), "streams_open")
        await send({"type": "http.response.body", "body": b""})

    async def _send_events(self, send: Send, subscription: PushSubscription) -> None:
        while True:
            text = KEEP_ALIVE
            with anyio.move_on_after(self._keep_alive):
                record = await subscription.next()
                if record is None:
                    return
                data = msgspec.json.encode({"cursor": record.cursor})
                text = b"id: %b\ndata: %b\n\n" % (record.cursor.encode(), data)
            if not self._faults.half_open:
                await send({"type": "http.response.body", "body": text, "more_body": True})


class WebSocketEndpoint(_PushEndpoint):
    """The push channel as a websocket."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        await receive()
        refusal = self._log.fault_response(scope)
        if refusal is not None:
            self._stats.count(websockets_refused=1)
            await respond_to_websocket(send, *refusal)
            return
        subscription = PushSubscription(self._log)
        await send({"type": "websocket.accept"})
        self._stats.count(websockets_accepted=1)
        if self._faults.accept_and_close is not None:
            await send({"type": "websocket.close", "code": self._faults.accept_and_close})
        else:
            await self._run(receive, lambda: _send_pushes(send, subscription), "websockets_open")


async def _send_pushes(send: Send, subscription: PushSubscription) -> None:
    while (record := await subscription.next()) is not None:
        await send({"type": "websocket.send", "text": msgspec.json.encode({"cursor": record.cursor}).decode()})
    await send({"type": "websocket.close", "code": subscription.code})
