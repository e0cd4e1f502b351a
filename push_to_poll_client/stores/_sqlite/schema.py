"""Tables of a store's database, their migrations, and the encoding of strings.

A feed may send any string, also one that SQLite cannot represent, so strings are encoded before they are stored;
`records.py` encodes keys, which go through SQLite's JSON. An application's database may be in UTF-16.

All tables of this library have one prefix, and one of them holds the version of the schema. SQLite's own numbers,
`application_id` and `user_version`, belong to the application, whose database this may be. Nothing is written to a
database that is rejected.
"""

import functools
import logging
import re
import sqlite3
import time
from typing import Literal

from push_to_poll_client._exceptions import StoreError
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._validation import quoted
from push_to_poll_client.stores._sqlite.errors import BUSY_TIMEOUT, damage_message

# Characters that TEXT cannot hold: halves of surrogate pairs, which JSON can spell but UTF-8 cannot encode, and
# the two that SQLite replaces by U+FFFD in a database in UTF-16.
NO_TEXT = "\ud800-\udfff\ufffe\uffff"

_BLOB_NEEDED = re.compile(f"[{NO_TEXT}]")


def encode_text(text: str | None) -> str | bytes | None:
    """Encode any string for SQLite: as TEXT, or if TEXT cannot hold it as a BLOB, which equals no TEXT."""
    if text is None or text.isascii() or not _BLOB_NEEDED.search(text):
        return text
    return text.encode("utf-8", "surrogatepass")


def decode_text(value: object) -> object:
    """Decode a stored string; return any other value unchanged, for the caller to reject."""
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


OLDEST_SQLITE = (3, 24, 0)
"""The first version with `INSERT ... ON CONFLICT(...) DO UPDATE`."""

Synchronous = Literal["FULL", "NORMAL"]

_logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE push_to_poll_consumer(
            id INTEGER PRIMARY KEY,
            name NOT NULL UNIQUE,
            feed NOT NULL,
            token INTEGER NOT NULL DEFAULT 0,   -- the fencing token of the last claim
            cursor,                             -- NULL is the inception
            at REAL NOT NULL,                   -- when it was saved; times are seconds since the epoch
            first INTEGER NOT NULL DEFAULT 1,   -- segments before this number are forgotten
            behind INTEGER NOT NULL DEFAULT 1   -- and before this one may be
        )
        """,
        # The range of its keys and the number of its records are known without reading them.
        """
        CREATE TABLE push_to_poll_segment(
            consumer INTEGER NOT NULL REFERENCES push_to_poll_consumer(id),
            number INTEGER NOT NULL,
            size INTEGER NOT NULL,
            first_at REAL NOT NULL,
            last_at REAL NOT NULL,
            low TEXT NOT NULL,
            high TEXT NOT NULL,
            PRIMARY KEY(consumer, number)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE push_to_poll_record(
            consumer INTEGER NOT NULL REFERENCES push_to_poll_consumer(id),
            segment INTEGER NOT NULL,
            key TEXT NOT NULL,
            state TEXT,                         -- NULL is processed
            fingerprint INTEGER,
            PRIMARY KEY(consumer, segment, key)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE push_to_poll_dead_letter(
            consumer INTEGER NOT NULL REFERENCES push_to_poll_consumer(id),
            key BLOB NOT NULL,                  -- UTF-8, in whose order they are read
            known_as TEXT NOT NULL,             -- the key as records have it
            marked INTEGER NOT NULL,
            id NOT NULL,
            attempts INTEGER NOT NULL,
            first_failed REAL NOT NULL,
            last_failed REAL NOT NULL,
            error NOT NULL,
            traceback NOT NULL,
            raw BLOB NOT NULL,
            UNIQUE(consumer, key),
            UNIQUE(consumer, known_as)
        )
        """,
        """
        CREATE TABLE push_to_poll_history(
            consumer INTEGER NOT NULL REFERENCES push_to_poll_consumer(id),
            slot INTEGER NOT NULL,              -- a ring
            number INTEGER NOT NULL,            -- counts up
            cursor,
            at REAL NOT NULL,
            PRIMARY KEY(consumer, slot)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE push_to_poll_state(
            consumer INTEGER NOT NULL REFERENCES push_to_poll_consumer(id),
            name NOT NULL,
            value NOT NULL,
            PRIMARY KEY(consumer, name)
        ) WITHOUT ROWID
        """,
    ),
    (
        # Whether a WAL belongs to the file: see `wal.py`.
        "CREATE TABLE push_to_poll_wal(id INTEGER PRIMARY KEY, mark BLOB NOT NULL)",
    ),
)
"""The schema. Step n leads from version n to n + 1. Never change a released step: add another one."""

_HAS_PREFIX = r"LIKE 'push\_to\_poll\_%' ESCAPE '\'"  # neither names nor LIKE distinguish case

_VERSION_TABLE = "push_to_poll_schema"

_COUNT_VERSION_TABLES = f"SELECT count(*) FROM sqlite_master WHERE name = '{_VERSION_TABLE}' COLLATE NOCASE"  # noqa: S608

# Virtual tables have no page of their own either (https://www.sqlite.org/schematab.html).
_IS_EXECUTABLE = "(type IN ('view', 'trigger') OR coalesce(rootpage, 0) = 0)"

_COUNT_EXECUTABLES = f"SELECT count(*) FROM sqlite_master WHERE {_IS_EXECUTABLE}"  # noqa: S608

_COUNT_OWN_EXECUTABLES = f"{_COUNT_EXECUTABLES} AND (name {_HAS_PREFIX} OR tbl_name {_HAS_PREFIX})"

_COUNT_HIDDEN_FUNCTIONS = """
    SELECT count(*) FROM sqlite_master WHERE name = 'json_each' COLLATE NOCASE AND type IN ('table', 'view')
"""
"""A table hides the function of SQLite that is used like a table. `json_extract` has no such use."""

_SIGNS_OF_APPLICATION = ("SELECT count(*) FROM sqlite_master", "PRAGMA application_id", "PRAGMA user_version")
"""At least one of them is not 0 in a database that an application made."""

# By itself SQLite caches 2 MB. A page of random keys writes to the whole newest segment, some 0.5 MB, and takes
# another away: 1,000 messages among 200,000 take 12 ms with a cache of 2 MB, 3.7 ms with 8 MB. With keys in order
# they take 1.1 ms.
_CACHE_KIB = 8_000

_WAL_PAUSE = 0.01  # seconds between two tries to change to WAL mode


def prepare(connection: sqlite3.Connection, path: str, *, synchronous: Synchronous, shared: bool = False) -> int:
    """Check which program made the database, migrate it, and set how the connection writes.

    Return the version that it had; 0 without tables.
    """
    # With `shared`, the database is an application's too. The tables of this library are added, and views,
    # triggers and virtual tables are rejected only if they touch these tables.
    version = schema_version(connection, path, shared=shared)
    if not shared:
        _reject_if_found(connection, path, _COUNT_EXECUTABLES)
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    if version < len(MIGRATIONS):
        _migrate(connection, version)
    if _use_wal(connection) != "wal":
        raise StoreError(f"{path} cannot be used: SQLite's WAL mode does not work there; use a local disk")
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # `Checkpoints` makes them
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    if shared:  # a handler cannot set this: in a transaction SQLite ignores it, without an error
        connection.execute("PRAGMA foreign_keys = ON")
    return version


def _use_wal(connection: sqlite3.Connection) -> str:
    """Change to WAL mode if it is another one, and return the mode then."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            # For this change SQLite does not wait by itself: an application may write just now.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
        time.sleep(_WAL_PAUSE)


def schema_version(connection: sqlite3.Connection, path: str, *, shared: bool = False) -> int:
    """Return the version of the schema, or 0 without one. Writes nothing."""
    _check_version(path)
    _reject_if_found(connection, path, _COUNT_OWN_EXECUTABLES)
    _check_json(connection, path)
    if _query_int(connection, _COUNT_VERSION_TABLES):
        return _read_version(connection, path)
    if not shared and any(_query_int(connection, query) for query in _SIGNS_OF_APPLICATION):
        raise StoreError(
            f"{path} is a database of another application; choose another file, or open it with "
            "transactional=True if it is yours"
        )
    return 0


def _check_version(path: str) -> None:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise StoreError(
            f"{path} cannot be used with SQLite {sqlite3.sqlite_version}; run Python with SQLite {oldest} or newer"
        )


def _check_json(connection: sqlite3.Connection, path: str) -> None:
    if _query_int(connection, _COUNT_HIDDEN_FUNCTIONS):
        raise StoreError(
            f"{path} has a table or view called json_each, which hides the function of SQLite that this library "
            "uses; rename it, or choose another file"
        )
    try:
        connection.execute("SELECT json_extract(value, '$') FROM json_each('[]')").fetchone()
    except sqlite3.OperationalError as error:
        if not str(error).startswith("no such "):
            raise
        raise StoreError(
            f"{path} cannot be used: SQLite {sqlite3.sqlite_version} was built without its JSON functions; run "
            "Python with SQLite 3.38 or newer, which always has them"
        ) from error


def _read_version(connection: sqlite3.Connection, path: str) -> int:
    rows = connection.execute(f"SELECT version FROM {_VERSION_TABLE} LIMIT 2").fetchall()  # noqa: S608
    if len(rows) != 1 or not isinstance(version := rows[0][0], int) or version < 1:
        raise StoreError(
            damage_message(path, f"the version of its schema is invalid: {quoted([*map(tuple, rows)])}")
        )
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path} was written by a newer push_to_poll_client: its schema has version {version}, this one knows "
            f"up to {len(MIGRATIONS)}; update the library, or choose another file"
        )
    return version


def _reject_if_found(connection: sqlite3.Connection, path: str, query: str) -> None:
    # A view or a trigger runs when this library reads or writes, and may run without end.
    if _query_int(connection, query):
        raise StoreError(
            f"{path} has a view, a trigger or a virtual table, which would run when this library reads or writes; "
            "drop it, or restore a copy"
        )


def _query_int(connection: sqlite3.Connection, query: str) -> int:
    (number,) = connection.execute(query).fetchone()
    return int(number)


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    """Run all missing steps or none; after an error the caller closes the connection."""
    connection.execute("BEGIN IMMEDIATE")
    if version == 0:
        connection.execute(f"CREATE TABLE {_VERSION_TABLE}(version INTEGER NOT NULL)")
        connection.execute(f"INSERT INTO {_VERSION_TABLE} VALUES (0)")  # noqa: S608
    for step in MIGRATIONS[version:]:
        for statement in step:
            connection.execute(statement)
    connection.execute(f"UPDATE {_VERSION_TABLE} SET version = ?", (len(MIGRATIONS),))  # noqa: S608
    connection.execute("COMMIT")


@functools.cache
def warn_of_old_sqlite(*, shared: bool) -> None:
    """Log, once per process, a version with the bug of https://www.sqlite.org/wal.html#walresetbug."""
    # In an application's database (`shared`) other connections may write. In all others the owner lock keeps them
    # out, and the bug does not matter.
    version = sqlite3.sqlite_version_info
    if version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45):
        return
    _logger.log(
        logging.WARNING if shared else logging.INFO,
        "SQLite %s can damage a file if two programs write to it at the same instant (fixed in 3.51.3, 3.50.7 and "
        "3.44.6). This cannot happen while only the consumer writes to its state file. Other programs must open "
        "the file read-only, or all of them need a fixed SQLite.",
        sqlite3.sqlite_version,
    )
