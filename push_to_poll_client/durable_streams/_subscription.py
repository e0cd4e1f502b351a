"""Subscriptions at a Durable Streams server, and its webhooks (PROTOCOL.md §6, §7).

Its subscription is a cursor of its own in some streams. When one of them is longer than that, it wakes us once,
and not again before we said how far we are, or said nothing for as long as the lease. We say "as far as you told
us" at once: our own cursor is in our store, and what came meanwhile makes the server wake us again.

A subscription has no end, and a server that lost it does not say so. So it is confirmed now and then, by the same
request that made it. Its id is made from what it asks for: the same program has the same subscription after a
restart, with or without a store, and a changed one gets another and takes back the old one.
"""

import hashlib
import logging
import ssl
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import msgspec

from push_to_poll_client import _event_loop
from push_to_poll_client._exceptions import ListenerError
from push_to_poll_client._http.credentials import HeaderSource, TokenSource
from push_to_poll_client._http.origins import parse_http_url, without_secrets
from push_to_poll_client._json import decode
from push_to_poll_client._types import Push
from push_to_poll_client._validation import check_number
from push_to_poll_client.durable_streams._signature import DurableStreamsSignature
from push_to_poll_client.listeners._failures import http_failure_of
from push_to_poll_client.listeners._requests import (
    RESPONSE_VERDICTS,
    ListenerClient,
    ListenerResponse,
    UnusableResponse,
)
from push_to_poll_client.listeners._webhook.types import WebhookAnswer, WebhookRequest
from push_to_poll_client.listeners.subscriptions._types import Registration, SubscriptionRefused

__all__ = [
    "CONFIRM_EVERY",
    "JSON_HEADERS",
    "DurableStreamsSubscription",
    "DurableStreamsWebhook",
    "address_below",
    "error_code",
    "path_in_stream_root",
    "root_of",
    "topics_of",
]


CONFIRM_EVERY = 60.0
"""Seconds between two confirmations: so long a server that lost the subscription pushes nothing, and consumers
find what is new by their fallback interval. A fleet of 1,000 sends 17 requests a second."""

MIN_LEASE, MAX_LEASE = 1.0, 600.0
"""Seconds that a server takes for a lease (§6.2)."""

MAX_TOPICS = 64
"""Streams that are named in a push; one that speaks of more speaks of all."""

_log = logging.getLogger("push_to_poll_client.listeners.subscriptions")

JSON_HEADERS = {"content-type": "application/json"}


class DurableStreamsSubscription:
    """A subscription of any kind; a `Subscription`, as the keeper wants it.

    Args:
        root: Where the streams are, `{stream-url}` of the protocol.
        asked: What is particular to the kind: `type`, and where to push.
        streams: Paths below the root.
        pattern: Of paths: `*` is one step of a path, `**` any number.
        id: What the id begins with; `None`: "push-to-poll".
        lease: Seconds.
        confirm_every: Seconds.
        asker: Asks the server.

    Attributes:
        name: By what status and log call it.
        id: What the server calls it.
        registrations: Those whose pushes are welcome; `None`: nobody said.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument has no meaning.
    """

    def __init__(
        self,
        root: str,
        asked: Mapping[str, object],
        *,
        streams: Iterable[str],
        pattern: str | None,
        id: str | None,
        lease: float,
        confirm_every: float,
        asker: ListenerClient,
    ) -> None:
        check_number("confirm_every", confirm_every, above_zero=True)
        given = {**asked, **_streams_of(streams, pattern), "lease_ttl_ms": _milliseconds(lease)}
        self._request_body = msgspec.json.encode(given, order="sorted")
        self._base_url = f"{root}/__ds/subscriptions"
        self._client = asker
        self._confirm_every = confirm_every
        self.id: str = f"{_checked_id(id)}-{hashlib.sha256(self._request_body).hexdigest()[:16]}"
        # Without what depends on the arguments: under its name the old one is found that is to be taken back.
        self.name: str = without_secrets(f"{self._base_url}/{quote(_checked_id(id), safe='')}")
        self.registrations: Sequence[Registration] | None = None
        self._was_accepted = False

    def plan(self) -> Registration:
        """The id."""
        return Registration(id=self.id)

    async def create(self, planned: Registration, /) -> Registration:
        """Ask for it. One that is there already, as it is asked for, is as good (§6.2).

        Raises:
            ListenerError: The server says that what is asked for has no meaning, or that it may not push there.
            SubscriptionRefused: Likewise, and it has taken it before.
            Exception: It failed.
        """
        await self._put(planned)
        await self._on_created()
        return self._confirmed(planned)

    async def renew(self, registration: Registration, /) -> Registration | None:
        """Confirm it; `None`: the program asks for something else by now.

        By the same request a server that had lost it has it again. What it did not tell meanwhile is found by the
        poll that follows every confirmation.

        Raises:
            ListenerError: As for `create`.
            SubscriptionRefused: Likewise.
            Exception: It failed.
        """
        if registration.id != self.id:
            return None
        if (await self._put(registration)).status == HTTPStatus.CREATED:
            _log.info("%s: the server had lost the subscription, and has it again", self.name)
            await self._on_created()
        return self._confirmed(registration)

    async def stop(self, registration: Registration, /) -> None:
        """Take it back (§6.3), unless it has been made anew: what replaces one that was lost has the same id."""
        if any(one.id == registration.id and one != registration for one in self.registrations or ()):
            return
        answer = await self._client.send_request("DELETE", self.url(registration.id))
        answer.expect(HTTPStatus.OK, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND, HTTPStatus.GONE)

    def adopt(self, registrations: Sequence[Registration]) -> None:
        """Those whose pushes are welcome."""
        self.registrations = registrations

    def url(self, id: str, action: str = "") -> str:
        """Where a subscription is on the server."""
        return f"{self._base_url}/{quote(id, safe='')}{action}"

    async def _on_created(self) -> None:
        """The server has it since just now."""

    async def _put(self, planned: Registration) -> ListenerResponse:
        """Anywhere else than at its root such a server takes the request for a new stream, and says nothing."""
        answer = await self._client.send_request(
            "PUT", self.url(planned.id), content=self._request_body, headers=JSON_HEADERS
        )
        if answer.status == HTTPStatus.BAD_REQUEST and (code := error_code(answer)) in _ERROR_HINTS:
            # What was taken before is not wrong by itself: the server is not what it was, and may be so again.
            kind = SubscriptionRefused if self._was_accepted else ListenerError
            raise kind(f"{self.name}: the server answered {code}: {_ERROR_HINTS[code]}")
        answer.expect(HTTPStatus.OK, HTTPStatus.CREATED)
        if not isinstance(answer.json(), dict):
            raise UnusableResponse(f"{answer.url} answered something that is no subscription (§6.2)")
        self._was_accepted = True
        return answer

    def _confirmed(self, registration: Registration) -> Registration:
        return Registration(id=registration.id, renew_at=_event_loop.wall_clock() + self._confirm_every)


_ERROR_HINTS = {
    "WEBHOOK_URL_REJECTED": "it does not push to this callback, which has to be https:// on a public host; "
    "give a callback= that the server may reach",
    "INVALID_REQUEST": "it does not take such a subscription; check streams=, pattern= and lease=, and whether "
    "it is set up for webhooks at all",
}
"""What a server says of our arguments, and means for good. Its own text may quote them, and with them a secret."""


class _ErrorBody(msgspec.Struct):
    code: str = ""


class _ErrorResponse(msgspec.Struct):
    error: _ErrorBody


def error_code(answer: ListenerResponse) -> str:
    """By what the server calls an error (§7.1); "": it does not say."""
    try:
        return decode(answer.body, type=_ErrorResponse).error.code
    except (ValueError, RecursionError):
        return ""


def topics_of(paths: Iterable[str]) -> tuple[str, ...]:
    """Each once; none, which means all, if they are too many."""
    topics = tuple(dict.fromkeys(paths))
    return topics if len(topics) <= MAX_TOPICS else ()


def root_of(url: str) -> str:
    """Where the streams are, without user and password, and without a slash at its end.

    Raises:
        TypeError: It is no `str`.
        ValueError: It is no http address, or has a query, which could not stand behind what is added to it.
    """
    parsed = parse_http_url(url)
    if parsed.query or parsed.fragment:
        raise ValueError(
            f"{without_secrets(url)} has a query or fragment: give the address below which streams are"
        )
    return str(parsed.copy_with(userinfo=b"")).rstrip("/")


def address_below(root: str, path: str, query: str | None = None) -> str:
    """The address of what is below the root, with the user and password that the root may have."""
    parsed = parse_http_url(root)
    whole = f"{parsed.path.rstrip('/')}/{path}"
    return str(parsed.copy_with(path=whole, query=None if query is None else query.encode()))


def _streams_of(streams: Iterable[str], pattern: str | None) -> dict[str, object]:
    if isinstance(streams, str):
        raise TypeError("streams are several paths, as ['orders']; not a str")
    paths = sorted({path_in_stream_root("streams", path) for path in streams})
    if not paths and pattern is None:
        raise ValueError("give streams= or pattern=: of what is the server to tell?")
    named: dict[str, object] = {"streams": paths} if paths else {}
    return named if pattern is None else {**named, "pattern": path_in_stream_root("pattern", pattern)}


def path_in_stream_root(name: str, path: object) -> str:
    """As servers have it: without slashes at its ends."""
    if not isinstance(path, str):
        raise TypeError(f"{name}: a path is a str, not {type(path).__name__}")
    if not path.strip("/"):
        raise ValueError(f"{name}: a path is empty")
    return path.strip("/")


def _milliseconds(lease: float) -> int:
    check_number("lease", lease, above_zero=True)
    if not MIN_LEASE <= lease <= MAX_LEASE:
        raise ValueError(f"lease must be from {MIN_LEASE:g} to {MAX_LEASE:g} seconds, not {lease!r}")
    return round(lease * 1000)


def _checked_id(id: object) -> str:
    if id is None:
        return "push-to-poll"
    if not isinstance(id, str):
        raise TypeError(f"id must be a str or None, not {type(id).__name__}")
    if not id:
        raise ValueError("id is empty")
    return id


class DurableStreamsWebhook(DurableStreamsSubscription):
    """Webhooks of a Durable Streams server. For `WebhookListener(register_with_server=…)`.

        DurableStreamsWebhook(
            "https://streams.example/v1/stream", streams=["orders"], callback="https://me.example/hooks/orders"
        )

    Each push is signed by the server, and answered in such a way that it may push again at once. Its body has a
    token with which a worker would say how far it is: it is not used, and shown nowhere.

    Args:
        root: Where the streams are: the address of a stream without the path that `streams` names it by. A user
            and password in it are sent as Basic credentials.
        callback: Where the server reaches the webhook: `https://`, and for tests `http://127.0.0.1`.
        streams: Paths of streams below the root.
        pattern: Paths of streams, those to come included: in `orders/*` the star is one step of a path, two
            stars are any number of steps. One of `streams` and `pattern` has to be given.
        id: What the subscription's id begins with, for whoever looks at them on the server; the rest is made from
            what is asked for. Those who ask for the same share one. `None`: "push-to-poll".
        lease: Seconds after which the server pushes again what was not answered, 1 to 600.
        confirm_every: Seconds after which the subscription is confirmed, since the server may have lost it. For
            so long it then pushes nothing.
        tolerance: Seconds that the time in a signature may differ from this machine's.
        headers: Sent with each request: a mapping, or a function that returns one. `None`: none.
        token: Sent as `Authorization: Bearer`: a string, or a function as for `headers`.
        tls: Whom to trust for `https://`. `None`: the certificates that the machine trusts.
        client: An `httpx.AsyncClient`, or one of its shape, to ask by; it stays yours.

    Attributes:
        name: By what status and log call it.
        verify: Takes what the server signed: a `DurableStreamsSignature`.
        answer: What a push is answered: that the server need not wait for us (§7.1).

    Raises:
        ImportError: `cryptography` is not installed: `pip install 'push-to-poll-client[crypto]'`.
        TypeError: An argument is of the wrong type.
        ValueError: An argument has no meaning; the text says which and why.
    """

    answer: WebhookAnswer = WebhookAnswer(200, b'{"done":true}', "application/json")

    def __init__(
        self,
        root: str,
        *,
        callback: str,
        streams: Iterable[str] = (),
        pattern: str | None = None,
        id: str | None = None,
        lease: float = 10.0,
        confirm_every: float = CONFIRM_EVERY,
        tolerance: float = 300.0,
        headers: HeaderSource | None = None,
        token: TokenSource | None = None,
        tls: ssl.SSLContext | None = None,
        client: Any = None,
    ) -> None:
        where = root_of(root)
        super().__init__(
            where,
            {"type": "webhook", "webhook": {"url": str(parse_http_url(callback))}},
            streams=streams,
            pattern=pattern,
            id=id,
            lease=lease,
            confirm_every=confirm_every,
            asker=ListenerClient(root, headers=headers, token=token, tls=tls, client=client),
        )
        # Not where an answer says that they are (§6.3): it would be asked with our credentials, and §6.5 demands
        # that they are here.
        self.verify: DurableStreamsSignature = DurableStreamsSignature(
            address_below(root, "__ds/jwks.json"),
            tolerance=tolerance,
            headers=headers,
            token=token,
            tls=tls,
            client=client,
        )

    async def _on_created(self) -> None:
        """A server that was started anew may have other keys than those that are known."""
        try:
            await self.verify.refresh()
        except Exception as error:  # noqa: BLE001  # they are asked for again when a push comes
            why = http_failure_of(error, wanted="a set of keys", verdicts=RESPONSE_VERDICTS).sentence
            _log.info("%s: %s", self.name, why)

    def hint(self, request: WebhookRequest, /) -> Push | None:
        """The streams that have something new. `None`: it is of another subscription of the same server.

        Their offsets are no cursors: one of `DurableStreamFeed` says also how many messages lie before it.
        """
        try:
            wake = decode(request.body, type=_WebhookWake)
        except (ValueError, RecursionError):
            return Push()  # the server wrote it all the same
        if self.registrations is not None and wake.subscription_id not in {one.id for one in self.registrations}:
            return None
        return Push(topics=topics_of(stream.path for stream in wake.streams if stream.has_pending))


class _PushedStream(msgspec.Struct):
    path: str
    has_pending: bool = True


class _WebhookWake(msgspec.Struct):
    subscription_id: str
    streams: list[_PushedStream] = []
