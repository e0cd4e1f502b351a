"""Decode JSON from others, with a limit on its depth that is the same on every Python.

msgspec reads a nested value by recursion. The depth that it reaches depends on the version of Python, and on 3.11
also on the depth of the caller's stack. The limit here is lower, so the result depends on neither.

A value of depth n has n opening and n closing brackets. So a text that is shorter than two brackets for each
allowed level needs no check, and most messages are that short.
"""

import re
from itertools import accumulate
from typing import Any, Generic, TypeVar, overload

import msgspec

MAX_DEPTH = 500
"""Levels of nested arrays and objects. CPython 3.11 has room for 1,000 calls, and a handler takes up to 200."""

SAFE_LENGTH = 2 * MAX_DEPTH
"""Length in bytes up to which a text cannot be too deep."""

DECODE_ERRORS = (ValueError, RecursionError)
"""The errors of decoding: msgspec's own and of invalid UTF-8 (both `ValueError`), and of a value nested too
deep."""

_T = TypeVar("_T")

_STRING = re.compile(rb'"[^"]*+"?+')
_DELIMITERS = b'[]{}"'
_NON_DELIMITERS = bytes(set(range(256)).difference(_DELIMITERS))
_BRACES_AS_BRACKETS = bytes.maketrans(b"{}", b"[]")
_DEPTH_CHANGES = [0] * 256
_DEPTH_CHANGES[ord("[")], _DEPTH_CHANGES[ord("]")] = 1, -1

_USUAL_DEPTH = 16
"""Depth of usual values. Up to it levels are counted by replacing, in a tenth of the time that the loop takes."""


def check_depth(text: bytes | str | msgspec.Raw) -> None:
    """Check that no value in a JSON text is nested deeper than `MAX_DEPTH`, in time linear in the text.

    Raises:
        RecursionError: A value is nested deeper.
    """
    if len(text) <= SAFE_LENGTH:
        return
    data = text.encode(errors="replace") if isinstance(text, str) else bytes(text)
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(data) > MAX_DEPTH:
        raise RecursionError(f"it is nested deeper than {MAX_DEPTH} levels")


def check_page_depth(page: bytes) -> None:
    """Like `check_depth`, for a page of many messages, where each byte has to cost next to nothing.

    The depth is counted only if the page has a stretch of `SAFE_LENGTH` bytes in which no object ends before a
    comma. A deep value with such objects in between is not found; it is read as deep as msgspec can read.

    Raises:
        RecursionError: A value is nested too deep.
    """
    at, end = 0, len(page) - SAFE_LENGTH
    while at < end:
        found = page[at : at + SAFE_LENGTH].rfind(b"},")
        if found < 0:
            check_depth(page)
            return
        at += found + 2


def _depth(data: bytes) -> int:
    """Depth of the deepest value in a JSON text; an arbitrary number if the text is not JSON."""
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Most strings are two quotes now. Two quotes side by side may also end one string and begin the next.
    brackets = data.translate(_BRACES_AS_BRACKETS, _NON_DELIMITERS).replace(b'""', b"")
    if b'"' in brackets:
        brackets = _STRING.sub(b"", brackets)
    for layers in range(_USUAL_DEPTH):
        if not brackets:
            return layers
        brackets = brackets.replace(b"[]", b"")
    return _USUAL_DEPTH + max(accumulate(map(_DEPTH_CHANGES.__getitem__, brackets)), default=0)


class Decoder(Generic[_T]):
    """Like `msgspec.json.Decoder`, with the limit on depth.

    Args:
        type: The type to decode into.
    """

    @overload
    def __init__(self: "Decoder[Any]") -> None: ...

    @overload
    def __init__(self, type: type[_T]) -> None: ...

    def __init__(self, type: Any = Any) -> None:
        self._decode = msgspec.json.Decoder(type).decode

    def decode(self, text: bytes | str | msgspec.Raw) -> _T:
        """Decode a text.

        Raises:
            ValueError: The text is not JSON, or not of this type.
            RecursionError: A value is nested too deep.
        """
        check_depth(text)
        return self._decode(text)  # type: ignore[no-any-return]


@overload
def decode(text: bytes | str | msgspec.Raw, *, type: type[_T]) -> _T: ...


@overload
def decode(text: bytes | str | msgspec.Raw, *, type: Any = Any) -> Any: ...


def decode(text: bytes | str | msgspec.Raw, *, type: Any = Any) -> Any:
    """Like `msgspec.json.decode`, with the limit on depth. Raises like `Decoder.decode`."""
    check_depth(text)
    return msgspec.json.decode(text, type=type)
