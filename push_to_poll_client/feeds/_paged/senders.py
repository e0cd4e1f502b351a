"""WHERE something goes in a request: the senders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from push_to_poll_client._http import is_header_name, is_header_value
from push_to_poll_client.feeds._paged.reply import path_of

__all__ = ["Asking", "LongPoll", "Sender", "as_url", "to_body", "to_header", "to_query"]


@dataclass(frozen=True, slots=True)
class Asking:
    """A request that is being put together.

    Attributes:
        url: Where it goes; `None`: to the feed's own URL.
        query: What is added to the URL's query.
        headers: By lower-case names.
        body: What the body says; `None`: there is no body.
    """

    url: str | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None


class Sender:
    """Puts one thing into a request.

    Args:
        put: Makes of a request another one, in which it is.
        text: What it is called in errors.
        name: Of the query parameter, if it goes there.
        otherwise: What is sent when there is nothing to be sent; `None`: nothing.
    """

    def __init__(
        self,
        put: Callable[[Asking, str], Asking],
        text: str,
        *,
        name: str | None = None,
        otherwise: str | None = None,
    ) -> None:
        self._put = put
        self._text = text
        self.name = name
        self._otherwise = otherwise

    def put(self, asking: Asking, value: str | None) -> Asking:
        """The request with the value in it."""
        value = self._otherwise if value is None else value
        return asking if value is None else self._put(asking, value)

    def __repr__(self) -> str:
        return self._text


def to_query(name: str, form: str = "{}", *, at: str | None = None, otherwise: str | None = None) -> Sender:
    """In the query of the URL, in place of a parameter of that name which an earlier part put there.

    Args:
        name: Of the parameter.
        form: What its value looks like: "{}" stands for what is sent.
        at: Another URL to ask then; `None`: the feed's own.
        otherwise: What is sent when there is nothing to be sent, as at the inception; `None`: no such parameter.
    """
    text = _text("name", name)

    def put(asking: Asking, value: str) -> Asking:
        return replace(asking, url=at or asking.url, query={**asking.query, text: _filled(form, value)})

    return Sender(put, f"to_query({name!r})", name=name, otherwise=otherwise)


def to_header(name: str, form: str = "{}", *, otherwise: str | None = None) -> Sender:
    """In a header. What no header can hold is a failed poll.

    Args:
        name: Of the header.
        form: As for `to_query`.
        otherwise: As for `to_query`.

    Raises:
        ValueError: No header has such a name.
    """
    if not is_header_name(_text("name", name)):
        raise ValueError(f"{name!r} is no name of a header")

    def put(asking: Asking, value: str) -> Asking:
        return replace(asking, headers={**asking.headers, name.lower(): _in_header(_filled(form, value), name)})

    return Sender(put, f"to_header({name!r})", otherwise=otherwise)


def to_body(
    *path: str,
    as_json: bool = False,
    at: str | None = None,
    alone: bool = False,
    otherwise: str | None = None,
) -> Sender:
    """In the body, JSON or form.

    Args:
        path: The names that lead to it.
        as_json: It is sent as the number, array or object that it was; else as a text.
        at: As for `to_query`.
        alone: The body says nothing else then.
        otherwise: As for `to_query`.
    """
    names = [_text("path", name) for name in path_of(path)]

    def put(asking: Asking, value: str) -> Asking:
        sent = msgspec.json.decode(value) if as_json else value
        body = _with({} if alone else asking.body or {}, names, sent)
        return replace(asking, url=at or asking.url, body=body)

    return Sender(put, f"to_body({', '.join(map(repr, path))})", otherwise=otherwise)


def as_url() -> Sender:
    """It is the whole URL to ask, with all that the query has to say."""
    return Sender(lambda asking, value: replace(asking, url=value, query={}), "as_url()")


@dataclass(frozen=True, slots=True)
class LongPoll:
    """How the server is asked to hold its answer until there is something new.

    Args:
        sender: Where the time goes: `to_query("timeout")`, `to_header("Prefer", "wait={}")` (RFC 7240 §4.3).
        longest: Seconds for which the server holds an answer at most.
        per_second: What a second is to the server: 1, or 1000 for milliseconds.
        also: Query parameters that go with it.
    """

    sender: Sender
    longest: float
    per_second: int = 1
    also: Mapping[str, str] = field(default_factory=dict)

    def put(self, asking: Asking, wait: float) -> Asking:
        """The request that may be held for so many seconds."""
        held = self.sender.put(asking, str(max(1, round(wait * self.per_second))))
        return replace(held, query={**held.query, **self.also})


def _with(body: Mapping[str, Any], names: list[str], value: Any) -> dict[str, Any]:
    name, *within = names
    inner = body.get(name)
    return {**body, name: _with(inner if isinstance(inner, Mapping) else {}, within, value) if within else value}


def _filled(form: str, value: str) -> str:
    return form.replace("{}", value)


def _text(what: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{what} is {value!r}; give a str that says something")
    return value


def _in_header(value: str, name: str) -> str:
    if not is_header_value(value):
        raise ValueError(f"what goes into the header {name} has characters that no header may have")
    return value
