"""One fetch: ask the feed, check what it answers, heed what its server asks for. And the next one, ahead of time.

A feed with `read_ahead` is asked for the next page while the present one is settled. What comes of it, also that
the server asks to be left alone, counts when its turn has come.
"""

import math
import random
from collections.abc import Sequence
from operator import attrgetter
from typing import TypeGuard

import anyio

from push_to_poll_client._event_loop import failure_of
from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._refusal import refusal_behind
from push_to_poll_client._schedule import Schedule
from push_to_poll_client._text import describe
from push_to_poll_client._types import MAX_CURSOR, Clock, Feed, FetchRequest, Message, Page

__all__ = ["Ahead", "Fetches"]


class Fetches:
    """Asks the feed.

    Args:
        feed: What to ask.
        schedule: Told what the server asks for, which holds for further pages too.
        clock: The event loop's.

    Attributes:
        max_wait: Seconds for which the feed can hold an answer; 0: it cannot.
        read_ahead: Whether the feed may be asked for a page before the one before it is committed.
    """

    def __init__(self, feed: Feed, schedule: Schedule, clock: Clock) -> None:
        self.max_wait: float = getattr(feed, "max_wait", None) or 0.0
        self.read_ahead: bool = getattr(feed, "read_ahead", False)
        self._feed = feed
        self._name = f"{type(feed).__name__}.fetch()"
        self._schedule = schedule
        self._clock = clock
        self._waiting: anyio.CancelScope | None = None

    def give_way(self) -> None:
        """Cancel a waiting fetch, if there is one. Its answer, even if on its way, is fetched again."""
        if self._waiting is not None:
            self._waiting.cancel()

    async def fetch(self, request: FetchRequest) -> Page | None:
        """Ask.

        Returns:
            What the feed answered; `None`: it was to wait, and gave way.

        Raises:
            FeedError: The fetch failed, or brought what cannot be used.
        """
        if not request.wait:
            return await self._fetch(request)
        self._waiting = anyio.CancelScope()
        with self._waiting:
            try:
                return await self._fetch(request)
            finally:
                self._waiting = None
        return None

    async def _fetch(self, request: FetchRequest) -> Page:
        ahead = Ahead(self, request)
        await ahead.fetch()
        return ahead.result()

    async def ask(self, request: FetchRequest) -> Page:
        """Ask, without heeding anything yet.

        Raises:
            FeedError: The fetch failed, or brought what cannot be used.
        """
        try:
            page = await self._feed.fetch(request)
        except FeedError:
            raise
        except Exception as error:
            if (refused := refusal_behind(error)) is not None:
                raise refused from None  # whose text shows the whole URL
            raise FeedError(f"{self._name} raised {describe(error)}") from error
        except anyio.get_cancelled_exc_class() as cancelled:
            raise FeedError(str(failure_of(cancelled, self._name))) from cancelled
        _check(page, self._name)
        return page

    def now(self) -> float:
        """Seconds on the event loop's clock."""
        return self._clock()

    def heed(self, retry_after: object, *, since: float) -> None:
        """Leave the server alone for so long, if it asked for that, counted from when it did."""
        if _is_seconds(retry_after):
            self._schedule.not_before(since, retry_after, jitter=random.random())  # noqa: S311


class Ahead:
    """A page that is fetched before its turn.

    Args:
        fetches: Who asks.
        request: What is asked.

    Attributes:
        request: As given.
    """

    def __init__(self, fetches: Fetches, request: FetchRequest) -> None:
        self.request = request
        self._fetches = fetches
        self._arrived = 0.0
        self._answer: Page | BaseException | None = None
        self._ended = anyio.Event()

    @property
    def last(self) -> bool:
        """Whether nothing follows: what has come since it was fetched can only be seen by fetching it again."""
        return not isinstance(self._answer, Page) or self._answer.next is None

    async def fetch(self) -> None:
        """Fetch, and keep what comes of it."""
        try:
            self._answer = await self._fetches.ask(self.request)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001  # raised when its turn has come
            self._answer = error
        self._arrived = self._fetches.now()
        self._ended.set()

    def heed(self) -> None:
        """Leave the server alone for as long as it asked, also if nothing else is made of its answer (G3)."""
        self._fetches.heed(getattr(self._answer, "retry_after", None), since=self._arrived)

    async def ended(self) -> None:
        """Wait until it is fetched, or cannot be."""
        await self._ended.wait()

    async def take(self) -> Page:
        """Its turn has come: wait until it is fetched.

        Raises:
            FeedError: It could not be fetched.
        """
        try:
            await self.ended()
        except BaseException:
            self.heed()  # it may have arrived with the cancellation
            raise
        return self.result()

    def result(self) -> Page:
        """What came of it.

        Raises:
            FeedError: It could not be fetched.
        """
        self.heed()
        if isinstance(self._answer, BaseException):
            raise self._answer
        assert self._answer is not None  # it has ended  # noqa: S101
        return self._answer


def _is_seconds(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not math.isnan(value)


_cursor = attrgetter("cursor")


def _kinds(page: Page) -> set[type]:
    return set(map(type, page.messages))


def _check(page: object, name: str) -> None:
    """What a feed returns is input like any other: what cannot be used is a failed poll."""
    if not isinstance(page, Page):
        raise FeedError(f"{name} returned {type(page).__name__}, not a Page")
    if not isinstance(page.messages, Sequence) or not all(issubclass(kind, Message) for kind in _kinds(page)):
        raise FeedError(f"{name} returned a Page whose messages are no sequence of Message")
    cursors = [page.cursor, page.next, *map(_cursor, page.messages)]
    if not all(issubclass(kind, str | None) for kind in set(map(type, cursors))):
        raise FeedError(f"{name} returned a Page with a cursor or next that is neither str nor None")
    given = list(filter(None, cursors))
    if len("".join(given)) > MAX_CURSOR and max(map(len, given)) > MAX_CURSOR:
        raise FeedError(f"{name} returned a Page with a cursor or next of more than {MAX_CURSOR} characters")
    if page.retry_after is not None and not _is_seconds(page.retry_after):
        raise FeedError(f"{name} returned a Page whose retry_after is no number of seconds")
