"""What anyio does not offer of an event loop.

To reach it from a thread without waiting for it, to read its clock from there, to tell who was cancelled, and to
finish what asyncio's own cancellation must not cut.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import anyio.lowlevel

__all__ = ["EventLoop", "failure_of", "in_own_task"]

T = TypeVar("T")


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
            self._call_soon, self.time = self._native.call_soon_threadsafe, self._native.time
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


def failure_of(cancelled: BaseException, who: str) -> RuntimeError:
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
