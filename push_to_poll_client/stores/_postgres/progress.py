"""Progress of a claimed name in the database: read it, and save it with each commit.

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

import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import psycopg

from push_to_poll_client._exceptions import CommitInDoubt, OwnershipLost
from push_to_poll_client._types import Cursor, DeadLetter, Record, SavedCursor
from push_to_poll_client.stores._names import ownership_lost
from push_to_poll_client.stores._postgres.connection import Connection, Database, Statement
from push_to_poll_client.stores._postgres.dead_letters import DeadLetters, decode_text, encode_text
from push_to_poll_client.stores._postgres.errors import FENCE, commit_error, describe_error, read_value
from push_to_poll_client.stores._postgres.lease import Lease
from push_to_poll_client.stores._postgres.notices import digest_of
from push_to_poll_client.stores._postgres.records import Records
from push_to_poll_client.stores._retention import MAX_HISTORY, Count, CursorState, Retention, Segments, Time

_HISTORY = "SELECT cursor, at FROM {s}.history WHERE consumer = %(consumer)s ORDER BY number DESC LIMIT %(most)s"
_STATE = "SELECT name, value FROM {s}.state WHERE consumer = %(consumer)s"
_REMEMBER = """
    INSERT INTO {s}.history(consumer, slot, number, cursor, at)
    SELECT %(consumer)s, number %% %(most)s, number, %(cursor)s, %(at)s
    FROM (SELECT coalesce(max(number), 0) + 1 AS number FROM {s}.history WHERE consumer = %(consumer)s) AS next
    ON CONFLICT (consumer, slot) DO UPDATE
    SET number = excluded.number, cursor = excluded.cursor, at = excluded.at
"""
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


class ConsumerRow(NamedTuple):
    """Row of a claimed name, in the order of `_CLAIM`."""

    id: int
    name: bytes
    feed: bytes
    token: Count
    owner: bytes
    commits: Count
    cursor: bytes | None
    at: Time
    first: Count
    behind: Count
    now: float


class Plan(NamedTuple):
    """Statements of a commit, and what to do in memory afterwards."""

    statements: Sequence[Statement]
    apply: Callable[[Connection | None], None]


class ClaimedName:
    """Progress of a claimed name. Its functions run in worker threads."""

    def __init__(
        self,
        database: Database,
        connection: Connection,
        row: ConsumerRow,
        *,
        retention: Retention,
        ends: float,
        clock: Callable[[], float],
    ) -> None:
        self.row: ConsumerRow = row
        self.name: str = decode_text(row.name)
        self.feed: str = decode_text(row.feed)
        self.token: int = row.token
        self.ends: float = ends  # of the lease, on the clock
        self._database = database
        self._sql = database.sql
        self._clock = clock
        self._commits = row.commits
        self._writing = threading.Lock()  # held from the plan of a commit until its answer
        self.lease: Lease  # set by the session
        self.conflicts: dict[str, int] = {}  # of handlers' transactions, by the key of their (first) message
        self.transactions: set[object] = set()  # of handlers, that are open now
        self._read_at = (self._clock(), row.now)
        self.records: Records = Records(
            database,
            connection,
            row.id,
            retention,
            first=row.first,
            prunable_before=row.behind,
        )
        self.segments: Segments = self.records.segments
        self._dead_letters = DeadLetters(database, row.id)
        self._dead_letter_index = self._dead_letters.read_index(connection)
        consumer = {"consumer": row.id, "most": MAX_HISTORY}
        history = connection.execute(self._sql(_HISTORY), consumer, binary=True).fetchall()
        state = connection.execute(self._sql(_STATE), consumer, binary=True).fetchall()
        self.cursor_state: CursorState = CursorState(
            SavedCursor(_decode_cursor(row.cursor), row.at),
            tuple(
                SavedCursor(_decode_cursor(cursor), at)
                for cursor, at in reversed(read_value("the history", history, list[tuple[bytes | None, Time]]))
            ),
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
        digests, changes = {key: digest_of(key) for key in keys}, self.records.changes
        if found := self._find([*digests.values()]):
            digests = {key: digest for key, digest in digests.items() if digest not in found}
        self.records.note_unfound(digests, changes=changes)
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
        if cursor is None and not (records or dead_letters or state) and self.records.may_save_later:
            self.check()
            return
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
            if (arguments := self._arguments_of_settle(records, now)) is not None:
                settle(arguments)
                self._apply_settle(records, now)
            else:
                plan = self._plan(connection, None, records)
                commit(plan.statements)
                plan.apply(None)

    async def settle_in_event_loop(
        self, records: Sequence[Record], settle: Callable[[str], Awaitable[None]]
    ) -> bool:
        """Do the usual case of `commit_with_effects` without a thread.

        Returns False, and has done nothing, if another commit is running, or the case is not the usual one.
        """
        if not self._writing.acquire(blocking=False):  # the event loop must not wait for a thread
            return False
        try:
            self.check()
            now = self.time()
            if (arguments := self._arguments_of_settle(records, now)) is None:
                return False
            try:
                await settle(arguments)
            except BaseException as error:
                if isinstance(error, CommitInDoubt | OwnershipLost) or not isinstance(error, Exception):
                    self.lease.end()  # before the next commit can begin
                raise
            self._apply_settle(records, now)
            return True
        finally:
            self._writing.release()

    def _arguments_of_settle(self, records: Sequence[Record], now: float) -> str | None:
        """Return the first arguments of the function `settle`; None if it is not enough for these records."""
        digests = self.records.digests_of_new(records, now)
        letters = self._dead_letter_index.digests
        if digests is None or letters is None or not letters.isdisjoint(digests):
            return None
        numbers = f"{self.row.id}, {self.token}, E'\\\\x{self.row.owner.hex()}', {self._commits}"
        return f"{numbers}, {self.segments.live[-1].number}, E'\\\\x{b''.join(digests).hex()}'"

    def _apply_settle(self, records: Sequence[Record], now: float) -> None:
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
        try:
            plan.apply(connection)
        except psycopg.Error as error:  # by a query behind the commit
            raise CommitInDoubt(
                f"{self._database.where}: failed after a commit: {describe_error(error)}"
            ) from error

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
