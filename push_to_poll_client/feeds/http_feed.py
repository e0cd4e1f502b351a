"""Read a feed of the HTTP Feeds specification (http-feeds.org): batches of CloudEvents."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Generic

from push_to_poll_client._exceptions import DecodeError
from push_to_poll_client._http.caching import cache_bypass_headers
from push_to_poll_client._http.client import Client, ask_again_if_held, check_reserved_parameters
from push_to_poll_client._http.credentials import Auth
from push_to_poll_client._types import D_co, DeadLetter, FetchRequest, Page, UnreadableMessage
from push_to_poll_client._validation import check_number
from push_to_poll_client.feeds._base import BaseHTTPFeed
from push_to_poll_client.feeds._cloudevents import CloudEvent, read_batch, read_event
from push_to_poll_client.feeds._data_decoder import DataDecoder, Decode
from push_to_poll_client.feeds._decoding import run_decoder

__all__ = ["CloudEvent", "HTTPFeed"]

_ACCEPT = "application/cloudevents-batch+json, application/json;q=0.9"
_EMPTY_STATUSES = frozenset({204, 304})
_RESERVED_PARAMETERS = frozenset({"lastEventId", "timeout"})


class HTTPFeed(BaseHTTPFeed, Generic[D_co]):
    """Read a feed that follows the HTTP Feeds specification (http-feeds.org).

    The feed sends `GET url?lastEventId=…` and reads a batch of `CloudEvent` messages. The cursor is the id of the
    last event; an empty batch is the end of the feed. Events of unknown types are messages too. An event that
    cannot be read becomes an `UnreadableMessage`; the other events of its batch are not affected.

    At the end of the feed, a request repeats the validators of the last response (ETag, Last-Modified), so that a
    poll without news costs only a 304. While that response is fresh (max-age, at most an hour), no request is sent
    unless a push arrives.

    Redirects are followed within the feed's own origin. A redirect to another origin is an error that names it.
    Without `client=`, the feed keeps no cookies, takes proxies and certificates from the environment as httpx
    does, and keeps URL queries out of httpx's log.

    Args:
        url: The feed's URL, with its query. A user and password in the URL are sent as Basic credentials and are
            never shown.
        decode: Converts the data of a message when it is first read. Pass a type that msgspec supports (a Struct,
            dataclass, TypedDict, `list[…]`), a pydantic model, or a function of the data. Data that does not fit
            makes the message fail as undecodable (G9). `None` leaves the data as parsed JSON.
        max_wait: Longest time in seconds that the server may hold its response until there is a new event (long
            polling; optional in the specification). `None` means no long polling. If the server does not answer
            within 5 seconds after the wait, the request is sent again without a wait.
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
        read_ahead: True: the next page is fetched while a page is processed. Fetching acknowledges nothing.
        max_wait: As given.
        identity: As given, or derived from the URL.
        former_identity: Identities that earlier versions derived from the URL, newest first.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a value that cannot be used.
    """

    read_ahead: bool = True

    def __init__(
        self,
        url: str,
        *,
        decode: Decode[D_co] | None = None,
        max_wait: float | None = None,
        auth: Auth | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        max_body: int = 16 * 1024 * 1024,
        client: Any = None,
        trusted_origins: Collection[str] = (),
        identity: str | None = None,
    ) -> None:
        check_number("max_wait", max_wait, above_zero=True, optional=True)
        self.max_wait: float | None = max_wait
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
            )
        )
        self._decoder = None if decode is None else DataDecoder(decode)
        check_reserved_parameters(url, _RESERVED_PARAMETERS)

    async def fetch(self, request: FetchRequest, /) -> Page[CloudEvent[D_co]]:
        """Return the events after `request.cursor`.

        Raises:
            FeedRefused: The server refuses this client: 4xx except those below.
            FeedGone: The feed no longer exists: 410.
            FeedError: The request failed (no connection, too slow, too large, a redirect to another origin), the
                server cannot answer now (408, 425, 429, 5xx, 403 with rate-limit headers), or the response is not
                a batch.
        """
        wait = min(request.wait, self.max_wait or 0.0)
        return await self._http_client.mask_secrets(ask_again_if_held(partial(self._http_fetch, request), wait))

    async def _http_fetch(self, request: FetchRequest, wait: float) -> Page[CloudEvent[D_co]]:
        query = {} if request.cursor is None else {"lastEventId": request.cursor}
        if wait > 0:
            query["timeout"] = str(max(1, round(wait * 1000)))  # the specification wants milliseconds
        url = self._http_client.build_url(query)
        if self._end_of_feed.is_fresh(url) and not (request.bypass_cache or wait):
            return Page()
        known = self._end_of_feed.validators_for(url)
        # A full batch may be cached for a year, and a cache may hold the end of the feed for a while.
        headers = {"accept": _ACCEPT, **cache_bypass_headers(bypass_cache=request.bypass_cache)}
        response = await self._http_client.send_request(url, headers=headers, wait=wait, known=known)
        messages: Sequence[CloudEvent[D_co] | UnreadableMessage] = []
        if self._http_client.check_status(response).status not in _EMPTY_STATUSES:
            if response.media_type and not response.media_type.endswith(("/json", "+json")):
                raise response.wrong_type("not application/cloudevents-batch+json")
            body, where = response.body, self._http_client.where
            messages = await run_decoder(
                len(body), read_batch, body, where, max_events=self._max_messages, decoder=self._decoder
            )
        self._http_client.remember_redirects(response)
        self._end_of_feed.note(url, response, empty=not messages)
        last = next((message.cursor for message in reversed(messages) if message.cursor is not None), None)
        # A server that returns only the event of the cursor has no newer ones. A server that returns others
        # before it ignores the cursor (or a cache ignores the query), so the page is not the end.
        following = None if last == request.cursor and len(messages) <= 1 else last
        return Page(messages, cursor=last, next_page=following, retry_after=response.retry_after)

    def restore(self, letter: DeadLetter, /) -> CloudEvent[D_co] | UnreadableMessage:
        """Return the event of a dead letter; an `UnreadableMessage` if it still cannot be read."""
        try:
            return read_event(letter.raw, self._decoder)
        except DecodeError as error:
            return UnreadableMessage(letter.id, error, dedupe_key=letter.dedupe_key, raw=letter.raw)
