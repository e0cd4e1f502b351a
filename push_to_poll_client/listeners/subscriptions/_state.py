"""Stored state of a subscription: what is registered, planned, and to be stopped. Pure.

Each step is saved before it is taken, and its result after it. So a step that a crash cuts off is taken again:
what may have been created is created again from the same plan, and what may not have been stopped is stopped.
"""

import math
from typing import Literal

import msgspec

from push_to_poll_client._exceptions import ListenerError
from push_to_poll_client._json import decode
from push_to_poll_client._validation import quoted
from push_to_poll_client.listeners.subscriptions._types import Registration

MAX_PENDING_STOPS = 4
"""Subscriptions that are still to be stopped. If there are more, the oldest are left to expire."""


class SubscriptionState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All subscriptions that may exist at the server.

    Attributes:
        planned: The one that is being created.
        current: The one in force.
        renew_at: When to renew `current`, in seconds since the epoch; None if never.
        leaving: Those to be stopped, the oldest first.
    """

    planned: Registration | None = None
    current: Registration | None = None
    renew_at: float | None = None
    leaving: tuple[Registration, ...] = ()

    @staticmethod
    def from_text(text: str, identity: str | None = None) -> "SubscriptionState":
        """Read what `to_text` wrote; `ValueError` if the text is malformed or of another version of this library.

        If it was saved under another identity, all of its subscriptions are to be stopped: the arguments were
        changed, or another listener had this one's place.
        """
        try:
            stored = decode(text, type=_StoredSubscription)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        return stored.book if stored.asked == identity else stored.book.stop_all()

    def to_text(self, identity: str | None = None) -> str | None:
        """Write the state as JSON, with the `identity` of the subscription; None if the state is empty."""
        if self == SubscriptionState():
            return None
        return msgspec.json.encode(_StoredSubscription(version=1, book=self, asked=identity)).decode()

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """All subscriptions whose pushes are accepted, the newest first."""
        return tuple(one for one in (self.planned, self.current, *reversed(self.leaving)) if one is not None)

    def plan(self, planned: Registration) -> "SubscriptionState":
        """Plan to create a subscription."""
        return msgspec.structs.replace(self, planned=planned)

    def created(self, registration: Registration, renew_at: float) -> "SubscriptionState":
        """Put the planned subscription in force; the one before is to be stopped, unless it has the same id."""
        # With the same id it is the same subscription to the server: to stop the old one would stop the new one.
        leaving = tuple(one for one in self._to_stop(self.current) if one.id != registration.id)
        return SubscriptionState(current=registration, renew_at=_finite(renew_at), leaving=leaving)

    def renewed(self, registration: Registration, renew_at: float) -> "SubscriptionState":
        """Note that the subscription in force was renewed."""
        return msgspec.structs.replace(self, current=registration, renew_at=_finite(renew_at))

    def lost(self) -> "SubscriptionState":
        """Note that the server has dropped the subscription in force."""
        # It is stopped all the same, since the server may be wrong.
        return SubscriptionState(planned=self.planned, leaving=self._to_stop(self.current))

    def plan_failed(self) -> "SubscriptionState":
        """Note that the planned subscription cannot be created."""
        return msgspec.structs.replace(self, planned=None, leaving=self._to_stop(self.planned))

    def stop_all(self) -> "SubscriptionState":
        """Plan to stop all subscriptions."""
        return SubscriptionState(leaving=self._to_stop(self.current, self.planned))

    def stopped(self, registration: Registration) -> "SubscriptionState":
        """Note that a subscription was stopped."""
        return msgspec.structs.replace(self, leaving=tuple(one for one in self.leaving if one != registration))

    def _to_stop(self, *more: Registration | None) -> tuple[Registration, ...]:
        return (*self.leaving, *(one for one in more if one is not None))[-MAX_PENDING_STOPS:]


class _StoredSubscription(msgspec.Struct, frozen=True, kw_only=True):
    version: Literal[1]
    book: SubscriptionState
    asked: str | None = None


IN_MILLISECONDS = 1e11
"""In seconds the year 5138, in milliseconds 1973. A time in milliseconds that was read as seconds would never be
renewed, and pushes would end without a word."""


def check_registration(answer: object, call: str) -> Registration:
    """Check what `create` or `renew` of a subscription returned.

    Raises:
        ListenerError: It is not a `Registration`, or a part has a wrong type or value.
    """
    if not isinstance(answer, Registration):
        raise ListenerError(f"{call} returned a {type(answer).__name__}; return a Registration")
    try:
        registration = msgspec.convert(msgspec.to_builtins(answer), Registration)
    except (ValueError, TypeError) as error:
        raise ListenerError(f"{call} returned a Registration that cannot be kept: {quoted(error)}") from None
    for moment in (answer.expires_at, answer.renew_at):
        if moment is not None and not abs(moment) < IN_MILLISECONDS:
            raise ListenerError(
                f"{call} returned a Registration with the time {moment}; give seconds since the epoch, not "
                "milliseconds, or None for never"
            )
    return registration


def _finite(moment: float) -> float | None:
    return moment if math.isfinite(moment) else None
