"""G10, one owner: for each consumer name, one replica polls and writes; a former owner's write fails."""

import anyio
import pytest

from push_to_poll_client import (
    MemoryStore,
    OwnershipLost,
    StoreBusy,
)
from push_to_poll_client.testing._fake_feed import FakeFeed
from tests.support.consumers import Log
from tests.support.replicas import NAME, Replica, owner_and_standby, stands_by
from tests.support.shared_memory import LEASE, SharedMemory

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


async def test_g10_each_name_has_its_own_owner_and_each_replica_can_own_one(running):
    shared = SharedMemory()
    stores = [shared.replica("first"), shared.replica("second")]
    feed = FakeFeed()
    consumers = [Log(feed, store=stores[number % 2], name=f"name {number // 2}") for number in (0, 3, 1, 2)]
    for consumer in consumers:
        running(consumer)
        await anyio.sleep(1)
    assert [one.status().is_owner for one in consumers] == [True, True, False, False]
    assert [one.status().owner for one in consumers] == [None, None, "first", "second"]


async def test_g10_an_owner_that_is_not_renewed_writes_nothing_and_calls_no_handler_after_its_lease(running):
    feed, shared = FakeFeed(), SharedMemory()
    owner, standby = await owner_and_standby(feed, shared, running, commit_interval=5.0)
    feed.publish(5)
    owner.takes = 2 * LEASE  # nothing tells it that the lease has ended
    owner.store.pause()
    before = len(shared.history)
    owner.wake()
    await standby.until(5)
    await owner.until(1)
    await stands_by(owner)
    assert (owner.processed, standby.processed) == (["1"], list("12345"))
    assert {written.replica for written in shared.history[before:]} == {"second"}


async def test_g10_the_late_commit_of_a_former_owner_is_refused(running):
    feed, shared = FakeFeed(), SharedMemory()
    feed.publish(2)
    owner = Replica(feed, shared.replica("first"))
    async with owner.store.in_doubt("late"):
        async with anyio.create_task_group() as process:
            process.start_soon(owner.run)
            await owner.until(2)
            await anyio.sleep(0.06)  # until the commit
            owner.store.crash()
            process.cancel_scope.cancel()
        standby = running(Replica(feed, shared.replica("second")))
        await standby.until(2)
        await anyio.sleep(1)
        written = [*shared.history]
    assert shared.history == written
    assert {one.replica for one in written} == {"second"}
    assert shared.progress[NAME].records.keys() == {"1", "2"}
