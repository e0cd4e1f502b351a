"""How is a store's file read by somebody who must not touch it?

A consumer may own it, start, stop or be killed meanwhile. So nothing is locked that it would wait for, and nothing
is written or made, side files included: one that another user made would keep the owner out. There are three ways:

- Both side files of a WAL are there, of a consumer that runs or was killed: as one reader among others. With
  `readonly_shm` SQLite leaves the shared memory as it is, and a WAL whose owner is dead it reads by itself.
- There is no side file, or none with anything in it: the file alone (`immutable`), else it would get side files.
- Some of what belongs together is there, as in a copy: a copy of all of it, since SQLite would have to write.

The second and the third are right as long as nobody begins to write, which is seen afterwards.
"""

import os
import shutil
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeAlias, TypeVar

from push_to_poll_client._exceptions import StoreError
from push_to_poll_client.stores._sqlite_file import check_size, named_errors
from push_to_poll_client.stores._sqlite_schema import version_of

__all__ = ["read_as_guest"]

_T = TypeVar("_T")

_ATTEMPTS = 20
_PAUSE = 0.05  # seconds; with the attempts, one second for a consumer to have started or stopped

_PASSING = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}

_SIDE_FILES = ("-wal", "-shm", "-journal")  # https://www.sqlite.org/tempfiles.html

_WAL_HEADER = 32
"""Bytes. Nothing is in a WAL that has no more, and SQLite looks for it for ten seconds (3.46.1, with no owner)."""

_Look: TypeAlias = Mapping[str, tuple[int, int, int]]
"""The file ("") and those of its side files that are there: inode, size, and when it was written to."""


def read_as_guest(path: str, read: Callable[[sqlite3.Connection], _T]) -> tuple[_T | None, int]:
    """Read the file of a `SQLiteStore`, also while a consumer uses it, and without its noticing.

    Not for a process that itself has the file open: looking at it would drop its locks.

    Args:
        path: Absolute, links followed.
        read: Asks the connection, perhaps several times: the file may change meanwhile. One statement or one
            transaction sees all of it as it is at one instant.

    Returns:
        What it returned (`None`: the file is empty, its consumer is about to begin), and the size of the file in
        bytes, with what is not yet in its main file.

    Raises:
        StoreError: It is not there, cannot be read, or is no store of this library, or one of a newer version.
    """
    for _ in range(_ATTEMPTS - 1):
        before = _look(path)
        try:
            answer = _read(path, before, read)
        except StoreError as error:
            if not _may_pass(error) and _look(path) == before:
                raise
        else:
            if _as_a_reader(before) or _look(path) == before:
                return answer, _whole_size(before)
        time.sleep(_PAUSE)
    before = _look(path)
    return _read(path, before, read), _whole_size(before)


def _may_pass(error: StoreError) -> bool:
    """Whether it is what an owner looks like that just starts or stops, before or after its files can be seen."""
    return getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF in _PASSING


def _whole_size(look: _Look) -> int:
    return sum(size for suffix, (_, size, _) in look.items() if suffix != "-shm")


def _look(path: str) -> _Look:
    look = {suffix: seen for suffix in ("", *_SIDE_FILES) if (seen := _seen(f"{path}{suffix}"))}
    if "" not in look:
        raise StoreError(f"{path} is not there; name the file that a consumer keeps its state in")
    if not os.access(path, os.R_OK):
        raise StoreError(f"{path} may not be read by this user; ask as its owner")
    return look


def _seen(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116  # a str, which may hold anything
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read: {error.strerror}; name another file, or ask as its owner"
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise StoreError(f"{path} is no file; name the file that a consumer keeps its state in")
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read(path: str, look: _Look, read: Callable[[sqlite3.Connection], _T]) -> _T | None:
    with _database(path, look) as database, named_errors(path), closing(_opened(database)) as connection:
        return read(connection) if version_of(connection, path) else None


def _as_a_reader(look: _Look) -> bool:
    return "-shm" in look and _size(look, "-wal") > _WAL_HEADER


def _size(look: _Look, suffix: str) -> int:
    return look[suffix][1] if suffix in look else 0


@contextmanager
def _database(path: str, look: _Look) -> Iterator[str]:
    """What to open."""
    place = Path(path).as_uri()
    if _as_a_reader(look):
        yield f"{place}?mode=ro&readonly_shm=1"
    elif _size(look, "-wal") <= _WAL_HEADER and not _size(look, "-journal"):
        check_size(Path(path))
        yield f"{place}?mode=ro&immutable=1"
    else:
        with _copied(path, look) as copy:
            yield copy.as_uri()


@contextmanager
def _copied(path: str, look: _Look) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, "copy")
        try:
            for suffix in look:
                shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
        except OSError as error:
            raise StoreError(f"{path} cannot be copied to be read: {error.strerror}; free some space") from error
        yield copy


def _opened(database: str) -> sqlite3.Connection:
    connection = sqlite3.connect(database, uri=True, isolation_level=None)
    connection.row_factory = sqlite3.Row
    return connection
