"""WHAT WAS READ BEFORE: a walk that starts behind the saved cursor, for feeds on which messages appear late.

Such a walk comes first through what was read before. There a new message is a late one. No cursor is saved that
stands there: the saved one would go back, and with it what is known to have been looked at. That the saved cursor
is passed shows when its like is met, or at the feed's end. On a feed whose cursors stand on pages alone it may be
met nowhere, since pages that begin elsewhere end elsewhere. If such a walk takes longer than a poll, it goes on at
the saved cursor (it jumps), is no longer a whole one, and leaves what was new before uncounted.
"""

from collections.abc import Sequence
from typing import Final

from push_to_poll_client._processing.work import Item
from push_to_poll_client._status import Tally
from push_to_poll_client._types import Clock, Cursor, Page

__all__ = ["Overlap"]

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
        self, tally: Tally, counted: set[str], *, start: Cursor | None, saved: Cursor | None, clock: Clock
    ) -> None:
        self.start = start
        self.began = clock()
        self.passed_at: float | None = self.began if start == saved else None
        self.jumps = False
        self._tally = tally
        self._counted = counted
        self._saved = saved
        self._clock = clock
        self._jumped = False
        self._last: Cursor | None = None
        self._new: dict[str, None] = {}
        self._seen: dict[str, bool] = {}  # whether it was new

    @property
    def passed(self) -> bool:
        """Whether what comes now stands behind the saved cursor."""
        return self._jumped or self.passed_at is not None

    @property
    def whole(self) -> bool:
        """Whether it has left nothing out of what it has passed."""
        return not self._jumped

    def jump(self) -> None:
        """It goes on at the saved cursor."""
        self._jumped, self.jumps = True, False

    def restart(self) -> None:
        """It starts again. What is new to it stays so."""
        self._new = {}
        self._seen = {key: True for key, was_new in self._seen.items() if was_new}

    def cursor(self, page: Page, items: Sequence[Item]) -> Cursor | None:
        """Look at a page.

        Args:
            page: The page.
            items: Its messages. Those that do not stand behind the saved cursor for certain lose their cursors.

        Returns:
            A cursor that may be saved when all of the page is settled; `None` leaves it to the messages.
        """
        if self.passed:
            return page.cursor
        self._keep_last(page, items)
        self.jumps = bool(items)
        for item in items:
            self._look(item)
        if self._saved is not None and self._saved in {page.cursor, page.next}:
            self._pass()
        if page.next is None:
            self.passed_at = self._clock()  # all that comes now is behind all that there was
            return self._last
        return page.cursor if self.passed else None

    def _keep_last(self, page: Page, items: Sequence[Item]) -> None:
        """The last page of a feed may be empty, and have no cursor."""
        cursors = (page.cursor, *(item.cursor for item in reversed(items)))
        self._last = next((cursor for cursor in cursors if cursor is not None), self._last)

    def _look(self, item: Item) -> None:
        if self.passed:
            return
        is_new = self._seen.get(item.key, not item.settled)
        if not is_new and item.key not in self._seen:
            self.jumps = False
            self._counted.discard(item.key)
            self._count()
        if self._saved is not None and item.cursor == self._saved:
            self._pass()
            return
        item.cursor = None
        if is_new:
            self._new[item.key] = None
        if len(self._seen) < MAX_SEEN:
            self._seen[item.key] = is_new

    def _pass(self) -> None:
        self._count()
        self.passed_at, self.jumps, self._seen = self._clock(), False, {}

    def _count(self) -> None:
        late = self._new.keys() - self._counted
        self._tally.counts["late"] += len(late)
        self._counted |= late
        self._new = {}
