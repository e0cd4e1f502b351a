"""One document of a feed that shows what is newest first."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from push_to_poll_client._http.caching import Validators
from push_to_poll_client._types import FetchRequest, Message
from push_to_poll_client.feeds._seen import Seen

__all__ = ["Leaf", "Look", "Order"]


class Leaf(NamedTuple):
    """One document of the feed.

    Attributes:
        messages: The newest first.
        older: Where the next older document is; `None`: there is none.
        stable: `older` names an archive, which does not change: who has read it has read all before it, and nobody
            else has, whatever messages of the document are known.
        size: Bytes of the document.
        validators: By which it is known.
        note: What the feed wants to remember of the newest document. Of a cursor that would be too long with it,
            digests are left out.
        retry_after: Seconds that the server asks to be left alone, before another document, too.
        unchanged: It is what the validators stand for (304).
        missing: What of the feed is not to be had any more, in words; "": nothing.
        whole: The document is the entire feed, as it is now: what is not in it any more is gone, and no gap.
        fresh_for: Seconds for which the newest document, asked for again, would be the same.
        poll_interval: Seconds that the server wants between two polls, however many documents they fetch.
        closed: The newest document is the last there will ever be.
    """

    messages: Sequence[Message] = ()
    older: str | None = None
    stable: bool = False
    size: int = 0
    validators: Validators | None = None
    note: str = ""
    retry_after: float | None = None
    unchanged: bool = False
    missing: str = ""
    whole: bool = False
    fresh_for: float = 0.0
    poll_interval: float | None = None
    closed: bool = False


Look: TypeAlias = Callable[[str | None, FetchRequest, Seen], Awaitable[Leaf]]
"""Fetch the document at an address, which is `None` for the newest one. What was seen before has validators only
where they are to be sent."""

Order: TypeAlias = Callable[[Message], Any]
"""A sort key."""
