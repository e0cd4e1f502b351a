"""One commit at a time, in parallel with the following pages, with the results of a commit after each page."""

import asyncio
import contextlib
import gc
import re

import anyio
import pytest

from push_to_poll_client import (
    FeedError,
    MemoryStore,
    Message,
    Page,
    PagesChanged,
    ProcessError,
    RetryMessage,
    StoreError,
    _progress,
)
from push_to_poll_client.testing import FakeFeed
from tests.support.consumers import Log, polls_on

pytestmark = pytest.mark.anyio


class Slow(MemoryStore):
    """A commit takes `takes` seconds. Record the saved keys, and how many commits ran at once."""

    def __init__(self, takes=1.0):
        super().__init__()
        self.takes = takes
        self.saved = []
        self.running = self.most_running = 0
        self.broken = 0

    async def claim(self, name, *, feed):
        session = await super().claim(name, feed=feed)
        commit = session.commit

        async def slowly(*, cursor, records, **others):
            self.running += 1
            self.most_running = max(self.running, self.most_running)
            try:
                await anyio.sleep(self.takes)
                if self.broken:
                    self.broken -= 1
                    raise OSError("the disk is full")
                await commit(cursor=cursor, records=records, **others)
            finally:
                self.running -= 1
            self.saved.append((cursor, [record.key for record in records]))

        session.commit = slowly
        return session

    @property
    def keys(self):
        return [key for _, keys in self.saved for key in keys]


def feed_of(messages, **settings):
    feed = FakeFeed(**{"read_ahead": True, "page_size": 10, **settings})
    feed.publish(messages)
    return feed


def pages(*names_of_each):
    """Create a feed with these pages, which is read ahead."""
    feed = FakeFeed(read_ahead=True)
    last = len(names_of_each)
    feed.answer(
        *(
            Page([Message(str(name)) for name in names], cursor=f"c{n}", next_page=None if n == last else f"c{n}")
            for n, names in enumerate(names_of_each, 1)
        )
    )
    return feed


def ids(numbers):
    return [str(number) for number in numbers]


async def test_pages_in_quick_succession_share_commits_that_run_one_at_a_time():
    feed, store = feed_of(100, latency=0.3), Slow()
    async with Log(feed, store=store, commit_interval=10.0) as log:
        began = anyio.current_time()
        result = await log.poll_now()
        assert anyio.current_time() - began < 6.0  # ten pages, of which each takes a second to commit
        assert (result.messages, result.pages, result.caught_up) == (100, 10, True)
        assert log.status().cursor == feed.after(100)
    assert log.processed == store.keys == ids(range(1, 101))
    assert store.most_running == 1
    assert 2 < len(store.saved) < 6
    assert [cursor for cursor, _ in store.saved] == [feed.after(int(keys[-1])) for _, keys in store.saved]


async def test_a_poll_ends_after_all_its_messages_are_committed():
    feed, store = feed_of(20), Slow(takes=5.0)
    async with Log(feed, store=store, commit_interval=10.0) as log:
        await log.poll_now()
        assert store.keys == ids(range(1, 21))
        assert log.status().counters.messages == 20


@pytest.mark.parametrize(("takes", "commit"), [(0.001, 0.03), (0.001, 0.2), (0.02, 0.03), (0.2, 0.01)])
async def test_uncommitted_work_never_exceeds_the_commit_interval(takes, commit):
    """G7, for any duration of a commit."""
    feed, store = feed_of(200), Slow(commit)
    uncommitted = []

    class Watched(Log):
        async def process(self, message):
            await super().process(message)
            uncommitted.append(len(self.processed) - len(store.keys))

    async with Watched(feed, store=store, takes=takes, commit_interval=0.05, max_poll_time=1000) as log:
        await log.poll_now()
    assert log.processed == store.keys == ids(range(1, 201))
    assert max(uncommitted) <= 0.05 / takes + 1.01


async def test_a_repeat_of_a_message_with_a_pending_commit_is_a_duplicate():
    """G6: for a running commit and for one that has not begun."""
    first, second, third = range(10), range(10, 20), range(20, 30)
    feed, store = pages(first, second, third, [*first, *second, *third, 30]), Slow(takes=0.5)
    async with Log(feed, store=store, commit_interval=10.0) as log:
        result = await log.poll_now()
    assert log.processed == store.keys == ids(range(31))
    assert (result.messages, result.duplicates) == (31, 30)


async def test_a_message_committed_during_its_duplicate_lookup_is_a_duplicate():
    """G6: a store may answer after a commit with the state before it."""

    class Late(Slow):
        async def claim(self, name, *, feed):
            session = await super().claim(name, feed=feed)
            unseen = session.unseen

            async def late(keys):
                answer = await unseen(keys)
                await anyio.sleep(0.8)
                return answer

            session.unseen = late
            return session

    feed = pages(range(10), range(10, 20), range(20))
    async with Log(feed, store=Late(takes=0.5), commit_interval=10.0) as log:
        await log.poll_now()
    assert log.processed == ids(range(20))


async def test_a_failed_background_commit_ends_the_poll_and_keeps_the_progress():
    feed, store = feed_of(40, latency=0.3), Slow(takes=0.5)
    async with Log(feed, store=store, commit_interval=10.0) as log:
        store.broken = 3  # beside, before the next page, and at the end
        with pytest.raises(OSError, match="disk is full"):
            await log.poll_now()
        assert 10 < len(log.processed) < 40
        assert (store.keys, log.status().counters.messages) == ([], 0)
        result = await log.poll_now(timeout=None)
        assert (result.caught_up, result.duplicates) == (True, 0)
    assert log.processed == store.keys == ids(range(1, 41))


async def test_the_progress_of_a_failed_commit_is_committed_again_in_the_same_poll():
    feed, store = feed_of(40, latency=0.3), Slow(takes=0.5)
    async with Log(feed, store=store, commit_interval=10.0) as log:
        store.broken = 1
        result = await log.poll_now()
    assert (result.messages, result.caught_up) == (40, True)
    assert log.processed == store.keys == ids(range(1, 41))


async def test_a_failed_commit_at_the_end_of_a_poll_keeps_the_progress():
    feed, store = feed_of(15), Slow(takes=0.5)
    async with Log(feed, store=store, commit_interval=10.0) as log:
        store.broken = 3
        with pytest.raises(OSError, match="disk is full"):
            await log.poll_now()
        feed.publish("news")
        await log.poll_now(timeout=None)
    assert log.processed == store.keys == [*ids(range(1, 16)), "news"]


async def test_the_attempts_of_a_failed_commit_are_committed_by_the_next_one(virtual_day):
    """G9: without another change to commit. Otherwise a restart would forget the wait and count from 1 again."""

    class Waits(Log):
        async def process(self, message):
            raise RetryMessage("busy", after=600)

    feed, store = feed_of(1), Slow(takes=0)
    async with Waits(feed, store=store) as waits:
        store.broken = 2
        with pytest.raises(OSError, match="disk is full"):
            await waits.poll_now()
        feed.fail(FeedError("502"))
        with pytest.raises(FeedError):
            await waits.poll_now()
    assert (await Log(feed, store=store).poll_now()).retry_in == pytest.approx(600, abs=5)


async def test_a_failed_background_commit_fails_its_own_poll():
    """This holds also at the end of the poll."""
    feed, store = feed_of(30), Slow(takes=5.0)
    async with Log(feed, store=store, takes=0.1, commit_interval=100.0, max_poll_time=0.5) as log:
        store.broken = 2
        with pytest.raises(OSError, match="disk is full"):
            await log.poll_now()
        assert log.processed == ids(range(1, 11))


async def test_g7_nothing_of_a_page_is_processed_if_a_commit_fails_during_its_lookup():
    class SlowToAnswer(Slow):
        async def claim(self, name, *, feed):
            session = await super().claim(name, feed=feed)
            unseen = session.unseen

            async def slowly(keys):
                await anyio.sleep(1.0 if "11" in keys else 0.0)
                return await unseen(keys)

            session.unseen = slowly
            return session

    feed, store = feed_of(20), SlowToAnswer(takes=0.5)
    async with Log(feed, store=store) as log:
        store.broken = 3
        with pytest.raises(OSError, match="disk is full"):
            await log.poll_now()
        assert log.processed == ids(range(1, 11))
        await log.poll_now(timeout=None)
    assert log.processed == store.keys == ids(range(1, 21))


async def test_a_message_whose_first_commit_failed_is_still_a_duplicate():
    class FailsOnce(Slow):
        async def claim(self, name, *, feed):
            session = await super().claim(name, feed=feed)
            self.broken = 1
            return session

    first, second = ["x", *range(1, 10)], list(range(10, 20))
    feed, store = pages(first, second, ["x", *range(20, 30)], list(range(30, 40))), FailsOnce(takes=0.5)
    async with Log(feed, store=store, takes=0.06, commit_interval=100.0) as log:
        await log.poll_now()
    assert log.processed.count("x") == 1


async def test_all_messages_before_a_finally_failed_message_are_committed():
    feed, store = feed_of(20), Slow()

    class Failing(Log):
        async def process(self, message):
            await super().process(message)
            if message.id == "5":
                raise ValueError

    async with Failing(feed, store=store, commit_interval=100.0, retry=None) as log:
        with pytest.raises(ProcessError):
            await log.poll_now()
        assert (log.status().cursor, store.keys) == (feed.after(4), ids(range(1, 5)))


async def test_all_messages_before_a_failed_fetch_are_committed():
    feed, store = feed_of(30), Slow()
    feed.answer(None, None, FeedError("not now"))
    async with Log(feed, store=store, commit_interval=10.0) as log:
        with pytest.raises(FeedError, match="not now"):
            await log.poll_now()
        assert (log.status().cursor, store.keys) == (feed.after(20), ids(range(1, 21)))


async def test_a_chain_restart_repeats_no_settled_message():
    feed, store = feed_of(30), Slow()
    feed.answer(None, None, PagesChanged("the pages changed"))
    async with Log(feed, store=store, commit_interval=10.0) as log:
        result = await log.poll_now()
    assert log.processed == store.keys == ids(range(1, 31))
    assert result.duplicates == 0


async def test_messages_before_a_failing_message_are_committed_while_it_waits_for_its_retry():
    feed, store = feed_of(20), Slow(takes=5.0)
    committed = []

    class Failing(Log):
        async def process(self, message):
            if message.id == "15":
                committed.append(len(store.keys))
                raise ValueError
            await super().process(message)

    async with Failing(feed, store=store, commit_interval=100.0) as log:
        with pytest.raises(ProcessError):
            await polls_on(log)
        assert log.status().cursor == feed.after(14)
    assert committed == [0, 14, 14, 14, 14]


async def test_a_cancelled_poll_lets_its_background_commit_finish():
    feed, store = feed_of(20), Slow(takes=1.0)
    async with Log(feed, store=store, takes=0.1, commit_interval=100.0) as log:
        with anyio.move_on_after(1.25):
            await log.poll_now()
        assert store.keys == ids(range(1, 13))
        assert log.status().cursor == feed.after(12)
        await log.poll_now()
    assert log.processed == store.keys == ids(range(1, 21))


def hangs_after_its_first_page():
    """Create a feed whose second fetch never ends."""
    feed = feed_of(40)

    def hang(request):
        feed.latency = 1e9

    feed.answer(None, hang)
    return feed


@pytest.mark.parametrize(("broken", "recorded"), [(1, 10), (2, 10), (3, 0)])
async def test_a_stop_waits_for_the_background_commit_and_raises_if_it_fails_twice(broken, recorded):
    """It retries once at the end, so that less is processed again."""
    feed, store = hangs_after_its_first_page(), Slow(takes=0.5)
    store.broken = broken
    log = Log(feed, store=store, commit_interval=10.0)

    async def run():
        try:
            await log.run()
        except OSError:
            raised.append("the disk is full")

    raised = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await log.until(10)
        await anyio.sleep(0.7)
        log.stop()
    assert len(store.keys) == recorded
    assert bool(raised) == (broken > 1)


async def test_a_message_that_exceeds_the_shutdown_timeout_loses_no_other_progress():
    feed, store, begun = feed_of(40), Slow(takes=1.0), anyio.Event()

    class Hanging(Log):
        async def process(self, message):
            if message.id == "15":
                begun.set()
                await anyio.sleep_forever()
            await super().process(message)

    log = Hanging(feed, store=store, commit_interval=10.0, shutdown_timeout=0.2)
    store.broken = 1
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(log.run)
        await begun.wait()
        log.stop()
    assert log.processed == store.keys == ids(range(1, 15))


async def test_a_failed_commit_of_a_cancelled_poll_does_not_fail_the_next_poll():
    feed, store = hangs_after_its_first_page(), Slow(takes=0.5)
    async with Log(feed, store=store, commit_interval=10.0) as log:
        store.broken = 1
        with anyio.move_on_after(0.7):
            await log.poll_now()
        feed.latency = 0.0
        result = await log.poll_now()
    assert (result.messages, result.duplicates) == (30, 0)
    assert log.processed == store.keys == ids(range(1, 41))


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("after", [0.0, 0.2, 0.7])
async def test_processed_messages_are_recorded_when_asyncio_cancels_every_task(after):
    """`asyncio.run` cancels all tasks at its end, including the task of the commit."""
    feed, store = hangs_after_its_first_page(), Slow(takes=0.5)
    log, others = Log(feed, store=store, commit_interval=10.0), asyncio.all_tasks()
    running = asyncio.ensure_future(log.run())
    await log.until(10)
    await anyio.sleep(after)
    for task in asyncio.all_tasks() - others:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert log.processed == store.keys == ids(range(1, 11))


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # so anyio says that it had not begun
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_the_poll_commits_itself_when_its_commit_task_was_cancelled_before_it_started():
    class Last(Log):
        async def process(self, message):
            self.processed.append(message.id)
            if message.id == "10":
                asyncio.get_running_loop().call_soon(cancel)

    def cancel():
        for task in asyncio.all_tasks() - others - {running}:
            task.cancel()

    feed, store = hangs_after_its_first_page(), Slow(takes=0.5)
    log, others = Last(feed, store=store, commit_interval=10.0), asyncio.all_tasks()
    running = asyncio.ensure_future(log.poll_now())
    with contextlib.suppress(RuntimeError):  # of the fetch, which was cancelled with it
        await asyncio.wait_for(running, 5)
    assert log.processed == store.keys == ids(range(1, 11))
    gc.collect()


async def test_the_next_page_waits_when_too_many_messages_are_uncommitted(monkeypatch):
    monkeypatch.setattr(_progress, "MAX_PENDING", 25)
    feed, store = feed_of(100), Slow(takes=100.0)
    pending = []

    class Watched(Log):
        async def process(self, message):
            await super().process(message)
            pending.append(len(self.processed) - len(store.keys))

    async with Watched(feed, store=store, commit_interval=1e6, max_poll_time=1e6) as log:
        await log.poll_now()
    assert log.processed == store.keys == ids(range(1, 101))
    assert 30 < max(pending) <= 40  # ten under way, and three pages that wait for them


async def test_a_feed_with_an_unchanged_cursor_is_fetched_while_it_returns_new_messages():
    """The commit of these messages does not matter."""
    feed, store = FakeFeed(read_ahead=True), Slow()
    pages_of_ids = [ids(range(n, n + 10)) for n in (0, 10, 20)]
    feed.answer(
        *(Page([Message(name) for name in names], cursor="here", next_page="here") for names in pages_of_ids),
        Page([Message("20")], cursor="here", next_page="here"),
    )
    async with Log(feed, store=store, commit_interval=100.0) as log:
        result = await log.poll_now()
    assert (result.messages, result.duplicates) == (30, 1)


async def test_the_cursor_of_a_page_without_messages_is_saved():
    feed = FakeFeed(read_ahead=True)
    feed.answer(
        Page([Message(str(n)) for n in range(10)], cursor="c1", next_page="c1"),
        Page([Message(str(n)) for n in range(10)], cursor="c2", next_page="c2"),
        Page([], cursor="c3"),
    )
    store = Slow(takes=0.1)
    async with Log(feed, store=store) as log:
        await log.poll_now()
        assert log.status().cursor == "c3"
    assert store.keys == ids(range(10))


class Hangs(Slow):
    """The commit with this message never ends."""

    def __init__(self, message):
        super().__init__(takes=0.0)
        self.message = message
        self.hangs = anyio.Event()

    async def claim(self, name, *, feed):
        session = await super().claim(name, feed=feed)
        commit = session.commit

        async def hang(*, cursor, records, **others):
            if self.message in [record.key for record in records]:
                self.hangs.set()
                await anyio.sleep_forever()
            await commit(cursor=cursor, records=records, **others)

        session.commit = hang
        return session


GIVEN_UP = r"cancelled a commit of 2 messages after .* s, since the consumer is stopping"


@pytest.mark.parametrize("read_ahead", [False, True])
async def test_a_stop_waits_for_a_hanging_commit_until_the_shutdown_timeout(read_ahead):
    store = Hangs("12")
    consumer = Log(feed_of(12, read_ahead=read_ahead), store=store, shutdown_timeout=20)
    async with anyio.create_task_group() as tasks:

        async def stop():
            await store.hangs.wait()
            await anyio.sleep(100)
            began.append(anyio.current_time())
            consumer.stop()

        began = []
        tasks.start_soon(stop)
        with pytest.raises(StoreError, match=GIVEN_UP):
            await consumer.run()
    assert anyio.current_time() - began[0] <= 20 + _progress.MIN_COMMIT_TIMEOUT
    assert store.keys == ids(range(1, 11))
    store.message = None
    again = Log(consumer._feed, store=store)
    await again.poll_now()
    assert again.processed == ["11", "12"]


async def test_a_cancelled_run_gives_up_a_commit_that_hangs(caplog):
    store = Hangs("12")
    consumer = Log(feed_of(12, read_ahead=False), store=store, shutdown_timeout=20)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await store.hangs.wait()
        began = anyio.current_time()
        tasks.cancel_scope.cancel()
    assert anyio.current_time() - began <= 20 + _progress.MIN_COMMIT_TIMEOUT
    assert re.search(GIVEN_UP, caplog.text)


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_a_cancelled_poll_now_abandons_a_commit_that_hangs(concurrency):
    store = Hangs("12")
    consumer = Log(
        feed_of(12, read_ahead=False),
        store=store,
        shutdown_timeout=20,
        concurrency=concurrency,
        ordering_key=lambda message: message.id,
        commit_interval=0,
        takes=1,
    )
    scope = anyio.CancelScope()

    async def poll():
        with scope, pytest.raises(StoreError, match="cancelled a commit of"):
            await consumer.poll_now()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(poll)
        await store.hangs.wait()
        began = anyio.current_time()
        scope.cancel()
    assert anyio.current_time() - began <= 2 * 20 + _progress.MIN_COMMIT_TIMEOUT
    assert "12" not in store.keys


async def test_a_commit_begun_after_the_shutdown_timeout_still_gets_some_seconds():
    store = Slow(takes=4.0)
    consumer = Log(feed_of(2, read_ahead=False), store=store, shutdown_timeout=0, commit_interval=1000, takes=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await consumer.until(1)
        consumer.stop()
    assert store.keys == ["1"]


@pytest.mark.parametrize("call", ["unseen", "commit", "release"])
async def test_a_store_that_hangs_between_two_commits_does_not_keep_run_from_stopping(call):
    """Commits of a listener's state or a position also have a limit."""

    class HangsInOneCall(MemoryStore):
        async def claim(self, name, *, feed):
            session = await super().claim(name, feed=feed)
            setattr(session, call, lambda *_, **__: anyio.sleep_forever())
            return session

    consumer = Log(feed_of(0), store=HangsInOneCall())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await anyio.sleep(100)
        began = anyio.current_time()
        consumer.stop()
    assert anyio.current_time() - began <= 20
