"""Store in a SQLite file, for the consumers of one process.

`SQLiteStore` opens the file at the first claim and closes it after the last release. A session that is dropped
without a release counts as released when Python collects it. The rest is in `_sqlite`: the file and its lock, the
schema, the sessions, and the transactions of handlers.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, get_args
from weakref import WeakValueDictionary, finalize

from push_to_poll_client.stores._names import Rebind, name_in_use
from push_to_poll_client.stores._retention import DEFAULT_MAX_RECORDS, DEFAULT_RETENTION, Retention
from push_to_poll_client.stores._sqlite.connection import OUTSIDE_HANDLER
from push_to_poll_client.stores._sqlite.file import OpenFile
from push_to_poll_client.stores._sqlite.schema import MIGRATIONS, Synchronous
from push_to_poll_client.stores._sqlite.session import (
    ClaimedName,
    SQLiteSession,
    TransactionalSQLiteSession,
    rebind,
)
from push_to_poll_client.stores._sqlite.thread import StoreThread
from push_to_poll_client.stores._sqlite.transaction import SharedFile

if TYPE_CHECKING:
    from push_to_poll_client.stores.reader import StoreReader

__all__ = ["SQLiteStore"]


class SQLiteStore:
    """Keeps the progress of any number of consumer names in one file, for one process.

    The process owns the file from the first claim to the last release, by a lock on a second file, `<path>.lock`.
    The lock ends with the process, even after a crash; the lock file stays. In a second process `claim` raises
    `StoreBusy`, and `Consumer.run()` stands by. Consumers of one process share one store object. Other programs
    may read the database meanwhile. They may write only if the store is `transactional`.

    The file must be on a local disk: network file systems do not lock reliably, and SQLite's WAL needs shared
    memory. Symbolic links are followed. A hard link has its own lock, so always use the same name. Only the owner
    can read and write new files, because keys may be personal and a cursor may be a URL with a token.

    Opening a file sets it to WAL mode permanently, for every program. To undo that, close the file everywhere and
    run `PRAGMA journal_mode = DELETE`. SQLite 3.24 or newer is required, with its JSON functions (always included
    since 3.38).

    Each commit checks that the file, its `-wal` and its `.lock` are still in place. (Not on Windows, where an open
    file cannot be deleted or replaced.) If one was deleted or replaced, the commit is rolled back and raises a
    `StoreError`. A file is rejected, and not changed, if its `-wal` belongs to another state of the file: for
    example a backup restored after a crash.

    A record takes 25 bytes of the file if ids have 12 characters and count up, and 55 bytes if they are UUIDs. Ids
    of equal length that count up (000998, 000999, 001000), or that start with a time, need no memory. For ids in
    another order (UUIDv4, or numbers without leading zeros: 998, 999, 1000), each start of a run takes 6 to 8 MB
    and half a second per million records.

    A `transactional` store is also the application's database: writes of a handler through `connection` are
    committed together with the record of its message, or not at all (G8). The tables of this library have names
    that start with `push_to_poll_`. Create the application's tables beforehand, with your own connection. A file
    can be opened in either mode if it has no views and no triggers.

    - Each call of a handler has one transaction. It begins (`BEGIN IMMEDIATE`) with the first statement and is
      committed when the handler returns; if the handler raises, its writes are rolled back. Without a statement
      no transaction begins, and the record is committed later, with others.
    - SQLite allows one writing transaction at a time. From the first statement to the end of the handler, other
      programs and the other consumers of the store wait. So do slow work before the first statement. Between
      messages the others get their turn.
    - A handler in a thread (a plain function, or a function run by `anyio.to_thread.run_sync`) waits for the
      transaction of another consumer, and up to 5 s for a transaction of another program. In an `async` handler,
      the first statement blocks the event loop for at most 0.25 s. Then it raises `StoreUnavailable`, and the
      handler is called again from its start, with its transaction begun. This is not a failed attempt, but side
      effects elsewhere are repeated.
    - For many small messages override `process_batch`: a batch is one transaction.
    - A handler that would wait for a consumer of the same store gets a `RuntimeError`.
    - A handler must not end the transaction, change the tables of this library, attach a database, or change
      settings of the connection: each raises a `RuntimeError` at once, both in SQL and by methods such as
      `commit()`. For a part that may fail alone, use a savepoint. `ON CONFLICT ROLLBACK` and `RAISE(ROLLBACK)`
      cannot be prevented: they roll back the handler's writes. If the handler then raises, its message failed; if
      it continues, it gets a `StoreError`.
    - Foreign keys are enforced (`PRAGMA foreign_keys`). Deferred keys are checked by the commit, and a violation
      is a `StoreError`. With immediate keys, a violation is a failure of the message.

    Args:
        path: The database file. A missing or empty file is created; its directory must exist.
        synchronous: With "FULL", a commit is on the disk when it returns; on macOS it may still be in the cache of
            the disk (SQLite's documentation of `PRAGMA fullfsync`). "NORMAL" is faster, but a power failure (not
            a crash of the process) can undo the last commits; their messages are then processed again.
        retention: Seconds until a dedupe record may be dropped, at most an eighth later because records are
            dropped in groups. None keeps records of any age. Must be longer than the longest replay of the feed.
            Between two commits a record ages by at most an eighth of this time, and not at all if the clock jumps
            by more than all of it, so setting the clock drops nothing.
        max_records: Smallest number of dedupe records that each name keeps before the oldest are dropped, in
            groups of 8,000 or an eighth. None keeps any number. Must be larger than the longest replay of the
            feed. Records of the last commit that saved a cursor, and later records, always stay. A record made
            again, for example by `replay()`, counts once and keeps its age.
        clock: Returns the time in seconds since the epoch. Called in a worker thread.
        transactional: True if handlers also write to the file, through `connection`.

    Raises:
        ValueError: `path` does not name a file, `synchronous` is unknown, or `retention` or `max_records` is not
            positive.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Synchronous = "FULL",
        retention: float | None = DEFAULT_RETENTION,
        max_records: int | None = DEFAULT_MAX_RECORDS,
        clock: Callable[[], float] = time.time,
        transactional: bool = False,
    ) -> None:
        if os.fspath(path) in {"", ":memory:"}:
            raise ValueError(f"path must name a file, got {os.fspath(path)!r}; to save nothing, use MemoryStore()")
        if synchronous not in get_args(Synchronous):
            raise ValueError(f"synchronous must be 'FULL' or 'NORMAL', got {synchronous!r}")
        self._path = os.path.realpath(path)
        self._synchronous: Synchronous = synchronous
        self._retention = Retention(retention, max_records)
        self._clock = clock
        self._transactional = transactional
        self._start_unopened()

    def _start_unopened(self) -> None:
        self._process = os.getpid()
        self._file: OpenFile | None = None
        self._thread = StoreThread(self._path)
        # Weak: a session that was dropped without `release()` must not hold its name for ever.
        self._owners: WeakValueDictionary[str, SQLiteSession] = WeakValueDictionary()

    concurrent_transactions = False
    """False: SQLite allows one writing transaction at a time."""

    @property
    def transactional(self) -> bool:
        """True if handlers also write to the file."""
        return self._transactional

    @property
    def connection(self) -> sqlite3.Connection:
        """Connection for a handler; its writes are committed with the record of the message, or not at all.

        Use it only in a handler, until the handler returns: in its task, in tasks that it starts and waits for,
        and in threads with its context. `anyio.to_thread.run_sync()`, `asyncio.to_thread()` and the worker
        threads of plain handlers have the context. `threading.Thread`, executors and `loop.run_in_executor()` do
        not: pass them `contextvars.copy_context().run` and the function.

        The first statement begins the transaction. Others see the writes after the handler has returned. The
        connection is in autocommit mode. The handler may set `row_factory`. Cursors and blobs are closed at the
        end of the message.

        Raises:
            RuntimeError: The caller is not a handler of a consumer of this store, or the store is not
                transactional.
        """
        if not self._transactional:
            raise RuntimeError(
                f"{self._path}: this store has no connection for handlers; create it with "
                "SQLiteStore(..., transactional=True)"
            )
        file = self._file  # outside a handler the thread of the store may close it at any moment
        if not isinstance(file, SharedFile) or file.guard.scope is None:
            raise RuntimeError(f"{self._path}: {OUTSIDE_HANDLER}")
        return file.connection

    @property
    def path(self) -> str:
        """Absolute path of the database file, with symbolic links resolved."""
        return self._path

    async def claim(self, name: str, *, feed: str) -> SQLiteSession:
        """Become the one owner of `name`. The first claim binds the name to `feed`.

        Raises:
            StoreBusy: The name has an owner, or another process or store object owns the file.
            StoreMismatch: The name is bound to another feed.
            StoreError: The file cannot be opened or written, is damaged, or is not a store of this version of the
                library; such a file is not changed.
            RuntimeError: The caller is a handler that writes to this store.
        """
        self._prepare_for_claim()
        claimed: list[SQLiteSession] = []
        try:
            await self._thread.run(partial(self._claim, name, feed, claimed))
        except BaseException:  # cancelled, perhaps after the thread has claimed the name
            for session in claimed:
                await session.release()
            raise
        return claimed[0]

    async def rebind(
        self, name: str, *, feed: str | None = None, new_name: str | None = None, replace: bool = False
    ) -> None:
        """Bind a name to another feed, or rename it. It keeps its cursor, records and dead letters.

        Use it when a feed has moved to another address, or when a consumer gets another name. Call it once, while
        no consumer uses the name: `await store.rebind("orders", feed=new_feed.identity)`. The cursor keeps its
        meaning only in the same feed, so never bind a name to another feed that is only similar.

        Args:
            name: The current name.
            feed: The `identity` of the new feed. None keeps the feed. A name that equals the old identity (a
                consumer without `name=`) becomes the new identity.
            new_name: The new name. None keeps the name, except in the case above.
            replace: If True and `new_name` exists, delete its state. Messages that only that consumer processed
                are processed again.

        Raises:
            StoreBusy: One of the names has an owner, or another process or store object owns the file.
            StoreError: The file cannot be written; nothing was changed.
            ValueError: The name does not exist, the new name exists already, or an argument is invalid.
            TypeError: An argument is not a `str`.
            RuntimeError: The caller is a handler that writes to this store.
        """
        asked = Rebind(name, feed, new_name, replace)
        self._prepare_for_claim()
        await self._thread.run(partial(self._rebind, asked))

    async def migrate(self) -> tuple[int, int]:
        """Create the file and its tables, or bring the tables of an older version up to date.

        `claim` does this too. Call it as a step of a deployment, to see an error before a consumer starts. Nothing
        changes if the tables are up to date.

        Returns:
            The version of the tables before (0: there were none) and after.

        Raises:
            StoreBusy: Another process or store object owns the file.
            StoreError: As for `claim`.
            RuntimeError: The caller is a handler that writes to this store.
        """
        self._prepare_for_claim()
        return await self._thread.run(self._migrate)

    def _migrate(self) -> tuple[int, int]:
        is_open = self._file is not None
        with self._open_file() as file:
            return (len(MIGRATIONS) if is_open else file.version_found), len(MIGRATIONS)

    def reader(self) -> "StoreReader":
        """Return a reader for the progress, owners and dead letters of all names; see `StoreReader`.

        It needs no claim and works while a consumer runs, in this process or in another one. Its methods wait for
        the disk: call them in a thread, with `anyio.to_thread.run_sync`.
        """
        # Imported here because most programs do not read a store by themselves.
        from push_to_poll_client.stores._sqlite.reader import SQLiteReader

        return SQLiteReader(self._path)

    def _rebind(self, asked: Rebind) -> None:
        if not os.path.exists(self._path):  # noqa: PTH110  # a str, which may hold anything
            raise asked.unknown_name(self._path)
        self._check_unowned(asked.name)
        with self._open_file() as file:
            rebind(file, asked, self._check_unowned)

    def _claim(self, name: str, feed: str, claimed: list[SQLiteSession]) -> None:
        self._check_unowned(name)
        with self._open_file() as file:
            progress = ClaimedName(file, name, feed, retention=self._retention, clock=self._clock)
            if isinstance(file, SharedFile):
                session: SQLiteSession = TransactionalSQLiteSession(file, progress, self._on_release)
            else:
                session = SQLiteSession(file, progress, self._on_release)
            finalize(session, self._close_dropped_soon).atexit = False
            self._owners[name] = session
            claimed.append(session)

    def _prepare_for_claim(self) -> None:
        if self._process != os.getpid():  # forked: file, lock and thread are the parent's
            self._start_unopened()
        file = self._file  # the thread of the store may close it at any moment
        if isinstance(file, SharedFile):
            file.guard.check_outside()

    def _check_unowned(self, name: str) -> None:
        if name in self._owners:
            raise name_in_use(self._path, name)

    @contextmanager
    def _open_file(self) -> Iterator[OpenFile]:
        """Open the file, if it is not open, and use it. Afterwards it stays open if a name has an owner."""
        if self._file is None:
            kind = SharedFile if self._transactional else OpenFile
            self._file = kind(self._path, self._thread, synchronous=self._synchronous)
            self._thread.stays = True
        try:
            with self._file.access():
                yield self._file
        finally:
            self._close_unused()

    def _on_release(self, session: SQLiteSession) -> Callable[[], None] | None:
        del self._owners[session.name]
        return None if self._has_owners else self._close_unused

    def _close_dropped_soon(self) -> None:
        # Python calls this from any thread, in the middle of anything, so it must not wait for a lock or the disk.
        if self._file is not None and self._process == os.getpid():
            self._thread.submit_from_finalizer(self._close_unused)

    def _close_unused(self) -> None:
        # A thread or a handler that uses the file holds its session.
        if self._file is not None and not self._has_owners:
            self._file.close()
            self._file, self._thread.stays = None, False

    @property
    def _has_owners(self) -> bool:
        # The length of a weak dictionary does not tell: it may count a session that is just being collected.
        return any(reference() is not None for reference in self._owners.valuerefs())

    def __repr__(self) -> str:
        return f"SQLiteStore({self._path!r})"
