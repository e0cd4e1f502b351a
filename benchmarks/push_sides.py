"""The two sides of each push channel: the protocol's own client, and a listener of this library."""

import contextlib
import hmac
import itertools
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple, TypeAlias

import anyio
import httpx
from push_sender import SECRET, served
from websockets.asyncio.client import connect

from push_to_poll_client import (
    Connection,
    ConnectionListener,
    JSONHint,
    Listener,
    Push,
    SSEListener,
    WebSocketListener,
)
from push_to_poll_client.durable_streams import DurableStreamsWebhook, PullWakeListener
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


async def bare_nats(url: str, received: Received, connected: Callable[[], None]) -> None:
    """By nats-py."""
    import nats

    client = await nats.connect(url)
    try:
        subscription = await client.subscribe("orders")
        await client.flush()
        connected()
        async for message in subscription.messages:
            received(message.data)
    finally:
        with anyio.move_on_after(2, shield=True):
            await client.close()


def our_nats(url: str) -> Listener:
    """The listener of `docs/push.md`, with a hint."""

    async def orders(connection: Connection) -> None:
        def received(text: str | bytes) -> None:
            connection.wake(HINT(text))

        await bare_nats(url, received, connection.up)

    return ConnectionListener(orders, name="nats orders")


class Counted:
    """Pushes that say nothing: the first is 1."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def __call__(self, _push: object = None) -> Push:
        """The next one."""
        return Push(str(next(self._numbers)))

    def text(self) -> str:
        """The same as a text."""
        return json.dumps({"cursor": self().cursor})


async def subscribe(client: httpx.AsyncClient, root: str, **how: Any) -> str:
    """Ask a Durable Streams server to push; where the subscription is."""
    url = f"{root}/__ds/subscriptions/{uuid.uuid4()}"
    (await client.put(url, json={"streams": ["orders"], **how})).raise_for_status()
    return url


async def bare_pull_wake(root: str, received: Received, connected: Callable[[], None]) -> None:
    """By httpx: claim each wake, and give it back."""
    pushes, wakes = Counted(), f"{root}/wakes-{uuid.uuid4()}"
    async with httpx.AsyncClient(timeout=None) as client:  # noqa: S113
        await client.put(wakes, headers={"content-type": "application/json"})
        url = await subscribe(client, root, type="pull-wake", wake_stream=wakes.rpartition("/")[2])
        async with client.stream("GET", wakes, params={"offset": "now", "live": "sse"}) as answer:
            connected()
            async for line in answer.aiter_lines():
                if '"wake"' in line:
                    claim = (await client.post(f"{url}/claim", json={"worker": "bare"})).json()
                    received(pushes.text())
                    await give_back(client, url, claim)


async def give_back(client: httpx.AsyncClient, url: str, claim: dict[str, Any]) -> None:
    """Say how far we are."""
    acks = [{"stream": stream["path"], "offset": stream["tail_offset"]} for stream in claim["streams"]]
    done = {"wake_id": claim["wake_id"], "generation": claim["generation"], "acks": acks, "done": True}
    await client.post(f"{url}/ack", json=done, headers={"authorization": f"Bearer {claim['token']}"})


@asynccontextmanager
async def our_pull_wake(root: str) -> AsyncIterator[tuple[Listener, str]]:
    """A wake on connect is none of the pushes."""
    listener = PullWakeListener(root, streams=["orders"], wake_stream=f"wakes-{uuid.uuid4()}")
    yield Numbered(listener), ""


@asynccontextmanager
async def bare_durable_webhook(root: str, received: Received) -> AsyncIterator[str]:
    """An application that answers, and looks at nothing."""
    pushes = Counted()

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        received(pushes.text())
        body = b'{"done":true}'
        head = [(b"content-length", b"13"), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body})

    async with served(app) as url, httpx.AsyncClient() as client:
        subscription = await subscribe(client, root, type="webhook", webhook={"url": url})
        yield url
        await client.delete(subscription)


@asynccontextmanager
async def our_durable_webhook(root: str) -> AsyncIterator[tuple[Listener, str]]:
    """Behind uvicorn, which is there before the server is asked."""
    apps = list[WebhookListener]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await apps[0](scope, receive, send)

    async with served(app) as url:
        subscription = DurableStreamsWebhook(root, streams=["orders"], callback=url)
        apps.append(WebhookListener(register_with_server=subscription, stop_at_exit=True, rate=None))
        yield Numbered(apps[0]), url


class Numbered:
    """A listener whose pushes say nothing of a cursor: here they say which they are."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._number = Counted()

    async def listen(self, channel: Any, /) -> None:
        """Hear what it hears."""
        inner = NumberedChannel(channel, self._number)
        await self._listener.listen(inner)


class NumberedChannel:
    """Between a listener and its channel."""

    def __init__(self, channel: Any, number: Counted) -> None:
        self._channel = channel
        self._number = number

    def wake(self, push: Push | None = None, /) -> None:
        """A push that names streams; others are those of a connect."""
        self._channel.wake(self._number() if push is not None and push.topics else push)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


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
    "NATS": Channel("nats", receiving(bare_nats), connecting(our_nats)),
    "pull-wake": Channel("append", receiving(bare_pull_wake), our_pull_wake, pace=0.25, share=0.1),
    "a Durable Streams webhook": Channel(
        "append", bare_durable_webhook, our_durable_webhook, pace=0.25, share=0.1
    ),
}
