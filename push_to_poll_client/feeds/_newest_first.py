"""Read a feed that shows the newest entries first, and hand them out oldest first.

A walk starts at the newest document of the feed and follows links to older ones, until it meets entries that were
seen before. Then it hands out all new messages at once, the oldest first, with a cursor that names what was seen
(`SeenEntries`). `Walk` keeps the documents of one walk, and decides what comes next.

Each `fetch` reads one document. Until the end of the walk it returns an empty page, whose `next` names the cursor
that the walk began with and the number of the step. The walk itself is in memory. If it is lost, by a restart or
since too many walks are kept, it begins again at the newest document, and nothing else is lost.

The order of the files: this reader, one walk (`_newest_first_walk`), and the cursor (`_newest_first_cursor`).
"""

import re
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import anyio

from push_to_poll_client._exceptions import ChainRestart, CursorExpired, FeedError, FeedGone, FeedRefused
from push_to_poll_client._types import Cursor, FetchRequest, Page
from push_to_poll_client.feeds._newest_first_cursor import SeenEntries
from push_to_poll_client.feeds._newest_first_walk import Document, FetchDocument, SortKey, Walk, Walks, longer_wait

__all__ = ["FreshnessCache", "NewestFirstReader"]


MAX_CURSORS = 16
"""Cursors remembered: one for each consumer of the feed."""


class FreshnessCache:
    """Cursors after which there is nothing new while the response is fresh (RFC 9111 §4.2). For an event loop."""

    def __init__(self) -> None:
        self._times: OrderedDict[Cursor | None, tuple[float, float]] = OrderedDict()

    def __contains__(self, cursor: Cursor | None) -> bool:
        """Return True if a request with this cursor could only bring an empty response again."""
        since, until = self._times.get(cursor, (0.0, 0.0))
        return since <= anyio.current_time() < until

    def note(self, cursor: Cursor | None, seconds: float) -> None:
        """Note that a request with this cursor brought nothing, and for how many seconds it would again."""
        self._times.pop(cursor, None)
        if seconds > 0:
            now = anyio.current_time()
            self._times[cursor] = now, now + seconds
            if len(self._times) > MAX_CURSORS:
                self._times.popitem(last=False)

    def forget(self) -> None:
        """Forget all, since the event loop may end, to whose clock the times belong."""
        self._times.clear()


MAX_MESSAGES = 10_000
"""Messages held at once: some 20 MB of usual events, and 100 documents of 100."""


class NewestFirstReader:
    """Read one feed by walks from its newest document to older ones.

    Args:
        fetch_document: Fetch one document.
        where: The feed's URL without secrets, for errors.
        order: Sort key for the messages of several documents; `None` if they are in order.
        max_messages: Messages held at once, unless two documents have more.
    """

    def __init__(
        self,
        fetch_document: FetchDocument,
        where: str,
        *,
        order: SortKey | None = None,
        max_messages: int = MAX_MESSAGES,
    ) -> None:
        self._fetch_document = fetch_document
        self._where = where
        self._order = order
        self._max_messages = max_messages
        self._walks = Walks()
        self._freshness = FreshnessCache()

    async def fetch(self, request: FetchRequest) -> Page[Any]:  # of the messages of its documents
        """Fetch the next document of a walk, as `Feed.fetch`.

        Raises:
            CursorExpired: The cursor was written by another kind of feed.
            ChainRestart: A document to which the walk led is gone.
            FeedError: The document could not be read, or the walk does not end.
        """
        if request.cursor in self._freshness and not (request.fresh or request.wait):
            return Page()
        start, step = _parse_position(request.cursor)
        self._walks.cursor_settled(start)
        walk = self._walks.get(start) or Walk(SeenEntries.parse(start, self._where), self._max_messages)
        if walk.page is not None or step < walk.step:  # this step was asked for before
            return walk.page or _page_to_continue(start, walk.step)
        walk.prepare_next(step, anyio.current_time())
        return await self._continue_walk(walk, request, start)

    async def latest(self) -> Cursor | None:
        """Return the cursor after the newest entry, as `Feed.latest`.

        Raises:
            FeedError: The newest document could not be read.
        """
        walk = Walk(SeenEntries(), self._max_messages)
        document = await self._fetch_document(None, FetchRequest(fresh=True), walk.known)
        if document.unchanged:
            raise FeedError(f"{self._where} does not show yet what is newest")
        walk.add_document(document, self._where, anyio.current_time())
        return walk.seen().cursor()

    def forget(self) -> None:
        """Forget all walks, since the event loop may end.

        A page that failed is made again then: its publisher may have corrected it.
        """
        self._freshness.forget()
        self._walks.forget()

    async def _continue_walk(self, walk: Walk, request: FetchRequest, start: Cursor | None) -> Page:
        step = walk.step
        document = await self._fetch_next(walk, request, start)
        if walk.step != step:  # a concurrent fetch has added this document
            return _page_to_continue(start, walk.step, document.retry_after)
        self._freshness.note(start, document.fresh_for if document.unchanged else 0.0)
        self._walks.drop(start)
        if document.unchanged:
            wait = longer_wait(document.retry_after, document.poll_interval)
            return Page(retry_after=wait, closed=document.closed, gap=document.missing)
        walk.add_document(document, self._where, anyio.current_time())
        if walk.ended:
            return self._finish_walk(start, walk, document)
        self._walks.keep(start, walk)
        return _page_to_continue(start, walk.step, document.retry_after)

    async def _fetch_next(self, walk: Walk, request: FetchRequest, start: Cursor | None) -> Document:
        try:
            return await self._fetch_document(walk.at, request, walk.known_for_request)
        except (ChainRestart, FeedRefused):
            self._walks.drop(start)
            raise
        except (CursorExpired, FeedGone) as error:
            self._walks.drop(start)
            if walk.at is None:
                raise
            text = f"a walk through {self._where} begins again, since what it led to is gone: {error}"
            raise ChainRestart(text, retry_after=error.retry_after) from error
        except Exception:
            if walk.record_failure():
                self._walks.drop(start)
            raise

    def _finish_walk(self, start: Cursor | None, walk: Walk, last: Document) -> Page:
        """Return the page with the messages of a walk that fetched its last document."""
        seen = walk.seen()
        page = Page(walk.new_messages(self._order), seen.cursor(), gap=walk.gap)
        walk.next_walk = walk.remaining_walk(seen)
        # The interval between two polls counts once the poll is over, which it is not while a walk remains.
        wait = (
            last.retry_after
            if walk.next_walk
            else longer_wait(last.retry_after, walk.next_poll_delay(anyio.current_time()))
        )
        if page.cursor != start:
            if not walk.may_have_newer:
                return replace(page, closed=walk.closed, retry_after=wait)
            # Keep the page until it is settled, since more than one request is needed to make it again.
            walk.page = replace(page, next=page.cursor)
            self._walks.keep(start, walk)
            return replace(walk.page, retry_after=wait)
        page = replace(page, cursor=None, retry_after=wait)
        if walk.next_walk is not None:
            walk.next_walk.step = walk.step + 1
            self._walks.keep(start, walk.next_walk)
            return replace(page, next=_position(start, walk.next_walk.step))
        self._freshness.note(start, 0.0 if page.messages or walk.may_have_newer else last.fresh_for)
        return replace(page, closed=walk.closed)


def _page_to_continue(start: Cursor | None, step: int, retry_after: float | None = None) -> Page:
    return Page(next=_position(start, step), retry_after=retry_after)


_POSITION = re.compile("(.*) ([0-9]{1,9})", re.DOTALL)


def _position(start: Cursor | None, step: int) -> Cursor:
    return f"{start or ''} {step}"


def _parse_position(position: Cursor | None) -> tuple[Cursor | None, int]:
    """Return the cursor that a walk began with, and its step; for a saved cursor, that cursor and 0."""
    found = _POSITION.fullmatch(position or "")
    return (found[1] or None, int(found[2])) if found else (position, 0)
