"""Types of subscriptions: registrations, and the protocol that a vendor implements."""

from collections.abc import Mapping
from typing import Annotated, Protocol, TypeAlias

import msgspec

from push_to_poll_client._exceptions import PushToPollError


class SubscriptionRefused(PushToPollError):
    """The server refuses until a person acts. The request is retried every few minutes."""


# A time in milliseconds that was read as seconds would never be renewed, and pushes would end silently.
IN_MILLISECONDS = 1e11
"""Seconds until the year 5138; as milliseconds, 1973."""

Moment: TypeAlias = Annotated[float, msgspec.Meta(gt=-IN_MILLISECONDS, lt=IN_MILLISECONDS)]
"""Seconds since the epoch. Checked when the manager gets a `Registration`, not when it is made."""


class Registration(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One registration at the server. Saved in the store as JSON; its `repr` hides the id and details.

    Attributes:
        id: Id of the registration, chosen by the server or by the client.
        expires_at: Time when the server ends it, in seconds since the epoch. `None` means never.
        renew_at: Time to renew it, in seconds since the epoch. `None` means 50-75 % of its lifetime, or never if
            it does not expire.
        details: Everything else needed to renew and stop it, and to recognise its pushes, such as a secret.
    """

    id: str
    expires_at: Moment | None = None
    renew_at: Moment | None = None
    details: Mapping[str, str] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        # The id may be a secret part of the callback, and details hold secrets.
        return f"Registration({len(self.details)} details, expires_at={self.expires_at!r})"


class Subscription(Protocol):
    """Vendor's part of a subscription: creates, renews and stops it. The manager decides when.

    Optional members, which the manager and the webhook look up with `getattr`:

    - `def adopt(self, registrations: Sequence[Registration]) -> None`: called with the registrations whose pushes
      are accepted, whenever they change: the planned one, the active one, and those to be stopped.
    - `def bind(self, control: Callable[[Control], None]) -> None`: called first, with a thread-safe function that
      reports to the manager what the server said about the subscription by other means than a push.
    - `identity: str`: describes the request, without secrets; by default the name. If it changed, a restart
      creates a new registration and stops the old one.
    - `renewable: bool`: True if `renew` usually works without a replacement. Then a restart starts with a renewal,
      since the server may have dropped the registration meanwhile.
    - `verify`, `handshake`, `hint`: as for a `WebhookListener`, which uses them if it was not given its own.
    - `response: WebhookResponse`: the response to an authentic push. By default an empty 200.

    Attributes:
        name: Name in status and log lines, without secrets.
    """

    name: str

    def plan(self) -> Registration:
        """Return the id, secret and callback chosen by the client. Sends no request.

        It is saved before `create` is called, so that a crash does not leave an unknown subscription behind.
        """
        ...

    async def create(self, planned: Registration, /) -> Registration:
        """Ask the server to push, and return when it will, after any verification.

        The same plan may be passed again after a failure or a restart. The server may have it already.

        Raises:
            SubscriptionGone: This plan cannot be used again. Another is planned and created, then this one is
                stopped.
            ListenerError: The server refuses permanently.
            Exception: It failed. The error is classified as for listeners, and the call is retried.
        """
        ...

    async def renew(self, registration: Registration, /) -> Registration | None:
        """Extend the registration and return its new state; `None` to have it replaced.

        A replacement is planned and created while the old registration stays active. Then the old one is stopped.

        Raises:
            SubscriptionGone: The server no longer has it.
            ListenerError: The server refuses permanently.
            Exception: As for `create`. The registration stays active until it expires.
        """
        ...

    async def stop(self, registration: Registration, /) -> None:
        """Ask the server to stop pushing. Errors are logged; a registration that is left expires."""
        ...
