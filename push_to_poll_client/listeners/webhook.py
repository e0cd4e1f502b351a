"""Webhook listener: an ASGI application that verifies each request and wakes consumers.

Anyone who knows the address can send requests. Limits bound the cost of a request before it is verified. All
requests that are not authentic get the same response. An attacker who has the server's secret gains polls within
the rate limit.

Each request passes these steps, in this order:

    step        effect                                                        status if rejected
    length      reject a body whose declared length is too large              413
    handshake   answer an expected handshake; reject other methods than POST  405, 429
    headers     reject a request without the headers of an authentic one      401, 503
    slots       limit the bodies in memory                                    503
    rate        limit the bodies that are read per second                     429
    body        read the body, within its limits of size and time             413, 408
    signature   verify the request                                            401, 503
    handshake   answer a handshake that is part of a signed body
    replay      answer a repeated request without waking a consumer           200
    routing     wake the consumers that the push names                        200

Handshakes are tried twice: before the body is read, since most are unsigned and in the query or headers; and again
with the body of an authentic request, since some are there (Slack, Zoom). A plain handshake function runs for each
request and has no rate limit: its answer costs no more than a rejection, and so a flood cannot block the server's
own handshake. Only async handshakes have a rate limit, separate from the limit of bodies.

The verifier of a subscription needs the state that its consumer has loaded from the store. While that consumer
does not run, a request that no verifier accepts may still be authentic, so the response is 503, not 401.

No message is processed here. A request rejected by the rate limit or for lack of a slot may have been a push, so
the consumers are told about the flood.
"""

import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from push_to_poll_client._event_loop import Background
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._protocols import Channel, Listener
from push_to_poll_client._secrets import Secrets, hidden
from push_to_poll_client._types import Push
from push_to_poll_client._validation import check_count, check_number, check_str
from push_to_poll_client.listeners._hints import HintReader
from push_to_poll_client.listeners._webhook.asgi import (
    ClientGone,
    Receive,
    Scope,
    Send,
    check_length,
    read_body,
    request_of,
    send_response,
)
from push_to_poll_client.listeners._webhook.counters import WebhookCounters, WebhookJournal
from push_to_poll_client.listeners._webhook.limits import ReplayCache, TokenBucket
from push_to_poll_client.listeners._webhook.routing import PushRouter, WebhookSubscriber, names_at
from push_to_poll_client.listeners._webhook.types import (
    ACCEPTED,
    Control,
    Handshake,
    Hint,
    RequestRejected,
    Route,
    Verified,
    Verifier,
    WebhookRequest,
    WebhookResponse,
    check_response,
)
from push_to_poll_client.listeners.subscriptions._manager import SubscriptionManager
from push_to_poll_client.listeners.subscriptions._types import Subscription

__all__ = ["Control", "Verified", "WebhookCounters", "WebhookListener", "WebhookRequest", "WebhookResponse"]

_log = ConsumerLog(logging.getLogger(__name__))

_T = TypeVar("_T")


monotonic: Callable[[], float] = time.monotonic
"""Clock shared by all event loops in which requests arrive: their own clocks may differ."""


MAX_BODIES = 64
"""Bodies in memory at a time. With the default `max_body` they take at most 64 MiB, however slowly they arrive."""


class WebhookListener:
    """ASGI application and listener that wakes consumers on every authentic request.

        hooks = WebhookListener(github(secret))
        consumer = Consumer(feed, store=store, name="orders", listeners=[hooks])
        app.mount("/hooks", hooks)

    Mount the application in FastAPI, Starlette, Litestar or Django, or serve it alone, at any path. It may run in
    another thread or event loop than the consumers, on asyncio or trio. It responds as soon as a request is
    verified and does not process messages. A push that arrives while no consumer runs gets the same response: each
    consumer polls when it starts.

    Responses: 401 for a request that is not authentic, whatever the reason; 413, 408, 429 or 503 for a request
    beyond the limits. While requests are rejected by the rate limit, pushes may be among them. The channel is then
    down, and the consumer polls at its degraded interval until 30 to 60 s after the last rejection.

    With a subscription, the verifier needs the registration, which is in the store of the consumer that keeps the
    subscription. While that consumer does not run (not started, standing by, or stopped), a request that cannot be
    verified gets 503 with `Retry-After` instead of 401. The server then sends the push again and keeps the
    subscription.

    Args:
        verify: Checks that a request is authentic. With several verifiers, one match is enough. Use
            `no_verification()` to accept every request. `None` uses the verifier of the subscription.
        name: Name in status and log.
        handshake: Answers the server's handshake, such as `dropbox_challenge()`; one or several. It is called
            before the body is read, with an empty body, and again with the body of an authentic request. With a
            subscription, it is called only while the subscription is created or renewed. Async handshakes share a
            rate limit of their own, which strangers can exhaust. Prefer a plain function that returns `None`, or a
            coroutine if the request may be a handshake.
        hint: Turns an authentic request into a `Push`, a `Control`, or `None` if it is not a push, such as a ping.
            If it raises, the error is logged and the request counts as a plain push. `None` uses the hint of the
            subscription, or treats every request as a push.
        route: Selects the listeners made by `listener_for()`: a function that returns their names, or the path of
            the names in the JSON body, such as "list_folder.accounts". `None` wakes all listeners, as does a push
            without names. Unknown names are counted and get the normal response. If the names come from unsigned
            parts, such as the path, an attacker with one signed request can wake each listener once.
        response: Response to an authentic request. `None` uses the response of the subscription, or an empty 200.
        subscription: Registers the webhook at the server. The consumer that has this object in `listeners=` keeps
            the subscription alive and saves its state in its store.
        unsubscribe_on_exit: True to end the subscription when that consumer stops. Otherwise pushes continue until
            the subscription expires, and a restarted consumer continues with it.
        max_body: Bytes of the largest body. Most pushes have a few KiB, GitHub's at most 25 MiB.
        body_timeout: Seconds within which the whole body must arrive.
        rate: Most bodies read per second over a long time. Verifying 100 bodies of 1 MiB takes 0.1 to 0.33 s of a
            core. Calls of async handshakes have a second limit of the same size. `None` means no limit.
        burst: Bodies that may be read at once.

    Attributes:
        name: The given name.

    Raises:
        TypeError: An argument has the wrong type, or the verifier is missing.
        ValueError: A limit is out of range, or the response cannot be sent.
    """

    def __init__(
        self,
        verify: Verifier | Sequence[Verifier] | None = None,
        *,
        name: str = "webhook",
        handshake: Handshake | Sequence[Handshake] = (),
        hint: Hint | None = None,
        route: Route | str | None = None,
        response: WebhookResponse | None = None,
        subscription: Subscription | None = None,
        unsubscribe_on_exit: bool = False,
        max_body: int = 1024 * 1024,
        body_timeout: float = 10.0,
        rate: float | None = 100.0,
        burst: int = 200,
    ) -> None:
        check_number("body_timeout", body_timeout, above_zero=True)
        check_number("rate", rate, above_zero=True, optional=True)
        check_count("burst", burst)
        check_str("name", name)
        verifiers = _check_callables("verify", _argument_or_subscription(verify, subscription, "verify"))
        if not verifiers:
            raise TypeError("verify is required; use no_verification() to accept every request")
        self.name: str = name
        self._verifiers = verifiers
        self._own_handshakes = _check_callables("handshake", getattr(subscription, "handshake", None))
        self._handshakes = _check_callables("handshake", handshake)
        self._response = check_response(_argument_or_subscription(response, subscription, "response") or ACCEPTED)
        self._max_body = check_count("max_body", max_body)
        self._body_timeout = body_timeout
        self._bucket, self._waiting_bucket = TokenBucket(rate, burst), TokenBucket(rate, burst)
        self._slots = threading.Semaphore(MAX_BODIES)
        self._replay_cache = ReplayCache()
        self._manager: SubscriptionManager | None = None
        if subscription is not None:
            self._manager = SubscriptionManager(subscription, unsubscribe_on_exit=unsubscribe_on_exit)
        self._is_managing = False
        self._journal = WebhookJournal(name, _log)
        hint = _check_callable("hint", _argument_or_subscription(hint, subscription, "hint"))
        self._router = PushRouter(
            HintReader(hint, kinds=(Push, Control), log=_log),
            names_at(route) if isinstance(route, str) else _check_callable("route", route),
            control=None if self._manager is None else self._manager.control,
            journal=self._journal,
        )
        self._known_secrets = Secrets()
        self._known_secrets.include(getattr(subscription, "_known_secrets", None))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request as an ASGI 3 application.

        Args:
            scope: Of type "http", "lifespan" or "websocket". A websocket is rejected.
            receive: As in ASGI.
            send: As in ASGI.

        Raises:
            ValueError: The scope has another type.
        """
        if scope["type"] == "http":
            response = await self._respond(request_of(scope), receive)
            if response is not None:
                await send_response(send, response, scope)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before the accept: the server answers 403
        elif scope["type"] == "lifespan":
            stage = ""
            while stage != "lifespan.shutdown":  # there is nothing to start or stop
                stage = (await receive())["type"]
                await send({"type": f"{stage}.complete"})
        else:
            kind = scope["type"]
            raise ValueError(f"{self.name} accepts only HTTP requests, got an ASGI scope of type {kind!r}")

    async def listen(self, channel: Channel, /) -> None:
        """Wake `channel` on every authentic push, for any name, until cancelled.

        With a subscription, this also keeps the subscription alive.

        Raises:
            ListenerError: The server permanently refuses the subscription.
            RuntimeError: Another consumer already keeps the subscription.
        """
        if self._manager is None:
            await self._serve_channel(channel, None)
        elif self._is_managing:
            raise RuntimeError(
                f"{self.name}: another consumer already keeps the subscription; give this one listener_for(...)"
            )
        else:
            with hidden(self._known_secrets):
                await self._run_manager(self._manager, channel)

    def listener_for(self, name: str) -> Listener:
        """Return a listener for the pushes that name it, and for pushes to all.

        It shares everything else with this object. Give each consumer its own; the `WebhookListener` itself
        receives all pushes.

        Args:
            name: A name that `route` returns.

        Raises:
            TypeError: The name is not a `str`.
        """
        check_str("name", name)
        return _RouteListener(f"{self.name} {name}", lambda channel: self._serve_channel(channel, name))

    def counters(self) -> WebhookCounters:
        """Return a snapshot of the counters. Thread-safe."""
        return self._journal.counters()

    async def _serve_channel(self, channel: Channel, name: str | None) -> None:
        subscriber = WebhookSubscriber(channel)
        with self._router.joined(subscriber, name):
            await subscriber.watch_floods(self._journal)

    async def _run_manager(self, manager: SubscriptionManager, channel: Channel) -> None:
        subscriber, self._is_managing = WebhookSubscriber(channel, self._router), True
        try:
            with self._router.joined(subscriber, None):
                async with Background() as background:
                    await background.start(lambda: subscriber.watch_floods(self._journal))
                    await channel.while_owner(lambda: manager.run(subscriber))
        finally:
            self._router.broadcast_state(subscriber, None, up=False)
            self._is_managing = False

    # A request

    async def _respond(self, request: WebhookRequest, receive: Receive) -> WebhookResponse | None:
        """Return the response to a request whose body is not read yet; None if the client is gone."""
        self._journal.count("received")
        try:
            return await self._handle(request, receive)
        except RequestRejected as rejected:
            self._journal.count(rejected.reason)
            if rejected.hides_pushes:
                self._router.note_rejected()
            return rejected.response
        except ClientGone:
            self._journal.count("gone")
            return None

    async def _handle(self, request: WebhookRequest, receive: Receive) -> WebhookResponse:
        check_length(request.headers, self._max_body)
        response = await self._respond_to_handshake(request, self._waiting_bucket)
        if response is not None:
            return response
        if request.method != "POST":
            raise RequestRejected("unasked")
        verifiers = [verifier for verifier in self._verifiers if self._may_pass(verifier, request)]
        if not verifiers:
            raise self._rejected("without the expected signature or token, or with an expired timestamp")
        with self._slot():
            if wait := self._bucket.take(monotonic()):
                raise RequestRejected("limited", wait=wait, hides_pushes=True)
            body = await read_body(receive, max_body=self._max_body, max_time=self._body_timeout)
            request = replace(request, body=body)
            verified = await self._verify(request, verifiers)
        response = await self._respond_to_handshake(request, None)
        if response is not None:
            return response
        recipients = self._router.recipients_of(request)
        recipients = self._replay_cache.unseen(verified, recipients, request.received_at)
        if not recipients:
            self._journal.count("replayed")
            # A sender whose bodies are all equal gets 200, but wakes only once.
            level = self._journal.level("replayed", logging.INFO)
            _log.log(level, "%s: ignored a repeated request", self.name)
        elif self._router.dispatch(request, recipients):
            self._replay_cache.add(verified, recipients)
        return self._response

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """Hold one of the slots for bodies, or reject the request if none is free."""
        if not self._slots.acquire(blocking=False):
            raise RequestRejected("busy", hides_pushes=True)
        try:
            yield
        finally:
            self._slots.release()

    # Verification

    def _may_pass(self, verifier: Verifier, request: WebhookRequest) -> bool:
        """Return False if the headers already show that the verifier will reject the request."""
        may_pass = getattr(verifier, "may_pass", None)
        try:
            return may_pass is None or bool(may_pass(request))
        except Exception as error:  # noqa: BLE001  # an error of a verifier also means "not authentic"
            self._journal.log_failure("a verifier's may_pass", error)
            return False

    async def _verify(self, request: WebhookRequest, verifiers: Sequence[Verifier]) -> Verified:
        for verifier in verifiers:
            result = await self._journal.call_safely(
                "a verifier", partial(verifier, request), check=_check_verifier_result
            )
            if result:
                return result if isinstance(result, Verified) else Verified()
        raise self._rejected("with a wrong signature or token; check that the secret is the sender's")

    def _rejected(self, why: str) -> RequestRejected:
        if self._manager is not None and not self._manager.is_loaded:
            _log.log(
                self._journal.level("not ready", logging.INFO),
                "%s: answered 503 to a request that cannot be verified while no consumer keeps the subscription",
                self.name,
            )
            return RequestRejected("not_ready")
        # Apart from the counters, this line is the only sign of a wrong secret.
        _log.log(self._journal.level(why, logging.INFO), "%s: rejected a request %s", self.name, why)
        return RequestRejected("refused")

    # Handshakes

    @property
    def _active_handshakes(self) -> Sequence[Handshake]:
        is_expected = self._manager is None or self._manager.expects_handshake
        return (*self._own_handshakes, *self._handshakes) if is_expected else self._own_handshakes

    async def _respond_to_handshake(
        self, request: WebhookRequest, bucket: TokenBucket | None
    ) -> WebhookResponse | None:
        """Respond to a handshake; None if the request is not one. `bucket` limits async handshakes."""
        waits = list[float]()

        def call(handshake: Handshake) -> WebhookResponse | Awaitable[WebhookResponse | None] | None:
            result = handshake(request)
            if inspect.isawaitable(result) and bucket is not None and (wait := bucket.take(monotonic())):
                if inspect.iscoroutine(result):
                    result.close()  # else Python warns that it was never awaited
                waits.append(wait)
                return None
            return result

        for handshake in self._active_handshakes:
            response = await self._journal.call_safely(
                "a handshake",
                partial(call, handshake),
                check=lambda answer: None if answer is None else check_response(answer),
            )
            if response is not None:
                self._journal.count("handshakes")
                return response
        if waits and request.method != "POST":  # a POST may be a push
            raise RequestRejected("limited", wait=waits[0])
        return None


class _RouteListener:
    """Listener of one of several consumers of a webhook."""

    def __init__(self, name: str, listen: Callable[[Channel], Coroutine[Any, Any, None]]) -> None:
        self.name: str = name
        self.listen = listen

    def __repr__(self) -> str:
        return f"WebhookListener.listener_for({self.name!r})"


def _argument_or_subscription(argument: _T | None, subscription: Subscription | None, name: str) -> _T | None:
    """Return the argument, or the subscription's attribute of that name if the argument is None."""
    return getattr(subscription, name, None) if argument is None else argument


def _check_callables(name: str, argument: Any) -> tuple[Any, ...]:
    several = tuple(argument) if isinstance(argument, Sequence) else (argument,)
    return tuple(_check_callable(name, one) for one in several if one is not None)


def _check_callable(name: str, argument: Any) -> Any:
    if argument is not None and not callable(argument):
        raise TypeError(f"{name} must be a function, got {type(argument).__name__}")
    return argument


def _check_verifier_result(result: Verified | bool | None) -> Verified | bool | None:  # noqa: FBT001  # as returned
    """Reject other truthy values, such as a verifier that was returned instead of called."""
    if result is None or isinstance(result, Verified | bool):
        return result
    raise TypeError(f"a verifier must return Verified, True, False or None, got {type(result).__name__}")
