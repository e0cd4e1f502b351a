"""G10, one owner: for each consumer name, one replica polls and writes; a former owner's write fails."""

import pytest

from push_to_poll_client import (
    MemoryStore,
    OwnershipLost,
    StoreBusy,
)
from push_to_poll_client.testing._fake_feed import FakeFeed
from tests.support.consumers import Log

pytestmark = pytest.mark.anyio


async def test_g10_a_second_consumer_of_the_same_name_is_refused(running):
    feed, store = FakeFeed(), MemoryStore()
    running(Log(feed, store=store))
    await feed.asked(1)
    with pytest.raises(StoreBusy):
        await Log(feed, store=store, standby=False).run()
    await Log(feed, store=store, name="another").poll_now()


async def test_g10_a_stale_owner_stops_at_its_next_write(running):
    feed, store = FakeFeed(), MemoryStore()
    stale = Log(feed, store=store)
    async with stale:
        await stale.poll_now()
        await stale._parts.session.release()  # as if its lease had run out
        fresh = Log(feed, store=store)
        async with fresh:
            feed.publish(1)
            with pytest.raises(OwnershipLost):
                await stale.poll_now()
            await fresh.poll_now()
    assert fresh.processed == ["1"]
