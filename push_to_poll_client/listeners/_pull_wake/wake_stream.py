"""WHAT A WAKE STREAM SAYS (PROTOCOL.md §7.2), followed from its end on: each wake is claimed.

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
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import anyio
import msgspec

from push_to_poll_client._json import decode
from push_to_poll_client._protocols import Channel
from push_to_poll_client._types import Push
from push_to_poll_client.listeners._asking import ANSWER_VERDICTS
from push_to_poll_client.listeners._failure import Failure
from push_to_poll_client.listeners._http_failures import http_failure_of
from push_to_poll_client.listeners._pull_wake.claims import Claimer
from push_to_poll_client.listeners._pull_wake.halves import Half
from push_to_poll_client.listeners._sse_connection import EventStream
from push_to_poll_client.listeners._sse_parser import ServerSentEvent
from push_to_poll_client.listeners._subscriptions.stream_subscription import topics_of
from push_to_poll_client.listeners._webhook.limits import TokenBucket
from push_to_poll_client.listeners.sse import SSEListener

__all__ = ["WakeStream"]

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
        self._has_claimed = self._is_claiming = self._has_heard = False
        self._bucket: TokenBucket
        self._subscription: Half
        self._lost: Callable[[], None]

    async def follow(self, channel: Channel, *, subscription: Half, lost: Callable[[], None]) -> None:
        """As `listen`.

        Args:
            channel: Where to report.
            subscription: Up while the subscription is in force, as far as is known.
            lost: Called when the server does not have it all the same.
        """
        self._subscription, self._lost = subscription, lost
        self._bucket = TokenBucket(RATE, BURST)  # the clock may be another one than that of an earlier run
        await self.listen(channel)

    @contextlib.asynccontextmanager
    async def _connect(self, headers: Mapping[str, str]) -> AsyncIterator[EventStream]:
        self._is_claiming = self._has_heard = False
        await self._subscription.until_up()  # else a claim finds none, and it cannot be told whether one was lost
        async with self._claimer.opened():
            await self._claimer.make_stream()
            async with super()._connect(headers) as stream:
                await self._give_back_at_last()
                await self._take()
                yield stream

    async def _read(self, connection: EventStream) -> Sequence[ServerSentEvent]:
        """The last of the wakes that arrived; it is claimed.

        What was claimed before is given back now, since the consumer was woken for it.
        """
        await self._give_back()
        wakes = [event for event in await super()._read(connection) if self._streams_in(event) is not None]
        if wakes:
            self._has_heard = True
            await self._take()
        return wakes[-1:]

    async def _take(self) -> None:
        with self._claiming():
            is_known = await self._claimer.take()
        self._has_claimed = True
        if not is_known and self._subscription.is_up:
            self._lost()

    async def _give_back(self) -> None:
        """Not sooner than another claim may be made, since the server writes the next wake at once."""
        while self._has_claimed and (wait := self._bucket.take(anyio.current_time())):  # noqa: ASYNC110 - for time
            await anyio.sleep(wait)
        self._has_claimed = False
        with self._claiming():
            await self._claimer.give_back()

    async def _give_back_at_last(self) -> None:
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
        self._has_heard = False
        claim = self._claimer.claim
        return Push(topics=topics_of(self._streams_in(message) or ()) if claim is None else claim.topics)

    def _failure(self, error: Exception) -> Failure:
        failure = super()._failure(error)
        if self._is_claiming:
            failure = http_failure_of(error, wanted="a claim", verdicts=ANSWER_VERDICTS)
        return failure._replace(hid_a_push=failure.hid_a_push or self._has_heard)

    def _streams_in(self, event: ServerSentEvent) -> list[str] | None:
        """What an event says has something new; `None`: it is no wake of ours."""
        if event.event == "control":  # of the stream itself (§5.8)
            return None
        try:
            found = decode(event.data, type=list[_Wake] | _Wake)
        except (ValueError, RecursionError):
            return []  # whatever it is: a claim shows what there is
        wakes = found if isinstance(found, list) else [found]
        ours = [wake for wake in wakes if (wake.type, wake.subscription_id) == ("wake", self._subscription_id)]
        return [wake.stream for wake in ours if wake.stream] if ours else None


class _Wake(msgspec.Struct):
    type: str = ""
    subscription_id: str = ""
    stream: str = ""
