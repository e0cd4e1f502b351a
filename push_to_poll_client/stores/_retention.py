"""How long records, cursors and dead letters are kept: one answer for every store.

Records are kept in segments (`_segments.py`), which go as a whole: the oldest, when its newest record is too old,
or when there are enough records without it. Those of the last commit that saved a cursor, and all since, stay:
their messages may be fetched again.

The newest segment takes what is recorded until it is full or old, and then the next begins. So a page of random
keys writes to a small part of the file, and old records go without being looked for. Nothing here writes anything:
a store writes what a `SegmentChanges` says and then takes it.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from push_to_poll_client._types import DeadLetter, SavedCursor

__all__ = [
    "DEFAULT_MAX_RECORDS",
    "DEFAULT_RETENTION",
    "MAX_HISTORY",
    "Retention",
    "Segment",
    "SegmentChanges",
    "Segments",
    "extend_history",
    "limit_dead_letters",
]


DEFAULT_RETENTION = 30 * 86_400.0
"""Seconds. It must outlast the longest replay that the feed can give, or messages are processed again: Stripe
lists its events for 30 days, Remote Settings replays silently to a cursor older than 21 days."""

DEFAULT_MAX_RECORDS = 1_000_000
"""For each name. At 55 bytes of a SQLite file for a 36-character key that is 55 MB; at 10 messages a second it
outlasts a day, so a busy feed sets it higher."""

_SEGMENT_RECORDS = 8_000
"""Records of a segment. A page of random keys writes to all of it: 1,000 take 1.5 ms to commit with segments of
4,000, 1.6 ms with 8,000, 2.0 ms with 16,000, 2.8 ms with 32,000. The larger they are, the fewer have to be asked
for a key: 1,000 keys in 300,000 records take 35 ms, 22 ms, 13 ms and 10 ms. To take one of 8,000 away takes 4
ms."""

_SEGMENTS_PER_RETENTION = 8
"""A segment is no larger a part of what is kept than this, by number and by age."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What may go.

    Args:
        age: Seconds after which a record may go; `None` keeps it however old it is.
        count: How many records a name may have before the oldest go; `None` keeps any number.

    Raises:
        ValueError: One of the two is not above 0.
    """

    age: float | None
    count: int | None

    def __post_init__(self) -> None:
        if self.age is not None and not self.age > 0:
            raise ValueError(
                f"retention must be above 0 seconds, or None to keep records of any age, not {self.age}"
            )
        if self.count is not None and self.count < 1:
            raise ValueError(f"max_records must be at least 1, or None to keep any number, not {self.count}")

    @property
    def capacity(self) -> int:
        """How many records a segment takes."""
        return (
            _SEGMENT_RECORDS
            if self.count is None
            else min(_SEGMENT_RECORDS, max(1, self.count // _SEGMENTS_PER_RETENTION))
        )

    @property
    def span(self) -> float:
        """Seconds after which a segment takes no more records."""
        return math.inf if self.age is None else self.age / _SEGMENTS_PER_RETENTION

    def may_drop(self, *, without: int, newest: float, now: float) -> bool:
        """Whether the oldest segment may go.

        Args:
            without: How many records there are without it.
            newest: When its newest record was made, in seconds since the epoch.
            now: Likewise.
        """
        enough = self.count is not None and without >= self.count
        return enough or (self.age is not None and newest < now - self.age)


class Segment(NamedTuple):
    """Records that were made one after another.

    Attributes:
        number: Counts up, never twice the same for a name.
        size: How many records it has.
        first_at: When the first was made, in seconds since the epoch.
        last_at: When the last was made, by the latest that the clock ever said.
        low: The least of its keys, by code points.
        high: The greatest of its keys.
    """

    number: int
    size: int
    first_at: float
    last_at: float
    low: str
    high: str

    def with_keys(self, added: int, keys: Sequence[str], now: float) -> "Segment":
        """The same segment with records of these keys, some of which it may have had before."""
        low, high = min(keys), max(keys)
        if self.size:
            low, high = min(low, self.low), max(high, self.high)
        return Segment(self.number, self.size + added, self.first_at, max(self.last_at, now), low, high)


class SegmentChanges(NamedTuple):
    """What a commit does to the segments.

    Attributes:
        written: Those that are new or have more, in order.
        dropped: The numbers of those that go, the oldest first.
        behind: The segments before this number may go.
    """

    written: Sequence[Segment]
    dropped: Sequence[int]
    prunable_before: int


class Segments:
    """The segments of one name.

    Args:
        retention: How large they get, and which go.
        live: Those that there are, in order.
        following: No segment had this number yet, nor a larger one.
        behind: The segments before this number may go.

    Attributes:
        live: Those that there are, in order.
        size: How many records they have. One that was replaced in a later segment counts twice.
        behind: The segments before this number may go: the last commit that saved a cursor, and all since, wrote
            to later ones.
        following: The number of the next one, if that begins now.
    """

    def __init__(
        self, retention: Retention, live: Iterable[Segment] = (), *, following: int = 1, behind: int = 1
    ) -> None:
        self.live: deque[Segment] = deque(live)
        self.size: int = sum(segment.size for segment in self.live)
        self.prunable_before: int = behind
        self._retention = retention
        self._capacity = retention.capacity
        self.next_number: int = following

    def current(self, now: float) -> Segment:
        """The segment that takes the next record: the newest, or an empty one."""
        if self.live:
            newest = self.live[-1]
            if newest.size < self._capacity and now - newest.first_at <= self._retention.span:
                return newest
        return Segment(self.next_number, 0, now, now, "", "")

    def allocate(self, number: int, now: float) -> list[tuple[Segment, int]]:
        """Which segments take so many records more: each as it is before, and how many it takes."""
        segment, shares = self.current(now), []
        while number > 0:
            part = min(number, self._capacity - segment.size)
            shares.append((segment, part))
            number -= part
            segment = Segment(segment.number + 1, 0, now, now, "", "")
        return shares

    def plan_changes(self, written: Sequence[Segment], *, behind: int, now: float) -> SegmentChanges:
        """Plan a commit that writes these segments and drops those before `prunable_before`."""
        size, dropped = self._size_with(written), []
        for oldest in self.live:
            without = size - oldest.size
            may_go = oldest.number < behind
            if not may_go or not self._retention.may_drop(without=without, newest=oldest.last_at, now=now):
                break
            size = without
            dropped.append(oldest.number)
        return SegmentChanges(written, dropped, behind)

    def apply(self, step: SegmentChanges) -> None:
        """The commit is made."""
        self.size = self._size_with(step.written)
        if self._extends_newest(step.written):
            self.live.pop()
        self.live.extend(step.written)
        if step.written:
            self.next_number = max(self.next_number, step.written[-1].number + 1)
        for _ in step.dropped:
            self.size -= self.live.popleft().size
        self.prunable_before = step.prunable_before

    def forget(self) -> None:
        """Have none any more."""
        self.live.clear()
        self.size = 0
        self.prunable_before = self.next_number

    def overlapping(self, low: str, high: str) -> Iterator[int]:
        """The numbers of the segments that may have keys from `low` to `high`, the newest first."""
        return (one.number for one in reversed(self.live) if one.low <= high and one.high >= low)

    def _size_with(self, written: Sequence[Segment]) -> int:
        before = self.live[-1].size if self._extends_newest(written) else 0
        return self.size - before + sum(segment.size for segment in written)

    def _extends_newest(self, written: Sequence[Segment]) -> bool:
        """Whether the first of these is the newest one, with more."""
        return bool(written and self.live and written[0].number == self.live[-1].number)


MAX_HISTORY = 256
"""Cursors before the saved one: four minutes of a busy consumer, years of one whose feed moves once a week. Of the
longest cursors they take 16 MiB."""

_MIN_HISTORY_INTERVAL = 1.0
"""Seconds. A busy consumer, which saves hundreds a second, remembers one of them."""


def extend_history(remembered: tuple[SavedCursor, ...], saved: SavedCursor) -> tuple[SavedCursor, ...]:
    """What is remembered when another cursor is saved: the same object if the saved one is not to be added."""
    if remembered and 0 <= saved.at - remembered[-1].at < _MIN_HISTORY_INTERVAL:  # also when the clock went back
        return remembered
    return (*remembered[1 - MAX_HISTORY :], saved)


_MAX_DEAD_LETTERS = 100

_MAX_DEAD_LETTER_BYTES = 16 << 20
"""Each may be as large as the largest entry of the feed."""


def limit_dead_letters(letters: Iterable[DeadLetter]) -> list[DeadLetter]:
    """The first of them: 100 at most, or fewer that have 16 MiB together, but one at least."""
    some: list[DeadLetter] = []
    size = 0
    for letter in letters:
        size += len(letter.raw) + len(letter.traceback)
        if some and size > _MAX_DEAD_LETTER_BYTES:
            break
        some.append(letter)
        if len(some) == _MAX_DEAD_LETTERS:
            break
    return some
