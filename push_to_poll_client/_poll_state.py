"""What one poll, and the walk that it goes along, know.

`Polls` makes a `Poll` when a poll starts, and reads from it what came of it. `Poller` keeps in it how far the poll
is. A `PollWalk` may take several polls; `_position.py` says where walks start.
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
    """Where a walk is."""

    BEFORE = "before the saved cursor"  # it reads again what earlier walks have read
    PAST = "past the saved cursor"
    JUMPED = "past the saved cursor, and what was before it was not read to its end"


@dataclass(slots=True, eq=False)
class PollWalk:
    """One walk along the feed, which may take several polls.

    Attributes:
        start: Where it starts, and starts again if the pages change before it has passed the saved cursor.
        saved: The cursor that was saved when it began.
        began: When it began, on the event loop's clock.
        position: Where it continues: everything before is settled.
        place: Where it is.
        passed_at: When it passed the saved cursor, on the event loop's clock.
        mostly_new: Whether most messages of the last page before the saved cursor were new, and had no cursors. A
            walk along messages with cursors meets the saved one.
        empty_pages: How many pages without a message it has read in a row.
        failed_fetches: How many fetches in a row failed at its position.
        cycle_detector: Detects that its pages lead in a circle, also one that takes several polls.
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
        """Find out whether a page passes the saved cursor, for a walk that is before it.

        Args:
            page: The page.
            items: Its messages. Those that may come before the saved cursor lose their cursors.
            stats: Are told of late arrivals.
            now: When the page was read, on the event loop's clock.

        Returns:
            A cursor that may be saved when the whole page is settled; `None` leaves it to the messages.
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
            return self._last_cursor  # a message that comes now comes after all of the feed
        return page.cursor if self.place is Place.PAST else None


@dataclass(slots=True, eq=False, kw_only=True)
class Poll:
    """One poll, while it runs and after.

    Attributes:
        number: How many polls had started then, with this one.
        cause: Why it starts; `MANUAL` if a caller leads it, or keeps polls from running.
        started: When, on the event loop's clock.
        began: When, in seconds since the epoch.
        stop: Checked before each message.
        wait: Seconds for which the server may hold an answer; 0 once that was asked for.
        hint: What the pushes said that it answers.
        bypass_cache: Whether to bypass caches.
        running: Whether it has not ended.
        must_not_wait: Whether something has happened that a waiting fetch would delay.
        waiting: The fetch whose answer the server may hold, or the last one.
        in_flight: The cancel scope of the messages in flight, so that a stop can set it a deadline.
        exit_stack: Ends what runs in the background, such as the fetch of the next page.
        background: Runs it; `None` if nothing was begun there.
        deadline: When it must read no further page, on the event loop's clock.
        walk: The walk that it goes along.
        work: The messages that are not processed in order.
        settled_before: How many messages the session had settled when it began.
        counts_before: The counts of the consumer then.
        last_settled: How many messages the session had settled when the walk last made progress.
        answered_at: When its last page arrived, on the event loop's clock; `started` if none did.
        pages: How many pages it has read.
        duplicates: How many messages were settled before.
        closed: Whether the current page is the last one of a feed that has ended.
        restarts: How often the walk was started again.
        resynced: Whether the cursor had expired, and the poll went on elsewhere.
        standstill: Why the feed stands still; `None` if it does not.
        postponed_until: When the message that ended it may be tried again, on the event loop's clock; `None` if
            none did.
        poll_within: The `Page.poll_within` of its last page.
        continues_freely: Whether the next poll continues what this one read, and so takes no token (G3).
        done: What it did, also if it failed.
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
        """Let no fetch of this poll wait, and cancel the one that does. Its answer is fetched again."""
        self.must_not_wait = True
        if self.waiting is not None:
            self.waiting.cancel()

    def stands_still(self, position: Cursor | None, following: Cursor, settled: int) -> bool:
        """Whether the walk makes no progress: no new message was settled, and the cursors repeat."""
        if settled > self.last_settled:
            self.last_settled, self.walk.cycle_detector = settled, CycleDetector()
            return False
        return following == position or self.walk.cycle_detector.repeats_at(following)
