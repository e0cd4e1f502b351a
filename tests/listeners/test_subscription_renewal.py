"""Times of renewals, and the state that survives a restart. Pure."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from push_to_poll_client import ListenerError
from push_to_poll_client._json import DECODE_ERRORS
from push_to_poll_client.listeners.subscriptions import Registration
from push_to_poll_client.listeners.subscriptions._state import (
    CLOCK_SKEW_DELAY,
    DEFAULT_RENEWAL_INTERVAL,
    FIRST_EARLY_RENEWAL_INTERVAL,
    MAX_EARLY_RENEWAL_INTERVAL,
    MAX_PENDING_STOPS,
    MIN_RENEWAL_INTERVAL,
    MissedPushes,
    Now,
    Renewal,
    SubscriptionState,
    check_registration,
    renewal_time,
)
from push_to_poll_client.testing._virtual_time import START
from tests.support.clock import DAY

NOW = DAY

STEADY = START
"""The steady clock at the same moment. It does not jump, and its zero is arbitrary."""


def until(expires_at=None, renew_at=None, id="1"):
    return Registration(id=id, expires_at=expires_at, renew_at=renew_at)


@pytest.mark.parametrize(
    ("registration", "fraction", "due"),
    [
        (until(NOW + 100), 0.0, NOW + 50),
        (until(NOW + 100), 1.0, NOW + 75),
        (until(NOW + 100 * 365 * 86400), 0.0, NOW + 50 * 365 * 86400),
        (until(), 0.5, math.inf),
        (until(renew_at=NOW + 7), 0.5, NOW + 7),
        (until(NOW + 100, renew_at=NOW + 7), 0.5, NOW + 7),
        # Too late for a registration that expires.
        (until(NOW + 100, renew_at=NOW + 99), 0.5, NOW + 75),
        (until(NOW - 100, renew_at=NOW + 99), 0.5, NOW),
        # Copied from the previous registration.
        (until(NOW + 100, renew_at=NOW), 0.0, NOW + 50),
        (until(renew_at=NOW - 1), 0.0, NOW + DEFAULT_RENEWAL_INTERVAL),
        # Already expired.
        (until(NOW - 100), 0.5, NOW),
    ],
)
def test_a_renewal_is_due_between_half_and_three_quarters_of_the_lifetime(registration, fraction, due):
    assert renewal_time(registration, NOW, fraction) == due


moments = st.none() | st.floats(-1e12, 1e12)


@given(moments, moments, st.floats(0, 1, exclude_max=True))
def test_a_renewal_is_due_before_the_expiry_and_not_before_now(expires_at, renew_at, fraction):
    due = renewal_time(until(expires_at, renew_at), NOW, fraction)
    assert due >= NOW
    if expires_at is not None and expires_at > NOW:
        assert due <= expires_at


def test_a_renewal_is_due_when_the_first_of_the_two_clocks_reaches_it():
    renewal = Renewal()
    renewal.registered(until(NOW + 100), NOW + 50, Now(NOW, STEADY), just_now=False)
    assert renewal.wait(Now(NOW + 10, STEADY + 10)) == 40
    assert renewal.wait(Now(NOW + 60, STEADY + 10)) == 0  # the steady clock stopped while the machine slept
    assert renewal.wait(Now(NOW - 86400, STEADY + 49)) == 1  # the clock was set back
    assert renewal.wait(Now(NOW - 86400, STEADY + 50)) == 0


def test_a_new_registration_is_not_renewed_within_the_minimum_time():
    renewal = Renewal()
    renewal.registered(until(NOW + 2), NOW + 1, Now(NOW, STEADY), just_now=True)
    renewal.make_due()
    assert renewal.wait(Now(NOW, STEADY)) == MIN_RENEWAL_INTERVAL
    assert renewal.wait(Now(NOW, STEADY + MIN_RENEWAL_INTERVAL)) == 0


def test_a_registration_that_arrives_expired_is_renewed_after_a_minute():
    renewal = Renewal()
    renewal.registered(until(NOW - 1), NOW, Now(NOW, STEADY), just_now=True)
    assert renewal.wait(Now(NOW, STEADY)) == CLOCK_SKEW_DELAY


def test_a_missing_registration_is_created_at_once_or_after_the_retry_delay():
    renewal = Renewal()
    assert renewal.wait(Now(NOW, STEADY)) == 0
    renewal.registered(until(), math.inf, Now(NOW, STEADY), just_now=True)
    assert renewal.wait(Now(NOW, STEADY + 99)) == math.inf
    renewal.make_due()
    renewal.failed(5, Now(NOW, STEADY + 99))
    assert renewal.wait(Now(NOW, STEADY + 99)) == 5


# State

ONE, TWO, THREE = (until(NOW, id=name) for name in "123")


def test_the_saved_state_is_read_back_unchanged():
    secret = Registration(id="2", details={"secret": "s"})
    book = SubscriptionState(planned=secret, current=ONE, renew_at=NOW, leaving=(TWO, THREE))
    assert SubscriptionState.from_text(book.to_text()) == book
    assert SubscriptionState().to_text() is None
    assert book.registrations == (secret, ONE, THREE, TWO)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "null",
        '{"version":2,"book":{}}',
        '{"version":1,"book":{"current":{}}}',
        '{"version":1,"book":{"current":{"id":"1","expires_at":"soon"}}}',
        "[" * 100_000,
        '{"version":1,"book":{},"x":' + "[" * 5_000 + "]" * 5_000 + "}",
    ],
)
def test_an_invalid_saved_state_is_a_decode_error(text):
    with pytest.raises(DECODE_ERRORS):
        SubscriptionState.from_text(text)


def test_a_created_registration_replaces_the_current_one():
    book = SubscriptionState(current=ONE).plan(TWO).created(TWO, NOW)
    assert book == SubscriptionState(current=TWO, renew_at=NOW, leaving=(ONE,))
    assert book.stopped(ONE) == SubscriptionState(current=TWO, renew_at=NOW)
    assert book.renewed(THREE, math.inf) == SubscriptionState(current=THREE, leaving=(ONE,))


def test_a_registration_created_again_with_the_same_id_is_not_stopped():
    again = replace(ONE, expires_at=NOW + 1)
    assert SubscriptionState(current=ONE).lost().plan(ONE).created(again, NOW) == SubscriptionState(
        current=again, renew_at=NOW
    )


def test_lost_and_spoiled_registrations_are_still_stopped():
    assert SubscriptionState(current=ONE, renew_at=NOW).lost() == SubscriptionState(leaving=(ONE,))
    assert SubscriptionState(current=ONE, planned=TWO).lost() == SubscriptionState(planned=TWO, leaving=(ONE,))
    assert SubscriptionState(current=ONE, planned=TWO).plan_failed() == SubscriptionState(
        current=ONE, leaving=(TWO,)
    )
    assert SubscriptionState(current=ONE, planned=TWO, leaving=(THREE,)).stop_all() == SubscriptionState(
        leaving=(THREE, ONE, TWO)
    )


def test_only_the_newest_registrations_to_stop_are_kept():
    book = SubscriptionState()
    for number in range(10):
        book = book.plan(until(id=f"{number}")).plan_failed()
    assert [one.id for one in book.leaving] == ["6", "7", "8", "9"]
    assert len(book.leaving) == MAX_PENDING_STOPS


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "create returned an invalid NoneType: .*; return a Registration"),
        (object(), "returned an invalid object: .*; return a Registration"),
        (Registration(id="1", expires_at="1700000000000"), "invalid Registration: .*expires_at"),
        (Registration(id="1", expires_at=1.7e12), r"expires_at.*; .* \(not milliseconds\) since the epoch"),
        (Registration(id="1", renew_at=1.7e12), "renew_at.*not milliseconds"),
        (Registration(id=1), "invalid Registration: .*id"),
        (Registration(id="1", details={"n": 1}), "invalid Registration: .*details"),
        (Registration(id="1", details={"n": object()}), "invalid Registration"),
        (Registration(id="1", expires_at=math.inf), "None for never"),
        (Registration(id="1", renew_at=math.nan), "None for never"),
    ],
)
def test_an_invalid_return_value_of_a_subscription_is_a_listener_error(answer, why):
    with pytest.raises(ListenerError, match=why):
        check_registration(answer, "create")


def test_a_valid_registration_is_returned_unchanged():
    assert check_registration(replace(ONE, details={"a": "b"}), "create") == replace(ONE, details={"a": "b"})


# Missed pushes


def at(seconds):
    return Now(NOW + seconds, STEADY + seconds)


def renewals(missed_by_the_hour, *, pushes=()):
    """Check once an hour, register after each renewal, and return the hours of the renewals."""
    pushes_missed, missed, hours = MissedPushes(), 0, []
    for hour in range(24 * 7):
        missed = 0 if hour in pushes else missed + missed_by_the_hour
        if pushes_missed.is_renewal_due(missed, at(3600 * hour)):
            hours.append(hour)
            pushes_missed.registered(missed)
    return hours


def test_a_server_that_never_pushes_is_asked_eleven_times_in_a_week_at_intervals_of_an_hour_to_a_day():
    assert renewals(9) == [0, 1, 3, 7, 15, 31, 55, 79, 103, 127, 151]
    assert FIRST_EARLY_RENEWAL_INTERVAL == 3600
    assert MAX_EARLY_RENEWAL_INTERVAL == 24 * 3600


def test_pushes_that_arrive_for_longer_than_the_interval_make_it_short_again():
    assert renewals(9, pushes=range(2, 51))[:5] == [0, 1, 51, 52, 54]


def test_a_push_within_the_interval_does_not_change_the_interval():
    assert renewals(9, pushes=[20]) == renewals(9)


def test_pushes_for_one_message_in_four_cause_no_more_renewals_than_no_pushes():
    pushes_missed, times = MissedPushes(), 0
    for minute in range(7 * 24 * 60):
        if pushes_missed.is_renewal_due(minute % 4, at(60 * minute)):
            times += 1
            pushes_missed.registered(minute % 4)
    assert times == len(renewals(9))


def test_two_missed_pushes_after_a_registration_cause_a_renewal_but_one_does_not():
    missed = MissedPushes()
    assert not missed.is_renewal_due(1, at(0))
    missed.registered(1)
    assert not missed.is_renewal_due(2, at(1))
    assert missed.is_renewal_due(3, at(2))
    missed.registered(3)
    assert not missed.is_renewal_due(3, at(1e5))  # nothing new was missed


def test_pushes_missed_before_a_registration_do_not_count_even_after_a_push():
    missed = MissedPushes()
    assert missed.is_renewal_due(5, at(0))
    missed.registered(1)
    assert not missed.is_renewal_due(2, at(4000))
    assert missed.is_renewal_due(3, at(4001))
