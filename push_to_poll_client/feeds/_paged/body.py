"""Read the body of a response: a value at any path, and its lists of entries.

`Reply` is the response as a declaration sees it. It decodes only the value at a path. `find_lists` locates the
lists of entries, and `EntryList` decodes one of them. A broken part of the body does not affect the others: if
msgspec refuses a whole array, it is split by its brackets and commas, and one broken entry becomes one unreadable
message.

Errors never show the content of a body, which may be secret: `outline` shows only names and types.
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
"""Name of a member, index of an element, or a tuple of them, from the outside in."""

_MAX_SHOWN = 12  # members that an outline names

_decode = Decoder().decode


class DeclarationMismatch(Exception):
    """A response does not match the declaration; the text says what was declared and received."""


class Reply:
    """A response, as the functions of a declaration see it.

    Args:
        answer: The response.
        allowed: Returns the URL to request for a link; raises for a link that must not be followed.

    Attributes:
        where: URL of the feed for errors, without secrets.
        status: The HTTP status.
        headers: The headers, by case-insensitive names.
        url: URL of the response, after redirects.
        entries: The entries of the page that could be decoded.
        size: Number of entries of the page, unreadable ones included.
        listed: True if the page has a list, even as `null`; if a function made the list, True if it has entries.
        ends: True if the response says that no message will follow.
        content: The body as received, without a byte order mark.
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
        """The whole body as parsed JSON; None if it is not valid JSON."""
        return _decode_or_none(self.content)

    def at(self, *path: str | int) -> Any:
        """Return the value at a path of the body; None if it is missing or cannot be read."""
        raw = self.raw_at(*path)
        return None if raw is None else _decode_or_none(raw)

    def raw_at(self, *path: str | int) -> RawJSON | None:
        """Return the undecoded value at a path; a broken part elsewhere does not matter."""
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
        """Describe the names and types at a path, or at its longest existing part, for errors."""
        for length in range(len(path) - 1, 0, -1):
            if (raw := self.raw_at(*path[:length])) is not None:
                return f"{outline(raw)} at {' / '.join(map(repr, path[:length]))}"
        return outline(self.content)

    def link(self, rel: str) -> str | None:
        """Return the absolute target of a `Link` header (RFC 8288); None without such a link."""
        return find_link(self._response, rel)

    def leads_to(self, text: str) -> str:
        """Return the absolute URL of a link in this response, without user, password and fragment.

        Raises:
            FeedError: Its origin is not trusted.
            DeclarationMismatch: It is not a URL.
        """
        url = resolve_url(text, self.url)
        if url is None:
            raise DeclarationMismatch("the link to the next page is not a URL")
        return self._check_link(url)


def check_type(name: str, value: Any, expected: Any, instead: str) -> Any:
    """Return an argument that must have a type; raise TypeError otherwise."""
    if not isinstance(value, expected):
        raise TypeError(f"{name} must be {instead}, got {type(value).__name__}")
    return value


def path_of(path: Path) -> tuple[str | int, ...]:
    """Convert a path to a tuple; raise if it is not a path, or is empty."""
    steps = path if isinstance(path, tuple) else (path,)
    if not all(isinstance(step, str | int) and not isinstance(step, bool) for step in steps):
        raise TypeError(f"a path must consist of names (str) and indices (int), got {path!r}")
    if not steps or "" in steps:
        raise ValueError(f"a path and its names must not be empty, got {path!r}")
    return steps


def text_of(value: Any) -> str | None:
    """Convert a value to a cursor or an id, other than strings as JSON; None for "", null, true and false."""
    if isinstance(value, str):
        return value or None
    if value is None or isinstance(value, bool):
        return None
    return msgspec.json.encode(value).decode()


def outline(raw: RawJSON) -> str:
    """Describe JSON by its names and types, without the values, which may be secret."""
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
    """A named constant for a declaration."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


LINES: Final = Sentinel("LINES")
"""The body is newline-delimited JSON (NDJSON); each line is an entry."""

ListSpec: TypeAlias = Path | Sentinel | Callable[[Any], Any]
"""A path, `LINES`, or a function that gets the whole body and returns the list."""

_SPACE = b" \t\r"

# These do not check the depth: callers must.
_decode_unchecked = msgspec.json.Decoder().decode
_decode_list_unchecked = msgspec.json.Decoder(list).decode


class EntryList:
    """One list of a page."""

    # Entries are decoded at once, but located in the text only for a dead letter, or if one is broken.

    def __init__(
        self,
        text: RawJSON,
        decode: Callable[[RawJSON], list[Any]],
        split: Callable[[RawJSON], Sequence[RawJSON]],
        group: str = "",  # the name, on a page with several lists
    ) -> None:
        self._text = text
        self._split = split
        self._raws: Sequence[RawJSON] | None = None
        self._reversed = False
        self.group = group
        self.listed = True  # as `Reply.listed`
        self.entries: list[Any]  # an entry that cannot be decoded is replaced by its error
        self.broken: bool = False  # one of the entries is an error
        try:
            self.entries = decode(text)
        except DECODE_ERRORS:
            self.entries, self.broken = list(map(_decode_entry, self._all_raws())), True

    def reverse(self) -> None:
        """Reverse the order of the entries."""
        self.entries.reverse()
        self._reversed = not self._reversed

    def raw(self, place: int) -> bytes:
        """Return an entry as received; with several lists, in an object under the name of its list."""
        raw = bytes(self._all_raws()[-1 - place if self._reversed else place])
        return b"{%b:%b}" % (msgspec.json.encode(self.group), raw) if self.group else raw

    def _all_raws(self) -> Sequence[RawJSON]:
        if self._raws is None:
            self._raws = self._split(self._text)
        return self._raws


DeclaredLists: TypeAlias = Mapping[str, Any]
"""The spec of each list of a page by its name; a single list has the name ""."""


def declare_lists(where: Sequence[ListSpec]) -> DeclaredLists:
    """Name each list by the last step of its path, or by its whole path if two would have one name."""
    specs = [spec if callable(spec) or isinstance(spec, Sentinel) else path_of(spec) for spec in where]
    if len(specs) <= 1:
        return {"": specs[0] if specs else ()}
    paths = [spec if isinstance(spec, tuple) else (_name(spec),) for spec in specs]
    for names in ([str(path[-1]) for path in paths], [".".join(map(str, path)) for path in paths]):
        if len({*names}) == len(names):
            return dict(zip(names, specs, strict=True))
    raise ValueError(f"two lists have the same name; declare each once: {', '.join(names)}")


def find_lists(declared: DeclaredLists, reply: Reply, max_entries: int, *, optional: bool) -> list[EntryList]:
    """Return the lists of a page as declared; with `optional`, a missing list is empty."""
    lists = [_find_list(name, reply, spec, max_entries, optional=optional) for name, spec in declared.items()]
    if sum(len(one.entries) for one in lists) > max_entries:
        raise _too_many_entries(max_entries)
    return lists


def restore_list(declared: DeclaredLists, raw: bytes) -> EntryList:
    """Make a list of one entry from the result of `EntryList.raw`."""
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
    raise DeclarationMismatch(f"there is no list {_describe_location(spec)}; found {reply.outline(*spec)}")


def _list_from_array(text: bytes, where: str, max_entries: int, group: str) -> EntryList:
    try:
        if has_more_elements(text, max_entries):
            raise _too_many_entries(max_entries)
        return EntryList(text, _decode_list, elements, group)
    except ValueError:
        raise DeclarationMismatch(f"there is no list {where}; found {outline(text)}") from None


def _list_from_lines(text: bytes, max_entries: int, group: str) -> EntryList:
    if text.count(b"\n") > max_entries:
        raise _too_many_entries(max_entries)
    found = EntryList(text, _decode_lines, _split_lines, group)
    if found.broken and isinstance(found.entries[-1], DecodeError) and not text.endswith(b"\n"):
        raise DeclarationMismatch(f"the body is not NDJSON, or its last line is cut off: {outline(text)}")
    return found


def _decode_list(text: RawJSON) -> list[Any]:
    check_page_depth(bytes(text))
    return _decode_list_unchecked(text)


def _decode_lines(text: RawJSON) -> list[Any]:
    lines = _split_lines(text)
    if max(map(len, lines), default=0) > SAFE_LENGTH:
        for line in lines:
            check_depth(line)
    return list(map(_decode_unchecked, lines))  # decode_lines() would let a value continue on the next line


def _split_lines(text: RawJSON) -> list[bytes]:
    return [line for line in bytes(text).split(b"\n") if line.strip(_SPACE)]


def _decode_entry(raw: RawJSON) -> Any:
    try:
        return _decode(raw)
    except DECODE_ERRORS as error:
        return DecodeError(f"an entry is not valid JSON: {describe(error)}")


def _too_many_entries(max_entries: int) -> DeclarationMismatch:
    return DeclarationMismatch(
        f"a page has more than {max_entries} entries; request smaller pages, or raise max_body="
    )


def _describe_location(path: tuple[str | int, ...]) -> str:
    return f"at {' / '.join(map(repr, path))}" if path else "of entries"


def _name(spec: object) -> str:
    return getattr(spec, "__name__", repr(spec))
