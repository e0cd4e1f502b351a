"""How are the records of one consumer name written to the file, and how do they go? In segments."""

import sqlite3
from collections.abc import Sequence
from operator import attrgetter
from typing import Annotated, NamedTuple

import msgspec

from push_to_poll_client._types import Record, RecordState
from push_to_poll_client.stores._retention import Retention
from push_to_poll_client.stores._segments import Segment, Segments, Step
from push_to_poll_client.stores._sqlite_file import named_damage
from push_to_poll_client.stores._sqlite_search import Search
from push_to_poll_client.stores._sqlite_text import as_json, stored_keys

__all__ = ["Change", "Given", "Records", "given"]

_PLAIN = "given.value AS key, NULL AS state, NULL AS fingerprint FROM json_each(:given) AS given"
_OTHER = """
    json_extract(given.value, '$[0]') AS key, json_extract(given.value, '$[1]') AS state,
    json_extract(given.value, '$[2]') AS fingerprint FROM json_each(:given) AS given
"""
_ADD = """
    INSERT INTO push_to_poll_record(consumer, segment, key, state, fingerprint)
    SELECT :consumer, :segment, {} WHERE true ON CONFLICT(consumer, segment, key) DO {}
"""
_REPLACE = "UPDATE SET state = excluded.state, fingerprint = excluded.fingerprint"
_SEGMENT = """
    INSERT INTO push_to_poll_segment(consumer, number, size, first_at, last_at, low, high)
    VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT(consumer, number) DO UPDATE
    SET size = excluded.size, last_at = excluded.last_at, low = excluded.low, high = excluded.high
"""
_SEGMENTS = """
    SELECT number, size, first_at, last_at, low, high FROM push_to_poll_segment WHERE consumer = ? ORDER BY number
"""

_key_of, _state_of, _fingerprint_of = attrgetter("key"), attrgetter("state"), attrgetter("fingerprint")

_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
_Time = Annotated[float, msgspec.Meta(ge=-(1 << 62), lt=1 << 62)]


class _Row(NamedTuple):
    number: _Count
    size: _Count
    first_at: _Time
    last_at: _Time
    low: str
    high: str


class Given(NamedTuple):
    """Records that are to be written.

    Attributes:
        keys: As they stand in the file. All different, unless `others` is `None`.
        settled: Those of them that are not dead.
        others: State and fingerprint of each; `None`: all are processed, and have no fingerprint.
    """

    keys: Sequence[str]
    settled: Sequence[str]
    others: Sequence[tuple[str | None, int | None]] | None

    def once(self) -> "Given":
        """The same with each key once, for those that are plain."""
        keys = list(dict.fromkeys(self.keys))
        return Given(keys, keys, None)

    def part(self, start: int, stop: int) -> tuple[Sequence[str], str]:
        """The keys of some of them, and what SQLite is given."""
        keys = self.keys[start:stop]
        if self.others is None:
            return keys, as_json(keys)
        return keys, as_json([(key, *other) for key, other in zip(keys, self.others[start:stop], strict=True)])


def given(records: Sequence[Record]) -> Given:
    """The records as they are written. Looked at together first, for hardly a page has one that is special."""
    keys = stored_keys(list(map(_key_of, records)))
    plain = list(map(_state_of, records)).count(RecordState.PROCESSED) == len(records)
    if plain and list(map(_fingerprint_of, records)).count(None) == len(records):
        return Given(keys, keys, None)
    last = dict(zip(keys, records, strict=True))  # within a commit the last one counts
    settled = [key for key, record in last.items() if record.state is not RecordState.DEAD]
    return Given(list(last), settled, list(map(_other, last.values())))


def _other(record: Record) -> tuple[str | None, int | None]:
    return (None if record.state is RecordState.PROCESSED else record.state.value), record.fingerprint


class Change(NamedTuple):
    """What a commit did, to be taken over when it is made.

    Attributes:
        step: To the segments.
        keys: Which keys each segment got, by its number.
        swept: How many forgotten segments are gone.
    """

    step: Step
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
        with named_damage(path):
            rows = msgspec.convert(connection.execute(_SEGMENTS, (consumer,)).fetchall(), list[_Row])
        live = [Segment(*row) for row in rows if row.number >= first]
        following = max([first, *(row.number + 1 for row in rows)])
        self._segments = Segments(retention, live, following=following, behind=behind)
        self._forgotten = [row.number for row in rows if row.number < first]
        self._highest = max((segment.high for segment in live), default="")
        self.search = Search(connection, consumer, self._segments, retention)

    @property
    def size(self) -> int:
        """How many there are. One that was replaced in a later segment counts twice."""
        return self._segments.size

    def are_new(self, keys: Sequence[str]) -> bool:
        """Whether none can have a record, for each is above all that have."""
        return not keys or min(keys) > self._highest

    def expect(self, keys: Sequence[str]) -> None:
        """These are about to be written, by a thread that may end when nobody waits for it any more."""
        self._highest = max(self._highest, *keys) if keys else self._highest

    def behind(self, now: float, *, moves: bool) -> int:
        """The segments before this number may go.

        Args:
            now: Seconds since the epoch.
            moves: A cursor is saved with what is recorded now.
        """
        return self._segments.taking(now).number if moves else self._segments.behind

    def write(self, given: Given, *, behind: int, now: float) -> Change:
        """Add them, replacing those whose key has one already, and take away what may go.

        Args:
            given: What to add.
            behind: The segments before this number may go.
            now: Seconds since the epoch.
        """
        shares = self._segments.shares(len(given.keys), now)
        if len(shares) > 1 and given.others is None:  # else a key that comes twice may be in two of them
            given = given.once()
            shares = self._segments.shares(len(given.keys), now)
        written, parts, start = [], [], 0
        for segment, number in shares:
            keys, values = given.part(start, start + number)
            written.append(self._add(segment, keys, values, plain=given.others is None, now=now))
            parts.append((segment.number, keys))
            start += number
        step = self._segments.step(written, behind=behind, now=now)
        if step.dropped:
            self._forget_before(step.dropped[-1] + 1)
        forgotten = [*self._forgotten, *step.dropped][: 1 + len(written)]
        for number in forgotten:
            self._sweep(number)
        return Change(step, parts, len(forgotten))

    def take(self, change: Change) -> None:
        """The commit is made."""
        self._segments.take(change.step)
        self._forgotten = [*self._forgotten, *change.step.dropped][change.swept :]
        self._highest = max([self._highest, *(segment.high for segment in change.step.written)])
        self.search.update(change.keys, dropped=change.step.dropped)

    def write_forgotten(self) -> None:
        """Forget all of them. They go one segment with each commit."""
        self._forget_before(self._segments.following)

    def moved(self, behind: int, *, forget: bool) -> None:
        """It is committed that the segments before this number may go, and perhaps that all are forgotten."""
        self._segments.behind = behind
        if forget:
            self._forgotten += [segment.number for segment in self._segments.live]
            self._segments.forget()
            self._highest = ""
            self.search.forget()

    def _add(self, segment: Segment, keys: Sequence[str], values: str, *, plain: bool, now: float) -> Segment:
        source = _PLAIN if plain else _OTHER
        asked = {"consumer": self._consumer, "segment": segment.number, "given": values}
        added = self._connection.execute(_ADD.format(source, "NOTHING"), asked).rowcount
        if added < len(keys):  # rare, and the one way to learn how many there were
            self._connection.execute(_ADD.format(source, _REPLACE), asked)
        grown = segment.with_more(added, keys, now)
        self._connection.execute(_SEGMENT, (self._consumer, *grown))
        return grown

    def _forget_before(self, first: int) -> None:
        self._connection.execute(
            "UPDATE push_to_poll_consumer SET first = ? WHERE id = ?", (first, self._consumer)
        )

    def _sweep(self, number: int) -> None:
        for table, column in (("record", "segment"), ("segment", "number")):
            statement = f"DELETE FROM push_to_poll_{table} WHERE consumer = ? AND {column} = ?"  # noqa: S608
            self._connection.execute(statement, (self._consumer, number))
