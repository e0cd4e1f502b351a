"""Receive a request as an ASGI application: limits, body, verification, handshake, wake.

A handshake is asked twice at most: before anything is read, since most questions stand in the query or in headers
and come unsigned; and again with the body of an authentic request, since some stand there (Slack, Zoom). Questions
that come unsigned have a rate of their own, so that whoever asks without end keeps no push from being heard.

length      a body that is said to be too large is not read                           413
    question    a handshake that is expected is answered; anything else but POST is not   405, 429
    headers     without those that an authentic request has it is refused                 401
    room        so many bodies are in hand at a time                                      503
    rate        so many are looked at a second                                            429
    body        is read, so much and so long                                              413, 408
    signature   is verified                                                               401
    question    some stand in a signed body
    replay      what came before is answered as then, and wakes nobody                    200
    meaning     it wakes those for whom it is                                             200

Nothing is processed here. A refusal by rate or room may have met a push, and is reported to those who listen.
"""

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import anyio

from push_to_poll_client import _event_loop
from push_to_poll_client.listeners._webhook.counters import ErrorLog, WebhookStats
from push_to_poll_client.listeners._webhook.limits import ReplayCache, Slots, TokenBucket
from push_to_poll_client.listeners._webhook.routing import PushRouter, WebhookSubscribers
from push_to_poll_client.listeners._webhook.types import (
    NO_CONTENT,
    NOT_ALLOWED,
    TOO_LARGE,
    TOO_SLOW,
    UNAUTHENTIC,
    Handshake,
    RequestRejected,
    Verified,
    Verifier,
    WebhookAnswer,
    WebhookRequest,
    check_response,
    too_many_requests,
)

__all__ = [
    "ClientGone",
    "Handshakes",
    "Receive",
    "RequestReceiver",
    "Scope",
    "Send",
    "Verifiers",
    "check_length",
    "read_body",
    "refuse_websocket",
    "request_of",
    "run_lifespan",
    "send_response",
]


Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

FIXED_HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}
"""Dropbox asks for the first, so that no browser takes an echo for a page; an answer is for one request alone."""


def request_of(scope: Scope) -> WebhookRequest:
    """The request, without its body."""
    return WebhookRequest(
        method=scope["method"],
        path=_path_below(scope.get("root_path", ""), scope["path"]),
        query=scope.get("query_string", b"").decode("latin-1"),
        headers=_headers(scope["headers"]),
        received_at=_event_loop.wall_clock(),
    )


def _path_below(root: str, path: str) -> str:
    """ASGI 3 has the whole in `path`, with what the application is mounted at in front; older servers cut it."""
    root = root.rstrip("/")
    if path == root or path.startswith(f"{root}/"):
        path = path[len(root) :]
    return path.rstrip("/") or "/"


def _headers(fields: Any) -> dict[str, str]:
    values = defaultdict[str, list[str]](list)
    for name, value in fields:
        values[name.decode("latin-1").lower()].append(value.decode("latin-1"))
    return {name: ", ".join(several) for name, several in values.items()}


async def send_response(send: Send, answer: WebhookAnswer, scope: Scope) -> None:
    """Send it. A client that has gone is none of our business (by which servers raise `OSError`, ASGI 2.4)."""
    headers = {name.lower(): value for name, value in answer.headers.items()} | FIXED_HEADERS
    if not scope.get("http_version", "1.1").startswith("1"):
        headers.pop("connection", None)  # it is malformed there (RFC 9113 §8.2.2)
    if answer.status not in NO_CONTENT:
        headers |= {"content-type": answer.content_type, "content-length": str(len(answer.body))}
    body = b"" if scope["method"] == "HEAD" else answer.body
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    with suppress(OSError):
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        await send({"type": "http.response.body", "body": body})


async def run_lifespan(receive: Receive, send: Send) -> None:
    """Answer a server that says when it begins and when it ends: there is nothing to do for either."""
    while True:
        stage = (await receive())["type"]
        await send({"type": f"{stage}.complete"})
        if stage == "lifespan.shutdown":
            return


async def refuse_websocket(receive: Receive, send: Send) -> None:
    """Close it before it is open: the server answers 403."""
    await receive()
    await send({"type": "websocket.close", "code": 1008})


MAX_DIGITS = 18
"""Of a length; one with more is no smaller."""


class ClientGone(Exception):
    """The client hung up before its request was whole: there is nobody to answer."""


def check_length(headers: Mapping[str, str], most: int) -> None:
    """Refuse a body that is said to be too large. One whose length is said badly is measured as it comes.

    Args:
        headers: Of the request.
        most: Bytes.

    Raises:
        Refusal: It is too large.
    """
    length = headers.get("content-length", "").strip()
    if not length.isascii() or not length.isdigit():
        return
    if len(length) > MAX_DIGITS or int(length) > most:
        raise RequestRejected(TOO_LARGE, "too_large")


async def read_body(receive: Receive, *, most: int, within: float) -> bytes:
    """The whole body.

    Args:
        receive: Of ASGI.
        most: Bytes.
        within: Seconds.

    Raises:
        ClientGone: It hung up.
        Refusal: It is too large, or comes too slowly.
    """
    body, more = bytearray(), True
    with anyio.move_on_after(within):
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientGone
            part = message.get("body", b"")
            if len(body) + len(part) > most:
                raise RequestRejected(TOO_LARGE, "too_large")
            body += part
            more = message.get("more_body", False)
        return bytes(body)
    raise RequestRejected(TOO_SLOW, "too_slow")


class Verifiers:
    """Those of a webhook.

    Args:
        verifiers: One or more.
        faults: Where it is told when one fails.
    """

    def __init__(self, verifiers: Sequence[Verifier], faults: ErrorLog) -> None:
        self._verifiers = verifiers
        self._error_log = faults

    def candidates(self, request: WebhookRequest) -> Sequence[Verifier]:
        """Those by which the request may be authentic, as far as can be seen without its body.

        Raises:
            Refusal: There is none.
        """
        if verifiers := [verifier for verifier in self._verifiers if self._may_pass(verifier, request)]:
            return verifiers
        self._error_log.log_rejected("without a signature or token of the expected form and time")
        raise RequestRejected(UNAUTHENTIC, "refused")

    async def verify(self, request: WebhookRequest, verifiers: Sequence[Verifier]) -> Verified:
        """What is known of an authentic request.

        Args:
            request: Whole.
            verifiers: Those that may pass it.

        Raises:
            Refusal: It is not authentic.
        """
        for verifier in verifiers:
            said = await self._error_log.call_safely(
                "a verifier", partial(verifier, request), check=_check_verifier_result
            )
            if said:
                return said if isinstance(said, Verified) else Verified()
        self._error_log.log_rejected("whose signature or token is wrong; is the secret its sender's?")
        raise RequestRejected(UNAUTHENTIC, "refused")

    def _may_pass(self, verifier: Verifier, request: WebhookRequest) -> bool:
        may_pass = getattr(verifier, "may_pass", None)
        try:
            return may_pass is None or bool(may_pass(request))
        except Exception as error:  # noqa: BLE001  # as for a verifier
            self._error_log.log_failure("a verifier's may_pass", error)
            return False


def _check_verifier_result(said: Verified | bool | None) -> Verified | bool | None:  # noqa: FBT001  # it is what was said
    """What is merely true may be a mistake, such as a function that makes a verifier in place of a verifier."""
    if said is None or isinstance(said, Verified | bool):
        return said
    raise TypeError(f"a verifier says Verified, True, False or None, not {type(said).__name__}")


class Handshakes:
    """The handshakes of a webhook.

    Args:
        always: Those that know by themselves what is expected.
        expected: Those that are asked only while something is.
        expecting: Whether something is.
        bucket: How many unsigned questions are looked at.
        faults: Where it is told when one fails.
    """

    def __init__(
        self,
        always: Sequence[Handshake],
        expected: Sequence[Handshake],
        *,
        expecting: Callable[[], bool],
        bucket: TokenBucket,
        faults: ErrorLog,
    ) -> None:
        self._always = always
        self._expected = expected
        self._expecting = expecting
        self._bucket = bucket
        self._error_log = faults

    async def respond_unverified(self, request: WebhookRequest, now: float) -> WebhookAnswer | None:
        """The answer to a question that may come from anybody; `None`: it is none.

        Args:
            request: Without a body.
            now: Seconds on a clock that never goes back.

        Raises:
            Refusal: Too many ask, and this can be nothing but a question.
        """
        if not (handshakes := self._active):
            return None
        if wait := self._bucket.take(now):
            if request.method == "POST":
                return None  # it may be a push, which is not kept waiting by questions
            raise RequestRejected(too_many_requests(wait), "limited")
        return await self._first_response(handshakes, request)

    async def respond(self, request: WebhookRequest) -> WebhookAnswer | None:
        """The answer to a question in an authentic request; `None`: it is none."""
        return await self._first_response(self._active, request)

    @property
    def _active(self) -> Sequence[Handshake]:
        return (*self._always, *self._expected) if self._expected and self._expecting() else self._always

    async def _first_response(
        self, handshakes: Sequence[Handshake], request: WebhookRequest
    ) -> WebhookAnswer | None:
        for handshake in handshakes:
            answer = await self._error_log.call_safely(
                "a handshake", partial(handshake, request), check=_check_handshake_response
            )
            if answer is not None:
                return answer
        return None


def _check_handshake_response(answer: WebhookAnswer | None) -> WebhookAnswer | None:
    return None if answer is None else check_response(answer)


monotonic = time.monotonic
"""One clock for all event loops in which requests arrive, whose own need not agree."""


@dataclass(frozen=True, kw_only=True)
class RequestReceiver:
    """Takes requests.

    Attributes:
        questions: Asked whether a request is one.
        verifiers: Asked whether it is authentic.
        meaning: What it says.
        audience: Who listens.
        bucket: How many bodies are looked at a second.
        slots: How many at a time.
        replays: What came before.
        tally: Where it is counted.
        faults: Where it is told.
        answer: To an authentic request.
        max_body: Bytes.
        body_timeout: Seconds for a body.
    """

    questions: Handshakes
    verifiers: Verifiers
    meaning: PushRouter
    audience: WebhookSubscribers
    bucket: TokenBucket
    slots: Slots
    replays: ReplayCache
    tally: WebhookStats
    faults: ErrorLog
    answer: WebhookAnswer
    max_body: int
    body_timeout: float

    async def handle(self, request: WebhookRequest, receive: Receive) -> WebhookAnswer | None:
        """What is answered; `None`: nobody is there any more.

        Args:
            request: Without its body.
            receive: Brings that.
        """
        self.tally.count("received")
        try:
            return await self._handle(request, receive)
        except RequestRejected as refusal:
            self.tally.count(refusal.reason)
            if refusal.hides_pushes:
                self.audience.note_rejected()
            return refusal.response
        except ClientGone:
            self.tally.count("gone")
            return None

    async def _handle(self, request: WebhookRequest, receive: Receive) -> WebhookAnswer:
        check_length(request.headers, self.max_body)
        answer = await self.questions.respond_unverified(request, monotonic())
        if answer is not None:
            self.tally.count("handshakes")
            return answer
        if request.method != "POST":
            raise RequestRejected(NOT_ALLOWED, "unasked")
        request, verified = await self._read_verified(request, receive)
        return await self._handle_verified(request, verified)

    async def _read_verified(self, request: WebhookRequest, receive: Receive) -> tuple[WebhookRequest, Verified]:
        verifiers = self.verifiers.candidates(request)
        with self.slots.acquire():
            self.bucket.take_or_reject(monotonic())
            body = await read_body(receive, most=self.max_body, within=self.body_timeout)
            request = replace(request, body=body)
            return request, await self.verifiers.verify(request, verifiers)

    async def _handle_verified(self, request: WebhookRequest, verified: Verified) -> WebhookAnswer:
        answer = await self.questions.respond(request)
        if answer is not None:
            self.tally.count("handshakes")
            return answer
        names = self.meaning.names_in(request)
        if self.replays.seen(verified, names, request.received_at):
            self.tally.count("replayed")
            self.faults.log_replay()
        elif self.meaning.dispatch(request, names):
            self.replays.add(verified, names)
        return self.answer
