"""Lead from one page to the next: oldest first, or newest first.

`OldestFirst` is for pages that go forward: each has a cursor that may be saved, and leads to newer messages. A
chain of pages can have its own cursors, valid only within the chain. A `PagePosition` holds such a cursor together
with the cursor at which the chain began. `NewestFirst` is for pages that go back: `NewestFirstReader` walks them
and makes its own cursor.

A page that has entries but lacks the cursor or the link that its declaration promises raises
`DeclarationMismatch`, which fails the poll. Two mistakes in a declaration cause no error, because each can be
right. The responses decide. After a page that may have been cut off, one more request is sent, or a standstill is
reported.

- A page leads to itself. This is the end if the server repeats the last entry. But it looks the same if more
  entries have one time than fit on a page, or if the server ignores the cursor.
- `more` reads a field that no response has. Each page then looks like the last one. But a server may omit a field
  that is false.
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
"""Sizes of a full page on most servers."""
# Feeds rarely end with exactly this many entries of one time. The mistake costs a WARNING; `more=` ends it.

MIN_ALIKE = 2
"""Pages in a row, each as large as the previous one, that show the size of a full page."""


def may_be_full(reply: Reply) -> bool:
    """Return True if entries may have been cut off: the page has the URL's page size, or a usual one."""
    size = page_size_of(reply.url)
    return reply.size in USUAL_PAGE_SIZES if size is None else reply.size >= size > 0


class MissingMore:
    """Find out if the field that `more` reads exists."""

    # A server may omit it when it is false. So while no response had it, the next page is requested after a page
    # that may be full, and after a page with more entries than any known last page. If the server was right,
    # that page is empty.

    def __init__(self, read: Reader | None) -> None:
        self.exists = read is None
        self._read = read or Reader(lambda _: None, "nothing")
        self._was_named = False
        self._largest_end = 1
        self._alike = 0  # pages in a row that followed one with as many entries
        self._doubtful: tuple[str, int, bool] | None = None

    def may_hide(self, reply: Reply) -> bool:
        """Return True if another page may follow although this one does not announce it."""
        self.exists = self.exists or self._read(reply) is not None
        if self.exists or self._was_named:
            return not self.exists and reply.size > 0
        return reply.size > self._largest_end or may_be_full(reply)

    def asks_for(self, position: str, reply: Reply) -> None:
        """Note that the page at a position is requested although this page does not announce it."""
        self._doubtful = position, reply.size, may_be_full(reply)

    def is_doubtful(self, position: str | None) -> bool:
        """Return True if the page at this position was requested only to see if it exists."""
        return self._doubtful is not None and self._doubtful[0] == position

    def page_came(self, position: str | None, reply: Reply, *, has_news: bool) -> None:
        """Log a WARNING if the page at this position proves that `more` is declared wrongly."""
        if self._doubtful is None or self._doubtful[0] != position:
            return
        (_, size, full), self._doubtful = self._doubtful, None
        if not has_news:
            self._largest_end = max(self._largest_end, size)
        self._alike = self._alike + 1 if has_news and reply.size == size else 0
        # Entries may be new: two pages of 3 entries do not show that a page holds 3.
        if has_news and (full or self._alike >= MIN_ALIKE) and not self.exists and not self._was_named:
            self._was_named = True
            logger.warning(
                "%s does not match its declaration: more= (%s) found nothing in a page, but another page "
                "followed: %s; correct more=, each page costs one more request until then",
                reply.where,
                self._read,
                self._read.seen(reply),
            )


_PAGE_PREFIX: Final = "page "


class PagePosition(NamedTuple):
    """Position of a page within its chain, encoded in a cursor or a `Page.next`."""

    start: Cursor | None  # at which the chain began; None is the inception
    page: str | None = None  # leads to the page; None means the first page

    @classmethod
    def of(cls, position: Cursor | None) -> "PagePosition":
        """Decode a position made by `as_cursor`; any other text is a cursor of the server."""
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
    """Declare a cursor that every page shows, but that may be saved only at the end of its chain."""
    return AtEnd(reader(cursor))


class OldestFirst:
    """Pages that go forward: a cursor stands for all messages before it.

    Args:
        cursor: Reads the cursor that may be saved once the page is settled. With `from_each(…)` each message has
            its own cursor. Use `at_end(…)` for a cursor that may be saved only at the end of a chain of pages.
        send: Where to send the cursor, to get the messages after it.
        next: Reads the link to the next page of a chain, if it is not the cursor itself.
        send_next: Where to send that link. The cursor at which the chain began is sent too, unless the link takes
            its place. `None` means as `send`.
        more: True if there is a next page. `None` means: if `next` reads a link; without `next`, if the page is
            not empty and its cursor has moved. A page that leads to itself is the end, unless it may have been cut
            off, as a page of 100 entries: then the feed is at a standstill. While no response has the field that
            `more` reads, a page that may have been cut off is followed by one more request.
        each: Reads the cursor of an entry, if `cursor` does not.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Two arguments contradict each other.
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
            raise ValueError("remove each=: it cannot be combined with cursor=at_end(…) or cursor=from_each(…)")
        if send_next is not None and next is None and not isinstance(cursor, AtEnd):
            raise ValueError("send_next= needs next=; without it the cursor leads to the next page, sent by send=")
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
            raise ValueError("as_url() cannot send a cursor that from_each(…) reads; use to_query(…)")
        self.senders: list[Sender] = [self._send, self._send_next]
        reads_last = self.each is not None or (isinstance(self._cursor, EntryReader) and self._cursor.place)
        self.order: Order | None = "oldest first" if reads_last else None

    def forget(self) -> None:
        """Forget facts about pages: a declaration may be shared, each feed uses its own copy."""
        self._missing_more = MissingMore(self._more)
        self._largest_page = 0

    def put(self, asking: RequestParts, place: PagePosition) -> RequestParts:
        """Add the position of a page to the request."""
        asking = self._send.put(asking, place.start)
        return asking if place.page is None else self._send_next.put(asking, place.page)

    def kept(self, cursor: Cursor | None, reply: Reply) -> Cursor | None:
        """Return the form of a cursor that may be saved; as `Sender.kept`."""
        return None if cursor is None else self._send.kept(cursor, reply)

    def ends(self, latest: "Latest") -> Reader:
        """Return the reader of the cursor at the end of the feed."""
        return latest.cursor or self._cursor

    def end(self, reply: Reply, latest: "Latest") -> Cursor | None:
        """Return the cursor at the end of the feed, None if it is empty; raise if the cursor is missing."""
        read = self.ends(latest)
        cursor = self.kept(text_of(read(reply)), reply)
        if cursor is None and not (isinstance(read, EntryReader) and not reply.size):
            raise DeclarationMismatch(
                f"there is no cursor for the end of the feed: {_explain_missing(read, reply)}; correct latest="
            )
        return cursor

    def leads_to(self, reply: Reply, place: PagePosition) -> tuple[Cursor | None, Cursor | None]:
        """Return the cursor that may be saved when the page is settled, and the position of the next page.

        Raises:
            DeclarationMismatch: A declared value is missing on the page.
        """
        cursor, following = self.kept(text_of(self._cursor(reply)), reply), self._find_next(reply)
        if following is None:
            self._check_end(cursor, reply, place)
            return cursor, cursor if self._may_hide_more(cursor, reply, place) else None
        self._missing_more.exists = True
        # Without a statement that there is more, the page may only repeat entries.
        more_is_inferred = self._more is None and self._next is None and not self._at_end
        self._largest_page = max(self._largest_page, reply.size)
        is_full = reply.size == self._largest_page and may_be_full(reply)
        if more_is_inferred and following == place.start and not is_full:
            return cursor, None
        if self._at_end or self._next is not None:
            return None if self._at_end else cursor, PagePosition(place.start, following).as_cursor
        return cursor, following

    def _may_hide_more(self, cursor: Cursor | None, reply: Reply, place: PagePosition) -> bool:
        """Return True if the next page must be requested although `more` does not announce it."""
        missing, moved = self._missing_more, cursor != place.start
        missing.page_came(place.as_cursor, reply, has_news=reply.size > 0 and moved)
        if cursor is None or not moved or not missing.may_hide(reply):
            return False
        missing.asks_for(cursor, reply)
        return True

    def _check_end(self, cursor: Cursor | None, reply: Reply, place: PagePosition) -> None:
        """Raise if the page at the end of a chain lacks its cursor."""
        if cursor is not None:
            return
        if reply.entries or (self._at_end and place.page):
            raise DeclarationMismatch(
                f"there is no cursor: {_explain_missing(self._cursor, reply)}; correct cursor="
            )
        if self._cursor.left_out(reply) and not (reply.listed or reply.ends):
            raise DeclarationMismatch(
                f"there is neither a list nor a cursor: {_explain_missing(self._cursor, reply)}; "
                "if this response means that nothing is new, declare it by not_ready(…)"
            )

    def _find_next(self, reply: Reply) -> str | None:
        """Read the link or cursor of the next page; None if this is the last page."""
        read = self._next or self._cursor
        if not (self._more(reply) if self._more else self._next or reply.size):
            return None
        following = text_of(read(reply))
        if following is not None:
            return self._send_next.kept(following, reply)
        if self._more or (reply.entries and not self._next):
            leads = "next" if self._next else "cursor"
            remedy = "or more=" if self._more else "or declare more="
            raise DeclarationMismatch(
                f"there is no link to the next page: {_explain_missing(read, reply)}; correct {leads}= {remedy}"
            )
        return None


def _explain_missing(read: Reader, reply: Reply) -> str:
    return f"{read} found nothing in {read.seen(reply)}"


class NewestFirst:
    """Pages that go back, newest first. They are walked back to the seen entries, and returned oldest first.

    With counted pages, as `?page=2`, entries can be returned out of order: if the server removes an old entry
    during a walk while new ones are published, the next page shows newer entries again.

    Args:
        next: Reads the link to the next, older page. Without `more`, a page without this link is the last one:
            with a wrong name the feed seems to have one page.
        send: Where to send that link.
        more: True if there is an older page. `None` means: if `next` reads a link and the page is not empty. While
            no response has the field that `more` reads, a page that may have been cut off is followed by one more
            request.

    Attributes:
        promises: True if the server itself states that an older page exists.
        supposes: True if only a missing link marks the last page.

    Raises:
        TypeError: An argument has the wrong type.
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
        """Forget facts about pages: a declaration may be shared, each feed uses its own copy."""
        self._missing_more = MissingMore(self._more)

    def put(self, asking: RequestParts, page: str | None) -> RequestParts:
        """Add the link to a page to the request; None is the newest page."""
        return self._send.put(asking, page)

    def kept(self, _cursor: Cursor | None, _reply: Reply) -> None:
        """Return None: no cursor of the server is saved, because the walk makes its own."""

    def older(self, reply: Reply, page: str | None = None) -> str | None:
        """Return the link to the page after this one, None for the last; `page` is the link to this page.

        Raises:
            DeclarationMismatch: Another page exists, but no link leads to it.
        """
        if not (self._more(reply) if self._more else reply.size):
            return self._hidden(reply, page)
        self._missing_more.exists = True
        older = text_of(self._next(reply))
        if older is not None:
            return self._send.kept(older, reply)
        if self._more:
            raise DeclarationMismatch(
                f"there is no link to the next page: {_explain_missing(self._next, reply)}; correct next= or more="
            )
        return None

    def _hidden(self, reply: Reply, page: str | None) -> str | None:
        """Return a link that `more` does not announce; None if the page has none."""
        missing, older = self._missing_more, None
        missing.page_came(page, reply, has_news=reply.size > 0)
        if missing.may_hide(reply):
            with suppress(Exception):  # `next` may be missing
                text = text_of(self._next(reply))
                older = None if text is None else self._send.kept(text, reply)
        if older is not None:
            missing.asks_for(older, reply)
        return older

    def is_doubtful(self, page: str | None) -> bool:
        """Return True if this page was requested although `more` did not announce it."""
        return self._missing_more.is_doubtful(page)


class Latest:
    """Request for the cursor at the end of the feed.

    Args:
        query: Parameters added to the query of the URL, as `{"since": "now"}`.
        at: Another URL for this request; `None` means the feed's own.
        cursor: Reads the cursor. `None` means as on every page.

    Attributes:
        adds: Names of the parameters added to the query of the feed's own URL.

    Raises:
        TypeError: An argument has the wrong type.
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
        """Add the parameters to the request."""
        return replace(asking, url=self._at, query={**asking.query, **self._query})
