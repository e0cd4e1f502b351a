"""Read a vendor's JSON list of events by declaring its pages, without writing code.

Declare where the messages are on a page, which field is the id, and how one page leads to the next:

    feed = PagedFeed(
        "https://api.github.com/repos/python/cpython/events?per_page=100",
        entries=Entries(id="id", type="type", time="created_at"),
        pages=NewestFirst(next=from_link("next"), send=as_url()),
    )

`docs/feeds.md` explains the parts; `docs/vendors.md` has many declarations.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic

from push_to_poll_client._exceptions import FeedRefused
from push_to_poll_client._http.client import Client, ask_again_if_held
from push_to_poll_client._http.credentials import Auth
from push_to_poll_client._types import Cursor, D_co, DeadLetter, FetchRequest, Page, UnreadableMessage
from push_to_poll_client.feeds._base import BaseHTTPFeed
from push_to_poll_client.feeds._data_decoder import DataDecoder, Decode
from push_to_poll_client.feeds._paged.body import LINES, Reply
from push_to_poll_client.feeds._paged.declaration import Declaration
from push_to_poll_client.feeds._paged.entries import CONTENTS, Entries, Entry
from push_to_poll_client.feeds._paged.outcomes import (
    Outcome,
    closed,
    expired,
    gap,
    gone,
    not_ready,
    pause,
    restart,
    throttled,
)
from push_to_poll_client.feeds._paged.pagination import Latest, NewestFirst, OldestFirst, at_end
from push_to_poll_client.feeds._paged.readers import (
    Condition,
    Reader,
    from_body,
    from_each,
    from_first,
    from_header,
    from_last,
    from_link,
    full_page,
    status,
)
from push_to_poll_client.feeds._paged.request import NewestFirstFetcher, OldestFirstFetcher
from push_to_poll_client.feeds._paged.senders import LongPoll, Sender, as_url, to_body, to_header, to_query

__all__ = [
    "CONTENTS",
    "LINES",
    "Condition",
    "Entries",
    "Entry",
    "Latest",
    "LongPoll",
    "NewestFirst",
    "OldestFirst",
    "Outcome",
    "PagedFeed",
    "Reader",
    "Reply",
    "Sender",
    "as_url",
    "at_end",
    "closed",
    "expired",
    "from_body",
    "from_each",
    "from_first",
    "from_header",
    "from_last",
    "from_link",
    "full_page",
    "gap",
    "gone",
    "not_ready",
    "pause",
    "restart",
    "status",
    "throttled",
    "to_body",
    "to_header",
    "to_query",
]


class PagedFeed(BaseHTTPFeed, Generic[D_co]):
    """Read a JSON API that lists events, changes or items, as you declare it.

    Args:
        url: The feed's URL, with the query that every page needs. A field in braces, `{name}`, is replaced by
            the value in `url_secrets`.
        entries: Where the messages are on a page, and which fields name them.
        pages: How one page leads to the next: `OldestFirst(…)` or `NewestFirst(…)`.
        outcomes: Special meanings of a response: `expired(…)`, `restart(…)`, `not_ready(…)`, `throttled(…)`,
            `pause(…)`, `gone(…)`, `closed(…)`, `gap(…)`.
        long_poll: How to ask the server to hold its response until there is a new message. `None` means no long
            polling. If the server does not answer within 5 seconds after the wait, the request is sent again
            without a wait.
        latest: How to ask the server for the cursor at the end of the feed. With `None`, no consumer can start
            there. Not needed with `NewestFirst`.
        hint: Where to send the newest cursor that a push named. `None` means that it is not sent. If the server
            refuses the request, it is sent again without the hint.
        json: Body of every request, as JSON. Each request is then a POST.
        form: Body of every request, as a form. Each request is then a POST.
        method: HTTP method of every request. `None` means GET, or POST with a body.
        read_ahead: True if a page may be fetched before the previous page is committed. Leave it False for a feed
            where fetching acknowledges messages.
        decode: Converts the data of a message, as for `HTTPFeed`.
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
        url_secrets: Values for the fields of `url`. They are never shown.
        identity: Name of the feed in the store; the consumer's saved state belongs to it. `None` derives it from
            the URL, without secrets and page size. Set it if the URL may change, or if feeds share one URL.

    Attributes:
        read_ahead: As given.
        max_wait: Longest time in seconds that the server may hold a response; `None` without `long_poll`.
        identity: As given, or derived from the URL.
        former_identity: Identities that earlier versions derived from the URL, newest first.
        latest: As `Feed.latest`. The attribute is missing with `OldestFirst` and no `latest=`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a value that cannot be used.
    """

    latest: Callable[[], Awaitable[Cursor | None]]

    def __init__(
        self,
        url: str,
        *,
        entries: Entries,
        pages: OldestFirst | NewestFirst,
        outcomes: Sequence[Outcome] = (),
        long_poll: LongPoll | None = None,
        latest: Latest | None = None,
        hint: Sender | None = None,
        json: Mapping[str, Any] | None = None,
        form: Mapping[str, str] | None = None,
        method: str | None = None,
        read_ahead: bool = False,
        decode: Decode[D_co] | None = None,
        auth: Auth | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        max_body: int = 16 * 1024 * 1024,
        client: Any = None,
        trusted_origins: Collection[str] = (),
        url_secrets: Mapping[str, str] | None = None,
        identity: str | None = None,
    ) -> None:
        super().__init__(
            Client(
                url,
                auth=auth,
                headers=headers,
                timeout=timeout,
                max_body=max_body,
                client=client,
                trusted_origins=trusted_origins,
                url_secrets=url_secrets or {},
                identity=identity,
            )
        )
        self._declared = declared = Declaration(
            url=url,
            entries=entries,
            pages=pages,
            outcomes=outcomes,
            long_poll=long_poll,
            latest=latest,
            hint=hint,
            json=json,
            form=form,
            method=method,
            headers=headers,
            read_ahead=read_ahead,
            decoder=None if decode is None else DataDecoder(decode),
        )
        self.max_wait: float | None = None if long_poll is None else long_poll.longest
        self.read_ahead: bool = read_ahead
        self._known_secrets.add_body(declared.body or {})
        self._fetcher: OldestFirstFetcher | NewestFirstFetcher
        if isinstance(pages, NewestFirst):
            self._fetcher = newest_first = NewestFirstFetcher(self._http_client, declared, pages)
            self.latest = lambda: self._http_client.mask_secrets(newest_first.latest())
        else:
            self._fetcher = oldest_first = OldestFirstFetcher(self._http_client, declared, pages)
            if latest is not None:
                self.latest = lambda: self._http_client.mask_secrets(oldest_first.latest(latest))

    async def fetch(self, request: FetchRequest, /) -> Page[Entry[D_co]]:
        """Return the page after `request.cursor`.

        Raises:
            CursorExpired: The server no longer accepts the cursor, as declared by `expired(…)`.
            PagesChanged: The pages changed during the poll, as declared by `restart(…)`.
            FeedGone: The feed no longer exists: `gone(…)`, or status 410.
            FeedRefused: The server refuses this client.
            FeedError: The request failed, or the response does not match the declaration. The error shows what was
                declared and what was received.
        """
        return await self._http_client.mask_secrets(self._http_fetch(request))

    async def _http_fetch(self, request: FetchRequest) -> Page[Entry[D_co]]:
        def ask(wait: float) -> Awaitable[Page[Entry[D_co]]]:
            return self._fetcher.fetch(replace(request, wait=wait))

        try:
            return await ask_again_if_held(ask, request.wait)
        except FeedRefused:
            if self._declared.hint is None or request.hint is None:
                raise
        # The hint comes from a push and can contain anything: the server may have refused only the hint.
        return await self._http_fetch(replace(request, hint=None))

    def restore(self, letter: DeadLetter, /) -> Entry[D_co] | UnreadableMessage:
        """Return the message of a dead letter; an `UnreadableMessage` if it still cannot be read.

        An entry that `only` now filters out is unreadable too: drop its dead letter.
        """
        return self._fetcher.restore(letter)

    async def aclose(self) -> None:
        """Close connections. A later `fetch` opens them again, also in another event loop."""
        self._fetcher.forget()
        await super().aclose()
