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
    """One walk along the feed, which can take several polls. Times are of the event loop's clock.

    Attributes:
        start: Where it starts. It starts here again if the pages change before it passes the saved cursor.
        saved: The saved cursor when it began.
        began: When it began.
        position: Where it continues; everything before is settled.
        passed_at: When it passed the saved cursor.
        mostly_new: True if most messages of the last page before the saved cursor were new and had no cursors. A
            walk along messages with cursors meets the saved one.
        empty_pages: Pages without a message in a row.
        failed_fetches: Failed fetches in a row at its position.
        cycle_detector: Detects cursors that repeat, also over several polls.
    """

    start: Cursor | None
    saved: Cursor | None
    began: float
    position: Cursor | None
    place: Place
    passed_at: float
    mostly_new: bool = False
    empty_pages: int = 0
    failed_fetches: int = 0
    cycle_detector: CycleDetector = field(default_factory=CycleDetector)
    _last_cursor: Cursor | None = None

    def inspect_page(
        self, page: Page, items: Sequence[WorkItem], stats: ConsumerStats, now: float
    ) -> Cursor | None:
        """Check if a page passes the saved cursor.

        Call it for a walk that is before the saved cursor. Items that may come before the saved cursor lose their
        cursors. Late messages are counted.

        Args:
            page: The page.
            items: Its messages.
            stats: Counters of the consumer.
            now: When the page was read, on the event loop's clock.

        Returns:
            A cursor that may be saved when the whole page is settled; `None` if only cursors of messages count.
        """
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
    """One poll, while it runs and afterwards. Times are of the event loop's clock, except `began`.

    Attributes:
        number: Number of polls that had started, including this one.
        cause: Why it started; `MANUAL` also for a caller that only prevents polls.
        began: When it started, in seconds since the epoch.
        stop: Checked before each message.
        wait: Seconds for which the server may hold an answer; 0 after that was requested.
        hint: Merged hints of the pushes that it answers.
        must_not_wait: True if a long poll would delay something.
        waiting: Cancel scope of the current or last long poll.
        in_flight: Cancel scope of the messages in flight; a stop sets its deadline.
        exit_stack: Ends background tasks, such as the fetch of the next page.
        background: Background tasks; `None` if there are none.
        deadline: Time after which it reads no further page.
        work: Messages that are not processed in order.
        settled_before: Settled messages of the session when the poll began.
        counts_before: Counters of the consumer when the poll began.
        last_settled: Settled messages of the session when the walk last advanced.
        answered_at: Arrival of its last page; `started` if there was none.
        closed: True if the current page is the last one of a feed that has ended.
        restarts: How often the walk started again.
        resynced: True if the cursor had expired and the poll continued elsewhere.
        standstill: Why the feed does not advance; `None` if it does.
        postponed_until: When the failed message that ended the poll may be retried; `None` if none did.
        poll_within: `Page.poll_within` of its last page.
        continues_freely: True if the next poll continues here and takes no token (G3).
        done: Result, also of a failed poll.
    """

    number: int
    cause: Cause
    started: float
    answered_at: float
    began: float = field(default_factory=time.time)
    stop: StopSignal = field(default_factory=StopSignal)
    wait: float = 0.0
    hint: Push | None = None
    bypass_cache: bool = False
    running: bool = True
    must_not_wait: bool = False
    waiting: anyio.CancelScope | None = None
    in_flight: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    exit_stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    background: Background | None = None
    deadline: float = math.inf
    walk: PollWalk = field(init=False)
    work: WorkQueue = field(default_factory=WorkQueue)
    settled_before: int = 0
    counts_before: Counter[str] = field(default_factory=Counter)
    last_settled: int = 0
    pages: int = 0
    duplicates: int = 0
    closed: bool = False
    restarts: int = 0
    resynced: bool = False
    standstill: str | None = None
    postponed_until: float | None = None
    poll_within: float | None = None
    continues_freely: bool = False
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
