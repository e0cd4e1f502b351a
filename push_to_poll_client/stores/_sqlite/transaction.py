"""One transaction for each handler call: its writes and the records of its messages, all or none.

    handler begins   …   first statement: BEGIN IMMEDIATE   …   handler returns: records, COMMIT
                                                                handler raises: ROLLBACK

Until its first statement a handler locks nothing. A handler without a statement has no transaction: its record is
committed later, with others. Nothing is open between two handlers.

BEGIN may have to wait for a transaction of another session or program. The thread of a plain handler waits. The
thread of the event loop must not: the handler that it waits for may need the loop. There BEGIN waits for at most
`MAX_LOOP_WAIT`; then the block fails with `TransactionConflict`, whatever the handler does. The next block of that
session begins its transaction before the handler is called, so a handler is called again at most once.
"""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Final

import anyio

from push_to_poll_client._event_loop import in_own_task
from push_to_poll_client._exceptions import StoreError
from push_to_poll_client._protocols import TransactionConflict
from push_to_poll_client.stores._sqlite.connection import Guard, GuardedConnection, HandlerScope, rolled_back
from push_to_poll_client.stores._sqlite.file import OpenFile
from push_to_poll_client.stores._sqlite.schema import Synchronous
from push_to_poll_client.stores._sqlite.thread import Job, StoreThread

# Seconds that a handler's first statement may block the event loop. Most programs commit in less. After that the
# handler is called again, and repeats its side effects elsewhere.
MAX_LOOP_WAIT: Final = 0.25

MAX_HELD: Final = 1.0
"""Seconds that handlers may hold SQLite's lock, almost without a break, before they leave a gap."""

GAP: Final = 0.12
"""Seconds of a gap. A program that waits for SQLite's lock tries again every 0.1 s, and more often at first."""

# Seconds of holding the lock that one free second makes up for. With the lock free for a fifth of the time, all of
# the 50 tries within 5 s meet a taken lock in 1 of 70,000 cases.
FREE_COUNTS: Final = 4


class LockGaps:
    """Tells when handlers must leave a gap, so that other programs get SQLite's lock in time."""

    # SQLite does not queue waiting programs: each tries again every 0.1 s, for 5 s in most programs. If handlers
    # hold the lock almost all the time, it may never find the lock free. A gap of `GAP` seconds after `MAX_HELD`
    # seconds lets it in nearly always. Call all methods but `pause` with a mutex held.

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._held = 0.0  # seconds that are not made up for

    def taken(self) -> None:
        now = time.monotonic()
        free, self._since = now - self._since, now
        self._held = 0.0 if free >= GAP else max(0.0, self._held - FREE_COUNTS * free)

    def released(self) -> None:
        now = time.monotonic()
        self._held, self._since = self._held + now - self._since, now

    @property
    def pause(self) -> float:
        return max(0.0, self._since + GAP - time.monotonic()) if self._held >= MAX_HELD else 0.0


class SharedFile(OpenFile):
    """An open file to which handlers write too; it may be an application's database."""

    connection: GuardedConnection
    shared = True

    def __init__(self, path: str, thread: StoreThread, *, synchronous: Synchronous) -> None:
        self.guard = Guard(path)
        self.gaps = LockGaps()
        super().__init__(path, thread, synchronous=synchronous)

    def _open(self, synchronous: Synchronous) -> None:
        with self.guard.store_access():
            super()._open(synchronous)

    def _connect(self, *, timeout: float) -> sqlite3.Connection:
        return GuardedConnection(self.path, self.guard, timeout=timeout)

    @contextlib.contextmanager
    def access(self) -> Iterator[None]:
        """Use the connection in the thread of the store, within a transaction of handlers if it is open."""
        with self.guard.store_access():
            if self.thread.open_transaction is None and self.connection.in_transaction:
                self.undo()  # left by a session that was dropped
            yield

    def begin(self) -> None:
        """Begin a transaction, or continue the handlers' transaction."""
        if self.thread.open_transaction is None:
            super().begin()
            self.gaps.taken()
        elif not self.connection.in_transaction:
            raise rolled_back(self.path)

    def has_ended(self) -> None:
        self.thread.open_transaction = None
        self.gaps.released()

    def close(self) -> None:
        with self.guard.store_access():
            super().close()


class Transaction:
    """The transactions of one session, one after the other."""

    # Used in the store's thread, except `begin_at_once`. While one is open, the thread runs no job of another
    # session.

    def __init__(self, file: SharedFile) -> None:
        self.file = file
        self.in_handler = False  # True while a handler uses the open transaction, which may take any time
        self.begin_first = False  # the next handler must find its transaction begun
        # Held while a handler runs: handlers and commits of a session come one after the other.
        self.gate = anyio.Lock(fast_acquire=True)

    @property
    def is_open(self) -> bool:
        """True if a transaction is open. Changes only in the thread of the store."""
        return self.file.thread.open_transaction is self

    def begin(self, check: Callable[[], object], deadline: float | None = None) -> None:
        """Begin a handler's transaction; wait for another program until `deadline`, if it is given."""
        check()
        with self.file.access():
            if deadline is None:
                self.file.begin()
            else:
                self._begin_within(max(0.0, deadline - time.monotonic()))
        self.in_handler = True
        self.file.thread.open_transaction = self

    def begin_at_once(self, begin: Callable[[float], None]) -> None:
        """Begin in the event loop's thread; raise TransactionConflict if that would have to wait long."""
        thread = self.file.thread
        other = thread.open_transaction
        # A handler does not go on while this thread waits, so waiting for it would be in vain.
        if isinstance(other, Transaction) and other.in_handler:
            raise self._conflict()
        begin_in_time = partial(begin, time.monotonic() + MAX_LOOP_WAIT)
        if not thread.call(begin_in_time, self, timeout=MAX_LOOP_WAIT):
            raise self._conflict()

    def _conflict(self) -> TransactionConflict:
        return TransactionConflict(
            f"{self.file.path}: another transaction is open; the handler is called again when it has ended, "
            "because the event loop must not wait for it: do not catch this error in the handler"
        )

    def _begin_within(self, timeout: float) -> None:
        connection = self.file.connection
        connection.execute(f"PRAGMA busy_timeout = {timeout * 1000:.0f}")
        try:
            self.file.begin()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                raise self._conflict() from error
            raise
        finally:
            connection.execute(f"PRAGMA busy_timeout = {connection.timeout * 1000:.0f}")

    def abandon(self) -> None:
        if self.is_open:
            with self.file.access():
                self.file.undo()


class Effects(HandlerScope):
    """The context manager around one handler call. Use it once."""

    def __init__(self, transaction: Transaction, commit: Callable[[], None], *, check: Callable[[], None]) -> None:
        super().__init__(transaction.file.guard)
        self._transaction = transaction
        self._file = transaction.file
        self._commit = commit  # commits the transaction with the records; called within store access
        self._check = check  # raises if the session is over
        self._begin_lock = threading.Lock()
        self._failure: StoreError | None = None

    async def __aenter__(self) -> None:
        """Let the handler use the connection."""
        self.guard.check_outside()
        transaction = self._transaction
        await self._transaction.gate.acquire()
        try:
            self._check()
            if pause := self._file.gaps.pause:
                await anyio.sleep(pause)
            if transaction.begin_first:
                await self._file.thread.run(partial(transaction.begin, self._check), transaction)
                # Only now: after an error the handler is not to be called before its transaction has begun either.
                transaction.begin_first = False
                self.has_begun = True
        except BaseException:
            try:
                if transaction.is_open:
                    await self._file.thread.run(transaction.abandon, urgent=True)
            finally:
                self._transaction.gate.release()
            raise
        self._loop_thread = threading.get_ident()
        self.enter()

    def begin(self) -> None:
        """Begin the transaction at the handler's first statement, in any thread."""
        if not self.has_begun or self._failure is not None:
            self._begin_once()
        if not self._transaction.is_open:
            raise rolled_back(self._file.path)

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
                    time.sleep(self._file.gaps.pause)
                    self._file.thread.call(self._begin_in_store_thread, self._transaction)
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
        """Commit what the handler wrote, with the records, or roll it back if the handler raised."""
        # A cancellation meanwhile waits for the caller's next checkpoint: the caller has to know what was done.
        # After a StoreError the handler's writes are undone.
        self.guard.check_process()
        self.leave()
        self._transaction.in_handler = False
        try:
            # From here on none begins. If one is being begun, its end comes before this one.
            if self._begin_lock.locked() or self.has_begun:
                keep = error is None and self._failure is None
                end = partial(self._file.thread.run, partial(self._end, keep), urgent=True)
                await in_own_task(end, cancel_later=True)
        except BaseException:
            # An event loop that shuts down cancels a task before it begins. What is committed next, as the
            # progress before this message, must not take along what the handler wrote.
            self._file.thread.submit(Job(self._transaction.abandon, lambda: None, urgent=True))
            raise
        finally:
            self._transaction.gate.release()
        if self._failure is not None and (error is None or isinstance(error, Exception)):
            # Not the object that the handler may have raised, because the message has not failed.
            self._transaction.begin_first = isinstance(self._failure, TransactionConflict)
            raise type(self._failure)(*self._failure.args) from self._failure

    def _end(self, keep: bool) -> None:  # noqa: FBT001
        if not self.has_begun:
            return
        if not self._transaction.is_open:
            raise rolled_back(self._file.path)
        with self._file.access():
            self.close_handles()
            if not keep:
                self._file.undo()
                return
            try:
                self._commit()
            except BaseException:  # it may have failed before it wrote
                self._file.undo()
                raise
