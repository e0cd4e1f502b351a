"""Fetch pages: ask the feed, check its answer, fetch ahead, and report gaps.

What comes of one, also that the server asks to be left alone, counts when its turn has come. Nothing is fetched
beyond a page that has an end, a failure or such a wish in it.
"""

import hashlib
import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Final, TypeGuard, TypeVar

import anyio
import msgspec

from push_to_poll_client._event_loop import Background, error_for_cancellation
from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._hooks import Hooks
from push_to_poll_client._http.errors import error_for_exception
from push_to_poll_client._options import check_latest
from push_to_poll_client._progress import Progress
from push_to_poll_client._protocols import Feed, Session
from push_to_poll_client._schedule import Schedule
from push_to_poll_client._status import ConsumerStats, Gap
from push_to_poll_client._types import MAX_CURSOR, Clock, Cursor, FetchRequest, Message, Page
from push_to_poll_client._validation import describe, one_line

__all__ = [
    "Fetcher",
    "Gaps",
    "PrefetchedPage",
    "Prefetcher",
]


T = TypeVar("T")


class Fetcher:
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

    def cancel_waiting_fetch(self) -> None:
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
            page = await self.fetch_page(request)
        except FeedError as error:
            self.apply_retry_after(error.retry_after, since=self.now())
            raise
        self.apply_retry_after(page.retry_after, since=self.now())
        return page

    async def fetch_page(self, request: FetchRequest) -> Page:
        """Ask, without heeding anything yet.

        Raises:
            FeedError: The fetch failed, or brought what cannot be used.
        """
        page = await self._call(self._name, lambda: self._feed.fetch(request))
        _check_page(page, self._name)
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
            self.apply_retry_after(error.retry_after, since=self.now())
            raise
        if not isinstance(cursor, str | None) or len(cursor or "") > MAX_CURSOR:
            raise FeedError(f"{name} returned no cursor of up to {MAX_CURSOR} characters, and not None")
        return cursor

    def check_latest(self) -> None:
        """As the function."""
        check_latest(self._feed)

    async def wait_until_allowed(self) -> None:
        """Wait until the server may be asked, for what is no poll (G3)."""
        await anyio.sleep_until(self._schedule.server_not_before)

    async def _call(self, name: str, function: Callable[[], Awaitable[T]]) -> T:
        """What a feed raises is a `FeedError`."""
        try:
            return await function()
        except FeedError:
            raise
        except Exception as error:
            if (refused := error_for_exception(error)) is not None:
                raise refused from None  # whose text shows the whole URL
            raise FeedError(f"{name} raised {describe(error)}") from error
        except anyio.get_cancelled_exc_class() as cancelled:
            raise FeedError(str(error_for_cancellation(cancelled, name))) from cancelled

    def now(self) -> float:
        """Seconds on the event loop's clock."""
        return self._clock()

    def apply_retry_after(self, retry_after: object, *, since: float) -> None:
        """Leave the server alone for so long, if it asked for that, counted from when it did."""
        if _is_seconds(retry_after):
            self._schedule.not_before(since, retry_after, jitter=random.random())  # noqa: S311


def _is_seconds(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not math.isnan(value)


_cursor_of = attrgetter("cursor")


def _message_types(page: Page) -> set[type]:
    return set(map(type, page.messages))


def _check_page(page: object, name: str) -> None:
    """What a feed returns is input like any other: what cannot be used is a failed poll."""
    if not isinstance(page, Page):
        raise FeedError(f"{name} returned {type(page).__name__}, not a Page")
    if not isinstance(page.messages, Sequence) or not all(
        issubclass(kind, Message) for kind in _message_types(page)
    ):
        raise FeedError(f"{name} returned a Page whose messages are no sequence of Message")
    cursors = [page.cursor, page.next, *map(_cursor_of, page.messages)]
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


PREFETCH_MIN_MESSAGES: Final = 10
"""Messages of a page from which on the next page is fetched ahead: a shorter one is most likely the last, and its
messages would wait for the request to be sent."""


class Prefetcher:
    """The pages in hand that are not yet in use.

    Args:
        fetches: Who asks.
        most: How many, at most; 0 for a feed that must not be asked ahead of time.
        may_ask: Whether the server may be asked for a further page now.
    """

    def __init__(self, fetches: Fetcher, most: int, may_ask: Callable[[], bool]) -> None:
        self._fetcher = fetches
        self._limit = most
        self._may_ask = may_ask
        self._pages: deque[PrefetchedPage] = deque()
        self._request = FetchRequest()
        self._page = Page()

    def __bool__(self) -> bool:
        """Whether the next page is in hand, or on its way."""
        return bool(self._pages)

    def pop(self) -> "PrefetchedPage | None":
        """The next page has its turn; `None`: it was not asked for."""
        return self._pages.popleft() if self._pages else None

    async def begin(self, request: FetchRequest, page: Page, beside: Background) -> None:
        """A page has its turn: fetch what follows it, or what is in hand.

        Args:
            request: What was asked for it. What it says of hints and caches holds for what follows, too.
            page: The page.
            beside: Where to.
        """
        self._request, self._page = request, page
        if (ahead := self._next_to_fetch()) is not None:
            await beside.start(partial(self._fetch, ahead))

    async def arrives_by(self, until: float) -> bool:
        """Whether the next page, which is on its way, is there by then, on the event loop's clock."""
        with anyio.CancelScope(deadline=until):
            await self._pages[0].wait_until_done()
        return self._pages[0].page is not None

    async def wait_for_first(self) -> None:
        """The poll ends here, and the next one goes on with what is fetched: wait for the first page."""
        if self._pages:
            await self._pages[0].wait_until_done()

    def drop(self, *, kept: bool) -> None:
        """Drop what the next poll cannot use.

        Args:
            kept: It goes on from here. Still, what is the feed's last page now may not be it then (G1).
        """
        pages, self._pages, self._page = self._pages, deque(), Page()
        while kept and pages and not pages[0].last:
            self._pages.append(pages.popleft())
        for ahead in pages:
            ahead.apply_retry_after()

    async def _fetch(self, ahead: "PrefetchedPage | None") -> None:
        """Fetch it, and what follows it."""
        while ahead is not None:
            await ahead.fetch()
            ahead = self._next_to_fetch() if self._pages and self._pages[-1] is ahead else None

    def _next_to_fetch(self) -> "PrefetchedPage | None":
        """What is to be fetched next: nothing, while the one before it is not there."""
        last = self._pages[-1] if self._pages else None
        cursor, page = (self._request.cursor, self._page) if last is None else (last.request.cursor, last.page)
        if page is None or len(self._pages) >= self._limit or not self._worth_prefetching(cursor, page):
            return None
        self._pages.append(PrefetchedPage(self._fetcher, replace(self._request, cursor=page.next, wait=0.0)))
        return self._pages[-1]

    def _worth_prefetching(self, cursor: Cursor | None, page: Page) -> bool:
        likely = len(page.messages) >= PREFETCH_MIN_MESSAGES and page.next not in {None, cursor}
        return likely and not page.retry_after and self._may_ask()


class PrefetchedPage:
    """A page that is fetched before its turn.

    Args:
        fetches: Who asks.
        request: What is asked.

    Attributes:
        request: As given.
        arrived_at: When it was answered, on the event loop's clock; 0: it is not yet.
    """

    def __init__(self, fetches: Fetcher, request: FetchRequest) -> None:
        self.request = request
        self._fetcher = fetches
        self.arrived_at = 0.0
        self._outcome: Page | BaseException | None = None
        self._done = anyio.Event()

    @property
    def page(self) -> Page | None:
        """What was answered; `None`: nothing yet, or it failed."""
        return self._outcome if isinstance(self._outcome, Page) else None

    @property
    def last(self) -> bool:
        """Whether nothing follows: what has come since it was fetched can only be seen by fetching it again."""
        return self.page is None or self.page.next is None

    async def fetch(self) -> None:
        """Fetch, and keep what comes of it."""
        try:
            self._outcome = await self._fetcher.fetch_page(self.request)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001  # raised when its turn has come
            self._outcome = error
        self.arrived_at = self._fetcher.now()
        self._done.set()

    def apply_retry_after(self) -> None:
        """Leave the server alone for as long as it asked, also if nothing else is made of its answer (G3)."""
        self._fetcher.apply_retry_after(getattr(self._outcome, "retry_after", None), since=self.arrived_at)

    async def wait_until_done(self) -> None:
        """Wait until it is fetched, or cannot be."""
        await self._done.wait()

    async def take(self) -> Page:
        """Its turn has come: wait until it is fetched.

        Raises:
            FeedError: It could not be fetched.
        """
        try:
            await self.wait_until_done()
        except BaseException:
            self.apply_retry_after()  # it may have arrived with the cancellation
            raise
        return self.result()

    def result(self) -> Page:
        """What came of it.

        Raises:
            FeedError: It could not be fetched.
        """
        self.apply_retry_after()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None  # it has ended  # noqa: S101
        return self._outcome


logger = logging.getLogger("push_to_poll_client")

GAP_KEY: Final = "gap"
"""What the last one is called in a session's state."""


class _StoredGap(msgspec.Struct, frozen=True):
    """The last one, as the state keeps it. `push-to-poll status` reads `what` and `at`.

    Attributes:
        what: In the feed's words.
        at: When it was seen, in seconds since the epoch.
        place: Stands for where its page was asked for and for all of its words: a page that is fetched again, also
            by another session, has the gap that it had.
    """

    what: str
    at: float
    place: str


class Gaps:
    """The gaps of one session.

    Args:
        session: Keeps the last one.
        progress: Committed before it, since there is one commit at a time.
        tally: Told of each.
        hooks: Likewise.
    """

    def __init__(self, session: Session, progress: Progress, tally: ConsumerStats, hooks: Hooks) -> None:
        self._session = session
        self._progress = progress
        self._stats = tally
        self._hooks = hooks

    async def report(self, cursor: Cursor | None, what: str) -> None:
        """Something may be missing before a page.

        Args:
            cursor: Where the page was asked for.
            what: What may be missing, in the feed's words; empty: nothing is.

        Raises:
            StoreError: It could not be kept.
        """
        if not what or (place := _gap_digest(cursor, what)) in self._session.state.get(GAP_KEY, ""):
            return
        gap = Gap(one_line(what))
        logger.warning("messages may be missing, which the feed can no longer give: %s", gap.what)
        self._stats.gap(gap)
        self._hooks.gap(gap)
        await self._progress.flush()
        kept = msgspec.json.encode(_StoredGap(gap.what, gap.at, place)).decode()
        await self._session.commit(cursor=None, records=[], state={GAP_KEY: kept})


def _gap_digest(cursor: Cursor | None, what: str) -> str:
    return hashlib.blake2b(repr((cursor, what)).encode(), digest_size=16).hexdigest()
