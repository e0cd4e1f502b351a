"""Read a feed that shows the newest entries first, and hand them out oldest first."""

import re
from collections import OrderedDict
from dataclasses import replace

import anyio

from push_to_poll_client._exceptions import ChainRestart, CursorExpired, FeedError, FeedGone, FeedRefused
from push_to_poll_client._types import Cursor, FetchRequest, Page
from push_to_poll_client.feeds._newest_first_cursor import SeenEntries
from push_to_poll_client.feeds._newest_first_walk import Document, FetchDocument, SortKey, Walk, Walks, longer_wait

__all__ = [
    "FreshnessCache",
    "NewestFirstReader",
]


MAX_CURSORS = 16
"""Remembered: one for each consumer of the feed."""


class FreshnessCache:
    """Remembers it, by cursors that brought nothing (RFC 9111 §4.2). In an event loop."""

    def __init__(self) -> None:
        self._times: OrderedDict[Cursor | None, tuple[float, float]] = OrderedDict()

    def __contains__(self, cursor: Cursor | None) -> bool:
        """Whether asking what comes after this cursor could now only bring nothing again."""
        since, until = self._times.get(cursor, (0.0, 0.0))
        return since <= anyio.current_time() < until

    def note(self, cursor: Cursor | None, seconds: float) -> None:
        """It brought nothing, and would not for so long."""
        self._times.pop(cursor, None)
        if seconds > 0:
            now = anyio.current_time()
            self._times[cursor] = now, now + seconds
            if len(self._times) > MAX_CURSORS:
                self._times.popitem(last=False)

    def forget(self) -> None:
        """When the event loop may end by whose clock this is."""
        self._times.clear()


_POSITION = re.compile("(.*) ([0-9]{1,9})", re.DOTALL)

MAX_MESSAGES = 10_000
"""Held at once: some 20 MB of usual events, and 100 documents of 100."""


class NewestFirstReader:
    """Walks one feed.

    Args:
        look: Fetches a document.
        where: The feed's URL without secrets, for errors.
        order: A sort key for messages of several documents; `None`: they are in order.
        most: Messages that are held at once, unless two documents have more.
    """

    def __init__(
        self, look: FetchDocument, where: str, *, order: SortKey | None = None, most: int = MAX_MESSAGES
    ) -> None:
        self._fetch_document = look
        self._where = where
        self._order = order
        self._max_messages = most
        self._walks = Walks()
        self._freshness = FreshnessCache()

    async def fetch(self, request: FetchRequest) -> Page:
        """As `Feed.fetch`.

        Raises:
            CursorExpired: The cursor was not made here.
            ChainRestart: What a walk led to is not there any more.
            FeedError: The document could not be had, or the walk does not end.
        """
        if request.cursor in self._freshness and not (request.fresh or request.wait):
            return Page()
        start, step = _parse_position(request.cursor)
        way = self._walk_from(start)
        if way.page is not None or step < way.step:  # it was asked for before
            return way.page or _page_to_continue(start, way.step)
        way.prepare_next(step, anyio.current_time())
        return await self._continue_walk(way, request, start)

    async def latest(self) -> Cursor | None:
        """As `Feed.latest`.

        Raises:
            FeedError: The newest document could not be had.
        """
        way = Walk(SeenEntries(), self._max_messages)
        leaf = await self._fetch_document(None, FetchRequest(fresh=True), way.known)
        if leaf.unchanged:
            raise FeedError(f"{self._where} does not show yet what is newest")
        way.add_document(leaf, self._where, anyio.current_time())
        return way.seen().cursor()

    def forget(self) -> None:
        """When the event loop may end. A page that failed is made again then: its publisher may have mended it."""
        self._freshness.forget()
        self._walks.forget()

    def _walk_from(self, start: Cursor | None) -> Walk:
        """The walk that began there, or one that begins."""
        self._walks.cursor_settled(start)
        return self._walks.get(start) or Walk(SeenEntries.parse(start, self._where), self._max_messages)

    async def _continue_walk(self, way: Walk, request: FetchRequest, start: Cursor | None) -> Page:
        turn = way.step
        leaf = await self._fetch_next(way, request, start)
        if way.step != turn:  # somebody else has taken this document
            return _page_to_continue(start, way.step, leaf.retry_after)
        self._freshness.note(start, leaf.fresh_for if leaf.unchanged else 0.0)
        self._walks.drop(start)
        if leaf.unchanged:
            return _unchanged_page(leaf)
        way.add_document(leaf, self._where, anyio.current_time())
        if way.ended:
            return self._finish_walk(start, way, leaf)
        self._walks.keep(start, way)
        return _page_to_continue(start, way.step, leaf.retry_after)

    async def _fetch_next(self, way: Walk, request: FetchRequest, start: Cursor | None) -> Document:
        try:
            return await self._fetch_document(way.at, request, way.known_for_request)
        except (ChainRestart, FeedRefused):
            self._walks.drop(start)
            raise
        except (CursorExpired, FeedGone) as error:
            self._walks.drop(start)
            if way.at is None:
                raise
            text = f"a walk through {self._where} begins again, since what it led to is gone: {error}"
            raise ChainRestart(text, retry_after=error.retry_after) from error
        except Exception:
            if way.record_failure():
                self._walks.drop(start)
            raise

    def _finish_walk(self, start: Cursor | None, way: Walk, leaf: Document) -> Page:
        """What a walk found at its end. Before a poll is over, the server is not yet left alone between polls."""
        seen = way.seen()
        page = Page(way.new_messages(self._order), seen.cursor(), gap=way.gap)
        way.next_walk = way.remaining_walk(seen)
        wait = (
            leaf.retry_after
            if way.next_walk
            else longer_wait(leaf.retry_after, way.next_poll_delay(anyio.current_time()))
        )
        if page.cursor != start:
            return replace(self._final_page(start, way, page), retry_after=wait)
        page = replace(page, cursor=None, retry_after=wait)
        if way.next_walk is not None:
            way.next_walk.step = way.step + 1
            self._walks.keep(start, way.next_walk)
            return replace(page, next=_position(start, way.next_walk.step))
        self._freshness.note(start, 0.0 if page.messages or way.may_have_newer else leaf.fresh_for)
        return replace(page, closed=way.closed)

    def _final_page(self, start: Cursor | None, way: Walk, page: Page) -> Page:
        """A page, which is kept until it is settled if it costs more than a request to make it again."""
        if not way.may_have_newer:
            return replace(page, closed=way.closed)
        way.page = replace(page, next=page.cursor)
        self._walks.keep(start, way)
        return way.page


def _unchanged_page(leaf: Document) -> Page:
    wait = longer_wait(leaf.retry_after, leaf.poll_interval)
    return Page(retry_after=wait, closed=leaf.closed, gap=leaf.missing)


def _page_to_continue(start: Cursor | None, step: int, retry_after: float | None = None) -> Page:
    return Page(next=_position(start, step), retry_after=retry_after)


def _position(start: Cursor | None, step: int) -> Cursor:
    return f"{start or ''} {step}"


def _parse_position(position: Cursor | None) -> tuple[Cursor | None, int]:
    """The cursor that a walk began with, and the number of its step; a cursor is where it begins."""
    found = _POSITION.fullmatch(position or "")
    return (found[1] or None, int(found[2])) if found else (position, 0)
