"""Types of webhook requests, responses and callbacks."""

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
"""Query fields that are parsed; handshakes have five."""

MAX_QUERY = 8192
"""Query characters that are parsed, within 1 ms. Clients cannot rely on longer URLs (RFC 9110 §4.1)."""

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class WebhookRequest:
    """One complete request to a webhook. Until it is verified, any part may be hostile.

    Attributes:
        method: HTTP method in capitals.
        path: Path below the mount point, percent-decoded, without a trailing slash (some frameworks add one).
            At least "/".
        query: Raw query, without the question mark.
        headers: Headers by lower-case name. Values of a repeated header are joined with ", " (RFC 9110 §5.3), so
            that a verifier cannot mistake the first for the whole.
        body: The bytes received; signatures cover these bytes.
        received_at: Time of arrival in seconds since the epoch.
    """

    method: str = "POST"
    path: str = "/"
    # Query and headers may hold the secret that the receiver and the server share.
    query: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_HEADERS, repr=False)
    body: bytes = field(default=b"", repr=False)
    received_at: float = 0.0

    def parameter(self, name: str) -> str | None:
        """Return a decoded query field; `None` if missing, repeated, or in a query that is too long."""
        if len(self.query) > MAX_QUERY:
            return None
        try:
            fields = parse_qsl(self.query, keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
        except ValueError:
            return None
        values = [value for key, value in fields if key == name]
        return values[0] if len(values) == 1 else None

    def json(self) -> Any:
        """Return the body parsed as JSON.

        Raises:
            ValueError: The body is not JSON.
        """
        try:
            return decode(self.body)
        except RecursionError:
            raise ValueError("the JSON is nested too deeply") from None


@dataclass(frozen=True, slots=True)
class WebhookResponse:
    """Response to a webhook request.

    Attributes:
        status: HTTP status.
        body: Bytes sent unchanged.
        content_type: Value of `Content-Type`.
        headers: Further headers; `Content-Length`, `Content-Type` and `X-Content-Type-Options` are added.
    """

    status: int = 200
    # The response to a handshake may hold a secret that server and receiver share.
    body: bytes = field(default=b"", repr=False)
    content_type: str = field(default="text/plain; charset=utf-8", repr=False)
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_HEADERS, repr=False)


@dataclass(frozen=True, slots=True)
class Verified:
    """Result of a verifier for an authentic request.

    Attributes:
        once: Byte strings that identify this request: a request that shares one of them is a repetition. Empty if
            repetitions cannot be recognised. They are kept in memory, so another process, or this one after a
            restart, treats a repetition once as new and polls early.
        until: Time when a repetition would be rejected anyway, in seconds since the epoch; `None` means never.
    """

    once: tuple[bytes, ...] = field(default=(), repr=False)  # signatures, or what they were made of
    until: float | None = None


class Control(enum.Enum):
    """Message of the server about the subscription itself, which is not a push."""

    RENEW = "renew"
    """Renew now: it is about to end, or must be confirmed (Graph's `reauthorizationRequired`)."""

    RECREATE = "recreate"
    """Create it again: the server has dropped it (Graph's `subscriptionRemoved`, WebSub's `denied`)."""

    MISSED = "missed"
    """Poll: pushes were lost (Graph's `missed`)."""


_VerifierResult: TypeAlias = Verified | bool | None


class Verifier(Protocol):
    """Checks that a request is authentic. Any function from a request to a bool works.

    A verifier may have a method `may_pass(request: WebhookRequest) -> bool`. It is called before the body is read,
    and returns False if the request lacks the headers of an authentic one.
    """

    def __call__(self, request: WebhookRequest, /) -> _VerifierResult | Awaitable[_VerifierResult]:
        """Return `Verified` or True if the request is authentic, else False or `None`.

        An exception counts as "not authentic"; only its class is logged.
        """


Handshake: TypeAlias = Callable[[WebhookRequest], WebhookResponse | Awaitable[WebhookResponse | None] | None]
"""Answers a server's handshake; returns `None` if the request is not one.

A plain function is called for each request, also of strangers, so it must be quick. Calls that return an
awaitable, as from an `async def`, are limited by the webhook's `rate` and `burst`."""

Hint: TypeAlias = Callable[[WebhookRequest], Push | Control | None]
"""Turns an authentic request into a push; returns `None` if it is not one (a ping, Google's `sync`)."""

Route: TypeAlias = Callable[[WebhookRequest], Iterable[str] | None]
"""Returns the names of the listeners that an authentic request is for; `None` means all."""


class _Several(enum.Enum):
    EVERYONE = "everyone"
    UNKNOWN = "unknown"


EVERYONE: Final = _Several.EVERYONE
"""All subscribers: the push names no recipient."""

UNKNOWN: Final = _Several.UNKNOWN
"""All names without a listening consumer, together. Only subscribers that hear every push get them."""

Recipient: TypeAlias = str | _Several
"""Recipient of a push: a name with a listening consumer, `EVERYONE` or `UNKNOWN`."""


RejectReason: TypeAlias = Literal["refused", "not_ready", "too_large", "too_slow", "limited", "busy", "unasked"]
"""Reason of a rejection: a field of `WebhookCounters`."""

ACCEPTED = WebhookResponse()
"""Response to an authentic request, unless the subscription or the caller chose another one."""

# A server repeats a push after a 503, and may end the subscription after a 401.
NOT_READY = WebhookResponse(503, headers={"Retry-After": "5"})
"""Response to an unverified request while the registration may not be loaded."""

REJECTIONS: Mapping[RejectReason, WebhookResponse] = {
    # The same response for every fault of a signature: details would help an attacker.
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
"""Responses by reason. For "limited" the response is made with the seconds to wait."""

MIN_FINAL_STATUS, MAX_STATUS = 200, 599
NO_CONTENT = {204, 304}
"""Statuses of responses without a body (RFC 9110 §6.4.1)."""


class RequestRejected(Exception):
    """The request is rejected, which `reason` counts."""

    def __init__(self, reason: RejectReason, *, wait: float = 0.0, hides_pushes: bool = False) -> None:
        super().__init__(reason)
        # CloudEvents webhooks §2.2; `wait` is in seconds.
        too_many = WebhookResponse(429, headers={"Retry-After": str(math.ceil(wait))})
        self.response = REJECTIONS.get(reason, too_many)
        self.reason = reason
        self.hides_pushes = hides_pushes  # an authentic request could have been rejected in the same way


def check_response(response: Any) -> WebhookResponse:
    """Return the response of a callback, or raise `TypeError` or `ValueError` if it cannot be sent."""
    if not isinstance(response, WebhookResponse):
        raise TypeError(f"the response must be a WebhookResponse, got {type(response).__name__}")
    if not isinstance(response.status, int) or not isinstance(response.body, bytes):
        raise TypeError("the response needs an int as status and bytes as body")
    if not MIN_FINAL_STATUS <= response.status <= MAX_STATUS:
        raise ValueError(f"the status must be {MIN_FINAL_STATUS} to {MAX_STATUS}, got {response.status}")
    if response.body and response.status in NO_CONTENT:
        raise ValueError(f"a response with status {response.status} cannot have a body")
    for name, value in {**response.headers, "Content-Type": response.content_type}.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError("response headers must be a mapping of str to str")
        if not is_header_name(name) or not is_header_value(value):
            raise ValueError("a response header has characters that are not allowed in a header")
    return response
