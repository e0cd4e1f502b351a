"""One open transaction for a handler's writes and the records of its messages, with a savepoint for each message.

    BEGIN   SAVEPOINT, handler, RELEASE   SAVEPOINT, handler, RELEASE   …   records, cursor, COMMIT
            └──── one `Savepoint` ────┘   └──── one `Savepoint` ────┘

The first savepoint since the last commit begins the transaction. A handler that fails rolls back to its own
savepoint and loses nothing else. The next commit writes the records in the same transaction and ends it. Anything
else that ends the transaction undoes everything since the last commit and raises an error: never a part of it.

BEGIN and COMMIT wait for other sessions and for the disk, so they run in a worker thread. Savepoints wait for
nothing and are made in the thread of the event loop: a hop to another thread would take longer than everything
else that a message costs.
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

__all__ = ["Savepoint", "Transaction", "in_thread", "roll_back", "undo"]


_BEGIN = mark_as_store(f"SAVEPOINT {SAVEPOINT}")
_RELEASE = mark_as_store(f"RELEASE {SAVEPOINT}")
_ROLLBACK = mark_as_store(f"ROLLBACK TO {SAVEPOINT}")

_T = TypeVar("_T")

_UNDONE = "what handlers wrote since the last commit is undone, and none of its messages is processed"


class Transaction:
    """The transactions of one session, one after the other.

    Args:
        connection: Shared with other sessions.
        fair_lock: Held by the session that has a transaction open, among all that share the connection.
        mutex: Held while a thread executes statements of the store.

    Attributes:
        guard: The guard of the connection.
        is_open: Whether a transaction is open. Changes only while the mutex is held.
        records: The records given with the savepoints that were kept.
    """

    def __init__(self, connection: GuardedConnection, fair_lock: FairLock, mutex: threading.Lock) -> None:
        self.guard: Guard = connection.guard
        self.is_open = False
        self.records: list[Record] = []
        self._savepoints = 0  # that were kept
        self._connection = connection
        self._cursor = sqlite3.Cursor(connection)  # one for all savepoints: each message executes two statements
        self._fair_lock = fair_lock
        self._mutex = mutex

    # In a worker thread

    @contextlib.contextmanager
    def access(self) -> Iterator[None]:
        """Give this thread the connection. A transaction that is open at the end keeps the fair lock.

        Raises:
            BaseException: Cancelled while it waited.
        """
        while True:
            has_lock = self.is_open
            if not has_lock:
                self._fair_lock.acquire(self)
            self._mutex.acquire()
            if self.is_open or not has_lock:
                break
            self._mutex.release()  # the transaction ended while this thread waited for the mutex
        try:
            with self.guard.store_access():
                if not self.is_open:
                    roll_back(self._connection)  # left by a session that was dropped
                yield
        finally:
            is_over = not self.is_open
            self._mutex.release()
            if is_over:
                self._fair_lock.release()

    def begin(self) -> None:
        """Begin a savepoint, and the transaction if none is open. Within `access()`.

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
        """Commit the statements of the `with` body together with the kept savepoints. Within `access()`.

        Raises:
            StoreError: Nothing was written, and the savepoints are undone.
        """
        savepoints = self._savepoints
        try:
            with wrap_sqlite_errors(self.guard.path):
                self._begin_to_write()
                yield
                self._connection.execute("COMMIT")
        except BaseException as error:
            self.undo()
            if isinstance(error, StoreError) and savepoints:
                raise type(error)(f"{error}; {_UNDONE}") from error
            raise
        self._reset()

    def _begin_to_write(self) -> None:
        if not self.is_open:
            self._connection.execute("BEGIN IMMEDIATE")
        elif not self._connection.in_transaction:
            self._raise_rolled_back()

    # In any thread that holds the mutex

    def undo(self) -> None:
        """Roll back the transaction if one is open."""
        self._reset()
        roll_back(self._connection)

    def abandon(self) -> None:
        """Undo an open transaction and release the fair lock. In a worker thread, since it waits for the mutex."""
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
        """Begin a savepoint in the open transaction.

        Raises:
            StoreError: The transaction could not go on: everything since the last commit is undone.
        """
        self._execute_or_undo(_BEGIN)

    def end_savepoint(self, scope: HandlerScope, records: Sequence[Record], *, keep: bool) -> None:
        """Keep the writes since the savepoint, or roll them back.

        Raises:
            StoreError: The transaction was gone, or could not go on: everything since the last commit is undone.
        """
        scope.close_handles()
        if not self.is_open or not self._connection.in_transaction:
            self._raise_rolled_back()
        if not keep and not self._savepoints:  # leave no transaction open while the caller waits to retry
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
        """Do the work in this thread if that needs no waiting.

        Returns:
            False if it was not done, since no transaction is open or another thread holds the mutex.
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
    """Roll back if a transaction is open; SQLite may have rolled back by itself. Within store access."""
    with contextlib.suppress(sqlite3.Error):  # after such an error nothing can begin or commit either
        if connection.in_transaction:
            connection.execute("ROLLBACK")


class Savepoint(HandlerScope):
    """The context manager around one handler call. To be used once.

    An error of the savepoint itself, as it begins or ends, undoes everything since the last commit, and so does a
    cancellation then: the caller cannot tell how far it came.

    Args:
        transaction: The transaction of the session.
        records: Committed together with the writes of the handler.
        gate: Held while the handler runs: savepoints and commits of a session come one after the other.
        limiter: Of the session's threads.
        check: Called before the transaction begins; raises if the session is over.
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
        """Begin the savepoint.

        Raises:
            RuntimeError: Within another savepoint of the connection.
            StoreError: The transaction cannot be begun.
        """
        self.guard.check_outside()
        await self._gate.acquire()
        try:
            if not self._transaction.try_inline(self._transaction.begin_savepoint):
                await in_thread(self._begin_in_thread, limiter=self._limiter)
        except BaseException:
            await undo(self._transaction, limiter=self._limiter)
            self._gate.release()
            raise
        self.enter()

    def _begin_in_thread(self) -> None:
        with self._transaction.access():
            self._check()
            self._transaction.begin()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the savepoint: keep the writes, or roll them back if the handler raised.

        Raises:
            StoreError: The transaction was gone, or could not go on: everything since the last commit is undone.
                Or this is a forked child.
        """
        self.guard.check_process()
        self.leave()
        try:
            end = partial(self._transaction.end_savepoint, self, self._records, keep=error is None)
            if not self._transaction.try_inline(end):
                if not self._transaction.is_open:
                    end()  # raises: there is nothing to wait for
                await in_thread(partial(self._end_in_thread, end), limiter=self._limiter, shield=True)
        except BaseException:
            await undo(self._transaction, limiter=self._limiter)
            raise
        finally:
            self._gate.release()

    def _end_in_thread(self, end: Callable[[], None]) -> None:
        with self._transaction.access():
            end()


async def undo(transaction: Transaction, *, limiter: CapacityLimiter) -> None:
    """Undo everything since the last commit, unless that was done already.

    Args:
        transaction: The transaction of a session whose gate the caller holds.
        limiter: Of the session's threads.
    """
    if transaction.is_open and not transaction.try_inline(transaction.undo):
        await in_thread(transaction.abandon, limiter=limiter, shield=True)


async def in_thread(work: Callable[[], _T], *, limiter: CapacityLimiter, shield: bool = False) -> _T:
    """Do the work in a worker thread and wait for its end, even if the caller is cancelled.

    Awaiting the thread alone is not enough: asyncio's own cancellation would leave the thread behind in the middle
    of its work.

    Args:
        work: Learns of a cancellation from `from_thread.check_cancelled()`. Its exception is raised in any case.
        limiter: Of threads.
        shield: Hide a cancellation from the work.
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
