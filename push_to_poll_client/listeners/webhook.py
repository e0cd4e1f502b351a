"""Listen by webhook: an ASGI application that verifies each request, wakes consumers, and responds.

Anyone who knows the address can send anything. Limits bound what that costs before the request is verified, and
the response gives nothing away; with the server's own secret a sender gains a poll within the rate.

The steps, in this order, with the status of a request that goes no further:

    length      a body whose declared length is too large is not read                        413
    handshake   an expected handshake is answered; any other method than POST is rejected    405, 429
    headers     a request without the headers of an authentic one is rejected                401, 503
    slots       only so many bodies are held at a time                                       503
    rate        only so many bodies are read a second                                        429
    body        the body is read, up to its limits of size and time                          413, 408
    signature   the request is verified                                                      401, 503
    handshake   some handshakes are part of a signed body
    replay      a repeated request gets the same response, and wakes no consumer             200
    routing     the consumers that the push is for are woken                                 200

Handshakes are tried twice at most: before anything is read, since most are in the query or in headers and come
unsigned; and again with the body of an authentic request, since some are there (Slack, Zoom). A handshake that is
a plain function is called for each request: to answer costs no more than to refuse, and no flood keeps the own
handshake of the server from being answered. Only those that wait are limited, by a rate of their own.

The verifier of a subscription knows what its consumer has loaded from the store. While that consumer does not run,
a request that no verifier accepts may be authentic all the same, so it is answered 503 in place of 401.

Messages are not processed here. A request that is rejected by rate or for want of a slot may have been a push, so
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
"""One clock for all event loops in which requests arrive: the clocks of two event loops need not agree."""


MAX_BODIES = 64
"""Bodies held at a time. With the default `max_body` they take 64 MiB, however slowly they are sent."""


class WebhookListener:
    """Wakes on every authentic request. An ASGI application and a listener, both at once.

        hooks = WebhookListener(github(secret))
        consumer = Consumer(feed, store=store, name="orders", listeners=[hooks])
        app.mount("/hooks", hooks)

    As an application it is mounted in FastAPI, Starlette, Litestar or Django, or served by itself, at any path. It
    may run in another thread or event loop than the consumers, on asyncio or trio. It answers as soon as a request
    is verified: nothing is processed within it. A push that comes while no consumer runs is answered too, since
    each consumer polls when it starts.

    A request that is not authentic is answered 401 whatever is wrong with it, one beyond the limits 413, 408, 429
    or 503. While requests are refused by rate, pushes may be among them: the channel is down then, and the
    consumer polls at its degraded interval until 30 to 60 s after the last.

    With a subscription, the registration that says which requests are authentic is in the store of the consumer
    that keeps it. While that consumer does not run (it has not started, stands by, or has stopped), a request that
    is not known to be authentic is answered 503 with `Retry-After` in place of 401, so that the server sends its
    push again and keeps the subscription.

    Args:
        verify: Says whether a request is authentic; of several one suffices. `no_verification()` if all are.
            `None`: the subscription's.
        name: By which status and log call it.
        handshake: Answers a server's question whether its pushes are wanted, as `dropbox_challenge()`; or several
            such. Asked before the body is read, with an empty one, and again with that of an authentic request.
            With a subscription only while that is being created or renewed. An `async` one counts towards a rate
            of its own, so strangers can use that up; prefer a plain function that returns `None`, or a coroutine
            if the request may be a handshake.
        hint: Makes a push of an authentic request, a word about the subscription (`Control`), or `None` of one
            that is no push, such as a ping. One that raises is logged, and the request counts as a plain push.
            `None`: the subscription's, or every request is a push.
        route: Says for whom a push is, of those that `listener_for()` made: a function that returns their names,
            or the path in the JSON of the body at which they stand, as "list_folder.accounts". `None`, and what
            names nobody: all. Names that nobody has are counted, and answered like others. Names may be read from
            unsigned parts, such as the path: an attacker with one signed request can then wake each listener once.
        response: To an authentic request. `None`: the subscription's, or an empty 200.
        subscription: What makes the server push. The consumer that has this very object as its listener
            keeps it alive, and its state in its store.
        unsubscribe_on_exit: Whether the server is asked to push no more when that consumer stops; else pushes come
            until the subscription expires, and a consumer that is started again goes on with it.
        max_body: Bytes of the largest body. Pushes are a few KiB, GitHub's 25 MiB at most.
        body_timeout: Seconds in which a body has to be whole.
        rate: Requests a second whose body is looked at, in the long run; 100 of a MiB take a core
            a tenth to a third of its time to verify. As often an `async` handshake is called, beside them.
            `None`: no limit.
        burst: The same at once.

    Attributes:
        name: As given.

    Raises:
        TypeError: An argument is of the wrong type, or nothing verifies.
        ValueError: A limit has no meaning, or the answer cannot be sent.
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
            raise TypeError("give verify: who may wake; no_verification() if everybody may")
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
        """Take a request, as an ASGI application does.

        Args:
            scope: Of ASGI 3: "http", "websocket" (which is refused) or "lifespan".
            receive: Likewise.
            send: Likewise.

        Raises:
            ValueError: It is of another kind.
        """
        if scope["type"] == "http":
            response = await self._respond(request_of(scope), receive)
            if response is not None:
                await send_response(send, response, scope)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before it is open: the server answers 403
        elif scope["type"] == "lifespan":
            stage = ""
            while stage != "lifespan.shutdown":  # nothing is to be done at startup or shutdown
                stage = (await receive())["type"]
                await send({"type": f"{stage}.complete"})
        else:
            raise ValueError(f"{self.name} takes HTTP requests, not ASGI's {scope['type']!r}")

    async def listen(self, channel: Channel, /) -> None:
        """Wake `channel` on every authentic push, whomever it is for, until cancelled.

        With a subscription this keeps it alive.

        Raises:
            ListenerError: The server refuses the subscription for good.
            RuntimeError: Another consumer keeps the subscription.
        """
        if self._manager is None:
            await self._serve_channel(channel, None)
        elif self._is_managing:
            raise RuntimeError(
                f"{self.name}: one consumer keeps the subscription, others listen to listener_for(...)"
            )
        else:
            with hidden(self._known_secrets):
                await self._run_manager(self._manager, channel)

    def listener_for(self, name: str) -> Listener:
        """A listener for pushes that name this one, and for those that are for all.

        It shares all else with this one. Give each consumer its own; this one itself hears all pushes.

        Args:
            name: As `route` says it.

        Raises:
            TypeError: It is no `str`.
        """
        check_str("a name", name)
        return _RouteListener(f"{self.name} {name}", lambda channel: self._serve_channel(channel, name))

    def counters(self) -> WebhookCounters:
        """What has been seen so far, from any thread."""
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
                    await manager.run(subscriber)
        finally:
            self._router.broadcast_state(subscriber, None, up=False)
            self._is_managing = False

    # A request

    async def _respond(self, request: WebhookRequest, receive: Receive) -> WebhookResponse | None:
        """Return the response to a request; None if the client has gone.

        Args:
            request: Without its body.
            receive: Of ASGI, for the body.
        """
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
            raise self._rejected("without a signature or token of the expected form and time")
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
            _log.log(level, "%s: a request that came before came again, and wakes nobody", self.name)
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
        """Return whether a request may pass a verifier, judged without its body."""
        may_pass = getattr(verifier, "may_pass", None)
        try:
            return may_pass is None or bool(may_pass(request))
        except Exception as error:  # noqa: BLE001  # an error of a verifier, too, means "not authentic"
            self._journal.log_failure("a verifier's may_pass", error)
            return False

    async def _verify(self, request: WebhookRequest, verifiers: Sequence[Verifier]) -> Verified:
        for verifier in verifiers:
            result = await self._journal.call_safely(
                "a verifier", partial(verifier, request), check=_check_verifier_result
            )
            if result:
                return result if isinstance(result, Verified) else Verified()
        raise self._rejected("whose signature or token is wrong; is the secret its sender's?")

    def _rejected(self, why: str) -> RequestRejected:
        if self._manager is not None and not self._manager.is_loaded:
            _log.log(
                self._journal.level("not ready", logging.INFO),
                "%s: answered 503 to a request that cannot be verified while no consumer keeps the subscription",
                self.name,
            )
            return RequestRejected("not_ready")
        # Without the counters this is the only sign of a wrong secret.
        _log.log(self._journal.level(why, logging.INFO), "%s: refused a request %s", self.name, why)
        return RequestRejected("refused")

    # Handshakes

    @property
    def _active_handshakes(self) -> Sequence[Handshake]:
        is_expected = self._manager is None or self._manager.expects_handshake
        return (*self._own_handshakes, *self._handshakes) if is_expected else self._own_handshakes

    async def _respond_to_handshake(
        self, request: WebhookRequest, bucket: TokenBucket | None
    ) -> WebhookResponse | None:
        """Respond to a handshake; None if the request is not one.

        Args:
            request: From any sender without its body, or authentic with it.
            bucket: Limits the handshakes that wait; None if there is no limit.
        """
        waits = list[float]()

        def call(handshake: Handshake) -> WebhookResponse | Awaitable[WebhookResponse | None] | None:
            result = handshake(request)
            if inspect.isawaitable(result) and bucket is not None and (wait := bucket.take(monotonic())):
                if inspect.iscoroutine(result):
                    result.close()  # Python would warn that it was never awaited
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
    """The listener of one of several consumers of a webhook."""

    def __init__(self, name: str, listen: Callable[[Channel], Coroutine[Any, Any, None]]) -> None:
        self.name: str = name
        self.listen = listen

    def __repr__(self) -> str:
        return f"WebhookListener.listener_for({self.name!r})"


def _argument_or_subscription(argument: _T | None, subscription: Subscription | None, name: str) -> _T | None:
    """Return the argument, or the attribute of that name of the subscription if the argument is None."""
    return getattr(subscription, name, None) if argument is None else argument


def _check_callables(name: str, argument: Any) -> tuple[Any, ...]:
    several = tuple(argument) if isinstance(argument, Sequence) else (argument,)
    return tuple(_check_callable(name, one) for one in several if one is not None)


def _check_callable(name: str, argument: Any) -> Any:
    if argument is not None and not callable(argument):
        raise TypeError(f"{name} is a function, not {type(argument).__name__}")
    return argument


def _check_verifier_result(result: Verified | bool | None) -> Verified | bool | None:  # noqa: FBT001  # as returned
    """Refuse other true values: they may be a mistake, such as a function that returns a verifier."""
    if result is None or isinstance(result, Verified | bool):
        return result
    raise TypeError(f"a verifier says Verified, True, False or None, not {type(result).__name__}")
