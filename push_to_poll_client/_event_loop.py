"""What anyio does not offer of an event loop.

To reach it from a thread without waiting for it, to read its clock from there, to tell who was cancelled, and to
finish what asyncio's own cancellation must not cut.
"""

import asyncio
import functools
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

__all__ = ["Background", "EventLoop", "TimeOfDay", "error_for_cancellation", "in_own_task"]

T = TypeVar("T")

START_CHECKPOINTS = 3
"""Of the event loop: what is started begins in the first, and httpx takes a lock in two more before it sends. On
trio it is chance who comes first in a turn, and it may take one more."""


wall_clock = time.time


class EventLoop:
    """The event loop that runs now, in this thread.

    Attributes:
        time: Its clock, in seconds; callable from any thread.
    """

    def __init__(self) -> None:
        self._native = anyio.lowlevel.current_token().native_token
        self._call_soon: Callable[[Callable[[], None]], object]
        self.time: Callable[[], float]
        if isinstance(self._native, asyncio.AbstractEventLoop):
            self._call_soon = functools.partial(_call_soon, self._native, threading.get_ident())
            self.time = _clock_of(self._native)
        else:
            import trio

            clock = trio.lowlevel.current_clock()
            self._call_soon, self.time = trio.lowlevel.current_trio_token().run_sync_soon, clock.current_time

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EventLoop) and other._native is self._native

    __hash__ = None  # type: ignore[assignment]  # compared, never a key

    def call(self, function: Callable[[], None]) -> None:
        """Call it in the loop, soon, without waiting. From any thread, and from a signal handler too.

        Raises:
            RuntimeError: The loop has ended; nothing will be called.
        """
        self._call_soon(function)


def _call_soon(loop: asyncio.AbstractEventLoop, thread: int, function: Callable[[], None]) -> None:
    """Within a task the loop need not be woken, which takes it a write, a read and a turn.

    A signal handler that cut into a task is followed by what is left of its step; one that cut into the waiting of
    the loop finds no task.
    """
    if threading.get_ident() == thread and asyncio.current_task(loop) is not None:
        loop.call_soon(function)
    else:
        loop.call_soon_threadsafe(function)


def _clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The clock itself where asyncio says which it is: read for each message, half of it is the way there."""
    return time.monotonic if type(loop).time is asyncio.BaseEventLoop.time else loop.time


class TimeOfDay:
    """Seconds since the epoch, by the event loop's clock, which does not jump.

    Args:
        clock: The event loop's.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._epoch = wall_clock() - clock()

    def now(self) -> float:
        """That of now."""
        return self._epoch + self._clock()

    def of(self, moment: float) -> float:
        """That of a moment on the event loop's clock."""
        return self._epoch + moment


class Background:
    """What runs beside a task, and ends with the block. While nothing does, it costs nothing.

    Attributes:
        tasks: Where more can be started; `None` before the first was.
    """

    def __init__(self) -> None:
        self.tasks: TaskGroup | None = None

    async def start(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start it, which must not raise, and give it the turns that it needs to send a request."""
        if self.tasks is None:
            self.tasks = await anyio.create_task_group().__aenter__()
        self.tasks.start_soon(function)
        for _ in range(START_CHECKPOINTS):
            await anyio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what runs. What the block raised is raised bare."""
        if self.tasks is not None:
            self.tasks.cancel_scope.cancel()
            await self.tasks.__aexit__(None, None, None)


def error_for_cancellation(cancelled: BaseException, who: str) -> RuntimeError:
    """What failed, when a task has caught a cancellation that was not meant for it.

    On asyncio a task also sees a `CancelledError` when something that it awaits was cancelled by somebody else.
    Taken for its own, it would end the task without a word.

    Args:
        cancelled: What was caught. Raised again if this task was meant.
        who: Who awaited what was cancelled.
    """
    task = asyncio.current_task() if isinstance(cancelled, asyncio.CancelledError) else None
    if task is None or task.cancelling():
        raise cancelled
    return RuntimeError(f"{who} awaited something that was cancelled")


async def in_own_task(function: Callable[[], Awaitable[T]]) -> T:
    """Await `function()` to its end, whatever cancels the caller, and then let the cancellation through.

    A shield is not enough: asyncio's own cancellation (`task.cancel()`, `asyncio.wait_for`) pierces it, but it
    reaches one task only, and that is not the one that works here.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    async def call() -> None:
        with anyio.CancelScope(shield=True):
            try:
                results.append(await function())
            except BaseException as error:  # noqa: BLE001  # raised below, without a group around it
                errors.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
    if errors:
        raise errors[0]
    return results[0]
