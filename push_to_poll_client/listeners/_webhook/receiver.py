"""Receive a request as an ASGI application: limits, body, verification, handshake, wake.

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
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel

from push_to_poll_client import _event_loop
from push_to_poll_client.listeners._webhook.counters import WebhookJournal
from push_to_poll_client.listeners._webhook.limits import ReplayCache, TokenBucket
from push_to_poll_client.listeners._webhook.routing import PushRouter
from push_to_poll_client.listeners._webhook.types import (
    BUSY,
    NO_CONTENT,
    NOT_ALLOWED,
    NOT_READY,
    TOO_LARGE,
    TOO_SLOW,
    UNAUTHENTIC,
    Handshake,
    RequestRejected,
    Verified,
    Verifier,
    WebhookRequest,
    WebhookResponse,
    check_response,
    too_many_requests,
)

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

FIXED_HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}
"""Dropbox asks for the first, so that no browser shows an echo as a page; a response is for one request only."""


def request_of(scope: Scope) -> WebhookRequest:
    """Build the request, without its body."""
    # ASGI 3 has the whole path in `path`, with the mount point in front; older servers cut it off.
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    if path == root or path.startswith(f"{root}/"):
        path = path[len(root) :]
    headers = defaultdict[str, list[str]](list)
    for name, value in scope["headers"]:
        headers[name.decode("latin-1").lower()].append(value.decode("latin-1"))
    return WebhookRequest(
        method=scope["method"],
        path=path.rstrip("/") or "/",
        query=scope.get("query_string", b"").decode("latin-1"),
        headers={name: ", ".join(values) for name, values in headers.items()},
        received_at=_event_loop.wall_clock(),
    )


async def send_response(send: Send, response: WebhookResponse, scope: Scope) -> None:
    """Send a response, if the client is still there."""
    headers = {name.lower(): value for name, value in response.headers.items()} | FIXED_HEADERS
    if not scope.get("http_version", "1.1").startswith("1"):
        headers.pop("connection", None)  # it is malformed there (RFC 9113 §8.2.2)
    if response.status not in NO_CONTENT:
        headers |= {"content-type": response.content_type, "content-length": str(len(response.body))}
    body = b"" if scope["method"] == "HEAD" else response.body
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    with suppress(OSError):  # a client that has gone, in servers of ASGI 2.4
        await send({"type": "http.response.start", "status": response.status, "headers": fields})
        await send({"type": "http.response.body", "body": body})


MAX_DIGITS = 18
"""Digits of a declared length. A length with more digits is above any limit."""


class ClientGone(Exception):
    """The client hung up before its request was complete, so no response can be sent."""


def check_length(headers: Mapping[str, str], max_body: int) -> None:
    """Reject a body whose declared length is above `max_body` bytes. A malformed length is ignored."""
    length = headers.get("content-length", "").strip()
    if not length.isascii() or not length.isdigit():
        return
    if len(length) > MAX_DIGITS or int(length) > max_body:
        raise RequestRejected(TOO_LARGE, "too_large")


PIECES_AT_ONCE = 1_000
"""Pieces of a body that are read before other tasks run. A server may have all of them ready, and a MiB in pieces
of one byte takes a second. A thousand take 1 ms."""


async def read_body(receive: Receive, *, max_body: int, max_time: float) -> bytes:
    """Read the whole body, or raise `RequestRejected` or `ClientGone`.

    Args:
        receive: Of ASGI.
        max_body: Bytes.
        max_time: Seconds.
    """
    body, more, pieces = bytearray(), True, 0
    with anyio.move_on_after(max_time):
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientGone
            part = message.get("body", b"")
            if len(body) + len(part) > max_body:
                raise RequestRejected(TOO_LARGE, "too_large")
            body += part
            more = message.get("more_body", False)
            pieces += 1
            if pieces % PIECES_AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()
        return bytes(body)
    raise RequestRejected(TOO_SLOW, "too_slow")


monotonic = time.monotonic
"""One clock for all event loops in which requests arrive: the clocks of two event loops need not agree."""


MAX_BODIES = 64
"""Bodies held at a time. With the default `max_body` they take 64 MiB, however slowly they are sent."""


@dataclass(frozen=True, kw_only=True)
class RequestReceiver:
    """Takes each request of one webhook through all steps.

    Attributes:
        verifiers: A request that passes one of them is authentic.
        is_ready: Returns whether they know all that they need: the registration, if there is a subscription.
        own_handshakes: Those that know by themselves what is expected.
        handshakes: Those that are tried only while one is expected.
        expects_handshake: Returns whether one is expected.
        router: Wakes the consumers, and tells them about a flood.
        bucket: Limits the bodies that are read a second.
        waiting_bucket: Limits the unsigned requests for which a handshake waits.
        journal: Where everything is counted, and rejections, failures and replays are logged.
        response: Sent for an authentic request.
        max_body: Bytes.
        body_timeout: Seconds for a body.
        replay_cache: The authentic requests that were received.
    """

    verifiers: Sequence[Verifier]
    is_ready: Callable[[], bool]
    own_handshakes: Sequence[Handshake]
    handshakes: Sequence[Handshake]
    expects_handshake: Callable[[], bool]
    router: PushRouter
    bucket: TokenBucket
    waiting_bucket: TokenBucket
    journal: WebhookJournal
    response: WebhookResponse
    max_body: int
    body_timeout: float
    replay_cache: ReplayCache = field(default_factory=ReplayCache)
    _slots: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(MAX_BODIES))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a request, as an ASGI application does."""
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
            raise ValueError(f"{self.journal.name} takes HTTP requests, not ASGI's {scope['type']!r}")

    async def _respond(self, request: WebhookRequest, receive: Receive) -> WebhookResponse | None:
        """Return the response to a request; None if the client has gone.

        Args:
            request: Without its body.
            receive: Of ASGI, for the body.
        """
        self.journal.count("received")
        try:
            return await self._handle(request, receive)
        except RequestRejected as rejected:
            self.journal.count(rejected.reason)
            if rejected.hides_pushes:
                self.router.subscribers.note_rejected()
            return rejected.response
        except ClientGone:
            self.journal.count("gone")
            return None

    async def _handle(self, request: WebhookRequest, receive: Receive) -> WebhookResponse:
        check_length(request.headers, self.max_body)
        response = await self._respond_unverified(request)
        if response is not None:
            return response
        if request.method != "POST":
            raise RequestRejected(NOT_ALLOWED, "unasked")
        verifiers = [verifier for verifier in self.verifiers if self._may_pass(verifier, request)]
        if not verifiers:
            raise self._rejected("without a signature or token of the expected form and time")
        with self._slot():
            self.bucket.take_or_reject(monotonic())
            body = await read_body(receive, max_body=self.max_body, max_time=self.body_timeout)
            request = replace(request, body=body)
            verified = await self._verify(request, verifiers)
        response = await self._first_response(self._active_handshakes, request)
        if response is not None:
            return response
        recipients = self.router.recipients_of(request)
        recipients = self.replay_cache.unseen(verified, recipients, request.received_at)
        if not recipients:
            self.journal.count("replayed")
            self.journal.log_replay()
        elif self.router.dispatch(request, recipients):
            self.replay_cache.add(verified, recipients)
        return self.response

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """Hold one of the slots for bodies, or reject the request if none is free."""
        if not self._slots.acquire(blocking=False):
            raise RequestRejected(BUSY, "busy", hides_pushes=True)
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
            self.journal.log_failure("a verifier's may_pass", error)
            return False

    async def _verify(self, request: WebhookRequest, verifiers: Sequence[Verifier]) -> Verified:
        for verifier in verifiers:
            result = await self.journal.call_safely(
                "a verifier", partial(verifier, request), check=_check_verifier_result
            )
            if result:
                return result if isinstance(result, Verified) else Verified()
        raise self._rejected("whose signature or token is wrong; is the secret its sender's?")

    def _rejected(self, why: str) -> RequestRejected:
        if not self.is_ready():
            self.journal.log_not_ready()
            return RequestRejected(NOT_READY, "not_ready")
        self.journal.log_rejected(why)
        return RequestRejected(UNAUTHENTIC, "refused")

    # Handshakes

    @property
    def _active_handshakes(self) -> Sequence[Handshake]:
        is_expected = self.handshakes and self.expects_handshake()
        return (*self.own_handshakes, *self.handshakes) if is_expected else self.own_handshakes

    async def _respond_unverified(self, request: WebhookRequest) -> WebhookResponse | None:
        """Respond to a handshake from any sender; None if the request is not a handshake."""
        waits = list[float]()

        def limited(handshake: Handshake, request: WebhookRequest) -> _HandshakeResult:
            result = handshake(request)
            if inspect.isawaitable(result) and (wait := self.waiting_bucket.take(monotonic())):
                if inspect.iscoroutine(result):
                    result.close()  # Python would warn that it was never awaited
                waits.append(wait)
                return None
            return result

        handshakes = [partial(limited, one) for one in self._active_handshakes]
        response = await self._first_response(handshakes, request)
        if response is None and waits and request.method != "POST":  # a POST may be a push
            raise RequestRejected(too_many_requests(waits[0]), "limited")
        return response

    async def _first_response(
        self, handshakes: Sequence[Handshake], request: WebhookRequest
    ) -> WebhookResponse | None:
        for handshake in handshakes:
            response = await self.journal.call_safely(
                "a handshake",
                partial(handshake, request),
                check=lambda answer: None if answer is None else check_response(answer),
            )
            if response is not None:
                self.journal.count("handshakes")
                return response
        return None


_HandshakeResult: TypeAlias = WebhookResponse | Awaitable[WebhookResponse | None] | None


def _check_verifier_result(result: Verified | bool | None) -> Verified | bool | None:  # noqa: FBT001  # as returned
    """Refuse other true values: they may be a mistake, such as a function that returns a verifier."""
    if result is None or isinstance(result, Verified | bool):
        return result
    raise TypeError(f"a verifier says Verified, True, False or None, not {type(result).__name__}")
