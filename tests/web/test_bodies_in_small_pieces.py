"""Other tasks run while a body is read that arrives in many one-byte pieces."""

import contextlib
from typing import ClassVar

import anyio
import anyio.lowlevel
import httpx
import pytest

from push_to_poll_client._http.response import BodyError, read_body
from push_to_poll_client._http.transport import CHUNKS_AT_ONCE, unwinding
from push_to_poll_client.listeners._failures import ConnectionEnded
from push_to_poll_client.listeners._requests import ListenerClient
from push_to_poll_client.listeners._sse_parser import EventParser
from push_to_poll_client.listeners._webhook import asgi
from push_to_poll_client.listeners.sse import EventStream

pytestmark = pytest.mark.anyio

PIECES = 2_000


class Pieces:
    """Pieces that are all available at once. Count those read between two turns of another task."""

    def __init__(self):
        self.turns = 0
        self.longest = 0
        self._since = 0
        self._turn = 0

    async def another_task(self):
        while True:
            self.turns += 1
            await anyio.lowlevel.checkpoint()

    def take(self):
        self._since = self._since + 1 if self._turn == self.turns else 1
        self._turn = self.turns
        self.longest = max(self.longest, self._since)

    async def chunks(self, count=PIECES, end=None):
        for _ in range(count):
            self.take()
            yield b"\n"
        if end is not None:
            await end()


@contextlib.asynccontextmanager
async def taken(at_most):
    pieces = Pieces()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pieces.another_task)
        await anyio.lowlevel.checkpoint()
        yield pieces
        tasks.cancel_scope.cancel()
    assert 0 < pieces.longest <= at_most


class Response:
    is_stream_consumed = False
    status_code = 200
    headers: ClassVar = {}

    def __init__(self, chunks):
        self.aiter_raw = lambda: chunks


async def test_the_response_of_a_feed_lets_other_tasks_run():
    async with taken(at_most=3 * CHUNKS_AT_ONCE) as pieces:
        body = await read_body(Response(pieces.chunks()), PIECES, lambda _: None)
        assert body == b"\n" * PIECES


async def test_a_response_that_is_too_large_lets_other_tasks_run_while_the_rest_is_skipped():
    ended = []

    async def wait():
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("innermost")

    async with taken(at_most=3 * CHUNKS_AT_ONCE) as pieces:
        with pytest.raises(BodyError, match="more than 1 bytes"):
            await read_body(Response(pieces.chunks(end=wait)), 1, lambda _: None)
    assert ended == ["innermost"]


async def test_leaving_a_body_early_lets_other_tasks_run_also_when_it_is_cancelled():
    async with taken(at_most=3 * CHUNKS_AT_ONCE) as pieces:
        with anyio.CancelScope() as scope:
            async with unwinding(pieces.chunks(end=anyio.sleep_forever)) as chunks:
                await anext(chunks)
                scope.cancel()
                await anyio.lowlevel.checkpoint()


async def test_the_response_of_a_long_poll_lets_other_tasks_run():
    async with taken(at_most=3 * CHUNKS_AT_ONCE) as pieces:
        transport = httpx.MockTransport(lambda request: httpx.Response(200, content=pieces.chunks()))
        async with httpx.AsyncClient(transport=transport) as http:
            client = ListenerClient("http://feed.example/", client=http, timeout=30, max_body=PIECES)
            assert (await client.send_request()).body == b"\n" * PIECES


async def test_an_event_stream_lets_other_tasks_run():
    async with taken(at_most=3 * CHUNKS_AT_ONCE) as pieces:
        stream = EventStream(pieces.chunks(), EventParser(max_body=None))
        for _ in range(PIECES):
            assert await stream.read() == []
        with pytest.raises(ConnectionEnded):
            await stream.read()


async def test_the_body_of_a_webhook_request_lets_other_tasks_run():
    async with taken(at_most=3 * asgi.PIECES_AT_ONCE) as pieces:

        async def receive():
            pieces.take()
            return {"type": "http.request", "body": b"x", "more_body": next(left) > 0}

        count = 5 * asgi.PIECES_AT_ONCE
        left = iter(range(count - 1, -1, -1))
        assert await asgi.read_body(receive, max_body=count, max_time=30) == b"x" * count
