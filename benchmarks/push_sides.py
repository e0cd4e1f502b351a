"""The two sides of each push channel: the protocol's own client, and a listener of this library."""

import contextlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple, TypeAlias

import anyio
import httpx
from push_sender import SECRET, served
from websockets.asyncio.client import connect

from push_to_poll_client import JSONHint, Listener, SSEListener, WebSocketListener
from push_to_poll_client.listeners.long_poll import LongPollListener
from push_to_poll_client.listeners.postgres import PostgresListener
from push_to_poll_client.listeners.redis import RedisListener
from push_to_poll_client.listeners.verifiers import github
from push_to_poll_client.listeners.webhook import WebhookListener

HINT = JSONHint(cursor="cursor")

Received: TypeAlias = Callable[[str | bytes], None]
"""Called with the text of each push."""

Bare: TypeAlias = Callable[[str, Received], AbstractAsyncContextManager[str]]
"""Receives within the block from where the sender is. Gives where it is itself, for a sender that connects."""

Ours: TypeAlias = Callable[[str], AbstractAsyncContextManager[tuple[Listener, str]]]
"""Likewise: the listener, and where it is."""


class Channel(NamedTuple):
    """One kind of channel.

    Attributes:
        sender: How the sender calls it.
        bare: The protocol's own client.
        ours: This library.
        pace: Seconds between two pushes.
        share: Of the pushes that are asked for, so many are sent: a slower pace takes no longer.
    """

    sender: str
    bare: Bare
    ours: Ours
    pace: float = 0.02
    share: float = 1.0


def connecting(listener: Callable[[str], Listener]) -> Ours:
    """Of a channel on which the client connects."""

    @asynccontextmanager
    async def ours(url: str) -> AsyncIterator[tuple[Listener, str]]:
        yield listener(url), ""

    return ours


def receiving(bare: Callable[[str, Received, Callable[[], None]], Awaitable[None]]) -> Bare:
    """Of a function that receives until it is cancelled, and says when it is connected."""

    @asynccontextmanager
    async def side(url: str, received: Received) -> AsyncIterator[str]:
        connected = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bare, url, received, connected.set)
            await connected.wait()
            yield ""
            tasks.cancel_scope.cancel()

    return side


async def bare_websocket(url: str, received: Received, connected: Callable[[], None]) -> None:
    """By websockets."""
    async with connect(url, compression=None) as socket:
        connected()
        async for text in socket:
            received(text)


async def bare_events(url: str, received: Received, connected: Callable[[], None]) -> None:
    """By httpx."""
    async with httpx.AsyncClient(timeout=None) as client, client.stream("GET", f"{url}/events") as answer:  # noqa: S113
        connected()
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                received(line[6:])


async def bare_long_poll(url: str, received: Received, connected: Callable[[], None]) -> None:
    """By httpx."""
    known = ""
    async with httpx.AsyncClient(timeout=None) as client:  # noqa: S113
        while True:
            answer = await client.get(f"{url}/wait", params={"cursor": known})
            known = json.loads(answer.content)["cursor"]
            received(answer.content)
            connected()


@asynccontextmanager
async def bare_webhook(_url: str, received: Received) -> AsyncIterator[str]:
    """The few lines by which everybody does it, on the same server as ours."""

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        headers = dict(_scope["headers"])
        body = (await receive())["body"]
        digest = hmac.digest(SECRET.encode(), body, "sha256").hex()
        if hmac.compare_digest(headers[b"x-hub-signature-256"], f"sha256={digest}".encode()):
            received(body)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async with served(app) as url:
        yield url


@asynccontextmanager
async def our_webhook(_url: str) -> AsyncIterator[tuple[Listener, str]]:
    """Behind uvicorn."""
    hooks = WebhookListener(github(SECRET), hint=HINT, rate=None)
    async with served(hooks) as url:
        yield hooks, url


async def bare_postgres(url: str, received: Received, connected: Callable[[], None]) -> None:
    """By psycopg."""
    import psycopg

    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("LISTEN orders")
        connected()
        async for notice in connection.notifies():
            received(notice.payload)


async def bare_redis(url: str, received: Received, connected: Callable[[], None]) -> None:
    """By redis-py."""
    import redis.asyncio

    async with redis.asyncio.Redis.from_url(url) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("orders")
        async for message in pubsub.listen():
            with contextlib.suppress(TypeError):  # the answer to the subscription is a number
                received(message["data"])
            connected()


CHANNELS = {
    "websocket": Channel(
        "websocket", receiving(bare_websocket), connecting(lambda url: WebSocketListener(url, hint=HINT))
    ),
    "server-sent events": Channel(
        "stream", receiving(bare_events), connecting(lambda url: SSEListener(f"{url}/events", hint=HINT))
    ),
    "long poll": Channel(
        "stream",
        receiving(bare_long_poll),
        connecting(lambda url: LongPollListener(f"{url}/wait", hint=HINT, next={"cursor": "cursor"})),
        pace=1.1,
        share=0.05,
    ),
    "webhook": Channel("webhook", bare_webhook, our_webhook),
    "PostgreSQL": Channel(
        "postgres", receiving(bare_postgres), connecting(lambda url: PostgresListener(url, "orders", hint=HINT))
    ),
    "Valkey": Channel(
        "redis", receiving(bare_redis), connecting(lambda url: RedisListener(url, "orders", hint=HINT))
    ),
}
