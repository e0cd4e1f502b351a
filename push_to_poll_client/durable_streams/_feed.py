"""The feed of a Durable Stream: the messages of an append-only stream behind one URL.

Paragraphs are those of PROTOCOL.md in github.com/durable-streams/durable-streams. Where a reader stands is
`_durable/place.py`'s, what headers mean `_durable/said.py`'s, what bodies hold `_durable/framing.py`'s.
"""

from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any, Literal, Protocol, TypeAlias

import anyio

from push_to_poll_client._exceptions import CursorExpired, FeedError, FeedRefused
from push_to_poll_client._http.caching import cache_bypass_headers
from push_to_poll_client._http.client import Client, check_reserved_parameters
from push_to_poll_client._http.credentials import Auth
from push_to_poll_client._http.response import Response
from push_to_poll_client._types import Cursor, DeadLetter, FetchRequest, Message, Page, Push
from push_to_poll_client._validation import check_number, quoted
from push_to_poll_client.durable_streams._framing import (
    BEGINNING,
    FRAMINGS,
    NOW,
    ReadStart,
    StreamBatch,
    StreamHeaders,
    StreamMessage,
    StreamPosition,
    StreamResponse,
    echo_of,
)
from push_to_poll_client.feeds._decoding import max_messages, run_decoder
from push_to_poll_client.feeds._end_of_feed import EndOfFeed

__all__ = [
    "DurableStreamFeed",
]


MessageFormat: TypeAlias = Literal["json", "ndjson", "lines", "bytes"]

_HEAD_UNSUPPORTED = frozenset({HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED})
_RESERVED_PARAMETERS = frozenset({"cursor", "live", "offset"})
_JSON = "application/json"


class StreamEvent(Protocol):
    """What `DurableStreamFeed.hint` looks at: a `ServerSentEvent`."""

    @property
    def event(self) -> str:
        """Its type."""

    @property
    def data(self) -> str:
        """Its data."""


class DurableStreamFeed:
    """A stream by the Durable Streams Protocol, read to its end and on.

    The messages of a stream have no ids, but they keep their places (§4): a message's id is its number, counted
    from the beginning of the stream. For lines and bytes the number is that of their first byte. Where counting
    began elsewhere the id says so: after `start="latest"`, and after the stream was reset.

    A closed stream (§4.1) ends the consumer when all of it is settled. A stream that is not there, deleted or has
    expired (404) is asked for again, slowly. One that no longer has what comes at the saved offset (410), or that
    was deleted and made anew so that it is shorter than what was read, is a `CursorExpired`, which offers its
    beginning as `start`; one that is deleted and only kept for its forks (410) is a `FeedGone`.

    As a rule long polling brings what is appended. As wakes, server-sent events do too:

        SSEListener(feed.push_url, hint=feed.hint)

    Redirects, credentials and clients are as for `HTTPFeed`.

    Args:
        url: Where the stream is, with the query that it may need. A user and password in it are sent as Basic
            credentials and shown nowhere.
        messages: How it is cut: "json" is a stream of `application/json`, whose messages have borders of their
            own; "ndjson" has one JSON value a line, "lines" one `str` a line, of which the last one waits for
            its end; "bytes" makes one message of each answer, however the server cuts them, and its id is the
            range of its bytes.
        auth: As for `HTTPFeed`.
        headers: Sent with every request, before the feed's own.
        max_wait: Seconds for which an answer is waited for when there is nothing new (long polling). The server
            cannot be asked for a time (§5.7); most hold for 30 s. `None`: no long polling.
        timeout: Seconds for one whole answer, from connecting to the last byte; a wait comes on top.
        max_body: Bytes that an answer may have, on the wire and unpacked, and that a line may have.
        client: An `httpx.AsyncClient`, or one of its shape, to send by; its timeouts hold, a wait comes on top.
            It stays yours: it is not closed. `None` opens one when needed.
        trusted: Other origins to which redirects may lead; they are asked without credentials and `headers`.

    Attributes:
        read_ahead: True: the next page is fetched while one is processed. Fetching acknowledges nothing.
        max_wait: As given.
        identity: What the feed is, without secrets: the URL, and how it is cut.
        push_url: The stream as server-sent events from its end on, for an `SSEListener`; without the credentials
            that the URL may have.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument has no meaning; the text says which and why.
    """

    read_ahead: bool = True

    def __init__(
        self,
        url: str,
        *,
        messages: MessageFormat = "json",
        auth: Auth | None = None,
        headers: Mapping[str, str] | None = None,
        max_wait: float | None = 35.0,
        timeout: float = 30.0,
        max_body: int = 16 * 1024 * 1024,
        client: Any = None,
        trusted: Collection[str] = (),
    ) -> None:
        if messages not in FRAMINGS:
            raise ValueError(f"messages must be {', '.join(map(repr, FRAMINGS))}, not {messages!r}")
        check_number("max_wait", max_wait, above_zero=True, optional=True)
        self.max_wait: float | None = max_wait
        self._origin = Client(
            url,
            auth=auth,
            headers=headers,
            timeout=timeout,
            max_body=max_body,
            client=client,
            trusted=trusted,
        )
        check_reserved_parameters(url, _RESERVED_PARAMETERS)
        self._framing = FRAMINGS[messages]
        self._max_messages = max_messages(max_body)
        self._max_body = max_body
        self._end_of_feed = EndOfFeed()
        self._echo: dict[str, str] = {}
        self._unfinished: ReadStart | None = None
        self.identity: str = self._origin.identity + ("" if self._framing.is_json else f" as {messages}")
        self.push_url: str = self._origin.build_url({"live": "sse", "offset": NOW})

    async def fetch(self, request: FetchRequest, /) -> Page:
        """Read what comes after `request.cursor`; if that is nothing, hold on for `request.wait` seconds.

        Raises:
            CursorExpired: The stream no longer has what comes there, or is shorter; or the cursor is none.
            FeedRefused: The server refuses this client, or the stream is not there, or is no JSON.
            FeedGone: It is deleted, and kept for its forks alone.
            FeedError: It could not be asked, cannot answer now, or its answer is that of no stream.
        """
        wait = min(request.wait, self.max_wait or 0.0)
        if wait > 0:
            with anyio.move_on_after(wait):  # the server may hold for longer, or be gone
                return await self._page(request, wait)
        return await self._page(request, 0.0)

    async def latest(self) -> Cursor:
        """The end of the stream, from which only what is new follows (§8).

        Raises:
            FeedError: As for `fetch`.
        """
        answer = await self._origin.send_request(self._origin.build_url({"offset": NOW}), headers={})
        self._accept(answer)
        said = StreamHeaders.from_headers(answer.headers, self._origin.where)
        self._origin.remember_redirects(answer)
        return StreamPosition.counted_from(said.offset).cursor

    def restore(self, letter: DeadLetter, /) -> Message:
        """The message of a dead letter."""
        return StreamMessage(letter.id, letter.raw, self._framing.decode, key=letter.key)

    @staticmethod
    def hint(event: StreamEvent, /) -> Push | None:
        """What an event of `push_url` says: a push, unless it is one that only keeps the connection (§5.8)."""
        return Push() if event.event != "control" or '"streamClosed"' in event.data else None

    async def aclose(self) -> None:
        """Give back connections; a later `fetch` opens them again, in another event loop too."""
        self._end_of_feed.forget()
        self._unfinished = None
        await self._origin.aclose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._origin.where!r})"

    # A page

    def _start_of(self, cursor: Cursor | None) -> ReadStart:
        """Where to begin: behind what is still in hand of a message whose end was not there."""
        begun = self._unfinished
        if begun is not None and begun.saved is not None and begun.saved.cursor == cursor:
            return begun
        return ReadStart(StreamPosition.from_cursor(cursor))

    async def _page(self, request: FetchRequest, wait: float) -> Page:
        """Whole messages. One that goes on in the next answer is read on, as far as it is there or waited for."""
        begin = self._start_of(request.cursor)
        while True:
            url = self._url(begin.place, wait)
            answer = await self._request(url, begin.place, wait, fresh=request.fresh)
            if answer.status == HTTPStatus.NOT_MODIFIED:
                return Page(retry_after=answer.retry_after)
            said = StreamHeaders.from_headers(answer.headers, self._origin.where)
            said.check_follows(begin.place, self._origin.where)
            read = await self._read(answer, begin, said)
            self._origin.remember_redirects(answer)
            self._unfinished = read.begun
            self._end_of_feed.note(url, answer, empty=not wait and _is_end(read, said))
            moved, more = said.offset != begin.place.offset, wait > 0 or not said.ends
            if read.begun is None or read.messages or not (moved and more):
                return _page_of(read, said, answer)
            begin = read.begun

    async def _read(self, answer: Response, begin: ReadStart, said: StreamHeaders) -> StreamBatch:
        self._check_type(answer)
        self._check_body(answer, begin.place, said)
        given = StreamResponse(answer.body, begin, said, self._origin.where)
        size = len(given.body) + len(begin.rest)
        found = await run_decoder(size, self._framing.read, given, self._max_messages)
        if found.begun is not None and len(found.begun.rest) > self._max_body:
            raise FeedError(f"{given.where} has a line of more than {self._max_body} bytes; raise max_body=")
        return found

    def _check_type(self, answer: Response) -> None:
        """Whether the stream is of the kind that it is to be cut as; it is of one kind for ever (§5.1).

        By the exact type: `application/geo+json` is bytes to a server (§9).
        """
        if answer.media_type and (answer.media_type == _JSON) != self._framing.is_json:
            stated = quoted(answer.headers["content-type"])
            right = "messages='lines' or 'bytes'" if self._framing.is_json else "messages='json'"
            raise FeedRefused(f"{self._origin.where} is a stream of {stated}; check its URL, or give {right}")

    def _check_body(self, answer: Response, place: StreamPosition, said: StreamHeaders) -> None:
        """Whether there is a body if there is something to read, else it was lost on the way.

        An empty stream leads from its beginning to its end. Of JSON it is `[]` all the same (§9.1.5), but for an
        answer that was held (§5.7).
        """
        if answer.body or said.offset == place.offset:
            return
        is_empty = place.offset == BEGINNING and said.ends
        if not is_empty or (self._framing.is_json and answer.status != HTTPStatus.NO_CONTENT):
            raise FeedError(
                f"{self._origin.where} sent an empty body, and an offset behind {quoted(place.offset)}: what "
                "stands between them was lost on the way; it is asked again later"
            )

    def _url(self, place: StreamPosition, wait: float) -> str:
        """By the names in their order, for caches (§10.1)."""
        live = {**self._echo, "live": "long-poll"} if wait > 0 else {}
        return self._origin.build_url({**live, "offset": place.offset})

    async def _request(self, url: str, place: StreamPosition, wait: float, *, fresh: bool) -> Response:
        known = None if wait > 0 else self._end_of_feed.validators_for(url)
        answer = await self._origin.send_request(
            url, headers=cache_bypass_headers(fresh=fresh), known=known, wait=wait
        )
        if answer.status == HTTPStatus.GONE and place.offset != BEGINNING:
            await self._raise_expired(place)
        self._accept(answer)
        if (echo := echo_of(answer.headers)) is not None:
            self._echo = {"cursor": echo}
        return answer

    def _accept(self, answer: Response) -> None:
        if answer.status == HTTPStatus.NOT_FOUND:
            raise FeedRefused(
                f"{self._origin.where} answered 404 Not Found: there is no stream yet, or it was deleted or has "
                "expired; check the URL",
                retry_after=answer.retry_after,
            )
        self._origin.check_status(answer)

    async def _raise_expired(self, place: StreamPosition) -> None:
        """410 has two meanings (§5.6); a request for the stream's metadata tells which (§5.5)."""
        head = await self._origin.send_request(self._origin.build_url({}), headers={}, method="HEAD")
        if head.status not in _HEAD_UNSUPPORTED:
            self._accept(head)
        raise CursorExpired(
            f"{self._origin.where} no longer has what comes at offset {quoted(place.offset)}: messages are "
            "missing, and those that it has are counted anew; go on from the start that this error offers, or "
            "from the inception and forget",
            start=place.after_reset.cursor,
        )


def _is_end(read: StreamBatch, said: StreamHeaders) -> bool:
    """Whether an answer brought nothing, and may be known for that; closed, it is not to hide it (§10.1)."""
    return said.up_to_date and not (read.messages or read.cut or said.closed)


def _page_of(read: StreamBatch, said: StreamHeaders, answer: Response) -> Page:
    cursor, ended = read.end.cursor, said.ends and not read.cut
    return Page(
        read.messages,
        cursor=cursor,
        next=None if ended else cursor,
        retry_after=answer.retry_after,
        closed=said.closed and ended,
    )
