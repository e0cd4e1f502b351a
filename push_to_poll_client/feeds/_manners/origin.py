"""How a feed asks its server: one client, every answer bounded in size and time, credentials stay home.

Redirects are followed on the origin that the credentials were given for, and nowhere else (G12): what a login
page, a mirror or an attacker elsewhere would get is the `Authorization` header, and what they would give is
taken for the feed. A feed that moved is named in the error; it is one edit to follow it.
"""

import time
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import anyio
import httpx

from push_to_poll_client._arguments import check_number
from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._http import asked_to_wait, without_secrets
from push_to_poll_client._http_client import closed_if_failed, http_url, module_of, open_client
from push_to_poll_client._refusal import refusal
from push_to_poll_client._text import quoted
from push_to_poll_client.feeds._manners.arguments import header_fields, origins, place_of, size
from push_to_poll_client.feeds._manners.body import ACCEPT_ENCODING, read_body
from push_to_poll_client.feeds._manners.credentials import Auth, Credentials
from push_to_poll_client.feeds._manners.validators import Validators, conditions, validators_of

__all__ = ["Answer", "Origin"]

MAX_REDIRECTS = 5
"""In a row. A slash, a new path and a login round trip are three."""

READ = frozenset({200, 203, 204, 304})
"""What is an answer; the others are refusals."""


class Answer(NamedTuple):
    """What the server said.

    Attributes:
        status: Of any kind.
        headers: By names in whatever case.
        body: Unpacked.
        retry_after: Seconds that the server asks to be left alone; `None` when it did not.
        url: What answered, after redirects: what links in the answer are relative to. It may hold secrets.
        known: By what it was asked for news alone; `None`: for all there is.
        redirected: Whether another URL answered than was asked.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    retry_after: float | None
    url: str
    known: Validators | None = None
    redirected: bool = False

    @property
    def validators(self) -> Validators | None:
        """By what to ask for news alone the next time, once all that came is settled; `None`: for all again.

        They belong to the URL that was asked: an answer by way of a redirect has none.
        """
        if self.redirected:
            return None
        return validators_of(self.headers, self.known if self.status == HTTPStatus.NOT_MODIFIED else None)


class Call(NamedTuple):
    """One request; as `Origin.ask`.

    Attributes:
        at_home: Whether it goes to the feed's own origin, and credentials with it.
        redirected: Whether a redirect led here.
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


class Origin:
    """The server that a feed reads from.

    Args:
        url: Absolute, http or https. A user and password in it are sent as Basic credentials and shown nowhere.
        auth: Who to be; see `Auth`. `None`: what the URL says, else what the client does by itself.
        headers: Sent with every request.
        timeout: Seconds for one whole answer, redirects and a new token included.
        max_body: Bytes that an answer may have, on the wire and unpacked.
        client: An `httpx.AsyncClient` or one of its shape, which stays the caller's; `None` opens one.
        trusted: Other origins to which links and redirects may lead, as "https://cdn.example". They are asked
            without credentials, without `headers` and without what the client sends by itself.

    Attributes:
        where: The URL without secrets.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument has no meaning; the text says which and why.
    """

    def __init__(
        self,
        url: str,
        *,
        auth: Auth | None,
        headers: Mapping[str, str] | None,
        timeout: float,
        max_body: int,
        client: Any,
        trusted: Collection[str] = (),
    ) -> None:
        self.where = without_secrets(url)
        parsed = http_url(url)
        self._url = parsed.copy_with(userinfo=b"", fragment=None)
        self._text = str(self._url.copy_with(query=self._url.query or None))
        self._home = place_of(self._url)
        self._start = str(self._url.copy_with(raw_path=b"/"))
        self._trusted = origins(trusted)
        self._headers = dict(header_fields(headers or {}))
        check_number("timeout", timeout, above_zero=True)
        self._timeout = timeout
        self._max_body = size("max_body", max_body)
        self._credentials = Credentials(self._one_of(parsed, auth), self.where)
        self._given = client
        self._own: httpx.AsyncClient | None = None
        self._errors = httpx if client is None else module_of(client)

    def address(self, query: Mapping[str, str]) -> str:
        """The feed's URL with this added to its query, which stays as it is: it may be signed."""
        joint = "&" if self._url.query else "?"
        return f"{self._text}{joint if query else ''}{urlencode(query, quote_via=quote)}"

    async def ask(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        known: Validators | None = None,
        method: str = "GET",
        content: bytes | None = None,
        wait: float = 0.0,
        errors: int = 0,
    ) -> Answer:
        """Ask, and return what the server said, whatever that is.

        Args:
            url: What `address` made, or a link that the server gave: absolute. A user and password in it, and a
                fragment, are left out.
            headers: By lower-case names; added to the feed's own, which win.
            known: `Answer.validators` of the answer whose messages are settled; with it 304 is an answer. It is
                looked at for GET alone.
            method: Of the request.
            content: The request's body; `None`: it has none.
            wait: Seconds for which the server may hold its answer; added to all timeouts.
            errors: Bytes that are read of the body of an answer that is none (4xx, 5xx); 0: it is not looked at.

        Raises:
            FeedError: There is no answer: the URL or a redirect is of another origin that is not trusted, a body
                too large or too slow, no connection.
        """
        known = known if method == "GET" and conditions(known) else None
        try:
            url, at_home = self._allowed(url, content, "links")
            call = Call(url, at_home, method, headers, known, content, wait, errors)
            with anyio.fail_after(self._timeout + wait):
                return await self._get(call)
        except (self._errors.HTTPError, self._errors.InvalidURL, httpx.InvalidURL, OSError, UnicodeError) as error:
            raise await self._failed(error, wait) from self._cause(error)

    def accepted(self, answer: Answer) -> Answer:
        """The answer, if it is one by its status.

        Raises:
            FeedRefused: 4xx, and asking again will not help until somebody acts.
            FeedGone: 410.
            FeedError: Another status than 200, 203, 204 and 304, or 304 when all was asked for.
        """
        if answer.status not in READ:
            raise refusal(answer.status, answer.retry_after, self._where(answer.url))
        if answer.status == HTTPStatus.NOT_MODIFIED and answer.known is None:
            raise FeedError(
                f"{self._where(answer.url)} answered 304 Not Modified, but was asked for all there is; "
                "a cache on the way is broken",
                retry_after=answer.retry_after,
            )
        return answer

    async def aclose(self) -> None:
        """Give back connections. The next `get` opens them again, in whatever event loop that is."""
        own, self._own = self._own, None
        if own is not None:
            await own.aclose()

    async def _get(self, call: Call) -> Answer:
        answer = await self._follow(call)
        if answer.status == HTTPStatus.UNAUTHORIZED and self._is_home(answer.url) and self._credentials.forget():
            answer = await self._follow(call)
        return answer

    async def _follow(self, call: Call) -> Answer:
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._send(call)
            try:
                if response.next_request is None:
                    return await self._answer(response, call)
                url, at_home = self._allowed(str(response.next_request.url), call.content, "redirects")
                call = call._replace(url=url, at_home=at_home, known=None, redirected=True)
            finally:
                await _close(response)
        raise FeedError(f"{self.where} redirects more than {MAX_REDIRECTS} times; ask its publisher for its URL")

    async def _send(self, call: Call) -> Any:
        client = self._client()
        headers = {"accept-encoding": ACCEPT_ENCODING, **call.headers, **conditions(call.known)}
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

    def _client(self) -> Any:
        if self._given is not None:
            return self._given
        if self._own is None:
            # The pool's timeout is seen before the deadline of the whole answer.
            self._own = open_client(httpx.Timeout(self._timeout, pool=self._timeout / 2))
        return self._own

    async def _answer(self, response: Any, call: Call) -> Answer:
        status = response.status_code
        retry_after = asked_to_wait(status, response.headers, time.time())
        limit = self._max_body if status in READ else call.errors
        body = await read_body(response, limit, self._where(call.url)) if limit else b""
        return Answer(status, response.headers, body, retry_after, call.url, call.known, call.redirected)

    def _allowed(self, url: str, content: bytes | None, leads: str) -> tuple[str, bool]:
        """The URL, without what must not be asked by, and whether it is of the feed's own origin."""
        if url.startswith(self._start) and "#" not in url:  # what `address` made: looked at in no time
            return url, True
        try:
            target = httpx.URL(url).copy_with(userinfo=b"", fragment=None)
        except httpx.InvalidURL:  # whose text may quote a piece of a secret
            raise FeedError(f"{self.where} {leads} to what is no URL; ask its publisher") from None
        at_home = place_of(target) == self._home
        if not at_home:
            self._check_trusted(target, content, leads)
        return str(target), at_home

    def _check_trusted(self, target: httpx.URL, content: bytes | None, leads: str) -> None:
        there = without_secrets(f"{target.scheme}://{target.netloc.decode('ascii')}/")
        if place_of(target) not in self._trusted:
            raise FeedError(
                f"{self.where} {leads} to another origin, {there}, which credentials must not follow; if the feed "
                "has moved there, give its new URL, or have it asked without them: trusted="
            )
        if content is not None:
            raise FeedError(f"{self.where} {leads} to another origin, {there}, which must not get what is posted")

    def _is_home(self, url: str) -> bool:
        return url.startswith(self._start) or place_of(httpx.URL(url)) == self._home

    def _where(self, url: str) -> str:
        """Who said it, for errors: the feed, or another origin that it led to."""
        return self.where if self._is_home(url) else f"{self.where}, which led to {without_secrets(url)},"

    def _one_of(self, url: httpx.URL, auth: Auth | None) -> Auth | None:
        """The credentials, which can be given in three places."""
        in_url = (url.username, url.password) if url.userinfo else None
        if sum((in_url is not None, auth is not None, "authorization" in self._headers)) > 1:
            raise ValueError(
                "credentials are given more than once: by auth=, in the URL, or in headers=; choose one"
            )
        return auth if in_url is None else in_url

    async def _failed(self, error: Exception, wait: float) -> FeedError:
        if isinstance(error, self._errors.PoolTimeout):
            await self.aclose()  # httpcore #1093: after unlucky cancellations a pool hands out nothing any more
        if isinstance(error, TimeoutError):
            return FeedError(
                f"{self.where} did not send a whole answer within {self._timeout + wait:g} seconds; "
                "raise timeout= if it needs longer"
            )
        text = "" if isinstance(error, self._errors.LocalProtocolError) else f" {quoted(error, 200)}"
        return FeedError(f"{self.where} could not be read: {type(error).__name__}{text}; it is asked again later")

    def _cause(self, error: Exception) -> Exception | None:
        # h11 shows the header that it refuses to send, and a traceback shows the cause.
        return None if isinstance(error, self._errors.LocalProtocolError) else error


async def _close(response: Any) -> None:
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
    return type(request)(call.method, call.url, headers=headers, content=call.content, extensions=extensions)


def _timeout(limits: Any, wait: float) -> dict[str, float | None]:
    read = None if limits.read is None else limits.read + wait
    return {"connect": limits.connect, "read": read, "write": limits.write, "pool": limits.pool}
