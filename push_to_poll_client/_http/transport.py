"""Open the HTTP client of feeds and listeners, and close the connections that failed requests leave open."""

import functools
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, cast
from urllib.request import getproxies

import anyio
import anyio.lowlevel
import httpx

from push_to_poll_client._http.origins import without_secrets
from push_to_poll_client._version import __version__

__all__ = [
    "CHUNKS_AT_ONCE",
    "CLOSE_TIMEOUT",
    "close_on_failure",
    "open_client",
    "shared_tls_context",
    "unwind",
    "unwinding",
    "user_agent",
]


@functools.cache
def shared_tls_context() -> ssl.SSLContext:
    """Return the TLS context of the process. Each further one would cost 840 KiB and tens of milliseconds."""
    return httpx.create_ssl_context()


@functools.cache
def user_agent(http_library: str = f"python-httpx/{httpx.__version__}") -> str:
    """Return the `User-Agent` header (RFC 9110 §10.1.5): this library, and the one that it sends with."""
    return f"push-to-poll-client/{__version__} {http_library}"


KEEP_ALIVE = 90.0
"""Seconds: longer than the default fallback interval, so that an idle consumer does not pay a handshake a poll."""


def open_client(
    timeout: httpx.Timeout,
    *,
    tls: ssl.SSLContext | None = None,
    redact: Callable[[object], str] = without_secrets,
) -> httpx.AsyncClient:
    """Open a client that logs no secret and keeps no cookie. A proxy is taken from the environment.

    Args:
        timeout: For requests without a timeout of their own.
        tls: The TLS settings; `None` trusts the certificates that the machine trusts.
        redact: Return a URL as the log may show it.
    """
    tls = tls or shared_tls_context()
    limits = httpx.Limits(max_connections=10, max_keepalive_connections=2, keepalive_expiry=KEEP_ALIVE)
    settings: dict[str, Any] = {
        "timeout": timeout,
        "headers": {"user-agent": user_agent()},
        "cookies": CookieJar(DefaultCookiePolicy(allowed_domains=())),  # kept, they would grow without bound
        "event_hooks": {
            "request": [functools.partial(_hide_url, redact)],
            "response": [_restore_url, _drop_challenge],
        },
    }
    if getproxies().keys() - {"no"}:
        return httpx.AsyncClient(verify=tls, limits=limits, **settings)
    from push_to_poll_client._http.direct_client import DirectClient  # takes 80 ms, since it imports trio

    return DirectClient(tls, limits, **settings)


class _RedactedURL(httpx.URL):
    def __init__(self, url: httpx.URL, redact: Callable[[object], str]) -> None:
        super().__init__(url)
        self._redact = redact

    def __str__(self) -> str:
        return self._redact(super().__str__())


async def _hide_url(redact: Callable[[object], str], request: httpx.Request) -> None:
    # httpx logs the URL of each request at level INFO, with its query.
    request.url = _RedactedURL(request.url, redact)


async def _restore_url(response: httpx.Response) -> None:
    # An `httpx.Auth` that signs URLs sees the request again.
    response.request.url = httpx.URL(response.request.url)


async def _drop_challenge(response: httpx.Response) -> None:
    # httpx reads and decompresses the whole body of a 401 for an `httpx.Auth`, which only needs the headers.
    if response.status_code == HTTPStatus.UNAUTHORIZED:
        await cast("httpx.AsyncByteStream", response.stream).aclose()
        response.stream = httpx.ByteStream(b"")


CLOSE_TIMEOUT = 2.0
"""Seconds to close a connection. Closing waits for no reply, so only a broken connection takes any time."""


def close_on_failure(url: str) -> AbstractAsyncContextManager[dict[str, Any]]:
    """Close the socket that a request opened, if the block fails or is cancelled during the TLS handshake.

    httpcore 1.0.9 forgets the socket of a TLS handshake that is cancelled. A server that stalls there would cost
    one socket per attempt, until the garbage collector closes them. After the handshake the connection belongs to
    the pool, and may serve other requests (HTTP/2).

    Args:
        url: Where the request goes. Without TLS nothing is watched, since that costs some 20 µs.

    Returns:
        A context manager whose value is the extensions of the request.
    """
    return _close_on_failure() if url.startswith("https:") else nullcontext({})


@asynccontextmanager
async def _close_on_failure() -> AsyncIterator[dict[str, Any]]:
    opened: list[Any] = []

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith("connect_tcp.complete"):
            opened.append(info["return_value"])
        elif event.endswith("start_tls.complete"):
            opened.clear()

    try:
        yield {"trace": trace}
    except BaseException:
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            for stream in opened:
                await stream.aclose()
        raise


CHUNKS_AT_ONCE = 100
"""Chunks of a body that are read before other tasks run. Chunks that arrived in one read do not wait for anything:
256 KiB hold 43,000 of one byte each, at 16 µs. A hundred of them take 2 ms."""


@asynccontextmanager
async def unwinding(chunks: AsyncIterator[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
    """Stop reading a body at the end of the block, even if it was not read to its end."""
    try:
        yield chunks
    finally:
        await unwind(chunks)


async def unwind(chunks: AsyncIterator[bytes]) -> None:
    """Stop reading a body before its end.

    httpx reads through half a dozen nested generators. Closing the outer one drops the inner ones: the garbage
    collector ends them, and trio warns about that. A cancelled read unwinds them all. It never waits: chunks that
    have arrived are skipped, and the first wait ends the reading.
    """
    while not await _has_unwound(chunks):
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()


async def _has_unwound(chunks: AsyncIterator[bytes]) -> bool:
    """Skip `CHUNKS_AT_ONCE` chunks; return whether the reading ended at one of them."""
    with anyio.CancelScope(shield=True) as scope, suppress(Exception):
        scope.cancel()
        for _ in range(CHUNKS_AT_ONCE):
            await anext(chunks)
        return False
    return True
