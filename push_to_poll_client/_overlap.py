"""Choose where a poll with `overlap` starts, and recognise what it reads again.

Such a walk comes first through what was read before. There a new message is a late one. No cursor is saved that
stands there: the saved one would go back, and with it what is known to have been looked at. That the saved cursor
is passed shows when its like is met, or at the feed's end. On a feed whose cursors stand on pages alone it may be
met nowhere, since pages that begin elsewhere end elsewhere. If such a walk takes longer than a poll, it goes on at
the saved cursor (it jumps), is no longer a whole one, and leaves what was new before uncounted.

Why nothing is lost
-------------------
A message takes its place when it is drawn, in that order, and is visible `overlap` seconds later at the most.

    (1)  A cursor is of a page that arrived at a time `at`. What is drawn later stands behind that cursor.
    (2)  A walk began at `looked`, and read each page after that. A message that it passed without seeing it was
         not visible then, so it was drawn later than `looked - overlap`.

So a message that was passed unseen stands behind every cursor with `at <= looked - overlap`: the newest of these
is where the next walk starts. By induction all before it is settled: the walk before has started there or further
back. Of a page it is thus the arrival that counts, since it may have been asked for much earlier (long polling),
and of a walk the beginning, since its first pages were read long before its last (slow handlers).

`looked` is when the newest walk began that came from there to the feed's end, or at least past the cursor that was
saved when it began, and whose messages are committed. It is kept in the session's state. One that is older than it
might be only makes the next walk longer. After a quiet time the saved cursor itself is old enough, and walks start
there.

It holds as long as the times of day do. A clock that is set back makes walks longer; one that is set forward
between two runs takes the jump off the overlap. By what a cache or a replica is behind `overlap` has to be longer.
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

__all__ = [
    "Overlap",
    "OverlapStart",
]


MAX_SEEN: Final = 50_000
"""Keys that are kept until the saved cursor is passed (G11), since what a feed repeats within a walk says nothing
of what stands before it. Beyond, that is not told apart, and counts of late arrivals may be too high."""


class Overlap:
    """One walk, which may take several polls.

    Args:
        tally: Told of late arrivals: new messages that stand before one that was known.
        counted: The keys of late arrivals that are counted and not yet settled; a walk that fails is walked again.
        start: Where it starts.
        saved: The saved cursor.
        clock: The event loop's.

    Attributes:
        start: As given.
        began: When it began, on the event loop's clock.
        passed_at: When it was seen to have passed the saved cursor, likewise; `None`: it was not.
        jumps: It has not, and the last page is all new: most likely it has.
    """

    def __init__(
        self, tally: ConsumerStats, counted: set[str], *, start: Cursor | None, saved: Cursor | None, clock: Clock
    ) -> None:
        self.start = start
        self.began = clock()
        self.passed_at: float | None = self.began if start == saved else None
        self.should_jump = False
        self._stats = tally
        self._counted = counted
        self._saved = saved
        self._clock = clock
        self._jumped = False
        self._last_cursor: Cursor | None = None
        self._new: dict[str, None] = {}
        self._seen: dict[str, bool] = {}  # whether it was new

    @property
    def past_saved_cursor(self) -> bool:
        """Whether what comes now stands behind the saved cursor."""
        return self._jumped or self.passed_at is not None

    @property
    def is_complete(self) -> bool:
        """Whether it has left nothing out of what it has passed."""
        return not self._jumped

    def jump(self) -> None:
        """It goes on at the saved cursor."""
        self._jumped, self.should_jump = True, False

    def restart(self) -> None:
        """It starts again. What is new to it stays so."""
        self._new = {}
        self._seen = {key: True for key, was_new in self._seen.items() if was_new}

    def inspect_page(self, page: Page, items: Sequence[WorkItem]) -> Cursor | None:
        """Look at a page.

        Args:
            page: The page.
            items: Its messages. Those that do not stand behind the saved cursor for certain lose their cursors.

        Returns:
            A cursor that may be saved when all of the page is settled; `None` leaves it to the messages.
        """
        if self.past_saved_cursor:
            return page.cursor
        self._remember_last_cursor(page, items)
        self.should_jump = bool(items)
        for item in items:
            self._inspect_item(item)
        if self._saved is not None and self._saved in {page.cursor, page.next}:
            self._mark_passed()
        if page.next is None:
            self.passed_at = self._clock()  # all that comes now is behind all that there was
            return self._last_cursor
        return page.cursor if self.past_saved_cursor else None

    def _remember_last_cursor(self, page: Page, items: Sequence[WorkItem]) -> None:
        """The last page of a feed may be empty, and have no cursor."""
        cursors = (page.cursor, *(item.cursor for item in reversed(items)))
        self._last_cursor = next((cursor for cursor in cursors if cursor is not None), self._last_cursor)

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


logger = logging.getLogger("push_to_poll_client")

LAST_WALK_KEY: Final = "looked"
"""What `looked` is called in a session's state: seconds since the epoch."""

FULL_HISTORY: Final = 257
"""Cursors of a history that has lost its oldest: 256, and the saved one."""


class OverlapStart:
    """Where walks of one session start.

    Args:
        session: Keeps the cursors that were saved.
        tally: Told of late arrivals.
        seconds: By which a walk starts behind the saved cursor.
        cursors: Saved cursors by which it does.
        clock: The event loop's.
        time_of_day: Likewise.

    Raises:
        StoreError: The session kept what this library does not write.
    """

    def __init__(
        self,
        session: Session,
        tally: ConsumerStats,
        *,
        seconds: float,
        cursors: int,
        clock: Clock,
        time_of_day: TimeOfDay,
    ) -> None:
        self._session = session
        self._stats = tally
        self._seconds = seconds
        self._cursors = cursors
        self._clock = clock
        self._time_of_day = time_of_day
        self._last_walk_began = _read_last_walk(session.state)
        self._skip_through: SavedCursor | None = None
        self._counted = set[str]()
        self._warned = False

    def initial_state(self) -> Mapping[str, str | None]:
        """What is to be kept before the first walk, as a session's state; empty when all is."""
        known = LAST_WALK_KEY in self._session.state
        if not self._seconds:
            return {LAST_WALK_KEY: None} if known else {}  # it would be long ago when an overlap is set again
        if known:
            return {}
        self._last_walk_began = min(self._session.history[-1].at, self._time_of_day.now())
        return {LAST_WALK_KEY: repr(self._last_walk_began)}

    def begin_walk(self) -> Overlap | None:
        """One that begins now; `None`: it simply starts at the saved cursor."""
        if not self._seconds and not self._cursors:
            return None
        saved = self._session.history[-1].cursor
        return Overlap(self._stats, self._counted, start=self._start(), saved=saved, clock=self._clock)

    def may_end_early(self, walk: Overlap, *, after: float) -> bool:
        """Whether a walk that finds no end has gone far enough to be ended: what it has passed is looked at again.

        Args:
            walk: It.
            after: Seconds that it may take at least.
        """
        beyond = -1.0 if walk.passed_at is None else self._clock() - walk.passed_at
        return beyond >= max(after, self._seconds)

    async def finish_walk(self, walk: Overlap) -> None:
        """One has ended that has left nothing out, and all that it brought is committed.

        Raises:
            StoreError: That could not be kept. It only makes the next walk longer.
        """
        before, self._last_walk_began = self._start(), self._time_of_day.of(walk.began)
        self._counted.clear()
        if self._seconds and self._start() != before:
            await self._session.commit(cursor=None, records=[], state={LAST_WALK_KEY: repr(self._last_walk_began)})

    def replace_expired_start(self, start: Cursor | None) -> Cursor | None:
        """The feed does not know where a walk was to start: the saved cursor, where this one starts instead.

        The next one tries a newer one, half the way to the saved one: eight walks find what is still known.
        """
        history = self._session.history
        number = next((number for number, saved in enumerate(history) if saved.cursor == start), 0)
        self._skip_through = history[(number + len(history) - 1) // 2]
        return history[-1].cursor

    def _start(self) -> Cursor | None:
        """Clamped to the oldest that is kept."""
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
        if number is None and len(history) >= FULL_HISTORY and history[0].cursor is not None:
            self._warn(history[0])
        return number or 0

    def _warn(self, oldest: SavedCursor) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "overlap=%g s reaches further back than the oldest cursor that is kept, which is %.0f s old: what "
                "becomes visible later than that is not found",
                self._seconds,
                self._time_of_day.now() - oldest.at,
            )


def _read_last_walk(state: Mapping[str, str]) -> float:
    """When the overlap was looked at last, in seconds since the epoch; -inf: never."""
    try:
        return float(state.get(LAST_WALK_KEY, "-inf"))
    except ValueError as error:
        raise StoreError(
            f"when the overlap was looked at cannot be read from the store: {quoted(error)}; it is damaged, or "
            "was written by another version"
        ) from error
