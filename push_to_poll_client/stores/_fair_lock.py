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
    granted: threading.Event
    holder: "ref[object]"


class _TemporaryHolder:
    """Who takes a turn for a moment."""


class FairLock:
    """The right to go on, had by one at a time. Taken in a worker thread, given back in any thread."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._holder: ref[object] | None = None
        self._waiting: deque[_Waiter] = deque()

    def acquire(self, who: object) -> None:
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
            while not mine.granted.wait(_CHECK_INTERVAL):
                self._grant_if_free()
                from_thread.check_cancelled()
        except BaseException:
            self._withdraw(mine)
            raise

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Have it within the block. Raises as `acquire` does."""
        who = _TemporaryHolder()
        self.acquire(who)
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """The next may go on."""
        with self._mutex:
            self._grant_next()

    @property
    def _is_free(self) -> bool:
        return self._holder is None or self._holder() is None

    def _grant_if_free(self) -> None:
        with self._mutex:
            if self._is_free:
                self._grant_next()

    def _grant_next(self) -> None:
        if self._waiting:
            following = self._waiting.popleft()
            self._holder = following.holder
            following.granted.set()
        else:
            self._holder = None

    def _withdraw(self, mine: _Waiter) -> None:
        with self._mutex:
            if mine.granted.is_set():
                self._grant_next()
            else:
                self._waiting.remove(mine)
