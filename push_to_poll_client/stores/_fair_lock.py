"""A lock between threads that is granted in the order of requests.

`threading.Lock` does not suffice here for three reasons. It goes to any thread that asks when it is released, most
often to the one that has just released it. Waiting for it cannot be cancelled. And it stays locked for ever if its
holder was dropped without a release; `FairLock` keeps weak references to its holders.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple
from weakref import ref

from anyio import from_thread

__all__ = ["FairLock"]


_CHECK_INTERVAL = 0.05
"""Seconds between a waiting thread's checks for a cancellation of its task. 20 checks a second cost nothing."""


class _Waiter(NamedTuple):
    granted: threading.Event
    holder: "ref[object]"


class _TemporaryHolder:
    """The holder during `FairLock.held()`: `object()` itself cannot be referenced weakly."""


class FairLock:
    """A lock with an object as its holder. Acquired in a worker thread, released in any thread."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._holder: ref[object] | None = None
        self._waiting: deque[_Waiter] = deque()

    def acquire(self, holder: object) -> None:
        """Wait for the lock, in a worker thread of anyio.

        Args:
            holder: Holds the lock then. The lock is free again if this object is collected as garbage.

        Raises:
            BaseException: The task that waits for this thread was cancelled; the lock was not acquired.
        """
        with self._mutex:
            if self._is_free and not self._waiting:
                self._holder = ref(holder)
                return
            waiter = _Waiter(threading.Event(), ref(holder))
            self._waiting.append(waiter)
        try:
            while not waiter.granted.wait(_CHECK_INTERVAL):
                with self._mutex:
                    if self._is_free:  # the holder was dropped without a release
                        self._grant_next()
                from_thread.check_cancelled()
        except BaseException:
            with self._mutex:
                if waiter.granted.is_set():
                    self._grant_next()
                else:
                    self._waiting.remove(waiter)
            raise

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock in the `with` body. Raises as `acquire` does."""
        holder = _TemporaryHolder()
        self.acquire(holder)
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Release the lock: the next waiter gets it."""
        with self._mutex:
            self._grant_next()

    @property
    def _is_free(self) -> bool:
        return self._holder is None or self._holder() is None

    def _grant_next(self) -> None:
        if self._waiting:
            waiter = self._waiting.popleft()
            self._holder = waiter.holder
            waiter.granted.set()
        else:
            self._holder = None
