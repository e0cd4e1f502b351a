"""Read an HTTP response, bounded in size and time.

Time: one cancel scope with a moving deadline bounds the whole response and each stretch of its body. A scope per
chunk would cost more than reading the chunk.

Size: httpx decompresses everything that it read from the socket at once, and 64 KiB of gzip can hold 64 MiB. Here
zlib gets a limit for each step.
"""

import re
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel

from push_to_poll_client._exceptions import FeedError, FeedGone, FeedRefused
from push_to_poll_client._http.caching import Validators, validators_of
from push_to_poll_client._http.headers import (
    MAX_LINKS,
    TooManyLinks,
    link_targets,
    requested_delay,
    resolve_url,
)
from push_to_poll_client._http.origins import without_secrets
from push_to_poll_client._http.transport import CHUNKS_AT_ONCE, unwinding
from push_to_poll_client._validation import quoted

STALL_TIMEOUT = 10.0
"""Seconds in which `MIN_BODY_PROGRESS` bytes of a body must arrive. TCP resends a lost packet within 3."""

MIN_BODY_PROGRESS = 1024
"""Bytes that must arrive in `STALL_TIMEOUT` seconds: a tenth of the speed of a modem."""


HOLD_GRACE = 5.0
"""Seconds after a wait by which the headers must arrive: a round trip, and one or two lost packets."""


class Deadline:
    """Deadline of one response, starting now."""

    def __init__(self, timeout: float, wait: float) -> None:
        # During the wait the body may stall: CouchDB sends a newline now and then. The headers must arrive within
        # `HOLD_GRACE` seconds after it, and part of the body within `STALL_TIMEOUT` more.
        now = anyio.current_time()
        self._hold_end = now + wait
        self._end = self._hold_end + timeout
        self._first_end = self._end if wait <= 0 else min(self._end, self._hold_end + HOLD_GRACE)
        self._missing = 0
        self.wait = wait
        self.still_held = wait > 0  # True until more than a keep-alive arrives
        self.scope = anyio.CancelScope(deadline=self._first_end)

    def start_body(self) -> None:
        """Note that the headers or enough of the body arrived: from now on the body must not stall."""
        self._missing = MIN_BODY_PROGRESS
        self.scope.deadline = min(self._end, max(self._hold_end, anyio.current_time()) + STALL_TIMEOUT)

    def add_bytes(self, size: int) -> None:
        """Note the number of bytes of the body that arrived."""
        self._missing -= size
        if self._missing <= 0:
            self.still_held = False
            self.start_body()

    def expect_response(self) -> None:
        """Note that another request is sent, whose response must arrive before the same deadline."""
        self.scope.deadline = self._first_end

    @property
    def stalled(self) -> bool:
        """True if a stalled body cancelled the scope, False if the whole response took too long."""
        return self.scope.deadline < self._end


ACCEPT_ENCODING = "gzip"
"""The only encoding requested. Deflate is read too, although servers send two kinds."""

_PADDING = b"\0 \t\r\n"


class BodyError(Exception):
    """The body cannot be read. The text continues after the name of the server."""


class _Decompressor:
    """Decompresses gzip or deflate, with a zlib header (RFC 9110 §8.4.1.2) or, as many servers send it, raw."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._head = b""
        self._zlib = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16) if name == "gzip" else None

    def decode(self, chunk: bytes, max_length: int) -> bytes:
        if self._zlib is None:
            chunk = self._head = self._head + chunk
            if len(chunk) < 2:  # noqa: PLR2004  # bytes of a zlib header
                return b""
            # RFC 1950 §2.2: a zlib header says 8 for deflate, and is a multiple of 31.
            is_zlib = chunk[0] & 15 == 8 and (chunk[0] * 256 + chunk[1]) % 31 == 0  # noqa: PLR2004
            self._zlib = zlib.decompressobj(wbits=zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
        part, trailing = b"", chunk
        if not self._zlib.eof:
            try:
                part = self._zlib.decompress(chunk, max_length)
            except zlib.error as error:
                raise BodyError(f"sent a body that is not valid {self._name}: {quoted(error)}") from error
            trailing = self._zlib.unused_data
        # Padding is ignored, as browsers do. A second file, which gzip allows, would be lost.
        if trailing.strip(_PADDING):
            raise BodyError(
                f"sent a {self._name} body with extra data after its end; "
                'request it uncompressed: headers={"accept-encoding": "identity"}'
            )
        return part

    def flush(self) -> None:
        if self._zlib is None or not self._zlib.eof:
            raise BodyError(f"sent a {self._name} body that is cut off")


def _decoder_for(encoding: str) -> _Decompressor | None:
    match encoding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip":  # two names for one format (RFC 9110 §8.4.1.3)
            return _Decompressor("gzip")
        case "deflate":
            return _Decompressor("deflate")
        case _:
            raise BodyError(
                f"sent Content-Encoding {quoted(encoding)}, which was not requested; report it to its operator"
            )


_NO_BODY = frozenset({204, 304})
_SIZE = re.compile(r"[0-9]+")


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise BodyError(f"sent a body of more than {limit} bytes; raise max_body= to accept it")


async def read_body(response: Any, limit: int, on_chunk: Callable[[int], None]) -> bytes:
    """Read a streamed `httpx.Response`, or a compatible one, to its end."""
    if response.is_stream_consumed:  # by a transport that stores responses, as caches and mocks do
        _check_size(len(response.content), limit)
        return bytes(response.content)
    length = response.headers.get("content-length", "")
    if _SIZE.fullmatch(length) and response.status_code not in _NO_BODY:  # 304 may name a length without a body
        _check_size(int(length[:20]), limit)
    decoder = _decoder_for(response.headers.get("content-encoding", ""))
    parts, size, wire = list[bytes](), 0, 0
    async with unwinding(response.aiter_raw()) as chunks:
        async for chunk in chunks:
            on_chunk(len(chunk))
            part = chunk
            if decoder is not None:
                part = decoder.decode(chunk, min(limit + 1 - size, sys.maxsize))
            wire, size = wire + len(chunk), size + len(part)
            _check_size(max(wire, size), limit)  # exceeded by one read from the socket at most
            parts.append(part)
            if len(parts) % CHUNKS_AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()
    if wire and decoder is not None:
        decoder.flush()
    return b"".join(parts)


ACCEPTED_STATUSES = frozenset({200, 203, 204, 304})


class Response(NamedTuple):
    """Response of the server, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    retry_after: float | None  # seconds for which the server asks not to be polled
    url: str  # after redirects; may hold secrets
    known: Validators | None = None  # sent with the request
    redirected: bool = False
    where: str = ""  # without secrets: the feed, or another origin that it led to
    within_poll: float | None = None  # as `retry_after`, before a further page of the same poll
    permanent_redirects: tuple[tuple[str, str], ...] = ()  # old and new URL of each that led here

    def __repr__(self) -> str:  # URL, headers and body may hold a secret
        return f"{type(self).__name__}({self.status}, {len(self.body)} bytes, where={self.where!r})"

    @property
    def media_type(self) -> str:
        """Media type of the response in lower case, without parameters; "" if it has none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def wrong_type(self, expected: str) -> FeedError:
        """Return the error for a media type that the feed cannot read; `expected` continues the text."""
        stated = quoted(self.headers.get("content-type", ""))
        return FeedError(
            f"{self.where} sent {stated}, {expected}; check that the URL leads to the feed and not to a login page"
        )

    @property
    def validators(self) -> Validators | None:
        """Validators to send next time, once all messages of the response are settled; `None` if it has none."""
        if self.redirected:  # validators belong to the URL that was asked
            return None
        return validators_of(self.headers, self.known if self.status == HTTPStatus.NOT_MODIFIED else None)


def find_link(response: Response, relation: str) -> str | None:
    """Return the absolute target of the first link with this relation; None if there is none."""
    # An ignored link would look like the end of the feed. `Client.send_request` checks the target's origin.
    try:
        target = next(link_targets(response.headers.get("link", ""), relation, response.url), None)
    except TooManyLinks:
        raise FeedError(
            f"{response.where} sent more than {MAX_LINKS} links; the first ones do not include {quoted(relation)}"
        ) from None
    if target is None:
        return None
    url = resolve_url(target, response.url)
    if url is None:
        raise FeedError(
            f"{response.where} sent a {quoted(relation)} link that is not a URL; report it to the publisher"
        )
    return url


class HeldTooLong(FeedError):
    """The server held its response longer than requested. This says nothing about the feed."""


_TRANSIENT_STATUSES = frozenset({408, 425, 429})
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


def error_for_status(status: int, retry_after: float | None, where: str) -> FeedError:
    """Map the status of an HTTP error response to a FeedError; `where` is the URL without secrets."""
    seen = f"{where} answered {status} {_PHRASES.get(status, '')}".rstrip()
    if status == HTTPStatus.GONE:
        return FeedGone(
            f"{seen}: the feed no longer exists; ask its publisher for the new URL", retry_after=retry_after
        )
    throttled = status == HTTPStatus.FORBIDDEN and retry_after is not None
    if 400 <= status < 500 and status not in _TRANSIENT_STATUSES and not throttled:  # noqa: PLR2004
        return FeedRefused(f"{seen}; check the URL and the credentials", retry_after=retry_after)
    return FeedError(f"{seen}; retrying later", retry_after=retry_after)


def error_for_exception(error: Exception) -> FeedError | None:
    """Map an error of `raise_for_status()`, of httpx or compatible, to a FeedError; None for other errors."""
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if not isinstance(status, int):
        return None
    retry_after = requested_delay(status, response.headers, time.time())
    return error_for_status(status, retry_after, without_secrets(response.url))
