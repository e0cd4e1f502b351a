"""Requests to the owner of a name, which need no claim: retry or drop dead letters, hand over.

They only set marks in the tables, and a notice wakes the owner. The owner does the work, with its fencing token.
If no notice arrives, it finds the marks at its next poll or heartbeat.
"""

from collections.abc import Sequence

from push_to_poll_client.stores._postgres.connection import Connection, Database
from push_to_poll_client.stores._postgres.notices import Kind, Notice, digest_of
from push_to_poll_client.stores._postgres.schema import prepare
from push_to_poll_client.stores.reader import Request, unknown_name

_FIND = "SELECT id FROM {s}.consumer WHERE digest = %(name)s"

_MARK = """
    UPDATE {s}.dead_letter SET marked = true, dropped = %(dropped)s
    WHERE consumer = %(consumer)s AND (%(digests)b::bytea[] IS NULL OR digest = ANY(%(digests)b))
"""

_WANT = """
    UPDATE {s}.lease SET wanted = true
    WHERE consumer = %(consumer)s AND owner IS NOT NULL AND until > clock_timestamp()
    RETURNING instance
"""

_NOTIFY = "SELECT pg_notify(%(channel)s, %(payload)s)"


def request_dead_letters(database: Database, name: str, keys: Sequence[str] | None, what: Request) -> int:
    """Mark dead letters to be retried or dropped, and wake the owner of the name.

    Args:
        database: The tables.
        name: The consumer's name.
        keys: Dedupe keys of the dead letters; None means all. A key without a dead letter is ignored.
        what: "retry" or "drop".

    Returns:
        The number of marked dead letters.

    Raises:
        StoreError: The name does not exist, or the tables cannot be written.
    """
    if what not in {"retry", "drop"}:
        raise ValueError(f"what must be 'retry' or 'drop', got {what!r}")
    with database.transaction() as connection:
        values = {
            "consumer": _find(connection, database, name),
            "digests": None if keys is None else [digest_of(key) for key in keys],
            "dropped": what == "drop",
        }
        count = connection.execute(database.sql(_MARK), values).rowcount
    _notify(database, Notice(Kind.WAKE, digest_of(name)))
    return count


def request_hand_over(database: Database, name: str) -> str | None:
    """Ask the owner of a name to hand over. Return the text that names it; None if the name has no owner.

    Raises:
        StoreError: The name does not exist, or the tables cannot be written.
    """
    with database.transaction() as connection:
        values = {"consumer": _find(connection, database, name)}
        row = connection.execute(database.sql(_WANT), values).fetchone()
    if row is None:
        return None
    _notify(database, Notice(Kind.WANTED, digest_of(name)))
    return bytes(row[0]).decode("utf-8", "surrogatepass")


def _find(connection: Connection, database: Database, name: str) -> int:
    prepare(connection, database.schema, database.where, migrate=False)
    row = connection.execute(database.sql(_FIND), {"name": digest_of(name)}).fetchone()
    if row is None:
        raise unknown_name(database.where, name)
    return int(row[0])


def _notify(database: Database, notice: Notice) -> None:
    # A transaction of its own: notices of concurrent transactions wait for each other at their commits.
    with database.connection() as connection:
        connection.execute(_NOTIFY, {"channel": database.schema, "payload": notice.encode()})
