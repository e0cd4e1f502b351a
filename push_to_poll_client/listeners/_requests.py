"""Send the requests of listeners and subscriptions, limited in time and size.

`ListenerClient` sends credentials only to the origin they were given for. Redirects are not followed.
"""

import math
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple, Self, TypedDict, TypeVar, Unpack

import anyio
import httpx

from push_to_poll_client._exceptions import PushToPollError
from push_to_poll_client._http.addresses import PrivateAddress, only_public, peer_of
from push_to_poll_client._http.credentials import Auth, Credentials, HeaderSource
from push_to_poll_client._http.origins import origin_of, parse_http_url, without_secrets
from push_to_poll_client._http.response import BodyError, read_body
from push_to_poll_client._http.transport import UnusableRedirect, closing, module_of, open_client, send
from push_to_poll_client._json import DECODE_ERRORS, decode
from push_to_poll_client._secrets import Secrets
from push_to_poll_client._validation import check_count, check_number

_T = TypeVar("_T")


class UnusableResponse(PushToPollError):
    """The response is too large, has an unknown encoding, or has invalid content."""


class ListenerResponse(NamedTuple):
    """A complete response, decompressed."""

    status: int
    headers: httpx.Headers
    body: bytes
    url: str  # of the request, without secrets
    response: Any  # of the client, for `httpx.HTTPStatusError`
    peer: str | None = None  # IP address of the other end, perhaps a proxy's

    def __repr__(self) -> str:  # headers and body may hold a secret
        return f"{type(self).__name__}({self.status}, {len(self.body)} bytes, url={self.url!r})"

    def expect(self, *statuses: int) -> Self:
        """Return the response if it has one of these statuses (default: 2xx), else raise `HTTPStatusError`."""
        if self.status in statuses or (not statuses and httpx.codes.is_success(self.status)):
            return self
        raise httpx.HTTPStatusError(f"HTTP {self.status}", request=self.response.request, response=self.response)

    def json(self) -> Any:
        """Decode the body as JSON, or raise `UnusableResponse`."""
        return self.decoded(Any, "JSON")

    def decoded(self, type: type[_T], what: str) -> _T:
        """Decode the body as JSON of this type. Errors call it `what`."""
        try:
            return decode(self.body, type=type)
        except DECODE_ERRORS:
            raise UnusableResponse(f"{self.url} sent no valid {what}") from None


class RequestOptions(TypedDict, total=False):
    """Optional parts of a request. Header names are lower-case."""

    content: bytes | None
    headers: Mapping[str, str]  # the caller's headers and the credentials replace these
    override: Mapping[str, Any]  # these replace the caller's headers, for the server's origin only
    public_only: bool  # reject private addresses, for a URL that a server on the internet named
    on_sent: Callable[[], object] | None  # called by clients that report it, such as httpx


class ListenerClient:
    """Sends requests to one server with credentials, and to other servers without them."""

    # Functions in `auth` and `headers` are called each time a client is opened, and in each `connected` block.
    # `timeout` limits these functions, and again the whole response. `max_body` limits it on the wire and
    # decompressed.

    def __init__(
        self,
        url: str,
        *,
        auth: Auth | None = None,
        headers: HeaderSource | None = None,
        ssl_context: ssl.SSLContext | None = None,
        timeout: float = 10.0,
        max_body: int = 1024 * 1024,
        client: Any = None,
    ) -> None:
        parsed = parse_http_url(url)
        if client is not None and ssl_context is not None:
            raise ValueError("pass client= or ssl_context=, not both: the client already has its own TLS settings")
        if client is not None:
            module_of(client)
        check_number("timeout", timeout, above_zero=True)
        self.url: str = str(parsed.copy_with(userinfo=b"", fragment=None))
        self.credentials: Credentials = Credentials(auth, headers, parsed)
        self.secrets: Secrets = self.credentials.secrets
        self.secrets.add_headers(getattr(client, "headers", {}))
        self._origin = origin_of(parsed)
        self._given_client = client
        self._connected_client: Any = None
        self._ssl_context = ssl_context
        self._timeout = timeout
        self._max_body = check_count("max_body", max_body)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Keep connections and credentials for the requests in the block."""
        async with self._opened() as client:
            self._connected_client = client
            try:
                yield
            finally:
                self._connected_client = None

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Any]:
        self.credentials.forget()
        if self._given_client is not None:
            yield self._given_client
            return
        # A new client for each connection: it has no broken pool, and a changed environment takes effect.
        async with closing(open_client(httpx.Timeout(None), ssl_context=self._ssl_context)) as client:
            yield client

    @asynccontextmanager
    async def stream(
        self,
        method: str = "GET",
        url: str | None = None,
        *,
        on_start: Callable[[], None] | None = None,
        within: float = math.inf,
        **options: Unpack[RequestOptions],
    ) -> AsyncIterator[Any]:
        """Send one request, and yield its response, with the body unread, after at most `within` seconds."""
        target = parse_http_url(url or self.url).copy_with(userinfo=b"", fragment=None)
        same_origin = origin_of(target) == self._origin
        async with AsyncExitStack() as stack:
            client = self._connected_client or await stack.enter_async_context(self._opened())
            fields = {"accept-encoding": "identity", **options.get("headers", {})}
            if same_origin:
                fields |= {**await self.credentials.get(within=self._timeout), **options.get("override", {})}
            # Only connecting is limited here, to detect a dead network before the end of a long poll.
            timeout = {"connect": self._timeout, "read": None, "write": None, "pool": None}
            extensions: Mapping[str, Any] = {"timeout": timeout}
            if (on_sent := options.get("on_sent")) is not None:
                extensions = _trace_when_sent(on_sent, extensions)
            if options.get("public_only"):
                extensions = only_public(target, extensions)
            if on_start is not None:
                on_start()
            response = None
            with anyio.move_on_after(within):
                response = await send(
                    client,
                    method,
                    str(target),
                    headers=fields,
                    content=options.get("content"),
                    extensions=extensions,
                    credentials=self.credentials if same_origin else None,
                )
            if response is None:
                raise TimeoutError(f"no response within {within:g} s")
            yield await stack.enter_async_context(closing(response))

    async def send_request(
        self,
        method: str = "GET",
        url: str | None = None,
        *,
        wait: float = 0.0,
        **options: Unpack[RequestOptions],
    ) -> ListenerResponse:
        """Send one request, and read its response. Only the server's origin gets credentials (G12)."""
        # User and password in `url` are dropped: a server may have named it. `wait` extends the timeout by the
        # time for which the server may hold the response. Then each chunk restarts both: such servers send white
        # space as keep-alive.
        where = without_secrets(url or self.url)
        timeout = self._timeout + wait
        with anyio.CancelScope() as scope:

            def restart(_: int = 0) -> None:
                scope.deadline = anyio.current_time() + timeout

            try:
                async with self.stream(method, url, on_start=restart, **options) as response:
                    peer = peer_of(response.extensions.get("network_stream"))
                    body = await read_body(response, self._max_body, restart if wait else lambda _: None)
                    return ListenerResponse(response.status_code, response.headers, body, where, response, peer)
            except UnusableRedirect as error:
                raise UnusableResponse(f"{where}: {error}") from None
            except (BodyError, PrivateAddress) as error:
                raise UnusableResponse(f"{where} {error}") from None
        raise TimeoutError(f"no complete response within {timeout:g} s")


def _trace_when_sent(on_sent: Callable[[], object], extensions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add httpcore's "trace" to the extensions, to report a sent request."""

    async def trace(event: str, _: Mapping[str, Any]) -> None:
        if event.endswith("send_request_body.complete"):
            on_sent()

    return {**extensions, "trace": trace}
