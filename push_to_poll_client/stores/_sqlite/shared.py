"""Open the application's database as a store too: handlers and the store write through one connection.

`SharedFile` opens the connection with a guard, and `TransactionalSQLiteSession` puts the writes of a handler and
the records of its messages into one transaction (`transaction.py`). SQLite has one writing transaction at a time,
so the sessions of a store take the connection one after the other, by a `FairLock`.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, TypeVar, TypeVarTuple

import anyio

from push_to_poll_client._types import Cursor, DeadLetter, Record
from push_to_poll_client.stores._fair_lock import FairLock
from push_to_poll_client.stores._sqlite.connection import Guard, GuardedConnection
from push_to_poll_client.stores._sqlite.file import OpenFile
from push_to_poll_client.stores._sqlite.records import encode_records
from push_to_poll_client.stores._sqlite.schema import Synchronous, prepare, warn_of_old_sqlite
from push_to_poll_client.stores._sqlite.session import NO_CHANGES, SQLiteSession
from push_to_poll_client.stores._sqlite.transaction import Effects, LockGaps, Transaction, in_thread, roll_back

__all__ = ["SharedFile", "TransactionalSQLiteSession"]


_Ts = TypeVarTuple("_Ts")
_T = TypeVar("_T")


class SharedFile(OpenFile):
    """An open file through whose connection handlers write too.

    Args:
        path: As for `OpenFile`; it may be an application's database.
        synchronous: As for `OpenFile`.
        fair_lock: Taken before `access()`, and by each transaction.

    Attributes:
        guard: Decides who may use the connection.
        fair_lock: As given.
        gaps: Where handlers leave other programs the lock of the file.
        active: The transaction of the session that has access now, or None, as while a name is claimed.
    """

    connection: GuardedConnection
    shared = True

    def __init__(self, path: str, *, synchronous: Synchronous, fair_lock: FairLock) -> None:
        self.guard = Guard(path)
        self.fair_lock = fair_lock
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
    def access(self) -> Iterator[None]:
        """Give this thread the connection. The caller holds the fair lock."""
        with self.mutex, self.guard.store_access():
            roll_back(self.connection)  # left by a session that was dropped
            yield

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


class TransactionalSQLiteSession(SQLiteSession):
    """A claimed name of a `SQLiteStore` that is transactional.

    For the arguments see `SQLiteSession`; the caller holds the fair lock while it makes the session.
    """

    _file: SharedFile

    def __init__(self, file: SharedFile, name: str, feed: str, **others: Any) -> None:
        super().__init__(file, name, feed, **others)
        self._transaction = Transaction(file.connection, file.fair_lock, file.mutex, file.gaps)
        # Written by `effects` and not given to `commit` yet, which is not to write them again.
        self._written: dict[str, Record] = {}

    def effects(self, records: Sequence[Record], /) -> Effects:
        """Make what a handler writes within durable together with `records`, or neither (G8).

        That is when the block ends. The handler's first statement begins the transaction; without one, the records
        are left to the next `commit`, which is given them in any case. What raises out of the block takes back
        what was written within it. So does a `StoreError` of the block itself.

        Raises:
            RuntimeError: Within another block of the store.
            OwnershipLost: The session was released, or the name claimed by somebody else.
            TransactionConflict: The handler has to be called again, in another block with the same records.
            StoreError: The transaction could not be begun or committed, or the handler ended it.
        """
        self._check_process()
        warn_of_old_sqlite(shared=True)
        return Effects(
            self._transaction,
            partial(self._commit_effects, records),
            gate=self._gate,
            limiter=self._limiter,
            check=self._check_released,
        )

    def _commit_effects(self, records: Sequence[Record]) -> None:
        self._file.active = self._transaction
        try:
            self._claimed.commit(None, encode_records(records), (), NO_CHANGES, None)
        except BaseException:  # it may have failed before it wrote
            self._transaction.undo()
            raise
        finally:
            self._file.active = None
        self._written.update((record.key, record) for record in records)

    async def commit(
        self,
        *,
        cursor: Cursor | None,
        records: Sequence[Record],
        dead_letters: Sequence[DeadLetter] = (),
        state: Mapping[str, str | None] = NO_CHANGES,
        read_at: float | None = None,
    ) -> None:
        """Save all of it, or nothing; see `SQLiteSession.commit`. Records of effects are not written again.

        Raises:
            RuntimeError: Within a block of effects of the store.
            OwnershipLost: The session was released, or the name claimed by somebody else; nothing was written.
            StoreError: The file cannot be written, or holds what this library does not write; nothing was written.
        """
        self._file.guard.check_outside()
        async with self._gate:
            await super().commit(
                cursor=cursor,
                records=[record for record in records if self._written.get(record.key) != record],
                dead_letters=dead_letters,
                state=state,
                read_at=read_at,
            )
            for record in records:
                self._written.pop(record.key, None)

    async def reset(
        self, cursor: Cursor | None, *, forget: bool, state: Mapping[str, str | None] = NO_CHANGES
    ) -> None:
        """Go on from another place; see `SQLiteSession.reset`.

        Raises:
            RuntimeError: As for `commit`.
            OwnershipLost: As for `commit`.
            StoreError: As for `commit`.
        """
        self._file.guard.check_outside()
        async with self._gate:
            await super().reset(cursor, forget=forget, state=state)

    @cached_property
    def _gate(self) -> anyio.Lock:
        # Made at its first use, in the event loop.
        return anyio.Lock(fast_acquire=True)

    async def _run_in_thread(self, work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        self._check_process()
        if not self._transaction.is_open:  # else this session holds the fair lock already
            self._file.guard.check_outside()
        # With an open transaction the thread waits for no other session, so it is left to end its work.
        return await in_thread(
            partial(self._run_locked, work, *args), limiter=self._limiter, shield=self._transaction.is_open
        )

    def _run_locked(self, work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        with self._transaction.access():
            self._check_released()
            self._file.active = self._transaction
            try:
                return work(*args)
            finally:
                self._file.active = None

    def _release_locked(self) -> None:
        self._transaction.abandon()
        super()._release_locked()
