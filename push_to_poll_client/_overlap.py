"""Choose where a poll with `overlap` starts, and recognise messages that it reads again.

Some feeds number a message before it becomes visible: a row gets its id when it is inserted, and can be read only
after its transaction commits. A poll may pass such a gap without seeing the message. With `overlap=S` the caller
promises that messages get their places in the order of the feed, and that each is visible at most S seconds later.

A walk reads the feed from the start that is chosen here to its end. It may take several polls. The rule for its
start: the newest saved cursor whose page arrived at least S seconds before the last complete walk began. With
`overlap_cursors=N` it starts at least N saved cursors back.

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
A walk first reads what earlier walks have read. A new message there is a late arrival. No cursor of this part is
saved: the saved cursor would go back, and with it the knowledge of what was read. A walk has passed the saved
cursor when it meets an equal cursor, or at the feed's end. On a feed that has cursors on pages only it may never
meet it, since pages that begin elsewhere end elsewhere. If such a walk takes longer than a poll, it jumps: it
continues at the saved cursor, is no longer complete, and the new messages that it has not counted by then stay
uncounted.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from push_to_poll_client._event_loop import TimeOfDay
from push_to_poll_client._exceptions import StoreError
from push_to_poll_client._protocols import Session
from push_to_poll_client._status import ConsumerStats
from push_to_poll_client._types import Clock, Cursor, Page, SavedCursor
from push_to_poll_client._validation import quoted
from push_to_poll_client._work_queue import WorkItem

__all__ = ["Overlap", "OverlapStart"]


logger = logging.getLogger("push_to_poll_client")

MAX_SEEN: Final = 50_000
"""Keys that are kept until the saved cursor is passed (G11): a message that the feed repeats within a walk does
not show that the new messages before it are late. Keys beyond are not recognised as repeated, so counts of late
arrivals may be too high."""


class Overlap:
    """One walk, which may take several polls.

    Args:
        stats: Are told of late arrivals: new messages before one that was known.
        counted: Keys of late arrivals that are counted and not yet settled. It outlives a walk that fails, since
            the next one reads them again.
        start: Where the walk starts.
        saved: The saved cursor.
        clock: The event loop's clock.

    Attributes:
        start: As given.
        began: When the walk began, on the event loop's clock.
        passed_at: When the walk was seen to have passed the saved cursor, on that clock; `None` if it was not.
        should_jump: True if it was not, and the last page was all new: most likely the walk has passed it.
    """

    def __init__(
        self, stats: ConsumerStats, counted: set[str], *, start: Cursor | None, saved: Cursor | None, clock: Clock
    ) -> None:
        self.start = start
        self.began = clock()
        self.passed_at: float | None = self.began if start == saved else None
        self.should_jump = False
        self._stats = stats
        self._counted = counted
        self._saved = saved
        self._clock = clock
        self._jumped = False
        self._last_cursor: Cursor | None = None
        self._new: dict[str, None] = {}
        self._seen: dict[str, bool] = {}  # by key, whether the message was new

    @property
    def past_saved_cursor(self) -> bool:
        """Whether messages that come now come after the saved cursor."""
        return self._jumped or self.passed_at is not None

    @property
    def is_complete(self) -> bool:
        """Whether the walk has left nothing out of what it has passed."""
        return not self._jumped

    def jump(self) -> None:
        """Continue at the saved cursor."""
        self._jumped, self.should_jump = True, False

    def restart(self) -> None:
        """Start again, and remember which messages are new to this walk."""
        self._new = {}
        self._seen = {key: True for key, was_new in self._seen.items() if was_new}

    def inspect_page(self, page: Page, items: Sequence[WorkItem]) -> Cursor | None:
        """Count late arrivals of a page, and find out whether it passes the saved cursor.

        Args:
            page: The page.
            items: Its messages. Those that may come before the saved cursor lose their cursors.

        Returns:
            A cursor that may be saved when the whole page is settled; `None` leaves it to the messages.
        """
        if self.past_saved_cursor:
            return page.cursor
        # The last page of a feed may be empty, and have no cursor.
        cursors = (page.cursor, *(item.cursor for item in reversed(items)))
        self._last_cursor = next((cursor for cursor in cursors if cursor is not None), self._last_cursor)
        self.should_jump = bool(items)
        for item in items:
            self._inspect_item(item)
        if self._saved is not None and self._saved in {page.cursor, page.next}:
            self._mark_passed()
        if page.next is None:
            self.passed_at = self._clock()  # a message that comes now comes after all of the feed
            return self._last_cursor
        return page.cursor if self.past_saved_cursor else None

    def _inspect_item(self, item: WorkItem) -> None:
        if self.past_saved_cursor:
            return
        is_new = self._seen.get(item.key, not item.settled)
        if not is_new and item.key not in self._seen:
            self.should_jump = False
            self._counted.discard(item.key)
            self._count_late()
        if self._saved is not None and item.cursor == self._saved:
            self._mark_passed()
            return
        item.cursor = None
        if is_new:
            self._new[item.key] = None
        if len(self._seen) < MAX_SEEN:
            self._seen[item.key] = is_new

    def _mark_passed(self) -> None:
        self._count_late()
        self.passed_at, self.should_jump, self._seen = self._clock(), False, {}

    def _count_late(self) -> None:
        late = self._new.keys() - self._counted
        self._stats.counts["late"] += len(late)
        self._counted |= late
        self._new = {}


LAST_WALK_KEY: Final = "looked"
"""Name in a session's state of the time when the last complete walk began, in seconds since the epoch."""

FULL_HISTORY: Final = 257
"""Length of a history that has lost its oldest cursors: 256, and the saved one."""


def _read_last_walk(state: Mapping[str, str]) -> float:
    """Read when the last complete walk began, in seconds since the epoch; -inf if there was none."""
    try:
        return float(state.get(LAST_WALK_KEY, "-inf"))
    except ValueError as error:
        raise StoreError(
            f"when the overlap was looked at cannot be read from the store: {quoted(error)}; it is damaged, or "
            "was written by another version"
        ) from error


class OverlapStart:
    """Choose where the walks of one session start.

    Args:
        session: Keeps the cursors that were saved.
        stats: Are told of late arrivals.
        seconds: How far a walk starts before the saved cursor, in seconds.
        cursors: How far a walk starts before it, in saved cursors.
        clock: The event loop's clock.
        time_of_day: The time of day by that clock.

    Raises:
        StoreError: The session's state has a value that this library does not write.
    """

    def __init__(
        self,
        session: Session,
        stats: ConsumerStats,
        *,
        seconds: float,
        cursors: int,
        clock: Clock,
        time_of_day: TimeOfDay,
    ) -> None:
        self._session = session
        self._stats = stats
        self._seconds = seconds
        self._cursors = cursors
        self._clock = clock
        self._time_of_day = time_of_day
        self._last_walk_began = _read_last_walk(session.state)
        self._skip_through: SavedCursor | None = None
        self._counted = set[str]()
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

    def begin_walk(self) -> Overlap | None:
        """Begin a walk; `None` if polls simply start at the saved cursor."""
        if not self._seconds and not self._cursors:
            return None
        saved = self._session.history[-1].cursor
        return Overlap(self._stats, self._counted, start=self._start(), saved=saved, clock=self._clock)

    def may_end_early(self, walk: Overlap, *, after: float) -> bool:
        """Whether a walk that finds no end has gone far enough, so that the overlap is to be read again.

        Args:
            walk: The walk.
            after: Seconds past the saved cursor that it may take at least.
        """
        beyond = -1.0 if walk.passed_at is None else self._clock() - walk.passed_at
        return beyond >= max(after, self._seconds)

    async def finish_walk(self, walk: Overlap) -> None:
        """Record a walk that has left nothing out and whose messages are committed.

        Raises:
            StoreError: It could not be saved. This only makes the next walk longer.
        """
        before, self._last_walk_began = self._start(), self._time_of_day.of(walk.began)
        self._counted.clear()
        if self._seconds and self._start() != before:
            await self._session.commit(cursor=None, records=[], state={LAST_WALK_KEY: repr(self._last_walk_began)})

    def replace_expired_start(self, start: Cursor | None) -> Cursor | None:
        """Return the saved cursor, where a walk starts if the feed no longer knows the start that was chosen."""
        history = self._session.history
        number = next((number for number, saved in enumerate(history) if saved.cursor == start), 0)
        # The next walk tries a newer start, half the way to the saved cursor: eight walks find one that is known.
        self._skip_through = history[(number + len(history) - 1) // 2]
        return history[-1].cursor

    def _start(self) -> Cursor | None:
        """Cursor where the next walk starts, the oldest that is kept if it would have to be older."""
        history = self._session.history
        if self._skip_through in history:
            history = history[history.index(self._skip_through) + 1 :]
        by_number = max(len(history) - 1 - self._cursors, 0)
        return history[min(by_number, self._index_by_time(history))].cursor

    def _index_by_time(self, history: Sequence[SavedCursor]) -> int:
        newest = len(history) - 1
        if not self._seconds:
            return newest
        latest = self._last_walk_began - self._seconds
        number = next((number for number in range(newest, -1, -1) if history[number].at <= latest), None)
        oldest = history[0]
        too_old = number is None and len(history) >= FULL_HISTORY and oldest.cursor is not None
        if too_old and not self._warned:
            self._warned = True
            logger.warning(
                "overlap=%g s reaches further back than the oldest cursor that is kept, which is %.0f s old: what "
                "becomes visible later than that is not found",
                self._seconds,
                self._time_of_day.now() - oldest.at,
            )
        return number or 0
