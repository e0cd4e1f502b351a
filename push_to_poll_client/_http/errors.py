"""Map failed requests and HTTP error responses to the errors of this library."""

import sys
import time
from http import HTTPStatus
from typing import Any

import httpx

from push_to_poll_client._exceptions import FeedError, FeedGone, FeedRefused, PushToPollError
from push_to_poll_client._http.headers import requested_delay
from push_to_poll_client._http.origins import without_secrets

__all__ = [
    "HeldTooLong",
    "ProxyUnusable",
    "SocksUnusable",
    "UnusableRedirect",
    "error_for_exception",
    "error_for_status",
    "module_of",
]


class HeldTooLong(FeedError):
    """The server was asked to wait for news, and holds its answer beyond that. It says nothing about the feed."""


class ProxyUnusable(PushToPollError):
    """The environment names a proxy that cannot be one."""


class SocksUnusable(PushToPollError):
    """The environment names a SOCKS proxy, for which a library is missing."""


class UnusableRedirect(PushToPollError):
    """The server answered a redirect to something that is not a URL."""

    def __init__(self, text: str = "the server answered a redirect to something that is not a URL") -> None:
        super().__init__(text)


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


_TRANSIENT_STATUSES = frozenset({408, 425, 429})
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


def error_for_status(status: int, retry_after: float | None, where: str) -> FeedError:
    """Map the status of an HTTP error response to a FeedError.

    Args:
        status: Status of the response.
        retry_after: Seconds for which the server asks not to be polled; `None` if it did not ask.
        where: The URL without secrets.
    """
    seen = f"{where} answered {status} {_PHRASES.get(status, '')}".rstrip()
    if status == HTTPStatus.GONE:
        return FeedGone(f"{seen}: the feed is gone for good; ask its publisher where to", retry_after=retry_after)
    throttled = status == HTTPStatus.FORBIDDEN and retry_after is not None
    if 400 <= status < 500 and status not in _TRANSIENT_STATUSES and not throttled:  # noqa: PLR2004
        return FeedRefused(f"{seen}; check the URL and the credentials", retry_after=retry_after)
    return FeedError(f"{seen}; it is asked again later", retry_after=retry_after)


def error_for_exception(error: Exception) -> FeedError | None:
    """Map the error of `raise_for_status()`, of httpx or a client of its shape; `None` for any other error."""
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if not isinstance(status, int):
        return None
    retry_after = requested_delay(status, response.headers, time.time())
    return error_for_status(status, retry_after, without_secrets(response.url))
