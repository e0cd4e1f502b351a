"""One poll: fetch and settle pages until caught up, or for `max_poll_time`."""

from collections import Counter
from dataclasses import replace

from push_to_poll_client._event_loop import Beside
from push_to_poll_client._exceptions import ChainRestart, FeedError
from push_to_poll_client._fetches import Ahead, Fetches
from push_to_poll_client._processor import Processor, Stop
from push_to_poll_client._progress import Progress
from push_to_poll_client._schedule import Schedule
from push_to_poll_client._status import PollResult, Tally
from push_to_poll_client._types import Clock, Cursor, Feed, FetchRequest, Page, Push

__all__ = ["Poller"]

MAX_RESTARTS = 3
"""How often a poll starts a chain of pages again; a feed that changes faster is left to backoff."""


AHEAD_FROM = 10
"""Messages of a page from which on the next page is fetched ahead: a shorter one is most likely the last, and its
messages would wait for the request to be sent."""


class Circle:
    """Notices a walk that goes in circles, in constant memory (Brent's algorithm)."""

    def __init__(self) -> None:
        self._mark: Cursor | None = None
        self._steps, self._limit = 0, 1

    def closes_at(self, position: Cursor) -> bool:
        """Whether the walk was at this position before."""
        if position == self._mark:
            return True
        self._steps += 1
        if self._steps == self._limit:
            self._mark, self._steps, self._limit = position, 0, self._limit * 2
        return False


class Poller:
    """Walks the feed from where the last poll stopped.

    Args:
        feed: What to ask.
        processor: Settles the pages.
        progress: Commits what is settled, and knows the saved cursor.
        schedule: Told what the server asks for, which holds for further pages too.
        tally: Told of each page.
        max_poll_time: Seconds after which a poll ends at the next page boundary.
        clock: The event loop's.

    Attributes:
        max_wait: Seconds for which the feed can hold an answer; 0: it cannot.
    """

    def __init__(
        self,
        feed: Feed,
        processor: Processor,
        progress: Progress,
        schedule: Schedule,
        tally: Tally,
        *,
        max_poll_time: float,
        clock: Clock,
    ) -> None:
        self._fetches = Fetches(feed, schedule, clock)
        self.max_wait: float = self._fetches.max_wait
        self._processor = processor
        self._progress = progress
        self._max_poll_time = max_poll_time
        self._schedule = schedule
        self._tally = tally
        self._clock = clock
        self._next: Cursor | None = None
        self._ahead: Ahead | None = None

    def give_way(self) -> None:
        """Cancel a waiting fetch, if there is one. Its answer, even if on its way, is fetched again."""
        self._fetches.give_way()

    async def poll(
        self,
        *,
        wait: float = 0.0,
        hint: Push | None = None,
        fresh: bool = False,
        stop: Stop | None = None,
    ) -> PollResult | None:
        """Fetch and settle pages.

        Args:
            wait: Seconds for which the server may hold the first answer.
            hint: The push that caused this poll.
            fresh: Go past caches.
            stop: As for `Processor.settle`.

        Returns:
            What was done; `None`: the waiting fetch gave way.

        Raises:
            FeedError: A fetch failed. The next poll starts at the saved cursor.
            MessageFailed: A message failed for good.
            StoreError: The store could not be read or written.
        """
        await self._progress.flush()  # what the last poll could not
        walk = _Walk(self._progress, self._tally.counts)
        until = self._clock() + wait + self._max_poll_time
        request = FetchRequest(self._progress.saved if self._next is None else self._next, wait, hint, fresh)
        self._next = None
        try:
            async with Beside() as beside:
                caught_up = await self._pages(walk, request, until, stop, beside)
        finally:
            self._drop_ahead()
            await self._progress.finish()
        return None if caught_up is None else walk.result(caught_up=caught_up)

    async def _pages(
        self, walk: "_Walk", request: FetchRequest, until: float, stop: Stop | None, beside: Beside
    ) -> bool | None:
        """From page to page; whether that led to the end of the feed. `None`: the waiting fetch gave way."""
        while True:
            try:
                page = await self._fetch(request)
            except ChainRestart:
                walk.restart()
                await self._progress.flush()
                request = replace(request, cursor=self._progress.saved, wait=0.0)
                if self._must_stop(until):
                    return False
                continue
            if page is None:
                return None
            self._tally.counts["pages"] += 1
            await self._begin_ahead(request, page, until, beside)
            complete = await self._processor.settle(page, stop=stop, beside=beside.tasks if self._ahead else None)
            if not complete or page.next is None or walk.stands_still(request.cursor, page.next):
                return complete
            request = replace(request, cursor=page.next, wait=0.0)
            if self._must_stop(until):
                await self._keep(page.next)
                return False

    async def _fetch(self, request: FetchRequest) -> Page | None:
        ahead, self._ahead = self._ahead, None
        return await (self._fetches.fetch(request) if ahead is None else ahead.take())

    async def _begin_ahead(self, request: FetchRequest, page: Page, until: float, beside: Beside) -> None:
        likely = self._fetches.read_ahead and len(page.messages) >= AHEAD_FROM
        if likely and page.next not in {None, request.cursor} and not self._must_stop(until):
            self._ahead = Ahead(self._fetches, replace(request, cursor=page.next, wait=0.0))
            await beside.start(self._ahead.fetch)

    async def _keep(self, following: Cursor) -> None:
        """The next poll goes on there, with what is fetched of it already."""
        if self._ahead is not None:
            await self._ahead.ended()
        self._next = following

    def _drop_ahead(self) -> None:
        """Unless it is kept. But what is the feed's last page now may not be it at the next poll (G1)."""
        if self._ahead is not None and (self._next is None or self._ahead.last):
            self._ahead.heed()
            self._ahead = None

    def _must_stop(self, until: float) -> bool:
        now = self._clock()
        return now >= until or self._schedule.server_not_before > now


class _Walk:
    """What one poll has done so far."""

    def __init__(self, progress: Progress, counts: Counter[str]) -> None:
        self._progress = progress
        self._counts = counts
        self._before = counts.copy()
        self._seen = progress.settled
        self._restarts = 0
        self._circle = Circle()

    def restart(self) -> None:
        self._restarts += 1
        self._circle = Circle()
        if self._restarts > MAX_RESTARTS:
            raise FeedError(f"the pages changed under the walk {self._restarts} times in one poll")

    def stands_still(self, position: Cursor | None, following: Cursor) -> bool:
        """Whether going on would bring nothing: no new message, and no new cursor."""
        if self._progress.settled > self._seen:
            self._seen, self._circle = self._progress.settled, Circle()
            return False
        return following == position or self._circle.closes_at(following)

    def result(self, *, caught_up: bool) -> PollResult:
        done = {name: self._counts[name] - self._before[name] for name in ("messages", "duplicates", "pages")}
        return PollResult(**done, caught_up=caught_up)
