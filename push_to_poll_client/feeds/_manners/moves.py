"""Where a feed has moved for good: permanent redirects (RFC 9110 §15.4.2, §15.4.9), remembered in memory.

Not on disk: a redirect by mistake is then over with the process, and the WARNING names what to configure.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable

import anyio

__all__ = ["MAX_MOVES", "Moves"]

MAX_MOVES = 16
"""Of one feed. Its pages move together, by their path."""

MAX_READ = 16
"""Paths of one feed at which redirects ended and a page was read: one for each path that the feed has."""

MAX_STEPS = 5
"""From where a feed was once to where it is now."""

MAX_AGE = 3600.0
"""Seconds until the old URL is looked at again, 24 requests a day: a maintenance page that says "for good", and
"200 OK" of itself, is over then."""

_logger = logging.getLogger("push_to_poll_client")


class Moves:
    """Knows the new URL for an old one. All in an event loop, by whose clock it forgets.

    Args:
        shown: What stands in the log for a URL.
    """

    def __init__(self, shown: Callable[[object], str]) -> None:
        self._shown = shown
        self._paths: OrderedDict[str, str] = OrderedDict()
        self._urls: OrderedDict[str, str] = OrderedDict()
        self._read: OrderedDict[str, None] = OrderedDict()
        self._since = 0.0
        self._told: str | None = None

    def now(self, url: str) -> str:
        """Where to ask for what was at this URL."""
        if not self._paths and not self._urls:
            return url
        if not 0 <= anyio.current_time() - self._since < MAX_AGE:
            self.forget()
        for _ in range(MAX_STEPS):
            path, mark, query = url.partition("?")
            if url in self._urls:
                url = self._urls[url]
            elif path in self._paths:
                url = f"{self._paths[path]}{mark}{query}"
            else:
                break
        return url

    def learn(self, old: str, new: str) -> None:
        """Remember a move. One that kept the query holds for every query: a feed moves with all its pages.

        A WARNING tells of it, once for each place that it leads to.
        """
        if not self._paths and not self._urls:
            self._since = anyio.current_time()
        (old_path, _, query), (new_path, _, new_query) = old.partition("?"), new.partition("?")
        if query == new_query:
            _remember(self._paths, old_path, new_path)
        else:
            _remember(self._urls, old, new)
        there = self._shown(new)
        if there != self._told:
            self._told = there
            _logger.warning("%s has moved for good: configure its new URL, %s", self._shown(old), there)

    def read(self, url: str) -> None:
        """Note that redirects led to a page of the feed at this URL, so that errors from there are believed."""
        self._read[_path(url)] = None
        self._read.move_to_end(_path(url))
        if len(self._read) > MAX_READ:
            self._read.popitem(last=False)

    def has_read(self, url: str) -> bool:
        """Return True if redirects led to a page of the feed at the path of this URL before."""
        return _path(url) in self._read

    def forget(self) -> None:
        """Begin at the old URLs again: something is wrong with the new ones, and it may be the move."""
        self._paths.clear()
        self._urls.clear()


def _path(url: str) -> str:
    return url.partition("?")[0]


def _remember(moves: OrderedDict[str, str], old: str, new: str) -> None:
    moves.pop(new, None)  # whoever moved back has not moved
    if old != new:
        moves[old] = new
        if len(moves) > MAX_MOVES:
            moves.popitem(last=False)
