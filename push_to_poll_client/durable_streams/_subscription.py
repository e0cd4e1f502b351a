"""Subscriptions at a Durable Streams server, and its webhooks (PROTOCOL.md §6, §7).

To the server a subscription is a cursor of its own in some streams. When one of the streams is longer than that,
the server wakes the subscriber once, and not again until the subscriber says how far it is, or says nothing for
the length of the lease. This library says "as far as you told us" at once: its own cursor is in its store, and
what is appended meanwhile makes the server wake it again.

A subscription has no end, and a server that lost it does not say so. So it is confirmed at intervals, by the same
request that made it. Its id is made from what it asks for: the same program has the same subscription after a
restart, with or without a store, and a changed program gets another one and deletes the old one.
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
from push_to_poll_client._http.credentials import Auth, HeaderSource
from push_to_poll_client._http.origins import parse_http_url, without_secrets
from push_to_poll_client._json import decode
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._types import Push
from push_to_poll_client._validation import check_number, check_str
from push_to_poll_client.durable_streams._signature import DurableStreamsSignature
from push_to_poll_client.listeners._failures import http_failure_of
from push_to_poll_client.listeners._hints import MAX_TOPICS
from push_to_poll_client.listeners._requests import ListenerClient, ListenerResponse
from push_to_poll_client.listeners._webhook.types import WebhookRequest, WebhookResponse
from push_to_poll_client.listeners.subscriptions._types import Registration, SubscriptionRefused

CONFIRM_EVERY = 60.0
"""Seconds between two confirmations. For so long a server that lost the subscription pushes nothing, and consumers
poll at their fallback interval. A fleet of 1,000 sends 17 requests a second."""

MIN_LEASE, MAX_LEASE = 1.0, 600.0
"""Seconds that a server accepts for a lease (§6.2)."""

_log = ConsumerLog(logging.getLogger("push_to_poll_client.listeners.subscriptions"))

JSON_HEADERS = {"content-type": "application/json"}


class DurableStreamsSubscription:
    """A `Subscription` of any kind, webhook or pull-wake.

    Args:
        root: The address below which the streams are, `{stream-url}` of the protocol.
        wanted: What `subscription_request` made.
        id: The start of the id; None for "push-to-poll".
        confirm_every: Seconds.
        client: Sends the requests.

    Attributes:
        name: Shown in status and log.
        id: The id at the server.
        registrations: The subscriptions whose pushes are accepted; None if they are not known.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has no meaning.
    """

    def __init__(
        self,
        root: str,
        wanted: Mapping[str, object],
        *,
        id: str | None,
        confirm_every: float,
        client: ListenerClient,
    ) -> None:
        check_number("confirm_every", confirm_every, above_zero=True)
        self._request_body = msgspec.json.encode(wanted, order="sorted")
        self._base_url = f"{root_of(root)}/__ds/subscriptions"
        self._client = client
        self._known_secrets = client.secrets
        self._confirm_every = confirm_every
        prefix = "push-to-poll" if id is None else id
        check_str("id", prefix)
        if not prefix:
            raise ValueError("id is empty")
        self.id: str = f"{prefix}-{hashlib.sha256(self._request_body).hexdigest()[:16]}"
        # Without what depends on the arguments: by its name an old subscription is found that is to be deleted.
        self.name: str = without_secrets(f"{self._base_url}/{quote(prefix, safe='')}")
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
            _log.info("%s: the server had lost the subscription and created it again", self.name)
            await self._on_created()
        return self._confirmed(registration)

    async def stop(self, registration: Registration, /) -> None:
        """Take it back (§6.3), unless it has been made anew: what replaces one that was lost has the same id."""
        if any(one.id == registration.id and one != registration for one in self.registrations or ()):
            return
        response = await self._client.send_request("DELETE", self.url(registration.id))
        response.expect(HTTPStatus.OK, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND, HTTPStatus.GONE)

    def adopt(self, registrations: Sequence[Registration]) -> None:
        """Note the registrations whose pushes are accepted."""
        self.registrations = registrations

    def url(self, id: str, action: str = "") -> str:
        """URL of a subscription at the server, or of one of its actions."""
        return f"{self._base_url}/{quote(id, safe='')}{action}"

    async def _on_created(self) -> None:
        """Called when the server has created the subscription."""

    async def _put(self, planned: Registration) -> ListenerResponse:
        response = await self._client.send_request(
            "PUT", self.url(planned.id), content=self._request_body, headers=JSON_HEADERS
        )
        if response.status == HTTPStatus.BAD_REQUEST and (code := error_code(response)) in _ERROR_HINTS:
            # Arguments that were accepted before are not wrong: the server has changed, and may change back.
            kind = SubscriptionRefused if self._was_accepted else ListenerError
            raise kind(f"{self.name}: the server answered {code}: {_ERROR_HINTS[code]}")
        response.expect(HTTPStatus.OK, HTTPStatus.CREATED)
        # At another address than its root such a server takes the request for a new stream, and says nothing.
        response.decoded(dict, "subscription (§6.2)")
        self._was_accepted = True
        return response

    def _confirmed(self, registration: Registration) -> Registration:
        return Registration(id=registration.id, renew_at=_event_loop.wall_clock() + self._confirm_every)


_ERROR_HINTS = {
    "WEBHOOK_URL_REJECTED": "it does not push to this callback, which has to be https:// on a public host; "
    "give a callback= that the server may reach",
    "INVALID_REQUEST": "it does not take such a subscription; check streams=, pattern= and lease=, and whether "
    "it is set up for webhooks at all",
}
"""Errors about the arguments, which do not pass. The server's own text may quote a secret in the arguments."""


class _ErrorBody(msgspec.Struct):
    code: str = ""


class _ErrorResponse(msgspec.Struct):
    error: _ErrorBody


def error_code(response: ListenerResponse) -> str:
    """Return the server's code of an error (§7.1); empty if it has none."""
    try:
        return decode(response.body, type=_ErrorResponse).error.code
    except (ValueError, RecursionError):
        return ""


def topics_of(paths: Iterable[str]) -> tuple[str, ...]:
    """Return each path once; none, which means all streams, if there are too many."""
    topics = tuple(dict.fromkeys(paths))
    return topics if len(topics) <= MAX_TOPICS else ()


def root_of(url: str) -> str:
    """Return the address below which streams are, without user and password, and without a slash at its end.

    Raises:
        TypeError: The URL is not a `str`.
        ValueError: It is not an http URL, or has a query, which cannot follow the paths that are added.
    """
    parsed = parse_http_url(url)
    if parsed.query or parsed.fragment:
        raise ValueError(
            f"{without_secrets(url)} has a query or fragment: give the address below which streams are"
        )
    return str(parsed.copy_with(userinfo=b"")).rstrip("/")


def address_below(root: str, path: str, query: str | None = None) -> str:
    """Return the address of a path below the root, with the user and password that the root may have."""
    parsed = parse_http_url(root)
    full_path = f"{parsed.path.rstrip('/')}/{path}"
    return str(parsed.copy_with(path=full_path, query=None if query is None else query.encode()))


def path_in_stream_root(name: str, path: str) -> str:
    """Check a path, and return it as servers have it: without slashes at its ends."""
    check_str(f"{name}: a path", path)
    if not path.strip("/"):
        raise ValueError(f"{name}: a path is empty")
    return path.strip("/")


def subscription_request(
    delivery: Mapping[str, object], streams: Iterable[str], pattern: str | None, lease: float
) -> Mapping[str, object]:
    """Return what to ask the server for (§6.2).

    Args:
        delivery: What differs between the kinds: `type`, and where to push.
        streams: Paths below the root.
        pattern: A pattern of paths: `*` is one step of a path, `**` any number.
        lease: Seconds.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has no meaning.
    """
    if isinstance(streams, str):
        raise TypeError("streams are several paths, as ['orders']; not a str")
    paths = sorted({path_in_stream_root("streams", path) for path in streams})
    if not paths and pattern is None:
        raise ValueError("give streams= or pattern=: of what is the server to tell?")
    check_number("lease", lease, above_zero=True)
    if not MIN_LEASE <= lease <= MAX_LEASE:
        raise ValueError(f"lease must be from {MIN_LEASE:g} to {MAX_LEASE:g} seconds, not {lease!r}")
    wanted = {**delivery, "lease_ttl_ms": round(lease * 1000)}
    if paths:
        wanted["streams"] = paths
    if pattern is not None:
        wanted["pattern"] = path_in_stream_root("pattern", pattern)
    return wanted


class DurableStreamsWebhook(DurableStreamsSubscription):
    """Webhooks of a Durable Streams server. For `WebhookListener(subscription=…)`.

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
        auth: Credentials, as for the listeners.
        headers: Sent with each request: a mapping, or a function (async, or plain and quick) that returns one.
            `None`: none.
        ssl_context: TLS settings. `None` uses the machine's trusted certificates.
        client: An `httpx.AsyncClient`, or one of its shape, to send by. It stays yours: it is not closed. `None`
            opens one for each request.

    Attributes:
        name: By what status and log call it.
        verify: Takes what the server signed: a `DurableStreamsSignature`.
        answer: What a push is answered: that the server need not wait for us (§7.1).

    Raises:
        ImportError: `cryptography` is not installed: `pip install 'push-to-poll-client[crypto]'`.
        TypeError: An argument has the wrong type.
        ValueError: An argument has no meaning; the text says which and why.
    """

    response: WebhookResponse = WebhookResponse(200, b'{"done":true}', "application/json")

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
        auth: Auth | None = None,
        headers: HeaderSource | None = None,
        ssl_context: ssl.SSLContext | None = None,
        client: Any = None,
    ) -> None:
        options: dict[str, Any] = {"auth": auth, "headers": headers, "ssl_context": ssl_context, "client": client}
        super().__init__(
            root,
            subscription_request(
                {"type": "webhook", "webhook": {"url": str(parse_http_url(callback))}}, streams, pattern, lease
            ),
            id=id,
            confirm_every=confirm_every,
            client=ListenerClient(root, **options),
        )
        # Not at the address that a response names (§6.3): it would be asked with our credentials, and §6.5 demands
        # that the keys are here.
        self.verify: DurableStreamsSignature = DurableStreamsSignature(
            address_below(root, "__ds/jwks.json"), tolerance=tolerance, **options
        )

    async def _on_created(self) -> None:
        """Fetch the keys: a server that was restarted may have other keys."""
        try:
            await self.verify.refresh()
        except Exception as error:  # noqa: BLE001  # they are requested again when a push comes
            why = http_failure_of(error, wanted="a set of keys").sentence
            _log.info("%s: %s", self.name, why)

    def hint(self, request: WebhookRequest, /) -> Push | None:
        """The streams that have something new. `None`: it is of another subscription of the same server.

        Their offsets are no cursors: one of `DurableStreamFeed` says also how many messages lie before it.
        """
        wake = decode(request.body, type=_WebhookWake)  # an error is a plain push: the server signed it
        if self.registrations is not None and wake.subscription_id not in {one.id for one in self.registrations}:
            return None
        return Push(topics=topics_of(stream.path for stream in wake.streams if stream.has_pending))


class _PushedStream(msgspec.Struct):
    path: str
    has_pending: bool = True


class _WebhookWake(msgspec.Struct):
    subscription_id: str
    streams: list[_PushedStream] = []
