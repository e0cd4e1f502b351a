"""G6, dedupe: a message whose processing was recorded is not processed again.

Not after a restart, a silent full replay, or an overlapping read.
"""

import anyio
import pytest

from push_to_poll_client import (
    Consumer,
    MemoryStore,
    Message,
    Page,
)
from push_to_poll_client.testing._fake_feed import FakeFeed
from tests.support.consumers import Log

pytestmark = pytest.mark.anyio


async def test_g6_no_message_is_processed_again_when_the_feed_starts_over(running):
    feed = FakeFeed(page_size=3)
    feed.publish(10)
    store = MemoryStore()
    await Log(feed, store=store).poll_now()
    feed.forget()
    feed.publish("new")
    consumer = running(Log(feed, store=store))
    await consumer.until(1)
    assert consumer.processed == ["new"]
    assert consumer.status().counters.duplicates == 10


async def test_g6_a_message_repeated_on_a_page_is_processed_once():
    feed = FakeFeed()
    feed.answer(Page([Message("a"), Message("b"), Message("a")], cursor="end"))
    consumer = Log(feed)
    result = await consumer.poll_now()
    assert (result.messages, result.duplicates) == (2, 1)
    assert consumer.processed == ["a", "b"]


async def test_g6_overlapping_reads_find_messages_that_became_visible_late():
    feed = FakeFeed(overlap=2)
    feed.publish("a")
    feed.publish("b", lag=5)
    feed.publish("c")
    consumer = Log(feed)
    await consumer.poll_now()
    await anyio.sleep(10)
    await consumer.poll_now()
    assert sorted(consumer.processed) == ["a", "b", "c"]


async def test_g6_a_message_that_comes_again_while_its_batch_is_committed_is_not_processed_again():
    class Slow(MemoryStore):
        async def claim(self, name, *, feed):
            session = await super().claim(name, feed=feed)
            commit = session.commit

            async def slow(**what):
                await anyio.sleep(0.05)
                await commit(**what)

            session.commit = slow
            return session

    class Batches(Consumer):
        async def process_batch(self, messages):
            processed.extend(message.id for message in messages)

    processed, feed = [], FakeFeed(page_size=10, read_ahead=True)
    ids = [str(number) for number in range(30)]
    ids[9], ids[20] = "3", "3"
    feed.publish(*ids)
    await Batches(feed, store=Slow(), batch_size=10, batch_wait=1.0).poll_now()
    assert sorted(processed) == sorted(set(ids))
