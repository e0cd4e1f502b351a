"""From a server's push to the handler's entry, by each channel, beside the bare protocol.

The bare side is the protocol's own client, which looks at nothing that it receives. Ours is a consumer: it
verifies, decides, polls a feed that answers from memory, asks its store whether the message is new, and calls the
handler. Both take turns; the sender is a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeAlias

import anyio
import anyio.to_thread
from push_servers import address_of
from push_sides import CHANNELS, Channel

from push_to_poll_client import Consumer, FetchRequest, MemoryStore, Message, Page

TURN = 100
"""Pushes after which the other side has its turn."""

PATIENCE = 60.0
"""Seconds beyond what the pace takes."""

SENDER = Path(__file__).with_name("push_sender.py")


class Feed:
    """Has the messages that pushes spoke of, up to the newest."""

    def __init__(self) -> None:
        self._last = 0

    async def fetch(self, request: FetchRequest) -> Page:
        """Those that are new."""
        first = self._last + 1
        if request.hint is not None and request.hint.cursor is not None:
            self._last = max(self._last, int(request.hint.cursor))
        return Page([Message(str(number)) for number in range(first, self._last + 1)], cursor=str(self._last))


class Arrivals(dict[int, float]):
    """When each push arrived, until there are `pushes` of them."""

    def __init__(self, pushes: int) -> None:
        super().__init__()
        self.complete = anyio.Event()
        self._pushes = pushes

    def came(self, number: int) -> None:
        """That of this number; 0 is none."""
        if number:
            self.setdefault(number, time.monotonic())
        if len(self) == self._pushes:
            self.complete.set()


Receiver: TypeAlias = Callable[[str, Arrivals], AbstractAsyncContextManager[str]]
"""Writes down within the block what arrives from a URL. Gives where it is itself."""


def bare(channel: Channel) -> Receiver:
    """The protocol's own client."""
    return lambda url, arrivals: channel.bare(url, lambda text: arrivals.came(int(json.loads(text)["cursor"])))


def ours(channel: Channel) -> Receiver:
    """A consumer."""

    @asynccontextmanager
    async def receiver(url: str, arrivals: Arrivals) -> AsyncIterator[str]:
        async def process(message: Message) -> None:
            arrivals.came(int(message.id))

        async with channel.ours(url) as (listener, target), anyio.create_task_group() as tasks:
            consumer = Consumer(Feed(), store=MemoryStore(), listeners=[listener], process=process, rate=None)
            tasks.start_soon(consumer.run)
            while not consumer.status().listeners[0].up:  # noqa: ASYNC110  # nobody else has to wait for that
                await anyio.sleep(0.01)
            yield target
            tasks.cancel_scope.cancel()

    return receiver


@contextmanager
def sender(channel: Channel, address: str, pushes: int) -> Iterator["subprocess.Popen[str]"]:
    """The server's side."""
    command = [sys.executable, SENDER, channel.sender, address, str(pushes), str(channel.pace)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def turn(channel: Channel, receiver: Receiver, address: str, pushes: int) -> list[float]:
    """The latency of each of so many pushes."""

    async def run(process: "subprocess.Popen[str]") -> list[float]:
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018, S101  # pipes were asked for
        arrivals = Arrivals(pushes)
        url = json.loads(await anyio.to_thread.run_sync(process.stdout.readline))
        with anyio.fail_after(pushes * channel.pace + PATIENCE):
            async with receiver(url, arrivals) as target:
                process.stdin.write(f"{target}\n")
                process.stdin.flush()
                await arrivals.complete.wait()
        sent = json.loads(process.stdout.readline())
        return [arrivals[number] - at for number, at in enumerate(sent, 1)]

    with sender(channel, address, pushes) as process:
        return anyio.run(run, process)


def row(name: str, channel: Channel, address: str, pushes: int) -> str:
    """One row: so many pushes by a channel, each side in its turns."""
    theirs, mine = list[float](), list[float]()
    pushes = max(round(pushes * channel.share), 1)
    while len(mine) < pushes:
        count = min(TURN, pushes - len(mine))
        theirs += turn(channel, bare(channel), address, count)
        mine += turn(channel, ours(channel), address, count)
    raw, library = statistics.median(theirs) * 1000, statistics.median(mine) * 1000
    return (
        f"{pushes:,} pushes by {name}: received by the bare protocol p50 {raw:.2f} ms, in the handler p50 "
        f"{library:.2f} ms, latest {max(mine) * 1000:.1f} ms, {library / raw:.2f} x as long"
    )


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pushes", type=int, default=1_000)
    parser.add_argument("channels", nargs="*", default=list(CHANNELS))
    options = parser.parse_args()
    for name in options.channels:
        with address_of(CHANNELS[name].sender) as address:
            print(row(name, CHANNELS[name], address, options.pushes), flush=True)


if __name__ == "__main__":
    main()
