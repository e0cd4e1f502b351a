"""Fetch pages: ask the feed, check its answer, fetch ahead, and report gaps.

The next page may be fetched while a page is processed. Its error takes effect when its turn has come. A request
of the server to be left alone takes effect at that time too, or when the page is dropped (G3). No page is fetched
ahead after one that ends the feed or asks for a pause.
"""

import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Final, TypeGuard, TypeVar

import anyio
import msgspec

from push_to_poll_client._event_loop import Background, error_for_cancellation, sole_cause
from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._hooks import ConsumerStats
from push_to_poll_client._http.errors import error_for_exception
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._progress import Progress
from push_to_poll_client._protocols import Feed, Session
from push_to_poll_client._schedule import Schedule
from push_to_poll_client._status import Gap
from push_to_poll_client._types import MAX_CURSOR, MAX_ID, Clock, Cursor, FetchRequest, Message, Page
from push_to_poll_client._validation import describe, one_line

T = TypeVar("T")

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

_cursor_of, _id_of = attrgetter("cursor"), attrgetter("id")


def _is_seconds(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and value == value  # noqa: PLR0124  # not NaN; isnan() fails at 10**400


def _check_page(page: object, name: str) -> None:
    """Check what a feed returned: it is input like any other, and a value that cannot be used fails the poll.

    Raises:
        FeedError: The page cannot be used.
    """
    if not isinstance(page, Page):
        raise FeedError(f"{name} returned {type(page).__name__}, not a Page")
    if not isinstance(page.messages, Sequence) or not all(
        issubclass(kind, Message) for kind in set(map(type, page.messages))
    ):
        raise FeedError(f"{name} returned a Page whose messages are no sequence of Message")
    check_ids(list(map(_id_of, page.messages)), "id", name)
    cursors = [page.cursor, page.next_page, *map(_cursor_of, page.messages)]
    if not all(issubclass(kind, str | None) for kind in set(map(type, cursors))):
        raise FeedError(f"{name} returned a Page with a cursor or next that is neither str nor None")
    given = list(filter(None, cursors))
    if len("".join(given)) > MAX_CURSOR and max(map(len, given)) > MAX_CURSOR:
        raise FeedError(f"{name} returned a Page with a cursor or next_page of more than {MAX_CURSOR} characters")
    if page.retry_after is not None and not _is_seconds(page.retry_after):
        raise FeedError(f"{name} returned a Page whose retry_after is no number of seconds")
    if page.poll_within is not None and not (_is_seconds(page.poll_within) and page.poll_within >= 0):
        raise FeedError(
            f"{name} returned a Page whose poll_within is {page.poll_within!r}; give seconds from 0 on, or None"
        )
    if not isinstance(page.closed, bool) or not isinstance(page.gap, str):
        raise FeedError(f"{name} returned a Page whose closed is no bool, or whose gap is no str")
    if page.closed and page.next_page is not None:
        raise FeedError(f"{name} returned a Page that is closed and has a next")


def check_ids(ids: Sequence[object], what: str, name: str) -> None:
    """Check the ids or the keys of a page's messages.

    All at once, for speed: with both checks a catch-up over HTTP into memory takes 5 % longer.

    Args:
        ids: The ids or keys.
        what: "id" or "dedupe_key".
        name: What the feed's function is called, for the error.

    Raises:
        FeedError: One of them cannot be used.
    """
    # Subclasses of str are refused too: not every store can save them.
    if wrong := set(map(type, ids)) - {str}:
        raise FeedError(
            f"{name} returned a message whose {what} is of type {wrong.pop().__name__}; it must be a str: convert "
            "it, as with str()"
        )
    lengths = set(map(len, ids))  # type: ignore[arg-type]  # checked above
    if 0 in lengths:
        raise FeedError(
            f"{name} returned a message whose {what} is empty; two such messages would be taken for one: give "
            f"each its own {what}"
        )
    if max(lengths, default=0) > MAX_ID:
        raise FeedError(
            f"{name} returned a message whose {what} has {max(lengths)} characters, of {MAX_ID} at most; make it "
            "shorter, for example by a digest"
        )


@dataclass(kw_only=True, eq=False, repr=False)
class Fetcher:
    """Ask the feed, and turn every exception of the feed into a `FeedError`.

    Attributes:
        schedule: Is told what the server asks for, which also holds for further pages.
        max_wait: Seconds for which the feed can hold an answer; 0 if it cannot.
        must_not_wait: Whether something has happened during this poll that a waiting fetch would delay.
        read_ahead: Whether the feed may be asked for a page before the page in front of it is committed.
        name: What the feed's function is called, for errors.
    """

    feed: Feed
    schedule: Schedule
    clock: Clock
    max_wait: float = field(init=False)
    must_not_wait: bool = field(default=False, init=False)
    read_ahead: bool = field(init=False)
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.max_wait = getattr(self.feed, "max_wait", None) or 0.0
        self.read_ahead = getattr(self.feed, "read_ahead", False)
        self.name = f"{type(self.feed).__name__}.fetch()"
        self._waiting: anyio.CancelScope | None = None

    def cancel_waiting_fetch(self) -> None:
        """Let no fetch of this poll wait, and cancel the one that does. Its answer is fetched again."""
        self.must_not_wait = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def fetch(self, request: FetchRequest) -> Page | None:
        """Fetch a page, and apply its `retry_after`.

        Returns:
            The page; `None` if the request was to wait, and was cancelled by `cancel_waiting_fetch`.

        Raises:
            FeedError: The fetch failed, or brought a page that cannot be used.
        """
        if request.wait and self.must_not_wait:
            return None
        scope = anyio.CancelScope()
        self._waiting = scope if request.wait else None
        with scope:
            try:
                page = await self.fetch_page(request)
            except FeedError as error:
                self.apply_retry_after(error.retry_after, since=self.clock())
                raise
            finally:
                self._waiting = None
            self.apply_retry_after(page.retry_after, since=self.clock())
            return page
        return None

    async def fetch_page(self, request: FetchRequest) -> Page:
        """Fetch a page, without applying its `retry_after` yet.

        Raises:
            FeedError: The fetch failed, or brought a page that cannot be used.
        """
        page = await self._call(self.name, lambda: self.feed.fetch(request))
        _check_page(page, self.name)
        return page

    async def latest(self) -> Cursor | None:
        """Fetch the cursor of the feed's end; `None` if the feed is empty.

        Raises:
            FeedError: The feed could not tell it.
        """
        name = f"{type(self.feed).__name__}.latest()"
        latest = self.feed.latest  # type: ignore[attr-defined]  # looked for before
        try:
            cursor = await self._call(name, latest)
        except FeedError as error:
            self.apply_retry_after(error.retry_after, since=self.clock())
            raise
        if not isinstance(cursor, str | None) or len(cursor or "") > MAX_CURSOR:
            raise FeedError(f"{name} returned no cursor of up to {MAX_CURSOR} characters, and not None")
        return cursor

    @property
    def is_allowed(self) -> bool:
        """Whether the server may be asked now (G3)."""
        return self.schedule.server_not_before <= self.clock()

    async def wait_until_allowed(self) -> None:
        """Wait until the server may be asked, for a request that is not part of a poll (G3)."""
        await anyio.sleep_until(self.schedule.server_not_before)

    async def _call(self, name: str, function: Callable[[], Awaitable[T]]) -> T:
        try:
            return await function()
        except BaseException as raised:  # noqa: BLE001  # raised again below
            error = sole_cause(raised)
        if isinstance(error, anyio.get_cancelled_exc_class()):
            raise FeedError(str(error_for_cancellation(error, name))) from error
        if isinstance(error, FeedError) or not isinstance(error, Exception):
            raise error
        if (refused := error_for_exception(error)) is not None:
            raise refused  # not from `error`, whose text shows the whole URL
        raise FeedError(f"{name} raised {describe(error)}") from error

    def apply_retry_after(self, retry_after: object, *, since: float) -> None:
        """Leave the server alone for `retry_after` seconds from `since` on, if it asked for that."""
        if _is_seconds(retry_after):
            self.schedule.not_before(since, retry_after, jitter=random.random())  # noqa: S311


GAP_KEY: Final = "gap"
"""Name of the last gap in a session's state."""


class _StoredGap(msgspec.Struct, frozen=True):
    """The last gap, as the state keeps it. `push-to-poll status` reads `what` and `at`.

    Attributes:
        what: Description, in the feed's words.
        at: When it was seen, in seconds since the epoch.
        place: Digest of the cursor that its page was requested with, and of its whole description. It shows that a
            page which is fetched again, also by another session, has the same gap.
    """

    what: str
    at: float
    place: str


@dataclass(kw_only=True, eq=False, repr=False)
class Gaps:
    """Report the gaps of one session, each once.

    Attributes:
        session: Keeps the last gap.
        progress: Is committed before a gap, since there is one commit at a time.
    """

    session: Session
    progress: Progress
    stats: ConsumerStats

    async def report(self, cursor: Cursor | None, description: str) -> None:
        """Report that messages may be missing before a page, unless this gap is the last one reported.

        Args:
            cursor: The cursor that the page was requested with.
            description: What may be missing, in the feed's words; empty if nothing is.

        Raises:
            StoreError: The gap could not be saved.
        """
        if not description:
            return
        place = hashlib.blake2b(repr((cursor, description)).encode(), digest_size=16).hexdigest()
        if place in self.session.state.get(GAP_KEY, ""):
            return
        gap = Gap(one_line(description))
        logger.warning("messages may be missing, which the feed can no longer give: %s", gap.description)
        self.stats.gap(gap)
        await self.progress.flush()
        stored = msgspec.json.encode(_StoredGap(gap.description, gap.at, place)).decode()
        await self.session.commit(cursor=None, records=[], state={GAP_KEY: stored})


class PrefetchedPage:
    """A page that is fetched before its turn.

    Args:
        fetcher: Asks the feed.
        request: The request for this page.

    Attributes:
        request: As given.
        arrived_at: When it was answered, on the event loop's clock; 0 before that.
    """

    def __init__(self, fetcher: Fetcher, request: FetchRequest) -> None:
        self.request = request
        self.arrived_at = 0.0
        self._fetcher = fetcher
        self._outcome: Page | BaseException | None = None
        self._done = anyio.Event()

    @property
    def page(self) -> Page | None:
        """The page; `None` if it has not arrived, or the fetch failed."""
        return self._outcome if isinstance(self._outcome, Page) else None

    async def fetch(self) -> None:
        """Fetch the page, and keep it or its error until its turn."""
        try:
            self._outcome = await self._fetcher.fetch_page(self.request)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001  # raised when its turn has come
            self._outcome = error
        self.arrived_at = self._fetcher.clock()
        self._done.set()

    def apply_retry_after(self) -> None:
        """Leave the server alone for as long as it asked, even if the page is dropped (G3)."""
        self._fetcher.apply_retry_after(getattr(self._outcome, "retry_after", None), since=self.arrived_at)

    async def wait_until_done(self) -> None:
        """Wait until the page has arrived, or its fetch has failed."""
        await self._done.wait()

    async def take(self) -> Page:
        """Return the page when its turn has come; wait for it if need be.

        Raises:
            FeedError: It could not be fetched.
        """
        try:
            await self.wait_until_done()
        finally:
            self.apply_retry_after()  # also if cancelled: the page may have arrived with the cancellation
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None  # it is done  # noqa: S101
        return self._outcome


PREFETCH_MIN_MESSAGES: Final = 10
"""Smallest number of messages of a page after which the next page is fetched ahead. A shorter page is most likely
the last one, and its messages would wait for the request to be sent."""


@dataclass(kw_only=True, eq=False, repr=False)
class PageReader:
    """Read the pages of polls one after the other, with the next one on its way while a page is settled.

    Attributes:
        gaps: Told of messages that may be missing before a page.
        deadline: When a poll must read no further page, on the event loop's clock.
        answered_at: When the last page of the poll arrived, on the event loop's clock; `None` if none did.
    """

    fetcher: Fetcher
    gaps: Gaps
    deadline: float = field(default=0.0, init=False)
    answered_at: float | None = field(default=None, init=False)
    _next: PrefetchedPage | None = field(default=None, init=False)

    def begin_poll(self) -> None:
        """Begin a poll, whose fetches may wait until `Fetcher.cancel_waiting_fetch` is called."""
        self.fetcher.must_not_wait, self.answered_at = False, None

    @property
    def must_stop(self) -> bool:
        """Whether the time of the poll is over, or the server asks to be left alone."""
        return self.fetcher.clock() >= self.deadline or not self.fetcher.is_allowed

    @property
    def has_next(self) -> bool:
        """Whether the next page has arrived, or is on its way."""
        return self._next is not None

    async def read(self, request: FetchRequest, background: Background) -> Page | None:
        """Return the page of a request, and begin to fetch the one after it if that is worth it.

        Args:
            request: The request. Its hint and its cache setting hold for further pages too.
            background: Runs the next fetch.

        Returns:
            The page; `None` if the request was to wait, and was cancelled by `Fetcher.cancel_waiting_fetch`.

        Raises:
            FeedError: The fetch failed, or brought a page that cannot be used.
            StoreError: A gap before the page could not be saved.
        """
        prefetched, self._next = self._next, None
        if prefetched is not None and prefetched.request.cursor == request.cursor:
            page: Page | None = await prefetched.take()
            self.answered_at = prefetched.arrived_at
        else:
            if prefetched is not None:  # the walk went on elsewhere
                prefetched.apply_retry_after()
            page = await self.fetcher.fetch(request)
            self.answered_at = self.fetcher.clock()
        if page is None:
            return None
        await self.gaps.report(request.cursor, page.gap)
        may_follow = (
            self.fetcher.read_ahead and page.next_page not in {None, request.cursor} and not page.retry_after
        )
        if may_follow and len(page.messages) >= PREFETCH_MIN_MESSAGES and not self.must_stop:
            self._next = PrefetchedPage(self.fetcher, replace(request, cursor=page.next_page, wait=0.0))
            await background.start(self._next.fetch)
        return page

    async def arrives_by(self, until: float) -> bool:
        """Wait for the next page; return whether it is there by then, on the event loop's clock."""
        if self._next is None:  # the walk went on elsewhere
            return False
        with anyio.CancelScope(deadline=until):
            await self._next.wait_until_done()
        return self._next.page is not None

    async def wait_until_done(self) -> None:
        """Wait for the next page, if there is one, since the poll ends here and the next poll begins with it."""
        if self._next is not None:
            await self._next.wait_until_done()

    def end_poll(self, *, continues: bool) -> None:
        """Drop the next page if the next poll cannot use it.

        Args:
            continues: Whether the next poll continues here. Even then the feed's last page is dropped: messages
                that came after it was fetched are seen only by fetching it again (G1).
        """
        if self._next is None:
            return
        page = self._next.page
        if not continues or page is None or page.next_page is None:
            self._next.apply_retry_after()
            self._next = None
