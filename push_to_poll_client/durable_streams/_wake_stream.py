"""Follow a wake stream and claim each wake, so that the server writes the next one (PROTOCOL.md §7.2).

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
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

import anyio
import httpx
import msgspec

from push_to_poll_client._json import decode
from push_to_poll_client._protocols import Channel
from push_to_poll_client._types import Push
from push_to_poll_client.durable_streams._subscription import JSON_HEADERS, topics_of
from push_to_poll_client.listeners._failures import Failure, http_failure_of
from push_to_poll_client.listeners._requests import ListenerClient, ListenerResponse, UnusableResponse
from push_to_poll_client.listeners._sse_parser import ServerSentEvent
from push_to_poll_client.listeners._webhook.limits import TokenBucket
from push_to_poll_client.listeners._webhook.routing import ForwardedChannel
from push_to_poll_client.listeners.sse import EventStream, SSEListener


class ChannelPart(ForwardedChannel):
    """A `Channel` for one of two parts that report to the same channel, which is up while both parts are.

    Args:
        channel: The channel of both parts.
        parts_up: The parts that are up; both parts share this set.
    """

    def __init__(self, channel: Channel, parts_up: "set[ChannelPart]") -> None:
        super().__init__(channel)
        self._parts_up = parts_up
        self._event = anyio.Event()

    @property
    def is_up(self) -> bool:
        """True if this part is up."""
        return self._event.is_set()

    async def wait_up(self) -> None:
        """Wait until this part is up."""
        await self._event.wait()

    def up(self) -> None:
        """Note that this part is up; if both are, the channel is up."""
        self._event.set()
        self._parts_up.add(self)
        if len(self._parts_up) == 2:  # noqa: PLR2004 - both parts
            self._channel.up()

    def down(self, error: BaseException | None = None) -> None:
        """Note that this part is down, and so is the channel."""
        self._event = anyio.Event() if self._event.is_set() else self._event
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


def parse_claim(response: ListenerResponse) -> Claim:
    """Read the response to a claim, or raise `UnusableResponse`."""
    try:
        return decode(response.body, type=Claim)
    except (ValueError, RecursionError):
        raise UnusableResponse(f"{response.url} answered something that is no claim (§7.2)") from None


class Claimer:
    """Claims the wakes of one subscription, one at a time.

    Args:
        client: Sends the requests.
        stream: The address of the wake stream.
        url: Makes the address of an action of the subscription.
        worker: The name of this worker.

    Attributes:
        client: As given.
        claim: What was claimed, and is not given back or may not be; None if there is nothing.
    """

    def __init__(self, client: ListenerClient, *, stream: str, url: Callable[[str], str], worker: str) -> None:
        self.client = client
        self.claim: Claim | None = None
        self._stream = stream
        self._url = url
        self._worker = msgspec.json.encode({"worker": worker})

    async def make_stream(self) -> None:
        """Make the wake stream if it is not there: the server does not (§7.2).

        No status is an error here: whether the stream is there is seen when it is followed.

        Raises:
            Exception: There was no response.
        """
        await self.client.send_request("PUT", self._stream, headers=JSON_HEADERS)

    async def take(self) -> bool:
        """Claim the current wake, if there is one.

        Returns:
            False if the server does not know the subscription. True whether this worker has the claim or not:
            another one may have it, or nothing is new (409).

        Raises:
            UnusableResponse: The response is malformed.
            Exception: It failed.
        """
        response = await self.client.send_request(
            "POST", self._url("/claim"), content=self._worker, headers=JSON_HEADERS
        )
        if response.status in {HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND}:
            return response.status == HTTPStatus.CONFLICT
        self.claim = parse_claim(response.expect())
        self.client.secrets.add_recent(self.claim.token)
        return True

    async def give_back(self) -> None:
        """Tell the server that the claim is done, so that it wakes again for what comes after it.

        Does nothing if nothing is claimed. If the server does not accept it, the claim is released, which makes
        the server look for itself. A claim that is over (409 FENCED) or unknown has been given back already.

        Raises:
            Exception: It failed. The claim is kept, to be given back later.
        """
        if (claim := self.claim) is None:
            return
        wake = {"wake_id": claim.wake_id, "generation": claim.generation}
        if not await self._post("/ack", claim, {**wake, "acks": claim.acks, "done": True}):
            await self._post("/release", claim, wake)
        self.claim = None

    async def _post(self, action: str, claim: Claim, body: object) -> bool:
        response = await self.client.send_request(
            "POST",
            self._url(action),
            content=msgspec.json.encode(body),
            headers=JSON_HEADERS,
            # In place of the listener's credentials (§7.2).
            override={"authorization": f"Bearer {claim.token}"},
        )
        if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR or response.status == HTTPStatus.TOO_MANY_REQUESTS:
            response.expect()
        return httpx.codes.is_success(response.status)


RATE, BURST = 5.0, 10
"""Claims a second, and at once, whatever is written to the stream: as often as a consumer polls by default."""


class WakeStream(SSEListener):
    """An `SSEListener` that claims each wake.

    Args:
        url: The wake stream as server-sent events, from its end on.
        claimer: Claims the wakes.
        subscription_id: The subscription whose wakes are claimed; those of others are ignored.
        settings: As of any `SSEListener`.
    """

    def __init__(self, url: str, *, claimer: Claimer, subscription_id: str, **settings: Any) -> None:
        super().__init__(url, hint=self._push_of, **settings)
        self._claimer = claimer
        self._subscription_id = subscription_id
        self._has_claimed = self._is_claiming = self._has_unreported_wake = False
        self._bucket: TokenBucket
        self._subscription: ChannelPart
        self._on_lost: Callable[[], None]

    async def follow(self, channel: Channel, *, subscription: ChannelPart, on_lost: Callable[[], None]) -> None:
        """Run as `listen` does.

        Args:
            channel: Where to report.
            subscription: Up while the subscription is in force, as far as is known.
            on_lost: Called when the server does not have the subscription although it is up.
        """
        self._subscription, self._on_lost = subscription, on_lost
        self._bucket = TokenBucket(RATE, BURST)  # new, since an earlier run may have had another clock
        await self.listen(channel)

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncIterator[EventStream]:
        self._is_claiming = self._has_unreported_wake = False
        await self._subscription.wait_up()  # otherwise a claim could not tell a lost subscription from a new one
        async with self._claimer.client.connected():
            await self._claimer.make_stream()
            async with super()._connect() as stream:
                try:
                    await self._give_back()
                except Exception:
                    # An old claim that cannot be given back is left to end with its lease: otherwise no connect
                    # would succeed.
                    self._claimer.claim = None
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
        with self._claiming():
            is_known = await self._claimer.take()
        self._has_claimed = True
        if not is_known and self._subscription.is_up:
            self._on_lost()

    async def _give_back(self) -> None:
        # Not before another claim is allowed, since the server writes the next wake at once.
        while self._has_claimed and (wait := self._bucket.take(anyio.current_time())):  # noqa: ASYNC110 - for time
            await anyio.sleep(wait)
        self._has_claimed = False
        with self._claiming():
            await self._claimer.give_back()

    @contextlib.contextmanager
    def _claiming(self) -> Iterator[None]:
        """Mark an error in the block as a failure of the claim, not of the stream."""
        self._is_claiming = True
        yield
        self._is_claiming = False

    def _push_of(self, message: ServerSentEvent) -> Push:
        self._has_unreported_wake = False
        claim = self._claimer.claim
        return Push(topics=topics_of(self._streams_in(message) or ()) if claim is None else claim.topics)

    def _failure(self, error: Exception) -> Failure:
        failure = super()._failure(error)
        if self._is_claiming:
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
        own = [wake for wake in wakes if (wake.type, wake.subscription_id) == ("wake", self._subscription_id)]
        return [wake.stream for wake in own if wake.stream] if own else None


class _WakeEvent(msgspec.Struct):
    type: str = ""
    subscription_id: str = ""
    stream: str = ""
