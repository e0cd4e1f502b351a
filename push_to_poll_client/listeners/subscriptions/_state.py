"""State of a subscription, and the times of its renewals. Pure.

Each step is saved before it is taken, and its result after it. A step that a crash interrupts is repeated:
`create` is called again with the same plan, and `stop` again for the same registration.

Servers give the expiry as time of day, and only the time of day survives a restart. But it jumps when the clock is
set. So a renewal is due by the time of day or by a steady clock, whichever comes first. An early renewal only
costs a request.
"""

import math
from typing import Literal, NamedTuple

import msgspec

from push_to_poll_client._exceptions import ListenerError
from push_to_poll_client._json import decode
from push_to_poll_client._validation import quoted
from push_to_poll_client.listeners.subscriptions._types import Registration

MAX_PENDING_STOPS = 4
"""Registrations waiting to be stopped. If there are more, the oldest are left to expire."""


class SubscriptionState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All registrations that may exist at the server."""

    planned: Registration | None = None  # being created
    current: Registration | None = None  # active
    renew_at: float | None = None  # when to renew `current`, in seconds since the epoch; None means never
    leaving: tuple[Registration, ...] = ()  # to be stopped, oldest first

    @staticmethod
    def from_text(text: str, identity: str | None = None) -> "SubscriptionState":
        """Read the text of `to_text`. Raises one of `DECODE_ERRORS` if it is malformed or of another version."""
        # Another identity means that the arguments have changed, or that another listener had this place. Then all
        # saved registrations must be stopped.
        stored = decode(text, type=_StoredSubscription)
        return stored.book if stored.asked == identity else stored.book.stop_all()

    def to_text(self, identity: str | None = None) -> str | None:
        """Return the state as JSON, with the subscription's `identity`; None if the state is empty."""
        if self == SubscriptionState():
            return None
        return msgspec.json.encode(_StoredSubscription(version=1, book=self, asked=identity)).decode()

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """All registrations whose pushes are accepted, newest first."""
        return tuple(one for one in (self.planned, self.current, *reversed(self.leaving)) if one is not None)

    def plan(self, planned: Registration) -> "SubscriptionState":
        return msgspec.structs.replace(self, planned=planned)

    def created(self, registration: Registration, renew_at: float) -> "SubscriptionState":
        """Make the planned registration active, and plan to stop the previous one."""
        # The server treats an equal id as the same subscription: stopping the old one would stop the new one.
        leaving = tuple(one for one in self._to_stop(self.current) if one.id != registration.id)
        return SubscriptionState(current=registration, renew_at=_finite(renew_at), leaving=leaving)

    def renewed(self, registration: Registration, renew_at: float) -> "SubscriptionState":
        """Replace the active registration by its renewed state."""
        return msgspec.structs.replace(self, current=registration, renew_at=_finite(renew_at))

    def lost(self) -> "SubscriptionState":
        """Note that the server has dropped the active registration."""
        # It is still stopped, since the server may be wrong.
        return SubscriptionState(planned=self.planned, leaving=self._to_stop(self.current))

    def plan_failed(self) -> "SubscriptionState":
        """Note that the planned registration cannot be created, and plan to stop it."""
        return msgspec.structs.replace(self, planned=None, leaving=self._to_stop(self.planned))

    def stop_all(self) -> "SubscriptionState":
        return SubscriptionState(leaving=self._to_stop(self.current, self.planned))

    def stopped(self, registration: Registration) -> "SubscriptionState":
        return msgspec.structs.replace(self, leaving=tuple(one for one in self.leaving if one != registration))

    def _to_stop(self, *more: Registration | None) -> tuple[Registration, ...]:
        return (*self.leaving, *(one for one in more if one is not None))[-MAX_PENDING_STOPS:]


class _StoredSubscription(msgspec.Struct, frozen=True, kw_only=True):
    # The names are part of the stored format.
    version: Literal[1]
    book: SubscriptionState
    asked: str | None = None  # identity of the subscription


def check_registration(answer: object, call: str) -> Registration:
    """Check the result of `create` or `renew`; raise `ListenerError` if it is invalid."""
    try:
        return msgspec.convert(msgspec.to_builtins(answer), Registration)
    except (ValueError, TypeError) as error:
        raise ListenerError(
            f"{call} returned an invalid {type(answer).__name__}: {quoted(error)}; return a Registration of "
            "strings, with times in seconds (not milliseconds) since the epoch, or None for never"
        ) from None


def _finite(moment: float) -> float | None:
    return moment if math.isfinite(moment) else None


# 1,000 consumers that subscribed at once for 10 days renew over 60 hours. A quarter of the lifetime is left for
# failures.
EARLIEST, LATEST = 0.5, 0.75
"""Shares of the lifetime between which a subscription is renewed, at random."""

# Subscriptions shorter than 20 seconds have gaps, which polls fill.
MIN_RENEWAL_INTERVAL = 15.0
"""Minimum seconds between a registration and its renewal: at most four requests a minute."""

# This makes one request a minute. The registration may be active: the clocks of server and client may differ.
CLOCK_SKEW_DELAY = 60.0
"""Seconds until the renewal of a registration that was already expired when the server returned it."""

DEFAULT_RENEWAL_INTERVAL = 3600.0
"""Seconds until the renewal of a registration whose `renew_at` is in the past and that does not expire."""

MAX_SLEEP = 60.0
"""Longest sleep in seconds before the time of day is read again: clocks jump, and processes are suspended."""


class Now(NamedTuple):
    """One moment as time of day since the epoch, and on a steady clock."""

    wall: float
    steady: float


def is_over(registration: Registration | None, now: Now) -> bool:
    """Return True if the registration has expired; False if it is None or never expires."""
    return registration is not None and registration.expires_at is not None and registration.expires_at <= now.wall


def renewal_time(registration: Registration, now: float, fraction: float) -> float:
    """Return when to renew a new registration, in seconds since the epoch; infinite for never."""
    # A `renew_at` in the past is ignored: it was copied from the previous registration.
    wanted, ends = registration.renew_at, registration.expires_at
    if wanted is not None and wanted > now:
        return wanted if ends is None else min(wanted, max(now + LATEST * (ends - now), now))
    if ends is None:
        return math.inf if wanted is None else now + DEFAULT_RENEWAL_INTERVAL
    return now + max(ends - now, 0.0) * (EARLIEST + (LATEST - EARLIEST) * fraction)


class Renewal:
    """Time of the next step of a subscription: its creation or its renewal."""

    def __init__(self) -> None:
        self._due_wall = self._due_steady = self._not_before = -math.inf

    def registered(self, registration: Registration, due: float, now: Now, *, just_now: bool) -> None:
        """Note that the subscription is active until `due`. `just_now` is False for one of an earlier run."""
        self._due_wall, self._due_steady = due, now.steady + (due - now.wall)
        pause = CLOCK_SKEW_DELAY if is_over(registration, now) else MIN_RENEWAL_INTERVAL
        self._not_before = now.steady + pause if just_now else -math.inf

    def make_due(self) -> None:
        """Make the next step due as soon as `_not_before` allows."""
        self._due_wall = self._due_steady = -math.inf

    def failed(self, delay: float, now: Now) -> None:
        """Note a failure: the next attempt is due after `delay` seconds."""
        self._not_before = now.steady + delay

    def wait(self, now: Now) -> float:
        """Return the seconds until the next step; 0 if it is due, infinite for never."""
        due = min(self._due_wall - now.wall, self._due_steady - now.steady)
        return max(due, self._not_before - now.steady, 0.0)


MIN_MISSED = 2
"""Polls in a row, since the registration, with unannounced messages. After only one, a push may be late."""

# It doubles if pushes are missed again within twice this time. Otherwise it starts again at this value.
FIRST_EARLY_RENEWAL_INTERVAL = 3600.0
"""Seconds between two renewals for missed pushes."""

# A server that accepts subscriptions and does not push is asked 11 times in the first week, then once a day; 1,000
# consumers ask it 42 times an hour.
MAX_EARLY_RENEWAL_INTERVAL = 86_400.0
"""Longest time in seconds between two renewals for missed pushes."""


class MissedPushes:
    """Decides if missed pushes need an early renewal: the server may have lost the subscription."""

    def __init__(self) -> None:
        self._before = 0  # missed pushes that do not count
        self._interval = 0.0
        self._not_before = -math.inf

    def registered(self, missed: int) -> None:
        """Note a registration. Pushes missed earlier do not count."""
        self._before = missed

    def is_renewal_due(self, missed: int, now: Now) -> bool:
        """Return True if a renewal is due now. The next one for this reason is an hour to a day later."""
        self._before = min(self._before, missed)  # if `missed` has fallen, a push has arrived since
        if missed - self._before < MIN_MISSED or now.steady < self._not_before:
            return False
        # The last renewal has helped if no pushes were missed again within twice its interval.
        has_helped = now.steady >= self._not_before + self._interval
        doubled = min(2 * self._interval, MAX_EARLY_RENEWAL_INTERVAL)
        self._interval = FIRST_EARLY_RENEWAL_INTERVAL if has_helped else doubled
        self._before, self._not_before = missed, now.steady + self._interval
        return True
