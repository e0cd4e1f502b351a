"""G5, cursor behind work: a cursor is saved only after everything before it is settled and recorded.

A crash or a stop leaves a contiguous prefix.
"""

import anyio
import pytest

from push_to_poll_client import (
    Consumer,
    CursorExpired,
    MemoryStore,
    Resync,
)
from push_to_poll_client.testing._fake_feed import FakeFeed
from tests.support.consumers import Log
from tests.support.replicas import NAME, Replica
from tests.support.shared_memory import SharedMemory

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("cursors", ["message", "page", "chain"])
async def test_g5_every_message_is_processed_once_and_in_order_across_many_stops(cursors):
    feed = FakeFeed(page_size=4, cursors=cursors)
    feed.publish(20)
    store = MemoryStore()
    processed = []
    for stop_at in range(0, 20, 3):
        consumer = Log(feed, store=store, takes=1.0, shutdown_timeout=0.2)
        consumer.processed = processed
        with anyio.move_on_after(stop_at + 0.5):
            await consumer.run()
    final = Log(feed, store=store)
    final.processed = processed
    await final.poll_now()
    assert processed == [str(number) for number in range(1, 21)]


async def test_g5_the_cursor_does_not_move_while_the_store_fails(monkeypatch):
    feed = FakeFeed()
    feed.publish(3)
    consumer = Log(feed)
    async with consumer:
        session = consumer._parts.session
        commit = session.commit
        broken = OSError("disk full")

        async def fail(**_):
            raise broken

        monkeypatch.setattr(session, "commit", fail)
        with pytest.raises(OSError, match="disk full"):
            await consumer.poll_now()
        assert session.cursor is None
        monkeypatch.setattr(session, "commit", commit)
        await consumer.poll_now()
        assert session.cursor == feed.newest
    assert consumer.processed == ["1", "2", "3"], "what was done is remembered until it can be written down"


async def test_g5_no_cursor_of_the_old_place_is_saved_after_a_resync():
    class Batches(Consumer):
        async def process_batch(self, messages):
            saved.append((messages[0].id, self.status().cursor))

    saved, feed = [], FakeFeed(page_size=10, cursors="page", ends_empty=True)
    feed.publish(16)
    feed.answer(None, None, CursorExpired("gone"))
    resync = Resync("inception", forget=True)
    consumer = Batches(feed, store=MemoryStore(), batch_size=7, commit_interval=0, on_cursor_expired=resync)
    async with consumer:
        await consumer.poll_now()
    assert saved == [("1", None), ("8", None), ("11", "after-10.0")] * 2


@pytest.mark.parametrize("outcome", ["lost", "landed", "late"])
async def test_g5_no_message_is_skipped_after_a_commit_whose_outcome_was_unknown(outcome, running):
    feed, shared = FakeFeed(page_size=4), SharedMemory()
    feed.publish(12)
    owner = Replica(feed, shared.replica("owner"), takes=0.02)
    async with owner.store.in_doubt(outcome):
        running(owner)
        await owner.until(12)
        await anyio.sleep(10)
    records, cursor = shared.progress[NAME].records, shared.progress[NAME].cursor_state.saved.cursor
    assert (len(records), cursor, owner.status().fencing_token) == (12, "after-12.0", 2)
    recorded = set()
    for written in shared.history:
        recorded.update(written.keys)
        assert written.cursor is None or recorded == {str(number) for number in range(1, len(recorded) + 1)}
