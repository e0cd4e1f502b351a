"""Read an HTTP response, bounded in size and time.

One cancel scope for both, whose deadline moves: a scope for each piece of a body would cost more than its reading.

httpx unpacks whatever it read from the socket at once, and 64 KiB of gzip can hold 64 MiB. Here zlib is told
each time how much it may give.
"""

import re
import zlib
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import anyio

from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._http.caching import Validators, validators_of
from push_to_poll_client._http.headers import MAX_LINKS, TooManyLinks, link_targets, resolve_url
from push_to_poll_client._http.transport import unwind
from push_to_poll_client._validation import quoted

__all__ = [
    "ACCEPTED_STATUSES",
    "ACCEPT_ENCODING",
    "MIN_BODY_PROGRESS",
    "STALL_TIMEOUT",
    "Deadline",
    "Response",
    "find_link",
    "read_body",
]


STALL_TIMEOUT = 10.0
"""Seconds in which `MIN_BODY_PROGRESS` bytes of a body have to come. TCP sends a lost packet again within 3."""

MIN_BODY_PROGRESS = 1024
"""Bytes that have to come in `STALL_TIMEOUT` seconds: a tenth of what modems did."""


class Deadline:
    """The time for one answer. Made when it is asked for.

    Args:
        timeout: Seconds for the whole answer.
        wait: Seconds for which the server may hold it, on top. So long its body may stand still, too: CouchDB
            sends a newline now and then.

    Attributes:
        scope: What it all happens in.
    """

    def __init__(self, timeout: float, wait: float) -> None:
        now = anyio.current_time()
        self._hold_end = now + wait
        self._end = self._hold_end + timeout
        self._missing = 0
        self.scope = anyio.CancelScope(deadline=self._end)

    def start_body(self) -> None:
        """The headers are here."""
        self._missing = MIN_BODY_PROGRESS
        self.scope.deadline = min(self._end, max(self._hold_end, anyio.current_time()) + STALL_TIMEOUT)

    def add_bytes(self, size: int) -> None:
        """So many bytes of the body came."""
        self._missing -= size
        if self._missing <= 0:
            self.start_body()

    def expect_response(self) -> None:
        """Another answer is asked for in the same time."""
        self.scope.deadline = self._end

    @property
    def stalled(self) -> bool:
        """Whether that was it, when the scope was cancelled."""
        return self.scope.deadline < self._end


ACCEPT_ENCODING = "gzip"
"""What is asked for. It can unpack deflate too, of which servers have two kinds; httpx would ask for more."""

_NO_BODY = frozenset({204, 304})
_PADDING = b"\0 \t\r\n"
_SIZE = re.compile(r"[0-9]+")


async def read_body(response: Any, limit: int, where: str, patience: Deadline) -> bytes:
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
        _check_size(len(response.content), limit, where)
        return bytes(response.content)
    _check_size(_content_length(response), limit, where)
    unpack = _decoder_for(response.headers.get("content-encoding", ""), where)
    parts, size, wire = list[bytes](), 0, 0
    chunks = response.aiter_raw()
    patience.start_body()
    try:
        async for chunk in chunks:
            patience.add_bytes(len(chunk))
            part = unpack.decode(chunk, limit + 1 - size)
            wire, size = wire + len(chunk), size + len(part)
            _check_size(max(wire, size), limit, where)
            parts.append(part)
    except BaseException:
        await unwind(chunks)
        raise
    if wire:
        unpack.flush()
    return b"".join(parts)


def _check_size(size: int, limit: int, where: str) -> None:
    if size > limit:
        raise FeedError(f"{where} sent a body of more than {limit} bytes; raise max_body= if that is right")


class _IdentityDecoder:
    def decode(self, chunk: bytes, most: int) -> bytes:  # noqa: ARG002
        return chunk

    def flush(self) -> None:
        pass


class _ZlibDecoder:
    """Zlib, by any of its three wrappings."""

    def __init__(self, name: str, wbits: int, where: str) -> None:
        self._zlib = zlib.decompressobj(wbits=wbits)
        self._name = name
        self._where = where

    def decode(self, chunk: bytes, most: int) -> bytes:
        if self._zlib.eof:
            self._check_trailing_data(chunk)
            return b""
        try:
            part = self._zlib.decompress(chunk, most)
        except zlib.error as error:
            raise FeedError(f"{self._where} sent a body that is no {self._name}: {quoted(error)}") from error
        self._check_trailing_data(self._zlib.unused_data)
        return part

    def flush(self) -> None:
        if not self._zlib.eof:
            raise FeedError(f"{self._where} sent a {self._name} body that ends in the middle")

    def _check_trailing_data(self, data: bytes) -> None:
        """Padding is ignored, as browsers do. A second file, which gzip allows, would be lost."""
        if data.strip(_PADDING):
            raise FeedError(
                f"{self._where} sent a {self._name} body with something behind its end; "
                'have it sent as it is: headers={"accept-encoding": "identity"}'
            )


class _DeflateDecoder:
    """By the standard in zlib's wrapping (RFC 9110 §8.4.1.2), by many servers in none."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._head = b""
        self._decoder: _ZlibDecoder | None = None

    def decode(self, chunk: bytes, most: int) -> bytes:
        if self._decoder is None:
            self._head += chunk
            if len(self._head) < 2:  # noqa: PLR2004  # bytes of zlib's head
                return b""
            chunk, self._decoder = self._head, _ZlibDecoder("deflate", _wbits(self._head), self._where)
        return self._decoder.decode(chunk, most)

    def flush(self) -> None:
        (self._decoder or _ZlibDecoder("deflate", zlib.MAX_WBITS, self._where)).flush()


def _wbits(head: bytes) -> int:
    """RFC 1950 §2.2: a zlib head says 8, and is a multiple of 31."""
    is_zlib = head[0] & 15 == 8 and (head[0] * 256 + head[1]) % 31 == 0  # noqa: PLR2004
    return zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS


def _content_length(response: Any) -> int:
    """The bytes that are to come; 0: it does not say. 304 speaks of a body that it does not have."""
    length = response.headers.get("content-length", "")
    return int(length[:20]) if _SIZE.fullmatch(length) and response.status_code not in _NO_BODY else 0


def _decoder_for(encoding: str, where: str) -> _IdentityDecoder | _ZlibDecoder | _DeflateDecoder:
    match encoding.strip().lower():
        case "" | "identity":
            return _IdentityDecoder()
        case "gzip" | "x-gzip":  # RFC 9110 §8.4.1.3: the same
            return _ZlibDecoder("gzip", zlib.MAX_WBITS | 16, where)
        case "deflate":
            return _DeflateDecoder(where)
        case _:
            raise FeedError(
                f"{where} sent Content-Encoding {quoted(encoding)}, but was asked for {ACCEPT_ENCODING}"
            )


ACCEPTED_STATUSES = frozenset({200, 203, 204, 304})
"""What is an answer; the others are refusals."""


class Response(NamedTuple):
    """What the server said.

    Attributes:
        status: Of any kind.
        headers: By names in whatever case.
        body: Unpacked.
        retry_after: Seconds that the server asks to be left alone; `None` when it did not.
        url: What answered, after redirects: what links in the answer are relative to. It may hold secrets.
        known: By what it was asked for news alone; `None`: for all there is.
        redirected: Whether another URL answered than was asked.
        where: Who said it, for errors, without secrets: the feed, or another origin that it led to.
        within_poll: As `retry_after`, before a further page of the same poll.
        moves: The permanent redirects that were followed to this answer, each as its old and its new URL.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    retry_after: float | None
    url: str
    known: Validators | None = None
    redirected: bool = False
    where: str = ""
    within_poll: float | None = None
    permanent_redirects: tuple[tuple[str, str], ...] = ()

    @property
    def media_type(self) -> str:
        """What it calls itself, in lower case and without parameters; "" when it does not."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def wrong_type(self, right: str) -> FeedError:
        """The error for what calls itself something else than this feed can read: `right` says what that is."""
        stated = quoted(self.headers.get("content-type", ""))
        return FeedError(
            f"{self.where} sent {stated}, {right}; check that the URL is that of a feed and no login page stands "
            "before it"
        )

    @property
    def validators(self) -> Validators | None:
        """By what to ask for news alone the next time, once all that came is settled; `None`: for all again.

        They belong to the URL that was asked: an answer by way of a redirect has none.
        """
        if self.redirected:
            return None
        return validators_of(self.headers, self.known if self.status == HTTPStatus.NOT_MODIFIED else None)


def find_link(answer: Response, relation: str) -> str | None:
    """Where the first link of this relation leads.

    Args:
        answer: Of a server.
        relation: Its type: "next", or a URL for one that is nobody's standard. Case says nothing.

    Returns:
        The target, absolute: resolved against what answered. It may be of another origin, which `Origin.ask`
        looks at, and hold secrets. `None`: there is no such link.

    Raises:
        FeedError: There is one, and it leads to no URL; or there are too many others before it. Taken for none,
            it would look like the end of the feed.
    """
    try:
        target = next(link_targets(answer.headers.get("link", ""), relation, answer.url), None)
    except TooManyLinks:
        raise FeedError(
            f"{answer.where} has more than {MAX_LINKS} links, and none of the first is what was sought"
        ) from None
    if target is None:
        return None
    url = resolve_url(target, answer.url)
    if url is None:
        raise FeedError(f"{answer.where} links to its {quoted(relation)} by what is no URL")
    return url
