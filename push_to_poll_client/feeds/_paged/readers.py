"""Readers: find a value in a response or in an entry, or report that it is missing.

A `Field` reads one value of an entry: its id, its version, its time. A `Reader` reads one value of a response: a
cursor, a link, a condition. An `EntryReader` does both: it reads a value of the first or last entry of a response.

A missing value is `None`. For errors, a reader describes what it searched by names and types, without the values,
which may be secret.
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
    """Reads one value of an entry; None if it is missing. A function may raise any exception."""

    def __init__(self, where: FieldSpec) -> None:
        self._where = where
        self._read_one: Callable[[Any], Any] = where if callable(where) else _path_getter(path_of(where))
        self._fast_readers: tuple[Callable[[Any], Any], ...] = ()
        name = where[0] if isinstance(where, tuple) and len(where) == 1 else where
        if isinstance(name, str):
            self._fast_readers = itemgetter(name), methodcaller("get", name)

    def __call__(self, entry: Any) -> Any:
        return self._read_one(entry)

    def read_all(self, entries: Sequence[Any]) -> list[Any]:
        """Read the value of each entry. One call per entry would be slower."""
        for read in self._fast_readers:  # the first needs the field in all entries, the second only objects
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
            if type(value) is str:  # an index would read a character
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
    """Reads one value of a response; None if it is missing.

    As a condition, a reader is true if its value is not `False`, 0 or empty. Combine conditions with `|`, `&` and
    `~`.

    Args:
        read: Reads the value; returns `None` if it is missing.
        text: Name in errors.
        seen: Describes for errors what was searched, without values.
        left_out: True if the response omits a value that every page should have, or has `null`. Always False for a
            value that only some pages have.
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
        return self._read(reply)

    def then(self, function: Callable[[Any], Any]) -> "Reader":
        """Apply a function to the value. A missing value stays missing."""
        text = f"{self}.then({_function_name(function)})"
        return Reader(_compose(function, self), text, self.seen, self.left_out)

    def equals(self, *values: Any) -> "Reader":
        """Test if the value is one of these values.

        Raises:
            ValueError: No value is passed.
        """
        if not values:
            raise ValueError(f"{self}.equals() needs at least one value, got none")
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
    """Reads one value of an entry of the page."""

    def __init__(self, of: Field, place: int, text: str) -> None:
        self.of = of
        self.place = place  # 0 for the first entry that has a value, -1 for the last
        super().__init__(self._read_page, text, self._describe_entry)

    def then(self, function: Callable[[Any], Any]) -> "EntryReader":
        """Apply a function to the value, as `Reader.then`."""
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
    """Reads one value of every entry; for the page, the value of the last entry."""


Condition: TypeAlias = Reader | Callable[[Reply], Any]
"""A reader, or a function of a response."""


def reader(what: Condition) -> Reader:
    """Convert a function to a reader; return a reader unchanged."""
    if isinstance(what, Reader):
        return what
    if not callable(what):
        raise TypeError(f"{what!r} is not a reader; pass one such as from_body(…), or a function of a response")
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
        ValueError: The name is not a valid header name.
    """
    if not isinstance(name, str) or not is_header_name(name):
        raise ValueError(f"name must be a valid header name such as 'Link', got {name!r}")
    return Reader(
        lambda reply: reply.headers.get(name),
        f"from_header({name!r})",
        _describe_headers,
        lambda reply: name not in reply.headers,
    )


def from_link(rel: str = "next") -> Reader:
    """Read the target of a `Link` header (RFC 8288) as an absolute URL."""
    return Reader(lambda reply: reply.link(rel), f"from_link({rel!r})", _describe_headers)


def from_first(*path: str | int) -> EntryReader:
    """Read a value of the first entry of the page."""
    return EntryReader(Field(path), 0, f"from_first({_format_path(path)})")


def from_last(*path: str | int) -> EntryReader:
    """Read a value of the last entry of the page."""
    return EntryReader(Field(path), -1, f"from_last({_format_path(path)})")


def from_each(*path: str | int) -> EachReader:
    """Read a value of every entry as the cursor of its message; the last one is the cursor of the page."""
    return EachReader(Field(path), -1, f"from_each({_format_path(path)})")


def status(*codes: int) -> Reader:
    """Test if the HTTP status is one of these.

    Raises:
        ValueError: No code is passed, or one is not an HTTP status.
    """
    if not codes or not all(isinstance(code, int) and 100 <= code < 600 for code in codes):  # noqa: PLR2004
        raise ValueError(f"status() needs HTTP status codes from 100 to 599, such as status(410), got {codes!r}")
    return Reader(lambda reply: reply.status in codes, f"status({', '.join(map(str, codes))})")


class InferredReader(Reader):
    """Condition that is inferred, not stated by the server: the announced page may not exist."""


def full_page(size: int) -> Reader:
    """Test if a page has at least this many entries. Unreadable entries count too.

    Raises:
        TypeError: The size is not an integer.
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
