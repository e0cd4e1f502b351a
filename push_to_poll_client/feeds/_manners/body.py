"""The body of an answer, bounded on the wire and unpacked.

httpx unpacks whatever it read from the socket at once, and 64 KiB of gzip can hold 64 MiB. Here zlib is told
each time how much it may give.
"""

import zlib
from typing import Any

from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._http_client import unwind
from push_to_poll_client._text import quoted

__all__ = ["ACCEPT_ENCODING", "read_body"]

ACCEPT_ENCODING = "gzip"
"""What this can unpack. httpx would ask for more."""


async def read_body(response: Any, limit: int, where: str) -> bytes:
    """Read a streamed `httpx.Response`, or one of another module, to its end.

    Args:
        response: Not read yet.
        limit: Bytes, for the body on the wire and for the body unpacked. Not more than a read from the socket
            beyond it is ever held.
        where: The URL without secrets, for errors.

    Raises:
        FeedError: It is larger, or is not what its `Content-Encoding` says, or that is unknown here.
    """
    if response.is_stream_consumed:  # by a transport that keeps answers, as caches and mocks do
        _check(len(response.content), limit, where)
        return bytes(response.content)
    unpack = _unpacker(response.headers.get("content-encoding", ""), where)
    parts, size, wire = list[bytes](), 0, 0
    chunks = response.aiter_raw()
    try:
        async for chunk in chunks:
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


class _Gzip:
    def __init__(self, where: str) -> None:
        self._zlib = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        self._where = where

    def some(self, chunk: bytes, most: int) -> bytes:
        if self._zlib.eof:  # padding, ignored as browsers do; zlib would collect it
            return b""
        try:
            return self._zlib.decompress(chunk, most)
        except zlib.error as error:
            raise FeedError(f"{self._where} sent a body that is no gzip: {quoted(error)}") from error

    def end(self) -> None:
        if not self._zlib.eof:
            raise FeedError(f"{self._where} sent a gzip body that ends in the middle")


def _unpacker(encoding: str, where: str) -> _Plain | _Gzip:
    match encoding.strip().lower():
        case "" | "identity":
            return _Plain()
        case "gzip" | "x-gzip":  # RFC 9110 §8.4.1.3: the same
            return _Gzip(where)
        case _:
            raise FeedError(
                f"{where} sent Content-Encoding {quoted(encoding)}, but was asked for {ACCEPT_ENCODING}"
            )
