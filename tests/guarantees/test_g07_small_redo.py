"""G7, small redo: a crash repeats only the last `flush_interval` of work and the messages in flight."""

import asyncio
import threading

import anyio
import anyio.to_thread
import pytest

from push_to_poll_client import Consumer, MemoryStore, SQLiteStore
from push_to_poll_client.testing._fake_feed import FakeFeed
from tests.support.consumers import Log
from tests.support.forms import GUARD

pytestmark = pytest.mark.anyio

in_real_time = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.mark.parametrize(("takes", "flush", "most"), [(1.0, 0.05, 1), (0.01, 0.05, 6), (0.01, 0.0, 1)])
async def test_g7_a_crash_repeats_at_most_the_messages_of_the_flush_interval(takes, flush, most, monkeypatch):
    feed = FakeFeed()
    feed.publish(40)
    recorded, unrecorded = [], []

    class Watched(Log):
        async def process(self, message):
            await super().process(message)
            unrecorded.append(len(self.processed) - len(recorded))

    consumer = Watched(feed, takes=takes, flush_interval=flush)
    async with consumer:
        session = consumer._parts.session
        commit = session.commit

        async def watched(*, cursor, records, **others):
            await commit(cursor=cursor, records=records, **others)
            recorded.extend(records)

        monkeypatch.setattr(session, "commit", watched)
        await consumer.poll_now()
    assert len(recorded) == len(unrecorded) == 40
    assert max(unrecorded) <= most


async def test_g7_fast_handlers_commit_once_per_page_and_slow_handlers_once_per_message(monkeypatch):
    commits = []
    for takes in (0.0, 1.0):
        feed = FakeFeed(page_size=10)
        feed.publish(30)
        consumer = Log(feed, takes=takes, max_poll_time=100)
        async with consumer:
            session = consumer._parts.session
            commit = session.commit

            async def watched(commit=commit, takes=takes, **progress):
                commits.append(takes)
                await commit(**progress)

            monkeypatch.setattr(session, "commit", watched)
            await consumer.poll_now()
    assert (commits.count(0.0), commits.count(1.0)) == (3, 30)


class Threaded(Consumer):
    """Its handler is in a thread, and takes until it is told to go on."""

    def __init__(self, store, *, feed=None, **settings):
        self.feed = feed or FakeFeed()
        if feed is None:
            self.feed.publish(3)
        super().__init__(self.feed, store=store, **settings)
        self.store = store
        self.begun, self.go_on, self.processed = threading.Event(), threading.Event(), []

    def process(self, message):
        self.begun.set()
        assert self.go_on.wait(GUARD)
        self.processed.append(message.id)

    async def has_begun(self):
        assert await anyio.to_thread.run_sync(self.begun.wait, GUARD)

    async def left_to_do(self):
        """Do what the store does not know as processed."""
        rest = Threaded(self.store, feed=self.feed)
        rest.go_on.set()
        await rest.poll_now()
        return rest.processed


@pytest.fixture(params=["memory", "file", "transactional file"])
def store(request, tmp_path):
    if request.param == "memory":
        return MemoryStore()
    return SQLiteStore(tmp_path / "progress.db", transactional=request.param.startswith("transactional"))


@in_real_time
async def test_g7_a_plain_handler_that_outlasts_the_shutdown_timeout_is_recorded(store):
    consumer = Threaded(store, shutdown_timeout=0.0)
    with anyio.fail_after(GUARD):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer.run)
            await consumer.has_begun()
            consumer.stop()
            await anyio.sleep(0.05)  # what must not come has so long
            consumer.go_on.set()
    assert consumer.processed == ["1"]
    assert await consumer.left_to_do() == ["2", "3"]


@in_real_time
async def test_g7_a_plain_handler_whose_poll_now_is_cancelled_by_a_scope_is_recorded(store):
    consumer = Threaded(store)
    with anyio.fail_after(GUARD):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer.poll_now)
            await consumer.has_begun()
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.05)
            consumer.go_on.set()
    assert tasks.cancel_scope.cancelled_caught
    assert consumer.processed == ["1"]
    assert await consumer.left_to_do() == ["2", "3"]


@on_asyncio
async def test_g7_a_plain_handler_whose_asyncio_task_is_cancelled_is_recorded(store):
    consumer = Threaded(store)
    with anyio.fail_after(GUARD):
        task = asyncio.ensure_future(consumer.poll_now())
        await consumer.has_begun()
        task.cancel("enough")
        await anyio.sleep(0.05)
        consumer.go_on.set()
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await task
    assert (task.cancelled(), task.cancelling()) == (True, 1)
    assert consumer.processed == ["1"]
    assert await consumer.left_to_do() == ["2", "3"]


async def within_a_timeout(work, seconds):
    async with asyncio.timeout(seconds):
        await work


@on_asyncio
@pytest.mark.parametrize("within", [asyncio.wait_for, within_a_timeout])
@pytest.mark.parametrize("count", [1, 3])
async def test_g7_a_plain_handler_that_outlasts_a_timeout_of_asyncio_is_recorded_and_the_timeout_raised(
    within, count
):
    feed = FakeFeed()
    feed.publish(count)
    consumer = Threaded(MemoryStore(), feed=feed)
    late = threading.Timer(0.3, consumer.go_on.set)
    late.start()
    with pytest.raises(TimeoutError):
        await within(consumer.poll_now(), 0.15)
    late.join()
    assert asyncio.current_task().cancelling() == 0
    await anyio.sleep(0.01)  # no cancellation is left
    assert consumer.processed == ["1"]
    assert await consumer.left_to_do() == ["2", "3"][: count - 1]
