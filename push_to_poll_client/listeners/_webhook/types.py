"""Requests that arrive at a webhook, and the responses it gives."""

import enum
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol, TypeAlias
from urllib.parse import parse_qsl

from push_to_poll_client._http.headers import is_header_name, is_header_value
from push_to_poll_client._json import decode
from push_to_poll_client._types import Push

MAX_PARAMETERS = 100
"""Fields of a query that are read; handshakes have five."""

MAX_QUERY = 8192
"""Characters of a query that are read, in 1 ms. Clients cannot count on longer URLs (RFC 9110 §4.1)."""

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class WebhookRequest:
    """A request to a webhook, whole. Whoever sent it may have written anything into it.

    Attributes:
        method: In capitals.
        path: Below where the application is mounted, percent-decoded, without a slash at its end, which some
            frameworks add. "/" at least.
        query: As it came, without the question mark.
        headers: By names in lower case. The values of a header that came more than once are joined with ", "
            (RFC 9110 §5.3), so that no verifier takes the first for the whole.
        body: The bytes that came, which are what was signed.
        received_at: When, in seconds since the epoch.
    """

    method: str = "POST"
    path: str = "/"
    # Query and headers may hold the secret that the receiver and the server share.
    query: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_HEADERS, repr=False)
    body: bytes = field(default=b"", repr=False)
    received_at: float = 0.0

    def parameter(self, name: str) -> str | None:
        """A field of the query, decoded; `None` if it is missing or there twice, or if the query is too long."""
        if len(self.query) > MAX_QUERY:
            return None
        try:
            fields = parse_qsl(self.query, keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
        except ValueError:
            return None
        values = [value for key, value in fields if key == name]
        return values[0] if len(values) == 1 else None

    def json(self) -> Any:
        """The body, read as JSON.

        Raises:
            ValueError: It is none.
        """
        try:
            return decode(self.body)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None


@dataclass(frozen=True, slots=True)
class WebhookResponse:
    """What is answered.

    Attributes:
        status: Of HTTP.
        body: Sent as it is.
        content_type: Of the body.
        headers: Sent too; `Content-Length`, `Content-Type` and `X-Content-Type-Options` are added.
    """

    status: int = 200
    # The answer to a handshake may hold a secret of the server and the receiver.
    body: bytes = field(default=b"", repr=False)
    content_type: str = field(default="text/plain; charset=utf-8", repr=False)
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_HEADERS, repr=False)


@dataclass(frozen=True, slots=True)
class Verified:
    """A request that is authentic.

    Attributes:
        once: What a repetition of it has too, and another request has not: texts of which each alone makes it a
            repetition. Empty: repetitions cannot be told from others. They are remembered in memory: another
            process, and this one after a restart, takes a repetition for new once, and polls early.
        until: When its repetition would be refused anyway, in seconds since the epoch; `None`: never.
    """

    once: tuple[bytes, ...] = field(default=(), repr=False)  # signatures, or what they were made of
    until: float | None = None


class Control(enum.Enum):
    """What a request says of the subscription itself. It is no push."""

    RENEW = "renew"
    """It is about to end, or asks to be confirmed: renew it now (Graph's `reauthorizationRequired`)."""

    RECREATE = "recreate"
    """The server has dropped it (Graph's `subscriptionRemoved`, WebSub's `denied`): create it anew."""

    MISSED = "missed"
    """Pushes were lost (Graph's `missed`): poll, though nothing is promised."""


_VerifierResult: TypeAlias = Verified | bool | None


class Verifier(Protocol):
    """Says whether a request is authentic. Any function of a request that returns a bool serves.

    A verifier may have a method `may_pass(request: WebhookRequest) -> bool`, which is asked before the body is
    read: False for a request without the headers that an authentic one has.
    """

    def __call__(self, request: WebhookRequest, /) -> _VerifierResult | Awaitable[_VerifierResult]:
        """Whether it is: `Verified`, or True for one that has no more to say; False or `None` when it is not.

        What it raises means that it is not, and is logged by its class.
        """


Handshake: TypeAlias = Callable[[WebhookRequest], WebhookResponse | Awaitable[WebhookResponse | None] | None]
"""Answers a server's question whether its pushes are wanted; `None`: the request is not such a question.

A plain function is called for each request, also of strangers, so it has to be quick. What it returns to be
awaited, as an `async def` does each time, is limited by the webhook's `rate` and `burst`."""

Hint: TypeAlias = Callable[[WebhookRequest], Push | Control | None]
"""Makes a push of an authentic request; `None`: it is none (a ping, Google's `sync`)."""

Route: TypeAlias = Callable[[WebhookRequest], Iterable[str] | None]
"""Names those for whom an authentic request is; `None`: all."""


class _Several(enum.Enum):
    EVERYONE = "everyone"
    UNKNOWN = "unknown"


EVERYONE: Final = _Several.EVERYONE
"""All subscribers: the push does not say for whom it is."""

UNKNOWN: Final = _Several.UNKNOWN
"""All names together for which no consumer listens. They are for the subscribers that hear every push."""

Recipient: TypeAlias = str | _Several
"""For whom a push is: a name for which a consumer listens, `EVERYONE` or `UNKNOWN`."""


RejectReason: TypeAlias = Literal["refused", "not_ready", "too_large", "too_slow", "limited", "busy", "unasked"]
"""Why a request was refused: a field of `WebhookCounters`."""

ACCEPTED = WebhookResponse()
"""For an authentic request, unless the subscription or the caller wants another response."""

NOT_READY = WebhookResponse(503, headers={"Retry-After": "5"})
"""For anything that is wrong with a signature while the registration may be unknown here: a server sends a push
again after a 503, and may end the subscription after a 401."""

REJECTIONS: Mapping[RejectReason, WebhookResponse] = {
    # Anything that is wrong with a signature: to say what would help an attacker.
    "refused": WebhookResponse(401),
    "not_ready": NOT_READY,
    # Neither a push nor an expected handshake (RFC 9110 §15.5.6; CloudEvents webhooks §4.2).
    "unasked": WebhookResponse(405, headers={"Allow": "POST"}),
    # The rest of the body is not read (RFC 9110 §15.5.14 and §15.5.9).
    "too_large": WebhookResponse(413, headers={"Connection": "close"}),
    "too_slow": WebhookResponse(408, headers={"Connection": "close"}),
    # A slot is free again after a moment, unless clients send their bodies slowly on purpose.
    "busy": WebhookResponse(503, headers={"Retry-After": "1"}),
}
"""The response to a rejected request; to one beyond the rate it says how long to wait."""

MIN_FINAL_STATUS, MAX_STATUS = 200, 599
NO_CONTENT = {204, 304}
"""Statuses of responses without a body (RFC 9110 §6.4.1)."""


class RequestRejected(Exception):
    """A request goes no further.

    Args:
        reason: The counter that is increased.
        wait: Seconds after which the client may come back, if it is `limited` (CloudEvents webhooks §2.2).
        hides_pushes: Whether an authentic request could have been rejected in the same way.

    Attributes:
        response: Sent to the client.
    """

    def __init__(self, reason: RejectReason, *, wait: float = 0.0, hides_pushes: bool = False) -> None:
        super().__init__(reason)
        too_many = WebhookResponse(429, headers={"Retry-After": str(math.ceil(wait))})
        self.response = REJECTIONS.get(reason, too_many)
        self.reason = reason
        self.hides_pushes = hides_pushes


def check_response(response: Any) -> WebhookResponse:
    """Return a response that the caller's code made, if it can be sent.

    Raises:
        TypeError: It is not a `WebhookResponse`, or a part has the wrong type.
        ValueError: It cannot be sent as it is.
    """
    if not isinstance(response, WebhookResponse):
        raise TypeError(f"it is a WebhookResponse, not {type(response).__name__}")
    if not isinstance(response.status, int) or not isinstance(response.body, bytes):
        raise TypeError("the status is an int and the body is bytes")
    if not MIN_FINAL_STATUS <= response.status <= MAX_STATUS:
        raise ValueError(f"the status is {MIN_FINAL_STATUS} to {MAX_STATUS}, not {response.status}")
    if response.body and response.status in NO_CONTENT:
        raise ValueError(f"an answer of status {response.status} has no body")
    for name, value in {**response.headers, "Content-Type": response.content_type}.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError("headers are a mapping of str to str")
        if not is_header_name(name) or not is_header_value(value):
            raise ValueError("a header has a character that may not stand in one")
    return response
