"""The tables of a store's database, its migrations, and how strings are stored.

Any string may come from a feed, also one that UTF-8 and SQLite's JSON have no word for.

All that is this library's has one prefix, and what says that it is there, and of which version, is a table: the
numbers that SQLite has for it belong to the application, whose database this may be too. Nothing is written to a
database that is refused.
"""

import functools
import hashlib
import logging
import re
import sqlite3
from collections.abc import Sequence
from typing import Literal

import msgspec

from push_to_poll_client._exceptions import StoreError
from push_to_poll_client._validation import quoted

__all__ = [
    "MIGRATIONS",
    "Synchronous",
    "as_json",
    "damage_message",
    "decode_text",
    "encode_keys",
    "encode_text",
    "prepare",
    "schema_version",
    "warn_of_old_sqlite",
]


_LONGEST_KEY = 200
"""Characters. A longer key is kept as a digest: what spills out of its page of the index is slow to find."""

_DIGEST_PREFIX = "\x7f"
"""What the digest of a key begins with. A key that has it anywhere is kept as a digest too, so that no digest is
another key's spelling."""

_SPECIAL = re.compile(f"[\0{_DIGEST_PREFIX}\ud800-\udfff]")
"""What else makes a key be kept as a digest: SQLite's JSON ends a text at a NUL, and UTF-8 has no word for half a
surrogate pair, which JSON can spell."""


def encode_text(text: str) -> str | bytes:
    """Any string as SQLite can keep it: TEXT, or a BLOB, which equals no TEXT, when UTF-8 has no word for it."""
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair
        return text.encode("utf-8", "surrogatepass")
    return text


def decode_text(value: object) -> object:
    """The string that was stored. What is none (a number, NULL) is handed back, for its reader to refuse.

    Raises:
        UnicodeDecodeError: A BLOB that no string was stored as.
    """
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


def as_json(values: Sequence[object]) -> str:
    """An array, as one value for SQLite."""
    return msgspec.json.encode(values).decode()


def encode_keys(keys: Sequence[str]) -> Sequence[str]:
    """The keys as they stand in the file; looked at together first, for hardly a page has one that is special."""
    text = "".join(keys)
    plain = text.isascii() and "\0" not in text and _DIGEST_PREFIX not in text
    if plain and max(map(len, keys), default=0) <= _LONGEST_KEY:
        return keys
    return [_encode_key(key) for key in keys]


def _encode_key(key: str) -> str:
    if len(key) <= _LONGEST_KEY and not _SPECIAL.search(key):
        return key
    return _DIGEST_PREFIX + hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()


Synchronous = Literal["FULL", "NORMAL"]

_logger = logging.getLogger("push_to_poll_client")

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
)
"""The schema. Step n leads from version n to n + 1; a step that was released is never changed, only followed."""

_HAS_PREFIX = r"LIKE 'push\_to\_poll\_%' ESCAPE '\'"  # case does not count in names, nor here

_VERSION_TABLE = "push_to_poll_schema"

_COUNT_VERSION_TABLES = f"SELECT count(*) FROM sqlite_master WHERE name = '{_VERSION_TABLE}' COLLATE NOCASE"  # noqa: S608

# Virtual tables have no page of their own either (https://www.sqlite.org/schematab.html).
_IS_EXECUTABLE = "(type IN ('view', 'trigger') OR coalesce(rootpage, 0) = 0)"

_COUNT_EXECUTABLES = f"SELECT count(*) FROM sqlite_master WHERE {_IS_EXECUTABLE}"  # noqa: S608

_COUNT_OWN_EXECUTABLES = f"{_COUNT_EXECUTABLES} AND (name {_HAS_PREFIX} OR tbl_name {_HAS_PREFIX})"

_SIGNS_OF_APPLICATION = ("SELECT count(*) FROM sqlite_master", "PRAGMA application_id", "PRAGMA user_version")
"""Not 0 in a database that an application made."""

# By itself SQLite checkpoints every 4 MB and caches 2 MB. A page of random keys writes to the whole newest
# segment, some 0.5 MB, and takes another away: 1,000 messages among 200,000 take 12 ms with a cache of 2 MB, 3.7
# ms with 8 MB. With keys in order they take 1.1 ms. A checkpoint every 1,000, 2,000 or 4,000 pages is the same to
# both, and the longest commit takes 6 to 9 ms.
_CHECKPOINT_PAGES = 2_000
_CACHE_KIB = 8_000


def prepare(connection: sqlite3.Connection, path: str, *, synchronous: Synchronous, shared: bool = False) -> None:
    """Make a new connection ready: check whose database it is, migrate it, set how it writes.

    Args:
        connection: Open, in autocommit mode.
        path: For the message.
        synchronous: When a commit is on the disk; see `SQLiteStore`.
        shared: It is an application's database too: the tables of this library are added to whatever is there, and
            what runs is refused only where it touches them.

    Raises:
        StoreError: It is another application's, one of a newer version of this library, or not as it was made.
        sqlite3.Error: It cannot be read or written.
    """
    version = schema_version(connection, path, shared=shared)
    if not shared:
        _reject_if_found(connection, path, _COUNT_EXECUTABLES)
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    if version < len(MIGRATIONS):
        _migrate(connection, version)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")


def schema_version(connection: sqlite3.Connection, path: str, *, shared: bool = False) -> int:
    """The schema's version, 0 for a database without one. Nothing is written.

    Args:
        connection: Open.
        path: For the message.
        shared: It may be an application's that has none of this library's tables yet; otherwise only an empty
            database has version 0.

    Raises:
        StoreError: It is another application's, one of a newer version of this library, or not as it was made.
        sqlite3.Error: It cannot be read.
    """
    _reject_if_found(connection, path, _COUNT_OWN_EXECUTABLES)
    if _query_int(connection, _COUNT_VERSION_TABLES):
        return _read_version(connection, path)
    if not shared and any(_query_int(connection, query) for query in _SIGNS_OF_APPLICATION):
        raise StoreError(
            f"{path} is a database of another application; name another file, or open it with transactional=True "
            "if it is yours"
        )
    return 0


def _read_version(connection: sqlite3.Connection, path: str) -> int:
    rows = connection.execute(f"SELECT version FROM {_VERSION_TABLE} LIMIT 2").fetchall()  # noqa: S608
    if len(rows) != 1 or not isinstance(version := rows[0][0], int) or version < 1:
        raise StoreError(
            damage_message(path, f"what stands for the version of its schema is {quoted([*map(tuple, rows)])}")
        )
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path} was written by a newer push_to_poll_client: its schema has version {version}, this one knows "
            f"up to {len(MIGRATIONS)}; update the library, or name another file"
        )
    return version


def _reject_if_found(connection: sqlite3.Connection, path: str, query: str) -> None:
    """What runs when it is read or written may do so without end."""
    if _query_int(connection, query):
        raise StoreError(
            f"{path} has a view, a trigger or a virtual table, which would run when this library reads or writes; "
            "drop it, or put back a copy"
        )


def _query_int(connection: sqlite3.Connection, query: str) -> int:
    (number,) = connection.execute(query).fetchone()
    return int(number)


def damage_message(path: str, why: str) -> str:
    """The sentence for a store that only a copy can mend."""
    return f"{path} is damaged: {why}; put back a copy, or move it away to begin anew"


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    """All steps or none: whoever calls closes the connection on an error, which takes the transaction back."""
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
