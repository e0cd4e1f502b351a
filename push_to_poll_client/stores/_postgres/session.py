"""Consumer names in the database: claim one, save its progress, release it, and bind it to another feed.

Every commit is one round trip: BEGIN, the changes, the comparison of the owner, COMMIT. The comparison is last,
because it locks the row of the consumer, which the next owner needs. If it fails, the server raises an error, and
so skips the COMMIT that has been sent behind it. It compares three numbers:

- `token`, which grows with each claim;
- `owner`, random bytes of the claim: after a fail-over that lost the newest claim, the same token is given again;
- `commits`, which grows with each commit: after a fail-over that lost a commit, this owner knows more than the
  server, and would skip what it lost.

What is in memory changes only after the server has answered. If it has not, the commit is in doubt: this owner
claims the name again, which makes a late commit fail, and reads everything anew.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar
from weakref import finalize

import anyio
import psycopg

from push_to_poll_client._exceptions import CommitInDoubt, OwnershipLost, StoreBusy, StoreError, StoreUnavailable
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._types import Cursor, DeadLetter, Push, Record, SavedCursor
from push_to_poll_client._validation import describe, quoted
from push_to_poll_client.stores._names import (
    MAX_OTHERS_SHOWN,
    ClaimedSession,
    Rebind,
    bound_elsewhere,
    log_new_name,
    name_in_use,
    ownership_lost,
)
from push_to_poll_client.stores._postgres.connection import Connection, Database
from push_to_poll_client.stores._postgres.dead_letters import DeadLetters, decode_text, encode_text
from push_to_poll_client.stores._postgres.errors import FENCE, commit_error
from push_to_poll_client.stores._postgres.housekeeping import Housekeeping, free_name
from push_to_poll_client.stores._postgres.lease import Lease, lease_end
from push_to_poll_client.stores._postgres.notices import digest_of
from push_to_poll_client.stores._postgres.records import Records, Statement
from push_to_poll_client.stores._retention import MAX_HISTORY, CursorState, Retention, Segments

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
_HISTORY = "SELECT cursor, at FROM {s}.history WHERE consumer = %(consumer)s ORDER BY number"
_STATE = "SELECT name, value FROM {s}.state WHERE consumer = %(consumer)s"
_REMEMBER = """
    INSERT INTO {s}.history(consumer, slot, number, cursor, at)
    SELECT %(consumer)s, number % %(most)s, number, %(cursor)s, %(at)s
    FROM (SELECT coalesce(max(number), 0) + 1 AS number FROM {s}.history WHERE consumer = %(consumer)s) AS next
    ON CONFLICT (consumer, slot) DO UPDATE
    SET number = excluded.number, cursor = excluded.cursor, at = excluded.at
""".replace("number % %", "number %% %")
_FORGET_HISTORY = "DELETE FROM {s}.history WHERE consumer = %(consumer)s"
_SET_STATE = """
    INSERT INTO {s}.state(consumer, digest, name, value) VALUES (%(consumer)s, %(digest)s, %(name)s, %(value)s)
    ON CONFLICT (consumer, digest) DO UPDATE SET value = excluded.value
"""
_UNSET_STATE = "DELETE FROM {s}.state WHERE consumer = %(consumer)s AND digest = %(digest)s"
_SAVE = f"""
    WITH saved AS (
        UPDATE {{s}}.consumer SET commits = commits + 1, cursor = %(cursor)b, at = %(at)s, first = %(first)s,
            behind = %(behind)s
        WHERE id = %(consumer)s AND token = %(token)s AND owner = %(owner)s AND commits = %(commits)s RETURNING 1
    )
    SELECT CASE WHEN count(*) = 1 THEN 1 ELSE ('{FENCE}, rows: ' || count(*))::int END FROM saved
"""  # noqa: S608
"""The last statement of each commit. Not to be one row is an error: the text is no number."""

_RELEASE_TIMEOUT = 3.0
"""Seconds. A consumer that stops does not wait longer for a server that does not answer."""

_T = TypeVar("_T")


class ConsumerRow(NamedTuple):
    """Row of a claimed name, in the order of `_CLAIM`."""

    id: int
    name: bytes
    feed: bytes
    token: int
    owner: bytes
    commits: int
    cursor: bytes | None
    at: float
    first: int
    behind: int
    now: float


class Claimant(NamedTuple):
    """What all claims of a store object have in common."""

    database: Database
    retention: Retention
    lease: float
    instance: str
    takes_back: bool
    clock: Callable[[], float]
    connections: Callable[[], Any] | None  # of the application, for transactions of handlers

    def claim(self, name: str, feed: str) -> "ClaimedName":
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

    def claim_again(self, claimed: "ClaimedName") -> "ClaimedName":
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

    def seconds_left(self, name: str) -> float | None:
        """Return the seconds until the lease of a name ends; None if the name is free."""
        with self.database.connection() as connection:
            row = connection.execute(self.database.sql(_LOOK), {"digest": digest_of(name)}).fetchone()
        return row[4] if row is not None and row[3] else None

    def _read(self, connection: Connection, values: Any, feed: str, requested: float) -> "ClaimedName":
        row = connection.execute(self.database.sql(_CLAIM), values, binary=True).fetchone()
        if row is None:
            raise StoreUnavailable(f"{self.database.where}: the name was renamed just now; claim it again")
        claimed = ClaimedName(self, connection, ConsumerRow(*row), requested)
        if claimed.feed != feed:
            raise bound_elsewhere(self.database.where, claimed.name, bound_to=claimed.feed, feed=feed)
        if claimed.token == 1:
            most = {**values, "most": MAX_OTHERS_SHOWN + 1}
            others = connection.execute(self.database.sql(_OTHERS), most, binary=True).fetchall()
            shown = [(decode_text(name), same_feed) for name, same_feed in others]
            log_new_name(_logger, self.database.where, claimed.name, feed, shown)
        return claimed

    def _check_free(self, name: str, feed: str) -> None:
        with self.database.connection() as connection:
            look = connection.execute(self.database.sql(_LOOK), {"digest": digest_of(name)}, binary=True)
            row = look.fetchone()
        if row is None:
            return
        _, bound_to, instance, is_owned, seconds_left = row
        if decode_text(bound_to) != feed:
            raise bound_elsewhere(self.database.where, name, bound_to=decode_text(bound_to), feed=feed)
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


class Plan(NamedTuple):
    """Statements of a commit, and what to do in memory afterwards."""

    statements: Sequence[Statement]
    apply: Callable[[Connection | None], None]


class ClaimedName:
    """Progress of a claimed name. Its functions run in worker threads."""

    def __init__(self, claimant: Claimant, connection: Connection, row: ConsumerRow, requested: float) -> None:
        self.row: ConsumerRow = row
        self.name: str = decode_text(row.name)
        self.feed: str = decode_text(row.feed)
        self.token: int = row.token
        self.ends: float = lease_end(requested, claimant.lease)
        self._database = claimant.database
        self._sql = claimant.database.sql
        self._clock = claimant.clock
        self._commits = row.commits
        self._writing = threading.Lock()  # held from the plan of a commit until its answer
        self.lease: Lease  # set by the session
        self.conflicts: int = 0  # of transactions of handlers, in a row
        self._read_at = (self._clock(), row.now)
        self.records: Records = Records(
            claimant.database,
            connection,
            row.id,
            claimant.retention,
            first=row.first,
            prunable_before=row.behind,
        )
        self.segments: Segments = self.records.segments
        self._dead_letters = DeadLetters(claimant.database, row.id)
        self._dead_letter_index = self._dead_letters.read_index(connection)
        consumer = {"consumer": row.id}
        history = connection.execute(self._sql(_HISTORY), consumer, binary=True).fetchall()
        state = connection.execute(self._sql(_STATE), consumer, binary=True).fetchall()
        self.cursor_state: CursorState = CursorState(
            SavedCursor(_decode_cursor(row.cursor), row.at),
            tuple(SavedCursor(_decode_cursor(cursor), at) for cursor, at in history),
            MappingProxyType({decode_text(name): decode_text(value) for name, value in state}),
        )

    def time(self) -> float:
        """Return the server's time of day."""
        at, time_of_day = self._read_at
        return time_of_day + self._clock() - at

    @property
    def dead_letter_count(self) -> int:
        """Number of dead letters."""
        return self._dead_letter_index.total

    def unseen(self, keys: Sequence[str]) -> set[str]:
        """Return the keys without a record."""
        digests = {key: digest_of(key) for key in keys}
        if found := self._find([*digests.values()]):
            digests = {key: digest for key, digest in digests.items() if digest not in found}
        self.records.note_unfound(digests)
        return {*digests}

    def fingerprints(self, keys: Sequence[str]) -> Mapping[str, int]:
        """Return the fingerprint of each key whose record has one."""
        digests = {key: digest_of(key) for key in keys}
        found = self._find([*digests.values()])
        known = ((key, found[digest][1]) for key, digest in digests.items() if digest in found)
        return {key: fingerprint for key, fingerprint in known if fingerprint is not None}

    def _find(self, digests: Sequence[bytes]) -> Mapping[bytes, tuple[int, int | None]]:
        if not digests or not self.segments.live:
            return {}
        with self._database.connection() as connection:
            return self.records.find(connection, digests)

    def some_dead_letters(self, after: DeadLetter | None, *, retry_requested: bool) -> Sequence[DeadLetter]:
        """Read the next dead letters."""
        key = None if after is None else after.dedupe_key
        with self._database.connection() as connection:
            return self._dead_letters.read_some(connection, key, retry_requested=retry_requested)

    def dead_letter(self, key: str) -> DeadLetter | None:
        """Read the dead letter of a key."""
        with self._database.connection() as connection:
            return self._dead_letters.read_one(connection, key)

    def commit(
        self,
        cursor: Cursor | None,
        records: Sequence[Record],
        dead_letters: Sequence[DeadLetter],
        state: Mapping[str, str | None],
        read_at: float | None,
    ) -> None:
        """Save everything or nothing."""
        with self._database.connection() as connection, self._own_turn():
            self._write(connection, self._plan(connection, cursor, records, dead_letters, state, read_at))

    def commit_with_effects(
        self,
        connection: Connection,
        records: Sequence[Record],
        commit: Callable[[Sequence[Statement]], None],
        settle: Callable[[str], None],
    ) -> None:
        """Save records in the transaction of a handler.

        Args:
            connection: Used to search for records that may exist.
            records: Of the handler's messages.
            commit: Executes statements, and ends the transaction.
            settle: The same for the usual case. Gets the first arguments of the function `settle` in the schema.
        """
        with self._own_turn():
            now = self.time()
            digests = self.records.digests_of_new(records, now)
            letters = self._dead_letter_index.digests
            if digests is None or letters is None or not letters.isdisjoint(digests):
                plan = self._plan(connection, None, records)
                commit(plan.statements)
                plan.apply(None)
                return
            numbers = f"{self.row.id}, {self.token}, E'\\\\x{self.row.owner.hex()}', {self._commits}"
            settle(f"{numbers}, {self.segments.live[-1].number}, E'\\\\x{b''.join(digests).hex()}'")
            self._commits += 1
            self.records.apply_new(records, now)

    @contextmanager
    def _own_turn(self) -> Iterator[None]:
        """Write in this block. Commits of one name follow each other, since each counts the one before."""
        with self._writing:
            self.check()
            try:
                yield
            except (CommitInDoubt, OwnershipLost):
                self.lease.end()  # before the next commit can begin
                raise

    def check(self) -> None:
        """Raise `OwnershipLost` if the session has ended."""
        if self.lease.is_released:
            raise self.ownership_lost("was released or claimed again since this session began")
        if self.lease.is_over:
            raise self.ownership_lost("is not owned by this session any more, or a commit of it is in doubt")
        if self.lease.lost:
            raise self.ownership_lost("is not owned any more: the lease of this session has ended")

    def ownership_lost(self, why: str) -> OwnershipLost:
        """Build the error of a session that has ended."""
        return ownership_lost(self._database.where, self.name, why)

    def _plan(  # noqa: PLR0917  # as `commit`
        self,
        connection: Connection,
        cursor: Cursor | None,
        records: Sequence[Record],
        dead_letters: Sequence[DeadLetter] = (),
        state: Mapping[str, str | None] = MappingProxyType({}),
        read_at: float | None = None,
    ) -> Plan:
        """Plan a commit. The connection is used to search for records that may exist."""
        now, before = self.time(), self.cursor_state
        cursor_state = before.saving(cursor, now if read_at is None else read_at)
        of_records = self.records.plan(connection, records, covers_cursor=cursor is not None, now=now)
        of_letters, index = self._dead_letters.plan(self._dead_letter_index, of_records.settled, dead_letters)
        statements = [*of_records.statements, *of_letters, *self._state_statements(state)]
        if cursor_state.previous is not before.previous:
            statements.append((_REMEMBER, self._history_columns(before.saved)))
        behind = of_records.segments.prunable_before
        statements.append(self._save(cursor_state.saved, first=of_records.first, behind=behind))

        def apply(connection: Connection | None) -> None:
            self._commits += 1
            self.records.apply(of_records)
            self.cursor_state = cursor_state.changing(state)
            self._dead_letter_index = index
            if index.digests is None and of_letters and connection is not None:
                self._dead_letter_index = self._dead_letters.read_index(connection)

        return Plan(statements, apply)

    def reset(self, cursor: Cursor | None, *, forget: bool, state: Mapping[str, str | None]) -> None:
        """Continue from another place."""
        with self._database.connection() as connection, self._own_turn():
            now = self.time()
            saved, behind = SavedCursor(cursor, now), self.segments.current(now).number
            first = self.segments.next_number if forget else self.records.first

            def apply(_: Connection | None) -> None:
                self._commits += 1
                self.cursor_state = CursorState(saved, (), self.cursor_state.state).changing(state)
                self.segments.prunable_before = behind
                if forget:
                    self.records.forget()

            statements = [
                (_FORGET_HISTORY, {"consumer": self.row.id}),
                *self._state_statements(state),
                self._save(saved, first=first, behind=first if forget else behind),
            ]
            self._write(connection, Plan(statements, apply))

    def _write(self, connection: Connection, plan: Plan) -> None:
        try:
            with connection.pipeline():
                self._database.begin(connection)
                for statement, values in plan.statements:
                    connection.execute(self._sql(statement), values)
                connection.execute("COMMIT")
        except psycopg.Error as error:
            raise commit_error(self._database.where, error, connection, schema=self._database.schema) from error
        plan.apply(connection)

    def _save(self, saved: SavedCursor, *, first: int, behind: int) -> Statement:
        return _SAVE, {
            "consumer": self.row.id,
            "token": self.token,
            "owner": self.row.owner,
            "commits": self._commits,
            "cursor": None if saved.cursor is None else encode_text(saved.cursor),
            "at": saved.read_at,
            "first": first,
            "behind": behind,
        }

    def _history_columns(self, saved: SavedCursor) -> Mapping[str, Any]:
        cursor = None if saved.cursor is None else encode_text(saved.cursor)
        return {"consumer": self.row.id, "most": MAX_HISTORY, "cursor": cursor, "at": saved.read_at}

    def _state_statements(self, changes: Mapping[str, str | None]) -> Sequence[Statement]:
        statements: list[Statement] = []
        for name, value in changes.items():
            columns = {"consumer": self.row.id, "digest": digest_of(name), "name": encode_text(name)}
            if value is None:
                statements.append((_UNSET_STATE, columns))
            else:
                statements.append((_SET_STATE, {**columns, "value": encode_text(value)}))
        return statements


def _decode_cursor(stored: bytes | None) -> Cursor | None:
    return None if stored is None else decode_text(stored)


class PostgresSession(ClaimedSession):
    """A claimed name of a `PostgresStore`."""

    _progress: ClaimedName

    def __init__(self, claimant: Claimant, claimed: ClaimedName, housekeeping: Housekeeping) -> None:
        super().__init__(claimed)
        self.name: str = claimed.name
        self._claimant = claimant
        self._database = claimant.database
        self._housekeeping = housekeeping
        digest, owner = digest_of(claimed.name), claimed.row.owner
        self._lease = Lease(claimed.row.id, digest, owner, ends=claimed.ends, clock=claimant.clock)
        claimed.lease = self._lease
        self._process = os.getpid()
        finalize(self, _drop, self._lease, housekeeping).atexit = False  # first, because `add` can fail
        housekeeping.add(self._lease)

    @property
    def lost(self) -> bool:
        """True if the session has ended; see `LeasedSession.lost`."""
        return self._lease.lost

    @property
    def wanted(self) -> bool:
        """True if the owner is asked to hand over."""
        return self._lease.wanted

    def subscribe(self, *, changed: Callable[[], None], wake: Callable[[Push | None], None]) -> None:
        """Set the functions that the store calls; see `LeasedSession.subscribe`."""
        self._lease.changed, self._lease.wake = changed, wake
        if self.lost or self.wanted:  # since before this call
            changed()

    def time(self) -> float:
        """Return the server's time of day, in seconds since the epoch."""
        return self._progress.time()

    async def again(self) -> "PostgresSession":
        """Claim the name again after a commit in doubt; see `LeasedSession.again`."""
        self._check_process()
        if self._lease.is_released:
            self._progress.check()
        self._lease.is_over = True
        if self._claimant.clock() >= self._lease.ends:
            raise self._progress.ownership_lost("has been free since the lease of this session ended")
        claimed = await self._database.run(partial(self._claimant.claim_again, self._progress))
        self._forget()
        return type(self)(self._claimant, claimed, self._housekeeping)

    async def release(self) -> None:
        """Release the name. Never raises; a second call does nothing."""
        if self._lease.is_released or self._process != os.getpid():
            return
        self._forget()
        with anyio.CancelScope(shield=True):
            await self._database.run(self._free)

    def _forget(self) -> None:
        self._lease.is_released = self._lease.is_over = True
        self._lease.changed = self._lease.wake = None
        self._housekeeping.remove(self._lease)

    def _free(self) -> None:
        try:
            with self._database.connection(timeout=_RELEASE_TIMEOUT) as connection:
                free_name(self._database, connection, self._lease)
        except StoreError as error:
            _logger.info("the name was not released, its lease will end: %s", describe(error))

    async def _run(self, work: Callable[[], _T]) -> _T:
        self._check()
        return await self._database.run(work)

    def _check(self) -> None:
        self._check_process()
        self._progress.check()

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise self._progress.ownership_lost("belongs to the process that this one was forked from")


def _drop(lease: Lease, housekeeping: Housekeeping) -> None:
    # Python calls this from any thread, in the middle of anything, so it takes no lock.
    lease.is_over = lease.is_dropped = True
    housekeeping.ring()


_SELECT_TO_REBIND = """
    SELECT id, feed, coalesce(until > clock_timestamp(), false) FROM {s}.consumer
    LEFT JOIN {s}.lease ON consumer = id WHERE digest = %(digest)s FOR UPDATE OF consumer
"""
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
        id_, feed, is_owned = row
        if is_owned:
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
