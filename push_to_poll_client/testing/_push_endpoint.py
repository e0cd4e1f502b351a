"""WS /push of the reference server: hints after publications, and everything that may go wrong with them."""

import time

import msgspec

from push_to_poll_client.testing._asgi import Receive, Scope, Send, header, respond_to_websocket, while_there
from push_to_poll_client.testing._bell import Bell
from push_to_poll_client.testing._faults import Faults
from push_to_poll_client.testing._stats import PushRecord, Stats

__all__ = ["PushEndpoint"]


class PushEndpoint:
    """The push channel.

    Args:
        faults: The switches.
        stats: The counters.

    Attributes:
        pushes: The push of each publication, oldest first.
    """

    def __init__(self, faults: Faults, stats: Stats) -> None:
        self.pushes: list[PushRecord] = []
        self._faults = faults
        self._stats = stats
        self._bell = Bell()
        self._closings: list[int] = []

    def push(self, cursor: str) -> None:
        """Tell every connection that `cursor` is the newest."""
        record = PushRecord(cursor, time.monotonic(), dropped=self._faults.drops_push())
        self._stats.count(pushes_dropped=record.dropped)
        self.pushes.append(record)
        self._bell.ring()

    def close_all(self, code: int) -> None:
        """Close all connections with this code."""
        self._closings.append(code)
        self._bell.ring()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        await receive()
        status = self._refusal(scope)
        if status is not None:
            self._stats.count(websockets_refused=1)
            await respond_to_websocket(send, status)
            return
        pushed, closed = len(self.pushes), len(self._closings)
        await send({"type": "websocket.accept"})
        self._stats.count(websockets_accepted=1)
        if self._faults.accept_and_close is not None:
            await send({"type": "websocket.close", "code": self._faults.accept_and_close})
            return
        await self._serve(receive, send, pushed, closed)

    def _refusal(self, scope: Scope) -> int | None:
        wanted = self._faults.authorization
        if wanted is not None and header(scope, b"authorization") != wanted:
            return 401
        return self._faults.refuse_status

    async def _serve(self, receive: Receive, send: Send, pushed: int, closed: int) -> None:
        self._stats.count(websockets_open=1)
        try:
            await while_there(receive, lambda: self._tell(send, pushed, closed))
        finally:
            self._stats.count(websockets_open=-1)

    async def _tell(self, send: Send, pushed: int, closed: int) -> None:
        """Send the pushes after the first `pushed`, until connections are closed."""
        while len(self._closings) == closed:
            if pushed == len(self.pushes):
                await self._bell.wait()
                continue
            await self._send(send, self.pushes[pushed])
            pushed += 1
        await send({"type": "websocket.close", "code": self._closings[closed]})

    async def _send(self, send: Send, record: PushRecord) -> None:
        if record.dropped or self._faults.half_open:
            return
        record.sent += 1
        self._stats.count(pushes_sent=1)
        await send({"type": "websocket.send", "text": msgspec.json.encode({"cursor": record.cursor}).decode()})
