"""G4, fallback: a lost push costs at most `fallback_interval`.

The consumer polls that often even if a push channel claims to be healthy, and more often while a channel is down.
"""

import anyio
import pytest

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


async def test_g4_listeners_without_a_fallback_interval_are_refused():
    with pytest.raises(ValueError, match="fallback_interval=None together with listeners"):
        Log(FakeFeed(), listeners=[ManualListener()], fallback_interval=None)
