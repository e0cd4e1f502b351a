"""WS /push of the reference server: hints after publications, and everything that may go wrong with them."""

import msgspec

from push_to_poll_client.testing._asgi import Receive, Scope, Send, respond_to_websocket, while_there
from push_to_poll_client.testing._faults import Faults
from push_to_poll_client.testing._push_log import PushLog, Subscription
from push_to_poll_client.testing._stats import Stats

__all__ = ["PushEndpoint"]


class PushEndpoint:
    """The push channel as a websocket.

    Args:
        log: The pushes.
        faults: The switches.
        stats: The counters.
    """

    def __init__(self, log: PushLog, faults: Faults, stats: Stats) -> None:
        self._log = log
        self._faults = faults
        self._stats = stats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        await receive()
        refusal = self._log.refusal(scope)
        if refusal is not None:
            self._stats.count(websockets_refused=1)
            await respond_to_websocket(send, *refusal)
            return
        subscription = Subscription(self._log)
        await send({"type": "websocket.accept"})
        self._stats.count(websockets_accepted=1)
        if self._faults.accept_and_close is not None:
            await send({"type": "websocket.close", "code": self._faults.accept_and_close})
            return
        await self._serve(receive, send, subscription)

    async def _serve(self, receive: Receive, send: Send, subscription: Subscription) -> None:
        self._stats.count(websockets_open=1)
        try:
            await while_there(receive, lambda: _tell(send, subscription))
        finally:
            self._stats.count(websockets_open=-1)


async def _tell(send: Send, subscription: Subscription) -> None:
    while (record := await subscription.next()) is not None:
        await send({"type": "websocket.send", "text": msgspec.json.encode({"cursor": record.cursor}).decode()})
    await send({"type": "websocket.close", "code": subscription.code})
