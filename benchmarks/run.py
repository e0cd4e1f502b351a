"""`make bench`: what the loop costs against the loop that everyone writes by hand, as ratios inside one run.

Both sides take turns, so that a machine that changes its speed changes both; a row shows medians.
"""

import argparse
import functools
import random
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

import anyio
import httpx
from sides import (
    Latencies,
    catch_up_by_hand,
    catch_up_with_the_library,
    follow_by_hand,
    follow_with_the_library,
    reference_server,
    state_file,
)

PACE = 0.05
"""Seconds between two events: 20 a second."""

TURN = 100
"""Events after which the other side has its turn."""

LATE = 0.05
"""Seconds after which an event of a pair is late. Who clears the "there is news" flag after the fetch finds
some of them with the timer only (procrastinate: 1.9 % of them, after 5 s)."""

Follow = Callable[[dict[str, str], Latencies], Awaitable[None]]


def seconds(run: Callable[[], None]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def catch_up(url: str, messages: int, repetitions: int, *, reads_data: bool) -> str:
    """One row: catching up with a backlog."""
    ours, theirs = [], []
    for _ in range(repetitions):
        theirs.append(seconds(lambda: catch_up_by_hand(url, reads_data=reads_data)))
        with state_file() as store:
            ours.append(seconds(lambda: catch_up_with_the_library(url, reads_data=reads_data, store=store)))
    hand, library = statistics.median(theirs), statistics.median(ours)
    return (
        f"catch-up of {messages:,} messages, handler {'reads data' if reads_data else 'does not look at data'}: "
        f"by hand {hand:.2f} s, push_to_poll_client {library:.2f} s, {hand / library:.2f} x as fast"
    )


def publish(places: dict[str, str], pauses: Sequence[float]) -> None:
    """Publish an event after each pause, once somebody listens."""
    with httpx.Client(base_url=places["base_url"]) as server:
        while not server.get("/stats").json()["websockets_open"]:
            time.sleep(0.01)
        time.sleep(0.2)
        due = time.monotonic()
        for pause in pauses:
            due += pause
            time.sleep(max(0.0, due - time.monotonic()))
            server.post("/publish", json=1).raise_for_status()


def followed(follow: Follow, pauses: Sequence[float]) -> list[float]:
    """The latency of each event that is published after these pauses."""
    with reference_server() as places:
        publisher = threading.Thread(target=publish, args=(places, pauses))

        async def run() -> Latencies:
            latencies = Latencies(len(pauses))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow, places, latencies)
                publisher.start()
                await latencies.complete.wait()
                tasks.cancel_scope.cancel()
            return latencies

        latencies = anyio.run(run)
        publisher.join()
    return latencies


def latency(events: int) -> str:
    """One row: from publication to handler, at a pace."""
    ours, theirs = list[float](), list[float]()
    while len(ours) < events:
        pauses = [PACE] * min(TURN, events - len(ours))
        theirs += followed(follow_by_hand, pauses)
        ours += followed(follow_with_the_library, pauses)
    hand, library = statistics.median(theirs), statistics.median(ours)
    return (
        f"latency of {events:,} events, {1 / PACE:.0f} a second, from publication to handler: by hand p50 "
        f"{hand * 1000:.2f} ms, push_to_poll_client p50 {library * 1000:.2f} ms, {library / hand:.2f} x as long"
    )


def pairs(number: int) -> str:
    """One row: events that come while the poll for the one before is under way."""
    draw = functools.partial(random.Random(1).uniform, 0.001, 0.005)  # noqa: S311  # the same pairs each time
    pauses = [pause for _ in range(number) for pause in (PACE, draw())]
    seen = sorted(followed(follow_with_the_library, pauses))
    late = sum(one > LATE for one in seen)
    return (
        f"{number:,} pairs of events 1-5 ms apart: p50 {statistics.median(seen) * 1000:.2f} ms, latest "
        f"{seen[-1] * 1000:.1f} ms, later than {LATE * 1000:.0f} ms: {late}"
    )


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--events", type=int, default=2_000)
    options = parser.parse_args()
    with reference_server(options.messages) as places:
        for reads_data in (False, True):
            print(
                catch_up(places["url"], options.messages, options.repetitions, reads_data=reads_data), flush=True
            )
    print(latency(options.events), flush=True)
    print(pairs(options.events), flush=True)


if __name__ == "__main__":
    main()
