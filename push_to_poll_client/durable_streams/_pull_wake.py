"""Listen by pull-wake: the server writes its wakes into a stream (PROTOCOL.md §7.2).

For consumers that no webhook can reach. The subscription is kept alive by `listeners/subscriptions/_manager.py`.
Each wake is claimed, so that the server writes the next one.

Nothing is lost because of the order. Until a wake is claimed and given back, the server writes no other one,
whatever is appended. So the wake is claimed first. Then the consumer is woken, and reads at least what the claim
covers. Then the claim is given back, as far as it reaches and no further, and the server writes a wake for
everything later.

    append A    wake 1    claim [A]    consumer woken    append B    done [A]    wake 2    claim [B]    ...

When another worker has the claim, or has given it back, the server's response says so. The wake was then taken
before our request, and what came after it gets a wake of its own. So every worker of a subscription is woken for
everything, no matter which of them has the claim.

On each connect the stream is opened first, and claimed after that: a wake before that time is found by the claim,
a later one is in the stream. A claim that could not be given back is given back then. If that fails again, or if a
dead worker has the claim, it ends with its lease, and the server writes a wake for what is new.
"""

import contextlib
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Any

import anyio
import httpx
import msgspec

from push_to_poll_client._event_loop import sole_cause
from push_to_poll_client._http.credentials import Auth, HeaderSource
from push_to_poll_client._http.origins import without_secrets
from push_to_poll_client._json import decode
from push_to_poll_client._protocols import Channel
from push_to_poll_client._secrets import hidden
from push_to_poll_client._types import Push
from push_to_poll_client.durable_streams._subscription import (
    CONFIRM_EVERY,
    JSON_HEADERS,
    DurableStreamsSubscription,
    address_below,
    path_in_stream_root,
    root_of,
    subscription_request,
    topics_of,
)
from push_to_poll_client.listeners._backoff import ReconnectAction
from push_to_poll_client.listeners._failures import Failure, error_response, http_failure_of
from push_to_poll_client.listeners._requests import ListenerClient, ListenerResponse
from push_to_poll_client.listeners._sse_parser import ServerSentEvent
from push_to_poll_client.listeners._webhook.limits import TokenBucket
from push_to_poll_client.listeners._webhook.routing import ForwardedChannel
from push_to_poll_client.listeners._webhook.types import Control
from push_to_poll_client.listeners.sse import EventStream, SSEListener
from push_to_poll_client.listeners.subscriptions._manager import SubscriptionManager


class ChannelPart(ForwardedChannel):
    """A `Channel` for one of two parts that report to the same channel, which is up while both parts are.

    Args:
        channel: The channel of both parts.
        parts_up: The parts that are up; both parts share this set.

    Attributes:
        is_up: Set while this part is up.
    """

    def __init__(self, channel: Channel, parts_up: "set[ChannelPart]") -> None:
        super().__init__(channel)
        self._parts_up = parts_up
        self.is_up = anyio.Event()

    def up(self) -> None:
        """Note that this part is up; if both are, the channel is up."""
        self.is_up.set()
        self._parts_up.add(self)
        if len(self._parts_up) == 2:  # noqa: PLR2004 - both parts
            self._channel.up()

    def down(self, error: BaseException | None = None) -> None:
        """Note that this part is down, and so is the channel."""
        self.is_up = anyio.Event() if self.is_up.is_set() else self.is_up
        self._parts_up.discard(self)
        self._channel.down(error)


def split_channel(channel: Channel) -> tuple[ChannelPart, ChannelPart]:
    """Split a channel into two parts."""
    parts_up = set[ChannelPart]()
    return ChannelPart(channel, parts_up), ChannelPart(channel, parts_up)


MAX_CLAIM = 16 * 1024 * 1024
"""Bytes of the response to a claim, which names all streams of the subscription: some 100,000 of them."""


class _ClaimedStream(msgspec.Struct, frozen=True):
    path: str
    tail_offset: str
    has_pending: bool = True


class Claim(msgspec.Struct, frozen=True):
    """A wake that this worker has for the length of the lease.

    Attributes:
        wake_id: The wake's id.
        generation: Its number.
        token: The secret by which it is given back.
        streams: All streams of the subscription, and how far they reached when it was claimed.
    """

    wake_id: str
    generation: int
    token: str
    streams: Sequence[_ClaimedStream]

    @property
    def topics(self) -> tuple[str, ...]:
        """Paths of the streams that have something new."""
        return topics_of(stream.path for stream in self.streams if stream.has_pending)

    @property
    def acks(self) -> list[dict[str, str]]:
        """Offsets that those streams had reached, in the form that the server wants."""
        pending = (stream for stream in self.streams if stream.has_pending)
        return [{"stream": stream.path, "offset": stream.tail_offset} for stream in pending]

    def __repr__(self) -> str:
        return f"Claim({self.wake_id!r}, {self.generation})"


RATE, BURST = 5.0, 10
"""Claims a second, and at once, whatever is written to the stream: as often as a consumer polls by default."""


class _WakeEvent(msgspec.Struct):
    type: str = ""
    subscription_id: str = ""
    stream: str = ""


class PullWakeListener(SSEListener):
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
        ssl_context: TLS settings. `None` uses the machine's trusted certificates.
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
        TypeError: An argument has the wrong type.
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
        options: dict[str, Any] = {"auth": auth, "headers": headers, "ssl_context": ssl_context, "client": client}
        path = path_in_stream_root("wake_stream", wake_stream)
        super().__init__(
            address_below(root, path, "live=sse&offset=now"),
            hint=self._push_of,
            classify=classify,
            max_age=max_age,
            max_silence=max_silence,
            open_timeout=open_timeout,
            **options,
        )
        self._url = address_below(root_of(root), path)
        self.name: str = without_secrets(self._url)
        client = ListenerClient(root, **options)
        self._claim_client = ListenerClient(root, **options, timeout=open_timeout, max_body=MAX_CLAIM)
        self._known_secrets.include(client.secrets, self._claim_client.secrets)
        self._subscription = DurableStreamsSubscription(
            root,
            subscription_request({"type": "pull-wake", "wake_stream": path}, streams, pattern, lease),
            id=id,
            confirm_every=confirm_every,
            client=client,
        )
        self._manager = SubscriptionManager(self._subscription, unsubscribe_on_exit=unsubscribe_on_exit)
        self._worker = msgspec.json.encode({"worker": worker or f"push-to-poll-{secrets.token_hex(8)}"})
        self._claim: Claim | None = None  # what was claimed, and is not given back or may not be
        self._is_listening = self._has_unreported_wake = False
        self._bucket: TokenBucket
        self._subscription_channel: ChannelPart  # up while the subscription is in force, as far as is known

    async def listen(self, channel: Channel, /) -> None:
        """Run until cancelled, connect again alone, keep the subscription, report to `channel`.

        Raises:
            ListenerError: The server does not take the subscription, or the wake stream is broken for good.
            RuntimeError: Another consumer has this very object.
        """
        if self._is_listening:
            raise RuntimeError(f"{self.name}: another consumer uses this listener; give each consumer its own")
        self._is_listening = True
        self._subscription_channel, stream_channel = split_channel(channel)
        self._bucket = TokenBucket(RATE, BURST)  # new, since an earlier run may have had another clock
        with hidden(self._known_secrets):
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._manager.run, self._subscription_channel)
                    await super().listen(stream_channel)
                    tasks.cancel_scope.cancel()
            except ExceptionGroup as group:
                raise sole_cause(group) from None
            finally:
                self._is_listening = False

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncIterator[EventStream]:
        self._has_unreported_wake = False
        # Otherwise a claim could not tell a lost subscription from a new one.
        await self._subscription_channel.is_up.wait()
        async with self._claim_client.connected():
            # The server does not make the wake stream (§7.2). Whether it is there is seen when it is followed.
            await self._claim_client.send_request("PUT", self._url, headers=JSON_HEADERS)
            async with super()._connect() as stream:
                try:
                    await self._give_back()
                except Exception:
                    # An old claim that cannot be given back is left to end with its lease: otherwise no connect
                    # would succeed.
                    self._claim = None
                    raise
                await self._take()
                yield stream

    async def _read(self, connection: EventStream) -> Sequence[ServerSentEvent]:
        """Return the last of the wakes that arrived, after it was claimed."""
        await self._give_back()  # the claim before, for which the consumer was woken
        wakes = [event for event in await super()._read(connection) if self._streams_in(event) is not None]
        if wakes:
            self._has_unreported_wake = True
            await self._take()
        return wakes[-1:]

    async def _take(self) -> None:
        """Claim the current wake, if there is one and no other worker has it (409)."""
        while wait := self._bucket.take(anyio.current_time()):  # noqa: ASYNC110 - for time
            await anyio.sleep(wait)
        response = await self._post("/claim", self._worker)
        if response.status not in {HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND}:
            self._claim = response.expect().decoded(Claim, "claim (§7.2)")
            self._claim_client.secrets.add_recent(self._claim.token)
        elif response.status == HTTPStatus.NOT_FOUND and self._subscription_channel.is_up.is_set():
            self._manager.control(Control.RECREATE)

    async def _give_back(self) -> None:
        """Tell the server that the claim is done, so that it wakes again for what comes after it.

        If the server does not accept it, the claim is released, which makes the server look for itself. A claim
        that is over (409 FENCED) or unknown has been given back already. If it fails, the claim is kept.
        """
        if (claim := self._claim) is None:
            return
        # The token stands in place of the listener's credentials (§7.2).
        override = {"authorization": f"Bearer {claim.token}"}
        wake = {"wake_id": claim.wake_id, "generation": claim.generation}
        for action, body in (("/ack", {**wake, "acks": claim.acks, "done": True}), ("/release", wake)):
            response = await self._post(action, msgspec.json.encode(body), override=override)
            if httpx.codes.is_server_error(response.status) or response.status == HTTPStatus.TOO_MANY_REQUESTS:
                response.expect()
            if httpx.codes.is_success(response.status):
                break
        self._claim = None

    async def _post(self, action: str, body: bytes, **options: Any) -> ListenerResponse:
        url = self._subscription.url(self._subscription.id, action)
        return await self._claim_client.send_request("POST", url, content=body, headers=JSON_HEADERS, **options)

    def _push_of(self, message: ServerSentEvent) -> Push:
        self._has_unreported_wake = False
        return Push(topics=self._claim.topics if self._claim else topics_of(self._streams_in(message) or ()))

    def _failure(self, error: Exception) -> Failure:
        failure, response = super()._failure(error), error_response(error)
        if response is not None and response.request.method == "POST":
            failure = http_failure_of(error, wanted="a claim")
        return failure._replace(hid_a_push=failure.hid_a_push or self._has_unreported_wake)

    def _streams_in(self, event: ServerSentEvent) -> list[str] | None:
        """Return the streams that an event announces; None if it is not a wake of this subscription."""
        if event.event == "control":  # about the stream itself (§5.8)
            return None
        try:
            found = decode(event.data, type=list[_WakeEvent] | _WakeEvent)
        except (ValueError, RecursionError):
            return []  # whatever it is, a claim shows the streams
        wakes = found if isinstance(found, list) else [found]
        own = [wake for wake in wakes if (wake.type, wake.subscription_id) == ("wake", self._subscription.id)]
        return [wake.stream for wake in own if wake.stream] if own else None
