"""A feed that has ended: the consumer ends after all messages are settled."""

import logging

import anyio
import pytest
from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

from push_to_poll_client import Consumer, FeedError, FetchRequest, MemoryStore, Message, Mode, Page, StoreError
from push_to_poll_client.cli import _tail
from push_to_poll_client.testing import FakeFeed
from push_to_poll_client.testing._manual_listener import ManualListener
from tests.support.command_line import tail
from tests.support.consumers import Log, times

LINE = ": the feed has ended, all messages are settled"

in_a_loop = pytest.mark.anyio


def ended(*names, **settings):
    feed = FakeFeed(**settings)
    if names:
        feed.publish(*names)
    feed.end()
    return feed


class Stops:
    """Fail once for the messages of `failing`."""

    def __init__(self, *failing):
        self.failing = list(failing)
        self.done = []

    async def __call__(self, message):
        if message.id in self.failing:
            self.failing.remove(message.id)
            raise ValueError(message.id)
        self.done.append(message.id)


async def returns(consumer):
    with anyio.fail_after(10_000):
        await consumer.run()


@in_a_loop
@pytest.mark.parametrize("cursors", ["message", "page", "chain"])
@pytest.mark.parametrize("read_ahead", [False, True])
async def test_g5_run_returns_at_the_end_of_the_feed_when_all_is_settled_and_committed(
    cursors, read_ahead, caplog
):
    caplog.set_level(logging.INFO, "push_to_poll_client")
    feed = ended(45, cursors=cursors, read_ahead=read_ahead, page_size=20, latency=0.1)
    store = MemoryStore()
    consumer = Log(feed, store=store, takes=0.01)
    await returns(consumer)
    assert consumer.processed == [str(number) for number in range(1, 46)]
    assert [record.message for record in caplog.records if record.levelno >= logging.INFO][-1].endswith(LINE)
    session = await store.claim(consumer.name, feed=feed.identity)
    assert (session.cursor, session.record_count) == (feed.newest, 45)
    assert consumer.status().mode is Mode.STOPPED
    assert len(feed.requests) == 3


@in_a_loop
async def test_run_returns_at_once_when_it_is_called_again_after_the_feed_ended():
    feed = ended("a")
    consumer = Log(feed)
    for polls in (1, 2, 3):
        await returns(consumer)
        assert (len(feed.requests), consumer.processed) == (polls, ["a"])
    assert anyio.current_time() - times(feed)[0] < 1


@in_a_loop
async def test_run_returns_for_an_empty_feed_that_has_ended():
    consumer = Log(ended())
    await returns(consumer)
    assert consumer.processed == []


@in_a_loop
async def test_listeners_stop_when_the_feed_ends():
    listener, feed = ManualListener(), FakeFeed()
    consumer = Log(feed, listeners=[listener])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await listener.connected()
        feed.publish("a")
        feed.end()
        listener.push()
    assert consumer.processed == ["a"]
    assert consumer.status().listeners[0].since is None


@in_a_loop
async def test_the_end_of_the_feed_answers_a_waiting_long_poll():
    feed = FakeFeed(max_wait=60)
    feed.publish("a")
    consumer = Log(feed)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await feed.asked(2)
        began = anyio.current_time()
        feed.end()
    assert anyio.current_time() == began
    assert len(feed.requests) == 2


@in_a_loop
async def test_no_long_poll_is_requested_after_the_end_of_the_feed_was_found():
    feed, end = FakeFeed(max_wait=60), Page([Message("1")], cursor="after-1.0", closed=True)
    feed.publish()
    feed.answer(None, lambda _: feed.end() or end)
    await returns(Log(feed, overlap=100))
    assert [asked.request for asked in feed.requests] == [FetchRequest()] * 2


@in_a_loop
async def test_run_does_not_return_while_a_message_waits_for_its_retry():
    feed, stops = ended("a", "b", "c"), Stops("b")
    retry = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(600))
    consumer = Consumer(feed, store=MemoryStore(), process=stops, retry=retry)
    began = anyio.current_time()
    await returns(consumer)
    assert stops.done == ["a", "b", "c"]
    assert 600 <= anyio.current_time() - began < 700


@in_a_loop
async def test_a_failed_commit_at_the_end_of_the_feed_is_a_store_error():
    class Full(MemoryStore):
        async def claim(self, name, *, feed):
            session = await super().claim(name, feed=feed)

            async def commit(**_):
                raise StoreError("full")

            session.commit = commit
            return session

    with pytest.raises(StoreError, match="full"):
        await returns(Log(ended("a"), store=Full()))


@in_a_loop
async def test_messages_that_become_visible_late_are_processed_before_run_returns():
    feed = FakeFeed()
    feed.publish("a", lag=100)
    feed.publish("b", lag=200)
    feed.end()
    consumer = Log(feed, overlap=1000)
    await returns(consumer)
    assert sorted(consumer.processed) == ["a", "b"]


@in_a_loop
async def test_an_incomplete_batch_is_processed_before_run_returns():
    feed, batches = ended(25, page_size=10, read_ahead=True), []

    class Batches(Consumer):
        async def process_batch(self, messages):
            batches.append(len(messages))

    await returns(Batches(feed, store=MemoryStore(), batch_size=100, batch_wait=5.0))
    assert sum(batches) == 25


@in_a_loop
async def test_poll_now_and_replay_report_the_end_of_the_feed_also_after_a_failed_poll():
    feed = ended("a")
    consumer = Log(feed)
    assert (await consumer.poll_now()).closed
    feed.fail(FeedError("down"))
    with pytest.raises(FeedError):
        await consumer.poll_now()
    assert (await consumer.poll_now()).closed
    assert (await consumer.replay("inception")).closed


@in_a_loop
async def test_a_paused_run_returns_when_poll_now_finds_the_end():
    feed = FakeFeed()
    consumer = Log(feed)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await feed.asked(1)
        consumer.pause()
        feed.end()
        assert (await consumer.poll_now()).closed


@in_a_loop
async def test_run_continues_when_the_feed_no_longer_reports_its_end():
    feed = FakeFeed()
    feed.answer(Page([Message("a", cursor="1")], closed=True))  # a server that takes it back
    consumer = Log(feed)
    async with consumer, anyio.create_task_group() as tasks:
        assert (await consumer.poll_now()).closed
        tasks.start_soon(consumer.run)
        await feed.asked(2)
        await anyio.sleep(100)
        assert consumer.status().mode is Mode.IDLE
        consumer.stop()


@in_a_loop
async def test_an_end_found_before_run_does_not_end_a_paused_run():
    feed = FakeFeed()
    feed.answer(Page([Message("a", cursor="after-0.0")], closed=True))
    consumer = Log(feed)
    async with consumer, anyio.create_task_group() as tasks:
        assert (await consumer.poll_now()).closed
        consumer.pause()
        tasks.start_soon(consumer.run)
        await anyio.sleep(1)
        feed.publish("b")
        consumer.resume()
        await consumer.until(2)
        consumer.stop()


@in_a_loop
async def test_run_processes_the_feed_again_after_a_rewind_and_returns():
    feed = ended("a", "b")
    consumer = Log(feed)
    async with consumer:
        await returns(consumer)
        await consumer.rewind("inception", forget=True)
        await returns(consumer)
    assert consumer.processed == ["a", "b"] * 2


@pytest.mark.parametrize("options", [[], ["--once"]])
def test_tail_exits_with_code_0_when_the_feed_has_ended(options, monkeypatch, capfdbinary, tmp_path):
    feed = ended()
    feed.answer(Page([], closed=True))
    monkeypatch.setattr(_tail, "HTTPFeed", lambda *_, **__: feed)
    assert tail(capfdbinary, "https://shop.example/orders", *options)[:2] == (0, [])
