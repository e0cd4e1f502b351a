"""Remember the permanent redirects of a feed: `Redirects` replaces old URLs by new ones.

They are kept in memory only, so a mistaken redirect is forgotten with the process. A WARNING names the URL to
configure.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable

import anyio

from push_to_poll_client._log import ConsumerLog

MAX_REMEMBERED_REDIRECTS = 16
"""Redirects remembered per feed. Pages of a feed move together, by their path."""

MAX_CONFIRMED_PATHS = 16
"""Paths remembered at which redirects ended and a page was read: one per path of the feed."""

MAX_STEPS = 5
"""Remembered redirects followed in a row."""

MAX_AGE = 3600.0
"""Seconds until the old URL is tried again: 24 requests a day. A maintenance page is over by then."""

_logger = ConsumerLog(logging.getLogger("push_to_poll_client"))


class Redirects:
    """Replaces old URLs by new ones, for one event loop; `redact` makes a URL safe for the log."""

    def __init__(self, redact: Callable[[object], str]) -> None:
        self._redact = redact
        # By path and query. A redirect that kept the query has no query here, and is used for every query: a feed
        # moves with all its pages.
        self._moved: OrderedDict[tuple[str, str | None], str] = OrderedDict()
        self._confirmed: OrderedDict[str, None] = OrderedDict()
        self._since = 0.0
        self._last_warned: str | None = None

    def resolve(self, url: str) -> str:
        """Return the present URL for this one."""
        if not self._moved:
            return url
        if not 0 <= anyio.current_time() - self._since < MAX_AGE:
            self.forget()
        for _ in range(MAX_STEPS):
            path, separator, query = url.partition("?")
            if (path, query) in self._moved:
                url = self._moved[path, query]
            elif (path, None) in self._moved:
                url = f"{self._moved[path, None]}{separator}{query}"
            else:
                break
        return url

    def learn(self, old: str, new: str) -> None:
        """Remember a permanent redirect, and log a WARNING once for each new URL."""
        if not self._moved:
            self._since = anyio.current_time()
        (old_path, _, query), (new_path, _, new_query) = old.partition("?"), new.partition("?")
        whole = query != new_query
        before, after = (old_path, query if whole else None), (new_path, new_query if whole else None)
        self._moved.pop(after, None)  # a feed that moved back is at its old URL
        if before != after:
            self._moved[before] = new if whole else new_path
            if len(self._moved) > MAX_REMEMBERED_REDIRECTS:
                self._moved.popitem(last=False)
        shown = self._redact(new)
        if shown != self._last_warned:
            self._last_warned = shown
            _logger.warning("%s has moved permanently: configure its new URL, %s", self._redact(old), shown)

    def confirm(self, url: str) -> None:
        """Note that redirects led to a page of the feed at this URL, so errors from there count."""
        path = url.partition("?")[0]
        self._confirmed[path] = None
        self._confirmed.move_to_end(path)
        if len(self._confirmed) > MAX_CONFIRMED_PATHS:
            self._confirmed.popitem(last=False)

    def is_confirmed(self, url: str) -> bool:
        """Return True if redirects led to a page of the feed at this path before."""
        return url.partition("?")[0] in self._confirmed

    def forget(self) -> None:
        """Return to the old URLs: an error at the new ones may be caused by the redirect."""
        self._moved.clear()
