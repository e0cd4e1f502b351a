"""Open the HTTP client of feeds and listeners, send requests, and close the connections that they leave open.

Every request of this library goes through `send`. Redirects are never followed there: httpx would send every
header but one to another origin (G12).
"""

import functools
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Self, cast
from urllib.request import getproxies

import anyio
import anyio.lowlevel
import httpx

from push_to_poll_client._http.credentials import Credentials, SendingFailed
from push_to_poll_client._http.origins import without_secrets
from push_to_poll_client._version import __version__


class ProxyUnusable(SendingFailed):
    """The environment names a proxy that cannot be one."""


class SocksUnusable(SendingFailed):
    """The environment names a SOCKS proxy, for which a library is missing."""


class UnusableRedirect(SendingFailed):
    """The server answered a redirect to something that is not a URL."""


def module_of(client: Any) -> Any:
    """Return the module with the exceptions of a client.

    The classes of httpx and of its successor are unrelated.

    Raises:
        TypeError: It is not a client.
    """
    if not all(hasattr(client, name) for name in ("aclose", "build_request", "send", "timeout")):
        raise TypeError(f"client is a {type(client).__name__}; give an httpx.AsyncClient or one of its shape")
    for base in type(client).__mro__:
        module = sys.modules.get(base.__module__.partition(".")[0])
        if hasattr(module, "LocalProtocolError") and hasattr(module, "PoolTimeout"):
            return module
    return httpx


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
    ssl_context: ssl.SSLContext | None = None,
    redact: Callable[[object], str] = without_secrets,
) -> httpx.AsyncClient:
    """Open a client that logs no secret and keeps no cookie. A proxy is taken from the environment.

    Args:
        timeout: For requests without a timeout of their own.
        ssl_context: The TLS settings; `None` trusts the certificates that the machine trusts.
        redact: Return a URL as the log may show it.

    Raises:
        ProxyUnusable: The environment names a proxy with an invalid address.
        SocksUnusable: The environment names a SOCKS proxy, and socksio is not installed.
    """
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
    if not getproxies().keys() - {"no"}:
        from push_to_poll_client._http.direct_client import DirectClient  # takes 80 ms, since it imports trio

        return DirectClient(ssl_context, limits, **settings)
    try:
        return httpx.AsyncClient(verify=ssl_context, limits=limits, **settings)
    except ImportError:
        raise SocksUnusable(
            "the environment names a SOCKS proxy, for which httpx needs socksio: pip install 'httpx[socks]'"
        ) from None
    except (ValueError, httpx.InvalidURL):  # the text quotes the address, which may hold a password
        raise ProxyUnusable("the address of the proxy in the environment is not valid; correct it") from None


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
"""Headers that an `httpx.Auth` or the caller's client may add to a request. The last one stays known if there are
more cookies than `MAX_RECENT`."""


async def send(
    client: Any,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    content: bytes | None,
    extensions: Mapping[str, Any],
    credentials: Credentials | None,
) -> Any:
    """Send a request, and return its response with the body unread.

    Args:
        client: An `httpx.AsyncClient`, or one of its shape.
        method: The HTTP method.
        url: An absolute URL, without user and password.
        headers: Of the request.
        content: The body; `None` sends none.
        extensions: Of the request; with "timeout".
        credentials: Of the origin that is asked; `None` for another origin, to which nothing goes that the client
            adds by itself.

    Raises:
        CredentialsFailed: The caller's function for headers or token failed.
        UnusableRedirect: The `Location` of a redirect is not a URL: httpx reads it even if it does not follow it.
        Exception: No response came.
    """
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
                "the server answered a redirect to something that is not a URL: the client raised "
                f"{type(error).__name__}"
            ) from None
        finally:
            if credentials is not None:  # an `httpx.Auth`, or the client, may have written another one
                for name in _WRITTEN_HEADERS:
                    credentials.secrets.add_headers({name: request.headers.get(name, "")}, recent=True)


class _ChunkIterator:
    """An asynchronous iterator over chunks that is not a generator, so it need not be closed."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = iter(chunks)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        for chunk in self._chunks:
            return chunk
        raise StopAsyncIteration


def _cancellable_body(stream: Any, content: bytes) -> Any:
    """Make a request body of the client's own stream type that may be dropped before it is sent whole.

    httpx's body is a generator. A request that is cancelled while it is sent leaves the generator to the garbage
    collector, which makes trio warn.
    """
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
    """Close the socket that a request opened, if the block fails or is cancelled during the TLS handshake.

    httpcore 1.0.9 forgets the socket of a TLS handshake that is cancelled. A server that stalls there would cost
    one socket per attempt, until the garbage collector closes them. After the handshake the connection belongs to
    the pool, and may serve other requests (HTTP/2).

    Args:
        url: Where the request goes. Without TLS nothing is watched, since that costs some 20 µs.
        extensions: Of the request.

    Returns:
        A context manager whose value is the extensions to send the request with.
    """
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
"""Chunks of a body that are read before other tasks run. Chunks that arrived in one read do not wait for anything:
256 KiB hold 43,000 of one byte each, at 16 µs. A hundred of them take 2 ms."""


@asynccontextmanager
async def unwinding(chunks: AsyncIterator[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
    """Stop reading a body at the end of the block, even if it was not read to its end.

    httpx reads through half a dozen nested generators. Closing the outer one drops the inner ones: the garbage
    collector ends them, and trio warns about that. A cancelled read unwinds them all. It never waits: chunks that
    have arrived are skipped, and the first wait ends the reading.
    """
    try:
        yield chunks
    finally:
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
