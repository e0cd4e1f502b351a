"""Open the HTTP client that feeds and listeners send by, and close what a failed request leaves."""

import functools
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib import metadata
from typing import Any, cast
from urllib.request import getproxies

import anyio
import httpx

from push_to_poll_client._http.origins import without_secrets

__all__ = [
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
    """The one TLS context of the process: each would cost 840 KiB and tens of milliseconds."""
    return httpx.create_ssl_context()


KEEP_ALIVE = 90.0
"""Seconds: longer than the default fallback interval, so that an idle consumer does not pay a handshake a poll."""


CLOSE_TIMEOUT = 2.0
"""Seconds for giving back a connection. Nothing is said for goodbye, so only what is broken takes any time."""


@functools.cache
def user_agent(beneath: str = f"python-httpx/{httpx.__version__}") -> str:
    """Who asks, for the server's log (RFC 9110 §10.1.5): this library, and what it sends by.

    Args:
        beneath: How that calls itself.
    """
    try:
        version = metadata.version("push-to-poll-client")
    except metadata.PackageNotFoundError:  # run from its sources
        version = "0"
    return f"push-to-poll-client/{version} {beneath}"


def open_client(
    timeout: httpx.Timeout,
    *,
    tls: ssl.SSLContext | None = None,
    shown: Callable[[object], str] = without_secrets,
) -> httpx.AsyncClient:
    """Open a client that logs no secret and keeps no cookie. A proxy is taken from the environment.

    Args:
        timeout: For requests that name none of their own.
        tls: Whom to trust; `None`: the certificates that the machine trusts.
        shown: What stands in the log for a URL.
    """
    tls = tls or shared_tls_context()
    limits = httpx.Limits(max_connections=10, max_keepalive_connections=2, keepalive_expiry=KEEP_ALIVE)
    settings: dict[str, Any] = {
        "timeout": timeout,
        "headers": {"user-agent": user_agent()},
        "cookies": CookieJar(DefaultCookiePolicy(allowed_domains=())),  # kept, they would grow without bound
        "event_hooks": {
            "request": [functools.partial(_hide_url, shown)],
            "response": [_restore_url, _drop_challenge],
        },
    }
    if getproxies().keys() - {"no"}:
        return httpx.AsyncClient(verify=tls, limits=limits, **settings)
    from push_to_poll_client._http.direct_client import DirectClient  # takes 80 ms, since it imports trio

    return DirectClient(tls, limits, **settings)


class _RedactedURL(httpx.URL):
    def __init__(self, url: httpx.URL, shown: Callable[[object], str]) -> None:
        super().__init__(url)
        self._redact = shown

    def __str__(self) -> str:
        return self._redact(super().__str__())


async def _hide_url(shown: Callable[[object], str], request: httpx.Request) -> None:
    """Httpx logs the URL of each request at level INFO, with its query."""
    request.url = _RedactedURL(request.url, shown)


async def _restore_url(response: httpx.Response) -> None:
    """An `httpx.Auth` that signs URLs sees the request again."""
    response.request.url = httpx.URL(response.request.url)


async def _drop_challenge(response: httpx.Response) -> None:
    """Httpx reads and unpacks a 401 whole for an `httpx.Auth`, whatever its size; its header is enough."""
    if response.status_code == HTTPStatus.UNAUTHORIZED:
        await cast("httpx.AsyncByteStream", response.stream).aclose()
        response.stream = httpx.ByteStream(b"")


def close_on_failure(url: str) -> AbstractAsyncContextManager[dict[str, Any]]:
    """Close the socket that a request opened, if the block fails or is cancelled before it is of use.

    httpcore 1.0.9 forgets the socket of a TLS handshake that is cancelled: a server that stalls there would cost
    one at each attempt, until the garbage collector comes. After the handshake a connection may serve others too
    (HTTP/2), and is the pool's.

    Args:
        url: Where the request goes; without TLS nothing is to be done, and being told costs some 20 µs.

    Returns:
        Gives the request's extensions.
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


@asynccontextmanager
async def unwinding(chunks: AsyncIterator[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
    """End the reading of a body at the end of the block, also in the middle."""
    try:
        yield chunks
    finally:
        await unwind(chunks)


async def unwind(chunks: AsyncIterator[bytes]) -> None:
    """End the reading of a body in the middle.

    httpx reads through half a dozen generators, one in another, and closing the outer one drops those within:
    the garbage collector gets them, and on trio that is a warning. A read that is cancelled unwinds them all. It
    waits for nothing: what has arrived is let through, and the first wait ends it.
    """
    with anyio.CancelScope(shield=True) as scope, suppress(Exception):
        scope.cancel()
        async for _ in chunks:
            pass
