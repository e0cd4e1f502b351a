"""G3, rate: at most burst + rate * T polls start in any T seconds, whatever is pushed.

Requests of the server to wait (`Retry-After` and similar) come before pushes, timers and `poll_now()`. Further
pages of a poll, and its continuation after `max_poll_time`, take no token, but they wait for the server too.
"""

import itertools

import anyio
import httpx
import pytest

from push_to_poll_client import (
    CursorExpired,
    FeedError,
    HTTPFeed,
    Resync,
    RetryMessage,
)
from push_to_poll_client.testing._fake_feed import FakeFeed
from push_to_poll_client.testing._manual_listener import ManualListener
from tests.support.consumers import Log, times

pytestmark = pytest.mark.anyio


async def test_g3_polls_stay_within_the_rate_limit_during_a_flood_of_pushes(running):
    feed = FakeFeed()
    listener = ManualListener()
    running(Log(feed, listeners=[listener], rate=2.0, burst=3))
    await listener.connected()
    for _ in range(1000):
        listener.push()
        await anyio.sleep(0.01)
    began = times(feed)
    for first, start in enumerate(began):
        for last, end in enumerate(began[first:], first):
            assert last - first + 1 <= 3 + 2.0 * (end - start) + 1e-6


async def test_g3_retry_after_delays_polls_of_pushes_timer_and_poll_now(running):
    feed = FakeFeed()
    listener = ManualListener()
    consumer = running(Log(feed, listeners=[listener], fallback_interval=5, degraded_interval=5))
    await listener.connected()
    await anyio.sleep(1)
    feed.fail(FeedError("503", retry_after=600))
    count = len(feed.requests)
    listener.push()
    await feed.asked(count + 1)
    asked = anyio.current_time()
    for _ in range(1000):
        listener.push()
        await anyio.sleep(0.1)
    await consumer.poll_now(timeout=None)
    assert 600 <= times(feed)[count + 1] - asked <= 660


@pytest.mark.parametrize("retry_after", [None, "20"])
async def test_g3_wakes_do_not_add_polls_while_the_server_answers_503(retry_after, running):
    began, asked = anyio.current_time(), []

    def answer(request):
        asked.append(anyio.current_time() - began)
        if asked[-1] < 60:
            return httpx.Response(503, headers={"Retry-After": retry_after} if retry_after else {})
        return httpx.Response(200, json=[])

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        consumer = running(Log(HTTPFeed("https://shop.example/feed", client=client)))
        for _ in range(1000):
            consumer.wake()
            await anyio.sleep(0.06)
        await consumer.poll_now(timeout=None)
    failed = [at for at in asked if at < 60]
    if retry_after is None:
        assert 5 <= len(failed) <= 8, "after 1, 2, 4, 8, 16, 32 seconds, each at least half of it"
    else:
        assert len(failed) == 3
        assert all(after - before >= 20 for before, after in itertools.pairwise(failed))


async def test_g3_retry_after_of_a_page_delays_the_next_page(running):
    feed = FakeFeed(page_size=1, retry_after=30)
    feed.publish(3)
    consumer = running(Log(feed))
    await consumer.until(3)
    began = times(feed)
    assert [b - a >= 30 for a, b in itertools.pairwise(began)] == [True, True]


async def test_g3_further_pages_and_continuations_take_no_token(running):
    feed = FakeFeed(page_size=1)
    feed.publish(100)
    consumer = running(
        Log(feed, takes=1.0, max_poll_time=10, rate=0.02, burst=1, fallback_interval=50, degraded_interval=None)
    )
    began = anyio.current_time()
    await consumer.until(100)
    assert anyio.current_time() - began == pytest.approx(100)
    assert consumer.status().counters.polls >= 9


async def test_g3_polls_that_come_back_to_a_waiting_message_take_a_token(running):
    class Waits(Log):
        async def process(self, message):
            raise RetryMessage(after=1.5)

    feed = FakeFeed()
    feed.publish(1)
    running(Waits(feed, rate=0.1, burst=1, fallback_interval=60, degraded_interval=None))
    await anyio.sleep(60)
    assert len(feed.requests) <= 7


async def test_g3_a_resync_to_the_latest_cursor_waits_for_the_server(running):
    class Feed(FakeFeed):
        async def latest(self):
            asked.append(anyio.current_time())
            return await super().latest()

    asked, feed = [], Feed()
    feed.publish(3)
    consumer = running(Log(feed, on_cursor_expired=Resync("latest", forget=False)))
    await consumer.until(3)
    feed.answer(CursorExpired("gone", retry_after=30))
    refused = anyio.current_time()
    consumer.wake()
    await anyio.sleep(1)
    assert asked == []
    assert consumer.status().counters.resyncs == 0
    feed.publish(2)
    await anyio.sleep(60)
    (at,) = asked
    assert at >= refused + 30
    assert consumer.status().counters.resyncs == 1
    assert consumer.status().cursor == feed.after(5)
