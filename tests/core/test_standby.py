"""Several replicas of one consumer: one owns the name, the others stand by (G1, G10)."""

import anyio
import pytest

from push_to_poll_client import MemoryStore, Mode, OwnershipLost, Push, StoreBusy
from push_to_poll_client.testing._fake_feed import FakeFeed
from push_to_poll_client.testing._manual_listener import ManualListener
from tests.support.consumers import Log
from tests.support.leased_store import LeasedStore

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[MemoryStore, LeasedStore])
def store(request):
    return request.param()


async def stands_by(replica):
    """Return when the replica stands by."""
    with anyio.fail_after(1_000):
        while replica.status().mode is not Mode.STANDBY:  # noqa: ASYNC110  # no event tells it
            await anyio.sleep(0.01)


class Slow(Log):
    """Begin a message and wait for `may_end` before it is processed."""

    def __init__(self, feed, **settings):
        super().__init__(feed, **settings)
        self.begun, self.may_end = anyio.Event(), anyio.Event()

    async def process(self, message):
        self.begun.set()
        await self.may_end.wait()
        await super().process(message)


async def test_g10_a_second_replica_stands_by_and_takes_over_after_a_stop(store, running):
    feed = FakeFeed()
    first, second = Log(feed, store=store), Log(feed, store=store)
    running(first)
    await feed.asked(1)
    running(second)
    await stands_by(second)
    assert not second.status().is_owner
    feed.publish(1)
    first.wake()
    await first.until(1)
    first.stop()
    feed.publish(1)
    await second.until(1)
    assert (first.processed, second.processed) == (["1"], ["2"])
    assert second.status().is_owner


async def test_g10_a_replica_without_standby_is_refused(store, running):
    feed = FakeFeed()
    running(Log(feed, store=store))
    await feed.asked(1)
    with pytest.raises(StoreBusy):
        await Log(feed, store=store, standby=False).run()
    with pytest.raises(StoreBusy):
        await Log(feed, store=store).poll_now()


async def test_g1_a_push_that_reaches_a_standby_wakes_the_owner(running):
    feed, store, listener = FakeFeed(), LeasedStore(), ManualListener()
    owner = Log(feed, store=store, fallback_interval=3_600)
    standby = Log(feed, store=store, listeners=[listener])
    running(owner)
    await feed.asked(1)
    running(standby)
    await listener.connected()
    await stands_by(standby)
    feed.publish(1)
    with anyio.fail_after(60):  # long before the timer of the owner
        listener.push(Push(cursor="1"))
        await owner.until(1)
    status = standby.status()
    assert (status.owner, status.listeners[0].up, status.counters.forwarded) == ("process 4711", True, 2)
    assert store.forwarded == [None, Push(cursor="1")]


async def test_g10_a_lost_lease_cancels_the_handler_and_its_message_is_left_to_the_next_owner(running):
    feed, store = FakeFeed(), LeasedStore()
    feed.publish(2)
    stale, fresh = Slow(feed, store=store), Log(feed, store=store)
    running(stale)
    await stale.begun.wait()
    running(fresh)
    await stands_by(fresh)
    store.end_lease()
    await fresh.until(2)
    await stands_by(stale)
    assert (stale.processed, fresh.processed) == ([], ["1", "2"])


async def test_g1_a_wake_that_comes_after_the_lease_has_ended_is_forwarded(running):
    """Nothing has told the replica that another one owns the name, so it took the wake for its own."""
    feed, store = FakeFeed(), LeasedStore()
    stale = Log(feed, store=store, fallback_interval=3_600)
    fresh = Log(feed, store=store, fallback_interval=3_600)
    running(stale)
    await feed.asked(1)
    await anyio.sleep(1)  # the poll has ended
    store.owner.lost, store.owner = True, None
    store._owners.clear()
    running(fresh)
    await feed.asked(2)
    await anyio.sleep(1)
    feed.publish(1)
    with anyio.fail_after(60):  # long before a timer
        stale.wake()
        await fresh.until(1)
    assert store.forwarded == [None]


async def test_g10_no_handler_starts_after_the_lease_has_ended(running):
    """The process may have been suspended in a handler, and nothing has told it that the lease ended."""
    feed, store = FakeFeed(), LeasedStore()
    feed.publish(3)

    class Suspended(Log):
        async def process(self, message):
            await super().process(message)
            if len(self.processed) == 1:
                store.owner.lost = True
                store.owner = None
                store._owners.clear()

    stale = Suspended(feed, store=store)
    async with stale:
        with pytest.raises(OwnershipLost):
            await stale.poll_now()
    assert stale.processed == ["1"]


async def test_g10_a_planned_hand_over_repeats_no_message(running):
    feed, store = FakeFeed(), LeasedStore()
    feed.publish(1)
    first, second = Slow(feed, store=store), Log(feed, store=store)
    running(first)
    await first.begun.wait()
    running(second)
    await stands_by(second)
    store.owner.want()
    feed.publish(1)
    first.may_end.set()
    await second.until(1)
    assert (first.processed, second.processed) == (["1"], ["2"])
    await stands_by(first)


@pytest.mark.parametrize(("outcome", "processed"), [("landed", ["1", "2"]), ("lost", ["1", "1", "2"])])
async def test_g5_after_a_commit_in_doubt_the_state_is_read_anew(outcome, processed, running):
    feed, store = FakeFeed(), LeasedStore()
    feed.publish(1)

    class InDoubt(Log):
        async def process(self, message):
            await super().process(message)
            if len(self.processed) == 1:
                store.owner.doubt = outcome

    log = InDoubt(feed, store=store, commit_interval=0.0)
    running(log)
    await log.until(1)
    feed.publish(1)
    await log.until(len(processed))
    assert log.processed == processed
    assert log.status().fencing_token == 2


async def test_a_replica_stands_by_while_the_store_is_unavailable_and_forwards_wakes_then(running):
    feed, store, listener = FakeFeed(), LeasedStore(), ManualListener()
    store.unavailable = True
    log = Log(feed, store=store, listeners=[listener])
    running(log)
    await listener.connected()
    assert log.status().mode is Mode.STANDBY
    store.unavailable = False
    feed.publish(1)
    await log.until(1)
    assert log.status().is_owner


async def test_a_replica_can_be_stopped_while_it_stands_by(store, running):
    feed = FakeFeed()
    running(Log(feed, store=store))
    await feed.asked(1)
    standby = Log(feed, store=store)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(standby.run)
        await stands_by(standby)
        standby.stop()
    assert standby.status().mode is Mode.STOPPED


async def test_work_of_a_listener_for_the_owner_runs_only_while_the_consumer_owns_the_name(running):
    feed, store, running_for = FakeFeed(), LeasedStore(), []

    class Subscriber:
        def __init__(self, name):
            self.name = name

        async def listen(self, channel):
            async def keep():
                running_for.append(self.name)
                try:
                    await anyio.sleep_forever()
                finally:
                    running_for.remove(self.name)

            await channel.while_owner(keep)

    first = Log(feed, store=store, listeners=[Subscriber("first")])
    second = Log(feed, store=store, listeners=[Subscriber("second")])
    running(first)
    await feed.asked(1)
    running(second)
    await stands_by(second)
    assert running_for == ["first"]
    first.stop()
    await feed.asked(2)
    await anyio.sleep(1)
    assert running_for == ["second"]
