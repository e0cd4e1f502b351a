"""The dedupe records of one consumer name in the file: found by key, written and dropped in segments.

Asked are the few segments whose keys lie around the page's: of ids that are counted up, or begin with a time,
these are one or two. Only when there are many, for the ids are random, a filter says which keys are looked for. It
is built when it is needed first, by reading all keys once.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from operator import attrgetter, itemgetter
from typing import Annotated, Any, NamedTuple, TypeAlias

import msgspec
from anyio.from_thread import check_cancelled

from push_to_poll_client._types import Record, RecordState
from push_to_poll_client.stores._bloom import BloomFilters
from push_to_poll_client.stores._retention import Retention, Segment, SegmentChanges, Segments
from push_to_poll_client.stores._sqlite.file import wrap_invalid_values
from push_to_poll_client.stores._sqlite.schema import as_json, encode_keys

__all__ = [
    "EncodedRecords",
    "RecordChanges",
    "RecordSearch",
    "Records",
    "encode_records",
]


# One statement for all keys, given as one JSON array: while it runs, other threads run too. Statement by statement
# the thread would wait for them a thousand times. Segment after segment, since what lies together is found
# quickly.
_FIND = """
    SELECT {} FROM json_each(:segments) AS asked
    CROSS JOIN json_each(:keys) AS given
    CROSS JOIN push_to_poll_record AS record
    ON consumer = :consumer AND segment = asked.value AND record.key = given.value
"""
_KEY = _FIND.format("record.key")
_ALL = _FIND.format("record.key, segment, fingerprint")

_MAX_UNFILTERED = 3
"""Segments that are asked without a filter: more, and the filter is quicker."""

_LOCAL_TRIES = 8
"""Times that a place is looked for where many keys lie together, before each is looked for everywhere."""

_Matches: TypeAlias = dict[str, tuple[int, int | None]]
"""For each key the segment of a record, and its fingerprint."""

_first_of = itemgetter(0)


class RecordSearch:
    """Finds the records of one name, in a worker thread.

    Args:
        connection: To the file.
        consumer: Its number in the file.
        segments: In which they are.
        retention: How many there may be.
    """

    def __init__(
        self, connection: sqlite3.Connection, consumer: int, segments: Segments, retention: Retention
    ) -> None:
        self._connection = connection
        self._consumer = consumer
        self._segments = segments
        self._retention = retention
        self._filters: BloomFilters | None = None
        self._last_found = 0

    def find(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys, as they stand in the file, that have a record."""
        near = self._nearby_segments(keys)
        if near is not None:
            return set(map(_first_of, self._query(_KEY, near, keys)))
        found = set[str]()
        for suspects in self._get_filters().candidates(keys):
            found.update(self._search(suspects.segments, [key for key in suspects.keys if key not in found]))
        return found

    def fingerprints(self, keys: Sequence[str]) -> Mapping[str, int]:
        """The fingerprint of each key's newest record, if it has one."""
        near = self._nearby_segments(keys)
        if near is not None:
            found = self._find_in(near, keys)
        else:
            found = {}
            for suspects in reversed(self._get_filters().candidates(keys)):
                found.update(self._find_in(suspects.segments, suspects.keys))
        return {key: fingerprint for key, (_, fingerprint) in found.items() if fingerprint is not None}

    def update(self, keys: Sequence[tuple[int, Sequence[str]]], *, dropped: Sequence[int]) -> None:
        """Know that these segments got these keys, and that others are gone."""
        if self._filters is None:
            return
        for number, some in keys:
            self._filters.add(number, some)
        if dropped:
            self._filters.drop(dropped[-1] + 1)

    def forget(self) -> None:
        """Know that there are none any more."""
        self._filters = None

    def _nearby_segments(self, keys: Sequence[str]) -> list[int] | None:
        """The segments that may have one of the keys; `None`: many."""
        if not keys:
            return []
        near = list(islice(self._segments.overlapping(min(keys), max(keys)), _MAX_UNFILTERED + 1))
        return near if len(near) <= _MAX_UNFILTERED else None

    def _search(self, segments: Sequence[int], keys: Sequence[str]) -> Iterator[str]:
        """Those of the keys that have a record in one of many segments.

        What is processed again comes in the order in which it came, so most lie where the last one was found.
        """
        for _ in range(_LOCAL_TRIES):
            if not keys:
                return
            found = self._find_in([number for number in segments if 0 <= number - self._last_found <= 1], keys)
            yield from found
            keys = [key for key in keys if key not in found]
            found = self._find_in(segments, keys[:1])
            yield from found
            keys = keys[1:]
        yield from self._find_in(segments, keys)

    def _find_in(self, segments: Sequence[int], keys: Sequence[str]) -> _Matches:
        """Those of the keys that have a record there, with the newest one. The segments are named newest first."""
        rows = self._query(_ALL, segments, keys)
        if rows:
            self._last_found = rows[-1][1]
        return {key: (segment, fingerprint) for key, segment, fingerprint in rows}

    def _query(self, query: str, segments: Sequence[int], keys: Sequence[str]) -> list[Any]:
        if not segments or not keys:
            return []
        asked = {"consumer": self._consumer, "segments": as_json(segments[::-1]), "keys": as_json(keys)}
        return self._connection.execute(query, asked).fetchall()

    def _get_filters(self) -> BloomFilters:
        if self._filters is None:
            self._filters = self._build_filters()
        return self._filters

    def _build_filters(self) -> BloomFilters:
        filters = BloomFilters(there=self._segments.size, most=self._retention.count)
        query = "SELECT key FROM push_to_poll_record WHERE consumer = ? AND segment = ?"
        for segment in self._segments.live:
            check_cancelled()  # ten million take some seconds
            rows = self._connection.execute(query, (self._consumer, segment.number))
            filters.add(segment.number, list(map(_first_of, rows)))
        return filters


_PLAIN_RECORDS = "given.value AS key, NULL AS state, NULL AS fingerprint FROM json_each(:given) AS given"
_DETAILED_RECORDS = """
    json_extract(given.value, '$[0]') AS key, json_extract(given.value, '$[1]') AS state,
    json_extract(given.value, '$[2]') AS fingerprint FROM json_each(:given) AS given
"""
_ADD = """
    INSERT INTO push_to_poll_record(consumer, segment, key, state, fingerprint)
    SELECT :consumer, :segment, {} WHERE true ON CONFLICT(consumer, segment, key) DO {}
"""
_REPLACE = "UPDATE SET state = excluded.state, fingerprint = excluded.fingerprint"
_SAVE_SEGMENT = """
    INSERT INTO push_to_poll_segment(consumer, number, size, first_at, last_at, low, high)
    VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT(consumer, number) DO UPDATE
    SET size = excluded.size, last_at = excluded.last_at, low = excluded.low, high = excluded.high
"""
_SELECT_SEGMENTS = """
    SELECT number, size, first_at, last_at, low, high FROM push_to_poll_segment WHERE consumer = ? ORDER BY number
"""

_key_of, _state_of, _fingerprint_of = attrgetter("key"), attrgetter("state"), attrgetter("fingerprint")

_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
_Time = Annotated[float, msgspec.Meta(ge=-(1 << 62), lt=1 << 62)]


class _SegmentRow(NamedTuple):
    number: _Count
    size: _Count
    first_at: _Time
    last_at: _Time
    low: str
    high: str


class EncodedRecords(NamedTuple):
    """Records that are to be written.

    Attributes:
        keys: As they stand in the file. All different, unless `details` is `None`.
        settled: Those of them that are not dead.
        others: State and fingerprint of each; `None`: all are processed, and have no fingerprint.
    """

    keys: Sequence[str]
    settled: Sequence[str]
    details: Sequence[tuple[str | None, int | None]] | None

    def deduplicated(self) -> "EncodedRecords":
        """The same with each key once, for those that are plain."""
        keys = list(dict.fromkeys(self.keys))
        return EncodedRecords(keys, keys, None)

    def encode_slice(self, start: int, stop: int) -> tuple[Sequence[str], str]:
        """The keys of some of them, and what SQLite is given."""
        keys = self.keys[start:stop]
        if self.details is None:
            return keys, as_json(keys)
        return keys, as_json([(key, *other) for key, other in zip(keys, self.details[start:stop], strict=True)])


def encode_records(records: Sequence[Record]) -> EncodedRecords:
    """The records as they are written. Looked at together first, for hardly a page has one that is special."""
    keys = encode_keys(list(map(_key_of, records)))
    plain = list(map(_state_of, records)).count(RecordState.PROCESSED) == len(records)
    if plain and list(map(_fingerprint_of, records)).count(None) == len(records):
        return EncodedRecords(keys, keys, None)
    last = dict(zip(keys, records, strict=True))  # within a commit the last one counts
    settled = [key for key, record in last.items() if record.state is not RecordState.DEAD]
    return EncodedRecords(list(last), settled, list(map(_state_and_fingerprint, last.values())))


def _state_and_fingerprint(record: Record) -> tuple[str | None, int | None]:
    return (None if record.state is RecordState.PROCESSED else record.state.value), record.fingerprint


class RecordChanges(NamedTuple):
    """What a commit did, to be taken over when it is made.

    Attributes:
        step: To the segments.
        keys: Which keys each segment got, by its number.
        swept: How many forgotten segments are gone.
    """

    segments: SegmentChanges
    keys: Sequence[tuple[int, Sequence[str]]]
    swept: int


class Records:
    """The records of one name. What writes runs in a worker thread, within a transaction of its caller.

    Args:
        connection: To the file.
        path: For errors.
        consumer: Its number in the file.
        retention: Which records go.
        first: Segments before this number are forgotten.
        behind: Those before this one may be.

    Attributes:
        search: Finds them.

    Raises:
        StoreError: The file holds what this library does not write.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: str,
        consumer: int,
        retention: Retention,
        *,
        first: int,
        behind: int,
    ) -> None:
        self._connection = connection
        self._consumer = consumer
        self._retention = retention
        with wrap_invalid_values(path):
            rows = msgspec.convert(connection.execute(_SELECT_SEGMENTS, (consumer,)).fetchall(), list[_SegmentRow])
        live = [Segment(*row) for row in rows if row.number >= first]
        following = max([first, *(row.number + 1 for row in rows)])
        self._segments = Segments(retention, live, following=following, behind=behind)
        self._forgotten = [row.number for row in rows if row.number < first]
        self._highest = max((segment.high for segment in live), default="")
        self.search = RecordSearch(connection, consumer, self._segments, retention)

    @property
    def size(self) -> int:
        """How many there are. One that was replaced in a later segment counts twice."""
        return self._segments.size

    def are_new(self, keys: Sequence[str]) -> bool:
        """Whether none can have a record, for each is above all that have."""
        return not keys or min(keys) > self._highest

    def expect_keys(self, keys: Sequence[str]) -> None:
        """These are about to be written, by a thread that may end when nobody waits for it any more."""
        self._highest = max(self._highest, *keys) if keys else self._highest

    def prunable_before(self, now: float, *, moves: bool) -> int:
        """The segments before this number may go.

        Args:
            now: Seconds since the epoch.
            moves: A cursor is saved with what is recorded now.
        """
        return self._segments.current(now).number if moves else self._segments.prunable_before

    def write(self, given: EncodedRecords, *, behind: int, now: float) -> RecordChanges:
        """Add them, replacing those whose key has one already, and take away what may go.

        Args:
            given: What to add.
            behind: The segments before this number may go.
            now: Seconds since the epoch.
        """
        shares = self._segments.allocate(len(given.keys), now)
        if len(shares) > 1 and given.details is None:  # else a key that comes twice may be in two of them
            given = given.deduplicated()
            shares = self._segments.allocate(len(given.keys), now)
        written, parts, start = [], [], 0
        for segment, number in shares:
            keys, values = given.encode_slice(start, start + number)
            written.append(self._add(segment, keys, values, plain=given.details is None, now=now))
            parts.append((segment.number, keys))
            start += number
        step = self._segments.plan_changes(written, behind=behind, now=now)
        if step.dropped:
            self._forget_before(step.dropped[-1] + 1)
        forgotten = [*self._forgotten, *step.dropped][: 1 + len(written)]
        for number in forgotten:
            self._sweep(number)
        return RecordChanges(step, parts, len(forgotten))

    def apply(self, change: RecordChanges) -> None:
        """The commit is made."""
        self._segments.apply(change.segments)
        self._forgotten = [*self._forgotten, *change.segments.dropped][change.swept :]
        self._highest = max([self._highest, *(segment.high for segment in change.segments.written)])
        self.search.update(change.keys, dropped=change.segments.dropped)

    def forget_all(self) -> None:
        """Forget all of them. They go one segment with each commit."""
        self._forget_before(self._segments.next_number)

    def apply_reset(self, behind: int, *, forget: bool) -> None:
        """It is committed that the segments before this number may go, and perhaps that all are forgotten."""
        self._segments.prunable_before = behind
        if forget:
            self._forgotten += [segment.number for segment in self._segments.live]
            self._segments.forget()
            self._highest = ""
            self.search.forget()

    def _add(self, segment: Segment, keys: Sequence[str], values: str, *, plain: bool, now: float) -> Segment:
        source = _PLAIN_RECORDS if plain else _DETAILED_RECORDS
        asked = {"consumer": self._consumer, "segment": segment.number, "given": values}
        added = self._connection.execute(_ADD.format(source, "NOTHING"), asked).rowcount
        if added < len(keys):  # rare, and the one way to learn how many there were
            self._connection.execute(_ADD.format(source, _REPLACE), asked)
        grown = segment.with_keys(added, keys, now)
        self._connection.execute(_SAVE_SEGMENT, (self._consumer, *grown))
        return grown

    def _forget_before(self, first: int) -> None:
        self._connection.execute(
            "UPDATE push_to_poll_consumer SET first = ? WHERE id = ?", (first, self._consumer)
        )

    def _sweep(self, number: int) -> None:
        for table, column in (("record", "segment"), ("segment", "number")):
            statement = f"DELETE FROM push_to_poll_{table} WHERE consumer = ? AND {column} = ?"  # noqa: S608
            self._connection.execute(statement, (self._consumer, number))
