"""State of a subscription: what is registered, planned and to be stopped, and when to renew it. Pure.

Each step is saved before it is taken, and its result after it. So a step that a crash cuts off is taken again:
what may have been created is created again from the same plan, and what may not have been stopped is stopped.

A server says in time of day until when it pushes, and only the machine's time of day survives a restart. But that
jumps: when it is set, and when the machine wakes from sleep. So a renewal is due by the time of day or by a clock
that never jumps, whichever comes first. A renewal that is too early costs a request.
"""

import math
from typing import Literal, NamedTuple

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
        """Read what `to_text` wrote; one of `DECODE_ERRORS` if it is malformed, or another version wrote it.

        If it was saved under another identity, all of its subscriptions are to be stopped: the arguments were
        changed, or another listener had this one's place.
        """
        stored = decode(text, type=_StoredSubscription)
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


def check_registration(answer: object, call: str) -> Registration:
    """Check what `create` or `renew` of a subscription returned.

    Raises:
        ListenerError: It is not a `Registration`, or a part has a wrong type or value.
    """
    try:
        return msgspec.convert(msgspec.to_builtins(answer), Registration)
    except (ValueError, TypeError) as error:
        raise ListenerError(
            f"{call} returned a {type(answer).__name__} that cannot be kept: {quoted(error)}; return a "
            "Registration of texts, and of times in seconds since the epoch, not milliseconds, or None for never"
        ) from None


def _finite(moment: float) -> float | None:
    return moment if math.isfinite(moment) else None


EARLIEST, LATEST = 0.5, 0.75
"""The shares of its lifetime after which a subscription is renewed, at random between: a fleet of 1,000 that
subscribed at once, for 10 days, renews over 60 hours, and a quarter of the lifetime is left for what fails."""

MIN_RENEWAL_INTERVAL = 15.0
"""Seconds between a registration and the next renewal, whatever is asked for: four requests a minute at worst.
Subscriptions that last less than 20 seconds have gaps, which polls bridge."""

CLOCK_SKEW_DELAY = 60.0
"""Seconds until a registration is renewed that had ended when it came: a request a minute, since the clocks of
server and client do not agree, and it may be in force all the same."""

DEFAULT_RENEWAL_INTERVAL = 3600.0
"""Seconds until a registration is renewed whose time of renewal is in the past, and that has no end."""

MAX_SLEEP = 60.0
"""Seconds after which the time of day is looked at again: nothing sleeps for longer, since clocks jump and
processes are suspended."""


class Now(NamedTuple):
    """One moment on both clocks.

    Attributes:
        wall: The time of day, in seconds since the epoch.
        steady: On a clock that never jumps, in seconds.
    """

    wall: float
    steady: float


def is_over(registration: Registration | None, now: Now) -> bool:
    """Return whether a registration has ended; False if there is none, or if it does not end."""
    return registration is not None and registration.expires_at is not None and registration.expires_at <= now.wall


def renewal_time(registration: Registration, now: float, fraction: float) -> float:
    """Return when to renew what was registered just now, in seconds since the epoch; infinite if never.

    Args:
        registration: As the server answered. A time of renewal in the past is ignored: it was taken over from the
            registration before.
        now: Seconds since the epoch.
        fraction: A random number, 0 ≤ fraction < 1.
    """
    wanted, ends = registration.renew_at, registration.expires_at
    if wanted is not None and wanted > now:
        return wanted if ends is None else min(wanted, max(now + LATEST * (ends - now), now))
    if ends is None:
        return math.inf if wanted is None else now + DEFAULT_RENEWAL_INTERVAL
    return now + max(ends - now, 0.0) * (EARLIEST + (LATEST - EARLIEST) * fraction)


class Renewal:
    """Time of the next step of a subscription: its creation while there is none, else its renewal."""

    def __init__(self) -> None:
        self._due_wall = self._due_steady = self._not_before = -math.inf

    def registered(self, registration: Registration, due: float, now: Now, *, just_now: bool) -> None:
        """Note that the subscription is in force.

        Args:
            registration: As the server answered.
            due: When to renew it, in seconds since the epoch.
            now: This moment.
            just_now: Whether the server answered this now, and not in an earlier run.
        """
        self._due_wall, self._due_steady = due, now.steady + (due - now.wall)
        pause = CLOCK_SKEW_DELAY if is_over(registration, now) else MIN_RENEWAL_INTERVAL
        self._not_before = now.steady + pause if just_now else -math.inf

    def make_due(self) -> None:
        """Make the next step due as soon as it is allowed."""
        self._due_wall = self._due_steady = -math.inf

    def failed(self, delay: float, now: Now) -> None:
        """Note a failure: the next attempt is due after `delay` seconds."""
        self._not_before = now.steady + delay

    def wait(self, now: Now) -> float:
        """Return the seconds until the next step; 0 if it is due, infinite if it never is."""
        due = min(self._due_wall - now.wall, self._due_steady - now.steady)
        return max(due, self._not_before - now.steady, 0.0)


MIN_MISSED = 2
"""Polls in a row, since the registration, that found messages which no push announced. One may be a push that is
still on its way."""

FIRST_EARLY_RENEWAL_INTERVAL = 3600.0
"""Seconds from one renewal for missed pushes to the next one. It doubles if pushes are missed again within twice
this time, and is as short as at first if they are missed only later."""

MAX_EARLY_RENEWAL_INTERVAL = 86_400.0
"""Seconds that the interval grows to. A server that takes subscriptions and never pushes, or pushes only for some
messages, is asked 11 times in the first week, and then once a day; a fleet of 1,000 asks it 42 times an hour."""


class MissedPushes:
    """Decide whether missed pushes are a reason to renew early: the server may have forgotten the subscription."""

    def __init__(self) -> None:
        self._before = 0
        self._interval = 0.0
        self._not_before = -math.inf

    def registered(self, missed: int) -> None:
        """Note a registration: what was missed before it says nothing about it."""
        self._before = missed

    def is_renewal_due(self, missed: int, now: Now) -> bool:
        """Return whether to renew now. The next renewal for this reason is an hour to a day later.

        Args:
            missed: Polls in a row that found what no push announced; fewer than before if a push arrived since.
            now: This moment.
        """
        self._before = min(self._before, missed)  # fewer: a push has arrived since
        if missed - self._before < MIN_MISSED or now.steady < self._not_before:
            return False
        has_helped = now.steady >= self._not_before + self._interval
        doubled = min(2 * self._interval, MAX_EARLY_RENEWAL_INTERVAL)
        self._interval = FIRST_EARLY_RENEWAL_INTERVAL if has_helped else doubled
        self._before, self._not_before = missed, now.steady + self._interval
        return True
