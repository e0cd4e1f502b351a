"""A lock between threads that is granted in the order of requests.

`threading.Lock` does not suffice here for three reasons. It goes to any thread that asks when it is released, most
often to the one that has just released it. Waiting for it cannot be cancelled. And it stays locked for ever if its
holder was dropped without a release; `FairLock` keeps weak references to its holders.
"""

import contextlib
import math
import threading
import time
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
    """A lock with an object as its holder. Released in any thread."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._holder: ref[object] | None = None
        self._waiting: deque[_Waiter] = deque()

    def acquire(self, holder: object, *, timeout: float = math.inf) -> bool:
        """Wait for the lock, in a worker thread, or briefly in any thread.

        Args:
            holder: Holds the lock then. The lock is free again if this object is collected as garbage.
            timeout: Seconds to wait.

        Returns:
            Whether it was acquired in time.

        Raises:
            BaseException: The task that waits for this thread was cancelled; the lock was not acquired.
        """
        with self._mutex:
            if self._is_free and not self._waiting:
                self._holder = ref(holder)
                return True
            if timeout <= 0:
                return False
            waiter = _Waiter(threading.Event(), ref(holder))
            self._waiting.append(waiter)
        deadline = time.monotonic() + timeout
        try:
            while not waiter.granted.wait(min(_CHECK_INTERVAL, max(0.0, deadline - time.monotonic()))):
                with self._mutex:
                    if self._is_free:  # the holder was dropped without a release
                        self._grant_next()
                    elif time.monotonic() >= deadline and not waiter.granted.is_set():
                        self._waiting.remove(waiter)
                        return False
                with contextlib.suppress(RuntimeError):  # not a thread of anyio: no task can be cancelled
                    from_thread.check_cancelled()
        except BaseException:
            with self._mutex:
                if waiter.granted.is_set():
                    self._grant_next()
                else:
                    self._waiting.remove(waiter)
            raise
        return True

    @property
    def holder(self) -> object | None:
        """Holder of the lock, or None."""
        return None if self._holder is None else self._holder()

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
        return self.holder is None

    def _grant_next(self) -> None:
        if self._waiting:
            waiter = self._waiting.popleft()
            self._holder = waiter.holder
            waiter.granted.set()
        else:
            self._holder = None
