"""Declaration of a `PagedFeed`. Its parts are checked to fit together when the feed is made."""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import msgspec

from push_to_poll_client._http.headers import is_header_name
from push_to_poll_client._validation import describe
from push_to_poll_client.feeds._data_decoder import DataDecoder
from push_to_poll_client.feeds._paged.entries import Entries
from push_to_poll_client.feeds._paged.outcomes import Outcome
from push_to_poll_client.feeds._paged.pagination import Latest, NewestFirst, OldestFirst
from push_to_poll_client.feeds._paged.senders import LongPoll, RequestParts, Sender, require_texts


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
    read_ahead: bool
    decoder: DataDecoder[Any] | None

    @property
    def body(self) -> Mapping[str, Any] | None:
        """The body of every request; None if there is no body."""
        return self.json if self.form is None else self.form

    def __post_init__(self) -> None:
        self._check_types()
        if isinstance(self.pages, NewestFirst) and self.latest is not None:
            raise ValueError("latest has no meaning with NewestFirst, whose first page is the feed's end")
        if self.json is not None and self.form is not None:
            raise ValueError("both json= and form= are given; a request has one body")
        senders = [*self.pages.senders, *self._check_no_urls()]
        for sender in senders:
            if sender.goes == "body":
                self._check_body_path(sender)
        self._check_query(senders)

    def _check_types(self) -> None:
        _check_type("entries", self.entries, Entries, "Entries(…)")
        _check_type("pages", self.pages, OldestFirst | NewestFirst, "OldestFirst(…) or NewestFirst(…)")
        _check_type("outcomes", self.outcomes, Sequence, "a list of them")
        for outcome in self.outcomes:
            _check_type("one of the outcomes", outcome, Outcome, "one, as expired(…)")
        _check_type("long_poll", self.long_poll, LongPoll | None, "LongPoll(…)")
        _check_type("latest", self.latest, Latest | None, "Latest(…)")
        _check_type("hint", self.hint, Sender | None, "to_query(…), to_header(…) or to_body(…)")
        _check_type("read_ahead", self.read_ahead, bool, "True or False")
        if self.form is not None:
            require_texts("form", self.form)
        if self.json is not None:
            _check_type("json", self.json, Mapping, "what the body says, by names")
            try:
                msgspec.json.encode(self.json)
            except (TypeError, ValueError, RecursionError) as error:
                raise TypeError(f"json is none: {describe(error)}") from error
        if self.method is not None and not (isinstance(self.method, str) and is_header_name(self.method)):
            raise TypeError(f"method is {self.method!r}; give one of HTTP")

    def _check_no_urls(self) -> list[Sender]:
        """Return what sends hint and wait, which do not lead to a page."""
        senders = [*([self.hint] if self.hint else []), *([self.long_poll.sender] if self.long_poll else [])]
        if any(sender.goes == "url" for sender in senders):
            raise ValueError("as_url() leads to pages; neither hint nor long_poll can be sent by it")
        return senders

    def _check_body_path(self, sender: Sender) -> None:
        if self.body is None:
            raise ValueError(f"{sender} has no body to go to; give json={{}}, or form={{}}")
        if self.form is not None and sender.name is None:
            raise ValueError(f"{sender} leads into the members of a form, which have none")
        try:
            sender.put(RequestParts(body=self.body), "a cursor")
        except (LookupError, TypeError) as error:
            raise ValueError(f"{sender} leads to no place in json=; a list has to have that place") from error

    def _check_query(self, senders: Sequence[Sender]) -> None:
        """Check that the feed's URL has none of the parameters that are added to its query."""
        added: list[tuple[str | None, object]] = [
            *((sender.name, sender) for sender in senders if sender.goes == "query"),
            *((name, "long_poll") for name in (self.long_poll.also if self.long_poll else ())),
            *((name, "latest") for name in (self.latest.adds if self.latest else ())),
        ]
        taken = httpx.URL(self.url).params.keys()
        for name, source in added:
            if name in taken:
                raise ValueError(f"url has {name!r} in its query, where {source} puts it; leave it out")


def _check_type(name: str, value: object, expected: Any, instead: str) -> None:
    if not isinstance(value, expected):
        raise TypeError(f"{name} is a {type(value).__name__}; give {instead}")
