"""Fetch pages: ask the feed, check its answer, fetch ahead, and report gaps.

The next page may be fetched while a page is processed. Its error takes effect when its turn has come. A request
of the server to be left alone takes effect at that time too, or when the page is dropped (G3). No page is fetched
ahead after one that ends the feed or asks for a pause.
"""

import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Final, TypeGuard, TypeVar

import anyio
import msgspec

from push_to_poll_client._event_loop import Background, error_for_cancellation, sole_cause
from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._hooks import Hooks
from push_to_poll_client._http.errors import error_for_exception
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._options import check_latest
from push_to_poll_client._progress import Progress
from push_to_poll_client._protocols import Feed, Session
from push_to_poll_client._schedule import Schedule
from push_to_poll_client._status import ConsumerStats, Gap
from push_to_poll_client._types import MAX_CURSOR, MAX_ID, Clock, Cursor, FetchRequest, Message, Page
from push_to_poll_client._validation import describe, one_line

__all__ = ["Fetcher", "Gaps", "PrefetchedPage", "Prefetcher", "check_ids"]


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
    cursors = [page.cursor, page.next, *map(_cursor_of, page.messages)]
    if not all(issubclass(kind, str | None) for kind in set(map(type, cursors))):
        raise FeedError(f"{name} returned a Page with a cursor or next that is neither str nor None")
    given = list(filter(None, cursors))
    if len("".join(given)) > MAX_CURSOR and max(map(len, given)) > MAX_CURSOR:
        raise FeedError(f"{name} returned a Page with a cursor or next of more than {MAX_CURSOR} characters")
    if page.retry_after is not None and not _is_seconds(page.retry_after):
        raise FeedError(f"{name} returned a Page whose retry_after is no number of seconds")
    if page.poll_within is not None and not (_is_seconds(page.poll_within) and page.poll_within >= 0):
        raise FeedError(
            f"{name} returned a Page whose poll_within is {page.poll_within!r}; give seconds from 0 on, or None"
        )
    if not isinstance(page.closed, bool) or not isinstance(page.gap, str):
        raise FeedError(f"{name} returned a Page whose closed is no bool, or whose gap is no str")
    if page.closed and page.next is not None:
        raise FeedError(f"{name} returned a Page that is closed and has a next")


def check_ids(ids: Sequence[object], what: str, name: str) -> None:
    """Check the ids or the keys of a page's messages.

    All at once, for speed: with both checks a catch-up over HTTP into memory takes 5 % longer.

    Args:
        ids: The ids or keys.
        what: "id" or "key".
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


class Fetcher:
    """Ask the feed, and turn every exception of the feed into a `FeedError`.

    Args:
        feed: The user's feed.
        schedule: Is told what the server asks for, which also holds for further pages.
        clock: The event loop's clock.

    Attributes:
        max_wait: Seconds for which the feed can hold an answer; 0 if it cannot.
        must_not_wait: Whether something has happened during this poll that a waiting fetch would delay.
        read_ahead: Whether the feed may be asked for a page before the page in front of it is committed.
    """

    def __init__(self, feed: Feed, schedule: Schedule, clock: Clock) -> None:
        self.max_wait: float = getattr(feed, "max_wait", None) or 0.0
        self.must_not_wait = False
        self.read_ahead: bool = getattr(feed, "read_ahead", False)
        self._feed = feed
        self._name = f"{type(feed).__name__}.fetch()"
        self._schedule = schedule
        self._clock = clock
        self._waiting: anyio.CancelScope | None = None

    def begin_poll(self) -> None:
        """Begin a poll, whose fetches may wait until `cancel_waiting_fetch` is called."""
        self.must_not_wait = False

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
        if not request.wait:
            return await self._fetch(request)
        if self.must_not_wait:
            return None
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
        """Fetch a page, without applying its `retry_after` yet.

        Raises:
            FeedError: The fetch failed, or brought a page that cannot be used.
        """
        page = await self._call(self._name, lambda: self._feed.fetch(request))
        _check_page(page, self._name)
        return page

    async def latest(self) -> Cursor | None:
        """Fetch the cursor of the feed's end; `None` if the feed is empty.

        Raises:
            FeedError: The feed could not tell it.
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
        """Check that the feed has `latest()`; raise ValueError if not."""
        check_latest(self._feed)

    @property
    def is_allowed(self) -> bool:
        """Whether the server may be asked now (G3)."""
        return self._schedule.server_not_before <= self._clock()

    async def wait_until_allowed(self) -> None:
        """Wait until the server may be asked, for a request that is not part of a poll (G3)."""
        await anyio.sleep_until(self._schedule.server_not_before)

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

    def now(self) -> float:
        """Seconds on the event loop's clock."""
        return self._clock()

    def apply_retry_after(self, retry_after: object, *, since: float) -> None:
        """Leave the server alone for `retry_after` seconds from `since` on, if it asked for that."""
        if _is_seconds(retry_after):
            self._schedule.not_before(since, retry_after, jitter=random.random())  # noqa: S311


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
        self._fetcher = fetcher
        self.arrived_at = 0.0
        self._outcome: Page | BaseException | None = None
        self._done = anyio.Event()

    @property
    def page(self) -> Page | None:
        """The page; `None` if it has not arrived, or the fetch failed."""
        return self._outcome if isinstance(self._outcome, Page) else None

    @property
    def last(self) -> bool:
        """Whether nothing follows. Messages that came after it was fetched are seen only by fetching it again."""
        return self.page is None or self.page.next is None

    async def fetch(self) -> None:
        """Fetch the page, and keep it or its error until its turn."""
        try:
            self._outcome = await self._fetcher.fetch_page(self.request)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001  # raised when its turn has come
            self._outcome = error
        self.arrived_at = self._fetcher.now()
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


class Prefetcher:
    """The page that is fetched while the one before it is processed.

    Args:
        fetcher: Asks the feed.
        enabled: Whether the feed may be asked ahead of time.
        may_ask: Returns whether the server may be asked for a further page now.
    """

    def __init__(self, fetcher: Fetcher, *, enabled: bool, may_ask: Callable[[], bool]) -> None:
        self._fetcher = fetcher
        self._enabled = enabled
        self._may_ask = may_ask
        self._page: PrefetchedPage | None = None

    def __bool__(self) -> bool:
        """Whether the next page has arrived, or is on its way."""
        return self._page is not None

    def pop(self, request: FetchRequest) -> PrefetchedPage | None:
        """Take the page out, since its turn has come; `None` if it was not fetched ahead."""
        page, self._page = self._page, None
        if page is not None and page.request.cursor != request.cursor:  # the walk went on elsewhere
            page.apply_retry_after()
            return None
        return page

    async def begin(self, request: FetchRequest, page: Page, background: Background) -> None:
        """Start to fetch the next page, now that the turn of a page has come, if that is worth it.

        Args:
            request: The request for the page. Its hint and its cache setting hold for further pages too.
            page: The page.
            background: Runs the fetch.
        """
        if not self._enabled or len(page.messages) < PREFETCH_MIN_MESSAGES or page.next in {None, request.cursor}:
            return
        if page.retry_after or not self._may_ask():
            return
        self._page = PrefetchedPage(self._fetcher, replace(request, cursor=page.next, wait=0.0))
        await background.start(self._page.fetch)

    async def arrives_by(self, until: float) -> bool:
        """Wait for the page; return whether it is there by then, on the event loop's clock."""
        if self._page is None:  # the walk went on elsewhere
            return False
        with anyio.CancelScope(deadline=until):
            await self._page.wait_until_done()
        return self._page.page is not None

    async def wait_until_done(self) -> None:
        """Wait for the page, if there is one, since the poll ends here and the next one continues with it."""
        if self._page is not None:
            await self._page.wait_until_done()

    def end_poll(self, *, continues: bool) -> None:
        """Drop the page if the next poll cannot use it.

        Args:
            continues: Whether the next poll continues here. Even then the feed's last page is dropped: it may no
                longer be the last one by then (G1).
        """
        if self._page is not None and (not continues or self._page.last):
            self._page.apply_retry_after()
            self._page = None


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


class Gaps:
    """Report the gaps of one session, each once.

    Args:
        session: Keeps the last gap.
        progress: Is committed before a gap, since there is one commit at a time.
        stats: Are told of each gap.
        hooks: Are told of each gap.
    """

    def __init__(self, session: Session, progress: Progress, stats: ConsumerStats, hooks: Hooks) -> None:
        self._session = session
        self._progress = progress
        self._stats = stats
        self._hooks = hooks

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
        if place in self._session.state.get(GAP_KEY, ""):
            return
        gap = Gap(one_line(description))
        logger.warning("messages may be missing, which the feed can no longer give: %s", gap.what)
        self._stats.gap(gap)
        self._hooks.gap(gap)
        await self._progress.flush()
        stored = msgspec.json.encode(_StoredGap(gap.what, gap.at, place)).decode()
        await self._session.commit(cursor=None, records=[], state={GAP_KEY: stored})
