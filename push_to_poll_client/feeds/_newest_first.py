"""Read a feed that lists its newest entries first, and return them oldest first.

A walk starts at the newest document of the feed and follows links to older ones, until it meets seen entries. Then
it returns all new messages at once, oldest first, with a cursor that names the seen entries (`SeenEntries`).

Each `fetch` reads one document. Until the end of the walk it returns an empty page, whose `next` names the cursor
at which the walk began and the number of the step. The walk is in memory only. If it is lost, by a restart or
because too many walks are kept, it starts again at the newest document, and no message is lost.
"""

import re
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import anyio

from push_to_poll_client._exceptions import CursorExpired, FeedError, FeedGone, FeedRefused, PagesChanged
from push_to_poll_client._types import Cursor, FetchRequest, Page
from push_to_poll_client.feeds._base import EndOfFeed, longest_wait
from push_to_poll_client.feeds._newest_first_cursor import SeenEntries
from push_to_poll_client.feeds._newest_first_walk import MAX_WALKS, Document, FetchDocument, SortKey, Walk

MAX_MESSAGES = 10_000
"""Messages held at once: about 20 MB of usual events, and 100 documents of 100."""


class NewestFirstReader:
    """Reads one feed by walks from its newest document to older ones."""

    def __init__(
        self,
        fetch_document: FetchDocument,
        where: str,
        *,
        order: SortKey | None = None,  # None: the messages of several documents are in order
        max_messages: int = MAX_MESSAGES,  # held at once, unless two documents have more
    ) -> None:
        self._fetch_document = fetch_document
        self._where = where
        self._order = order
        self._max_messages = max_messages
        self._walks: OrderedDict[Cursor | None, Walk] = OrderedDict()  # by the cursors that they began with
        self._end_of_feed = EndOfFeed()

    async def fetch(self, request: FetchRequest) -> Page[Any]:  # of the messages of its documents
        """Fetch the next document of a walk, as `Feed.fetch`."""
        if self._end_of_feed.is_fresh(request.cursor) and not (request.bypass_cache or request.wait):
            return Page()
        start, step = _parse_position(request.cursor)
        self._settle(start)
        if start in self._walks:
            self._walks.move_to_end(start)
        walk = self._walks.get(start) or Walk(SeenEntries.parse(start, self._where), self._max_messages)
        if walk.page is not None or step < walk.step:  # a repeated request for an earlier step
            return walk.page or _page_to_continue(start, walk.step)
        walk.prepare_next(step, anyio.current_time())
        return await self._continue_walk(walk, request, start)

    async def latest(self) -> Cursor | None:
        """Return the cursor after the newest entry, as `Feed.latest`."""
        walk = Walk(SeenEntries(), self._max_messages)
        document = await self._fetch_document(None, FetchRequest(bypass_cache=True), walk.known)
        if document.unchanged:
            raise FeedError(f"{self._where} has no newest document yet; retrying later")
        walk.add_document(document, self._where, anyio.current_time())
        return walk.seen().cursor()

    def forget(self) -> None:
        """Forget all walks, since the event loop may end. A page that failed may be correct in the next run."""
        self._end_of_feed.forget()
        self._walks.clear()

    def _keep(self, start: Cursor | None, walk: Walk) -> None:
        """Keep a walk. It replaces an earlier walk that began at this cursor."""
        self._walks[start] = walk
        if len(self._walks) > MAX_WALKS:
            self._walks.popitem(last=False)

    def _settle(self, cursor: Cursor | None) -> None:
        """Drop the walk whose page has this cursor: the page is settled. Keep its next walk, which begins here."""
        for start, walk in list(self._walks.items()):
            if walk.page is not None and walk.page.cursor == cursor:
                del self._walks[start]
                if walk.next_walk is not None:
                    self._keep(cursor, walk.next_walk)

    async def _continue_walk(self, walk: Walk, request: FetchRequest, start: Cursor | None) -> Page:
        step = walk.step
        document = await self._fetch_next(walk, request, start)
        if walk.step != step:  # a concurrent fetch has added this document
            return _page_to_continue(start, walk.step, document.retry_after)
        self._end_of_feed.remember(start, None, document.fresh_for if document.unchanged else 0.0)
        self._walks.pop(start, None)
        if document.unchanged:
            wait = longest_wait(document.retry_after, document.poll_interval)
            return Page(retry_after=wait, closed=document.closed, gap=document.missing)
        walk.add_document(document, self._where, anyio.current_time())
        if walk.ended:
            return self._finish_walk(start, walk, document)
        self._keep(start, walk)
        return _page_to_continue(start, walk.step, document.retry_after)

    async def _fetch_next(self, walk: Walk, request: FetchRequest, start: Cursor | None) -> Document:
        try:
            known = walk.known if walk.at is None else replace(walk.known, validators=None)
            return await self._fetch_document(walk.at, request, known)
        except Exception as error:
            if isinstance(error, PagesChanged | FeedRefused | CursorExpired | FeedGone) or walk.record_failure():
                self._walks.pop(start, None)
            if walk.at is None or not isinstance(error, CursorExpired | FeedGone):
                raise
            text = f"{self._where} changed during the poll, which starts again: {error}"
            raise PagesChanged(text, retry_after=error.retry_after) from error

    def _finish_walk(self, start: Cursor | None, walk: Walk, last: Document) -> Page:
        """Return the page with the messages of a walk that fetched its last document."""
        seen = walk.seen()
        page = Page(walk.new_messages(self._order), seen.cursor(), gap=walk.gap)
        walk.next_walk = walk.remaining_walk(seen)
        # The server's interval between two polls applies after the last walk of this poll.
        wait = (
            last.retry_after
            if walk.next_walk
            else longest_wait(last.retry_after, walk.next_poll_delay(anyio.current_time()))
        )
        if page.cursor != start:
            if not walk.may_have_newer:
                return replace(page, closed=walk.closed, retry_after=wait)
            # Keep the page until it is settled, since more than one request is needed to make it again.
            walk.page = replace(page, next_page=page.cursor)
            self._keep(start, walk)
            return replace(walk.page, retry_after=wait)
        page = replace(page, cursor=None, retry_after=wait)
        if walk.next_walk is not None:
            walk.next_walk.step = walk.step + 1
            self._keep(start, walk.next_walk)
            return replace(page, next_page=_position(start, walk.next_walk.step))
        self._end_of_feed.remember(start, None, 0.0 if page.messages or walk.may_have_newer else last.fresh_for)
        return replace(page, closed=walk.closed)


def _page_to_continue(start: Cursor | None, step: int, retry_after: float | None = None) -> Page:
    return Page(next_page=_position(start, step), retry_after=retry_after)


_POSITION = re.compile("(.*) ([0-9]{1,9})", re.DOTALL)


def _position(start: Cursor | None, step: int) -> Cursor:
    return f"{start or ''} {step}"


def _parse_position(position: Cursor | None) -> tuple[Cursor | None, int]:
    """Return the cursor at which a walk began, and its step, 0 for a saved cursor."""
    found = _POSITION.fullmatch(position or "")
    return (found[1] or None, int(found[2])) if found else (position, 0)
