"""How is the demo shown?"""

import sys
import time
from collections.abc import Sequence

from push_to_poll_client.cli.demo._figures import percentile

__all__ = ["Screen", "print_figure", "print_latency"]


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


def print_figure(name: str, value: int, remark: str = "") -> None:
    """One line of the summary."""
    print(f"{name:<20}{value:>7,}   {remark}".rstrip())


def print_latency(name: str, values: Sequence[float], remark: str) -> None:
    """One line of the summary; none when there is nothing to tell. The values are sorted."""
    if values:
        p50, p99 = (percentile(values, percent) * 1000 for percent in (50, 99))
        print(f"{name:<20}{len(values):>7,}   p50 {p50:.1f} ms, p99 {p99:.1f} ms; {remark}")
