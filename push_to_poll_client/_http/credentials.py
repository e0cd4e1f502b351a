"""Credentials of a feed or a listener, renewed by the caller's function when they expire.

Their values go into the headers of requests and nowhere else (G12): no error, log line or `repr` shows them. The
text of an exception of the caller's function may hold a secret, so errors name only its class, and it is not
their cause.

A feed keeps its token until the server answers 401 (`FeedCredentials`). A listener gets its headers anew for each
connection (`ListenerCredentials`).
"""

from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import Any, TypeAlias

import anyio
import httpx

from push_to_poll_client._exceptions import FeedError, PushToPollError
from push_to_poll_client._http.headers import is_header_name, is_header_value
from push_to_poll_client._secrets import Secrets

__all__ = [
    "Auth",
    "CredentialsFailed",
    "FeedCredentials",
    "HeaderSource",
    "ListenerCredentials",
    "TokenSource",
    "basic_auth_header",
]


Auth: TypeAlias = httpx.Auth | tuple[str, str] | str | Callable[[], Awaitable[str | None]]
"""An `httpx.Auth` (or its equivalent of the given client), a pair of user and password, a bearer token, or an
async callable that returns a bearer token or `None`."""


class FeedCredentials:
    """`Authorization` header of a feed's requests.

    An `httpx.Auth` is left to the client. The other kinds are not turned into one, since between two requests of
    an auth flow httpx reads the whole body of a 401, whatever its size.

    Args:
        auth: See `Auth`; `None` leaves authentication to the client.
        where: The URL without secrets, for errors.
        secrets: Is told of each value that is sent.

    Attributes:
        options: Keyword arguments for `client.send`.

    Raises:
        TypeError: `auth` has another type.
        ValueError: The token has characters that a header may not have.
    """

    def __init__(self, auth: Auth | None, where: str, secrets: Secrets) -> None:
        self._where = where
        self._secrets = secrets
        self._token_provider: Callable[[], Any] | None = None
        self._authorization: str | None = None
        self._is_current = True
        # With auth=None the client adds no credentials of its own.
        self.options: dict[str, Any] = {} if auth is None else {"auth": None}
        match auth:
            case None:
                pass
            case str():
                self._authorization = _bearer(auth)
            case (str(user), str(password)):
                self._authorization = _basic(user, password)
            case _ if hasattr(auth, "async_auth_flow"):
                self.options = {"auth": auth}
            case _ if callable(auth):
                self._token_provider, self._is_current = auth, False
            case _:
                raise TypeError(
                    f"auth is a {type(auth).__name__}; give an httpx.Auth, a pair (user, password), a token, or "
                    "an async callable that returns a token"
                )
        if self._authorization is not None:
            secrets.add_headers({"authorization": self._authorization})

    async def authorization(self) -> str | None:
        """Return the header's value, or `None`. A callable is called at first use.

        Raises:
            FeedError: The callable failed, or its token cannot be sent.
        """
        if self._token_provider is not None and not self._is_current:
            self._authorization, self._is_current = await self._request_token(self._token_provider), True
        return self._authorization

    def forget(self) -> bool:
        """Let the next use call the callable again; return False if there is none."""
        self._is_current = self._token_provider is None
        return not self._is_current

    async def _request_token(self, provider: Callable[[], Any]) -> str | None:
        try:
            token = await _get_value(provider)
        except Exception as error:  # noqa: BLE001  # of any kind: tokens come from a network, whose faults pass
            # No cause, which a traceback would show: its text may hold a secret.
            raise FeedError(
                f"{self._where} was not asked: the callable given as auth= raised {type(error).__name__}; "
                "have it log why"
            ) from None
        if token is not None and not isinstance(token, str):
            raise TypeError(f"the callable given as auth= returned a {type(token).__name__}, not a token or None")
        try:
            self._secrets.add_recent(token)
            return None if token is None else _bearer(token)
        except ValueError as error:
            raise FeedError(f"{self._where} was not asked: {error}") from None


def _basic(user: str, password: str) -> str:
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"  # RFC 7617 §2.1: UTF-8


def _bearer(token: str) -> str:
    if not token or not is_header_value(token) or " " in token:
        raise ValueError("the token given by auth= is empty, or has a space or a control character in it")
    return f"Bearer {token}"


HeaderSource: TypeAlias = Mapping[str, str] | Callable[[], Mapping[str, str] | Awaitable[Mapping[str, str]]]
"""Headers, or a function that returns them, called at each connect."""

TokenSource: TypeAlias = str | Callable[[], str | Awaitable[str]]
"""A token, or a function that returns it, called at each connect."""


class CredentialsFailed(PushToPollError):
    """The caller's function for the headers or the token failed. The text names only the class of its error."""


class ListenerCredentials:
    """Headers with which a listener opens its channel.

    Args:
        headers: Headers, or a function that returns them, async or plain; `None` for none.
        token: Sent as `Authorization: Bearer` (RFC 6750 §2.1) in place of any such header, or a function that
            returns it, async or plain; `None` for none.

    Attributes:
        secrets: What of these is secret, as far as it is known yet.

    Raises:
        TypeError: The headers or the token have another type.
        ValueError: The headers or the token have characters that a header may not have.
    """

    def __init__(self, headers: HeaderSource | None, token: TokenSource | None) -> None:
        self._headers = headers
        self._token = token
        self.secrets: Secrets = Secrets()
        self.secrets.add_headers(
            _merge_headers(None if callable(headers) else headers, None if callable(token) else token)
        )

    @property
    def renewable(self) -> bool:
        """True if another call may return other values."""
        return callable(self._headers) or callable(self._token)

    async def get_headers(self, *, within: float) -> dict[str, str]:
        """Return the headers, after a call of the caller's functions.

        Args:
            within: Seconds for these calls: a function that hangs must not silence the channel.

        Raises:
            CredentialsFailed: A function raised, hung, or returned a value that a header may not have.
        """
        try:
            with anyio.fail_after(within):
                headers, token = await _get_value(self._headers), await _get_value(self._token)
        except Exception as error:  # noqa: BLE001  # of any kind: tokens come from a network
            kind = type(error).__name__
            # The text of the error may hold the secret itself, so the error is not the cause either.
            raise CredentialsFailed(f"asking for the headers or the token failed with {kind}") from None
        try:
            merged = _merge_headers(headers, token)
        except (TypeError, ValueError) as error:
            raise CredentialsFailed(f"the provider gave what cannot be used: {error}") from None
        if self.renewable:
            self.secrets.add_headers(merged, recent=True)
        return merged


def basic_auth_header(user: str, password: str) -> dict[str, str]:
    """Return the header for a user and password (RFC 7617)."""
    return {"Authorization": _basic(user, password)}


async def _get_value(source: Any) -> Any:
    value = source() if callable(source) else source
    return await value if isawaitable(value) else value


def _merge_headers(headers: Any, token: Any) -> dict[str, str]:
    if not isinstance(headers, Mapping | None):
        raise TypeError(f"headers are a mapping of str to str, not {type(headers).__name__}")
    merged = dict(headers or {})
    if token is not None:
        merged = {name: value for name, value in merged.items() if str(name).lower() != "authorization"}
        if not isinstance(token, str):
            raise TypeError(f"a token is a str, not {type(token).__name__}")
        if not token:
            raise ValueError("the token is empty")
        merged["Authorization"] = f"Bearer {token}"
    for name, value in merged.items():
        _check_header(name, value)
    return merged


def _check_header(name: Any, value: Any) -> None:
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError("headers are a mapping of str to str")
    if not is_header_name(name):
        raise ValueError("a header's name holds a character that may not stand in one (RFC 9110 §5.1)")
    if not is_header_value(value):
        raise ValueError(
            f"the value of {name} holds a character that may not stand in a header, such as a line break"
        )
