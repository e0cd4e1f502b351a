"""What becomes of a page on its way: answers that claim to be one and are none."""

import functools
import gzip
from typing import Literal, TypeAlias

from push_to_poll_client.testing._asgi import Header

__all__ = ["BATCH", "Spoiled", "spoiled"]

Spoiled: TypeAlias = Literal["type", "encoding", "truncated", "bomb", "garbage"]

BATCH = b"application/cloudevents-batch+json"
BOMB = 64 * 1024 * 1024
"""Bytes that come of a bomb; it has 65,000."""


def spoiled(how: Spoiled, body: bytes) -> tuple[list[Header], bytes]:
    """The headers and the body of an answer, in place of a page."""
    match how:
        case "type":
            return [(b"content-type", b"text/html")], b"<html><title>Please log in</title></html>"
        case "encoding":
            return _encoded(b"br"), body
        case "truncated":
            packed = gzip.compress(body)
            return _encoded(b"gzip"), packed[: len(packed) // 2]
        case "bomb":
            return _encoded(b"gzip"), _bomb()
        case _:
            return [(b"content-type", BATCH)], bytes(range(256))


def _encoded(encoding: bytes) -> list[Header]:
    return [(b"content-type", BATCH), (b"content-encoding", encoding)]


@functools.cache
def _bomb() -> bytes:
    return gzip.compress(bytes(BOMB))
