"""Transactions of handlers: their writes are committed with the records of their messages, or neither (G8).

The connection of the store is a `psycopg.Connection` in threads, and in the event loop a
`psycopg.AsyncConnection` of the same connection to the server. A transaction begins and ends in a thread, or, in
the usual case of an `async def` handler, in the event loop (`transactional_session.py`).

With `connections=` the transaction is one of the application: its block begins and commits, and the store only
writes the records into it.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar, Token
from typing import Any, TypeAlias

import psycopg
from anyio import from_thread
from psycopg import pq

from push_to_poll_client._exceptions import CommitInDoubt, StoreError, StoreUnavailable
from push_to_poll_client._protocols import EffectsRefused, TransactionConflict
from push_to_poll_client._types import Record
from push_to_poll_client._validation import describe
from push_to_poll_client.stores._postgres.connection import (
    Connection,
    Database,
    Statement,
    ask_if_session_is_kept,
    ask_server,
    execute,
)
from push_to_poll_client.stores._postgres.errors import (
    commit_error,
    describe_error,
    is_fence,
    store_error,
    was_answered,
)
from push_to_poll_client.stores._postgres.handler_connections import (
    OUTSIDE_HANDLER,
    HandlerConnection,
    StoreView,
)
from push_to_poll_client.stores._postgres.progress import ClaimedName
from push_to_poll_client.stores._postgres.schema import ENDED, TRANSACTION

Connections: TypeAlias = Callable[[], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]]

_MAX_IDLE = 60
"""Seconds without a statement after which the server rolls a handler's transaction back: its owner may be stopped,
and others wait for its locks."""

_MAX_IDLE_SETTING = "idle_in_transaction_session_timeout"

_IDLE_TOO_LONG = "25P03"

_OF_DATA = ("22", "23", "44", "P0001")
"""Data, constraints, CHECK OPTION of a view, RAISE EXCEPTION: errors by which COMMIT refuses what was written."""

# One round trip, and nothing to plan. The mark ends with the transaction. So the store notices a handler that has
# ended it and begun another one. Not READ WRITE: see `Database.begin`.
_BEGIN = f"BEGIN; SET LOCAL {_MAX_IDLE_SETTING} = '{{idle}}s'; SET LOCAL {TRANSACTION} = '{{mark}}'"
_BEGIN_IN_BLOCK = f"""
    SELECT set_config('{_MAX_IDLE_SETTING}', %(idle)s, true), set_config('{TRANSACTION}', %(mark)s, true)
"""
_CHECK = f"""
    SELECT CASE WHEN current_setting('{TRANSACTION}', true) = %(mark)s THEN 1 ELSE ('{ENDED}' || random())::int END
""".encode()

# COMMIT would do it too, but then other handlers of the consumer cannot commit until it is done.
_CHECK_CONSTRAINTS = b"SET CONSTRAINTS ALL IMMEDIATE"

_PREPARE_AFTER = 5
"""Executions of a handler's statement after which the server keeps its plan, as in psycopg."""

_CONFLICTS = ("40001", "40P01")
"""Serialization failure and deadlock: the server asks to run the transaction again."""

_STALE_PLAN = "RevalidateCachedQuery"
"""Function of the server that refuses a prepared statement whose result has other columns since a migration.
The rollback forgets the statement."""

_MAX_CONFLICTS = 10
"""Conflicts of a message that are not counted as attempts, if no other message is committed in between."""

_current: ContextVar["Transaction | None"] = ContextVar("push_to_poll_client_postgres_transaction", default=None)


def current_connection(database: Database) -> "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]":
    """Return the connection of the handler that runs now."""
    transaction = _current.get()
    if transaction is None or transaction.database is not database:
        raise RuntimeError(f"{database.where}: {OUTSIDE_HANDLER}")
    connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any] = transaction.connection()
    return connection


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
        self._key = records[0].key if records else ""
        self._connections = connections
        self._block: Any = None  # of `connections`
        self._raw: Any = None  # the connection to the server; None before it is needed
        self._store_view: Connection  # of the same connection to the server, for the records
        self._handler_view: HandlerConnection | None = None
        self._lock = threading.Lock()
        self._mark = os.urandom(8).hex()
        self._has_ended = False
        self._refusal: StoreError | None = None  # of the connection; not the handler's failure
        self._token: Token[Transaction | None] | None = None

    def connection(self) -> Any:
        """Return the connection for the calling thread; begin the transaction if it has not begun."""
        with self._lock:
            self._check_not_ended()
            if self._raw is None:
                try:
                    self._begin()
                except StoreError as error:
                    self._refusal = error
                    raise
            if self._block is not None and not isinstance(self._raw, psycopg.AsyncConnection):
                return self._raw
            if self._handler_view is None:
                self._handler_view = HandlerConnection(self._prepare_statements(), self._check_not_ended)
            return self._handler_view

    def _prepare_statements(self) -> Connection:
        """Prepare the handler's statements if the connection keeps them. `_leave` ends this."""
        if self._store_view.keeps_session:
            self._store_view.prepare_threshold = _PREPARE_AFTER
        return self._store_view

    def _check_not_ended(self) -> None:
        if self._has_ended:
            raise RuntimeError(f"{self.database.where}: {OUTSIDE_HANDLER}")

    def _begin(self) -> None:
        """Begin on a connection of the store. In a worker thread."""
        connection = self.database.borrow()
        try:
            connection.deadline = time.monotonic() + self.database.timeout
            if connection.keeps_session is None:  # before BEGIN: SET TRANSACTION is to be the handler's first
                connection.keeps_session = connection.wait(ask_if_session_is_kept(connection))
            connection.wait(ask_server(connection, self._begin_statement()))
        except psycopg.Error as error:
            self.database.give_back_after_error(connection)
            raise store_error(self.database.where, error) from error
        self._set_connection(connection)

    def _begin_statement(self) -> bytes:
        return _BEGIN.replace("{idle}", str(_MAX_IDLE)).replace("{mark}", self._mark).encode()

    def _set_connection(self, connection: Connection) -> None:
        self._raw = self._store_view = connection
        self._refusal = None  # of an earlier try of the handler
        self._progress.transactions.add(self)

    def _set_block(self, block: Any, connection: Any) -> None:
        """Use the connection of a block of the application, which has been entered."""
        self._block, self._raw = block, connection
        self._store_view = view = StoreView(connection.pgconn)
        view.deadline = time.monotonic() + self.database.timeout
        if connection.autocommit and view.pgconn.transaction_status == pq.TransactionStatus.IDLE:
            raise StoreError(
                f"{self.database.where}: connections= yields a connection in autocommit mode, which commits each "
                "statement of the handler alone; let it begin a transaction"
            )
        self._progress.transactions.add(self)

    @property
    def _begin_in_block(self) -> tuple[str, dict[str, str]]:
        """The first statement in a block of the application, with its values."""
        return _BEGIN_IN_BLOCK, {"idle": f"{_MAX_IDLE}s", "mark": self._mark}

    def _enter(self) -> None:
        self._token = _current.set(self)

    def _leave(self) -> None:
        with self._lock:
            self._has_ended = True
            if self._raw is not None:
                self._store_view.prepare_threshold = None
        if self._token is not None:
            _current.reset(self._token)

    # The end, in a worker thread

    def _end(self, error: BaseException | None) -> None:
        """Commit, or roll back after an error of the handler."""
        try:
            if self._raw is None:  # nothing was written; the next commit saves the records
                self._raise_refusal(error)
                return
            self._store_view.deadline = time.monotonic() + self.database.timeout
            if error is None:
                self._commit_with_records()
            else:
                self._roll_back(error)
        finally:
            self._progress.transactions.discard(self)

    def _raise_refusal(self, error: BaseException | None) -> None:
        if self._refusal is not None and (error is None or isinstance(error, Exception)):
            # Another error than the one that the handler has got, which would count as its failure.
            raise type(self._refusal)(*self._refusal.args) from self._refusal

    def _commit_with_records(self) -> None:
        try:
            self._check_effects()
            self._progress.commit_with_effects(self._store_view, self._records, self._commit, self._settle)
        except BaseException as failure:
            self._undo_commit(failure)
            raise
        self._note_commit()

    def _undo_commit(self, failure: BaseException) -> None:
        """Roll back after a failed commit. Raise another error if the failure is psycopg's."""
        self._undo(failure)
        if isinstance(failure, psycopg.Error):  # before anything of the commit was sent
            if failure.sqlstate == _IDLE_TOO_LONG:
                raise EffectsRefused(self._idle_text) from failure
            self._raise_conflict(failure)
            raise store_error(self.database.where, failure) from failure

    def _note_commit(self) -> None:
        self._progress.conflicts.clear()
        self._written.update((record.key, record) for record in self._records)
        if self._block is None:
            self.database.give_back(self._raw)

    def _check_effects(self) -> None:
        """Raise an error if the handler's writes cannot be committed as they are."""
        self._raise_refusal(None)
        connection = self._store_view
        self._check_connected(connection)
        status = connection.pgconn.transaction_status
        if status == pq.TransactionStatus.INERROR:
            raise EffectsRefused(
                f"{self.database.where}: a statement of the handler failed, which has undone its transaction, and "
                "the handler returned all the same; let it raise the error, or use `with connection.transaction()`"
            )
        if status == pq.TransactionStatus.ACTIVE:
            raise EffectsRefused(
                f"{self.database.where}: the handler returned before a statement of it had ended, such as a COPY "
                "or a stream; end it in the handler"
            )
        if len(self._progress.transactions) > 1:
            # The checks may wait for locks of another handler, which must not wait for this one's commit.
            try:
                with connection.pipeline():
                    execute(connection, _CHECK, {"mark": self._mark})
                    execute(connection, _CHECK_CONSTRAINTS, {})
            except psycopg.Error as error:
                self._raise_if_refused(error)
                raise

    def _check_connected(self, connection: Connection) -> None:
        """Raise an error if the server has closed the connection: then nothing was committed, which is certain."""
        pgconn, last_words = connection.pgconn, list[psycopg.Error]()
        pass_on = pgconn.notice_handler

        def note(result: Any) -> None:
            if result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED) == b"FATAL":
                last_words.append(psycopg.errors.error_from_result(result))
            elif pass_on is not None:
                pass_on(result)

        pgconn.notice_handler = note
        try:
            for _ in range(2):  # first the last words of the server, then the end of the connection
                pgconn.consume_input()
                pgconn.notifies()
        finally:
            pgconn.notice_handler = pass_on
            if last_words:
                raise last_words[0]

    def _raise_if_refused(self, error: psycopg.Error) -> None:
        """Raise an error if the server refuses the handler's writes, and not the records."""
        if ENDED in str(error):
            raise StoreError(self._ended_text) from error
        if error.sqlstate == _IDLE_TOO_LONG:
            raise EffectsRefused(self._idle_text) from error
        self._raise_conflict(error)
        if (
            was_answered(error, self._store_view)
            and (error.sqlstate or "").startswith((*_OF_DATA, *_CONFLICTS))
            and (error.diag.schema_name, error.diag.table_name) != (self.database.schema, "record")
            and not is_fence(error)
        ):
            raise EffectsRefused(
                f"{self.database.where}: the handler's writes were refused when they were to be committed: "
                f"{describe_error(error)}"
            ) from error

    @property
    def _ended_text(self) -> str:
        return (
            f"{self.database.where}: the handler has ended the transaction of its message, so its writes are not "
            "committed with the record; remove COMMIT and ROLLBACK from it, and commit() on the connection"
        )

    @property
    def _idle_text(self) -> str:
        return (
            f"{self.database.where}: the handler executed no statement for {_MAX_IDLE} s, so the server undid "
            "its transaction; do slow work before the first statement"
        )

    def _commit(self, statements: Sequence[Statement]) -> None:
        sql, is_own = self.database.sql, self._block is None

        def write(connection: Connection) -> None:
            with connection.pipeline():
                execute(connection, _CHECK, {"mark": self._mark})
                for statement, values in statements:
                    execute(connection, sql(statement), values)
                if is_own:
                    connection.execute("COMMIT")

        self._write(write)

    def _settle(self, arguments: str) -> None:
        # One round trip, and nothing to plan: the server keeps the plans of a function's statements. With the
        # statements of `_commit` a message costs three times as much processor time.
        statement = self._settle_statement(arguments)
        self._write(lambda connection: connection.wait(ask_server(connection, statement)))

    def _settle_statement(self, arguments: str) -> bytes:
        commit = "; COMMIT" if self._block is None else ""
        return f"SELECT \"{self.database.schema}\".settle({arguments}, '{self._mark}'){commit}".encode()

    def _write(self, write: Callable[[Connection], object]) -> None:
        connection = self._store_view
        try:
            write(connection)
        except psycopg.Error as error:
            raise self._commit_error(error) from error
        if self._block is not None:
            self._leave_block(None)

    def _commit_error(self, error: psycopg.Error) -> StoreError:
        """Return the error of a failed commit; raise it if the handler's writes were refused."""
        self._raise_if_refused(error)
        return commit_error(self.database.where, error, self._store_view, schema=self.database.schema)

    def _leave_block(self, error: BaseException | None) -> None:
        """Let the block of the application commit, or roll back if there is an error."""
        reason = (None, None, None) if error is None else (type(error), error, error.__traceback__)
        is_async, self._raw = isinstance(self._raw, psycopg.AsyncConnection), None
        try:
            if is_async:
                from_thread.run(self._block.__aexit__, *reason)
            else:
                self._block.__exit__(*reason)
        except Exception as failure:
            if error is not None:
                return
            cause = psycopg_error(failure)
            if cause is not None and was_answered(cause, self._store_view):
                self._raise_if_refused(cause)
                raise store_error(self.database.where, cause) from failure
            raise CommitInDoubt(
                f"{self.database.where}: the connection was lost while connections= committed: {describe(failure)}"
            ) from failure

    def _roll_back(self, error: BaseException) -> None:
        """Undo the handler's writes after its error. Raise another error if it is not the message's failure."""
        pgconn = self._store_view.pgconn
        is_lost = pgconn.status != pq.ConnStatus.OK
        has_ended = not is_lost and pgconn.transaction_status == pq.TransactionStatus.IDLE
        self._undo(error)
        if not isinstance(error, Exception):
            return
        cause = psycopg_error(error)
        self._raise_refusal(error)
        if has_ended:
            raise StoreError(self._ended_text) from error
        if cause is not None and cause.sqlstate == _IDLE_TOO_LONG:
            raise EffectsRefused(self._idle_text) from error
        if is_lost:
            raise StoreUnavailable(
                f"{self.database.where}: the connection was lost while the handler ran; its writes are undone: "
                f"{describe(error)}"
            ) from error
        self._raise_conflict(error)

    def _abandon(self, error: BaseException) -> None:
        """Undo a transaction before its handler is called."""
        self._undo(error)
        self._progress.transactions.discard(self)

    def _undo(self, error: BaseException) -> None:
        if self._raw is None:  # the block has ended
            return
        if self._block is not None:
            self._leave_block(error)
            return
        connection, self._raw = self._raw, None
        self.database.give_back_after_error(connection)

    def _raise_conflict(self, error: BaseException) -> None:
        """Raise `TransactionConflict` if the server asks to run the transaction again, up to ten times."""
        cause, conflicts = psycopg_error(error), self._progress.conflicts
        count = conflicts.pop(self._key, 0)
        if cause is None or count >= _MAX_CONFLICTS:
            return
        if cause.sqlstate not in _CONFLICTS and cause.diag.source_function != _STALE_PLAN:
            return
        conflicts[self._key] = count + 1
        raise TransactionConflict(
            f"{self.database.where}: a conflict with another transaction; the handler is called again: "
            f"{describe(cause)}"
        ) from error


def psycopg_error(error: BaseException | None) -> psycopg.Error | None:
    """Return the error of psycopg that is the error or its cause: SQLAlchemy and Django wrap it."""
    for _ in range(10):
        if error is None or isinstance(error, psycopg.Error):
            return error
        error = error.__cause__ or error.__context__
    return None
