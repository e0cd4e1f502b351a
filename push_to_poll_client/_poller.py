"""One poll: fetch and settle pages until caught up, or for `max_poll_time`."""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeGuard

import anyio

from push_to_poll_client._event_loop import failure_of
from push_to_poll_client._exceptions import ChainRestart, FeedError
from push_to_poll_client._processor import Processor
from push_to_poll_client._schedule import Schedule
from push_to_poll_client._status import PollResult, Tally
from push_to_poll_client._text import describe
from push_to_poll_client._types import Clock, Cursor, Feed, FetchRequest, Message, Page, Push, Session

__all__ = ["Poller"]

MAX_RESTARTS = 3
"""How often a poll starts a chain of pages again; a feed that changes faster is left to backoff."""


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
        self.max_wait: float = getattr(feed, "max_wait", None) or 0.0
        self._feed = feed
        self._session = session
        self._processor = processor
        self._max_poll_time = max_poll_time
        self._schedule = schedule
        self._tally = tally
        self._clock = clock
        self._next: Cursor | None = None
        self._waiting: anyio.CancelScope | None = None

    def give_way(self) -> None:
        """Cancel a waiting fetch, if there is one. Its answer, even if on its way, is fetched again."""
        if self._waiting is not None:
            self._waiting.cancel()

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
        position, self._next = self._session.cursor if self._next is None else self._next, None
        until = self._clock() + wait + self._max_poll_time
        while True:
            try:
                request = FetchRequest(position, wait, hint, fresh)
                page = await (self._fetch_unless_woken(request) if wait else self._fetch(request))
            except ChainRestart:
                walk.restart()
                position, wait = self._session.cursor, 0.0
                if self._must_stop(until):
                    return walk.result(caught_up=False)
                continue
            if page is None:
                return None
            self._tally.counts["pages"] += 1
            wait = 0.0
            complete = await self._processor.settle(page, stopping=stopping)
            if not complete or page.next is None or walk.stands_still(position, page.next):
                return walk.result(caught_up=complete)
            position = page.next
            if self._must_stop(until):
                self._next = position
                return walk.result(caught_up=False)

    def _must_stop(self, until: float) -> bool:
        now = self._clock()
        return now >= until or self._schedule.server_not_before > now

    async def _fetch_unless_woken(self, request: FetchRequest) -> Page | None:
        self._waiting = anyio.CancelScope()
        with self._waiting:
            try:
                return await self._fetch(request)
            finally:
                self._waiting = None
        return None

    async def _fetch(self, request: FetchRequest) -> Page:
        name = f"{type(self._feed).__name__}.fetch()"
        try:
            page = await self._feed.fetch(request)
        except FeedError as error:
            self._heed(error.retry_after)
            raise
        except Exception as error:
            raise FeedError(f"{name} raised {describe(error)}") from error
        except anyio.get_cancelled_exc_class() as cancelled:
            raise FeedError(str(failure_of(cancelled, name))) from cancelled
        _check(page, name)
        self._heed(page.retry_after)
        return page

    def _heed(self, retry_after: object) -> None:
        if _is_seconds(retry_after):
            self._schedule.not_before(self._clock(), retry_after, jitter=random.random())  # noqa: S311


def _is_seconds(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not math.isnan(value)


def _check(page: object, name: str) -> None:
    """What a feed returns is input like any other: what cannot be used is a failed poll."""
    if not isinstance(page, Page):
        raise FeedError(f"{name} returned {type(page).__name__}, not a Page")
    if not isinstance(page.messages, Sequence) or not all(isinstance(one, Message) for one in page.messages):
        raise FeedError(f"{name} returned a Page whose messages are no sequence of Message")
    if not all(cursor is None or isinstance(cursor, str) for cursor in (page.cursor, page.next)):
        raise FeedError(f"{name} returned a Page whose cursor or next is neither str nor None")
    if page.retry_after is not None and not _is_seconds(page.retry_after):
        raise FeedError(f"{name} returned a Page whose retry_after is no number of seconds")


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
