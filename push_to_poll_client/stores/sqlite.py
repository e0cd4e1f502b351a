"""Where was I, in a file: cursors and dedupe records of one process's consumers in one SQLite database."""

import os
import threading
import time
from collections.abc import Callable
from typing import get_args
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread

from push_to_poll_client._exceptions import StoreBusy
from push_to_poll_client._text import quoted
from push_to_poll_client.stores._retention import DEFAULT_MAX_RECORDS, DEFAULT_RETENTION, Retention
from push_to_poll_client.stores._sqlite_file import OpenFile
from push_to_poll_client.stores._sqlite_schema import Synchronous
from push_to_poll_client.stores._sqlite_session import SQLiteSession

__all__ = ["SQLiteStore"]


class SQLiteStore:
    """Keeps the progress of any number of consumer names in one file, for one process.

    The file belongs to the process from the first claim to the last release, by a lock on a second file beside it
    (`<path>.lock`, which stays) that ends with the process, however that ends. A second process gets `StoreBusy`.
    Consumers of one process share one store object. Other programs may read the database meanwhile, but not write.

    The file has to be on a local disk: network file systems do not lock reliably, and SQLite's WAL needs shared
    memory. Symbolic links are followed; a hard link to it would have another lock, so reach it by one name. New
    files are readable and writable by their owner alone: keys may be personal, and a cursor that is a URL may
    carry a token.

    Args:
        path: The database file; made when it is missing or empty. Its directory has to exist.
        synchronous: "FULL" has a commit on the disk when it returns. "NORMAL" saves that wait, but a power failure
            (not a crash of the process) may take back the last commits, whose messages are then processed again.
        retention: Seconds after which a dedupe record may go; `None` keeps it however old it is. It must outlast
            the longest replay of the feed.
        max_records: How many dedupe records each name may have before the oldest go; `None` keeps any number.
            Those since the last commit but one that saved a cursor stay in any case.
        clock: The time in seconds since the epoch. Called in a worker thread.

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
    ) -> None:
        if os.fspath(path) in {"", ":memory:"}:
            raise ValueError(f"path must name a file, not {os.fspath(path)!r}; to keep nothing, use MemoryStore()")
        if synchronous not in get_args(Synchronous):
            raise ValueError(f"synchronous must be 'FULL' or 'NORMAL', not {synchronous!r}")
        self._path = os.path.realpath(path)
        self._synchronous: Synchronous = synchronous
        self._retention = Retention(retention, max_records)
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._mutex = threading.Lock()
        self._file: OpenFile | None = None
        # Weak: a session that was dropped without `release()` must not hold its name for ever.
        self._owners: WeakValueDictionary[str, SQLiteSession] = WeakValueDictionary()

    @property
    def path(self) -> str:
        """The database file, absolute, symbolic links followed."""
        return self._path

    async def claim(self, name: str, *, feed: str) -> SQLiteSession:
        """Become the one owner of `name`, which is bound to the feed called `feed` by its first claim.

        Raises:
            StoreBusy: The name has an owner, or the file belongs to another process or another store object.
            StoreMismatch: The name was used with another feed.
            StoreError: The file cannot be opened or written, is damaged, is no store of this library, or one of a
                newer version of it; such a file is left as it was.
        """
        if self._process != os.getpid():  # forked: file, lock and mutex are the parent's
            self._begin()
        limiter = CapacityLimiter(1)
        return await to_thread.run_sync(self._claim, name, feed, limiter, limiter=limiter)

    def _claim(self, name: str, feed: str, limiter: CapacityLimiter) -> SQLiteSession:
        with self._mutex:
            if name in self._owners:
                raise StoreBusy(
                    f"{self._path}: the name {quoted(name)} has an owner; release it, or use another name"
                )
            if self._file is None:
                self._file = OpenFile(self._path, synchronous=self._synchronous)
            try:
                session = self._owners[name] = self._session(self._file, name, feed, limiter)
            finally:
                self._close_unused()
            return session

    def _session(self, file: OpenFile, name: str, feed: str, limiter: CapacityLimiter) -> SQLiteSession:
        with file.mutex:
            return SQLiteSession(
                file,
                name,
                feed,
                retention=self._retention,
                clock=self._clock,
                limiter=limiter,
                let_go=self._let_go,
            )

    def _let_go(self, session: SQLiteSession) -> None:
        with self._mutex:
            del self._owners[session.name]
            self._close_unused()

    def _close_unused(self) -> None:
        if self._file is not None and not self._owners:
            self._file.close()
            self._file = None

    def __repr__(self) -> str:
        return f"SQLiteStore({self._path!r})"
