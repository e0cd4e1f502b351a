"""Who uses the database file, and through what? One process by the owner lock, through one connection.

All looking at the file is done through that connection: on POSIX, closing any other descriptor of the file would
drop SQLite's own locks (https://www.sqlite.org/howtocorrupt.html, section 2.2).
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from push_to_poll_client._exceptions import StoreError
from push_to_poll_client._validation import one_line
from push_to_poll_client.stores._owner_lock import OwnerLock
from push_to_poll_client.stores._sqlite_schema import Synchronous, damaged, prepare, warn_of_old_sqlite

__all__ = ["OpenFile", "check_size", "named_damage", "named_errors"]

_BUSY_TIMEOUT = 5.0  # seconds to wait for another program that holds the file; readers do not hold it

_SMALLEST_PAGE = 512  # bytes, in SQLite

_ADVICE = {
    sqlite3.SQLITE_BUSY: "another program writes to it: let it end",
    sqlite3.SQLITE_CANTOPEN: "name a file that may be made or written",
    sqlite3.SQLITE_CORRUPT: "it is damaged or was cut off: put back a copy, or move it away to begin anew",
    sqlite3.SQLITE_FULL: "free some space",
    sqlite3.SQLITE_NOTADB: "it is no SQLite database: name another file",
    sqlite3.SQLITE_READONLY: "make it and its directory writable",
}


_open_files: set["OpenFile"] = set()
"""Also what a forked child inherited: it must not close a connection of its parent, not even as garbage
(https://www.sqlite.org/howtocorrupt.html, section 2.6)."""


class OpenFile:
    """The owner lock and the one connection of a database file.

    Args:
        path: Absolute, links followed. A file that is missing or empty is made into a store.
        synchronous: When a commit is on the disk; see `SQLiteStore`.

    Raises:
        StoreBusy: Another process owns the file, or another store object of this one.
        StoreError: It cannot be opened, or is no store of this library, or one of a newer version of it.
    """

    def __init__(self, path: str, *, synchronous: Synchronous) -> None:
        self.path = path
        self.process = os.getpid()
        self.mutex = threading.Lock()
        self._lock = OwnerLock(path)
        try:
            self.connection = self._open(synchronous)
        except BaseException:
            self._lock.release()
            raise
        _open_files.add(self)

    def _open(self, synchronous: Synchronous) -> sqlite3.Connection:
        warn_of_old_sqlite()
        _create(self.path)
        with named_errors(self.path):
            connection = self._connect(timeout=_BUSY_TIMEOUT)
            try:
                self._prepare(connection, synchronous)
            except BaseException:
                connection.close()
                raise
        return connection

    def _connect(self, *, timeout: float) -> sqlite3.Connection:
        # Any thread, one at a time: the mutex sees to that.
        return sqlite3.connect(self.path, timeout=timeout, isolation_level=None, check_same_thread=False)

    def _prepare(self, connection: sqlite3.Connection, synchronous: Synchronous) -> None:
        prepare(connection, self.path, synchronous=synchronous)

    @contextlib.contextmanager
    def access(self) -> Iterator[None]:
        """Within it, this thread alone uses the connection."""
        with self.mutex:
            yield

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing.

        The write lock is taken first: a transaction that reads and then writes can but fail when it meets another.

        Raises:
            StoreError: SQLite failed; nothing was written.
        """
        with named_errors(self.path):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # SQLite may have rolled back by itself
                    self.connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connection and give the file back. Never raises."""
        _open_files.remove(self)
        with contextlib.suppress(sqlite3.Error):  # what was committed is in the file
            self.connection.close()
        self._lock.release()


@contextlib.contextmanager
def named_errors(path: str) -> Iterator[None]:
    """Turn SQLite's errors into a `StoreError` that names the file and says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        # The lower byte is the primary code (https://www.sqlite.org/rescode.html); errors of the module have none.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        advice = _ADVICE.get(code, "look at the disk and at what else uses the file")
        # SQLite's words may be somebody else's: it quotes a schema that it cannot read.
        raise StoreError(f"{path} cannot be used: {one_line(str(error))}; {advice}") from error
    except UnicodeDecodeError as error:  # of a schema that it quotes
        raise StoreError(damaged(path, "SQLite says why in bytes that are no text")) from error


@contextlib.contextmanager
def named_damage(path: str) -> Iterator[None]:
    """Turn what a value leads to that this library does not write into a `StoreError` that says what to do."""
    try:
        yield
    except (TypeError, UnicodeError, msgspec.ValidationError) as error:
        raise StoreError(damaged(path, "it holds what this library does not write")) from error


def _create(path: str) -> None:
    """Make a missing file readable by its owner alone; SQLite gives its side files the same permissions."""
    try:
        # A file that was there is not opened by this; one that was not is in nobody's use yet.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        check_size(Path(path))
    except OSError as error:
        raise StoreError(f"{path} cannot be made: {error.strerror}; name a file that may be made") from error


def check_size(path: Path) -> None:
    """Refuse what SQLite does not: one byte is an empty file to it, and a missing end of the last page zeros.

    Raises:
        StoreError: The file is no whole number of pages.
    """
    # After a crash the rest may be in a side file.
    unfinished = any(Path(f"{path}{suffix}").exists() for suffix in ("-wal", "-journal"))
    if path.is_file() and not unfinished and path.stat().st_size % _page_size(path):
        raise StoreError(
            f"{path} cannot be used: it was cut off, or is no SQLite database; put back a copy, or name another "
            "file"
        )


def _page_size(path: Path) -> int:
    """In bytes (https://www.sqlite.org/fileformat.html, section 1.3.2)."""
    head = b""
    with contextlib.suppress(OSError), path.open("rb") as file:  # SQLite cannot read it either, and says so
        head = file.read(18)
    stated = int.from_bytes(head[16:])
    return 65_536 if stated == 1 else max(stated, _SMALLEST_PAGE)
