"""Follow a wake stream and claim each wake, so that the server writes the next one (PROTOCOL.md §7.2).

The order is what loses nothing. As long as a wake is not claimed and given back the server writes no other one,
whatever is appended. So it is claimed first; then the consumer is woken, who thus reads at least what the claim
covers; then the claim is given back, as far as it reaches and no further, and the server writes a wake for all
that came later.

    append A    wake 1    claim [A]    consumer woken    append B    done [A]    wake 2    claim [B]    ...

When another worker has the claim, or has given it back, the answer says so, and that the wake was taken before it
was asked: what came after that gets a wake of its own. So every worker of a subscription is woken for everything,
whoever has the claim.

On each connect the stream is opened first and then claimed: a wake before that is found by the claim, a later one
is in the stream. A claim that could not be given back is given back then. One with which that fails again, or that
a dead worker has, ends with its lease, and the server writes a wake for what is new.
"""

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import anyio
import httpx
import msgspec

from push_to_poll_client._http.credentials import HeaderSource, TokenSource
from push_to_poll_client._json import decode
from push_to_poll_client._protocols import Channel
from push_to_poll_client._types import Push
from push_to_poll_client.durable_streams._subscription import JSON_HEADERS, topics_of
from push_to_poll_client.listeners._failures import Failure, http_failure_of
from push_to_poll_client.listeners._requests import (
    RESPONSE_VERDICTS,
    ListenerClient,
    ListenerResponse,
    UnusableResponse,
)
from push_to_poll_client.listeners._sse_parser import ServerSentEvent
from push_to_poll_client.listeners._webhook.limits import TokenBucket
from push_to_poll_client.listeners.sse import EventStream, SSEListener

__all__ = [
    "ChannelPart",
    "Claim",
    "Claimer",
    "WakeStream",
    "parse_claim",
    "split_channel",
]


class ChannelPart:
    """What one of two reports to; a `Channel`.

    Args:
        whole: What both report to in the end.
        are_up: The halves that are up; both have the same set.
    """

    def __init__(self, whole: Channel, are_up: "set[ChannelPart]") -> None:
        self._channel = whole
        self._parts_up = are_up
        self._event = anyio.Event()

    @property
    def is_up(self) -> bool:
        """Whether this one is."""
        return self._event.is_set()

    async def wait_up(self) -> None:
        """Wait until this one is, if it is not."""
        await self._event.wait()

    def up(self) -> None:
        """This one is; with the other one too, the whole is."""
        self._event.set()
        self._parts_up.add(self)
        if len(self._parts_up) == 2:  # noqa: PLR2004 - halves
            self._channel.up()

    def down(self, error: BaseException | None = None) -> None:
        """So the whole is not."""
        self._event = anyio.Event() if self._event.is_set() else self._event
        self._parts_up.discard(self)
        self._channel.down(error)

    def wake(self, push: Push | None = None, /) -> None:
        """As of the whole."""
        self._channel.wake(push)

    def poll(self) -> None:
        """As of the whole."""
        self._channel.poll()

    def registered(self, until: float | None, /) -> None:
        """As of the whole."""
        self._channel.registered(until)

    @property
    def state(self) -> str | None:
        """As of the whole."""
        return self._channel.state

    async def save(self, state: str | None, /) -> None:
        """As of the whole."""
        await self._channel.save(state)


def split_channel(whole: Channel) -> tuple[ChannelPart, ChannelPart]:
    """Two that are one channel."""
    are_up = set[ChannelPart]()
    return ChannelPart(whole, are_up), ChannelPart(whole, are_up)


MAX_CLAIM = 16 * 1024 * 1024
"""Bytes of the answer to a claim, which names all streams of the subscription: some 100,000 of them."""


class _ClaimedStream(msgspec.Struct, frozen=True):
    path: str
    tail_offset: str
    has_pending: bool = True


class Claim(msgspec.Struct, frozen=True):
    """A wake that is ours for the length of the lease.

    Attributes:
        wake_id: What the wake is called.
        generation: Its number.
        token: A secret, by which it is given back.
        streams: Those of the subscription, and how far they reached when it was claimed.
    """

    wake_id: str
    generation: int
    token: str
    streams: Sequence[_ClaimedStream]

    @property
    def topics(self) -> tuple[str, ...]:
        """The streams that have something new."""
        return topics_of(stream.path for stream in self.streams if stream.has_pending)

    @property
    def acks(self) -> list[dict[str, str]]:
        """How far they reached, as the server wants it said."""
        pending = (stream for stream in self.streams if stream.has_pending)
        return [{"stream": stream.path, "offset": stream.tail_offset} for stream in pending]

    def __repr__(self) -> str:
        return f"Claim({self.wake_id!r}, {self.generation})"


def parse_claim(answer: ListenerResponse) -> Claim:
    """What the server answers to a claim.

    Raises:
        UnusableAnswer: It is none.
    """
    try:
        return decode(answer.body, type=Claim)
    except (ValueError, RecursionError):
        raise UnusableResponse(f"{answer.url} answered something that is no claim (§7.2)") from None


class Claimer:
    """Takes wakes of one subscription, one at a time.

    Args:
        root: Where the streams are, with the user and password that it may have.
        stream: The address of the wake stream.
        url: Makes the address of an action of the subscription.
        worker: What we are called.
        headers: As of a listener.
        token: Likewise.
        tls: Likewise.
        client: Likewise.
        timeout: Seconds for each answer.

    Attributes:
        claim: What was taken and not given back yet, or may not have been; `None`: nothing.
    """

    def __init__(
        self,
        root: str,
        *,
        stream: str,
        url: Callable[[str], str],
        worker: str,
        headers: HeaderSource | None,
        token: TokenSource | None,
        tls: ssl.SSLContext | None,
        client: Any,
        timeout: float,
    ) -> None:
        self.claim: Claim | None = None
        self._stream = stream
        self._url = url
        self._worker = msgspec.json.encode({"worker": worker})
        self._client = ListenerClient(
            root, headers=headers, token=token, tls=tls, client=client, timeout=timeout, max_body=MAX_CLAIM
        )
        # What was claimed is given back by its own token, in place of who we are by ourselves (§7.2).
        self._claim_client = ListenerClient(
            url(""), headers=headers, token=self._claim_token, tls=tls, client=client, timeout=timeout
        )

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Keep connections between the requests within the block."""
        async with self._client.reuse_connections(), self._claim_client.reuse_connections():
            yield

    async def make_stream(self) -> None:
        """Make the wake stream if it is not there: the server does not (§7.2).

        Whether it was made, or may be, or is there, is seen when it is followed.

        Raises:
            Exception: No answer came.
        """
        await self._client.send_request("PUT", self._stream, headers=JSON_HEADERS)

    async def take(self) -> bool:
        """Claim the wake that is there, if there is one.

        Returns:
            False: the server knows no such subscription. True whether the claim is ours or not: another worker
            may have it, or nothing is new (409).

        Raises:
            UnusableAnswer: The answer is none.
            Exception: It failed.
        """
        answer = await self._client.send_request(
            "POST", self._url("/claim"), content=self._worker, headers=JSON_HEADERS
        )
        if answer.status in {HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND}:
            return answer.status == HTTPStatus.CONFLICT
        self.claim = parse_claim(answer.expect())
        return True

    async def give_back(self) -> None:
        """Say of what was claimed that it is done, so that the server wakes again for what comes after it.

        Nothing happens if nothing is claimed. When the server does not take it, the claim is released, which
        makes it look itself; a claim that is over (409 FENCED) or unknown has been given back already.

        Raises:
            Exception: It failed. The claim is kept, to be given back later.
        """
        if (claim := self.claim) is None:
            return
        said = {"wake_id": claim.wake_id, "generation": claim.generation}
        if not await self._post("/ack", {**said, "acks": claim.acks, "done": True}):
            await self._post("/release", said)
        self.claim = None

    async def _post(self, action: str, what: object) -> bool:
        answer = await self._claim_client.send_request(
            "POST", self._url(action), content=msgspec.json.encode(what), headers=JSON_HEADERS
        )
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR or answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            answer.expect()
        return httpx.codes.is_success(answer.status)

    def _claim_token(self) -> str:
        return "" if self.claim is None else self.claim.token


RATE, BURST = 5.0, 10
"""Claims a second, and at once, whatever is written to the stream: as often as a consumer polls, by default."""


class WakeStream(SSEListener):
    """A listener that claims.

    Args:
        url: The wake stream as server-sent events from its end on.
        claimer: Takes the wakes.
        subscription_id: Whose wakes they are.
        settings: As of any `SSEListener`.
    """

    def __init__(
        self,
        url: str,
        *,
        claimer: Claimer,
        subscription_id: str,
        **settings: Any,
    ) -> None:
        super().__init__(url, hint=self._push_of, **settings)
        self._claimer = claimer
        self._subscription_id = subscription_id
        self._has_claimed = self._is_claiming = self._has_unreported_wake = False
        self._bucket: TokenBucket
        self._subscription: ChannelPart
        self._on_lost: Callable[[], None]

    async def follow(self, channel: Channel, *, subscription: ChannelPart, lost: Callable[[], None]) -> None:
        """As `listen`.

        Args:
            channel: Where to report.
            subscription: Up while the subscription is in force, as far as is known.
            lost: Called when the server does not have it all the same.
        """
        self._subscription, self._on_lost = subscription, lost
        self._bucket = TokenBucket(RATE, BURST)  # the clock may be another one than that of an earlier run
        await self.listen(channel)

    @contextlib.asynccontextmanager
    async def _connect(self, headers: Mapping[str, str]) -> AsyncIterator[EventStream]:
        self._is_claiming = self._has_unreported_wake = False
        await self._subscription.wait_up()  # else a claim finds none, and it cannot be told whether one was lost
        async with self._claimer.opened():
            await self._claimer.make_stream()
            async with super()._connect(headers) as stream:
                await self._give_back_old_claim()
                await self._take()
                yield stream

    async def _read(self, connection: EventStream) -> Sequence[ServerSentEvent]:
        """The last of the wakes that arrived; it is claimed.

        What was claimed before is given back now, since the consumer was woken for it.
        """
        await self._give_back()
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
        """Not sooner than another claim may be made, since the server writes the next wake at once."""
        while self._has_claimed and (wait := self._bucket.take(anyio.current_time())):  # noqa: ASYNC110 - for time
            await anyio.sleep(wait)
        self._has_claimed = False
        with self._claiming():
            await self._claimer.give_back()

    async def _give_back_old_claim(self) -> None:
        """What could not be before. If it cannot be now, its lease ends it: else no connect would succeed."""
        try:
            await self._give_back()
        except Exception:
            self._claimer.claim = None
            raise

    @contextlib.contextmanager
    def _claiming(self) -> Iterator[None]:
        """What is raised within is no failure of the stream."""
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
            failure = http_failure_of(error, wanted="a claim", verdicts=RESPONSE_VERDICTS)
        return failure._replace(hid_a_push=failure.hid_a_push or self._has_unreported_wake)

    def _streams_in(self, event: ServerSentEvent) -> list[str] | None:
        """What an event says has something new; `None`: it is no wake of ours."""
        if event.event == "control":  # of the stream itself (§5.8)
            return None
        try:
            found = decode(event.data, type=list[_WakeEvent] | _WakeEvent)
        except (ValueError, RecursionError):
            return []  # whatever it is: a claim shows what there is
        wakes = found if isinstance(found, list) else [found]
        ours = [wake for wake in wakes if (wake.type, wake.subscription_id) == ("wake", self._subscription_id)]
        return [wake.stream for wake in ours if wake.stream] if ours else None


class _WakeEvent(msgspec.Struct):
    type: str = ""
    subscription_id: str = ""
    stream: str = ""
