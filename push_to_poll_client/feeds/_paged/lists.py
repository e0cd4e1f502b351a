"""WHERE THE ENTRIES ARE in a body: one list, several, or its lines."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final, TypeAlias

import msgspec

from push_to_poll_client._exceptions import UndecodableMessage
from push_to_poll_client._json import SHORT, UNDECODABLE, check_depth, check_page_depth
from push_to_poll_client._validation import describe
from push_to_poll_client.feeds._json_split import split
from push_to_poll_client.feeds._paged.reply import Path, Reply, Unfit, elements, members, outline, path_of

__all__ = ["LINES", "Lists", "Part", "Where", "Word"]


class Word:
    """Stands for itself in a declaration.

    Args:
        text: What it is called.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


LINES: Final = Word("LINES")
"""The body is no JSON but lines of it (NDJSON): each is an entry."""

Where: TypeAlias = Path | Word | Callable[[Any], Any]
"""A path, `LINES`, or a function that is given the whole body and returns the list."""

_Raw: TypeAlias = bytes | msgspec.Raw

_SMALL_PAGE = 20
"""Bytes for each entry that a page may have: one with fewer is read without being counted first."""

_SPACE = b" \t\r"

_decoder = msgspec.json.Decoder()
_decode_elements = msgspec.json.Decoder(list).decode


class Part:
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
        except UNDECODABLE:
            self.entries, self.broken = list(map(_decoded, self._all_raws())), True

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


class Lists:
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

    def __init__(self, where: Sequence[Where], *, optional: bool) -> None:
        self.names: list[str] = _names(where)
        self._places = [place if callable(place) or isinstance(place, Word) else path_of(place) for place in where]
        self._places = self._places or [()]
        self._optional = optional

    def find(self, reply: Reply, most: int) -> list[Part]:
        """The lists of a page, in the order of their declaration.

        Raises:
            Unfit: One is not there or is none, or there are more than `most` entries in all.
        """
        places = zip(self.names, self._places, strict=True)
        parts = [self._part(name, reply, place, most) for name, place in places]
        _check_number(sum(len(part.entries) for part in parts), most)
        return parts

    def restored(self, raw: bytes) -> Part:
        """A list of one entry, by what `Part.raw` gave."""
        named = members(raw) if len(self.names) > 1 else {}
        group, text = next(iter(named.items())) if len(named) == 1 else ("", raw)
        return (
            Part(text, _decode_alone, _alone, group) if group in self.names else Part(raw, _decode_alone, _alone)
        )

    def _part(self, name: str, reply: Reply, place: Any, most: int) -> Part:
        if place is LINES:
            return _of_lines(reply.content, most, name)
        if callable(place):
            made = _of_array(msgspec.json.encode(place(reply.body)), f"by {_name(place)}", most, name)
            made.listed = bool(made.entries)
            return made
        raw = reply.raw_at(*place)
        if raw is None or bytes(raw) == b"null":
            return self._missing(reply, place, name, listed=raw is not None)
        return _of_array(bytes(raw), _at(place), most, name)

    def _missing(self, reply: Reply, place: tuple[str | int, ...], name: str, *, listed: bool) -> Part:
        if self._optional and outline(reply.content).startswith(("{", "object")):
            empty = _of_array(b"[]", "", 0, name)
            empty.listed = listed
            return empty
        raise Unfit(f"there is no list {_at(place)}, but {reply.outline(*place)}")


def _of_array(text: bytes, where: str, most: int, group: str) -> Part:
    try:
        if len(text) > _SMALL_PAGE * most and text.count(b",") >= most:  # else it cannot have as many
            _check_number(sum(1 for _ in islice(split(text, b"[]"), most + 1)), most)
        return Part(text, _decode_list, elements, group)
    except ValueError:
        raise Unfit(f"there is no list {where}, but {outline(text)}") from None


def _of_lines(text: bytes, most: int, group: str) -> Part:
    _check_number(text.count(b"\n"), most)
    part = Part(text, _decode_lines, _lines, group)
    if part.broken and isinstance(part.entries[-1], UndecodableMessage) and not text.endswith(b"\n"):
        raise Unfit(f"the body is no lines of JSON, or ends in the middle of one: {outline(text)}")
    return part


def _decode_list(text: _Raw) -> list[Any]:
    check_page_depth(bytes(text))
    return _decode_elements(text)


def _decode_lines(text: _Raw) -> list[Any]:
    lines = _lines(text)
    if max(map(len, lines), default=0) > SHORT:
        for line in lines:
            check_depth(line)
    return list(map(_decoder.decode, lines))  # decode_lines() lets a value go on in the next line


def _lines(text: _Raw) -> list[bytes]:
    return [line for line in bytes(text).split(b"\n") if line.strip(_SPACE)]


def _decode_alone(text: _Raw) -> list[Any]:
    check_depth(text)
    return [_decoder.decode(text)]


def _alone(text: _Raw) -> list[_Raw]:
    return [text]


def _decoded(raw: _Raw) -> Any:
    try:
        check_depth(raw)
        return _decoder.decode(raw)
    except UNDECODABLE as error:
        return UndecodableMessage(f"an entry is no JSON: {describe(error)}")


def _check_number(number: int, most: int) -> None:
    if number > most:
        raise Unfit(
            f"a page has more than {most} entries; ask for smaller pages, or raise max_body= if that is right"
        )


def _at(place: tuple[str | int, ...]) -> str:
    return f"at {' / '.join(map(repr, place))}" if place else "of entries"


def _names(where: Sequence[Where]) -> list[str]:
    """The last of a list's path, or all of it where lists would have one name."""
    for name in (lambda path: path[-1:], lambda path: path):
        names = [_name(place, name) for place in where] if len(where) > 1 else [""]
        if len({*names}) == len(names):
            return names
    raise ValueError(f"two lists have one name: {', '.join(names)}")


def _name(place: Where, part: Callable[[tuple[str | int, ...]], tuple[str | int, ...]] = lambda path: path) -> str:
    if isinstance(place, Word) or callable(place):
        return getattr(place, "__name__", repr(place))
    return ".".join(map(str, part(path_of(place))))
