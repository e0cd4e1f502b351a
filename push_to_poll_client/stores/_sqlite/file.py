"""The database file: one process owns it, and uses it through one connection.

The owner holds a lock of the operating system on a second file, `<path>.lock`. The lock ends with the process,
also when the process is killed, so it never has to be broken by hand or by age. The lock file stays: a program
that deletes lock files deletes, sooner or later, one that another process has just locked. The lock file holds the
owner's process id, which is only shown; the lock of the operating system decides.

In a directory where others may write, they can put a link to a file of yours in place of the lock file.
So the lock file is opened without following a link, only a regular file with one name is used, and a file that
holds anything but a process id is left as it is. Side files of SQLite (`-wal`, `-shm`, `-journal`) that are not
regular files are refused too: SQLite would write to what they lead to.

`lock_holder` finds the owner without taking the lock, which would keep out a consumer that starts at the same
instant. Linux lists its locks; elsewhere the owner is the process whose id is in the lock file, if that process
exists.

The owner reads the database file through its one connection only: on POSIX, closing any other descriptor of the
file would drop SQLite's own locks (https://www.sqlite.org/howtocorrupt.html, section 2.2).
"""

import contextlib
import logging
import os
import re
import sqlite3
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from push_to_poll_client._exceptions import StoreBusy, StoreError, StoreUnavailable
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._validation import one_line
from push_to_poll_client.stores._sqlite.schema import Synchronous, damage_message, prepare, warn_of_old_sqlite
from push_to_poll_client.stores._sqlite.wal import Checkpoints, check_wal

__all__ = ["OpenFile", "OwnerLock", "check_size", "lock_holder", "wrap_invalid_values", "wrap_sqlite_errors"]


_MAX_PROCESS_ID = 20
"""Digits of the longest process id."""


def _open_lock_file(path: str, flags: int) -> int:
    """Open the lock file of `path`, and nothing that a link or a special file in its place would lead to.

    Raises:
        OSError: It cannot be opened.
        StoreError: It is not a regular file, or has several names.
    """
    # O_NONBLOCK: else opening a FIFO waits for its other end. Windows has neither flag, and no links without a
    # privilege.
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(f"{path}.lock", flags, 0o600)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    raise StoreError(_not_a_lock_file(path))


def _not_a_lock_file(path: str) -> str:
    return (
        f"{path}: {path}.lock is not a lock file: it is a link, a special file, or holds something else than a "
        "process id. Nothing was changed; look at who made it, and delete it or name another file"
    )


_PROC_LOCKS = Path("/proc/locks")  # proc_locks(5)
_PROC_LOCK_LINE = re.compile(r"^\d+: FLOCK +ADVISORY +WRITE +(\d+) (\w+:\w+):(\d+) ", re.MULTILINE)


def lock_holder(path: str) -> int | None:
    """Return the process that owns a file, or None. A process in another container cannot be seen.

    Args:
        path: The owned file, absolute, links followed; see `OwnerLock`.
    """
    try:
        # Closing it drops no flock of another descriptor.
        with open(_open_lock_file(path, os.O_RDONLY), "rb") as file:
            written, stats = file.read(_MAX_PROCESS_ID), os.fstat(file.fileno())
    except (OSError, StoreError):
        return None
    process = int(written) if written.isdigit() else 0
    try:
        return _locked_by(_PROC_LOCKS.read_text(), stats, process)
    except OSError:
        return process if process and _runs(process) else None


def _locked_by(locks: str, stats: os.stat_result, process: int) -> int | None:
    """Find the holder of a lock file in the text of /proc/locks."""
    device = f"{os.major(stats.st_dev):02x}:{os.minor(stats.st_dev):02x}"
    for holder, locked_device, inode in _PROC_LOCK_LINE.findall(locks):
        # Some file systems list another device here than `stat` returns: there the written process id decides.
        if int(inode) == stats.st_ino and (locked_device == device or int(holder) == process):
            return int(holder)
    return None


if sys.platform == "win32":  # pragma: no cover  # the tests run on POSIX

    def _runs(_: int) -> bool:
        return True  # nothing asks safely: os.kill() ends the process with any signal

else:

    def _runs(process: int) -> bool:
        try:
            os.kill(process, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:  # the process exists and belongs to another user
            return True
        return True


if sys.platform == "win32":  # pragma: no cover  # the tests run on POSIX
    import msvcrt

    # Windows locks bytes against reading too, so the locked byte lies far after the process id.
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

    # flock, not lockf: a flock belongs to this descriptor, so that a second lock within the process is refused
    # too, and closing another descriptor of the file does not drop it.
    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    # Explicitly, not by closing alone: a forked child may hold the descriptor too.
    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


_held_locks: set["OwnerLock"] = set()


def _close_in_child() -> None:
    """Close the lock files in a forked child, where they would outlive the parent's lock."""
    # Only close, never unlock: the lock is the parent's.
    while _held_locks:
        os.close(_held_locks.pop()._descriptor)  # noqa: SLF001  # a class of this module


if sys.platform != "win32":  # pragma: no branch  # the tests run on POSIX
    os.register_at_fork(after_in_child=_close_in_child)


class OwnerLock:
    """Ownership of `path` until `release()` or the end of the process. A forked child does not inherit it.

    Args:
        path: The file to own, which is not touched; the lock is on the file `<path>.lock`.

    Raises:
        StoreBusy: Another process owns it, or another lock object of this process.
        StoreError: The lock file cannot be made or locked.
    """

    def __init__(self, path: str) -> None:
        try:
            # Not inherited by programs that this one starts (PEP 446).
            self._descriptor = _open_lock_file(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            # Of a link the error is ELOOP, of a FreeBSD EMLINK; of a directory EISDIR, of a socket ENXIO.
            with contextlib.suppress(OSError):
                if not stat.S_ISREG(os.lstat(f"{path}.lock").st_mode):
                    raise StoreError(_not_a_lock_file(path)) from None
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

    def stats(self) -> os.stat_result:
        """Stat the lock file that is locked, wherever it is now."""
        return os.fstat(self._descriptor)

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
        # NULs are what the crash of a machine leaves of a process id.
        if os.read(self._descriptor, _MAX_PROCESS_ID + 1).strip(b"\0 0123456789") or (
            os.fstat(self._descriptor).st_size > _MAX_PROCESS_ID
        ):
            raise StoreError(_not_a_lock_file(path))
        with contextlib.suppress(OSError):  # a full disk: the process id is for the message only
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, str(os.getpid()).encode())

    def _describe_owner(self) -> str:
        process = os.read(self._descriptor, _MAX_PROCESS_ID).decode("ascii", "replace")
        if process == str(os.getpid()):
            return "another store object of this process (share one between consumers)"
        return f"process {process}" if process.isdecimal() else "another process"

    def release(self) -> None:
        """Give the ownership back. Does nothing in a forked child."""
        if self in _held_locks:
            _held_locks.remove(self)
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            _unlock(self._descriptor)
            os.close(self._descriptor)


_logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

_BUSY_TIMEOUT = 5.0  # seconds to wait for another program that writes to the file; readers do not lock it

_SMALLEST_PAGE = 512  # bytes, in SQLite

_MAY_PASS = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PROTOCOL,
}
"""Primary codes of errors that may pass without a change of the file or its directory. SQLITE_NOMEM is a
MemoryError."""

_STAYS = {sqlite3.SQLITE_IOERR | 32 << 8, sqlite3.SQLITE_IOERR | 33 << 8}
"""SQLITE_IOERR_DATA and SQLITE_IOERR_CORRUPTFS, which not every version of the module has: a damaged disk."""

_WAITED = f"for {_BUSY_TIMEOUT:g} s another program has"

_ADVICE_WHEN_OPENED = {
    sqlite3.SQLITE_BUSY: f"{_WAITED} had a transaction open or has locked the whole file: let it end",
    sqlite3.SQLITE_CANTOPEN: "name a file that may be made or written",
}

_ADVICE = {
    sqlite3.SQLITE_BUSY: f"{_WAITED} had a write transaction open or has locked the whole file: let it end",
    sqlite3.SQLITE_BUSY | 1 << 8: f"{_WAITED} been repairing it after a crash: let it end",  # _RECOVERY
    sqlite3.SQLITE_BUSY | 2 << 8: "another program wrote to it since this transaction began",  # _SNAPSHOT
    sqlite3.SQLITE_CANTOPEN: "its directory may be gone, or too many files are open",
    sqlite3.SQLITE_CORRUPT: "it is damaged or was cut off: put back a copy, or move it away to begin anew",
    sqlite3.SQLITE_FULL: "free some space",
    sqlite3.SQLITE_LOCKED: "another statement on the store's connection is not finished: close its cursor",
    sqlite3.SQLITE_NOTADB: "it is no SQLite database: name another file",
    sqlite3.SQLITE_READONLY: "make it and its directory writable",
}


_MISPLACED = {
    "": "SQLite writes to a file that is not there any more. Stop, and put it back; or, to go on with what is "
    "there, move its -wal and -shm away",
    "-wal": "it holds the newest commits, which no other program sees; start again, which saves them",
    ".lock": "a second process could use the file at the same time; see that none does, and start again",
}
"""For the suffix of each file that belongs to an open database: the danger when it is gone, and what to do."""


_open_files: set["OpenFile"] = set()
"""Holds the files that a forked child inherited too: it must not close a connection of its parent, not even when
it is collected as garbage (https://www.sqlite.org/howtocorrupt.html, section 2.6)."""


class OpenFile:
    """The owner lock and the one connection of a database file.

    Args:
        path: Absolute, links followed. A missing or empty file is made into a store.
        synchronous: When a commit is on the disk; see `SQLiteStore`.

    Raises:
        StoreBusy: Another process owns the file, or another store object of this process.
        StoreError: It cannot be opened, or is not a store of this library, or one of a newer version.
    """

    shared = False
    """True if the database is an application's too."""

    def __init__(self, path: str, *, synchronous: Synchronous) -> None:
        self.path = path
        self.process = os.getpid()
        self.mutex = threading.Lock()
        self._lock = OwnerLock(path)
        try:
            self._open(synchronous)
        except BaseException:
            self._lock.release()
            raise
        _open_files.add(self)

    def _open(self, synchronous: Synchronous) -> None:
        if not self.shared:  # else with the first handler, since only handlers write beside other programs
            warn_of_old_sqlite(shared=False)
        _check_side_files(self.path)
        check_wal(self.path)
        _create(self.path)
        with wrap_sqlite_errors(self.path, opening=True):
            self.connection = self._connect(timeout=_BUSY_TIMEOUT)
            try:
                self._prepare(self.connection, synchronous)
                self._open_wal()
            except BaseException:
                self.connection.close()
                raise
        _warn_of_other_writers(self.path)  # only now: a directory has several names too

    def _open_wal(self) -> None:
        self.connection.execute("PRAGMA schema_version").fetchone()  # the side files are made by the first look
        try:
            self._checkpoints = Checkpoints(self.connection, self.path)
            self._in_place = self._look_in_place()
        except OSError as error:
            raise StoreError(f"{self.path} cannot be used: {error.filename}: {error.strerror}") from error

    def _connect(self, *, timeout: float) -> sqlite3.Connection:
        # Any thread may use it; the mutex lets in one at a time.
        return sqlite3.connect(self.path, timeout=timeout, isolation_level=None, check_same_thread=False)

    def _prepare(self, connection: sqlite3.Connection, synchronous: Synchronous) -> None:
        prepare(connection, self.path, synchronous=synchronous)

    @contextlib.contextmanager
    def access(self) -> Iterator[None]:
        """Give this thread the connection."""
        with self.mutex:
            yield

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit the statements of the `with` body together, or none of them.

        Raises:
            StoreError: SQLite failed; nothing was written.
        """
        with wrap_sqlite_errors(self.path):
            # Take the write lock first: a transaction that reads and then writes fails when it meets another one.
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.before_commit()
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # SQLite may have rolled back by itself
                    self.connection.execute("ROLLBACK")
                raise
        self.after_commit()

    def before_commit(self) -> None:
        """Do what each transaction does as its last part.

        Raises:
            StoreError: The file was deleted or replaced, or a file that belongs to it: SQLite would not notice.
            sqlite3.Error: As SQLite raises it.
        """
        for path, device, inode, danger in self._in_place:  # 4 µs each; a commit takes some 200 or more
            try:
                found = os.stat(path)  # noqa: PTH116  # opens nothing, so drops no lock
            except OSError:
                found = None
            if found is None or found.st_ino != inode or found.st_dev != device:
                raise StoreError(
                    f"{path} was {'replaced by another file' if found else 'deleted or moved away'} while this "
                    f"process used {self.path}: {danger}. This commit was undone"
                )
        self._checkpoints.before_commit()

    def after_commit(self) -> None:
        """Do what follows each commit. Never raises."""
        self._checkpoints.after_commit()

    def _look_in_place(self) -> list[tuple[str, int, int, str]]:
        if sys.platform == "win32":  # pragma: no cover  # there an open file can be neither deleted nor replaced
            return []
        stats = {
            "": os.stat(self.path),  # noqa: PTH116
            "-wal": self._checkpoints.wal_stats(),
            ".lock": self._lock.stats(),
        }
        return [
            (f"{self.path}{suffix}", found.st_dev, found.st_ino, _MISPLACED[suffix])
            for suffix, found in stats.items()
        ]

    def close(self) -> None:
        """Close the connection and give the file back. Never raises."""
        _open_files.remove(self)
        self._checkpoints.close()
        with contextlib.suppress(sqlite3.Error):  # everything committed is in the file already
            self.connection.close()
        self._lock.release()


@contextlib.contextmanager
def wrap_sqlite_errors(path: str, *, opening: bool = False) -> Iterator[None]:
    """Turn an error of SQLite into a `StoreError` that names the file and a remedy.

    Args:
        path: The file.
        opening: It is not open yet.

    Raises:
        StoreUnavailable: The error may pass.
        StoreError: It does not.
    """
    try:
        yield
    except sqlite3.Error as error:
        # The lower byte is the primary code (https://www.sqlite.org/rescode.html); errors of the module have none.
        extended = getattr(error, "sqlite_errorcode", 0)
        code = extended & 0xFF
        table = {**_ADVICE, **_ADVICE_WHEN_OPENED} if opening else _ADVICE
        advice = table.get(extended) or table.get(code, "look at the disk and at what else uses the file")
        may_pass = code in _MAY_PASS and extended not in _STAYS
        if code == sqlite3.SQLITE_CANTOPEN and not opening:  # a temporary file
            may_pass = True
        # The message of SQLite may hold text of the file: it quotes a schema that it cannot read.
        kind = StoreUnavailable if may_pass else StoreError
        raise kind(f"{path} cannot be used: {one_line(str(error))}; {advice}") from error
    except UnicodeDecodeError as error:  # in the quoted schema
        raise StoreError(damage_message(path, "SQLite says why in bytes that are no text")) from error


@contextlib.contextmanager
def wrap_invalid_values(path: str) -> Iterator[None]:
    """Turn the error for a value that this library never writes into a `StoreError` with a remedy."""
    try:
        yield
    except (TypeError, UnicodeError, msgspec.ValidationError) as error:
        raise StoreError(damage_message(path, "it holds what this library does not write")) from error


def _create(path: str) -> None:
    """Create a missing file, readable by its owner alone; SQLite gives its side files the same permissions."""
    try:
        # This never opens a file that exists, and nothing uses a new file yet, so closing it drops no lock.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        if not Path(path).is_file():  # waiting would not help, as it does with an I/O error of a disk
            raise StoreError(f"{path} is not a file; name a file that may be made or written") from None
        check_size(Path(path))
    except OSError as error:
        raise StoreError(f"{path} cannot be made: {error.strerror}; name a file that may be made") from error


def _check_side_files(path: str) -> None:
    """Refuse a side file of SQLite that is a link or a special file: SQLite would write to what it leads to.

    Raises:
        StoreError: There is one.
    """
    for suffix in ("-wal", "-shm", "-journal"):
        try:
            found = os.lstat(f"{path}{suffix}")
        except OSError:
            continue
        if not stat.S_ISREG(found.st_mode):
            raise StoreError(
                f"{path} cannot be used: {path}{suffix} is a link or a special file, which SQLite never makes. "
                "Nothing was changed; look at who made it, and delete it or name another file"
            )


def _warn_of_other_writers(path: str) -> None:
    with contextlib.suppress(OSError):
        found = os.stat(path)  # noqa: PTH116  # a str, which may hold anything
        if found.st_nlink > 1:
            _logger.warning(
                "%s has %d names (hard links), and each name has a lock of its own: a process that opens the file "
                "by another name is not kept out, and damages it; use one name, and copy instead of linking",
                path,
                found.st_nlink,
            )
        if found.st_mode & stat.S_IWOTH and sys.platform != "win32":
            _logger.warning(
                "%s has the mode %s: every user of this machine may write to it, and so change what is processed; "
                "run chmod 600 on it",
                path,
                f"{stat.S_IMODE(found.st_mode):04o}",
            )


def check_size(path: Path) -> None:
    """Refuse a file that was cut off, which SQLite accepts.

    SQLite takes a file of one byte for an empty one, and reads a missing end of the last page as zeros.

    Raises:
        StoreError: The size is not a whole number of pages.
    """
    # After a crash the rest may be in a side file.
    unfinished = any(Path(f"{path}{suffix}").exists() for suffix in ("-wal", "-journal"))
    if path.is_file() and not unfinished and path.stat().st_size % _page_size(path):
        raise StoreError(
            f"{path} cannot be used: it was cut off, or is no SQLite database; put back a copy, or name another "
            "file"
        )


def _page_size(path: Path) -> int:
    """Bytes of a page (https://www.sqlite.org/fileformat.html, section 1.3.2)."""
    head = b""
    with contextlib.suppress(OSError), path.open("rb") as file:  # SQLite cannot read it either, and raises
        head = file.read(18)
    stated = int.from_bytes(head[16:])
    return 65_536 if stated == 1 else max(stated, _SMALLEST_PAGE)
