"""Remember the validators of a feed's end, so that asking again costs a 304.

For feeds whose cursor is in the URL. An answer that brought messages is never remembered, so that a 304, or an
answer that is taken for still fresh, can only stand for one that brought nothing: nothing can be lost by it.
"""

from collections import OrderedDict
from typing import NamedTuple

import anyio

from push_to_poll_client._http.caching import Validators, fresh_for
from push_to_poll_client._http.response import Response

__all__ = [
    "MAX_URLS",
    "EndOfFeed",
]


MAX_URLS = 16
"""Ends that are remembered: a feed has one, and one each for the waits it is asked with."""


class _EmptyResponse(NamedTuple):
    """An answer that brought nothing, when it came, and until when another would be the same."""

    validators: Validators | None
    since: float
    until: float


class EndOfFeed:
    """Remembers the ends of one feed, by the URLs that were asked."""

    def __init__(self) -> None:
        self._ends: OrderedDict[str, _EmptyResponse] = OrderedDict()

    def validators_for(self, url: str) -> Validators | None:
        """What the end at this URL is known by: what to give to `Origin.ask`."""
        end = self._ends.get(url)
        return None if end is None else end.validators

    def is_fresh(self, url: str) -> bool:
        """Whether asking this URL now could only bring nothing again (RFC 9111 §4.2). In an event loop.

        Not to be asked of a poll that is to go past caches, nor of one whose answer the server may hold.
        """
        end = self._ends.get(url)
        return end is not None and end.since <= anyio.current_time() < end.until

    def note(self, url: str, answer: Response, *, empty: bool) -> None:
        """Note what an answer brought. In an event loop.

        Args:
            url: As it was asked, also if it was redirected.
            answer: Accepted.
            empty: Whether it brought nothing to settle. What brought something is never known by anything, or a
                crash could lose it.
        """
        self._ends.pop(url, None)
        if not empty:
            return
        now = anyio.current_time()
        end = _EmptyResponse(answer.validators, now, now + fresh_for(answer.headers))
        if end.validators is not None or end.until > now:
            self._ends[url] = end
            if len(self._ends) > MAX_URLS:
                self._ends.popitem(last=False)

    def forget(self) -> None:
        """When the event loop may end by whose clock this is."""
        self._ends.clear()
