"""What anyio does not offer of an event loop.

To reach it from a thread without waiting for it, to read its clock from there, and to tell who cancelled.
"""

import asyncio
import threading
from collections.abc import Callable

import anyio.lowlevel

__all__ = ["EventLoop", "is_cancelled"]


class EventLoop:
    """The event loop that runs now, in this thread.

    Attributes:
        time: Its clock, in seconds; callable from any thread.
    """

    def __init__(self) -> None:
        self._native = anyio.lowlevel.current_token().native_token
        self._thread = threading.get_ident()
        self._call_soon: Callable[[Callable[[], None]], object]
        self.time: Callable[[], float]
        if isinstance(self._native, asyncio.AbstractEventLoop):
            self._call_soon, self.time = self._native.call_soon_threadsafe, self._native.time
        else:
            import trio

            clock = trio.lowlevel.current_clock()
            self._call_soon, self.time = trio.lowlevel.current_trio_token().run_sync_soon, clock.current_time

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EventLoop) and other._native is self._native

    __hash__ = None  # type: ignore[assignment]  # compared, never a key

    def call(self, function: Callable[[], None]) -> None:
        """Call it in the loop: now when this is the loop's thread, else soon, without waiting.

        Raises:
            RuntimeError: The loop has ended; nothing will be called.
        """
        if threading.get_ident() == self._thread:
            function()
        else:
            self._call_soon(function)


def is_cancelled() -> bool:
    """Whether the current task, which has just caught a cancellation, was itself asked to end.

    On asyncio a task also sees a `CancelledError` when something that it awaits was cancelled by somebody else.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no asyncio loop runs: trio raises `Cancelled` only in the task that is cancelled
        return True
    return task is not None and task.cancelling() > 0
