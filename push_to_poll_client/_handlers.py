"""Call the user's `process` or `process_batch`, in a thread or a transaction if need be.

A handler is a coroutine function. The functions here make one out of the user's function, and wrap one handler in
another. Each works for single messages and for batches.
"""

import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import anyio.lowlevel
import anyio.to_thread
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

from push_to_poll_client._event_loop import in_own_task
from push_to_poll_client._hooks import Hooks
from push_to_poll_client._options import BatchHandler, Handler
from push_to_poll_client._protocols import TransactionalSession, TransactionConflict
from push_to_poll_client._types import M, Message, Record

MessageOrBatch: TypeAlias = Message | Sequence[Message]
Work = TypeVar("Work")  # a message of the user's type, or a batch of them


def as_handler(
    process: Callable[[Work], Awaitable[None] | None], *, threads: int
) -> Callable[[Work], Awaitable[None]]:
    """Return a coroutine function as it is, and run a plain function in a worker thread.

    A plain function would stop the event loop. A thread cannot be interrupted: a cancellation waits until the
    function returns, since a message must not be processed twice at the same time. A call that returned has
    processed its message, so the cancellation is raised after the message is recorded (G7).

    Args:
        process: The user's function.
        threads: Calls at a time. If there may be several, they do not count towards the 40 threads that a program
            shares by default: the user has asked for this number, and other code should not wait for these
            threads.

    Raises:
        TypeError: The function cannot be called, or is a generator function, which a call does not run.
    """
    if not callable(process) or _is_kind(process, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        raise TypeError(f"process must be a function of a message, and no generator, not {process!r}")
    if _is_kind(process, inspect.iscoroutinefunction):
        return process  # type: ignore[return-value]  # it is a coroutine function, as just checked

    limiters = RunVar[CapacityLimiter | None](f"threads of {process!r}", None)

    async def in_thread(work: Work) -> None:
        if threads > 1 and limiters.get() is None:
            limiters.set(CapacityLimiter(threads))
        # In a tuple, since trio treats a thread that returns a coroutine as a mistake.
        call = functools.partial(anyio.to_thread.run_sync, lambda: (process(work),), limiter=limiters.get())
        await anyio.lowlevel.checkpoint()  # raises the cancellation that waited for the message before
        (result,) = await in_own_task(call, cancel_later=True)
        if inspect.isawaitable(result):
            await result

    return in_thread


def batch_of_one(batch: BatchHandler[M]) -> Handler[M]:
    """Make a handler of single messages out of a handler of batches."""

    async def process(message: M) -> None:
        await batch([message])

    return process


def _is_kind(function: Any, *kinds: Callable[[Any], bool]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(function, "__call__", None)  # noqa: B004  # the method itself, for an object that can be called
    return any(kind(function) or kind(call) for kind in kinds)


class TransactionFailed(BaseException):
    """The store failed around a handler, which is not a failure of its message. The cause is the store's error."""


def in_transaction(
    handler: Handler[Any], session: TransactionalSession, records: Callable[[Sequence[Message]], Sequence[Record]]
) -> Handler[Any]:
    """Wrap a handler so that its writes through the store's connection are committed with the records (G8).

    Args:
        handler: Processes a message, or a batch.
        session: Has the connection that the handler writes through.
        records: Makes the records of messages.
    """

    async def process(work: MessageOrBatch) -> None:
        while True:
            failure: BaseException | None = None
            try:
                async with session.transaction(records(_messages_of(work))):
                    try:
                        await handler(work)
                    except BaseException as error:
                        failure = error
                        raise
            except TransactionConflict:
                continue  # not a failed attempt; the next block waits where it may
            except BaseException as error:
                if error is failure:
                    raise
                raise TransactionFailed from error
            return

    return process


def with_start_hook(handler: Handler[Any], hooks: Hooks) -> Handler[Any]:
    """Wrap a handler so that the hooks are told of each message before the handler gets it, or a batch."""

    async def process(work: MessageOrBatch) -> None:
        for message in _messages_of(work):
            hooks.message_started(message)
        await handler(work)

    return process


def _messages_of(work: MessageOrBatch) -> Sequence[Message]:
    return [work] if isinstance(work, Message) else work
