"""HOW MUCH is made of one answer, of whatever feed; in which thread; and what a broken entry becomes."""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from anyio import to_thread

from push_to_poll_client._exceptions import UndecodableMessage
from push_to_poll_client._types import Cursor, UnreadableMessage

__all__ = ["MAX_ID", "MAX_UNREADABLE", "most_messages", "read_aside", "unreadable"]

MAX_ID = 1024
"""Characters of an id, and of what else stands in a key. Real ones have some dozens; a store keeps each twice."""

MAX_UNREADABLE = 10_000
"""Unreadable entries on one page: each costs a kilobyte, a byte of the page is enough to make one."""

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


def unreadable(
    raw: bytes, why: str, *, name: str | None = None, cursor: Cursor | None = None
) -> UnreadableMessage:
    """The message of an entry that cannot be read. Its dedupe key is a digest: corrected, it is another message.

    Args:
        raw: The entry as it came.
        why: What is wrong with it. Text, since an exception that was caught keeps the whole page alive.
        name: Its id, if that much of it could be read.
        cursor: Safe to save when it and all before it are settled; `None`: there is none.
    """
    digest = f"unreadable:{hashlib.sha256(raw).hexdigest()[:32]}"
    return UnreadableMessage(name or digest, UndecodableMessage(why), key=digest, cursor=cursor, raw=raw)
