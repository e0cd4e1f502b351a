"""Call the user's `process` or `process_batch`, in a thread or a transaction if need be."""

import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

from push_to_poll_client._event_loop import in_own_task
from push_to_poll_client._options import BatchHandler, Handler
from push_to_poll_client._progress import Progress
from push_to_poll_client._protocols import TransactionalSession
from push_to_poll_client._types import Message, Record

__all__ = [
    "TransactionFailed",
    "as_handler",
    "batch_of_one",
    "in_transaction",
]


MessageOrBatch = TypeVar("MessageOrBatch", Message, Sequence[Message])


def as_handler(
    process: Callable[[MessageOrBatch], Awaitable[None] | None], *, threads: int
) -> Callable[[MessageOrBatch], Awaitable[None]]:
    """A coroutine function as it is; a plain function in a worker thread, so that it does not stop the event loop.

    A thread cannot be interrupted: a cancellation waits until the function returns, since a message must not be
    in two hands at once.

    Args:
        process: The user's function.
        threads: How many calls there may be at a time. Several are not held to the 40 threads that a program
            shares by default: who asks for them wants them, and others should not wait for them.

    Raises:
        TypeError: It cannot be called, or is a generator function, which calling does not run.
    """
    if not callable(process) or _is_kind(process, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        raise TypeError(f"process must be a function of a message, and no generator, not {process!r}")
    if _is_kind(process, inspect.iscoroutinefunction):
        return process  # type: ignore[return-value]  # that is what was just asked

    limiters = RunVar[CapacityLimiter | None](f"threads of {process!r}", None)

    async def in_thread(work: MessageOrBatch) -> None:
        if threads > 1 and limiters.get() is None:
            limiters.set(CapacityLimiter(threads))
        # In a tuple, since trio takes a thread that returns a coroutine for a mistake.
        call = functools.partial(anyio.to_thread.run_sync, lambda: (process(work),), limiter=limiters.get())
        (result,) = await in_own_task(call)
        if inspect.isawaitable(result):
            await result

    return in_thread


def batch_of_one(batch: BatchHandler) -> Handler:
    """A handler of batches, for a message that stands alone."""

    async def process(message: Message) -> None:
        await batch([message])

    return process


def _is_kind(function: Any, *kinds: Callable[[Any], bool]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    called = getattr(function, "__call__", None)  # noqa: B004  # not whether it can be called, but what is
    return any(kind(function) or kind(called) for kind in kinds)


class TransactionFailed(BaseException):
    """The store failed around a handler, which is no failure of its message. The cause is how."""


def in_transaction(
    handler: Callable[[MessageOrBatch], Awaitable[None]],
    session: TransactionalSession,
    progress: Progress,
    records: Callable[[MessageOrBatch], Sequence[Record]],
) -> Callable[[MessageOrBatch], Awaitable[None]]:
    """The handler, so that what it writes through the store's connection is committed with the records.

    Args:
        handler: Processes a message, or several.
        session: Whose connection it writes through.
        progress: Told when what it was to commit is undone.
        records: Those of a message, or several.
    """

    async def process(work: MessageOrBatch) -> None:
        failure: BaseException | None = None
        try:
            async with session.effects(records(work)):
                try:
                    await handler(work)
                except BaseException as error:
                    failure = error
                    raise
        except BaseException as error:
            if error is failure:
                raise
            progress.discard_uncommitted()
            raise TransactionFailed from error

    return process
