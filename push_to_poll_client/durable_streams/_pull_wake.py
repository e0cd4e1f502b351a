"""Listen by pull-wake: the server writes its wakes into a stream (PROTOCOL.md §7.2).

For consumers that no webhook can reach. `listeners/subscriptions/_manager.py` keeps the subscription alive. Each
wake is claimed, so that the server writes the next one.

Why nothing is lost. The server writes no other wake until the current one is claimed and given back. So the wake
is claimed first. Then the consumer is woken, and reads at least what the claim covers. Then the claim is given
back, with the offsets that it covers, and the server writes a wake for everything later.

    append A    wake 1    claim [A]    consumer woken    append B    done [A]    wake 2    claim [B]    ...

If another worker has or had the claim, the server's response says so. That worker took the wake before our
request, and later messages get another wake. So every worker of a subscription is woken for all messages,
whichever worker has the claim.

On each connect the stream is opened first, then a claim is made: the claim finds earlier wakes, the stream has
later ones. A claim that could not be given back before is given back then. If that fails again, or if a dead
worker has the claim, it ends with its lease, and the server writes a wake for new messages.
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
    """One of two parts of a channel, which is up while both parts are."""

    def __init__(self, channel: Channel, parts_up: "set[ChannelPart]") -> None:
        super().__init__(channel)
        self._parts_up = parts_up  # shared by both parts
        self.is_up = anyio.Event()

    def up(self) -> None:
        """Note that this part is up. If both are, the channel is up."""
        self.is_up.set()
        self._parts_up.add(self)
        if len(self._parts_up) == 2:  # noqa: PLR2004 - both parts
            self._channel.up()

    def down(self, error: BaseException | None = None) -> None:
        """Note that this part and the channel are down."""
        self.is_up = anyio.Event() if self.is_up.is_set() else self.is_up
        self._parts_up.discard(self)
        self._channel.down(error)


def split_channel(channel: Channel) -> tuple[ChannelPart, ChannelPart]:
    """Split a channel into two parts."""
    parts_up = set[ChannelPart]()
    return ChannelPart(channel, parts_up), ChannelPart(channel, parts_up)


MAX_CLAIM = 16 * 1024 * 1024
"""Bytes of the response to a claim. It lists all streams of the subscription: enough for about 100,000."""


class _ClaimedStream(msgspec.Struct, frozen=True):
    path: str
    tail_offset: str
    has_pending: bool = True


class Claim(msgspec.Struct, frozen=True):
    """A claimed wake, held until it is given back or the lease ends."""

    wake_id: str
    generation: int
    token: str  # the secret with which it is given back
    streams: Sequence[_ClaimedStream]  # all of the subscription, with their ends at the time of the claim

    @property
    def topics(self) -> tuple[str, ...]:
        """Paths of the streams that have new messages."""
        return topics_of(stream.path for stream in self.streams if stream.has_pending)

    @property
    def acks(self) -> list[dict[str, str]]:
        """Ends of these streams, in the server's format."""
        pending = (stream for stream in self.streams if stream.has_pending)
        return [{"stream": stream.path, "offset": stream.tail_offset} for stream in pending]

    def __repr__(self) -> str:
        return f"Claim({self.wake_id!r}, {self.generation})"


RATE, BURST = 5.0, 10
"""Claims per second, and at once, however many wakes are written: as often as a consumer polls by default."""


class _WakeEvent(msgspec.Struct):
    type: str = ""
    subscription_id: str = ""
    stream: str = ""


class PullWakeListener(SSEListener):
    """Wakes when a Durable Streams server reports new messages, and on every connect.

        PullWakeListener("https://streams.example/v1/stream", streams=["orders"], wake_stream="wake/orders")

    It requests the subscription, creates the wake stream if needed, and follows it with server-sent events. It
    reconnects as `SSEListener` does. Each wake is claimed and given back at once, so that the server writes the
    next one: at most ten at once, then five a second.

    Consumers with equal requests, such as the replicas of a service, share one subscription. Each of them is
    woken, whichever has the claim. Do not claim wakes of this id in another program: if it acknowledges more than
    it claimed, wakes for the messages between are lost.

    Args:
        root: URL below which the streams are: a stream's URL without its path in `streams`. A user and password in
            it are sent as Basic credentials. Only to give a claim back, the claim's token is sent instead.
        wake_stream: Path, below the root, of the stream into which the server writes its wakes. Several
            subscriptions may share it.
        streams: Paths of streams below the root.
        pattern: Pattern of paths that includes future streams: in `orders/*` the star is one segment of a path,
            two stars are any number of segments. One of `streams` and `pattern` is required.
        id: Start of the subscription's id, shown at the server; the rest is a hash of the request. `None` means
            "push-to-poll".
        worker: Name of this listener in its claims. `None` makes a random one.
        lease: Seconds, 1 to 600, after which the server takes a claim from a dead worker, and writes a wake for
            the messages since.
        confirm_every: Seconds between confirmations, since the server may lose the subscription. A connect finds
            this out too.
        unsubscribe_on_exit: True to delete the subscription when the consumer ends. Do not use it with replicas.
        auth: Credentials: a bearer token, a pair of user and password, a function (async, or plain and quick)
            that returns a token and is called at each connect, or an `httpx.Auth`. After a 401 the function is
            called once more soon, then the slow retries begin. `None` uses the user and password of the URL, or
            the credentials of `client`.
        headers: Sent with each request: a mapping, or a function (async, or plain and quick) that returns one and
            is called at each connect. `None` adds none.
        classify: As for `SSEListener`.
        ssl_context: TLS settings. `None` uses the machine's trusted certificates.
        max_age: As for `SSEListener`.
        max_silence: As for `SSEListener`. Durable Streams servers send something, or end the stream, within a
            minute (§5.8).
        open_timeout: Seconds for the functions in `auth` and `headers`, again to open the stream, and again for
            each claim.
        client: An `httpx.AsyncClient`, or an object with the same methods. It is not closed. The stream keeps one
            connection of its pool. `None` opens one for each connection.

    Attributes:
        name: URL of the wake stream, without secrets.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has an invalid value.
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
        self._claim: Claim | None = None  # a claim that may not be given back yet
        self._is_listening = self._has_unreported_wake = False
        self._bucket: TokenBucket
        self._subscription_channel: ChannelPart  # up while the subscription is active

    async def listen(self, channel: Channel, /) -> None:
        """Run until cancelled: reconnect, keep the subscription alive, and report to `channel`.

        Raises:
            ListenerError: The server rejects the subscription or the wake stream permanently.
            RuntimeError: Another consumer uses this object.
        """
        if self._is_listening:
            raise RuntimeError(f"{self.name}: another consumer uses this listener; give each consumer its own")
        self._is_listening = True
        self._subscription_channel, stream_channel = split_channel(channel)
        self._bucket = TokenBucket(RATE, BURST)  # a new one: an earlier run may have had another clock
        with hidden(self._known_secrets):
            try:
                await channel.while_owner(lambda: self._listen_as_owner(stream_channel))
            except ExceptionGroup as group:
                raise sole_cause(group) from None
            finally:
                self._is_listening = False

    async def _listen_as_owner(self, stream_channel: Channel) -> None:
        # Not while standing by: the server gives a wake to one worker, which must be the owner.
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._manager.run, self._subscription_channel)
            await super().listen(stream_channel)
            tasks.cancel_scope.cancel()

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncIterator[EventStream]:
        self._has_unreported_wake = False
        # Without this, a claim could not tell a lost subscription from a new one.
        await self._subscription_channel.is_up.wait()
        async with self._claim_client.connected():
            # The server does not create the wake stream (§7.2). The next request shows if it exists.
            await self._claim_client.send_request("PUT", self._url, headers=JSON_HEADERS)
            async with super()._connect() as stream:
                try:
                    await self._give_back()
                except Exception:
                    # An old claim that cannot be given back is left to expire: otherwise no connect would succeed.
                    self._claim = None
                    raise
                await self._take()
                yield stream

    async def _read(self, connection: EventStream) -> Sequence[ServerSentEvent]:
        """Claim the wakes that arrived, and return the last one."""
        await self._give_back()  # the previous claim, for which the consumer was woken
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
        """Tell the server that the claim is done: it wakes again for later messages."""
        # If the server rejects this, the claim is released, and the server checks for new messages itself. A claim
        # that is over (409 FENCED) or unknown was given back already. If a request fails, the claim is kept.
        if (claim := self._claim) is None:
            return
        # The token replaces the listener's credentials (§7.2).
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
        """Return the streams in an event; None if it is not a wake of this subscription."""
        if event.event == "control":  # about the stream itself (§5.8)
            return None
        try:
            found = decode(event.data, type=list[_WakeEvent] | _WakeEvent)
        except (ValueError, RecursionError):
            return []  # malformed: the claim lists the streams
        wakes = found if isinstance(found, list) else [found]
        own = [wake for wake in wakes if (wake.type, wake.subscription_id) == ("wake", self._subscription.id)]
        return [wake.stream for wake in own if wake.stream] if own else None
