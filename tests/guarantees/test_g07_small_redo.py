"""G7, small redo: a crash repeats only the last `commit_interval` of work and the messages in flight."""

import asyncio
import re
import threading

import anyio
import anyio.to_thread
import pytest

from push_to_poll_client import (
    Consumer,
    MemoryStore,
    Mode,
    ProcessError,
    SQLiteStore,
    StopConsumer,
    StoreError,
    StoreUnavailable,
)
from push_to_poll_client.testing._fake_feed import FakeFeed
from tests.support.consumers import Log
from tests.support.forms import GUARD
from tests.support.refusing_store import RefusingStore

pytestmark = pytest.mark.anyio

in_real_time = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.mark.parametrize(("takes", "flush", "most"), [(1.0, 0.05, 1), (0.01, 0.05, 6), (0.01, 0.0, 1)])
async def test_g7_a_crash_repeats_at_most_the_messages_of_the_commit_interval(takes, flush, most, monkeypatch):
    feed = FakeFeed()
    feed.publish(40)
    recorded, unrecorded = [], []

    class Watched(Log):
        async def process(self, message):
            await super().process(message)
            unrecorded.append(len(self.processed) - len(recorded))

    consumer = Watched(feed, takes=takes, commit_interval=flush)
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
    """Consumer whose handler blocks in a thread until the test releases it."""

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
        """Process the messages that the store has no record of."""
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
            await anyio.sleep(0.05)  # time for a wrong message to arrive
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


async def test_g7_a_store_that_refuses_a_commit_is_waited_for_and_nothing_new_is_processed(caplog):
    feed, store = FakeFeed(page_size=5), RefusingStore()
    feed.publish(10)
    consumer = Log(feed, store=store, takes=0.02)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await consumer.until(1)
        store.refuses = {"commit"}
        await anyio.sleep(1000.0)
        settled = len(consumer.processed)
        assert settled < 5  # the first flush that failed ended the poll
        assert len(store.refused) > 10
        assert len(feed.requests) == 1
        assert consumer.status().mode is Mode.BACKOFF
        assert "disk full" in consumer.status().last_error
        line = rf"store unavailable, retrying in .* s; processing is paused, unsaved messages: {settled}: "
        assert re.search(line, caplog.text)
        store.refuses.clear()
        await consumer.until(10)
        consumer.stop()
    assert consumer.processed == [str(n) for n in range(1, 11)]


async def test_g7_a_batch_that_was_to_be_filled_is_not_processed_while_the_store_refuses():
    """A background commit fails while the rest of the page waits for the next page."""

    class Batches(Consumer):
        async def process_batch(self, messages):
            calls.append([message.id for message in messages])

    calls, feed, store = [], FakeFeed(page_size=10, latency=5.0, read_ahead=True), RefusingStore()
    feed.publish(20)
    store.refuses = {"commit"}
    async with Batches(feed, store=store, batch_size=7, batch_wait=1.0) as consumer:
        with pytest.raises(StoreUnavailable, match="disk full"):
            await consumer.poll_now()
        assert calls == [["1", "2", "3", "4", "5", "6", "7"]]
        store.refuses.clear()
        await consumer.poll_now(timeout=None)
    assert [name for names in calls for name in names] == [str(n) for n in range(1, 21)]


@pytest.mark.parametrize("read_ahead", [False, True])
@pytest.mark.parametrize("concurrency", [1, 3])
async def test_g7_no_message_is_processed_twice_while_the_store_refuses(concurrency, read_ahead):
    feed, store = FakeFeed(page_size=5, read_ahead=read_ahead), RefusingStore()
    feed.publish(60)
    consumer = Log(
        feed, store=store, takes=0.03, concurrency=concurrency, ordering_key=lambda message: int(message.id) % 7
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        for count in range(1, 60, 7):
            await consumer.until(count)
            store.refuses = {"commit", "unseen"}
            await anyio.sleep(20.0)
            store.refuses.clear()
        await consumer.until(60)
        consumer.stop()
    assert sorted(consumer.processed, key=int) == [str(n) for n in range(1, 61)]


async def test_g7_the_consumer_keeps_the_work_of_a_failed_commit():
    """Several calls of `poll_now()`, each with its own session."""
    feed, store = FakeFeed(), RefusingStore()
    feed.publish(3)
    consumer = Log(feed, store=store)
    await consumer.poll_now()
    feed.publish(2)
    store.refuses = {"commit"}
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="disk full"):
            await consumer.poll_now(timeout=None)
    store.refuses.clear()
    result = await consumer.poll_now(timeout=None)
    assert consumer.processed == ["1", "2", "3", "4", "5"]
    assert store.commits[-1] == ["4", "5"]
    assert (result.messages, result.caught_up) == (0, True)
    assert (await Log(feed, store=store).poll_now()).pages == 1


async def test_g7_a_store_that_does_not_recover_ends_run_and_the_next_run_commits_the_rest():
    feed, store = FakeFeed(), RefusingStore(error=StoreError("the file was replaced"))
    feed.publish(3)
    consumer = Log(feed, store=store, takes=1.0)
    async with anyio.create_task_group() as tasks:

        async def run():
            with pytest.raises(StoreError, match="replaced"):
                await consumer.run()

        store.refuses = {"commit"}
        tasks.start_soon(run)
    assert consumer.processed == ["1"]
    store.refuses.clear()
    await consumer.poll_now()
    assert consumer.processed == ["1", "2", "3"]


@pytest.mark.parametrize("ends", ["stop", "cancel"])
async def test_g7_a_stop_tries_to_commit_for_the_shutdown_timeout_and_then_raises(ends, caplog):
    feed, store = FakeFeed(), RefusingStore()
    feed.publish(3)
    consumer = Log(feed, store=store, takes=1.0, shutdown_timeout=20.0)
    errors = []
    async with anyio.create_task_group() as tasks:

        async def run():
            try:
                await consumer.run()
            except StoreUnavailable as error:
                errors.append(str(error))

        store.refuses = {"commit"}
        tasks.start_soon(run)
        await consumer.until(1)
        await anyio.sleep(100.0)
        began, tried = anyio.current_time(), len(store.refused)
        if ends == "stop":
            consumer.stop()
        else:
            tasks.cancel_scope.cancel()
    assert anyio.current_time() - began == pytest.approx(20.0)
    assert len(store.refused) - tried >= 6
    text = "disk full; 1 processed messages are not saved: use this consumer object again"
    assert text in (errors[0] if ends == "stop" else caplog.text)
    store.refuses.clear()
    await consumer.poll_now(timeout=None)
    assert consumer.processed == ["1", "2", "3"]


async def test_g7_a_stop_returns_normally_if_the_store_comes_back_in_time():
    feed, store = FakeFeed(), RefusingStore()
    feed.publish(3)
    consumer = Log(feed, store=store, takes=1.0, shutdown_timeout=20.0)
    async with anyio.create_task_group() as tasks:
        store.refuses = {"commit"}
        tasks.start_soon(consumer.run)
        await consumer.until(1)
        await anyio.sleep(100.0)
        consumer.stop()
        await anyio.sleep(15.0)
        store.refuses.clear()
    assert store.commits[-1] == ["1"]


async def test_g7_uncommitted_work_is_discarded_if_another_consumer_has_used_the_name(caplog):
    """After `forget`, the same ids may belong to other messages, which must be processed."""
    feed, store = FakeFeed(), RefusingStore()
    feed.publish(3)
    consumer, other = Log(feed, store=store), Log(feed, store=store)
    store.refuses = {"commit"}
    with pytest.raises(StoreUnavailable):
        await consumer.poll_now()
    store.refuses.clear()
    await other.rewind("inception", forget=True)
    await consumer.poll_now(timeout=None)
    assert consumer.processed == ["1", "2", "3"] * 2
    assert "another consumer has used the name since a commit failed" in caplog.text


def test_g7_uncommitted_work_of_a_lost_event_loop_is_committed_in_the_next_one():
    feed, store = FakeFeed(), RefusingStore("commit")
    feed.publish(2)
    consumer = Log(feed, store=store)

    async def lose():
        await consumer.__aenter__()
        with pytest.raises(StoreUnavailable):
            await consumer.poll_now()

    anyio.run(lose)
    store.refuses.clear()
    anyio.run(consumer.rewind, feed.after(2))
    assert consumer.processed == ["1", "2"]
    assert store.commits == [["1", "2"]]


async def test_g7_uncommitted_work_survives_a_claim_without_effect():
    """A call that was cancelled while it claimed the name makes such a claim."""
    feed, store = FakeFeed(), RefusingStore("commit")
    feed.publish(3)
    consumer = Log(feed, store=store)
    with pytest.raises(StoreUnavailable):
        await consumer.poll_now()
    store.refuses.clear()
    await (await store.claim(consumer.name, feed=feed.identity)).release()
    await consumer.poll_now(timeout=None)
    assert store.commits[0] == consumer.processed == ["1", "2", "3"]


async def test_g7_uncommitted_work_stays_if_the_store_fails_while_the_session_opens():
    feed, store = FakeFeed(), RefusingStore("commit")
    feed.publish(3)
    consumer = Log(feed, store=store)
    with pytest.raises(StoreUnavailable):
        await consumer.poll_now()
    await (await store.claim(consumer.name, feed=feed.identity)).release()
    store.refuses = {"unseen"}
    with pytest.raises(StoreUnavailable):
        await consumer.poll_now(timeout=None)
    store.refuses.clear()
    await consumer.poll_now(timeout=None)
    assert consumer.processed == ["1", "2", "3"]


async def test_g7_work_recorded_by_another_consumer_is_not_restored_if_the_cursor_has_not_moved():
    """The records of the other consumer are newer."""
    feed, store = FakeFeed(), RefusingStore()
    feed.publish(3)
    consumer, other = Log(feed, store=store), Log(feed, store=store)
    store.refuses = {"commit"}
    with pytest.raises(StoreUnavailable):
        await consumer.poll_now()
    store.refuses.clear()
    await other.replay("inception")
    before = len(store.commits)
    await consumer.poll_now(timeout=None)
    assert not any(store.commits[before:])
    assert consumer.processed == other.processed == ["1", "2", "3"]


@pytest.mark.parametrize("error", [SystemExit("bye"), StopConsumer("no")])
async def test_g7_a_failing_store_does_not_replace_other_errors(error):
    """`SystemExit` ends the program, and a message that stops the consumer is not retried forever."""

    async def process(message):
        handled.append(message.id)
        if message.id == "2":
            store.refuses = {"commit"}
            raise error

    feed, store, handled = FakeFeed(), RefusingStore(), []
    feed.publish(2)
    consumer = Consumer(feed, store=store, process=process, commit_interval=100.0, shutdown_timeout=1.0)
    with pytest.raises(SystemExit if isinstance(error, SystemExit) else ProcessError):
        await consumer.run()
    assert handled == ["1", "2"]


@on_asyncio
async def test_g7_a_store_that_refuses_takes_no_cancellation_away():
    feed, store = FakeFeed(), RefusingStore("commit")
    feed.publish(3)
    consumer = Log(feed, store=store, takes=1.0, commit_interval=100.0)
    task = asyncio.ensure_future(consumer.poll_now())
    await consumer.until(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    store.refuses.clear()
    await consumer.poll_now(timeout=None)
    assert consumer.processed == ["1", "2", "3"]
