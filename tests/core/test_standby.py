"""One replica of a consumer owns the name; the others stand by, and take over from it (G1, G10)."""

from functools import partial

import anyio
import pytest

from push_to_poll_client import MemoryStore, Mode, OwnershipLost, Push, StoreBusy
from push_to_poll_client.testing._fake_feed import FakeFeed
from push_to_poll_client.testing._manual_listener import ManualListener
from tests.support.replicas import NAME, Replica, owner_and_standby, owns, stands_by
from tests.support.shared_memory import SharedMemory

pytestmark = pytest.mark.anyio


@pytest.fixture
def shared():
    return SharedMemory()


@pytest.fixture(params=["memory", "leased"])
def stores(request, shared):
    """Return the store objects of two replicas."""
    return (
        [MemoryStore()] * 2 if request.param == "memory" else [shared.replica("first"), shared.replica("second")]
    )


class Slow(Replica):
    """Begin a message and wait for `may_end` before it is processed."""

    def __init__(self, feed, store, **settings):
        super().__init__(feed, store, **settings)
        self.begun, self.may_end = anyio.Event(), anyio.Event()

    async def process(self, message):
        self.begun.set()
        await self.may_end.wait()
        await super().process(message)


async def test_g10_a_standby_takes_over_after_a_stop_of_the_owner(stores, running):
    feed = FakeFeed()
    first, second = (Replica(feed, store) for store in stores)
    running(first)
    await owns(first)
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


async def test_g10_a_replica_without_standby_is_refused(stores, running):
    feed = FakeFeed()
    owner = running(Replica(feed, stores[0]))
    await owns(owner)
    with pytest.raises(StoreBusy):
        await Replica(feed, stores[1], standby=False).run()
    with pytest.raises(StoreBusy):
        await Replica(feed, stores[1]).poll_now()


async def test_a_replica_can_be_stopped_while_it_stands_by(stores, running):
    feed = FakeFeed()
    owner, standby = (Replica(feed, store) for store in stores)
    running(owner)
    await owns(owner)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(standby.run)
        await stands_by(standby)
        standby.stop()
    assert standby.status().mode is Mode.STOPPED


async def test_g1_a_push_that_reaches_a_standby_wakes_the_owner_with_its_hint(shared, running):
    feed, listener = FakeFeed(), ManualListener()
    owner = Replica(feed, shared.replica("first"), fallback_interval=3_600)
    standby = Replica(feed, shared.replica("second"), listeners=[listener])
    running(owner)
    await owns(owner)
    running(standby)
    await listener.connected()
    await stands_by(standby)
    feed.publish(1)
    with anyio.fail_after(60):  # long before the timer of the owner
        listener.push(Push(cursor="1"))
        await owner.until(1)
    assert shared.wakes == [(NAME, None), (NAME, Push(cursor="1"))]  # the first one for the connection
    assert standby.status().counters.forwarded == 2


async def test_a_replica_prepares_its_feed_while_it_stands_by(shared, running):
    prepared, feeds = [], [FakeFeed(), FakeFeed()]
    for number, feed in enumerate(feeds):
        feed.prepare = partial(prepared.append, number)
    owner, standby = (Replica(feed, shared.replica()) for feed in feeds)
    running(owner)
    await owns(owner)
    running(standby)
    await stands_by(standby)
    await anyio.sleep(60)  # many tries
    assert prepared == [1]


async def test_g1_forwarded_wakes_are_sent_before_run_returns(shared, running):
    _, standby = await owner_and_standby(FakeFeed(), shared, running)
    sent = []

    async def forwarded():
        await anyio.sleep(0.5)
        sent.append(len(shared.wakes))

    standby.store.forwarded = forwarded
    third = Replica(FakeFeed(), standby.store)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(third.run)
        await stands_by(third)
        third.wake()
        third.stop()
    assert sent == [1]


async def test_g1_a_wake_that_comes_after_the_lease_has_ended_is_forwarded(shared, running):
    """Nothing has told the replica that another one owns the name, so it took the wake for its own."""
    feed = FakeFeed()
    stale, fresh = await owner_and_standby(feed, shared, running, fallback_interval=3_600)
    shared.expire(NAME)
    await owns(fresh)
    await anyio.sleep(1)  # its first poll has ended
    feed.publish(1)
    with anyio.fail_after(60):  # long before a timer
        stale.wake()
        await fresh.until(1)
    assert shared.wakes == [(NAME, None)]


async def test_g10_a_lost_lease_cancels_the_handler_and_its_message_is_left_to_the_next_owner(shared, running):
    feed = FakeFeed()
    feed.publish(2)
    stale, fresh = Slow(feed, shared.replica("first")), Replica(feed, shared.replica("second"))
    running(stale)
    await stale.begun.wait()
    running(fresh)
    await stands_by(fresh)
    shared.expire(NAME, tells=True)
    await fresh.until(2)
    await stands_by(stale)
    assert (stale.processed, fresh.processed) == ([], ["1", "2"])


async def test_g10_no_handler_starts_after_the_lease_has_ended(shared):
    """The process may have been suspended in a handler, and nothing has told it that the lease ended."""
    feed = FakeFeed()
    feed.publish(3)

    class Suspended(Replica):
        async def process(self, message):
            await super().process(message)
            shared.expire(NAME)

    stale = Suspended(feed, shared.replica())
    async with stale:
        with pytest.raises(OwnershipLost):
            await stale.poll_now()
    assert stale.processed == ["1"]


async def test_g10_a_planned_hand_over_repeats_no_message(shared, running):
    feed = FakeFeed()
    feed.publish(1)
    first, second = Slow(feed, shared.replica("first")), Replica(feed, shared.replica("second"))
    running(first)
    await first.begun.wait()
    running(second)
    await stands_by(second)
    shared.want(NAME)
    feed.publish(1)
    first.may_end.set()
    await second.until(1)
    assert (first.processed, second.processed) == (["1"], ["2"])
    await stands_by(first)


async def test_a_replica_stands_by_with_its_listeners_while_the_store_is_unavailable(shared, running):
    feed, listener = FakeFeed(), ManualListener()
    replica = Replica(feed, shared.replica(), listeners=[listener])
    replica.store.unreachable = True
    running(replica)
    await listener.connected()
    assert replica.status().mode is Mode.STANDBY
    replica.store.unreachable = False
    feed.publish(1)
    await replica.until(1)
    assert replica.status().is_owner


async def test_a_lost_session_is_logged_once(shared, running, caplog):
    stale, fresh = await owner_and_standby(FakeFeed(), shared, running)
    shared.expire(NAME, tells=True)
    await owns(fresh)
    await stands_by(stale)
    assert [line for line in caplog.messages if "lost" in line] == [
        f"{NAME}: session lost, claiming the name again: its lease has ended"
    ]


async def test_work_of_a_listener_for_the_owner_runs_only_while_the_consumer_owns_the_name(shared, running):
    feed, running_for = FakeFeed(), []

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

    first, second = (
        Replica(feed, shared.replica(name), listeners=[Subscriber(name)]) for name in ("first", "second")
    )
    running(first)
    await owns(first)
    running(second)
    await stands_by(second)
    assert running_for == ["first"]
    first.stop()
    await owns(second)
    await anyio.sleep(1)
    assert running_for == ["second"]
