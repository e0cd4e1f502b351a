"""The two sides of each row: the loop that everyone writes by hand, and this library. And the server they ask."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import httpx
import msgspec
from websockets.asyncio.client import connect

from push_to_poll_client import Consumer, HTTPFeed, Message, SQLiteStore, WebSocketListener


@contextmanager
def reference_server(backlog: int = 0) -> Iterator[dict[str, str]]:
    """A reference server in a process of its own; its `url`, `push_url` and `base_url`."""
    command = [
        sys.executable,
        "-m",
        "push_to_poll_client.testing.server",
        "--until-eof",
        "--backlog",
        str(backlog),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None  # noqa: S101  # a pipe was asked for
        yield msgspec.json.decode(server.stdout.readline())
        server.terminate()


@contextmanager
def state_file() -> Iterator[SQLiteStore]:
    """A new one, `synchronous=FULL`."""
    with TemporaryDirectory() as directory:
        yield SQLiteStore(Path(directory) / "state.db")


def catch_up_by_hand(url: str, *, reads_data: bool) -> None:
    """The seed loop: httpx, json, a set in memory, nothing durable, no retry, no push."""

    async def loop() -> None:
        seen, cursor, count = set(), None, 0
        async with httpx.AsyncClient() as client:
            while events := (await client.get(url, params={"lastEventId": cursor} if cursor else {})).json():
                for event in events:
                    if event["id"] not in seen:
                        seen.add(event["id"])
                        count += bool(event["data"]) if reads_data else 1
                    cursor = event["id"]

    anyio.run(loop)


def catch_up_with_the_library(url: str, *, reads_data: bool, store: SQLiteStore) -> None:
    """A consumer with a state file."""

    async def ignores(message: Message) -> None:
        pass

    async def reads(message: Message) -> None:
        bool(message.data)

    async def drain(consumer: Consumer) -> None:
        async with consumer:
            while not (await consumer.poll_now()).caught_up:
                pass

    anyio.run(drain, Consumer(HTTPFeed(url), store=store, process=reads if reads_data else ignores))


class Latencies(list[float]):
    """Seconds from the publication of each event to the entry of its handler, until there are `events` of them."""

    def __init__(self, events: int) -> None:
        super().__init__()
        self.events = events
        self.complete = anyio.Event()

    def entered(self, data: dict[str, Any]) -> None:
        """The handler is entered."""
        self.append(time.monotonic() - data["sent"])
        if len(self) == self.events:
            self.complete.set()


async def follow_by_hand(places: dict[str, str], latencies: Latencies) -> None:
    """A raw websocket, and after each message a GET by a client that is warm. Ends by being cancelled."""
    cursor: str | None = None
    async with httpx.AsyncClient() as client, connect(places["push_url"]) as socket:
        await client.get(places["url"])
        try:
            async for _ in socket:
                answer = await client.get(places["url"], params={"lastEventId": cursor} if cursor else {})
                for event in json.loads(answer.content):
                    latencies.entered(event["data"])
                    cursor = event["id"]
        finally:
            with anyio.CancelScope(shield=True):  # websockets leaves a socket open whose close is cancelled
                await socket.close()


async def follow_with_the_library(places: dict[str, str], latencies: Latencies) -> None:
    """A consumer with a state file. It has no limit of polls, since the other side has none either."""

    async def process(message: Message) -> None:
        latencies.entered(message.data)

    with state_file() as store:
        listener = WebSocketListener(places["push_url"])
        await Consumer(
            HTTPFeed(places["url"]), store=store, listeners=[listener], process=process, rate=None
        ).run()
