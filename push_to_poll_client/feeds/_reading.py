"""HOW MUCH is made of one answer, of whatever feed; in which thread; and what a broken entry is called."""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from anyio import to_thread

__all__ = ["MAX_ID", "MAX_UNREADABLE", "UNREADABLE", "most_messages", "read_aside", "unreadable_key"]

MAX_ID = 1024
"""Characters of an id, and of what else stands in a key. Real ones have some dozens; a store keeps each twice."""

MAX_UNREADABLE = 10_000
"""Unreadable entries on one page: each costs a kilobyte, a byte of the page is enough to make one."""

UNREADABLE = "unreadable:"
"""What the dedupe keys of entries begin with that cannot be read."""

_SMALL_MESSAGE = 160
"""Bytes that the messages of a page have on average, at least: in memory each takes some 600 more."""

_SMALL_PAGE = 10_000
"""Messages that a page may have however small they are; it is the largest page that is common among feeds."""

_LARGE_BODY = 1024 * 1024
"""Bytes. What is larger is read in a thread: a hostile page can take ten seconds to see through."""

P = ParamSpec("P")
T = TypeVar("T")


def most_messages(max_body: int) -> int:
    """How many messages a page may have, by the bytes that it may have."""
    return max(max_body // _SMALL_MESSAGE, _SMALL_PAGE)


async def read_aside(size: int, read: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """What `read(*args, **options)` returns or raises; for a large body it runs in a worker thread.

    Args:
        size: Bytes that are read.
        read: Touches nothing that another thread might. When the poll is cancelled it runs on, unheard.
        args: Its.
        options: Its.
    """
    if size <= _LARGE_BODY:
        return read(*args, **options)
    return await to_thread.run_sync(partial(read, *args, **options), abandon_on_cancel=True)


def unreadable_key(raw: bytes) -> str:
    """The dedupe key of an entry that cannot be read: corrected it is another message.

    Args:
        raw: The entry as it came.
    """
    return f"{UNREADABLE}{hashlib.sha256(raw).hexdigest()[:32]}"
