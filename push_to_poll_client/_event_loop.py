"""Work with the event loop where anyio offers nothing, on asyncio and trio.

Call a function in the loop from any thread without waiting for it; read its clock from any thread; start tasks in
the background at little cost; tell whether a cancellation was meant for this task; take an error out of the group
that a task group made of it; and finish a call that asyncio's own cancellation must not interrupt.
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
    """The event loop that runs now, in this thread.

    Attributes:
        time: Its clock, in seconds; can be called from any thread.
    """

    def __init__(self) -> None:
        self._native = anyio.lowlevel.current_token().native_token
        self._call_soon: Callable[[Callable[[], None]], object]
        self.time: Callable[[], float]
        if isinstance(self._native, asyncio.AbstractEventLoop):
            self._call_soon = self._native.call_soon_threadsafe
            # The clock is read for each message; half of the cost of asyncio's own `time` is the call around it.
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
        """Call a function in the loop, soon, without waiting. From any thread, and from a signal handler too.

        Returns:
            False if the loop has ended: the function will not be called.
        """
        try:
            self._call_soon(function)
        except RuntimeError:
            return False
        return True

    @property
    def has_ended(self) -> bool:
        """Whether nothing can run in the loop any more."""
        return not self.call(lambda: None)


START_CHECKPOINTS = 3
"""Checkpoints after a start. A task begins in the first, and httpx takes a lock in two more before it sends. On
trio the order of tasks within a turn is random, and it may take one more."""


class Background:
    """Tasks that run in the background, and are cancelled at the end of the block.

    Attributes:
        tasks: The task group, for functions that do not raise.
    """

    tasks: TaskGroup

    async def start(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a function that does not raise, and give it the turns that it needs to send a request."""
        self.tasks.start_soon(function)
        for _ in range(START_CHECKPOINTS):
            await anyio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        self.tasks = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not given to the task group: the error of the block is raised bare, not in a group.
        self.tasks.cancel_scope.cancel()
        await self.tasks.__aexit__(None, None, None)


def error_for_cancellation(cancelled: BaseException, name: str) -> RuntimeError:
    """Return an error for a cancellation that was not meant for this task; raise it again if it was.

    On asyncio a task also sees a `CancelledError` when other code has cancelled something that the task awaits. If
    the task took it for its own, it would end without a word.

    Args:
        cancelled: The cancellation that was caught.
        name: Name of the function that awaited what was cancelled, for the text of the error.
    """
    task = asyncio.current_task() if isinstance(cancelled, asyncio.CancelledError) else None
    if task is None or task.cancelling():
        raise cancelled
    return RuntimeError(f"{name} awaited something that was cancelled")


def asyncio_cancellation() -> Callable[[], bool]:
    """Return a function that tells whether asyncio's own cancellation of the current task was requested since."""
    task = asyncio.current_task() if anyio.get_cancelled_exc_class() is asyncio.CancelledError else None
    if task is None:
        return lambda: False
    before = task.cancelling()
    return lambda: task.cancelling() > before


def sole_cause(error: ErrorT) -> ErrorT:
    """Return the error in a group of one, as a task group raises it; any other error as it is."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = cast("ErrorT", error.exceptions[0])
    return error


async def in_own_task(
    function: Callable[[], Awaitable[T]],
    *,
    cancel_later: bool = False,
    on_cancel: Callable[[], object] = lambda: None,
) -> T:
    """Await `function()` to its end, even if the caller is cancelled, and then raise the cancellation.

    A shield is not enough: asyncio's own cancellation (`task.cancel()`, `asyncio.wait_for`) passes through it. But
    it reaches only the caller's task, and the function runs in another one.

    Args:
        function: Called in a task of its own, which no cancel scope of the caller reaches.
        cancel_later: Whether to return the result, and let the caller's next checkpoint raise the cancellation.
        on_cancel: Called as soon as the caller is cancelled.
    """
    ended = anyio.Event()
    # The event loop may cancel the task before it begins, when it shuts down.
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
        task = asyncio.create_task(call())  # kept, since asyncio's references are weak
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
                # A cancelled scope raises at each further checkpoint, asyncio's own cancellation only once.
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
    """Let the next checkpoint of this asyncio task raise a cancellation that was caught."""
    task = asyncio.current_task()
    assert task is not None  # it was cancelled  # noqa: S101
    task.uncancel()  # or its count of requests would be too high: `asyncio.timeout` compares it
    task.cancel(*cancelled.args)
