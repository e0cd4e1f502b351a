"""Connection for handlers that refuses whatever would break the store's transaction.

A handler's first statement begins its transaction. Within it the handler may do anything except end the
transaction, change the tables of the store, or set what would hold for the store too. SQLite's authorizer enforces
this, independent of how the SQL is written and of what executes it: SQLite calls it for each statement when the
statement is compiled (https://www.sqlite.org/c3ref/set_authorizer.html).

The store uses the same connection in its own threads, without these restrictions. `HandlerScope` says where a
handler may use the connection, `Guard` decides, and `GuardedCursor` and `GuardedConnection` ask the guard before
each use.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, NoReturn, Self
from weakref import ref

from push_to_poll_client._exceptions import OwnershipLost, StoreError
from push_to_poll_client._validation import quoted

_PREFIX = "push_to_poll_"
"""What the store's own tables begin with."""

OUTSIDE_HANDLER = (
    "the store's connection may be used only while a message is processed: in the handler's task, in tasks that "
    "it starts and waits for, and in threads that have its context; anyio.to_thread.run_sync() and "
    "asyncio.to_thread() hand it on, threading.Thread, executors and loop.run_in_executor() do not: give them "
    "contextvars.copy_context().run; elsewhere open a connection of your own"
)

_COMMITTED_TOGETHER = (
    "what it writes is committed together with the message's record, and undone when it raises; for a part that "
    "may fail alone, use a savepoint"
)

_FUNCTION = "json_each"
"""A function that the store uses like a table; a table of this name would hide it."""

_HIDES_FUNCTION = "it would hide the function of SQLite that the store uses"

_RESERVED_PREFIX = f"what has a name that begins with {_PREFIX} is the store's"

_HARMLESS_ACTIONS = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
    sqlite3.SQLITE_ANALYZE,
    sqlite3.SQLITE_REINDEX,
    sqlite3.SQLITE_PRAGMA,
    sqlite3.SQLITE_SAVEPOINT,
}
"""Actions that change nothing which is the store's, whatever they name."""

_PRAGMAS_WITH_VALUE = frozenset(
    """
    application_id foreign_key_check foreign_key_list index_info index_list index_xinfo integrity_check quick_check
    table_info table_list table_xinfo user_version
    """.split()  # noqa: SIM905  # read by people
)
"""PRAGMAs whose value says what to look at, and two that are the application's own, and undone with the rest."""


_current_scope: ContextVar["HandlerScope | None"] = ContextVar("push_to_poll_client_effects", default=None)
"""The innermost scope of the current task: set in a handler's task and inherited by the tasks it starts."""


class HandlerScope:
    """The tasks that may use a connection between `enter()` and `leave()`: a handler's task and those it starts.

    Args:
        guard: The guard of the connection.

    Attributes:
        guard: The guard of the connection.
        is_active: Whether the handler runs.
        has_begun: Whether its transaction was begun.
        open_handles: Weak references to the cursors and blobs that were made here.
        outer: The scope around this one, of another store, or None.
    """

    def __init__(self, guard: "Guard") -> None:
        self.guard = guard
        self.is_active = False
        self.has_begun = False
        self.open_handles: list[Callable[[], sqlite3.Cursor | sqlite3.Blob | None]] = []
        self.outer: HandlerScope | None = None

    def begin(self) -> None:
        """Begin the transaction if this is the first use of the connection.

        Raises:
            StoreError: It cannot be begun, or SQLite has rolled it back.
        """
        raise NotImplementedError

    def enter(self) -> None:
        """Put the current task, and the tasks it starts from now on, into this scope."""
        outer = self._before = _current_scope.get()
        while outer is not None and not outer.is_active:  # already left: this task outlived its handler
            outer = outer.outer
        self.outer = outer
        _current_scope.set(self)
        self.is_active = True

    def leave(self) -> None:
        """End the scope for every task. To be called in the task that entered."""
        self.is_active = False
        _current_scope.set(self._before)

    def close_handles(self) -> None:
        """Close cursors and blobs that a handler left open: they would hold on to the database, or write later."""
        for handle in [reference() for reference in self.open_handles]:
            if handle is not None:
                with contextlib.suppress(sqlite3.Error):  # nothing uses it any more
                    handle.close()
        self.open_handles.clear()


class Guard:
    """Decides who may use one connection, and for what.

    Args:
        path: The path of the database, for messages.

    Attributes:
        path: The path of the database.
        one_thread: Held while a handler's thread uses SQLite, which asks the authorizer while it holds a lock of
            its own. A second thread of the handler could wait for that lock and keep Python's global lock, which
            the authorizer waits for: then everything would stand still.
        worker: The thread in which the store itself uses the connection now, or None.
        sql: The statement that the handler executes now.
        refused: Why the authorizer refused a statement; None once that was raised.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._process = os.getpid()
        self.one_thread = threading.RLock()
        self.worker: int | None = None
        self.sql = ""
        self.refused: str | None = None

    @contextlib.contextmanager
    def store_access(self) -> Iterator[None]:
        """Lift the restrictions for this thread. One thread at a time: the caller holds the file's mutex."""
        self.worker = threading.get_ident()
        try:
            yield
        finally:
            self.worker = None

    @property
    def scope(self) -> HandlerScope | None:
        """The scope of this connection that the caller is in, or None."""
        # In a forked child nothing may use it (https://www.sqlite.org/howtocorrupt.html, section 2.6).
        scope = None if self._process != os.getpid() else _current_scope.get()
        while scope is not None and not (scope.guard is self and scope.is_active):
            scope = scope.outer
        return scope

    def check_inside(self) -> HandlerScope:
        """Return the scope that the caller is in.

        Raises:
            RuntimeError: The caller is in none; says what to do instead.
        """
        if (scope := self.scope) is None:
            raise RuntimeError(f"{self.path}: {OUTSIDE_HANDLER}")
        return scope

    def check_outside(self) -> None:
        """Refuse a caller inside the scope: it would wait for the end of the scope that it is part of.

        Raises:
            RuntimeError: The caller is inside; says what to do instead.
        """
        if self.scope is not None:
            raise RuntimeError(
                f"{self.path}: a handler that writes to a store cannot wait for what other consumers of that "
                "store do, nor for its own: they wait until its message is committed. Wake them, or give them "
                "another store"
            )

    def check_process(self) -> None:
        """Refuse a forked child: the connection and its open transaction belong to the parent.

        Raises:
            OwnershipLost: This is a forked child; nothing was touched.
        """
        if self._process != os.getpid():
            raise OwnershipLost(
                f"{self.path}: the transaction belongs to the process that this one was forked from; nothing was "
                "written; let a child end without leaving the handler, as by os._exit()"
            )

    def refusal_message(self, what: str, why: str = _COMMITTED_TOGETHER) -> str:
        """Build the error text for something that a handler may not do."""
        return f"{self.path}: a handler may not {what} on the store's connection: {why}"

    def authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        """Tell SQLite whether a statement may be compiled."""
        if self.worker == threading.get_ident():
            return sqlite3.SQLITE_OK
        if (scope := self.scope) is None or not scope.has_begun:  # a cursor that was made around `cursor()`
            return sqlite3.SQLITE_DENY
        what, why = _objection(action, first or "", second, self.sql)
        if not what:
            return sqlite3.SQLITE_OK
        self.refused = self.refusal_message(what, why)
        return sqlite3.SQLITE_DENY


def _objection(action: int, first: str, second: str | None, sql: str) -> tuple[str, str]:
    """Name what a handler may not do, and why; two empty strings if it may."""
    if action == sqlite3.SQLITE_TRANSACTION:
        return first, _COMMITTED_TOGETHER
    if action in {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH}:
        return "ATTACH or DETACH a database", "SQLite commits to two files one after the other, not at once"
    if action == sqlite3.SQLITE_PRAGMA and second is not None and first.lower() not in _PRAGMAS_WITH_VALUE:
        return f"set PRAGMA {quoted(first)}", "it would hold for the store too"
    reserved = _reserved_name(action, first, second or "", sql)
    if reserved.lower() == _FUNCTION:
        return f"make {quoted(reserved)}", _HIDES_FUNCTION
    return (f"change {quoted(reserved)}", _RESERVED_PREFIX) if reserved else ("", "")


def _reserved_name(action: int, first: str, second: str, sql: str) -> str:
    """Name the table or index of the store that an action would change; an empty string if none."""
    if action in _HARMLESS_ACTIONS:
        return ""
    if action == sqlite3.SQLITE_ALTER_TABLE and _PREFIX in sql.lower():  # SQLite does not tell the new name
        return f"{_PREFIX}..."
    if action == sqlite3.SQLITE_ALTER_TABLE and _FUNCTION in sql.lower():
        return _FUNCTION
    names = (first,) if action == sqlite3.SQLITE_UPDATE else (first, second)
    return next((name for name in names if name.lower().startswith(_PREFIX) or name.lower() == _FUNCTION), "")


_MARK = "\n--push_to_poll"
"""Ends each statement of the store. A statement is authorised when it is compiled, not when it is taken from the
statement cache again: without the mark, a handler's COMMIT would find the store's compiled COMMIT there."""


def mark_as_store(sql: str) -> str:
    """Spell a statement of the store so that no statement of a handler equals it."""
    return sql + _MARK


_SCRIPT_COMMITS = "it commits first; execute its statements one by one"

_AFFECTS_STORE = "it would hold for the store too"


def rolled_back(path: str) -> StoreError:
    """Build the error for a transaction that has ended before its handler."""
    return StoreError(
        f"{path}: SQLite has rolled the transaction back, as ON CONFLICT ROLLBACK, RAISE(ROLLBACK) and a full "
        "disk make it do, or the session was released; what the handler wrote is undone, and its message is not "
        "processed: let this error pass through the handler"
    )


def _refusal(name: str, *why: str) -> Callable[..., NoReturn]:
    """Make a method that a handler may not call."""

    def refuse(connection: "GuardedConnection", *_: object, **__: object) -> NoReturn:
        connection.refuse(f"call {name}()", *why)

    return refuse


def _fixed(name: str, *why: str, value: object) -> Any:
    """Make an attribute that a handler may not set."""
    return property(lambda _: value, lambda connection, _: connection.refuse(f"set {name}", *why))


class GuardedCursor(sqlite3.Cursor):
    """A cursor that works only in the scope in which it was made."""

    connection: "GuardedConnection"

    def __init__(self, connection: "GuardedConnection") -> None:
        self._scope = connection.guard.check_inside()
        super().__init__(connection)
        self._scope.open_handles.append(ref(self))

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        """Execute a statement, as `sqlite3.Cursor.execute` does.

        Raises:
            RuntimeError: Outside the scope, or a handler may not execute the statement.
            StoreError: The transaction cannot be begun, or SQLite has rolled it back.
            sqlite3.Error: As `sqlite3` raises it.
        """
        self._begin()
        return self._run(super().execute, sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Self:
        """As that of `sqlite3`; raises as `execute` does."""
        self._begin()
        return self._run(super().executemany, sql, parameters)

    def executescript(self, sql_script: str, /) -> NoReturn:  # noqa: ARG002  # the signature of sqlite3
        """It would commit first.

        Raises:
            RuntimeError: Always.
        """
        self.connection.refuse("call executescript()", _SCRIPT_COMMITS)

    def fetchone(self) -> Any:
        """Fetch the next row, as `sqlite3.Cursor.fetchone` does."""
        with self._scope.guard.one_thread:
            return super().fetchone()

    def fetchmany(self, size: int | None = 1) -> list[Any]:
        """Fetch the next rows, as `sqlite3.Cursor.fetchmany` does."""
        with self._scope.guard.one_thread:
            return super().fetchmany(size)

    def fetchall(self) -> list[Any]:
        """Fetch the remaining rows, as `sqlite3.Cursor.fetchall` does."""
        with self._scope.guard.one_thread:
            return super().fetchall()

    def __next__(self) -> Any:
        with self._scope.guard.one_thread:
            return super().__next__()

    def _begin(self) -> None:
        if self.connection.begun_scope() is not self._scope:
            raise RuntimeError(
                f"{self._scope.guard.path}: this cursor is of a message that was processed; make another one for "
                "each message"
            )

    def _run(self, execute: Callable[[str, Any], Self], sql: str, parameters: Any) -> Self:
        guard = self._scope.guard
        try:
            with guard.one_thread:
                guard.sql = sql
                # A handler's statement that ends with the store's mark gets another end.
                return execute(f"{sql}\n--" if _MARK in sql else sql, parameters)
        except sqlite3.DatabaseError as error:
            refused, guard.refused = guard.refused, None
            if refused is not None and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_AUTH:
                raise RuntimeError(refused) from error
            raise


_row_factory: Any = sqlite3.Connection.row_factory


class GuardedConnection(sqlite3.Connection):
    """The one connection of a transactional store, in autocommit mode: only the store begins transactions.

    Args:
        path: The database.
        guard: Asked before each use.
        timeout: Seconds to wait for another program that holds the file.

    Attributes:
        guard: Asked before each use.
        timeout: As given.
    """

    def __init__(self, path: str, guard: Guard, *, timeout: float) -> None:
        self.guard = guard
        self.timeout = timeout
        # Any thread: a handler may run in a worker thread, and the mutex orders the store's own threads.
        super().__init__(path, timeout=timeout, isolation_level=None, check_same_thread=False)
        super().set_authorizer(guard.authorize)

    # What a handler may do

    def begun_scope(self) -> HandlerScope:
        """Return the scope in which the caller may use the connection, with its transaction begun.

        Raises:
            RuntimeError: The caller is in no scope of the connection.
            StoreError: The transaction cannot be begun, or SQLite has rolled it back.
        """
        scope = self.guard.check_inside()
        scope.begin()
        if not self.in_transaction:  # a statement would be committed at once
            raise rolled_back(self.guard.path)
        return scope

    def cursor(self, factory: Any = None) -> Any:
        """As that of `sqlite3`, but of one kind.

        Raises:
            RuntimeError: Outside the block, or another kind is wanted.
        """
        if factory is not None:
            self.refuse("choose a class of cursors", "the store's own see to it when they are used")
        return super().cursor(GuardedCursor)  # type: ignore[arg-type]  # what it is given is this connection

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """As that of `sqlite3`; raises as `GuardedCursor.execute` does."""
        if self._in_store_thread:
            return sqlite3.Cursor(self).execute(mark_as_store(sql), parameters)  # no row factory of a handler
        cursor: GuardedCursor = self.cursor()
        return cursor.execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        """As that of `sqlite3`; raises as `GuardedCursor.execute` does."""
        if self._in_store_thread:
            return sqlite3.Cursor(self).executemany(mark_as_store(sql), parameters)
        cursor: GuardedCursor = self.cursor()
        return cursor.executemany(sql, parameters)

    def blobopen(self, table: str, column: str, row: int, /, *, readonly: bool = False, name: str = "main") -> Any:
        """As that of `sqlite3`. It is closed at the end of the block.

        Raises:
            RuntimeError: Outside the block, or the table is the store's.
            StoreError: As `GuardedCursor.execute` raises it.
            sqlite3.Error: As that of `sqlite3`.
        """
        scope = self.begun_scope()
        if not readonly and self.guard.authorize(sqlite3.SQLITE_UPDATE, table, column):  # SQLite does not ask here
            raise RuntimeError(self.guard.refused)
        with self.guard.one_thread:
            blob = super().blobopen(table, column, row, readonly=readonly, name=name)
        scope.open_handles.append(ref(blob))
        return blob

    def interrupt(self) -> None:
        """As that of `sqlite3`, within the block."""
        if self.guard.check_inside().has_begun:
            super().interrupt()

    @property
    def row_factory(self) -> Any:
        """As that of `sqlite3`. Setting it begins the transaction: no other handler is to get such rows."""
        return _row_factory.__get__(self)

    @row_factory.setter
    def row_factory(self, factory: Any) -> None:
        self.begun_scope()
        _row_factory.__set__(self, factory)

    # What it may not

    def refuse(self, what: str, *why: str) -> NoReturn:
        """Raise the error for what a handler may not do."""
        raise RuntimeError(self.guard.refusal_message(what, *why))

    @property
    def _in_store_thread(self) -> bool:
        return self.guard.worker == threading.get_ident()

    def close(self) -> None:
        """For the store alone."""
        if not self._in_store_thread:
            self.refuse("call close()", "the store closes it when the last of its consumers has ended")
        super().close()

    def __enter__(self) -> NoReturn:
        self.refuse("use `with connection:`")

    commit = _refusal("commit")
    rollback = _refusal("rollback")
    executescript = _refusal("executescript", _SCRIPT_COMMITS)
    # It waits, without end, until the transaction has ended that the handler is in.
    backup = _refusal("backup", "it waits for the end of the transaction; use a connection of your own")
    set_authorizer = _refusal("set_authorizer", _AFFECTS_STORE)
    set_progress_handler = _refusal("set_progress_handler", _AFFECTS_STORE)  # it could end a commit
    setlimit = _refusal("setlimit", _AFFECTS_STORE)  # it could make the store's statements too long
    # What these make could take the place of what the store's statements call, or find keys by.
    create_function = _refusal("create_function", _AFFECTS_STORE)
    create_aggregate = _refusal("create_aggregate", _AFFECTS_STORE)
    create_window_function = _refusal("create_window_function", _AFFECTS_STORE)
    create_collation = _refusal("create_collation", _AFFECTS_STORE)
    deserialize = _refusal("deserialize", "it would take the place of the store's database")

    isolation_level = _fixed("isolation_level", value=None)  # transactions are the store's
    autocommit = _fixed("autocommit", value=True)  # of Python 3.12 and later
    text_factory = _fixed("text_factory", _AFFECTS_STORE, value=str)
