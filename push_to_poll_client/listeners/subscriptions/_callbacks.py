"""Answer a hub's request to confirm a subscription or its end (WebSub §5.2, §5.3).

The hub's callback may come before the hub responds to the request, after the client's timeout, twice, or never. It
comes in the webhook's thread. The result is kept until the request is looked at again.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import anyio

from push_to_poll_client._event_loop import EventLoop
from push_to_poll_client._validation import quoted
from push_to_poll_client.listeners._webhook.types import NOT_READY, WebhookRequest, WebhookResponse
from push_to_poll_client.listeners.subscriptions._types import Registration

SUBSCRIBE, UNSUBSCRIBE, DENIED = "subscribe", "unsubscribe", "denied"

# A longer one, or one that is not plain text, comes from an attacker who wants this server to show the attacker's
# text (WebSub §8.2).
MAX_CHALLENGE = 1024
"""Characters of a challenge that is echoed. Hubs send about 20 to 200."""

MAX_REASON = 200
"""Characters of a hub's reason that are logged."""

MAX_DIGITS = 10
"""Digits of a lease in seconds: 300 years."""

MAX_ENDED = 256
"""Stopped or replaced subscriptions whose pushes are answered with 410."""

_OK = WebhookResponse(200)
_NOT_FOUND = WebhookResponse(404)
_GONE = WebhookResponse(410)


class HubTarget(NamedTuple):
    """URL of a hub or topic. `public_only` if a server on the internet named it."""

    url: str
    public_only: bool


class HubRequest:
    """A request to a hub, and its result. After redirects, `hub` is the hub that was asked."""

    def __init__(self, mode: str, topic: str, hub: HubTarget) -> None:
        self.mode = mode
        self.topic = topic
        self.hub = hub
        self.verified = False
        self.expires_at: float | None = None
        self.denied: str | None = None
        self._waiting: tuple[EventLoop, anyio.Event] | None = None

    async def wait_answered(self) -> None:
        """Wait until the hub's callback confirms or denies the request."""
        event = anyio.Event()
        self._waiting = EventLoop(), event
        if not self.verified and self.denied is None:
            await event.wait()

    def notify_answered(self) -> None:
        """End the wait, after the answer was stored. Thread-safe."""
        if (waiting := self._waiting) is not None:
            loop, event = waiting
            loop.call(event.set)


class HubCallbacks:
    """Answers the callbacks of hubs. Call `respond` in any thread, everything else in the event loop."""

    # No lock is needed: the event loop replaces or adds values in one step, and threads only read them.

    def __init__(self, on_denied: Callable[[str], None]) -> None:
        self._on_denied = on_denied
        self.requests: dict[str, HubRequest] = {}
        self.registrations: Mapping[str, Registration] = {}
        self._is_loaded = False
        self._ended: deque[str] = deque(maxlen=MAX_ENDED)

    def expect_callback(self, id: str, mode: str, topic: str, hub: HubTarget) -> HubRequest:
        """Expect a callback. Returns an equal earlier request, which may have its answer already."""
        known = self.requests.get(id)
        if known is None or (known.mode, known.topic, known.denied) != (mode, topic, None):
            known = self.requests[id] = HubRequest(mode, topic, hub)
        return known

    def adopt(self, registrations: Sequence[Registration]) -> None:
        """Accept the pushes of these subscriptions, newest first. All others have ended."""
        known = {one.id: one for one in registrations}
        self._ended.extend(self.registrations.keys() - known.keys())
        self.requests = {one: request for one, request in self.requests.items() if one in known}
        self.registrations = known
        self._is_loaded = True

    def respond(self, request: WebhookRequest) -> WebhookResponse | None:
        """Respond to a hub's callback; None if the request is not a callback."""
        # A push for an ended subscription is answered with 410, which ends it at the hub too (WebSub §7). A push
        # for an unknown one is not: another process may own it, or this process may not know it yet.
        callback = callback_id(request)
        if request.method != "GET":
            return _GONE if callback in self._ended and callback not in self.registrations else None
        if (mode := request.parameter("hub.mode")) is None:
            return None
        if not self._is_loaded:
            return NOT_READY  # 404 would say that the subscription is not wanted
        known = self.requests.get(callback), self.registrations.get(callback)
        return self._deny(request, *known) if mode == DENIED else self._verify(request, mode, *known)

    def _verify(
        self, request: WebhookRequest, mode: str, hub_request: HubRequest | None, registration: Registration | None
    ) -> WebhookResponse:
        topic, challenge = request.parameter("hub.topic"), request.parameter("hub.challenge")
        if challenge is None or len(challenge) > MAX_CHALLENGE:
            return _NOT_FOUND
        if not (challenge.isascii() and challenge.isprintable()):
            return _NOT_FOUND
        if hub_request is None:  # an earlier run subscribed, and the hub verifies again
            wanted = registration is not None and mode == SUBSCRIBE and topic == registration.details.get("topic")
            return WebhookResponse(200, challenge.encode()) if wanted and topic is not None else _NOT_FOUND
        if (mode, topic) != (hub_request.mode, hub_request.topic):
            return _NOT_FOUND
        if not hub_request.verified:
            hub_request.expires_at = _lease_end(request)
            hub_request.verified, hub_request.denied = True, None
        hub_request.notify_answered()
        return WebhookResponse(200, challenge.encode())

    def _deny(
        self, request: WebhookRequest, hub_request: HubRequest | None, registration: Registration | None
    ) -> WebhookResponse:
        topic = request.parameter("hub.topic")
        reason = quoted(request.parameter("hub.reason") or "", MAX_REASON)
        if registration is not None and topic is not None and topic == registration.details.get("topic"):
            created = (one.id for one in self.registrations.values() if "topic" in one.details)
            if registration.id == next(created, None):  # ignore a denial of a replaced subscription
                self._on_denied(reason)
        elif hub_request is not None and topic == hub_request.topic and hub_request.mode == SUBSCRIBE:
            hub_request.verified, hub_request.denied = False, reason
            hub_request.notify_answered()
        else:
            return _NOT_FOUND
        return _OK


def callback_id(request: WebhookRequest) -> str:
    """Return the subscription id: the last segment of the callback's path."""
    return request.path.rpartition("/")[2]


def _lease_end(request: WebhookRequest) -> float | None:
    """Return the end of the lease, counted from the hub's callback (WebSub §5.3); None if not given."""
    lease = request.parameter("hub.lease_seconds") or ""
    if not (lease.isascii() and lease.isdecimal() and len(lease) <= MAX_DIGITS):
        return None
    return request.received_at + int(lease)
