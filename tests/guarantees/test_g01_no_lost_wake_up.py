"""G1, no lost wake-up: after a wake, a poll that started later succeeds.

A wake stays pending until a successful poll that started after it, also if it arrives during a poll, while paused
or while polls fail. Only a hint drops a wake: its own, and only if it equals the saved cursor, no poll runs and
nothing is pending.
"""

import anyio
import pytest

from push_to_poll_client import (
    FeedError,
    Mode,
    Push,
)
from push_to_poll_client.testing._fake_feed import FakeFeed
from push_to_poll_client.testing._manual_listener import ManualListener
from tests.support.consumers import Log, times
from tests.support.replicas import owner_and_standby
from tests.support.shared_memory import SharedMemory

pytestmark = pytest.mark.anyio


async def test_g1_a_wake_during_a_poll_is_answered_by_a_poll_that_starts_after_it(running):
    feed = FakeFeed(latency=1.0)
    listener = ManualListener()
    consumer = running(Log(feed, listeners=[listener]))
    await listener.connected()
    await anyio.sleep(10)
    count = len(feed.requests)
    feed.publish("early")  # so that the poll finds something, and no repoll hides a lost wake
    listener.push()
    await feed.asked(count + 1)
    await anyio.sleep(0.5)
    feed.publish("late")  # the answer in flight is older
    listener.push()
    pushed = anyio.current_time()
    await consumer.until(2)
    assert anyio.current_time() - pushed <= 2 * feed.latency


async def test_g1_a_wake_is_kept_while_polls_fail(running):
    feed = FakeFeed()
    consumer = running(Log(feed, fallback_interval=None))
    await feed.asked(1)
    await anyio.sleep(100)
    feed.fail(FeedError("down"), times=4)
    feed.publish("one")
    consumer.wake()
    await consumer.until(1)
    assert anyio.current_time() - times(feed)[1] < 20


async def test_g1_a_wake_while_paused_is_kept(running):
    feed = FakeFeed()
    consumer = running(Log(feed))
    await feed.asked(1)
    consumer.pause()
    feed.publish("one")
    consumer.wake()
    await anyio.sleep(1000)
    assert len(feed.requests) == 1
    assert consumer.status().mode is Mode.PAUSED
    consumer.resume()
    await consumer.until(1)
    assert len(feed.requests) == 2


async def test_g1_only_a_hint_that_is_the_saved_cursor_drops_its_wake(running):
    feed = FakeFeed()
    feed.publish(1)
    consumer = running(Log(feed))
    await consumer.until(1)
    await anyio.sleep(1)
    saved = consumer.status().cursor
    polls = len(feed.requests)
    consumer.wake(Push(cursor=saved))
    await anyio.sleep(1)
    assert len(feed.requests) == polls
    consumer.wake(Push(cursor=saved + "0"))
    await feed.asked(polls + 1)
    assert feed.requests[-1].request.hint == Push(cursor=saved + "0")
    assert consumer.status().counters.dropped == 1


@pytest.mark.parametrize("how", ["wake", "poll_now"])
async def test_g1_the_server_holds_no_fetch_after_a_wake_during_the_overlap_before_it(running, how):
    feed = FakeFeed(max_wait=50, latency=0.5, page_size=5, cursors="page")
    feed.publish(20)
    consumer = running(Log(feed, overlap=1000))
    await consumer.until(20)
    await anyio.sleep(200)
    while feed.requests[-1].request.wait:  # until the walk reads its first page again
        await feed.asked(len(feed.requests) + 1)
    await anyio.sleep(0.1)
    feed.publish("new", lag=4)  # not visible when the running walk ends
    called = anyio.current_time()
    if how == "poll_now":
        await consumer.poll_now()
    else:
        consumer.wake()
        await anyio.sleep(2)
        count = len(feed.requests)
        assert feed.requests[-1].request.cursor is None or feed.requests[-1].request.wait == 0
        await feed.asked(count + 1)
    assert anyio.current_time() - called < 10


async def test_g1_a_push_that_beats_its_data_is_polled_again_if_the_server_does_not_hold_fetches(running):
    feed = FakeFeed(max_wait=60, answers_early=True)
    consumer = running(Log(feed))
    await anyio.sleep(1000)
    feed.publish("late", lag=5)
    pushed = anyio.current_time()
    consumer.wake(Push())
    await consumer.until(1)
    assert anyio.current_time() - pushed < 6


async def test_g1_a_push_that_beats_its_data_is_polled_again_also_when_a_timer_poll_comes_first(running):
    feed = FakeFeed()
    consumer = running(Log(feed, fallback_interval=20, wake_delay=5))
    await anyio.sleep(17.5)
    feed.publish("late", lag=5)
    pushed = anyio.current_time()
    consumer.wake(Push())
    await consumer.until(1)
    assert anyio.current_time() - pushed < 10


async def test_g1_a_poll_now_does_not_end_the_repetitions_after_a_push_that_beat_its_data(running):
    feed = FakeFeed()
    consumer = running(Log(feed))
    await anyio.sleep(100)
    feed.publish("late", lag=4)
    pushed = anyio.current_time()
    consumer.wake(Push())
    await anyio.sleep(3)
    assert (await consumer.poll_now()).messages == 0
    await consumer.until(1)
    assert anyio.current_time() - pushed < 6


async def test_g1_a_wake_at_any_replica_is_answered_by_a_poll_of_the_owner_that_starts_after_it(running):
    feed = FakeFeed(latency=1.0)
    owner, standby = await owner_and_standby(feed, SharedMemory(), running, fallback_interval=3_600)
    await anyio.sleep(10)
    count = len(feed.requests)
    feed.publish("early")
    standby.wake()
    await feed.asked(count + 1)
    await anyio.sleep(0.5)
    feed.publish("late")  # the answer in flight is older
    standby.wake()
    woken = anyio.current_time()
    await owner.until(2)
    assert anyio.current_time() - woken <= 2 * feed.latency


async def test_g1_wakes_that_were_forwarded_while_the_owner_was_cut_off_are_made_up_for(running):
    feed = FakeFeed()
    owner, standby = await owner_and_standby(feed, SharedMemory(), running, fallback_interval=3_600)
    await anyio.sleep(10)
    owner.store.unreachable = True
    feed.publish(1)
    standby.wake()
    await anyio.sleep(1)
    assert owner.processed == []
    owner.store.unreachable = False  # before the end of its lease
    with anyio.fail_after(60):
        await owner.until(1)
