"""`make bench`: what the loop costs against the loop that everyone writes by hand, as ratios inside one run.

Each row is the median of interleaved repetitions, so that a machine that changes its speed changes both sides.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import httpx
import msgspec

from push_to_poll_client import Consumer, HTTPFeed, Message, SQLiteStore

Run = Callable[[str], None]


def hand_written(url: str, *, reads_data: bool) -> None:
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


def this_library(url: str, *, reads_data: bool) -> None:
    """A consumer with a state file, `synchronous=FULL`."""

    async def ignores(message: Message) -> None:
        pass

    async def reads(message: Message) -> None:
        bool(message.data)

    async def drain(consumer: Consumer) -> None:
        async with consumer:
            while not (await consumer.poll_now()).caught_up:
                pass

    with TemporaryDirectory() as directory:
        store = SQLiteStore(Path(directory) / "state.db")
        anyio.run(drain, Consumer(HTTPFeed(url), store=store, process=reads if reads_data else ignores))


def seconds(run: Callable[[], None]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def catch_up(url: str, messages: int, repetitions: int, *, reads_data: bool) -> str:
    """One row: both sides in turn, the ratio of the medians."""
    ours, theirs = [], []
    for _ in range(repetitions):
        theirs.append(seconds(lambda: hand_written(url, reads_data=reads_data)))
        ours.append(seconds(lambda: this_library(url, reads_data=reads_data)))
    hand, library = statistics.median(theirs), statistics.median(ours)
    what = "reads data" if reads_data else "does not look at data"
    return (
        f"catch-up of {messages:,} messages, handler {what}: by hand {hand:.2f} s, "
        f"push_to_poll_client {library:.2f} s, {hand / library:.2f} x as fast"
    )


def main() -> None:
    """Print a row for each handler."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    command = [sys.executable, "-m", "push_to_poll_client.testing.server", "--until-eof"]
    with subprocess.Popen(
        [*command, "--backlog", str(options.messages)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None  # noqa: S101  # a pipe was asked for
        url = msgspec.json.decode(server.stdout.readline())["url"]
        for reads_data in (False, True):
            print(catch_up(url, options.messages, options.repetitions, reads_data=reads_data), flush=True)
        server.terminate()


if __name__ == "__main__":
    main()
