"""HOW A WAKE IS TAKEN, and given back so that the server writes the next one (PROTOCOL.md §7.2)."""

import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import httpx
import msgspec

from push_to_poll_client._http.credentials import HeaderSource, TokenSource
from push_to_poll_client._json import decode
from push_to_poll_client.listeners._asking import Answer, Asker, UnusableAnswer
from push_to_poll_client.listeners._subscriptions.stream_subscription import JSON, topics_of

__all__ = ["Claim", "Claimer", "claim_of"]

MAX_CLAIM = 16 * 1024 * 1024
"""Bytes of the answer to a claim, which names all streams of the subscription: some 100,000 of them."""


class _Stream(msgspec.Struct, frozen=True):
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
    streams: Sequence[_Stream]

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


def claim_of(answer: Answer) -> Claim:
    """What the server answers to a claim.

    Raises:
        UnusableAnswer: It is none.
    """
    try:
        return decode(answer.body, type=Claim)
    except (ValueError, RecursionError):
        raise UnusableAnswer(f"{answer.url} answered something that is no claim (§7.2)") from None


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
        self._asker = Asker(
            root, headers=headers, token=token, tls=tls, client=client, timeout=timeout, max_body=MAX_CLAIM
        )
        # What was claimed is given back by its own token, in place of who we are by ourselves (§7.2).
        self._holder = Asker(
            url(""), headers=headers, token=self._claim_token, tls=tls, client=client, timeout=timeout
        )

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Keep connections between the requests within the block."""
        async with self._asker.opened(), self._holder.opened():
            yield

    async def make_stream(self) -> None:
        """Make the wake stream if it is not there: the server does not (§7.2).

        Whether it was made, or may be, or is there, is seen when it is followed.

        Raises:
            Exception: No answer came.
        """
        await self._asker.ask("PUT", self._stream, headers=JSON)

    async def take(self) -> bool:
        """Claim the wake that is there, if there is one.

        Returns:
            False: the server knows no such subscription. True whether the claim is ours or not: another worker
            may have it, or nothing is new (409).

        Raises:
            UnusableAnswer: The answer is none.
            Exception: It failed.
        """
        answer = await self._asker.ask("POST", self._url("/claim"), content=self._worker, headers=JSON)
        if answer.status in {HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND}:
            return answer.status == HTTPStatus.CONFLICT
        self.claim = claim_of(answer.expect())
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
        if not await self._say("/ack", {**said, "acks": claim.acks, "done": True}):
            await self._say("/release", said)
        self.claim = None

    async def _say(self, action: str, what: object) -> bool:
        answer = await self._holder.ask("POST", self._url(action), content=msgspec.json.encode(what), headers=JSON)
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR or answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            answer.expect()
        return httpx.codes.is_success(answer.status)

    def _claim_token(self) -> str:
        return "" if self.claim is None else self.claim.token
