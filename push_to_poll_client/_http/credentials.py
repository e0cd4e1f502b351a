"""Credentials of a feed or a listener, renewed by the caller's functions when they expire.

Their values go into request headers and nowhere else (G12): not into errors, log lines or `repr`. The text of an
exception of the caller's function may hold a secret, so errors name only its class and do not chain it.

A feed keeps the results of the functions until the server answers 401; a listener calls them for each connection.
"""

import math
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import Any, TypeAlias

import anyio
import httpx

from push_to_poll_client._exceptions import PushToPollError
from push_to_poll_client._http.headers import check_headers, is_header_value
from push_to_poll_client._secrets import Secrets
from push_to_poll_client._validation import check_str

Auth: TypeAlias = httpx.Auth | tuple[str, str] | str | Callable[[], str | Awaitable[str | None] | None]
"""An `httpx.Auth` (or one of httpx2), a pair of user and password, a bearer token, or a function, async or plain,
that returns a bearer token or `None`."""

HeaderSource: TypeAlias = Mapping[str, str] | Callable[[], Mapping[str, str] | Awaitable[Mapping[str, str]]]
"""Headers, or a function, async or plain, that returns them."""


class SendingFailed(PushToPollError):
    """A request could not be sent, or its response not be used. The text shows no secret."""


class CredentialsFailed(SendingFailed):
    """The caller's function for headers or token failed. The text names only the class of its error."""


class Credentials:
    """Headers for the requests to one origin, with `Authorization`."""

    # An `httpx.Auth` is left to the client, and other kinds are not converted to one: between two requests of an
    # auth flow, httpx reads the whole body of a 401, whatever its size.

    def __init__(self, auth: Auth | None, headers: HeaderSource | None, url: httpx.URL) -> None:
        self.secrets: Secrets = Secrets()
        self.secrets.add_url(url)
        self.auth_flow: Any = None  # an `httpx.Auth` for the client to apply
        self._token: Callable[[], Any] | None = None
        self._extra = headers if callable(headers) else None
        self._fixed = {} if callable(headers) else check_headers({} if headers is None else headers)
        if bool(url.userinfo) + (auth is not None) + _has_authorization(self._fixed) > 1:
            raise ValueError("pass credentials only once: by auth=, in the URL, or in headers=")
        self._is_given = bool(url.userinfo) or auth is not None
        match (url.username, url.password) if url.userinfo else auth:
            case None:
                pass
            case str(token):
                self._fixed["authorization"] = _bearer(token)
            case (str(user), str(password)):
                self._fixed["authorization"] = _basic(user, password)
            case flow if hasattr(flow, "async_auth_flow"):
                self.auth_flow = flow
            case function if callable(function):
                self._token = function
            case other:
                raise TypeError(
                    "auth must be an httpx.Auth, a pair (user, password), a token or a function that returns a "
                    f"token, got {type(other).__name__}"
                )
        self.secrets.add_headers(self._fixed)
        self._current: Mapping[str, str] | None = None if self.renewable else self._fixed

    @property
    def renewable(self) -> bool:
        """True if the functions may return new values next time."""
        return self._token is not None or self._extra is not None

    def forget(self) -> bool:
        """Call the functions again at the next use; return False if there are none."""
        if self.renewable:
            self._current = None
        return self.renewable

    async def get(self, *, within: float = math.inf) -> Mapping[str, str]:
        """Return the headers; the functions are called at first use, and after `forget()`."""
        if self._current is None:
            try:
                with anyio.fail_after(within):  # a function that hangs must not silence a channel
                    extra, token = await _call(self._extra), await _call(self._token)
            except Exception as error:  # noqa: BLE001  # tokens come from a network: any error may be temporary
                # Not chained: the text of the error may hold a secret, which a traceback would show.
                raise CredentialsFailed(
                    f"the function given as auth= or headers= failed: {type(error).__name__}; log its text in "
                    "that function, since it may be secret"
                ) from None
            self._current = self._merge(extra, token)
            self.secrets.add_headers(self._current, recent=True)
        return self._current

    def _merge(self, extra: Any, token: Any) -> Mapping[str, str]:
        if isinstance(token, str):
            self.secrets.add_recent(token)
        try:
            headers = {**check_headers({} if extra is None else extra), **self._fixed}
            return headers if token is None else {**headers, "authorization": _bearer(token)}
        except (TypeError, ValueError) as error:
            raise CredentialsFailed(
                f"the function given as auth= or headers= returned an invalid value: {error}"
            ) from None

    def options(self, headers: Mapping[str, str], module: Any) -> dict[str, Any]:
        """Return the auth arguments of `client.send` for a client of this module."""
        if _has_authorization(headers) or (self._is_given and self.auth_flow is None):
            return {"auth": None}  # then the client adds no credentials of its own
        if self.auth_flow is None:
            return {}
        kind = getattr(module, "Auth", httpx.Auth)
        if isinstance(self.auth_flow, kind):
            return {"auth": self.auth_flow}
        # An Auth of httpx for a client of httpx2, or the reverse: each checks only the class.
        return {"auth": type("Auth", (kind,), {"async_auth_flow": self.auth_flow.async_auth_flow})()}


def _has_authorization(headers: Mapping[str, str]) -> bool:
    return any(name.lower() == "authorization" for name in headers)


def _basic(user: str, password: str) -> str:
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"  # RFC 7617 §2.1: UTF-8


def _bearer(token: str) -> str:
    check_str("a token", token)
    if not token or not is_header_value(token) or " " in token:
        raise ValueError("the token given by auth= is empty, or contains a space or control character; strip it")
    return f"Bearer {token}"


async def _call(function: Callable[[], Any] | None) -> Any:
    value = None if function is None else function()
    return await value if isawaitable(value) else value
