"""What authenticates a feed or a listener to its server, asked for again when it expires.

What is learnt here goes into the handshake and nowhere else (G12): no error, log line or `repr` names a value.
"""

import inspect
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import Any, TypeAlias

import anyio
import httpx

from push_to_poll_client._exceptions import FeedError, PushToPollError
from push_to_poll_client._http.headers import is_header_name, is_header_value

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
"""An `httpx.Auth` (or one of the given client's own kind), a pair of user and password, a bearer token, or an
async callable that returns a bearer token or `None`."""


class FeedCredentials:
    """Says what stands in `Authorization`.

    An `httpx.Auth` is left to the client. The others are not made into one: between two requests of an auth flow
    httpx reads the 401 whole, whatever its size.

    Args:
        auth: See `Auth`; `None` leaves authentication to the client.
        where: The URL without secrets, for errors.

    Attributes:
        options: What to give to `client.send`.

    Raises:
        TypeError: `auth` is none of these.
        ValueError: The token has characters that no header may have.
    """

    def __init__(self, auth: Auth | None, where: str) -> None:
        self._where = where
        self._token_provider: Callable[[], Any] | None = None
        self._authorization: str | None = None
        self._is_current = True
        self.options: dict[str, Any] = {} if auth is None else {"auth": None}  # None: not the client's own either
        match auth:
            case None:
                pass
            case str():
                self._authorization = _bearer(auth)
            case (str(user), str(password)):
                self._authorization = (
                    f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"  # RFC 7617 §2.1: UTF-8
                )
            case _ if hasattr(auth, "async_auth_flow"):
                self.options = {"auth": auth}
            case _ if callable(auth):
                self._token_provider, self._is_current = auth, False
            case _:
                raise TypeError(
                    f"auth is a {type(auth).__name__}; give an httpx.Auth, a pair (user, password), a token, or "
                    "an async callable that returns a token"
                )

    async def authorization(self) -> str | None:
        """The header's value, or `None`. A callable is asked at first use.

        Raises:
            FeedError: The callable failed, or its token cannot be sent.
        """
        if self._token_provider is not None and not self._is_current:
            self._authorization, self._is_current = await self._request_token(self._token_provider), True
        return self._authorization

    def forget(self) -> bool:
        """Have the callable asked again; whether there is one, and asking can help."""
        self._is_current = self._token_provider is None
        return not self._is_current

    async def _request_token(self, ask: Callable[[], Any]) -> str | None:
        try:
            token = ask()
            token = await token if isawaitable(token) else token
        except Exception as error:  # noqa: BLE001  # whatever it is: tokens come from a network, and that comes back
            # Without its cause, which a traceback shows: its words may hold the secret that it asked with.
            raise FeedError(
                f"{self._where} was not asked: the callable given as auth= raised {type(error).__name__}; "
                "have it log why"
            ) from None
        if token is not None and not isinstance(token, str):
            raise TypeError(f"the callable given as auth= returned a {type(token).__name__}, not a token or None")
        try:
            return None if token is None else _bearer(token)
        except ValueError as error:
            raise FeedError(f"{self._where} was not asked: {error}") from None


def _bearer(token: str) -> str:
    if not token or not is_header_value(token) or " " in token:
        raise ValueError("the token given by auth= is empty, or has a space or a control character in it")
    return f"Bearer {token}"


HeaderSource: TypeAlias = Mapping[str, str] | Callable[[], Mapping[str, str] | Awaitable[Mapping[str, str]]]
"""Headers, or who is asked for them at each connect."""

TokenSource: TypeAlias = str | Callable[[], str | Awaitable[str]]
"""A token, or who is asked for it at each connect."""


class CredentialsFailed(PushToPollError):
    """Asking for the headers or the token failed. What the provider raised is named by its class alone."""


class ListenerCredentials:
    """The headers with which a channel is opened.

    Args:
        headers: Headers, or a function that returns them, async or plain; `None` for none.
        token: Sent as `Authorization: Bearer` (RFC 6750 §2.1) in place of any such header, or a function that
            returns it, async or plain; `None` for none.

    Raises:
        TypeError: Headers or token are of no such type.
        ValueError: Headers or token cannot stand in a header.
    """

    def __init__(self, headers: HeaderSource | None, token: TokenSource | None) -> None:
        self._headers = headers
        self._token = token
        _merge_headers(None if callable(headers) else headers, None if callable(token) else token)

    @property
    def renewable(self) -> bool:
        """Whether asking again may bring something else."""
        return callable(self._headers) or callable(self._token)

    async def get_headers(self, *, within: float) -> dict[str, str]:
        """Ask for the headers and the token.

        Args:
            within: Seconds after which a provider has failed: one that hangs must not silence the channel.

        Raises:
            CredentialsFailed: A provider raised, hung, or gave what cannot stand in a header.
        """
        try:
            with anyio.fail_after(within):
                headers, token = await _get_value(self._headers), await _get_value(self._token)
        except Exception as error:  # noqa: BLE001  # whatever it is: tokens come from a network
            # The text of a provider's error may hold the secret itself, so it is no cause either.
            what = type(error).__name__
            raise CredentialsFailed(f"asking for the headers or the token failed with {what}") from None
        try:
            return _merge_headers(headers, token)
        except (TypeError, ValueError) as error:
            raise CredentialsFailed(f"the provider gave what cannot be used: {error}") from None


def basic_auth_header(user: str, password: str) -> dict[str, str]:
    """The header for user and password (RFC 7617 §2.1: UTF-8)."""
    return {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"}


async def _get_value(source: Any) -> Any:
    given = source() if callable(source) else source
    return await given if inspect.isawaitable(given) else given


def _merge_headers(headers: Any, token: Any) -> dict[str, str]:
    if not isinstance(headers, Mapping | None):
        raise TypeError(f"headers are a mapping of str to str, not {type(headers).__name__}")
    joined = dict(headers or {})
    if token is not None:
        joined = {name: value for name, value in joined.items() if str(name).lower() != "authorization"}
        joined["Authorization"] = f"Bearer {_checked_token(token)}"
    for name, value in joined.items():
        _check_header(name, value)
    return joined


def _checked_token(token: Any) -> str:
    if not isinstance(token, str):
        raise TypeError(f"a token is a str, not {type(token).__name__}")
    if not token:
        raise ValueError("the token is empty")
    return token


def _check_header(name: Any, value: Any) -> None:
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError("headers are a mapping of str to str")
    if not is_header_name(name):
        raise ValueError("a header's name holds a character that may not stand in one (RFC 9110 §5.1)")
    if not is_header_value(value):
        raise ValueError(
            f"the value of {name} holds a character that may not stand in a header, such as a line break"
        )
