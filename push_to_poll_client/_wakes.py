"""Wakes on their way to the event loop: from any thread, bounded, never lost.

A wake is put into a list, and the event loop is asked to empty the list, unless it was already asked. While no
loop runs, wakes stay in the list until the next one opens it.
"""

import threading
from collections.abc import Callable
from functools import partial

from push_to_poll_client._event_loop import EventLoop
from push_to_poll_client._types import Push

__all__ = ["Wakes"]


CAPACITY = 64
"""Pushes kept one by one while the loop is busy or not running (G11). Any further ones become a single push
without a hint."""


class Wakes:
    """The pushes between `wake()` and the event loop."""

    def __init__(self) -> None:
        self._deliver: Callable[[Push | None], None] | None = None
        self._lock = threading.RLock()  # a signal handler may run while its own thread holds the lock
        self._pushes: list[Push | None] = []
        self._loop: EventLoop | None = None
        self._drain_scheduled = False

    def put(self, push: Push | None) -> None:
        """Add a wake, from any thread. Never blocks on the event loop."""
        with self._lock:
            if len(self._pushes) < CAPACITY:
                self._pushes.append(push)
            else:
                self._pushes[-1] = Push()  # without a hint, so that the schedule cannot drop it
            if self._loop is None or self._drain_scheduled:
                return
            loop, self._drain_scheduled = self._loop, True
        try:
            loop.call(partial(self._drain, loop))
        except RuntimeError:  # the loop has ended meanwhile; the next one takes the pushes
            with self._lock:
                self._drain_scheduled = False

    def open(self, loop: EventLoop, deliver: Callable[[Push | None], None]) -> None:
        """From now on call `deliver` in this loop with each push, first with those that wait here."""
        with self._lock:
            self._loop, self._deliver, self._drain_scheduled = loop, deliver, False
        self._drain(loop)

    def close(self) -> None:
        """Deliver no more; later pushes are kept for the next loop."""
        with self._lock:
            self._loop = self._deliver = None

    def _drain(self, loop: EventLoop) -> None:
        with self._lock:
            if self._loop is not loop:  # it was asked before the wakes were closed, or opened in another loop
                return
            self._drain_scheduled = False
            deliver, pushes, self._pushes = self._deliver, self._pushes, []
        assert deliver is not None  # as long as there is a loop  # noqa: S101
        for push in pushes:
            deliver(push)
