"""The write-ahead log: refuse one that belongs to another state of the database, and empty it in time.

SQLite applies any WAL that lies beside a database, without a check that the two belong together. After a kill the
WAL stays. If a backup is put back beside it, SQLite mixes pages of two times: a wrong cursor, then damage.

So the database has a mark: one row with a random id, the id before it, and the number of its page. A new mark is
written in two commits: the last one before a checkpoint that lets the WAL begin anew (also when the file is
opened), and the first one after it. Take the database as it was when its WAL began:

- Its mark is the predecessor of the first mark in the WAL. A checkpoint that was held up or killed replaces it by
  a later mark, which is in the WAL too. So a mark that the WAL does not name says: not its own WAL.
- Every earlier state of the database has another mark, since the last commit before the WAL began wrote a new one.
- A copy of a later state has a mark that the WAL names. Each page in which it differs from the newest state is in
  the WAL, so SQLite makes the newest state of the two. That is harmless, and looks as a held-up checkpoint does.

This holds if other programs write to the file too: their commits keep the mark. A WAL is accepted if it says too
little: it has no mark (an earlier version of this library wrote it), its first mark has no predecessor (the table
was made in it), or VACUUM has moved the mark to another page. If one transaction in it has written all pages, as a
restore by SQLite's backup API does, the database beside it does not matter.

Formats: https://www.sqlite.org/fileformat.html, sections 1.3 (database), 1.6 (page) and 4 (WAL).
"""

import logging
import os
import sqlite3
import struct
import sys
import zlib
from contextlib import suppress
from typing import NamedTuple, Self

from push_to_poll_client._exceptions import StoreError
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._validation import one_line

__all__ = ["Checkpoints", "check_wal"]


_logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

_PREFIX = b"push_to_poll wal"
_ID_SIZE = 8
_NO_ID = bytes(_ID_SIZE)
_MARK = struct.Struct(f">{len(_PREFIX)}sI{_ID_SIZE}s{_ID_SIZE}sI")

_NUMBER_OF_BLOB = 12 + 2 * _MARK.size  # the serial type
_CELL = bytes((3 + _MARK.size, 1, 3, 0, _NUMBER_OF_BLOB))
"""Begins the one cell of the table: the size of the record, rowid 1, and the header of the record."""

_SELECT_MARK = "SELECT mark FROM push_to_poll_wal WHERE id = 1"
_SELECT_PAGE = "SELECT rootpage FROM sqlite_master WHERE type = 'table' AND name = 'push_to_poll_wal'"
_SAVE_MARK = "INSERT OR REPLACE INTO push_to_poll_wal(id, mark) VALUES (1, ?)"


class _Mark(NamedTuple):
    page: int
    id: bytes
    previous: bytes

    def encode(self) -> bytes:
        fields = (_PREFIX, self.page, self.id, self.previous)
        return _MARK.pack(*fields, zlib.crc32(_MARK.pack(*fields, 0)))

    @classmethod
    def decode(cls, value: object) -> Self | None:
        if not isinstance(value, bytes) or len(value) != _MARK.size:
            return None
        _, page, new, previous, _ = _MARK.unpack(value)
        mark = cls(page, new, previous)
        return mark if mark.encode() == value else None

    @classmethod
    def find(cls, page: bytes) -> Self | None:
        """Find the mark in a leaf page that has one cell. Other bytes of a page may be old."""
        if page[0:1] != b"\x0d" or page[3:5] != b"\0\1":
            return None
        cell = int.from_bytes(page[8:10])
        record = cell + len(_CELL)
        return cls.decode(page[record : record + _MARK.size]) if page[cell:record] == _CELL else None


# The WAL beside a database that is about to be opened

_MAGIC = (0x377F0682, 0x377F0683)
_HEADER = struct.Struct(">8I")  # magic, version, page size, number of checkpoints, two salts, two checksums
_FRAME = struct.Struct(">6I")  # number of the page, size of the database or 0, two salts, two checksums

_DATABASE_MAGIC = b"SQLite format 3\0"
_ROLLBACK_MODE = b"\1\1"  # the versions that write and read; 2 for a database in WAL mode


class _WAL(NamedTuple):
    page_size: int
    marks: list[tuple[int, _Mark]]
    is_whole: bool  # one transaction has written each page, as VACUUM or a restore by SQLite's backup API does


def check_wal(path: str) -> None:
    """Refuse a database beside which the WAL of another state lies. Changes nothing.

    To be called before SQLite opens the file. See the head of this module for what is certain and what cannot be
    told.

    Args:
        path: The database.

    Raises:
        StoreError: The WAL is not its own, or one of the two cannot be read.
    """
    try:
        wal = _read_wal(f"{path}-wal")
        foreign = wal is not None and _is_foreign(path, wal)
        is_gone = foreign and not _read_main(path, 0, 1)
    except OSError as error:
        raise StoreError(
            f"{path} or {path}-wal cannot be read: {error.strerror}; make both readable, or name another file"
        ) from error
    if is_gone:
        raise StoreError(
            f"{path} does not belong to {path}-wal: the file is missing or empty, and the -wal has commits to the "
            f"one that was there. Put that file back; to begin anew, move {path}-wal and {path}-shm away"
        )
    if foreign:
        raise StoreError(
            f"{path} does not belong to {path}-wal: the file was replaced (a backup that was put back?) after a "
            f"crash had left the -wal. To use the file as it is, move {path}-wal and {path}-shm away; to go on "
            "from before the crash, put the replaced file back. Nothing was changed"
        )


def _is_foreign(path: str, wal: _WAL) -> bool:
    header = _read_main(path, 0, 20)
    if not header:
        return True  # SQLite would delete the WAL
    if not header.startswith(_DATABASE_MAGIC):
        return False  # SQLite says what it is
    if header.endswith(_ROLLBACK_MODE):
        return True  # no file gets a WAL before it is in WAL mode: VACUUM INTO wrote this one
    if wal.is_whole:
        return False  # nothing is left of the database beside it
    pages = {page for page, mark in wal.marks} | {mark.page for _, mark in wal.marks}
    if len(pages) != 1 or wal.marks[0][1].previous == _NO_ID:
        return False
    (page,) = pages
    found = _Mark.find(_read_main(path, (page - 1) * wal.page_size, wal.page_size))
    known = {mark_id for _, mark in wal.marks for mark_id in (mark.id, mark.previous)}
    return found is not None and found.page == page and found.id not in known


def _read_wal(path: str) -> _WAL | None:
    """Read the marks of a WAL; None if there is no WAL, or none with a frame."""
    try:
        file = open(path, "rb")  # noqa: PTH123, SIM115  # SQLite has no locks on this file that closing would drop
    except FileNotFoundError:
        return None
    with file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return None
        magic, _, page_size, _, *salts, _, _ = _HEADER.unpack(header)
        if magic not in _MAGIC:
            return None
        marks, frames, is_whole = [], 0, False
        written = set[int]()  # pages, by the transaction that is read
        # Frames are written anew from the beginning: those of an earlier time have other salts. Checksums are not
        # looked at. A frame too many only makes more marks known.
        while len(frame := file.read(_FRAME.size + page_size)) == _FRAME.size + page_size:
            page, size, *frame_salts, _, _ = _FRAME.unpack_from(frame)
            if frame_salts != salts:
                break
            frames += 1
            written.add(page)
            if size:  # the last frame of its transaction
                is_whole = is_whole or written.issuperset(range(1, size + 1))
                written.clear()
            if mark := _Mark.find(frame[_FRAME.size :]):
                marks.append((page, mark))
        return _WAL(page_size, marks, is_whole) if frames else None


_kept_open: dict[tuple[int, int], int] = {}
"""Descriptors of database files, by device and inode; see `_read_main`."""


def _read_main(path: str, offset: int, size: int) -> bytes:
    """Read bytes of a database without SQLite; fewer or none at its end, none if there is no file."""
    try:
        if sys.platform == "win32":  # pragma: no cover  # the tests run on POSIX
            with open(path, "rb") as file:  # noqa: PTH123
                file.seek(offset)
                return file.read(size)
        found = os.stat(path)  # noqa: PTH116  # a str, which may hold anything
        file_id = found.st_dev, found.st_ino
        descriptor = _kept_open.pop(file_id, None)
        if descriptor is None:
            descriptor = os.open(path, os.O_RDONLY)
        try:
            return os.pread(descriptor, size, offset)
        finally:
            # On POSIX closing it would drop the locks of a connection that the application has to the same file
            # in this process (https://www.sqlite.org/howtocorrupt.html, section 2.2).
            if _is_open_elsewhere(file_id, descriptor):
                _kept_open[file_id] = descriptor
            else:
                os.close(descriptor)
    except FileNotFoundError:
        return b""


def _is_open_elsewhere(file_id: tuple[int, int], descriptor: int) -> bool:
    """Whether this process has another descriptor of the file; True if that cannot be told."""
    try:
        descriptors = [int(name) for name in os.listdir("/dev/fd")]  # noqa: PTH208
    except OSError:
        return True
    for other in descriptors:
        with suppress(OSError):  # closed meanwhile
            found = os.fstat(other)
            if other != descriptor and (found.st_dev, found.st_ino) == file_id:
                return True
    return False


# The WAL of an open database

_CHECKPOINT_FRAMES = 2_000
"""Pages in the WAL, 8 MB, after which it begins anew. A checkpoint every 1,000, 2,000 or 4,000 pages costs the
same, and the longest commit takes 6 to 9 ms. Those that SQLite makes by itself write no mark before."""

_LARGE_WAL = 64 << 20
"""Bytes. A larger file is reported, and cut off when that is possible. A smaller one is written anew from its
beginning: a commit that makes a file longer takes about a third more time (ext4)."""


class Checkpoints:
    """Marks the database, and lets its WAL begin anew in time. Waits for no other program.

    Args:
        connection: In WAL mode, without checkpoints of its own.
        path: The database.
    """

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self._connection = connection
        self._path = path
        self._wal = open(f"{path}-wal", "rb", buffering=0)  # noqa: PTH123, SIM115  # closed by `close()`
        self._is_new = True  # the WAL begins anew with the next commit, or did with the last one
        self._next = 0  # a checkpoint comes after the commit that finds so many frames in the WAL
        self._is_last = False  # this commit comes before a checkpoint
        self._warned = False

    def before_commit(self) -> None:
        """Write a new mark if it is time for one. Within the transaction.

        Raises:
            sqlite3.Error: As SQLite raises it.
        """
        self._is_last = self._next == 0 or (not self._is_new and self._has_frames(self._next))
        if self._is_new or self._is_last:
            self._write_mark()

    def _has_frames(self, count: int) -> bool:
        # The size of the file tells nothing: after the last frame come those of an earlier time.
        self._wal.seek(0)
        header = self._wal.read(_HEADER.size) or b""
        if len(header) < _HEADER.size:
            return False
        page_size, salts = int.from_bytes(header[8:12]), header[16:24]
        self._wal.seek(_HEADER.size + (count - 1) * (_FRAME.size + page_size) + 8)
        return self._wal.read(len(salts)) == salts

    def _write_mark(self) -> None:
        (page,) = self._connection.execute(_SELECT_PAGE).fetchone()
        row = self._connection.execute(_SELECT_MARK).fetchone()
        previous = _Mark.decode(row[0]) if row else None
        mark = _Mark(page, os.urandom(_ID_SIZE), previous.id if previous else _NO_ID)
        self._connection.execute(_SAVE_MARK, (mark.encode(),))

    def after_commit(self) -> None:
        """Let the WAL begin anew if it is time. Never raises: what is committed is in the file already."""
        self._is_new = False
        if self._is_last:
            try:
                hindrance = self._checkpoint()
            except sqlite3.Error as error:  # a full disk: the next one may succeed
                hindrance = one_line(str(error))
                self._next += _CHECKPOINT_FRAMES
            self._report(hindrance)

    def _checkpoint(self) -> str | None:
        """Copy the WAL into the database. Returns what keeps the WAL from beginning anew."""
        execute = self._connection.execute
        mode = "TRUNCATE" if self.wal_stats().st_size >= _LARGE_WAL else "RESTART"
        (timeout,) = execute("PRAGMA busy_timeout").fetchone()
        execute("PRAGMA busy_timeout = 0")
        try:
            busy, frames, copied = execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        finally:
            execute(f"PRAGMA busy_timeout = {timeout}")
        # If a reader of the newest state alone is in the way, the next commit may begin the WAL anew all the same.
        self._is_new = not busy or frames == copied >= 0
        if self._is_new:
            self._next = 0 if busy else _CHECKPOINT_FRAMES
            return None
        self._next = max(frames, self._next) + _CHECKPOINT_FRAMES
        if frames < 0:
            return "another program writes to the file or makes a checkpoint"
        return "another program has a transaction open in which it reads; end it"

    def wal_stats(self) -> os.stat_result:
        """Stat the WAL that the connection uses, wherever it is now."""
        return os.fstat(self._wal.fileno())

    def _report(self, hindrance: str | None) -> None:
        size = self.wal_stats().st_size
        if size < _LARGE_WAL:
            self._warned = False
        elif hindrance is not None and not self._warned:
            self._warned = True
            _logger.warning(
                "%s-wal has %d MiB and goes on growing: %s",
                self._path,
                size >> 20,
                hindrance,
            )

    def close(self) -> None:
        """Close the file, before the connection is closed."""
        self._wal.close()
