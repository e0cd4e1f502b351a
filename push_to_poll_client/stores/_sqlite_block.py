"""What surrounds one call of a handler? A block of effects: a savepoint, and the right to use the connection."""

from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import TypeVar

import anyio
from anyio import CapacityLimiter, to_thread

from push_to_poll_client._types import Record
from push_to_poll_client.stores._sqlite_effects import Transaction
from push_to_poll_client.stores._sqlite_guard import Place

__all__ = ["Block", "in_thread", "undo"]

_T = TypeVar("_T")


class Block(Place):
    """A block of effects, once.

    What it raises itself, as it begins or ends, undoes all since the last commit, a cancellation too: whoever
    calls can tell no more from it.

    Args:
        transaction: Of the session, in which it is a savepoint.
        records: What is committed with what is written within it.
        gate: Held while it runs: blocks and commits of a session come one after the other.
        limiter: Of the session's threads.
        check: Called before it begins; raises if the session is over.
    """

    __slots__ = ("_check", "_gate", "_limiter", "_records", "_transaction")

    def __init__(
        self,
        transaction: Transaction,
        records: Sequence[Record],
        *,
        gate: anyio.Lock,
        limiter: CapacityLimiter,
        check: Callable[[], None],
    ) -> None:
        super().__init__(transaction.guard)
        self._transaction = transaction
        self._records = records
        self._gate = gate
        self._limiter = limiter
        self._check = check

    async def __aenter__(self) -> None:
        """Begin it.

        Raises:
            RuntimeError: Within another block of the connection.
            StoreError: The transaction cannot be begun.
        """
        self.guard.check_outside()
        await self._gate.acquire()
        try:
            if not self._transaction.here(self._transaction.savepoint):
                await self._begin()
        except BaseException:
            await undo(self._transaction, limiter=self._limiter)
            self._gate.release()
            raise
        self.enter()

    async def _begin(self) -> None:
        def begin() -> None:
            with self._transaction.access():
                self._check()
                self._transaction.begin()

        await in_thread(begin, limiter=self._limiter)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it.

        Raises:
            StoreError: The transaction was gone, or could not go on: all since the last commit is undone. Or this
                is a forked child.
        """
        self.guard.check_process()
        self.leave()
        try:
            await self._end(keep=error is None)
        except BaseException:
            await undo(self._transaction, limiter=self._limiter)
            raise
        finally:
            self._gate.release()

    async def _end(self, *, keep: bool) -> None:
        end = partial(self._transaction.end_block, self, self._records, keep=keep)
        if self._transaction.here(end):
            return
        if not self._transaction.is_open:
            end()  # it raises: there is nothing to wait for
        await in_thread(partial(self._end_there, end), limiter=self._limiter, shield=True)

    def _end_there(self, end: Callable[[], None]) -> None:
        with self._transaction.access():
            end()


async def undo(transaction: Transaction, *, limiter: CapacityLimiter) -> None:
    """Undo all since the last commit, if that was not done yet.

    Args:
        transaction: Of a session whose gate the caller holds.
        limiter: Of the session's threads.
    """
    if transaction.is_open and not transaction.here(transaction.undo):
        await in_thread(transaction.abandon, limiter=limiter, shield=True)


async def in_thread(work: Callable[[], _T], *, limiter: CapacityLimiter, shield: bool = False) -> _T:
    """Do it in a worker thread, and return or raise when it has ended there, whatever cancels the caller.

    Awaiting the thread alone is not enough: asyncio's own cancellation would leave it alone with what it began.

    Args:
        work: Is told of a cancellation by `from_thread.check_cancelled()`. What it raises is raised in any case.
        limiter: Of threads.
        shield: Do not tell it.
    """
    results: list[_T] = []
    errors: list[Exception] = []

    async def call() -> None:
        with anyio.CancelScope(shield=shield):
            try:
                results.append(await to_thread.run_sync(work, limiter=limiter))
            except Exception as error:  # noqa: BLE001  # raised below, without a group around it
                errors.append(error)

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
    finally:
        if errors:
            raise errors[0]
    return results[0]
