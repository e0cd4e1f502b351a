"""Send requests of listeners and subscriptions, and read each response whole, bounded in time and size.

Redirects are never followed: httpx would send every header but one to another origin (G12).

`open_sender`, `send` and `closing` are for streams, which are read as they arrive. `ListenerClient` reads whole
responses. It sends its credentials only to the origin that they were given for.
"""

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from typing import Any, NamedTuple, Self

import anyio
import anyio.lowlevel
import httpx

from push_to_poll_client._exceptions import PushToPollError
from push_to_poll_client._http.addresses import PrivateAddress, only_public, peer_of
from push_to_poll_client._http.credentials import HeaderSource, ListenerCredentials, TokenSource, basic_auth_header
from push_to_poll_client._http.errors import BAD_REDIRECT, module_of
from push_to_poll_client._http.origins import parse_http_url, without_secrets
from push_to_poll_client._http.transport import (
    CHUNKS_AT_ONCE,
    CLOSE_TIMEOUT,
    close_on_failure,
    open_client,
    unwinding,
    user_agent,
)
from push_to_poll_client._json import decode
from push_to_poll_client._secrets import Secrets
from push_to_poll_client._validation import check_number, quoted
from push_to_poll_client.listeners._backoff import Verdict

__all__ = [
    "RESPONSE_VERDICTS",
    "ListenerClient",
    "ListenerResponse",
    "ProxyUnusable",
    "SocksUnusable",
    "UnusableRedirect",
    "UnusableResponse",
    "closing",
    "open_sender",
    "send",
]


class ProxyUnusable(PushToPollError):
    """The environment names a proxy that cannot be one."""


class SocksUnusable(PushToPollError):
    """The environment names a SOCKS proxy, for which a library is missing."""


class UnusableRedirect(PushToPollError):
    """The server answered a redirect to something that is not a URL."""


@contextlib.asynccontextmanager
async def open_sender(client: Any, tls: ssl.SSLContext | None) -> AsyncIterator[Any]:
    """Yield the given HTTP client, or open one for the length of the block.

    Args:
        client: An `httpx.AsyncClient`, or a client of its shape, which stays open. `None` opens one.
        tls: The TLS settings of a client that is opened. `None` means the certificates that the machine trusts.

    Raises:
        ProxyUnusable: The environment names a proxy with an invalid address.
        SocksUnusable: The environment names a SOCKS proxy, and socksio is not installed.
    """
    if client is not None:
        yield client
        return
    # A client for each connection: none inherits a pool in a bad state, and a changed environment takes effect.
    try:
        opened = open_client(httpx.Timeout(None), tls=tls)
    except ImportError:
        raise SocksUnusable(
            "the environment names a SOCKS proxy, for which httpx needs socksio: pip install 'httpx[socks]'"
        ) from None
    except (ValueError, httpx.InvalidURL):  # the text quotes the address, which may hold a password
        raise ProxyUnusable("the address of the proxy in the environment is not valid; correct it") from None
    async with closing(opened):
        yield opened


@contextlib.asynccontextmanager
async def closing(resource: Any) -> AsyncIterator[Any]:
    """Call `aclose()` of a client or response at the end of the block."""
    try:
        yield resource
    finally:
        # Shielded: a cancelled close leaves its socket to the garbage collector.
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await resource.aclose()


async def send(sender: Any, request: Any, **options: Any) -> Any:
    """Send a request without following redirects, and return its response before the body is read.

    Raises:
        UnusableRedirect: The `Location` of a redirect is not a URL: httpx reads it even if it does not follow it.
        Exception: No response came.
    """
    module = module_of(sender)
    try:
        return await sender.send(request, stream=True, follow_redirects=False, **options)
    except (httpx.InvalidURL, module.InvalidURL, UnicodeError):  # the text may quote a part of a secret
        pass
    except OSError:  # the error of an untrusted certificate is a ValueError, too
        raise
    except ValueError as error:  # from urllib, with which httpx joins URLs, or from a hook of the user's client
        raise UnusableRedirect(
            f"the client raised {type(error).__name__}, as httpx does when a server answers a redirect to "
            "something that is not a URL"
        ) from None
    except module.RemoteProtocolError as error:
        if not str(error).startswith((BAD_REDIRECT, "Invalid URL in location header")):
            raise
    raise UnusableRedirect("the server answered a redirect to something that is not a URL")


class UnusableResponse(PushToPollError):
    """The response is too large, is encoded, or does not hold what it should."""


RESPONSE_VERDICTS: tuple[tuple[type[Exception], Verdict], ...] = ((UnusableResponse, Verdict.SLOW_RETRY),)
"""Verdicts for `http_failure_of`: the next response will be like this one."""


class ListenerResponse(NamedTuple):
    """A whole answer.

    Attributes:
        status: Of HTTP, any.
        headers: By any case.
        body: Its bytes, not packed.
        url: What was asked, without secrets.
        response: As `httpx.HTTPStatusError` wants it.
        peer: The IP address at the other end of the connection, which may be a proxy's; `None` if it is not known.
    """

    status: int
    headers: httpx.Headers
    body: bytes
    url: str
    response: Any
    peer: str | None = None

    def __repr__(self) -> str:  # headers and body may hold a secret
        return f"{type(self).__name__}({self.status}, {len(self.body)} bytes, url={self.url!r})"

    def expect(self, *statuses: int) -> Self:
        """Itself, if it has one of these statuses; none given: any success.

        Raises:
            httpx.HTTPStatusError: It has another.
        """
        if self.status in statuses or (not statuses and httpx.codes.is_success(self.status)):
            return self
        raise httpx.HTTPStatusError(f"HTTP {self.status}", request=self.response.request, response=self.response)

    def json(self) -> Any:
        """The body, read as JSON.

        Raises:
            UnusableResponse: The body is not JSON.
        """
        try:
            return decode(self.body)
        except (ValueError, RecursionError):
            raise UnusableResponse(f"{self.url} answered something that is no JSON") from None


class ListenerClient:
    """Sends requests to one server with credentials, and to other servers without them.

    Args:
        url: An address of the server. A user and password in it are sent as Basic credentials.
        headers: Sent to the server: a mapping, or a function that returns one.
        token: Sent to the server as `Authorization: Bearer`: a string, or a function that returns one.
        client: An `httpx.AsyncClient`, or a client of its shape, which the caller closes. `None` opens one for
            each block of `reuse_connections()`, or for each request.
        tls: The TLS settings. `None` means the certificates that the machine trusts.
        timeout: Seconds for a whole response, and again for the functions for headers and token to return.
        max_body: The largest body of a response, in bytes.

    Attributes:
        url: The address, without user and password.
        secrets: What it sends that is secret.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: The URL is not an http address, or another argument is invalid.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: HeaderSource | None = None,
        token: TokenSource | None = None,
        client: Any = None,
        tls: ssl.SSLContext | None = None,
        timeout: float = 30.0,
        max_body: int = 1024 * 1024,
    ) -> None:
        parsed = parse_http_url(url)
        if parsed.userinfo and token is not None:
            raise ValueError("give either a token or a user and password in the URL: both make an Authorization")
        if client is not None and tls is not None:
            raise ValueError("give either a client or tls: whom a client trusts was said when it was made")
        if client is not None:
            module_of(client)
        check_number("timeout", timeout, above_zero=True)
        check_number("max_body", max_body, above_zero=True)
        self.url: str = str(parsed.copy_with(userinfo=b"", fragment=None))
        self._trusted_origin = _origin(parsed)
        self._basic = basic_auth_header(parsed.username, parsed.password) if parsed.userinfo else {}
        self._credentials = ListenerCredentials(headers, token)
        self.secrets: Secrets = self._credentials.secrets
        self.secrets.add_url(parsed)
        self.secrets.add_headers(getattr(client, "headers", {}))
        self._client = client
        self._sender: Any = None
        self._tls = tls
        self._timeout = timeout
        self._max_body = max_body

    @asynccontextmanager
    async def reuse_connections(self) -> AsyncIterator[None]:
        """Keep connections between the requests within the block."""
        async with open_sender(self._client, self._tls) as sender:
            self._sender = sender
            try:
                yield
            finally:
                self._sender = None

    async def send_request(
        self,
        method: str = "GET",
        url: str | None = None,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
        trickles: bool = False,
        public_only: bool = False,
        on_sent: Callable[[], None] | None = None,
    ) -> ListenerResponse:
        """Send one request.

        Args:
            method: The HTTP method.
            url: An absolute URL. `None` means the server's. Only the server's origin gets credentials (G12). A
                user and password in the URL are dropped: a server may have named it.
            content: The body.
            headers: Sent in addition; the credentials overrule them.
            wait: Seconds for which the server may hold its response, in addition to the timeout.
            trickles: Whether each chunk of the response restarts the timeout, for a server that sends white space
                to keep the connection alive.
            public_only: Whether to refuse addresses of this machine and of private networks, since a server on
                the internet named the URL.
            on_sent: Called when the request has been sent, by clients that report it, such as those of httpx.

        Raises:
            UnusableResponse: The response is too large, is encoded, or redirects to something that is not a URL.
                Or, with `public_only`, the server is not on the internet.
            CredentialsFailed: A function for headers or token failed.
            Exception: No response came; `http_failure_of` classifies the error.
        """
        target = parse_http_url(url or self.url).copy_with(userinfo=b"", fragment=None)
        url, same_origin = str(target), _origin(target) == self._trusted_origin
        fields = httpx.Headers({"accept-encoding": "identity", **(headers or {})})
        if same_origin:
            fields.update(self._basic)
            fields.update(await self._credentials.get_headers(within=self._timeout))
        # The client's own credentials are used only if none were given here, and never for another origin.
        auth = {} if same_origin and "authorization" not in fields else {"auth": None}
        reused = self._sender
        with anyio.move_on_after(self._timeout + wait) as scope:
            async with (
                open_sender(self._client, self._tls) if reused is None else nullcontext(reused) as sender,
                close_on_failure(url) as extensions,
            ):
                request = sender.build_request(
                    method,
                    url,
                    headers=fields.raw,
                    content=content,
                    # Only connecting is limited here, so that a dead network is found without waiting for `wait`.
                    timeout=(self._timeout, None, None, None),
                    extensions=extensions if on_sent is None else _trace_when_sent(on_sent, extensions),
                )
                if not same_origin:  # a client adds headers and cookies of its own, any of which may be a secret
                    request = type(request)(
                        method,
                        url,
                        headers={"user-agent": user_agent(), **fields},
                        content=content,
                        extensions=request.extensions,
                    )
                if content:
                    request.stream = _cancellable_body(request.stream, content)
                try:
                    if public_only:
                        request.extensions = only_public(target, request.extensions)
                    response = await send(sender, request, **auth)
                except UnusableRedirect as error:
                    raise UnusableResponse(f"{without_secrets(url)}: {error}") from None
                except PrivateAddress as error:
                    raise UnusableResponse(f"{without_secrets(url)} {error}") from None
                peer = peer_of(response.extensions.get("network_stream"))
                async with closing(response):
                    body = await self._read_body(response, without_secrets(url), scope if trickles else None, wait)
                    return ListenerResponse(
                        response.status_code, response.headers, body, without_secrets(url), response, peer
                    )
        raise TimeoutError(f"no whole answer within {self._timeout + wait:g} s")

    async def _read_body(self, response: Any, url: str, scope: anyio.CancelScope | None, wait: float) -> bytes:
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.strip().lower() not in {"", "identity"}:  # decoded, 64 KiB from the socket can be 64 MiB
            raise UnusableResponse(f"{url} sent Content-Encoding {quoted(encoding)}, but was asked for identity")
        parts, size = list[bytes](), 0
        async with unwinding(response.aiter_bytes()) as chunks:
            async for chunk in chunks:
                if scope is not None:
                    scope.deadline = anyio.current_time() + self._timeout + wait
                size += len(chunk)
                if size > self._max_body:
                    raise UnusableResponse(f"{url} answered more than {self._max_body} bytes")
                parts.append(chunk)
                if len(parts) % CHUNKS_AT_ONCE == 0:
                    await anyio.lowlevel.checkpoint()
        return b"".join(parts)


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


def _trace_when_sent(on_sent: Callable[[], None], extensions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add to the extensions of a request a "trace" of httpcore that reports when the request has been sent."""

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith("send_request_body.complete"):
            on_sent()
        if "trace" in extensions:
            await extensions["trace"](event, info)

    return {**extensions, "trace": trace}


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    return url.scheme, url.host, port
