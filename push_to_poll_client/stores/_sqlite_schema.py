"""What is in a store's database, and is this one? Refuses what is no store of this library; migrates.

Nothing is written to a database that is refused.
"""

import functools
import logging
import sqlite3
from typing import Literal

from push_to_poll_client._exceptions import StoreError

__all__ = ["STEPS", "Synchronous", "damaged", "prepare", "version_of", "warn_of_old_sqlite"]

Synchronous = Literal["FULL", "NORMAL"]

_logger = logging.getLogger("push_to_poll_client")

_APPLICATION_ID = 0x50325043  # "P2PC"; a database of another application has another one, or 0

STEPS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE consumer(
            id INTEGER PRIMARY KEY,
            name NOT NULL UNIQUE,
            feed NOT NULL,
            token INTEGER NOT NULL DEFAULT 0,   -- the fencing token of the last claim
            cursor,                             -- NULL is the inception
            last INTEGER NOT NULL DEFAULT 0,    -- position of the newest record
            behind INTEGER NOT NULL DEFAULT 0,  -- records up to this position may be swept
            size INTEGER NOT NULL DEFAULT 0     -- number of records
        )
        """,
        # In the order of settling, so that sweeping takes a range off the front.
        """
        CREATE TABLE record(
            consumer INTEGER NOT NULL REFERENCES consumer(id),
            position INTEGER NOT NULL,
            key NOT NULL,
            state TEXT NOT NULL,
            at REAL NOT NULL,                   -- seconds since the epoch
            PRIMARY KEY(consumer, position)
        ) WITHOUT ROWID
        """,
        "CREATE UNIQUE INDEX record_by_key ON record(consumer, key)",
    ),
)
"""The schema. Step n leads from version n to n + 1; a step that was released is never changed, only followed."""

_RUNS = "SELECT count(*) FROM sqlite_master WHERE type IN ('view', 'trigger') OR coalesce(rootpage, 0) = 0"
"""What runs when it is read or written, without end if it likes. Virtual tables have no page of their own either
(https://www.sqlite.org/schematab.html)."""

# By itself SQLite checkpoints every 4 MB and caches 2 MB. Random keys dirty a page of the file each, which is
# written whole, and by the checkpoint once more: 1,000 messages with random keys among 200,000 take 26 ms with a
# checkpoint every 1,000 pages, 23 ms with 2,000, 21 ms with 4,000. But one of 4,000 takes 26 ms, in which nothing
# is committed, and half of that is enough to wait for. With keys in order 1,000 messages take 1.6 ms.
_CHECKPOINT_PAGES = 2_000
_CACHE_KIB = 8_000


def prepare(connection: sqlite3.Connection, path: str, *, synchronous: Synchronous) -> None:
    """Make a new connection ready: check whose database it is, migrate it, set how it writes.

    Args:
        connection: Open, in autocommit mode.
        path: For the message.
        synchronous: When a commit is on the disk; see `SQLiteStore`.

    Raises:
        StoreError: It is another application's, one of a newer version of this library, or not as it was made.
        sqlite3.Error: It cannot be read or written.
    """
    version = version_of(connection, path)
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    if version < len(STEPS):
        _migrate(connection, version)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")


def version_of(connection: sqlite3.Connection, path: str) -> int:
    """The schema's version, 0 for an empty file. Nothing is written.

    Args:
        connection: Open.
        path: For the message.

    Raises:
        StoreError: It is another application's, one of a newer version of this library, or not as it was made.
        sqlite3.Error: It cannot be read.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != _APPLICATION_ID and (application or version or tables):
        raise StoreError(f"{path} is a database of another application; name another file")
    if version < 0:
        raise StoreError(damaged(path, f"its schema has version {version}"))
    if version > len(STEPS):
        raise StoreError(
            f"{path} was written by a newer push_to_poll_client: its schema has version {version}, this one knows "
            f"up to {len(STEPS)}; update the library, or name another file"
        )
    (running,) = connection.execute(_RUNS).fetchone()
    if running:
        raise StoreError(
            f"{path} has a view, a trigger or a virtual table, which would run when this library reads or writes; "
            "drop it, or put back a copy"
        )
    return int(version)


def damaged(path: str, why: str) -> str:
    """The sentence for a store that only a copy can mend."""
    return f"{path} is damaged: {why}; put back a copy, or move it away to begin anew"


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    """All steps or none: whoever calls closes the connection on an error, which takes the transaction back."""
    connection.execute("BEGIN IMMEDIATE")
    for step in STEPS[version:]:
        for statement in step:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {len(STEPS)}")
    connection.execute("COMMIT")


@functools.cache
def warn_of_old_sqlite() -> None:
    """Say it once in a process. See https://www.sqlite.org/wal.html#walresetbug."""
    version = sqlite3.sqlite_version_info
    if version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45):
        return
    _logger.warning(
        "SQLite %s can damage a database to which two connections write or checkpoint at the same instant (fixed "
        "in 3.51.3, 3.50.7 and 3.44.6). SQLiteStore has one connection for each file and keeps other stores out: "
        "that is safe as long as no other program writes to the file. Open it elsewhere for reading only, or run "
        "Python with a newer SQLite.",
        sqlite3.sqlite_version,
    )
