"""WHERE something stands in an answer, and WHETHER it does: the readers, which are conditions too."""

from collections.abc import Callable
from typing import Any, TypeAlias

from push_to_poll_client.feeds._paged.reply import Path, Reply, get, path_of

__all__ = [
    "Condition",
    "EntryReader",
    "Reader",
    "from_body",
    "from_each",
    "from_first",
    "from_header",
    "from_last",
    "from_link",
    "full_page",
    "reader",
    "status",
]


class Reader:
    """Reads one thing in an answer.

    As a condition it holds when it reads something that is not `False`, 0 or empty. Conditions are composed by
    `|`, `&` and `~`.

    Args:
        read: Reads it; `None`: it is not there. Must not raise.
        text: What it is called in errors.
    """

    def __init__(self, read: Callable[[Reply], Any], text: str) -> None:
        self._read = read
        self._text = text

    def __call__(self, reply: Reply) -> Any:
        """What stands there; `None`: nothing does."""
        return self._read(reply)

    def then(self, function: Callable[[Any], Any]) -> "Reader":
        """What a function makes of it. It is not asked for what is not there."""
        return Reader(_applied(function, self), f"{self}.then({_name(function)})")

    def equals(self, *values: Any) -> "Reader":
        """Whether it is one of these."""
        return Reader(lambda reply: self(reply) in values, f"{self}.equals({', '.join(map(repr, values))})")

    def __invert__(self) -> "Reader":
        return Reader(lambda reply: not self(reply), f"~{self}")

    def __and__(self, other: "Condition") -> "Reader":
        both = reader(other)
        return Reader(lambda reply: self(reply) and both(reply), f"({self} & {both})")

    def __or__(self, other: "Condition") -> "Reader":
        either = reader(other)
        return Reader(lambda reply: self(reply) or either(reply), f"({self} | {either})")

    def __repr__(self) -> str:
        return self._text


class EntryReader(Reader):
    """Reads one thing in an entry of the page.

    Args:
        read: Reads it; `None`: it is not there.
        place: Of the entry: 0 is the first, -1 the last in which there is something.
        text: What it is called in errors.

    Attributes:
        of: As `read`.
    """

    def __init__(self, read: Callable[[Any], Any], place: int, text: str) -> None:
        self.of = read
        self._place = place
        super().__init__(self._in_page, text)

    def then(self, function: Callable[[Any], Any]) -> "EntryReader":
        """What a function makes of it. It is not asked for what is not there."""
        return type(self)(_applied(function, self.of), self._place, f"{self}.then({_name(function)})")

    def _in_page(self, reply: Reply) -> Any:
        entries = reply.entries if self._place == 0 else reversed(reply.entries)
        return next((value for entry in entries if (value := self.of(entry)) is not None), None)


class EachReader(EntryReader):
    """Reads one thing in every entry; of the page it is that of the last one."""


Condition: TypeAlias = Reader | Callable[[Reply], Any]
"""A reader, or a function of an answer."""


def reader(what: Condition) -> Reader:
    """A reader as it is, and one of a function.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(what, Reader):
        return what
    if not callable(what):
        raise TypeError(f"{what!r} is no reader; give one, as from_body(…), or a function of an answer")
    return Reader(what, _name(what))


def from_body(*path: str | int) -> Reader:
    """What stands in a JSON body: `from_body("paging", "next")`."""
    steps = path_of(path)
    return Reader(lambda reply: reply.at(*steps), f"from_body({_arguments(path)})")


def from_header(name: str) -> Reader:
    """The value of a header."""
    return Reader(lambda reply: reply.headers.get(name), f"from_header({name!r})")


def from_link(rel: str = "next") -> Reader:
    """The target of a `Link` header (RFC 8288), a whole URL."""
    return Reader(lambda reply: reply.link(rel), f"from_link({rel!r})")


def from_first(*path: str | int) -> EntryReader:
    """What stands in the first entry of the page."""
    return EntryReader(get(path), 0, f"from_first({_arguments(path)})")


def from_last(*path: str | int) -> EntryReader:
    """What stands in the last entry of the page."""
    return EntryReader(get(path), -1, f"from_last({_arguments(path)})")


def from_each(*path: str | int) -> EachReader:
    """What stands in every entry: each message has a cursor of its own. Of the page it is that of the last."""
    return EachReader(get(path), -1, f"from_each({_arguments(path)})")


def status(*codes: int) -> Reader:
    """Whether the HTTP status is one of these."""
    return Reader(lambda reply: reply.status in codes, f"status({', '.join(map(str, codes))})")


def full_page(size: int) -> Reader:
    """Whether the page has so many entries: as many as one can have."""
    return Reader(lambda reply: len(reply.entries) >= size, f"full_page({size})")


def _applied(function: Callable[[Any], Any], read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(source: Any) -> Any:
        value = read(source)
        return None if value is None else function(value)

    return apply


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _arguments(path: Path) -> str:
    return ", ".join(map(repr, path_of(path)))
