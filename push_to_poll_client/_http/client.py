"""The HTTP client of a feed: redirects, credentials, validators and limits for each request.

Redirects are followed on the origin that the credentials were given for, and nowhere else (G12): what a login
page, a mirror or an attacker elsewhere would get is the `Authorization` header, and what they would give is
taken for the feed. A feed that moved is named in the error; it is one edit to follow it.

A redirect proves nothing before a page of the feed was read at its end: it may lead to a maintenance page. Until
then a permanent redirect is not remembered, and 404 or 410 at its end says nothing about the feed.
"""

import re
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urljoin

import anyio
import httpx

from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._http.caching import Validators, conditional_headers, is_cacheable
from push_to_poll_client._http.credentials import Auth, FeedCredentials
from push_to_poll_client._http.errors import error_for_status, module_of
from push_to_poll_client._http.headers import is_header_name, is_header_value, requested_delay
from push_to_poll_client._http.origins import Origins, Redirects, URLSecrets, parse_http_url
from push_to_poll_client._http.response import (
    ACCEPT_ENCODING,
    ACCEPTED_STATUSES,
    MIN_BODY_PROGRESS,
    STALL_TIMEOUT,
    Deadline,
    Response,
    read_body,
)
from push_to_poll_client._http.transport import close_on_failure, open_client, user_agent
from push_to_poll_client._validation import check_number, quoted

__all__ = [
    "Client",
    "OutgoingRequest",
    "RequestSender",
    "check_reserved_parameters",
    "check_size",
    "close_response",
    "header_fields",
    "prefer_wait",
]


def check_size(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a {type(value).__name__}; give bytes as an int")
    if value < 1:
        raise ValueError(f"{name} is {value}; give at least 1 byte")
    return value


def check_reserved_parameters(url: str, ours: frozenset[str]) -> None:
    """Whether the query leaves to the feed the names that are its own.

    Raises:
        ValueError: It does not.
    """
    if taken := ours & httpx.URL(url).params.keys():
        raise ValueError(f"url has {' and '.join(sorted(taken))} in its query, which the feed sets for each poll")


def header_fields(headers: Mapping[str, str]) -> httpx.Headers:
    for name, value in headers.items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise TypeError(f"headers have {quoted(name)}: a {type(value).__name__}; give str for both")
        if not (is_header_name(name) and is_header_value(value)):
            raise ValueError(f"the header {quoted(name)} has characters that no header may have")
    return httpx.Headers(headers)


def prefer_wait(wait: float) -> dict[str, str]:
    """The header `Prefer: wait=…` (RFC 7240 §4.3), which a server may ignore.

    Args:
        wait: Seconds; 0: answer at once.

    Returns:
        Whole seconds, as the standard has them; no header for 0.
    """
    return {"prefer": f"wait={max(1, round(wait))}"} if wait > 0 else {}


_DEFAULT_AGENT = re.compile(r"python-httpx[0-9]*/[0-9.]+")
_BODY_HEADERS = ("content-type", "content-encoding", "content-language", "content-location")


class OutgoingRequest(NamedTuple):
    """One request; as `Origin.ask`.

    Attributes:
        at_home: Whether it goes to the feed's own origin, and credentials with it.
        redirected: Whether a redirect led here.
        moves: The permanent ones among these redirects, each as its old and its new URL.
    """

    url: str
    same_origin: bool
    method: str
    headers: Mapping[str, str]
    known: Validators | None
    content: bytes | None
    wait: float
    errors: int
    redirected: bool = False
    permanent_redirects: tuple[tuple[str, str], ...] = ()

    def after_redirect(self, status: int) -> "OutgoingRequest":
        """What to ask where a redirect of this status leads (RFC 9110 §15.4)."""
        moved = status in {HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.FOUND} and self.method == "POST"
        if not moved and (status != HTTPStatus.SEE_OTHER or self.method == "HEAD"):
            return self._replace(known=None, redirected=True)
        headers = {name: value for name, value in self.headers.items() if name not in _BODY_HEADERS}
        return self._replace(method="GET", headers=headers, content=None, known=None, redirected=True)


class RequestSender:
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
        hidden: URLSecrets,
        credentials: FeedCredentials,
        headers: Mapping[str, str],
        timeout: float,
        client: Any,
    ) -> None:
        self._where = hidden.where
        self._url_secrets = hidden
        self._credentials = credentials
        self._headers = dict(headers)
        self._timeout = timeout
        self._user_client = client
        self._own_client: httpx.AsyncClient | None = None
        self._module = module = httpx if client is None else module_of(client)
        self._user_agent = _user_agent_header(client)
        # httpx reads the URL of each redirect, and lets errors of others through: a UnicodeError of idna for the
        # name of a host, a ValueError of urllib for a URL that it cannot join.
        self.errors = (module.HTTPError, module.InvalidURL, httpx.InvalidURL, OSError, ValueError)

    async def send(self, call: OutgoingRequest) -> Any:
        """The answer, its body not read yet; it has to be closed."""
        client = self._get_client()
        always = {"accept-encoding": ACCEPT_ENCODING, **self._user_agent, **prefer_wait(call.wait)}
        headers = {**always, **call.headers, **conditional_headers(call.known)}
        options: dict[str, Any] = {"auth": None}
        if call.same_origin:
            headers, options = headers | self._headers, self._credentials.options
            authorization = await self._credentials.authorization()
            if authorization is not None:
                headers["authorization"] = authorization
        async with close_on_failure(call.url) as extensions:
            extensions["timeout"] = _timeout(client.timeout, call.wait)
            request = _build_request(client, call, headers, extensions)
            return await client.send(request, stream=True, follow_redirects=False, **options)

    async def to_feed_error(self, error: Exception) -> FeedError:
        """The error to raise, from `cause(error)`."""
        if isinstance(error, self._module.PoolTimeout):
            await self.aclose()  # httpcore #1093: after unlucky cancellations a pool hands out nothing any more
            if self._user_client is not None:
                return FeedError(
                    f"{self._where} was not asked: the pool of the client given by client= hands out no "
                    "connection (PoolTimeout); share it among fewer, or open a new one"
                )
        secret = isinstance(error, self._module.LocalProtocolError)
        text = "" if secret else f" {quoted(self._url_secrets.mask(str(error)), 200)}"
        return FeedError(f"{self._where} could not be read: {type(error).__name__}{text}; it is asked again later")

    def cause(self, error: Exception) -> Exception | None:
        """The error as a traceback may show it: h11 shows the header that it refuses to send."""
        return None if isinstance(error, self._module.LocalProtocolError) else error

    async def aclose(self) -> None:
        """Give back connections. The next `send` opens them again, in whatever event loop that is."""
        own, self._own_client = self._own_client, None
        if own is not None:
            await own.aclose()

    def _get_client(self) -> Any:
        if self._user_client is not None:
            return self._user_client
        if self._own_client is None:
            # The pool's timeout is seen before the deadline of the whole answer.
            self._own_client = open_client(
                httpx.Timeout(self._timeout, pool=self._timeout / 2), shown=self._url_secrets.redact
            )
        return self._own_client


async def close_response(response: Any) -> None:
    """Give back the connection of an answer."""
    if not response.is_closed:
        with anyio.CancelScope(shield=True):  # else the pool counts the connection as used, for ever
            await response.aclose()


def _build_request(
    client: Any, call: OutgoingRequest, headers: Mapping[str, str], extensions: Mapping[str, Any]
) -> Any:
    request = client.build_request(
        call.method, call.url, headers=headers, content=call.content, extensions=extensions
    )
    if call.same_origin:
        return request
    # A client adds headers, cookies and a query of its own, and which of them are secrets nobody knows.
    headers = {"user-agent": user_agent(), **headers}
    return type(request)(call.method, call.url, headers=headers, content=call.content, extensions=extensions)


def _user_agent_header(client: Any) -> dict[str, str]:
    """What is added to the name of a client that has none of its own. Our own client knows its name."""
    name = getattr(client, "headers", {}).get("user-agent", "")
    return {"user-agent": user_agent(name)} if _DEFAULT_AGENT.fullmatch(name) else {}


def _timeout(limits: Any, wait: float) -> dict[str, float | None]:
    read = None if limits.read is None else limits.read + wait
    return {"connect": limits.connect, "read": read, "write": limits.write, "pool": limits.pool}


MAX_REDIRECTS = 5
"""In a row. A slash, a new path and a login round trip are three."""

ERROR_BODY_TIMEOUT = 5.0
"""Seconds for the body of an answer that is none: it may explain the status, and is not worth a timeout."""

_MISSING_STATUSES = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})

_PERMANENT_REDIRECTS = frozenset({HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.PERMANENT_REDIRECT})


class Client:
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
        secrets: For the fields of a URL that has some, `{name}` in its path or query.

    Attributes:
        where: The URL without secrets.
        identity: What the feed is, without secrets.

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
        secrets: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        parse_http_url(url)  # which says what is wrong with it, fields and all
        hidden = URLSecrets(url, secrets)
        parsed = httpx.URL(hidden.url)
        self.identity = hidden.identity
        self._url = parsed.copy_with(userinfo=b"", fragment=None)
        self._base_url = str(self._url.copy_with(query=self._url.query or None))
        self._origins = Origins(self._url, hidden, trusted)
        self.where = hidden.where
        self._url_secrets = hidden
        self._redirects = Redirects(hidden.redact)
        fields = header_fields(headers or {})
        check_number("timeout", timeout, above_zero=True)
        self._timeout = timeout
        self._max_body = check_size("max_body", max_body)
        self._credentials = FeedCredentials(_single_auth(parsed, auth, fields), self.where)
        self._sender = RequestSender(hidden, self._credentials, fields, timeout, client)

    def build_url(self, query: Mapping[str, str], url: str | None = None) -> str:
        """A URL with this added to its query, which stays as it is: it may be signed.

        Args:
            query: What is added.
            url: Relative to the feed's; `None` is the feed's own.

        Raises:
            ValueError: It is no URL.
        """
        text = self._base_url if url is None else urljoin(self._base_url, url)
        joint = "&" if "?" in text else "?"
        return f"{text}{joint if query else ''}{urlencode(query, quote_via=quote)}"

    async def send_request(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        known: Validators | None = None,
        method: str = "GET",
        content: bytes | None = None,
        wait: float = 0.0,
        errors: int = 0,
    ) -> Response:
        """Ask, and return what the server said, whatever that is.

        Args:
            url: What `build_url` made, or a link that the server gave: absolute. A user and password in it, and a
                fragment, are left out.
            headers: By lower-case names; added to the feed's own, which win.
            known: `Answer.validators` of the answer whose messages are settled; with it 304 is an answer. It is
                looked at for GET alone.
            method: Of the request.
            content: The request's body; `None`: it has none.
            wait: Seconds for which the server may hold its answer, as `Prefer` tells it (RFC 7240); added to all
                timeouts.
            errors: Bytes that the body of an answer that is none (4xx, 5xx) may have; 0: it is not looked at. One
                that is larger, or cannot be read, is left out.

        Raises:
            FeedError: There is no answer: the URL or a redirect is of another origin that is not trusted, a body
                too large or too slow, no connection; or a redirect ended in 404 or 410, where no page of the feed
                was read before.
        """
        known = known if method == "GET" and conditional_headers(known) else None
        try:
            url, at_home = self._origins.check_url(
                self._redirects.resolve(url), leads="links", posted=content is not None
            )
            call = OutgoingRequest(url, at_home, method, headers, known, content, wait, errors)
            patience = Deadline(self._timeout, wait)
            with patience.scope:
                return await self._send_with_auth(call, patience)
        except self._sender.errors as error:
            self._redirects.forget()
            raise await self._sender.to_feed_error(error) from self._sender.cause(error)
        self._redirects.forget()
        raise self._timeout_error(patience, wait)

    def check_link(self, url: str, *, posted: bool) -> str:
        """What to ask at a URL that an answer leads to: it, without user, password and fragment.

        Args:
            url: Absolute.
            posted: Whether a body will be sent there.

        Raises:
            FeedError: It is of an origin that is not trusted, or not with a body.
        """
        return self._origins.check_url(url, leads="links", posted=posted)[0]

    def check_status(self, answer: Response) -> Response:
        """The answer, if it is one by its status.

        Raises:
            FeedRefused: 4xx, and asking again will not help until somebody acts.
            FeedGone: 410.
            FeedError: Another status than 200, 203, 204 and 304, or 304 when all was asked for.
        """
        if answer.status not in ACCEPTED_STATUSES:
            raise error_for_status(answer.status, answer.retry_after, answer.where)
        if answer.status == HTTPStatus.NOT_MODIFIED and answer.known is None:
            raise FeedError(
                f"{answer.where} answered 304 Not Modified, but was asked for all there is; "
                "a cache on the way is broken",
                retry_after=answer.retry_after,
            )
        return answer

    def remember_redirects(self, answer: Response) -> None:
        """Remember the redirects that led to this answer. Call it once a page of the feed was read from it."""
        if answer.status in ACCEPTED_STATUSES and answer.redirected:
            self._redirects.confirm(answer.url)
            for old, new in answer.permanent_redirects:
                self._redirects.learn(old, new)

    async def aclose(self) -> None:
        """Give back connections. The next `send_request` opens them again, in whatever event loop that is."""
        await self._sender.aclose()

    def _timeout_error(self, patience: Deadline, wait: float) -> FeedError:
        if patience.stalled:
            return FeedError(
                f"{self.where} sent less than {MIN_BODY_PROGRESS} bytes of its body in {STALL_TIMEOUT:g} seconds; "
                "it is asked "
                "again later"
            )
        return FeedError(
            f"{self.where} did not send a whole answer within {self._timeout + wait:g} seconds; "
            "raise timeout= if it needs longer"
        )

    async def _send_with_auth(self, call: OutgoingRequest, patience: Deadline) -> Response:
        answer = await self._follow_redirects(call, patience)
        refused = answer.status == HTTPStatus.UNAUTHORIZED and self._origins.is_same_origin(answer.url)
        if refused and self._credentials.forget():
            patience.expect_response()
            answer = await self._follow_redirects(call, patience)
        if answer.status not in ACCEPTED_STATUSES:
            self._redirects.forget()
        if (
            answer.redirected
            and answer.status in _MISSING_STATUSES
            and not self._redirects.is_confirmed(answer.url)
        ):
            there = self._url_secrets.redact(answer.url)
            raise FeedError(
                f"{self.where} was redirected to {there}, which answered {answer.status}; if the feed has "
                "moved there, give its new URL; it is asked again later",
                retry_after=answer.retry_after,
            )
        return answer

    async def _follow_redirects(self, call: OutgoingRequest, patience: Deadline) -> Response:
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._sender.send(call)
            try:
                if response.next_request is None:
                    return await self._read_response(response, call, patience)
                call = self._redirected_request(response, call)
            finally:
                await close_response(response)
        raise FeedError(f"{self.where} redirects more than {MAX_REDIRECTS} times; ask its publisher for its URL")

    def _redirected_request(self, response: Any, call: OutgoingRequest) -> OutgoingRequest:
        following = call.after_redirect(response.status_code)
        posted = following.content is not None
        url, at_home = self._origins.check_url(str(response.next_request.url), leads="redirects", posted=posted)
        if (
            response.status_code in _PERMANENT_REDIRECTS
            and following.method == call.method
            and is_cacheable(response.headers)
        ):
            following = following._replace(permanent_redirects=(*call.permanent_redirects, (call.url, url)))
        return following._replace(url=url, same_origin=at_home)

    async def _read_response(self, response: Any, call: OutgoingRequest, patience: Deadline) -> Response:
        status = response.status_code
        headers, now = response.headers, time.time()
        where = self.where if call.same_origin else self._origins.describe_source(call.url)
        if status in ACCEPTED_STATUSES:
            body = await read_body(response, self._max_body, where, patience)
        else:
            body = await self._read_error_body(response, call, patience) if call.errors else b""
        wait = within_poll = requested_delay(status, headers, now)
        if wait is not None:
            within_poll = requested_delay(status, headers, now, within_poll=True)
        return Response(
            status,
            headers,
            body,
            wait,
            call.url,
            call.known,
            call.redirected,
            where,
            within_poll,
            call.permanent_redirects,
        )

    async def _read_error_body(self, response: Any, call: OutgoingRequest, patience: Deadline) -> bytes:
        """What the server says to an error; empty if that cannot be had: the error is there all the same."""
        with anyio.move_on_after(ERROR_BODY_TIMEOUT), suppress(FeedError, *self._sender.errors):
            return await read_body(response, call.errors, "", patience)
        return b""


def _single_auth(url: httpx.URL, auth: Auth | None, headers: Mapping[str, str]) -> Auth | None:
    """The credentials, which can be given in three places."""
    in_url = (url.username, url.password) if url.userinfo else None
    if sum((in_url is not None, auth is not None, "authorization" in headers)) > 1:
        raise ValueError("credentials are given more than once: by auth=, in the URL, or in headers=; choose one")
    return auth if in_url is None else in_url
