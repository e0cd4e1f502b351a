"""How long is a dedupe record kept? One answer for every store.

A record may go when it is too old, and the oldest may go when there are too many. Records of the last commit that
saved a cursor, and all since, stay: their messages may be fetched again. Going happens in small batches inside
commits, so that no commit pays for a month.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

__all__ = ["DEFAULT_MAX_RECORDS", "DEFAULT_RETENTION", "Retention"]

DEFAULT_RETENTION = 30 * 86_400.0
"""Seconds. It must outlast the longest replay that the feed can give, or messages are processed again: Stripe
lists its events for 30 days, Remote Settings replays silently to a cursor older than 21 days."""

DEFAULT_MAX_RECORDS = 1_000_000
"""For each name. At 120 bytes of a SQLite file for a 36-character key that is 120 MB; at 10 messages a second it
outlasts a day, so a busy feed sets it higher."""

_BATCH = 100


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

    def may_be_due(self, *, size: int, oldest: float, now: float) -> bool:
        """Whether a record may go, if the oldest is of this time; all as for `sweep`."""
        too_many = self.count is not None and size > self.count
        return too_many or (self.age is not None and oldest < now - self.age)

    def sweep(self, oldest: Iterable[tuple[int, float]], *, size: int, added: int, now: float) -> int | None:
        """Decide what goes with a commit.

        At most 100 records more than it adds, which bounds its work, and the store too. The order is that in which
        records were made, not that of their times: after a wall clock that ran ahead they stay longer.

        Args:
            oldest: Position and time (seconds since the epoch) of the records that may go, the oldest first. Not
                read further than needed.
            size: How many records there are, with those of this commit.
            added: How many of them are new with this commit.
            now: Seconds since the epoch.

        Returns:
            The position of the last record to go, with all before it; `None` when none goes.
        """
        excess = 0 if self.count is None else size - self.count
        youngest = float("-inf") if self.age is None else now - self.age
        last = None
        for number, (position, at) in enumerate(islice(oldest, _BATCH + added)):
            if number >= excess and at >= youngest:
                break
            last = position
        return last
