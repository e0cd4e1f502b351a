"""Read the body of a response: any place in it, and its lists of entries.

`Reply` is the response as a declaration sees it. It reads what stands at a path, and leaves the rest of the body
as it came. `find_lists` locates the lists of entries, and `EntryList` decodes one of them.

A broken part of the body spoils no other. Where msgspec refuses a whole object or array, `split_json` splits it
by its brackets and commas, so that one broken entry becomes one unreadable message and the page is still read.

Errors never show what a body says, which may be secret: `outline` shows names and types only.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, TypeAlias

import msgspec

from push_to_poll_client._exceptions import DecodeError
from push_to_poll_client._http.headers import resolve_url
from push_to_poll_client._http.response import Response, find_link
from push_to_poll_client._json import DECODE_ERRORS, SAFE_LENGTH, Decoder, check_depth, check_page_depth
from push_to_poll_client._validation import describe, quoted
from push_to_poll_client.feeds._decoding import BOM, RawJSON, elements, has_more_elements, members

Path: TypeAlias = str | int | tuple[str | int, ...]
"""The name of a member or the place of an element, or several, each in the one before it."""

_MAX_SHOWN = 12
"""Members that an outline names."""

_decode = Decoder().decode


class DeclarationMismatch(Exception):
    """A response differs from the declaration; the text says what was declared and what was seen."""


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
        self.content: bytes = answer.body.removeprefix(BOM)
        self._response = answer
        self._check_link = allowed
        self._members: dict[tuple[str | int, ...], Mapping[str, RawJSON]] = {}

    @property
    def body(self) -> Any:
        """The whole body, read as JSON; `None` when it is none."""
        return _decode_or_none(self.content)

    def at(self, *path: str | int) -> Any:
        """Return the value at a path of the body; None if there is none, or it cannot be read."""
        raw = self.raw_at(*path)
        return None if raw is None else _decode_or_none(raw)

    def raw_at(self, *path: str | int) -> RawJSON | None:
        """As `at`, not decoded, so that a broken part of the body spoils no other."""
        if not path:
            return self.content
        *before, last = path
        if isinstance(last, int):
            array = self.raw_at(*before)
            try:
                return None if array is None else elements(array)[last]
            except (ValueError, IndexError):
                return None
        parent = tuple(before)
        if parent not in self._members:
            self._members[parent] = members(self.raw_at(*before))
        return self._members[parent].get(last)

    def outline(self, *path: str | int) -> str:
        """Describe for errors what is at a path, or at the longest part of it that exists, without the content."""
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
            DeclarationMismatch: It is no URL.
        """
        url = resolve_url(text, self.url)
        if url is None:
            raise DeclarationMismatch("what leads on is no URL")
        return self._check_link(url)


def check_type(name: str, value: Any, expected: Any, instead: str) -> Any:
    """Return an argument that must be of a type.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(value, expected):
        raise TypeError(f"{name} is a {type(value).__name__}; give {instead}")
    return value


def path_of(path: Path) -> tuple[str | int, ...]:
    """Convert a path to a tuple.

    Raises:
        TypeError: It is not a path.
        ValueError: It is empty, or has an empty name in it.
    """
    steps = path if isinstance(path, tuple) else (path,)
    if not all(isinstance(step, str | int) and not isinstance(step, bool) for step in steps):
        raise TypeError(f"a path is made of names (str) and places (int), not {path!r}")
    if not steps or "" in steps:
        raise ValueError(f"a path has no empty names, and is not empty itself: {path!r}")
    return steps


def text_of(value: Any) -> str | None:
    """Convert a value to a cursor or an id: a string stays, all else becomes JSON.

    None if there is nothing: "", null, true or false.
    """
    if isinstance(value, str):
        return value or None
    if value is None or isinstance(value, bool):
        return None
    return msgspec.json.encode(value).decode()


def outline(raw: RawJSON) -> str:
    """Describe JSON by the names and types in it, without the values, which may be secret."""
    named = [
        f"{quoted(name, 40)}: {_json_type(value)}" for name, value in islice(members(raw).items(), _MAX_SHOWN + 1)
    ]
    if not named:
        return _json_type(raw)
    more = ["..."] if len(named) > _MAX_SHOWN else []
    return "{" + ", ".join((*named[:_MAX_SHOWN], *more)) + "}"


def _json_type(raw: RawJSON) -> str:
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


def _decode_or_none(raw: RawJSON) -> Any:
    try:
        return _decode(raw)
    except DECODE_ERRORS:
        return None


class Sentinel:
    """A constant that stands for itself in a declaration.

    Args:
        text: The name of the constant.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


LINES: Final = Sentinel("LINES")
"""The body is no JSON but lines of it (NDJSON): each is an entry."""

ListSpec: TypeAlias = Path | Sentinel | Callable[[Any], Any]
"""A path, `LINES`, or a function that is given the whole body and returns the list."""

_SPACE = b" \t\r"

# Callers check the depth themselves: these do not.
_decode_unchecked = msgspec.json.Decoder().decode
_decode_list_unchecked = msgspec.json.Decoder(list).decode


class EntryList:
    """One list of a page.

    Its entries are decoded at once. Where each of them stands in the text is found out only when it is needed:
    for a dead letter, or because one of them is broken.

    Args:
        text: The list, as it came.
        decode: Decodes all entries of a text.
        split: Splits a text into its entries.
        group: The name of the list on a page with several; else "".

    Attributes:
        entries: Decoded; in place of an entry that cannot be decoded, the error.
        group: As given.
        broken: Whether one of the entries is an error.
        listed: Whether the list is on the page, even as `null`. For a list that a function made, whether it has
            any entries.

    Raises:
        ValueError: The text is not a list.
    """

    def __init__(
        self,
        text: RawJSON,
        decode: Callable[[RawJSON], list[Any]],
        split: Callable[[RawJSON], Sequence[RawJSON]],
        group: str = "",
    ) -> None:
        self._text = text
        self._split = split
        self._raws: Sequence[RawJSON] | None = None
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
        """Reverse the order of the entries."""
        self.entries.reverse()
        self._reversed = not self._reversed

    def raw(self, place: int) -> bytes:
        """Return an entry as it came; if the page has several lists, in an object under the name of its list."""
        raw = bytes(self._all_raws()[-1 - place if self._reversed else place])
        return b"{%b:%b}" % (msgspec.json.encode(self.group), raw) if self.group else raw

    def _all_raws(self) -> Sequence[RawJSON]:
        if self._raws is None:
            self._raws = self._split(self._text)
        return self._raws


DeclaredLists: TypeAlias = Mapping[str, Any]
"""Each list of a page by its name, as `ListSpec` says where it is; a page with one list has it under ""."""


def declare_lists(where: Sequence[ListSpec]) -> DeclaredLists:
    """Name each list by the last step of its path, or by the whole path if two lists would have the same name.

    Raises:
        TypeError: `where` has something that is not a `ListSpec`.
        ValueError: A path is empty, or two lists have the same name.
    """
    specs = [spec if callable(spec) or isinstance(spec, Sentinel) else path_of(spec) for spec in where]
    if len(specs) <= 1:
        return {"": specs[0] if specs else ()}
    paths = [spec if isinstance(spec, tuple) else (_name(spec),) for spec in specs]
    for names in ([str(path[-1]) for path in paths], [".".join(map(str, path)) for path in paths]):
        if len({*names}) == len(names):
            return dict(zip(names, specs, strict=True))
    raise ValueError(f"two lists have one name: {', '.join(names)}")


def find_lists(declared: DeclaredLists, reply: Reply, max_entries: int, *, optional: bool) -> list[EntryList]:
    """Read the lists of a page, in the order of their declaration.

    Args:
        declared: What `declare_lists` returned.
        reply: The page.
        max_entries: Entries that it may have.
        optional: The server leaves out a list that is empty.

    Raises:
        DeclarationMismatch: One is missing or is not a list, or there are more than `max_entries` in all.
    """
    lists = [_find_list(name, reply, spec, max_entries, optional=optional) for name, spec in declared.items()]
    if sum(len(one.entries) for one in lists) > max_entries:
        raise _too_many_entries(max_entries)
    return lists


def restore_list(declared: DeclaredLists, raw: bytes) -> EntryList:
    """Make a list of one entry from what `EntryList.raw` returned."""
    named = members(raw) if len(declared) > 1 else {}
    group, text = next(iter(named.items())) if len(named) == 1 else ("", raw)
    if group not in declared:
        group, text = "", raw
    return EntryList(text, lambda text: [_decode(text)], lambda text: [text], group)


def _find_list(name: str, reply: Reply, spec: Any, max_entries: int, *, optional: bool) -> EntryList:
    if spec is LINES:
        return _list_from_lines(reply.content, max_entries, name)
    if callable(spec):
        encoded = msgspec.json.encode(spec(reply.body))
        made = _list_from_array(encoded, f"by {_name(spec)}", max_entries, name)
        made.listed = bool(made.entries)
        return made
    raw = reply.raw_at(*spec)
    if raw is not None and bytes(raw) != b"null":
        return _list_from_array(bytes(raw), _describe_location(spec), max_entries, name)
    if optional and outline(reply.content).startswith(("{", "object")):
        empty = _list_from_array(b"[]", "", 0, name)
        empty.listed = raw is not None
        return empty
    raise DeclarationMismatch(f"there is no list {_describe_location(spec)}, but {reply.outline(*spec)}")


def _list_from_array(text: bytes, where: str, max_entries: int, group: str) -> EntryList:
    try:
        if has_more_elements(text, max_entries):
            raise _too_many_entries(max_entries)
        return EntryList(text, _decode_list, elements, group)
    except ValueError:
        raise DeclarationMismatch(f"there is no list {where}, but {outline(text)}") from None


def _list_from_lines(text: bytes, max_entries: int, group: str) -> EntryList:
    if text.count(b"\n") > max_entries:
        raise _too_many_entries(max_entries)
    found = EntryList(text, _decode_lines, _split_lines, group)
    if found.broken and isinstance(found.entries[-1], DecodeError) and not text.endswith(b"\n"):
        raise DeclarationMismatch(f"the body is no lines of JSON, or ends in the middle of one: {outline(text)}")
    return found


def _decode_list(text: RawJSON) -> list[Any]:
    check_page_depth(bytes(text))
    return _decode_list_unchecked(text)


def _decode_lines(text: RawJSON) -> list[Any]:
    lines = _split_lines(text)
    if max(map(len, lines), default=0) > SAFE_LENGTH:
        for line in lines:
            check_depth(line)
    return list(map(_decode_unchecked, lines))  # decode_lines() lets a value go on in the next line


def _split_lines(text: RawJSON) -> list[bytes]:
    return [line for line in bytes(text).split(b"\n") if line.strip(_SPACE)]


def _decode_entry(raw: RawJSON) -> Any:
    try:
        return _decode(raw)
    except DECODE_ERRORS as error:
        return DecodeError(f"an entry is no JSON: {describe(error)}")


def _too_many_entries(max_entries: int) -> DeclarationMismatch:
    return DeclarationMismatch(
        f"a page has more than {max_entries} entries; ask for smaller pages, or raise max_body= if that is right"
    )


def _describe_location(path: tuple[str | int, ...]) -> str:
    return f"at {' / '.join(map(repr, path))}" if path else "of entries"


def _name(spec: object) -> str:
    return getattr(spec, "__name__", repr(spec))
