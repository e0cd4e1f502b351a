"""Transactions of handlers: their writes are committed with the records of their messages, or neither (G8).

A plain handler (`def`) has its transaction in its own thread. For an `async def` handler the event loop must not
wait, so a worker thread begins and commits. The connection of the store is a `psycopg.Connection` in threads, and
in the event loop a `psycopg.AsyncConnection` of the same connection to the server.

With `connections=` the transaction is one of the application: its block begins and commits, and the store only
writes the records into it.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from contextvars import ContextVar, Token
from functools import partial
from types import TracebackType
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import anyio
import psycopg
from anyio import from_thread
from psycopg import pq
from psycopg.rows import tuple_row

from push_to_poll_client._event_loop import in_own_task
from push_to_poll_client._exceptions import CommitInDoubt, StoreError, StoreUnavailable
from push_to_poll_client._protocols import TransactionConflict
from push_to_poll_client._types import Record
from push_to_poll_client._validation import describe
from push_to_poll_client.stores._postgres.claims import Claimant
from push_to_poll_client.stores._postgres.connection import Connection, Database, Statement, execute
from push_to_poll_client.stores._postgres.errors import commit_error, store_error, was_answered
from push_to_poll_client.stores._postgres.housekeeping import Housekeeping
from push_to_poll_client.stores._postgres.progress import ClaimedName
from push_to_poll_client.stores._postgres.schema import ENDED, TRANSACTION
from push_to_poll_client.stores._postgres.session import PostgresSession

Connections: TypeAlias = Callable[[], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]]

OUTSIDE_HANDLER = (
    "the store's connection works only while a message is processed, in the handler's task, tasks and threads. "
    "For a thread use anyio.to_thread.run_sync() or asyncio.to_thread(); threading.Thread, executors and "
    "loop.run_in_executor() need contextvars.copy_context().run. Elsewhere open a connection of your own"
)

_MAX_IDLE = 60_000
"""Milliseconds without a statement after which the server rolls a handler's transaction back: its owner may be
stopped, and others wait for its locks."""

# One round trip, and nothing to plan. The mark ends with the transaction. So the store notices a handler that has
# ended it and begun another one. Not READ WRITE: see `Database.begin`.
_BEGIN = f"""
    BEGIN; SET LOCAL idle_in_transaction_session_timeout = {_MAX_IDLE}; SET LOCAL {TRANSACTION} = '{{mark}}'
"""
_CHECK = f"""
    SELECT CASE WHEN current_setting('{TRANSACTION}', true) = %(mark)s THEN 1 ELSE ('{ENDED}' || random())::int END
"""

_CONFLICTS = ("40001", "40P01")
"""Serialization failure and deadlock: the server asks to run the transaction again."""

_MAX_CONFLICTS = 10
"""Conflicts in a row that are not counted as attempts of a message."""

_current: ContextVar["Transaction | None"] = ContextVar("push_to_poll_client_postgres_transaction", default=None)


def current_connection(database: Database) -> "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]":
    """Return the connection of the handler that runs now."""
    transaction = _current.get()
    if transaction is None or transaction.database is not database:
        raise RuntimeError(f"{database.where}: {OUTSIDE_HANDLER}")
    connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any] = transaction.connection()
    return connection


class _AsyncConnection(psycopg.AsyncConnection[Any]):
    """The connection of an `async def` handler, whose transaction the store ends."""

    async def commit(self) -> None:
        raise _not_for_handlers("commit")

    async def rollback(self) -> None:
        raise _not_for_handlers("rollback")

    async def close(self) -> None:
        raise _not_for_handlers("close")


class _HandlerConnection(psycopg.Connection[Any]):
    """The connection of a handler in a thread, whose transaction the store ends."""

    def commit(self) -> None:
        raise _not_for_handlers("commit")

    def rollback(self) -> None:
        raise _not_for_handlers("rollback")

    def close(self) -> None:
        raise _not_for_handlers("close")


def _not_for_handlers(method: str) -> RuntimeError:
    return RuntimeError(
        f"a handler must not call {method}() on the store's connection: the store commits the transaction with "
        "the record of the message when the handler returns, and rolls it back if the handler raises; for a part "
        "that may fail alone, use `with connection.transaction()`, which makes a savepoint"
    )


_views: WeakKeyDictionary[Any, dict[type, Any]] = WeakKeyDictionary()
"""Other connection objects for the same connection to the server, kept as long as it."""


def _view(connection: Any, kind: type[Any]) -> Any:
    """Return a connection object of another class for the same connection to the server."""
    views = _views.setdefault(connection, {})
    if kind not in views:
        views[kind] = kind(connection.pgconn)
        views[kind].prepare_threshold = None  # see `Database.connect`
    return views[kind]


class Transaction:
    """The transaction of one handler call. Use it once."""

    def __init__(
        self,
        database: Database,
        progress: ClaimedName,
        records: Sequence[Record],
        connections: Connections | None,
        written: dict[str, Record],
    ) -> None:
        self.database: Database = database
        self._written = written  # gets the records after their commit
        self._progress = progress
        self._records = records
        self._connections = connections
        self._block: Any = None  # of `connections`
        self._raw: Any = None  # the connection to the server; None before it is needed
        self._lock = threading.Lock()
        self._mark = os.urandom(8).hex()
        self._has_ended = False
        self._token: Token[Transaction | None] | None = None

    def connection(self) -> Any:
        """Return the connection for the calling thread; begin the transaction if it has not begun."""
        with self._lock:
            if self._has_ended:
                raise RuntimeError(f"{self.database.where}: {OUTSIDE_HANDLER}")
            if self._raw is None:
                self._raw = self._begin()
        return self._raw if self._block is not None else _view(self._raw, _HandlerConnection)

    def _begin(self) -> Connection:
        connection = self.database.borrow()
        try:
            connection.execute(_BEGIN.replace("{mark}", self._mark).encode())
        except psycopg.Error as error:
            self.database.give_back_after_error(connection)
            raise store_error(self.database.where, error) from error
        for view in _views.get(connection, {}).values():
            view.row_factory = tuple_row  # the last handler may have set another one
        return connection

    def _enter(self) -> None:
        self._progress.check()
        self._token = _current.set(self)

    def _leave(self) -> None:
        with self._lock:
            self._has_ended = True
        if self._token is not None:
            _current.reset(self._token)

    # The end, in a worker thread

    def _end(self, error: BaseException | None) -> None:
        """Commit, or roll back after an error of the handler."""
        connection = self._raw
        if connection is None:  # nothing was written; the next commit saves the records
            return
        if self._block is None:
            connection.deadline = time.monotonic() + self.database.timeout
        try:
            if error is None:
                self._progress.commit_with_effects(self._plain(), self._records, self._commit, self._settle)
                self._progress.conflicts = 0
                self._written.update((record.key, record) for record in self._records)
        except BaseException as failure:
            self._undo(failure)
            raise
        if error is None:
            if self._block is None:
                self.database.give_back(connection)
            return
        is_lost = self._plain().pgconn.status != pq.ConnStatus.OK
        self._undo(error)
        if is_lost and isinstance(error, Exception):
            raise StoreUnavailable(
                f"{self.database.where}: the connection was lost while the handler ran; its writes are undone: "
                f"{describe(error)}"
            ) from error
        self._raise_conflict(error)

    def _plain(self) -> Any:
        """Return a plain connection object, for the records."""
        if isinstance(self._raw, psycopg.AsyncConnection):
            return _view(self._raw, psycopg.Connection)
        return self._raw

    def _commit(self, statements: Sequence[Statement]) -> None:
        sql, is_own = self.database.sql, self._block is None

        def write(connection: Any) -> None:
            with connection.pipeline():
                if is_own:
                    connection.execute(_CHECK, {"mark": self._mark})
                for statement, values in statements:
                    execute(connection, sql(statement), values)
                if is_own:
                    connection.execute("COMMIT")

        self._write(write)

    def _settle(self, arguments: str) -> None:
        # One round trip, and nothing to plan: the server keeps the plans of a function's statements. With the
        # statements of `_commit` a message costs three times as much processor time.
        rest = f", '{self._mark}'); COMMIT" if self._block is None else ", NULL)"
        statement = f'SELECT "{self.database.schema}".settle({arguments}{rest}'.encode()
        self._write(lambda connection: psycopg.Cursor(connection, row_factory=tuple_row).execute(statement))

    def _write(self, write: Callable[[Any], object]) -> None:
        connection = self._plain()
        if connection.pgconn.transaction_status == pq.TransactionStatus.INERROR:
            raise StoreError(
                f"{self.database.where}: a statement of the handler failed, which has undone its transaction, and "
                "the handler returned all the same; let it raise the error, or use `with connection.transaction()`"
            )
        try:
            write(connection)
        except psycopg.Error as error:
            if ENDED in str(error):
                raise StoreError(
                    f"{self.database.where}: the handler has ended the transaction of its message, so its writes "
                    "are not committed with the record; remove COMMIT and ROLLBACK from it"
                ) from error
            self._raise_conflict(error)
            raise commit_error(self.database.where, error, connection, schema=self.database.schema) from error
        if self._block is not None:
            self._leave_block(None)

    def _leave_block(self, error: BaseException | None) -> None:
        """Let the block of the application commit, or roll back if there is an error."""
        reason = (None, None, None) if error is None else (type(error), error, error.__traceback__)
        connection = self._plain()
        try:
            if isinstance(self._raw, psycopg.AsyncConnection):
                from_thread.run(self._block.__aexit__, *reason)
            else:
                self._block.__exit__(*reason)
        except Exception as failure:
            if error is not None:
                return
            cause = _psycopg_error(failure)
            if cause is not None and was_answered(cause, connection):
                self._raise_conflict(failure)
                raise store_error(self.database.where, cause) from failure
            raise CommitInDoubt(
                f"{self.database.where}: the connection was lost while connections= committed: {describe(failure)}"
            ) from failure
        finally:
            self._raw = None

    def _undo(self, error: BaseException) -> None:
        connection, self._raw = self._raw, None
        if connection is None:  # the block has ended
            return
        if self._block is None:
            self.database.give_back_after_error(connection)
        else:
            self._raw = connection
            self._leave_block(error)

    def _raise_conflict(self, error: BaseException) -> None:
        """Raise `TransactionConflict` if the server asks to run the transaction again, up to ten times."""
        cause = _psycopg_error(error)
        if cause is None or cause.sqlstate not in _CONFLICTS or self._progress.conflicts >= _MAX_CONFLICTS:
            self._progress.conflicts = 0
            return
        self._progress.conflicts += 1
        raise TransactionConflict(
            f"{self.database.where}: a conflict with another transaction; the handler is called again: "
            f"{describe(cause)}"
        ) from error


def _psycopg_error(error: BaseException | None) -> psycopg.Error | None:
    """Return the error of psycopg that is the error or its cause: SQLAlchemy and Django wrap it."""
    for _ in range(10):
        if error is None or isinstance(error, psycopg.Error):
            return error
        error = error.__cause__ or error.__context__
    return None


class ThreadTransaction(Transaction):
    """The block around a plain handler, entered and left in its thread."""

    def __enter__(self) -> None:
        self._enter()
        if self._connections is not None:
            try:
                self._block, self._raw = _enter_block(self._connections, self.database)
            except BaseException:
                self._leave()
                raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        self._end(error)


def _enter_block(connections: Connections, database: Database) -> tuple[Any, psycopg.Connection[Any]]:
    block = connections()
    if not isinstance(block, AbstractContextManager):
        raise StoreError(
            f"{database.where}: connections= must return a plain context manager for a plain handler (def), got "
            f"{type(block).__name__}"
        )
    try:
        connection = block.__enter__()
    except Exception as error:
        raise _not_entered(database, error) from error
    if isinstance(connection, psycopg.Connection):
        return block, connection
    with suppress(Exception):
        block.__exit__(None, None, None)
    raise StoreError(_wrong_connection(database, connection, psycopg.Connection))


def _not_entered(database: Database, error: Exception) -> StoreError:
    cause = _psycopg_error(error)
    if cause is not None:
        return store_error(database.where, cause)
    return StoreError(f"{database.where}: connections= failed: {describe(error)}")


def _wrong_connection(database: Database, connection: object, wanted: type[Any]) -> str:
    return (
        f"{database.where}: connections= must yield a psycopg.{wanted.__name__}, got {type(connection).__name__}"
    )


class TaskTransaction(Transaction):
    """The block around an `async def` handler."""

    async def __aenter__(self) -> None:
        self._loop_thread = threading.get_ident()
        self._progress.check()
        if self._connections is not None:
            await self._enter_block(self._connections)
        else:
            begun: list[Connection] = []
            try:
                await self.database.run(lambda: begun.append(self._begin()))
            except BaseException:  # cancelled, perhaps after it has begun
                for connection in begun:
                    await self.database.run(partial(self.database.give_back_after_error, connection))
                raise
            self._raw = begun[0]
        self._enter()

    async def _enter_block(self, connections: Connections) -> None:
        block = connections()
        if not isinstance(block, AbstractAsyncContextManager):
            raise StoreError(
                f"{self.database.where}: connections= must return an async context manager for an async handler, "
                f"got {type(block).__name__}"
            )
        try:
            connection = await block.__aenter__()
        except Exception as error:
            raise _not_entered(self.database, error) from error
        if not isinstance(connection, psycopg.AsyncConnection):
            with suppress(Exception):
                await block.__aexit__(None, None, None)
            raise StoreError(_wrong_connection(self.database, connection, psycopg.AsyncConnection))
        self._block, self._raw = block, connection

    def connection(self) -> Any:
        """Return the connection for the calling thread."""
        plain = super().connection()
        if threading.get_ident() != self._loop_thread:
            return plain
        if self._block is not None:
            return self._raw
        if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
            raise RuntimeError(
                f"{self.database.where}: psycopg has no AsyncConnection for trio; define the handler with def, or "
                "use the connection in anyio.to_thread.run_sync()"
            )
        return _view(self._raw, _AsyncConnection)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A cancellation meanwhile waits for the caller's next checkpoint: the caller has to know what was done.
        self._leave()
        await in_own_task(partial(self.database.run, partial(self._end, error)), cancel_later=True)


class TransactionalPostgresSession(PostgresSession):
    """A claimed name of a `PostgresStore` that is transactional."""

    def __init__(self, claimant: Claimant, claimed: ClaimedName, housekeeping: Housekeeping) -> None:
        super().__init__(claimant, claimed, housekeeping)
        # Committed with effects, and not given to `commit` yet, which is not to write them again.
        self._written: dict[str, Record] = {}

    def transaction(self, records: Sequence[Record], /) -> TaskTransaction:
        """Commit the writes of an `async def` handler together with `records`, or neither (G8)."""
        self._check()
        return TaskTransaction(self._database, self._progress, records, self._claimant.connections, self._written)

    def transaction_in_thread(self, records: Sequence[Record], /) -> ThreadTransaction:
        """Commit the writes of a plain handler together with `records`, or neither (G8)."""
        self._check()
        return ThreadTransaction(
            self._database, self._progress, records, self._claimant.connections, self._written
        )

    def _prepare(self, records: Sequence[Record]) -> Sequence[Record]:
        return [record for record in records if self._written.pop(record.key, None) != record]
