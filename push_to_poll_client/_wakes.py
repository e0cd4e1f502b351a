"""Wakes on their way to the event loop: from any thread, bounded, never lost."""

import threading
from collections.abc import Callable

from push_to_poll_client._event_loop import EventLoop
from push_to_poll_client._types import Push

__all__ = [
    "Wakes",
]


CAPACITY = 64
"""Pushes kept apart while the loop is busy or not running. Past that they are one push that nothing can drop."""


class Wakes:
    """Where `wake()` leaves a push; an event loop, when there is one, takes them out."""

    def __init__(self) -> None:
        self._deliver: Callable[[Push | None], None] | None = None
        self._lock = threading.RLock()  # a signal handler may come while its own thread is in here
        self._pushes: list[Push | None] = []
        self._loop: EventLoop | None = None
        self._drain_scheduled = False

    def put(self, push: Push | None) -> None:
        """Take a wake from any thread. Never blocks on the event loop."""
        with self._lock:
            self._append(push)
            loop = None if self._drain_scheduled else self._loop
            self._drain_scheduled = loop is not None
        if loop is not None:
            self._schedule_drain(loop)

    def open(self, loop: EventLoop, deliver: Callable[[Push | None], None]) -> None:
        """From here on call `deliver` in this loop with each push, those first that were left here before."""
        with self._lock:
            self._loop, self._deliver = loop, deliver
        self._drain()

    def close(self) -> None:
        """No loop takes pushes any more; they are kept for the next one."""
        with self._lock:
            self._loop = self._deliver = None

    def _append(self, push: Push | None) -> None:
        if len(self._pushes) < CAPACITY:
            self._pushes.append(push)
        else:
            self._pushes[-1] = Push()  # without a hint, so that it cannot be dropped for one

    def _schedule_drain(self, loop: EventLoop) -> None:
        try:
            loop.call(self._drain)
        except RuntimeError:  # the loop ended meanwhile; what is here waits for the next one
            with self._lock:
                self._drain_scheduled = False

    def _drain(self) -> None:
        with self._lock:
            self._drain_scheduled = False
            if (deliver := self._deliver) is None:
                return
            pushes, self._pushes = self._pushes, []
        for push in pushes:
            deliver(push)
