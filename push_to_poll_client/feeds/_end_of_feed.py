"""Remember the validators of a feed's end, so that a poll without news costs a 304 or no request.

For feeds whose cursor is in the URL. A response with messages is never remembered. So a 304, or a response that is
still fresh, can only stand for a response without messages, and no message can be lost by it.
"""

from collections import OrderedDict
from typing import NamedTuple

import anyio

from push_to_poll_client._http.caching import Validators, fresh_for
from push_to_poll_client._http.response import Response

MAX_URLS = 16
"""URLs remembered: the end of a feed has one, and one more for each wait that is asked for."""


class _EmptyResponse(NamedTuple):
    """Validators of a response without messages, when it arrived, and until when it is fresh."""

    validators: Validators | None
    since: float
    until: float


class EndOfFeed:
    """Responses without messages of one feed, by the URLs that were asked. For use in an event loop."""

    def __init__(self) -> None:
        self._ends: OrderedDict[str, _EmptyResponse] = OrderedDict()

    def validators_for(self, url: str) -> Validators | None:
        """Return the validators to send with a request for this URL, as `known` of `Client.send_request`."""
        end = self._ends.get(url)
        return None if end is None else end.validators

    def is_fresh(self, url: str) -> bool:
        """Return True if a request for this URL could only bring the same empty response (RFC 9111 §4.2).

        Does not apply to a poll that must bypass caches, nor to one whose response the server may hold.
        """
        end = self._ends.get(url)
        return end is not None and end.since <= anyio.current_time() < end.until

    def note(self, url: str, response: Response, *, empty: bool) -> None:
        """Remember a response if it brought no messages; forget the URL otherwise.

        Args:
            url: The URL that was asked, even if it was redirected.
            response: A response with a status of success.
            empty: True if the response has no messages. With its validators, a response with messages could be
                lost by a crash.
        """
        self._ends.pop(url, None)
        if not empty:
            return
        now = anyio.current_time()
        end = _EmptyResponse(response.validators, now, now + fresh_for(response.headers))
        if end.validators is not None or end.until > now:
            self._ends[url] = end
            if len(self._ends) > MAX_URLS:
                self._ends.popitem(last=False)

    def forget(self) -> None:
        """Forget all, since the event loop may end, to whose clock the times belong."""
        self._ends.clear()
