"""Tables of a store in PostgreSQL, and their migrations.

All tables are in one schema, which belongs to the store. A feed may send any string, also with a NUL or half a
surrogate pair, which `text` cannot hold. So strings are `bytea` in UTF-8, and an index has a digest of them,
because an entry of an index has at most about 2,700 bytes.

The lease is a row of its own. Heartbeats change it, while a handler's transaction may use the row of the consumer.

During a rolling deployment two versions of this library use the same tables. Each step of the migrations names the
oldest version of the schema whose code can still write afterwards, and that code goes on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg

from push_to_poll_client._exceptions import StoreError
from push_to_poll_client.stores._postgres.errors import FENCE, describe_error
from push_to_poll_client.stores._postgres.notices import DIGEST_BYTES

TRANSACTION = "push_to_poll.transaction"
"""A setting that marks the transaction of a handler, and ends with it."""

ENDED = "push_to_poll: the handler has ended its transaction"
"""Part of the error that the server raises if the mark is missing."""

_BUSY_TABLE = "autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000"
"""Storage parameters of tables whose rows come and go, so that they stay flat."""


class Migration(NamedTuple):
    """A step from one version of the schema to the next."""

    statements: tuple[str, ...]
    oldest_writer: int  # the code for this version and all later ones can use the tables afterwards


MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        (
            """
            CREATE TABLE {s}.consumer(
                id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                digest bytea NOT NULL UNIQUE,       -- of the name
                name bytea NOT NULL,
                feed bytea NOT NULL,
                token bigint NOT NULL DEFAULT 0,    -- the fencing token of the last claim
                owner bytea,                        -- random bytes of the last claim
                commits bigint NOT NULL DEFAULT 0,  -- number of commits
                cursor bytea,                       -- NULL is the inception
                at float8 NOT NULL,                 -- when it was saved; times are seconds since the epoch
                first bigint NOT NULL DEFAULT 1,    -- segments before this number are forgotten
                behind bigint NOT NULL DEFAULT 1    -- and before this one may be
            ) WITH (fillfactor = 50)
            """,
            """
            CREATE TABLE {s}.lease(
                consumer bigint PRIMARY KEY REFERENCES {s}.consumer(id) ON DELETE CASCADE,
                until timestamptz NOT NULL,         -- the name is free afterwards
                owner bytea,                        -- NULL after a release
                instance bytea NOT NULL,            -- the text that names the owner for people
                wanted boolean NOT NULL             -- true if the owner is to hand over
            ) WITH (fillfactor = 50)
            """,
            """
            CREATE TABLE {s}.segment(
                consumer bigint NOT NULL REFERENCES {s}.consumer(id) ON DELETE CASCADE,
                number bigint NOT NULL,
                size bigint NOT NULL,               -- number of its records
                first_at float8 NOT NULL,
                last_at float8 NOT NULL,
                PRIMARY KEY(consumer, number)
            ) WITH (fillfactor = 50)
            """,
            # Without a foreign key, which would be checked for each record.
            f"""
            CREATE TABLE {{s}}.record(
                consumer bigint NOT NULL,
                segment bigint NOT NULL,
                digest bytea NOT NULL,              -- of the key
                state text,                         -- NULL is processed
                fingerprint bigint,
                PRIMARY KEY(consumer, segment, digest)
            ) WITH ({_BUSY_TABLE})
            """,
            """
            CREATE TABLE {s}.dead_letter(
                consumer bigint NOT NULL REFERENCES {s}.consumer(id) ON DELETE CASCADE,
                digest bytea NOT NULL,              -- of the key
                key bytea NOT NULL,
                marked boolean NOT NULL,            -- true if the owner is to retry or drop it
                dropped boolean NOT NULL,           -- true if it is to drop it
                id bytea NOT NULL,
                attempts bigint NOT NULL,
                first_failed float8 NOT NULL,
                last_failed float8 NOT NULL,
                error bytea NOT NULL,
                traceback bytea NOT NULL,
                raw bytea NOT NULL,
                PRIMARY KEY(consumer, digest)
            )
            """,
            # They are read in the order of their keys.
            "CREATE INDEX ON {s}.dead_letter(consumer, substr(key, 1, 1000))",
            "CREATE INDEX ON {s}.dead_letter(consumer, substr(key, 1, 1000)) WHERE marked",
            """
            CREATE TABLE {s}.history(
                consumer bigint NOT NULL REFERENCES {s}.consumer(id) ON DELETE CASCADE,
                slot int NOT NULL,                  -- a ring
                number bigint NOT NULL,             -- counts up
                cursor bytea,
                at float8 NOT NULL,
                PRIMARY KEY(consumer, slot)
            ) WITH (fillfactor = 50)
            """,
            # Adds records and compares the owner. If `in_transaction` is not NULL, it compares the mark too.
            f"""
            CREATE FUNCTION {{s}}.settle(
                in_consumer bigint, in_token bigint, in_owner bytea, in_commits bigint, in_segment bigint,
                in_digests bytea, in_transaction text
            ) RETURNS void LANGUAGE plpgsql AS $$
            BEGIN
                IF in_transaction IS NOT NULL
                    AND in_transaction IS DISTINCT FROM current_setting('{TRANSACTION}', true) THEN
                    RAISE EXCEPTION '{ENDED}';
                END IF;
                IF length(in_digests) = {DIGEST_BYTES} THEN
                    INSERT INTO {{s}}.record(consumer, segment, digest)
                    VALUES (in_consumer, in_segment, in_digests);
                ELSE
                    INSERT INTO {{s}}.record(consumer, segment, digest)
                    SELECT in_consumer, in_segment, substr(in_digests, {DIGEST_BYTES} * i + 1, {DIGEST_BYTES})
                    FROM generate_series(0, length(in_digests) / {DIGEST_BYTES} - 1) AS i;
                END IF;
                UPDATE {{s}}.consumer SET commits = commits + 1
                WHERE id = in_consumer AND token = in_token AND owner = in_owner AND commits = in_commits;
                IF NOT FOUND THEN
                    RAISE EXCEPTION '{FENCE}' USING ERRCODE = 'invalid_text_representation';
                END IF;
            END $$
            """,  # noqa: S608
            """
            CREATE TABLE {s}.state(
                consumer bigint NOT NULL REFERENCES {s}.consumer(id) ON DELETE CASCADE,
                digest bytea NOT NULL,              -- of the name
                name bytea NOT NULL,
                value bytea NOT NULL,
                PRIMARY KEY(consumer, digest)
            ) WITH (fillfactor = 50)
            """,
        ),
        oldest_writer=1,
    ),
)
"""The steps. Step n leads from version n to n + 1. Never change a released step: add another one."""

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('push_to_poll.' || %(schema)s, 0))"
"""One replica migrates at a time. The lock ends with the transaction, also behind PgBouncer."""

# Not with `to_regclass`, whose cache does not see what another replica has just made.
_EXISTS = """
    SELECT EXISTS(SELECT FROM pg_namespace WHERE nspname = %(schema)s), EXISTS(
        SELECT FROM pg_class JOIN pg_namespace ON relnamespace = pg_namespace.oid
        WHERE nspname = %(schema)s AND relname = 'version'
    )
"""


def check_version(connection: psycopg.Connection[Any], schema: str, where: str) -> int:
    """Return the version of the tables that this code can use, or 0 without tables. Writes nothing."""
    if not connection.execute(_EXISTS, {"schema": schema}).fetchone()[1]:  # type: ignore[index]
        return 0
    with _own_tables(where):
        rows = connection.execute(
            _sql("SELECT version, oldest_writer FROM {s}.version LIMIT 2", schema)
        ).fetchall()
    if len(rows) != 1 or not all(isinstance(number, int) and number >= 1 for number in rows[0]):
        raise StoreError(
            f"{where}: the table of its version must have one row of two numbers, and has {rows!r:.80}"
        )
    version, oldest_writer = rows[0]
    if oldest_writer > len(MIGRATIONS):
        raise StoreError(
            f"{where}: its tables have version {version}, which this version of push_to_poll_client cannot use; "
            "update the library"
        )
    return int(version)


def prepare(connection: psycopg.Connection[Any], schema: str, where: str, *, migrate: bool) -> None:
    """Check the tables; create or migrate them if `migrate` is true."""
    version = check_version(connection, schema, where)
    if version >= len(MIGRATIONS):
        return
    if not migrate:
        found = (
            "has no tables" if version == 0 else f"has tables of version {version}, and needs {len(MIGRATIONS)}"
        )
        raise StoreError(f"{where} {found}; run push-to-poll migrate, or create the store with migrate=True")
    migrate_tables(connection, schema, where)


def migrate_tables(connection: psycopg.Connection[Any], schema: str, where: str) -> tuple[int, int]:
    """Run all missing steps, or none. Return the version before and after."""
    with connection.transaction(), _own_tables(where):
        # With another level, which may be the default, this transaction would not see what it has waited for.
        connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        connection.execute(_LOCK, {"schema": schema})
        version = check_version(connection, schema, where)  # another replica may have been first
        if version == 0:
            if not connection.execute(_EXISTS, {"schema": schema}).fetchone()[0]:  # type: ignore[index]
                connection.execute(_sql("CREATE SCHEMA {s}", schema))
            connection.execute(
                _sql("CREATE TABLE {s}.version(version bigint NOT NULL, oldest_writer bigint NOT NULL)", schema)
            )
            connection.execute(_sql("INSERT INTO {s}.version VALUES (0, 0)", schema))
        for step in MIGRATIONS[version:]:
            for statement in step.statements:
                connection.execute(_sql(statement, schema))
        if version < len(MIGRATIONS):
            numbers = {"version": len(MIGRATIONS), "oldest": MIGRATIONS[-1].oldest_writer}
            connection.execute(
                _sql("UPDATE {s}.version SET version = %(version)s, oldest_writer = %(oldest)s", schema), numbers
            )
    return version, max(version, len(MIGRATIONS))


@contextmanager
def _own_tables(where: str) -> Iterator[None]:
    try:
        yield
    except (
        psycopg.errors.UndefinedColumn,
        psycopg.errors.DuplicateTable,
        psycopg.errors.DuplicateFunction,
    ) as error:
        raise StoreError(
            f"{where} has other tables with the same names: {describe_error(error)}; choose another schema"
        ) from error


def _sql(statement: str, schema: str) -> bytes:
    return statement.replace("{s}", f'"{schema}"').encode()
