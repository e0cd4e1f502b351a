"""A lock between threads that is given in the order in which it was asked for.

A lock of `threading` does not do: it is had by whoever comes by when it is let go, most often by the one that just
let it go, waiting for it cannot be cancelled, and nobody has it ever again when its holder was dropped.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple
from weakref import ref

from anyio import from_thread

__all__ = [
    "FairLock",
]


_CHECK_INTERVAL = 0.05
"""Seconds after which a waiting thread looks whether its task was cancelled: 20 times a second costs nothing."""


class _Waiter(NamedTuple):
    called: threading.Event
    who: "ref[object]"


class _TemporaryHolder:
    """Who takes a turn for a moment."""


class FairLock:
    """The right to go on, had by one at a time. Taken in a worker thread, given back in any thread."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._holder: ref[object] | None = None
        self._waiting: deque[_Waiter] = deque()

    def take(self, who: object) -> None:
        """Wait for it, in a worker thread of anyio.

        Args:
            who: Has it from then on. It ends with them, should they be dropped.

        Raises:
            BaseException: The task was cancelled that waits for this thread; it has no turn.
        """
        with self._mutex:
            if self._is_free and not self._waiting:
                self._holder = ref(who)
                return
            mine = _Waiter(threading.Event(), ref(who))
            self._waiting.append(mine)
        try:
            while not mine.called.wait(_CHECK_INTERVAL):
                self._look()
                from_thread.check_cancelled()
        except BaseException:
            self._leave(mine)
            raise

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Have it within the block. Raises as `take` does."""
        who = _TemporaryHolder()
        self.take(who)
        try:
            yield
        finally:
            self.give_back()

    def give_back(self) -> None:
        """The next may go on."""
        with self._mutex:
            self._next()

    @property
    def _is_free(self) -> bool:
        return self._holder is None or self._holder() is None

    def _look(self) -> None:
        with self._mutex:
            if self._is_free:
                self._next()

    def _next(self) -> None:
        if self._waiting:
            following = self._waiting.popleft()
            self._holder = following.who
            following.called.set()
        else:
            self._holder = None

    def _leave(self, mine: _Waiter) -> None:
        with self._mutex:
            if mine.called.is_set():
                self._next()
            else:
                self._waiting.remove(mine)
