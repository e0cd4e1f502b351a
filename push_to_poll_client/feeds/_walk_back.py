"""FROM THE NEWEST BACK: feeds that show what is newest first, handed out oldest first.

The top of such a feed has one address, which says nothing of where a client was. So the cursor says what was seen
there: a short digest of each message, and the validators of the answer. These are sent with that cursor alone, so
that a 304 stands for what was settled, and a message that failed is fetched again. What is in the cursor is not
handed out again, however long ago it was processed; what appears late below it is.

A walk goes from document to document, one request for each fetch, so that rate limits and the consumer's time are
respected, until it meets what was seen. Then it hands out what it found, the oldest first. Only so many messages
are held; of what is newer the addresses are kept, and those documents are fetched again once those before are
settled. Addresses need not stand for the same messages then (pages that are counted from the newest shift): each
further walk goes down from there to what was seen last.

What is in memory only saves requests. A walk that is lost begins again at the top.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple, TypeAlias

from push_to_poll_client._circle import Circle
from push_to_poll_client._exceptions import CursorExpired, FeedError, FeedGone, FeedRefused
from push_to_poll_client._types import Cursor, FetchRequest, Message, Page
from push_to_poll_client.feeds._manners.validators import Validators
from push_to_poll_client.feeds._seen import Seen

__all__ = ["Leaf", "Look", "WalkBack"]

MOST_MESSAGES = 10_000
"""Held at once: some 20 MB of usual events, and 100 documents of 100."""

MOST_BYTES = 64 * 1024 * 1024
"""Of documents whose messages are held, however few these are."""

MOST_ADDRESSES = 1_000
"""Kept of newer documents. Of a longer way each second one is forgotten, which costs requests and nothing else."""

MOST_DOCUMENTS = 100_000
"""In one walk: ten million messages in documents of 100. A feed that goes on beyond it has no end."""

MOST_WALKS = 4
"""Kept in memory. A consumer has one or two."""

ENOUGH = 0.25
"""The part of the newest document that has to be known for it to be the last: entries that are pinned to the top
are known all the time, and stand there beside a backlog that is longer than the document."""


class Leaf(NamedTuple):
    """One document of the feed.

    Attributes:
        messages: The newest first.
        older: Where the next older document is; `None`: there is none.
        stable: `older` names an archive, which does not change: who has read it has read all before it, and nobody
            else has, whatever messages of the document are known.
        size: Bytes of the document.
        validators: By which it is known.
        note: What the feed wants to remember of the newest document, some 8,000 characters at most.
        retry_after: Seconds that the server asks to be left alone.
        unchanged: It is what the validators stand for (304).
        missing: Why the document is not to be had any more, in words; "": it is there.
        whole: The document is the entire feed, as it is now: what is not in it any more is gone, and no gap.
        fresh_for: Seconds for which the newest document, asked for again, would be the same.
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


Look: TypeAlias = Callable[[str | None, FetchRequest, Seen], Awaitable[Leaf]]
"""Fetch the document at an address, which is `None` for the newest one. What was seen before has validators only
where they are to be sent."""

Order: TypeAlias = Callable[[Message], Any]


class WalkBack:
    """Walks one feed.

    Args:
        look: Fetches a document.
        where: The feed's URL without secrets, for errors.
        order: A sort key for messages of several documents; `None`: they are in order.
        most: Messages that are held at once.
    """

    def __init__(self, look: Look, where: str, *, order: Order | None = None, most: int = MOST_MESSAGES) -> None:
        self._look = look
        self._where = where
        self._order = order
        self._most = most
        self._walks: dict[Cursor | None, _Walk] = {}
        self._steps = count(1)

    async def fetch(self, request: FetchRequest) -> Page:
        """As `Feed.fetch`.

        Raises:
            CursorExpired: The cursor was not made here.
            FeedError: The document could not be had, or the walk does not end.
        """
        start = _start(request.cursor)
        self._settled(start)
        walk = self._walks.get(start) or _Walk(Seen.read(start, self._where), self._most)
        if walk.page is not None:  # it was handed out, and not settled
            return walk.page
        leaf = await self._look_at(walk, request, start)
        if leaf.unchanged:
            return Page(retry_after=leaf.retry_after)
        self._walks.pop(start, None)
        walk.take(leaf, self._where)
        return self._hand_out(start, walk, leaf) if walk.ended else self._go_on(start, walk, leaf)

    async def latest(self) -> Cursor | None:
        """As `Feed.latest`.

        Raises:
            FeedError: The newest document could not be had.
        """
        walk = _Walk(Seen(), self._most)
        walk.take(await self._look(None, FetchRequest(fresh=True), walk.known), self._where)
        return walk.seen().cursor()

    async def _look_at(self, walk: "_Walk", request: FetchRequest, start: Cursor | None) -> Leaf:
        try:
            return await self._look(walk.at, request, walk.known if walk.begins else walk.known_below)
        except (CursorExpired, FeedGone, FeedRefused):  # the address is good no more
            self._walks.pop(start, None)
            raise

    def _go_on(self, start: Cursor | None, walk: "_Walk", leaf: Leaf) -> Page:
        self._keep(start, walk)
        return Page(next=f"{start or ''} {next(self._steps)}", retry_after=leaf.retry_after)

    def _hand_out(self, start: Cursor | None, walk: "_Walk", leaf: Leaf) -> Page:
        seen = walk.seen()
        page = Page(walk.news(self._order), seen.cursor(), gap=walk.gap)
        if page.cursor == start:
            page = replace(page, cursor=None)
        elif walk.again:
            page = walk.page = replace(page, next=page.cursor)
            self._keep(start, walk)
        if walk.above:
            self._keep(page.cursor, walk.further(seen))
        return replace(page, retry_after=leaf.retry_after)

    def _keep(self, start: Cursor | None, walk: "_Walk") -> None:
        self._walks[start] = walk
        if len(self._walks) > MOST_WALKS:
            del self._walks[next(iter(self._walks))]

    def _settled(self, cursor: Cursor | None) -> None:
        """A cursor comes back: what led to it need not be handed out again."""
        for start, walk in list(self._walks.items()):
            if walk.page is not None and walk.page.cursor == cursor:
                del self._walks[start]


def _start(position: Cursor | None) -> Cursor | None:
    """The cursor that a walk began with, which stands before the number of its step."""
    start, space, step = (position or "").rpartition(" ")
    return (start or None) if space and step.isdecimal() else position


class _Walk:
    """On the way from an address down to what was seen.

    Args:
        known: What was seen.
        most: Messages that are held at once.
        at: The address of the document to be fetched next; `None`: of the newest one.
        above: Addresses of documents that are left for later, the newest first.

    Attributes:
        known: As given.
        at: As given.
        above: As given, and those that were fetched and are not held.
        ended: The last document was the last one to be looked at.
        page: What was handed out.
    """

    def __init__(self, known: Seen, most: int, at: str | None = None, above: Sequence[str | None] = ()) -> None:
        self.known = known
        self.at = at
        self.above = list(above)
        self.ended = False
        self.page: Page | None = None
        self._most = most
        self._held: list[Leaf] = []
        self._addresses: list[str | None] = []
        self._messages = self._size = self._documents = 0
        self._met = False
        self._missing = ""
        self._from_top = at is None
        self._circle = Circle()

    @property
    def begins(self) -> bool:
        """Whether the newest document is to be fetched."""
        return self._from_top and not self._documents

    @property
    def known_below(self) -> Seen:
        """What was seen, of which other documents than the newest are not known by anything."""
        return replace(self.known, validators=None)

    @property
    def again(self) -> bool:
        """Whether the newest document was not fetched, or may have changed since."""
        return not self._from_top or self._documents > 1

    @property
    def gap(self) -> str:
        """What may be missing, in words."""
        if self._missing or self._met or not self.known.messages or not self.news():
            return self._missing
        return (
            "none of the messages that were seen last is in the feed any more; some may have come and gone since"
        )

    def news(self, order: Order | None = None) -> list[Message]:
        """What was not seen, the oldest first."""
        found = (message for leaf in reversed(self._held) for message in reversed(leaf.messages))
        news = list({message.key: message for message in found if not self.known.has(message.key)}.values())
        if order is not None and len(self._held) > 1:
            news.sort(key=order)
        return news

    def seen(self) -> Seen:
        """What was seen, once all that is handed out is settled."""
        top, *others = self._held
        read = [leaf.older for leaf in self._held if leaf.stable and leaf.older is not None]
        if top.stable and self._addresses[0] is not None:
            read.insert(0, self._addresses[0])
        seen = self.known.then(_keys([top]), _keys(others), read)
        return seen if self.above else replace(seen, validators=top.validators, note=top.note)

    def take(self, leaf: Leaf, where: str) -> None:
        """The next document.

        Raises:
            FeedError: The feed leads in a circle, or has no end.
        """
        self._held.append(leaf)
        self._addresses.append(self.at)
        self._messages, self._size = self._messages + len(leaf.messages), self._size + leaf.size
        self._missing = self._missing or leaf.missing
        last = self._is_last(leaf)
        self._documents += 1
        self.ended = last or leaf.older is None
        while len(self._held) > 1 and (self._messages > self._most or self._size > MOST_BYTES):
            self._drop()
        if not self.ended:
            self._step_to(leaf.older or "", where)

    def further(self, seen: Seen) -> "_Walk":
        """The walk that hands out what is next newer."""
        return _Walk(seen, self._most, self.above[-1], self.above[:-1])

    def _is_last(self, leaf: Leaf) -> bool:
        """Whether all that is older was seen."""
        known = sum(self.known.has(message.key) for message in leaf.messages)
        self._met = self._met or known > 0
        if leaf.stable and leaf.older is not None:
            return self.known.has_read(leaf.older)
        return known > 0 and (not self.begins or known >= ENOUGH * len(leaf.messages))

    def _step_to(self, older: str, where: str) -> None:
        if older == self.at or self._circle.closes_at(older) or self._documents >= MOST_DOCUMENTS:
            raise FeedError(f"{where} leads from document to document {self._documents} times without an end")
        self.at = older

    def _drop(self) -> None:
        """The newest document in hand: its messages wait for those that are older."""
        leaf = self._held.pop(0)
        self._messages, self._size = self._messages - len(leaf.messages), self._size - leaf.size
        self.above.append(self._addresses.pop(0))
        if len(self.above) > MOST_ADDRESSES:
            self.above = self.above[::2]


def _keys(leaves: Sequence[Leaf]) -> list[str]:
    return [message.key for leaf in leaves for message in leaf.messages]
