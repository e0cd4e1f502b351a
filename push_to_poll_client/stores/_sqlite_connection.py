"""What does a handler hold that has the store's connection? A `sqlite3.Connection` that asks before each use.

The store itself uses it too, in its own threads: then it is a plain one.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, Self
from weakref import ref

from push_to_poll_client._exceptions import StoreError
from push_to_poll_client.stores._sqlite_guard import Guard, Place

__all__ = ["GuardedConnection", "GuardedCursor", "as_stores"]

_MARK = "\n--push_to_poll"
"""Ends each statement of the store. A statement is authorised when it is compiled, not when it is taken from the
cache again: without it, a handler's COMMIT would be the store's, which may."""

_SCRIPT = "it commits first; execute its statements one by one"

_STAYS = "it would hold for the store too"

_ROLLED_BACK = (
    "SQLite has rolled the transaction back, as ON CONFLICT ROLLBACK, RAISE(ROLLBACK) and a full disk make it do: "
    "what was written since the last commit is undone; let that error pass through the handler"
)


class GuardedCursor(sqlite3.Cursor):
    """A cursor for the block of effects in which it was made."""

    connection: "GuardedConnection"

    def __init__(self, connection: "GuardedConnection") -> None:
        self._place = connection.checked()
        super().__init__(connection)
        self._place.left.append(ref(self))

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        """As that of `sqlite3`.

        Raises:
            RuntimeError: Outside the block, or the statement is none for a handler.
            StoreError: SQLite has rolled the transaction back.
            sqlite3.Error: As that of `sqlite3`.
        """
        self._check()
        return self._run(super().execute, sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Self:
        """As that of `sqlite3`; raises as `execute` does."""
        self._check()
        return self._run(super().executemany, sql, parameters)

    def executescript(self, sql_script: str, /) -> NoReturn:  # noqa: ARG002  # the signature of sqlite3
        """It would commit first.

        Raises:
            RuntimeError: Always.
        """
        self.connection.refuse("call executescript()", _SCRIPT)

    def _check(self) -> None:
        if self.connection.checked() is not self._place:
            raise RuntimeError(
                f"{self._place.guard.path}: this cursor is of a message that was processed; make another one for "
                "each message"
            )

    def _run(self, execute: Callable[[str, Any], Self], sql: str, parameters: Any) -> Self:
        guard = self._place.guard
        guard.sql = sql
        try:
            return execute(_others(sql), parameters)
        except sqlite3.DatabaseError as error:
            refused, guard.refused = guard.refused, None
            if refused is not None and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_AUTH:
                raise RuntimeError(refused) from error
            raise


class GuardedConnection(sqlite3.Connection):
    """The one connection of a transactional store, in autocommit mode: transactions are the store's.

    Args:
        path: The database.
        guard: Is asked before each use.
        timeout: Seconds to wait for another program that holds the file.

    Attributes:
        guard: Is asked before each use.
    """

    def __init__(self, path: str, guard: Guard, *, timeout: float) -> None:
        self.guard = guard
        # Any thread: a handler may run in one, and the mutex sees to the store's own.
        super().__init__(path, timeout=timeout, isolation_level=None, check_same_thread=False)
        super().set_authorizer(guard.authorize)

    # What a handler may do

    def checked(self) -> Place:
        """Where the caller is, if it may use the connection there.

        Raises:
            RuntimeError: Outside a block of effects.
            StoreError: SQLite has rolled the transaction back.
        """
        place = self.guard.check_inside()
        if not self.in_transaction:  # what is written now would be committed at once
            raise StoreError(f"{self.guard.path}: {_ROLLED_BACK}")
        return place

    def cursor(self, factory: Any = None) -> Any:
        """As that of `sqlite3`, but of one kind.

        Raises:
            RuntimeError: Outside the block, or another kind is wanted.
            StoreError: SQLite has rolled the transaction back.
        """
        if factory is not None:
            self.refuse("choose a class of cursors", "the store's own see to it when they are used")
        return super().cursor(GuardedCursor)  # type: ignore[arg-type]  # what it is given is this connection

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """As that of `sqlite3`; raises as `GuardedCursor.execute` does."""
        if self._is_stores:
            return sqlite3.Cursor(self).execute(as_stores(sql), parameters)  # no row factory of a handler
        cursor: GuardedCursor = self.cursor()
        return cursor.execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        """As that of `sqlite3`; raises as `GuardedCursor.execute` does."""
        if self._is_stores:
            return sqlite3.Cursor(self).executemany(as_stores(sql), parameters)
        cursor: GuardedCursor = self.cursor()
        return cursor.executemany(sql, parameters)

    def blobopen(self, table: str, column: str, row: int, /, *, readonly: bool = False, name: str = "main") -> Any:
        """As that of `sqlite3`. It is closed at the end of the block.

        Raises:
            RuntimeError: Outside the block, or the table is the store's.
            StoreError: SQLite has rolled the transaction back.
            sqlite3.Error: As that of `sqlite3`.
        """
        place = self.checked()
        if not readonly and self.guard.authorize(sqlite3.SQLITE_UPDATE, table, column):  # SQLite does not ask here
            raise RuntimeError(self.guard.refused)
        blob = super().blobopen(table, column, row, readonly=readonly, name=name)
        place.left.append(ref(blob))
        return blob

    def interrupt(self) -> None:
        """As that of `sqlite3`, within the block."""
        self.checked()
        super().interrupt()

    # What it may not

    def refuse(self, what: str, *why: str) -> NoReturn:
        """Raise the error for what a handler may not do."""
        raise RuntimeError(self.guard.refusal(what, *why))

    @property
    def _is_stores(self) -> bool:
        return self.guard.worker == threading.get_ident()

    def close(self) -> None:
        """For the store alone."""
        if not self._is_stores:
            self.refuse("call close()", "the store closes it when the last of its consumers has ended")
        super().close()

    def commit(self) -> NoReturn:
        """For the store alone."""
        self.refuse("call commit()")

    def rollback(self) -> NoReturn:
        """For the store alone."""
        self.refuse("call rollback()")

    def executescript(self, sql_script: str, /) -> NoReturn:  # noqa: ARG002  # the signature of sqlite3
        """It would commit first."""
        self.refuse("call executescript()", _SCRIPT)

    def __enter__(self) -> NoReturn:
        self.refuse("use `with connection:`")

    def backup(self, *_: Any, **__: Any) -> NoReturn:
        """It waits, without end, until the transaction has ended that the handler is in."""
        self.refuse("call backup()", "it waits for the end of the transaction; use a connection of your own")

    def set_authorizer(self, *_: Any, **__: Any) -> NoReturn:
        """For the store alone."""
        self.refuse("call set_authorizer()", _STAYS)

    def set_progress_handler(self, *_: Any, **__: Any) -> NoReturn:
        """It could end a commit."""
        self.refuse("call set_progress_handler()", _STAYS)

    def setlimit(self, *_: Any) -> NoReturn:
        """It could make the store's statements too long."""
        self.refuse("call setlimit()", _STAYS)

    def create_function(self, *_: Any, **__: Any) -> NoReturn:
        """It could take the place of one that the store's statements call."""
        self.refuse("call create_function()", _STAYS)

    def create_aggregate(self, *_: Any, **__: Any) -> NoReturn:
        """As `create_function`."""
        self.refuse("call create_aggregate()", _STAYS)

    def create_window_function(self, *_: Any, **__: Any) -> NoReturn:
        """As `create_function`."""
        self.refuse("call create_window_function()", _STAYS)

    def create_collation(self, *_: Any, **__: Any) -> NoReturn:
        """It could take the place of the one by which keys are found."""
        self.refuse("call create_collation()", _STAYS)

    def deserialize(self, *_: Any, **__: Any) -> NoReturn:
        """It would take the database's place."""
        self.refuse("call deserialize()", "it would take the place of the store's database")

    @property
    def isolation_level(self) -> None:
        """`None`: transactions are the store's."""
        return

    @isolation_level.setter
    def isolation_level(self, _: object) -> None:
        self.refuse("set isolation_level")

    @property
    def autocommit(self) -> bool:
        """Of Python 3.12 and later: transactions are the store's."""
        return True

    @autocommit.setter
    def autocommit(self, _: object) -> None:
        self.refuse("set autocommit")

    @property
    def text_factory(self) -> type[str]:
        """What texts are read as."""
        return str

    @text_factory.setter
    def text_factory(self, _: object) -> None:
        self.refuse("set text_factory", _STAYS)


def as_stores(sql: str) -> str:
    """A statement of the store, spelled as none of a handler is."""
    return sql + _MARK


def _others(sql: str) -> str:
    """A handler's statement, spelled as none of the store's is."""
    return f"{sql}\n--" if _MARK in sql else sql
