"""Read any vendor's list of events, by a declaration of its pages instead of code.

The declaration says where the messages are on a page, where each has its id, and how one page leads to the next:

    feed = PagedFeed(
        "https://api.github.com/repos/python/cpython/events?per_page=100",
        entries=Entries(id="id", type="type", time="created_at"),
        pages=NewestFirst(next=from_link("next"), send=as_url()),
    )

`docs/feeds.md` declares many more.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any, Generic

from push_to_poll_client._exceptions import FeedRefused
from push_to_poll_client._http.client import Client, ask_again_if_held
from push_to_poll_client._http.credentials import Auth
from push_to_poll_client._types import Cursor, D_co, DeadLetter, FetchRequest, Page, UnreadableMessage
from push_to_poll_client.feeds._data_decoder import DataDecoder, Decode
from push_to_poll_client.feeds._paged.body import LINES, Reply
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
from push_to_poll_client.feeds._paged.request import NewestFirstFetcher, OldestFirstFetcher, PagedClient
from push_to_poll_client.feeds._paged.senders import LongPoll, Sender, as_url, to_body, to_header, to_query
from push_to_poll_client.feeds._paged.validation import (
    check_body,
    check_method,
    check_parts,
    check_read_ahead,
    check_senders,
)

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


class PagedFeed(Generic[D_co]):
    """A feed that is declared.

    Args:
        url: Where the feed is, with the query that every page needs; `{name}` in it stands for one of `secrets`.
        entries: Which messages a page has, and what they are called.
        pages: How one page leads to the next: `OldestFirst(…)` or `NewestFirst(…)`.
        outcomes: What answers mean beyond that: `expired(…)`, `restart(…)`, `not_ready(…)`, `throttled(…)`,
            `pause(…)`, `gone(…)`, `closed(…)`, `gap(…)`.
        hold: How the server is asked to hold its answer until there is something new; `None`: it cannot. One that
            has not answered 5 seconds after the wait is asked again for an answer at once.
        latest: How it is asked for the cursor of the feed's end; `None`: it cannot, so that no consumer can start
            there. Needless with `NewestFirst`.
        hint: Where the newest cursor that a push spoke of goes; `None`: nowhere. A server that refuses the request
            is asked again without it.
        json: What the body of every request says, as JSON: each is a POST.
        form: The same as a form.
        method: Of every request, where that is another.
        read_ahead: Whether a page may be fetched before the one before it is committed. Not with a feed for which
            fetching acknowledges.
        decode: As for `HTTPFeed`.
        auth: As for `HTTPFeed`.
        headers: As for `HTTPFeed`.
        timeout: As for `HTTPFeed`.
        max_body: As for `HTTPFeed`.
        client: As for `HTTPFeed`.
        secrets: What stands in the URL and is shown nowhere.
        trusted: Other origins that links may lead to; no credentials go there.
        identity: What the store calls the feed, to which it binds the consumer's name. `None` takes the URL,
            without secrets and page size; give one if the URL may change, or several feeds have it.

    Attributes:
        read_ahead: As given.
        max_wait: Seconds for which the server can hold its answer; `None`: it cannot.
        identity: As given, or made of the URL.
        former_identity: What earlier versions made of the URL, newest first, for their state files.
        latest: As `Feed.latest`. It is not there when pages go forward and no `latest` is declared.

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
        hold: LongPoll | None = None,
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
        secrets: Mapping[str, str] | None = None,
        trusted: Sequence[str] = (),
        identity: str | None = None,
    ) -> None:
        check_parts(entries=entries, pages=pages, outcomes=outcomes, hold=hold, latest=latest, hint=hint)
        check_read_ahead(read_ahead)
        pages = copy(pages)
        pages.forget()
        body = check_body(json, form)
        self._http_client = Client(
            url,
            auth=auth,
            headers=headers,
            timeout=timeout,
            max_body=max_body,
            client=client,
            secrets=secrets or {},
            trusted=trusted,
            identity=identity,
        )
        check_senders(url, pages, hold, latest, hint, body=body, form=form is not None)
        self._decoder = None if decode is None else DataDecoder(decode)
        pages_client = PagedClient(
            self._http_client,
            entries,
            pages,
            outcomes,
            hold=hold,
            hint=hint,
            body=body,
            as_form=form is not None,
            method=check_method(method),
            max_body=max_body,
            decoder=self._decoder,
        )
        self._entries = entries
        self._hint = hint
        self.max_wait: float | None = None if hold is None else hold.longest
        self.read_ahead: bool = read_ahead
        self._known_secrets = self._http_client.secrets
        self._known_secrets.add_body(body or {})
        self._fetcher: OldestFirstFetcher | NewestFirstFetcher
        if isinstance(pages, NewestFirst):
            self._fetcher = newest_first = NewestFirstFetcher(pages_client, pages, self._http_client.where)
            self.latest = lambda: self._http_client.mask_secrets(newest_first.latest())
        else:
            self._fetcher = oldest_first = OldestFirstFetcher(pages_client, pages)
            if latest is not None:
                self.latest = lambda: self._http_client.mask_secrets(oldest_first.latest(latest))

    async def fetch(self, request: FetchRequest, /) -> Page[Entry[D_co]]:
        """Ask for what comes after `request.cursor`.

        Raises:
            CursorExpired: The server says so, as declared.
            ChainRestart: Likewise.
            FeedGone: Likewise, or by 410.
            FeedRefused: The server refuses this client.
            FeedError: It could not be asked, or does not answer as it was declared to; the text says what was
                declared and what was seen.
        """
        return await self._http_client.mask_secrets(self._http_fetch(request))

    async def _http_fetch(self, request: FetchRequest) -> Page[Entry[D_co]]:
        try:
            return await self._http_fetch_once(request)
        except FeedRefused:
            if self._hint is None or request.hint is None:
                raise
        # The hint comes from a push, which can contain anything: the server may have refused the hint alone.
        return await self._http_fetch_once(replace(request, hint=None))

    async def _http_fetch_once(self, request: FetchRequest) -> Page[Entry[D_co]]:
        return await ask_again_if_held(lambda wait: self._fetcher.fetch(replace(request, wait=wait)), request.wait)

    @cached_property
    def identity(self) -> str:
        """As given, or made of the URL. With a query or a secret in the URL the first use takes some 50 ms."""
        return self._http_client.identity

    @cached_property
    def former_identity(self) -> tuple[str, ...]:
        """Identities that earlier versions made of the URL, newest first, for their state files."""
        return self._http_client.former_identities

    def restore(self, letter: DeadLetter, /) -> Entry[D_co] | UnreadableMessage:
        """The message of a dead letter: an `Entry`, or an `UnreadableMessage` if it still is one.

        One that `only` passes over is unreadable, too: it is to be dropped.
        """
        return self._entries.restore(letter, self._decoder)

    async def aclose(self) -> None:
        """Give back connections; a later `fetch` opens them again, in another event loop too."""
        self._fetcher.forget()
        await self._http_client.aclose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._http_client.where!r})"
