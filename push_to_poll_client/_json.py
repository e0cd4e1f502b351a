"""Decode foreign JSON with the same depth limit on every Python version.

msgspec reads nested values by recursion. The depth that it reaches depends on the Python version, and on 3.11 also
on the depth of the caller's stack. The limit here is lower, so the result depends on neither.

A value of depth n has n opening and n closing brackets. So a text shorter than two brackets per allowed level
needs no check, and most messages are that short.
"""

import re
from itertools import accumulate
from typing import Any, Generic, TypeVar, overload

import msgspec

# Levels of nested arrays and objects. CPython 3.11 has room for 1,000 calls, and a handler uses up to 200.
MAX_DEPTH = 500

# Bytes. A text of at most this length cannot be too deep.
SAFE_LENGTH = 2 * MAX_DEPTH

# `ValueError` is raised by msgspec and for invalid UTF-8, `RecursionError` for a value nested too deep.
DECODE_ERRORS = (ValueError, RecursionError)

_T = TypeVar("_T")

_STRING = re.compile(rb'"[^"]*+"?+')
_DELIMITERS = b'[]{}"'
_NON_DELIMITERS = bytes(set(range(256)).difference(_DELIMITERS))
_BRACES_AS_BRACKETS = bytes.maketrans(b"{}", b"[]")
_DEPTH_CHANGES = [0] * 256
_DEPTH_CHANGES[ord("[")], _DEPTH_CHANGES[ord("]")] = 1, -1

# Up to this depth, levels are counted by `replace`, which takes a tenth of the time of the loop.
_USUAL_DEPTH = 16


def check_depth(text: bytes | str | msgspec.Raw) -> None:
    """Raise a `RecursionError` if a value is nested deeper than `MAX_DEPTH`."""
    if len(text) <= SAFE_LENGTH:
        return
    data = text.encode(errors="replace") if isinstance(text, str) else bytes(text)
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(data) > MAX_DEPTH:
        raise RecursionError(f"nested deeper than {MAX_DEPTH} levels")


def check_page_depth(page: bytes) -> None:
    """Check a page of many messages, at almost no cost per byte."""
    # The depth is counted only if a stretch of SAFE_LENGTH bytes has no object that ends before a comma. A deep
    # value that contains such objects is not found; it is read as deep as msgspec can read.
    at, end = 0, len(page) - SAFE_LENGTH
    while at < end:
        found = page[at : at + SAFE_LENGTH].rfind(b"},")
        if found < 0:
            check_depth(page)
            return
        at += found + 2


def _depth(data: bytes) -> int:
    """Return the depth of the deepest value of a JSON text."""
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Most strings are now two quotes. Two quotes may also be the end of one string and the start of the next.
    brackets = data.translate(_BRACES_AS_BRACKETS, _NON_DELIMITERS).replace(b'""', b"")
    if b'"' in brackets:
        brackets = _STRING.sub(b"", brackets)
    for layers in range(_USUAL_DEPTH):
        if not brackets:
            return layers
        brackets = brackets.replace(b"[]", b"")
    return _USUAL_DEPTH + max(accumulate(map(_DEPTH_CHANGES.__getitem__, brackets)), default=0)


class Decoder(Generic[_T]):
    """A `msgspec.json.Decoder` with the depth limit."""

    @overload
    def __init__(self: "Decoder[Any]") -> None: ...

    @overload
    def __init__(self, type: type[_T]) -> None: ...

    def __init__(self, type: Any = Any) -> None:
        self._decode = msgspec.json.Decoder(type).decode

    def decode(self, text: bytes | str | msgspec.Raw) -> _T:
        check_depth(text)
        return self._decode(text)  # type: ignore[no-any-return]


@overload
def decode(text: bytes | str | msgspec.Raw, *, type: type[_T]) -> _T: ...


@overload
def decode(text: bytes | str | msgspec.Raw, *, type: Any = Any) -> Any: ...


def decode(text: bytes | str | msgspec.Raw, *, type: Any = Any) -> Any:
    """Decode like `msgspec.json.decode`, with the depth limit."""
    check_depth(text)
    return msgspec.json.decode(text, type=type)
