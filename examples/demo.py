"""`make demo`: a consumer catches up, stays current by push, and is treated badly; then everything is counted.

Three processes: this one conducts, the reference server serves a feed and pushes, and `demo_consumer.py` consumes
with SQLite. The server drops a fifth of the pushes, cuts the connection twice and answers one 503; the consumer is
killed once and started again. The exit code is 0 only when no message was lost, and none was processed twice that
a kill does not excuse (G7).
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from demo_figures import Fault, HandlerFile, beyond_g7, latencies, percentile, processed_twice
from demo_processes import PATIENCE, ConsumerProcess, Server

BACKLOG = 20_000
LIVE = 200
FLUSH_INTERVAL = 0.05
"""Seconds; that of demo_consumer.py."""


class Screen:
    """One line that moves on a terminal; elsewhere a line now and then."""

    def __init__(self) -> None:
        self._moves = sys.stdout.isatty()
        self._shown_at = 0.0

    def show(self, text: str) -> None:
        """Show how far it is."""
        if self._moves:
            print(f"\r\x1b[K{text}", end="", flush=True)
        elif time.monotonic() - self._shown_at > 2:
            self._shown_at = time.monotonic()
            print(text, flush=True)

    def say(self, text: str) -> None:
        """Say something that stays."""
        print(f"\r\x1b[K{text}" if self._moves else text, flush=True)


class Demo:
    """The conductor."""

    def __init__(self, directory: Path) -> None:
        self.screen = Screen()
        self.server = Server(BACKLOG)
        self.handled = HandlerFile(directory / "handled")
        self.consumer = ConsumerProcess(directory, self.server.places)
        self.faults: list[Fault] = []
        self.broken: tuple[float, Callable[[dict[str, Any]], bool]] | None = None
        self.stopped_well = False
        self.live_since = 0.0
        self.polls_before = 0

    def catch_up(self) -> None:
        """From nothing to the end of the backlog."""
        self.wait(lambda: len(self.handled.ids) >= BACKLOG, "catching up")
        took = self.handled.lines[-1].entered - self.handled.lines[0].entered
        self.screen.say(f"caught up with {BACKLOG:,} messages in {took:.1f} s")
        self.wait(lambda: self.server.stats()["websockets_open"] == 1, "connecting")

    def stay_current(self) -> None:
        """200 messages, and what goes wrong meanwhile."""
        self.live_since = time.monotonic()
        self.polls_before = polls(self.server.stats())
        self.server.order(drop_fraction=0.2)
        troubles = {33: self.cut, 73: self.answer_503, 113: self.kill, 153: self.cut}
        for number in range(1, LIVE + 1):
            self.server.publish()
            troubles.get(number, lambda: None)()
            self.look()
            self.screen.show(f"live: {number} published, {len(self.handled.ids) - BACKLOG} processed")
            time.sleep(pause_after(number))

    def settle(self) -> None:
        """Wait for what is under way, and let the consumer end."""
        everything = BACKLOG + LIVE
        self.wait(lambda: len(self.handled.ids) >= everything and self.broken is None, "settling")
        self.stopped_well = self.consumer.stop() == 0
        self.handled.read()

    def cut(self) -> None:
        """Close the websocket."""
        accepted = self.server.stats()["websockets_accepted"]
        self.breaks("the connection is cut", lambda stats: stats["websockets_accepted"] > accepted)
        self.server.order(close_websockets=1012)

    def answer_503(self) -> None:
        """Let the next fetch fail."""
        well: list[int] = []

        def mended(stats: dict[str, Any]) -> bool:
            if "503" in stats["statuses"]:
                well.append(stats["statuses"]["200"])
            return bool(well) and well[-1] > well[0]

        self.breaks("a 503 is answered", mended)
        self.server.order(fail_next=1, fail_status=503)

    def kill(self) -> None:
        """SIGKILL the consumer, and start it again."""
        accepted = self.server.stats()["websockets_accepted"]
        self.breaks("the consumer is killed", lambda stats: stats["websockets_accepted"] > accepted)
        self.consumer.kill()
        self.consumer.start()

    def breaks(self, what: str, mended: Callable[[dict[str, Any]], bool]) -> None:
        """Something is broken from now on until `mended`."""
        self.screen.say(f"live: {what}")
        self.broken = (time.monotonic(), mended)

    def look(self) -> None:
        """Read what the handler wrote, and see whether what was broken is mended."""
        self.handled.read()
        if self.broken is not None and self.broken[1](self.server.stats()):
            self.faults.append(Fault(self.broken[0], time.monotonic()))
            self.broken = None

    def wait(self, happened: Callable[[], bool], what: str) -> None:
        """Until it happened, or patience ends: what is missing then is counted as lost."""
        ends = time.monotonic() + PATIENCE
        while not happened() and time.monotonic() < ends:
            self.look()
            self.screen.show(f"{what}: {len(self.handled.ids):,} processed")
            time.sleep(0.02)

    def sum_up(self) -> int:
        """Print the figures.

        Returns:
            The exit code.
        """
        stats, published = self.server.stats(), self.server.published()
        lost, twice = published - self.handled.ids, processed_twice(self.handled.lines)
        inexcusable = beyond_g7(self.handled.lines, killed=self.consumer.killed, flush_interval=FLUSH_INTERVAL)
        live = polls(stats) - self.polls_before
        coalesced = max(0, stats["pushes_sent"] - live)
        self.screen.say("")
        print_figure("published", len(published), "read from the feed by plain HTTP")
        print_figure("processed", len(self.handled.ids), "written down by the handler")
        print_figure("lost", len(lost))
        print_figure("processed twice", len(twice), f"{len(inexcusable)} of them beyond what a kill may cost (G7)")
        print_figure("polls", polls(stats), f"{live} since it was current; {stats['fetches']} fetches in all")
        print_figure("pushes sent", stats["pushes_sent"], f"{stats['pushes_dropped']} more dropped by the server")
        print_figure("pushes coalesced", coalesced, "at least: pushes sent, less polls since it was current")
        self.print_latencies()
        return 0 if self.stopped_well and not lost and not inexcusable else 1

    def print_latencies(self) -> None:
        """From publication to handler, of what was published live."""
        lines = [line for line in self.handled.lines if line.published >= self.live_since]
        found = latencies(lines, self.server.pushes(), self.faults)
        print_latency("latency by push", found.push, "their own push was sent")
        print_latency("latency by fallback", found.fallback, "their push was dropped, the timer found them")
        print_latency("by a later push", found.later_push, "their push was dropped, the next one was not")
        print_latency("across a fault", found.fault, "cut, 503 or kill until it was observed to be over")

    def close(self) -> None:
        """Leave no process behind."""
        self.consumer.close()
        self.server.stop()


def pause_after(number: int) -> float:
    """Seconds of silence after the message of this number: a burst of four, five at a pace, silence, one, silence.

    Each fifth push is dropped, so that of the last too: with silence around it, only the timer finds it.
    """
    return {9: 0.2, 0: 0.6}.get(number % 10, 0.0 if number % 10 < 4 else 0.03)


def polls(stats: dict[str, Any]) -> int:
    """Each ends with an empty answer, or with one that is none."""
    failed: int = sum(count for status, count in stats["statuses"].items() if status != "200")
    return failed + int(stats["empty"])


def print_figure(name: str, value: int, remark: str = "") -> None:
    """One line of the summary."""
    print(f"{name:<20}{value:>7,}   {remark}".rstrip())


def print_latency(name: str, values: Sequence[float], remark: str) -> None:
    """One line of the summary."""
    if values:
        p50, p99 = (percentile(values, percent) * 1000 for percent in (50, 99))
        print(f"{name:<20}{len(values):>7,}   p50 {p50:.1f} ms, p99 {p99:.1f} ms; {remark}")


def main() -> int:
    """Run it.

    Returns:
        The exit code.
    """
    directory = Path(tempfile.mkdtemp(prefix="push-to-poll-demo-"))
    demo = Demo(directory)
    try:
        demo.catch_up()
        demo.stay_current()
        demo.settle()
        code = demo.sum_up()
    except KeyboardInterrupt:
        return 130
    finally:
        demo.close()
    if code == 0:
        shutil.rmtree(directory)
    else:
        print(f"FAILED; what the consumer logged and the handler wrote is in {directory}")
    return code


if __name__ == "__main__":
    sys.exit(main())
