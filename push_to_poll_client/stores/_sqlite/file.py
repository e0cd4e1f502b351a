"""The database file: one process owns it, and uses it through one connection.

Nothing is locked to find out: that would keep out a consumer which starts at the same instant. Linux lists its
locks; elsewhere the owner is the process whose id is in the lock file, if there is such a process.

The lock goes with the process, also when it is killed, so it never has to be broken by hand or by age. The lock
file stays: whoever deletes lock files deletes, sooner or later, the one that somebody just locked. It holds the
owner's process id, for the message only; the decision is the operating system's.

All looking at the file is done through that connection: on POSIX, closing any other descriptor of the file would
drop SQLite's own locks (https://www.sqlite.org/howtocorrupt.html, section 2.2).
"""

import contextlib
import os
import re
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from push_to_poll_client._exceptions import StoreBusy, StoreError
from push_to_poll_client._validation import one_line
from push_to_poll_client.stores._sqlite.schema import Synchronous, damage_message, prepare, warn_of_old_sqlite

__all__ = [
    "OpenFile",
    "OwnerLock",
    "check_size",
    "lock_holder",
    "wrap_invalid_values",
    "wrap_sqlite_errors",
]


_PROC_LOCKS = Path("/proc/locks")  # proc_locks(5)
_PROC_LOCK_LINE = re.compile(r"^\d+: FLOCK +ADVISORY +WRITE +(\d+) (\w+:\w+):(\d+) ", re.MULTILINE)


def lock_holder(path: str) -> int | None:
    """The process that owns a file, as far as this one can see; `None`: nobody.

    One in another container cannot be seen.

    Args:
        path: The file that is owned, absolute, links followed; see `OwnerLock`.
    """
    try:
        with Path(f"{path}.lock").open("rb") as file:  # to close it again drops nobody's flock
            written, place = file.read(20), os.fstat(file.fileno())
    except OSError:
        return None
    process = int(written) if written.isdigit() else 0
    try:
        return _locked_by(_PROC_LOCKS.read_text(), place, process)
    except OSError:
        return process if process and _runs(process) else None


def _locked_by(locks: str, place: os.stat_result, process: int) -> int | None:
    """Some file systems tell another device here than to `stat`: there the written process decides."""
    device = f"{os.major(place.st_dev):02x}:{os.minor(place.st_dev):02x}"
    for holder, where, inode in _PROC_LOCK_LINE.findall(locks):
        if int(inode) == place.st_ino and (where == device or int(holder) == process):
            return int(holder)
    return None


if sys.platform == "win32":  # pragma: no cover  # the tests run on POSIX

    def _runs(_: int) -> bool:
        return True  # there is no asking: os.kill() ends the process, whatever the signal

else:

    def _runs(process: int) -> bool:
        try:
            os.kill(process, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:  # it is there, and another user's
            return True
        return True


if sys.platform == "win32":  # pragma: no cover  # the tests run on POSIX
    import msvcrt

    # Windows locks bytes against reading too, so the locked one lies far behind the process id.
    _LOCKED_BYTE = 1 << 30

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(error.errno, error.strerror) from error
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    # flock, not lockf: it belongs to this descriptor, so that a second lock within the process is refused too, and
    # no other descriptor of the file drops it when it is closed.
    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    # Explicitly, not by closing alone: a forked child may hold the descriptor too.
    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


_held_locks: set["OwnerLock"] = set()


def _close_in_child() -> None:
    """Close in a forked child what would outlive the parent's lock. Never unlock: the lock is the parent's."""
    while _held_locks:
        os.close(_held_locks.pop()._descriptor)  # noqa: SLF001  # one module, two halves


if sys.platform != "win32":  # pragma: no branch  # likewise
    os.register_at_fork(after_in_child=_close_in_child)


class OwnerLock:
    """The right to `path`, held until `release()` or the end of the process. A forked child does not inherit it.

    Args:
        path: The file to own, which is not touched; the lock is on `path` with `.lock` after it.

    Raises:
        StoreBusy: Another process holds it, or another lock object in this one.
        StoreError: The lock file cannot be made or locked.
    """

    def __init__(self, path: str) -> None:
        try:
            # Not inherited by programs that this one starts (PEP 446).
            self._descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(
                f"{path}: cannot make the lock file {path}.lock: {error.strerror}; name a file in a directory "
                "that exists and may be written"
            ) from error
        try:
            self._acquire(path)
        except BaseException:
            os.close(self._descriptor)
            raise
        _held_locks.add(self)

    def _acquire(self, path: str) -> None:
        try:
            _lock(self._descriptor)
        except BlockingIOError as error:
            raise StoreBusy(
                f"{path} is in use by {self._describe_owner()}; stop it, or name another file"
            ) from error
        except OSError as error:
            raise StoreError(
                f"{path}: cannot lock {path}.lock: {error.strerror}; name a file on a local disk"
            ) from error
        with contextlib.suppress(OSError):  # a full disk: the process id is for the message only
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, str(os.getpid()).encode())

    def _describe_owner(self) -> str:
        process = os.read(self._descriptor, 20).decode("ascii", "replace")
        if process == str(os.getpid()):
            return "another store object of this process (share one between consumers)"
        return f"process {process}" if process.isdecimal() else "another process"

    def release(self) -> None:
        """Give the right back. In a forked child, which never had it, nothing happens."""
        if self in _held_locks:
            _held_locks.remove(self)
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            _unlock(self._descriptor)
            os.close(self._descriptor)


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
        with wrap_sqlite_errors(self.path):
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
        with wrap_sqlite_errors(self.path):
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
def wrap_sqlite_errors(path: str) -> Iterator[None]:
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
        raise StoreError(damage_message(path, "SQLite says why in bytes that are no text")) from error


@contextlib.contextmanager
def wrap_invalid_values(path: str) -> Iterator[None]:
    """Turn what a value leads to that this library does not write into a `StoreError` that says what to do."""
    try:
        yield
    except (TypeError, UnicodeError, msgspec.ValidationError) as error:
        raise StoreError(damage_message(path, "it holds what this library does not write")) from error


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
