"""The listener for server-sent events (WHATWG HTML §9.2): each event of the stream is a push.

The module has three parts, from the bottom up: open, check, read and close a stream; classify its failures; and
the listener. `_sse_parser.py` makes events of bytes, and `_base.py` connects again.

The stream has no ping. A connection whose other end is gone looks like one on which nothing happens. Servers send
comments to keep idle streams alive, so `max_silence` takes a long silence for a dead connection. `max_age`
replaces any other dead connection.
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
"""Bytes parsed before other tasks run. A read can return 256 KiB; parsing as many empty lines takes 0.3 s, and
parsing 4 KiB of them 5 ms."""

REQUEST_HEADERS = {"accept": MEDIA_TYPE, "cache-control": "no-store"}
"""Headers of each request (WHATWG HTML §9.2.2). The user's own headers replace them."""


class EventStream(NamedTuple):
    """An open stream: the chunks of its body, and the parser with the state that they left."""

    chunks: AsyncIterator[bytes]
    parser: EventParser

    async def read(self) -> Sequence[ServerSentEvent]:
        """Wait for the next bytes, and return the events that they complete, often none.

        Raises:
            ConnectionEnded: The server ended the stream.
            EventTooLarge: The stream cannot be read any further.
        """
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
        raise StopReconnecting("the server answered HTTP 204, which asks not to connect again")
    if status != HTTPStatus.OK:
        raise httpx.HTTPStatusError(f"HTTP {status}", request=response.request, response=response)
    media_type = response.headers.get("content-type", "")
    if media_type.partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise UnusableResponse(
            f"the server answered with Content-Type {quoted(media_type)} instead of {MEDIA_TYPE}"
        )
    encoding = response.headers.get("content-encoding", "identity")
    # Decoded, 64 KiB from the socket can be 64 MiB; and a compressor holds small events back.
    if encoding.strip().lower() not in {"", "identity"}:
        raise UnusableResponse(f"the server sent Content-Encoding {quoted(encoding)}, but was asked for identity")


def failure_of(error: Exception) -> Failure:
    """Classify and describe an error that ended a stream, or an attempt to open one."""
    actions = [(EventTooLarge, ReconnectAction.SLOW_RETRY)]  # the next event will be as large
    failure = http_failure_of(error, wanted="an event stream", actions=actions)
    return failure._replace(hid_a_push=isinstance(error, EventTooLarge))


MAX_ID = 1024
"""Characters of the longest id that is sent back. Servers refuse headers above some 8 KiB. If a server sent an id
that it does not accept back, the channel would never open again."""


class SSEListener(ReadLoopListener[ServerSentEvent]):
    """Wakes on every event of a `text/event-stream`, and on every connect.

    Connects again by itself, after 0-1 s and then ever more slowly (at most 5 connections in the first 10 seconds,
    one in 30-60 s later); after 5 to 7.5 minutes when the server refuses (401, 403, 404, something that is no
    event stream, …); never when it says "for good" (410). A stream that the server ends after a push, or
    after 5 s or more, is not a failure: the listener connects again after 0-1 s, 10 times in a row and then once a
    second at most.
    `Retry-After` is obeyed, and so is the stream's `retry` up to five minutes, where this library's own delay is
    not longer. Redirects are not followed: credentials stay
    with the origin they were given for. After 204 `listen()` returns: so a server asks to be left alone, and the
    consumer goes on by polling.

    Each connection has an httpx client of its own, which keeps no cookies, takes a proxy from the environment and
    keeps queries out of httpx's log; with `client=` all this is as that client does it. There is no compression.

    Args:
        url: An `http://` or `https://` address. User and password in it are sent as `Authorization: Basic`.
        last_event_id: Whether to name the last id when connecting again, for a server that then repeats what was
            missed. Off: every connect wakes and the poll finds what was missed, so repeated pushes are more polls
            for the same messages.
        auth: Credentials: a bearer token, a pair of user and password, a function (async, or plain and quick)
            that returns a token and is called at each connect, or an `httpx.Auth`. After a 401 the function is
            called once more soon, then the slow retries begin. `None`: the user and password of the URL if it has
            them, else those of `client`.
        headers: Sent with each request: a mapping, or a function (async, or plain and quick) that returns one and
            is called at each connect. `None`: none.
        hint: Makes a push of a `ServerSentEvent`: a `Push` with the cursor or topics that it speaks of, or `None`
            for an event that is no push (a hello, a keep-alive that is no comment). One that raises is logged, and
            the event counts as a plain push. `None`: every event is a push. Comments, and blocks without data,
            are no events.
        classify: Asked first what a failure means (an `httpx.HTTPStatusError`, any other error of the client, an
            `OSError`, …); returns a `ReconnectAction`, or `None` for the default.
        ssl_context: The TLS settings. `None`: the certificates that the machine trusts.
        max_age: Seconds after which a connection is renewed although nothing is wrong with it, drawn from half of
            this to all of it; with 600, a fleet of 1,000 makes 2.2 connections a second. `None`: never.
        max_silence: Seconds without a byte after which the connection is taken for dead. Twice the 40-45 s at
            which the slowest of the well-known servers send comments (WHATWG HTML §9.2.7 proposes 15 s). A server
            that sends none costs a connection and a poll in as many seconds; raise it for such a server.
            `None`: silence is not suspicious, and a dead connection is found at its age.
        open_timeout: Seconds for the headers and token to be given, and again until the answer has begun.
        max_body: Bytes of the largest line, and of the largest data of an event. A larger one counts as a push
            and ends the connection; it is retried slowly.
        client: An `httpx.AsyncClient`, or one of its shape, to send by. It stays yours: it is not closed, and the
            stream keeps one connection of its pool. `None` opens one for each connection.

    Attributes:
        name: The address without user, password and the values of its query, by which log and status call the
            listener.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: The URL is no http address, a limit is not above 0, or there are two credentials.
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
        # In bytes, since an id may be any text.
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
    """Return whether an id can be sent as a header unchanged."""
    return len(id) <= MAX_ID and id.isprintable() and id == id.strip()
