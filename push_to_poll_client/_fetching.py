"""Fetch pages: call the feed, check its answer, and fetch ahead.

The next page may be fetched while a page is processed. Its error is raised when the page is needed. A request of
the server to wait takes effect at that time too, or when the page is dropped (G3). No page is fetched ahead after
a page that ends the feed or asks for a pause.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Final, TypeGuard, TypeVar

import anyio

from push_to_poll_client._event_loop import Background, error_for_cancellation, sole_cause
from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._http.response import error_for_exception
from push_to_poll_client._poll_state import Poll
from push_to_poll_client._protocols import Feed
from push_to_poll_client._schedule import Schedule
from push_to_poll_client._types import MAX_CURSOR, Clock, Cursor, FetchRequest, Message, Page
from push_to_poll_client._validation import describe

T = TypeVar("T")

_cursor_of = attrgetter("cursor")


def _is_seconds(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and value == value  # noqa: PLR0124  # not NaN; isnan() fails at 10**400


def _check_page(page: object, name: str) -> None:
    """Raise a `FeedError` if the feed returned an invalid page."""
    if not isinstance(page, Page):
        raise FeedError(f"{name} must return a Page, got {type(page).__name__}")
    if not isinstance(page.messages, Sequence) or not all(
        issubclass(kind, Message) for kind in set(map(type, page.messages))
    ):
        raise FeedError(f"{name} returned an invalid Page: messages must be a sequence of Message objects")
    cursors = [page.cursor, page.next_page, *map(_cursor_of, page.messages)]
    if not all(issubclass(kind, str | None) for kind in set(map(type, cursors))):
        raise FeedError(f"{name} returned an invalid Page: each cursor and next_page must be a str or None")
    longest = max(map(len, filter(None, cursors)), default=0)
    if longest > MAX_CURSOR:
        raise FeedError(
            f"{name} returned an invalid Page: a cursor must have at most {MAX_CURSOR} characters, got {longest}"
        )
    if page.retry_after is not None and not _is_seconds(page.retry_after):
        raise FeedError(
            f"{name} returned an invalid Page: retry_after must be seconds or None, got {page.retry_after!r:.50}"
        )
    if page.poll_within is not None and not (_is_seconds(page.poll_within) and page.poll_within >= 0):
        raise FeedError(
            f"{name} returned an invalid Page: poll_within must be seconds or None, got {page.poll_within!r:.50}"
        )
    if not isinstance(page.closed, bool) or not isinstance(page.gap, str):
        raise FeedError(f"{name} returned an invalid Page: closed must be a bool, and gap a str")
    if page.closed and page.next_page is not None:
        raise FeedError(f"{name} returned an invalid Page: a closed Page must not have a next_page")


# A shorter page is probably the last one, and its messages would wait for the request.
PREFETCH_MIN_MESSAGES: Final = 10
"""Fewest messages of a page that cause a fetch ahead."""


@dataclass(kw_only=True, eq=False, repr=False)
class Fetcher:
    """Call the feed, and fetch one page ahead. Every exception of the feed becomes a `FeedError`."""

    feed: Feed
    schedule: Schedule
    clock: Clock

    def __post_init__(self) -> None:
        self.max_wait: float = getattr(self.feed, "max_wait", None) or 0.0
        # True if the feed allows a fetch before the last page is committed.
        self.read_ahead: bool = getattr(self.feed, "read_ahead", False)
        self.name = f"{type(self.feed).__name__}.fetch()"
        self._next: FetchedPage | None = None

    async def fetch(self, request: FetchRequest) -> Page:
        """Fetch a page, and apply its `retry_after`."""
        fetched = FetchedPage(self, request)
        await fetched.fetch()
        return await fetched.take()

    async def latest(self) -> Cursor | None:
        """Fetch the cursor of the feed's end; `None` for an empty feed."""
        name = f"{type(self.feed).__name__}.latest()"
        latest = self.feed.latest  # type: ignore[attr-defined]  # checked before
        try:
            cursor = await self.call(name, latest)
        except FeedError as error:
            self.apply_retry_after(error.retry_after, since=self.clock())
            raise
        if not isinstance(cursor, str | None) or len(cursor or "") > MAX_CURSOR:
            got = f"{len(cursor)} characters" if isinstance(cursor, str) else type(cursor).__name__
            raise FeedError(f"{name} must return None or a cursor of at most {MAX_CURSOR} characters, got {got}")
        return cursor

    @property
    def is_allowed(self) -> bool:
        """True if the server may be asked now (G3)."""
        return self.schedule.server_not_before <= self.clock()

    async def wait_until_allowed(self) -> None:
        """Wait until the server allows a request that is not a poll (G3)."""
        await anyio.sleep_until(self.schedule.server_not_before)

    async def call(self, name: str, function: Callable[[], Awaitable[T]]) -> T:
        """Call a function of the feed, and convert its exceptions to `FeedError`."""
        try:
            return await function()
        except BaseException as raised:  # noqa: BLE001  # raised again below
            error = sole_cause(raised)
        if isinstance(error, anyio.get_cancelled_exc_class()):
            raise FeedError(str(error_for_cancellation(error, name))) from error
        if isinstance(error, FeedError) or not isinstance(error, Exception):
            raise error
        if (refused := error_for_exception(error)) is not None:
            raise refused  # not `from error`: its text shows the whole URL
        raise FeedError(f"{name} raised {describe(error)}") from error

    def apply_retry_after(self, retry_after: object, *, since: float) -> None:
        """Ask the server nothing for `retry_after` seconds from `since` on."""
        if _is_seconds(retry_after):
            self.schedule.not_before(since, retry_after, jitter=random.random())  # noqa: S311

    # The pages of a poll

    def must_stop(self, poll: Poll) -> bool:
        """True if the poll's time is over or the server wants a pause."""
        return self.clock() >= poll.deadline or not self.is_allowed

    @property
    def has_next(self) -> bool:
        return self._next is not None

    async def read(self, request: FetchRequest, poll: Poll) -> Page | None:
        """Return the page of a request, and start the next fetch ahead. None if a long poll was cancelled."""
        # Hint and cache setting of the request apply to further pages too.
        prefetched, self._next = self._next, None
        if prefetched is not None and prefetched.request.cursor == request.cursor:
            page: Page | None = await prefetched.take()
            poll.answered_at = prefetched.arrived_at
        else:
            if prefetched is not None:  # the walk continued elsewhere
                prefetched.apply_retry_after()
            page = await (self._fetch_waiting(request, poll) if request.wait else self.fetch(request))
            poll.answered_at = self.clock()
        if page is None:
            return None
        may_follow = self.read_ahead and page.next_page not in {None, request.cursor} and not page.retry_after
        if may_follow and len(page.messages) >= PREFETCH_MIN_MESSAGES and not self.must_stop(poll):
            self._next = FetchedPage(self, replace(request, cursor=page.next_page, wait=0.0))
            if poll.background is None:
                poll.background = await poll.exit_stack.enter_async_context(Background())
            await poll.background.start(self._next.fetch)
        return page

    async def _fetch_waiting(self, request: FetchRequest, poll: Poll) -> Page | None:
        if poll.must_not_wait:
            return None
        with anyio.CancelScope() as poll.waiting:
            return await self.fetch(request)
        return None

    async def arrives_by(self, until: float) -> bool:
        """Wait for the next page. Return True if it arrives until this time of the event loop's clock."""
        if self._next is None:  # the walk continued elsewhere
            return False
        with anyio.CancelScope(deadline=until):
            await self._next.done.wait()
        return self._next.page is not None

    def end_poll(self, *, continues: bool) -> None:
        """Drop the next page if the next poll cannot use it."""
        # Even if the next poll continues here, the feed's last page is dropped: messages that came after it was
        # fetched are seen only by fetching it again (G1).
        if self._next is None:
            return
        page = self._next.page
        if not continues or page is None or page.next_page is None:
            self._next.apply_retry_after()
            self._next = None


@dataclass(slots=True, eq=False)
class FetchedPage:
    """A page that is fetched, now or ahead. `arrived_at` is on the event loop's clock, 0 before."""

    fetcher: Fetcher
    request: FetchRequest
    arrived_at: float = 0.0
    outcome: Page | BaseException | None = None
    done: anyio.Event = field(default_factory=anyio.Event)

    @property
    def page(self) -> Page | None:
        """The page; `None` if it has not arrived or the fetch failed."""
        return self.outcome if isinstance(self.outcome, Page) else None

    async def fetch(self) -> None:
        name = self.fetcher.name
        try:
            page = await self.fetcher.call(name, lambda: self.fetcher.feed.fetch(self.request))
            _check_page(page, name)
            self.outcome = page
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001  # raised by take()
            self.outcome = error
        self.arrived_at = self.fetcher.clock()
        self.done.set()

    def apply_retry_after(self) -> None:
        """Apply the server's request to wait, even for a dropped page (G3)."""
        self.fetcher.apply_retry_after(getattr(self.outcome, "retry_after", None), since=self.arrived_at)

    async def take(self) -> Page:
        """Return the page, or raise its error. Wait for it if necessary."""
        try:
            await self.done.wait()
        finally:
            self.apply_retry_after()  # also if cancelled: the page may have arrived with the cancellation
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        assert self.outcome is not None  # it is done  # noqa: S101
        return self.outcome
