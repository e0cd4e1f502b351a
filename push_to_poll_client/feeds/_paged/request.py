"""Send one request of a declared feed, and make a page of its answer."""

import functools
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar
from urllib.parse import unquote_plus, urlencode

import msgspec

from push_to_poll_client._exceptions import CursorExpired, FeedError
from push_to_poll_client._http.caching import Validators, cache_bypass_headers, fresh_for
from push_to_poll_client._http.client import Client
from push_to_poll_client._http.response import ACCEPTED_STATUSES, Response
from push_to_poll_client._types import Cursor, FetchRequest, Message, Page
from push_to_poll_client._validation import describe
from push_to_poll_client.feeds._decoding import max_messages, run_decoder
from push_to_poll_client.feeds._end_of_feed import EndOfFeed
from push_to_poll_client.feeds._newest_first import NewestFirstReader
from push_to_poll_client.feeds._newest_first_cursor import SeenEntries
from push_to_poll_client.feeds._newest_first_walk import Document, longer_wait
from push_to_poll_client.feeds._paged.body import DeclarationMismatch, EntryList, Reply
from push_to_poll_client.feeds._paged.entries import Entries
from push_to_poll_client.feeds._paged.outcomes import Outcome, OutcomeResult, apply_outcomes
from push_to_poll_client.feeds._paged.pagination import Latest, NewestFirst, OldestFirst, PagePosition
from push_to_poll_client.feeds._paged.readers import EntryReader
from push_to_poll_client.feeds._paged.senders import LongPoll, RequestParts, Sender

__all__ = [
    "NewestFirstFetcher",
    "OldestFirstFetcher",
    "PagedClient",
    "ParsedResponse",
    "Request",
]


MAX_ERROR = 64 * 1024
"""Bytes that are read of an answer by which the server refuses: it may say there that the cursor expired."""

_ACCEPT = "application/json, application/x-ndjson;q=0.9, */*;q=0.1"

_NO_PAGE_STATUSES = frozenset({204, 304})
_PAGE_STATUSES = ACCEPTED_STATUSES - _NO_PAGE_STATUSES

_NON_JSON_TYPES = ("html", "xml", "image/", "multipart/")

T = TypeVar("T")


class Request(NamedTuple):
    """A request that is put together.

    Attributes:
        key: What its answer may be remembered by; `None`: none of it is to be.
    """

    url: str
    method: str
    headers: Mapping[str, str]
    content: bytes | None
    wait: float
    key: str | None


class ParsedResponse(NamedTuple, Generic[T]):
    """An answer that was read.

    Attributes:
        answer: As it came.
        meaning: What it was found to mean.
        messages: Of the page.
        leads: What was asked to be read of it besides; `None` if there is nothing.
        nothing: There is nothing to look at: 204 and 304, or the server is not ready, or at its end.
    """

    response: Response
    outcome: OutcomeResult
    messages: Sequence[Message] = ()
    leads: T | None = None
    no_page: bool = False

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asks to be left alone, by its headers and by what was declared."""
        waits = (self.response.retry_after, self.outcome.retry_after)
        return max((wait for wait in waits if wait is not None), default=None)


class PagedClient:
    """Asks for pages, and reads them.

    Args:
        origin: The server.
        entries: Which messages a page has.
        pages: How one leads to the next.
        outcomes: What answers mean.
        hold: How the server is asked to hold its answer; `None`: it cannot.
        hint: Where a push's hint goes; `None`: nowhere.
        body: What the body of every request says; `None`: there is none.
        as_form: As a form, and not as JSON.
        method: Of every request; `None`: POST with a body, else GET.
        max_body: Bytes that an answer may have.
    """

    def __init__(
        self,
        origin: Client,
        entries: Entries,
        pages: OldestFirst | NewestFirst,
        outcomes: Sequence[Outcome],
        *,
        hold: LongPoll | None,
        hint: Sender | None,
        body: Mapping[str, Any] | None,
        as_form: bool,
        method: str | None,
        max_body: int,
    ) -> None:
        self._base_request = RequestParts(body=body)
        self._origin = origin
        self._entries = entries
        self._pages = pages
        self._each = None if pages.each is None else pages.each.of
        self._outcomes = outcomes
        self._hold = hold
        self._hint = hint
        self._as_form = as_form
        self._method = method
        self._max_entries = max_messages(max_body)
        self._allowed = functools.partial(origin.check_link, posted=body is not None)

    def build_request(self, put: Callable[[RequestParts], RequestParts], request: FetchRequest) -> Request:
        """Put a request together.

        Args:
            put: Puts into it which page is asked for.
            request: As the feed was given it.

        Raises:
            CursorExpired: The cursor cannot be sent: this feed never gave it.
        """
        wait = 0.0 if self._hold is None else min(request.wait, self._hold.longest)
        try:
            asking = self._add_wait_and_hint(put(self._base_request), request, wait)
            url, content = self._url(asking), self._content(asking)
        except ValueError as error:
            raise CursorExpired(f"the cursor is none of {self._origin.where}: {describe(error)}") from error
        method = self._method or ("GET" if content is None else "POST")
        key = f"{url} {sorted(asking.headers.items())}" if method == "GET" and content is None else None
        return Request(url, method, self._headers(asking, request, content), content, wait, key)

    async def fetch_page(
        self,
        request: Request,
        place: PagePosition,
        leads: Callable[[Reply], T],
        *,
        known: Validators | None = None,
        entries: bool = True,
    ) -> ParsedResponse[T]:
        """Ask for a page.

        Args:
            request: As `build_request` put it together.
            place: Where the page is.
            leads: What is to be read of it besides its messages.
            known: By what it is known already.
            entries: Whether they are read.

        Raises:
            FeedError: There is no page to be had; a subclass says why.
        """
        url, method, headers, content, wait, _ = request
        answer = await self._origin.send_request(
            url, method=method, headers=headers, content=content, wait=wait, known=known, errors=MAX_ERROR
        )
        self._check_redirect(url, answer)
        read = await run_decoder(len(answer.body), self._read, answer, place, leads, entries=entries)
        self._origin.remember_redirects(answer)
        return read

    def _check_redirect(self, asked: str, answer: Response) -> None:
        """Where no cursor at all stands for the newest messages, those before them would never be seen."""
        for sender in self._pages.senders:
            if sender.is_lost(asked, answer.url):
                raise FeedError(
                    f"{answer.where} redirects to a URL without {sender.name!r}, which says what comes next; ask "
                    "its publisher for its URL"
                )

    def _read(
        self, answer: Response, place: PagePosition, leads: Callable[[Reply], T], *, entries: bool
    ) -> ParsedResponse[T]:
        reply = Reply(answer, self._allowed)
        with _declaration_errors(reply):
            parts = self._find_lists(reply, answer) if entries and answer.status in _PAGE_STATUSES else []
            found = self._apply_outcomes(reply, answer)
            reply.ends = found.closed
            if self._has_no_page(answer, found):
                return ParsedResponse(answer, found, no_page=True)
            if isinstance(parts, Exception):
                raise parts
            messages = self._entries.read(parts, each=self._each, start=place.start)
            return ParsedResponse(answer, found, messages, leads(reply))

    def _find_lists(self, reply: Reply, answer: Response) -> list[EntryList] | Exception:
        """The lists, or why there are none: what the answer means may be more to the point."""
        try:
            _check_media_type(answer)
            return self._entries.find(reply, self._max_entries)
        except Exception as error:  # noqa: BLE001  # raised later
            return error

    def _apply_outcomes(self, reply: Reply, answer: Response) -> OutcomeResult:
        found = apply_outcomes(self._outcomes, reply, reply.where)
        if found.error is None:
            return found
        found.error.retry_after = found.error.retry_after or answer.retry_after
        if isinstance(found.error, CursorExpired):
            found.error.start = self._offered_start(found.error.start, reply)
        raise found.error

    def _offered_start(self, start: Cursor | None, reply: Reply) -> Cursor | None:
        """What the server offers to start from, if that is a cursor."""
        try:
            return self._pages.kept(start, reply)
        except (FeedError, DeclarationMismatch):
            return None

    def _has_no_page(self, answer: Response, found: OutcomeResult) -> bool:
        if found.empty or (found.closed and answer.status not in ACCEPTED_STATUSES):
            return True
        return self._origin.check_status(answer).status in _NO_PAGE_STATUSES

    def _add_wait_and_hint(self, asking: RequestParts, request: FetchRequest, wait: float) -> RequestParts:
        """The request with all in it that does not say which page is asked for."""
        if self._hold is not None and wait > 0:
            asking = self._hold.put(asking, wait)
        if self._hint is None:
            return asking
        try:
            return self._hint.put(asking, request.hint.cursor if request.hint else None)
        except ValueError:  # whoever may push can write anything
            return self._hint.put(asking, None)

    def _url(self, asking: RequestParts) -> str:
        url = None if asking.url is None else _without_parameters(asking.url, asking.query.keys())
        return self._origin.build_url(asking.query, url)

    def _headers(self, asking: RequestParts, request: FetchRequest, content: bytes | None) -> Mapping[str, str]:
        headers = {"accept": _ACCEPT, **asking.headers, **cache_bypass_headers(fresh=request.fresh)}
        if content is not None:
            headers["content-type"] = "application/x-www-form-urlencoded" if self._as_form else "application/json"
        return headers

    def _content(self, asking: RequestParts) -> bytes | None:
        if asking.body is None:
            return None
        return urlencode(asking.body).encode() if self._as_form else msgspec.json.encode(asking.body)


@contextmanager
def _declaration_errors(reply: Reply) -> Iterator[None]:
    """What the parts of a declaration raise over an answer is a failed poll."""
    try:
        yield
    except FeedError:
        raise
    except DeclarationMismatch as error:
        raise FeedError(f"{reply.where} does not answer as it was declared to: {error}") from error
    except Exception as error:
        raise FeedError(
            f"{reply.where} answered what a function of its declaration cannot read: {describe(error)}, "
            f"in {reply.outline()}"
        ) from error


def _without_parameters(url: str, names: Collection[str]) -> str:
    """A URL that a server wrote, without these parameters: it may have what it was asked with in it."""
    path, mark, query = url.partition("?")
    kept = [field for field in query.split("&") if unquote_plus(field.partition("=")[0]) not in names]
    return f"{path}{mark if kept else ''}{'&'.join(kept)}"


def _check_media_type(answer: Response) -> None:
    """JSON goes by many names; what is for people by none of them."""
    if any(kind in answer.media_type for kind in _NON_JSON_TYPES):
        raise answer.wrong_type("no JSON")


logger = logging.getLogger("push_to_poll_client")


_ForwardResponse: TypeAlias = ParsedResponse[tuple[Cursor | None, Cursor | None]]


class OldestFirstFetcher:
    """Pages that go forward.

    Args:
        asker: Asks for them.
        pages: How one leads to the next.
    """

    def __init__(self, asker: PagedClient, pages: OldestFirst) -> None:
        self._client = asker
        self._pages = pages
        self._end_of_feed = EndOfFeed()

    async def fetch(self, request: FetchRequest) -> Page:
        """As `Feed.fetch`."""
        place = PagePosition.of(request.cursor)
        ready = self._client.build_request(lambda asking: self._pages.put(asking, place), request)
        if ready.key is None:
            return self._page(await self._read(ready, place))
        if self._end_of_feed.is_fresh(ready.key) and not (request.fresh or ready.wait):
            return Page()
        read = await self._read(ready, place, self._end_of_feed.validators_for(ready.key))
        page = self._page(read)
        self._end_of_feed.note(ready.key, read.response, empty=_changes_nothing(page, place))
        return page

    async def latest(self, latest: Latest) -> Cursor | None:
        """As `Feed.latest`."""
        ready = self._client.build_request(latest.put, FetchRequest(fresh=True))
        by_entry = isinstance(self._pages.ends(latest), EntryReader)
        read = await self._client.fetch_page(
            ready, PagePosition(None), lambda reply: self._pages.end(reply, latest), entries=by_entry
        )
        if read.no_page:
            raise FeedError(f"{read.response.where} has no cursor of the feed's end yet; it is asked again later")
        return read.leads

    def forget(self) -> None:
        """When the event loop may end."""
        self._end_of_feed.forget()

    async def _read(
        self, ready: Request, place: PagePosition, known: Validators | None = None
    ) -> _ForwardResponse:
        return await self._client.fetch_page(
            ready, place, lambda reply: self._pages.leads_to(reply, place), known=known
        )

    def _page(self, read: _ForwardResponse) -> Page:
        closed, gap = read.outcome.closed, read.outcome.gap
        cursor, following = read.leads or (None, None)
        following = None if closed else following
        return Page(read.messages, cursor, following, read.retry_after, closed=closed, gap=gap)


def _changes_nothing(page: Page, place: PagePosition) -> bool:
    """Nothing to settle, to save or to go on to: what a 304 may stand for."""
    return not (page.messages or page.next or page.closed or page.gap) and page.cursor in {None, place.start}


class NewestFirstFetcher:
    """Pages that go back.

    Args:
        asker: Asks for them.
        pages: How one leads to the next.
        where: The URL without secrets, for errors.
    """

    def __init__(self, asker: PagedClient, pages: NewestFirst, where: str) -> None:
        self._client = asker
        self._pages = pages
        self._where = where
        self._walk = NewestFirstReader(self._fetch_document, where)

    async def fetch(self, request: FetchRequest) -> Page:
        """As `Feed.fetch`."""
        return await self._walk.fetch(request)

    async def latest(self) -> Cursor | None:
        """As `Feed.latest`."""
        return await self._walk.latest()

    def forget(self) -> None:
        """When the event loop may end."""
        self._walk.forget()

    async def _fetch_document(self, page: str | None, request: FetchRequest, known: SeenEntries) -> Document:
        ready = self._client.build_request(lambda asking: self._pages.put(asking, page), request)
        read = await self._client.fetch_page(ready, PagePosition(None), self._pages.older, known=known.validators)
        if page is not None:
            self._check_page_exists(read)
        elif not known.messages and read.messages and read.leads is None and self._pages.supposes:
            logger.info(
                "the newest page of %s has %d entries and leads to no older one; if there are more, correct next=",
                self._where,
                len(read.messages),
            )
        return Document(
            read.messages,
            read.leads,
            size=len(read.response.body),
            validators=read.response.validators,
            retry_after=longer_wait(read.response.within_poll, read.outcome.retry_after),
            unchanged=page is None and _is_unchanged(read, known),
            missing=read.outcome.gap,
            fresh_for=0.0 if read.outcome.empty else fresh_for(read.response.headers),
            poll_interval=read.response.retry_after,
            closed=read.outcome.closed,
        )

    def _check_page_exists(self, read: ParsedResponse[Any]) -> None:
        """An older page that is missing is no end of the walk, or what stands there would never be seen."""
        if read.outcome.empty:
            raise FeedError(f"{self._where} is not ready in the middle of its pages", retry_after=read.retry_after)
        if read.response.status == HTTPStatus.NO_CONTENT and self._pages.promises:
            raise FeedError(
                f"{self._where} has no content where the page before says that there is more; it is asked again",
                retry_after=read.retry_after,
            )


def _is_unchanged(read: ParsedResponse[Any], known: SeenEntries) -> bool:
    """Whether the newest document brings nothing to look at; with nothing known, no content is an empty feed."""
    status = read.response.status
    nothing_new = status == HTTPStatus.NO_CONTENT and bool(known.messages)
    return read.outcome.empty or status == HTTPStatus.NOT_MODIFIED or nothing_new
