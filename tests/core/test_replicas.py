"""Replicas of a consumer on a store with leases, whose processes end, freeze, and lose the store."""

import contextlib

import anyio
import pytest

from push_to_poll_client import MemoryStore, Mode, SQLiteStore, StoreBusy
from push_to_poll_client.testing._fake_feed import FakeFeed
from push_to_poll_client.testing._manual_listener import ManualListener
from tests.support.replicas import NAME, Replica, owner_and_standby, owns, stands_by
from tests.support.shared_memory import LEASE, SharedMemory, TransactionalMemorySession

pytestmark = pytest.mark.anyio


@pytest.fixture
def shared():
    return SharedMemory()


async def test_a_standby_takes_over_when_the_lease_of_a_killed_owner_ends(shared, running):
    feed = FakeFeed()
    owner = Replica(feed, shared.replica("first"))
    async with anyio.create_task_group() as process:
        process.start_soon(owner.run)
        await owns(owner)
        standby = Replica(feed, shared.replica("second"))
        running(standby)
        await stands_by(standby)
        owner.store.crash()
        process.cancel_scope.cancel()
    killed = anyio.current_time()
    feed.publish(1)
    await standby.until(1)
    assert LEASE <= anyio.current_time() - killed <= LEASE + 0.1


async def test_a_standby_shows_the_owner_and_keeps_its_listeners_connected(shared, running):
    feed, listener = FakeFeed(), ManualListener()
    owner = Replica(feed, shared.replica("first"))
    running(owner)
    await owns(owner)
    standby = Replica(feed, shared.replica("second"), listeners=[listener])
    running(standby)
    with anyio.fail_after(60):
        await listener.connected()
    status = standby.status()
    assert (status.mode, status.owner, status.is_owner) == (Mode.STANDBY, "first", False)
    assert (owner.status().owner, owner.status().is_owner) == (None, True)
    with pytest.raises(StoreBusy) as busy:
        await standby.poll_now()
    assert (busy.value.owner, standby.status().mode) == ("first", Mode.STANDBY)


async def test_the_last_of_three_replicas_has_processed_the_rest(shared, running):
    feed, replicas = FakeFeed(), []
    for number in range(3):
        replicas.append(Replica(feed, shared.replica(f"replica {number}")))
        running(replicas[-1])
        await owns(replicas[0])
    for _ in replicas:
        await anyio.sleep(1)
        owner = next(one for one in replicas if one.status().is_owner)
        feed.publish(2)
        owner.wake()
        await owner.until(2)
        owner.stop()
    assert sorted(name for one in replicas for name in one.processed) == list("123456")
    assert [len(one.processed) for one in replicas] == [2, 2, 2]


async def test_an_owner_without_its_store_starts_no_handler_after_its_lease(shared, running):
    feed = FakeFeed()
    owner, standby = await owner_and_standby(feed, shared, running, takes=LEASE / 4, commit_interval=60.0)
    feed.publish(20)
    owner.wake()
    await owner.until(1)
    owner.store.unreachable = True
    cut = anyio.current_time()
    while "20" not in standby.processed:
        await standby.until(len(standby.processed) + 1)
    assert len(owner.processed) > 2  # handlers go on until then
    assert all(at <= cut + LEASE + owner.takes for at in owner.at)
    owner.store.unreachable = False
    await stands_by(owner)


async def test_no_handler_starts_if_the_lease_ends_while_its_transaction_begins(monkeypatch, running):
    feed, shared = FakeFeed(), SharedMemory(transactional=True)
    owner, standby = await owner_and_standby(feed, shared, running)
    begin = TransactionalMemorySession.transaction

    @contextlib.asynccontextmanager
    async def begin_slowly(session, records):
        async with begin(session, records):
            if session.store is owner.store:
                shared.expire(NAME)
            yield

    monkeypatch.setattr(TransactionalMemorySession, "transaction", begin_slowly)
    feed.publish(1)
    owner.wake()
    await standby.until(1)
    assert owner.processed == []


class Cut(Replica):
    """Lose the store after the first message."""

    async def process(self, message):
        await super().process(message)
        self.store.unreachable = True


async def test_a_stop_without_a_store_ends_when_the_lease_is_lost(shared, running):
    feed = FakeFeed()
    owner = Cut(feed, shared.replica("first"), shutdown_timeout=100.0)
    standby = Replica(feed, shared.replica("second"))
    feed.publish(1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(owner.run)
        await owner.until(1)
        running(standby)
        await stands_by(standby)
        owner.stop()
        await standby.until(1)
    assert owner.status().mode is Mode.STOPPED
    assert anyio.current_time() - owner.at[0] < 2 * LEASE


async def test_a_replica_that_is_stopped_during_its_claim_leaves_the_name_free(shared):
    for share in range(1, 10):
        store = shared.replica("stopped")

        async def trip():
            await anyio.sleep(1.0)

        store.trip = trip
        stopped = Replica(FakeFeed(), store)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stopped.run)
            await anyio.sleep(share / 4)
            stopped.stop()
        assert shared.owner_of(NAME) is None
        await Replica(FakeFeed(), shared.replica("next")).poll_now()


async def test_an_owner_without_a_standby_claims_the_name_again_after_a_hand_over(shared, running):
    feed = FakeFeed()
    alone = running(Replica(feed, shared.replica("alone")))
    await owns(alone)
    shared.want(NAME)
    await stands_by(alone)
    feed.publish(1)
    await alone.until(1)
    assert alone.status().fencing_token == 2


async def test_a_replica_that_freezes_past_its_lease_stands_by_when_it_goes_on(shared, running):
    feed = FakeFeed()
    owner, standby = await owner_and_standby(feed, shared, running)
    owner.store.pause()
    await owns(standby)
    owner.store.resume()
    await stands_by(owner)
    feed.publish(1)
    owner.wake()
    await standby.until(1)
    assert owner.processed == []


@pytest.mark.parametrize("kind", ["memory", "sqlite", "sqlite, another object"])
async def test_replicas_of_stores_without_a_lease_stand_by_too(kind, running, tmp_path, inline_threads):
    first = MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "orders.db")
    second = SQLiteStore(tmp_path / "orders.db") if kind == "sqlite, another object" else first
    feed = FakeFeed()
    feed.publish(1)
    owner, standby = Replica(feed, first), Replica(feed, second)
    running(owner)
    await owner.until(1)
    running(standby)
    await stands_by(standby)
    owner.stop()
    feed.publish(1)
    stopped = anyio.current_time()
    await standby.until(1)
    assert (owner.processed, standby.processed) == (["1"], ["2"])
    assert anyio.current_time() - stopped <= 1.1
