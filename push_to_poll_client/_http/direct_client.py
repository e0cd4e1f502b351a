"""HTTP client for servers without a proxy in between: few layers, large reads.

httpx reads 64 KiB at a time from the socket, and each chunk passes a dozen layers: a page of 1,000 events takes
ten reads where two are enough. Each request also passes cookies, redirects, hooks and a log, which a feed does not
need.
"""

import logging
import ssl
from typing import Any

import anyio
import httpcore
import httpx

from push_to_poll_client._http.errors import BAD_REDIRECT

__all__ = ["DirectClient"]


READ_SIZE = 256 * 1024
"""Bytes per read; asyncio reads no more at a time."""

_logger = logging.getLogger("httpx")


class DirectClient(httpx.AsyncClient):
    """Send as httpx does without cookies and hooks, for callers that follow redirects themselves.

    Args:
        tls: The TLS settings.
        limits: Limits of the connection pool.
        settings: As for `httpx.AsyncClient`.
    """

    def __init__(self, tls: ssl.SSLContext, limits: httpx.Limits, **settings: Any) -> None:
        self._direct = _LargeReadTransport(tls, limits)
        super().__init__(transport=self._direct, **settings)

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Send a request and stream the response. With `auth=` or httpx's log, send it as httpx does."""
        if self.is_closed or options.get("auth") is not None or _logger.isEnabledFor(logging.INFO):
            return await super().send(request, **options)
        response = await self._direct.handle_async_request(request)
        response.request = request
        if response.has_redirect_location:
            try:
                target = _redirect_target(request.url, response.headers["location"])
            except (httpx.InvalidURL, ValueError):  # the latter from idna and urllib; its text may quote a secret
                with anyio.CancelScope(shield=True):
                    await response.aclose()
                raise httpx.RemoteProtocolError(BAD_REDIRECT) from None
            response.next_request = httpx.Request("GET", target)
        return response


def _redirect_target(url: httpx.URL, location: str) -> httpx.URL:
    target = httpx.URL(location)
    if target.scheme and not target.host:  # "https:/path" is on the same host to httpx, as to browsers
        target = target.copy_with(host=url.host)
    return url.join(target)


class _LargeReadTransport(httpx.AsyncHTTPTransport):
    """Transport of httpx over sockets that are read in large chunks. It drops the reason phrases of servers."""

    def __init__(self, tls: ssl.SSLContext, limits: httpx.Limits) -> None:
        super().__init__(verify=tls, limits=limits)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_LargeReadBackend(),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        response.extensions.pop("reason_phrase", None)  # httpx logs it, and a server may repeat a secret in it
        return response


class _LargeReadBackend(httpcore.AnyIOBackend):
    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        return _LargeReadStream(await super().connect_tcp(*args, **options))


class _LargeReadStream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002, ASYNC109
        return await self._stream.read(READ_SIZE, timeout)

    async def write(self, *args: Any, **options: Any) -> None:
        await self._stream.write(*args, **options)

    async def start_tls(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        return _LargeReadStream(await self._stream.start_tls(*args, **options))

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
