"""Declaration of a `PagedFeed`; checks that its parts fit together."""

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
    """Checked arguments of a `PagedFeed` that describe requests and responses."""

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
        """Content of the body of every request; None for requests without a body."""
        return self.json if self.form is None else self.form

    @property
    def asides(self) -> list[tuple[str, Sender]]:
        """Senders of the hint and of the wait, each with the name of its argument."""
        asides = [] if self.hint is None else [("hint", self.hint)]
        if self.long_poll is not None:
            senders = (self.long_poll.sender, *map(to_query, self.long_poll.also))
            asides += [("long_poll", sender) for sender in senders]
        return asides

    def __post_init__(self) -> None:
        self._check_types()
        if isinstance(self.pages, NewestFirst) and self.latest is not None:
            raise ValueError("remove latest=: with NewestFirst the first page is already the end of the feed")
        if self.json is not None and self.form is not None:
            raise ValueError("pass json= or form=, not both: a request has one body")
        for name, sender in self.asides:
            self._check_aside(name, sender)
        of_pages = [("pages", sender) for sender in self.pages.senders]
        of_latest = [("latest", to_query(name)) for name in (self.latest.adds if self.latest else ())]
        for name, sender in (*of_pages, *self.asides, *of_latest):
            self._check_place(name, sender)

    def _check_types(self) -> None:
        check_type("entries", self.entries, Entries, "Entries(…)")
        check_type("pages", self.pages, OldestFirst | NewestFirst, "OldestFirst(…) or NewestFirst(…)")
        check_type("outcomes", self.outcomes, Sequence, "a list such as [expired(…)]")
        for outcome in self.outcomes:
            check_type("each of outcomes", outcome, Outcome, "an outcome such as expired(…)")
        check_type("long_poll", self.long_poll, LongPoll | None, "LongPoll(…)")
        check_type("latest", self.latest, Latest | None, "Latest(…)")
        check_type("hint", self.hint, Sender | None, "to_query(…), to_header(…) or to_body(…)")
        check_type("read_ahead", self.read_ahead, bool, "True or False")
        if self.form is not None:
            require_texts("form", self.form)
        if self.json is not None:
            check_type("json", self.json, Mapping, "a mapping of the members of the body")
            try:
                msgspec.json.encode(self.json)
            except (TypeError, ValueError, RecursionError) as error:
                raise TypeError(f"json= cannot be encoded as JSON: {describe(error)}") from error
        if self.method is not None and not (isinstance(self.method, str) and is_header_name(self.method)):
            raise TypeError(f"method must be an HTTP method such as 'POST', got {self.method!r}")

    def _check_aside(self, name: str, sender: Sender) -> None:
        """Raise if a hint or a wait would be sent as a URL, or in the place of the cursor."""
        if sender.goes == "url":
            raise ValueError(f"{name}= cannot be sent by as_url(); use to_query(…), to_header(…) or to_body(…)")
        # A push can contain anything: a hint sent as the cursor would skip the messages before it.
        if repr(sender) in map(repr, self.pages.senders):
            raise ValueError(
                f"{name}= is sent by {sender}, like the cursor, and would replace it; send it elsewhere"
            )

    def _check_place(self, name: str, sender: Sender) -> None:
        """Raise if a sender has no place in the request, or its place is taken."""
        if sender.goes == "body":
            self._check_body_path(sender)
        if sender.goes == "query" and sender.name in httpx.URL(self.url).params:
            raise ValueError(f"remove {sender.name!r} from the query of url: {name}= sends it")
        fixed = self.headers if isinstance(self.headers, Mapping) else {}  # the client accepts a function too
        if sender.goes == "header" and sender.name in httpx.Headers(fixed):
            raise ValueError(f"remove {sender.name!r} from headers: {name}= sends it")

    def _check_body_path(self, sender: Sender) -> None:
        if self.body is None:
            raise ValueError(f"{sender} needs a body; pass json={{}} or form={{}}")
        if self.form is not None and sender.name is None:
            raise ValueError(
                f"{sender} has a nested path, but a form has only single names; use one name, or json="
            )
        try:
            sender.put(RequestParts(body=self.body), "a cursor")
        except (LookupError, TypeError) as error:
            raise ValueError(
                f"{sender} does not fit json=: it leads to a list index or name that json= does not have"
            ) from error
