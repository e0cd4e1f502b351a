"""History of a store in PostgreSQL, which triggers of the database itself write in the store's transactions.

It lacks what was rolled back. Changes of one consumer are in the order of their commits: each of them holds the
lock of the consumer's row until its transaction ends.
"""

from typing import NamedTuple

import psycopg
from psycopg.rows import class_row
from psycopg.sql import SQL, Identifier
from psycopg.types.numeric import IntLoader

from push_to_poll_client.stores._postgres.schema import prepare
from tests.chaos.chaos_bank import ACCOUNTS, DEPOSIT

STORE = "push_to_poll"
"""Schema of the store."""

TABLES = (
    "CREATE SCHEMA chaos",
    """
    CREATE TABLE chaos.change(
        number bigint GENERATED ALWAYS AS IDENTITY, consumer bigint, token bigint, owner bytea, commits bigint,
        cursor bytea, transaction xid8 DEFAULT pg_current_xact_id(), at timestamptz DEFAULT clock_timestamp(),
        writer text DEFAULT current_setting('application_name'))
    """,
    """
    CREATE TABLE chaos.recorded(
        consumer bigint, digest bytea, transaction xid8 DEFAULT pg_current_xact_id())
    """,
    """
    CREATE TABLE chaos.claim(
        number bigint GENERATED ALWAYS AS IDENTITY, consumer bigint, loser bytea, owner bytea,
        remaining float8, same_instance boolean, wanted boolean)
    """,
    # The application's own tables. A transfer that is done twice has two rows.
    "CREATE TABLE chaos.account(number int PRIMARY KEY, balance bigint NOT NULL)",
    "CREATE TABLE chaos.transfer(number bigint NOT NULL, transaction xid8 DEFAULT pg_current_xact_id())",
)

TRIGGERS = {
    "consumer AFTER INSERT OR UPDATE": """
        INSERT INTO chaos.change(consumer, token, owner, commits, cursor)
        VALUES (NEW.id, NEW.token, NEW.owner, NEW.commits, NEW.cursor)
    """,
    "record AFTER INSERT OR UPDATE": """
        INSERT INTO chaos.recorded(consumer, digest) VALUES (NEW.consumer, NEW.digest)
    """,
    # Only a change from one owner to another: a released lease has none.
    "lease AFTER UPDATE": """
        IF OLD.owner <> NEW.owner THEN
            INSERT INTO chaos.claim(consumer, loser, owner, remaining, same_instance, wanted)
            VALUES (NEW.consumer, OLD.owner, NEW.owner, extract(epoch FROM OLD.until - clock_timestamp()),
                    OLD.instance = NEW.instance, OLD.wanted);
        END IF
    """,
}


class Change(NamedTuple):
    """The row of a consumer after a change.

    Attributes:
        cursor: The saved cursor; None for the inception.
        writer: Application name of the connection: each process has its own.
    """

    consumer: int
    token: int
    owner: bytes | None
    commits: int
    cursor: bytes | None
    transaction: int
    writer: str


class Recorded(NamedTuple):
    """One dedupe record that was written."""

    consumer: int
    digest: bytes
    transaction: int


class Claim(NamedTuple):
    """A lease that went from one owner to another without a release.

    Attributes:
        remaining: Seconds that the lease of the loser still had, by the server's clock.
        same_instance: True if both owners have the same `instance`.
    """

    consumer: int
    loser: bytes
    owner: bytes
    remaining: float
    same_instance: bool


class Transfer(NamedTuple):
    """One effect of a handler in the store's database."""

    number: int
    transaction: int


class History(NamedTuple):
    """All that the database wrote down."""

    changes: list[Change]
    records: list[Recorded]
    claims: list[Claim]
    transfers: list[Transfer]
    balances: dict[int, int]


def prepare_database(conninfo):
    """Create the store's tables, the application's, and the triggers."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        prepare(connection, STORE, "the database of the test", migrate=True)
        for statement in TABLES:
            connection.execute(statement)
        accounts = [(number, DEPOSIT) for number in range(ACCOUNTS)]
        connection.cursor().executemany("INSERT INTO chaos.account VALUES (%s, %s)", accounts)
        for trigger, statement in TRIGGERS.items():
            table, when = trigger.split(" ", 1)
            body = f"BEGIN {statement}; RETURN NULL; END"
            connection.execute(
                f"CREATE FUNCTION chaos.note_{table}() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"
            )
            connection.execute(
                f"CREATE TRIGGER note {when} ON {STORE}.{table} FOR EACH ROW EXECUTE FUNCTION chaos.note_{table}()"
            )


def read_history(conninfo):
    """Return the history up to now."""
    with psycopg.connect(conninfo) as connection:

        def read(kind, table, order):
            names = [Identifier(name) for name in kind._fields]
            query = SQL("SELECT {} FROM chaos.{} ORDER BY {}").format(
                SQL(", ").join(names), Identifier(table), Identifier(order)
            )
            with connection.cursor(row_factory=class_row(kind)) as cursor:
                return cursor.execute(query).fetchall()

        # An xid8 as a number.
        connection.adapters.register_loader("xid8", IntLoader)
        return History(
            changes=read(Change, "change", "number"),
            records=read(Recorded, "recorded", "transaction"),
            claims=read(Claim, "claim", "number"),
            transfers=read(Transfer, "transfer", "number"),
            balances=dict(connection.execute("SELECT number, balance FROM chaos.account").fetchall()),
        )
