"""WHAT ARRIVES AT A WEBHOOK, and what is answered: what verifiers, handshakes and subscriptions speak of."""

import enum
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias
from urllib.parse import parse_qsl

from push_to_poll_client._json import decode
from push_to_poll_client._types import Push

__all__ = [
    "Control",
    "Handshake",
    "Hint",
    "To",
    "Verified",
    "Verifier",
    "WebhookAnswer",
    "WebhookRequest",
]

MAX_PARAMETERS = 100
"""Fields of a query that are looked at; handshakes have five."""

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
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_HEADERS)
    body: bytes = field(default=b"", repr=False)
    received_at: float = 0.0

    def parameter(self, name: str) -> str | None:
        """A field of the query, decoded; `None`: it is not there, or more than once, or there are too many."""
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

    def __repr__(self) -> str:
        # Query and headers may hold the secret that the receiver and the server share.
        return f"WebhookRequest({self.method} {self.path!r}, {len(self.body)} bytes)"


@dataclass(frozen=True, slots=True)
class WebhookAnswer:
    """What is answered.

    Attributes:
        status: Of HTTP.
        body: Sent as it is.
        content_type: Of the body.
        headers: Sent too; `Content-Length`, `Content-Type` and `X-Content-Type-Options` are added.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_HEADERS)


@dataclass(frozen=True, slots=True)
class Verified:
    """A request that is authentic.

    Attributes:
        once: What a repetition of it has too, and another request has not: texts of which each alone makes it a
            repetition. Empty: repetitions cannot be told from others.
        until: When its repetition would be refused anyway, in seconds since the epoch; `None`: never.
    """

    once: tuple[bytes, ...] = ()
    until: float | None = None


class Control(enum.Enum):
    """What a request says of the subscription itself. It is no push."""

    RENEW = "renew"
    """It is about to end, or asks to be confirmed: renew it now (Graph's `reauthorizationRequired`)."""

    RECREATE = "recreate"
    """The server has dropped it (Graph's `subscriptionRemoved`, WebSub's `denied`): create it anew."""

    MISSED = "missed"
    """Pushes were lost (Graph's `missed`): poll, though nothing is promised."""


_Answered: TypeAlias = Verified | bool | None


class Verifier(Protocol):
    """Says whether a request is authentic. Any function of a request that returns a bool serves.

    A verifier may have a method `may_pass(request: WebhookRequest) -> bool`, which is asked before the body is
    read: False for a request without the headers that an authentic one has.
    """

    def __call__(self, request: WebhookRequest, /) -> _Answered | Awaitable[_Answered]:
        """Whether it is: `Verified`, or True for one that has no more to say; False or `None` when it is not.

        What it raises means that it is not, and is logged by its class.
        """


Handshake: TypeAlias = Callable[[WebhookRequest], WebhookAnswer | Awaitable[WebhookAnswer | None] | None]
"""Answers a server's question whether its pushes are wanted; `None`: the request is no such question."""

Hint: TypeAlias = Callable[[WebhookRequest], Push | Control | None]
"""Makes a push of an authentic request; `None`: it is none (a ping, Google's `sync`)."""

To: TypeAlias = Callable[[WebhookRequest], Iterable[str] | None]
"""Names those for whom an authentic request is; `None`: all."""
