"""`catch_up()`: polls until caught up, however long that takes, and returns the sum."""

import anyio
import pytest
from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

from push_to_poll_client import (
    Consumer,
    DeadLetterMessage,
    FeedError,
    FeedGone,
    MemoryStore,
    Message,
    Page,
    PollResult,
    ProcessError,
    SkipMessage,
    StoreError,
    StoreUnavailable,
)
from push_to_poll_client.testing import FakeFeed
from tests.support.consumers import Log, times
from tests.support.refusing_store import RefusingStore

pytestmark = pytest.mark.anyio

HOUR = 3600.0


def feed_of(count, **settings):
    feed = FakeFeed(**settings)
    feed.publish(count)
    return feed


async def test_catch_up_reads_for_hours_in_one_session():
    feed = feed_of(360, page_size=1, latency=30.0)
    store, claims = MemoryStore(), 0
    claim = store.claim

    async def counting_claim(name, *, feed):
        nonlocal claims
        claims += 1
        return await claim(name, feed=feed)

    store.claim = counting_claim
    began = anyio.current_time()
    result = await Log(feed, store=store).catch_up()
    assert result == PollResult(messages=360, duplicates=0, pages=360, caught_up=True)
    assert anyio.current_time() - began >= 3 * HOUR
    assert (claims, feed.closed) == (1, 1)


@pytest.mark.parametrize("cursors", ["message", "page", "chain"])
async def test_catch_up_returns_the_sum_of_all_its_polls(cursors):
    async def process(message):
        await anyio.sleep(10)
        if message.id in {"4", "18"}:
            raise DeadLetterMessage("no such customer")
        if message.id == "9":
            raise SkipMessage

    feed = FakeFeed(page_size=2, cursors=cursors)
    feed.publish(20)
    feed.publish("1", "2")  # again
    consumer = Consumer(feed, store=MemoryStore(), process=process)
    result = await consumer.catch_up()
    assert result == PollResult(20, 2, 11, caught_up=True, dead_lettered=2, skipped=1)
    assert consumer.status().counters.polls > 5


async def test_catch_up_waits_for_a_message_that_is_to_be_tried_again():
    feed, attempts = feed_of(3), []

    async def process(message):
        attempts.append(message.id)
        if attempts == ["1", "2"]:
            raise ValueError("not yet")

    retry = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(600))
    began = anyio.current_time()
    result = await Consumer(feed, store=MemoryStore(), process=process, retry=retry).catch_up()
    assert attempts == ["1", "2", "2", "3"]
    assert 600 <= anyio.current_time() - began < 700
    assert (result.messages, result.caught_up, result.retry_in) == (3, True, None)


async def test_catch_up_waits_as_long_as_the_server_asks():
    feed = feed_of(3, page_size=1, retry_after=HOUR)
    result = await Log(feed).catch_up()
    assert (result.messages, result.pages) == (3, 3)
    first, second, third = times(feed)
    assert second - first >= HOUR
    assert third - second >= HOUR


async def test_catch_up_waits_for_a_token():
    consumer = Log(FakeFeed(), rate=0.1, burst=1, fallback_interval=60)
    await consumer.catch_up()
    began = anyio.current_time()
    await consumer.catch_up()
    assert anyio.current_time() - began == pytest.approx(10)


async def test_catch_up_ends_with_a_feed_that_has_ended():
    feed = feed_of(3)
    feed.end()
    result = await Log(feed).catch_up()
    assert (result.messages, result.caught_up, result.closed) == (3, True, True)


class Circle:
    """A feed whose pages repeat, with new messages in the first round."""

    identity = "circle"

    def __init__(self, pages, *, messages):
        self.pages = pages
        self.messages = messages
        self.fetches = 0

    async def fetch(self, request):
        self.fetches += 1
        await anyio.sleep(1)
        place = int(request.cursor or 0) % self.pages
        messages = [Message(f"m{place}")] if self.messages else []
        return Page(messages, next_page=str(place + 1))


@pytest.mark.parametrize("messages", [True, False])
@pytest.mark.parametrize("pages", [1, 7, 100])
@pytest.mark.parametrize("kept", [True, False])
async def test_catch_up_returns_when_the_feed_does_not_advance(pages, messages, kept):
    feed = Circle(pages, messages=messages)
    consumer = Log(feed)
    with anyio.fail_after(HOUR):
        if kept:
            async with consumer:
                result = await consumer.catch_up()
        else:
            result = await consumer.catch_up()
    assert not result.caught_up
    assert "the feed announces more pages" in result.standstill
    assert result.messages == (pages if messages else 0)
    assert feed.fetches == result.pages < 6 * pages + 10


async def test_catch_up_raises_the_error_of_a_failed_poll_and_the_next_call_goes_on():
    feed = feed_of(10, page_size=1, latency=10.0)
    feed.answer(*[None] * 5, FeedError("503"))
    consumer = Log(feed)
    with pytest.raises(FeedError, match="503"):
        await consumer.catch_up()
    assert len(consumer.processed) == 5
    assert (await consumer.catch_up()).messages == 5
    assert len(feed.requests) == 11


@pytest.mark.parametrize(("failures", "raises"), [(2, False), (3, True)])
async def test_catch_up_tries_a_fetch_again_if_its_place_cannot_be_saved(failures, raises, caplog):
    feed = feed_of(10, page_size=1, latency=10.0, cursors="chain")
    feed.answer(*[None] * 5, *[FeedError("503")] * failures)
    consumer = Log(feed)
    if raises:
        with pytest.raises(FeedError, match="503"):
            await consumer.catch_up()
    else:
        assert (await consumer.catch_up()).messages == 10
    assert caplog.text.count("poll failed, retrying in") == 2


async def test_catch_up_raises_a_lasting_error_at_once():
    feed = feed_of(3, page_size=1, cursors="chain")
    feed.answer(None, FeedGone("410"))
    with pytest.raises(FeedGone):
        await Log(feed).catch_up()
    assert len(feed.requests) == 2


async def test_catch_up_raises_the_error_of_a_message_and_of_the_store():
    async def broken(message):
        raise ValueError(message.id)

    with pytest.raises(ProcessError, match="ValueError: 1"):
        await Consumer(feed_of(2), store=MemoryStore(), process=broken, retry=None).catch_up()

    consumer = Log(FakeFeed())
    async with Log(FakeFeed(), store=consumer._store):
        with pytest.raises(StoreError):
            await consumer.catch_up()


async def test_catch_up_raises_if_the_store_is_unavailable_and_the_next_call_commits_the_rest():
    feed, store = feed_of(10, page_size=1, latency=10.0), RefusingStore()
    consumer = Log(feed, store=store)

    async def refuse_later():
        await anyio.sleep(55)
        store.refuses = {"commit"}

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(refuse_later)
        with pytest.raises(StoreUnavailable, match="disk full"):
            await consumer.catch_up()
    store.refuses.clear()
    assert (await consumer.catch_up()).caught_up
    assert consumer.processed == [str(number) for number in range(1, 11)], "none of them twice"
    assert sorted((key for keys in store.commits for key in keys), key=int) == consumer.processed


async def test_catch_up_joins_the_polls_of_run_and_counts_each_of_them():
    feed = feed_of(200, page_size=1)
    consumer = Log(feed, max_poll_time=1e-9)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        result = await consumer.catch_up()
        assert (result.messages, result.pages, result.caught_up) == (200, 200, True)
        assert consumer.processed == [str(number) for number in range(1, 201)], "never two polls at a time"
        assert consumer.status().is_owner, "run() keeps the name"
        consumer.stop()


async def test_catch_up_goes_on_when_run_is_stopped():
    feed = feed_of(100, page_size=1, latency=10.0)
    consumer = Log(feed)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)

        async def stop_later():
            await anyio.sleep(100)
            consumer.stop()

        tasks.start_soon(stop_later)
        result = await consumer.catch_up()
    assert result.caught_up
    assert len(consumer.processed) == 100


async def test_a_cancelled_catch_up_keeps_processed_messages():
    feed = feed_of(100, page_size=1, latency=10.0)
    consumer = Log(feed)
    with anyio.move_on_after(205):
        await consumer.catch_up()
    assert len(consumer.processed) == 20
    assert (await consumer.catch_up()).messages == 80
    assert len(consumer.processed) == 100


async def test_catch_up_works_while_the_consumer_is_paused():
    consumer = Log(feed_of(10, page_size=1, latency=10.0))
    consumer.pause()
    assert (await consumer.catch_up()).messages == 10


async def test_catch_up_inside_process_is_refused():
    async def process(message):
        await consumer.catch_up()

    consumer = Consumer(feed_of(1), store=MemoryStore(), process=process, retry=None)
    with pytest.raises(
        ProcessError,
        match=r"catch_up\(\) was called from the handler and would wait for itself; call wake\(\) instead",
    ):
        await consumer.catch_up()
