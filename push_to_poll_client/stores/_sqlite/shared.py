"""Share the database with the application: one connection, used in turns."""

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
from push_to_poll_client.stores._sqlite.schema import Synchronous, prepare
from push_to_poll_client.stores._sqlite.session import NO_CHANGES, SQLiteSession
from push_to_poll_client.stores._sqlite.transaction import Savepoint, Transaction, in_thread, roll_back, undo

__all__ = [
    "SharedFile",
    "TransactionalSQLiteSession",
]


_Ts = TypeVarTuple("_Ts")
_T = TypeVar("_T")


class SharedFile(OpenFile):
    """An open file through whose connection handlers write too.

    Args:
        path: As for `OpenFile`; it may be an application's database.
        synchronous: As for `OpenFile`.
        turns: Taken before `access()`, and by each transaction.

    Attributes:
        guard: Stands before the connection.
        turns: As given.
        active: The transactions of the session that has access now; `None`: none has, as while a name is claimed.
    """

    connection: GuardedConnection

    def __init__(self, path: str, *, synchronous: Synchronous, turns: FairLock) -> None:
        self.guard = Guard(path)
        self.fair_lock = turns
        self.active: Transaction | None = None
        super().__init__(path, synchronous=synchronous)

    def _open(self, synchronous: Synchronous) -> sqlite3.Connection:
        with self.guard.store_access():
            return super()._open(synchronous)

    def _connect(self, *, timeout: float) -> sqlite3.Connection:
        return GuardedConnection(self.path, self.guard, timeout=timeout)

    def _prepare(self, connection: sqlite3.Connection, synchronous: Synchronous) -> None:
        prepare(connection, self.path, synchronous=synchronous, shared=True)
        # A handler cannot: in a transaction it is without effect, and without a word.
        connection.execute("PRAGMA foreign_keys = ON")

    @contextlib.contextmanager
    def access(self) -> Iterator[None]:
        """Within it, this thread alone uses the connection. For whoever has the turn."""
        with self.mutex, self.guard.store_access():
            roll_back(self.connection)  # what a session left that was dropped
            yield

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing, together with the effects since the last one.

        Raises:
            StoreError: SQLite failed; nothing was written, and the effects are undone.
        """
        with super().transaction() if self.active is None else self.active.writing():
            yield

    def close(self) -> None:
        """Close the connection and give the file back. Never raises."""
        with self.guard.store_access():
            super().close()


class TransactionalSQLiteSession(SQLiteSession):
    """A claimed name of a `SQLiteStore` that is transactional.

    For the arguments see `SQLiteSession`; the turn is the caller's while it is made.
    """

    _file: SharedFile

    def __init__(self, file: SharedFile, name: str, feed: str, **others: Any) -> None:
        super().__init__(file, name, feed, **others)
        self._transaction = Transaction(file.connection, file.fair_lock, file.mutex)

    def effects(self, records: Sequence[Record], /) -> Savepoint:
        """What a handler writes within becomes durable together with `records`, or neither does (G8).

        That is with the next `commit`. What raises out of the block takes back what was written within it and
        nothing else, and leaves no transaction open if it was the only one since the last commit. What the block
        raises itself, also a cancellation, undoes all since the last commit: none of its messages is processed.

        Raises:
            RuntimeError: Within another block of the store.
            OwnershipLost: The session was released.
            StoreError: A transaction cannot be begun, or the handler ended it.
        """
        self._check_process()
        return Savepoint(
            self._transaction, records, gate=self._gate, limiter=self._limiter, check=self._check_released
        )

    async def commit(
        self,
        *,
        cursor: Cursor | None,
        records: Sequence[Record],
        dead_letters: Sequence[DeadLetter] = (),
        state: Mapping[str, str | None] = NO_CHANGES,
        read_at: float | None = None,
    ) -> None:
        """Save all of it, with the effects since the last commit and the records given with them, or nothing.

        For the arguments see `SQLiteSession.commit`.

        Raises:
            RuntimeError: Within a block of effects of the store.
            OwnershipLost: The session was released, or the name claimed by somebody else. This and any other error
                undoes the effects since the last commit: none of their messages is processed. A cancellation does
                not, once the commit has begun.
            StoreError: The file cannot be written, or holds what this library does not write.
        """
        self._file.guard.check_outside()
        async with self._gate:
            try:
                await super().commit(
                    cursor=cursor,
                    records=self._with_effects(records),
                    dead_letters=dead_letters,
                    state=state,
                    read_at=read_at,
                )
            except BaseException:  # it may not have come so far as to undo them
                await undo(self._transaction, limiter=self._limiter)
                raise

    async def reset(
        self, cursor: Cursor | None, *, forget: bool, state: Mapping[str, str | None] = NO_CHANGES
    ) -> None:
        """Go on from another place; see `SQLiteSession.reset`. What is not committed yet is, before.

        Raises:
            RuntimeError: As for `commit`.
            OwnershipLost: As for `commit`.
            StoreError: As for `commit`.
        """
        if self._transaction.is_open:
            await self.commit(cursor=None, records=())
        self._file.guard.check_outside()
        async with self._gate:
            await super().reset(cursor, forget=forget, state=state)

    def _with_effects(self, records: Sequence[Record]) -> Sequence[Record]:
        """The records of blocks that the caller did not give again: of a commit that it did not ask for."""
        of_effects = self._transaction.records
        if not of_effects or of_effects == records:
            return records
        keys = {record.key for record in records}
        return [*(record for record in of_effects if record.key not in keys), *records]

    @cached_property
    def _gate(self) -> anyio.Lock:
        """Made in the event loop."""
        return anyio.Lock(fast_acquire=True)

    async def _run_in_thread(self, work: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        self._check_process()
        if not self._transaction.is_open:  # else it is this session's turn
            self._file.guard.check_outside()
        # With a transaction open nothing is waited for, and what was begun is ended.
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
