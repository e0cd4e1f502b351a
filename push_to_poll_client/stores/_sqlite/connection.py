"""Connection for handlers that rejects statements that would break the store's transaction.

A handler's first statement begins its transaction. The handler must not end it, change the tables of the store, or
change settings of the connection. SQLite's authorizer enforces this when it compiles a statement, however the SQL
is written (https://www.sqlite.org/c3ref/set_authorizer.html).

The store uses the same connection in its own threads, without these restrictions. `HandlerScope` defines where a
handler may use the connection, and `Guard` decides before each use.
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
"""Prefix of the store's tables."""

OUTSIDE_HANDLER = (
    "the store's connection works only while a message is processed, in the handler's task, tasks and threads. "
    "For a thread use anyio.to_thread.run_sync() or asyncio.to_thread(); threading.Thread, executors and "
    "loop.run_in_executor() need contextvars.copy_context().run. Elsewhere open a connection of your own"
)

_COMMITTED_TOGETHER = (
    "what it writes is committed together with the message's record, and undone when it raises; for a part that "
    "may fail alone, use a savepoint"
)

_FUNCTION = "json_each"
"""SQLite function that the store uses; a table of this name would hide it."""

_HIDES_FUNCTION = "the name would hide a function of SQLite that the store uses"

_RESERVED_PREFIX = f"names that start with {_PREFIX} belong to the store"

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
"""Actions that never change the store's tables."""

_PRAGMAS_WITH_VALUE = frozenset(
    """
    application_id foreign_key_check foreign_key_list index_info index_list index_xinfo integrity_check quick_check
    table_info table_list table_xinfo user_version
    """.split()  # noqa: SIM905  # read by people
)
"""PRAGMAs with a value that only selects what to read, and two that belong to the application."""


_current_scope: ContextVar["HandlerScope | None"] = ContextVar("push_to_poll_client_effects", default=None)
"""The innermost scope of the current task: set in a handler's task and inherited by the tasks it starts."""


class HandlerScope:
    """A handler's task and the tasks it starts, which may use the connection until `leave()`."""

    def __init__(self, guard: "Guard") -> None:
        self.guard = guard
        self.is_active = False
        self.has_begun = False
        # Weak references to the handler's cursors and blobs.
        self.open_handles: list[Callable[[], sqlite3.Cursor | sqlite3.Blob | None]] = []
        self.outer: HandlerScope | None = None  # scope of another store around this one

    def begin(self) -> None:
        """Begin the transaction if this is the first use of the connection."""
        raise NotImplementedError

    def enter(self) -> None:
        """Put the current task, and tasks that it starts later, into this scope."""
        outer = self._before = _current_scope.get()
        while outer is not None and not outer.is_active:  # already left: this task outlived its handler
            outer = outer.outer
        self.outer = outer
        _current_scope.set(self)
        self.is_active = True

    def leave(self) -> None:
        """End the scope for all tasks. Call it in the task that entered."""
        self.is_active = False
        _current_scope.set(self._before)

    def close_handles(self) -> None:
        """Close cursors and blobs that a handler left open; they could lock the database or write later."""
        for handle in [reference() for reference in self.open_handles]:
            if handle is not None:
                with contextlib.suppress(sqlite3.Error):  # nothing uses it any more
                    handle.close()
        self.open_handles.clear()


class Guard:
    """Decides which caller may use one connection, and for which statements."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._process = os.getpid()
        # Held while a handler's thread uses SQLite, which calls the authorizer with its own lock held. Else a
        # second thread could wait for that lock while it holds Python's global lock, which the authorizer needs.
        self.one_thread = threading.RLock()
        self.worker: int | None = None  # thread in which the store itself uses the connection
        self.sql = ""  # statement that the handler executes
        self.refused: str | None = None  # why the authorizer rejected a statement, until it is raised

    @contextlib.contextmanager
    def store_access(self) -> Iterator[None]:
        """Lift the restrictions for this thread. The caller holds the mutex of the file."""
        self.worker = threading.get_ident()
        try:
            yield
        finally:
            self.worker = None

    @property
    def scope(self) -> HandlerScope | None:
        """Scope of this connection that contains the caller, or None."""
        # In a forked child nothing may use it (https://www.sqlite.org/howtocorrupt.html, section 2.6).
        scope = None if self._process != os.getpid() else _current_scope.get()
        while scope is not None and not (scope.guard is self and scope.is_active):
            scope = scope.outer
        return scope

    def check_inside(self) -> HandlerScope:
        if (scope := self.scope) is None:
            raise RuntimeError(f"{self.path}: {OUTSIDE_HANDLER}")
        return scope

    def check_outside(self) -> None:
        """Raise a RuntimeError inside the scope: the caller would wait for its own end."""
        if self.scope is not None:
            raise RuntimeError(
                f"{self.path}: a handler that writes to a store cannot wait for a consumer of that store, because "
                "the consumer waits until the handler's message is committed; wake the consumer instead, or give "
                "it another store"
            )

    def check_process(self) -> None:
        """Raise an `OwnershipLost` in a forked child: the transaction belongs to the parent."""
        if self._process != os.getpid():
            raise OwnershipLost(
                f"{self.path}: the transaction belongs to the parent of this forked process; nothing was written; "
                "end a child inside the handler with os._exit()"
            )

    def refusal_message(self, what: str, why: str = _COMMITTED_TOGETHER) -> str:
        return f"{self.path}: a handler must not {what} on the store's connection: {why}"

    def authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        """Tell SQLite whether a statement may be compiled."""
        if self.worker == threading.get_ident():
            return sqlite3.SQLITE_OK
        if (scope := self.scope) is None or not scope.has_begun:  # a cursor made without `cursor()`
            return sqlite3.SQLITE_DENY
        what, why = _objection(action, first or "", second, self.sql)
        if not what:
            return sqlite3.SQLITE_OK
        self.refused = self.refusal_message(what, why)
        return sqlite3.SQLITE_DENY


def _objection(action: int, first: str, second: str | None, sql: str) -> tuple[str, str]:
    """Return the forbidden operation and the reason, or two empty strings."""
    if action == sqlite3.SQLITE_TRANSACTION:
        return first, _COMMITTED_TOGETHER
    if action in {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH}:
        return "ATTACH or DETACH a database", "SQLite does not commit to two files at the same time"
    if action == sqlite3.SQLITE_PRAGMA and second is not None and first.lower() not in _PRAGMAS_WITH_VALUE:
        return f"set PRAGMA {quoted(first)}", "the setting would affect the store too"
    reserved = _reserved_name(action, first, second or "", sql)
    if reserved.lower() == _FUNCTION:
        return f"create {quoted(reserved)}", _HIDES_FUNCTION
    return (f"change {quoted(reserved)}", _RESERVED_PREFIX) if reserved else ("", "")


def _reserved_name(action: int, first: str, second: str, sql: str) -> str:
    """Return the table or index of the store that an action would change, or an empty string."""
    if action in _HARMLESS_ACTIONS:
        return ""
    if action == sqlite3.SQLITE_ALTER_TABLE and _PREFIX in sql.lower():  # SQLite does not tell the new name
        return f"{_PREFIX}..."
    if action == sqlite3.SQLITE_ALTER_TABLE and _FUNCTION in sql.lower():
        return _FUNCTION
    names = (first,) if action == sqlite3.SQLITE_UPDATE else (first, second)
    return next((name for name in names if name.lower().startswith(_PREFIX) or name.lower() == _FUNCTION), "")


# Suffix of each statement of the store. SQLite authorises a statement when it compiles it, not when it comes from
# the statement cache. Without the mark, a handler's COMMIT would use the store's cached COMMIT.
_MARK = "\n--push_to_poll"


def mark_as_store(sql: str) -> str:
    """Mark a statement of the store so that it never equals a statement of a handler."""
    return sql + _MARK


_SCRIPT_COMMITS = "it commits first; execute the statements one by one"

_AFFECTS_STORE = "the setting would affect the store too"


def rolled_back(path: str) -> StoreError:
    """Build the error for a transaction that ended before its handler."""
    return StoreError(
        f"{path}: SQLite has rolled the transaction back, because of ON CONFLICT ROLLBACK, RAISE(ROLLBACK) or a "
        "full disk, or the session was released; the handler's writes are undone and its message is not "
        "processed: do not catch this error in the handler"
    )


def _refusal(name: str, *why: str) -> Callable[..., NoReturn]:
    """Make a method that a handler must not call."""

    def refuse(connection: "GuardedConnection", *_: object, **__: object) -> NoReturn:
        connection.refuse(f"call {name}()", *why)

    return refuse


def _fixed(name: str, *why: str, value: object) -> Any:
    """Make an attribute that a handler must not set."""
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
        """Execute as `sqlite3` does. Raises the same errors as `execute`."""
        self._begin()
        return self._run(super().executemany, sql, parameters)

    def executescript(self, sql_script: str, /) -> NoReturn:  # noqa: ARG002  # the signature of sqlite3
        """Raise a RuntimeError: the method would commit first."""
        self.connection.refuse("call executescript()", _SCRIPT_COMMITS)

    def fetchone(self) -> Any:
        with self._scope.guard.one_thread:
            return super().fetchone()

    def fetchmany(self, size: int | None = 1) -> list[Any]:
        with self._scope.guard.one_thread:
            return super().fetchmany(size)

    def fetchall(self) -> list[Any]:
        with self._scope.guard.one_thread:
            return super().fetchall()

    def __next__(self) -> Any:
        with self._scope.guard.one_thread:
            return super().__next__()

    def _begin(self) -> None:
        if self.connection.begun_scope() is not self._scope:
            raise RuntimeError(
                f"{self._scope.guard.path}: this cursor belongs to an earlier message; make a new cursor for each "
                "message"
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
    """The one connection of a transactional store, in autocommit mode: only the store begins transactions."""

    def __init__(self, path: str, guard: Guard, *, timeout: float) -> None:
        self.guard = guard
        self.timeout = timeout  # seconds to wait for another program that holds the file
        # Any thread: a handler may run in a worker thread, and the mutex orders the store's own threads.
        super().__init__(path, timeout=timeout, isolation_level=None, check_same_thread=False)
        super().set_authorizer(guard.authorize)

    # Allowed for a handler

    def begun_scope(self) -> HandlerScope:
        """Begin the transaction and return the scope; raise RuntimeError for a caller outside of it."""
        scope = self.guard.check_inside()
        scope.begin()
        if not self.in_transaction:  # a statement would be committed at once
            raise rolled_back(self.guard.path)
        return scope

    def cursor(self, factory: Any = None) -> Any:
        """Make a cursor. Raises a RuntimeError outside a handler, or for another class of cursors."""
        if factory is not None:
            self.refuse("choose a class of cursors", "the store's class checks each use")
        return super().cursor(GuardedCursor)  # type: ignore[arg-type]  # what it is given is this connection

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Execute as `sqlite3` does. Raises the same errors as `GuardedCursor.execute`."""
        if self._in_store_thread:
            return sqlite3.Cursor(self).execute(mark_as_store(sql), parameters)  # no row factory of a handler
        cursor: GuardedCursor = self.cursor()
        return cursor.execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        """Execute as `sqlite3` does. Raises the same errors as `GuardedCursor.execute`."""
        if self._in_store_thread:
            return sqlite3.Cursor(self).executemany(mark_as_store(sql), parameters)
        cursor: GuardedCursor = self.cursor()
        return cursor.executemany(sql, parameters)

    def blobopen(self, table: str, column: str, row: int, /, *, readonly: bool = False, name: str = "main") -> Any:
        """Open a blob as `sqlite3` does, but not in the store's tables. It is closed at the end of the handler.

        Raises the same errors as `GuardedCursor.execute`.
        """
        scope = self.begun_scope()
        if not readonly and self.guard.authorize(sqlite3.SQLITE_UPDATE, table, column):  # SQLite does not ask here
            raise RuntimeError(self.guard.refused)
        with self.guard.one_thread:
            blob = super().blobopen(table, column, row, readonly=readonly, name=name)
        scope.open_handles.append(ref(blob))
        return blob

    def interrupt(self) -> None:
        """Interrupt as `sqlite3` does, within a handler."""
        if self.guard.check_inside().has_begun:
            super().interrupt()

    @property
    def row_factory(self) -> Any:
        """Row factory of this handler only. Setting it begins the transaction."""
        return _row_factory.__get__(self)

    @row_factory.setter
    def row_factory(self, factory: Any) -> None:
        self.begun_scope()
        _row_factory.__set__(self, factory)

    # Forbidden for a handler

    def refuse(self, what: str, *why: str) -> NoReturn:
        raise RuntimeError(self.guard.refusal_message(what, *why))

    @property
    def _in_store_thread(self) -> bool:
        return self.guard.worker == threading.get_ident()

    def close(self) -> None:
        """Close the connection. Only the store may call it."""
        if not self._in_store_thread:
            self.refuse("call close()", "the store closes it after its last consumer has ended")
        super().close()

    def __enter__(self) -> NoReturn:
        self.refuse("use `with connection:`")

    commit = _refusal("commit")
    rollback = _refusal("rollback")
    executescript = _refusal("executescript", _SCRIPT_COMMITS)
    # It would wait for ever for the end of the handler's own transaction.
    backup = _refusal("backup", "it waits for the end of the transaction; use a connection of your own")
    set_authorizer = _refusal("set_authorizer", _AFFECTS_STORE)
    set_progress_handler = _refusal("set_progress_handler", _AFFECTS_STORE)  # it could end a commit
    setlimit = _refusal("setlimit", _AFFECTS_STORE)  # it could make the store's statements too long
    # These could replace functions or collations that the store's statements use.
    create_function = _refusal("create_function", _AFFECTS_STORE)
    create_aggregate = _refusal("create_aggregate", _AFFECTS_STORE)
    create_window_function = _refusal("create_window_function", _AFFECTS_STORE)
    create_collation = _refusal("create_collation", _AFFECTS_STORE)
    deserialize = _refusal("deserialize", "it would replace the store's database")

    isolation_level = _fixed("isolation_level", value=None)  # transactions are the store's
    autocommit = _fixed("autocommit", value=True)  # of Python 3.12 and later
    text_factory = _fixed("text_factory", _AFFECTS_STORE, value=str)
