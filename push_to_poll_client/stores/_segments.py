"""In which segment is a record kept, and which segments go? One answer for every store.

The newest segment takes what is recorded until it is full or old, and then the next begins. So a page of random
keys writes to a small part of the file, and old records go without being looked for. Nothing here writes anything:
a store writes what a `Step` says and then takes it.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from push_to_poll_client.stores._retention import Retention

__all__ = ["Segment", "Segments", "Step"]


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

    def with_more(self, added: int, keys: Sequence[str], now: float) -> "Segment":
        """The same segment with records of these keys, some of which it may have had before."""
        low, high = min(keys), max(keys)
        if self.size:
            low, high = min(low, self.low), max(high, self.high)
        return Segment(self.number, self.size + added, self.first_at, max(self.last_at, now), low, high)


class Step(NamedTuple):
    """What a commit does to the segments.

    Attributes:
        written: Those that are new or have more, in order.
        dropped: The numbers of those that go, the oldest first.
        behind: The segments before this number may go.
    """

    written: Sequence[Segment]
    dropped: Sequence[int]
    behind: int


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
        self.live = deque(live)
        self.size = sum(segment.size for segment in self.live)
        self.behind = behind
        self._retention = retention
        self._capacity = retention.capacity
        self.following = following

    def taking(self, now: float) -> Segment:
        """The segment that takes the next record: the newest, or an empty one."""
        if self.live:
            newest = self.live[-1]
            if newest.size < self._capacity and now - newest.first_at <= self._retention.span:
                return newest
        return Segment(self.following, 0, now, now, "", "")

    def shares(self, number: int, now: float) -> list[tuple[Segment, int]]:
        """Which segments take so many records more: each as it is before, and how many it takes."""
        segment, shares = self.taking(now), []
        while number > 0:
            part = min(number, self._capacity - segment.size)
            shares.append((segment, part))
            number -= part
            segment = Segment(segment.number + 1, 0, now, now, "", "")
        return shares

    def step(self, written: Sequence[Segment], *, behind: int, now: float) -> Step:
        """What becomes of the segments with a commit that writes these and lets go those before `behind`."""
        size, dropped = self._size_with(written), []
        for oldest in self.live:
            without = size - oldest.size
            may_go = oldest.number < behind
            if not may_go or not self._retention.lets_go(without=without, newest=oldest.last_at, now=now):
                break
            size = without
            dropped.append(oldest.number)
        return Step(written, dropped, behind)

    def take(self, step: Step) -> None:
        """The commit is made."""
        self.size = self._size_with(step.written)
        if self._goes_on(step.written):
            self.live.pop()
        self.live.extend(step.written)
        if step.written:
            self.following = max(self.following, step.written[-1].number + 1)
        for _ in step.dropped:
            self.size -= self.live.popleft().size
        self.behind = step.behind

    def forget(self) -> None:
        """Have none any more."""
        self.live.clear()
        self.size = 0
        self.behind = self.following

    def meeting(self, low: str, high: str) -> Iterator[int]:
        """The numbers of the segments that may have keys from `low` to `high`, the newest first."""
        return (one.number for one in reversed(self.live) if one.low <= high and one.high >= low)

    def _size_with(self, written: Sequence[Segment]) -> int:
        before = self.live[-1].size if self._goes_on(written) else 0
        return self.size - before + sum(segment.size for segment in written)

    def _goes_on(self, written: Sequence[Segment]) -> bool:
        """Whether the first of these is the newest one, with more."""
        return bool(written and self.live and written[0].number == self.live[-1].number)
