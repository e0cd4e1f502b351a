"""Build a request of a `PagedFeed`, send it, and make a page of the response.

`PageFetcher` does this for one page. `OldestFirstFetcher` and `NewestFirstFetcher` implement `fetch` and `latest`
of the feed, one for each direction of pages.

A response is read in this order: find its entries, apply the declared outcomes, check the status, and only then
raise an error about the body. An error response need not have a list, and its meaning matters more.
"""

import functools
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from http import HTTPStatus
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import unquote_plus, urlencode

import msgspec

from push_to_poll_client._exceptions import CursorExpired, FeedError, FeedGone
from push_to_poll_client._http.caching import Validators, cache_bypass_headers, fresh_for
from push_to_poll_client._http.client import Client
from push_to_poll_client._http.response import ACCEPTED_STATUSES, Response
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._types import Cursor, FetchRequest, Page, UnreadableMessage
from push_to_poll_client._validation import describe
from push_to_poll_client.feeds._base import EndOfFeed, longest_wait
from push_to_poll_client.feeds._decoding import max_messages, run_decoder
from push_to_poll_client.feeds._newest_first import NewestFirstReader
from push_to_poll_client.feeds._newest_first_cursor import SeenEntries
from push_to_poll_client.feeds._newest_first_walk import Document
from push_to_poll_client.feeds._paged.body import DeclarationMismatch, EntryList, Reply
from push_to_poll_client.feeds._paged.declaration import Declaration
from push_to_poll_client.feeds._paged.entries import Entry, check_order
from push_to_poll_client.feeds._paged.outcomes import OutcomeResult, apply_outcomes
from push_to_poll_client.feeds._paged.pagination import Latest, NewestFirst, OldestFirst, PagePosition
from push_to_poll_client.feeds._paged.readers import EntryReader
from push_to_poll_client.feeds._paged.senders import RequestParts

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

MAX_ERROR = 64 * 1024
"""Bytes read of an error response: its body may say that the cursor expired."""

_ACCEPT = "application/json, application/x-ndjson;q=0.9, */*;q=0.1"

_NO_PAGE_STATUSES = frozenset({204, 304})
_ABSENT_STATUSES = frozenset({400, 404, 410, 416, 422})
"""Statuses which mean that the requested page does not exist."""

_PAGE_STATUSES = ACCEPTED_STATUSES - _NO_PAGE_STATUSES

_NON_JSON_TYPES = ("html", "xml", "image/", "multipart/")
"""Parts of media types that are not JSON. All other types are tried: JSON has many names."""

P = TypeVar("P", bound=OldestFirst | NewestFirst)
T = TypeVar("T")


class Request(NamedTuple):
    """A request ready to send; `key` identifies its response in the cache, None if it must not be cached."""

    url: str
    method: str
    headers: Mapping[str, str]
    content: bytes | None
    wait: float
    key: str | None

    def __repr__(self) -> str:  # all other parts may hold a secret
        return f"{type(self).__name__}({self.method}, wait={self.wait:g})"


class ParsedResponse(NamedTuple, Generic[T]):
    """A response and the values read from it."""

    response: Response
    outcome: OutcomeResult
    messages: Sequence[Entry | UnreadableMessage] = ()
    continuation: T | None = None  # result of `read_continuation`; None without a page
    no_page: bool = False  # 204 or 304, or the server is not ready, or the feed has ended

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asks to wait, by headers or as declared; the longer of both."""
        return longest_wait(self.response.retry_after, self.outcome.retry_after)


class PageFetcher(Generic[P]):
    """Fetches and reads single pages; its subclasses follow them in one direction."""

    def __init__(self, client: Client, declared: Declaration, pages: P) -> None:
        self._client = client
        self._declared = declared
        # A declaration may be shared, and its parts remember facts about pages: each feed has copies.
        self._entries, self._pages = declared.entries.for_feed(declared.decoder), copy(pages)
        self._pages.forget()
        self.restore = self._entries.restore
        self._each = None if pages.each is None else pages.each.of
        self._max_entries = max_messages(client.max_body)
        self._order_is_wrong = False

    def _build_request(
        self, put_position: Callable[[RequestParts], RequestParts], request: FetchRequest
    ) -> Request:
        """Build the request for one page; raise CursorExpired if the cursor is not from this feed."""
        declared, long_poll, hint = self._declared, self._declared.long_poll, self._declared.hint
        wait = 0.0 if long_poll is None else min(request.wait, long_poll.longest)
        as_form = declared.form is not None
        try:
            parts = put_position(RequestParts(body=declared.body))
            if long_poll is not None:
                parts = long_poll.put(parts, wait)
            if hint is not None:
                try:
                    parts = hint.put(parts, request.hint.cursor if request.hint else None)
                except ValueError:  # a push can contain anything
                    parts = hint.put(parts, None)
            # A link of the server may repeat parameters of an earlier request, such as a wait.
            own = {*parts.query, *(sender.name for _, sender in declared.asides if sender.goes == "query")}
            target = None if parts.url is None else _without_parameters(parts.url, own)
            url = self._client.build_url(parts.query, target)
            content = None
            if parts.body is not None:
                content = urlencode(parts.body).encode() if as_form else msgspec.json.encode(parts.body)
        except ValueError as error:
            raise CursorExpired(
                f"the cursor does not belong to {self._client.where}: {describe(error)}"
            ) from error
        method = declared.method.upper() if declared.method else "GET" if content is None else "POST"
        key = f"{url} {sorted(parts.headers.items())}" if method == "GET" and content is None else None
        headers = {"accept": _ACCEPT, **parts.headers, **cache_bypass_headers(bypass_cache=request.bypass_cache)}
        if content is not None:
            headers["content-type"] = "application/x-www-form-urlencoded" if as_form else "application/json"
        return Request(url, method, headers, content, wait, key)

    async def _fetch_page(
        self,
        request: Request,
        parse: Callable[[Response], ParsedResponse[T]],
        validators: Validators | None = None,
    ) -> ParsedResponse[T]:
        """Send a request and parse its response; with `validators` the server may answer 304."""
        response = await self._client.send_request(
            request.url,
            method=request.method,
            headers=request.headers,
            content=request.content,
            wait=request.wait,
            known=validators,
            max_error_body=MAX_ERROR,
        )
        # Without a cursor a server returns its newest messages, and those before them would be lost.
        for sender in self._pages.senders:
            if sender.is_lost(request.url, response.url):
                raise FeedError(
                    f"{response.where} redirects to a URL without the cursor parameter {sender.name!r}; "
                    "ask its publisher for its URL"
                )
        parsed = await run_decoder(len(response.body), parse, response)
        self._client.remember_redirects(response)
        return parsed

    def _parse(
        self,
        response: Response,
        *,
        read_continuation: Callable[[Reply], T],
        start: Cursor | None = None,  # where the chain of pages began
        read_entries: bool = True,
        may_be_absent: bool = False,  # 404 and the like are then not an error; 401, 403 and 429 are
    ) -> ParsedResponse[T]:
        """Read a response; `read_continuation` reads what the caller needs besides the messages."""
        posted = self._declared.body is not None
        reply = Reply(response, functools.partial(self._client.check_link, posted=posted))
        with _declaration_errors(reply, response.retry_after):
            may_have_entries = read_entries and response.status in _PAGE_STATUSES
            lists = self._find_lists(reply, response) if may_have_entries else []
            outcome = self._apply_outcomes(reply, response)
            reply.ends = outcome.closed
            no_page = outcome.empty or (outcome.closed and response.status not in ACCEPTED_STATUSES)
            no_page = no_page or (may_be_absent and response.status in _ABSENT_STATUSES)
            if no_page or self._client.check_status(response).status in _NO_PAGE_STATUSES:
                return ParsedResponse(response, outcome, no_page=True)
            if isinstance(lists, Exception):
                raise lists
            messages = self._entries.read(lists, each=self._each, start=start)
            return ParsedResponse(response, outcome, messages, read_continuation(reply))

    def _check_order(self, parsed: ParsedResponse[T], *, first: bool) -> None:
        """Check the order of the entries, until it is found to be wrong."""
        order, where = self._pages.order, parsed.response.where
        if order is not None and not self._order_is_wrong:
            self._order_is_wrong = not check_order(parsed.messages, order, where, first=first)

    def _find_lists(self, reply: Reply, response: Response) -> list[EntryList] | Exception:
        """Return the lists of entries, or the error to raise if the response has no other meaning."""
        try:
            if any(kind in response.media_type for kind in _NON_JSON_TYPES):
                return response.wrong_type("no JSON")
            return self._entries.find(reply, self._max_entries)
        except Exception as error:  # noqa: BLE001  # raised later
            return error

    def _apply_outcomes(self, reply: Reply, response: Response) -> OutcomeResult:
        """Apply the outcomes. If one cannot read an error response, raise for its status instead."""
        try:
            outcome = apply_outcomes(self._declared.outcomes, reply)
        except FeedError:
            raise
        except Exception:
            self._client.check_status(response)
            raise
        if outcome.error is None:
            return outcome
        outcome.error.retry_after = outcome.error.retry_after or response.retry_after
        if isinstance(outcome.error, CursorExpired):
            try:
                outcome.error.start = self._pages.kept(outcome.error.start, reply)
            except (FeedError, DeclarationMismatch):  # the offered start is not a cursor
                outcome.error.start = None
        raise outcome.error


@contextmanager
def _declaration_errors(reply: Reply, retry_after: float | None) -> Iterator[None]:
    """Convert exceptions of a declaration to a FeedError with the pause that the server wants."""
    try:
        yield
    except FeedError:
        raise
    except DeclarationMismatch as error:
        text = f"{reply.where} does not match its declaration: {error}"
        raise FeedError(text, retry_after=retry_after) from error
    except Exception as error:
        raise FeedError(
            f"{reply.where} does not match its declaration: its function raised {describe(error)} "
            f"for the response {reply.outline()}",
            retry_after=retry_after,
        ) from error


def _without_parameters(url: str, names: Collection[str | None]) -> str:
    path, mark, query = url.partition("?")
    kept = [field for field in query.split("&") if unquote_plus(field.partition("=")[0]) not in names]
    return f"{path}{mark if kept else ''}{'&'.join(kept)}"


class OldestFirstFetcher(PageFetcher[OldestFirst]):
    """Fetches pages that go forward."""

    def __init__(self, client: Client, declared: Declaration, pages: OldestFirst) -> None:
        super().__init__(client, declared, pages)
        self._end_of_feed = EndOfFeed()

    async def fetch(self, request: FetchRequest) -> Page[Entry]:
        """As `Feed.fetch`."""
        position = PagePosition.of(request.cursor)
        prepared = self._build_request(lambda parts: self._pages.put(parts, position), request)
        key, validators = prepared.key, None
        if key is not None:
            if self._end_of_feed.is_fresh(key) and not (request.bypass_cache or prepared.wait):
                return Page()
            validators = self._end_of_feed.validators_for(key)
        parse = functools.partial(
            self._parse,
            read_continuation=lambda reply: self._pages.leads_to(reply, position),
            start=position.start,
        )
        parsed = await self._fetch_page(prepared, parse, validators)
        self._check_order(parsed, first=position == PagePosition(None))
        closed, gap = parsed.outcome.closed, parsed.outcome.gap
        cursor, following = parsed.continuation or (None, None)
        following = None if closed else following
        if key is not None:
            # A later 304 may replace this page only if nothing on it must be settled, saved or followed.
            has_news = parsed.messages or following or closed or gap
            empty = not has_news and cursor in {None, position.start}
            self._end_of_feed.note(key, parsed.response, empty=empty)
        return Page(parsed.messages, cursor, following, parsed.retry_after, closed=closed, gap=gap)

    async def latest(self, latest: Latest) -> Cursor | None:
        """As `Feed.latest`."""
        prepared = self._build_request(latest.put, FetchRequest(bypass_cache=True))
        parse = functools.partial(
            self._parse,
            read_continuation=lambda reply: self._pages.end(reply, latest),
            read_entries=isinstance(self._pages.ends(latest), EntryReader),
        )
        parsed = await self._fetch_page(prepared, parse)
        if parsed.no_page:
            raise FeedError(f"{parsed.response.where} has no cursor for the end of the feed yet; retrying later")
        return parsed.continuation

    def forget(self) -> None:
        """Forget what depends on the event loop, which may end now."""
        self._end_of_feed.forget()


class NewestFirstFetcher(PageFetcher[NewestFirst]):
    """Fetches pages that go back."""

    def __init__(self, client: Client, declared: Declaration, pages: NewestFirst) -> None:
        super().__init__(client, declared, pages)
        reader = NewestFirstReader(self._fetch_document, client.where)
        self.fetch, self.latest, self.forget = reader.fetch, reader.latest, reader.forget

    async def _fetch_document(self, page: str | None, request: FetchRequest, known: SeenEntries) -> Document:
        prepared = self._build_request(lambda parts: self._pages.put(parts, page), request)
        is_doubtful = self._pages.is_doubtful(page)
        parse = functools.partial(
            self._parse, read_continuation=lambda reply: self._pages.older(reply, page), may_be_absent=is_doubtful
        )
        try:
            parsed = await self._fetch_page(prepared, parse, known.validators)
        except (CursorExpired, FeedGone):
            if is_doubtful:
                return Document()
            raise
        if is_doubtful and parsed.response.status in _ABSENT_STATUSES:
            return Document()
        where, older = self._client.where, parsed.continuation
        self._check_order(parsed, first=page is None and not known.messages)
        if page is not None and not is_doubtful:
            self._check_page_exists(parsed)
        elif page is None and not known.messages and parsed.messages and older is None and self._pages.supposes:
            logger.info(
                "the newest page of %s has %d entries and no link to an older page; "
                "if there are more, correct next=",
                where,
                len(parsed.messages),
            )
        return Document(
            parsed.messages,
            older,
            size=len(parsed.response.body),
            validators=parsed.response.validators,
            retry_after=longest_wait(parsed.response.within_poll, parsed.outcome.retry_after),
            unchanged=page is None and _is_unchanged(parsed, known),
            missing=parsed.outcome.gap,
            fresh_for=0.0 if parsed.outcome.empty else fresh_for(parsed.response.headers),
            poll_interval=parsed.response.retry_after,
            closed=parsed.outcome.closed,
        )

    def _check_page_exists(self, parsed: ParsedResponse[Any]) -> None:
        """Raise for an older page that is missing: ending the walk there would lose its messages."""
        if parsed.outcome.empty:
            text = "is not ready to return an older page of the list"
        elif parsed.response.status == HTTPStatus.NO_CONTENT and self._pages.promises:
            text = "returned no content (204) for a page that the previous page announced"
        else:
            return
        raise FeedError(f"{self._client.where} {text}", retry_after=parsed.retry_after)


def _is_unchanged(parsed: ParsedResponse[Any], known: SeenEntries) -> bool:
    """Return True if the newest document has no news. If no entry was seen yet, 204 is an empty feed."""
    status = parsed.response.status
    nothing_new = status == HTTPStatus.NO_CONTENT and bool(known.messages)
    return parsed.outcome.empty or status == HTTPStatus.NOT_MODIFIED or nothing_new
