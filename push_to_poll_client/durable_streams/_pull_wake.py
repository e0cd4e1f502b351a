"""Listen by pull-wake: the server writes its wakes into a stream (PROTOCOL.md §7.2).

For consumers that no webhook can reach. The subscription is kept alive by `listeners/subscriptions/_manager.py`;
`_wake_stream.py` says what a wake means and why none is lost.
"""

import secrets
import ssl
from collections.abc import Callable, Iterable
from typing import Any

import anyio

from push_to_poll_client._event_loop import sole_cause
from push_to_poll_client._http.credentials import Auth, HeaderSource
from push_to_poll_client._http.origins import without_secrets
from push_to_poll_client._protocols import Channel
from push_to_poll_client._secrets import Secrets, hidden
from push_to_poll_client._validation import check_number
from push_to_poll_client.durable_streams._subscription import (
    CONFIRM_EVERY,
    DurableStreamsSubscription,
    address_below,
    path_in_stream_root,
    root_of,
)
from push_to_poll_client.durable_streams._wake_stream import MAX_CLAIM, Claimer, WakeStream, split_channel
from push_to_poll_client.listeners._backoff import ReconnectAction
from push_to_poll_client.listeners._requests import ListenerClient
from push_to_poll_client.listeners._webhook.types import Control
from push_to_poll_client.listeners.subscriptions._manager import SubscriptionManager


class PullWakeListener:
    """Wakes when a Durable Streams server writes that one of some streams is longer, and on every connect.

        PullWakeListener("https://streams.example/v1/stream", streams=["orders"], wake_stream="wake/orders")

    It asks for the subscription, makes the wake stream if it is not there, and follows it as server-sent events,
    connecting again as `SSEListener` does. Each wake is claimed and given back at once, so that the server writes
    the next; ten of them may follow each other closely, then five a second.

    Who asks for the same, as the replicas of a service do, has the same subscription, and each of them is woken,
    whoever has the claim. Do not claim the wakes of its id by another program: one that says "done" for more than
    it claimed takes from us the wakes for what lies between.

    Args:
        root: Where the streams are: the address of a stream without the path that `streams` names it by. A user
            and password in it are sent as Basic credentials, but for giving claims back, which is done by the
            token of each claim.
        wake_stream: Path below the root of the stream that the server is to write its wakes into. Several
            subscriptions may share it.
        streams: Paths of streams below the root.
        pattern: Paths of streams, those to come included: in `orders/*` the star is one step of a path, two
            stars are any number of steps. One of `streams` and `pattern` has to be given.
        id: What the subscription's id begins with, for whoever looks at them on the server; the rest is made from
            what is asked for. `None`: "push-to-poll".
        worker: What this listener is called when it claims. `None`: a name of its own.
        lease: Seconds, 1 to 600, after which the server takes a claim from a worker that died with it, and writes
            a wake for what came meanwhile.
        confirm_every: Seconds after which the subscription is confirmed, since the server may have lost it. One
            that was lost is noticed on a connect too.
        unsubscribe_on_exit: Whether to take the subscription back when the consumer ends: not if there are
            replicas.
        auth: Credentials: a bearer token, a pair of user and password, a function (async, or plain and quick)
            that returns a token and is called at each connect, or an `httpx.Auth`. After a 401 the function is
            called once more soon, then the slow retries begin. `None`: the user and password of the URL if it has
            them, else those of `client`.
        headers: Sent with each request: a mapping, or a function (async, or plain and quick) that returns one and
            is called at each connect. `None`: none.
        classify: As for `SSEListener`.
        ssl_context: The TLS settings. `None`: the certificates that the machine trusts.
        max_age: As for `SSEListener`.
        max_silence: As for `SSEListener`. Servers of Durable Streams say something, or end the stream, within a
            minute (§5.8).
        open_timeout: Seconds for the headers and token to be given, again until the stream is open, and again for
            each claim.
        client: An `httpx.AsyncClient`, or one of its shape, to send by. It stays yours: it is not closed, and the
            stream keeps one connection of its pool. `None` opens one for each connection.

    Attributes:
        name: The address of the wake stream, without secrets.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument has no meaning; the text says which and why.
    """

    def __init__(
        self,
        root: str,
        *,
        wake_stream: str,
        streams: Iterable[str] = (),
        pattern: str | None = None,
        id: str | None = None,
        worker: str | None = None,
        lease: float = 10.0,
        confirm_every: float = CONFIRM_EVERY,
        unsubscribe_on_exit: bool = False,
        auth: Auth | None = None,
        headers: HeaderSource | None = None,
        classify: Callable[[Exception], ReconnectAction | None] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_age: float | None = 600.0,
        max_silence: float | None = 90.0,
        open_timeout: float = 10.0,
        client: Any = None,
    ) -> None:
        check_number("open_timeout", open_timeout, above_zero=True)
        options: dict[str, Any] = {"auth": auth, "headers": headers, "ssl_context": ssl_context, "client": client}
        path = path_in_stream_root("wake_stream", wake_stream)
        self.name: str = without_secrets(address_below(root_of(root), path))
        client = ListenerClient(root, **options)
        self._subscription = DurableStreamsSubscription(
            root_of(root),
            {"type": "pull-wake", "wake_stream": path},
            streams=streams,
            pattern=pattern,
            id=id,
            lease=lease,
            confirm_every=confirm_every,
            client=client,
        )
        self._manager = SubscriptionManager(self._subscription, unsubscribe_on_exit=unsubscribe_on_exit)
        claimer = Claimer(
            ListenerClient(root, **options, timeout=open_timeout, max_body=MAX_CLAIM),
            stream=address_below(root_of(root), path),
            url=lambda action: self._subscription.url(self._subscription.id, action),
            worker=worker or f"push-to-poll-{secrets.token_hex(8)}",
        )
        self._wake_stream = WakeStream(
            address_below(root, path, "live=sse&offset=now"),
            claimer=claimer,
            subscription_id=self._subscription.id,
            classify=classify,
            max_age=max_age,
            max_silence=max_silence,
            open_timeout=open_timeout,
            **options,
        )
        self._wake_stream.name = self.name
        self._known_secrets = Secrets()
        self._known_secrets.include(client.secrets, claimer.client.secrets)

    async def listen(self, channel: Channel, /) -> None:
        """Run until cancelled, connect again alone, keep the subscription, report to `channel`.

        Raises:
            ListenerError: The server does not take the subscription, or the wake stream is broken for good.
            RuntimeError: Another consumer has this very object.
        """
        subscription, stream = split_channel(channel)
        with hidden(self._known_secrets):
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._manager.run, subscription)
                    await self._wake_stream.follow(
                        stream, subscription=subscription, on_lost=lambda: self._manager.control(Control.RECREATE)
                    )
                    tasks.cancel_scope.cancel()
            except ExceptionGroup as group:
                raise sole_cause(group) from None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"
