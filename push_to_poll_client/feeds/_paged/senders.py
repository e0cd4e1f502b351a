"""Senders: put a cursor, a hint or a wait into a request.

A request is built from `RequestParts`, which are never changed: each sender returns a copy with its value in it.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import httpx

from push_to_poll_client._http.headers import is_header_name, is_header_value
from push_to_poll_client._json import DECODE_ERRORS, decode
from push_to_poll_client._validation import check_number
from push_to_poll_client.feeds._paged.body import Reply, check_type, path_of

Destination: TypeAlias = Literal["query", "header", "body", "url"]


@dataclass(frozen=True, slots=True)
class RequestParts:
    """The parts of a request that is being built.

    Attributes:
        url: Where it goes; `None` for the feed's own URL.
        query: Parameters that are added to the query of the URL.
        headers: By lower-case names.
        body: The content of the body; `None` if there is no body.
    """

    url: str | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None

    def __repr__(self) -> str:  # the values may be secret
        names = f"query={[*self.query]}, headers={[*self.headers]}, body={[*(self.body or ())]}"
        return f"{type(self).__name__}({names})"


class Sender:
    """Puts one thing into a request.

    Args:
        put: Makes of a request another one, in which it is.
        text: What it is called in errors.
        goes: Where it goes.
        name: Of the query parameter, header or member of the body that it becomes, at the feed's own URL.
        otherwise: What is sent when there is nothing to be sent; `None`: nothing.

    Attributes:
        goes: As given.
        name: As given.

    Raises:
        TypeError: `otherwise` is no text.
    """

    def __init__(
        self,
        put: Callable[[RequestParts, str], RequestParts],
        text: str,
        *,
        goes: Destination,
        name: str | None = None,
        otherwise: str | None = None,
    ) -> None:
        self._put = put
        self._text = text
        self.goes: Destination = goes
        self.name = name
        self._otherwise = None if otherwise is None else require_text("otherwise", otherwise)

    def put(self, asking: RequestParts, value: str | None) -> RequestParts:
        """The request with the value in it.

        Raises:
            ValueError: The value cannot stand there.
        """
        value = self._otherwise if value is None else value
        if value is None:
            return asking
        value.encode()  # raises for a lone surrogate
        return self._put(asking, value)

    def kept(self, value: str, reply: Reply) -> str:
        """Return the form in which a value of a response is kept in a cursor.

        Raises:
            FeedError: It is a URL that is not to be asked.
            DeclarationMismatch: It should be a URL, and is none.
        """
        return reply.leads_to(value) if self.goes == "url" else value

    def is_lost(self, asked: str, answered: str) -> bool:
        """Return True if a redirect dropped a parameter that is always sent.

        Args:
            asked: The URL that was asked.
            answered: The one that answered.
        """
        if self._otherwise is None or self.goes != "query" or self.name is None:
            return False
        return self.name in httpx.URL(asked).params and self.name not in httpx.URL(answered).params

    def __repr__(self) -> str:
        return self._text


A_SENDER = "to_query(…), to_header(…), to_body(…) or as_url()"


def to_query(name: str, form: str = "{}", *, at: str | None = None, otherwise: str | None = None) -> Sender:
    """In the query of the URL, in place of a parameter of that name which an earlier part put there.

    Args:
        name: Of the parameter.
        form: What its value looks like: "{}" stands for what is sent.
        at: Another URL to ask then, which may be relative to the feed's own; `None`: that.
        otherwise: What is sent when there is nothing to be sent, as at the inception; `None`: no such parameter.
            With it, an answer by way of a redirect that dropped the parameter of a cursor is a failed poll.

    Raises:
        TypeError: One of them is no `str`, or empty.
        ValueError: The form has no "{}".
    """
    text = require_text("name", name)
    _check_form_and_at(form, at)

    def put(asking: RequestParts, value: str) -> RequestParts:
        return replace(asking, url=at or asking.url, query={**asking.query, text: form.replace("{}", value)})

    name_at_feed = None if at else name
    return Sender(put, f"to_query({name!r})", goes="query", name=name_at_feed, otherwise=otherwise)


def to_header(name: str, form: str = "{}", *, otherwise: str | None = None) -> Sender:
    """In a header. A cursor that no header can hold is a failed poll.

    Args:
        name: Of the header.
        form: As for `to_query`.
        otherwise: As for `to_query`.

    Raises:
        TypeError: As for `to_query`.
        ValueError: No header has such a name, or the form has no "{}".
    """
    if not is_header_name(require_text("name", name)):
        raise ValueError(f"{name!r} is no name of a header")
    _check_form_and_at(form)

    def put(asking: RequestParts, value: str) -> RequestParts:
        text = form.replace("{}", value)
        if not is_header_value(text):
            raise ValueError(f"what goes into the header {name} has characters that no header may have")
        return replace(asking, headers={**asking.headers, name.lower(): text})

    return Sender(put, f"to_header({name!r})", goes="header", name=name, otherwise=otherwise)


def to_body(
    *path: str | int,
    as_json: bool = False,
    at: str | None = None,
    alone: bool = False,
    otherwise: str | None = None,
) -> Sender:
    """In the body, JSON or form.

    Args:
        path: The names that lead to it; a number is a place in a list that the body has.
        as_json: It is sent as the number, array or object that it was, if it was one; else as a text.
        at: As for `to_query`.
        alone: The body says nothing else then.
        otherwise: As for `to_query`.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: There is no path.
    """
    steps = path_of(path)
    _check_form_and_at(at=at)

    def put(asking: RequestParts, value: str) -> RequestParts:
        sent: Any = value
        if as_json:
            with suppress(*DECODE_ERRORS):
                sent = decode(value)
        body = _set_at_path({} if alone else asking.body or {}, steps, sent)
        return replace(asking, url=at or asking.url, body=body)

    text = f"to_body({', '.join(map(repr, steps))})"
    name = steps[0] if len(steps) == 1 and isinstance(steps[0], str) else None
    return Sender(put, text, goes="body", name=name, otherwise=otherwise)


def as_url() -> Sender:
    """It is the whole URL to ask, with all that the query has to say; relative to what answered, if it is."""

    def put(asking: RequestParts, value: str) -> RequestParts:
        if not value.startswith(("https://", "http://")):
            raise ValueError("it is no URL")
        return replace(asking, url=value, query={})

    return Sender(put, "as_url()", goes="url")


@dataclass(frozen=True, slots=True)
class LongPoll:
    """Request to hold the response until there is something new.

    A poll that must be answered at once asks for no wait. If the server holds an answer by default, name by
    `otherwise` what asks it not to: `to_query("timeout", otherwise="0")`. That is sent as it is, whatever
    `per_second` is, with every request that does not wait.

    Args:
        sender: Where the time goes: `to_query("timeout")`, `to_header("Prefer", "wait={}")` (RFC 7240 §4.3).
        longest: Seconds for which the server holds an answer at most.
        per_second: What a second is to the server: 1, or 1000 for milliseconds.
        also: Query parameters that go with a wait, and not with a request that does not wait.

    Raises:
        TypeError: One of them is of another kind.
        ValueError: A number is not above 0, or infinite.
    """

    sender: Sender
    longest: float
    per_second: float = 1
    also: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_type("sender", self.sender, Sender, A_SENDER)
        check_number("longest", self.longest, above_zero=True)
        check_number("per_second", self.per_second, above_zero=True)
        require_texts("also", self.also)

    def put(self, asking: RequestParts, wait: float) -> RequestParts:
        """The request that may be held for so many seconds; with 0, the one that must be answered at once."""
        if wait <= 0:
            return self.sender.put(asking, None)
        held = self.sender.put(asking, str(max(1, round(wait * self.per_second))))
        return replace(held, query={**held.query, **self.also})


def require_text(name: str, value: object) -> str:
    """Return an argument that must be a string.

    Raises:
        TypeError: It is not a string, or is empty.
    """
    if not isinstance(value, str) or not value:
        raise TypeError(f"{name} is {value!r}; give a str that says something")
    return value


def require_texts(name: str, values: object) -> Mapping[str, str]:
    """Return an argument that must be a mapping of strings.

    Raises:
        TypeError: It is not.
    """
    texts = isinstance(values, Mapping) and all(isinstance(text, str) for text in (*values, *values.values()))
    if not isinstance(values, Mapping) or not texts:
        raise TypeError(f"{name} is no mapping of str to str")
    return values


def _check_form_and_at(form: object = "{}", at: object = None) -> None:
    if "{}" not in require_text("form", form):
        raise ValueError(f'form is {form!r}, which has no "{{}}" for what is sent')
    if at is not None:
        require_text("at", at)


def _set_at_path(body: Any, steps: tuple[str | int, ...], value: Any) -> Any:
    """Return the body with a value at the end of a path. Missing names are added, places in lists must exist."""
    step, *rest = steps
    changed: Any
    if isinstance(step, int):
        changed = list(body)
        inner = changed[step]
    else:
        changed = dict(body) if isinstance(body, Mapping) else {}
        inner = changed.get(step)
    changed[step] = _set_at_path(inner, tuple(rest), value) if rest else value
    return changed
