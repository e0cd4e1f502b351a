"""Limits for decoding a page, decoding in a thread, and splitting JSON without decoding it.

A JSON parser rejects a whole page for one bad byte or one value that is nested too deep. `split_json` finds the
parts of such a page, so that the readable ones are not lost. It reads only strings, brackets and commas, without
recursion and in linear time, and does not check the rest.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import ParamSpec, TypeAlias, TypeVar

import msgspec
from anyio import to_thread

from push_to_poll_client._json import DECODE_ERRORS

RawJSON: TypeAlias = bytes | msgspec.Raw
BOM = b"\xef\xbb\xbf"
"""Byte order mark of UTF-8, which may stand before JSON."""

MAX_ID = 1024
"""Longest id, or other part of a dedupe key, in characters. A store keeps each twice."""

_MIN_MESSAGE_BYTES = 160
"""Smallest average size of the messages of a page: each needs about 600 bytes more in memory."""

_ALWAYS_ALLOWED = 10_000
"""Messages that a page may have however small they are: the largest page common among feeds."""

P = ParamSpec("P")
T = TypeVar("T")


def max_messages(max_body: int) -> int:
    """Return how many messages a page of this size may have."""
    return max(max_body // _MIN_MESSAGE_BYTES, _ALWAYS_ALLOWED)


_LARGE_BODY = 1024 * 1024
"""A larger body, in bytes, is decoded in a thread: a hostile page can take ten seconds."""


async def run_decoder(size: int, decode: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Return `decode(*args, **options)`; for a body above 1 MiB, run it in a worker thread."""
    # `decode` must share no state with other threads: after a cancelled poll it keeps running, for no result.
    if size <= _LARGE_BODY:
        return decode(*args, **options)
    return await to_thread.run_sync(partial(decode, *args, **options), abandon_on_cancel=True)


MAX_UNREADABLE = 10_000
"""Unreadable entries on one page: each costs a kilobyte, and one byte of the page can make one."""

UNREADABLE_KEY_PREFIX = "unreadable:"


def unreadable_key(raw: bytes) -> str:
    """Return the dedupe key of an unreadable entry, from its bytes: a corrected entry is a new message."""
    return f"{UNREADABLE_KEY_PREFIX}{hashlib.sha256(raw).hexdigest()[:32]}"


# An unclosed string reaches to the end, and the patterns are possessive, so that no byte is read twice.
_STRING = rb'"(?:[^"\\]++|\\.)*+"?'
_TOKEN = re.compile(_STRING + rb"|[\[{]++|[\]}]|,", re.DOTALL)
_SPACE = b" \t\r\n"


def split_json(text: bytes, brackets: bytes) -> Iterator[bytes]:
    """Yield the elements of a JSON array (`b"[]"`), or the members of an object, as unchecked bytes."""
    # The ValueError for wrong brackets or an empty element may come late: do not use the parts yielded before.
    text = text.strip(_SPACE)
    if not (text.startswith(brackets[:1]) and text.endswith(brackets[1:])):
        raise ValueError(f"it must begin with {brackets[:1].decode()} and end with {brackets[1:].decode()}")
    start = 0
    for stop in _boundaries(text):
        part = text[start + 1 : stop].strip(_SPACE)
        if part:
            yield part
        elif text[1:-1].strip(_SPACE):
            raise ValueError("a value is missing between two commas")
        start = stop
    if start != len(text) - 1:
        raise ValueError("it has extra text after its closing bracket")


def _boundaries(text: bytes) -> Iterator[int]:
    """Yield the positions of the outermost commas, and of the closing bracket."""
    depth = 1
    for token in _TOKEN.finditer(text, 1):
        match token[0][:1]:
            case b"[" | b"{":
                depth += len(token[0])
            case b"]" | b"}":
                depth -= 1
            case b"," if depth == 1:
                yield token.start()
        if not depth:
            yield token.start()
            return
    raise ValueError("it is cut off: its closing bracket is missing")


# These leave the values undecoded. Where they fail, `split_json` finds the same parts.
_decode_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_name = msgspec.json.Decoder(str).decode

_MEMBER = re.compile(rb'("(?:[^"\\]++|\\.)*+")[ \t\r\n]*+:[ \t\r\n]*+(.*)', re.DOTALL)


def elements(array: RawJSON) -> Sequence[RawJSON]:
    """Split an array into undecoded elements; raise ValueError if it is not an array."""
    # A broken element does not affect others if its brackets are closed.
    try:
        return _decode_elements(array)
    except DECODE_ERRORS:
        return list(split_json(bytes(array), b"[]"))


def members(raw: RawJSON | None) -> Mapping[str, RawJSON]:
    """Split an object into undecoded members, as `elements` does; empty if it is not an object."""
    if raw is None:
        return {}
    try:
        return _decode_members(raw)
    except DECODE_ERRORS:
        try:
            return dict(map(_member, split_json(bytes(raw), b"{}")))
        except DECODE_ERRORS:
            return {}


def _member(part: bytes) -> tuple[str, bytes]:
    found = _MEMBER.fullmatch(part)
    if found is None:
        raise ValueError("a member must begin with its name in quotes and a colon")
    return _decode_name(found[1]), found[2]


_SMALL_ELEMENT = 20
"""Bytes per allowed element: the elements of a smaller array are not counted."""

_USUAL_COMMAS = 10
"""Commas per element. With fewer, the decoder splits the array, at 72 bytes per element."""


def has_few_commas(array: bytes, count: int) -> bool:
    """Return True if the array cannot have many more elements than `count`."""
    return array.count(b",") < _USUAL_COMMAS * count


def has_more_elements(array: bytes, limit: int) -> bool:
    """Return True if an array has more elements than the limit; raise ValueError if it is not an array."""
    if len(array) <= _SMALL_ELEMENT * limit:
        return False
    # Not by decoding a hostile page: in memory each element takes a hundred bytes or more, even one of two bytes.
    found = elements(array) if has_few_commas(array, limit) else split_json(array, b"[]")
    return next(islice(found, limit, None), None) is not None
