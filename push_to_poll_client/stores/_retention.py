"""How long is a dedupe record kept? One answer for every store.

Records are kept in segments (`_segments.py`), which go as a whole: the oldest, when its newest record is too old,
or when there are enough records without it. Those of the last commit that saved a cursor, and all since, stay:
their messages may be fetched again.
"""

import math
from dataclasses import dataclass

__all__ = ["DEFAULT_MAX_RECORDS", "DEFAULT_RETENTION", "Retention"]

DEFAULT_RETENTION = 30 * 86_400.0
"""Seconds. It must outlast the longest replay that the feed can give, or messages are processed again: Stripe
lists its events for 30 days, Remote Settings replays silently to a cursor older than 21 days."""

DEFAULT_MAX_RECORDS = 1_000_000
"""For each name. At 55 bytes of a SQLite file for a 36-character key that is 55 MB; at 10 messages a second it
outlasts a day, so a busy feed sets it higher."""

_SEGMENT = 8_000
"""Records of a segment. A page of random keys writes to all of it: 1,000 take 1.5 ms to commit with segments of
4,000, 1.6 ms with 8,000, 2.0 ms with 16,000, 2.8 ms with 32,000. The larger they are, the fewer have to be asked
for a key: 1,000 keys in 300,000 records take 35 ms, 22 ms, 13 ms and 10 ms. To take one of 8,000 away takes 4
ms."""

_PART = 8
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
        return _SEGMENT if self.count is None else min(_SEGMENT, max(1, self.count // _PART))

    @property
    def span(self) -> float:
        """Seconds after which a segment takes no more records."""
        return math.inf if self.age is None else self.age / _PART

    def lets_go(self, *, without: int, newest: float, now: float) -> bool:
        """Whether the oldest segment may go.

        Args:
            without: How many records there are without it.
            newest: When its newest record was made, in seconds since the epoch.
            now: Likewise.
        """
        enough = self.count is not None and without >= self.count
        return enough or (self.age is not None and newest < now - self.age)
