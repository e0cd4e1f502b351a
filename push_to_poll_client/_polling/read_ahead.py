"""WHAT COMES NEXT: pages of a feed with `read_ahead`, fetched while those before them are settled.

What comes of one, also that the server asks to be left alone, counts when its turn has come. Nothing is fetched
beyond a page that has an end, a failure or such a wish in it.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

import anyio

from push_to_poll_client._event_loop import Beside
from push_to_poll_client._polling.fetches import Fetches
from push_to_poll_client._types import Cursor, FetchRequest, Page

__all__ = ["Ahead", "ReadAhead"]

AHEAD_FROM: Final = 10
"""Messages of a page from which on the next page is fetched ahead: a shorter one is most likely the last, and its
messages would wait for the request to be sent."""


class ReadAhead:
    """The pages in hand that are not yet in use.

    Args:
        fetches: Who asks.
        most: How many, at most; 0 for a feed that must not be asked ahead of time.
        may_ask: Whether the server may be asked for a further page now.
    """

    def __init__(self, fetches: Fetches, most: int, may_ask: Callable[[], bool]) -> None:
        self._fetches = fetches
        self._most = most
        self._may_ask = may_ask
        self._pages: deque[Ahead] = deque()
        self._request = FetchRequest()
        self._page = Page()

    def __bool__(self) -> bool:
        """Whether the next page is in hand, or on its way."""
        return bool(self._pages)

    def pop(self) -> "Ahead | None":
        """The next page has its turn; `None`: it was not asked for."""
        return self._pages.popleft() if self._pages else None

    async def begin(self, request: FetchRequest, page: Page, beside: Beside) -> None:
        """A page has its turn: fetch what follows it, or what is in hand.

        Args:
            request: What was asked for it. What it says of hints and caches holds for what follows, too.
            page: The page.
            beside: Where to.
        """
        self._request, self._page = request, page
        if (ahead := self._follow()) is not None:
            await beside.start(partial(self._fetch, ahead))

    async def comes_by(self, until: float) -> bool:
        """Whether the next page, which is on its way, is there by then, on the event loop's clock."""
        with anyio.CancelScope(deadline=until):
            await self._pages[0].ended()
        return self._pages[0].page is not None

    async def keep(self) -> None:
        """The poll ends here, and the next one goes on with what is fetched: wait for the first page."""
        if self._pages:
            await self._pages[0].ended()

    def drop(self, *, kept: bool) -> None:
        """Drop what the next poll cannot use.

        Args:
            kept: It goes on from here. Still, what is the feed's last page now may not be it then (G1).
        """
        pages, self._pages, self._page = self._pages, deque(), Page()
        while kept and pages and not pages[0].last:
            self._pages.append(pages.popleft())
        for ahead in pages:
            ahead.heed()

    async def _fetch(self, ahead: "Ahead | None") -> None:
        """Fetch it, and what follows it."""
        while ahead is not None:
            await ahead.fetch()
            ahead = self._follow() if self._pages and self._pages[-1] is ahead else None

    def _follow(self) -> "Ahead | None":
        """What is to be fetched next: nothing, while the one before it is not there."""
        last = self._pages[-1] if self._pages else None
        cursor, page = (self._request.cursor, self._page) if last is None else (last.request.cursor, last.page)
        if page is None or len(self._pages) >= self._most or not self._leads_on(cursor, page):
            return None
        self._pages.append(Ahead(self._fetches, replace(self._request, cursor=page.next, wait=0.0)))
        return self._pages[-1]

    def _leads_on(self, cursor: Cursor | None, page: Page) -> bool:
        likely = len(page.messages) >= AHEAD_FROM and page.next not in {None, cursor}
        return likely and not page.retry_after and self._may_ask()


class Ahead:
    """A page that is fetched before its turn.

    Args:
        fetches: Who asks.
        request: What is asked.

    Attributes:
        request: As given.
        arrived_at: When it was answered, on the event loop's clock; 0: it is not yet.
    """

    def __init__(self, fetches: Fetches, request: FetchRequest) -> None:
        self.request = request
        self._fetches = fetches
        self.arrived_at = 0.0
        self._answer: Page | BaseException | None = None
        self._ended = anyio.Event()

    @property
    def page(self) -> Page | None:
        """What was answered; `None`: nothing yet, or it failed."""
        return self._answer if isinstance(self._answer, Page) else None

    @property
    def last(self) -> bool:
        """Whether nothing follows: what has come since it was fetched can only be seen by fetching it again."""
        return self.page is None or self.page.next is None

    async def fetch(self) -> None:
        """Fetch, and keep what comes of it."""
        try:
            self._answer = await self._fetches.ask(self.request)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001  # raised when its turn has come
            self._answer = error
        self.arrived_at = self._fetches.now()
        self._ended.set()

    def heed(self) -> None:
        """Leave the server alone for as long as it asked, also if nothing else is made of its answer (G3)."""
        self._fetches.heed(getattr(self._answer, "retry_after", None), since=self.arrived_at)

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
