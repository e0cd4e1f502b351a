"""G4, fallback: a lost push costs at most `fallback_interval`.

The consumer polls that often even if a push channel claims to be healthy, and more often while a channel is down.
"""

import anyio
import pytest

from push_to_poll_client import Message, Page
from push_to_poll_client.testing._fake_feed import FakeFeed
from push_to_poll_client.testing._manual_listener import ManualListener
from tests.support.consumers import Log

pytestmark = pytest.mark.anyio


async def test_g4_a_lost_push_costs_the_fallback_interval_at_most(running):
    feed = FakeFeed()
    listener = ManualListener()
    consumer = running(Log(feed, listeners=[listener]))
    await listener.connected()
    await anyio.sleep(100)
    feed.publish("one")
    published = anyio.current_time()
    await consumer.until(1)
    assert anyio.current_time() - published <= 60


async def test_g4_the_interval_is_shorter_while_a_channel_is_down(running):
    feed = FakeFeed()
    listener = ManualListener()
    running(Log(feed, listeners=[listener], fallback_interval=60, degraded_interval=5))
    await listener.connected()
    await anyio.sleep(200)
    listener.disconnect(OSError("reset"))
    count = len(feed.requests)
    await anyio.sleep(100)
    assert len(feed.requests) - count >= 20


class HiddenRows:
    """A feed with a row that is invisible before second 35, as in a long transaction."""

    identity = "outbox"

    def __init__(self, max_wait=None):
        self.start = anyio.current_time()
        self.max_wait = max_wait
        self.requests = []

    async def fetch(self, request):
        self.requests.append(request)
        with anyio.move_on_after(request.wait):
            await anyio.sleep_until(self.start + 35 if request.wait else 0)
        if request.cursor is not None:
            return Page()
        if anyio.current_time() < self.start + 35:
            return Page(poll_within=2)
        return Page([Message("hidden")], cursor="1")


@pytest.mark.parametrize("max_wait", [None, 30.0])
async def test_g4_a_feed_that_hides_messages_is_polled_within_the_time_that_it_asks_for(running, max_wait):
    feed = HiddenRows(max_wait)
    listener = ManualListener()
    consumer = running(Log(feed, listeners=[listener] if max_wait is None else []))
    await consumer.until(1)
    assert anyio.current_time() - feed.start <= 35 + 2
    assert 17 <= len(feed.requests) <= 35 / (2 * 0.9) + 2, "no more often than it asks"
    assert consumer.status().counters.missed_pushes == 0


async def test_g4_listeners_without_a_fallback_interval_are_refused():
    with pytest.raises(ValueError, match="fallback_interval=None cannot be used with listeners"):
        Log(FakeFeed(), listeners=[ManualListener()], fallback_interval=None)
