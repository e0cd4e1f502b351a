"""Stories of the schedule. Times are plain numbers; nothing waits."""

import itertools
import math

import pytest

from push_to_poll_client._schedule import (
    EARLY_ANSWERS,
    FIRST_BACKOFF,
    MAX_BACKOFF,
    REPOLL_DELAYS,
    SLOW_BACKOFF,
    Cause,
    Decision,
    Mode,
    PollOutcome,
    Schedule,
    WakeResult,
)
from push_to_poll_client._types import MAX_NOT_BEFORE


def make(**changes):
    settings = {"fallback_interval": 60.0, "degraded_interval": 10.0, "rate": 5.0, "burst": 10, **changes}
    return Schedule(**settings)


def poll(schedule, start, *, end=None, cause=None, outcome=PollOutcome.CAUGHT_UP, wait=0.0, **ended):
    """Run one whole poll, of the scheduled cause by default."""
    cause = cause or schedule.next_poll(start).cause
    schedule.poll_started(start, cause, wait=wait)
    schedule.poll_ended(start if end is None else end, outcome, **ended)


def idle(**changes):
    """Create a schedule that has caught up at time 0."""
    schedule = make(**changes)
    poll(schedule, 0.0)
    return schedule


# G1


def test_the_first_poll_is_at_once():
    assert make().next_poll(7.0) == Decision(-math.inf, Cause.START)


def test_g1_a_wake_during_a_poll_is_handled_by_the_next_one():
    schedule = idle()
    schedule.wake(1.0)
    schedule.poll_started(1.0, Cause.WAKE)
    schedule.wake(1.5)
    schedule.poll_ended(2.0, PollOutcome.CAUGHT_UP, found=1)
    assert schedule.next_poll(2.0) == Decision(1.5, Cause.WAKE)


def test_g1_a_wake_before_a_poll_is_handled_by_it():
    schedule = idle()
    schedule.wake(1.0)
    poll(schedule, 1.0, found=1)
    assert schedule.next_poll(2.0).cause is Cause.TIMER


@pytest.mark.parametrize("outcome", [PollOutcome.FAILED, PollOutcome.REFUSED, PollOutcome.ABANDONED])
def test_g1_a_wake_survives_a_poll_that_did_not_succeed(outcome):
    schedule = idle(fallback_interval=None)
    schedule.wake(1.0)
    poll(schedule, 1.0, outcome=outcome)
    assert schedule.next_poll(1000.0).at <= 1000.0
    poll(schedule, 1000.0, found=1)
    assert schedule.next_poll(1000.0).at == math.inf


@pytest.mark.parametrize("hold", ["paused", "standby"])
def test_g1_a_wake_during_pause_or_standby_is_handled_afterwards(hold):
    schedule = idle()
    setattr(schedule, hold, True)
    schedule.wake(1.0)
    assert schedule.next_poll(2.0).at == math.inf
    setattr(schedule, hold, False)
    assert schedule.next_poll(3.0) == Decision(1.0, Cause.WAKE)


def test_g1_a_known_hint_drops_its_own_wake_only_when_no_poll_runs_or_is_due():
    schedule = idle()
    assert schedule.wake(1.0, push=True, known=True) is WakeResult.DROPPED
    assert schedule.wake(1.0, push=True) is WakeResult.PENDING
    assert schedule.wake(1.0, push=True, known=True) is WakeResult.COALESCED
    schedule.poll_started(1.0, Cause.WAKE)
    assert schedule.wake(1.1, push=True, known=True) is WakeResult.PENDING


def test_a_hint_never_postpones_a_wake():
    schedule = idle()
    schedule.wake(1.0)
    schedule.wake(9.0, push=True, known=True)
    assert schedule.next_poll(9.0).at == 1.0


def test_wake_delay_is_counted_from_the_first_wake():
    schedule = idle(wake_delay=2.0)
    for at in (1.0, 2.0, 2.9):
        schedule.wake(at)
    assert schedule.next_poll(2.9) == Decision(3.0, Cause.WAKE)


# G2


def test_g2_no_poll_starts_while_a_poll_runs():
    schedule = make()
    schedule.poll_started(0.0, Cause.START)
    schedule.wake(0.0)
    assert schedule.mode(0.0) is Mode.POLLING
    assert schedule.next_poll(100.0).at == math.inf
    with pytest.raises(AssertionError, match="G2"):
        schedule.poll_started(1.0, Cause.MANUAL)


# G3


def test_g3_a_flood_of_wakes_is_limited_to_burst_and_rate():
    schedule = make(rate=2.0, burst=3)
    starts, now = [], 0.0
    while now < 10.0:
        schedule.wake(now, push=True)
        now = max(now, schedule.next_poll(now).at)
        poll(schedule, now, found=1)
        starts.append(now)
    assert starts[:3] == [0.0, 0.0, 0.0]
    later = [b - a for a, b in itertools.pairwise(starts[2:])]
    assert later == pytest.approx([0.5] * len(later))


def test_without_a_rate_polls_are_not_limited():
    schedule = make(rate=None)
    for _ in range(1000):
        poll(schedule, 0.0, cause=Cause.MANUAL, found=1)
    assert schedule.earliest <= 0.0


def test_g3_not_before_of_the_server_delays_push_timer_and_manual_polls():
    schedule = idle(fallback_interval=5.0)
    schedule.not_before(1.0, 100.0, jitter=0.0)
    schedule.wake(2.0)
    assert schedule.next_poll(2.0) == Decision(101.0, Cause.WAKE)
    assert schedule.earliest == schedule.server_not_before == 101.0


def test_g3_of_two_not_befores_the_later_one_counts():
    schedule = idle()
    schedule.not_before(0.0, 100.0, jitter=0.0)
    schedule.not_before(1.0, 5.0, jitter=0.0)
    assert schedule.server_not_before == 100.0


@pytest.mark.parametrize(("asked", "granted"), [(-5.0, 0.0), (0.0, 0.0), (1e12, MAX_NOT_BEFORE)])
def test_g3_not_before_of_the_server_is_bounded(asked, granted):
    schedule = idle()
    schedule.not_before(0.0, asked, jitter=0.0)
    assert schedule.server_not_before == granted


def test_not_before_is_jittered_upwards():
    schedule = idle()
    schedule.not_before(0.0, 100.0, jitter=0.5)
    assert schedule.server_not_before == pytest.approx(105.0)


def test_no_fetch_is_held_while_a_poll_after_a_push_is_to_be_repeated():
    """A server answers a held request when it has news, and the push came before that."""
    schedule = idle()
    schedule.wake(10.0, push=True)
    poll(schedule, 10.0)
    assert schedule.next_poll(10.0, can_wait=True) == Decision(10.25, Cause.REPOLL)


def test_a_failure_after_long_good_answers_begins_a_new_streak():
    schedule = idle(rate=None)
    for at in (100.0, 110.0, 120.0, 130.0):
        poll(schedule, at, outcome=PollOutcome.FAILED)
    assert schedule.next_poll(130.0).at == 134.0
    schedule.poll_started(140.0, Cause.RETRY)
    schedule.poll_ended(180.0, PollOutcome.FAILED, answered_at=145.0)
    assert schedule.next_poll(180.0).at == 180.5, "it answered for 5 s, and the last delay was 4 s"


def test_the_time_of_a_fetch_that_fails_is_not_a_time_in_which_the_feed_answered():
    schedule = idle(rate=None)
    for at in (100.0, 200.0, 300.0, 400.0):
        schedule.poll_started(at, Cause.RETRY)
        schedule.poll_ended(at + 50.0, PollOutcome.FAILED, answered_at=at)
    assert schedule.next_poll(450.0).at == 454.0


def test_a_continuation_takes_no_token_but_waits_for_the_server():
    schedule = make(rate=0.01, burst=1)
    for _ in range(5):
        poll(schedule, 0.0, outcome=PollOutcome.MORE, found=9, free=True)
        assert schedule.next_poll(0.0) == Decision(-math.inf, Cause.CONTINUATION)
    schedule.not_before(0.0, 7.0, jitter=0.0)
    assert schedule.next_poll(0.0) == Decision(7.0, Cause.CONTINUATION)


def test_a_failed_continuation_is_retried_only_when_a_token_is_available():
    schedule = idle(rate=0.5, burst=1, fallback_interval=None)
    poll(schedule, 10.0, cause=Cause.MANUAL, outcome=PollOutcome.MORE, found=9, free=True)
    poll(schedule, 10.0, outcome=PollOutcome.FAILED)
    assert schedule.next_poll(10.0) == Decision(12.0, Cause.RETRY)
    poll(schedule, 12.0, found=9)
    assert schedule.next_poll(12.0).at == math.inf


# G4


def test_g4_the_timer_is_jittered_downwards():
    for jitter, due in ((0.0, 60.0), (0.5, 57.0), (1.0, 54.0)):
        schedule = make()
        poll(schedule, 0.0, jitter=jitter)
        assert schedule.next_poll(0.0) == Decision(pytest.approx(due), Cause.TIMER)


def test_g4_the_timer_stays_on_while_a_channel_is_up():
    schedule = idle()
    schedule.set_channel("push", up=True)
    assert schedule.next_poll(0.0) == Decision(60.0, Cause.TIMER)


def test_g4_the_interval_is_shorter_while_a_channel_is_down():
    schedule = idle()
    schedule.set_channel("a", up=True)
    schedule.set_channel("b", up=False)
    assert schedule.degraded
    assert schedule.next_poll(0.0).at == 10.0
    schedule.set_channel("b", up=True)
    assert schedule.next_poll(0.0).at == 60.0


@pytest.mark.parametrize(("fallback", "degraded", "interval"), [(5.0, 10.0, 5.0), (60.0, None, 60.0)])
def test_the_degraded_interval_never_lengthens_the_fallback_interval_and_can_be_off(fallback, degraded, interval):
    schedule = idle(fallback_interval=fallback, degraded_interval=degraded)
    schedule.set_channel("a", up=False)
    assert schedule.interval == interval


def test_without_a_fallback_interval_only_wakes_poll():
    schedule = idle(fallback_interval=None)
    assert schedule.next_poll(0.0).at == math.inf
    schedule.wake(5.0)
    assert schedule.next_poll(5.0) == Decision(5.0, Cause.WAKE)


# Failure


def failures(schedule, count, *, outcome=PollOutcome.FAILED, jitter=1.0):
    """Return the delays after this many failures in a row, each retried as soon as allowed."""
    now, delays = 0.0, []
    for _ in range(count):
        poll(schedule, now, outcome=outcome, jitter=jitter)
        delays.append(schedule.next_poll(now).at - now)
        now = schedule.next_poll(now).at
    return delays


def test_backoff_doubles_up_to_its_cap():
    assert failures(make(), 9) == pytest.approx([1, 2, 4, 8, 16, 32, MAX_BACKOFF, MAX_BACKOFF, MAX_BACKOFF])


def test_backoff_of_a_long_outage_does_not_overflow():
    assert failures(make(), 2000)[-1] == pytest.approx(MAX_BACKOFF)


def test_backoff_is_jittered_down_to_a_half():
    assert failures(make(), 2, jitter=0.0) == pytest.approx([FIRST_BACKOFF / 2, FIRST_BACKOFF])


def test_a_refused_poll_is_retried_slowly_and_without_end():
    assert failures(make(), 3, outcome=PollOutcome.REFUSED) == pytest.approx([SLOW_BACKOFF] * 3)


def test_wakes_and_manual_polls_do_not_bypass_the_backoff():
    schedule = idle()
    poll(schedule, 10.0, outcome=PollOutcome.FAILED, jitter=1.0)
    for at in (10.1, 10.2, 10.3):
        schedule.wake(at, push=True)
    assert schedule.next_poll(10.3).at == schedule.earliest == 11.0


def test_one_success_does_not_end_a_streak_of_failures():
    schedule = make()
    delays, now = [], 0.0
    for _ in range(5):
        poll(schedule, now, outcome=PollOutcome.FAILED, jitter=1.0)
        delays.append(schedule.next_poll(now).at - now)
        now = schedule.next_poll(now).at
        poll(schedule, now)
    assert delays == pytest.approx([1, 2, 4, 8, 16])


def test_the_backoff_resets_after_success_for_as_long_as_the_last_delay():
    schedule = make()
    failures(schedule, 3)
    poll(schedule, 10.0)
    poll(schedule, 13.9)
    poll(schedule, 14.0)
    poll(schedule, 20.0, outcome=PollOutcome.FAILED, jitter=1.0)
    assert schedule.next_poll(20.0).at == 21.0


# What a push promised


def pushed(schedule, now, *, found=0):
    schedule.wake(now, push=True)
    poll(schedule, now, cause=Cause.WAKE, found=found)


def test_an_empty_poll_after_a_push_is_repeated_three_times_at_most():
    schedule = idle()
    pushed(schedule, 100.0)
    now, delays = 100.0, []
    while (decision := schedule.next_poll(now)).cause is Cause.REPOLL:
        delays.append(decision.at - now)
        now = decision.at
        poll(schedule, now)
    assert delays == pytest.approx(list(REPOLL_DELAYS))
    pushed(schedule, 110.0)
    assert schedule.next_poll(110.0).cause is Cause.TIMER, "a forged push starts no new streak"


@pytest.mark.parametrize("end", ["messages", "timer"])
def test_messages_or_the_timer_end_a_streak_of_repolls(end):
    schedule = idle()
    for at in (100.0, 101.0, 102.0, 103.0):
        pushed(schedule, at)
    assert schedule.next_poll(103.0).cause is Cause.TIMER
    poll(schedule, 200.0, cause=Cause.MANUAL if end == "messages" else Cause.TIMER, found=end == "messages")
    pushed(schedule, 300.0)
    assert schedule.next_poll(300.0).cause is Cause.REPOLL


def test_an_empty_timer_poll_that_comes_before_the_poll_for_a_push_is_repeated():
    schedule = idle(wake_delay=2.0)
    schedule.wake(100.0, push=True)
    poll(schedule, 101.0, cause=Cause.TIMER)
    assert schedule.next_poll(101.0).cause is Cause.REPOLL


def test_a_poll_after_a_push_that_finds_something_is_not_repeated():
    schedule = idle()
    pushed(schedule, 100.0, found=1)
    assert schedule.next_poll(100.0).cause is Cause.TIMER


def test_an_empty_poll_after_a_plain_wake_is_not_repeated():
    schedule = idle()
    schedule.wake(100.0)
    poll(schedule, 100.0)
    assert schedule.next_poll(100.0).cause is Cause.TIMER


def test_an_empty_poll_after_a_push_and_a_failed_poll_is_repeated():
    schedule = idle()
    schedule.wake(100.0, push=True)
    poll(schedule, 100.0, outcome=PollOutcome.FAILED)
    poll(schedule, 102.0)
    assert schedule.next_poll(102.0).cause is Cause.REPOLL


# Evidence of a lossy channel


def lossy(schedule, *, times=(100.0, 200.0)):
    for at in times:
        poll(schedule, at, cause=Cause.TIMER, found=1)


def test_timer_polls_that_find_messages_while_a_channel_is_up_shorten_the_interval():
    schedule = idle()
    schedule.set_channel("push", up=True)
    lossy(schedule)
    assert schedule.losing_pushes
    assert schedule.missed_pushes == 2
    assert schedule.next_poll(200.0) == Decision(210.0, Cause.TIMER)


def test_a_push_followed_by_messages_ends_the_lossy_state():
    schedule = idle()
    schedule.set_channel("push", up=True)
    lossy(schedule)
    pushed(schedule, 300.0, found=1)
    assert not schedule.losing_pushes
    assert schedule.interval == 60.0


def test_a_timer_poll_with_a_wake_before_or_during_it_counts_no_missed_push():
    schedule = idle()
    schedule.set_channel("push", up=True)
    schedule.wake(100.0, push=True)
    poll(schedule, 100.0, cause=Cause.TIMER, found=1)
    schedule.wake(150.0)
    poll(schedule, 150.0, cause=Cause.TIMER, found=1)
    schedule.poll_started(200.0, Cause.TIMER)
    schedule.wake(200.1, push=True)
    schedule.poll_ended(201.0, PollOutcome.CAUGHT_UP, found=1)
    assert schedule.missed_pushes == 0


def test_no_missed_push_is_counted_while_no_channel_is_up():
    schedule = idle()
    lossy(schedule)
    schedule.set_channel("push", up=False)
    lossy(schedule, times=(300.0, 400.0))
    assert schedule.missed_pushes == 0


# What the feed asks for


def test_a_feed_is_polled_within_the_time_that_it_asks_for_and_then_as_before():
    schedule = idle()
    poll(schedule, 100.0, poll_within=2.0)
    assert schedule.next_poll(100.0) == Decision(102.0, Cause.TIMER)
    poll(schedule, 102.0)
    assert schedule.next_poll(102.0) == Decision(162.0, Cause.TIMER)


def test_a_feed_that_asks_for_a_poll_is_polled_even_without_a_fallback_interval():
    schedule = idle(fallback_interval=None, degraded_interval=None)
    poll(schedule, 100.0, cause=Cause.MANUAL, poll_within=2.0)
    assert schedule.next_poll(100.0) == Decision(102.0, Cause.TIMER)


@pytest.mark.parametrize("poll_within", [61.0, 1e9, math.inf, 10**400])
def test_a_feed_cannot_ask_for_fewer_polls_by_poll_within(poll_within):
    schedule = idle()
    poll(schedule, 100.0, poll_within=poll_within)
    assert schedule.next_poll(100.0) == Decision(160.0, Cause.TIMER)


def test_a_feed_that_asks_for_polls_all_the_time_is_polled_at_the_rate():
    schedule, now = make(rate=5.0, burst=10), 0.0
    for _ in range(110):
        now = max(now, schedule.next_poll(now).at)
        poll(schedule, now, poll_within=0.0)
    assert now == pytest.approx(100 / 5.0)


def test_a_pause_for_the_server_and_a_backoff_come_before_poll_within():
    schedule = idle()
    schedule.not_before(100.0, 30.0, jitter=0.0)
    poll(schedule, 100.0, poll_within=1.0)
    assert schedule.next_poll(100.0).at == 130.0
    poll(schedule, 130.0, outcome=PollOutcome.REFUSED)
    assert schedule.next_poll(130.0).at == pytest.approx(130.0 + SLOW_BACKOFF / 2)


def test_messages_hidden_by_the_feed_are_not_evidence_of_a_lossy_channel():
    schedule = idle()
    schedule.set_channel("push", up=True)
    for at in (100.0, 102.0, 104.0):
        poll(schedule, at, cause=Cause.MANUAL, poll_within=2.0)
        poll(schedule, at + 1, cause=Cause.TIMER, found=1)
    assert schedule.missed_pushes == 0
    assert not schedule.losing_pushes


def test_a_feed_that_asks_for_no_more_polls_than_the_timer_does_not_hide_a_lossy_channel():
    schedule = idle()
    schedule.set_channel("push", up=True)
    for at in (100.0, 160.0, 220.0):
        poll(schedule, at, cause=Cause.TIMER, found=1, poll_within=60.0)
    assert schedule.losing_pushes
    assert schedule.interval == 10.0


def test_a_poll_that_the_feed_asked_for_does_not_end_the_repetitions_after_a_push():
    """The data of the push may come later than the hidden messages."""
    schedule = idle()
    schedule.set_channel("push", up=True)
    schedule.wake(10.0, push=True)
    poll(schedule, 10.0, poll_within=0.1)
    assert schedule.next_poll(10.0) == Decision(10.1, Cause.TIMER)
    poll(schedule, 10.1)
    assert schedule.next_poll(10.1) == Decision(10.25, Cause.REPOLL)
    for at in (10.25, 11.25):
        poll(schedule, at, poll_within=2.0)
    poll(schedule, 13.25, cause=Cause.TIMER)
    assert schedule.next_poll(13.25) == Decision(15.25, Cause.REPOLL)
    poll(schedule, 15.25)
    assert schedule.next_poll(15.25) == Decision(75.25, Cause.TIMER)


# Long polling


def test_an_idle_consumer_starts_a_waiting_fetch_only_while_no_channel_is_up():
    schedule = idle()
    assert schedule.next_poll(1.0, can_wait=True) == Decision(1.0, Cause.WAIT)
    schedule.set_channel("push", up=True)
    assert schedule.next_poll(1.0, can_wait=True).cause is Cause.TIMER


def test_a_due_wake_takes_precedence_over_a_waiting_fetch():
    schedule = idle()
    schedule.wake(1.0)
    assert schedule.next_poll(1.0, can_wait=True) == Decision(1.0, Cause.WAKE)


def test_waiting_fetches_take_tokens_and_obey_the_server():
    schedule = idle(rate=1.0, burst=1)
    assert schedule.next_poll(0.5, can_wait=True) == Decision(1.0, Cause.WAIT)
    schedule.not_before(0.5, 30.0, jitter=0.0)
    assert schedule.next_poll(0.5, can_wait=True) == Decision(30.5, Cause.WAIT)
    schedule.not_before(0.5, 100.0, jitter=0.0)
    assert schedule.next_poll(0.5, can_wait=True) == Decision(100.5, Cause.TIMER)


def test_a_server_that_answers_waiting_fetches_early_is_polled_by_the_timer():
    schedule = idle()
    for _ in range(EARLY_ANSWERS):
        assert schedule.next_poll(1.0, can_wait=True).cause is Cause.WAIT
        poll(schedule, 1.0, cause=Cause.WAIT, wait=30.0)
    assert schedule.next_poll(1.0, can_wait=True) == Decision(61.0, Cause.TIMER)
    poll(schedule, 61.0)
    assert schedule.next_poll(61.0, can_wait=True).cause is Cause.WAIT


@pytest.mark.parametrize("took", [0.0, 29.0])
def test_a_walk_that_takes_several_polls_before_the_waiting_fetch_counts_as_an_early_answer(took):
    """An overlap with many empty pages makes such a walk. Otherwise each walk would start the next one at once."""
    schedule = idle()
    for _ in range(EARLY_ANSWERS):
        assert schedule.next_poll(1.0 + took, can_wait=True).cause is Cause.WAIT
        poll(schedule, 1.0, end=1.0 + took, outcome=PollOutcome.MORE, cause=Cause.WAIT, wait=30.0)
        assert schedule.next_poll(1.0 + took, can_wait=True).cause is Cause.CONTINUATION
        poll(schedule, 1.0 + took, cause=Cause.CONTINUATION)
    assert schedule.next_poll(1.0 + took, can_wait=True) == Decision(61.0 + took, Cause.TIMER)


def test_waiting_fetches_continue_while_the_server_holds_its_answers():
    schedule = idle()
    for at in range(0, 300, 30):
        poll(schedule, float(at), end=at + 30.0, cause=Cause.WAIT, wait=30.0)
    assert schedule.next_poll(300.0, can_wait=True).cause is Cause.WAIT


# Another clock, another run


def test_a_schedule_keeps_its_delays_when_the_clock_is_shifted():
    schedule = idle(wake_delay=5.0)
    schedule.wake(10.0)
    schedule.shift(1000.0)
    assert schedule.next_poll(1010.0) == Decision(1015.0, Cause.WAKE)
    poll(schedule, 1015.0, found=1)
    assert schedule.next_poll(1015.0) == Decision(1075.0, Cause.TIMER)


def test_a_new_run_polls_as_soon_as_not_before_allows():
    schedule = idle()
    schedule.not_before(0.0, 30.0, jitter=0.0)
    schedule.begin()
    assert schedule.next_poll(1.0) == Decision(30.0, Cause.START)


def test_a_continuation_after_an_abandoned_poll_waits_for_a_token():
    schedule = make(rate=0.1, burst=1)
    poll(schedule, 0.0, outcome=PollOutcome.MORE, found=9, free=True)
    poll(schedule, 1.0, outcome=PollOutcome.ABANDONED)
    assert schedule.next_poll(1.0) == Decision(10.0, Cause.CONTINUATION)


# In a word


def test_the_mode_names_the_state():
    schedule = make()
    assert schedule.mode(0.0) is Mode.IDLE
    schedule.wake(0.0)
    assert schedule.mode(0.0) is Mode.PENDING
    schedule.poll_started(0.0, Cause.WAKE)
    assert schedule.mode(0.0) is Mode.POLLING
    schedule.poll_ended(0.0, PollOutcome.CAUGHT_UP)
    schedule.poll_started(0.0, Cause.WAIT, wait=10.0)
    assert schedule.mode(0.0) is Mode.WAITING
    schedule.poll_ended(0.0, PollOutcome.FAILED)
    assert schedule.mode(0.0) is Mode.BACKOFF
    schedule.not_before(0.0, 10.0, jitter=0.0)
    assert schedule.mode(0.0) is Mode.THROTTLED
    schedule.paused = True
    assert schedule.mode(0.0) is Mode.PAUSED
    schedule.standby = True
    assert schedule.mode(0.0) is Mode.STANDBY


# A message that has to wait


def waiting(**changes):
    """Create a schedule whose poll stopped at time 0 at a message that may be retried at 100."""
    schedule = make(**changes)
    schedule.poll_started(0.0, Cause.START)
    schedule.poll_ended(0.0, PollOutcome.MORE, found=1, resume_at=100.0)
    return schedule


def test_a_poll_that_stopped_at_a_message_continues_at_its_retry_time():
    schedule = waiting()
    assert schedule.next_poll(1.0) == Decision(100.0, Cause.CONTINUATION)
    assert (schedule.earliest, schedule.mode(1.0), schedule.mode(100.0)) == (100.0, Mode.BACKOFF, Mode.IDLE)


def test_pushes_and_the_timer_start_no_poll_while_a_message_waits_for_its_retry():
    schedule = waiting(fallback_interval=10.0)
    schedule.wake(2.0, push=True)
    assert schedule.next_poll(50.0, can_wait=True) == Decision(100.0, Cause.CONTINUATION)
    assert schedule.mode(50.0) is Mode.BACKOFF
    assert schedule.owes, "the wake is paid by the poll that goes on"
    schedule.poll_started(100.0, Cause.CONTINUATION)
    assert not schedule.owes


def test_g3_a_poll_that_comes_back_to_a_waiting_message_takes_a_token():
    schedule = waiting(rate=0.001, burst=1)
    assert schedule.next_poll(100.0) == Decision(pytest.approx(1_000), Cause.CONTINUATION)


def test_a_poll_at_a_standstill_satisfies_the_wakes_and_the_timer_polls_again():
    schedule = idle()
    schedule.wake(1.0)
    poll(schedule, 1.0, outcome=PollOutcome.STANDSTILL)
    assert not schedule.owes
    assert schedule.next_poll(2.0) == Decision(61.0, Cause.TIMER)


def test_a_longer_not_before_delays_the_retry_of_a_message():
    schedule = waiting()
    schedule.not_before(0.0, 500.0, jitter=0.0)
    assert schedule.next_poll(1.0) == Decision(500.0, Cause.CONTINUATION)
    assert schedule.mode(1.0) is Mode.THROTTLED


def test_a_failed_poll_at_a_waiting_message_has_a_backoff():
    schedule = waiting()
    poll(schedule, 100.0, outcome=PollOutcome.FAILED)
    assert schedule.next_poll(100.0) == Decision(100.0 + FIRST_BACKOFF / 2, Cause.RETRY)


def test_the_timer_starts_polls_again_after_a_waiting_message():
    schedule = waiting()
    poll(schedule, 100.0, found=1)
    assert schedule.next_poll(101.0) == Decision(160.0, Cause.TIMER)
    assert schedule.earliest < 100.0


def test_several_messages_can_wait_for_a_retry_one_after_the_other():
    schedule = waiting()
    schedule.poll_started(100.0, Cause.CONTINUATION)
    schedule.poll_ended(100.0, PollOutcome.MORE, resume_at=130.0)
    assert schedule.next_poll(101.0).at == 130.0
    schedule.poll_started(130.0, Cause.CONTINUATION)
    schedule.poll_ended(130.0, PollOutcome.MORE)
    assert schedule.next_poll(130.0).at <= 130.0, "another reason, and no wait"


def test_a_new_run_waits_for_the_retry_of_a_message():
    schedule = waiting()
    schedule.begin()
    assert schedule.next_poll(1.0) == Decision(100.0, Cause.START)


def test_the_retry_delay_of_a_message_is_kept_when_the_clock_is_shifted():
    schedule = waiting()
    schedule.shift(1_000.0)
    assert schedule.next_poll(1_001.0).at == 1_100.0


def test_resume_now_cancels_the_wait_for_a_message():
    schedule = waiting()
    schedule.resume_now()
    schedule.wake(1.0)
    assert schedule.next_poll(1.0).at <= 1.0
    assert schedule.mode(1.0) is Mode.PENDING
