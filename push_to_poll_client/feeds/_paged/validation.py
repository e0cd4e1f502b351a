"""Check when a `PagedFeed` is made that the parts of its declaration fit together."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx
import msgspec

from push_to_poll_client._http.headers import is_header_name
from push_to_poll_client._validation import describe
from push_to_poll_client.feeds._paged.entries import Entries
from push_to_poll_client.feeds._paged.outcomes import Outcome
from push_to_poll_client.feeds._paged.pagination import Latest, NewestFirst, OldestFirst
from push_to_poll_client.feeds._paged.senders import LongPoll, RequestParts, Sender, require_texts


def check_parts(
    *, entries: object, pages: object, outcomes: object, long_poll: object, latest: object, hint: object
) -> None:
    """Check the type of each part of a declaration.

    Raises:
        TypeError: A part has another type.
        ValueError: A part has no meaning beside another.
    """
    _check_type("entries", entries, Entries, "Entries(…)")
    _check_type("pages", pages, OldestFirst | NewestFirst, "OldestFirst(…) or NewestFirst(…)")
    _check_type("outcomes", outcomes, Sequence, "a list of them")
    for outcome in outcomes if isinstance(outcomes, Sequence) else ():
        _check_type("one of the outcomes", outcome, Outcome, "one, as expired(…)")
    _check_type("long_poll", long_poll, LongPoll | None, "LongPoll(…)")
    _check_type("latest", latest, Latest | None, "Latest(…)")
    _check_type("hint", hint, Sender | None, "to_query(…), to_header(…) or to_body(…)")
    if isinstance(pages, NewestFirst) and latest is not None:
        raise ValueError("latest has no meaning with NewestFirst, whose first page is the feed's end")


def check_read_ahead(read_ahead: object) -> None:
    """Check whether the feed may be read ahead.

    Raises:
        TypeError: It is not a `bool`.
    """
    _check_type("read_ahead", read_ahead, bool, "True or False")


def check_body(json: object, form: object) -> Mapping[str, Any] | None:
    """Return the body of every request; None if there is no body.

    Raises:
        TypeError: It cannot be sent.
        ValueError: There are two.
    """
    if json is not None and form is not None:
        raise ValueError("both json= and form= are given; a request has one body")
    if form is not None:
        return require_texts("form", form)
    if json is not None:
        _check_type("json", json, Mapping, "what the body says, by names")
        try:
            msgspec.json.encode(json)
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"json is none: {describe(error)}") from error
    return json  # type: ignore[return-value]  # checked above


def check_method(method: object) -> str | None:
    """Return the method of every request; None if it depends on whether there is a body.

    Raises:
        TypeError: It is not a method of HTTP.
    """
    if method is None:
        return None
    if not isinstance(method, str) or not is_header_name(method):
        raise TypeError(f"method is {method!r}; give one of HTTP")
    return method.upper()


def check_senders(
    url: str,
    pages: OldestFirst | NewestFirst,
    long_poll: LongPoll | None,
    latest: Latest | None,
    hint: Sender | None,
    *,
    body: Mapping[str, Any] | None,
    form: bool,
) -> None:
    """Check that everything that is sent has a place in the request, and that no two use the same place.

    Raises:
        ValueError: Something has no place, or its place is taken.
    """
    others = [*([hint] if hint else []), *([long_poll.sender] if long_poll else [])]
    for sender in others:
        if sender.goes == "url":
            raise ValueError("as_url() leads to pages; neither hint nor long_poll can be sent by it")
    for sender in (*pages.senders, *others):
        if sender.goes == "body":
            _check_body_path(sender, body, form=form)
    names_in_url = {*httpx.URL(url).params.keys()}
    for name, source in _query_parameters([*pages.senders, *others], long_poll, latest):
        if name in names_in_url:
            raise ValueError(f"url has {name!r} in its query, where {source} puts it; leave it out")


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
    senders: Sequence[Sender], long_poll: LongPoll | None, latest: Latest | None
) -> Iterator[tuple[str, object]]:
    """Yield the parameters that are added to the query of the feed's own URL, and what adds each."""
    for sender in senders:
        if sender.goes == "query" and sender.name is not None:
            yield sender.name, sender
    for name in () if long_poll is None else long_poll.also:
        yield name, "long_poll"
    for name in () if latest is None else latest.adds:
        yield name, "latest"


def _check_type(name: str, value: object, expected: Any, instead: str) -> None:
    if not isinstance(value, expected):
        raise TypeError(f"{name} is a {type(value).__name__}; give {instead}")
