"""Feed by the HTTP Feeds specification (http-feeds.org): batches of CloudEvents behind one URL."""

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

    It sends `GET url?lastEventId=…` and reads a batch of `CloudEvent` messages. The cursor is the id of the last
    event; an empty batch is the end of the feed. Events of unknown types are messages too. An event that cannot be
    read becomes an `UnreadableMessage`, and the other events of its batch are not affected.

    At the end of the feed a request carries the validators of the last response (ETag, Last-Modified), so that a
    poll without news costs a 304. While that response is fresh (max-age, for an hour at most) no request is sent
    at all, unless a push came.

    Redirects are followed on the feed's own origin; a redirect to another origin is an error that names it.
    Without `client=` the feed keeps no cookies, takes proxies and certificates from the environment as httpx does,
    and keeps queries out of httpx's log.

    Args:
        url: The feed's URL, with the query that it may need. A user and password in it are sent as Basic
            credentials and shown nowhere.
        decode: What to make of the data of a message when it is first read: a type that msgspec knows (a Struct,
            dataclass, TypedDict, `list[…]`), a pydantic model, or a plain function of the data. Data that does not
            fit fails as undecodable (G9). `None`: the data is what JSON says.
        max_wait: Seconds for which the server may hold its response until there is something new (long polling,
            which the specification leaves to the server). `None` never asks it to. A server that has not answered
            5 seconds later is asked again for a response at once.
        auth: Credentials: a token (Bearer), a pair of user and password (Basic), an `httpx.Auth`, or an async
            function that returns a token or `None`, and is called at first use and once more when the server
            answers 401. `None` sends no credentials, or with `client=` those of the client.
        headers: Sent with every request, in place of the feed's own of the same name.
        timeout: Seconds for one whole response, from connecting to the last byte. A wait comes on top.
        max_body: Bytes that a response may have, on the wire and unpacked. It may have a message for each 160 of
            them, 104,857 by default.
        client: An `httpx.AsyncClient`, or one of its shape, to send by. Its timeouts hold, a wait comes on top. It
            stays yours: it is not closed. `None` opens one when needed.
        trusted_origins: Other origins to which links and redirects may lead, as "https://cdn.example". They are
            asked without credentials, without `headers`, and without what a client sends by itself.
        identity: What the store calls the feed, to which it binds the consumer's name. `None` takes the URL,
            without secrets and page size; give one if the URL may change, or several feeds have it.

    Attributes:
        read_ahead: True, since fetching acknowledges nothing: the next page is fetched while one is processed.
        max_wait: As given.
        identity: As given, or made of the URL.
        former_identity: What earlier versions made of the URL, newest first, for their state files.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument has no meaning; the text says which and why.
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
        """Ask for the events after `request.cursor`.

        Raises:
            FeedRefused: The server refuses this client: 4xx but for those below.
            FeedGone: The feed is gone for good: 410.
            FeedError: It could not be asked (no connection, too slow, too large, a redirect elsewhere), or cannot
                answer now (408, 425, 429, 5xx, 403 with rate-limit headers), or its answer is no batch.
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
        # A server that answers with the event of the cursor itself has no more. One that sends others before it
        # does not heed the cursor, or a cache answers that leaves out the query: what comes next is not known.
        following = None if last == request.cursor and len(messages) <= 1 else last
        return Page(messages, cursor=last, next_page=following, retry_after=response.retry_after)

    def restore(self, letter: DeadLetter, /) -> CloudEvent[D_co] | UnreadableMessage:
        """The event of a dead letter: a `CloudEvent`, or an `UnreadableMessage` if it still is one."""
        try:
            return read_event(letter.raw, self._decoder)
        except DecodeError as error:
            return UnreadableMessage(letter.id, error, dedupe_key=letter.dedupe_key, raw=letter.raw)
