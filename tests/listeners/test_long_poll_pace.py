"""Times between long polls: no server can cause a busy loop."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push_to_poll_client.listeners._backoff import LongPollPace


def pauses(*answers, wait=60.0, fraction=0.0):
    """Pauses after some responses: pairs of seconds held and news."""
    pace, now, found = LongPollPace(wait), 0.0, []
    for held, news in answers:
        now += held
        pace.answered(now, held=held, news=news, retry_after=None, fraction=fraction)
        found.append(pace.pause(now))
        now += found[-1]
    return found


def test_no_pause_follows_an_answer_that_the_server_held():
    assert pauses((60, False), (5, False), (1, True), (30, True), (70, False)) == [0] * 5


def test_the_pause_after_early_answers_without_news_grows_up_to_a_minute():
    assert pauses(*[(0, False)] * 10) == [0.25, 0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_ten_answers_with_news_need_no_pause_and_later_ones_are_one_second_apart():
    assert pauses(*[(0, True)] * 13) == [0] * 9 + [0, 1, 1, 1]
    assert pauses(*[(0.5, True)] * 24)[-4:] == [0.5] * 4
    assert pauses(*[(1, True)] * 100) == [0] * 100


def test_an_answer_that_was_held_resets_the_pause():
    assert pauses((0, False), (0, False), (5, False), (0, False)) == [0.25, 0.5, 0, 0.25]
    assert pauses((0, False), (0, False), (5, True), (0, False)) == [0.25, 0.5, 0, 0.25]


def test_an_early_answer_with_news_does_not_reset_the_pause():
    assert pauses((0, False), (0, False), (0, True), (0, False)) == [0.25, 0.5, 0, 1]


@pytest.mark.parametrize(
    ("wait", "held", "early"), [(60, 4.9, True), (60, 5, False), (4, 1.9, True), (4, 2, False)]
)
def test_an_answer_is_early_before_five_seconds_or_before_half_of_a_short_wait(wait, held, early):
    assert LongPollPace(wait).is_early(held) is early


@pytest.mark.parametrize(
    ("seconds", "pause"), [(10, 12 * 0.99 + 0.12 - 0.1), (1e9, 86_400 * 1.19), (0, 0), (None, 0)]
)
def test_retry_after_is_obeyed_for_at_most_a_day_and_jitter_only_adds_to_it(seconds, pause):
    pace = LongPollPace(60)
    pace.answered(100, held=60, news=False, retry_after=seconds, fraction=0.95)
    assert pace.pause(100) == pytest.approx(pause)
    assert pace.pause(100 + pause) == 0


def test_a_later_answer_does_not_shorten_an_earlier_retry_after():
    pace = LongPollPace(60)
    pace.answered(0, held=60, news=False, retry_after=100, fraction=0)
    pace.answered(10, held=10, news=True, retry_after=None, fraction=0)
    assert pace.pause(10) == 90


answers = st.lists(st.tuples(st.floats(0, 90), st.booleans()), min_size=1, max_size=60)


@given(answers, st.floats(10, 120))
def test_the_number_of_requests_in_any_time_window_is_bounded(given_answers, wait):
    pace, now, sent = LongPollPace(wait), 0.0, [0.0]
    for held, news in given_answers:
        now += held
        pace.answered(now, held=held, news=news, retry_after=None, fraction=0.0)
        now += pace.pause(now)
        sent.append(now)
    for count, at in enumerate(sent):
        for later in range(count + 1, len(sent)):
            assert later - count <= 16 + 2.5 * (sent[later] - at)
