"""Walk along the feed: choose where a walk starts, also with `overlap`, and where the next poll continues.

A walk reads the feed from its start to the feed's end. It may take several polls. Without `overlap` it starts at
the saved cursor.

Some feeds number a message before it becomes visible: a row gets its id when it is inserted, and can be read only
after its transaction commits. A poll may pass such a gap without seeing the message. With `overlap=S` the caller
promises that messages get their places in the order of the feed, and that each is visible at most S seconds later.
Then a walk starts at the newest saved cursor whose page arrived at least S seconds before the last complete walk
began.

Why nothing is lost
-------------------
(1) A saved cursor came with a page that arrived at a time `at`. A message that gets its place later comes after
    that cursor.
(2) The last complete walk began at a time `began`, and read each page after that. A message that it passed without
    seeing it was not visible at `began`, so it got its place later than `began - S`.

So a message that was passed unseen comes after every cursor with `at <= began - S`, and the next walk starts at
the newest of these. By induction everything before that cursor is settled: the walk before started there or
earlier. For a page the arrival counts, since it may have been requested much earlier (long polling). For a walk
the beginning counts, since its first pages were read long before its last (slow handlers).

A walk is complete if it read from that start to the feed's end, or at least past the cursor that was saved when it
began, and if its messages are committed. When the newest such walk began is kept in the session's state. A value
that is older than necessary only makes the next walk longer. After a quiet time the saved cursor itself is old
enough, and walks start there.

This holds as long as the times of day are right. A clock that is set back makes walks longer; a clock that is set
forward between two runs shortens the overlap by that jump. Where a cache or a replica lags, `overlap` has to be
longer by its lag.

What a walk reads again
-----------------------
A walk with an overlap first reads what earlier walks have read. No cursor of this part is saved: the saved cursor
would go back, and with it the knowledge of what was read. A walk has passed the saved cursor when it meets an
equal cursor, or at the feed's end. On a feed that has cursors on pages only it may never meet it, since pages that
begin elsewhere end elsewhere. If such a walk takes longer than a poll, and most of its last page was new, it
jumps: it continues at the saved cursor, and is not complete.
"""

import enum
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from push_to_poll_client._event_loop import TimeOfDay
from push_to_poll_client._exceptions import StoreError
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._protocols import Session
from push_to_poll_client._status import ConsumerStats
from push_to_poll_client._types import Clock, Cursor, CycleDetector, Page, SavedCursor
from push_to_poll_client._validation import quoted
from push_to_poll_client._work_queue import WorkItem

__all__ = ["Overlap", "Place", "PollWalk"]


logger = ConsumerLog(logging.getLogger("push_to_poll_client"))


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
        passed_at_item = self._index_of_saved(items)
        repeated = items if passed_at_item is None else items[: passed_at_item + 1]
        self._count_late(repeated, stats)
        for item in repeated[: len(repeated) if passed_at_item is None else passed_at_item]:
            item.cursor = None
        at_end = page.next is None
        meets_saved = self.saved is not None and self.saved in {page.cursor, page.next}
        if passed_at_item is not None or meets_saved or at_end:
            self.place, self.passed_at = Place.PAST, now
        if at_end and passed_at_item is None:
            return self._last_cursor  # a message that comes now comes after all of the feed
        return page.cursor if self.place is Place.PAST else None

    def _index_of_saved(self, items: Sequence[WorkItem]) -> int | None:
        if self.saved is None:
            return None
        return next((index for index, item in enumerate(items) if item.cursor == self.saved), None)

    def _count_late(self, items: Sequence[WorkItem], stats: ConsumerStats) -> None:
        last_known = next((index for index in range(len(items) - 1, -1, -1) if items[index].settled), 0)
        stats.counts["late"] += sum(not item.settled for item in items[:last_known])


LAST_WALK_KEY: Final = "looked"
"""Name in a session's state of the time when the last complete walk began, in seconds since the epoch."""

FULL_HISTORY: Final = 257
"""Length of a history that has lost its oldest cursors: 256, and the saved one."""


class Overlap:
    """Choose where the walks of one session start and continue.

    Args:
        session: Keeps the cursors that were saved.
        seconds: How far a walk starts before the saved cursor, in seconds; 0 means at the saved cursor.
        max_poll_time: Seconds after which a poll ends at the next page boundary.
        clock: The event loop's clock.
        time_of_day: The time of day by that clock.

    Raises:
        StoreError: The session's state has a value that this library does not write.
    """

    def __init__(
        self,
        session: Session,
        *,
        seconds: float,
        max_poll_time: float,
        clock: Clock,
        time_of_day: TimeOfDay,
    ) -> None:
        self._session = session
        self._seconds = seconds
        self._max_poll_time = max_poll_time
        self._clock = clock
        self._time_of_day = time_of_day
        try:
            self._last_walk_began = float(session.state.get(LAST_WALK_KEY, "-inf"))
        except ValueError as error:
            raise StoreError(
                f"when the overlap was looked at cannot be read from the store: {quoted(error)}; it is damaged, "
                "or was written by another version"
            ) from error
        if self._last_walk_began > time_of_day.now():  # the clock was set back: start as far back as possible
            self._last_walk_began = -math.inf
        self._oldest_start: SavedCursor | None = None
        self._warned = False

    def initial_state(self) -> Mapping[str, str | None]:
        """Changes of the session's state to commit before the first walk; empty if there are none."""
        known = LAST_WALK_KEY in self._session.state
        if not self._seconds:
            return {LAST_WALK_KEY: None} if known else {}  # it would be too old when an overlap is set again
        if known:
            return {}
        self._last_walk_began = min(self._session.history[-1].at, self._time_of_day.now())
        return {LAST_WALK_KEY: repr(self._last_walk_began)}

    def begin_walk(self) -> PollWalk:
        """Begin a new walk."""
        start, saved, now = self._start(), self._session.cursor, self._clock()
        place = Place.PAST if start == saved else Place.BEFORE
        return PollWalk(start, saved, began=now, position=start, place=place, passed_at=now)

    async def leave(self, walk: PollWalk, *, at_end: bool) -> PollWalk | None:
        """Return what the next poll starts with: this walk, or `None` for a new one.

        Call it at the end of a poll whose messages are committed. A complete walk is recorded, also if it goes on:
        the next process, or the next call of a cron job, then reads less again. One that finds no end is left when
        it has gone far enough past the saved cursor: then the overlap is read again.

        Args:
            walk: The walk.
            at_end: Whether it has reached the end of the feed.

        Raises:
            StoreError: A complete walk could not be recorded. This only makes the next walk longer.
        """
        if walk.place is Place.PAST and self._seconds:
            before, self._last_walk_began = self._start(), self._time_of_day.of(walk.began)
            if self._start() != before:
                state = {LAST_WALK_KEY: repr(self._last_walk_began)}
                await self._session.commit(cursor=None, records=[], state=state)
            if self._is_long_enough(walk):
                return None
        if at_end:
            return None
        if walk.place is Place.BEFORE and walk.mostly_new:
            walk.place, walk.position = Place.JUMPED, self._session.cursor
        return walk

    def _is_long_enough(self, walk: PollWalk) -> bool:
        # If the saved cursor has not moved, as on a feed that has its only cursor at the end, a new walk would
        # begin where this one began, and so would all after it.
        moved = walk.saved != self._session.cursor
        return moved and self._clock() - walk.passed_at >= max(self._max_poll_time, self._seconds)

    def start_expired(self) -> None:
        """Start at no cursor older than the saved one: the feed does not know one of them."""
        self._oldest_start = self._session.history[-1]

    def _start(self) -> Cursor | None:
        """Cursor where the next walk starts, the oldest that is kept if it would have to be older."""
        history = self._session.history
        if not self._seconds:
            return history[-1].cursor
        latest = self._last_walk_began - self._seconds
        known = history[history.index(self._oldest_start) :] if self._oldest_start in history else history
        start = next((saved for saved in reversed(known) if saved.at <= latest), None)
        too_old = start is None and len(known) >= FULL_HISTORY and known[0].cursor is not None
        if too_old and not self._warned:
            self._warned = True
            logger.warning(
                "overlap=%g s reaches further back than the oldest cursor that is kept, which is %.0f s old: what "
                "becomes visible later than that is not found",
                self._seconds,
                self._time_of_day.now() - known[0].at,
            )
        return (start or known[0]).cursor
