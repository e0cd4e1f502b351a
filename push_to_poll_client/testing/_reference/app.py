"""The reference server as an ASGI application: a feed, its push channels, and faults on command.

    GET  /feed      HTTP Feeds (http-feeds.org), with `lastEventId`, and `timeout` (milliseconds) for long polling
    WS   /push      one text message per publication, {"cursor": id of the newest event}; it holds no event data
    GET  /events    the same texts as server-sent events; the id of the newest event is the id of the SSE event
    GET  /changes   long poll with `after`, an event id, and `wait`, seconds: answers {"changes": true, "cursor":
                    newest id} as soon as the newest id differs, else {"changes": false, "cursor": `after`}
    POST /webhooks  JSON {"url": ..., "secret": ...}: send the same texts to this URL, signed by Standard Webhooks
                    and retried; a null secret stops this; answers the list of all URLs
    POST /publish   JSON: a number of events, or a list with the data of each; answers the list of their ids
    POST /faults    JSON: an object with fields of `Faults`; `close_websockets` closes them now with this code
    GET  /stats     counters of the server
    GET  /pushes    for each publication: True if its push was dropped, and the number of connections that got it

Events stay in memory as long as the application exists, also while no server runs it. Webhooks are sent only
under a server that supports ASGI's lifespan.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import msgspec

from push_to_poll_client._json import decode
from push_to_poll_client.testing._reference import endpoints
from push_to_poll_client.testing._reference.asgi import JSON, Exchange, Receive, Scope, Send
from push_to_poll_client.testing._reference.control import Faults, PushRecord, Stats
from push_to_poll_client.testing._reference.state import DEFAULT_DATA, ReferenceState
from push_to_poll_client.testing._reference.webhooks import WebhookSender

_ENDPOINTS = {
    ("GET", "/feed"): endpoints.serve_feed,
    ("GET", "/events"): endpoints.serve_events,
    ("GET", "/changes"): endpoints.serve_changes,
}


class _WebhookRegistration(TypedDict):
    url: str
    secret: str | None


class ReferenceApp:
    """The ASGI application. Call its methods only in the thread whose event loop runs it.

    Args:
        page_size: Maximum events on a page of the feed.
        backlog: Number of events in the feed at the start.
        keep_alive: Seconds without a push after which an event stream gets a comment; 15 is the proposal of WHATWG
            HTML §9.2.7. None sends no comments.
        webhook_retries: Seconds before each retry of a webhook.

    Attributes:
        faults: The faults; set them at any time.
        stats: The current counters.
        pushes: The push of each publication, oldest first.
    """

    def __init__(
        self,
        *,
        page_size: int = 1000,
        backlog: int = 0,
        keep_alive: float | None = 15.0,
        webhook_retries: Sequence[float] = (0.1, 1.0, 5.0),
    ) -> None:
        self._state = ReferenceState(page_size, keep_alive)
        self.faults: Faults = self._state.faults
        self.stats: Stats = self._state.stats
        self.pushes: Sequence[PushRecord] = self._state.pushes
        self._webhooks = WebhookSender(self._state, retries=webhook_retries)
        self._state.append([DEFAULT_DATA] * backlog)

    def publish(self, what: int | list[Any] = 1) -> list[str]:
        """Publish a number of events, or one per data of a list, then push once.

        Returns:
            The ids of the events. If it is empty, nothing was published or pushed.
        """
        ids = self._state.append([DEFAULT_DATA] * what if isinstance(what, int) else what)
        if ids:
            self._state.push(ids[-1])
        return ids

    def send_webhooks(self, url: str, secret: str | None) -> list[str]:
        """Send later pushes to this URL too, as signed webhooks.

        Args:
            url: The URL of the receiver.
            secret: The signing secret, "whsec_" and Base64; it replaces an earlier one. None stops the webhooks.

        Returns:
            The URLs that get webhooks now.

        Raises:
            ValueError: The URL or the secret is invalid.
        """
        return self._webhooks.register(url, secret)

    def close_websockets(self, code: int = 1012) -> None:
        """Close all open websockets with this code, end all event streams, and answer all long polls."""
        self._state.close_all(code)

    def open(self) -> None:
        """Prepare for a server that starts."""
        self._state.open()

    def shut(self) -> None:
        """End all held and stalled requests, for a server that stops."""
        self._state.shut()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or one websocket, or send webhooks for as long as a server runs."""
        exchange = Exchange(scope, receive, send)
        if scope["type"] == "lifespan":
            await exchange.run_lifespan(self._webhooks.run)
        elif scope["type"] == "websocket":
            await endpoints.serve_websocket(self._state, exchange)
        elif (serve := _ENDPOINTS.get((scope["method"], scope["path"]))) is not None:
            await serve(self._state, exchange)
        else:
            await self._control(exchange)

    async def _control(self, exchange: Exchange) -> None:
        handlers: dict[tuple[str, str], Callable[[bytes], object]] = {
            ("POST", "/publish"): lambda body: self.publish(decode(body, type=int | list[Any])),
            ("POST", "/webhooks"): lambda body: self.send_webhooks(**decode(body, type=_WebhookRegistration)),
            ("POST", "/faults"): self._set_faults,
            ("GET", "/stats"): lambda _: self.stats.as_dict(),
            ("GET", "/pushes"): lambda _: self.pushes,
        }
        handle = handlers.get((exchange.scope["method"], exchange.scope["path"]))
        try:
            status, result = (404, "unknown path") if handle is None else (200, handle(await exchange.read_body()))
        except (msgspec.DecodeError, ValueError) as error:
            status, result = 400, str(error)
        await exchange.respond(status, [JSON], msgspec.json.encode(result))

    def _set_faults(self, body: bytes) -> dict[str, Any]:
        changes = decode(body, type=dict[str, Any])
        code = changes.pop("close_websockets", None)
        self.faults.set(**changes)
        if code is not None:
            self.close_websockets(code)
        return changes
