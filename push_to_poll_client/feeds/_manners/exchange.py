"""One request and its answer: by which client, with which headers, and what it means that there is no answer."""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import anyio
import httpx

from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._http_client import closed_if_failed, module_of, open_client, user_agent
from push_to_poll_client._validation import quoted
from push_to_poll_client.feeds._manners.body import ACCEPT_ENCODING
from push_to_poll_client.feeds._manners.credentials import Credentials
from push_to_poll_client.feeds._manners.hidden import Hidden
from push_to_poll_client.feeds._manners.holding import prefer_wait
from push_to_poll_client.feeds._manners.validators import Validators, conditions

__all__ = ["Call", "Exchange", "close"]

_DEFAULT_AGENT = re.compile(r"python-httpx[0-9]*/[0-9.]+")
_ABOUT_A_BODY = ("content-type", "content-encoding", "content-language", "content-location")


class Call(NamedTuple):
    """One request; as `Origin.ask`.

    Attributes:
        at_home: Whether it goes to the feed's own origin, and credentials with it.
        redirected: Whether a redirect led here.
        moves: The permanent ones among these redirects, each as its old and its new URL.
    """

    url: str
    at_home: bool
    method: str
    headers: Mapping[str, str]
    known: Validators | None
    content: bytes | None
    wait: float
    errors: int
    redirected: bool = False
    moves: tuple[tuple[str, str], ...] = ()

    def after(self, status: int) -> "Call":
        """What to ask where a redirect of this status leads (RFC 9110 §15.4)."""
        moved = status in {HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.FOUND} and self.method == "POST"
        if not moved and (status != HTTPStatus.SEE_OTHER or self.method == "HEAD"):
            return self._replace(known=None, redirected=True)
        headers = {name: value for name, value in self.headers.items() if name not in _ABOUT_A_BODY}
        return self._replace(method="GET", headers=headers, content=None, known=None, redirected=True)


class Exchange:
    """Sends calls, by a client of its own or by one that was given.

    Args:
        hidden: What is not shown, and what is instead.
        credentials: Who to be, at home.
        headers: Sent with every request at home.
        timeout: Seconds for one whole answer.
        client: An `httpx.AsyncClient` or one of its shape; `None` opens one.

    Attributes:
        errors: What `send`, and reading what it returned, may raise.

    Raises:
        TypeError: The client is none.
    """

    def __init__(
        self,
        hidden: Hidden,
        credentials: Credentials,
        headers: Mapping[str, str],
        timeout: float,
        client: Any,
    ) -> None:
        self._where = hidden.where
        self._hidden = hidden
        self._credentials = credentials
        self._headers = dict(headers)
        self._timeout = timeout
        self._given = client
        self._own: httpx.AsyncClient | None = None
        self._module = module = httpx if client is None else module_of(client)
        self._agent = _agent(client)
        # httpx reads the URL of each redirect, and lets errors of others through: a UnicodeError of idna for the
        # name of a host, a ValueError of urllib for a URL that it cannot join.
        self.errors = (module.HTTPError, module.InvalidURL, httpx.InvalidURL, OSError, ValueError)

    async def send(self, call: Call) -> Any:
        """The answer, its body not read yet; it has to be closed."""
        client = self._client()
        always = {"accept-encoding": ACCEPT_ENCODING, **self._agent, **prefer_wait(call.wait)}
        headers = {**always, **call.headers, **conditions(call.known)}
        options: dict[str, Any] = {"auth": None}
        if call.at_home:
            headers, options = headers | self._headers, self._credentials.options
            authorization = await self._credentials.authorization()
            if authorization is not None:
                headers["authorization"] = authorization
        async with closed_if_failed(call.url) as extensions:
            extensions["timeout"] = _timeout(client.timeout, call.wait)
            request = _request(client, call, headers, extensions)
            return await client.send(request, stream=True, follow_redirects=False, **options)

    async def failed(self, error: Exception) -> FeedError:
        """The error to raise, from `cause(error)`."""
        if isinstance(error, self._module.PoolTimeout):
            await self.aclose()  # httpcore #1093: after unlucky cancellations a pool hands out nothing any more
            if self._given is not None:
                return FeedError(
                    f"{self._where} was not asked: the pool of the client given by client= hands out no "
                    "connection (PoolTimeout); share it among fewer, or open a new one"
                )
        secret = isinstance(error, self._module.LocalProtocolError)
        text = "" if secret else f" {quoted(self._hidden.masked(str(error)), 200)}"
        return FeedError(f"{self._where} could not be read: {type(error).__name__}{text}; it is asked again later")

    def cause(self, error: Exception) -> Exception | None:
        """The error as a traceback may show it: h11 shows the header that it refuses to send."""
        return None if isinstance(error, self._module.LocalProtocolError) else error

    async def aclose(self) -> None:
        """Give back connections. The next `send` opens them again, in whatever event loop that is."""
        own, self._own = self._own, None
        if own is not None:
            await own.aclose()

    def _client(self) -> Any:
        if self._given is not None:
            return self._given
        if self._own is None:
            # The pool's timeout is seen before the deadline of the whole answer.
            self._own = open_client(httpx.Timeout(self._timeout, pool=self._timeout / 2), shown=self._hidden.shown)
        return self._own


async def close(response: Any) -> None:
    """Give back the connection of an answer."""
    if not response.is_closed:
        with anyio.CancelScope(shield=True):  # else the pool counts the connection as used, for ever
            await response.aclose()


def _request(client: Any, call: Call, headers: Mapping[str, str], extensions: Mapping[str, Any]) -> Any:
    request = client.build_request(
        call.method, call.url, headers=headers, content=call.content, extensions=extensions
    )
    if call.at_home:
        return request
    # A client adds headers, cookies and a query of its own, and which of them are secrets nobody knows.
    headers = {"user-agent": user_agent(), **headers}
    return type(request)(call.method, call.url, headers=headers, content=call.content, extensions=extensions)


def _agent(client: Any) -> dict[str, str]:
    """What is added to the name of a client that has none of its own. Our own client knows its name."""
    name = getattr(client, "headers", {}).get("user-agent", "")
    return {"user-agent": user_agent(name)} if _DEFAULT_AGENT.fullmatch(name) else {}


def _timeout(limits: Any, wait: float) -> dict[str, float | None]:
    read = None if limits.read is None else limits.read + wait
    return {"connect": limits.connect, "read": read, "write": limits.write, "pool": limits.pool}
