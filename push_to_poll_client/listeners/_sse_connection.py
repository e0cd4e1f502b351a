"""HOW an event stream is opened, read and closed. It is a GET whose answer does not end."""

import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import anyio
import anyio.lowlevel
import httpx

from push_to_poll_client._exceptions import PushToPollError
from push_to_poll_client._http.transport import closed_if_failed, unwinding
from push_to_poll_client._validation import quoted
from push_to_poll_client.listeners._living import LeftAlone
from push_to_poll_client.listeners._sending import closing, open_sender, send
from push_to_poll_client.listeners._sse_parser import EventParser, ServerSentEvent

__all__ = ["EventStream", "NoEventStream", "StreamEnded", "open_stream"]

MEDIA_TYPE = "text/event-stream"

BYTES_AT_ONCE = 8192
"""Bytes parsed before other tasks run. A read can bring 256 KiB; of empty lines these take 0.3 s, 8 KiB 9 ms."""

ASKING = {
    "Accept": MEDIA_TYPE,
    "Cache-Control": "no-store",
    # Unpacked, 64 KiB from the socket can be 64 MiB; and a compressor keeps small events to itself.
    "Accept-Encoding": "identity",
}
"""What is sent with each request (WHATWG HTML §9.2.2), unless the user's own headers say otherwise."""


class NoEventStream(PushToPollError):
    """The server answered 200 with something else."""


class StreamEnded(PushToPollError):
    """The server ended the stream in an orderly way."""


class EventStream:
    """An open stream.

    Args:
        chunks: The body as it comes.
        parser: Reads it.

    Attributes:
        parser: What the stream said so far.
    """

    def __init__(self, chunks: AsyncIterator[bytes], parser: EventParser) -> None:
        self.parser = parser
        self._chunks = chunks

    async def read(self) -> Sequence[ServerSentEvent]:
        """Wait for the next bytes; the events that they complete, often none.

        Raises:
            StreamEnded: There are no more.
            EventTooLarge: The stream cannot be read any further.
        """
        async for chunk in self._chunks:
            events = self.parser.feed(chunk[:BYTES_AT_ONCE])
            for start in range(BYTES_AT_ONCE, len(chunk), BYTES_AT_ONCE):
                await anyio.lowlevel.checkpoint()
                events += self.parser.feed(chunk[start : start + BYTES_AT_ONCE])
            return events
        raise StreamEnded("the server ended the stream")


@contextlib.asynccontextmanager
async def open_stream(
    url: str,
    *,
    headers: Mapping[str, str],
    last_event_id: str,
    client: Any,
    tls: ssl.SSLContext | None,
    open_timeout: float,
    max_size: int | None,
) -> AsyncIterator[EventStream]:
    """Open a stream, and close it at the end of the block.

    Redirects are not followed: httpx would take every header but one to another origin (G12).

    Args:
        url: An http address without user and password.
        headers: Sent with the request.
        last_event_id: Sent as `Last-Event-ID` unless empty.
        client: By what to send; `None` opens a client for this one stream.
        tls: Whom to trust for `https://`; `None`: the certificates that the machine trusts.
        open_timeout: Seconds until the answer's headers are there.
        max_size: Bytes of the largest line and event; `None`: no limit.

    Raises:
        LeftAlone: The server asks not to connect again.
        Exception: Whatever ended the attempt or the stream. `_sse_failures.py` knows what it means.
    """
    async with open_sender(client, tls) as sender:
        response = await _answer(sender, url, _fields(headers, last_event_id), open_timeout)
        async with closing(response):
            _check(response)
            async with unwinding(response.aiter_bytes()) as chunks:
                yield EventStream(chunks, EventParser(max_size=max_size, last_event_id=last_event_id))


def _fields(headers: Mapping[str, str], last_event_id: str) -> list[tuple[bytes, bytes]]:
    fields = httpx.Headers(ASKING)
    fields.update(headers)
    if not last_event_id:
        return fields.raw
    fields.pop("Last-Event-ID", None)
    return [*fields.raw, (b"Last-Event-ID", last_event_id.encode())]


async def _answer(sender: Any, url: str, fields: Sequence[tuple[bytes, bytes]], open_timeout: float) -> Any:
    # With credentials of the listener's own, those of a client that was given do not come in their place.
    ours = {"auth": None} if any(name.lower() == b"authorization" for name, _ in fields) else {}
    async with closed_if_failed(url) as extensions:
        request = sender.build_request("GET", url, headers=fields, timeout=None, extensions=extensions)
        with anyio.move_on_after(open_timeout):
            return await send(sender, request, **ours)
        raise TimeoutError(f"no answer within {open_timeout:g} s")


def _check(response: Any) -> None:
    status = response.status_code
    if status == HTTPStatus.NO_CONTENT:
        raise LeftAlone("the server answered HTTP 204, which asks not to connect again")
    if status != HTTPStatus.OK:
        raise httpx.HTTPStatusError(f"HTTP {status}", request=response.request, response=response)
    media_type = response.headers.get("content-type", "")
    if media_type.partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise NoEventStream(f"the server answered with Content-Type {quoted(media_type)} instead of {MEDIA_TYPE}")
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in {"", "identity"}:
        raise NoEventStream(f"the server sent Content-Encoding {quoted(encoding)}, but was asked for identity")
