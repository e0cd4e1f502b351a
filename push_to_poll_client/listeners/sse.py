"""Listener for server-sent events (WHATWG HTML §9.2): each event is a push.

`_sse_parser.py` parses the stream, and `_base.py` reconnects.

The stream has no ping, so a dead connection looks like an idle one. Servers send comments to keep idle streams
alive, so a silence of `max_silence` counts as a dead connection. `max_age` replaces any other dead connection.
"""

import logging
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
import httpx

from push_to_poll_client._http.credentials import Auth, HeaderSource
from push_to_poll_client._http.origins import without_secrets
from push_to_poll_client._http.transport import unwinding
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._types import Push
from push_to_poll_client._validation import check_count, quoted
from push_to_poll_client.listeners._backoff import ReconnectAction
from push_to_poll_client.listeners._base import ChannelOptions, ReadLoopListener, StopReconnecting
from push_to_poll_client.listeners._failures import ConnectionEnded, Failure, error_response, http_failure_of
from push_to_poll_client.listeners._requests import ListenerClient, UnusableResponse
from push_to_poll_client.listeners._sse_parser import EventParser, EventTooLarge, ServerSentEvent

__all__ = ["SSEListener"]

MEDIA_TYPE = "text/event-stream"

BYTES_AT_ONCE = 4096
"""Bytes parsed before other tasks run. Parsing 256 KiB of empty lines takes 0.3 s, 4 KiB take 5 ms."""

REQUEST_HEADERS = {"accept": MEDIA_TYPE, "cache-control": "no-store"}
"""Headers of each request (WHATWG HTML §9.2.2). The caller's headers replace them."""


class EventStream(NamedTuple):
    """An open stream: the chunks of its body, and the parser."""

    chunks: AsyncIterator[bytes]
    parser: EventParser

    async def read(self) -> Sequence[ServerSentEvent]:
        """Wait for the next bytes, and return the events that they complete, often none."""
        async for chunk in self.chunks:
            events = list[ServerSentEvent]()
            for start in range(0, len(chunk), BYTES_AT_ONCE):
                await anyio.lowlevel.checkpoint()
                events += self.parser.feed(chunk[start : start + BYTES_AT_ONCE])
            return events
        raise ConnectionEnded("the server ended the stream")


def _check(response: Any) -> None:
    status = response.status_code
    if status == HTTPStatus.NO_CONTENT:
        raise StopReconnecting("the server answered HTTP 204, which asks the client not to reconnect")
    if status != HTTPStatus.OK:
        raise httpx.HTTPStatusError(f"HTTP {status}", request=response.request, response=response)
    media_type = response.headers.get("content-type", "")
    if media_type.partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise UnusableResponse(
            f"the server answered with Content-Type {quoted(media_type)} instead of {MEDIA_TYPE}"
        )
    encoding = response.headers.get("content-encoding", "identity")
    # Decompressed, 64 KiB from the socket can be 64 MiB. Compression also delays small events.
    if encoding.strip().lower() not in {"", "identity"}:
        raise UnusableResponse(f"the server sent Content-Encoding {quoted(encoding)}, expected identity")


def failure_of(error: Exception) -> Failure:
    actions = [(EventTooLarge, ReconnectAction.SLOW_RETRY)]  # the next event will be as large
    failure = http_failure_of(error, wanted="an event stream", actions=actions)
    return failure._replace(hid_a_push=isinstance(error, EventTooLarge))


# Servers reject headers above about 8 KiB: an id that the server does not accept back would block the channel for
# good.
MAX_ID = 1024
"""Characters of the longest id that is sent back."""


class SSEListener(ReadLoopListener[ServerSentEvent]):
    """Wakes on every event of a `text/event-stream`, and on every connect.

    Reconnects after 0-1 s, then after growing delays: at most 5 connections in the first 10 seconds, later one in
    30-60 s. If the server refuses (401, 403, 404, a response that is not an event stream, …), the delay is 5 to
    7.5 minutes. After 410 it gives up. A stream that the server ends after a push, or after 5 s or more, is not a
    failure: the listener reconnects after 0-1 s, 10 times in a row and then at most once a second.

    `Retry-After` is obeyed, and so is the stream's `retry` up to five minutes; a longer delay of this library
    wins. Redirects are not followed, since credentials stay with their origin. After 204 `listen()` returns, since
    the server asks not to reconnect; the consumer then only polls.

    Each connection has its own httpx client, which keeps no cookies, takes a proxy from the environment and keeps
    queries out of httpx's log. With `client=`, that client decides all this. There is no compression.

    Args:
        url: An `http://` or `https://` URL. A user and password in it are sent as `Authorization: Basic`.
        last_event_id: True to send the last event id when reconnecting, for servers that then repeat the missed
            events. By default it is not sent: every connect wakes and the poll finds what was missed, so repeated
            pushes would only cause more polls.
        auth: Credentials: a bearer token, a pair of user and password, an `httpx.Auth`, or a function (async, or
            plain and quick) that returns a token and is called at each connect. After a 401 the function is called
            once more soon; after that come the slow retries. `None` uses the user and password of the URL, else
            the credentials of `client`.
        headers: Headers of each request: a mapping, or a function (async, or plain and quick) that returns one and
            is called at each connect. `None` sends none.
        hint: Turns a `ServerSentEvent` into a `Push` with cursor or topics, or into `None` if it is not a push (a
            greeting, a keep-alive event). If it raises, the error is logged and the event counts as a plain push.
            `None` means that every event is a push. Comments, and blocks without data, are not events.
        classify: Classifies a failure first (an `httpx.HTTPStatusError`, another error of the client, an
            `OSError`, …): returns a `ReconnectAction`, or `None` for the default.
        ssl_context: TLS settings. `None` uses the machine's trusted certificates.
        max_age: Seconds after which a healthy connection is renewed, drawn from half of this to all of it. With
            600, a fleet of 1,000 makes 2.2 connections a second. `None` means never.
        max_silence: Seconds without a byte after which the connection counts as dead. The default is twice the
            40-45 s between comments of the slowest well-known servers (WHATWG HTML §9.2.7 proposes 15 s). A server
            without comments costs a connection and a poll per interval; raise it for such a server. `None`
            disables the check, and `max_age` replaces dead connections.
        open_timeout: Seconds to get headers and token, and again until the response begins.
        max_body: Bytes of the longest line, and of the largest data of an event. A larger one counts as a push,
            ends the connection, and is retried slowly.
        client: An `httpx.AsyncClient` or compatible client that sends the requests. It is not closed, and the
            stream occupies one connection of its pool. `None` opens one for each connection.

    Attributes:
        name: Name in log and status: the URL without user, password and query values.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The URL is not an http URL, a limit is not positive, or there are two credentials.
    """

    _log = ConsumerLog(logging.getLogger(__name__))

    def __init__(
        self,
        url: str,
        *,
        last_event_id: bool = False,
        auth: Auth | None = None,
        headers: HeaderSource | None = None,
        hint: Callable[[ServerSentEvent], Push | None] | None = None,
        classify: Callable[[Exception], ReconnectAction | None] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_age: float | None = 600.0,
        max_silence: float | None = 90.0,
        open_timeout: float = 10.0,
        max_body: int = 65_536,
        client: Any = None,
    ) -> None:
        options = ChannelOptions(hint, classify, max_age, max_silence, open_timeout)
        self._client = ListenerClient(
            url, auth=auth, headers=headers, ssl_context=ssl_context, timeout=open_timeout, client=client
        )
        super().__init__(without_secrets(url), options, self._client.credentials)
        self._max_body = check_count("max_body", max_body)
        self._resumes = last_event_id
        self._last_event_id = ""
        self._retry = 0.0

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[EventStream]:
        # As bytes, since an id may be any text.
        resumed = {"last-event-id": self._last_event_id.encode()} if self._last_event_id else {}
        async with self._client.stream(
            headers=REQUEST_HEADERS, override=resumed, within=self._open_timeout
        ) as response:
            _check(response)
            async with unwinding(response.aiter_bytes()) as chunks:
                yield EventStream(chunks, EventParser(max_body=self._max_body, last_event_id=self._last_event_id))

    async def _read(self, connection: EventStream) -> Sequence[ServerSentEvent]:
        events = await connection.read()
        parser = connection.parser
        self._retry = self._retry if parser.retry is None else parser.retry
        if self._resumes and _fits_header(parser.last_event_id):
            self._last_event_id = parser.last_event_id
        return events

    def _failure(self, error: Exception) -> Failure:
        failure = failure_of(error)
        if error_response(error) is not None:
            self._last_event_id = ""  # the server may have refused this id
        return failure._replace(retry_after=max(failure.retry_after or 0.0, self._retry))


def _fits_header(id: str) -> bool:
    """Return True if an id can be sent as a header unchanged."""
    return len(id) <= MAX_ID and id.isprintable() and id == id.strip()
