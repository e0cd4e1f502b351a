"""State of one poll, and of its walk along the feed.

`Polls` creates a `Poll` and reads its result. `Poller` updates it. A `PollWalk` can take several polls;
`_position.py` explains where walks start.
"""

import enum
import math
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import anyio

from push_to_poll_client._event_loop import Background
from push_to_poll_client._hooks import ConsumerStats
from push_to_poll_client._retry import StopSignal
from push_to_poll_client._schedule import Cause
from push_to_poll_client._status import NOTHING_DONE, PollResult
from push_to_poll_client._types import Cursor, CycleDetector, Page, Push
from push_to_poll_client._work_queue import WorkItem, WorkQueue


class Place(enum.Enum):
    """Place of a walk, relative to the saved cursor."""

    BEFORE = "before the saved cursor"  # reads pages of earlier walks again
    PAST = "past the saved cursor"
    JUMPED = "past the saved cursor, without the end of the pages before it"


@dataclass(slots=True, eq=False)
class PollWalk:
    """One walk along the feed, which can take several polls. Times are of the event loop's clock."""

    start: Cursor | None  # it starts here again if the pages change before it passes the saved cursor
    saved: Cursor | None  # the saved cursor when it began
    began: float
    position: Cursor | None  # it continues here; everything before is settled
    place: Place
    passed_at: float  # time when it passed the saved cursor
    # True if most messages of the last page before the saved cursor were new and had no cursors. A walk along
    # messages with cursors meets the saved one.
    mostly_new: bool = False
    empty_pages: int = 0  # in a row
    failed_fetches: int = 0  # in a row, at its position
    cycle_detector: CycleDetector = field(default_factory=CycleDetector)
    _last_cursor: Cursor | None = None

    def inspect_page(
        self, page: Page, items: Sequence[WorkItem], stats: ConsumerStats, now: float
    ) -> Cursor | None:
        """Check if a page passes the saved cursor, and return the cursor that may be saved after the page."""
        # Call it for a walk before the saved cursor. Items that may come before the saved cursor lose their
        # cursors. Late messages are counted. None means that only cursors of messages count.
        # The last page of a feed may be empty, and have no cursor.
        cursors = (page.cursor, *(item.cursor for item in reversed(items)))
        self._last_cursor = next((cursor for cursor in cursors if cursor is not None), self._last_cursor)
        new = sum(not item.settled for item in items)
        self.mostly_new = 2 * new > len(items) and all(item.cursor is None for item in items)
        passed_at_item: int | None = None
        if self.saved is not None:
            passed_at_item = next((index for index, item in enumerate(items) if item.cursor == self.saved), None)
        repeated = items if passed_at_item is None else items[: passed_at_item + 1]
        last_known = next((index for index in range(len(repeated) - 1, -1, -1) if repeated[index].settled), 0)
        stats.counts["late"] += sum(not item.settled for item in repeated[:last_known])
        for item in repeated[: len(repeated) if passed_at_item is None else passed_at_item]:
            item.cursor = None
        at_end = page.next_page is None
        meets_saved = self.saved is not None and self.saved in {page.cursor, page.next_page}
        if passed_at_item is not None or meets_saved or at_end:
            self.place, self.passed_at = Place.PAST, now
        if at_end and passed_at_item is None:
            return self._last_cursor  # later messages come after the whole feed
        return page.cursor if self.place is Place.PAST else None


@dataclass(slots=True, eq=False, kw_only=True)
class Poll:
    """One poll, while it runs and afterwards. Times are of the event loop's clock, except `began`."""

    number: int
    cause: Cause
    started: float
    answered_at: float  # arrival of its last page; `started` if there was none
    began: float = field(default_factory=time.time)  # in seconds since the epoch
    stop: StopSignal = field(default_factory=StopSignal)
    wait: float = 0.0  # seconds for which the server may hold an answer; 0 after that was requested
    hint: Push | None = None
    bypass_cache: bool = False
    running: bool = True
    must_not_wait: bool = False  # a long poll would delay something
    waiting: anyio.CancelScope | None = None  # of the current or last long poll
    in_flight: anyio.CancelScope = field(default_factory=anyio.CancelScope)  # a stop sets its deadline
    exit_stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    background: Background | None = None
    deadline: float = math.inf  # it reads no page after this time
    walk: PollWalk = field(init=False)
    work: WorkQueue = field(default_factory=WorkQueue)  # messages that are not processed in order
    settled_before: int = 0  # by the session, as for `last_settled`
    counts_before: Counter[str] = field(default_factory=Counter)
    last_settled: int = 0  # when the walk last advanced
    pages: int = 0
    duplicates: int = 0
    closed: bool = False  # the current page is the last one of a feed that has ended
    restarts: int = 0
    resynced: bool = False  # the cursor had expired, and the poll continued elsewhere
    standstill: str | None = None  # why the feed does not advance
    postponed_until: float | None = None  # time to retry the failed message that ended the poll
    poll_within: float | None = None
    continues_freely: bool = False  # the next poll continues here without a token (G3)
    done: PollResult = NOTHING_DONE

    def give_way(self) -> None:
        """Cancel the long poll of this poll and allow no other. Its answer is fetched again."""
        self.must_not_wait = True
        if self.waiting is not None:
            self.waiting.cancel()

    def stands_still(self, position: Cursor | None, following: Cursor, settled: int) -> bool:
        """Return True if no new message was settled and the cursors repeat."""
        if settled > self.last_settled:
            self.last_settled, self.walk.cycle_detector = settled, CycleDetector()
            return False
        return following == position or self.walk.cycle_detector.repeats_at(following)
