"""What does a store's file say to somebody who must not touch it?

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
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec

from push_to_poll_client._exceptions import StoreError
from push_to_poll_client._types import Cursor
from push_to_poll_client.stores._owner_seen import owner_of
from push_to_poll_client.stores._sqlite_file import check_size, named_damage, named_errors
from push_to_poll_client.stores._sqlite_schema import version_of
from push_to_poll_client.stores._sqlite_text import restored

__all__ = ["Progress", "StoreFile", "read_store"]

_ATTEMPTS = 20
_PAUSE = 0.05  # seconds; with the attempts, one second for a consumer to have started or stopped

_PASSING = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}

_SIDE_FILES = ("-wal", "-shm", "-journal")  # https://www.sqlite.org/tempfiles.html

_WAL_HEADER = 32
"""Bytes. Nothing is in a WAL that has no more, and SQLite looks for it for ten seconds (3.46.1, with no owner)."""

_YEAR_10000 = 253_402_300_800

_QUERY = """
    SELECT name, feed, cursor, size AS records, token,
        (SELECT at FROM record WHERE consumer = id ORDER BY position DESC LIMIT 1) AS last_progress
    FROM consumer ORDER BY name
"""

_Look: TypeAlias = Mapping[str, tuple[int, int, int]]
"""The file ("") and those of its side files that are there: inode, size, and when it was written to."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a consumer is.

    Attributes:
        name: Of the consumer.
        feed: What the name is bound to.
        cursor: The saved one; `None` is the inception.
        records: How many dedupe records it has.
        token: The fencing token of the last claim.
        last_progress: When the newest dedupe record was made, in seconds since the epoch; `None`: there is none.
    """

    name: str
    feed: str
    cursor: Cursor | None
    records: int
    token: int
    last_progress: Annotated[float, msgspec.Meta(ge=0, lt=_YEAR_10000)] | None


@dataclass(frozen=True, slots=True)
class StoreFile:
    """The file of a `SQLiteStore` at one instant.

    Attributes:
        path: Absolute, links followed.
        size: In bytes, with what is not yet in its main file.
        owner: The process that owns it, as far as this one can see; `None`: nobody.
        progress: Of each consumer name, in the order of the names.
    """

    path: str
    size: int
    owner: int | None
    progress: tuple[Progress, ...]


def read_store(path: str | os.PathLike[str]) -> StoreFile:
    """Read the file of a `SQLiteStore`, also while a consumer uses it, and without its noticing.

    Not for a process that itself has the file open: looking at it would drop its locks.

    Raises:
        StoreError: It is not there, cannot be read, or is no store of this library, or one of a newer version.
    """
    found = os.path.realpath(path)
    for _ in range(_ATTEMPTS - 1):
        before = _look(found)
        try:
            progress = _read(found, before)
        except StoreError as error:
            if not _may_pass(error) and _look(found) == before:
                raise
        else:
            if _as_a_reader(before) or _look(found) == before:
                return _store_file(found, before, progress)
        time.sleep(_PAUSE)
    return _store_file(found, before := _look(found), _read(found, before))


def _may_pass(error: StoreError) -> bool:
    """Whether it is what an owner looks like that just starts or stops, before or after its files can be seen."""
    return getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF in _PASSING


def _store_file(path: str, look: _Look, progress: tuple[Progress, ...]) -> StoreFile:
    size = sum(size for suffix, (_, size, _) in look.items() if suffix != "-shm")
    return StoreFile(path, size, owner_of(path), progress)


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


def _read(path: str, look: _Look) -> tuple[Progress, ...]:
    with _database(path, look) as database, named_errors(path), closing(_opened(database)) as connection:
        if version_of(connection, path) == 0:  # empty: its consumer is about to begin
            return ()
        # One statement, hence all of it as it is at one instant.
        return tuple(_progress(path, row) for row in connection.execute(_QUERY))


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


def _progress(path: str, row: sqlite3.Row) -> Progress:
    with named_damage(path):
        return msgspec.convert({name: restored(row[name]) for name in row.keys()}, Progress)  # noqa: SIM118  # a Row
