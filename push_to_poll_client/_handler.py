"""What the user wrote as `process`, made into one kind of function."""

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio.to_thread

from push_to_poll_client._event_loop import in_own_task
from push_to_poll_client._processor import Handler
from push_to_poll_client._types import Message

__all__ = ["Process", "as_handler"]

Process: TypeAlias = Callable[[Message], Awaitable[None] | None]


def as_handler(process: Process) -> Handler:
    """A coroutine function as it is; a plain function in a worker thread, so that it does not stop the event loop.

    A thread cannot be interrupted: a cancellation waits until the function returns, since a message must not be
    in two hands at once.

    Raises:
        TypeError: It cannot be called, or is a generator function, which calling does not run.
    """
    if not callable(process) or _is(process, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        raise TypeError(f"process must be a function of a message, and no generator, not {process!r}")
    if _is(process, inspect.iscoroutinefunction):
        return process  # type: ignore[return-value]  # that is what was just asked

    async def in_thread(message: Message) -> None:
        # In a tuple, since trio takes a thread that returns a coroutine for a mistake.
        call = functools.partial(anyio.to_thread.run_sync, lambda: (process(message),))
        (result,) = await in_own_task(call)
        if inspect.isawaitable(result):
            await result

    return in_thread


def _is(function: Any, *kinds: Callable[[Any], bool]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    called = getattr(function, "__call__", None)  # noqa: B004  # not whether it can be called, but what is
    return any(kind(function) or kind(called) for kind in kinds)
