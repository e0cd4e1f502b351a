"""Base class of the feeds over HTTP, and a cache of the feed's end.

`EndOfFeed` remembers the validators of a response without messages, so that a poll without news costs a 304 or no
request. It never remembers a response with messages, so a 304 cannot hide a message.
"""

from collections import OrderedDict
from functools import cached_property
from typing import NamedTuple

import anyio

from push_to_poll_client._http.caching import Validators, fresh_for
from push_to_poll_client._http.client import Client
from push_to_poll_client._http.response import Response
from push_to_poll_client.feeds._decoding import max_messages


class BaseHTTPFeed:
    """A feed that reads with one HTTP client; `identity_suffix` is added to derived identities."""

    def __init__(self, client: Client, *, identity_suffix: str = "") -> None:
        self._http_client = client
        self._known_secrets = client.secrets
        self._max_messages = max_messages(client.max_body)
        self._identity_suffix = identity_suffix
        self._end_of_feed = EndOfFeed()

    @cached_property
    def identity(self) -> str:
        """As given, or derived from the URL. With a query or a secret in the URL, first use takes about 50 ms."""
        return self._http_client.identity + self._identity_suffix

    @cached_property
    def former_identity(self) -> tuple[str, ...]:
        """Identities that earlier versions derived from the URL, newest first."""
        return tuple(name + self._identity_suffix for name in self._http_client.former_identities)

    def prepare(self) -> None:
        """Do what makes the first `fetch` slow: import the HTTP library and read the certificates."""
        self._http_client.prepare()

    async def aclose(self) -> None:
        """Close connections. A later `fetch` opens them again, also in another event loop."""
        self._end_of_feed.forget()
        await self._http_client.aclose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._http_client.where!r})"


MAX_ENDS = 16
"""Remembered responses: one per URL asked at the end of a feed, or per cursor of a consumer."""


class _EmptyResponse(NamedTuple):
    validators: Validators | None
    since: float  # its arrival
    until: float  # the end of its freshness


class EndOfFeed:
    """Responses of one feed without messages, by request URL or cursor. Not for use by several event loops."""

    def __init__(self) -> None:
        self._ends: OrderedDict[str | None, _EmptyResponse] = OrderedDict()

    def validators_for(self, url: str) -> Validators | None:
        """Return the validators for a request to this URL: `known` of `Client.send_request`."""
        end = self._ends.get(url)
        return None if end is None else end.validators

    def is_fresh(self, key: str | None) -> bool:
        """Return True if a request would only return the same empty response (RFC 9111 §4.2)."""
        # Do not ask for a poll that must bypass caches, or for a request that the server may hold.
        end = self._ends.get(key)
        return end is not None and end.since <= anyio.current_time() < end.until

    def note(self, url: str, response: Response, *, empty: bool) -> None:
        """Remember a response without messages; forget the URL otherwise. `url` is the URL before redirects."""
        if empty:
            self.remember(url, response.validators, fresh_for(response.headers))
        else:
            self._ends.pop(url, None)

    def remember(self, key: str | None, validators: Validators | None, seconds: float) -> None:
        """Remember an empty response for some seconds; forget it if it has neither validators nor freshness."""
        self._ends.pop(key, None)
        if validators is not None or seconds > 0:
            now = anyio.current_time()
            self._ends[key] = _EmptyResponse(validators, now, now + seconds)
            if len(self._ends) > MAX_ENDS:
                self._ends.popitem(last=False)

    def forget(self) -> None:
        """Forget all responses: their times belong to the clock of an event loop that may end."""
        self._ends.clear()


def longest_wait(*waits: float | None) -> float | None:
    """Return the longest wait; `None` counts as the shortest."""
    return max((wait for wait in waits if wait is not None), default=None)
