"""Senders: put a cursor, a hint or a wait into a request.

A request is built from immutable `RequestParts`: each sender returns a copy with its value added.
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
    """Parts of a request that is being built."""

    url: str | None = None  # None for the feed's own URL
    query: Mapping[str, str] = field(default_factory=dict)  # added to the query of the URL
    headers: Mapping[str, str] = field(default_factory=dict)  # by lower-case names
    body: Mapping[str, Any] | None = None

    def __repr__(self) -> str:  # the values may be secret
        names = f"query={[*self.query]}, headers={[*self.headers]}, body={[*(self.body or ())]}"
        return f"{type(self).__name__}({names})"


class Sender:
    """Puts one value into a request.

    Args:
        put: Returns a copy of the request with the value in it.
        text: Name in errors.
        goes: Part of the request that gets the value.
        name: Name of the query parameter, header or body member, at the feed's own URL.
        otherwise: Sent without a value; `None` sends nothing then.

    Raises:
        TypeError: `otherwise` is not a string, or is empty.
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
        """Return the request with the value added.

        Raises:
            ValueError: The value cannot be sent there.
        """
        value = self._otherwise if value is None else value
        if value is None:
            return asking
        value.encode()  # raises for a lone surrogate
        return self._put(asking, value)

    def kept(self, value: str, reply: Reply) -> str:
        """Return the form in which a value of a response is saved in a cursor.

        Raises:
            FeedError: It is a URL of an untrusted origin.
            DeclarationMismatch: It is not a URL, but should be.
        """
        return reply.leads_to(value) if self.goes == "url" else value

    def is_lost(self, asked: str, answered: str) -> bool:
        """Return True if a redirect from `asked` to `answered` dropped a parameter that is always sent."""
        if self._otherwise is None or self.goes != "query" or self.name is None:
            return False
        return self.name in httpx.URL(asked).params and self.name not in httpx.URL(answered).params

    def __repr__(self) -> str:
        return self._text


A_SENDER = "to_query(…), to_header(…), to_body(…) or as_url()"


def to_query(name: str, form: str = "{}", *, at: str | None = None, otherwise: str | None = None) -> Sender:
    """Send a value in the query of the URL, in place of any earlier parameter of that name.

    Args:
        name: Name of the parameter.
        form: Format of its value; "{}" is replaced by the value.
        at: Another URL for requests with this value, absolute or relative to the feed's URL. `None` means the
            feed's.
        otherwise: Sent without a value, as at the inception. `None` omits the parameter. If it is set for a
            cursor, a response after a redirect that dropped the parameter is a failed poll.

    Raises:
        TypeError: An argument is not a string, or is empty.
        ValueError: `form` has no "{}".
    """
    text = require_text("name", name)
    _check_form_and_at(form, at)

    def put(asking: RequestParts, value: str) -> RequestParts:
        return replace(asking, url=at or asking.url, query={**asking.query, text: form.replace("{}", value)})

    name_at_feed = None if at else name
    return Sender(put, f"to_query({name!r})", goes="query", name=name_at_feed, otherwise=otherwise)


def to_header(name: str, form: str = "{}", *, otherwise: str | None = None) -> Sender:
    """Send a value in a header. The poll fails if the header cannot hold the cursor.

    Args:
        name: Name of the header.
        form: As for `to_query`.
        otherwise: As for `to_query`.

    Raises:
        TypeError: As for `to_query`.
        ValueError: The name is not a valid header name, or `form` has no "{}".
    """
    if not is_header_name(require_text("name", name)):
        raise ValueError(f"name must be a valid header name such as 'X-Cursor', got {name!r}")
    _check_form_and_at(form)

    def put(asking: RequestParts, value: str) -> RequestParts:
        text = form.replace("{}", value)
        if not is_header_value(text):
            raise ValueError(f"the value for the header {name} has characters that are not allowed in a header")
        return replace(asking, headers={**asking.headers, name.lower(): text})

    return Sender(put, f"to_header({name!r})", goes="header", name=name, otherwise=otherwise)


def to_body(
    *path: str | int,
    as_json: bool = False,
    at: str | None = None,
    alone: bool = False,
    otherwise: str | None = None,
) -> Sender:
    """Send a value in the body, JSON or form.

    Args:
        path: Names that lead to the value; a number is an index in a list that the body already has.
        as_json: True to send a number, array or object as such; other values are sent as strings.
        at: As for `to_query`.
        alone: True to send the value without the other members of the body.
        otherwise: As for `to_query`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The path is empty.
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
    """Use the value as the whole URL of the request, query included; it may be relative to the last response."""

    def put(asking: RequestParts, value: str) -> RequestParts:
        if not value.startswith(("https://", "http://")):
            raise ValueError("it is not a URL")
        return replace(asking, url=value, query={})

    return Sender(put, "as_url()", goes="url")


@dataclass(frozen=True, slots=True)
class LongPoll:
    """Ask the server to hold its response until there is a new message.

    A poll that must be answered at once sends no wait. If the server waits by default, use `otherwise` to turn
    that off: `to_query("timeout", otherwise="0")`. That value is sent unchanged, whatever `per_second` is, with
    every request that does not wait.

    Args:
        sender: Where to send the time: `to_query("timeout")`, `to_header("Prefer", "wait={}")` (RFC 7240 §4.3).
        longest: Longest time in seconds that the server holds a response.
        per_second: Units per second: 1 for seconds, 1000 for milliseconds.
        also: Query parameters sent with a wait, and not without one.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number is not above 0, or is infinite.
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
        """Add a wait in seconds to the request; with 0, ask for a response at once."""
        if wait <= 0:
            return self.sender.put(asking, None)
        held = self.sender.put(asking, str(max(1, round(wait * self.per_second))))
        return replace(held, query={**held.query, **self.also})


def require_text(name: str, value: object) -> str:
    """Return an argument that must be a non-empty string; raise TypeError otherwise."""
    if not isinstance(value, str) or not value:
        raise TypeError(f"{name} must be a non-empty str, got {value!r}")
    return value


def require_texts(name: str, values: object) -> Mapping[str, str]:
    """Return an argument that must be a mapping of strings; raise TypeError otherwise."""
    texts = isinstance(values, Mapping) and all(isinstance(text, str) for text in (*values, *values.values()))
    if not isinstance(values, Mapping) or not texts:
        raise TypeError(f"{name} must be a mapping of str to str")
    return values


def _check_form_and_at(form: object = "{}", at: object = None) -> None:
    if "{}" not in require_text("form", form):
        raise ValueError(f'form must contain "{{}}" for the value, got {form!r}')
    if at is not None:
        require_text("at", at)


def _set_at_path(body: Any, steps: tuple[str | int, ...], value: Any) -> Any:
    """Return the body with a value set at a path. Missing names are added; list indices must exist."""
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
