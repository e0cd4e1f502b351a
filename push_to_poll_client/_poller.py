"""One poll: fetch and settle pages until caught up, or for `max_poll_time`."""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from push_to_poll_client._exceptions import ChainRestart, FeedError
from push_to_poll_client._fetches import Ahead, Fetches
from push_to_poll_client._processor import Processor
from push_to_poll_client._schedule import Schedule
from push_to_poll_client._status import PollResult, Tally
from push_to_poll_client._types import Clock, Cursor, Feed, FetchRequest, Page, Push, Session

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
        session: Where the saved cursor is.
        processor: Settles the pages.
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
        session: Session,
        processor: Processor,
        schedule: Schedule,
        tally: Tally,
        *,
        max_poll_time: float,
        clock: Clock,
    ) -> None:
        self._fetches = Fetches(feed, schedule, clock)
        self.max_wait: float = self._fetches.max_wait
        self._session = session
        self._processor = processor
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
        stopping: Callable[[], bool] | None = None,
    ) -> PollResult | None:
        """Fetch and settle pages.

        Args:
            wait: Seconds for which the server may hold the first answer.
            hint: The push that caused this poll.
            fresh: Go past caches.
            stopping: As for `Processor.settle`.

        Returns:
            What was done; `None`: the waiting fetch gave way.

        Raises:
            FeedError: A fetch failed. The next poll starts at the saved cursor.
            MessageFailed: A message failed for good.
            StoreError: The store could not be read or written.
        """
        walk = _Walk(self._tally.counts)
        until = self._clock() + wait + self._max_poll_time
        request = FetchRequest(self._session.cursor if self._next is None else self._next, wait, hint, fresh)
        self._next, self._ahead, ahead = None, None, self._ahead
        while True:
            try:
                page = ahead.take() if ahead and not ahead.cancelled else await self._fetches.fetch(request)
            except ChainRestart:
                walk.restart()
                request, ahead = replace(request, cursor=self._session.cursor, wait=0.0), None
                if self._must_stop(until):
                    return walk.result(caught_up=False)
                continue
            if page is None:
                return None
            self._tally.counts["pages"] += 1
            ahead = self._next_ahead(request, page, until)
            complete = await self._settle(page, ahead, stopping)
            if not complete or page.next is None or walk.stands_still(request.cursor, page.next):
                return walk.result(caught_up=complete)
            request = replace(request, cursor=page.next, wait=0.0)
            if self._must_stop(until):
                self._next = page.next
                self._keep(ahead)
                return walk.result(caught_up=False)

    def _must_stop(self, until: float) -> bool:
        now = self._clock()
        return now >= until or self._schedule.server_not_before > now

    def _keep(self, ahead: Ahead | None) -> None:
        """For the next poll. But what is the feed's last page now may not be it then (G1): fetched again."""
        if ahead is not None and ahead.last:
            ahead.heed()
        self._ahead = None if ahead is None or ahead.last else ahead

    def _next_ahead(self, request: FetchRequest, page: Page, until: float) -> Ahead | None:
        likely = self._fetches.read_ahead and len(page.messages) >= AHEAD_FROM
        if not likely or page.next in {None, request.cursor} or self._must_stop(until):
            return None
        return Ahead(self._fetches, replace(request, cursor=page.next, wait=0.0))

    async def _settle(self, page: Page, ahead: Ahead | None, stopping: Callable[[], bool] | None) -> bool:
        settle = functools.partial(self._processor.settle, page, stopping=stopping)
        return await (settle() if ahead is None else ahead.beside(settle))


class _Walk:
    """What one poll has done so far."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._before = counts.copy()
        self._seen = counts["messages"]
        self._restarts = 0
        self._circle = Circle()

    def restart(self) -> None:
        self._restarts += 1
        self._circle = Circle()
        if self._restarts > MAX_RESTARTS:
            raise FeedError(f"the pages changed under the walk {self._restarts} times in one poll")

    def stands_still(self, position: Cursor | None, following: Cursor) -> bool:
        """Whether going on would bring nothing: no new message, and no new cursor."""
        if self._counts["messages"] > self._seen:
            self._seen, self._circle = self._counts["messages"], Circle()
            return False
        return following == position or self._circle.closes_at(following)

    def result(self, *, caught_up: bool) -> PollResult:
        done = {name: self._counts[name] - self._before[name] for name in ("messages", "duplicates", "pages")}
        return PollResult(**done, caught_up=caught_up)
