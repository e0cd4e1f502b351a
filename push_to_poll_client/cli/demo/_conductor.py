"""Run the demo: a consumer catches up, is interrupted in many ways, and its messages are counted.

There are three processes: this one, the reference server with a feed and its pushes, and `_consumer.py`, which
consumes the feed with a SQLite store. The server drops a fifth of the pushes, cuts the connection twice and
answers one request with a 503; the consumer is killed once and started again.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from push_to_poll_client.cli.demo._consumer import COMMIT_INTERVAL
from push_to_poll_client.cli.demo._figures import (
    FaultPeriod,
    HandlerFile,
    beyond_g7,
    latencies,
    percentile,
    processed_twice,
)
from push_to_poll_client.cli.demo._processes import STEP_TIMEOUT, ConsumerProcess, ServerProcess


class Screen:
    """Progress on standard output: one changing line on a terminal, elsewhere a line every two seconds."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._shown_at = 0.0

    def show(self, text: str) -> None:
        """Show the progress."""
        if self._is_terminal:
            print(f"\r\x1b[K{text}", end="", flush=True)
        elif time.monotonic() - self._shown_at > 2:
            self._shown_at = time.monotonic()
            print(text, flush=True)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        print(f"\r\x1b[K{text}" if self._is_terminal else text, flush=True)


def print_figure(name: str, value: int, remark: str = "") -> None:
    """Print one line of the summary."""
    print(f"{name:<20}{value:>7,}   {remark}".rstrip())


def print_latency(name: str, values: Sequence[float], remark: str) -> None:
    """Print one line of the summary, or nothing without values. The values are sorted."""
    if values:
        p50, p99 = (percentile(values, percent) * 1000 for percent in (50, 99))
        print(f"{name:<20}{len(values):>7,}   p50 {p50:.1f} ms, p99 {p99:.1f} ms; {remark}")


class Demo:
    """One run of the demo. As a context manager it leaves no process behind.

    Args:
        directory: The directory for the files of the consumer.
        backlog: The number of messages to catch up with.
        live: The number of messages published after that, at least 10.
    """

    def __init__(self, directory: Path, *, backlog: int, live: int) -> None:
        self._directory = directory
        self._backlog = backlog
        self._live = live
        self._screen = Screen()
        self._handled = HandlerFile(directory / "handled")
        self._faults: list[FaultPeriod] = []
        self._open_fault: tuple[float, Callable[[dict[str, Any]], bool]] | None = None
        self._live_since = 0.0
        self._polls_before = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._server = stack.enter_context(contextlib.closing(ServerProcess(self._backlog)))
            consumer = ConsumerProcess(self._directory, self._server.addresses)
            self._consumer = stack.enter_context(contextlib.closing(consumer))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self) -> bool:
        """Run the demo and print the figures.

        Returns:
            Whether no message was lost, and none was processed twice except those that a kill may repeat (G7).
        """
        self._catch_up()
        self._stay_current()
        stopped_well = self._wait_and_stop()
        return self._sum_up() and stopped_well

    def _catch_up(self) -> None:
        """Wait until the consumer has processed the backlog and is connected."""
        self._wait(lambda: len(self._handled.ids) >= self._backlog, "catching up")
        took = self._handled.lines[-1].entered - self._handled.lines[0].entered if self._handled.lines else 0.0
        self._screen.say(f"caught up with {len(self._handled.ids):,} messages in {took:.1f} s")
        self._wait(lambda: bool(self._server.stats()["websockets_open"]), "connecting")

    def _stay_current(self) -> None:
        """Publish live messages, and let things go wrong meanwhile."""
        self._live_since = time.monotonic()
        self._polls_before = _polls(self._server.stats())
        self._server.set_faults(drop_fraction=0.2)
        # The faults come at a sixth, a third, a half and three quarters of the way.
        when = (self._live * part // 200 for part in (33, 73, 113, 153))
        faults = dict(zip(when, (self._cut, self._answer_503, self._kill, self._cut), strict=True))
        for number in range(1, self._live + 1):
            self._server.publish()
            if number in faults:
                faults[number]()
            self._observe()
            self._screen.show(f"live: {number} published, {len(self._handled.ids) - self._backlog} processed")
            time.sleep(_pause_after(number))

    def _wait_and_stop(self) -> bool:
        """Wait for the last messages, stop the consumer, and return whether it exited with 0."""
        published = self._backlog + self._live
        self._wait(lambda: len(self._handled.ids) >= published and self._open_fault is None, "settling")
        stopped_well = self._consumer.stop() == 0
        self._handled.read()
        return stopped_well

    def _cut(self) -> None:
        """Close the websocket."""
        accepted = self._server.stats()["websockets_accepted"]
        self._begin_fault("the connection is cut", lambda stats: stats["websockets_accepted"] > accepted)
        self._server.set_faults(close_websockets=1012)

    def _answer_503(self) -> None:
        """Let the next fetch fail."""
        successes: list[int] = []  # at each observation since the 503 was answered

        def recovered(stats: dict[str, Any]) -> bool:
            if "503" in stats["statuses"]:
                successes.append(stats["statuses"]["200"])
            return bool(successes) and successes[-1] > successes[0]

        self._begin_fault("a 503 is answered", recovered)
        self._server.set_faults(fail_next=1, fail_status=503)

    def _kill(self) -> None:
        """Kill the consumer with SIGKILL, and start it again."""
        accepted = self._server.stats()["websockets_accepted"]
        self._begin_fault("the consumer is killed", lambda stats: stats["websockets_accepted"] > accepted)
        self._consumer.kill()
        self._consumer.start()

    def _begin_fault(self, what: str, recovered: Callable[[dict[str, Any]], bool]) -> None:
        """Begin a fault that lasts until `recovered` returns True for the statistics of the server."""
        self._screen.say(f"live: {what}")
        self._open_fault = (time.monotonic(), recovered)

    def _observe(self) -> None:
        """Read the lines of the handler, and end the current fault if the consumer has recovered."""
        self._handled.read()
        if self._open_fault is not None and self._open_fault[1](self._server.stats()):
            self._faults.append(FaultPeriod(self._open_fault[0], time.monotonic()))
            self._open_fault = None

    def _wait(self, happened: Callable[[], bool], what: str) -> None:
        """Wait for at most `STEP_TIMEOUT`: messages that are missing then are counted as lost."""
        ends = time.monotonic() + STEP_TIMEOUT
        while not happened() and time.monotonic() < ends:
            self._observe()
            self._screen.show(f"{what}: {len(self._handled.ids):,} processed")
            time.sleep(0.02)

    def _sum_up(self) -> bool:
        """Print the figures, and return whether nothing was lost or wrongly processed twice."""
        stats, published = self._server.stats(), self._server.published()
        lost, twice = published - self._handled.ids, processed_twice(self._handled.lines)
        inexcusable = beyond_g7(self._handled.lines, killed=self._consumer.killed, commit_interval=COMMIT_INTERVAL)
        live = _polls(stats) - self._polls_before
        coalesced = max(0, stats["pushes_sent"] - live)
        self._screen.say("")
        print_figure("published", len(published), "read from the feed by plain HTTP")
        print_figure("processed", len(self._handled.ids), "written down by the handler")
        print_figure("lost", len(lost))
        print_figure("processed twice", len(twice), f"{len(inexcusable)} of them beyond what a kill may cost (G7)")
        print_figure("polls", _polls(stats), f"{live} since it was current; {stats['fetches']} fetches in all")
        print_figure("pushes sent", stats["pushes_sent"], f"{stats['pushes_dropped']} more dropped by the server")
        print_figure("pushes coalesced", coalesced, "at least: pushes sent, less polls since it was current")
        self._print_latencies()
        return not lost and not inexcusable

    def _print_latencies(self) -> None:
        """Print the seconds from publication to handler, for live messages."""
        lines = [line for line in self._handled.lines if line.published >= self._live_since]
        found = latencies(lines, self._server.pushes(), self._faults)
        print_latency("latency by push", found.push, "their own push was sent")
        print_latency("latency by fallback", found.fallback, "their push was dropped, the timer found them")
        print_latency("by a later push", found.later_push, "their push was dropped, the next one was not")
        print_latency("across a fault", found.fault, "cut, 503 or kill until it was observed to be over")


def _pause_after(number: int) -> float:
    """Seconds of silence after the message of this number.

    In each ten messages: a burst of four, five at a steady pace, silence, one message, silence. Each fifth push is
    dropped, so the push of the tenth message is too: with silence around it, only the timer finds this message.
    """
    return {9: 0.2, 0: 0.6}.get(number % 10, 0.0 if number % 10 < 4 else 0.03)


def _polls(stats: dict[str, Any]) -> int:
    # Each poll ends with an empty page, or with a failure.
    failed: int = sum(count for status, count in stats["statuses"].items() if status != "200")
    return failed + int(stats["empty"])
