"""Functions of the event loop that anyio lacks, for asyncio and trio.

Call a function in the loop from any thread, read its clock from any thread, start cheap background tasks,
recognise a cancellation that was meant for another task, and finish a call that asyncio's own cancellation must
not interrupt.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

T = TypeVar("T")
ErrorT = TypeVar("ErrorT", bound=BaseException)

wall_clock = time.time


class EventLoop:
    """The event loop of this thread, with a clock readable from any thread."""

    def __init__(self) -> None:
        self._native = anyio.lowlevel.current_token().native_token
        self._call_soon: Callable[[Callable[[], None]], object]
        self.time: Callable[[], float]
        if isinstance(self._native, asyncio.AbstractEventLoop):
            self._call_soon = self._native.call_soon_threadsafe
            # The clock is read for each message, and the method around it doubles the cost.
            own_time = type(self._native).time is asyncio.BaseEventLoop.time
            self.time = time.monotonic if own_time else self._native.time
        else:
            import trio

            clock = trio.lowlevel.current_clock()
            self._call_soon, self.time = trio.lowlevel.current_trio_token().run_sync_soon, clock.current_time

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EventLoop) and other._native is self._native

    __hash__ = None  # type: ignore[assignment]  # only compared, never a key of a dict

    def call(self, function: Callable[[], None]) -> bool:
        """Schedule a function from any thread or a signal handler; return False if the loop has ended."""
        try:
            self._call_soon(function)
        except RuntimeError:
            return False
        return True

    @property
    def has_ended(self) -> bool:
        """True if nothing can run in the loop any more."""
        return not self.call(lambda: None)


# Checkpoints after a start. A task begins in the first, and httpx takes a lock in two more before it sends. trio
# may take one more, because it orders the tasks of a turn at random.
START_CHECKPOINTS = 3


class Background:
    """Background tasks that are cancelled at the end of the block. Only for functions that do not raise."""

    tasks: TaskGroup

    async def start(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a function that does not raise, and let it send a request."""
        self.tasks.start_soon(function)
        for _ in range(START_CHECKPOINTS):
            await anyio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        self.tasks = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not passed to the task group, which would wrap the block's error in a group.
        self.tasks.cancel_scope.cancel()
        await self.tasks.__aexit__(None, None, None)


def error_for_cancellation(cancelled: BaseException, name: str) -> RuntimeError:
    """Raise a cancellation meant for this task; return an error for others."""
    # On asyncio a task also gets a `CancelledError` when other code cancels something that the task awaits. A task
    # that took it for its own cancellation would end silently.
    task = asyncio.current_task() if isinstance(cancelled, asyncio.CancelledError) else None
    if task is None or task.cancelling():
        raise cancelled
    return RuntimeError(
        f"{name} awaited a task or future that other code cancelled; catch the CancelledError at that await"
    )


def asyncio_cancellation() -> Callable[[], bool]:
    """Return a function: True if asyncio has cancelled this task since now."""
    task = asyncio.current_task() if anyio.get_cancelled_exc_class() is asyncio.CancelledError else None
    if task is None:
        return lambda: False
    before = task.cancelling()
    return lambda: task.cancelling() > before


def sole_cause(error: ErrorT) -> ErrorT:
    """Return the only error of an exception group; any other error unchanged."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = cast("ErrorT", error.exceptions[0])
    return error


async def in_own_task(
    function: Callable[[], Awaitable[T]],
    *,
    cancel_later: bool = False,
    on_cancel: Callable[[], object] = lambda: None,
) -> T:
    """Await `function()` to its end even if the caller is cancelled; raise the cancellation afterwards."""
    # With `cancel_later` the result is returned, and the caller's next checkpoint raises the cancellation.
    # A shield is not enough: asyncio's own cancellation (`task.cancel()`, `asyncio.wait_for`) passes through it.
    # It reaches only the caller's task, so the function runs in another one.
    ended = anyio.Event()
    # If the event loop shuts down, it can cancel the task before it begins.
    error: BaseException | None = asyncio.CancelledError()
    result: T

    async def call() -> None:
        nonlocal error, result
        try:
            result, error = await function(), None
        except BaseException as raised:  # noqa: BLE001  # raised below
            error = raised
        finally:
            ended.set()

    if anyio.get_cancelled_exc_class() is asyncio.CancelledError:
        task = asyncio.create_task(call())  # kept: asyncio has only a weak reference
        task.add_done_callback(lambda _: ended.set())
    else:
        import trio

        trio.lowlevel.spawn_system_task(call, context=copy_context())
    cancelled: BaseException | None = None
    shield = False
    while not ended.is_set():
        with anyio.CancelScope(shield=shield):
            try:
                await ended.wait()
            except anyio.get_cancelled_exc_class() as raised:
                # A cancelled scope raises again at the next checkpoint, asyncio's own cancellation does not.
                if anyio.current_effective_deadline() > -math.inf:
                    cancelled = raised
                on_cancel()
        shield = True
    if cancelled is not None:
        if not cancel_later or isinstance(error, asyncio.CancelledError):
            raise cancelled
        _cancel_again(cancelled)
    if error is not None:
        raise error
    return result


def _cancel_again(cancelled: BaseException) -> None:
    """Raise a caught cancellation at the next checkpoint of this asyncio task."""
    task = asyncio.current_task()
    assert task is not None  # it was cancelled  # noqa: S101
    task.uncancel()  # otherwise the count that `asyncio.timeout` compares would be too high
    task.cancel(*cancelled.args)
