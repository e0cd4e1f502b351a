"""One transaction for each handler call: its writes and the records of its messages, all of them or none.

    handler begins   …   first statement: BEGIN IMMEDIATE   …   handler returns: records, COMMIT
                                                                handler raises: ROLLBACK

A handler that awaits something before its first statement locks nothing meanwhile, and a handler without a
statement has no transaction: its record is committed later, with others. Nothing is open between two handlers.

BEGIN may have to wait, for a transaction of another session or of another program. The thread of a plain handler
waits. The thread of the event loop must not: everything would stop, and the handler that it waits for may need it.
There BEGIN waits for at most `MAX_LOOP_WAIT`. Then the block fails with `TransactionConflict`, whatever the
handler does. The next block of that session begins its transaction before the handler is called, so that a handler
has to be called again at most once.

SQLite does not queue the programs that wait for its lock; see `LockGaps`.
"""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Final, NoReturn

import anyio

from push_to_poll_client._event_loop import in_own_task
from push_to_poll_client._exceptions import StoreError
from push_to_poll_client._protocols import TransactionConflict
from push_to_poll_client.stores._sqlite.connection import Guard, GuardedConnection, HandlerScope
from push_to_poll_client.stores._sqlite.file import OpenFile, wrap_sqlite_errors
from push_to_poll_client.stores._sqlite.schema import Synchronous, prepare
from push_to_poll_client.stores._sqlite.thread import Job, StoreThread

MAX_LOOP_WAIT: Final = 0.25
"""Seconds that a handler's first statement may stop the event loop. Most programs commit in less, and what the
handler has done elsewhere before it would be done again."""

MAX_HELD: Final = 1.0
"""Seconds that handlers may hold SQLite's lock, almost without a break, before they leave a gap."""

GAP: Final = 0.12
"""Seconds of a gap. A program that waits for SQLite's lock tries again every 0.1 s, and more often at first."""

FREE_COUNTS: Final = 4
"""How many seconds of holding the lock one second without it makes up for. With the lock free for a fifth of the
time, one of 50 tries within 5 s fails to meet a free moment in 1 of 70,000 cases."""


class LockGaps:
    """Says when handlers have to leave other programs a gap, so that these get SQLite's lock in time.

    A program that waits for the lock tries again every 0.1 s. Where handlers hold the lock almost all the time, it
    may find it taken for the 5 s that most programs wait. A gap of `GAP` seconds after `MAX_HELD` seconds lets it
    in nearly always. Where the lock is free often enough anyway, nothing is done. With a mutex held, but for
    `pause`.
    """

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._held = 0.0  # what is not made up for

    def taken(self) -> None:
        """The lock was taken."""
        now = time.monotonic()
        free, self._since = now - self._since, now
        self._held = 0.0 if free >= GAP else max(0.0, self._held - FREE_COUNTS * free)

    def released(self) -> None:
        """The lock was released."""
        now = time.monotonic()
        self._held, self._since = self._held + now - self._since, now

    @property
    def pause(self) -> float:
        """Seconds to wait before the lock is taken again."""
        return max(0.0, self._since + GAP - time.monotonic()) if self._held >= MAX_HELD else 0.0


class Transaction:
    """The transactions of one session, one after the other. Used in the store's thread, but for `begin_from`.

    Args:
        connection: Shared with other sessions.
        thread: The thread of the store. While a transaction is open, it runs no job of another session.
        gaps: Of the file.

    Attributes:
        guard: The guard of the connection.
        gaps: As given.
        thread: As given.
        is_open: Whether a transaction is open. Changes only in the thread of the store.
        in_handler: Whether a handler uses the open transaction, which may take any time.
        begin_first: Whether the next handler is to find its transaction begun.
    """

    def __init__(self, connection: GuardedConnection, thread: StoreThread, gaps: LockGaps) -> None:
        self.guard: Guard = connection.guard
        self.thread = thread
        self.gaps = gaps
        self.is_open = False
        self.in_handler = False
        self.begin_first = False
        self._connection = connection

    def begin(self, check: Callable[[], object], deadline: float | None = None) -> None:
        """Begin a handler's transaction.

        Args:
            check: Raises if the session or the handler is over.
            deadline: When to give up waiting for another program, by `time.monotonic()`; None to wait as usual.

        Raises:
            TransactionConflict: Another program has a transaction open.
            StoreError: It has not begun.
        """
        check()
        with self.guard.store_access():
            roll_back(self._connection)  # left by a session that was dropped
            self._begin_immediate(None if deadline is None else max(0.0, deadline - time.monotonic()))
        self.is_open = self.in_handler = True
        self.thread.open_transaction = self

    def begin_at_once(self, begin: Callable[[float], None]) -> None:
        """Begin a handler's transaction for the event loop, which waits for `MAX_LOOP_WAIT` at most.

        Args:
            begin: Calls `begin` with this deadline.

        Raises:
            TransactionConflict: It has not begun, since another transaction is open.
            StoreError: It has not begun.
        """
        other = self.thread.open_transaction
        # A handler does not go on while this thread waits, so waiting for it would be in vain.
        if isinstance(other, Transaction) and other.in_handler:
            raise TransactionConflict(self._conflict)
        begin_in_time = partial(begin, time.monotonic() + MAX_LOOP_WAIT)
        if not self.thread.call(begin_in_time, self, timeout=MAX_LOOP_WAIT):
            raise TransactionConflict(self._conflict)

    @property
    def _conflict(self) -> str:
        return (
            f"{self.guard.path}: another transaction is open, and the event loop must not wait for its end; the "
            "handler is called again when that has ended: let this error pass through it"
        )

    def _begin_immediate(self, timeout: float | None = None) -> None:
        with wrap_sqlite_errors(self.guard.path):
            if timeout is None:
                self._connection.execute("BEGIN IMMEDIATE")
            else:
                self._begin_within(timeout)
        self.gaps.taken()

    def _begin_within(self, timeout: float) -> None:
        execute = self._connection.execute
        execute(f"PRAGMA busy_timeout = {timeout * 1000:.0f}")
        try:
            execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                raise TransactionConflict(self._conflict) from error
            raise
        finally:
            execute(f"PRAGMA busy_timeout = {self._connection.timeout * 1000:.0f}")

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Commit the statements of the `with` body, together with what is open. Within store access.

        Raises:
            StoreError: Nothing was written, and what was open is undone.
        """
        try:
            if not self.is_open:
                self._begin_immediate()
            elif not self._connection.in_transaction:
                self.raise_rolled_back()
            with wrap_sqlite_errors(self.guard.path):
                yield
                self._connection.execute("COMMIT")
        except BaseException:
            self.undo()
            raise
        self._close()

    def undo(self) -> None:
        """Roll back the transaction if one is open. Within store access."""
        roll_back(self._connection)
        self._close()

    def abandon(self) -> None:
        """Undo the transaction if one is open."""
        if self.is_open:
            with self.guard.store_access():
                self.undo()

    def _close(self) -> None:
        if self.is_open:
            self.thread.open_transaction = None
        self.is_open = self.in_handler = False
        self.gaps.released()

    def raise_rolled_back(self) -> NoReturn:
        """Raise the error for a transaction that has ended before its handler."""
        raise StoreError(
            f"{self.guard.path}: SQLite has rolled the transaction back, as ON CONFLICT ROLLBACK, RAISE(ROLLBACK) "
            "and a full disk make it do, or the session was released; what the handler wrote is undone, and its "
            "message is not processed"
        )


def roll_back(connection: GuardedConnection) -> None:
    """Roll back if a transaction is open; SQLite may have rolled back by itself. Within store access."""
    with contextlib.suppress(sqlite3.Error):  # after such an error nothing can begin or commit either
        if connection.in_transaction:
            connection.execute("ROLLBACK")


class SharedFile(OpenFile):
    """An open file through whose connection handlers write too.

    Args:
        path: As for `OpenFile`; it may be an application's database.
        synchronous: As for `OpenFile`.

    Attributes:
        guard: Decides who may use the connection.
        gaps: Where handlers leave other programs the lock of the file.
        active: The transaction of the session that uses the file now, or None, as while a name is claimed.
    """

    connection: GuardedConnection
    shared = True

    def __init__(self, path: str, *, synchronous: Synchronous) -> None:
        self.guard = Guard(path)
        self.gaps = LockGaps()
        self.active: Transaction | None = None
        super().__init__(path, synchronous=synchronous)

    def _open(self, synchronous: Synchronous) -> None:
        with self.guard.store_access():
            super()._open(synchronous)

    def _connect(self, *, timeout: float) -> sqlite3.Connection:
        return GuardedConnection(self.path, self.guard, timeout=timeout)

    def _prepare(self, connection: sqlite3.Connection, synchronous: Synchronous) -> None:
        prepare(connection, self.path, synchronous=synchronous, shared=True)
        # A handler cannot set this: in a transaction SQLite ignores it, without an error.
        connection.execute("PRAGMA foreign_keys = ON")

    @contextlib.contextmanager
    def access(self, transaction: Transaction | None = None) -> Iterator[None]:
        """Use the connection in the thread of the store, within a transaction of handlers if it is open."""
        with self.guard.store_access():
            if transaction is None or not transaction.is_open:
                roll_back(self.connection)  # left by a session that was dropped
            self.active = transaction
            try:
                yield
            finally:
                self.active = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit the statements of the `with` body and what the handler wrote before, or none of it.

        Raises:
            StoreError: SQLite failed; nothing was written, and what the handler wrote is undone.
        """
        if self.active is None:
            with super().transaction():
                yield
            return
        with self.active.writing():
            yield
            self.before_commit()
        self.after_commit()

    def close(self) -> None:
        """Close the connection and give the file back. Never raises."""
        with self.guard.store_access():
            super().close()


class Effects(HandlerScope):
    """The context manager around one handler call. To be used once.

    Args:
        transaction: Of the session.
        commit: Commits the open transaction with the records of the messages. Called within store access.
        gate: Held while the handler runs: handlers and commits of a session come one after the other.
        check: Raises if the session is over.
    """

    __slots__ = (
        "_begin_lock",
        "_check",
        "_commit",
        "_failure",
        "_gate",
        "_loop_thread",
        "_transaction",
    )

    def __init__(
        self,
        transaction: Transaction,
        commit: Callable[[], None],
        *,
        gate: anyio.Lock,
        check: Callable[[], None],
    ) -> None:
        super().__init__(transaction.guard)
        self._transaction = transaction
        self._commit = commit
        self._gate = gate
        self._check = check
        self._begin_lock = threading.Lock()
        self._failure: StoreError | None = None

    async def __aenter__(self) -> None:
        """Let the handler use the connection.

        Raises:
            RuntimeError: Within another handler of the store.
            StoreError: The session is over, or a transaction that has to be begun first cannot be.
        """
        self.guard.check_outside()
        transaction = self._transaction
        await self._gate.acquire()
        try:
            self._check()
            if pause := transaction.gaps.pause:
                await anyio.sleep(pause)
            if transaction.begin_first:
                await transaction.thread.run(partial(transaction.begin, self._check), transaction)
                # Only now: after an error the handler is not to be called before its transaction has begun either.
                transaction.begin_first = False
                self.has_begun = True
        except BaseException:
            try:
                await undo(transaction)
            finally:
                self._gate.release()
            raise
        self._loop_thread = threading.get_ident()
        self.enter()

    def begin(self) -> None:
        """Begin the transaction with the handler's first statement, in any thread.

        Raises:
            RuntimeError: The handler has ended meanwhile.
            StoreError: It cannot be begun, or has ended already.
        """
        if not self.has_begun or self._failure is not None:
            self._begin_once()
        if not self._transaction.is_open:
            self._transaction.raise_rolled_back()

    def _begin_once(self) -> None:
        in_loop = threading.get_ident() == self._loop_thread
        # Another thread of the handler may be waiting for its BEGIN.
        if not self._begin_lock.acquire(blocking=not in_loop):
            self._failure = TransactionConflict(f"{self.guard.path}: a thread of the handler waits to begin")
            raise self._failure
        try:
            if self._failure is not None:
                raise self._failure
            self.guard.check_inside()
            if not self.has_begun:
                if in_loop:
                    self._transaction.begin_at_once(self._begin_in_store_thread)
                else:
                    time.sleep(self._transaction.gaps.pause)
                    self._transaction.thread.call(self._begin_in_store_thread, self._transaction)
        except StoreError as error:
            self._failure = error
            raise
        finally:
            self._begin_lock.release()

    def _begin_in_store_thread(self, deadline: float | None = None) -> None:
        self.guard.check_inside()  # the handler may have ended since
        self._transaction.begin(self._check, deadline)
        self.has_begun = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit what the handler wrote, with the records, or roll it back if the handler raised.

        A cancellation meanwhile waits for the caller's next checkpoint: the caller has to know what was done.

        Raises:
            StoreError: The transaction could not be begun or committed, or was gone. What the handler wrote is
                undone. Or this is a forked child.
        """
        self.guard.check_process()
        self.leave()
        self._transaction.in_handler = False
        try:
            # From here on none begins. If one is being begun, its end comes before this one.
            if self._begin_lock.locked() or self.has_begun:
                keep = error is None and self._failure is None
                end = partial(self._transaction.thread.run, partial(self._end, keep), urgent=True)
                await in_own_task(end, cancel_later=True)
        except BaseException:
            # An event loop that shuts down cancels a task before it begins. What is committed next, as the
            # progress before this message, must not take along what the handler wrote.
            self._transaction.thread.submit(Job(self._transaction.abandon, lambda: None, urgent=True))
            raise
        finally:
            self._gate.release()
        if self._failure is not None and (error is None or isinstance(error, Exception)):
            # Another object than the one that the handler may have raised: it is no failure of its message.
            self._transaction.begin_first = isinstance(self._failure, TransactionConflict)
            raise type(self._failure)(*self._failure.args) from self._failure

    def _end(self, keep: bool) -> None:  # noqa: FBT001
        if not self.has_begun:
            return
        if not self._transaction.is_open:
            self._transaction.raise_rolled_back()
        with self.guard.store_access():
            self.close_handles()
            if keep:
                self._commit()
            else:
                self._transaction.undo()


async def undo(transaction: Transaction) -> None:
    """Undo what is open, if anything is.

    Args:
        transaction: The transaction of a session whose gate the caller holds.
    """
    if transaction.is_open:
        await transaction.thread.run(transaction.abandon, urgent=True)
