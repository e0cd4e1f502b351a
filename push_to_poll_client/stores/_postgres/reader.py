"""Read the tables of a store without owning a name. See `StoreReader`.

Each call is one read-only transaction, so what it returns belongs to one instant, and it works at a standby too.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import msgspec

from push_to_poll_client._exceptions import StoreError
from push_to_poll_client._types import DeadLetter, SavedCursor
from push_to_poll_client.stores._postgres.connection import Connection, Database
from push_to_poll_client.stores._postgres.dead_letters import DeadLetters, decode_text, encode_text
from push_to_poll_client.stores._postgres.notices import digest_of
from push_to_poll_client.stores._postgres.schema import prepare
from push_to_poll_client.stores.reader import (
    MAX_FOUND,
    ConsumerProgress,
    NameOwner,
    StoreSnapshot,
    unknown_name,
)

_T = TypeVar("_T")

_SELECT_PROGRESS = """
    SELECT known.id, known.name, known.feed, known.cursor, known.token,
        (
            SELECT coalesce(sum(size), 0)::bigint FROM {s}.segment
            WHERE consumer = known.id AND number >= known.first
        ) AS records,
        (SELECT count(*) FROM {s}.dead_letter WHERE consumer = known.id) AS dead_letters,
        (
            SELECT last_at FROM {s}.segment
            WHERE consumer = known.id AND number >= known.first ORDER BY number DESC LIMIT 1
        ) AS last_progress,
        CASE WHEN lease.owner IS NOT NULL AND lease.until > clock_timestamp() THEN lease.instance END AS instance,
        extract(epoch FROM lease.until - clock_timestamp())::float8 AS seconds_left,
        lease.wanted
    FROM {s}.consumer AS known LEFT JOIN {s}.lease ON lease.consumer = known.id
    ORDER BY known.name
"""

_SELECT_STATE = "SELECT consumer, name, value FROM {s}.state WHERE name = 'attempts' OR name = 'gap'"

_SELECT_SIZE = """
    SELECT coalesce(sum(pg_total_relation_size(class.oid)), 0)::bigint,
        extract(epoch FROM clock_timestamp())::float8
    FROM pg_catalog.pg_class AS class JOIN pg_catalog.pg_namespace AS space ON space.oid = class.relnamespace
    WHERE space.nspname = %(schema)s AND class.relkind = 'r'
"""

_SELECT_CONSUMER = "SELECT id, cursor, at FROM {s}.consumer WHERE digest = %(digest)s"

_HISTORY = "SELECT cursor, at FROM {s}.history WHERE consumer = %(consumer)s ORDER BY number"

_KEYS_OF_MESSAGE = """
    SELECT key FROM {s}.dead_letter WHERE consumer = %(consumer)s AND id = %(id)s
    ORDER BY substr(key, 1, 1000), key LIMIT %(limit)s
"""


class _Gap(msgspec.Struct):
    what: str
    at: float


class _Name(NamedTuple):
    """Row of a consumer name."""

    id: int
    cursor: str | None
    at: float


class PostgresReader:
    """Reads the tables of a `PostgresStore`, also while consumers use it. See `StoreReader`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.where: str = database.where

    def snapshot(self) -> StoreSnapshot:
        with self._reading() as connection:
            sql = self._database.sql
            rows = connection.execute(sql(_SELECT_PROGRESS), binary=True).fetchall()
            states: dict[int, dict[str, bytes]] = {}
            for consumer, name, value in connection.execute(sql(_SELECT_STATE)):
                states.setdefault(consumer, {})[decode_text(name)] = value
            size, now = connection.execute(
                _SELECT_SIZE, {"schema": self._database.schema}, binary=True
            ).fetchone() or (0, 0.0)
            progress = tuple(_progress(row, states.get(row[0], {})) for row in rows)
            return StoreSnapshot(self.where, size, now, progress, tuple(map(_owner, rows)))

    def history(self, name: str, /) -> tuple[SavedCursor, ...]:
        def read(connection: Connection, found: _Name) -> tuple[SavedCursor, ...]:
            rows = connection.execute(self._database.sql(_HISTORY), {"consumer": found.id}, binary=True).fetchall()
            older = (SavedCursor(None if cursor is None else decode_text(cursor), at) for cursor, at in rows)
            return (*older, SavedCursor(found.cursor, found.at))

        return self._read(name, read)

    def dead_letters(self, name: str, /, *, after: DeadLetter | None = None) -> Sequence[DeadLetter]:
        key = None if after is None else after.dedupe_key

        def read(connection: Connection, found: _Name) -> Sequence[DeadLetter]:
            return DeadLetters(self._database, found.id).read_some(connection, key, retry_requested=False)

        return self._read(name, read)

    def dead_letter(self, name: str, key: str, /) -> DeadLetter | None:
        return self._read(
            name, lambda connection, found: DeadLetters(self._database, found.id).read_one(connection, key)
        )

    def find_dead_letters(self, name: str, text: str, /) -> tuple[list[str], bool]:
        def read(connection: Connection, found: _Name) -> list[str]:
            if DeadLetters(self._database, found.id).read_one(connection, text) is not None:
                return [text]
            values = {"consumer": found.id, "id": encode_text(text), "limit": MAX_FOUND + 1}
            rows = connection.execute(self._database.sql(_KEYS_OF_MESSAGE), values)
            return [decode_text(key) for (key,) in rows]

        keys = self._read(name, read)
        return keys[:MAX_FOUND], len(keys) > MAX_FOUND

    def _read(self, name: str, read: Callable[[Connection, _Name], _T]) -> _T:
        """Read data of one consumer in one transaction."""
        with self._reading() as connection:
            values = {"digest": digest_of(name)}
            row = connection.execute(self._database.sql(_SELECT_CONSUMER), values, binary=True).fetchone()
            if row is None:
                raise unknown_name(self.where, name)
            consumer, cursor, at = row
            return read(connection, _Name(consumer, None if cursor is None else decode_text(cursor), at))

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """Use a connection in a transaction that only reads, and check the version of the tables."""
        with self._database.connection() as connection, _stored_values(self.where):
            self._database.begin(connection, "REPEATABLE READ READ ONLY")
            prepare(connection, self._database.schema, self.where, migrate=False)
            yield connection
            connection.execute("COMMIT")


@contextmanager
def _stored_values(where: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise StoreError(
            f"{where}: the tables contain a value that this library does not write; restore a backup"
        ) from error


def _progress(row: Sequence[Any], state: Mapping[str, bytes]) -> ConsumerProgress:
    _, name, feed, cursor, token, records, dead_letters, last_progress, *_ = row
    attempts = _decode_state(state.get("attempts", b"{}"), dict[str, Any])
    gap = _decode_state(state["gap"], _Gap) if "gap" in state else None
    values = {
        "name": decode_text(name),
        "feed": decode_text(feed),
        "cursor": None if cursor is None else decode_text(cursor),
        "records": records,
        "dead_letters": dead_letters,
        "failing": len(attempts),
        "fencing_token": token,
        "gap": None if gap is None else gap.what,
        "gap_at": None if gap is None else gap.at,
        "last_progress": last_progress,
    }
    return msgspec.convert(values, ConsumerProgress)


def _decode_state(stored: bytes, kind: type[_T]) -> _T:
    # Not with msgspec, which rejects half a surrogate pair in a key.
    return msgspec.convert(json.loads(decode_text(stored)), kind)


def _owner(row: Sequence[Any]) -> NameOwner:
    _, name, _, _, token, *_, instance, seconds_left, wanted = row
    if instance is None:
        return NameOwner(decode_text(name), None, seconds_left=None, wanted=False, fencing_token=token)
    return NameOwner(
        decode_text(name), decode_text(instance), seconds_left=seconds_left, wanted=wanted, fencing_token=token
    )
