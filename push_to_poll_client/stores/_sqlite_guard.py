"""What may a handler do with the store's connection, and when?

What it likes within its block of effects, but end the transaction, and write what is the store's. SQLite's
authorizer sees to that, whatever the SQL looks like and whatever runs it: it is asked about each statement when
that is compiled (https://www.sqlite.org/c3ref/set_authorizer.html).
"""

import contextlib
import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Protocol
from weakref import WeakSet

from push_to_poll_client._exceptions import OwnershipLost
from push_to_poll_client._validation import quoted

__all__ = ["OUTSIDE", "SAVEPOINT", "Guard", "Place"]

SAVEPOINT = "push_to_poll"
"""The name of the store's own savepoints."""

_PREFIX = "push_to_poll_"
"""What the store's own tables begin with."""

OUTSIDE = (
    "the store's connection may be used only while a message is processed: in the handler's task, and in the "
    "tasks and threads that it starts and waits for; elsewhere open a connection of your own, only to read while "
    "the consumer runs"
)

_COMMITS = (
    "what it writes is committed together with the message's record, and undone when it raises; for a part that "
    f"may fail alone, use a savepoint of another name than {SAVEPOINT}"
)

_OURS = f"what has a name that begins with {_PREFIX} is the store's"

_ASIDE = {
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

_MAY_HAVE_VALUE = frozenset(
    """
    application_id foreign_key_check foreign_key_list index_info index_list index_xinfo integrity_check quick_check
    table_info table_list table_xinfo user_version
    """.split()  # noqa: SIM905  # read by people
)
"""PRAGMAs whose value says what to look at, and two that are the application's own, and undone with the rest."""


_current: ContextVar["Place | None"] = ContextVar("push_to_poll_client_effects", default=None)
"""The innermost place that the current task is in: a handler's task, and what it starts."""

_guards: WeakSet["Guard"] = WeakSet()


def _leave_to_parent() -> None:
    """The connection is not a forked child's (https://www.sqlite.org/howtocorrupt.html, section 2.6)."""
    for guard in _guards:
        guard.place = None


if sys.platform != "win32":  # pragma: no branch  # the tests run on POSIX
    os.register_at_fork(after_in_child=_leave_to_parent)


class _Closable(Protocol):
    def close(self) -> None: ...


class Place:
    """Where a connection may be used, in which order the tasks may be: between `enter()` and `leave()`.

    Args:
        guard: Of the connection.

    Attributes:
        guard: Of the connection.
        left: What was made there and holds on to the database: weak references to cursors and blobs.
        outer: The place around it, of another store; `None`: none.
    """

    __slots__ = ("_before", "guard", "left", "outer")

    def __init__(self, guard: "Guard") -> None:
        self.guard = guard
        self.left: list[Callable[[], _Closable | None]] = []
        self.outer: Place | None = None

    def enter(self) -> None:
        """The current task, and what it starts from now on, is there."""
        outer = self._before = _current.get()
        while outer is not None and outer.guard.place is not outer:  # left: this task outlived its handler
            outer = outer.outer
        self.outer = outer
        _current.set(self)
        self.guard.place = self

    def leave(self) -> None:
        """Nobody is there any more, whoever was. In the task that entered."""
        if self.guard.place is self:
            self.guard.place = None
        _current.set(self._before)

    def let_go(self) -> None:
        """Close what a handler left open, which would hold on to the database, or write later."""
        for thing in [seen() for seen in self.left]:
            if thing is not None:
                with contextlib.suppress(sqlite3.Error):  # it is of no use any more, whatever it says
                    thing.close()
        self.left.clear()


class Guard:
    """Stands before one connection.

    Args:
        path: Of its database, for messages.

    Attributes:
        path: Of its database.
        place: Where the connection may be used now; `None`: nowhere.
        worker: The thread in which the store itself uses the connection now; `None`: none.
        sql: What the handler executes now.
        refused: Why the authorizer refused a statement; `None` since somebody was told.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._process = os.getpid()
        self.place: Place | None = None
        self.worker: int | None = None
        self.sql = ""
        self.refused: str | None = None
        _guards.add(self)

    @contextlib.contextmanager
    def store_works(self) -> Iterator[None]:
        """Within it, what this thread does is the store's own work. One thread at a time, by the file's mutex."""
        self.worker = threading.get_ident()
        try:
            yield
        finally:
            self.worker = None

    @property
    def is_inside(self) -> bool:
        """Whether the caller is where the connection may be used."""
        inner, place = _current.get(), self.place
        while inner is not None and inner is not place:
            inner = inner.outer
        return inner is not None

    def check_inside(self) -> Place:
        """Refuse who is not; where the caller is.

        Raises:
            RuntimeError: With what to do instead.
        """
        place = self.place
        if place is None or not self.is_inside:
            raise RuntimeError(f"{self.path}: {OUTSIDE}")
        return place

    def check_outside(self) -> None:
        """Refuse who is, and would wait for the end of what it is itself part of.

        Raises:
            RuntimeError: With what to do instead.
        """
        if self.is_inside:
            raise RuntimeError(
                f"{self.path}: a handler that writes to a store cannot wait for what other consumers of that "
                "store do, nor for its own: they wait until its message is committed. Wake them, or give them "
                "another store"
            )

    def check_process(self) -> None:
        """Refuse a forked child: the connection, and what it has open, are its parent's.

        Raises:
            OwnershipLost: It is one; nothing was touched.
        """
        if self._process != os.getpid():
            raise OwnershipLost(
                f"{self.path}: the transaction belongs to the process that this one was forked from; nothing was "
                "written; let a child end without leaving the handler, as by os._exit()"
            )

    def refusal(self, what: str, why: str = _COMMITS) -> str:
        """The sentence for what a handler may not do."""
        return f"{self.path}: a handler may not {what} on the store's connection: {why}"

    def authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        """SQLite asks whether a statement may be compiled."""
        if self.worker == threading.get_ident():
            return sqlite3.SQLITE_OK
        what, why = _objection(action, first or "", second, self.sql)
        if not what:
            return sqlite3.SQLITE_OK
        self.refused = self.refusal(what, why)
        return sqlite3.SQLITE_DENY


def _objection(action: int, first: str, second: str | None, sql: str) -> tuple[str, str]:
    """What a handler would do, and why it may not; two empty strings: it may."""
    if action == sqlite3.SQLITE_TRANSACTION:
        return first, _COMMITS
    if action == sqlite3.SQLITE_SAVEPOINT and (second or "").lower() == SAVEPOINT:
        return f"{first} the savepoint {SAVEPOINT}", _COMMITS
    if action in {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH}:
        return "ATTACH or DETACH a database", "SQLite commits to two files one after the other, not at once"
    if action == sqlite3.SQLITE_PRAGMA and second is not None and first.lower() not in _MAY_HAVE_VALUE:
        return f"set PRAGMA {quoted(first)}", "it would hold for the store too"
    ours = _name_of_ours(action, first, second or "", sql)
    return (f"change {quoted(ours)}", _OURS) if ours else ("", "")


def _name_of_ours(action: int, first: str, second: str, sql: str) -> str:
    """What of the store's would be changed; an empty string: nothing."""
    if action in _ASIDE:
        return ""
    if action == sqlite3.SQLITE_ALTER_TABLE and _PREFIX in sql.lower():  # SQLite does not tell the new name
        return f"{_PREFIX}..."
    names = (first,) if action == sqlite3.SQLITE_UPDATE else (first, second)
    return next((name for name in names if name.lower().startswith(_PREFIX)), "")
