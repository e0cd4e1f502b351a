"""Subscribe at a WebSub hub (W3C Recommendation of 2018-01-23).

`_discovery.py` finds the hub, `_callbacks.py` answers its callbacks, and `_manager.py` decides when to subscribe.
"""

import hashlib
import logging
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from secrets import token_urlsafe
from typing import Any
from urllib.parse import urlencode

import anyio
import httpx

from push_to_poll_client import _event_loop
from push_to_poll_client._exceptions import SubscriptionGone
from push_to_poll_client._http.addresses import came_from_private
from push_to_poll_client._http.credentials import Auth, HeaderSource
from push_to_poll_client._http.origins import parse_http_url, without_secrets
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._secrets import hidden
from push_to_poll_client._validation import check_number, quoted
from push_to_poll_client.listeners._requests import ListenerClient, ListenerResponse, UnusableResponse
from push_to_poll_client.listeners._webhook.types import Control, Verified, WebhookRequest, WebhookResponse
from push_to_poll_client.listeners.subscriptions._callbacks import (
    MAX_REASON,
    SUBSCRIBE,
    UNSUBSCRIBE,
    HubCallbacks,
    HubRequest,
    HubTarget,
    callback_id,
)
from push_to_poll_client.listeners.subscriptions._discovery import MAX_LINK, topic_of, usable_link
from push_to_poll_client.listeners.subscriptions._types import Registration, SubscriptionRefused
from push_to_poll_client.listeners.verifiers._vendors import websub

_log = ConsumerLog(logging.getLogger("push_to_poll_client.listeners.subscriptions"))

MAX_SECRET = 199
"""Bytes (WebSub §5.1: "less than 200")."""

MAX_REDIRECTS = 3
"""Redirects of a topic or a hub that are followed."""

MAX_TOPIC = 4 * 1024 * 1024
"""Bytes of a topic's response. It names the hub at its beginning, but is read completely."""

VERIFY_TIMEOUT = 60.0
"""Seconds to wait for the hub's callback. A later callback is answered too, and the next attempt finds it."""

UNVERIFY_TIMEOUT = 10.0
"""Seconds to wait for the hub's callback after an unsubscribe request. A consumer that stops has 5 seconds."""

_REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
_HUB_REDIRECT_STATUSES = frozenset({307, 308})
_TRANSIENT_STATUSES = frozenset({401, 403, 407, 408, 425, 429})


class WebSub:
    """Asks a hub to push when a topic changes. The pushed content is not read: a push only wakes.

    The topic itself names the hub, again at each subscription, so a topic may move to another hub. Each
    subscription has its own unguessable callback and its own secret. Before its lease ends it is replaced by
    another (§5.1.1); while both are active, a change may be pushed twice. A subscription and its lease start when
    the hub's callback was answered, which may be before the hub responds to the request.

    Credentials go only to the topic's origin: not to a hub at another origin, nor to redirect targets (three at
    most). A user and password in a link or redirect are dropped. The secret goes only to a hub with https, or on
    this machine.

    A link or redirect from https may lead only to https. From a server on the internet it may lead only to another
    server on the internet: not to this machine or a private network, even by a name that resolves there. URLs that
    you pass as `topic` and `hub` may be anywhere.

    Args:
        topic: URL of the topic. A user and password in it are sent as Basic credentials.
        callback: Public URL of the webhook. A slash and an id are added to it. Without https, the id can be read
            on the network.
        hub: URL of the hub, for a topic that does not name one or cannot be trusted to. The topic is then not
            requested. It must not have a user and password. `None` takes the hub that the topic names.
        secret: Key of the hub's signatures for all subscriptions, less than 200 bytes. A hub without https is then
            not asked. `None` makes one for each subscription; a hub without https then gets none, and its pushes
            are recognised only by their callback.
        lease: Seconds to ask the hub for (§8.2: "10 days is a good default"). The hub may choose another time; if
            it does not state one, though it must, this value is used.
        auth: Credentials for the topic, as for the listeners.
        headers: Sent to the topic: a mapping, or a function (async, or plain and quick) that returns one. `None`
            adds none.
        ssl_context: TLS settings. `None` uses the machine's trusted certificates.
        timeout: Seconds for each response of topic and hub.
        client: An `httpx.AsyncClient`, or an object with the same methods. It is not closed. `None` opens one for
            each request.

    Attributes:
        name: "WebSub" and the topic without secrets.
        identity: Hash of topic, callback and hub. After a restart with another identity it subscribes again.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A URL is not an http URL, the callback has a fragment, the hub has a user and password, the
            secret is empty or too long, or a number is not above 0.
    """

    def __init__(
        self,
        topic: str,
        callback: str,
        *,
        hub: str | None = None,
        secret: str | None = None,
        lease: float = 864_000.0,
        auth: Auth | None = None,
        headers: HeaderSource | None = None,
        ssl_context: ssl.SSLContext | None = None,
        timeout: float = 30.0,
        client: Any = None,
    ) -> None:
        check_number("lease", lease, above_zero=True)
        parsed = parse_http_url(callback)
        if parsed.fragment:
            raise ValueError("callback must not have a fragment: hubs do not send it")
        self._callback = str(parsed)
        if hub is not None and parse_http_url(hub).userinfo:
            raise ValueError("hub must not have a user and password: credentials go only to the topic")
        self._hub = None if hub is None else str(parse_http_url(hub))
        if secret is not None and not isinstance(secret, str):
            raise TypeError(f"secret must be a str, got {type(secret).__name__}")
        if secret is not None and not 0 < len(secret.encode()) <= MAX_SECRET:
            raise ValueError(f"secret must have 1 to {MAX_SECRET} bytes, got {len(secret.encode())}")
        self._secret = secret
        self._lease = lease
        self._client = ListenerClient(
            topic,
            auth=auth,
            headers=headers,
            ssl_context=ssl_context,
            timeout=timeout,
            max_body=MAX_TOPIC,
            client=client,
        )
        self._known_secrets = self._client.secrets
        self._known_secrets.add(secret)
        self.name: str = f"WebSub {without_secrets(topic)}"
        key = "\n".join((self._client.url, self._callback, self._hub or ""))
        self.identity: str = f"WebSub {hashlib.sha256(key.encode()).hexdigest()}"
        self._callbacks = HubCallbacks(self._on_denied)
        self._control: Callable[[Control], None] = lambda _: None

    def __repr__(self) -> str:
        return f"<{self.name}>"

    # Called by the manager

    def bind(self, control: Callable[[Control], None]) -> None:
        """Take the function that reports that a hub has ended a subscription."""
        self._control = control

    def adopt(self, registrations: Sequence[Registration]) -> None:
        """Replace the registrations whose pushes are accepted. All others have ended."""
        self._callbacks.adopt(registrations)

    def plan(self) -> Registration:
        """Return the random part of the callback URL, and the secret."""
        return Registration(id=token_urlsafe(24), details={"secret": self._secret or token_urlsafe(32)})

    async def create(self, planned: Registration, /) -> Registration:
        """Find the hub, ask it to subscribe, and wait for its callback.

        Raises:
            SubscriptionRefused: The hub denied the subscription.
            TimeoutError: The hub's callback did not come.
            UnusableResponse: The topic names no usable hub, or the hub cannot be given the secret.
            Exception: A request to the topic or the hub failed.
        """
        topic, hub = await self._discover()
        request = self._callbacks.expect_callback(planned.id, SUBSCRIBE, topic, hub)
        ends = request.expires_at
        # An earlier attempt may have been verified although its response was late or lost.
        if not request.verified or (ends is not None and ends <= _event_loop.wall_clock()):
            request.verified = False
            await self._ask_hub(hub, planned, request)
            with anyio.move_on_after(VERIFY_TIMEOUT):
                await request.wait_answered()
        if request.denied is not None:
            raise SubscriptionRefused(
                f"the hub {without_secrets(hub.url)} denied the subscription: {request.denied}"
            )
        if not request.verified:
            raise TimeoutError(
                f"the hub did not call back within {VERIFY_TIMEOUT:g} s; check that it can reach callback="
            )
        details = {"topic": request.topic, "hub": request.hub.url}
        if not request.hub.public_only:
            details["private"] = "allowed"
        if _is_confidential(request.hub.url):
            details["secret"] = planned.details["secret"]
        ends = request.expires_at
        expires_at = _event_loop.wall_clock() + self._lease if ends is None else ends
        return Registration(id=planned.id, expires_at=expires_at, details=details)

    async def renew(self, registration: Registration, /) -> Registration | None:  # noqa: ARG002 - the protocol's
        """Return None to have it replaced: callbacks change on renewal (§5.1.1)."""
        return None

    async def stop(self, registration: Registration, /) -> None:
        """Ask the hub to unsubscribe, and wait for its callback.

        Raises:
            SubscriptionGone: The hub does not have the subscription.
            TimeoutError: The hub's callback did not come.
            Exception: As for `create`.
        """
        topic, hub = await self._topic_of(registration)
        request = self._callbacks.expect_callback(registration.id, UNSUBSCRIBE, topic, hub)
        if not request.verified:
            await self._ask_hub(hub, registration, request)
            with anyio.fail_after(UNVERIFY_TIMEOUT):
                await request.wait_answered()

    # Called by the webhook

    def handshake(self, request: WebhookRequest) -> WebhookResponse | None:
        """Answer a hub's callback, or a push of an ended subscription with 410. Thread-safe."""
        with hidden(self._known_secrets):  # masked before the hub's reason is shortened
            return self._callbacks.respond(request)

    def verify(self, request: WebhookRequest) -> Verified | None:
        """Verify a push by its callback and the subscription's secret. Thread-safe."""
        registration = self._callbacks.registrations.get(callback_id(request))
        if registration is None:
            return None
        secret = registration.details.get("secret")
        return Verified() if secret is None else websub(secret)(request)

    # Requests to topic and hub

    def _on_denied(self, reason: str) -> None:
        _log.warning("%s: the hub ended the subscription: %s", self.name, self._known_secrets.mask(reason))
        self._control(Control.RECREATE)

    async def _topic_of(self, registration: Registration) -> tuple[str, HubTarget]:
        """Return the topic and hub of a subscription, or the current ones if unknown."""
        details, request = registration.details, self._callbacks.requests.get(registration.id)
        if hub := details.get("hub"):
            public_only = hub != self._hub and details.get("private") != "allowed"
            return details["topic"], HubTarget(hub, public_only)
        if request is not None:
            return request.topic, request.hub
        return await self._discover()

    async def _discover(self) -> tuple[str, HubTarget]:
        if self._hub is not None:
            return self._client.url, HubTarget(self._hub, public_only=False)
        target, response = await self._request(
            "GET", HubTarget(self._client.url, public_only=False), _REDIRECT_STATUSES
        )
        response.expect()
        topic, hub = topic_of(response.headers, response.body, target.url)
        return topic, await _led_by(response, target, hub)

    async def _ask_hub(self, hub: HubTarget, registration: Registration, request: HubRequest) -> None:
        form = partial(self._form, registration, request)
        _, response = await self._request("POST", hub, _HUB_REDIRECT_STATUSES, form)
        if request.verified:
            return  # the callback came first; ignore the response
        unknown = httpx.codes.is_client_error(response.status) and response.status not in _TRANSIENT_STATUSES
        if unknown and request.mode == UNSUBSCRIBE:
            raise SubscriptionGone(f"the hub answered HTTP {response.status}")
        if httpx.codes.is_error(response.status):
            why = self._known_secrets.mask(response.body.decode("utf-8", "replace"))
            _log.info("%s: the hub answered HTTP %d: %s", self.name, response.status, quoted(why, MAX_REASON))
        response.expect()

    def _form(self, registration: Registration, request: HubRequest, hub: HubTarget) -> bytes:
        """Return the request's body for a hub, and note the hub in the request. Redirects may lead to another."""
        request.hub = hub
        self._known_secrets.add_recent(registration.id, registration.details.get("secret"))
        path, mark, query = self._callback.partition("?")
        fields = {
            "hub.callback": f"{path.rstrip('/')}/{registration.id}{mark}{query}",
            "hub.mode": request.mode,
            "hub.topic": request.topic,
        }
        if request.mode == SUBSCRIBE:
            fields["hub.lease_seconds"] = str(max(int(self._lease), 1))
            if _is_confidential(hub.url):
                fields["hub.secret"] = registration.details["secret"]
            elif self._secret is not None:
                raise UnusableResponse(
                    f"the hub {without_secrets(hub.url)} does not use https, so the secret cannot be sent; leave "
                    "out secret= to subscribe without one"
                )
            else:
                _log.warning(
                    "%s: the hub does not use https, so it gets no secret; an attacker who learns the callback "
                    "URL can cause polls",
                    self.name,
                )
        return urlencode(fields).encode()

    async def _request(
        self,
        method: str,
        target: HubTarget,
        redirects: frozenset[int],
        form: Callable[[HubTarget], bytes] | None = None,
    ) -> tuple[HubTarget, ListenerResponse]:
        """Send a request and follow redirects. Credentials go only to the topic's origin (G12)."""
        for _ in range(MAX_REDIRECTS + 1):
            content = None if form is None else form(target)
            headers = {} if form is None else {"content-type": "application/x-www-form-urlencoded"}
            response = await self._client.send_request(
                method, target.url, content=content, headers=headers, public_only=target.public_only
            )
            if response.status not in redirects:
                return target, response
            link = usable_link(response.headers.get("location", ""), target.url)
            if link is None:
                raise UnusableResponse(
                    f"{response.url} redirects to an address that is not an http URL of at most {MAX_LINK} "
                    "characters"
                )
            if target.url.startswith("https:") and not link.startswith("https:"):
                raise UnusableResponse(
                    f"{response.url} redirects from https to {without_secrets(link)}, which is not allowed"
                )
            target = await _led_by(response, target, link)
        raise UnusableResponse(f"{without_secrets(target.url)} redirects more than {MAX_REDIRECTS} times")


async def _led_by(response: ListenerResponse, source: HubTarget, url: str) -> HubTarget:
    """Return the target of a link. Only a server in a private network may lead to private addresses."""
    private = not source.public_only and await came_from_private(httpx.URL(source.url), response.peer)
    return HubTarget(url, public_only=not private)


def _is_confidential(hub: str) -> bool:
    """Return True if requests to the hub cannot be read on the network."""
    url = httpx.URL(hub)
    return url.scheme == "https" or url.host in {"localhost", "127.0.0.1", "::1"}
