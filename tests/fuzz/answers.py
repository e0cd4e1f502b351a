"""Turn bytes into server responses for a feed, and run the feed on one event loop.

A response is written as a status, header fields, an empty line and a body; `=====` separates two responses:

    200
    etag: "1"

    [{"id": "1"}]
    =====
    204
"""

import asyncio
import atexit
import re
from collections.abc import Callable, Coroutine, Iterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx

from push_to_poll_client import DecodeError, FeedError, FetchRequest, Message
from push_to_poll_client._http.direct_client import DirectClient
from push_to_poll_client._http.response import Response
from push_to_poll_client._http.transport import shared_tls_context
from push_to_poll_client.testing._virtual_time import VirtualTimeLoop

__all__ = ["answer_of", "assert_readable", "direct_client", "fields", "in_loop", "look_at", "walk", "written"]

SEPARATOR = b"\n=====\n"
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FORBIDDEN = re.compile(rb"[\0\r\n]")
_STATUS = re.compile(rb"[2-5][0-9][0-9]")
URL = "https://api.vendor.example/events?kept=1"
MOST_PAGES = 6

_runner = asyncio.Runner(loop_factory=VirtualTimeLoop)
atexit.register(_runner.close)


def in_loop(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine in the event loop that all runs share, in virtual time."""
    return _runner.run(work())


def fields(data: bytes) -> list[tuple[bytes, bytes]]:
    """Parse header fields, one a line, and drop what a server cannot send."""
    pairs = (line.partition(b":")[::2] for line in data.split(b"\n"))
    return [(name, _FORBIDDEN.sub(b"", value).strip(b" \t")) for name, value in pairs if _NAME.fullmatch(name)]


def written(*answers: bytes) -> bytes:
    """Join several responses to one input."""
    return SEPARATOR.join(answers)


def response_of(data: bytes) -> httpx.Response:
    """Build an httpx response from bytes."""
    head, _, body = data.partition(b"\n\n")
    status, _, rest = head.partition(b"\n")
    code = int(status) if _STATUS.fullmatch(status) else 200
    return httpx.Response(code, headers=fields(rest), stream=_Pieces(body))


def answer_of(data: bytes) -> Response:
    """Build a received response of this library from bytes."""
    head, _, body = data.partition(b"\n\n")
    status, _, rest = head.partition(b"\n")
    code = int(status) if _STATUS.fullmatch(status) else 200
    return Response(code, httpx.Headers(fields(rest)), body, None, URL, where="the feed")


class _Pieces(httpx.AsyncByteStream):
    """A body that arrives in pieces, as from a socket."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> Any:
        for start in range(0, len(self._body), 1024):
            yield self._body[start : start + 1024]


class _Wire(httpx.AsyncBaseTransport):
    """Transport that answers from a list and sends nothing."""

    def __init__(self) -> None:
        self.answers: Iterator[bytes] = iter(())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return response_of(next(self.answers, b"503\n"))


_wire = _Wire()
_client: Any = None


def direct_client(data: bytes) -> httpx.AsyncClient:
    """Return the library's own client, with these responses."""
    global _client  # noqa: PLW0603  # to make one takes a millisecond
    if _client is None:
        cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        _client = DirectClient(shared_tls_context(), httpx.Limits(), cookies=cookies, trust_env=False)
        _client._direct = _client._transport = _wire
    _wire.answers = iter(data.split(SEPARATOR))
    return _client


def walk(feed: Any, cursor: str | None = None) -> list[Message]:
    """Fetch page after page, as a consumer does, until the end or a declared error."""
    messages: list[Message] = []

    async def fetch() -> None:
        position = cursor
        for _ in range(MOST_PAGES):
            page = await feed.fetch(FetchRequest(position, bypass_cache=True))
            assert page.retry_after is None or page.retry_after >= 0
            assert isinstance(page.gap, str)
            assert not (page.closed and page.next_page is not None)
            messages.extend(page.messages)
            position = page.next_page
            if position is None:
                break
            assert isinstance(position, str)

    try:
        in_loop(fetch)
    except FeedError as error:
        check_error(error)
    for message in messages:
        look_at(message)
    return messages


def check_error(error: FeedError) -> None:
    """Check that the error is safe to show and its delay is valid."""
    assert str(error).isprintable(), repr(str(error))
    assert len(str(error)) < 3000
    assert error.retry_after is None or error.retry_after >= 0


def look_at(message: Message) -> None:
    """Check and read all fields of a message."""
    assert isinstance(message.id, str)
    assert message.id
    assert isinstance(message.dedupe_key, str)
    assert message.dedupe_key
    assert message.cursor is None or isinstance(message.cursor, str)
    assert isinstance(message.raw, bytes)
    assert repr(message).isprintable()
    assert_readable(message, "data")


def assert_readable(thing: Any, part: str) -> None:
    """Read this part of a message, or check that the error text is printable."""
    try:
        getattr(thing, part)
    except DecodeError as error:
        assert str(error).isprintable()  # noqa: PT017  # it need not be raised
