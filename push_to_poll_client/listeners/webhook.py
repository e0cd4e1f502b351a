"""Listen by webhook: an ASGI application that verifies each request, wakes consumers, and responds.

Anyone who knows the address can send anything. Limits bound what that costs before the request is verified, and
the response gives nothing away; with the server's own secret a sender gains a poll within the rate.

The steps of a request are in `_webhook/receiver.py`, the consumers that listen in `_webhook/routing.py`.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from push_to_poll_client._event_loop import Background
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._protocols import Channel, Listener
from push_to_poll_client._secrets import Secrets, hidden
from push_to_poll_client._types import Push
from push_to_poll_client._validation import check_count, check_number, check_str
from push_to_poll_client.listeners._hints import HintReader
from push_to_poll_client.listeners._webhook.counters import WebhookCounters, WebhookJournal
from push_to_poll_client.listeners._webhook.limits import TokenBucket
from push_to_poll_client.listeners._webhook.receiver import Receive, RequestReceiver, Scope, Send
from push_to_poll_client.listeners._webhook.routing import (
    ManagingSubscriber,
    PushRouter,
    WebhookSubscriber,
    WebhookSubscribers,
    names_at,
)
from push_to_poll_client.listeners._webhook.types import (
    ACCEPTED,
    Control,
    Handshake,
    Hint,
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
        check_number("burst", burst, above_zero=True)
        check_str("name", name)
        verifiers = _check_callables("verify", _argument_or_subscription(verify, subscription, "verify"))
        if not verifiers:
            raise TypeError("give verify: who may wake; no_verification() if everybody may")
        self.name: str = name
        self._manager: SubscriptionManager | None = None
        if subscription is not None:
            self._manager = SubscriptionManager(subscription, unsubscribe_on_exit=unsubscribe_on_exit)
        self._is_managing = False
        self._journal = WebhookJournal(name, _log)
        self._subscribers = WebhookSubscribers(subscribed=self._manager is not None)
        hint = _check_callable("hint", _argument_or_subscription(hint, subscription, "hint"))
        self._receiver = RequestReceiver(
            verifiers=verifiers,
            is_ready=lambda: self._manager is None or self._manager.is_loaded,
            own_handshakes=_check_callables("handshake", getattr(subscription, "handshake", None)),
            handshakes=_check_callables("handshake", handshake),
            expects_handshake=lambda: self._manager is None or self._manager.expects_handshake,
            router=PushRouter(
                hints=HintReader(hint, kinds=(Push, Control), log=_log),
                route=names_at(route) if isinstance(route, str) else _check_callable("route", route),
                control=None if self._manager is None else self._manager.control,
                subscribers=self._subscribers,
                journal=self._journal,
            ),
            bucket=TokenBucket(rate, burst),
            waiting_bucket=TokenBucket(rate, burst),
            journal=self._journal,
            response=check_response(_argument_or_subscription(response, subscription, "response") or ACCEPTED),
            max_body=check_count("max_body", max_body),
            body_timeout=body_timeout,
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
        await self._receiver(scope, receive, send)

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
        with self._subscribers.joined(subscriber, name):
            await subscriber.watch_floods(self._journal)

    async def _run_manager(self, manager: SubscriptionManager, channel: Channel) -> None:
        subscriber, self._is_managing = ManagingSubscriber(channel, self._subscribers), True
        try:
            with self._subscribers.joined(subscriber, None):
                async with Background() as background:
                    await background.start(lambda: subscriber.watch_floods(self._journal))
                    await manager.run(subscriber)
        finally:
            self._subscribers.broadcast_state(subscriber, None, up=False)
            self._is_managing = False


class _RouteListener:
    """The listener of one of several consumers of a webhook."""

    def __init__(self, name: str, listen: Callable[[Channel], Any]) -> None:
        self.name: str = name
        self._listen = listen

    def __repr__(self) -> str:
        return f"WebhookListener.listener_for({self.name!r})"

    async def listen(self, channel: Channel, /) -> None:
        """Run until cancelled."""
        await self._listen(channel)


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
