"""WHERE THE ENTRIES ARE in a body: one list, several, or its lines."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from push_to_poll_client.feeds._json_split import split
from push_to_poll_client.feeds._paged.reply import Path, Reply, Unfit, elements, outline, path_of

__all__ = ["LINES", "Found", "Lists", "Where", "Word"]


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


class Found(NamedTuple):
    """An entry before it is read, and the name of its list if there are several; else ""."""

    group: str
    raw: bytes | msgspec.Raw


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
        self.names: list[str] = [_name(place) for place in where] if len(where) > 1 else [""]
        if len({*self.names}) < len(self.names):
            raise ValueError(f"two lists have one name: {', '.join(self.names)}")
        self._places = [place if callable(place) or isinstance(place, Word) else path_of(place) for place in where]
        self._places = self._places or [()]
        self._optional = optional

    def find(self, reply: Reply, most: int) -> list[Found]:
        """The entries of a page.

        Raises:
            Unfit: A list is not there or is none, or there are more than `most` entries.
        """
        found: list[Found] = []
        for name, place in zip(self.names, self._places, strict=True):
            found += [Found(name, raw) for raw in self._list(reply, place, most)]
        _check_number(len(found), most)
        return found

    def _list(self, reply: Reply, place: Any, most: int) -> Sequence[bytes | msgspec.Raw]:
        if place is LINES:
            _check_number(reply.content.count(b"\n"), most)
            return [line for line in reply.content.split(b"\n") if line.strip()]
        if callable(place):
            return [msgspec.json.encode(value) for value in place(reply.body)]
        raw = reply.raw_at(*place)
        if raw is None or bytes(raw) == b"null":
            return self._missing(reply, place)
        return _elements(bytes(raw), place, most)

    def _missing(self, reply: Reply, place: tuple[str | int, ...]) -> Sequence[bytes]:
        if self._optional and outline(reply.content).startswith("{"):
            return []
        raise Unfit(f"there is no list {_at(place)}, but {outline(reply.content)}")


def _elements(raw: bytes, place: tuple[str | int, ...], most: int) -> Sequence[bytes | msgspec.Raw]:
    try:
        if raw.count(b",") >= most:  # else it cannot have as many
            _check_number(sum(1 for _ in islice(split(raw, b"[]"), most + 1)), most)
        return elements(raw)
    except ValueError:
        raise Unfit(f"there is no list {_at(place)}, but {outline(raw)}") from None


def _check_number(number: int, most: int) -> None:
    if number > most:
        raise Unfit(
            f"a page has more than {most} entries; ask for smaller pages, or raise max_body= if that is right"
        )


def _at(place: tuple[str | int, ...]) -> str:
    return f"at {' / '.join(map(repr, place))}" if place else "of entries"


def _name(place: Where) -> str:
    if isinstance(place, Word) or callable(place):
        return getattr(place, "__name__", repr(place))
    return str(path_of(place)[-1])
