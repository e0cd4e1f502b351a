"""What many consumers in one process cost, with one state file: processor time, threads, switches and memory.

Each figure is of a process of its own, from the start of its consumers until all have caught up with a feed of 100
messages. A quarter of the consumers is measured too: what each of them costs shows whether the cost is linear.
The same is measured for as many loops by hand, which share a client and keep nothing.
"""

import argparse
import functools
import gc
import json
import math
import resource
import subprocess
import sys
import threading
from collections.abc import Mapping

import anyio
import httpx
from sides import reference_server, state_file

from push_to_poll_client import Consumer, HTTPFeed, Message, SQLiteStore

MESSAGES = 100

COLLECTOR = 50_000
"""Objects after which Python looks for garbage; by itself it does after 700, or 2,000 from Python 3.14 on."""

WAYS = {
    "loops by hand, one client": {"shared": True, "by_hand": True},
    "consumers of one file, a client each": {},
    "consumers of one file, one client": {"shared": True},
    f"consumers of one file, one client, gc.set_threshold({COLLECTOR:_})": {
        "shared": True,
        "threshold": COLLECTOR,
    },
}

UNIT = 1024 if sys.platform == "darwin" else 1
"""Of `ru_maxrss`, in KiB."""


async def ignore(_: Message) -> None:
    """Do nothing."""


async def catch_up_by_hand(url: str, loops: int, client: httpx.AsyncClient) -> int:
    """Read the feed to its end in so many tasks. Returns the number of threads."""

    async def loop() -> None:
        cursor = None
        while events := (await client.get(url, params={"lastEventId": cursor} if cursor else {})).json():
            cursor = events[-1]["id"]

    async with anyio.create_task_group() as tasks:
        for _ in range(loops):
            tasks.start_soon(loop)
    return threading.active_count()


async def catch_up(url: str, names: range, store: SQLiteStore, client: httpx.AsyncClient | None) -> int:
    """Run a consumer for each name until all have caught up. Returns the highest number of threads."""
    consumers = [
        Consumer(
            HTTPFeed(url, client=client, identity=f"feed {name}"), store=store, name=f"{name}", process=ignore
        )
        for name in names
    ]
    threads = 0
    async with anyio.create_task_group() as tasks:
        for consumer in consumers:
            tasks.start_soon(consumer.run)
        for consumer in consumers:
            while consumer.status().last_caught_up is None:
                threads = max(threads, threading.active_count())
                await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()
    return threads


async def measure(
    url: str, consumers: int, *, shared: bool = False, threshold: int = 0, by_hand: bool = False
) -> None:
    """Print the figures of this process as JSON."""
    if threshold:
        gc.set_threshold(threshold, 20, 100)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    client = httpx.AsyncClient(limits=limits, timeout=60) if shared else None
    with state_file() as store:
        await catch_up(url, range(1), store, client)  # what is loaded once is not counted
        before = resource.getrusage(resource.RUSAGE_SELF)
        if client is not None and by_hand:
            threads = await catch_up_by_hand(url, consumers, client)
        else:
            threads = await catch_up(url, range(1, consumers + 1), store, client)
        after = resource.getrusage(resource.RUSAGE_SELF)
    if client is not None:
        await client.aclose()
    figures = {
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "threads": threads,
        "switches": after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw,
        "kib": (after.ru_maxrss - before.ru_maxrss) / UNIT,
    }
    print(json.dumps(figures))


def measured(url: str, consumers: int, options: Mapping[str, int]) -> dict[str, float]:
    """The figures of so many consumers, in a process of their own."""
    command = [
        sys.executable,
        __file__,
        "--measure",
        url,
        "--consumers",
        f"{consumers}",
        *[f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()],
    ]
    figures: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return figures


def main() -> None:
    """Print a row for each way to share a client."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--consumers", type=int, default=1_000)
    parser.add_argument("--measure", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--shared", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--by_hand", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--threshold", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        options = {"shared": asked.shared, "threshold": asked.threshold, "by_hand": asked.by_hand}
        anyio.run(functools.partial(measure, asked.measure, asked.consumers, **options))
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # each consumer has a socket, here and in the server
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    few = max(asked.consumers // 4, 1)
    with reference_server(MESSAGES) as places:
        by_hand = math.nan
        for way, options in WAYS.items():
            part, whole = (measured(places["url"], number, options) for number in (few, asked.consumers))
            by_hand = whole["cpu"] if "by_hand" in options else by_hand
            linearity = (whole["cpu"] / asked.consumers) / (part["cpu"] / few)
            ratio = whole["cpu"] / by_hand
            print(
                f"{asked.consumers:,} {way}: {whole['cpu']:.2f} s of processor time, "
                f"{linearity:.2f} x as much for each as with {few:,}, {ratio:.2f} x as much as by hand; "
                f"{whole['threads']:.0f} threads, "
                f"{whole['switches']:,.0f} switches, {whole['kib'] / asked.consumers:.0f} KiB each",
                flush=True,
            )


if __name__ == "__main__":
    main()
