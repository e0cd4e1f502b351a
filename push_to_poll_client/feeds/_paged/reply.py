"""What did the server say? One answer, as the parts of a declaration see it."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias

import msgspec

from push_to_poll_client._http.headers import resolved
from push_to_poll_client._http.response import Answer, link
from push_to_poll_client._json import UNDECODABLE, Decoder
from push_to_poll_client._validation import quoted
from push_to_poll_client.feeds._json_split import split

__all__ = ["Path", "Reply", "Unfit", "elements", "members", "outline", "path_of", "text_of"]

Path: TypeAlias = str | int | tuple[str | int, ...]
"""The name of a member or the place of an element, or several, each in the one before it."""

_BOM = b"\xef\xbb\xbf"
_MEMBER = re.compile(rb'("(?:[^"\\]++|\\.)*+")\s*+:\s*+(.*)', re.DOTALL)
_MOST_SHOWN = 12

_Raw: TypeAlias = bytes | msgspec.Raw

_decode = Decoder().decode

# These leave the values as they stand, and where they cannot, `split` finds the same.
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_name = msgspec.json.Decoder(str).decode


class Unfit(Exception):
    """An answer is not what its feed was declared to give; the text says what was declared and what was seen."""


class Reply:
    """One answer.

    Args:
        answer: As it came.
        allowed: What to ask at a URL that the answer leads to; raises for one that is not to be asked.

    Attributes:
        where: Who answered, for errors, without secrets.
        status: The HTTP status.
        headers: By names in whatever case.
        url: What answered, after redirects.
        entries: The entries of the page, decoded, as far as they can be.
        size: How many entries the page has, those counted that cannot be read.
        listed: There is a list on the page, be it as `null`; of one that a function made, something in it.
        ends: It says that nothing will ever follow.
        content: The body as it came, but for a mark of its encoding.
    """

    def __init__(self, answer: Answer, allowed: Callable[[str], str] = str) -> None:
        self.where: str = answer.where
        self.status: int = answer.status
        self.headers: Mapping[str, str] = answer.headers
        self.url: str = answer.url
        self.entries: Sequence[Any] = ()
        self.size: int = 0
        self.listed: bool = True
        self.ends: bool = False
        self.content: bytes = answer.body.removeprefix(_BOM)
        self._answer = answer
        self._allowed = allowed
        self._members: dict[tuple[str | int, ...], Mapping[str, _Raw]] = {}

    @property
    def body(self) -> Any:
        """The whole body, read as JSON; `None` when it is none."""
        return _value(self.content)

    def at(self, *path: str | int) -> Any:
        """What stands at a place of the body; `None`: nothing does, or it cannot be read."""
        raw = self.raw_at(*path)
        return None if raw is None else _value(raw)

    def raw_at(self, *path: str | int) -> _Raw | None:
        """As `at`, not decoded, so that a broken part of the body spoils no other."""
        if not path:
            return self.content
        *before, last = path
        if isinstance(last, int):
            return _element(self.raw_at(*before), last)
        place = tuple(before)
        if place not in self._members:
            self._members[place] = members(self.raw_at(*before))
        return self._members[place].get(last)

    def outline(self, *path: str | int) -> str:
        """What stands where a path leads, as far as it does: for errors, without what is said there."""
        for length in range(len(path) - 1, 0, -1):
            if (raw := self.raw_at(*path[:length])) is not None:
                return f"{outline(raw)} at {' / '.join(map(repr, path[:length]))}"
        return outline(self.content)

    def link(self, rel: str) -> str | None:
        """The target of a `Link` header (RFC 8288), absolute; `None`: there is none."""
        return link(self._answer, rel)

    def leads_to(self, text: str) -> str:
        """The URL that a text in this answer leads to, absolute, without user, password and fragment.

        Raises:
            FeedError: It is of an origin that is not trusted.
            Unfit: It is no URL.
        """
        url = resolved(text, self.url)
        if url is None:
            raise Unfit("what leads on is no URL")
        return self._allowed(url)


def path_of(path: Path) -> tuple[str | int, ...]:
    """A path as a tuple.

    Raises:
        TypeError: It is none.
        ValueError: It is empty, or has an empty name in it.
    """
    steps = path if isinstance(path, tuple) else (path,)
    if not all(isinstance(step, str | int) and not isinstance(step, bool) for step in steps):
        raise TypeError(f"a path is made of names (str) and places (int), not {path!r}")
    if not steps or "" in steps:
        raise ValueError(f"a path has no empty names, and is not empty itself: {path!r}")
    return steps


def text_of(value: Any) -> str | None:
    """A value as a cursor or an id: a text or a number as it is, others as JSON; `None` for "" and nothing."""
    if isinstance(value, str):
        return value or None
    if value is None or isinstance(value, bool):
        return None
    return msgspec.json.encode(value).decode()


def elements(raw: _Raw) -> Sequence[_Raw]:
    """The elements of an array, not decoded. One that is broken spoils no other if its brackets are closed.

    Raises:
        ValueError: It is no array.
    """
    try:
        return _decode_elements(raw)
    except UNDECODABLE:
        return list(split(bytes(raw), b"[]"))


def outline(raw: _Raw) -> str:
    """What stands in a body, without what is said there: that may be secret."""
    named = [
        f"{quoted(name, 40)}: {_kind(value)}" for name, value in islice(members(raw).items(), _MOST_SHOWN + 1)
    ]
    if not named:
        return _kind(raw)
    more = ["..."] if len(named) > _MOST_SHOWN else []
    return "{" + ", ".join((*named[:_MOST_SHOWN], *more)) + "}"


def _kind(raw: _Raw) -> str:
    try:
        value = _decode(raw)
    except UNDECODABLE:
        return "no JSON"
    match value:
        case dict():
            return "object"
        case list():
            return f"array of {len(value)}"
        case "":
            return "empty string"
        case _:
            return {str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")


def _value(raw: _Raw) -> Any:
    try:
        return _decode(raw)
    except UNDECODABLE:
        return None


def members(raw: _Raw | None) -> Mapping[str, _Raw]:
    """The members of an object, not decoded, as `elements`; none of what is no object."""
    if raw is None:
        return {}
    try:
        return _decode_members(raw)
    except UNDECODABLE:
        return _members_one_by_one(bytes(raw))


def _members_one_by_one(raw: bytes) -> Mapping[str, _Raw]:
    try:
        parts = [_member(part) for part in split(raw, b"{}")]
    except UNDECODABLE:
        return {}
    return dict(parts)


def _member(part: bytes) -> tuple[str, bytes]:
    found = _MEMBER.fullmatch(part)
    if found is None:
        raise ValueError("a member has no name")
    return _decode_name(found[1]), found[2]


def _element(raw: _Raw | None, place: int) -> _Raw | None:
    if raw is None:
        return None
    try:
        return elements(raw)[place]
    except (ValueError, IndexError):
        return None
