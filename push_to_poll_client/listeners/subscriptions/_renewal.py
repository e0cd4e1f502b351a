"""Decide when to renew a subscription, and when to try again after a failure.

A server says in time of day until when it pushes, and only the machine's time of day survives a restart. But that
jumps: when it is set, and when the machine wakes from sleep. So a renewal is due by the time of day or by a clock
that never jumps, whichever comes first. A renewal that is too early costs a request.
"""

import math
import traceback
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

from push_to_poll_client._event_loop import sole_cause
from push_to_poll_client._exceptions import ListenerError, SubscriptionGone
from push_to_poll_client.listeners._backoff import ReconnectAction
from push_to_poll_client.listeners._failures import Failure, error_response, http_failure_of
from push_to_poll_client.listeners.subscriptions._types import Registration, SubscriptionRefused

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
        self._before = self._last = 0
        self._interval = 0.0
        self._missed_at: float | None = None  # when pushes were first missed again
        self._not_before = -math.inf

    def registered(self, missed: int) -> None:
        """Note a registration: what was missed before it says nothing about it."""
        self._look(missed)
        self._before = missed

    def is_renewal_due(self, missed: int, now: Now) -> bool:
        """Return whether to renew now. The next renewal for this reason is an hour to a day later.

        Args:
            missed: Polls in a row that found what no push announced; fewer than before if a push arrived since.
            now: This moment.
        """
        self._look(missed)
        if missed - self._before < MIN_MISSED:
            return False
        missed_at = self._missed_at = now.steady if self._missed_at is None else self._missed_at
        if now.steady < self._not_before:
            return False
        has_helped = missed_at >= self._not_before + self._interval
        doubled = min(2 * self._interval, MAX_EARLY_RENEWAL_INTERVAL)
        self._interval = FIRST_EARLY_RENEWAL_INTERVAL if has_helped else doubled
        self._before, self._missed_at, self._not_before = missed, None, now.steady + self._interval
        return True

    def _look(self, missed: int) -> None:
        if missed < self._last:  # a push has arrived since
            self._before = 0
        self._last = missed


_VERDICTS: tuple[tuple[type[Exception], ReconnectAction], ...] = (
    (ListenerError, ReconnectAction.GIVE_UP),
    (SubscriptionRefused, ReconnectAction.SLOW_RETRY),
)

_GONE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})


def failure_of(error: Exception) -> Failure:
    """Return what an error means for the next attempt. `httpx.HTTPStatusError` is classified by its status."""
    error = sole_cause(error)
    failure = http_failure_of(error, wanted="a subscription", verdicts=_VERDICTS)
    sentence = failure.sentence
    # An error without a sentence of its own is most likely a mistake in a function of the caller: name its place.
    if sentence == f"failed with {type(error).__name__}" and (frames := traceback.extract_tb(error.__traceback__)):
        sentence += f" in {frames[-1].name}, line {frames[-1].lineno} of {Path(frames[-1].filename).name}"
    error.with_traceback(None)  # the traceback holds secrets, and the status keeps the error for long
    return failure._replace(sentence=sentence)


def is_gone(error: Exception) -> bool:
    """Return whether the server does not have the subscription that it was asked to renew or stop."""
    error = sole_cause(error)
    response = error_response(error)
    return isinstance(error, SubscriptionGone) or (response is not None and response.status_code in _GONE)
