"""Open the HTTP client of feeds and listeners, send requests, and close abandoned connections.

Every request of this library goes through `send`. It never follows redirects: httpx would send every header but
one to another origin (G12).
"""

import functools
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib import import_module
from typing import Any, Self, cast
from urllib.request import getproxies

import anyio
import anyio.lowlevel
import httpx

from push_to_poll_client._http.credentials import Credentials, SendingFailed
from push_to_poll_client._http.origins import without_secrets
from push_to_poll_client._version import __version__


class ProxyUnusable(SendingFailed):
    """The environment names an invalid proxy."""


class SocksUnusable(SendingFailed):
    """The environment names a SOCKS proxy, and the library for it is missing."""


class UnusableRedirect(SendingFailed):
    """The server sent a redirect to an invalid URL."""


def module_of(client: Any) -> Any:
    """Return the module with the exceptions of a client: httpx or its successor; raise TypeError for others."""
    if not all(hasattr(client, name) for name in ("aclose", "build_request", "send", "timeout")):
        raise TypeError(f"client must be an httpx.AsyncClient or compatible, got {type(client).__name__}")
    for base in type(client).__mro__:
        module = sys.modules.get(base.__module__.partition(".")[0])
        if hasattr(module, "LocalProtocolError") and hasattr(module, "PoolTimeout"):
            return module
    return httpx


@functools.cache
def shared_tls_context() -> ssl.SSLContext:
    """Return the TLS context of the process. Another one would cost 840 KiB and tens of milliseconds."""
    return httpx.create_ssl_context()


@functools.cache
def user_agent(http_library: str = f"python-httpx/{httpx.__version__}") -> str:
    """Return the `User-Agent` header (RFC 9110 §10.1.5): this library and the HTTP library."""
    return f"push-to-poll-client/{__version__} {http_library}"


KEEP_ALIVE = 90.0
"""Seconds; longer than the default fallback interval, so that an idle consumer saves a handshake per poll."""


def open_client(
    timeout: httpx.Timeout,
    *,
    ssl_context: ssl.SSLContext | None = None,
    redact: Callable[[object], str] = without_secrets,
) -> httpx.AsyncClient:
    """Open a client that logs no secret and keeps no cookie. A proxy is taken from the environment."""
    ssl_context = ssl_context or shared_tls_context()
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
    if not _has_proxy():
        from push_to_poll_client._http.direct_client import DirectClient  # takes 80 ms, since it imports trio

        return DirectClient(ssl_context, limits, **settings)
    try:
        return httpx.AsyncClient(verify=ssl_context, limits=limits, **settings)
    except ImportError:
        raise SocksUnusable(
            "the environment names a SOCKS proxy, which needs socksio: pip install 'httpx[socks]'"
        ) from None
    except (ValueError, httpx.InvalidURL):  # the text quotes the address, which may hold a password
        raise ProxyUnusable("the address of the proxy in the environment is not valid; correct it") from None


def load_client() -> None:
    """Import and read everything that `open_client` needs, so that it is fast afterwards."""
    shared_tls_context()
    if not _has_proxy():
        import_module("push_to_poll_client._http.direct_client")


def _has_proxy() -> bool:
    return bool(getproxies().keys() - {"no"})


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


_WRITTEN_HEADERS = ("cookie", "authorization")
"""Headers that an `httpx.Auth` or the caller's client may add."""
# The last one stays known if there are more cookies than `MAX_RECENT`.


async def send(
    client: Any,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    content: bytes | None,
    extensions: Mapping[str, Any],
    credentials: Credentials | None,  # None for another origin
) -> Any:
    """Send a request, and return its response with the body unread."""
    module = module_of(client)
    options = {"auth": None} if credentials is None else credentials.options(headers, module)
    async with close_on_failure(url, extensions) as traced:
        request = client.build_request(method, url, headers=headers, content=content, extensions=traced)
        if credentials is None:  # a client adds headers, cookies and a query, and any of them may be a secret
            headers = {"user-agent": user_agent(), **headers}
            request = type(request)(method, url, headers=headers, content=content, extensions=traced)
        if content:
            request.stream = _cancellable_body(request.stream, content)
        try:
            return await client.send(request, stream=True, follow_redirects=False, **options)
        except OSError:  # the error of an untrusted certificate is a ValueError, too
            raise
        # A ValueError is from urllib, with which httpx joins URLs, or from a hook of the caller's client.
        except (ValueError, httpx.InvalidURL, module.InvalidURL, module.RemoteProtocolError) as error:
            if isinstance(error, module.RemoteProtocolError) and "URL in location header" not in str(error):
                raise
            raise UnusableRedirect(  # the text of the error may quote a part of a secret
                f"the server redirected to an invalid URL: the client raised {type(error).__name__}"
            ) from None
        finally:
            if credentials is not None:  # an `httpx.Auth`, or the client, may have written another one
                for name in _WRITTEN_HEADERS:
                    credentials.secrets.add_headers({name: request.headers.get(name, "")}, recent=True)


class _ChunkIterator:
    """Asynchronous iterator over chunks. It is not a generator, so it need not be closed."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = iter(chunks)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        for chunk in self._chunks:
            return chunk
        raise StopAsyncIteration


def _cancellable_body(stream: Any, content: bytes) -> Any:
    """Make a request body of the client's stream type that may be dropped before it is sent."""
    # httpx's body is a generator. A cancelled request leaves it to the garbage collector, and trio warns.
    stream_type = type("AtOnce", (type(stream),), {"__aiter__": lambda _self: _ChunkIterator(content)})
    return stream_type(content)


@asynccontextmanager
async def closing(resource: Any) -> AsyncIterator[Any]:
    """Call `aclose()` of a client or response at the end of the block."""
    try:
        yield resource
    finally:
        # Shielded: a cancelled close leaves its socket to the garbage collector.
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await resource.aclose()


CLOSE_TIMEOUT = 2.0
"""Seconds to close a connection. Closing waits for no reply, so only a broken connection takes any time."""


@asynccontextmanager
async def close_on_failure(url: str, extensions: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Close the socket of a request that fails or is cancelled during the TLS handshake."""
    # httpcore 1.0.9 forgets the socket of a cancelled TLS handshake. A server that stalls there would cost one
    # socket per attempt. After the handshake the pool owns the connection. Without TLS this would cost 20 µs.
    if not url.startswith("https:"):
        yield {**extensions}
        return
    opened: list[Any] = []

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith("connect_tcp.complete"):
            opened.append(info["return_value"])
        elif event.endswith("start_tls.complete"):
            opened.clear()
        if "trace" in extensions:
            await extensions["trace"](event, info)

    try:
        yield {**extensions, "trace": trace}
    except BaseException:
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            for stream in opened:
                await stream.aclose()
        raise


CHUNKS_AT_ONCE = 100
"""Chunks of a body read before other tasks run: about 2 ms at 16 µs each."""
# Chunks of one read do not wait for anything, and 256 KiB can hold 43,000 chunks of one byte.


@asynccontextmanager
async def unwinding(chunks: AsyncIterator[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
    """Stop reading a body at the end of the block, even if it was not read to its end."""
    # httpx reads through nested generators. Closing the outer one leaves the inner ones to the garbage collector,
    # and trio warns. A cancelled read unwinds them all without waiting: arrived chunks are skipped.
    try:
        yield chunks
    finally:
        while not await _has_unwound(chunks):
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()


async def _has_unwound(chunks: AsyncIterator[bytes]) -> bool:
    """Skip `CHUNKS_AT_ONCE` chunks; return True if the reading ended at one of them."""
    with anyio.CancelScope(shield=True) as scope, suppress(Exception):
        scope.cancel()
        for _ in range(CHUNKS_AT_ONCE):
            await anext(chunks)
        return False
    return True
