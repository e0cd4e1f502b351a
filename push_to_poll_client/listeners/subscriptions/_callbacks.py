"""Answer a hub that asks whether a subscription, or its end, is wanted (WebSub §5.2, §5.3).

Its question may come before its answer to the request, after this side has given up waiting, twice, or never; in
whatever thread the webhook runs. What it brings is kept until somebody asks for it.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType

import anyio

from push_to_poll_client._event_loop import EventLoop
from push_to_poll_client._validation import quoted
from push_to_poll_client.listeners._webhook.types import WebhookAnswer, WebhookRequest
from push_to_poll_client.listeners.subscriptions._types import Registration

__all__ = [
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "HubCallbacks",
    "HubRequest",
    "callback_id",
]


SUBSCRIBE, UNSUBSCRIBE, DENIED = "subscribe", "unsubscribe", "denied"

MAX_CHALLENGE = 1024
"""Characters of a challenge that is echoed: hubs make some 20 to 200, and what is larger, or not plain text, is
somebody who wants this server to show what he wrote (WebSub §8.2)."""

MAX_REASON = 200
"""Characters of a hub's reason that are logged."""

MAX_DIGITS = 10
"""Of a lease in seconds: 300 years."""

MAX_ENDED = 256
"""Subscriptions that were stopped or replaced, which are remembered to say so."""

_OK = WebhookAnswer(200)
_NOT_FOUND = WebhookAnswer(404)
_GONE = WebhookAnswer(410)


class HubRequest:
    """What a hub was asked for, and what became of it.

    Attributes:
        mode: `SUBSCRIBE` or `UNSUBSCRIBE`.
        topic: Which.
        hub: Whom, once that is known.
        signed: Whether it has the secret.
        verified: Whether it has asked whether that is wanted.
        expires_at: Until when it is, in seconds since the epoch, as it said; `None`: it did not.
        denied: Why it will not; `None`: it did not say so.
    """

    def __init__(self, mode: str, topic: str) -> None:
        self.mode = mode
        self.topic = topic
        self.hub: str | None = None
        self.signed = True
        self.verified = False
        self.expires_at: float | None = None
        self.denied: str | None = None
        self._waiting: tuple[EventLoop, anyio.Event] | None = None

    async def wait_answered(self) -> None:
        """Wait until the hub has asked back, or denied it."""
        event = anyio.Event()
        self._waiting = EventLoop(), event
        if not self.verified and self.denied is None:
            await event.wait()

    def notify_answered(self) -> None:
        """It has; from any thread, after that was written down."""
        if (waiting := self._waiting) is not None:
            loop, event = waiting
            with suppress(RuntimeError):  # nobody waits any more
                loop.call(event.set)


class HubCallbacks:
    """Answers what hubs ask. Its `respond` is called in any thread, all else in the event loop.

    Args:
        denied: Called when a hub ends a subscription that is in force, with its reason, fit for a log.
    """

    def __init__(self, denied: Callable[[str], None]) -> None:
        self._on_denied = denied
        self._requests: dict[str, HubRequest] = {}
        self._registrations: Mapping[str, Registration] = MappingProxyType({})
        self._current: str | None = None
        self._ended: deque[str] = deque(maxlen=MAX_ENDED)
        self._lock = threading.Lock()

    def expect_callback(self, id: str, mode: str, topic: str) -> HubRequest:
        """Expect the hub's question. What it has brought already, for the same request, is there."""
        with self._lock:
            before = self._requests.get(id)
            if before is None or (before.mode, before.topic, before.denied) != (mode, topic, None):
                self._requests[id] = HubRequest(mode, topic)
            return self._requests[id]

    def request_for(self, id: str) -> HubRequest | None:
        """What was asked for last."""
        return self._requests.get(id)

    def adopt(self, registrations: Sequence[Registration]) -> None:
        """Know these, the newest first, and that others have ended."""
        with self._lock:
            known = {one.id: one for one in registrations}
            self._ended.extend(self._registrations.keys() - known.keys())
            self._requests = {one: asked for one, asked in self._requests.items() if one in known}
            self._registrations = MappingProxyType(known)
            self._current = next((one.id for one in registrations if "topic" in one.details), None)

    def registration(self, id: str) -> Registration | None:
        """The subscription of that id, if its pushes are welcome."""
        return self._registrations.get(id)

    def respond(self, request: WebhookRequest) -> WebhookAnswer | None:
        """What to answer; `None`: it is no question of a hub's.

        A push for a subscription that has ended is answered 410, which ends it at the hub too (WebSub §7); not so
        for one that is not known, for it may be another process's, or this one may be about to learn of it.
        """
        callback = callback_id(request)
        if request.method != "GET":
            return _GONE if callback in self._ended and callback not in self._registrations else None
        mode, topic = request.parameter("hub.mode"), request.parameter("hub.topic")
        if mode is None:
            return None
        with self._lock:
            asked, known = self._requests.get(callback), self._registrations.get(callback)
        if mode == DENIED:
            return self._deny(request, topic, asked, known)
        return self._verify(request, mode, topic, asked, known)

    def _verify(
        self,
        request: WebhookRequest,
        mode: str,
        topic: str | None,
        asked: HubRequest | None,
        known: Registration | None,
    ) -> WebhookAnswer:
        challenge = request.parameter("hub.challenge")
        if challenge is None or not _may_be_echoed(challenge):
            return _NOT_FOUND
        if asked is None:  # asked for by an earlier run, and the hub asks again
            wanted = known is not None and mode == SUBSCRIBE and topic == known.details.get("topic")
            return WebhookAnswer(200, challenge.encode()) if wanted and topic is not None else _NOT_FOUND
        if (mode, topic) != (asked.mode, asked.topic):
            return _NOT_FOUND
        if not asked.verified:
            asked.expires_at = _lease_end(request)
            asked.verified, asked.denied = True, None
        asked.notify_answered()
        return WebhookAnswer(200, challenge.encode())

    def _deny(
        self, request: WebhookRequest, topic: str | None, asked: HubRequest | None, known: Registration | None
    ) -> WebhookAnswer:
        reason = quoted(request.parameter("hub.reason") or "", MAX_REASON)
        if known is not None and topic is not None and topic == known.details.get("topic"):
            if known.id == self._current:  # and not one that it has taken the place of
                self._on_denied(reason)
        elif asked is not None and topic == asked.topic and asked.mode == SUBSCRIBE:
            asked.verified, asked.denied = False, reason
            asked.notify_answered()
        else:
            return _NOT_FOUND
        return _OK


def callback_id(request: WebhookRequest) -> str:
    """By which subscription's callback it came: the last step of the path."""
    return request.path.rpartition("/")[2]


def _may_be_echoed(challenge: str) -> bool:
    return len(challenge) <= MAX_CHALLENGE and challenge.isascii() and challenge.isprintable()


def _lease_end(request: WebhookRequest) -> float | None:
    """Counted from the moment of the question (WebSub §5.3)."""
    lease = request.parameter("hub.lease_seconds") or ""
    if not (lease.isascii() and lease.isdecimal() and len(lease) <= MAX_DIGITS):
        return None
    return request.received_at + int(lease)
