"""Read a store's file without disturbing the process that owns it.

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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, TypeAlias, TypeVar

import msgspec

from push_to_poll_client._exceptions import StoreError
from push_to_poll_client._types import Cursor, DeadLetter, SavedCursor
from push_to_poll_client._validation import quoted
from push_to_poll_client.stores._sqlite.cursors import read_history
from push_to_poll_client.stores._sqlite.dead_letters import Letters, read_letters
from push_to_poll_client.stores._sqlite.file import check_size, named_damage, named_errors, owner_of
from push_to_poll_client.stores._sqlite.schema import restored, stored, version_of

__all__ = [
    "Progress",
    "StoreFile",
    "read_as_guest",
    "read_cursors",
    "read_dead_letter",
    "read_dead_letters",
    "read_store",
]


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


_YEAR_10000 = 253_402_300_800

_Moment: TypeAlias = Annotated[float, msgspec.Meta(ge=0, lt=_YEAR_10000)]

_QUERY = """
    SELECT name, feed, cursor, token,
        (
            SELECT coalesce(sum(size), 0) FROM push_to_poll_segment
            WHERE consumer = known.id AND number >= known.first
        ) AS records,
        (SELECT count(*) FROM push_to_poll_dead_letter WHERE consumer = known.id) AS dead_letters,
        (
            SELECT count(*) FROM push_to_poll_state AS kept, json_each(kept.value)
            WHERE kept.consumer = known.id AND kept.name = 'attempts'
        ) AS failing,
        (
            SELECT json_extract(value, '$.what') FROM push_to_poll_state
            WHERE consumer = known.id AND name = 'gap'
        ) AS gap,
        (
            SELECT json_extract(value, '$.at') FROM push_to_poll_state
            WHERE consumer = known.id AND name = 'gap'
        ) AS gap_at,
        (
            SELECT last_at FROM push_to_poll_segment
            WHERE consumer = known.id AND number >= known.first ORDER BY number DESC LIMIT 1
        ) AS last_progress
    FROM push_to_poll_consumer AS known ORDER BY name
"""
_ROW = "SELECT id, cursor, at FROM push_to_poll_consumer WHERE name = ?"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a consumer is.

    Attributes:
        name: Of the consumer.
        feed: What the name is bound to.
        cursor: The saved one; `None` is the inception.
        records: How many dedupe records it has. One that was replaced may count twice.
        dead_letters: How many dead letters it has.
        failing: How many messages failed and are to be tried again.
        token: The fencing token of the last claim.
        gap: What the feed said last that it can no longer give; `None`: it said no such thing.
        gap_at: When that was seen, in seconds since the epoch; likewise.
        last_progress: When the newest dedupe record was made, in seconds since the epoch; `None`: there is none.
    """

    name: str
    feed: str
    cursor: Cursor | None
    records: int
    dead_letters: int
    failing: int
    token: int
    gap: str | None
    gap_at: _Moment | None
    last_progress: _Moment | None


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
    progress, size = read_as_guest(found, partial(_progress_of_all, found))
    return StoreFile(found, size, owner_of(found), progress or ())


def read_dead_letters(path: str | os.PathLike[str], name: str, *, marked: bool = False) -> Iterator[DeadLetter]:
    """Read the dead letters of a consumer name, in the order of their keys, as `read_store` reads.

    Some at a time, so what changes meanwhile may be seen as it was or as it is.

    Args:
        path: The file.
        name: Of the consumer.
        marked: Those alone that are marked.

    Raises:
        StoreError: As for `read_store`; or there is no such name.
    """
    found, after = os.path.realpath(path), None
    while some := _of_name(found, name, partial(_letters_after, after, marked)):
        yield from some
        after = some[-1].key


def read_dead_letter(path: str | os.PathLike[str], name: str, key: str) -> DeadLetter | None:
    """Read one dead letter, as `read_store` reads; `None`: there is none of this key.

    Args:
        path: The file.
        name: Of the consumer.
        key: The dedupe key.

    Raises:
        StoreError: As for `read_store`; or there is no such name.
    """
    return _of_name(os.path.realpath(path), name, partial(_letter_of, key))


def read_cursors(path: str | os.PathLike[str], name: str) -> tuple[SavedCursor, ...]:
    """Read the cursors that a consumer name saved, the oldest first and the saved one last, as `read_store` reads.

    Args:
        path: The file.
        name: Of the consumer.

    Raises:
        StoreError: As for `read_store`; or there is no such name.
    """
    return _of_name(os.path.realpath(path), name, _cursors)


def _of_name(path: str, name: str, read: Callable[[sqlite3.Connection, str, sqlite3.Row], _T]) -> _T:
    """What is read of the row of a name, all of it at one instant."""

    def look_up(connection: sqlite3.Connection) -> tuple[_T] | None:
        connection.execute("BEGIN")
        row = connection.execute(_ROW, (stored(name),)).fetchone()
        return None if row is None else (read(connection, path, row),)

    answer, _ = read_as_guest(path, look_up)
    if answer is None:
        raise StoreError(
            f"{path} has no consumer called {quoted(name)}; `push-to-poll status` shows the names that it has"
        )
    return answer[0]


def _progress_of_all(path: str, connection: sqlite3.Connection) -> tuple[Progress, ...]:
    return tuple(_progress(path, row) for row in connection.execute(_QUERY))


def _progress(path: str, row: sqlite3.Row) -> Progress:
    with named_damage(path):
        return msgspec.convert({name: restored(row[name]) for name in row.keys()}, Progress)  # noqa: SIM118  # a Row


def _letters_after(
    after: str | None,
    marked: bool,  # noqa: FBT001
    connection: sqlite3.Connection,
    path: str,
    row: sqlite3.Row,
) -> list[DeadLetter]:
    return read_letters(connection, path, row["id"], after=after, marked=marked)


def _letter_of(key: str, connection: sqlite3.Connection, path: str, row: sqlite3.Row) -> DeadLetter | None:
    return Letters(connection, path, row["id"]).of(key)


def _cursors(connection: sqlite3.Connection, path: str, row: sqlite3.Row) -> tuple[SavedCursor, ...]:
    with named_damage(path):
        saved = msgspec.convert((restored(row["cursor"]), row["at"]), SavedCursor)
    return (*read_history(connection, path, row["id"]), saved)
