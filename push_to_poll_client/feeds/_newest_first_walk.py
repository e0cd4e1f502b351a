"""Walk back from the newest document of a feed to the seen entries.

`Walk` does no I/O. It names the next document to fetch, takes each document, and decides when the walk has ended:
at a seen entry or archive, or at the end of the feed. Then its new messages are returned, oldest first.

A backlog may exceed the memory. A walk that holds too much drops its newest documents and keeps their addresses.
When the older messages are settled, the next walk begins at one of these addresses.

The feed may change during a walk, and addresses such as page numbers then lead to other documents. After a while
without a request, the walk fetches its last document again and compares. If none of its messages is left, the walk
starts again at the newest document. Archives do not change, and are not compared.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

from push_to_poll_client._exceptions import FeedError, PagesChanged
from push_to_poll_client._http.caching import Validators
from push_to_poll_client._types import MAX_CURSOR, CycleDetector, FetchRequest, Message, Page
from push_to_poll_client.feeds._newest_first_cursor import Digests, SeenEntries, digest


class Document(NamedTuple):
    """One document of the feed."""

    messages: Sequence[Message] = ()  # newest first
    older: str | None = None  # address of the next older document
    # True if `older` is an archive, which does not change. If its address was seen before, it and all older
    # documents were read.
    stable: bool = False
    size: int = 0  # bytes
    validators: Validators | None = None
    # The feed's text about its newest document, saved in the cursor. If the cursor becomes too long, it keeps this
    # text and drops digests.
    note: str = ""
    # Seconds for which the server wants no request, not even for another document.
    retry_after: float | None = None
    unchanged: bool = False  # True if the server answered 304 to the validators
    missing: str = ""  # description of the part of the feed that can no longer be read; "" if there is none
    whole: bool = False  # True if this is the entire feed: an entry that left it was deleted, which is not a gap
    fresh_for: float = 0.0  # seconds for which another request for the newest document returns the same
    # Seconds that the server wants between two polls, however many documents they fetch.
    poll_interval: float | None = None
    closed: bool = False  # True if no document will follow the newest one


FetchDocument: TypeAlias = Callable[[str | None, FetchRequest, SeenEntries], Awaitable[Document]]
"""Fetches the document at an address, None for the newest. Sends the validators of the seen entries."""

SortKey: TypeAlias = Callable[[Message], Any]
"""Sort key of messages, oldest first."""


MAX_BYTES = 64 * 1024 * 1024
"""Bytes of the documents whose messages are held, however few messages these are."""

MIN_DOCUMENTS = 2
"""Documents held however large they are. With fewer, a walk through large documents would not advance."""

MAX_ADDRESSES = 1_000
"""Addresses of dropped documents that a walk keeps, and as many from earlier walks."""
# A longer walk keeps only every second or fourth address. The next walk then fetches some documents again.

MAX_DOCUMENTS = 100_000
"""Documents of one walk: ten million messages in documents of 100. A longer feed counts as endless."""

MAX_TRIES = 3
"""Failed requests in a row after which a walk starts again at the newest document."""

STALE_AFTER = 30.0
"""Seconds without a request, as between two polls, after which a walk fetches its last document again."""

GONE = "none of the last seen messages is still in the feed; messages in between may be missing"


class Address(NamedTuple):
    """Address of a document; the default is the newest one."""

    at: str | None = None
    archive: bool = False  # an archive does not change
    depth: int = 0  # newer documents that the walk passed


TOP = Address()


@dataclass(frozen=True, slots=True)
class _HeldDocument:
    """A fetched document, without its seen messages."""

    address: Address
    metadata: Document  # without messages
    digests: Sequence[bytes]  # of all its messages, newest first
    unseen: Sequence[tuple[bytes, Message]]  # the unseen messages, each with its digest

    @classmethod
    def of(cls, address: Address, document: Document, known: Digests) -> "_HeldDocument":
        digests = [digest(message.dedupe_key) for message in document.messages]
        pairs = zip(digests, document.messages, strict=True)
        unseen = [pair for pair in pairs if pair[0] not in known]
        return cls(address, document._replace(messages=()), digests, unseen)

    @property
    def size(self) -> int:
        """Bytes in memory. One unseen message may keep the whole document, since it may be a view of it."""
        return self.metadata.size if self.unseen else 0

    @property
    def archives_read(self) -> Iterator[str]:
        """Addresses of the archives read once this document is settled, newest first."""
        if self.address.archive and self.address.at is not None:
            yield self.address.at
        if self.metadata.stable and self.metadata.older is not None:
            yield self.metadata.older

    def reaches_known(self, known: Digests) -> bool:
        """Return True if the seen entries begin in this document."""
        # Entries pinned to the top of the newest document are always known, even above a long backlog. So only
        # known entries in its lower half count.
        if len(self.unseen) == len(self.digests):
            return False
        candidates = self.digests[len(self.digests) // 2 :] if self.address == TOP else self.digests
        return any(one in known for one in candidates)


class Walk:
    """One walk from a document to older ones, until it meets seen entries."""

    def __init__(
        self, known: SeenEntries, max_messages: int, start: Address = TOP, above: Sequence[Address] = ()
    ) -> None:
        self.known = known
        # Addresses of newer documents left for later, newest first. Then the documents that this walk dropped.
        self.above = list(above if len(above) <= MAX_ADDRESSES else above[::2])
        self.step = 0  # increases with each added document, and when a document must be fetched again
        self.ended = False  # True if the last added document ends the walk
        # The returned page until it is settled; None before that, or if the page need not be kept.
        self.page: Page | None = None
        self.next_walk: Walk | None = None  # follows when the page is settled
        self._interval = self._quiet_until = 0.0  # seconds before the next poll, and when they end
        self._max_messages = max_messages  # held at once
        self._start = self._next = start
        self._held: list[_HeldDocument] = []
        self._refetches = self._refetched = False  # True if the next request repeats one; if the last request did
        self._fetched_at = 0.0
        self._messages = self._size = self._documents = self._failures = 0
        self._reached_known = False
        self._missing = ""
        # Of the addresses of dropped documents, only every `_stride`-th is added.
        self._initial_above, self._stride = len(self.above), 1
        self._cycle_detector = CycleDetector()

    # On the walk to older documents. Each `now` is a time on the event loop's clock.

    @property
    def at(self) -> str | None:
        """Address of the document to fetch next; None means the newest one."""
        return self._next.at

    def prepare_next(self, step: int, now: float) -> None:
        """Choose the next document: after a pause the last one again, once, since entries may have moved."""
        # `step` may be of a lost walk. The steps of this walk must be larger.
        self.step = max(self.step, step)
        is_valid = (
            self._fetched_at <= now <= self._fetched_at + STALE_AFTER or self._refetched or self._next.archive
        )
        if self._held and not self._refetches and not is_valid:
            self._refetches, self._next, self._cycle_detector = True, self._held[-1].address, CycleDetector()
            self.step += 1

    def add_document(self, document: Document, where: str, now: float) -> None:
        """Add the fetched document, and decide if the walk ends with it."""
        held = _HeldDocument.of(self._next, document, self.known.messages)
        self._check_refetched(held, where)
        self._fetched_at = now
        self._documents += 1
        self.step += 1
        self._missing = self._missing or document.missing
        self._interval = max(self._interval, document.poll_interval or 0.0)
        self._quiet_until = max(self._quiet_until, now + (document.poll_interval or 0.0))
        self.ended = self._is_last(held) or document.older is None or document.whole
        self._held.append(held)
        self._messages, self._size = self._messages + len(held.unseen), self._size + held.size
        while len(self._held) > MIN_DOCUMENTS and (self._messages > self._max_messages or self._size > MAX_BYTES):
            self._drop()
        if not self.ended:
            self._step_to(Address(document.older, document.stable, self._next.depth + 1), where)

    def record_failure(self) -> bool:
        """Count a failed request; return True if the walk must start again at the newest document."""
        self._failures += 1
        return self._failures >= MAX_TRIES

    def _check_refetched(self, held: _HeldDocument, where: str) -> None:
        """Raise PagesChanged if a refetched document has none of its former messages."""
        # Then the entries have moved by more than a document.
        self._refetches, self._refetched = False, self._refetches
        if not self._refetched:
            self._failures = 0
        elif held.address == TOP:
            self._held, self._messages, self._size = [], 0, 0
        elif (before := self._held[-1].digests) and set(before).isdisjoint(held.digests):
            raise PagesChanged(f"{where} changed while a poll was interrupted; the poll starts again")

    def _is_last(self, held: _HeldDocument) -> bool:
        """Return True if all older documents were seen before."""
        document, reached = held.metadata, held.reaches_known(self.known.messages)
        read = document.stable and document.older is not None and self.known.has_archive(document.older)
        self._reached_known = self._reached_known or reached or read or document.whole
        return read if document.stable and document.older is not None else reached

    def _drop(self) -> None:
        """Drop the newest held document; a later walk fetches it again."""
        document = self._held.pop(0)
        self._messages, self._size = self._messages - len(document.unseen), self._size - document.size
        if document.address.depth % self._stride == 0:
            self.above.append(document.address)
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
                f"{where} has no end after {self._documents} documents: its links form a cycle, or it ignores the"
                " parameter for the next page"
            )
        if len(older.at) > MAX_CURSOR:
            raise FeedError(f"{where} links to a document whose URL has more than {MAX_CURSOR} characters")
        self._next = older

    # At the end of the walk

    @property
    def may_have_newer(self) -> bool:
        """True if the newest document was not fetched, or may have changed since."""
        return self._start != TOP or self._documents > 1

    def next_poll_delay(self, now: float) -> float | None:
        """Return the seconds until the next poll that a document asked for; None if it may start now."""
        seconds = min(self._quiet_until - now, self._interval)  # another event loop may have another clock
        return seconds if seconds > 0 else None

    @property
    def closed(self) -> bool:
        """True if the newest document, which is held, said that the feed ends."""
        return self._held[0].metadata.closed

    @property
    def gap(self) -> str:
        """Describe the messages that may be missing; "" if there are none."""
        gone = self.known.messages and not self._reached_known and self._messages
        return self._missing or (GONE if gone else "")

    def new_messages(self, order: SortKey | None = None) -> list[Message]:
        """Return the unseen messages, oldest first; a repeated message counts in its oldest document."""
        found = (pair for document in reversed(self._held) for pair in reversed(document.unseen))
        messages = list(dict(found).values())
        if order is not None and len(self._held) > 1:
            messages.sort(key=order)
        return messages

    def seen(self) -> SeenEntries:
        """Return the entries that are seen once all messages of the walk are settled."""
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
        """Return the walk that follows when this one is settled; None if there is none."""
        if not self.above:
            return None
        # The next walk reads as many documents as this one held; its last one is the newest one held here.
        highest = self._held[0].address.depth - len(self._held) + 1
        last = len(self.above) - 1
        start = next((n for n, address in enumerate(self.above) if address.depth >= highest), last)
        return Walk(seen, self._max_messages, self.above[start], self.above[:start])


MAX_WALKS = 8
"""Walks kept: one per consumer of the feed. If more consumers have a backlog, their walks keep restarting."""
