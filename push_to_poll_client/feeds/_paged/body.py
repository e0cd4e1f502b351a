"""The body of an answer, and where its entries are."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, TypeAlias

import msgspec

from push_to_poll_client._exceptions import UndecodableMessage
from push_to_poll_client._http.headers import resolve_url
from push_to_poll_client._http.response import Response, find_link
from push_to_poll_client._json import DECODE_ERRORS, SAFE_LENGTH, Decoder, check_depth, check_page_depth
from push_to_poll_client._validation import describe, quoted
from push_to_poll_client.feeds._decoding import split_json

__all__ = [
    "LINES",
    "DeclarationMismatch",
    "DeclaredLists",
    "EntryList",
    "ListSpec",
    "Path",
    "Reply",
    "Sentinel",
    "elements",
    "members",
    "outline",
    "path_of",
    "text_of",
]


Path: TypeAlias = str | int | tuple[str | int, ...]
"""The name of a member or the place of an element, or several, each in the one before it."""

_BOM = b"\xef\xbb\xbf"
_MEMBER = re.compile(rb'("(?:[^"\\]++|\\.)*+")\s*+:\s*+(.*)', re.DOTALL)
_MAX_SHOWN = 12

_Raw: TypeAlias = bytes | msgspec.Raw

_decode = Decoder().decode

# These leave the values as they stand, and where they cannot, `split_json` finds the same.
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_name = msgspec.json.Decoder(str).decode


class DeclarationMismatch(Exception):
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

    def __init__(self, answer: Response, allowed: Callable[[str], str] = str) -> None:
        self.where: str = answer.where
        self.status: int = answer.status
        self.headers: Mapping[str, str] = answer.headers
        self.url: str = answer.url
        self.entries: Sequence[Any] = ()
        self.size: int = 0
        self.listed: bool = True
        self.ends: bool = False
        self.content: bytes = answer.body.removeprefix(_BOM)
        self._response = answer
        self._allowed = allowed
        self._members: dict[tuple[str | int, ...], Mapping[str, _Raw]] = {}

    @property
    def body(self) -> Any:
        """The whole body, read as JSON; `None` when it is none."""
        return _decode_or_none(self.content)

    def at(self, *path: str | int) -> Any:
        """What stands at a place of the body; `None`: nothing does, or it cannot be read."""
        raw = self.raw_at(*path)
        return None if raw is None else _decode_or_none(raw)

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
        return find_link(self._response, rel)

    def leads_to(self, text: str) -> str:
        """The URL that a text in this answer leads to, absolute, without user, password and fragment.

        Raises:
            FeedError: It is of an origin that is not trusted.
            Unfit: It is no URL.
        """
        url = resolve_url(text, self.url)
        if url is None:
            raise DeclarationMismatch("what leads on is no URL")
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
    except DECODE_ERRORS:
        return list(split_json(bytes(raw), b"[]"))


def outline(raw: _Raw) -> str:
    """What stands in a body, without what is said there: that may be secret."""
    named = [
        f"{quoted(name, 40)}: {_json_type(value)}" for name, value in islice(members(raw).items(), _MAX_SHOWN + 1)
    ]
    if not named:
        return _json_type(raw)
    more = ["..."] if len(named) > _MAX_SHOWN else []
    return "{" + ", ".join((*named[:_MAX_SHOWN], *more)) + "}"


def _json_type(raw: _Raw) -> str:
    try:
        value = _decode(raw)
    except DECODE_ERRORS:
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


def _decode_or_none(raw: _Raw) -> Any:
    try:
        return _decode(raw)
    except DECODE_ERRORS:
        return None


def members(raw: _Raw | None) -> Mapping[str, _Raw]:
    """The members of an object, not decoded, as `elements`; none of what is no object."""
    if raw is None:
        return {}
    try:
        return _decode_members(raw)
    except DECODE_ERRORS:
        return _members_one_by_one(bytes(raw))


def _members_one_by_one(raw: bytes) -> Mapping[str, _Raw]:
    try:
        parts = [_member(part) for part in split_json(raw, b"{}")]
    except DECODE_ERRORS:
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


class Sentinel:
    """Stands for itself in a declaration.

    Args:
        text: What it is called.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


LINES: Final = Sentinel("LINES")
"""The body is no JSON but lines of it (NDJSON): each is an entry."""

ListSpec: TypeAlias = Path | Sentinel | Callable[[Any], Any]
"""A path, `LINES`, or a function that is given the whole body and returns the list."""

_SMALL_PAGE = 20
"""Bytes for each entry that a page may have: one with fewer is read without being counted first."""

_SPACE = b" \t\r"

_decoder = msgspec.json.Decoder()
_decode_values = msgspec.json.Decoder(list).decode


class EntryList:
    """One list of a page.

    Its entries are decoded at once. Where in the text each of them stands is found out when somebody asks: for a
    dead letter, or since one of them is broken.

    Args:
        text: The list.
        decode: All entries of a text.
        cut: Where in it each entry stands.
        group: The name of the list on a page with several; else "".

    Attributes:
        entries: Decoded; in place of one that cannot be, the error.
        group: As given.
        broken: Whether one of them is an error.
        listed: It stands on the page, be it as `null`. Of one that a function made this is known when there is
            something in it.

    Raises:
        ValueError: The text is no list.
    """

    def __init__(
        self,
        text: _Raw,
        decode: Callable[[_Raw], list[Any]],
        cut: Callable[[_Raw], Sequence[_Raw]],
        group: str = "",
    ) -> None:
        self._text = text
        self._cut = cut
        self._raws: Sequence[_Raw] | None = None
        self._reversed = False
        self.group = group
        self.listed = True
        self.entries: list[Any]
        self.broken: bool = False
        try:
            self.entries = decode(text)
        except DECODE_ERRORS:
            self.entries, self.broken = list(map(_decode_entry, self._all_raws())), True

    def reverse(self) -> None:
        """Turn the order of the entries round."""
        self.entries.reverse()
        self._reversed = not self._reversed

    def raw(self, place: int) -> bytes:
        """An entry as it came; of several lists in an object, under the name of its list."""
        raw = bytes(self._all_raws()[-1 - place if self._reversed else place])
        return b"{%b:%b}" % (msgspec.json.encode(self.group), raw) if self.group else raw

    def _all_raws(self) -> Sequence[_Raw]:
        if self._raws is None:
            self._raws = self._cut(self._text)
        return self._raws


class DeclaredLists:
    """The lists of a page.

    Args:
        where: Where each is; none: the body itself is the list.
        optional: The server leaves out a list that is empty.

    Attributes:
        names: What each is called; `[""]` when there is one.

    Raises:
        TypeError: `where` is none of these.
        ValueError: A path is empty, or two lists have one name.
    """

    def __init__(self, where: Sequence[ListSpec], *, optional: bool) -> None:
        self.names: list[str] = _list_names(where)
        self._specs = [
            place if callable(place) or isinstance(place, Sentinel) else path_of(place) for place in where
        ]
        self._specs = self._specs or [()]
        self._optional = optional

    def find(self, reply: Reply, most: int) -> list[EntryList]:
        """The lists of a page, in the order of their declaration.

        Raises:
            Unfit: One is not there or is none, or there are more than `most` entries in all.
        """
        places = zip(self.names, self._specs, strict=True)
        parts = [self._part(name, reply, place, most) for name, place in places]
        _check_entry_count(sum(len(part.entries) for part in parts), most)
        return parts

    def restore(self, raw: bytes) -> EntryList:
        """A list of one entry, by what `Part.raw` gave."""
        named = members(raw) if len(self.names) > 1 else {}
        group, text = next(iter(named.items())) if len(named) == 1 else ("", raw)
        return (
            EntryList(text, _decode_single, _split_single, group)
            if group in self.names
            else EntryList(raw, _decode_single, _split_single)
        )

    def _part(self, name: str, reply: Reply, place: Any, most: int) -> EntryList:
        if place is LINES:
            return _list_from_lines(reply.content, most, name)
        if callable(place):
            made = _list_from_array(msgspec.json.encode(place(reply.body)), f"by {_list_name(place)}", most, name)
            made.listed = bool(made.entries)
            return made
        raw = reply.raw_at(*place)
        if raw is None or bytes(raw) == b"null":
            return self._missing(reply, place, name, listed=raw is not None)
        return _list_from_array(bytes(raw), _describe_location(place), most, name)

    def _missing(self, reply: Reply, place: tuple[str | int, ...], name: str, *, listed: bool) -> EntryList:
        if self._optional and outline(reply.content).startswith(("{", "object")):
            empty = _list_from_array(b"[]", "", 0, name)
            empty.listed = listed
            return empty
        raise DeclarationMismatch(f"there is no list {_describe_location(place)}, but {reply.outline(*place)}")


def _list_from_array(text: bytes, where: str, most: int, group: str) -> EntryList:
    try:
        if len(text) > _SMALL_PAGE * most and text.count(b",") >= most:  # else it cannot have as many
            _check_entry_count(sum(1 for _ in islice(split_json(text, b"[]"), most + 1)), most)
        return EntryList(text, _decode_list, elements, group)
    except ValueError:
        raise DeclarationMismatch(f"there is no list {where}, but {outline(text)}") from None


def _list_from_lines(text: bytes, most: int, group: str) -> EntryList:
    _check_entry_count(text.count(b"\n"), most)
    part = EntryList(text, _decode_lines, _split_lines, group)
    if part.broken and isinstance(part.entries[-1], UndecodableMessage) and not text.endswith(b"\n"):
        raise DeclarationMismatch(f"the body is no lines of JSON, or ends in the middle of one: {outline(text)}")
    return part


def _decode_list(text: _Raw) -> list[Any]:
    check_page_depth(bytes(text))
    return _decode_values(text)


def _decode_lines(text: _Raw) -> list[Any]:
    lines = _split_lines(text)
    if max(map(len, lines), default=0) > SAFE_LENGTH:
        for line in lines:
            check_depth(line)
    return list(map(_decoder.decode, lines))  # decode_lines() lets a value go on in the next line


def _split_lines(text: _Raw) -> list[bytes]:
    return [line for line in bytes(text).split(b"\n") if line.strip(_SPACE)]


def _decode_single(text: _Raw) -> list[Any]:
    check_depth(text)
    return [_decoder.decode(text)]


def _split_single(text: _Raw) -> list[_Raw]:
    return [text]


def _decode_entry(raw: _Raw) -> Any:
    try:
        check_depth(raw)
        return _decoder.decode(raw)
    except DECODE_ERRORS as error:
        return UndecodableMessage(f"an entry is no JSON: {describe(error)}")


def _check_entry_count(number: int, most: int) -> None:
    if number > most:
        raise DeclarationMismatch(
            f"a page has more than {most} entries; ask for smaller pages, or raise max_body= if that is right"
        )


def _describe_location(place: tuple[str | int, ...]) -> str:
    return f"at {' / '.join(map(repr, place))}" if place else "of entries"


def _list_names(where: Sequence[ListSpec]) -> list[str]:
    """The last of a list's path, or all of it where lists would have one name."""
    for name in (lambda path: path[-1:], lambda path: path):
        names = [_list_name(place, name) for place in where] if len(where) > 1 else [""]
        if len({*names}) == len(names):
            return names
    raise ValueError(f"two lists have one name: {', '.join(names)}")


def _list_name(
    place: ListSpec, part: Callable[[tuple[str | int, ...]], tuple[str | int, ...]] = lambda path: path
) -> str:
    if isinstance(place, Sentinel) or callable(place):
        return getattr(place, "__name__", repr(place))
    return ".".join(map(str, part(path_of(place))))
