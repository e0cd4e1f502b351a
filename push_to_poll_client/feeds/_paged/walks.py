"""From a request to a page: forward, or from the newest back."""

import logging
from http import HTTPStatus
from typing import Any, TypeAlias

from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._http.caching import Validators, fresh_for
from push_to_poll_client._types import Cursor, FetchRequest, Page
from push_to_poll_client.feeds._manners.tail import Tail
from push_to_poll_client.feeds._paged.asker import Asker, Read, Request
from push_to_poll_client.feeds._paged.orders import Latest, NewestFirst, OldestFirst, Place
from push_to_poll_client.feeds._paged.readers import EntryReader
from push_to_poll_client.feeds._seen import Seen
from push_to_poll_client.feeds._walk_back import Leaf, WalkBack, longer

__all__ = ["Backward", "Forward"]

logger = logging.getLogger("push_to_poll_client")


_Read: TypeAlias = Read[tuple[Cursor | None, Cursor | None]]


class Forward:
    """Pages that go forward.

    Args:
        asker: Asks for them.
        pages: How one leads to the next.
    """

    def __init__(self, asker: Asker, pages: OldestFirst) -> None:
        self._asker = asker
        self._pages = pages
        self._tail = Tail()

    async def fetch(self, request: FetchRequest) -> Page:
        """As `Feed.fetch`."""
        place = Place.of(request.cursor)
        ready = self._asker.request(lambda asking: self._pages.put(asking, place), request)
        if ready.key is None:
            return self._page(await self._read(ready, place))
        if self._tail.is_fresh(ready.key) and not (request.fresh or ready.wait):
            return Page()
        read = await self._read(ready, place, self._tail.known(ready.key))
        page = self._page(read)
        self._tail.note(ready.key, read.answer, empty=_brings_nothing(page, place))
        return page

    async def latest(self, latest: Latest) -> Cursor | None:
        """As `Feed.latest`."""
        ready = self._asker.request(latest.put, FetchRequest(fresh=True))
        by_entry = isinstance(self._pages.ends(latest), EntryReader)
        read = await self._asker.read(
            ready, Place(None), lambda reply: self._pages.end(reply, latest), entries=by_entry
        )
        if read.nothing:
            raise FeedError(f"{read.answer.where} has no cursor of the feed's end yet; it is asked again later")
        return read.leads

    def forget(self) -> None:
        """When the event loop may end."""
        self._tail.forget()

    async def _read(self, ready: Request, place: Place, known: Validators | None = None) -> _Read:
        return await self._asker.read(ready, place, lambda reply: self._pages.leads_to(reply, place), known=known)

    def _page(self, read: _Read) -> Page:
        closed, gap = read.meaning.closed, read.meaning.gap
        cursor, following = read.leads or (None, None)
        following = None if closed else following
        return Page(read.messages, cursor, following, read.retry_after, closed=closed, gap=gap)


def _brings_nothing(page: Page, place: Place) -> bool:
    """Nothing to settle, to save or to go on to: what a 304 may stand for."""
    return not (page.messages or page.next or page.closed or page.gap) and page.cursor in {None, place.start}


class Backward:
    """Pages that go back.

    Args:
        asker: Asks for them.
        pages: How one leads to the next.
        where: The URL without secrets, for errors.
    """

    def __init__(self, asker: Asker, pages: NewestFirst, where: str) -> None:
        self._asker = asker
        self._pages = pages
        self._where = where
        self._walk = WalkBack(self._look, where)

    async def fetch(self, request: FetchRequest) -> Page:
        """As `Feed.fetch`."""
        return await self._walk.fetch(request)

    async def latest(self) -> Cursor | None:
        """As `Feed.latest`."""
        return await self._walk.latest()

    def forget(self) -> None:
        """When the event loop may end."""
        self._walk.forget()

    async def _look(self, page: str | None, request: FetchRequest, known: Seen) -> Leaf:
        ready = self._asker.request(lambda asking: self._pages.put(asking, page), request)
        read = await self._asker.read(ready, Place(None), self._pages.older, known=known.validators)
        if page is not None:
            self._check_is_there(read)
        elif not known.messages and read.messages and read.leads is None and self._pages.supposes:
            logger.info(
                "the newest page of %s has %d entries and leads to no older one; if there are more, correct next=",
                self._where,
                len(read.messages),
            )
        return Leaf(
            read.messages,
            read.leads,
            size=len(read.answer.body),
            validators=read.answer.validators,
            retry_after=longer(read.answer.within_poll, read.meaning.retry_after),
            unchanged=page is None and _is_unchanged(read, known),
            missing=read.meaning.gap,
            fresh_for=0.0 if read.meaning.empty else fresh_for(read.answer.headers),
            poll_interval=read.answer.retry_after,
            closed=read.meaning.closed,
        )

    def _check_is_there(self, read: Read[Any]) -> None:
        """An older page that is missing is no end of the walk, or what stands there would never be seen."""
        if read.meaning.empty:
            raise FeedError(f"{self._where} is not ready in the middle of its pages", retry_after=read.retry_after)
        if read.answer.status == HTTPStatus.NO_CONTENT and self._pages.promises:
            raise FeedError(
                f"{self._where} has no content where the page before says that there is more; it is asked again",
                retry_after=read.retry_after,
            )


def _is_unchanged(read: Read[Any], known: Seen) -> bool:
    """Whether the newest document brings nothing to look at; with nothing known, no content is an empty feed."""
    status = read.answer.status
    nothing_new = status == HTTPStatus.NO_CONTENT and bool(known.messages)
    return read.meaning.empty or status == HTTPStatus.NOT_MODIFIED or nothing_new
