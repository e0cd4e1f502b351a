"""One open transaction for a handler's writes and the records of its messages, with a savepoint for each call.

BEGIN   SAVEPOINT, handler, RELEASE   SAVEPOINT, handler, RELEASE   …   records, cursor, COMMIT
            └──────── a block ─────────┘  └──────── a block ─────────┘

The first block since the last commit begins it. Each is a savepoint in it, so that a handler which fails takes
back what it wrote and nothing else. The next commit writes the records in the same transaction and ends it.
Whatever else ends it undoes all since the last commit, and says so: half of it is never there.

Beginning and committing wait, for others and for the disk, and so are done in a worker thread. Savepoints wait for
nothing, and are made where the handler runs: a hop would take longer than all the rest of a message.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import NoReturn, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread

from push_to_poll_client._exceptions import StoreError
from push_to_poll_client._types import Record
from push_to_poll_client._validation import one_line
from push_to_poll_client.stores._fair_lock import FairLock
from push_to_poll_client.stores._sqlite.connection import (
    SAVEPOINT,
    Guard,
    GuardedConnection,
    HandlerScope,
    mark_as_store,
)
from push_to_poll_client.stores._sqlite.file import wrap_sqlite_errors

__all__ = [
    "Savepoint",
    "Transaction",
    "in_thread",
    "roll_back",
    "undo",
]


_BEGIN = mark_as_store(f"SAVEPOINT {SAVEPOINT}")
_RELEASE = mark_as_store(f"RELEASE {SAVEPOINT}")
_ROLLBACK = mark_as_store(f"ROLLBACK TO {SAVEPOINT}")

_UNDONE = "what handlers wrote since the last commit is undone, and none of its messages is processed"


class Transaction:
    """The transactions of one session, one after the other.

    Args:
        connection: Shared with other sessions.
        turns: Whoever has a transaction open has the turn, among all that share the connection.
        mutex: Held by whoever executes statements of the store.

    Attributes:
        guard: The connection's.
        is_open: Whether there is one now. Changes within the mutex.
        records: What was given with its blocks, of the blocks that ended well.
    """

    def __init__(self, connection: GuardedConnection, turns: FairLock, mutex: threading.Lock) -> None:
        self.guard: Guard = connection.guard
        self.is_open = False
        self.records: list[Record] = []
        self._savepoints = 0  # that ended well
        self._connection = connection
        self._cursor = sqlite3.Cursor(connection)  # for what each message pays for
        self._fair_lock = turns
        self._mutex = mutex

    # In a worker thread

    @contextlib.contextmanager
    def access(self) -> Iterator[None]:
        """Within it, the connection is the session's, in its turn. A transaction that is open then keeps the turn.

        Raises:
            BaseException: Cancelled while it waited.
        """
        self._acquire()
        try:
            with self.guard.store_access():
                if not self.is_open:
                    roll_back(self._connection)  # what a session left that was dropped
                yield
        finally:
            is_over = not self.is_open
            self._mutex.release()
            if is_over:
                self._fair_lock.release()

    def _acquire(self) -> None:
        while True:
            has_turn = self.is_open
            if not has_turn:
                self._fair_lock.acquire(self)
            self._mutex.acquire()
            if self.is_open or not has_turn:
                return
            self._mutex.release()  # it ended while this thread waited for the mutex

    def begin(self) -> None:
        """Begin a block, and the transaction if none is open. Within `access()`.

        Raises:
            StoreError: Neither has begun.
        """
        if not self.is_open:
            with wrap_sqlite_errors(self.guard.path):
                self._connection.execute("BEGIN IMMEDIATE")
            self.is_open = True
        self.begin_savepoint()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Commit what is written within it, together with the effects of the blocks before. Within `access()`.

        Raises:
            StoreError: Nothing was written, and the effects are undone.
        """
        blocks = self._savepoints
        try:
            with wrap_sqlite_errors(self.guard.path):
                self._begin_to_write()
                yield
                self._connection.execute("COMMIT")
        except BaseException as error:
            self.undo()
            if isinstance(error, StoreError) and blocks:
                raise type(error)(f"{error}; {_UNDONE}") from error
            raise
        self._reset()

    def _begin_to_write(self) -> None:
        if not self.is_open:
            self._connection.execute("BEGIN IMMEDIATE")
        elif not self._connection.in_transaction:
            self._raise_rolled_back()

    # Anywhere, within the mutex

    def undo(self) -> None:
        """Roll back what is open, if something is."""
        self._reset()
        roll_back(self._connection)

    def abandon(self) -> None:
        """Undo it, and give its turn back, if one is open. In a worker thread: another one may be at work."""
        with self._mutex:
            if not self.is_open:
                return
            with self.guard.store_access():
                self.undo()
        self._fair_lock.release()

    def _reset(self) -> None:
        self.is_open, self._savepoints = False, 0
        self.records.clear()

    def begin_savepoint(self) -> None:
        """Begin a block.

        Raises:
            StoreError: The transaction could not go on: all since the last commit is undone.
        """
        self._execute_or_undo(_BEGIN)

    def end_savepoint(self, place: HandlerScope, records: Sequence[Record], *, keep: bool) -> None:
        """Keep what was written within a block, or take it back.

        Raises:
            StoreError: The transaction was gone, or could not go on: all since the last commit is undone.
        """
        place.close_handles()
        if not self.is_open or not self._connection.in_transaction:
            self._raise_rolled_back()
        if not keep and not self._savepoints:  # nothing may be open while the caller waits
            self.undo()
            return
        if keep:
            self._execute_or_undo(_RELEASE)
            self._savepoints += 1
            self.records += records
        else:
            self._execute_or_undo(_ROLLBACK, _RELEASE)

    def _execute_or_undo(self, *statements: str) -> None:
        try:
            for statement in statements:
                self._cursor.execute(statement)
        except sqlite3.Error as error:
            self.undo()
            raise StoreError(f"{self.guard.path} cannot be used: {one_line(str(error))}; {_UNDONE}") from error

    def _raise_rolled_back(self) -> NoReturn:
        self._reset()
        raise StoreError(
            f"{self.guard.path}: SQLite has rolled the transaction back, as ON CONFLICT ROLLBACK, RAISE(ROLLBACK) "
            f"and a full disk make it do, or the session was released; {_UNDONE}"
        )

    def try_inline(self, work: Callable[[], None]) -> bool:
        """Do it in this thread, without waiting.

        Returns:
            Whether it was done: not when no transaction is open, or another thread is at work.
        """
        if not self.is_open or not self._mutex.acquire(blocking=False):
            return False
        self.guard.worker = threading.get_ident()
        was_open = self.is_open
        try:
            if was_open:
                work()
        finally:
            self.guard.worker = None
            is_over = was_open and not self.is_open
            self._mutex.release()
            if is_over:
                self._fair_lock.release()
        return was_open


def roll_back(connection: GuardedConnection) -> None:
    """Roll back what is open, if something is: SQLite may have done it by itself. By the store."""
    with contextlib.suppress(sqlite3.Error):  # then nothing can be begun or committed any more either
        if connection.in_transaction:
            connection.execute("ROLLBACK")


_T = TypeVar("_T")


class Savepoint(HandlerScope):
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
            if not self._transaction.try_inline(self._transaction.begin_savepoint):
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
        end = partial(self._transaction.end_savepoint, self, self._records, keep=keep)
        if self._transaction.try_inline(end):
            return
        if not self._transaction.is_open:
            end()  # it raises: there is nothing to wait for
        await in_thread(partial(self._end_in_thread, end), limiter=self._limiter, shield=True)

    def _end_in_thread(self, end: Callable[[], None]) -> None:
        with self._transaction.access():
            end()


async def undo(transaction: Transaction, *, limiter: CapacityLimiter) -> None:
    """Undo all since the last commit, if that was not done yet.

    Args:
        transaction: Of a session whose gate the caller holds.
        limiter: Of the session's threads.
    """
    if transaction.is_open and not transaction.try_inline(transaction.undo):
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
