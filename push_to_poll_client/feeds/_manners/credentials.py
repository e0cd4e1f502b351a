"""Who a feed is to its server: what `auth=` may be, and when it is asked for again."""

from base64 import b64encode
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, TypeAlias

import httpx

from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._http import is_header_value

__all__ = ["Auth", "Credentials"]

Auth: TypeAlias = httpx.Auth | tuple[str, str] | str | Callable[[], Awaitable[str | None]]
"""An `httpx.Auth` (or one of the given client's own kind), a pair of user and password, a bearer token, or an
async callable that returns a bearer token or `None`."""


class Credentials:
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
        self._ask: Callable[[], Any] | None = None
        self._known: str | None = None
        self._is_known = True
        self.options: dict[str, Any] = {} if auth is None else {"auth": None}  # None: not the client's own either
        match auth:
            case None:
                pass
            case str():
                self._known = _bearer(auth)
            case (str(user), str(password)):
                self._known = f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"  # RFC 7617 §2.1: UTF-8
            case _ if hasattr(auth, "async_auth_flow"):
                self.options = {"auth": auth}
            case _ if callable(auth):
                self._ask, self._is_known = auth, False
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
        if self._ask is not None and not self._is_known:
            self._known, self._is_known = await self._asked(self._ask), True
        return self._known

    def forget(self) -> bool:
        """Have the callable asked again; whether there is one, and asking can help."""
        self._is_known = self._ask is None
        return not self._is_known

    async def _asked(self, ask: Callable[[], Any]) -> str | None:
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
