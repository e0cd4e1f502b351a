"""Subscriptions at a Durable Streams server, and its webhooks (PROTOCOL.md §6, §7).

At the server, a subscription has its own cursor in some streams. When a stream grows beyond that cursor, the
server wakes the subscriber once. It does so again only after the subscriber reports a position, or after the
lease. This library reports the position of the wake at once: its own cursor is in its store, and the server wakes
it again for everything appended meanwhile.

A subscription does not expire, and a server that lost it does not say so. So it is confirmed at intervals, with
the request that created it. Its id is a hash of that request: the same program keeps its subscription after a
restart, even without a store. A changed program gets a new subscription and deletes the old one.
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
"""Seconds between two confirmations. A server that lost the subscription does not push for up to this time, and
consumers poll at their fallback interval. 1,000 consumers send 17 requests a second."""

MIN_LEASE, MAX_LEASE = 1.0, 600.0
"""Seconds that a server accepts for a lease (§6.2)."""

_log = ConsumerLog(logging.getLogger("push_to_poll_client.listeners.subscriptions"))

JSON_HEADERS = {"content-type": "application/json"}


class DurableStreamsSubscription:
    """A `Subscription` of either type, webhook or pull-wake."""

    def __init__(
        self,
        root: str,
        wanted: Mapping[str, object],  # from `subscription_request`
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
            raise ValueError("id must not be empty; leave it out to use 'push-to-poll'")
        self.id: str = f"{prefix}-{hashlib.sha256(self._request_body).hexdigest()[:16]}"
        # The name must not depend on the arguments: it is used to find an old subscription that is to be deleted.
        self.name: str = without_secrets(f"{self._base_url}/{quote(prefix, safe='')}")
        self.registrations: Sequence[Registration] | None = None  # whose pushes are accepted; None: not known
        self._was_accepted = False

    def plan(self) -> Registration:
        """Return the id as a plan."""
        return Registration(id=self.id)

    async def create(self, planned: Registration, /) -> Registration:
        """Request the subscription. An equal one that exists already is fine (§6.2).

        Raises:
            ListenerError: The server rejects the arguments or the callback.
            SubscriptionRefused: The same, but it has accepted them before.
            Exception: The request failed.
        """
        await self._put(planned)
        await self._on_created()
        return self._confirmed(planned)

    async def renew(self, registration: Registration, /) -> Registration | None:
        """Confirm the subscription; None if the program now requests another one.

        The same request recreates a subscription that the server has lost. The poll after each confirmation finds
        what was not pushed meanwhile.

        Raises:
            Exception: As for `create`.
        """
        if registration.id != self.id:
            return None
        if (await self._put(registration)).status == HTTPStatus.CREATED:
            _log.info("%s: the server had lost the subscription; created it again", self.name)
            await self._on_created()
        return self._confirmed(registration)

    async def stop(self, registration: Registration, /) -> None:
        """Delete the subscription (§6.3), unless a new registration has the same id."""
        if any(one.id == registration.id and one != registration for one in self.registrations or ()):
            return
        response = await self._client.send_request("DELETE", self.url(registration.id))
        response.expect(HTTPStatus.OK, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND, HTTPStatus.GONE)

    def adopt(self, registrations: Sequence[Registration]) -> None:
        """Replace the registrations whose pushes are accepted."""
        self.registrations = registrations

    def url(self, id: str, action: str = "") -> str:
        """Return the URL of a subscription, or of one of its actions."""
        return f"{self._base_url}/{quote(id, safe='')}{action}"

    async def _on_created(self) -> None:
        """Called when the server has created the subscription."""

    async def _put(self, planned: Registration) -> ListenerResponse:
        response = await self._client.send_request(
            "PUT", self.url(planned.id), content=self._request_body, headers=JSON_HEADERS
        )
        if response.status == HTTPStatus.BAD_REQUEST and (code := error_code(response)) in _ERROR_HINTS:
            # Arguments that were accepted before are valid: the server has changed, and may change back.
            kind = SubscriptionRefused if self._was_accepted else ListenerError
            raise kind(f"the server answered {code}: {_ERROR_HINTS[code]}")
        response.expect(HTTPStatus.OK, HTTPStatus.CREATED)
        # At a wrong root, such a server takes the request for a new stream and reports success.
        response.decoded(dict, "subscription (§6.2)")
        self._was_accepted = True
        return response

    def _confirmed(self, registration: Registration) -> Registration:
        return Registration(id=registration.id, renew_at=_event_loop.wall_clock() + self._confirm_every)


_ERROR_HINTS = {
    "WEBHOOK_URL_REJECTED": "the server does not push to this callback; pass a callback= with https:// on a "
    "public host that the server can reach",
    "INVALID_REQUEST": "the server rejects this subscription; check streams=, pattern= and lease=, and if "
    "webhooks are enabled at the server",
}
"""Permanent errors about the arguments. The server's own text is not shown: it may quote a secret."""


class _ErrorBody(msgspec.Struct):
    code: str = ""


class _ErrorResponse(msgspec.Struct):
    error: _ErrorBody


def error_code(response: ListenerResponse) -> str:
    """Return the error code in the server's response (§7.1); empty if there is none."""
    try:
        return decode(response.body, type=_ErrorResponse).error.code
    except (ValueError, RecursionError):
        return ""


def topics_of(paths: Iterable[str]) -> tuple[str, ...]:
    """Return each path once; an empty tuple, which means all streams, if there are too many."""
    topics = tuple(dict.fromkeys(paths))
    return topics if len(topics) <= MAX_TOPICS else ()


def root_of(url: str) -> str:
    """Return the URL below which streams are, without userinfo and final slash."""
    parsed = parse_http_url(url)
    if parsed.query or parsed.fragment:
        raise ValueError(
            f"{without_secrets(url)} has a query or fragment; pass the plain URL below which the streams are"
        )
    return str(parsed.copy_with(userinfo=b"")).rstrip("/")


def address_below(root: str, path: str, query: str | None = None) -> str:
    """Return the URL of a path below the root, with the root's user and password."""
    parsed = parse_http_url(root)
    full_path = f"{parsed.path.rstrip('/')}/{path}"
    return str(parsed.copy_with(path=full_path, query=None if query is None else query.encode()))


def path_in_stream_root(name: str, path: str) -> str:
    """Check a path, and return it without slashes at its ends."""
    check_str(f"{name}: a path", path)
    if not path.strip("/"):
        raise ValueError(f"{name} must not have an empty path, got {path!r}")
    return path.strip("/")


def subscription_request(
    delivery: Mapping[str, object], streams: Iterable[str], pattern: str | None, lease: float
) -> Mapping[str, object]:
    """Return the body of the request for a subscription (§6.2)."""
    if isinstance(streams, str):
        raise TypeError(f"streams must be a list of paths such as ['orders'], got {streams!r}")
    paths = sorted({path_in_stream_root("streams", path) for path in streams})
    if not paths and pattern is None:
        raise ValueError("pass streams= or pattern=: the paths of the streams to subscribe to")
    check_number("lease", lease, above_zero=True)
    if not MIN_LEASE <= lease <= MAX_LEASE:
        raise ValueError(f"lease must be between {MIN_LEASE:g} and {MAX_LEASE:g} seconds, got {lease!r}")
    wanted = {**delivery, "lease_ttl_ms": round(lease * 1000)}
    if paths:
        wanted["streams"] = paths
    if pattern is not None:
        wanted["pattern"] = path_in_stream_root("pattern", pattern)
    return wanted


class DurableStreamsWebhook(DurableStreamsSubscription):
    """Webhook subscription at a Durable Streams server, for `WebhookListener(subscription=…)`.

        DurableStreamsWebhook(
            "https://streams.example/v1/stream", streams=["orders"], callback="https://me.example/hooks/orders"
        )

    The server signs each push. The response lets it push again at once. The token in a push's body, with which a
    worker could report its position, is not used and never shown.

    Args:
        root: URL below which the streams are: a stream's URL without its path in `streams`. A user and password in
            it are sent as Basic credentials.
        callback: Public URL of the webhook: `https://`, or `http://127.0.0.1` in tests.
        streams: Paths of streams below the root.
        pattern: Pattern of paths that includes future streams: in `orders/*` the star is one segment of a path,
            two stars are any number of segments. One of `streams` and `pattern` is required.
        id: Start of the subscription's id, shown at the server; the rest is a hash of the request. Consumers with
            equal requests share one subscription. `None` means "push-to-poll".
        lease: Seconds after which the server repeats an unanswered push, 1 to 600.
        confirm_every: Seconds between confirmations. If the server loses the subscription, it does not push for up
            to this time.
        tolerance: Seconds by which the time in a signature may differ from this machine's clock.
        auth: Credentials, as for the listeners.
        headers: Sent with each request: a mapping, or a function (async, or plain and quick) that returns one.
            `None` adds none.
        ssl_context: TLS settings. `None` uses the machine's trusted certificates.
        client: An `httpx.AsyncClient`, or an object with the same methods. It is not closed. `None` opens one for
            each request.

    Attributes:
        name: Name in status and log lines.
        verify: Verifies the server's signatures: a `DurableStreamsSignature`.
        response: Response to a push, which tells the server not to wait for this consumer (§7.1).

    Raises:
        ImportError: `cryptography` is not installed: `pip install 'push-to-poll-client[crypto]'`.
        TypeError: An argument has the wrong type.
        ValueError: An argument has an invalid value.
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
        # Do not use the URL in a response (§6.3): our credentials would be sent there, and §6.5 requires that the
        # keys are here.
        self.verify: DurableStreamsSignature = DurableStreamsSignature(
            address_below(root, "__ds/jwks.json"), tolerance=tolerance, **options
        )

    async def _on_created(self) -> None:
        """Fetch the keys: a restarted server may have new ones."""
        try:
            await self.verify.refresh()
        except Exception as error:  # noqa: BLE001  # they are requested again when a push comes
            why = http_failure_of(error, wanted="a set of keys").sentence
            _log.info("%s: %s", self.name, why)

    def hint(self, request: WebhookRequest, /) -> Push | None:
        """Return a push with the streams that have new messages; None if it is for another subscription.

        The offsets in a push are not used as cursors: a cursor of `DurableStreamFeed` also counts messages.
        """
        wake = decode(request.body, type=_WebhookWake)  # an error means a plain push: the signature was verified
        if self.registrations is not None and wake.subscription_id not in {one.id for one in self.registrations}:
            return None
        return Push(topics=topics_of(stream.path for stream in wake.streams if stream.has_pending))


class _PushedStream(msgspec.Struct):
    path: str
    has_pending: bool = True


class _WebhookWake(msgspec.Struct):
    subscription_id: str
    streams: list[_PushedStream] = []
