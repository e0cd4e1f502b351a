"""Send one request of a listener, and read its whole answer, bounded in time and size.

Redirects are not followed: httpx would take every header but one to another origin (G12).
"""

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, NamedTuple, Self

import anyio
import httpx

from push_to_poll_client._exceptions import PushToPollError
from push_to_poll_client._http.credentials import HeaderSource, ListenerCredentials, TokenSource, basic_auth_header
from push_to_poll_client._http.errors import BAD_REDIRECT, module_of
from push_to_poll_client._http.origins import parse_http_url, without_secrets
from push_to_poll_client._http.transport import CLOSE_TIMEOUT, close_on_failure, open_client, unwinding, user_agent
from push_to_poll_client._json import decode
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
    """What to send by, within the block.

    Args:
        client: An `httpx.AsyncClient` or one of its shape, which stays open; `None` opens one.
        tls: Whom one that is opened trusts; `None`: the certificates that the machine trusts.

    Raises:
        ProxyUnusable: None can be opened in this environment.
        SocksUnusable: Likewise.
    """
    if client is not None:
        yield client
        return
    async with closing(_own_client(tls)) as own:
        yield own


@contextlib.asynccontextmanager
async def closing(thing: Any) -> AsyncIterator[Any]:
    """Close it at the end of the block, with its `aclose()`."""
    try:
        yield thing
    finally:
        # Shielded: a close that is cancelled leaves its socket to the garbage collector.
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await thing.aclose()


async def send(sender: Any, request: Any, **options: Any) -> Any:
    """Send a request without following redirects; its answer is streamed.

    Raises:
        UnusableRedirect: httpx reads the `Location` of every redirect, also of one that is not followed.
        Exception: There is no answer.
    """
    module = module_of(sender)
    try:
        return await sender.send(request, stream=True, follow_redirects=False, **options)
    except (httpx.InvalidURL, module.InvalidURL, UnicodeError):  # whose text may quote a piece of a secret
        pass
    except OSError:  # a certificate that cannot be trusted is a ValueError, too
        raise
    except ValueError as error:  # of urllib, by which httpx joins URLs; or of a hook of the user's client
        raise UnusableRedirect(
            f"the client raised {type(error).__name__}, as httpx does when a server answers a redirect to "
            "something that is not a URL"
        ) from None
    except module.RemoteProtocolError as error:
        if not str(error).startswith((BAD_REDIRECT, "Invalid URL in location header")):
            raise
    raise UnusableRedirect("the server answered a redirect to something that is not a URL")


def _own_client(tls: ssl.SSLContext | None) -> httpx.AsyncClient:
    """A client for one channel: no pool can be left in an ill state, and a changed environment counts."""
    try:
        return open_client(httpx.Timeout(None), tls=tls)
    except ImportError:
        raise SocksUnusable(
            "the environment names a SOCKS proxy, for which httpx needs socksio: pip install 'httpx[socks]'"
        ) from None
    except (ValueError, httpx.InvalidURL):  # whose text quotes the address, and with it perhaps a password
        raise ProxyUnusable("the address of the proxy in the environment is not valid; correct it") from None


class UnusableResponse(PushToPollError):
    """The server answered, but not what it should have."""


RESPONSE_VERDICTS: tuple[tuple[type[Exception], Verdict], ...] = ((UnusableResponse, Verdict.SLOW_RETRY),)
"""For `http_failure_of`: the next answer will be like it."""


class ListenerResponse(NamedTuple):
    """A whole answer.

    Attributes:
        status: Of HTTP, any.
        headers: By any case.
        body: Its bytes, not packed.
        url: What was asked, without secrets.
        response: As `httpx.HTTPStatusError` wants it.
    """

    status: int
    headers: httpx.Headers
    body: bytes
    url: str
    response: Any

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
            UnusableAnswer: It is none.
        """
        try:
            return decode(self.body)
        except (ValueError, RecursionError):
            raise UnusableResponse(f"{self.url} answered something that is no JSON") from None


class ListenerClient:
    """Asks one server, to which the credentials belong; others are asked without them.

    Args:
        url: An address of the server; a user and password in it are sent as Basic credentials.
        headers: Sent to it: a mapping, or a function that returns one.
        token: Sent to it as `Authorization: Bearer`, or a function that returns it.
        client: An `httpx.AsyncClient` or one of its shape, which stays the caller's; `None`: opens one for each
            block of `reuse_connections()`, or for each request.
        tls: Whom to trust; `None`: the certificates that the machine trusts.
        timeout: Seconds for a whole answer, and again for headers and token to be given.
        max_body: Bytes that an answer may have.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: The URL is no http address, or an argument has no meaning.
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
        sent: Callable[[], None] | None = None,
    ) -> ListenerResponse:
        """Send one request.

        Args:
            method: Of HTTP.
            url: Absolute; `None`: that of the server. Credentials go to its origin alone (G12).
            content: The body.
            headers: Sent too, before those of the server's own.
            wait: Seconds for which the server may hold its answer, on top of the timeout.
            trickles: Whether each piece of the answer begins that time anew, for a server that sends white space
                to say that it lives.
            sent: Called when the request is on its way, by clients that tell it, as those of httpx.

        Raises:
            UnusableAnswer: The answer is too large, or a redirect to something that is not a URL.
            CredentialsFailed: Who to be could not be learnt.
            Exception: No answer came; `http_failure_of` knows what that means.
        """
        target, fields = (
            parse_http_url(url or self.url),
            httpx.Headers({"accept-encoding": "identity", **(headers or {})}),
        )
        url, at_home, auth = str(target), _origin(target) == self._trusted_origin, dict[str, Any](auth=None)
        if at_home:
            auth = await self._add_credentials(fields)
        with anyio.move_on_after(self._timeout + wait) as scope:
            async with self._open_or_reuse() as sender, close_on_failure(url) as extensions:
                request = sender.build_request(
                    method,
                    url,
                    headers=fields.raw,
                    content=content,
                    timeout=(
                        self._timeout,
                        None,
                        None,
                        None,
                    ),  # to connect: a dead network is found without `wait`
                    extensions=extensions if sent is None else _trace_when_sent(sent, extensions),
                )
                if not at_home:  # a client adds headers and cookies, and which of them are secrets nobody knows
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
                    response = await send(sender, request, **auth)
                except UnusableRedirect as error:
                    raise UnusableResponse(f"{without_secrets(url)}: {error}") from None
                async with closing(response):
                    body = await self._read_body(response, without_secrets(url), scope if trickles else None, wait)
                    return ListenerResponse(
                        response.status_code, response.headers, body, without_secrets(url), response
                    )
        raise TimeoutError(f"no whole answer within {self._timeout + wait:g} s")

    def _open_or_reuse(self) -> AbstractAsyncContextManager[Any]:
        return open_sender(self._client, self._tls) if self._sender is None else nullcontext(self._sender)

    async def _add_credentials(self, fields: httpx.Headers) -> dict[str, Any]:
        """Add the headers, and say who to be: what was given here comes in place of what a client is by itself."""
        fields.update(self._basic)
        fields.update(await self._credentials.get_headers(within=self._timeout))
        return {"auth": None} if "authorization" in fields else {}

    async def _read_body(self, response: Any, where: str, scope: anyio.CancelScope | None, wait: float) -> bytes:
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.strip().lower() not in {"", "identity"}:  # unpacked, 64 KiB from the socket can be 64 MiB
            raise UnusableResponse(f"{where} sent Content-Encoding {quoted(encoding)}, but was asked for identity")
        parts, size = list[bytes](), 0
        async with unwinding(response.aiter_bytes()) as chunks:
            async for chunk in chunks:
                if scope is not None:
                    scope.deadline = anyio.current_time() + self._timeout + wait
                size += len(chunk)
                if size > self._max_body:
                    raise UnusableResponse(f"{where} answered more than {self._max_body} bytes")
                parts.append(chunk)
        return b"".join(parts)


class _ChunkIterator:
    """An iterator that is no generator."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = iter(pieces)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


def _cancellable_body(stream: Any, content: bytes) -> Any:
    """A body that may be left in the middle.

    httpx's own is a generator: a request that is cancelled while it is being sent drops it, the garbage collector
    gets it, and on trio that is a warning.

    Args:
        stream: The body as the client has it, in whose kind it wants it.
        content: The same.
    """
    kind = type("AtOnce", (type(stream),), {"__aiter__": lambda _self: _ChunkIterator(content)})
    return kind(content)


def _trace_when_sent(sent: Callable[[], None], extensions: Mapping[str, Any]) -> Mapping[str, Any]:
    """The extensions of a request (httpcore's "trace") that say when all of it was sent."""

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith("send_request_body.complete"):
            sent()
        if "trace" in extensions:
            await extensions["trace"](event, info)

    return {**extensions, "trace": trace}


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    return url.scheme, url.host, port
