"""Dedupe records of one consumer name in the file: found by key, written and dropped in segments.

A search reads only the segments whose range of keys overlaps the keys of the page. For ids of equal length that
count up, or that begin with a time, these are one or two segments. For other ids they are many: then Bloom filters
tell which keys may be in which segments. The first use of the filters builds them, by reading all keys once.

A key has one record. Most commits are of keys that were just searched for and not found: their records are added
without another search. A commit of other keys searches for them first, and replaces the records where they are.

`encode_keys` prepares keys for the file and `encode_records` records. `Records` finds, writes and drops them.
"""

import hashlib
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from operator import attrgetter, itemgetter
from typing import NamedTuple, TypeAlias

import msgspec

from push_to_poll_client._types import Record, Settlement
from push_to_poll_client.stores._bloom import BloomFilters
from push_to_poll_client.stores._retention import Retention, Segment, SegmentChanges, Segments
from push_to_poll_client.stores._sqlite.schema import NO_TEXT
from push_to_poll_client.stores._sqlite.thread import check_cancelled

_LONGEST_KEY = 200
"""Characters. A longer key is stored as a digest: a key that spills out of its page of the index is slow."""

# Begins each digest. A key that contains this character is stored as a digest too, so no key equals a digest.
_DIGEST_PREFIX = "\x7f"

_SPECIAL = re.compile(f"[\0{_DIGEST_PREFIX}{NO_TEXT}]")
"""A key with one of these characters is stored as a digest. SQLite's JSON ends a text at a NUL."""


def as_json(values: Sequence[object]) -> str:
    """Encode a sequence as one value for SQLite's `json_each`."""
    return msgspec.json.encode(values).decode()


def encode_keys(keys: Sequence[str]) -> Sequence[str]:
    """Encode keys for the file: each unchanged or as a digest."""
    # Check all keys together first: almost no page has a key that needs a digest.
    text = "".join(keys)
    plain = text.isascii() and "\0" not in text and _DIGEST_PREFIX not in text
    if plain and max(map(len, keys), default=0) <= _LONGEST_KEY:
        return keys
    return [_encode_key(key) for key in keys]


def _encode_key(key: str) -> str:
    if len(key) <= _LONGEST_KEY and not _SPECIAL.search(key):
        return key
    return _DIGEST_PREFIX + hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()


# One statement for all keys, given as one JSON array: other threads run while SQLite works. With a statement for
# each key this thread would wait a thousand times for its next turn. It searches segment after segment, since keys
# that are stored together are found quickly.
_FIND = """
    SELECT record.key, segment, fingerprint FROM json_each(:segments) AS asked
    CROSS JOIN json_each(:keys) AS given
    CROSS JOIN push_to_poll_record AS record
    ON consumer = :consumer AND segment = asked.value AND record.key = given.value
"""

_MAX_UNFILTERED = 3
"""Segments that are searched without a filter. With more segments the filter is quicker."""

_MAX_LOOKUPS = 4_000
"""Keys times segments that a commit looks up without filters. Replaying one dead letter does not build them."""

_MAX_UNFOUND = 100_000
"""Keys kept in memory that a search did not find, and that are not committed yet: a few pages."""

_LOCAL_TRIES = 8
"""Tries to find a segment with many of the keys before all segments are searched."""

_Match: TypeAlias = tuple[int, int | None]  # segment and fingerprint of a record

_Matches: TypeAlias = dict[str, _Match]  # by key

_first_of = itemgetter(0)

# REPLACE, since an UPSERT takes 1.5 times as long. It deletes no other row: only the primary key is unique.
_ADD = """
    INSERT OR REPLACE INTO push_to_poll_record(consumer, segment, key, state, fingerprint)
    SELECT :consumer, :segment, json_extract(given.value, '$[0]'), json_extract(given.value, '$[1]'),
        json_extract(given.value, '$[2]')
    FROM json_each(:given) AS given
"""
_ADD_PLAIN = """
    INSERT OR REPLACE INTO push_to_poll_record(consumer, segment, key)
    SELECT :consumer, :segment, given.value FROM json_each(:given) AS given
"""
_REPLACE = """
    INSERT INTO push_to_poll_record(consumer, segment, key, state, fingerprint)
    SELECT :consumer, json_extract(given.value, '$[0]'), json_extract(given.value, '$[1]'),
        json_extract(given.value, '$[2]'), json_extract(given.value, '$[3]')
    FROM json_each(:given) AS given WHERE true ON CONFLICT(consumer, segment, key)
    DO UPDATE SET state = excluded.state, fingerprint = excluded.fingerprint
    WHERE state IS NOT excluded.state OR fingerprint IS NOT excluded.fingerprint
"""
_MOVE_TIMES = """
    UPDATE push_to_poll_segment SET first_at = first_at + :step, last_at = last_at + :step
    WHERE consumer = :consumer
"""
_SAVE_SEGMENT = """
    INSERT INTO push_to_poll_segment(consumer, number, size, first_at, last_at, low, high)
    VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT(consumer, number) DO UPDATE
    SET size = excluded.size, last_at = excluded.last_at, low = excluded.low, high = excluded.high
"""
_SELECT_SEGMENTS = """
    SELECT number, size, first_at, last_at, low, high FROM push_to_poll_segment WHERE consumer = ? ORDER BY number
"""

_key_of, _state_of, _fingerprint_of = attrgetter("key"), attrgetter("state"), attrgetter("fingerprint")


class EncodedRecords(NamedTuple):
    keys: Sequence[str]  # encoded, all different
    settled: Sequence[str]  # keys of the records that are not dead-lettered
    # State and fingerprint of each record; None if all are processed and have no fingerprint.
    details: Mapping[str, tuple[str | None, int | None]] | None


def encode_records(records: Sequence[Record]) -> EncodedRecords:
    """Prepare records for the file. Of two records with one key the last one counts."""
    # Check all records together first: almost no page has a record with a state or a fingerprint.
    keys = encode_keys(list(map(_key_of, records)))
    plain = list(map(_state_of, records)).count(Settlement.PROCESSED) == len(records)
    if plain and list(map(_fingerprint_of, records)).count(None) == len(records):
        keys = list(dict.fromkeys(keys))
        return EncodedRecords(keys, keys, None)
    last = dict(zip(keys, records, strict=True))
    settled = [key for key, record in last.items() if record.state is not Settlement.DEAD_LETTERED]
    details = {
        key: (None if record.state is Settlement.PROCESSED else record.state.value, record.fingerprint)
        for key, record in last.items()
    }
    return EncodedRecords(list(last), settled, details)


class RecordChanges(NamedTuple):
    """The changes of one commit, to be applied in memory after the commit."""

    segments: SegmentChanges
    keys: Sequence[tuple[int, Sequence[str]]]  # the new keys of each segment, by its number
    swept: int  # number of forgotten segments that the commit deletes from the file


class Records:
    """The records of one name. Only `are_new` and `expect_keys` may run outside the store's thread."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        consumer: int,
        retention: Retention,
        *,
        first: int,
        prunable_before: int,
    ) -> None:
        self._connection = connection
        self._consumer = consumer
        self._retention = retention
        stored = msgspec.convert(connection.execute(_SELECT_SEGMENTS, (consumer,)).fetchall(), list[Segment])
        live = [segment for segment in stored if segment.number >= first]
        next_number = max([first, *(segment.number + 1 for segment in stored)])
        # Changed by `apply` and `apply_reset`.
        self.segments = Segments(retention, live, next_number=next_number, prunable_before=prunable_before)
        self._forgotten = [segment.number for segment in stored if segment.number < first]  # still in the file
        self._highest_expected = ""  # highest key that a thread may have written
        self._unfound = set[str]()  # keys without a record; their commit needs no search
        self._filters: BloomFilters | None = None  # None before their first use
        self._last_found = 0  # segment of the last record found

    def are_new(self, keys: Sequence[str]) -> bool:
        """Return True if the key ranges show that none of these keys has a record."""
        if not keys:
            return True
        low, high = min(keys), max(keys)
        nearby = next(self.segments.overlapping(low, high), None)
        if low <= self._highest_expected or nearby is not None:
            return False
        self._note_unfound(keys)
        return True

    def expect_keys(self, keys: Sequence[str]) -> None:
        """Count these keys as recorded before a thread writes them: it may end after its caller is cancelled."""
        self._highest_expected = max(self._highest_expected, *keys) if keys else self._highest_expected

    def find(self, keys: Sequence[str]) -> set[str]:
        """Return the encoded keys that have a record."""
        found = self._find(keys, _MAX_UNFILTERED)
        self._note_unfound([key for key in keys if key not in found] if found else keys)
        return set(found)

    def _note_unfound(self, keys: Sequence[str]) -> None:
        if len(self._unfound) + len(keys) > _MAX_UNFOUND:
            self._unfound.clear()  # a later commit of these keys searches for them again
        self._unfound.update(keys)

    def fingerprints(self, keys: Sequence[str]) -> Mapping[str, int]:
        """Return the fingerprint of each of the encoded keys whose record has one."""
        found = self._find(keys, _MAX_UNFILTERED)
        return {key: fingerprint for key, (_, fingerprint) in found.items() if fingerprint is not None}

    def segments_of(self, records: EncodedRecords) -> Mapping[str, int]:
        """Return the segment of each record to replace. May take seconds: do not call it in a transaction."""
        if self._unfound.issuperset(records.keys):  # the usual case
            return {}
        keys = [key for key in records.keys if key not in self._unfound]
        most = _MAX_UNFILTERED if self._filters else max(_MAX_UNFILTERED, _MAX_LOOKUPS // len(keys))
        return {key: segment for key, (segment, _) in self._find(keys, most).items()}

    def _find(self, keys: Sequence[str], most: int) -> _Matches:
        """Find the record of each key; use a filter if the keys may be in more than `most` segments."""
        if not keys:
            return {}
        nearby = list(islice(self.segments.overlapping(min(keys), max(keys)), most + 1))
        if len(nearby) <= most:
            return self._find_in(nearby, keys)
        found: _Matches = {}
        for segments, candidates in self._get_filters().candidates(keys):
            found.update(self._find_in_many(segments, [key for key in candidates if key not in found]))
        return found

    def _find_in_many(self, segments: Sequence[int], keys: Sequence[str]) -> Iterator[tuple[str, _Match]]:
        """Search many segments for the keys; yield each key that has a record, with its match."""
        # A feed repeats messages in their old order. So most keys are in the segment of the last record found, or
        # in the next one.
        for _ in range(_LOCAL_TRIES):
            if not keys:
                return
            found = self._find_in([number for number in segments if 0 <= number - self._last_found <= 1], keys)
            yield from found.items()
            keys = [key for key in keys if key not in found]
            found = self._find_in(segments, keys[:1])
            yield from found.items()
            keys = keys[1:]
        yield from self._find_in(segments, keys).items()

    def _find_in(self, segments: Sequence[int], keys: Sequence[str]) -> _Matches:
        """Find the record of each key in these segments; `segments` begins with the newest."""
        if not segments or not keys:
            return {}
        parameters = {"consumer": self._consumer, "segments": as_json(segments[::-1]), "keys": as_json(keys)}
        rows = self._connection.execute(_FIND, parameters).fetchall()
        if rows:
            self._last_found = rows[-1][1]
        return {key: (segment, fingerprint) for key, segment, fingerprint in rows}

    def _get_filters(self) -> BloomFilters:
        if self._filters is not None:
            return self._filters
        filters = BloomFilters(expected=self.segments.size, max_records=self._retention.count)
        query = "SELECT key FROM push_to_poll_record WHERE consumer = ? AND segment = ?"
        for segment in self.segments.live:
            check_cancelled()  # ten million records take some seconds
            rows = self._connection.execute(query, (self._consumer, segment.number))
            filters.add(segment.number, list(map(_first_of, rows)))
        self._filters = filters
        return filters

    def write(
        self, records: EncodedRecords, replaced: Mapping[str, int], *, prunable_before: int, now: float
    ) -> RecordChanges:
        """Add records or replace them (`replaced` is from `segments_of`), and drop old segments."""
        keys, details, plain = records.keys, records.details or {}, records.details is None
        if replaced:
            known = [(replaced[key], key, *details.get(key, (None, None))) for key in keys if key in replaced]
            self._connection.execute(_REPLACE, {"consumer": self._consumer, "given": as_json(known)})
            keys = [key for key in keys if key not in replaced]
        written, added = [], []
        for segment, number in self.segments.allocate(len(keys), now):
            taken, keys = keys[:number], keys[number:]
            given = as_json(taken if plain else [(key, *details[key]) for key in taken])
            values = {"consumer": self._consumer, "segment": segment.number, "given": given}
            self._connection.execute(_ADD_PLAIN if plain else _ADD, values)
            written.append(segment.with_keys(taken, now))
            added.append((segment.number, taken))
        changes = self.segments.plan_changes(written, prunable_before=prunable_before, now=now)
        if changes.clock_step:
            self._connection.execute(_MOVE_TIMES, {"consumer": self._consumer, "step": changes.clock_step})
        for segment in written:
            self._connection.execute(_SAVE_SEGMENT, (self._consumer, *segment))
        if changes.dropped:
            self._forget_before(changes.dropped[-1] + 1)
        # Deleting takes time: each commit deletes one forgotten segment, and one more for each that it writes.
        swept = [*self._forgotten, *changes.dropped][: 1 + len(written)]
        for number in swept:
            for table, column in (("record", "segment"), ("segment", "number")):
                statement = f"DELETE FROM push_to_poll_{table} WHERE consumer = ? AND {column} = ?"  # noqa: S608
                self._connection.execute(statement, (self._consumer, number))
        return RecordChanges(changes, added, len(swept))

    def apply(self, changes: RecordChanges) -> None:
        """Apply the changes in memory after their commit."""
        if self._filters is not None:
            for number, keys in changes.keys:
                self._filters.add(number, keys)
            if changes.segments.dropped:
                self._filters.drop(changes.segments.dropped[-1] + 1)
        self.segments.apply(changes.segments)
        self._forgotten = [*self._forgotten, *changes.segments.dropped][changes.swept :]
        for _, keys in changes.keys:
            self._unfound.difference_update(keys)
        if not self._unfound:
            self._unfound.clear()  # frees its memory: 8 KiB after a page of 100 messages

    def forget_all(self) -> None:
        """Forget all records. Later commits delete them from the file, one segment each."""
        self._forget_before(self.segments.next_number)

    def apply_reset(self, prunable_before: int, *, forget: bool) -> None:
        """Apply a reset in memory after its commit. Segments before `prunable_before` may be dropped."""
        self.segments.prunable_before = prunable_before
        if forget:
            self._forgotten += [segment.number for segment in self.segments.live]
            self.segments.forget()
            self._filters = None

    def _forget_before(self, first: int) -> None:
        """Save that segments before this number are forgotten."""
        self._connection.execute(
            "UPDATE push_to_poll_consumer SET first = ? WHERE id = ?", (first, self._consumer)
        )
