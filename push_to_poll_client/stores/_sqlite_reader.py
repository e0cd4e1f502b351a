"""What does a store's file say to somebody who must not touch it?"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, TypeAlias, TypeVar

import msgspec

from push_to_poll_client._exceptions import StoreError
from push_to_poll_client._types import Cursor, DeadLetter, SavedCursor
from push_to_poll_client._validation import quoted
from push_to_poll_client.stores._owner_seen import owner_of
from push_to_poll_client.stores._sqlite_file import named_damage
from push_to_poll_client.stores._sqlite_guest import read_as_guest
from push_to_poll_client.stores._sqlite_letters import Letters, read_letters
from push_to_poll_client.stores._sqlite_place import read_history
from push_to_poll_client.stores._sqlite_text import restored, stored

__all__ = ["Progress", "StoreFile", "read_cursors", "read_dead_letter", "read_dead_letters", "read_store"]

_T = TypeVar("_T")

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
