"""Call the user's handler, in a thread or a transaction if needed.

A handler is a coroutine function. The functions here convert the user's function to one, or wrap a handler. Each
works for single messages and for batches.
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
from push_to_poll_client._exceptions import OwnershipLost
from push_to_poll_client._hooks import Hooks
from push_to_poll_client._options import BatchHandler, Handler
from push_to_poll_client._protocols import LeasedSession, TransactionalSession, TransactionConflict
from push_to_poll_client._types import M, Message, Record

MessageOrBatch: TypeAlias = Message | Sequence[Message]
Work = TypeVar("Work")  # a message of the user's type, or a batch


def as_handler(
    process: Callable[[Work], Awaitable[None] | None], *, threads: int
) -> Callable[[Work], Awaitable[None]]:
    """Return a coroutine function unchanged; run a plain function in a worker thread."""
    if not callable(process) or _is_kind(process, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        raise TypeError(f"process must be a function of a message and not a generator, got {process!r}")
    if _is_kind(process, inspect.iscoroutinefunction):
        return process  # type: ignore[return-value]  # a coroutine function, as just checked

    # A plain function would stop the event loop. A thread cannot be interrupted, so a cancellation waits until the
    # function returns: a message must not be processed twice at the same time. A call that returned has processed
    # its message, so the cancellation is raised after the message is recorded (G7).
    # Several threads have a limiter of their own: they do not take from the 40 that a program shares by default.
    limiters = RunVar[CapacityLimiter | None](f"threads of {process!r}", None)

    async def in_thread(work: Work) -> None:
        if threads > 1 and limiters.get() is None:
            limiters.set(CapacityLimiter(threads))
        # In a tuple: trio reports a thread that returns a coroutine as a mistake.
        call = functools.partial(anyio.to_thread.run_sync, lambda: (process(work),), limiter=limiters.get())
        await anyio.lowlevel.checkpoint()  # raises the cancellation that came during the previous message
        (result,) = await in_own_task(call, cancel_later=True)
        if inspect.isawaitable(result):
            await result

    return in_thread


def batch_of_one(batch: BatchHandler[M]) -> Handler[M]:
    """Convert a handler of batches to a handler of single messages."""

    async def process(message: M) -> None:
        await batch([message])

    return process


def _is_kind(function: Any, *kinds: Callable[[Any], bool]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(function, "__call__", None)  # noqa: B004  # the method, for a callable object
    return any(kind(function) or kind(call) for kind in kinds)


class TransactionFailed(BaseException):
    """The store failed around a handler (see the cause); the message itself has not failed."""


def in_transaction(
    handler: Handler[Any], session: TransactionalSession, records: Callable[[Sequence[Message]], Sequence[Record]]
) -> Handler[Any]:
    """Commit the handler's writes together with the records of its messages (G8)."""

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
                continue  # not a failed attempt; the next block may wait
            except BaseException as error:
                if error is failure:
                    raise
                raise TransactionFailed from error
            return

    return process


def while_owner(handler: Handler[Any], session: LeasedSession) -> Handler[Any]:
    """Call the handler only while the session is not lost."""

    async def process(work: MessageOrBatch) -> None:
        # Read at each call: the process may have been suspended since the last one, for longer than its lease.
        if session.lost:
            raise TransactionFailed from OwnershipLost(
                "the session ended before the handler was called; the message is left to the next owner"
            )
        await handler(work)

    return process


def with_start_hook(handler: Handler[Any], hooks: Hooks) -> Handler[Any]:
    """Call the hook for each message before the handler."""

    async def process(work: MessageOrBatch) -> None:
        for message in _messages_of(work):
            hooks.message_started(message)
        await handler(work)

    return process


def _messages_of(work: MessageOrBatch) -> Sequence[Message]:
    return [work] if isinstance(work, Message) else work
