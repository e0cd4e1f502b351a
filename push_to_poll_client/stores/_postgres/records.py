"""Dedupe records of one consumer name in the database: found by key, written and dropped in segments.

A record has a digest of its key. The index is in the order of segments, so a page of random keys is written to
the part of the index that belongs to the newest segment, and an old segment is dropped without a search. A search
looks into each segment, so there are at most about ten.

Most commits are of keys that were just searched for and not found: their records are added without a search.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from push_to_poll_client._types import Record, Settlement
from push_to_poll_client.stores._postgres.connection import Connection, Database, Statement, execute
from push_to_poll_client.stores._postgres.errors import read_value
from push_to_poll_client.stores._postgres.notices import DIGEST_BYTES, digest_of
from push_to_poll_client.stores._retention import Retention, Segment, SegmentChanges, Segments

# Many digests are sent as one value, one after another: an array costs twice as much processor time here.
_FIND = f"""
    SELECT digest, segment, fingerprint FROM {{s}}.record
    WHERE consumer = %(consumer)s AND segment = ANY(%(segments)s) AND digest = ANY(ARRAY(
        SELECT substr(%(digests)b, {DIGEST_BYTES} * i + 1, {DIGEST_BYTES}) FROM generate_series(0, %(last)s) AS i
    ))
"""  # noqa: S608
_ADD_PLAIN = f"""
    INSERT INTO {{s}}.record(consumer, segment, digest)
    SELECT %(consumer)s, %(segment)s, substr(%(digests)b, {DIGEST_BYTES} * i + 1, {DIGEST_BYTES})
    FROM generate_series(0, %(last)s) AS i
"""  # noqa: S608
_ADD = """
    INSERT INTO {s}.record(consumer, segment, digest, state, fingerprint)
    SELECT %(consumer)s, %(segment)s, *
    FROM unnest(%(digests)b::bytea[], %(states)s::text[], %(fingerprints)s::bigint[])
"""
_REPLACE = """
    UPDATE {s}.record SET state = given.state, fingerprint = given.fingerprint
    FROM unnest(%(segments)s::bigint[], %(digests)b::bytea[], %(states)s::text[], %(fingerprints)s::bigint[])
        AS given(segment, digest, state, fingerprint)
    WHERE consumer = %(consumer)s AND record.segment = given.segment AND record.digest = given.digest
        AND (record.state, record.fingerprint) IS DISTINCT FROM (given.state, given.fingerprint)
"""
_MOVE_TIMES = """
    UPDATE {s}.segment SET first_at = first_at + %(step)s, last_at = last_at + %(step)s
    WHERE consumer = %(consumer)s
"""
_SAVE_SEGMENT = """
    INSERT INTO {s}.segment(consumer, number, size, first_at, last_at)
    VALUES (%(consumer)s, %(number)s, %(size)s, %(first_at)s, %(last_at)s)
    ON CONFLICT (consumer, number) DO UPDATE SET size = excluded.size, last_at = excluded.last_at
"""
# The rows of forgotten segments are deleted with their last records.
_SWEEP = """
    WITH swept AS (
        DELETE FROM {s}.record WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM {s}.record WHERE consumer = %(consumer)s AND segment < %(first)s LIMIT %(most)s
        )) RETURNING 1
    )
    DELETE FROM {s}.segment
    WHERE consumer = %(consumer)s AND number < %(first)s AND (SELECT count(*) FROM swept) < %(most)s
"""
_SEGMENTS = "SELECT number, size, first_at, last_at FROM {s}.segment WHERE consumer = %(consumer)s ORDER BY number"

_NEWEST = "SELECT max(segment) FROM {s}.record WHERE consumer = %(consumer)s"

_MAX_SEGMENTS = 8
"""Segments of the kept records. Each search looks into all of them."""

_SWEPT_AT_LEAST = 1_000
"""Forgotten records that each commit of records deletes, besides two for each record that it adds."""

_SAVE_SIZE_AFTER = 1.0
"""Seconds between two commits that save only the size of the newest segment, which handlers' transactions do not.
A next owner may count the records of so many seconds too few."""

_MAX_UNFOUND = 100_000
"""Digests kept in memory that a search did not find, and that are not committed yet: a few pages."""


class PostgresRetention(Retention, frozen=True):
    """Retention in few large segments."""

    @property
    def capacity(self) -> int:
        """Number of records that a segment takes. Without a number of kept records, only time ends a segment."""
        return 1 << 60 if self.count is None else max(1, self.count // _MAX_SEGMENTS)


class RecordPlan(NamedTuple):
    """What a commit writes, and what changes in memory after it."""

    statements: Sequence[Statement]
    segments: SegmentChanges
    first: int  # segments before this number are forgotten
    swept: int
    settled: Sequence[bytes]  # digests of the records that are not dead-lettered
    added: Sequence[str]  # keys of the new records


class Records:
    """The records of one name."""

    def __init__(
        self,
        database: Database,
        connection: Connection,
        consumer: int,
        retention: Retention,
        *,
        first: int,
        prunable_before: int,
    ) -> None:
        self._database = database
        self._consumer = consumer
        rows = connection.execute(database.sql(_SEGMENTS), {"consumer": consumer}, binary=True).fetchall()
        stored: list[Segment] = read_value("a segment", [(*row, "", "") for row in rows], list[Segment])
        live = [segment for segment in stored if segment.number >= first]
        # Also above records whose segment is missing: its row was deleted by hand.
        ((newest,),) = connection.execute(database.sql(_NEWEST), {"consumer": consumer}).fetchall()
        next_number = max([first, (newest or 0) + 1, *(segment.number + 1 for segment in stored)])
        self.segments = Segments(retention, live, next_number=next_number, prunable_before=prunable_before)
        self.first: int = first
        self._to_sweep = sum(segment.size + 1 for segment in stored if segment.number < first)
        self._unfound = dict[str, bytes]()
        self._settled = set[str]()  # keys of `apply_new` since `changes`: a search may have missed them
        self._saved = live[-1] if live else None  # the newest segment as it is in the database
        self._lock = threading.Lock()
        self.changes: int = 0  # counts commits with records, and resets

    def find(self, connection: Connection, digests: Sequence[bytes]) -> dict[bytes, tuple[int, int | None]]:
        """Return segment and fingerprint of each record that exists."""
        if not self.segments.live or not digests:
            return {}
        values = {
            "consumer": self._consumer,
            "segments": [segment.number for segment in self.segments.live],
            "digests": b"".join(sorted(digests)),
            "last": len(digests) - 1,
        }
        rows = execute(connection, self._database.sql(_FIND), values).fetchall()
        return {digest: (segment, fingerprint) for digest, segment, fingerprint in rows}

    def note_unfound(self, digests: Mapping[str, bytes], *, changes: int) -> None:
        """Keep in mind that these keys have no record, and their digests, so that their commit needs no search.

        Args:
            digests: Digest of each key.
            changes: Value of `changes` before the search. If it has changed, the keys may have been recorded.
        """
        with self._lock:
            if changes != self.changes:
                return
            if len(self._unfound) + len(digests) > _MAX_UNFOUND:
                self._unfound.clear()
            self._unfound.update((key, digest) for key, digest in digests.items() if key not in self._settled)

    def plan(
        self, connection: Connection, records: Sequence[Record], *, covers_cursor: bool, now: float
    ) -> RecordPlan:
        """Plan to add records or to replace them, and to drop old segments.

        Args:
            connection: Used to search for the records that may exist.
            records: Of two records with one key the last one counts.
            covers_cursor: True if the commit saves a cursor, so that all earlier records may be dropped later.
            now: Seconds since the epoch.
        """
        segments = self.segments
        prunable_before = segments.current(now).number if covers_cursor else segments.prunable_before
        unfound = self._unfound
        last = {unfound.get(record.key) or digest_of(record.key): record for record in records}
        to_search = [digest for digest, record in last.items() if record.key not in unfound]
        places = {digest: segment for digest, (segment, _) in self.find(connection, to_search).items()}
        statements: list[Statement] = []
        if places:
            values = {"segments": [*places.values()], **self._columns([*places], last)}
            statements.append((_REPLACE, values))
        new = added = [*last] if not places else [digest for digest in last if digest not in places]
        plain = all(map(_is_usual, records))
        written = []
        for segment, number in segments.allocate(len(new), now):
            taken, new = sorted(new[:number]), new[number:]
            place = {"consumer": self._consumer, "segment": segment.number}
            if plain:
                statements.append((_ADD_PLAIN, {**place, "digests": b"".join(taken), "last": number - 1}))
            else:
                statements.append((_ADD, {**place, **self._columns(taken, last)}))
            grown = segment._replace(size=segment.size + number, last_at=max(segment.last_at, now))
            written.append(grown)
        if not written and self._has_unsaved_size:
            values = {"consumer": self._consumer, **segments.live[-1]._asdict()}
            statements.append((_SAVE_SEGMENT, values))
        changes = segments.plan_changes(written, prunable_before=prunable_before, now=now)
        if changes.clock_step:
            statements.append((_MOVE_TIMES, {"consumer": self._consumer, "step": changes.clock_step}))
        statements += [(_SAVE_SEGMENT, {"consumer": self._consumer, **segment._asdict()}) for segment in written]
        first = changes.dropped[-1] + 1 if changes.dropped else self.first
        swept = 0
        if self._to_sweep > 0 and added:
            swept = 2 * len(added) + _SWEPT_AT_LEAST
            statements.append((_SWEEP, {"consumer": self._consumer, "first": self.first, "most": swept}))
        settled = [digest for digest, one in last.items() if one.state is not Settlement.DEAD_LETTERED]
        return RecordPlan(statements, changes, first, swept, settled, [last[digest].key for digest in added])

    def digests_of_new(self, records: Sequence[Record], now: float) -> list[bytes] | None:
        """Return the digests if all records need only be added to the newest segment, else None."""
        live = self.segments.live
        if not live or self._to_sweep > 0 or self.segments.current(now) is not live[-1]:
            return None
        if live[-1].size + len(records) > self.segments.capacity:
            return None
        digests = [self._unfound.get(record.key) for record in records if _is_usual(record)]
        found = [digest for digest in digests if digest is not None]
        return found if len({*found}) == len(records) else None

    def apply_new(self, records: Sequence[Record], now: float) -> None:
        """Count records that were added to the newest segment. The next `plan` saves its size."""
        self.segments.grow(len(records), now)
        with self._lock:
            for record in records:
                self._unfound.pop(record.key, None)
                self._settled.add(record.key)
            if len(self._settled) > _MAX_UNFOUND:
                self._outdate_searches()

    @property
    def may_save_later(self) -> bool:
        """True if there is a size to save, and the saved one is recent."""
        if self._saved is None or not self._has_unsaved_size:
            return False
        return self.segments.live[-1].last_at - self._saved.last_at < _SAVE_SIZE_AFTER

    @property
    def _has_unsaved_size(self) -> bool:
        return bool(self.segments.live) and self.segments.live[-1] != self._saved

    def _columns(self, digests: Sequence[bytes], records: Mapping[bytes, Record]) -> dict[str, Any]:
        given = [records[digest] for digest in digests]
        states = [None if one.state is Settlement.PROCESSED else one.state.value for one in given]
        fingerprints = [one.fingerprint for one in given]
        return {"consumer": self._consumer, "digests": digests, "states": states, "fingerprints": fingerprints}

    def apply(self, plan: RecordPlan) -> None:
        """Apply a plan after its commit."""
        self._to_sweep = max(0, self._to_sweep - plan.swept)  # a sweep may have found fewer
        if plan.first != self.first:
            dropped = {*plan.segments.dropped}
            self._to_sweep += sum(one.size + 1 for one in self.segments.live if one.number in dropped)
            self.first = plan.first
        self.segments.apply(plan.segments)
        self._saved = self.segments.live[-1] if self.segments.live else None
        with self._lock:
            self._outdate_searches()
            for key in plan.added:
                self._unfound.pop(key, None)

    def forget(self) -> None:
        """Forget all records, after this was committed."""
        self._to_sweep += sum(one.size + 1 for one in self.segments.live)
        self.segments.forget()
        self.first = self.segments.next_number
        with self._lock:
            self._outdate_searches()
            self._unfound.clear()

    def _outdate_searches(self) -> None:
        """Let the searches that are running note no key."""
        self.changes += 1
        self._settled.clear()


def _is_usual(record: Record) -> bool:
    return record.state is Settlement.PROCESSED and record.fingerprint is None
