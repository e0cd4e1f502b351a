"""What the user wrote as `process`, made into one kind of function."""

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio.to_thread

from push_to_poll_client._processor import Handler
from push_to_poll_client._types import Message

__all__ = ["Process", "as_handler"]

Process: TypeAlias = Callable[[Message], Awaitable[None] | None]


def as_handler(process: Process) -> Handler:
    """A coroutine function as it is; a plain function in a worker thread, so that it does not stop the event loop.

    A thread cannot be interrupted: a cancellation waits until the function returns, since a message must not be
    in two hands at once.
    """
    if _is_async(process):
        return process  # type: ignore[return-value]  # that is what was just asked

    async def in_thread(message: Message) -> None:
        # In a tuple, since trio takes a thread that returns a coroutine for a mistake.
        (result,) = await anyio.to_thread.run_sync(lambda: (process(message),))
        if inspect.isawaitable(result):
            await result

    return in_thread


def _is_async(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # not whether it can be called, but what is
    )
