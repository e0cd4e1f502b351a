"""Read any vendor's list of events, by a declaration of its pages instead of code.

The declaration says where the messages are on a page, where each has its id, and how one page leads to the next:

    feed = PagedFeed(
        "https://api.github.com/repos/python/cpython/events?per_page=100",
        entries=Entries(id="id", type="type", time="created_at"),
        pages=NewestFirst(next=from_link("next"), send=as_url()),
    )

`docs/feeds.md` declares many more.
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
    """Read any JSON API with a list of events, changes or items, as you declare it.

    Args:
        url: The feed's URL, with the query that every page needs. A field in braces, `{name}`, stands for one of
            `url_secrets`.
        entries: Which messages a page has, and how they are named.
        pages: How one page leads to the next: `OldestFirst(…)` or `NewestFirst(…)`.
        outcomes: What responses mean besides their messages: `expired(…)`, `restart(…)`, `not_ready(…)`,
            `throttled(…)`, `pause(…)`, `gone(…)`, `closed(…)`, `gap(…)`.
        long_poll: How the server is asked to hold its response until there is something new. `None` never asks it
            to. A server that has not answered 5 seconds later is asked again for a response at once.
        latest: How the server is asked for the cursor of the feed's end. `None` means that it cannot be, so that
            no consumer can start there. Not needed with `NewestFirst`.
        hint: Where the newest cursor that a push named is sent. `None` does not send it. If a server refuses the
            request, it is sent again without it.
        json: The body of every request, as JSON. Each request is then a POST.
        form: The body of every request, as a form. Each request is then a POST.
        method: The method of every request, if it is another.
        read_ahead: Whether a page may be fetched before the page before it is committed. Not for a feed where
            fetching acknowledges.
        decode: As for `HTTPFeed`.
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
        url_secrets: Values for the fields of `url`. They are shown nowhere.
        identity: What the store calls the feed, to which it binds the consumer's name. `None` takes the URL,
            without secrets and page size; give one if the URL may change, or several feeds have it.

    Attributes:
        read_ahead: As given.
        max_wait: Seconds for which the server can hold its response; `None` if it cannot.
        identity: As given, or made of the URL.
        former_identity: What earlier versions made of the URL, newest first, for their state files.
        latest: As `Feed.latest`. Missing if pages go forward and no `latest` is declared.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument has no meaning; the text says which and why.
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
        """Ask for what comes after `request.cursor`.

        Raises:
            CursorExpired: The server says so, as declared.
            PagesChanged: Likewise.
            FeedGone: Likewise, or by 410.
            FeedRefused: The server refuses this client.
            FeedError: It could not be asked, or does not answer as it was declared to; the text says what was
                declared and what was seen.
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
        # The hint comes from a push, which can contain anything: the server may have refused the hint alone.
        return await self._http_fetch(replace(request, hint=None))

    def restore(self, letter: DeadLetter, /) -> Entry[D_co] | UnreadableMessage:
        """The message of a dead letter: an `Entry`, or an `UnreadableMessage` if it still is one.

        One that `only` passes over is unreadable, too: it is to be dropped.
        """
        return self._fetcher.restore(letter)

    async def aclose(self) -> None:
        """Give back connections; a later `fetch` opens them again, in another event loop too."""
        self._fetcher.forget()
        await super().aclose()
