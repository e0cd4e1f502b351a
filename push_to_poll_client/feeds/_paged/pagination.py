"""The way from one page to the next: oldest first, or newest first.

`OldestFirst` is for pages that go forward: each has a cursor that may be saved, and leads to newer messages. A
chain of pages can have cursors of its own, which are valid only within the chain. Such a position is a
`PagePosition`, which names the cursor that the chain began with as well. `NewestFirst` is for pages that go back:
`NewestFirstReader` walks them and makes its own cursor.

Nothing is skipped in silence. A page that has entries, and lacks the cursor or the way on that its declaration
promises, raises `DeclarationMismatch`, which fails the poll. Two mistakes of a declaration show no error. Each can
be right as well, so the answers decide, and a page that may be cut off is followed by one more request, or named a
standstill:

- A page leads to itself. This is the end if the server sends the last entry again. But it looks the same when more
  entries have one time than fit on a page, or when the server does not heed the cursor.
- `more` reads a member that no answer has. Each page then looks like the last one. But a server may leave out a
  member that is false.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final, NamedTuple

import msgspec

from push_to_poll_client._http.origins import page_size_of
from push_to_poll_client._json import DECODE_ERRORS, decode
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._types import Cursor
from push_to_poll_client.feeds._paged.body import DeclarationMismatch, Reply, check_type, text_of
from push_to_poll_client.feeds._paged.entries import Order
from push_to_poll_client.feeds._paged.readers import (
    Condition,
    EachReader,
    EntryReader,
    InferredReader,
    Reader,
    reader,
)
from push_to_poll_client.feeds._paged.senders import A_SENDER, RequestParts, Sender, require_text, require_texts

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

_SMALL_PAGES = frozenset({20, 25, 30, 40, 50, 64, 75})
_LARGE_PAGES = frozenset({100, 128, 150, 200, 250, 256, 300, 400, 500, 512, 1000, 1024, 2000, 2500, 5000, 10000})
USUAL_PAGE_SIZES = _SMALL_PAGES | _LARGE_PAGES
"""Entries that a full page of most servers has. That 20 entries or more of one time end a feed is rare, and that
they are just as many is rarer: the mistake costs a WARNING, which `more=` ends."""

MIN_ALIKE = 2
"""Pages in a row, each as large as the one before it, that show the size of a full page."""


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


_PAGE_PREFIX: Final = "page "


class PagePosition(NamedTuple):
    """Position of a page, for which a cursor or a `Page.next` stands.

    Attributes:
        start: The cursor that its chain of pages began with; `None` is the inception.
        page: What leads to the page within the chain; `None` if it is the first.
    """

    start: Cursor | None
    page: str | None = None

    @classmethod
    def of(cls, position: Cursor | None) -> "PagePosition":
        """Read a position that `as_cursor` made; all else is a cursor of the server."""
        if position is None or not position.startswith(_PAGE_PREFIX):
            return cls(position)
        try:
            return decode(position.removeprefix(_PAGE_PREFIX), type=cls)
        except DECODE_ERRORS:
            return cls(position)

    @property
    def as_cursor(self) -> Cursor | None:
        """The position as text; for the first page, the cursor itself."""
        return self.start if self.page is None else f"{_PAGE_PREFIX}{msgspec.json.encode(self).decode()}"


class AtEnd(NamedTuple):
    """A cursor that may be saved only when the chain of pages has been read to its end."""

    read: Reader


def at_end(cursor: Condition) -> AtEnd:
    """For a cursor that every page shows, and that may be saved only when its chain is read to the end."""
    return AtEnd(reader(cursor))


class OldestFirst:
    """Pages that go forward: a cursor stands for all that came before it.

    Args:
        cursor: Reads the cursor that may be saved once the page is settled. `from_each(…)` gives each message its
            own; `at_end(…)` is for a cursor that may be saved only at the end of a chain of pages.
        send: Where the cursor is sent to ask for what comes after it.
        next: Reads the link to the next page of a chain, if that is not the cursor itself.
        send_next: Where that link is sent. The cursor that the chain began with is sent too, unless the link takes
            its place. `None` means as `send`.
        more: Whether there is a next page. `None` means: if there is a `next`; without `next`, if the page is not
            empty and its cursor has moved. A page that leads to itself is the end, unless it may have been cut
            off, as a page of 100 entries: then the feed stands still. While no response has had what `more` reads,
            a page that may have been cut off is followed by one more request.
        each: Reads the cursor of an entry, if `cursor` does not.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: Two of them contradict each other.
    """

    def __init__(
        self,
        *,
        cursor: Condition | AtEnd,
        send: Sender,
        next: Condition | None = None,
        send_next: Sender | None = None,
        more: Condition | None = None,
        each: EachReader | None = None,
    ) -> None:
        check_type("each", each, EachReader | None, "from_each(…)")
        if each is not None and isinstance(cursor, AtEnd | EachReader):
            raise ValueError("each has no meaning with a cursor that is at_end(…), or is read from_each(…) itself")
        if send_next is not None and next is None and not isinstance(cursor, AtEnd):
            raise ValueError(
                "send_next has no meaning without next: where the cursor leads on, it goes where send says"
            )
        self._at_end = isinstance(cursor, AtEnd)
        self._cursor = cursor.read if isinstance(cursor, AtEnd) else reader(cursor)
        self._send: Sender = check_type("send", send, Sender, A_SENDER)
        self._send_next: Sender = check_type("send_next", send_next or send, Sender, A_SENDER)
        self._next = None if next is None else reader(next)
        self._more = None if more is None else reader(more)
        self.forget()
        cursor_of_each = self._cursor if isinstance(self._cursor, EachReader) and not self._at_end else None
        self.each: EachReader | None = cursor_of_each or each
        if self.each is not None and self._send.goes == "url":
            raise ValueError("as_url() has no meaning with a cursor that is read from_each(…) entry")
        self.senders: list[Sender] = [self._send, self._send_next]
        reads_last = self.each is not None or (isinstance(self._cursor, EntryReader) and self._cursor.place)
        self.order: Order | None = "oldest first" if reads_last else None

    def forget(self) -> None:
        """Forget what pages have shown: a declaration may be shared, and each feed uses a copy of its own."""
        self._missing_more = MissingMore(self._more)
        self._largest_page = 0

    def put(self, asking: RequestParts, place: PagePosition) -> RequestParts:
        """The request for a page."""
        asking = self._send.put(asking, place.start)
        return asking if place.page is None else self._send_next.put(asking, place.page)

    def kept(self, cursor: Cursor | None, reply: Reply) -> Cursor | None:
        """Return the form in which a cursor of a response may be saved; as `Sender.kept`."""
        return None if cursor is None else self._send.kept(cursor, reply)

    def ends(self, latest: "Latest") -> Reader:
        """Return the reader of the cursor of the feed's end."""
        return latest.cursor or self._cursor

    def end(self, reply: Reply, latest: "Latest") -> Cursor | None:
        """The cursor of the feed's end; `None`: it is empty.

        Raises:
            DeclarationMismatch: The answer does not show it.
        """
        read = self.ends(latest)
        cursor = self.kept(text_of(read(reply)), reply)
        if cursor is None and not (isinstance(read, EntryReader) and not reply.size):
            raise DeclarationMismatch(
                f"there is no cursor of the feed's end: {_explain_missing(read, reply)}; correct latest="
            )
        return cursor

    def leads_to(self, reply: Reply, place: PagePosition) -> tuple[Cursor | None, Cursor | None]:
        """The cursor that may be saved when the page is settled, and the position of the next page.

        Raises:
            DeclarationMismatch: The page shows neither where it should.
        """
        cursor, following = self.kept(text_of(self._cursor(reply)), reply), self._find_next(reply)
        if following is None:
            self._check_end(cursor, reply, place)
            return cursor, cursor if self._may_hide_more(cursor, reply, place) else None
        self._missing_more.exists = True
        # If nothing states that there is more, the page may only repeat the entries that were asked for.
        more_is_inferred = self._more is None and self._next is None and not self._at_end
        self._largest_page = max(self._largest_page, reply.size)
        is_full = reply.size == self._largest_page and may_be_full(reply)
        if more_is_inferred and following == place.start and not is_full:
            return cursor, None
        if self._at_end or self._next is not None:
            return None if self._at_end else cursor, PagePosition(place.start, following).as_cursor
        return cursor, following

    def _may_hide_more(self, cursor: Cursor | None, reply: Reply, place: PagePosition) -> bool:
        """Return whether to ask for the next page although `more` does not announce it."""
        missing, moved = self._missing_more, cursor != place.start
        missing.page_came(place.as_cursor, reply, has_news=reply.size > 0 and moved)
        if cursor is None or not moved or not missing.may_hide(reply):
            return False
        missing.asks_for(cursor, reply)
        return True

    def _check_end(self, cursor: Cursor | None, reply: Reply, place: PagePosition) -> None:
        """Raise if the page at the end of a chain lacks the cursor that it should have."""
        if cursor is not None:
            return
        if reply.entries or (self._at_end and place.page):
            raise DeclarationMismatch(
                f"there is no cursor: {_explain_missing(self._cursor, reply)}; correct cursor="
            )
        if self._cursor.left_out(reply) and not (reply.listed or reply.ends):
            raise DeclarationMismatch(
                f"there is neither a list nor a cursor: {_explain_missing(self._cursor, reply)}; "
                "if that says that there is nothing new, tell it by not_ready(…)"
            )

    def _find_next(self, reply: Reply) -> str | None:
        """Read what leads to the next page; None if there is no next page."""
        read = self._next or self._cursor
        if not (self._more(reply) if self._more else self._next or reply.size):
            return None
        following = text_of(read(reply))
        if following is not None:
            return self._send_next.kept(following, reply)
        if self._more or (reply.entries and not self._next):
            leads = "next" if self._next else "cursor"
            remedy = "or more=" if self._more else "or say by more= when another page follows"
            raise DeclarationMismatch(
                f"there is no way on: {_explain_missing(read, reply)}; correct {leads}= {remedy}"
            )
        return None


def _explain_missing(read: Reader, reply: Reply) -> str:
    return f"{read} reads nothing in {read.seen(reply)}"


class NewestFirst:
    """Pages that go back: the newest messages come first. They are walked back to what was seen, and reversed.

    If pages are counted, as by `?page=2`, and the server removes an old message during a walk while new ones are
    published, the next page shows newer messages again. The removed one may then be handed out after those.

    Args:
        next: Reads the link to the next page, which is older. Without `more`, reading nothing is the end: with a
            wrong name the feed has one page.
        send: Where that link is sent.
        more: Whether there is an older page. `None` means: if there is a `next` and the page is not empty. While
            no response has had what `more` reads, a page that may have been cut off is followed by one more
            request.

    Attributes:
        promises: Whether the server itself says that there is an older page, so that one is there.
        supposes: Whether nothing says that there is none but a `next` that reads nothing.

    Raises:
        TypeError: An argument is of another kind.
    """

    each: Final = None
    order: Order | None = "newest first"

    def __init__(self, *, next: Condition, send: Sender, more: Condition | None = None) -> None:
        self._next = reader(next)
        self._send: Sender = check_type("send", send, Sender, A_SENDER)
        self._more = None if more is None else reader(more)
        self.forget()
        stated = next if self._more is None else self._more
        self.promises: bool = isinstance(stated, Reader) and not isinstance(stated, InferredReader | EntryReader)
        self.supposes: bool = self._more is None
        self.senders: list[Sender] = [self._send]

    def forget(self) -> None:
        """Forget what pages have shown: a declaration may be shared, and each feed uses a copy of its own."""
        self._missing_more = MissingMore(self._more)

    def put(self, asking: RequestParts, page: str | None) -> RequestParts:
        """The request for a page; `None` is the newest."""
        return self._send.put(asking, page)

    def kept(self, _cursor: Cursor | None, _reply: Reply) -> None:
        """Return None: no cursor of the server is saved, since the walk makes its own."""

    def older(self, reply: Reply, page: str | None = None) -> str | None:
        """Return the value that leads to the next page; None if there is no next page.

        Args:
            reply: This page.
            page: What led to it; `None`: it is the newest.

        Raises:
            DeclarationMismatch: There is one, and nothing leads to it.
        """
        if not (self._more(reply) if self._more else reply.size):
            return self._hidden(reply, page)
        self._missing_more.exists = True
        older = text_of(self._next(reply))
        if older is not None:
            return self._send.kept(older, reply)
        if self._more:
            raise DeclarationMismatch(
                f"there is no way on: {_explain_missing(self._next, reply)}; correct next= or more="
            )
        return None

    def _hidden(self, reply: Reply, page: str | None) -> str | None:
        """Return the link to a page that `more` does not announce; None if there is no such link."""
        missing, older = self._missing_more, None
        missing.page_came(page, reply, has_news=reply.size > 0)
        if missing.may_hide(reply):
            with suppress(Exception):  # `next` need not be there
                text = text_of(self._next(reply))
                older = None if text is None else self._send.kept(text, reply)
        if older is not None:
            missing.asks_for(older, reply)
        return older

    def is_doubtful(self, page: str | None) -> bool:
        """Return whether this page was asked for although `more` did not announce it."""
        return self._missing_more.is_doubtful(page)


class Latest:
    """Request for the cursor of the feed's end.

    Args:
        query: Added to the query of the feed's URL, as `{"since": "now"}`.
        at: Another URL to ask; `None`: the feed's own.
        cursor: Reads the cursor; `None`: it stands where it does on every page.

    Attributes:
        adds: The parameters that are added to the query of the feed's own URL.

    Raises:
        TypeError: One of them is of another kind.
    """

    def __init__(
        self,
        query: Mapping[str, str] | None = None,
        *,
        at: str | None = None,
        cursor: Condition | None = None,
    ) -> None:
        self._query = dict(require_texts("query", query or {}))
        self._at = None if at is None else require_text("at", at)
        self.adds: frozenset[str] = frozenset(self._query if at is None else ())
        self.cursor: Reader | None = None if cursor is None else reader(cursor)

    def put(self, asking: RequestParts) -> RequestParts:
        """The request for it."""
        return replace(asking, url=self._at, query={**asking.query, **self._query})
