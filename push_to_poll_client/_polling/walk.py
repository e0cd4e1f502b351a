"""What does one poll know of its way from page to page, and may it go on?"""

from collections import Counter

from push_to_poll_client._circle import Circle
from push_to_poll_client._exceptions import CursorExpired, FeedError
from push_to_poll_client._processing.overlap import Overlap
from push_to_poll_client._processing.progress import Progress
from push_to_poll_client._processing.trials import Stop
from push_to_poll_client._status import PollResult
from push_to_poll_client._types import Cursor

__all__ = ["Walk"]

MAX_RESTARTS = 3
"""How often a poll starts a chain of pages again; a feed that changes faster is left to backoff."""


class Walk:
    """What one poll has done so far.

    Attributes:
        overlap: What knows what was read before; `None`: nothing was.
        stop: As for `Processor.settle`.
        read_at: When the page in hand arrived.
        first_wait: Seconds for which the server may hold its first answer.
        ends_early: The walk has found no end, and is to be ended all the same.
        closed: The page in hand is the last that there will ever be.
    """

    def __init__(
        self, progress: Progress, counts: Counter[str], overlap: Overlap | None, stop: Stop | None, wait: float
    ) -> None:
        self.overlap = overlap
        self.stop = stop
        self.read_at = 0.0
        self.ends_early = self.closed = False
        behind = overlap is not None and not overlap.passed
        self.first_wait, self._wait = (0.0, wait) if behind else (wait, 0.0)
        self._progress = progress
        self._counts = counts
        self._before = counts.copy()
        self._began_with = self._seen = progress.settled
        self._restarts = 0
        self._resynced = False
        self._circle = Circle()

    @property
    def start(self) -> Cursor | None:
        """Where it begins again when the pages change under it."""
        return self._progress.saved if self.overlap is None or self.overlap.passed else self.overlap.start

    def wait_at_end(self) -> float:
        """Seconds for which the server may hold one more answer, after what was read before; 0: no more."""
        wait, self._wait = self._wait, 0.0
        return wait if self._progress.settled == self._began_with else 0.0

    def begin_anew(self) -> None:
        """It goes on elsewhere, where nothing was read before."""
        self.overlap, self._circle = None, Circle()

    def restart(self) -> None:
        self._restarts += 1
        self._circle = Circle()
        if self.overlap is not None:
            self.overlap.restart()
        if self._restarts > MAX_RESTARTS:
            raise FeedError(f"the pages changed under the walk {self._restarts} times in one poll")

    def resync(self, error: CursorExpired) -> None:
        """Once in a poll: a feed that does not know the new cursor either is to be looked at."""
        if self._resynced:
            raise error
        self._resynced = True

    def stands_still(self, position: Cursor | None, following: Cursor) -> bool:
        """Whether going on would bring nothing: no new message, and no new cursor."""
        if self._progress.settled > self._seen:
            self._seen, self._circle = self._progress.settled, Circle()
            return False
        return following == position or self._circle.closes_at(following)

    def result(self, *, caught_up: bool, postponed: float | None) -> PollResult:
        done = {name: self._counts[name] - self._before[name] for name in ("messages", "duplicates", "pages")}
        closed = caught_up and self.closed
        return PollResult(**done, caught_up=caught_up, postponed=postponed, closed=closed)
