"""Check at construction that the parts of a declaration fit together."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx
import msgspec

from push_to_poll_client._http.headers import is_header_name
from push_to_poll_client._validation import describe
from push_to_poll_client.feeds._paged.entries import Entries
from push_to_poll_client.feeds._paged.outcomes import Outcome
from push_to_poll_client.feeds._paged.pagination import Latest, NewestFirst, OldestFirst
from push_to_poll_client.feeds._paged.senders import LongPoll, RequestParts, Sender, require_text, require_texts

__all__ = [
    "check_body",
    "check_feed_options",
    "check_method",
    "check_parts",
    "check_senders",
]


def check_parts(
    *, entries: object, pages: object, outcomes: object, hold: object, latest: object, hint: object
) -> None:
    """Whether each is what it should be.

    Raises:
        TypeError: One is of another kind.
        ValueError: One has no meaning beside another.
    """
    _check_kind("entries", entries, Entries, "Entries(…)")
    _check_kind("pages", pages, OldestFirst | NewestFirst, "OldestFirst(…) or NewestFirst(…)")
    _check_kind("outcomes", outcomes, Sequence, "a list of them")
    for outcome in outcomes if isinstance(outcomes, Sequence) else ():
        _check_kind("one of the outcomes", outcome, Outcome, "one, as expired(…)")
    _check_kind("hold", hold, LongPoll | None, "LongPoll(…)")
    _check_kind("latest", latest, Latest | None, "Latest(…)")
    _check_kind("hint", hint, Sender | None, "to_query(…), to_header(…) or to_body(…)")
    if isinstance(pages, NewestFirst) and latest is not None:
        raise ValueError("latest has no meaning with NewestFirst, whose first page is the feed's end")


def check_feed_options(*, read_ahead: object, identity: object) -> None:
    """Whether what is said of the feed is what it should be.

    Raises:
        TypeError: It is of another kind, or says nothing.
    """
    _check_kind("read_ahead", read_ahead, bool, "True or False")
    if identity is not None:
        require_text("identity", identity)


def check_body(json: object, form: object) -> Mapping[str, Any] | None:
    """What the body of every request says; `None`: there is none.

    Raises:
        TypeError: It cannot be sent.
        ValueError: There are two.
    """
    if json is not None and form is not None:
        raise ValueError("both json= and form= are given; a request has one body")
    if form is not None:
        return require_texts("form", form)
    if json is not None:
        _check_kind("json", json, Mapping, "what the body says, by names")
        try:
            msgspec.json.encode(json)
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"json is none: {describe(error)}") from error
    return json  # type: ignore[return-value]  # as was looked at


def check_method(method: object) -> str | None:
    """The method of every request; `None`: as the body has it.

    Raises:
        TypeError: It is no method of HTTP.
    """
    if method is None:
        return None
    if not isinstance(method, str) or not is_header_name(method):
        raise TypeError(f"method is {method!r}; give one of HTTP")
    return method.upper()


def check_senders(
    url: str,
    pages: OldestFirst | NewestFirst,
    hold: LongPoll | None,
    latest: Latest | None,
    hint: Sender | None,
    *,
    body: Mapping[str, Any] | None,
    form: bool,
) -> None:
    """Whether all that is sent has a place to go to, which is not taken.

    Raises:
        ValueError: It has none.
    """
    besides = [*([hint] if hint else []), *([hold.sender] if hold else [])]
    for sender in besides:
        if sender.goes == "url":
            raise ValueError("as_url() leads to pages; neither hint nor hold can be sent by it")
    for sender in (*pages.senders, *besides):
        if sender.goes == "body":
            _check_body_path(sender, body, form=form)
    given = {*httpx.URL(url).params.keys()}
    for name, who in _query_parameters([*pages.senders, *besides], hold, latest):
        if name in given:
            raise ValueError(f"url has {name!r} in its query, where {who} puts it; leave it out")


def _check_body_path(sender: Sender, body: Mapping[str, Any] | None, *, form: bool) -> None:
    if body is None:
        raise ValueError(f"{sender} has no body to go to; give json={{}}, or form={{}}")
    if form and sender.name is None:
        raise ValueError(f"{sender} leads into the members of a form, which have none")
    try:
        sender.put(RequestParts(body=body), "a cursor")
    except (LookupError, TypeError) as error:
        raise ValueError(f"{sender} leads to no place in json=; a list has to have that place") from error


def _query_parameters(
    senders: Sequence[Sender], hold: LongPoll | None, latest: Latest | None
) -> Iterator[tuple[str, object]]:
    """What is added to the query of the feed's own URL, and by whom."""
    for sender in senders:
        if sender.goes == "query" and sender.name is not None:
            yield sender.name, sender
    for name in () if hold is None else hold.also:
        yield name, "hold"
    for name in () if latest is None else latest.adds:
        yield name, "latest"


def _check_kind(name: str, value: object, kind: Any, instead: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}; give {instead}")
