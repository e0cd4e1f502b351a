"""Types of subscriptions: a registration at a server, and the protocol that a vendor implements."""

from collections.abc import Mapping
from typing import Annotated, Protocol, TypeAlias

import msgspec

from push_to_poll_client._exceptions import PushToPollError


class SubscriptionRefused(PushToPollError):
    """The server refuses, and will until a person acts. It is asked again every few minutes."""


IN_MILLISECONDS = 1e11
"""In seconds the year 5138, in milliseconds 1973. A time in milliseconds that was read as seconds would never be
renewed, and pushes would end without a word."""

Moment: TypeAlias = Annotated[float, msgspec.Meta(gt=-IN_MILLISECONDS, lt=IN_MILLISECONDS)]
"""Seconds since the epoch. Not checked when a `Registration` is made, but when the manager gets it."""


class Registration(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One registration at the server, saved in the store as JSON, and never shown.

    Attributes:
        id: Id of the registration, chosen by the server or by the client.
        expires_at: Time when the server ends it, in seconds since the epoch, from its response; `None` means
            never.
        renew_at: When to renew it, likewise; `None`: early enough before it expires, and never if it does not.
        details: What else is needed to renew and stop it, and to tell its pushes from others.
    """

    id: str
    expires_at: Moment | None = None
    renew_at: Moment | None = None
    details: Mapping[str, str] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        # Ids may be what a callback is not to be guessed by, and details hold secrets.
        return f"Registration({len(self.details)} details, expires_at={self.expires_at!r})"


class Subscription(Protocol):
    """Vendor's part of a subscription: creates, renews and stops it. The manager decides when.

    A subscription may also have, and the manager and the webhook look for them with `getattr`:

    - `def adopt(self, registrations: Sequence[Registration]) -> None`: told of those whose pushes are welcome,
      whenever that changes: the planned one, those in force, and two while one replaces the other.
    - `def bind(self, control: Callable[[Control], None]) -> None`: given, before anything else, how to tell the
      manager what the server said of the subscription itself where that comes as no push; from any thread.
    - `identity: str`: what it asks for, without secrets. When that is another one, a restart does not go on with
      what there is: it creates, and stops that. Without it: the name.
    - `renewable: bool`: `renew` as a rule needs no other in its place. Then a restart begins with it, since the
      server may have dropped, while nobody listened, what it was asked for.
    - `verify`, `handshake`, `hint`: as of a `WebhookListener`, which takes those that it was not given from here.
    - `response: WebhookResponse`: what an authentic push is answered, if not an empty 200.

    Attributes:
        name: By what status and log call it, without secrets.
    """

    name: str

    def plan(self) -> Registration:
        """Return the id, secret and callback chosen by the client. Sends no request.

        It is saved before `create` is called, so that a crash leaves no subscription behind that nobody knows.
        """
        ...

    async def create(self, planned: Registration, /) -> Registration:
        """Ask the server to push, and return when it will: a verification that it asks for has been passed.

        The same plan may be given again, after a failure or a restart: the server may have it already.

        Raises:
            SubscriptionGone: This plan is used up. It is stopped once another one was planned and created.
            ListenerError: It refuses for good.
            Exception: It failed; what it means is read from it as for listeners, and it is tried again.
        """
        ...

    async def renew(self, registration: Registration, /) -> Registration | None:
        """Make it last longer, and return what it is from then on; `None`: it has to be replaced by another.

        Then another is planned and created while this one goes on, which is stopped thereafter.

        Raises:
            SubscriptionGone: The server does not have it any more.
            ListenerError: It refuses for good.
            Exception: As for `create`; what there is goes on until it expires.
        """
        ...

    async def stop(self, registration: Registration, /) -> None:
        """Ask the server to push no more. What it raises is logged: a subscription that is left ends by itself."""
        ...
