"""The write-ahead log (WAL): reject a WAL that belongs to another state of the database.

SQLite applies any WAL that lies beside a database, without a check that the two belong together. After a kill the
WAL stays. If a backup is put back beside it, SQLite mixes pages of two times: a wrong cursor, then damage.

So the database has a mark: one row with a random id, the id before it, and the number of its page. A new mark is
written in two commits: the last one before a checkpoint that lets the WAL begin anew (also when the file is
opened), and the first one after it. Take the database as it was when its WAL began:

- Its mark is the predecessor of the first mark in the WAL. A checkpoint that was held up or killed replaces it by
  a later mark, which is in the WAL too. So a WAL that does not name the mark belongs to another state.
- Every earlier state of the database has another mark, since the last commit before the WAL began wrote a new one.
- A copy of a later state has a mark that the WAL names. Each page in which it differs from the newest state is in
  the WAL, so SQLite combines both to the newest state. That is harmless, and looks like a held-up checkpoint.

This also holds if other programs write to the file: their commits keep the mark. A WAL is accepted if its marks
prove nothing: it has no mark (an earlier version of this library wrote it), its first mark has no predecessor (the
table was created in this WAL), or VACUUM has moved the mark to another page. It is also accepted if one of its
transactions has written all pages, as a restore by SQLite's backup API does: the database does not matter then.

Formats: https://www.sqlite.org/fileformat.html, sections 1.3 (database), 1.6 (page) and 4 (WAL).
"""

import os
import struct
import sys
import zlib
from contextlib import suppress
from typing import NamedTuple, Self

from push_to_poll_client._exceptions import StoreError

_PREFIX = b"push_to_poll wal"
ID_SIZE = 8
NO_ID = bytes(ID_SIZE)
_MARK = struct.Struct(f">{len(_PREFIX)}sI{ID_SIZE}s{ID_SIZE}sI")

_NUMBER_OF_BLOB = 12 + 2 * _MARK.size  # the serial type
_CELL = bytes((3 + _MARK.size, 1, 3, 0, _NUMBER_OF_BLOB))
"""Start of the table's only cell: size of the record, rowid 1, and header of the record."""


class Mark(NamedTuple):
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
HEADER = struct.Struct(">8I")  # magic, version, page size, number of checkpoints, two salts, two checksums
FRAME = struct.Struct(">6I")  # number of the page, size of the database or 0, two salts, two checksums

_DATABASE_MAGIC = b"SQLite format 3\0"
_ROLLBACK_MODE = b"\1\1"  # the versions that write and read; 2 for a database in WAL mode


class _WAL(NamedTuple):
    page_size: int
    marks: list[tuple[int, Mark]]
    is_whole: bool  # one transaction has written each page, as VACUUM or a restore by SQLite's backup API does


def check_wal(path: str) -> None:
    """Raise a `StoreError` if the WAL belongs to another state. Call it before SQLite opens the file."""
    try:
        wal = _read_wal(f"{path}-wal")
        foreign = wal is not None and _is_foreign(path, wal)
        is_gone = foreign and not _read_main(path, 0, 1)
    except OSError as error:
        raise StoreError(
            f"cannot read {path} or {path}-wal: {error.strerror}; make both readable, or choose another file"
        ) from error
    if is_gone:
        raise StoreError(
            f"{path} does not belong to {path}-wal: the file is missing or empty, and the -wal contains commits "
            f"of an earlier file. Put that file back; or, to start over, move {path}-wal and {path}-shm away"
        )
    if foreign:
        raise StoreError(
            f"{path} does not belong to {path}-wal: the file was replaced (a restored backup?) after a crash had "
            f"left the -wal. To use the new file, move {path}-wal and {path}-shm away; to continue with the state "
            "before the crash, put the replaced file back. Nothing was changed"
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
    if len(pages) != 1 or wal.marks[0][1].previous == NO_ID:
        return False
    (page,) = pages
    found = Mark.find(_read_main(path, (page - 1) * wal.page_size, wal.page_size))
    known = {mark_id for _, mark in wal.marks for mark_id in (mark.id, mark.previous)}
    return found is not None and found.page == page and found.id not in known


def _read_wal(path: str) -> _WAL | None:
    """Read the marks of a WAL. Return None without a WAL, or if it has no frame."""
    try:
        file = open(path, "rb")  # noqa: PTH123, SIM115  # SQLite has no locks on this file that closing would drop
    except FileNotFoundError:
        return None
    with file:
        header = file.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        magic, _, page_size, _, *salts, _, _ = HEADER.unpack(header)
        if magic not in _MAGIC:
            return None
        marks, frames, is_whole = [], 0, False
        written = set[int]()  # pages, by the transaction that is read
        # SQLite overwrites frames from the start; old frames have other salts. Checksums are not checked: an extra
        # frame only adds known marks.
        while len(frame := file.read(FRAME.size + page_size)) == FRAME.size + page_size:
            page, size, *frame_salts, _, _ = FRAME.unpack_from(frame)
            if frame_salts != salts:
                break
            frames += 1
            written.add(page)
            if size:  # the last frame of its transaction
                is_whole = is_whole or written.issuperset(range(1, size + 1))
                written.clear()
            if mark := Mark.find(frame[FRAME.size :]):
                marks.append((page, mark))
        return _WAL(page_size, marks, is_whole) if frames else None


_kept_open: dict[tuple[int, int], int] = {}
"""Descriptors of database files, by device and inode; see `_read_main`."""


def _read_main(path: str, offset: int, size: int) -> bytes:
    """Read bytes of a database without SQLite; fewer at its end, none if the file is missing."""
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
    """Return True if this process has another descriptor of the file, or if that is unknown."""
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
