"""Claim a consumer name in the database, read its progress, and bind it to another feed.

A claim writes two rows: the lease, by which one replica at a time owns the name, and the row of the consumer,
whose token makes every commit of a former owner fail.
"""

import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from push_to_poll_client._exceptions import StoreBusy, StoreUnavailable
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._validation import quoted
from push_to_poll_client.stores._names import (
    MAX_OTHERS_SHOWN,
    Rebind,
    bound_elsewhere,
    log_new_name,
    name_in_use,
    ownership_lost,
)
from push_to_poll_client.stores._postgres.connection import Connection, Database
from push_to_poll_client.stores._postgres.dead_letters import decode_text, encode_text
from push_to_poll_client.stores._postgres.errors import read_value
from push_to_poll_client.stores._postgres.lease import lease_end
from push_to_poll_client.stores._postgres.notices import digest_of
from push_to_poll_client.stores._postgres.progress import ClaimedName, ConsumerRow
from push_to_poll_client.stores._retention import Retention

_logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

_LOOK = """
    SELECT id, feed, instance, until > clock_timestamp(),
        extract(epoch FROM until - clock_timestamp())::float8
    FROM {s}.consumer LEFT JOIN {s}.lease ON consumer = id WHERE digest = %(digest)s
"""
"""Read who owns a name. The usual try of a replica that stands by writes nothing."""

_ADD_NAME = """
    INSERT INTO {s}.consumer(digest, name, feed, at)
    VALUES (%(digest)s, %(name)s, %(feed)s, extract(epoch FROM clock_timestamp())::float8)
    ON CONFLICT (digest) DO NOTHING
"""
_TAKE_LEASE = """
    INSERT INTO {s}.lease AS held(consumer, until, owner, instance, wanted)
    SELECT id, clock_timestamp() + make_interval(secs => %(lease)s), %(owner)s, %(instance)s, false
    FROM {s}.consumer WHERE digest = %(digest)s
    ON CONFLICT (consumer) DO UPDATE SET
        until = excluded.until, owner = excluded.owner, instance = excluded.instance, wanted = false
    WHERE held.until <= clock_timestamp() OR (%(takes_back)s AND held.instance = excluded.instance
        AND held.until <= clock_timestamp() + make_interval(secs => %(lease)s / 2))
"""
"""Take the lease if it has ended. A process restarted with the same `instance` waits for one missed heartbeat."""

_KEEP_LEASE = """
    UPDATE {s}.lease SET until = clock_timestamp() + make_interval(secs => %(lease)s)
    WHERE consumer = %(consumer)s AND owner = %(owner)s AND until > clock_timestamp()
"""
# The token is not compared: an earlier try may have been committed without an answer.
_CLAIM = """
    UPDATE {s}.consumer SET token = token + 1, owner = %(owner)s WHERE digest = %(digest)s
    RETURNING id, name, feed, token, owner, commits, cursor, at, first, behind,
        extract(epoch FROM clock_timestamp())::float8
"""
_OTHERS = """
    SELECT name, feed = %(feed)s FROM {s}.consumer WHERE digest != %(digest)s
    ORDER BY feed != %(feed)s, name LIMIT %(most)s
"""


class Claimant(NamedTuple):
    """What all claims of a store object have in common."""

    database: Database
    retention: Retention
    lease: float
    instance: str
    takes_back: bool
    clock: Callable[[], float]
    connections: Callable[[], Any] | None  # of the application, for transactions of handlers

    def claim(self, name: str, feed: str) -> ClaimedName:
        """Claim a name if its lease has ended."""
        owner, digest = os.urandom(16), digest_of(name)
        values = {
            "digest": digest,
            "name": encode_text(name),
            "feed": encode_text(feed),
            "owner": owner,
            "instance": encode_text(self.instance),
            "takes_back": self.takes_back,
            "lease": self.lease,
        }
        sql = self.database.sql
        self._check_free(name, feed)
        requested = self.clock()
        with self.database.transaction() as connection:
            connection.execute(sql(_ADD_NAME), values)
            if connection.execute(sql(_TAKE_LEASE), values).rowcount:
                return self._read(connection, values, feed, requested)
        self._check_free(name, feed)
        raise self._busy(name, None, None)  # it was released just now

    def claim_again(self, claimed: ClaimedName) -> ClaimedName:
        """Claim a name again for the same owner, who has not lost it."""
        values = {
            "digest": digest_of(claimed.name),
            "consumer": claimed.row.id,
            "owner": claimed.row.owner,
            "lease": self.lease,
        }
        requested = self.clock()
        with self.database.transaction() as connection:
            if connection.execute(self.database.sql(_KEEP_LEASE), values).rowcount:
                return self._read(connection, values, claimed.feed, requested)
        raise ownership_lost(self.database.where, claimed.name, "has been claimed by another owner")

    def busy_for(self, name: str) -> tuple[bytes, float] | None:
        """Return who owns a name, and the seconds until this replica may claim it; None if it is free."""
        with self.database.connection() as connection:
            look = connection.execute(self.database.sql(_LOOK), {"digest": digest_of(name)}, binary=True)
            row = look.fetchone()
        if row is None or not row[3]:
            return None
        instance, seconds_left = row[2], row[4]
        is_mine = self.takes_back and instance == encode_text(self.instance)
        return instance, seconds_left - self.lease / 2 if is_mine else seconds_left

    def _read(self, connection: Connection, values: Any, feed: str, requested: float) -> ClaimedName:
        row = connection.execute(self.database.sql(_CLAIM), values, binary=True).fetchone()
        if row is None:
            raise StoreUnavailable(f"{self.database.where}: the name was renamed just now; claim it again")
        claimed = ClaimedName(
            self.database,
            connection,
            read_value("the name", row, ConsumerRow),
            retention=self.retention,
            ends=lease_end(requested, self.lease),
            clock=self.clock,
        )
        if claimed.feed != feed:
            raise bound_elsewhere(self.database.where, claimed.name, bound_to=claimed.feed, feed=feed)
        if claimed.token == 1:
            most = {**values, "most": MAX_OTHERS_SHOWN + 1}
            others = connection.execute(self.database.sql(_OTHERS), most, binary=True).fetchall()
            shown = [(name.decode("utf-8", "replace"), same_feed) for name, same_feed in others]
            log_new_name(_logger, self.database.where, claimed.name, feed, shown)
        return claimed

    def _check_free(self, name: str, feed: str) -> None:
        with self.database.connection() as connection:
            look = connection.execute(self.database.sql(_LOOK), {"digest": digest_of(name)}, binary=True)
            row = look.fetchone()
            if row is None:
                return
            _, bound_to, instance, is_owned, seconds_left = row
            bound_to = decode_text(bound_to)
            if bound_to != feed:
                raise bound_elsewhere(self.database.where, name, bound_to=bound_to, feed=feed)
            is_mine = self.takes_back and instance == encode_text(self.instance) and seconds_left <= self.lease / 2
            if is_owned and not is_mine:
                raise self._busy(name, decode_text(instance), seconds_left)

    def _busy(self, name: str, owner: str | None, seconds_left: float | None) -> StoreBusy:
        who = "an owner" if owner is None else f"the owner {quoted(owner)}"
        how_long = "" if seconds_left is None else f", whose lease lasts {seconds_left:.1f} s unless renewed"
        return StoreBusy(
            f"{self.database.where}: the name {quoted(name)} has {who}{how_long}",
            owner=owner,
            seconds_left=seconds_left,
        )


_SELECT_TO_REBIND = "SELECT id, feed FROM {s}.consumer WHERE digest = %(digest)s FOR UPDATE"
# In a statement behind the lock of the consumer: a claim may have been committed while that waited.
_IS_OWNED = "SELECT FROM {s}.lease WHERE consumer = %(id)s AND until > clock_timestamp()"
_DELETE_RECORDS = "DELETE FROM {s}.record WHERE consumer = %(id)s"
_DELETE_NAME = "DELETE FROM {s}.consumer WHERE id = %(id)s"
_REBIND = """
    UPDATE {s}.consumer SET digest = %(digest)s, name = %(name)s, feed = %(feed)s, token = token + 1, owner = NULL
    WHERE id = %(id)s
"""


def rebind(database: Database, asked: Rebind) -> None:
    """See `SQLiteStore.rebind`."""
    sql = database.sql

    def select(connection: Connection, name: str) -> tuple[int, str] | None:
        row = connection.execute(sql(_SELECT_TO_REBIND), {"digest": digest_of(name)}, binary=True).fetchone()
        if row is None:
            return None
        id_, feed = row
        if connection.execute(sql(_IS_OWNED), {"id": id_}).fetchone() is not None:
            raise name_in_use(database.where, name)
        return id_, decode_text(feed)

    with database.transaction() as connection:
        found = select(connection, asked.name)
        if found is None:
            raise asked.unknown_name(database.where)
        id_, bound_to = found
        target = asked.target(bound_to)
        if target != asked.name and (other := select(connection, target)) is not None:
            asked.check_free(database.where, target)
            connection.execute(sql(_DELETE_RECORDS), {"id": other[0]})
            connection.execute(sql(_DELETE_NAME), {"id": other[0]})
        values = {
            "id": id_,
            "digest": digest_of(target),
            "name": encode_text(target),
            "feed": encode_text(bound_to if asked.feed is None else asked.feed),
        }
        connection.execute(sql(_REBIND), values)
