"""Call plain functions one after another in one worker thread.

`anyio.to_thread.run_sync` takes 100 µs of processor time for each call, and several turns of the event loop. A
queue takes a third of it. The thread itself is one such call, so `anyio.from_thread` works in the functions.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar, copy_context
from queue import SimpleQueue
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio import CapacityLimiter

from push_to_poll_client._event_loop import EventLoop, raise_again, spawn, until_ended

try:
    from sniffio import current_async_library_cvar
except ImportError:  # then anyio does not use it either
    current_async_library_cvar = ContextVar("unused")

T = TypeVar("T")

_shared: ContextVar["WorkerThread | None"] = ContextVar("push_to_poll_client_worker_thread", default=None)


class WorkerThread:
    """A thread that begins with its first call. Its methods are for the event loop."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._loop = EventLoop()
        self._answered = anyio.Event()  # of the running call
        self._failure: BaseException | None = None  # of the thread itself
        self._task: object = None
        self._is_stopped = self._is_busy = False

    @property
    def is_free(self) -> bool:
        """True if a call begins at once."""
        return not (self._is_busy or self._is_stopped)

    async def call(self, function: Callable[[], T]) -> T:
        """Call a function to its end. The caller's next checkpoint raises a cancellation that came meanwhile."""
        # As many functions run at a time as with `run_sync`.
        limiter = anyio.to_thread.current_default_thread_limiter()
        self._is_busy = True
        try:
            try:
                limiter.acquire_on_behalf_of_nowait(self)
            except anyio.WouldBlock:
                await limiter.acquire_on_behalf_of(self)
            try:
                return await self._call(function)
            finally:
                limiter.release_on_behalf_of(self)
        finally:
            self._is_busy = False

    async def _call(self, function: Callable[[], T]) -> T:
        answered = self._answered = anyio.Event()
        context = copy_context()
        context.run(current_async_library_cvar.set, None)  # the thread has no event loop
        error: BaseException | None = None
        has_result, result = False, None

        def in_thread() -> None:
            nonlocal error, has_result, result
            try:
                result, has_result = context.run(function), True
            except BaseException as raised:  # noqa: BLE001  # raised in the event loop
                error = raised
            self._loop.call(answered.set)

        self._start()
        self._calls.put(in_thread)
        cancelled = await until_ended(answered)
        if not has_result and error is None:
            error = self._failure or asyncio.CancelledError()
        if error is not None:
            self.stop()  # the message may wait for its retry for long, and many consumers would keep a thread each
        raise_again(cancelled, error)
        return result  # type: ignore[return-value]  # it has a result

    def _start(self) -> None:
        if self._task is None:
            self._task = spawn(self._serve, self._end)

    async def _serve(self) -> None:
        try:
            await anyio.to_thread.run_sync(self._work, limiter=CapacityLimiter(1))
        except Exception as error:  # noqa: BLE001  # raised by the call
            self._failure = error
        finally:
            self._end()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # it keeps the function's result

    def _end(self) -> None:
        self.stop()
        self._answered.set()

    def stop(self) -> None:
        """End the thread after its running call."""
        self._is_stopped = True
        self._calls.put(None)


@asynccontextmanager
async def shared_thread() -> AsyncIterator[None]:
    """Keep one thread for plain functions that are called in this block; see `free_thread`."""
    thread = WorkerThread()
    token = _shared.set(thread)
    try:
        yield
    finally:
        thread.stop()
        _shared.reset(token)


def free_thread() -> WorkerThread | None:
    """Return the thread of the block that the caller is in, if no other task uses it now."""
    thread = _shared.get()
    return thread if thread is not None and thread.is_free else None
