"""How a feed asks its server: one client, every answer bounded in size and time, credentials stay home.

Redirects are followed on the origin that the credentials were given for, and nowhere else (G12): what a login
page, a mirror or an attacker elsewhere would get is the `Authorization` header, and what they would give is
taken for the feed. A feed that moved is named in the error; it is one edit to follow it.

A redirect proves nothing before a page of the feed was read at its end: it may lead to a maintenance page. Until
then a permanent redirect is not remembered, and 404 or 410 at its end says nothing about the feed.
"""

import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from http import HTTPStatus
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, urlencode, urljoin

import anyio
import httpx

from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._http import asked_to_wait
from push_to_poll_client._http_client import http_url
from push_to_poll_client._refusal import refusal
from push_to_poll_client._validation import check_number
from push_to_poll_client.feeds._manners.answer import READ, Answer
from push_to_poll_client.feeds._manners.arguments import header_fields, size
from push_to_poll_client.feeds._manners.body import read_body
from push_to_poll_client.feeds._manners.cache_control import may_be_kept
from push_to_poll_client.feeds._manners.credentials import Auth, Credentials
from push_to_poll_client.feeds._manners.exchange import Call, Exchange, close
from push_to_poll_client.feeds._manners.hidden import Hidden
from push_to_poll_client.feeds._manners.moves import Moves
from push_to_poll_client.feeds._manners.patience import FLOOR, STILL, Patience
from push_to_poll_client.feeds._manners.places import Places
from push_to_poll_client.feeds._manners.validators import Validators, conditions

__all__ = ["Answer", "Origin"]

MAX_REDIRECTS = 5
"""In a row. A slash, a new path and a login round trip are three."""

MOST_FOR_AN_ERROR = 5.0
"""Seconds for the body of an answer that is none: it may explain the status, and is not worth a timeout."""

_NOT_THERE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})

_FOR_GOOD = frozenset({HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.PERMANENT_REDIRECT})


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
        http_url(url)  # which says what is wrong with it, fields and all
        hidden = Hidden(url, secrets)
        parsed = httpx.URL(hidden.url)
        self.identity = hidden.identity
        self._url = parsed.copy_with(userinfo=b"", fragment=None)
        self._text = str(self._url.copy_with(query=self._url.query or None))
        self._places = Places(self._url, hidden, trusted)
        self.where = hidden.where
        self._hidden = hidden
        self._moves = Moves(hidden.shown)
        fields = header_fields(headers or {})
        check_number("timeout", timeout, above_zero=True)
        self._timeout = timeout
        self._max_body = size("max_body", max_body)
        self._credentials = Credentials(_one_of(parsed, auth, fields), self.where)
        self._exchange = Exchange(hidden, self._credentials, fields, timeout, client)

    def address(self, query: Mapping[str, str], url: str | None = None) -> str:
        """A URL with this added to its query, which stays as it is: it may be signed.

        Args:
            query: What is added.
            url: Relative to the feed's; `None` is the feed's own.

        Raises:
            ValueError: It is no URL.
        """
        text = self._text if url is None else urljoin(self._text, url)
        joint = "&" if "?" in text else "?"
        return f"{text}{joint if query else ''}{urlencode(query, quote_via=quote)}"

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
            wait: Seconds for which the server may hold its answer, as `Prefer` tells it (RFC 7240); added to all
                timeouts.
            errors: Bytes that the body of an answer that is none (4xx, 5xx) may have; 0: it is not looked at. One
                that is larger, or cannot be read, is left out.

        Raises:
            FeedError: There is no answer: the URL or a redirect is of another origin that is not trusted, a body
                too large or too slow, no connection; or a redirect ended in 404 or 410, where no page of the feed
                was read before.
        """
        known = known if method == "GET" and conditions(known) else None
        try:
            url, at_home = self._places.allowed(self._moves.now(url), leads="links", posted=content is not None)
            call = Call(url, at_home, method, headers, known, content, wait, errors)
            patience = Patience(self._timeout, wait)
            with patience.scope:
                return await self._get(call, patience)
        except self._exchange.errors as error:
            self._moves.forget()
            raise await self._exchange.failed(error) from self._exchange.cause(error)
        self._moves.forget()
        raise self._too_slow(patience, wait)

    def led_to(self, url: str, *, posted: bool) -> str:
        """What to ask at a URL that an answer leads to: it, without user, password and fragment.

        Args:
            url: Absolute.
            posted: Whether a body will be sent there.

        Raises:
            FeedError: It is of an origin that is not trusted, or not with a body.
        """
        return self._places.allowed(url, leads="links", posted=posted)[0]

    def accepted(self, answer: Answer) -> Answer:
        """The answer, if it is one by its status.

        Raises:
            FeedRefused: 4xx, and asking again will not help until somebody acts.
            FeedGone: 410.
            FeedError: Another status than 200, 203, 204 and 304, or 304 when all was asked for.
        """
        if answer.status not in READ:
            raise refusal(answer.status, answer.retry_after, answer.where)
        if answer.status == HTTPStatus.NOT_MODIFIED and answer.known is None:
            raise FeedError(
                f"{answer.where} answered 304 Not Modified, but was asked for all there is; "
                "a cache on the way is broken",
                retry_after=answer.retry_after,
            )
        return answer

    def note_read(self, answer: Answer) -> None:
        """Remember the redirects that led to this answer. Call it once a page of the feed was read from it."""
        if answer.status in READ and answer.redirected:
            self._moves.read(answer.url)
            for old, new in answer.moves:
                self._moves.learn(old, new)

    async def aclose(self) -> None:
        """Give back connections. The next `ask` opens them again, in whatever event loop that is."""
        await self._exchange.aclose()

    def _too_slow(self, patience: Patience, wait: float) -> FeedError:
        if patience.stood_still:
            return FeedError(
                f"{self.where} sent less than {FLOOR} bytes of its body in {STILL:g} seconds; it is asked "
                "again later"
            )
        return FeedError(
            f"{self.where} did not send a whole answer within {self._timeout + wait:g} seconds; "
            "raise timeout= if it needs longer"
        )

    async def _get(self, call: Call, patience: Patience) -> Answer:
        answer = await self._follow(call, patience)
        refused = answer.status == HTTPStatus.UNAUTHORIZED and self._places.is_home(answer.url)
        if refused and self._credentials.forget():
            patience.ask_again()
            answer = await self._follow(call, patience)
        if answer.status not in READ:
            self._moves.forget()
        if answer.redirected and answer.status in _NOT_THERE and not self._moves.has_read(answer.url):
            there = self._hidden.shown(answer.url)
            raise FeedError(
                f"{self.where} was redirected to {there}, which answered {answer.status}; if the feed has "
                "moved there, give its new URL; it is asked again later",
                retry_after=answer.retry_after,
            )
        return answer

    async def _follow(self, call: Call, patience: Patience) -> Answer:
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._exchange.send(call)
            try:
                if response.next_request is None:
                    return await self._answer(response, call, patience)
                call = self._redirected(response, call)
            finally:
                await close(response)
        raise FeedError(f"{self.where} redirects more than {MAX_REDIRECTS} times; ask its publisher for its URL")

    def _redirected(self, response: Any, call: Call) -> Call:
        following = call.after(response.status_code)
        posted = following.content is not None
        url, at_home = self._places.allowed(str(response.next_request.url), leads="redirects", posted=posted)
        if response.status_code in _FOR_GOOD and following.method == call.method and may_be_kept(response.headers):
            following = following._replace(moves=(*call.moves, (call.url, url)))
        return following._replace(url=url, at_home=at_home)

    async def _answer(self, response: Any, call: Call, patience: Patience) -> Answer:
        status = response.status_code
        headers, now = response.headers, time.time()
        where = self.where if call.at_home else self._places.shown(call.url)
        if status in READ:
            body = await read_body(response, self._max_body, where, patience)
        else:
            body = await self._error_body(response, call, patience) if call.errors else b""
        wait = within_poll = asked_to_wait(status, headers, now)
        if wait is not None:
            within_poll = asked_to_wait(status, headers, now, within_poll=True)
        return Answer(
            status,
            headers,
            body,
            wait,
            call.url,
            call.known,
            call.redirected,
            where,
            within_poll,
            call.moves,
        )

    async def _error_body(self, response: Any, call: Call, patience: Patience) -> bytes:
        """What the server says to an error; empty if that cannot be had: the error is there all the same."""
        with anyio.move_on_after(MOST_FOR_AN_ERROR), suppress(FeedError, *self._exchange.errors):
            return await read_body(response, call.errors, "", patience)
        return b""


def _one_of(url: httpx.URL, auth: Auth | None, headers: Mapping[str, str]) -> Auth | None:
    """The credentials, which can be given in three places."""
    in_url = (url.username, url.password) if url.userinfo else None
    if sum((in_url is not None, auth is not None, "authorization" in headers)) > 1:
        raise ValueError("credentials are given more than once: by auth=, in the URL, or in headers=; choose one")
    return auth if in_url is None else in_url
