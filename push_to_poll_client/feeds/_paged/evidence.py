"""Find the mistakes of a declaration that no error shows.

Most mistakes show on the first page: the list is missing, or the cursor. Three do not, and with each the consumer
would stop before the end of the feed without a word:

- A page leads to itself. This is the end if the server sends the last entry again. But it looks the
  same when more entries have one time than fit on a page, or when the server does not heed the cursor.
- `more` reads a member that no answer has. Each page then looks like the last one.
- The entries stand in the other order. The feed then looks for news where the old ones are.

Each can be right as well, so the answers decide: a server may leave out a member that is false, and a list need
not be sorted by the time of its entries. So a page that may be cut off is followed by one more request,
or named a standstill. An error is raised only for the first page of a new consumer; later ones are a WARNING.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._http.origins import page_size_of
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._types import Message
from push_to_poll_client.feeds._paged.body import Reply
from push_to_poll_client.feeds._paged.entries import Entry
from push_to_poll_client.feeds._paged.readers import Reader

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

_SMALL_PAGES = frozenset({20, 25, 30, 40, 50, 64, 75})
_LARGE_PAGES = frozenset({100, 128, 150, 200, 250, 256, 300, 400, 500, 512, 1000, 1024, 2000, 2500, 5000, 10000})
USUAL_PAGE_SIZES = _SMALL_PAGES | _LARGE_PAGES
"""Entries that a full page of most servers has. That 20 entries or more of one time end a feed is rare, and that
they are just as many is rarer: the mistake costs a WARNING, which `more=` ends."""

MIN_ALIKE = 2
"""Pages in a row, each as large as the one before it, that show the size of a full page."""

MIN_TIMES = 4
"""Different times on a page, all in the wrong order, that show a mistake. By chance 4 are so once in 24 pages, 10
once in 3.6 million."""


def may_be_full(reply: Reply) -> bool:
    """Return True if the page may have as many entries as fit on it, so that others were cut off.

    If the URL says how many that are, that many; else as many as most servers have.
    """
    size = page_size_of(reply.url)
    return reply.size in USUAL_PAGE_SIZES if size is None else reply.size >= size > 0


class MissingMore:
    """Find out whether the member exists that `more` reads.

    A server may leave it out when it is false. So if no answer had it yet, the next page is asked for after a page
    that may be full, and after each one with more entries than any that was found to be the last one. That holds
    wherever a consumer starts, since nobody knows how many fit on a page. If the server was right, it is empty.

    Args:
        read: What `more` reads; `None` if it is not declared, and cannot be missing.

    Attributes:
        exists: Whether an answer had it.
    """

    def __init__(self, read: Reader | None) -> None:
        self.exists = read is None
        self._read = read or Reader(lambda _: None, "nothing")
        self._was_named = False
        self._largest_end = 1
        self._alike = 0  # pages in a row that followed one with as many entries
        self._doubtful: tuple[str, int, bool] | None = None

    def may_hide(self, reply: Reply) -> bool:
        """Return True if another page may follow, although this one does not say so."""
        self.exists = self.exists or self._read(reply) is not None
        if self.exists or self._was_named:
            return not self.exists and reply.size > 0
        return reply.size > self._largest_end or may_be_full(reply)

    def asks_for(self, position: str, reply: Reply) -> None:
        """Note that the page at a position is asked for, after this one that does not say that it is there."""
        self._doubtful = position, reply.size, may_be_full(reply)

    def is_doubtful(self, position: str | None) -> bool:
        """Return True if the page at this position was asked for to find out whether it exists."""
        return self._doubtful is not None and self._doubtful[0] == position

    def page_came(self, position: str | None, reply: Reply, *, has_news: bool) -> None:
        """Name the mistake that the page at this position shows, if it was in doubt."""
        if self._doubtful is None or self._doubtful[0] != position:
            return
        (_, size, full), self._doubtful = self._doubtful, None
        if not has_news:
            self._largest_end = max(self._largest_end, size)
        self._alike = self._alike + 1 if has_news and reply.size == size else 0
        # Entries may have come since: 3 and 3 more say little about a page of 3.
        if has_news and (full or self._alike >= MIN_ALIKE) and not self.exists and not self._was_named:
            self._was_named = True
            logger.warning(
                "%s does not answer as it was declared to: a page without %s, which more= reads, was followed by "
                "another one: %s; correct more=, until then each page is followed by one more request",
                reply.where,
                self._read,
                self._read.seen(reply),
            )


Order: TypeAlias = Literal["oldest first", "newest first"]

_REMEDIES: Mapping[Order, str] = {
    "oldest first": "declare NewestFirst(…), or Entries(newest_first=True)",
    "newest first": "declare OldestFirst(…)",
}


def check_order(messages: Sequence[Message], order: Order, where: str, *, first: bool) -> bool:
    """Check that the times of the entries on a page do not all stand in the other order.

    Args:
        messages: The messages of the page, in its order.
        order: The declared order.
        where: The feed's URL without secrets.
        first: The page is the first one that a new consumer reads.

    Returns:
        False if the order is wrong, and was named in the log.

    Raises:
        FeedError: The order is wrong, on the first page.
    """
    other: Order = "newest first" if order == "oldest first" else "oldest first"
    if not _stand_in_order(messages, other):
        return True
    if first:
        raise FeedError(
            f"{where} does not answer as it was declared to: by their time the entries of a page stand {other}, "
            f"where the declaration has them {order}; {_REMEDIES[order]}, "
            "or leave out time= if the list is not sorted by it"
        )
    logger.warning(
        "%s does not answer as it was declared to: by their time the entries of a page stand %s, where the "
        "declaration has them %s; %s, or leave out time= if the list is not sorted by it",
        where,
        other,
        order,
        _REMEDIES[order],
    )
    return False


def _stand_in_order(messages: Sequence[Message], order: Order) -> bool:
    """Return True if the entries of one list have enough different times, and all stand in this order."""
    if len(messages) < MIN_TIMES:
        return False
    sign, times = (1 if order == "oldest first" else -1), 1
    for one, other in pairwise(_instants(messages)):
        if one is None or other is None or (other - one) * sign < 0:
            return False
        times += one != other
    return times >= MIN_TIMES


def _instants(messages: Iterable[Message]) -> Iterator[float | None]:
    """Yield the time of each entry; None if it has none that can be compared, or stands in another list."""
    part = None
    for message in messages:
        if not isinstance(message, Entry):
            continue  # one that cannot be read
        part = part or message._part  # noqa: SLF001  # of this package
        yield _instant(message.time) if message._part is part else None  # noqa: SLF001


def _instant(time: Any) -> float | None:
    if isinstance(time, bool) or not isinstance(time, int | float | str):
        return None
    try:
        seconds = float(time)
    except OverflowError:
        return None
    except ValueError:
        try:
            read = datetime.fromisoformat(str(time))
        except ValueError:
            return None
        seconds = (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
    return seconds if math.isfinite(seconds) else None
