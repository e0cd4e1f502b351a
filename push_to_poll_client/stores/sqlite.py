"""Store in a SQLite file, for the consumers of one process.

`SQLiteStore` opens the file at the first claim and closes it after the last release. A session that is dropped
without a release counts as released once it is collected as garbage. The rest is in `_sqlite`: the file and its
lock, the schema, the sessions, and the transactions of handlers.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import get_args
from weakref import WeakValueDictionary, finalize

from push_to_poll_client.stores._names import Rebind, name_in_use
from push_to_poll_client.stores._retention import DEFAULT_MAX_RECORDS, DEFAULT_RETENTION, Retention
from push_to_poll_client.stores._sqlite.connection import OUTSIDE_HANDLER
from push_to_poll_client.stores._sqlite.file import OpenFile
from push_to_poll_client.stores._sqlite.schema import Synchronous
from push_to_poll_client.stores._sqlite.session import (
    ClaimedName,
    SQLiteSession,
    TransactionalSQLiteSession,
    rebind,
)
from push_to_poll_client.stores._sqlite.thread import StoreThread
from push_to_poll_client.stores._sqlite.transaction import SharedFile

__all__ = ["SQLiteStore"]


class SQLiteStore:
    """Keeps the progress of any number of consumer names in one file, for one process.

    The file belongs to the process from the first claim to the last release, by a lock on a second file beside it
    (`<path>.lock`, which stays) that ends with the process, however that ends. A second process gets `StoreBusy`.
    Consumers of one process share one store object. Other programs may read the database meanwhile, but not write,
    unless the store is `transactional`.

    The file has to be on a local disk: network file systems do not lock reliably, and SQLite's WAL needs shared
    memory. Symbolic links are followed; a hard link to it would have another lock, so reach it by one name. New
    files are readable and writable by their owner alone: keys may be personal, and a cursor that is a URL may
    carry a token.

    Opening a file sets it to WAL mode, for good and for every program that opens it. To set it back, close it
    everywhere and run `PRAGMA journal_mode = DELETE`. SQLite 3.24 or newer is needed, with its JSON functions,
    which 3.38 and newer always have.

    Each commit checks that the file, its `-wal` and its `.lock` are still in place (not on Windows, where an open
    file can be neither deleted nor replaced). If one was deleted or replaced, the commit is undone
    and raises a `StoreError`. A file whose `-wal` belongs to another state of it, as when a backup is put back
    after a crash, is refused and left as it is.

    A record takes 25 bytes of the file when ids of 12 characters are counted up, and 55 when they are UUIDs. Ids
    of equal length that are counted up (000998, 000999, 001000), or that begin with a time, are looked for near
    each other, which takes no memory. For ids in another order, as UUIDv4 or as numbers without leading zeros
    (998, 999, 1000), 6 to 8 MB and half a second for each million of records are taken when a run begins.

    A store that is `transactional` is the application's database too: what a handler writes through `connection`
    is committed together with the record of its message, or not at all (G8). The tables of this library, whose
    names begin with `push_to_poll_`, are added beside the application's; make those before, with a connection of
    your own. The file can be opened either way, as long as it has no views and no triggers.

    - Each call of a handler has one transaction: it begins (`BEGIN IMMEDIATE`) with the first statement and is
      committed when the handler returns. A handler that raises takes back what it wrote. Without a statement there
      is no transaction, and the record is committed later, with others.
    - SQLite has one writing transaction at a time, so do what takes time before the first statement: other
      programs and the other consumers of the store wait from there to the end of the handler. Between messages
      they get their turn.
    - A handler in a thread (a plain function, or what it awaits in `anyio.to_thread.run_sync`) waits for the
      transaction of another consumer, and up to 5 s for that of another program. In an `async` handler the first
      statement stops the event loop for 0.25 s at most. Then it raises `StoreUnavailable`, and the handler is
      called once more from its beginning, with its transaction begun. That is not a failed attempt, but what the
      handler did elsewhere before is repeated.
    - For many small messages override `process_batch`: a batch is one transaction.
    - A handler that would wait for a consumer of the store gets a `RuntimeError`.
    - A handler does what it likes but end the transaction, change the tables of this library, attach a database or
      set what would hold for the library too: that is a `RuntimeError` at once, for `commit()` as for SQL. For
      what may fail alone it has savepoints. `ON CONFLICT ROLLBACK` and `RAISE(ROLLBACK)` cannot be prevented: they
      undo what the handler wrote. If it raises then, its message failed; if it goes on, that is a `StoreError`.
    - Foreign keys are enforced (`PRAGMA foreign_keys`). Deferred ones are checked by the commit, whose failure is
      a `StoreError`: make them immediate, for the failure to be that of the message.

    Args:
        path: The database file; made when it is missing or empty. Its directory has to exist.
        synchronous: "FULL" has a commit on the disk when it returns. "NORMAL" saves that wait, but a power failure
            (not a crash of the process) may take back the last commits, whose messages are then processed again.
        retention: Seconds after which a dedupe record may go; `None` keeps it however old it is. It must outlast
            the longest replay of the feed. It may stay for an eighth longer, as records go together. Between two
            commits a record ages by an eighth of it at most, and not at all if the clock steps by more than all of
            it: a clock that is set removes nothing.
        max_records: How many dedupe records each name keeps at least before the oldest go, 8,000 together or an
            eighth; `None` keeps any number. It must outnumber the longest replay of the feed. Those of the last
            commit that saved a cursor, and all since, stay in any case. A record that is made again, as by
            `replay()`, counts once, and is as old as the first one.
        clock: The time in seconds since the epoch. Called in a worker thread.
        transactional: Handlers write to the file too, through `connection`.

    Raises:
        ValueError: `path` names no file, `synchronous` is neither of the two, or `retention` or `max_records` is
            not above 0.
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
            raise ValueError(f"path must name a file, not {os.fspath(path)!r}; to keep nothing, use MemoryStore()")
        if synchronous not in get_args(Synchronous):
            raise ValueError(f"synchronous must be 'FULL' or 'NORMAL', not {synchronous!r}")
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
    """SQLite has one that writes at a time."""

    @property
    def transactional(self) -> bool:
        """Whether handlers write to the file too."""
        return self._transactional

    @property
    def connection(self) -> sqlite3.Connection:
        """What a handler writes through, so that it is committed with the record of its message, or not at all.

        Within a handler and nowhere else, until it returns: in its task, in tasks that it starts and waits for,
        and in threads that have its context. `anyio.to_thread.run_sync()` and `asyncio.to_thread()` hand the
        context on, and plain handlers have it in their worker thread. `threading.Thread`, executors and
        `loop.run_in_executor()` do not: give them `contextvars.copy_context().run` and the function.

        The first statement begins the transaction. What is written is seen by others when the handler has
        returned. In autocommit mode, with `row_factory` the handler's own. Cursors and blobs end with their
        message.

        Raises:
            RuntimeError: Outside a handler of a consumer of this store, or the store is not transactional.
        """
        if not self._transactional:
            raise RuntimeError(
                f"{self._path}: this store keeps its connection to itself; to write in its transactions, make it "
                "with SQLiteStore(..., transactional=True)"
            )
        file = self._file  # outside a handler the thread of the store may close it at any moment
        if not isinstance(file, SharedFile) or file.guard.scope is None:
            raise RuntimeError(f"{self._path}: {OUTSIDE_HANDLER}")
        return file.connection

    @property
    def path(self) -> str:
        """The database file, absolute, symbolic links followed."""
        return self._path

    async def claim(self, name: str, *, feed: str) -> SQLiteSession:
        """Become the one owner of `name`, which is bound to the feed called `feed` by its first claim.

        Raises:
            StoreBusy: The name has an owner, or the file belongs to another process or another store object.
            StoreMismatch: The name is bound to another feed.
            StoreError: The file cannot be opened or written, is damaged, is no store of this library, or one of a
                newer version of it; such a file is left as it was.
            RuntimeError: Within a handler that writes to this store.
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

        For a feed that has moved to another address, and for a consumer that gets another name. The cursor keeps
        its meaning only if it is the same feed: never rebind a name to a feed that merely looks like it. To be
        called once, as `await store.rebind("orders", feed=new_feed.identity)`, while no consumer uses the name.

        Args:
            name: The name.
            feed: The `identity` of the feed to bind it to; `None` leaves it bound as it is. A name that equals its
                feed's identity, as that of a consumer without `name=`, becomes the new identity.
            new_name: What it is called then; `None` leaves it, but for that case.
            replace: If there is a name `new_name` already, drop it with all that it has. What only that one has
                processed is processed again.

        Raises:
            StoreBusy: One of the names has an owner, or the file belongs to another process or store object.
            StoreError: The file cannot be written; nothing was.
            ValueError: There is no such name, or the new one exists already; or an argument has no meaning.
            TypeError: An argument is not a `str`.
            RuntimeError: Within a handler that writes to this store.
        """
        asked = Rebind(name, feed, new_name, replace)
        self._prepare_for_claim()
        await self._thread.run(partial(self._rebind, asked))

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
