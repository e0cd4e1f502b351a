"""Decode JSON that others wrote, with one limit on its depth that is the same on every Python.

msgspec reads a nested value by recursion. How deep it gets depends on the version of Python, and on 3.11 also on
how deep the caller's stack is. The limit here is lower, so what is read depends on neither.

A value of depth n has n opening and n closing brackets. So a text that is shorter than two brackets for each level
needs no look, and most messages are that short.
"""

import re
from itertools import accumulate
from typing import Any, Generic, TypeVar, overload

import msgspec

__all__ = ["DECODE_ERRORS", "MAX_DEPTH", "SAFE_LENGTH", "Decoder", "check_depth", "check_page_depth", "decode"]

MAX_DEPTH = 500
"""Arrays and objects in one another. CPython 3.11 has room for 1,000 calls, and a handler's own take up to 200."""

SAFE_LENGTH = 2 * MAX_DEPTH
"""Bytes of a text that cannot be too deep."""

DECODE_ERRORS = (ValueError, RecursionError)
"""What decoding raises: msgspec's own, of invalid UTF-8 (both `ValueError`), of a value nested too deep."""

_T = TypeVar("_T")

_STRING = re.compile(rb'"[^"]*+"?+')
_DELIMITERS = b'[]{}"'
_NON_DELIMITERS = bytes(set(range(256)).difference(_DELIMITERS))
_BRACES_AS_BRACKETS = bytes.maketrans(b"{}", b"[]")
_DEPTH_CHANGES = [0] * 256
_DEPTH_CHANGES[ord("[")], _DEPTH_CHANGES[ord("]")] = 1, -1

_USUAL_DEPTH = 16
"""Depth of usual values. It is counted by replacing, which takes a tenth of the time of the loop for the rest."""


def check_depth(text: bytes | str | msgspec.Raw) -> None:
    """Check that no value in a JSON text is nested deeper than `MAX_DEPTH`, in time linear in the text.

    Raises:
        RecursionError: One is.
    """
    if len(text) <= SAFE_LENGTH:
        return
    data = text.encode(errors="replace") if isinstance(text, str) else bytes(text)
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(data) > MAX_DEPTH:
        raise RecursionError(f"it is nested deeper than {MAX_DEPTH} levels")


def check_page_depth(page: bytes) -> None:
    """As `check_depth`, for a page of many messages, of which each byte has to cost next to nothing.

    The page is looked at closely only if it has a stretch as long as a value that is too deep, and in it no object
    ends before a comma. A deep value with such objects in between passes, up to what msgspec reads.

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
    """The deepest value of a JSON text. Of a text that is not JSON any number."""
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    # What is left of most strings is two quotes. Two others side by side end one string and begin the next.
    brackets = data.translate(_BRACES_AS_BRACKETS, _NON_DELIMITERS).replace(b'""', b"")
    if b'"' in brackets:
        brackets = _STRING.sub(b"", brackets)
    for layers in range(_USUAL_DEPTH):
        if not brackets:
            return layers
        brackets = brackets.replace(b"[]", b"")
    return _USUAL_DEPTH + max(accumulate(map(_DEPTH_CHANGES.__getitem__, brackets)), default=0)


class Decoder(Generic[_T]):
    """As `msgspec.json.Decoder`, with the limit on depth.

    Args:
        type: What is decoded.
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
            ValueError: It is not JSON, or not of this type.
            RecursionError: It is nested too deep.
        """
        check_depth(text)
        return self._decode(text)  # type: ignore[no-any-return]


@overload
def decode(text: bytes | str | msgspec.Raw, *, type: type[_T]) -> _T: ...


@overload
def decode(text: bytes | str | msgspec.Raw, *, type: Any = Any) -> Any: ...


def decode(text: bytes | str | msgspec.Raw, *, type: Any = Any) -> Any:
    """As `msgspec.json.decode`, with the limit on depth. Raises as `Decoder.decode`."""
    check_depth(text)
    return msgspec.json.decode(text, type=type)
