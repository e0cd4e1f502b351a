"""ONCE MORE, ON PURPOSE: a range of the feed goes to the handler again, whatever was processed of it."""

from collections.abc import Sequence
from itertools import repeat

import anyio

from push_to_poll_client._circle import Circle
from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._polling.fetches import Fetches
from push_to_poll_client._polling.gaps import Gaps
from push_to_poll_client._processing.intake import Intake
from push_to_poll_client._processing.progress import Progress
from push_to_poll_client._processing.trials import Postponed, Stop, Trials
from push_to_poll_client._processing.work import Item
from push_to_poll_client._status import PollResult
from push_to_poll_client._types import Cursor, FetchRequest, Message, Page, Record

__all__ = ["Replay"]


class Replay:
    """Replays ranges of one session's feed. The cursor stays where it is; records are made anew.

    Args:
        fetches: Asks the feed.
        intake: Knows what messages are known by.
        trials: Settles the messages, one after the other.
        progress: Commits the records.
        gaps: Told what is missing before a page.
    """

    def __init__(self, fetches: Fetches, intake: Intake, trials: Trials, progress: Progress, gaps: Gaps) -> None:
        self._fetches = fetches
        self._intake = intake
        self._trials = trials
        self._progress = progress
        self._gaps = gaps

    async def run(self, start: Cursor | None, end: Cursor | None) -> PollResult:
        """Replay what comes after `start`, up to the message or page of which `end` is the cursor.

        Args:
            start: Where to begin; `None` is the inception.
            end: Where to end; `None`: at the end of the feed.

        Returns:
            What was done; `caught_up` says that the end of the feed was reached, and `end` not seen.

        Raises:
            FeedError: A fetch failed, or the feed goes in circles. What was replayed is recorded.
            ProcessError: A message failed for good; likewise.
            StoreError: The store failed.
        """
        messages, pages, position, circle = 0, 0, start, Circle()
        ends = end is not None and end == start
        while not ends:
            page = await self._fetch(position)
            some, ends = _up_to(page, end)
            await self._settle(some)
            messages, pages = messages + len(some), pages + 1
            if not ends and page.next in {None, position}:
                return PollResult(messages, 0, pages, caught_up=True, closed=page.closed)
            position = page.next
            if position is not None and not ends and circle.closes_at(position):
                raise FeedError("the pages of the feed lead in a circle; the replay ends there")
        return PollResult(messages, 0, pages, caught_up=False)

    async def _fetch(self, position: Cursor | None) -> Page:
        await self._fetches.allowed()
        page = await self._fetches.fetch(FetchRequest(position))
        assert page is not None  # it was not to wait  # noqa: S101
        await self._gaps.before(position, page.gap)
        return page

    async def _settle(self, messages: Sequence[Message]) -> None:
        (keys, odd), now = self._intake.known_as(messages), self._fetches.now()
        new = repeat(True, len(keys))  # noqa: FBT003  # whatever was processed of it
        items = await self._intake.items(messages, keys, new, odd, in_hand=(), read_at=now, arrived=now)
        try:
            for item in items:
                await self._settle_one(item)
        finally:  # what is settled is: the saved cursor is past it, so a dead letter would not come again
            await self._progress.flush()

    async def _settle_one(self, item: Item) -> None:
        while True:
            try:
                state = await self._trials.settle(item.key, item.message, Stop(), error=item.error)
            except Postponed as postponed:
                await anyio.sleep_until(postponed.until)
            else:
                self._progress.pending.append(Record(item.key, state, item.fingerprint))
                return


def _up_to(page: Page, end: Cursor | None) -> tuple[Sequence[Message], bool]:
    """The messages of the page up to the one with this cursor, and whether the range ends with them."""
    for number, message in enumerate(page.messages):
        if end is not None and message.cursor == end:
            return page.messages[: number + 1], True
    return page.messages, end is not None and end in {page.cursor, page.next}
