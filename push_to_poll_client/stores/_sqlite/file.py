"""The database file: one process owns it and uses it through one connection.

The owner holds the lock of `owner_lock.py`. Side files of SQLite (`-wal`, `-shm`, `-journal`) that are not regular
files are rejected, because SQLite would write through a link. `Checkpoints` limits the size of the write-ahead
log.

The owner reads the file only through its one connection. On POSIX, closing any other descriptor of the file drops
SQLite's locks (https://www.sqlite.org/howtocorrupt.html, section 2.2).
"""

import contextlib
import logging
import os
import sqlite3
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from push_to_poll_client._exceptions import StoreError
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._validation import one_line
from push_to_poll_client.stores._sqlite.errors import BUSY_TIMEOUT, wrap_sqlite_errors
from push_to_poll_client.stores._sqlite.owner_lock import OwnerLock
from push_to_poll_client.stores._sqlite.schema import Synchronous, prepare, warn_of_old_sqlite
from push_to_poll_client.stores._sqlite.thread import StoreThread
from push_to_poll_client.stores._sqlite.wal import FRAME, HEADER, ID_SIZE, NO_ID, Mark, check_wal

_logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

_SMALLEST_PAGE = 512  # bytes, in SQLite

_MISPLACED = {
    "": "SQLite writes to a file that no longer exists at this path. Stop and put the file back; or, to use the "
    "file that is there now, move its -wal and -shm away",
    "-wal": "it contains the newest commits, which no other program sees; restart, which saves them",
    ".lock": "a second process could use the file at the same time; make sure that none does, and restart",
}
"""Danger and fix for each file that may be missing while the database is open, by suffix."""


one_opening = threading.Lock()
"""Held while this process opens a file as its owner, and while a reader of this process has one open.

A reader may open a file without SQLite, and on POSIX closing that descriptor drops the locks of SQLite's
connections in this process. Or it opens the shared memory of a dead owner for reading only, which SQLite would
then share with the owner's new connection.
"""

if sys.platform != "win32":  # pragma: no branch  # the tests run on POSIX
    os.register_at_fork(
        before=one_opening.acquire, after_in_parent=one_opening.release, after_in_child=one_opening.release
    )

_open_files: set["OpenFile"] = set()
# Keeps inherited files alive in a forked child, which must never close a connection of its parent
# (https://www.sqlite.org/howtocorrupt.html, section 2.6).


class OpenFile:
    """The owner lock and the one connection of a database file. Creates a missing file."""

    shared = False
    """True if the database is also an application's."""

    def __init__(self, path: str, thread: StoreThread, *, synchronous: Synchronous) -> None:
        self.path = path
        self.thread = thread
        self.process = os.getpid()
        with one_opening:
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
            self.connection = self._connect(timeout=BUSY_TIMEOUT)
            try:
                found = prepare(self.connection, self.path, synchronous=synchronous, shared=self.shared)
                self.version_found: int = found  # 0 if it had no tables
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
        # Each time that it is opened, the thread of the store may be another one.
        return sqlite3.connect(self.path, timeout=timeout, isolation_level=None, check_same_thread=False)

    @contextlib.contextmanager
    def access(self) -> Iterator[None]:
        """Use the connection in the thread of the store."""
        yield

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit the statements of the `with` body together, or none. Call within `access()`."""
        try:
            self.begin()
            yield
            self.before_commit()
            self.connection.execute("COMMIT")
        except BaseException:
            self.undo()
            raise
        self.has_ended()
        self._checkpoints.after_commit()

    def begin(self) -> None:
        # Take the write lock first: a transaction that reads and then writes can fail because of another writer.
        self.connection.execute("BEGIN IMMEDIATE")

    def undo(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # after such an error nothing can begin or commit either
            if self.connection.in_transaction:  # SQLite may have rolled back by itself
                self.connection.execute("ROLLBACK")
        self.has_ended()

    def has_ended(self) -> None:
        """Hook: a transaction has ended."""

    def before_commit(self) -> None:
        """Check that the files are in place, which SQLite does not do, and mark the database."""
        for path, device, inode, danger in self._in_place:  # 4 µs each; a commit takes 200 µs or more
            try:
                found = os.stat(path)  # noqa: PTH116  # opens nothing, so drops no lock
            except OSError:
                found = None
            if found is None or found.st_ino != inode or found.st_dev != device:
                raise StoreError(
                    f"{path} was {'replaced by another file' if found else 'deleted or moved away'} while this "
                    f"process used {self.path}: {danger}. This commit was rolled back"
                )
        self._checkpoints.before_commit()

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
        """Close the connection and release the file. Never raises."""
        _open_files.remove(self)
        self._checkpoints.close()
        with contextlib.suppress(sqlite3.Error):  # everything committed is in the file already
            self.connection.close()
        self._lock.release()


_SELECT_MARK = "SELECT mark FROM push_to_poll_wal WHERE id = 1"
_SELECT_PAGE = "SELECT rootpage FROM sqlite_master WHERE type = 'table' AND name = 'push_to_poll_wal'"
_SAVE_MARK = "INSERT OR REPLACE INTO push_to_poll_wal(id, mark) VALUES (1, ?)"

# Pages in the WAL, 8 MB, until a checkpoint. 1,000, 2,000 and 4,000 pages cost the same; the longest commit takes
# 6 to 9 ms. SQLite's automatic checkpoints are off, because they write no mark.
_CHECKPOINT_FRAMES = 2_000

# Bytes. A larger WAL is logged, and truncated when possible. A smaller one is overwritten from its start: a commit
# that makes a file longer takes about a third more time (ext4).
_LARGE_WAL = 64 << 20


class Checkpoints:
    """Marks the database and makes checkpoints, without waiting for other programs."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self._connection = connection
        self._path = path
        self._wal = open(f"{path}-wal", "rb", buffering=0)  # noqa: PTH123, SIM115  # closed by `close()`
        self._is_new = True  # the next commit starts the WAL over, or the last one did
        self._next = 0  # frames in the WAL after which a commit is followed by a checkpoint
        self._is_last = False  # this commit comes before a checkpoint
        self._warned = False

    def before_commit(self) -> None:
        """Write a new mark, within the transaction, if one is due."""
        self._is_last = self._next == 0 or (not self._is_new and self._has_frames(self._next))
        if self._is_new or self._is_last:
            self._write_mark()

    def _has_frames(self, count: int) -> bool:
        # The size of the file does not help: old frames follow the last valid one.
        self._wal.seek(0)
        header = self._wal.read(HEADER.size) or b""
        if len(header) < HEADER.size:
            return False
        page_size, salts = int.from_bytes(header[8:12]), header[16:24]
        self._wal.seek(HEADER.size + (count - 1) * (FRAME.size + page_size) + 8)
        return self._wal.read(len(salts)) == salts

    def _write_mark(self) -> None:
        (page,) = self._connection.execute(_SELECT_PAGE).fetchone()
        row = self._connection.execute(_SELECT_MARK).fetchone()
        previous = Mark.decode(row[0]) if row else None
        mark = Mark(page, os.urandom(ID_SIZE), previous.id if previous else NO_ID)
        self._connection.execute(_SAVE_MARK, (mark.encode(),))

    def after_commit(self) -> None:
        """Make a checkpoint if one is due. Never raises, because the commit is already saved."""
        self._is_new = False
        if self._is_last:
            try:
                hindrance = self._checkpoint()
            except sqlite3.Error as error:  # a full disk: the next one may succeed
                hindrance = one_line(str(error))
                self._next += _CHECKPOINT_FRAMES
            self._report(hindrance)

    def _checkpoint(self) -> str | None:
        """Copy the WAL into the database. Return the reason if the WAL cannot start over."""
        execute = self._connection.execute
        mode = "TRUNCATE" if self.wal_stats().st_size >= _LARGE_WAL else "RESTART"
        (timeout,) = execute("PRAGMA busy_timeout").fetchone()
        execute("PRAGMA busy_timeout = 0")
        try:
            busy, frames, copied = execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        finally:
            execute(f"PRAGMA busy_timeout = {timeout}")
        # If all readers see the newest state, the next commit can start the WAL over although one is active.
        self._is_new = not busy or frames == copied >= 0
        if self._is_new:
            self._next = 0 if busy else _CHECKPOINT_FRAMES
            return None
        self._next = max(frames, self._next) + _CHECKPOINT_FRAMES
        if frames < 0:
            return "another program writes to the file or makes a checkpoint"
        return "another program has a read transaction open; end it"

    def wal_stats(self) -> os.stat_result:
        """Return the stats of the WAL in use, even if it was moved."""
        return os.fstat(self._wal.fileno())

    def _report(self, hindrance: str | None) -> None:
        size = self.wal_stats().st_size
        if size < _LARGE_WAL:
            self._warned = False
        elif hindrance is not None and not self._warned:
            self._warned = True
            _logger.warning(
                "%s-wal has %d MiB and is still growing: %s",
                self._path,
                size >> 20,
                hindrance,
            )

    def close(self) -> None:
        """Close the file, before the connection is closed."""
        self._wal.close()


def _create(path: str) -> None:
    """Create a missing file, readable only by its owner. SQLite copies the mode to its side files."""
    try:
        # This never opens a file that exists, and nothing uses a new file yet, so closing it drops no lock.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        if not Path(path).is_file():  # not StoreUnavailable: waiting does not help
            raise StoreError(
                f"{path} is not a file; choose a file that this process can create or write"
            ) from None
        check_size(Path(path))
    except OSError as error:
        raise StoreError(
            f"cannot create {path}: {error.strerror}; choose a file that this process can create"
        ) from error


def _check_side_files(path: str) -> None:
    """Reject a side file that is a link or a special file, because SQLite would write through it."""
    for suffix in ("-wal", "-shm", "-journal"):
        try:
            found = os.lstat(f"{path}{suffix}")
        except OSError:
            continue
        if not stat.S_ISREG(found.st_mode):
            raise StoreError(
                f"{path} cannot be used: {path}{suffix} is a link or a special file, which SQLite never creates. "
                "Nothing was changed; check its origin, then delete it or choose another file"
            )


def _warn_of_other_writers(path: str) -> None:
    with contextlib.suppress(OSError):
        found = os.stat(path)  # noqa: PTH116  # a str, which may hold anything
        if found.st_nlink > 1:
            _logger.warning(
                "%s has %d names (hard links), and each name has its own lock: a process that opens the file by "
                "another name is not refused and can damage it; use one name, and copy instead of linking",
                path,
                found.st_nlink,
            )
        if found.st_mode & stat.S_IWOTH and sys.platform != "win32":
            _logger.warning(
                "%s has the mode %s: every user of this machine can write to it and change which messages are "
                "processed; run chmod 600 on it",
                path,
                f"{stat.S_IMODE(found.st_mode):04o}",
            )


def check_size(path: Path) -> None:
    """Reject a file whose size is not a whole number of pages. SQLite accepts such files."""
    # SQLite treats a file of one byte as empty, and reads the missing end of a page as zeros.
    # After a crash the rest may be in a side file.
    unfinished = any(Path(f"{path}{suffix}").exists() for suffix in ("-wal", "-journal"))
    if path.is_file() and not unfinished and path.stat().st_size % _page_size(path):
        raise StoreError(
            f"{path} cannot be used: it was cut off, or is not a SQLite database; restore a copy, or choose "
            "another file"
        )


def _page_size(path: Path) -> int:
    """Read the page size in bytes (https://www.sqlite.org/fileformat.html, section 1.3.2)."""
    head = b""
    with contextlib.suppress(OSError), path.open("rb") as file:  # SQLite cannot read it either, and raises
        head = file.read(18)
    stated = int.from_bytes(head[16:])
    return 65_536 if stated == 1 else max(stated, _SMALLEST_PAGE)
