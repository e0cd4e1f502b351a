"""Readers: find a value in a response or in an entry, or report that it is missing.

A `Field` reads one value of an entry: its id, its version, its time. A `Reader` reads one value of a response: a
cursor, a link, a condition. An `EntryReader` joins both: it reads the response's first or last entry.

A value that is missing is `None`. A reader can also describe what stands where it looked, for errors, by names and
types and without the values, which may be secret.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import itemgetter, methodcaller
from typing import Any, TypeAlias

import msgspec

from push_to_poll_client._http.headers import is_header_name
from push_to_poll_client._validation import check_count, quoted
from push_to_poll_client.feeds._paged.body import Path, Reply, outline, path_of, text_of

FieldSpec: TypeAlias = Path | Callable[[Any], Any]
"""A path in an entry, or a function of the entry."""


class Field:
    """Reads one value of an entry; None if it is missing.

    Args:
        where: A path, which reads None if it leads nowhere, or a function, which may raise anything.

    Raises:
        TypeError: It is neither.
        ValueError: It is an empty path.
    """

    def __init__(self, where: FieldSpec) -> None:
        self._where = where
        self._read_one: Callable[[Any], Any] = where if callable(where) else _path_getter(path_of(where))
        self._fast_readers: tuple[Callable[[Any], Any], ...] = ()
        name = where[0] if isinstance(where, tuple) and len(where) == 1 else where
        if isinstance(name, str):
            self._fast_readers = itemgetter(name), methodcaller("get", name)

    def __call__(self, entry: Any) -> Any:
        """Read the value of one entry."""
        return self._read_one(entry)

    def read_all(self, entries: Sequence[Any]) -> list[Any]:
        """Read the value of each entry. A page is read by columns: a call for each cell would take longer."""
        for read in self._fast_readers:  # the first works if no entry lacks it, the second if all are objects
            with suppress(LookupError, TypeError, AttributeError):
                return list(map(read, entries))
        return list(map(self._read_one, entries))

    def __repr__(self) -> str:
        return getattr(self._where, "__name__", repr(self._where))


def texts_of(column: list[Any]) -> list[str | None]:
    """Apply `text_of` to each value."""
    types = set(map(type, column))
    if types == {str} and "" not in column:
        return column
    return list(map(str if types == {int} else text_of, column))


def _path_getter(steps: tuple[str | int, ...]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        for step in steps:
            if type(value) is str:  # a place in it would be a character
                return None
            try:
                value = value[step]
            except (LookupError, TypeError):
                return None
        return value

    return read


_Describe: TypeAlias = Callable[[Reply], str]
_IsLeftOut: TypeAlias = Callable[[Reply], bool]

_MAX_HEADERS_SHOWN = 20


def _describe_headers(reply: Reply) -> str:
    names = sorted({quoted(name, 40) for name in reply.headers})
    return f"the headers {', '.join(names[:_MAX_HEADERS_SHOWN])}"


class Reader:
    """Reads one thing in an answer.

    As a condition it holds when it reads something that is not `False`, 0 or empty. Conditions are composed by
    `|`, `&` and `~`.

    Args:
        read: Reads it; `None`: it is not there.
        text: What it is called in errors.
        seen: What stands where it looks, for errors, without what is said there.
        left_out: Whether an answer leaves it out that has it on every page, be it as `null`. Of what is only on
            some pages that is never known.
    """

    def __init__(
        self,
        read: Callable[[Reply], Any],
        text: str,
        seen: _Describe = Reply.outline,
        left_out: _IsLeftOut = lambda _: False,
    ) -> None:
        self._read = read
        self._text = text
        self.seen = seen
        self.left_out = left_out

    def __call__(self, reply: Reply) -> Any:
        """Return the value; None if there is none."""
        return self._read(reply)

    def then(self, function: Callable[[Any], Any]) -> "Reader":
        """Apply a function to the value. A missing value stays missing."""
        text = f"{self}.then({_function_name(function)})"
        return Reader(_compose(function, self), text, self.seen, self.left_out)

    def equals(self, *values: Any) -> "Reader":
        """Test whether the value is one of these.

        Raises:
            ValueError: There are none.
        """
        if not values:
            raise ValueError(f"{self}.equals() is given no value, and so never holds")
        return Reader(
            # A missing value stays missing: it is not the same as another value.
            lambda reply: None if (value := self(reply)) is None and None not in values else value in values,
            f"{self}.equals({', '.join(map(repr, values))})",
            self.seen,
        )

    def __invert__(self) -> "Reader":
        return Reader(lambda reply: not self(reply), f"~{self}")

    def __and__(self, other: "Condition") -> "Reader":
        both = reader(other)
        return Reader(lambda reply: self(reply) and both(reply), f"({self} & {both})")

    def __or__(self, other: "Condition") -> "Reader":
        either = reader(other)
        return Reader(
            lambda reply: self(reply) or either(reply),
            f"({self} | {either})",
            left_out=lambda reply: self.left_out(reply) and either.left_out(reply),
        )

    def __repr__(self) -> str:
        return self._text


class EntryReader(Reader):
    """Reads one value of an entry of the page.

    Args:
        of: Reads it in an entry.
        place: 0 for the first entry that has a value, -1 for the last.
        text: The name in errors.

    Attributes:
        of: As given.
        place: As given.
    """

    def __init__(self, of: Field, place: int, text: str) -> None:
        self.of = of
        self.place = place
        super().__init__(self._read_page, text, self._describe_entry)

    def then(self, function: Callable[[Any], Any]) -> "EntryReader":
        """As `Reader.then`."""
        return type(self)(
            Field(_compose(function, self.of)), self.place, f"{self}.then({_function_name(function)})"
        )

    def _read_page(self, reply: Reply) -> Any:
        entries = reply.entries if self.place == 0 else reversed(reply.entries)
        return next((value for entry in entries if (value := self.of(entry)) is not None), None)

    def _describe_entry(self, reply: Reply) -> str:
        if not reply.entries:
            return "a page on which no entry can be read"
        return f"an entry {outline(msgspec.json.encode(reply.entries[self.place]))}"


class EachReader(EntryReader):
    """Reads one value of every entry; the value of the page is that of the last entry."""


Condition: TypeAlias = Reader | Callable[[Reply], Any]
"""A reader, or a function of an answer."""


def reader(what: Condition) -> Reader:
    """Return a reader as it is, and a function as a reader.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(what, Reader):
        return what
    if not callable(what):
        raise TypeError(f"{what!r} is no reader; give one, as from_body(…), or a function of an answer")
    return Reader(what, _function_name(what))


def from_body(*path: str | int) -> Reader:
    """Read a value of the JSON body: `from_body("paging", "next")`."""
    steps = path_of(path)
    return Reader(
        lambda reply: reply.at(*steps),
        f"from_body({_format_path(path)})",
        lambda reply: reply.outline(*steps),
        lambda reply: reply.raw_at(*steps) is None,
    )


def from_header(name: str) -> Reader:
    """Read the value of a header.

    Raises:
        ValueError: No header has such a name.
    """
    if not isinstance(name, str) or not is_header_name(name):
        raise ValueError(f"{name!r} is no name of a header")
    return Reader(
        lambda reply: reply.headers.get(name),
        f"from_header({name!r})",
        _describe_headers,
        lambda reply: name not in reply.headers,
    )


def from_link(rel: str = "next") -> Reader:
    """Read the target of a `Link` header (RFC 8288), a whole URL."""
    return Reader(lambda reply: reply.link(rel), f"from_link({rel!r})", _describe_headers)


def from_first(*path: str | int) -> EntryReader:
    """Read a value of the first entry of the page."""
    return EntryReader(Field(path), 0, f"from_first({_format_path(path)})")


def from_last(*path: str | int) -> EntryReader:
    """Read a value of the last entry of the page."""
    return EntryReader(Field(path), -1, f"from_last({_format_path(path)})")


def from_each(*path: str | int) -> EachReader:
    """Read a value of every entry, so that each message has its own cursor; the last one is the page's."""
    return EachReader(Field(path), -1, f"from_each({_format_path(path)})")


def status(*codes: int) -> Reader:
    """Test whether the HTTP status is one of these.

    Raises:
        ValueError: There are none, or one is no status.
    """
    if not codes or not all(isinstance(code, int) and 100 <= code < 600 for code in codes):  # noqa: PLR2004
        raise ValueError(f"status() is given {codes!r}; give what HTTP has: status(410)")
    return Reader(lambda reply: reply.status in codes, f"status({', '.join(map(str, codes))})")


class InferredReader(Reader):
    """A condition that is inferred and not stated by the server: the page that it promises may not exist."""


def full_page(size: int) -> Reader:
    """Test whether a page has as many entries as fit on it. Entries that cannot be read count too.

    Raises:
        TypeError: The size is not a whole number.
        ValueError: The size is less than 1.
    """
    check_count("size", size)
    return InferredReader(lambda reply: reply.size >= size, f"full_page({size})")


def _compose(function: Callable[[Any], Any], read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(source: Any) -> Any:
        value = read(source)
        return None if value is None else function(value)

    return apply


def _function_name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _format_path(path: Path) -> str:
    return ", ".join(map(repr, path_of(path)))
