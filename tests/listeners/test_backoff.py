"""Reconnect delays: the pure policy that all listeners share."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push_to_poll_client._types import MAX_NOT_BEFORE
from push_to_poll_client.listeners._backoff import (
    BURST,
    MAX_DELAY,
    NEWS_SPACING,
    SLOW_DELAY,
    STABLE_AFTER,
    ReconnectAction,
    ReconnectBackoff,
    action_of_status,
    lifetime,
)
from push_to_poll_client.testing._virtual_time import START

fractions = st.floats(0, 1, exclude_max=True)


def delays(count, fraction, action=ReconnectAction.RETRY):
    reconnect = ReconnectBackoff()
    return [reconnect.delay(action, fraction=fraction) for _ in range(count)]


def connections_at(lives, fractions, *, until):
    """Connect times of a client whose connections the server closes after `lives` seconds."""
    reconnect, now, connects = ReconnectBackoff(), START, []
    for fraction in fractions:
        if now > START + until:
            break
        connects.append(now)
        reconnect.connected(now)
        now += lives
        reconnect.ended(now)
        now += reconnect.delay(ReconnectAction.RETRY, fraction=fraction)
    return connects


def test_the_delay_doubles_up_to_its_cap():
    assert delays(9, fraction=0.0) == [0, 1, 2, 4, 8, 16, 30, 30, 30]
    assert delays(9, fraction=0.5) == [0.5, 1.5, 3, 6, 12, 24, 45, 45, 45]


def test_the_delay_keeps_its_cap_for_ever():
    assert delays(5000, fraction=0.0)[-1] == MAX_DELAY


@given(failures=st.integers(0, 40), fraction=fractions)
def test_jitter_only_lengthens_a_delay_and_at_most_doubles_it(failures, fraction):
    least, drawn = delays(failures + 1, 0.0)[-1], delays(failures + 1, fraction)[-1]
    assert least <= drawn <= max(1.0, 2 * least)


@given(st.lists(fractions, min_size=50, max_size=50))
def test_a_server_that_closes_each_connection_gets_at_most_five_in_ten_seconds(drawn):
    assert len(connections_at(0.0, drawn, until=10)) <= 5


@given(lives=st.floats(0, 300), drawn=st.lists(fractions, min_size=200, max_size=200))
def test_reconnects_average_at_most_one_in_thirty_seconds_for_any_connection_lifetime(lives, drawn):
    connects = connections_at(lives, drawn, until=3000)
    assert len(connects) <= 7 + 3000 / MAX_DELAY


@given(
    st.lists(st.tuples(st.floats(0, 60), st.booleans(), st.booleans(), fractions), min_size=100, max_size=100),
)
def test_connections_in_any_time_window_are_bounded_for_every_kind_of_ending(ends):
    """Connections that last some seconds, bring a push or none, and end in an orderly way or not."""
    reconnect, now, connects = ReconnectBackoff(), START, []
    for lives, pushes, orderly, fraction in ends:
        connects.append(now)
        reconnect.connected(now)
        if pushes:
            reconnect.pushed()
        now += lives
        reconnect.ended(now)
        if orderly and reconnect.was_useful:
            now += reconnect.delay_after_end(now, fraction=fraction)
        else:
            now += reconnect.delay(ReconnectAction.RETRY, fraction=fraction)
    for first in range(len(connects)):
        for last in range(first, len(connects)):
            assert last - first <= 2 * (BURST + 1 + (connects[last] - connects[first]) / NEWS_SPACING)


def test_clients_whose_connections_one_push_ends_do_not_come_back_together():
    """If a server ends the connections of 200 clients three times a second, few reconnect at the same time."""
    draw = random.Random(5)  # noqa: S311 - not for cryptography
    clients, connects = [(ReconnectBackoff(), START) for _ in range(200)], Counter()
    for push in range(180):
        now = START + push / 3
        for place, (reconnect, at) in enumerate(clients):
            if at <= now:
                connects[int(10 * (at - START))] += 1
                reconnect.connected(at)
                reconnect.pushed()
                reconnect.ended(now)
                clients[place] = reconnect, now + reconnect.delay_after_end(now, fraction=draw.random())
    in_the_long_run = [connects[tenth] for tenth in range(300, 580)]
    assert max(in_the_long_run) < 50
    assert sum(in_the_long_run) / 28 < 1.1 * 200


def test_a_short_connection_does_not_reset_the_backoff():
    reconnect = ReconnectBackoff()
    for _ in range(4):
        reconnect.delay(ReconnectAction.RETRY, fraction=0.0)
    reconnect.connected(100.0)
    reconnect.ended(100.0 + STABLE_AFTER - 0.1)
    assert reconnect.delay(ReconnectAction.RETRY, fraction=0.0) == 8


def test_a_connection_that_lived_long_enough_resets_the_backoff():
    reconnect = ReconnectBackoff()
    for _ in range(4):
        reconnect.delay(ReconnectAction.RETRY, fraction=0.0)
    reconnect.connected(100.0)
    reconnect.ended(100.0 + STABLE_AFTER)
    assert reconnect.delay(ReconnectAction.RETRY, fraction=0.5) == 0.5


def test_a_failed_attempt_does_not_count_the_time_since_an_older_connection():
    reconnect = ReconnectBackoff()
    reconnect.connected(0.0)
    reconnect.ended(1.0)
    reconnect.delay(ReconnectAction.RETRY, fraction=0.0)
    reconnect.ended(500.0)  # an attempt that did not connect
    assert reconnect.delay(ReconnectAction.RETRY, fraction=0.0) == 1


@given(fraction=fractions)
def test_a_refused_connection_is_retried_every_few_minutes(fraction):
    for delay in delays(3, fraction, ReconnectAction.SLOW_RETRY):
        assert SLOW_DELAY <= delay <= 1.5 * SLOW_DELAY


def test_giving_up_has_no_delay():
    assert ReconnectBackoff().delay(ReconnectAction.GIVE_UP, fraction=0.0, retry_after=5.0) is None


@given(seconds=st.floats(0, 1e12), failures=st.integers(0, 10), fraction=fractions)
def test_retry_after_is_the_minimum_delay_and_jitter_only_lengthens_it(seconds, failures, fraction):
    reconnect = ReconnectBackoff()
    for _ in range(failures):
        reconnect.delay(ReconnectAction.RETRY, fraction=fraction)
    delay = reconnect.delay(ReconnectAction.RETRY, fraction=fraction, retry_after=seconds)
    assert delay >= min(seconds, MAX_NOT_BEFORE)
    assert delay <= max(min(seconds, MAX_NOT_BEFORE) * 1.2, 2 * MAX_DELAY)


def test_equal_retry_after_does_not_bring_all_clients_back_at_once():
    returns = {
        ReconnectBackoff().delay(ReconnectAction.RETRY, fraction=f / 10, retry_after=100.0) for f in range(10)
    }
    assert len(returns) == 10
    assert min(returns) == 100
    assert max(returns) < 120


def test_a_huge_retry_after_is_limited_to_one_day():
    assert ReconnectBackoff().delay(ReconnectAction.RETRY, fraction=0.0, retry_after=3e9) == 86_400


def test_a_slow_retry_obeys_a_longer_retry_after():
    assert ReconnectBackoff().delay(ReconnectAction.SLOW_RETRY, fraction=0.0, retry_after=3600.0) == 3600


def test_refused_credentials_are_renewed_once_until_a_connection_lasts_long_enough():
    reconnect = ReconnectBackoff()
    assert reconnect.allow_renewal()
    assert not reconnect.allow_renewal()
    reconnect.connected(0.0)
    reconnect.ended(STABLE_AFTER / 2)
    assert not reconnect.allow_renewal(), (
        "a server that accepts, closes and refuses in turn must not make a loop of it"
    )
    reconnect.connected(100.0)
    reconnect.ended(100.0 + STABLE_AFTER)
    assert reconnect.allow_renewal()


@pytest.mark.parametrize(("fraction", "age"), [(0.0, 300.0), (0.5, 450.0), (0.999, 599.7)])
def test_a_connection_is_renewed_between_half_its_maximum_age_and_all_of_it(fraction, age):
    assert lifetime(600.0, fraction) == pytest.approx(age)


@pytest.mark.parametrize(
    ("action", "statuses"),
    [
        (ReconnectAction.RETRY, [408, 425, 429, 500, 502, 503, 504, 507, 529, 599]),
        (
            ReconnectAction.SLOW_RETRY,
            [200, 204, 301, 302, 307, 400, 401, 402, 403, 404, 405, 407, 426, 451, 501, 505],
        ),
        (ReconnectAction.GIVE_UP, [410]),
    ],
)
def test_each_http_status_has_a_retry_action(action, statuses):
    assert {status: action_of_status(status) for status in statuses} == dict.fromkeys(statuses, action)
