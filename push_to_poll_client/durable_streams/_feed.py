"""Read the messages of a Durable Stream, an append-only stream at one URL.

Positions, headers and the framing of bodies are in `_framing.py`.
"""

from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any, Generic, Literal, TypeAlias

import anyio

from push_to_poll_client._exceptions import CursorExpired, FeedError, FeedRefused
from push_to_poll_client._http.caching import cache_bypass_headers
from push_to_poll_client._http.client import Client, check_reserved_parameters
from push_to_poll_client._http.credentials import Auth
from push_to_poll_client._http.response import Response
from push_to_poll_client._types import Cursor, D_co, DeadLetter, FetchRequest, Message, Page, Push
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
from push_to_poll_client.feeds._base import BaseHTTPFeed
from push_to_poll_client.feeds._data_decoder import DataDecoder, Decode
from push_to_poll_client.feeds._decoding import run_decoder
from push_to_poll_client.listeners._sse_parser import ServerSentEvent

MessageFormat: TypeAlias = Literal["json", "ndjson", "lines", "bytes"]

_HEAD_UNSUPPORTED = frozenset({HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED})
_RESERVED_PARAMETERS = frozenset({"cursor", "live", "offset"})
_JSON = "application/json"


class DurableStreamFeed(BaseHTTPFeed, Generic[D_co]):
    """Feed of a stream that a Durable Streams server holds.

    Messages of a stream have no ids, but their order never changes (§4). So the id of a message is its number,
    counted from the beginning of the stream. For lines and bytes it is the number of their first byte. If counting
    started elsewhere, after `start="latest"` or after the stream was reset, the id says so.

    A closed stream (§4.1) ends the consumer after all its messages are settled. A stream that does not exist, was
    deleted or has expired (404) is requested again, slowly. `CursorExpired` is raised if the stream no longer has
    messages from the saved offset (410), or was deleted and created again and is now shorter; its `start` is the
    beginning of the new stream. `FeedGone` is raised if the stream is deleted and kept only for its forks (410).

    Long polling usually brings new messages at once. Server-sent events can wake the consumer too:

        SSEListener(feed.push_url, hint=feed.hint)

    Redirects, credentials and clients work as for `HTTPFeed`.

    Args:
        url: URL of the stream, with its query if it needs one. A user and password in it are sent as Basic
            credentials and never shown.
        messages: Format of the stream. "json": `application/json`, with message boundaries. "ndjson": one JSON
            value per line. "lines": one `str` per line; the last line waits for its end. "bytes": one message per
            response, with its range of bytes as the id. A line may have `max_body` bytes.
        max_wait: Seconds to wait for a response when there is nothing new (long polling). The server cannot be
            asked for a time (§5.7); most hold for 30 s. `None` means no long polling.
        auth: Credentials: a token (sent as Bearer), a pair of user and password (Basic), an `httpx.Auth`, or an
            async function that returns a token or `None`. The function is called at first use, and again when the
            server answers 401. `None` sends no credentials; with `client=`, the client sends its own.
        headers: Sent with every request. They replace the feed's own headers of the same name.
        timeout: Seconds for one whole response, from connecting to the last byte. Long polling adds its wait.
        max_body: Largest response in bytes, as sent and after decompression. A response may have one message per
            160 bytes of this limit: 104,857 by default.
        client: An `httpx.AsyncClient`, or a compatible object, that sends the requests. Its timeouts apply; long
            polling adds its wait. The feed does not close it. `None` means that the feed opens its own client.
        trusted_origins: Other origins that links and redirects may lead to, for example "https://cdn.example".
            Requests to them carry no credentials, no `headers`, and nothing that a client adds by itself.
        identity: Name of the feed in the store; the consumer's saved state belongs to it. `None` derives it from
            the URL, without secrets and page size. Set it if the URL may change, or if feeds share one URL.

    Attributes:
        read_ahead: True: the next page is fetched while one is processed. Fetching does not acknowledge anything.
        max_wait: As given.
        identity: As given, or made from the URL and the format.
        former_identity: Identities that earlier versions made from the URL, newest first, for their state files.
        push_url: URL of new messages as server-sent events, for an `SSEListener`, without credentials.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has an invalid value.
    """

    read_ahead: bool = True

    def __init__(
        self,
        url: str,
        *,
        messages: MessageFormat = "json",
        decode: Decode[D_co] | None = None,
        max_wait: float | None = 35.0,
        auth: Auth | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        max_body: int = 16 * 1024 * 1024,
        client: Any = None,
        trusted_origins: Collection[str] = (),
        identity: str | None = None,
    ) -> None:
        if messages not in FRAMINGS:
            raise ValueError(f"messages must be {', '.join(map(repr, FRAMINGS))}, got {messages!r}")
        check_number("max_wait", max_wait, above_zero=True, optional=True)
        self.max_wait: float | None = max_wait
        framing = FRAMINGS[messages]
        super().__init__(
            Client(
                url,
                auth=auth,
                headers=headers,
                timeout=timeout,
                max_body=max_body,
                client=client,
                trusted_origins=trusted_origins,
                identity=identity,
            ),
            identity_suffix="" if framing.is_json or identity is not None else f" as {messages}",
        )
        check_reserved_parameters(url, _RESERVED_PARAMETERS)
        self._framing = framing
        self._decoders = framing.decode, None if decode is None else DataDecoder(decode)
        self._echo: dict[str, str] = {}
        self._unfinished: ReadStart | None = None
        self.push_url: str = self._http_client.build_url({"live": "sse", "offset": NOW})

    async def fetch(self, request: FetchRequest, /) -> Page[Message[D_co]]:
        """Read the messages after `request.cursor`; if there are none, wait up to `request.wait` seconds.

        Raises:
            CursorExpired: The stream no longer has these messages, or is shorter; or the cursor is invalid.
            FeedRefused: The server refuses this client, or the stream does not exist or has another format.
            FeedGone: The stream is deleted, and kept only for its forks.
            FeedError: The request failed, or the response is not valid for a stream.
        """
        return await self._http_client.mask_secrets(self._http_fetch(request))

    async def _http_fetch(self, request: FetchRequest) -> Page[Message[D_co]]:
        wait = min(request.wait, self.max_wait or 0.0)
        if wait > 0:
            with anyio.move_on_after(wait):  # the server may hold the request for longer, or be down
                return await self._page(request, wait)
        return await self._page(request, 0.0)

    async def latest(self) -> Cursor:
        """Return the cursor of the end of the stream (§8).

        Raises:
            FeedError: As for `fetch`.
        """
        return await self._http_client.mask_secrets(self._http_latest())

    async def _http_latest(self) -> Cursor:
        response = await self._http_client.send_request(self._http_client.build_url({"offset": NOW}), headers={})
        self._accept(response)
        headers = StreamHeaders.from_headers(response.headers, self._http_client.where, StreamPosition())
        self._http_client.remember_redirects(response)
        return StreamPosition.counted_from(headers.offset).cursor

    def restore(self, letter: DeadLetter, /) -> Message[D_co]:
        """Restore the message of a dead letter."""
        return StreamMessage(letter.id, letter.raw, self._decoders, dedupe_key=letter.dedupe_key)

    @staticmethod
    def hint(event: ServerSentEvent, /) -> Push | None:
        """Return a push for an event of `push_url`; None if it only keeps the connection alive (§5.8)."""
        return Push() if event.event != "control" or '"streamClosed"' in event.data else None

    # A page

    async def _page(self, request: FetchRequest, wait: float) -> Page[Message[D_co]]:
        """Read complete messages. If one continues in the next response, read that too, as far as available."""
        start = self._unfinished
        if start is None or start.saved is None or start.saved.cursor != request.cursor:
            start = ReadStart(StreamPosition.from_cursor(request.cursor))
        while True:
            live = {**self._echo, "live": "long-poll"} if wait > 0 else {}
            # Parameters are sorted by name, for caches (§10.1).
            url = self._http_client.build_url({**live, "offset": start.position.offset})
            response = await self._request(url, start.position, wait, bypass_cache=request.bypass_cache)
            if response.status == HTTPStatus.NOT_MODIFIED:
                return Page(retry_after=response.retry_after)
            headers = StreamHeaders.from_headers(response.headers, self._http_client.where, start.position)
            batch = await self._read(response, start, headers)
            self._http_client.remember_redirects(response)
            self._unfinished = batch.next_start
            # An empty response is remembered as the end of the feed, but must not hide that the stream was closed
            # (§10.1).
            at_end = headers.up_to_date and not (batch.messages or batch.cut or headers.closed)
            self._end_of_feed.note(url, response, empty=not wait and at_end)
            moved, more = headers.offset != start.position.offset, wait > 0 or not headers.ends
            if batch.next_start is None or batch.messages or not (moved and more):
                cursor, ended = batch.end.cursor, headers.ends and not batch.cut
                return Page(
                    batch.messages,
                    cursor=cursor,
                    next_page=None if ended else cursor,
                    retry_after=response.retry_after,
                    closed=headers.closed and ended,
                )
            start = batch.next_start

    async def _read(self, response: Response, start: ReadStart, headers: StreamHeaders) -> StreamBatch:
        self._check_type(response)
        self._check_body(response, start.position, headers)
        framed = StreamResponse(response.body, start, headers, self._http_client.where, self._decoders)
        size = len(framed.body) + len(start.rest)
        batch = await run_decoder(size, self._framing.read, framed, self._max_messages)
        if batch.next_start is not None and len(batch.next_start.rest) > self._http_client.max_body:
            raise FeedError(
                f"{framed.where} has a line of more than {self._http_client.max_body} bytes; raise max_body="
            )
        return batch

    def _check_type(self, response: Response) -> None:
        """Reject a stream whose content type does not fit `messages`. It never changes (§5.1)."""
        # Compare the exact type: to a server, `application/geo+json` is bytes (§9).
        if response.media_type and (response.media_type == _JSON) != self._framing.is_json:
            stated = quoted(response.headers["content-type"])
            right = "messages='lines' or 'bytes'" if self._framing.is_json else "messages='json'"
            raise FeedRefused(f"{self._http_client.where} is a stream of {stated}; check its URL, or pass {right}")

    def _check_body(self, response: Response, position: StreamPosition, headers: StreamHeaders) -> None:
        """Reject an empty body with a new offset: the messages were lost on the way."""
        if response.body or headers.offset == position.offset:
            return
        # An empty stream leads from its beginning to its end. With JSON its body is `[]` (§9.1.5), except in a
        # long-poll response (§5.7).
        is_empty = position.offset == BEGINNING and headers.ends
        if not is_empty or (self._framing.is_json and response.status != HTTPStatus.NO_CONTENT):
            raise FeedError(
                f"{self._http_client.where} sent an empty body although messages follow offset "
                f"{quoted(position.offset)}: a proxy may have dropped them; the request is retried"
            )

    async def _request(self, url: str, position: StreamPosition, wait: float, *, bypass_cache: bool) -> Response:
        known = None if wait > 0 else self._end_of_feed.validators_for(url)
        response = await self._http_client.send_request(
            url, headers=cache_bypass_headers(bypass_cache=bypass_cache), known=known, wait=wait
        )
        if response.status == HTTPStatus.GONE and position.offset != BEGINNING:
            await self._raise_expired(position)
        self._accept(response)
        if (echo := echo_of(response.headers)) is not None:
            self._echo = {"cursor": echo}
        return response

    def _accept(self, response: Response) -> None:
        if response.status == HTTPStatus.NOT_FOUND:
            raise FeedRefused(
                f"{self._http_client.where} answered 404 Not Found: the stream does not exist, was deleted or has "
                "expired; check the URL",
                retry_after=response.retry_after,
            )
        self._http_client.check_status(response)

    async def _raise_expired(self, position: StreamPosition) -> None:
        """Raise the error for a 410, which has two meanings (§5.6). A HEAD request tells which (§5.5)."""
        head = await self._http_client.send_request(self._http_client.build_url({}), headers={}, method="HEAD")
        if head.status not in _HEAD_UNSUPPORTED:
            self._accept(head)
        raise CursorExpired(
            f"{self._http_client.where} no longer has the messages after offset {quoted(position.offset)}: some "
            "are missing, and the rest is numbered again; rewind to the `start` of this error (on_cursor_expired= "
            "gets it), or to 'inception' with forget=True",
            start=position.after_reset.cursor,
        )
