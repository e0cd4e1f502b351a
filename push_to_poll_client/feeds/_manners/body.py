"""The body of an answer, bounded on the wire and unpacked.

httpx unpacks whatever it read from the socket at once, and 64 KiB of gzip can hold 64 MiB. Here zlib is told
each time how much it may give.
"""

import re
import zlib
from typing import Any

from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._http_client import unwind
from push_to_poll_client._validation import quoted
from push_to_poll_client.feeds._manners.patience import Patience

__all__ = ["ACCEPT_ENCODING", "read_body"]

ACCEPT_ENCODING = "gzip"
"""What is asked for. It can unpack deflate too, of which servers have two kinds; httpx would ask for more."""

_NO_BODY = frozenset({204, 304})
_BEHIND = b"\0 \t\r\n"
_SIZE = re.compile(r"[0-9]+")


async def read_body(response: Any, limit: int, where: str, patience: Patience) -> bytes:
    """Read a streamed `httpx.Response`, or one of another module, to its end.

    Args:
        response: Not read yet.
        limit: Bytes, for the body on the wire and for the body unpacked. Not more than a read from the socket
            beyond it is ever held.
        where: The URL without secrets, for errors.
        patience: Is told what comes.

    Raises:
        FeedError: It is larger, or is not what its `Content-Encoding` says, or that is unknown here.
    """
    if response.is_stream_consumed:  # by a transport that keeps answers, as caches and mocks do
        _check(len(response.content), limit, where)
        return bytes(response.content)
    _check(_announced(response), limit, where)
    unpack = _unpacker(response.headers.get("content-encoding", ""), where)
    parts, size, wire = list[bytes](), 0, 0
    chunks = response.aiter_raw()
    patience.begin()
    try:
        async for chunk in chunks:
            patience.came(len(chunk))
            part = unpack.some(chunk, limit + 1 - size)
            wire, size = wire + len(chunk), size + len(part)
            _check(max(wire, size), limit, where)
            parts.append(part)
    except BaseException:
        await unwind(chunks)
        raise
    if wire:
        unpack.end()
    return b"".join(parts)


def _check(size: int, limit: int, where: str) -> None:
    if size > limit:
        raise FeedError(f"{where} sent a body of more than {limit} bytes; raise max_body= if that is right")


class _Plain:
    def some(self, chunk: bytes, most: int) -> bytes:  # noqa: ARG002
        return chunk

    def end(self) -> None:
        pass


class _Packed:
    """Zlib, by any of its three wrappings."""

    def __init__(self, name: str, wbits: int, where: str) -> None:
        self._zlib = zlib.decompressobj(wbits=wbits)
        self._name = name
        self._where = where

    def some(self, chunk: bytes, most: int) -> bytes:
        if self._zlib.eof:
            self._check_behind(chunk)
            return b""
        try:
            part = self._zlib.decompress(chunk, most)
        except zlib.error as error:
            raise FeedError(f"{self._where} sent a body that is no {self._name}: {quoted(error)}") from error
        self._check_behind(self._zlib.unused_data)
        return part

    def end(self) -> None:
        if not self._zlib.eof:
            raise FeedError(f"{self._where} sent a {self._name} body that ends in the middle")

    def _check_behind(self, data: bytes) -> None:
        """Padding is ignored, as browsers do. A second file, which gzip allows, would be lost."""
        if data.strip(_BEHIND):
            raise FeedError(
                f"{self._where} sent a {self._name} body with something behind its end; "
                'have it sent as it is: headers={"accept-encoding": "identity"}'
            )


class _Deflate:
    """By the standard in zlib's wrapping (RFC 9110 §8.4.1.2), by many servers in none."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._head = b""
        self._packed: _Packed | None = None

    def some(self, chunk: bytes, most: int) -> bytes:
        if self._packed is None:
            self._head += chunk
            if len(self._head) < 2:  # noqa: PLR2004  # bytes of zlib's head
                return b""
            chunk, self._packed = self._head, _Packed("deflate", _wbits(self._head), self._where)
        return self._packed.some(chunk, most)

    def end(self) -> None:
        (self._packed or _Packed("deflate", zlib.MAX_WBITS, self._where)).end()


def _wbits(head: bytes) -> int:
    """RFC 1950 §2.2: a zlib head says 8, and is a multiple of 31."""
    is_zlib = head[0] & 15 == 8 and (head[0] * 256 + head[1]) % 31 == 0  # noqa: PLR2004
    return zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS


def _announced(response: Any) -> int:
    """The bytes that are to come; 0: it does not say. 304 speaks of a body that it does not have."""
    length = response.headers.get("content-length", "")
    return int(length[:20]) if _SIZE.fullmatch(length) and response.status_code not in _NO_BODY else 0


def _unpacker(encoding: str, where: str) -> _Plain | _Packed | _Deflate:
    match encoding.strip().lower():
        case "" | "identity":
            return _Plain()
        case "gzip" | "x-gzip":  # RFC 9110 §8.4.1.3: the same
            return _Packed("gzip", zlib.MAX_WBITS | 16, where)
        case "deflate":
            return _Deflate(where)
        case _:
            raise FeedError(
                f"{where} sent Content-Encoding {quoted(encoding)}, but was asked for {ACCEPT_ENCODING}"
            )
