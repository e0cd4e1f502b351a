"""Subscribe at a WebSub hub (W3C Recommendation of 2018-01-23).

`_discovery.py` finds the hub, `_callbacks.py` answers what it asks back, and `_manager.py` decides when to
subscribe again.
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
"""Bytes of a topic. Its hub is named at its beginning, but it is read whole."""

VERIFY_TIMEOUT = 60.0
"""Seconds for a hub to ask back. A later callback is answered too, and the next attempt finds it."""

UNVERIFY_TIMEOUT = 10.0
"""Seconds for a hub to ask back whether an end is wanted. When a consumer stops it has 5 seconds."""

_REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
_HUB_REDIRECT_STATUSES = frozenset({307, 308})
_TRANSIENT_STATUSES = frozenset({401, 403, 407, 408, 425, 429})


class WebSub:
    """Asks a hub to push when a topic changes. What it pushes is the topic's content, which is not read: it wakes.

    The hub is found by the topic itself, anew at each subscription, so that a topic may move to another one. Each
    subscription has a callback of its own, which nobody can guess, and a secret of its own; before its lease ends
    it is replaced by another, as the Recommendation wants (§5.1.1), and while both are in force a change may be
    pushed twice. The hub's answer says nothing yet: it counts from when the hub has asked back at the callback,
    which may be before it answers, and so does the lease.

    Credentials go to the topic's origin alone; a hub elsewhere gets none, nor does a topic or a hub that the first
    one redirects to (three times at most). A user and password in a link or redirect are dropped. The secret goes
    to a hub by https, or on this machine, and to no other.

    A link or redirect leads from https only to https, and from a server on the internet only to another one there:
    not to this machine or a private network, whatever its name resolves to. What you give by `topic` and `hub` may
    be anywhere.

    Args:
        topic: The address of what changes. A user and password in it are sent to it as Basic credentials.
        callback: Where the hub reaches the webhook, to which a slash and an id are added. Without https whoever
            listens learns the id.
        hub: Whom to ask, for a topic that does not name one, or whose word is not to be taken. The topic is then
            called what it is called here, and not asked for. It has no user and password. `None`: the topic names
            it.
        secret: By which the hub signs, less than 200 bytes, for all subscriptions; a hub that cannot be given it
            is not asked. `None`: one is made for each subscription; a hub by http does without, and then only the
            callback tells its pushes from others.
        lease: Seconds for which pushes are asked for (§8.2: "10 days is a good default"). How long they come is
            the hub's to say; where it does not, which it must, this counts.
        auth: Credentials for the topic, as for the listeners.
        headers: Sent to the topic: a mapping, or a function (async, or plain and quick) that returns one. `None`:
            none.
        ssl_context: TLS settings. `None` uses the machine's trusted certificates.
        timeout: Seconds for each answer of topic and hub.
        client: An `httpx.AsyncClient`, or one of its shape, to send by. It stays yours: it is not closed. `None`
            opens one for each request.

    Attributes:
        name: "WebSub" and the topic without secrets.
        identity: What tells it from one of another topic, callback or hub: a restart with another subscribes anew.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An address is not one of http, the callback has a fragment, the hub has a user and password,
            the secret is empty or too long, or a number is not above 0.
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
            raise ValueError("the callback has a fragment, which no hub would send")
        self._callback = str(parsed)
        if hub is not None and parse_http_url(hub).userinfo:
            raise ValueError("hub has a user and password, but credentials go only to the topic: leave them out")
        self._hub = None if hub is None else str(parse_http_url(hub))
        if secret is not None and not isinstance(secret, str):
            raise TypeError(f"secret is a {type(secret).__name__}; give a str")
        if secret is not None and not 0 < len(secret.encode()) <= MAX_SECRET:
            raise ValueError(f"the secret has {len(secret.encode())} bytes; give 1 to {MAX_SECRET}")
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
        """Know whom to tell that a hub has ended a subscription."""
        self._control = control

    def adopt(self, registrations: Sequence[Registration]) -> None:
        """Know whose pushes are welcome; what is not among them any more has ended."""
        self._callbacks.adopt(registrations)

    def plan(self) -> Registration:
        """A callback that nobody can guess, and the secret."""
        return Registration(id=token_urlsafe(24), details={"secret": self._secret or token_urlsafe(32)})

    async def create(self, planned: Registration, /) -> Registration:
        """Find the hub, ask it, and wait until it has asked back.

        Raises:
            SubscriptionRefused: It denied it.
            TimeoutError: It did not ask back.
            UnusableResponse: There is no hub, or none that may have the secret.
            Exception: The topic or the hub gave no answer, or another one.
        """
        topic, hub = await self._discover()
        request = self._callbacks.expect_callback(planned.id, SUBSCRIBE, topic, hub)
        ends = request.expires_at
        # An earlier attempt may have been verified, with a response that came late or never.
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
            raise TimeoutError(f"the hub did not ask back within {VERIFY_TIMEOUT:g} s")
        details = {"topic": request.topic, "hub": request.hub.url}
        if not request.hub.public_only:
            details["private"] = "allowed"
        if _is_confidential(request.hub.url):
            details["secret"] = planned.details["secret"]
        ends = request.expires_at
        expires_at = _event_loop.wall_clock() + self._lease if ends is None else ends
        return Registration(id=planned.id, expires_at=expires_at, details=details)

    async def renew(self, registration: Registration, /) -> Registration | None:  # noqa: ARG002 - all alike
        """It is to be replaced: callbacks change when subscriptions are renewed (§5.1.1)."""
        return None

    async def stop(self, registration: Registration, /) -> None:
        """Ask the hub for an end, and wait until it has asked back.

        Raises:
            SubscriptionGone: It does not know of it.
            TimeoutError: It did not ask back.
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
        """Answer a hub that asks back or denies; 410 to a push of a subscription that has ended. In any thread."""
        with hidden(self._known_secrets):  # before the reason of the hub is cut
            return self._callbacks.respond(request)

    def verify(self, request: WebhookRequest) -> Verified | None:
        """Verify a push by its callback and the subscription's secret. In any thread."""
        registration = self._callbacks.registrations.get(callback_id(request))
        if registration is None:
            return None
        secret = registration.details.get("secret")
        return Verified() if secret is None else websub(secret)(request)

    # Requests to topic and hub

    def _on_denied(self, reason: str) -> None:
        _log.warning("%s: the hub has ended the subscription: %s", self.name, self._known_secrets.mask(reason))
        self._control(Control.RECREATE)

    async def _topic_of(self, registration: Registration) -> tuple[str, HubTarget]:
        """Return where a subscription was requested, as far as that is known."""
        details, request = registration.details, self._callbacks.requests.get(registration.id)
        if hub := details.get("hub"):
            public_only = hub != self._hub and details.get("private") != "allowed"
            return details["topic"], HubTarget(hub, public_only)
        if request is not None:
            return request.topic, request.hub
        return await self._discover()

    async def _discover(self) -> tuple[str, HubTarget]:
        """Return what the hub calls the topic, and the hub."""
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
            return  # whatever the response is
        unknown = httpx.codes.is_client_error(response.status) and response.status not in _TRANSIENT_STATUSES
        if unknown and request.mode == UNSUBSCRIBE:
            raise SubscriptionGone(f"the hub answered HTTP {response.status}")
        if httpx.codes.is_error(response.status):
            why = self._known_secrets.mask(response.body.decode("utf-8", "replace"))
            _log.info("%s: the hub answered HTTP %d: %s", self.name, response.status, quoted(why, MAX_REASON))
        response.expect()

    def _form(self, registration: Registration, request: HubRequest, hub: HubTarget) -> bytes:
        """Return what to send to a hub, which is noted in the request; redirects may lead to another one."""
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
                    f"the hub {without_secrets(hub.url)} has no https, so it is not given the secret; leave out "
                    "secret= to do without"
                )
            else:
                _log.warning(
                    "%s: the hub has no https, so it is given no secret, and anybody who learns the callback can "
                    "wake",
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
        """Send a request and follow redirects; credentials go to the topic's origin alone (G12)."""
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
                    f"{response.url} redirects to no http address of {MAX_LINK} characters at most"
                )
            if target.url.startswith("https:") and not link.startswith("https:"):
                raise UnusableResponse(
                    f"{response.url} redirects from https to {without_secrets(link)}, which is not followed"
                )
            target = await _led_by(response, target, link)
        raise UnusableResponse(f"{without_secrets(target.url)}: more than {MAX_REDIRECTS} redirects")


async def _led_by(response: ListenerResponse, source: HubTarget, url: str) -> HubTarget:
    """Return where a response led. Only what is on this machine or in a private network may lead there."""
    private = not source.public_only and await came_from_private(httpx.URL(source.url), response.peer)
    return HubTarget(url, public_only=not private)


def _is_confidential(hub: str) -> bool:
    """Return whether nobody on the way to the hub can read a request: by https, or on this machine."""
    url = httpx.URL(hub)
    return url.scheme == "https" or url.host in {"localhost", "127.0.0.1", "::1"}
