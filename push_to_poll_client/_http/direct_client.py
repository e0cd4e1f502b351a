"""HTTP client for servers without a proxy in between: few layers, large reads.

httpx reads 64 KiB at a time, and each chunk passes a dozen layers: a page of 1,000 events takes ten reads instead
of two. Each request also passes cookies, redirects, hooks and a log, which a feed does not need.

Only documented parts of httpx and httpcore are used. Connections are of httpcore2, the successor of httpcore, if
it is installed. The caller only sees classes of httpx: a program that catches `httpx.ConnectError` must keep
working when another package installs httpcore2.
"""

import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import httpx

READ_SIZE = 256 * 1024
"""Bytes per read; asyncio reads no more at a time."""

_NEEDED = ("AnyIOBackend", "AsyncConnectionPool", "Request", "URL")


def load_httpcore() -> Any:
    """Return httpcore2; httpcore if that is missing or lacks a needed name."""
    try:
        module = import_module("httpcore2")
    except ImportError:
        return import_module("httpcore")
    return module if all(hasattr(module, name) for name in _NEEDED) else import_module("httpcore")


httpcore: Any = load_httpcore()

_logger = logging.getLogger("httpx")


class DirectClient(httpx.AsyncClient):
    """Sends as httpx does, without cookies and hooks, for callers that follow redirects themselves."""

    def __init__(self, ssl_context: ssl.SSLContext, limits: httpx.Limits, **settings: Any) -> None:
        self._direct = _LargeReadTransport(ssl_context, limits)
        super().__init__(transport=self._direct, **settings)

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Send a request and stream the response. With `auth=` or httpx's log, send it as httpx does."""
        if self.is_closed or options.get("auth") is not None or _logger.isEnabledFor(logging.INFO):
            return await super().send(request, **options)
        response = await self._direct.handle_async_request(request)
        response.request = request
        return response


class _LargeReadTransport(httpx.AsyncBaseTransport):
    """Transport that reads large chunks, and drops the reason phrases of servers."""

    def __init__(self, ssl_context: ssl.SSLContext, limits: httpx.Limits) -> None:
        self._connections = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_LargeReadBackend(),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        sent = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _as_httpx_errors():
            response = await self._connections.handle_async_request(sent)
        response.extensions.pop("reason_phrase", None)  # httpx logs it, and a server may repeat a secret in it
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_ResponseBody(response.stream),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._connections.aclose()


class _ResponseBody(httpx.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx_errors():
            async for chunk in self._stream:
                yield chunk

    async def aclose(self) -> None:
        if hasattr(self._stream, "aclose"):  # the stream of a mock may lack it
            await self._stream.aclose()


@contextmanager
def _as_httpx_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        for kind in type(error).__mro__:
            if getattr(httpcore, kind.__name__, None) is kind and hasattr(httpx, kind.__name__):
                raise getattr(httpx, kind.__name__)(str(error)) from error
        raise


class _LargeReadBackend:
    def __init__(self) -> None:
        self._backend = httpcore.AnyIOBackend()
        self.sleep = self._backend.sleep

    async def connect_tcp(self, *args: Any, **options: Any) -> "_LargeReadStream":
        return _LargeReadStream(await self._backend.connect_tcp(*args, **options))


class _LargeReadStream:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.write, self.aclose = stream.write, stream.aclose
        self.get_extra_info = stream.get_extra_info

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002, ASYNC109
        data: bytes = await self._stream.read(READ_SIZE, timeout)
        return data

    async def start_tls(self, *args: Any, **options: Any) -> "_LargeReadStream":
        return _LargeReadStream(await self._stream.start_tls(*args, **options))
