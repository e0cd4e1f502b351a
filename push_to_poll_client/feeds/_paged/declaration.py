"""Declaration of a `PagedFeed`. Its parts are checked to fit together when the feed is made."""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import msgspec

from push_to_poll_client._http.headers import is_header_name
from push_to_poll_client._validation import describe
from push_to_poll_client.feeds._data_decoder import DataDecoder
from push_to_poll_client.feeds._paged.body import check_type
from push_to_poll_client.feeds._paged.entries import Entries
from push_to_poll_client.feeds._paged.outcomes import Outcome
from push_to_poll_client.feeds._paged.pagination import Latest, NewestFirst, OldestFirst
from push_to_poll_client.feeds._paged.senders import (
    LongPoll,
    RequestParts,
    Sender,
    require_texts,
    to_query,
)


class Declaration(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of a `PagedFeed` that say how a server is asked, and what its responses mean.

    Raises:
        TypeError: A part has the wrong type.
        ValueError: A part has no meaning beside another, has no place in the request, or its place is taken.
    """

    url: str
    entries: Entries
    pages: OldestFirst | NewestFirst
    outcomes: Sequence[Outcome]
    long_poll: LongPoll | None
    latest: Latest | None
    hint: Sender | None
    json: Mapping[str, Any] | None
    form: Mapping[str, str] | None
    method: str | None
    headers: Mapping[str, str] | None
    read_ahead: bool
    decoder: DataDecoder[Any] | None

    @property
    def body(self) -> Mapping[str, Any] | None:
        """The body of every request; None if there is no body."""
        return self.json if self.form is None else self.form

    @property
    def asides(self) -> list[tuple[str, Sender]]:
        """What sends hint and wait, each with the argument that declares it."""
        asides = [] if self.hint is None else [("hint", self.hint)]
        if self.long_poll is not None:
            senders = (self.long_poll.sender, *map(to_query, self.long_poll.also))
            asides += [("long_poll", sender) for sender in senders]
        return asides

    def __post_init__(self) -> None:
        self._check_types()
        if isinstance(self.pages, NewestFirst) and self.latest is not None:
            raise ValueError("latest has no meaning with NewestFirst, whose first page is the feed's end")
        if self.json is not None and self.form is not None:
            raise ValueError("both json= and form= are given; a request has one body")
        for name, sender in self.asides:
            self._check_aside(name, sender)
        of_pages = [("pages", sender) for sender in self.pages.senders]
        of_latest = [("latest", to_query(name)) for name in (self.latest.adds if self.latest else ())]
        for name, sender in (*of_pages, *self.asides, *of_latest):
            self._check_place(name, sender)

    def _check_types(self) -> None:
        check_type("entries", self.entries, Entries, "Entries(…)")
        check_type("pages", self.pages, OldestFirst | NewestFirst, "OldestFirst(…) or NewestFirst(…)")
        check_type("outcomes", self.outcomes, Sequence, "a list of them")
        for outcome in self.outcomes:
            check_type("one of the outcomes", outcome, Outcome, "one, as expired(…)")
        check_type("long_poll", self.long_poll, LongPoll | None, "LongPoll(…)")
        check_type("latest", self.latest, Latest | None, "Latest(…)")
        check_type("hint", self.hint, Sender | None, "to_query(…), to_header(…) or to_body(…)")
        check_type("read_ahead", self.read_ahead, bool, "True or False")
        if self.form is not None:
            require_texts("form", self.form)
        if self.json is not None:
            check_type("json", self.json, Mapping, "what the body says, by names")
            try:
                msgspec.json.encode(self.json)
            except (TypeError, ValueError, RecursionError) as error:
                raise TypeError(f"json is none: {describe(error)}") from error
        if self.method is not None and not (isinstance(self.method, str) and is_header_name(self.method)):
            raise TypeError(f"method is {self.method!r}; give one of HTTP")

    def _check_aside(self, name: str, sender: Sender) -> None:
        """Check that what sends hint or wait neither leads to a page nor takes the place of the cursor."""
        if sender.goes == "url":
            raise ValueError("as_url() leads to pages; neither hint nor long_poll can be sent by it")
        # A hint comes from a push, which can contain anything: what is before it would never be asked for.
        if repr(sender) in map(repr, self.pages.senders):
            raise ValueError(f"{name}= is sent by {sender}, as the cursor is, and would take its place")

    def _check_place(self, name: str, sender: Sender) -> None:
        """Check that there is a place for what a sender puts into requests, and that it is not taken."""
        if sender.goes == "body":
            self._check_body_path(sender)
        if sender.goes == "query" and sender.name in httpx.URL(self.url).params:
            raise ValueError(f"url has {sender.name!r} in its query, where {name}= puts it; leave it out")
        fixed = self.headers if isinstance(self.headers, Mapping) else {}  # the client takes a function, too
        if sender.goes == "header" and sender.name in httpx.Headers(fixed):
            raise ValueError(f"headers has {sender.name!r}, which {name}= puts there; leave it out")

    def _check_body_path(self, sender: Sender) -> None:
        if self.body is None:
            raise ValueError(f"{sender} has no body to go to; give json={{}}, or form={{}}")
        if self.form is not None and sender.name is None:
            raise ValueError(f"{sender} leads into the members of a form, which have none")
        try:
            sender.put(RequestParts(body=self.body), "a cursor")
        except (LookupError, TypeError) as error:
            raise ValueError(f"{sender} leads to no place in json=; a list has to have that place") from error
