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
from push_to_poll_client.stores._sqlite.dead_letters import StoredDeadLetters, select_dead_letters
from push_to_poll_client.stores._sqlite.file import (
    check_size,
    lock_holder,
    wrap_invalid_values,
    wrap_sqlite_errors,
)
from push_to_poll_client.stores._sqlite.schema import decode_text, encode_text, schema_version

__all__ = [
    "ConsumerProgress",
    "StoreFile",
    "query_read_only",
    "read_cursors",
    "read_dead_letter",
    "read_dead_letters",
    "read_store",
]


_T = TypeVar("_T")

_ATTEMPTS = 20
_PAUSE = 0.05  # seconds; with the attempts, one second for a consumer to have started or stopped

_TRANSIENT_ERRORS = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}

_SIDE_FILES = ("-wal", "-shm", "-journal")  # https://www.sqlite.org/tempfiles.html

_WAL_HEADER = 32
"""Bytes. Nothing is in a WAL that has no more, and SQLite looks for it for ten seconds (3.46.1, with no owner)."""

_FileStats: TypeAlias = Mapping[str, tuple[int, int, int]]
"""The file ("") and those of its side files that are there: inode, size, and when it was written to."""


def query_read_only(path: str, read: Callable[[sqlite3.Connection], _T]) -> tuple[_T | None, int]:
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
        before = _stat_files(path)
        try:
            answer = _read(path, before, read)
        except StoreError as error:
            if not _is_transient(error) and _stat_files(path) == before:
                raise
        else:
            if _has_live_wal(before) or _stat_files(path) == before:
                return answer, _total_size(before)
        time.sleep(_PAUSE)
    before = _stat_files(path)
    return _read(path, before, read), _total_size(before)


def _is_transient(error: StoreError) -> bool:
    """Whether it is what an owner looks like that just starts or stops, before or after its files can be seen."""
    return getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF in _TRANSIENT_ERRORS


def _total_size(look: _FileStats) -> int:
    return sum(size for suffix, (_, size, _) in look.items() if suffix != "-shm")


def _stat_files(path: str) -> _FileStats:
    look = {suffix: seen for suffix in ("", *_SIDE_FILES) if (seen := _stat_file(f"{path}{suffix}"))}
    if "" not in look:
        raise StoreError(f"{path} is not there; name the file that a consumer keeps its state in")
    if not os.access(path, os.R_OK):
        raise StoreError(f"{path} may not be read by this user; ask as its owner")
    return look


def _stat_file(path: str) -> tuple[int, int, int] | None:
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


def _read(path: str, look: _FileStats, read: Callable[[sqlite3.Connection], _T]) -> _T | None:
    with (
        _database_uri(path, look) as database,
        wrap_sqlite_errors(path),
        closing(_connect(database)) as connection,
    ):
        return read(connection) if schema_version(connection, path) else None


def _has_live_wal(look: _FileStats) -> bool:
    return "-shm" in look and _size(look, "-wal") > _WAL_HEADER


def _size(look: _FileStats, suffix: str) -> int:
    return look[suffix][1] if suffix in look else 0


@contextmanager
def _database_uri(path: str, look: _FileStats) -> Iterator[str]:
    """What to open."""
    place = Path(path).as_uri()
    if _has_live_wal(look):
        yield f"{place}?mode=ro&readonly_shm=1"
    elif _size(look, "-wal") <= _WAL_HEADER and not _size(look, "-journal"):
        check_size(Path(path))
        yield f"{place}?mode=ro&immutable=1"
    else:
        with _temporary_copy(path, look) as copy:
            yield copy.as_uri()


@contextmanager
def _temporary_copy(path: str, look: _FileStats) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, "copy")
        try:
            for suffix in look:
                shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
        except OSError as error:
            raise StoreError(f"{path} cannot be copied to be read: {error.strerror}; free some space") from error
        yield copy


def _connect(database: str) -> sqlite3.Connection:
    connection = sqlite3.connect(database, uri=True, isolation_level=None)
    connection.row_factory = sqlite3.Row
    return connection


_YEAR_10000 = 253_402_300_800

_Timestamp: TypeAlias = Annotated[float, msgspec.Meta(ge=0, lt=_YEAR_10000)]

_SELECT_PROGRESS = """
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
_SELECT_CONSUMER = "SELECT id, cursor, at FROM push_to_poll_consumer WHERE name = ?"


@dataclass(frozen=True, slots=True)
class ConsumerProgress:
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
    gap_at: _Timestamp | None
    last_progress: _Timestamp | None


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
    progress: tuple[ConsumerProgress, ...]


def read_store(path: str | os.PathLike[str]) -> StoreFile:
    """Read the file of a `SQLiteStore`, also while a consumer uses it, and without its noticing.

    Not for a process that itself has the file open: looking at it would drop its locks.

    Raises:
        StoreError: It is not there, cannot be read, or is no store of this library, or one of a newer version.
    """
    found = os.path.realpath(path)
    progress, size = query_read_only(found, partial(_select_progress, found))
    return StoreFile(found, size, lock_holder(found), progress or ())


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
    while some := _query_consumer(found, name, partial(_dead_letters_after, after, marked)):
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
    return _query_consumer(os.path.realpath(path), name, partial(_dead_letter_of, key))


def read_cursors(path: str | os.PathLike[str], name: str) -> tuple[SavedCursor, ...]:
    """Read the cursors that a consumer name saved, the oldest first and the saved one last, as `read_store` reads.

    Args:
        path: The file.
        name: Of the consumer.

    Raises:
        StoreError: As for `read_store`; or there is no such name.
    """
    return _query_consumer(os.path.realpath(path), name, _cursors)


def _query_consumer(path: str, name: str, read: Callable[[sqlite3.Connection, str, sqlite3.Row], _T]) -> _T:
    """What is read of the row of a name, all of it at one instant."""

    def look_up(connection: sqlite3.Connection) -> tuple[_T] | None:
        connection.execute("BEGIN")
        row = connection.execute(_SELECT_CONSUMER, (encode_text(name),)).fetchone()
        return None if row is None else (read(connection, path, row),)

    answer, _ = query_read_only(path, look_up)
    if answer is None:
        raise StoreError(
            f"{path} has no consumer called {quoted(name)}; `push-to-poll status` shows the names that it has"
        )
    return answer[0]


def _select_progress(path: str, connection: sqlite3.Connection) -> tuple[ConsumerProgress, ...]:
    return tuple(_decode_progress(path, row) for row in connection.execute(_SELECT_PROGRESS))


def _decode_progress(path: str, row: sqlite3.Row) -> ConsumerProgress:
    with wrap_invalid_values(path):
        return msgspec.convert({name: decode_text(row[name]) for name in row.keys()}, ConsumerProgress)  # noqa: SIM118  # a Row


def _dead_letters_after(
    after: str | None,
    marked: bool,  # noqa: FBT001
    connection: sqlite3.Connection,
    path: str,
    row: sqlite3.Row,
) -> list[DeadLetter]:
    return select_dead_letters(connection, path, row["id"], after=after, marked=marked)


def _dead_letter_of(key: str, connection: sqlite3.Connection, path: str, row: sqlite3.Row) -> DeadLetter | None:
    return StoredDeadLetters(connection, path, row["id"]).read_one(key)


def _cursors(connection: sqlite3.Connection, path: str, row: sqlite3.Row) -> tuple[SavedCursor, ...]:
    with wrap_invalid_values(path):
        saved = msgspec.convert((decode_text(row["cursor"]), row["at"]), SavedCursor)
    return (*read_history(connection, path, row["id"]), saved)
