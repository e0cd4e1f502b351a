"""GET /events of the reference server: the same hints as server-sent events (WHATWG HTML §9.2)."""

import anyio
import msgspec

from push_to_poll_client.testing._asgi import Receive, Scope, Send, respond, start, while_there
from push_to_poll_client.testing._faults import Faults
from push_to_poll_client.testing._push_log import PushLog, Subscription
from push_to_poll_client.testing._stats import PushRecord, Stats

__all__ = ["EventEndpoint"]

KEEP_ALIVE = b": keep-alive\n\n"


class EventEndpoint:
    """The push channel as an event stream. Nobody is told again what came before: `Last-Event-ID` is not read.

    Args:
        log: The pushes.
        faults: The switches.
        stats: The counters.
        keep_alive: Seconds without a push after which a comment is sent; `None` sends none.
    """

    def __init__(self, log: PushLog, faults: Faults, stats: Stats, *, keep_alive: float | None) -> None:
        self._log = log
        self._faults = faults
        self._stats = stats
        self._keep_alive = keep_alive
        self._streams: set[anyio.CancelScope] = set()

    def shut(self) -> None:
        """End all streams, for a server that ends: it would wait for them."""
        for stream in self._streams:
            stream.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one stream."""
        refusal = self._log.refusal(scope)
        if refusal is not None:
            self._stats.count(streams_refused=1)
            status, headers = refusal
            await respond(send, status, b"", headers)
            return
        subscription = Subscription(self._log)
        await start(send, 200, [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")])
        self._stats.count(streams_accepted=1)
        if self._faults.accept_and_close is None:
            await self._serve(receive, send, subscription)
        await send({"type": "http.response.body", "body": b""})

    async def _serve(self, receive: Receive, send: Send, subscription: Subscription) -> None:
        self._stats.count(streams_open=1)
        stream = anyio.CancelScope()
        self._streams.add(stream)
        try:
            with stream:
                await while_there(receive, lambda: self._tell(send, subscription))
        finally:
            self._streams.remove(stream)
            self._stats.count(streams_open=-1)

    async def _tell(self, send: Send, subscription: Subscription) -> None:
        while True:
            text = KEEP_ALIVE
            with anyio.move_on_after(self._keep_alive):
                record = await subscription.next()
                if record is None:
                    return
                text = _written(record)
            if not self._faults.half_open:
                await send({"type": "http.response.body", "body": text, "more_body": True})


def _written(record: PushRecord) -> bytes:
    return b"id: %b\ndata: %b\n\n" % (record.cursor.encode(), msgspec.json.encode({"cursor": record.cursor}))
