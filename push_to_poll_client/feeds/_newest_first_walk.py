"""Walk back from the newest document of a feed to the entries that were seen before."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

from push_to_poll_client._exceptions import ChainRestart, FeedError
from push_to_poll_client._http.caching import Validators
from push_to_poll_client._types import MAX_CURSOR, Cursor, CycleDetector, FetchRequest, Message, Page
from push_to_poll_client.feeds._newest_first_cursor import Digests, SeenEntries, digest

__all__ = [
    "Document",
    "FetchDocument",
    "SortKey",
    "Walk",
    "Walks",
    "longer_wait",
]


class Document(NamedTuple):
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


FetchDocument: TypeAlias = Callable[[str | None, FetchRequest, SeenEntries], Awaitable[Document]]
"""Fetch the document at an address, which is `None` for the newest one. What was seen before has validators only
where they are to be sent."""

SortKey: TypeAlias = Callable[[Message], Any]
"""A sort key."""


MAX_BYTES = 64 * 1024 * 1024
"""Of documents whose messages are held, however few these are."""

MIN_DOCUMENTS = 2
"""Documents that are held, however large: the one that was seen last and the one after it, or a walk of large ones
would stand still."""

MAX_ADDRESSES = 1_000
"""Kept of the newer documents of one walk, and once more of those before it. Of a longer way each second one is
kept, or each fourth: the next walk up begins further up, and some documents are fetched once more."""

MAX_DOCUMENTS = 100_000
"""In one walk: ten million messages in documents of 100. A feed that goes on beyond it has no end."""

MAX_TRIES = 3
"""For one document. A walk that still does not have it begins again at the top: addresses may have changed."""

STALE_AFTER = 30.0
"""Seconds for which a walk may stand still, as between two polls, until it looks again at the document before."""

GONE = "none of the messages that were seen last is in the feed any more; some may have come and gone since"


class Address(NamedTuple):
    """Where a document is.

    Attributes:
        at: The address; `None`: it is the newest document.
        archive: It does not change.
        depth: How many documents stood above it.
    """

    at: str | None = None
    archive: bool = False
    depth: int = 0


TOP = Address()


@dataclass(frozen=True, slots=True)
class _HeldDocument:
    """One that was fetched, and of which only what is news is held.

    Attributes:
        address: Where it is.
        leaf: What else it says.
        digests: Of the dedupe keys of its messages, the newest first.
        news: What was not seen of these, and the messages.
    """

    address: Address
    metadata: Document
    digests: Sequence[bytes]
    unseen: Sequence[tuple[bytes, Message]]

    @classmethod
    def of(cls, address: Address, leaf: Document, known: Digests) -> "_HeldDocument":
        """What is held of a leaf."""
        digests = [digest(message.key) for message in leaf.messages]
        pairs = zip(digests, leaf.messages, strict=True)
        news = [pair for pair in pairs if pair[0] not in known]
        return cls(address, leaf._replace(messages=()), digests, news)

    @property
    def size(self) -> int:
        """Bytes that its news may take: messages may be views of the whole document."""
        return self.metadata.size if self.unseen else 0

    @property
    def archives_read(self) -> Iterator[str]:
        """Archives that are read when it is, the newest first."""
        if self.address.archive and self.address.at is not None:
            yield self.address.at
        if self.metadata.stable and self.metadata.older is not None:
            yield self.metadata.older

    def reaches_known(self, known: Digests) -> bool:
        """Whether what was seen begins here.

        What is pinned to the top of the newest document is known all the time, and may stand there above a backlog
        that is longer than the document. So only what is known in its lower half counts.
        """
        if len(self.unseen) == len(self.digests):
            return False
        looked_at = self.digests[len(self.digests) // 2 :] if self.address == TOP else self.digests
        return any(one in known for one in looked_at)


class Walk:
    """One walk.

    Args:
        known: What was seen.
        most: Messages that are held at once.
        start: Where it begins.
        above: Where documents are that are left for later, the newest first.

    Attributes:
        known: As given.
        above: As given, and those that were fetched and are not held.
        turn: A larger number with each document, and whenever another one is to be fetched.
        ended: The last document was the last one to be looked at.
        page: What it handed out; `None`: it has not, or nothing that is worth being kept.
        later: What is to be walked when that is settled; `None`: nothing.
    """

    def __init__(self, known: SeenEntries, most: int, start: Address = TOP, above: Sequence[Address] = ()) -> None:
        self.known = known
        self.above = list(above if len(above) <= MAX_ADDRESSES else above[::2])
        self.step = 0
        self.ended = False
        self.page: Page | None = None
        self.next_walk: Walk | None = None
        self._interval = self._quiet_until = 0.0
        self._max_messages = most
        self._start = self._next = start
        self._held: list[_HeldDocument] = []
        self._last: _HeldDocument | None = None
        self._refetch: _HeldDocument | None = None
        self._refetched = False
        self._fetched_at = 0.0
        self._messages = self._size = self._documents = self._failures = 0
        self._reached_known = False
        self._missing = ""
        self._initial_above, self._dropped, self._stride = len(self.above), 0, 1
        self._cycle_detector = CycleDetector()

    # Down

    @property
    def at(self) -> str | None:
        """The address of the document that is to be fetched next; `None`: of the newest one."""
        return self._next.at

    @property
    def known_for_request(self) -> SeenEntries:
        """What was seen, with what the newest document is known by if that is to be fetched next."""
        return self.known if self._next == TOP else replace(self.known, validators=None)

    def prepare_next(self, turn: int, now: float) -> None:
        """The next document is to be fetched.

        After a while that is the last one again, once: it leads on from what is held, wherever that stands now.

        Args:
            turn: By which it is asked for. It may be one of a walk that was lost: what follows has another.
            now: On the event loop's clock.
        """
        self.step = max(self.step, turn)
        stands = self._fetched_at <= now <= self._fetched_at + STALE_AFTER or self._refetched or self._next.archive
        if self._last is not None and self._refetch is None and not stands:
            self._refetch, self._next, self._cycle_detector = self._last, self._last.address, CycleDetector()
            self.step += 1

    def add_document(self, leaf: Document, where: str, now: float) -> None:
        """The next document is there.

        Args:
            leaf: It.
            where: The feed's URL without secrets, for errors.
            now: On the event loop's clock.

        Raises:
            ChainRestart: It was to be another one: pages have shifted by more than a page.
            FeedError: The feed leads in a circle, or has no end, or what it leads to is too long to be kept.
        """
        document = _HeldDocument.of(self._next, leaf, self.known.messages)
        self._check_refetched(document, where)
        self._last, self._fetched_at = document, now
        self._documents += 1
        self.step += 1
        self._missing = self._missing or leaf.missing
        self._interval = max(self._interval, leaf.poll_interval or 0.0)
        self._quiet_until = max(self._quiet_until, now + (leaf.poll_interval or 0.0))
        self.ended = self._is_last(document) or leaf.older is None or leaf.whole
        self._hold(document)
        if not self.ended:
            self._step_to(Address(leaf.older, leaf.stable, self._next.depth + 1), where)

    def record_failure(self) -> bool:
        """A document could not be had. Whether to give up, and begin again at the top."""
        self._failures += 1
        return self._failures >= MAX_TRIES

    def _check_refetched(self, document: _HeldDocument, where: str) -> None:
        """See that a document that is fetched again is what it was, as far as anything of it is still there."""
        again, self._refetch, self._refetched = self._refetch, None, self._refetch is not None
        if again is None:
            self._failures = 0
        elif document.address == TOP:
            self._held, self._messages, self._size = [], 0, 0
        elif again.digests and set(again.digests).isdisjoint(document.digests):
            raise ChainRestart(f"{where} shows other messages where a walk was interrupted; it begins again")

    def _is_last(self, document: _HeldDocument) -> bool:
        """Whether all that is older was seen."""
        leaf, met = document.metadata, document.reaches_known(self.known.messages)
        read = leaf.stable and leaf.older is not None and self.known.has_archive(leaf.older)
        self._reached_known = self._reached_known or met or read or leaf.whole
        return read if leaf.stable and leaf.older is not None else met

    def _hold(self, document: _HeldDocument) -> None:
        self._held.append(document)
        self._messages, self._size = self._messages + len(document.unseen), self._size + document.size
        while len(self._held) > MIN_DOCUMENTS and (self._messages > self._max_messages or self._size > MAX_BYTES):
            self._drop()

    def _drop(self) -> None:
        """The newest document in hand: its messages wait for those that are older."""
        document = self._held.pop(0)
        self._messages, self._size = self._messages - len(document.unseen), self._size - document.size
        if self._dropped % self._stride == 0:
            self.above.append(document.address)
        self._dropped += 1
        if len(self.above) - self._initial_above > MAX_ADDRESSES:
            self.above[self._initial_above :] = self.above[self._initial_above :: 2]
            self._stride *= 2

    def _step_to(self, older: Address, where: str) -> None:
        if (
            older.at in {None, self.at}
            or self._cycle_detector.repeats_at(older.at)
            or self._documents >= MAX_DOCUMENTS
        ):
            raise FeedError(
                f"{where} leads from document to document {self._documents} times without an end: its links go in"
                " a circle, or it does not heed what asks for the next one"
            )
        if len(older.at) > MAX_CURSOR:
            raise FeedError(f"{where} leads to a document by more than {MAX_CURSOR} characters")
        self._next = older

    # At its end

    @property
    def may_have_newer(self) -> bool:
        """Whether the newest document was not fetched, or may have changed since."""
        return self._start != TOP or self._documents > 1

    def next_poll_delay(self, now: float) -> float | None:
        """Seconds until the server wants the next poll, of those that any document asked for; `None`: it may come.

        Args:
            now: On the event loop's clock.
        """
        seconds = min(self._quiet_until - now, self._interval)  # the clock may be that of another event loop
        return seconds if seconds > 0 else None

    @property
    def closed(self) -> bool:
        """Whether the newest document, which is held, said that it is the last."""
        return self._held[0].metadata.closed

    @property
    def gap(self) -> str:
        """What may be missing, in words."""
        gone = self.known.messages and not self._reached_known and self._messages
        return self._missing or (GONE if gone else "")

    def new_messages(self, order: SortKey | None = None) -> list[Message]:
        """What was not seen, the oldest first."""
        found = (pair for document in reversed(self._held) for pair in reversed(document.unseen))
        news = list(dict(found).values())
        if order is not None and len(self._held) > 1:
            news.sort(key=order)
        return news

    def seen(self) -> SeenEntries:
        """What was seen, once all that is handed out is settled."""
        top, *others = self._held
        older = chain.from_iterable(document.digests for document in others)
        archives = chain.from_iterable(document.archives_read for document in self._held)
        seen = self.known.updated(top.digests, older, archives)
        if self.above:
            return seen
        return replace(
            seen, validators=None if top.metadata.closed else top.metadata.validators, note=top.metadata.note
        )

    def remaining_walk(self, seen: SeenEntries) -> "Walk | None":
        """What to walk when all that is handed out is settled, as much as is held; `None`: nothing is left."""
        if not self.above:
            return None
        highest = self._held[0].address.depth - len(self._held) + 1
        last = len(self.above) - 1
        start = next((n for n, address in enumerate(self.above) if address.depth >= highest), last)
        return Walk(seen, self._max_messages, self.above[start], self.above[:start])


def longer_wait(one: float | None, other: float | None) -> float | None:
    """Of two waits; `None` is none."""
    return max((wait for wait in (one, other) if wait is not None), default=None)


MAX_WALKS = 8
"""Kept: one for each consumer of the feed. If more than these have a backlog, they begin again and again."""


class Walks:
    """Those of one feed, by the cursors that they began with."""

    def __init__(self) -> None:
        self._walks: OrderedDict[Cursor | None, Walk] = OrderedDict()

    def get(self, start: Cursor | None) -> Walk | None:
        """The walk that began there; `None`: none did, or it is lost."""
        way = self._walks.get(start)
        if way is not None:
            self._walks.move_to_end(start)
        return way

    def keep(self, start: Cursor | None, way: Walk) -> None:
        """Keep it, in place of another one that began there."""
        self._walks[start] = way
        if len(self._walks) > MAX_WALKS:
            self._walks.popitem(last=False)

    def drop(self, start: Cursor | None) -> None:
        """Forget the walk that began there."""
        self._walks.pop(start, None)

    def cursor_settled(self, cursor: Cursor | None) -> None:
        """A cursor comes back: what led to it need not be handed out again, and what it leads to begins there."""
        for start, way in list(self._walks.items()):
            if way.page is not None and way.page.cursor == cursor:
                del self._walks[start]
                if way.next_walk is not None:
                    self.keep(cursor, way.next_walk)

    def forget(self) -> None:
        """Each begins again."""
        self._walks.clear()
