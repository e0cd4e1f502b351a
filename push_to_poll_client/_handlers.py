"""Call the user's handler, in a thread or a transaction if needed.

A handler is a coroutine function. The functions here convert the user's function to one, or wrap a handler. Each
works for single messages and for batches.
"""

import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, TypeAlias, TypeVar

import anyio.lowlevel
import anyio.to_thread
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

from push_to_poll_client._event_loop import in_own_task
from push_to_poll_client._exceptions import OwnershipLost
from push_to_poll_client._hooks import Hooks
from push_to_poll_client._options import BatchHandler, Handler
from push_to_poll_client._protocols import EffectsRefused, LeasedSession, TransactionalSession, TransactionConflict
from push_to_poll_client._types import M, Message, Record

MessageOrBatch: TypeAlias = Message | Sequence[Message]
Work = TypeVar("Work")  # a message of the user's type, or a batch

_thread_block: ContextVar[Callable[[], AbstractContextManager[None]] | None] = ContextVar(
    "push_to_poll_client_thread_block", default=None
)
"""Returns the block in which the next plain function is called, in its worker thread."""


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
        in_block = functools.partial(_call_in_block, _thread_block.get(), process, work)
        call = functools.partial(anyio.to_thread.run_sync, in_block, limiter=limiters.get())
        await anyio.lowlevel.checkpoint()  # raises the cancellation that came during the previous message
        (result,) = await in_own_task(call, cancel_later=True)
        if inspect.isawaitable(result):
            await result

    in_thread.is_in_thread = True  # type: ignore[attr-defined]
    return in_thread


def _call_in_block(
    block: Callable[[], AbstractContextManager[None]] | None, process: Callable[[Work], object], work: Work
) -> tuple[object]:
    if block is None:
        return (process(work),)
    _thread_block.set(None)  # for what the handler calls; the thread has a copy of the context
    failure: BaseException | None = None
    try:
        with block():
            try:
                result = process(work)
            except BaseException as error:
                failure = error
                raise
            if inspect.isawaitable(result):
                if inspect.iscoroutine(result):
                    result.close()  # without this Python warns that it was never awaited
                failure = TypeError(
                    f"{process!r} is a plain function that returned an awaitable, which would run outside the "
                    "transaction of its message; define it with async def"
                )
                raise failure  # noqa: TRY301  # the transaction is undone
            return (result,)
    except (TransactionConflict, EffectsRefused):
        raise
    except BaseException as error:
        if error is failure:
            raise
        raise TransactionFailed from error


def batch_of_one(batch: BatchHandler[M]) -> Handler[M]:
    """Convert a handler of batches to a handler of single messages."""

    async def process(message: M) -> None:
        await batch([message])

    return _in_same_place(process, batch)


def _in_same_place(process: Handler[M], wrapped: Callable[..., object]) -> Handler[M]:
    """Mark a wrapper as running in a worker thread if the wrapped handler does."""
    process.is_in_thread = getattr(wrapped, "is_in_thread", False)  # type: ignore[attr-defined]
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
    # A plain function has its transaction in its own thread, if the store can: some libraries have a connection
    # for each thread, and it saves two changes of the thread.
    in_thread = getattr(session, "transaction_in_thread", None)
    if in_thread is not None and getattr(handler, "is_in_thread", False):
        return _in_thread_transaction(handler, in_thread, records)

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
            except EffectsRefused:  # a failed attempt
                raise
            except BaseException as error:
                if error is failure:
                    raise
                raise TransactionFailed from error
            return

    return process


def _in_thread_transaction(
    handler: Handler[Any],
    transaction: Callable[[Sequence[Record]], AbstractContextManager[None]],
    records: Callable[[Sequence[Message]], Sequence[Record]],
) -> Handler[Any]:
    async def process(work: MessageOrBatch) -> None:
        token = _thread_block.set(functools.partial(transaction, records(_messages_of(work))))
        try:
            while True:
                try:
                    await handler(work)
                except TransactionConflict:
                    continue
                return
        finally:
            _thread_block.reset(token)

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

    return _in_same_place(process, handler)


def with_start_hook(handler: Handler[Any], hooks: Hooks) -> Handler[Any]:
    """Call the hook for each message before the handler."""

    async def process(work: MessageOrBatch) -> None:
        for message in _messages_of(work):
            hooks.message_started(message)
        await handler(work)

    return process


def _messages_of(work: MessageOrBatch) -> Sequence[Message]:
    return [work] if isinstance(work, Message) else work
