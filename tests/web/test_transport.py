"""Transports of feeds and listeners: every own connection is closed, and no foreign one."""

from typing import ClassVar

import anyio
import httpx
import pytest

from push_to_poll_client._http.origins import parse_http_url
from push_to_poll_client._http.response import BodyError, read_body
from push_to_poll_client._http.transport import close_on_failure, unwinding

pytestmark = pytest.mark.anyio


class Stream:
    """The connection information of httpcore."""

    def __init__(self):
        self.closed = False

    async def aclose(self):
        self.closed = True


async def connect(stream, *events, url="https://feed.example/"):
    async with close_on_failure(url, {}) as extensions:
        for event in events:
            await extensions["trace"](event, {"return_value": stream})
        raise TimeoutError


@pytest.mark.parametrize(
    ("events", "closed"),
    [
        (["connection.connect_tcp.started"], False),
        (["connection.connect_tcp.complete"], True),
        (["connection.connect_tcp.complete", "connection.start_tls.started"], True),
        (["connection.connect_tcp.complete", "connection.start_tls.complete"], False),
    ],
)
async def test_a_failed_connect_closes_its_socket_unless_tls_was_completed(events, closed):
    stream = Stream()
    with pytest.raises(TimeoutError):
        await connect(stream, *events)
    assert stream.closed is closed


async def test_a_socket_stays_open_after_success_and_plain_http_is_not_traced():
    stream = Stream()
    async with close_on_failure("https://feed.example/", {}) as extensions:
        await extensions["trace"]("connection.connect_tcp.complete", {"return_value": stream})
    assert not stream.closed
    async with close_on_failure("http://feed.example/", {}) as extensions:
        assert extensions == {}


async def test_the_trace_of_a_request_is_called_beside_ours():
    seen = []

    async def trace(event, info):
        seen.append((event, info))

    async with close_on_failure("https://feed.example/", {"trace": trace, "timeout": 1}) as extensions:
        await extensions["trace"]("http11.send_request_body.complete", {})
    assert (seen, extensions["timeout"]) == ([("http11.send_request_body.complete", {})], 1)


async def test_leaving_a_body_early_ends_its_innermost_generator():
    ended = []

    async def inner():
        try:
            yield b"1"
            yield b"2"
            await anyio.sleep_forever()
        finally:
            ended.append("inner")

    async def outer():
        async for chunk in inner():
            yield chunk

    async with unwinding(outer()) as chunks:
        assert await anext(chunks) == b"1"
    assert ended == ["inner"]


async def test_a_body_that_is_too_large_has_its_innermost_generator_ended():
    ended = []

    class Response:
        is_stream_consumed = False
        status_code = 200
        headers: ClassVar = {}

        async def aiter_raw(self):
            async for chunk in self.inner():
                yield chunk

        async def inner(self):
            try:
                yield b"12"
                await anyio.sleep_forever()
            finally:
                ended.append("inner")

    with pytest.raises(BodyError, match="more than 1 bytes"):
        await read_body(Response(), 1, lambda _: None)
    assert ended == ["inner"]


async def test_an_error_while_a_body_is_unwound_is_suppressed():
    async def body():
        yield b"1"
        raise httpx.ReadError("reset")

    async with unwinding(body()) as chunks:
        assert await anext(chunks) == b"1"


@pytest.mark.parametrize("url", ["http://feed.example", "https://me:pw@feed.example:8443/path?query"])
def test_http_url_parses_the_host_of_a_url(url):
    assert parse_http_url(url).host == "feed.example"


@pytest.mark.parametrize("url", ["http://feed.example:c4n4ry/", "ws://feed.example", "/path", "http://"])
def test_http_url_refuses_an_invalid_url_without_showing_its_contents(url):
    with pytest.raises(ValueError, match=r"url (must start|cannot be parsed)") as raised:
        parse_http_url(url)
    assert "c4n4ry" not in str(raised.value)
