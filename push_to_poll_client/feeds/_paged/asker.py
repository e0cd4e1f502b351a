"""One request of a declared feed, and what its answer is found to be."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode

import msgspec
from anyio import to_thread

from push_to_poll_client._exceptions import CursorExpired, FeedError
from push_to_poll_client._text import describe, quoted
from push_to_poll_client._types import FetchRequest, Message
from push_to_poll_client.feeds._manners.origin import Answer, Origin
from push_to_poll_client.feeds._manners.validators import Validators
from push_to_poll_client.feeds._paged.entries import Entries
from push_to_poll_client.feeds._paged.orders import NewestFirst, OldestFirst, Place
from push_to_poll_client.feeds._paged.outcomes import Meaning, Outcome, meaning
from push_to_poll_client.feeds._paged.reply import Reply, Unfit
from push_to_poll_client.feeds._paged.senders import Asking, LongPoll, Sender

__all__ = ["Asker", "Read", "Request"]

MAX_ERROR = 64 * 1024
"""Bytes that are read of an answer by which the server refuses: it may say there that the cursor expired."""

_ACCEPT = "application/json, application/x-ndjson;q=0.9, */*;q=0.1"

_SMALL_ENTRY = 160
"""Bytes that the entries of a page have on average, at least: in memory each takes some 600 more."""

_SMALL_PAGE = 10_000
"""Entries that a page may have however small they are."""

_LARGE_BODY = 1024 * 1024
"""Bytes. What is larger is read in a thread: a hostile page can take ten seconds to see through."""

_NO_PAGE = frozenset({204, 304})

_FOR_PEOPLE = ("html", "xml", "image/", "multipart/")

T = TypeVar("T")


class Request(NamedTuple):
    """A request that is put together."""

    url: str
    method: str
    headers: Mapping[str, str]
    content: bytes | None
    wait: float


class Read(NamedTuple):
    """An answer that was read.

    Attributes:
        answer: As it came.
        reply: The same, as the parts of the declaration see it.
        meaning: What it was found to mean.
        messages: Of the page.
        nothing: There is nothing to look at: 204 and 304, or the server is not ready.
    """

    answer: Answer
    reply: Reply
    meaning: Meaning
    messages: Sequence[Message]
    nothing: bool

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asks to be left alone, by its headers and by what was declared."""
        waits = (self.answer.retry_after, self.meaning.retry_after)
        return max((wait for wait in waits if wait is not None), default=None)


class Asker:
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

    Attributes:
        asking: What every request says.
    """

    def __init__(
        self,
        origin: Origin,
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
        self.asking = Asking(body=body)
        self._origin = origin
        self._entries = entries
        self._each = None if pages.each is None else pages.each.of
        self._outcomes = outcomes
        self._hold = hold
        self._hint = hint
        self._as_form = as_form
        self._method = method
        self._most = max(max_body // _SMALL_ENTRY, _SMALL_PAGE)

    def request(self, put: Callable[[Asking], Asking], request: FetchRequest) -> Request:
        """Put a request together.

        Args:
            put: Puts into it which page is asked for.
            request: As the feed was given it.

        Raises:
            CursorExpired: The cursor cannot be sent: this feed never gave it.
        """
        try:
            asking = put(self.asking)
        except ValueError as error:
            raise CursorExpired(f"the cursor is none of {self._origin.where}: {describe(error)}") from error
        wait = 0.0 if self._hold is None else min(request.wait, self._hold.longest)
        if self._hold is not None and wait > 0:
            asking = self._hold.put(asking, wait)
        if self._hint is not None:
            asking = self._hint.put(asking, request.hint.cursor if request.hint else None)
        content = self._content(asking)
        method = self._method or ("GET" if content is None else "POST")
        url = self._origin.address(asking.query, asking.url)
        return Request(url, method, self._headers(asking, request, content), content, wait)

    async def read(
        self, request: Request, place: Place, *, known: Validators | None = None, entries: bool = True
    ) -> Read:
        """Ask for a page.

        Args:
            request: As `request` put it together.
            place: Where the page is.
            known: By what it is known already.
            entries: Whether they are read.

        Raises:
            FeedError: There is no page to be had; a subclass says why.
        """
        answer = await self._origin.ask(**request._asdict(), known=known, errors=MAX_ERROR)
        reply = Reply(answer)
        found = self.interpreted(meaning, self._outcomes, reply, self._origin.where)
        if found.error is not None:
            found.error.retry_after = found.error.retry_after or answer.retry_after
            raise found.error
        nothing = self._origin.accepted(answer).status in _NO_PAGE or found.empty
        messages = await self._messages(reply, place) if entries and not nothing else []
        return Read(answer, reply, found, messages, nothing)

    def interpreted(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """What a part of the declaration makes of an answer.

        Raises:
            FeedError: The answer does not fit the declaration.
        """
        where = self._origin.where
        try:
            return function(*args, **options)
        except FeedError:
            raise
        except Unfit as error:
            raise FeedError(f"{where} does not answer as it was declared to: {error}") from error
        except Exception as error:
            text = f"{where} answered what a function of its declaration cannot read: {describe(error)}"
            raise FeedError(text) from error

    def _headers(self, asking: Asking, request: FetchRequest, content: bytes | None) -> Mapping[str, str]:
        headers = {"accept": _ACCEPT, **asking.headers}
        if request.fresh:
            headers["cache-control"] = "no-cache"
        if content is not None:
            headers["content-type"] = "application/x-www-form-urlencoded" if self._as_form else "application/json"
        return headers

    def _content(self, asking: Asking) -> bytes | None:
        if asking.body is None:
            return None
        return urlencode(asking.body).encode() if self._as_form else msgspec.json.encode(asking.body)

    async def _messages(self, reply: Reply, place: Place) -> Sequence[Message]:
        _check_type(reply, self._origin.where)
        read = functools.partial(
            self.interpreted, self._entries.read, reply, each=self._each, start=place.start, most=self._most
        )
        if len(reply.content) <= _LARGE_BODY:
            return read()
        return await to_thread.run_sync(read, abandon_on_cancel=True)


def _check_type(reply: Reply, where: str) -> None:
    """JSON goes by many names; what is for people by none of them."""
    stated = reply.headers.get("content-type", "")
    if any(kind in stated.lower() for kind in _FOR_PEOPLE):
        raise FeedError(
            f"{where} sent {quoted(stated)}, no JSON; check that the URL is that of a feed and no login page "
            "stands before it"
        )
