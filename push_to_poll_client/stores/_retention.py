"""Retention of records, cursors and dead letters in every store.

Records are kept in segments, and the oldest segment is dropped as a whole: when its newest record is too old, or
when there are enough records without it. Records since the last commit that saved a cursor, included, stay: their
messages may be fetched again.

New records go to the newest segment until it is full or too old. So a page of random keys writes to a small part
of the file, and old records are dropped without a search. Nothing here writes: a store plans a commit with
`Segments.plan_changes`, writes the changes, and then calls `Segments.apply`.

A record that replaces another one stays in its segment and counts once. So the messages settled first are
forgotten first, whatever was replayed in between.

A single reading of the clock is not trusted. Between two commits with records, older records age by at most the
span of a segment, and not at all if the clock jumps by more than the retention, forward or back. The rest counts
as a step of the clock, which moves the times of all segments.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, NamedTuple

import msgspec

from push_to_poll_client._types import Cursor, DeadLetter, SavedCursor
from push_to_poll_client._validation import check_count, check_number

# Stripe lists its events for 30 days. A feed that may replay everything, such as Remote Settings, needs None.
DEFAULT_RETENTION = 30 * 86_400.0
"""Seconds. Must be longer than the longest replay of the feed, or messages are processed again."""

DEFAULT_MAX_RECORDS = 1_000_000
"""Records per name: 55 MB in SQLite with keys of 36 characters, a day at 10 messages a second."""

# Records per segment. A page of 1,000 random keys writes to the whole segment: with segments of 4,000, 8,000,
# 16,000 and 32,000 its commit takes 1.5, 1.6, 2.0 and 2.8 ms. To search for it in 300,000 records takes 35, 22, 13
# and 10 ms. Deleting a segment of 8,000 takes 4 ms.
_SEGMENT_RECORDS = 8_000

_SEGMENTS_PER_RETENTION = 8
"""A segment has at most this fraction of the kept records, by number and by age."""


class Retention(msgspec.Struct, frozen=True):
    """Age in seconds and number of records above which the oldest may be dropped. None keeps all."""

    age: float | None
    count: int | None

    def __post_init__(self) -> None:
        check_number("retention", self.age, above_zero=True, optional=True)
        if self.count is not None:
            check_count("max_records", self.count)

    @property
    def capacity(self) -> int:
        """Number of records that a segment takes."""
        return (
            _SEGMENT_RECORDS
            if self.count is None
            else min(_SEGMENT_RECORDS, max(1, self.count // _SEGMENTS_PER_RETENTION))
        )

    @property
    def span(self) -> float:
        """Seconds for which a segment takes new records."""
        return math.inf if self.age is None else self.age / _SEGMENTS_PER_RETENTION

    def clock_step(self, passed: float) -> float:
        """Return the part of `passed` seconds by which records do not age; negative if set back."""
        if self.age is None:
            return 0.0
        if abs(passed) > self.age:  # waiting is safe; a short step back is left to time
            return passed
        return max(0.0, passed - self.span)

    def may_drop(self, *, without: int, newest: float, now: float) -> bool:
        """Return True if the oldest segment may be dropped; `without` is the number of records without it."""
        enough = self.count is not None and without >= self.count
        return enough or (self.age is not None and newest < now - self.age)


Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
"""Number far above any real one, whose sums are still integers in SQLite. Checked when a file is read."""

Time = Annotated[float, msgspec.Meta(ge=-(1 << 62), lt=1 << 62)]


class Segment(NamedTuple):
    """Some records that were made one after another."""

    number: Count  # counts up; unique for a name
    size: Count  # number of records
    first_at: Time  # time of the first record, in seconds since the epoch by the current clock
    last_at: Time  # time of the last record; never before the last record of an earlier segment
    low: str  # lowest key, by code points
    high: str  # highest key

    def with_keys(self, keys: Sequence[str], now: float) -> "Segment":
        """Return the segment with new records of these keys."""
        low, high = min(keys), max(keys)
        if self.size:
            low, high = min(low, self.low), max(high, self.high)
        return Segment(self.number, self.size + len(keys), self.first_at, max(self.last_at, now), low, high)

    def moved(self, step: float) -> "Segment":
        """Return the segment after a step of the clock."""
        return self._replace(first_at=self.first_at + step, last_at=self.last_at + step) if step else self


class SegmentChanges(NamedTuple):
    """Changes that a commit makes to the segments."""

    live: Sequence[Segment]  # segments after the commit, in order
    size: int  # number of their records
    dropped: Sequence[int]  # numbers of the dropped segments, oldest first
    clock_step: float  # seconds by which the times of all segments have moved
    prunable_before: int  # segments before this number may be dropped


class Segments:
    """The segments of one name. Segments before the number `prunable_before` may be dropped."""

    def __init__(
        self,
        retention: Retention,
        live: Sequence[Segment] = (),
        *,
        next_number: int = 1,
        prunable_before: int = 1,
    ) -> None:
        # In order. Replaced, never changed, because other threads may read it.
        self.live: Sequence[Segment] = live
        self.size: int = sum(segment.size for segment in live)
        # The last commit that saved a cursor, and all later ones, wrote to this segment or later ones.
        self.prunable_before: int = prunable_before
        self._retention = retention
        self.capacity: int = retention.capacity
        self.next_number: int = next_number  # of the next new segment, above all earlier ones

    def current(self, now: float) -> Segment:
        """Return the segment for the next record: the newest one, or a new empty one."""
        if not self.live:
            return Segment(self.next_number, 0, now, now, "", "")
        newest = self.live[-1]
        moved = newest.moved(self._clock_step(now))
        if newest.size < self.capacity and now - newest.first_at <= self._retention.span:
            return moved
        begin = max(now, moved.last_at)
        return Segment(self.next_number, 0, begin, begin, "", "")

    def allocate(self, number: int, now: float) -> list[tuple[Segment, int]]:
        """Divide new records among segments; return each segment and its number of new records."""
        segment, shares = self.current(now), []
        while number > 0:
            part = min(number, self.capacity - segment.size)
            shares.append((segment, part))
            number -= part
            begin = max(now, segment.last_at)
            segment = Segment(segment.number + 1, 0, begin, begin, "", "")
        return shares

    def plan_changes(self, written: Sequence[Segment], *, prunable_before: int, now: float) -> SegmentChanges:
        """Plan a commit that writes these segments and drops those before `prunable_before`."""
        step = self._clock_step(now)
        live, size = list(self.live), self.size
        if written and live and written[0].number == live[-1].number:  # the newest one, with more records
            size -= live.pop().size
        size += sum(segment.size for segment in written)
        dropped = 0
        for oldest in live:
            without = size - oldest.size
            prunable = oldest.number < prunable_before
            if not prunable or not self._retention.may_drop(
                without=without, newest=oldest.last_at, now=now - step
            ):
                break
            size = without
            dropped += 1
        if not written:
            step = 0.0  # the next record brings the next trusted time
        kept = [segment.moved(step) for segment in live[dropped:]] if step else live[dropped:]
        numbers = [segment.number for segment in live[:dropped]]
        return SegmentChanges([*kept, *written], size, numbers, step, prunable_before)

    def apply(self, changes: SegmentChanges) -> None:
        """Apply the changes after their commit."""
        self.live, self.size, self.prunable_before = changes.live, changes.size, changes.prunable_before
        if changes.live:
            self.next_number = max(self.next_number, changes.live[-1].number + 1)

    def grow(self, number: int, now: float) -> None:
        """Count new records in the newest segment."""
        newest = self.live[-1]
        grown = newest._replace(size=newest.size + number, last_at=max(newest.last_at, now))
        self.live, self.size = [*self.live[:-1], grown], self.size + number

    def forget(self) -> None:
        """Forget all segments."""
        self.live, self.size = (), 0
        self.prunable_before = self.next_number

    def overlapping(self, low: str, high: str) -> Iterator[int]:
        """Yield the numbers of segments that may have keys from `low` to `high`, newest first."""
        return (segment.number for segment in reversed(self.live) if segment.low <= high and segment.high >= low)

    def _clock_step(self, now: float) -> float:
        return self._retention.clock_step(now - self.live[-1].last_at) if self.live else 0.0


MAX_HISTORY = 256
"""Earlier cursors that are kept: four minutes of a busy consumer. The longest cursors take 16 MiB."""

_MIN_HISTORY_INTERVAL = 1.0
"""Seconds. A busy consumer saves hundreds of cursors a second, and one of them is kept."""


class CursorState(NamedTuple):
    """Saved cursor, earlier cursors (oldest first) and state of a name."""

    saved: SavedCursor
    previous: tuple[SavedCursor, ...] = ()
    state: Mapping[str, str] = MappingProxyType({})

    def saving(self, cursor: Cursor | None, read_at: float) -> "CursorState":
        """Return the state with this cursor saved. None keeps the saved one."""
        if cursor is None or cursor == self.saved.cursor:
            return self
        previous = self.previous
        # Below 0 the clock was set back: keep the cursor.
        if not previous or not 0 <= self.saved.read_at - previous[-1].read_at < _MIN_HISTORY_INTERVAL:
            previous = (*previous[1 - MAX_HISTORY :], self.saved)
        return self._replace(saved=SavedCursor(cursor, read_at), previous=previous)

    def changing(self, state: Mapping[str, str | None]) -> "CursorState":
        """Return it with these names of `state` changed. None removes a name."""
        if not state:
            return self
        changed = {**self.state, **state}
        kept = {name: value for name, value in changed.items() if value is not None}
        return self._replace(state=MappingProxyType(kept))


MAX_DEAD_LETTERS = 100

MAX_DEAD_LETTER_BYTES = 16 << 20
"""Limit of a batch. A single dead letter may be larger, as large as the largest entry of the feed."""


def limit_dead_letters(dead_letters: Iterable[DeadLetter]) -> list[DeadLetter]:
    """Take the first dead letters: at most 100 and 16 MiB, but at least one."""
    some: list[DeadLetter] = []
    size = 0
    for letter in dead_letters:
        size += len(letter.raw) + len(letter.traceback)
        if some and size > MAX_DEAD_LETTER_BYTES:
            break
        some.append(letter)
        if len(some) == MAX_DEAD_LETTERS:
            break
    return some
