"""G2, single flight: one poll of a consumer at a time.

Concurrent calls of `poll_now()` share one poll, which never started before the call.
"""

import itertools

import anyio
import pytest

from push_to_poll_client.testing._fake_feed import FakeFeed
from tests.support.consumers import Log, times
from tests.support.replicas import NAME, owner_and_standby, owns, stands_by
from tests.support.shared_memory import SharedMemory

pytestmark = pytest.mark.anyio


async def test_g2_two_polls_never_run_at_the_same_time(running):
    feed = FakeFeed(latency=1.0)
    consumer = running(Log(feed, rate=None))
    async with anyio.create_task_group() as tasks:
        for delay in range(40):
            tasks.start_soon(later, delay / 4, consumer.poll_now)
            tasks.start_soon(later, delay / 8, consumer.wake)
    began = times(feed)
    assert all(b - a >= feed.latency for a, b in itertools.pairwise(began))


async def later(delay, function):
    await anyio.sleep(delay)
    result = function()
    if result is not None:
        await result


async def test_g2_concurrent_poll_now_calls_share_a_poll_that_started_after_them(running):
    feed = FakeFeed(latency=1.0)
    consumer = running(Log(feed))
    await feed.asked(1)
    await anyio.sleep(0.5)
    feed.publish(3)  # too late for the answer in flight
    results = []

    async def ask():
        results.append(await consumer.poll_now())

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(ask)
    assert [result.messages for result in results] == [3] * 5
    assert len(feed.requests) == 2


async def test_g2_a_poll_with_a_cancelled_caller_does_not_answer_other_callers():
    feed = FakeFeed(latency=1.0)
    async with Log(feed) as consumer, anyio.create_task_group() as tasks:
        leader, results = anyio.CancelScope(), []

        async def lead():
            with leader:
                await consumer.poll_now()

        async def join():
            results.append(await consumer.poll_now())

        tasks.start_soon(consumer.poll_now)
        await feed.asked(1)
        tasks.start_soon(lead)
        await anyio.sleep(0.1)
        tasks.start_soon(join)
        await anyio.sleep(0.1)
        feed.publish(3)  # too late for the first poll
        await feed.asked(2)
        leader.cancel()
    assert [(result.messages, result.caught_up) for result in results] == [(3, True)]
    assert len(feed.requests) == 3


class OnePoll(FakeFeed):
    """Fail if two fetches run at the same time."""

    fetches = 0

    async def fetch(self, request):
        self.fetches += 1
        assert self.fetches == 1
        try:
            return await super().fetch(request)
        finally:
            self.fetches -= 1


async def test_g2_polls_of_two_replicas_do_not_overlap_when_one_hands_over_to_the_other(running):
    feed, shared = OnePoll(latency=1.0), SharedMemory()
    replicas = await owner_and_standby(feed, shared, running, takes=0.3)
    for number in range(20):
        owner, standby = replicas if replicas[0].status().is_owner else replicas[::-1]
        feed.publish(2)
        owner.wake()
        await anyio.sleep(number / 7)  # in the fetch, in the handler, or after both
        shared.want(NAME)
        await owns(standby)
        await stands_by(owner)
    with anyio.fail_after(1_000):
        while len(replicas[0].processed + replicas[1].processed) < 40:  # noqa: ASYNC110  # either may process it
            await anyio.sleep(1)
    assert sorted(map(int, replicas[0].processed + replicas[1].processed)) == [*range(1, 41)]
