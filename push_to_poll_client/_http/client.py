"""HTTP client of a feed: redirects, credentials, validators and limits of each request.

A redirect to another origin is an error, unless that origin is trusted (G12). A login page, a mirror or an
attacker there would receive the `Authorization` header, and its response would be read as the feed. The error
names the new origin, so after a move of the feed you only change its URL. Requests to trusted origins carry no
credentials.

A redirect may lead to a maintenance page. So it counts only after a page of the feed was read from its target.
Until then a permanent redirect is not remembered, and a 404 or 410 of its target says nothing about the feed.
"""

import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urlencode, urljoin

import anyio
import httpx

from push_to_poll_client._exceptions import FeedError, PushToPollError
from push_to_poll_client._http.caching import Validators, conditional_headers, is_cacheable
from push_to_poll_client._http.credentials import Auth, Credentials, SendingFailed
from push_to_poll_client._http.headers import requested_delay, resolve_url
from push_to_poll_client._http.origins import FeedURL, parse_http_url, without_secrets
from push_to_poll_client._http.redirects import Redirects
from push_to_poll_client._http.response import (
    ACCEPT_ENCODING,
    ACCEPTED_STATUSES,
    MIN_BODY_PROGRESS,
    STALL_TIMEOUT,
    BodyError,
    Deadline,
    HeldTooLong,
    Response,
    error_for_status,
    read_body,
)
from push_to_poll_client._http.transport import (
    UnusableRedirect,
    closing,
    load_client,
    module_of,
    open_client,
    send,
    user_agent,
)
from push_to_poll_client._secrets import Secrets, hidden, hide_in
from push_to_poll_client._validation import check_count, check_identity, check_number, quoted

T = TypeVar("T")


def check_reserved_parameters(url: str, reserved: frozenset[str]) -> None:
    """Raise a ValueError if the query of the URL has a parameter that the feed sets itself."""
    if taken := reserved & httpx.URL(url).params.keys():
        names = " and ".join(sorted(taken))
        raise ValueError(f"remove {names} from the query of url: the feed sets it for each poll")


_BODY_HEADERS = ("content-type", "content-encoding", "content-language", "content-location")


class OutgoingRequest(NamedTuple):
    """One request, with the arguments of `Client.send_request`."""

    url: str
    same_origin: bool  # True if it has the feed's own origin, so that credentials are sent
    method: str
    headers: Mapping[str, str]
    known: Validators | None
    content: bytes | None
    wait: float
    max_error_body: int
    redirected: bool = False  # True if a redirect led here
    permanent_redirects: tuple[tuple[str, str], ...] = ()  # (old URL, new URL) of each on the way

    def __repr__(self) -> str:  # URL, headers and content may hold a secret
        return f"{type(self).__name__}({self.method} {without_secrets(self.url)!r})"

    def after_redirect(self, status: int) -> "OutgoingRequest":
        """Return the request that follows a redirect with this status (RFC 9110 §15.4)."""
        becomes_get = status in {HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.FOUND} and self.method == "POST"
        if not becomes_get and (status != HTTPStatus.SEE_OTHER or self.method == "HEAD"):
            return self._replace(known=None, redirected=True)
        headers = {name: value for name, value in self.headers.items() if name not in _BODY_HEADERS}
        return self._replace(method="GET", headers=headers, content=None, known=None, redirected=True)


_DEFAULT_AGENT = re.compile(r"python-httpx[0-9]*/[0-9.]+")

MAX_REDIRECTS = 5
"""Redirects in a row. For an added slash, a new path and a login round trip, three are enough."""

ERROR_BODY_TIMEOUT = 5.0
"""Seconds for the body of an error response: it may explain the status."""

_MISSING_STATUSES = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})

_PERMANENT_REDIRECTS = frozenset({HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.PERMANENT_REDIRECT})


class Client:
    """Sends the requests of one feed, and checks the arguments that all feeds share."""

    def __init__(
        self,
        url: str,
        *,
        auth: Auth | None,
        headers: Mapping[str, str] | None,
        timeout: float,
        max_body: int,
        client: Any,
        trusted_origins: Collection[str] = (),
        url_secrets: Mapping[str, str] = MappingProxyType({}),
        identity: str | None = None,
    ) -> None:
        parse_http_url(url)  # before the secrets are filled in, since its errors show the URL
        self._urls = urls = FeedURL(url, url_secrets, trusted_origins)
        self._given_identity = None if identity is None else check_identity(identity)
        self._base_url = str(urls.url.copy_with(userinfo=b"", fragment=None, query=urls.url.query or None))
        self.where: str = urls.where  # the URL without secrets
        self._redirects = Redirects(urls.redact)
        check_number("timeout", timeout, above_zero=True)
        self._timeout = timeout
        self.max_body: int = check_count("max_body", max_body)
        self._credentials = Credentials(auth, headers, urls.url)
        self.secrets: Secrets = self._credentials.secrets
        self.secrets.add(*url_secrets.values())
        self._given_client = client
        self._own_client: httpx.AsyncClient | None = None
        self._module = module = httpx if client is None else module_of(client)
        # Add the name of this library to a client with the default user agent.
        own_headers = getattr(client, "headers", {})
        self.secrets.add_headers(own_headers)
        self.secrets.add_body(dict(getattr(client, "params", {})))
        agent = own_headers.get("user-agent", "")
        self._user_agent = {"user-agent": user_agent(agent)} if _DEFAULT_AGENT.fullmatch(agent) else {}
        # Errors of sending a request and of reading its response.
        self._errors = (module.HTTPError, module.InvalidURL, OSError, ValueError, SendingFailed)

    async def mask_secrets(self, call: Awaitable[T]) -> T:
        """Await a call of the feed, and mask the secrets of this client in its log lines and errors."""
        with hidden(self.secrets):
            try:
                return await call
            except PushToPollError as error:
                hide_in(error)
                raise

    @property
    def identity(self) -> str:
        """Name of the feed without secrets. The first use may take about 50 ms; see `FeedURL.identity`."""
        return self._given_identity or self._urls.identity

    @property
    def former_identities(self) -> tuple[str, ...]:
        """Identities that earlier versions gave the feed, newest first."""
        if self._given_identity is not None:
            return ()
        former = dict.fromkeys(self._urls.former_identities)
        return tuple(name for name in former if name != self.identity)

    def build_url(self, query: Mapping[str, str], url: str | None = None) -> str:
        """Add parameters to the query of a URL, absolute or relative to the feed's; None means the feed's."""
        # The rest of the URL stays unchanged: it may be signed.
        text = self._base_url if url is None else urljoin(self._base_url, url)
        separator = "&" if "?" in text else "?"
        return f"{text}{separator if query else ''}{urlencode(query, quote_via=quote)}"

    async def send_request(
        self,
        url: str,  # absolute; its user, password and fragment are dropped
        *,
        headers: Mapping[str, str],  # lower-case names; the user's `headers=` and `auth=` replace them
        known: Validators | None = None,  # for GET, of a settled response: the server may answer 304
        method: str = "GET",
        content: bytes | None = None,
        wait: float = 0.0,  # seconds for which the server may hold its response; added to all timeouts
        max_error_body: int = 0,  # bytes to read of an error response; a larger or broken body is left out
    ) -> Response:
        """Send a request and return the response, whatever its status."""
        # Raises HeldTooLong if the server does not answer within `HOLD_GRACE` seconds after `wait`. Raises
        # FeedError if no usable response arrives, or if an unconfirmed redirect leads to a 404 or 410.
        known = known if method == "GET" and conditional_headers(known) else None
        deadline = Deadline(self._timeout, wait)
        try:
            url, same_origin = self._urls.check_url(
                self._redirects.resolve(url), verb="links", posted=content is not None
            )
            call = OutgoingRequest(url, same_origin, method, headers, known, content, wait, max_error_body)
            with deadline.scope:
                return await self._send_with_auth(call, deadline)
        except FeedError:  # the body is too large, or a redirect leads to an origin that is not trusted
            self._redirects.forget()
            raise
        except self._errors as error:
            self._redirects.forget()
            # Do not chain an error whose text may hold a secret: h11 quotes the header that it refuses to send.
            unshown = (self._module.LocalProtocolError, SendingFailed)
            failure = await self._feed_error(error, deadline)
            raise failure from None if isinstance(error, unshown) else error
        self._redirects.forget()
        raise self._timeout_error(deadline)

    def check_link(self, url: str, *, posted: bool) -> str:
        """Return a link without user, password and fragment. Raise FeedError if its origin is not trusted."""
        # `posted`: a request with a body may go only to the feed's own origin.
        return self._urls.check_url(url, verb="links", posted=posted)[0]

    def check_status(self, response: Response) -> Response:
        """Return the response if its status is a success; raise FeedError otherwise."""
        if response.status not in ACCEPTED_STATUSES:
            raise error_for_status(response.status, response.retry_after, response.where)
        if response.status == HTTPStatus.NOT_MODIFIED and response.known is None:
            raise FeedError(
                f"{response.where} answered 304 Not Modified to a request without an ETag or a date; "
                "a cache in between is broken; retrying later",
                retry_after=response.retry_after,
            )
        return response

    def remember_redirects(self, response: Response) -> None:
        """Remember the redirects to this response; call it after a page of the feed was read from it."""
        if response.status in ACCEPTED_STATUSES and response.redirected:
            self._redirects.confirm(response.url)
            for old, new in response.permanent_redirects:
                self._redirects.learn(old, new)

    def prepare(self) -> None:
        """Load the HTTP library and the certificates, unless a client was given."""
        if self._given_client is None:
            load_client()

    async def aclose(self) -> None:
        """Close the connections. The next `send_request` opens new ones, in any event loop."""
        own, self._own_client = self._own_client, None
        if own is not None:
            await own.aclose()

    async def _feed_error(self, error: Exception, deadline: Deadline) -> FeedError:
        if isinstance(error, self._module.ReadTimeout) and deadline.still_held:
            return self._timeout_error(deadline)
        if isinstance(error, SendingFailed):
            return FeedError(f"{self.where} could not be read: {error}; retrying later")
        if isinstance(error, self._module.PoolTimeout):
            await self.aclose()  # httpcore #1093: cancellations can leave a pool without connections
            if self._given_client is not None:
                return FeedError(
                    f"{self.where} could not be read: the client given by client= has no free connection "
                    "(PoolTimeout); share it among fewer feeds, or open a new one"
                )
        secret = isinstance(error, self._module.LocalProtocolError)
        text = "" if secret else f" {quoted(self._urls.mask(str(error)), 200)}"
        return FeedError(f"{self.where} could not be read: {type(error).__name__}{text}; retrying later")

    def _timeout_error(self, deadline: Deadline) -> FeedError:
        if deadline.still_held:
            return HeldTooLong(
                f"{self.where} held its response longer than the requested {deadline.wait:g} seconds"
            )
        if deadline.stalled:
            return FeedError(
                f"{self.where} sent less than {MIN_BODY_PROGRESS} bytes of its body in {STALL_TIMEOUT:g} seconds; "
                "retrying later"
            )
        return FeedError(
            f"{self.where} did not send a whole response within {self._timeout + deadline.wait:g} seconds; "
            "raise timeout= if it needs more time"
        )

    async def _send_with_auth(self, call: OutgoingRequest, deadline: Deadline) -> Response:
        response = await self._follow_redirects(call, deadline)
        refused = response.status == HTTPStatus.UNAUTHORIZED and self._urls.is_same_origin(response.url)
        if refused and self._credentials.forget():
            deadline.expect_response()
            response = await self._follow_redirects(call, deadline)
        if response.status not in ACCEPTED_STATUSES:
            self._redirects.forget()
        if (
            response.redirected
            and response.status in _MISSING_STATUSES
            and not self._redirects.is_confirmed(response.url)
        ):
            there = self._urls.redact(response.url)
            raise FeedError(
                f"{self.where} was redirected to {there}, which answered {response.status}; if the feed has "
                "moved there, configure its new URL; retrying later",
                retry_after=response.retry_after,
            )
        return response

    async def _follow_redirects(self, call: OutgoingRequest, deadline: Deadline) -> Response:
        for _ in range(MAX_REDIRECTS + 1):
            async with closing(await self._send(call)) as response:
                if not response.has_redirect_location:
                    return await self._read_response(response, call, deadline)
                call = self._redirected_request(response, call)
        raise FeedError(
            f"{self.where} redirects more than {MAX_REDIRECTS} times; ask its publisher for the new URL"
        )

    async def _send(self, call: OutgoingRequest) -> Any:
        """Send one request. The caller reads the body of the response, and closes it."""
        defaults = {"accept-encoding": ACCEPT_ENCODING, **self._user_agent}
        if call.wait > 0:  # in whole seconds (RFC 7240 §4.3); a server may ignore it
            defaults["prefer"] = f"wait={max(1, round(call.wait))}"
        headers = {**defaults, **call.headers, **conditional_headers(call.known)}
        if call.same_origin:
            headers |= await self._credentials.get()
        # Choose the client after the credentials. They may take time, and another request may close it meanwhile.
        client = self._given_client or self._own_client
        if client is None:
            # The pool's timeout ends before the deadline of the whole response, so that its error is reported.
            timeouts = httpx.Timeout(self._timeout, pool=self._timeout / 2)
            client = self._own_client = open_client(timeouts, redact=self._urls.redact)
        limits = client.timeout
        read = None if limits.read is None else limits.read + call.wait
        timeout = {"connect": limits.connect, "read": read, "write": limits.write, "pool": limits.pool}
        return await send(
            client,
            call.method,
            call.url,
            headers=headers,
            content=call.content,
            extensions={"timeout": timeout},
            credentials=self._credentials if call.same_origin else None,
        )

    def _redirected_request(self, response: Any, call: OutgoingRequest) -> OutgoingRequest:
        following = call.after_redirect(response.status_code)
        target = resolve_url(response.headers["location"], call.url)
        if target is None:
            raise UnusableRedirect("the server redirected to an invalid URL")
        posted = following.content is not None
        url, same_origin = self._urls.check_url(target, verb="redirects", posted=posted)
        if (
            response.status_code in _PERMANENT_REDIRECTS
            and following.method == call.method
            and is_cacheable(response.headers)
        ):
            following = following._replace(permanent_redirects=(*call.permanent_redirects, (call.url, url)))
        return following._replace(url=url, same_origin=same_origin)

    async def _read_response(self, response: Any, call: OutgoingRequest, deadline: Deadline) -> Response:
        status = response.status_code
        headers, now = response.headers, time.time()
        where = self._urls.describe_source(call.url)
        body = b""
        if status in ACCEPTED_STATUSES:
            deadline.start_body()
            try:
                body = await read_body(response, self.max_body, deadline.add_bytes)
            except BodyError as error:
                raise FeedError(f"{where} {error}") from error.__cause__
        elif call.max_error_body:  # optional: the error is complete without it
            deadline.start_body()
            with anyio.move_on_after(ERROR_BODY_TIMEOUT), suppress(BodyError, *self._errors):
                body = await read_body(response, call.max_error_body, deadline.add_bytes)
        return Response(
            status,
            headers,
            body,
            requested_delay(status, headers, now),
            call.url,
            call.known,
            call.redirected,
            where,
            requested_delay(status, headers, now, within_poll=True),
            call.permanent_redirects,
        )


async def ask_again_if_held(ask: Callable[[float], Awaitable[T]], wait: float) -> T:
    """Send a request with a wait. If the server holds it longer, send one without a wait."""
    # A server or proxy that holds a request too long may be alive or dead. The second request shows which.
    try:
        return await ask(wait)
    except HeldTooLong:
        return await ask(0.0)
