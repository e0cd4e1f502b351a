"""One fetch: ask the feed, check what it answers, heed what its server asks for."""

import math
import random
from collections.abc import Awaitable, Callable, Sequence
from operator import attrgetter
from typing import TypeGuard, TypeVar

import anyio

from push_to_poll_client._event_loop import failure_of
from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._protocols import Feed
from push_to_poll_client._refusal import refusal_behind
from push_to_poll_client._schedule import Schedule
from push_to_poll_client._text import describe
from push_to_poll_client._types import MAX_CURSOR, Clock, Cursor, FetchRequest, Message, Page

__all__ = ["Fetches", "check_latest"]

T = TypeVar("T")


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
        try:
            page = await self.ask(request)
        except FeedError as error:
            self.heed(error.retry_after, since=self.now())
            raise
        self.heed(page.retry_after, since=self.now())
        return page

    async def ask(self, request: FetchRequest) -> Page:
        """Ask, without heeding anything yet.

        Raises:
            FeedError: The fetch failed, or brought what cannot be used.
        """
        page = await self._call(self._name, lambda: self._feed.fetch(request))
        _check(page, self._name)
        return page

    async def latest(self) -> Cursor | None:
        """The cursor of the feed's end; `None`: it is empty.

        Raises:
            FeedError: It is not to be had.
        """
        name = f"{type(self._feed).__name__}.latest()"
        latest = self._feed.latest  # type: ignore[attr-defined]  # looked for before
        try:
            cursor = await self._call(name, latest)
        except FeedError as error:
            self.heed(error.retry_after, since=self.now())
            raise
        if not isinstance(cursor, str | None) or len(cursor or "") > MAX_CURSOR:
            raise FeedError(f"{name} returned no cursor of up to {MAX_CURSOR} characters, and not None")
        return cursor

    def check_latest(self) -> None:
        """As the function."""
        check_latest(self._feed)

    async def allowed(self) -> None:
        """Wait until the server may be asked, for what is no poll (G3)."""
        await anyio.sleep_until(self._schedule.server_not_before)

    async def _call(self, name: str, function: Callable[[], Awaitable[T]]) -> T:
        """What a feed raises is a `FeedError`."""
        try:
            return await function()
        except FeedError:
            raise
        except Exception as error:
            if (refused := refusal_behind(error)) is not None:
                raise refused from None  # whose text shows the whole URL
            raise FeedError(f"{name} raised {describe(error)}") from error
        except anyio.get_cancelled_exc_class() as cancelled:
            raise FeedError(str(failure_of(cancelled, name))) from cancelled

    def now(self) -> float:
        """Seconds on the event loop's clock."""
        return self._clock()

    def heed(self, retry_after: object, *, since: float) -> None:
        """Leave the server alone for so long, if it asked for that, counted from when it did."""
        if _is_seconds(retry_after):
            self._schedule.not_before(since, retry_after, jitter=random.random())  # noqa: S311


def check_latest(feed: Feed) -> None:
    """Check that there is a way to the feed's end.

    Raises:
        ValueError: It has no `latest`.
    """
    if not callable(getattr(feed, "latest", None)):
        text = f"{type(feed).__name__} has no latest(), so nothing can start at its end"
        raise ValueError(text)  # noqa: TRY004  # what was said has no meaning with this feed


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
    if not isinstance(page.closed, bool) or not isinstance(page.gap, str):
        raise FeedError(f"{name} returned a Page whose closed is no bool, or whose gap is no str")
    if page.closed and page.next is not None:
        raise FeedError(f"{name} returned a Page that is closed and has a next")
