"""Read a store's file without disturbing the process that owns it.

A consumer may run, start, stop or be killed meanwhile. So this module takes no lock that a consumer would wait
for. It creates nothing next to the file: a side file of another user would keep the owner out. There are three
ways to open the file:

- Both side files of a WAL exist, because a consumer runs or was killed: open the file as one of several readers.
  With `readonly_shm` SQLite does not change the shared memory, and reads the WAL of a dead owner by itself.
- No side file has content: open the file alone. Without `immutable` SQLite would create side files.
- Only some of the side files exist, as in a copy: read a temporary copy of all files, because SQLite must write.

The second and third ways are right only if nothing is written meanwhile. So the files are compared before and
after reading, and read again if they differ.

The process that owns the file may read it too, but only in the first way: SQLite's connections in one process
share their locks, which closing any other descriptor of the file would drop.
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

import msgspec

from push_to_poll_client._exceptions import StoreError
from push_to_poll_client._types import DeadLetter, SavedCursor
from push_to_poll_client.stores._sqlite.dead_letters import StoredDeadLetters
from push_to_poll_client.stores._sqlite.errors import wrap_sqlite_errors
from push_to_poll_client.stores._sqlite.file import check_size, one_opening
from push_to_poll_client.stores._sqlite.owner_lock import lock_holder
from push_to_poll_client.stores._sqlite.schema import decode_text, schema_version
from push_to_poll_client.stores._sqlite.session import ConsumerRow, read_history, select_consumer
from push_to_poll_client.stores._sqlite.wal import check_wal
from push_to_poll_client.stores.reader import (
    MAX_FOUND,
    ConsumerProgress,
    NameOwner,
    StoreSnapshot,
    unknown_name,
)

_T = TypeVar("_T")

_ATTEMPTS = 20
_PAUSE = 0.05  # seconds; all attempts together give a consumer one second to start or stop

_TRANSIENT_ERRORS = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}

_SIDE_FILES = ("-wal", "-shm", "-journal")  # https://www.sqlite.org/tempfiles.html

_WAL_HEADER = 32
"""Bytes. A WAL of this size is empty, and without an owner SQLite tries to read it for ten seconds (3.46.1)."""

_FileStats: TypeAlias = Mapping[str, tuple[int, int, int]]
"""For the file ("") and the suffix of each side file that exists: inode, size, and time of the last write."""


def _query(path: str, read: Callable[[sqlite3.Connection], _T]) -> tuple[_T | None, int]:
    """Return the result of `read` (None if the file is empty) and the bytes of the store with its side files."""
    # `read` may be called several times, because the file may change meanwhile.
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
    """Return True if a consumer that starts or stops can cause the error."""
    return getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF in _TRANSIENT_ERRORS


def _total_size(stats: _FileStats) -> int:
    return sum(size for suffix, (_, size, _) in stats.items() if suffix != "-shm")


def _stat_files(path: str) -> _FileStats:
    stats = {suffix: found for suffix in ("", *_SIDE_FILES) if (found := _stat_file(f"{path}{suffix}"))}
    if "" not in stats:
        raise StoreError(f"no state file at {path}; give the file of a consumer")
    if not os.access(path, os.R_OK):
        raise StoreError(f"this user cannot read {path}; run the command as its owner")
    return stats


def _stat_file(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116  # a str, which may hold anything
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(
            f"cannot read {path}: {error.strerror}; give another file, or run the command as its owner"
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise StoreError(f"{path} is not a file; give the file of a consumer")
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read(path: str, stats: _FileStats, read: Callable[[sqlite3.Connection], _T]) -> _T | None:
    with (
        one_opening,
        _database_uri(path, stats) as uri,
        wrap_sqlite_errors(path, opening=True),
        closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection,
    ):
        return read(connection) if schema_version(connection, path) else None


def _has_live_wal(stats: _FileStats) -> bool:
    return "-shm" in stats and _size(stats, "-wal") > _WAL_HEADER


def _size(stats: _FileStats, suffix: str) -> int:
    return stats[suffix][1] if suffix in stats else 0


@contextmanager
def _database_uri(path: str, stats: _FileStats) -> Iterator[str]:
    """Choose one of the three ways to open the file; see the head of this module."""
    uri = Path(path).as_uri()
    owner = lock_holder(path)
    if owner is None:  # else the owner has checked the files, and changes them meanwhile
        check_wal(path)
    if owner == os.getpid() or _has_live_wal(stats):
        yield f"{uri}?mode=ro&readonly_shm=1"
    elif _size(stats, "-wal") <= _WAL_HEADER and not _size(stats, "-journal"):
        check_size(Path(path))
        yield f"{uri}?mode=ro&immutable=1"
    else:
        with _temporary_copy(path, stats) as copy:
            yield copy.as_uri()


@contextmanager
def _temporary_copy(path: str, stats: _FileStats) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, "copy")
        try:
            for suffix in stats:
                shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
        except OSError as error:
            raise StoreError(
                f"cannot make a temporary copy of {path}: {error.strerror}; free some space"
            ) from error
        yield copy


_SELECT_PROGRESS = """
    SELECT name, feed, cursor, token AS fencing_token,
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


class SQLiteReader:
    """Reads the file of a `SQLiteStore`, also while a consumer uses it. See `StoreReader`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.where: str = os.path.realpath(path)

    def snapshot(self) -> StoreSnapshot:
        progress, size = _query(self.where, select_progress)
        process = lock_holder(self.where)
        owner = None if process is None else f"process {process}"
        owners = (
            NameOwner(one.name, owner, seconds_left=None, wanted=False, fencing_token=one.fencing_token)
            for one in progress or ()
        )
        return StoreSnapshot(self.where, size, time.time(), progress or (), tuple(owners))

    def version(self) -> int:
        """Read the version of the tables; 0 without tables."""
        version, _ = _query(self.where, lambda connection: schema_version(connection, self.where))
        return version or 0

    def history(self, name: str, /) -> tuple[SavedCursor, ...]:
        return self._query_name(name, lambda connection, row: (*read_history(connection, row.id), row.saved))

    def dead_letters(self, name: str, /, *, after: DeadLetter | None = None) -> list[DeadLetter]:
        key = None if after is None else after.dedupe_key
        return self._query_name(name, lambda connection, row: StoredDeadLetters(connection, row.id).read_some(key))

    def dead_letter(self, name: str, key: str, /) -> DeadLetter | None:
        return self._query_name(name, lambda connection, row: StoredDeadLetters(connection, row.id).read_one(key))

    def find_dead_letters(self, name: str, text: str, /) -> tuple[list[str], bool]:
        def find(connection: sqlite3.Connection, row: ConsumerRow) -> list[str]:
            dead_letters = StoredDeadLetters(connection, row.id)
            if dead_letters.read_one(text) is not None:
                return [text]
            return dead_letters.keys_of_message(text, limit=MAX_FOUND + 1)

        keys = self._query_name(name, find)
        return keys[:MAX_FOUND], len(keys) > MAX_FOUND

    def _query_name(self, name: str, read: Callable[[sqlite3.Connection, ConsumerRow], _T]) -> _T:
        """Read data of one consumer in one transaction."""

        def look_up(connection: sqlite3.Connection) -> tuple[_T] | None:
            connection.execute("BEGIN")
            row = select_consumer(connection, name)
            return None if row is None else (read(connection, row),)  # a tuple: None means an unknown name

        found, _ = _query(self.where, look_up)
        if found is None:
            raise unknown_name(self.where, name)
        return found[0]


def select_progress(connection: sqlite3.Connection) -> tuple[ConsumerProgress, ...]:
    """Read the progress of each consumer, ordered by name."""
    rows = connection.execute(_SELECT_PROGRESS)
    names = [name for name, *_ in rows.description]
    values = [dict(zip(names, map(decode_text, row), strict=True)) for row in rows]
    return msgspec.convert(values, tuple[ConsumerProgress, ...])
