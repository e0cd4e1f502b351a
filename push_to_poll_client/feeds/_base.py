"""Base of the feeds over HTTP: a client, a name for the store, and a memory of the feed's end.

`EndOfFeed` remembers the validators of a feed's end, so that a poll without news costs a 304 or no request. A
response with messages is never remembered. So a 304, or a response that is still fresh, can only stand for a
response without messages, and no message can be lost by it.
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
    """A feed that one HTTP client reads.

    Args:
        client: Sends the requests.
        identity_suffix: Added to the identities that are made of the URL.
    """

    def __init__(self, client: Client, *, identity_suffix: str = "") -> None:
        self._http_client = client
        self._known_secrets = client.secrets
        self._max_messages = max_messages(client.max_body)
        self._identity_suffix = identity_suffix
        self._end_of_feed = EndOfFeed()

    @cached_property
    def identity(self) -> str:
        """As given, or made of the URL. With a query or a secret in the URL the first use takes some 50 ms."""
        return self._http_client.identity + self._identity_suffix

    @cached_property
    def former_identity(self) -> tuple[str, ...]:
        """Identities that earlier versions made of the URL, newest first, for their state files."""
        return tuple(name + self._identity_suffix for name in self._http_client.former_identities)

    async def aclose(self) -> None:
        """Give back connections; a later `fetch` opens them again, in another event loop too."""
        self._end_of_feed.forget()
        await self._http_client.aclose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._http_client.where!r})"


MAX_ENDS = 16
"""Ends remembered: one for each URL that is asked at the end of a feed, or for each consumer's cursor."""


class _EmptyResponse(NamedTuple):
    """Validators of a response without messages, when it arrived, and until when it is fresh."""

    validators: Validators | None
    since: float
    until: float


class EndOfFeed:
    """Responses without messages of one feed, by the URL or the cursor of their request. For an event loop."""

    def __init__(self) -> None:
        self._ends: OrderedDict[str | None, _EmptyResponse] = OrderedDict()

    def validators_for(self, url: str) -> Validators | None:
        """Return the validators to send with a request for this URL, as `known` of `Client.send_request`."""
        end = self._ends.get(url)
        return None if end is None else end.validators

    def is_fresh(self, key: str | None) -> bool:
        """Return True if this request could only bring the same empty response again (RFC 9111 §4.2).

        Does not apply to a poll that must bypass caches, nor to one whose response the server may hold.
        """
        end = self._ends.get(key)
        return end is not None and end.since <= anyio.current_time() < end.until

    def note(self, url: str, response: Response, *, empty: bool) -> None:
        """Remember a response if it brought no messages; forget the URL otherwise.

        Args:
            url: The URL that was asked, even if it was redirected.
            response: A response with a status of success.
            empty: True if the response has no messages. With its validators, a response with messages could be
                lost by a crash.
        """
        if empty:
            self.remember(url, response.validators, fresh_for(response.headers))
        else:
            self._ends.pop(url, None)

    def remember(self, key: str | None, validators: Validators | None, seconds: float) -> None:
        """Remember an end that is fresh for some seconds; one without validators and freshness is forgotten."""
        self._ends.pop(key, None)
        if validators is not None or seconds > 0:
            now = anyio.current_time()
            self._ends[key] = _EmptyResponse(validators, now, now + seconds)
            if len(self._ends) > MAX_ENDS:
                self._ends.popitem(last=False)

    def forget(self) -> None:
        """Forget all, since the event loop may end, to whose clock the times belong."""
        self._ends.clear()


def longest_wait(*waits: float | None) -> float | None:
    """Return the longest of several waits, of which `None` is the shortest."""
    return max((wait for wait in waits if wait is not None), default=None)
