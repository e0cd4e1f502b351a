"""The stored state of a subscription: what is registered, and what was planned. Pure.

Each step is written down before it is taken, and its outcome after that. So whatever a crash cuts off is taken
again: what may have been created is created again from the same plan, what may not have been stopped is stopped.
"""

import math
from typing import Literal

import msgspec

from push_to_poll_client._exceptions import ListenerError
from push_to_poll_client._json import decode
from push_to_poll_client._validation import quoted
from push_to_poll_client.listeners.subscriptions._types import Registration

__all__ = [
    "SubscriptionState",
    "check_registration",
]


IN_MILLISECONDS = 1e11
"""Seconds since the epoch until the year 5138, milliseconds until 1973. What was taken for seconds would never be
renewed, and pushes would end without a word."""

MAX_PENDING_STOPS = 4
"""Subscriptions that are still to be stopped; of more, the oldest are left to end by themselves."""


class SubscriptionState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All subscriptions that there may be.

    Attributes:
        planned: Being created.
        current: In force.
        renew_at: When to renew that, in seconds since the epoch; `None`: never.
        leaving: To be stopped, the oldest first.
    """

    planned: Registration | None = None
    current: Registration | None = None
    renew_at: float | None = None
    leaving: tuple[Registration, ...] = ()

    @staticmethod
    def from_text(text: str, asked: str | None = None) -> "SubscriptionState":
        """The book that a text is.

        Args:
            text: That.
            asked: What is asked for now, as for `to_text`. Of what was asked for by another all is to be stopped:
                the arguments were changed, or it is that of another listener, which had this one's place.

        Raises:
            ValueError: It is none, or one of another version of this library.
        """
        try:
            written = decode(text, type=_StoredSubscription)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        return written.book if written.asked == asked else written.book.stop_all()

    def to_text(self, asked: str | None = None) -> str | None:
        """As a text; `None`: there is nothing to be known.

        Args:
            asked: What they were asked for by, a subscription's `identity`.
        """
        if self == SubscriptionState():
            return None
        return msgspec.json.encode(_StoredSubscription(version=1, book=self, asked=asked)).decode()

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """Those whose pushes are welcome, the newest first."""
        return tuple(one for one in (self.planned, self.current, *reversed(self.leaving)) if one is not None)

    def plan(self, planned: Registration) -> "SubscriptionState":
        """One is going to be created."""
        return msgspec.structs.replace(self, planned=planned)

    def created(self, registration: Registration, renew_at: float) -> "SubscriptionState":
        """What was planned is in force; what was before is to be stopped, unless it has the same id.

        For then it is the same to the server, and stopping it would stop this.
        """
        leaving = tuple(one for one in self._to_stop(self.current) if one.id != registration.id)
        return SubscriptionState(current=registration, renew_at=_finite(renew_at), leaving=leaving)

    def renewed(self, registration: Registration, renew_at: float) -> "SubscriptionState":
        """What was in force still is."""
        return msgspec.structs.replace(self, current=registration, renew_at=_finite(renew_at))

    def lost(self) -> "SubscriptionState":
        """What was in force is so no more, as the server says. It is stopped all the same, for it may be wrong."""
        return SubscriptionState(planned=self.planned, leaving=self._to_stop(self.current))

    def plan_failed(self) -> "SubscriptionState":
        """What was planned cannot be created."""
        return msgspec.structs.replace(self, planned=None, leaving=self._to_stop(self.planned))

    def stop_all(self) -> "SubscriptionState":
        """All are to be stopped."""
        return SubscriptionState(leaving=self._to_stop(self.current, self.planned))

    def stopped(self, registration: Registration) -> "SubscriptionState":
        """One was stopped."""
        return msgspec.structs.replace(self, leaving=tuple(one for one in self.leaving if one != registration))

    def _to_stop(self, *more: Registration | None) -> tuple[Registration, ...]:
        return (*self.leaving, *(one for one in more if one is not None))[-MAX_PENDING_STOPS:]


class _StoredSubscription(msgspec.Struct, frozen=True, kw_only=True):
    version: Literal[1]
    book: SubscriptionState
    asked: str | None = None


def check_registration(answer: object) -> Registration:
    """What a subscription returned.

    Raises:
        ListenerError: It is no `Registration`, or one with something else in it than it should have.
    """
    if not isinstance(answer, Registration):
        raise ListenerError(f"it returned a {type(answer).__name__}; return a Registration")
    try:
        registration = msgspec.convert(msgspec.to_builtins(answer), Registration)
    except (ValueError, TypeError) as error:
        raise ListenerError(f"it returned a Registration that cannot be kept: {quoted(error)}") from None
    if not all(moment is None or math.isfinite(moment) for moment in (answer.expires_at, answer.renew_at)):
        raise ListenerError("it returned a Registration with an infinite time; None stands for never")
    if any(moment is not None and moment >= IN_MILLISECONDS for moment in (answer.expires_at, answer.renew_at)):
        raise ListenerError("it returned a Registration with a time in milliseconds; give seconds since the epoch")
    return registration


def _finite(moment: float) -> float | None:
    return moment if math.isfinite(moment) else None
