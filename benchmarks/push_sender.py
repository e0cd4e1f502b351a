"""The server's side of a push channel, in a process of its own: sends at a pace, and says when it sent what.

`push_sender.py KIND ADDRESS PUSHES PACE`. It says where clients connect, is told on its standard input where to
send to (which matters to webhooks alone), sends, and says the times. The n-th push says `{"cursor": "n"}`.
"""

import asyncio
import hmac
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from websockets.asyncio.server import ServerConnection, serve

SECRET = "benchmark"  # noqa: S105  # everybody's

Push = Callable[[str, str], Awaitable[object]]
"""Sends a text to a target."""


@asynccontextmanager
async def by_websocket(_address: str) -> AsyncIterator[tuple[str, Push]]:
    """A server that sends each push to all."""
    there = set[ServerConnection]()

    async def handler(connection: ServerConnection) -> None:
        there.add(connection)
        await connection.wait_closed()
        there.discard(connection)

    async def push(_target: str, text: str) -> None:
        for connection in there:
            await connection.send(text)

    async with serve(handler, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}", push


class Streams:
    """An ASGI application: `/events` are server-sent events, `/wait` is a long poll."""

    def __init__(self) -> None:
        self._queues = set[asyncio.Queue[str]]()
        self._last = "0"
        self._news = asyncio.Event()

    async def push(self, _target: str, text: str) -> None:
        """Send it to all who wait."""
        for queue in self._queues:
            queue.put_nowait(text)
        self._last = json.loads(text)["cursor"]
        self._news.set()
        self._news = asyncio.Event()

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["path"] == "/events":
            await self._events(send)
        elif scope["path"] == "/wait":
            await self._wait(scope["query_string"].partition(b"=")[2].decode(), send)

    async def _events(self, send: Any) -> None:
        queue = asyncio.Queue[str]()
        self._queues.add(queue)
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        while True:
            body = f"data: {await queue.get()}\n\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _wait(self, known: str, send: Any) -> None:
        if known == self._last:
            await self._news.wait()
        body = json.dumps({"cursor": self._last}).encode()
        length = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def by_stream(_address: str) -> AsyncIterator[tuple[str, Push]]:
    """An HTTP server with both ways to wait."""
    streams = Streams()
    async with served(streams) as url:
        yield url, streams.push


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """Run an ASGI application on a free port; its URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, log_level="critical", lifespan="off", timeout_graceful_shutdown=0)
    )
    running = asyncio.create_task(server.serve([listening]))
    while not server.started:  # noqa: ASYNC110  # it says so in no other way
        await asyncio.sleep(0.001)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    await running


@asynccontextmanager
async def by_webhook(_address: str) -> AsyncIterator[tuple[str, Push]]:
    """Requests to an address, signed as GitHub does."""
    async with httpx.AsyncClient() as client:

        async def push(target: str, text: str) -> None:
            (await client.post(target, content=text, headers=signed(text))).raise_for_status()

        yield "", push


def signed(text: str) -> dict[str, str]:
    """The headers of a webhook."""
    digest = hmac.digest(SECRET.encode(), text.encode(), "sha256").hex()
    return {"x-hub-signature-256": f"sha256={digest}", "content-type": "application/json"}


@asynccontextmanager
async def by_postgres(address: str) -> AsyncIterator[tuple[str, Push]]:
    """NOTIFY."""
    import psycopg

    async with await psycopg.AsyncConnection.connect(address, autocommit=True) as connection:

        async def push(_target: str, text: str) -> None:
            await connection.execute("SELECT pg_notify('orders', %s)", [text])

        yield address, push


@asynccontextmanager
async def by_redis(address: str) -> AsyncIterator[tuple[str, Push]]:
    """PUBLISH."""
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(address)
    yield address, lambda _target, text: client.publish("orders", text)
    await client.aclose()


@asynccontextmanager
async def by_nats(address: str) -> AsyncIterator[tuple[str, Push]]:
    """A message on a subject."""
    import nats

    client = await nats.connect(address)

    async def push(_target: str, text: str) -> None:
        await client.publish("orders", text.encode())
        await client.flush()

    yield address, push
    await client.close()


@asynccontextmanager
async def by_append(address: str) -> AsyncIterator[tuple[str, Push]]:
    """What is appended to the stream "orders" of a Durable Streams server, which then pushes."""
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(headers=headers) as client:

        async def push(_target: str, text: str) -> None:
            (await client.post(f"{address}/orders", content=text)).raise_for_status()

        (await client.put(f"{address}/orders")).raise_for_status()
        yield address, push


WAYS = {
    "websocket": by_websocket,
    "stream": by_stream,
    "webhook": by_webhook,
    "postgres": by_postgres,
    "redis": by_redis,
    "nats": by_nats,
    "append": by_append,
}


async def main(kind: str, address: str, pushes: int, pace: float) -> None:
    """Send, and say when."""
    async with WAYS[kind](address) as (url, push):
        print(json.dumps(url), flush=True)
        target = await asyncio.to_thread(sys.stdin.readline)
        due, sent = time.monotonic(), list[float]()
        for number in range(1, pushes + 1):
            due += pace
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            sent.append(time.monotonic())
            await push(target.strip(), json.dumps({"cursor": str(number)}))
        print(json.dumps(sent), flush=True)
        await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
