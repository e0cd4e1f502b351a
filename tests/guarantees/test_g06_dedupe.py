"""G6, dedupe: a message whose processing was recorded is not processed again.

This holds after a restart, a silent full replay, and an overlapping read.
"""

import anyio
import httpx
import pytest

from push_to_poll_client import (
    Consumer,
    MemoryStore,
    Message,
    Page,
    PagedFeed,
)
from push_to_poll_client.feeds.paged import Entries, OldestFirst, from_last, to_query
from push_to_poll_client.testing._fake_feed import FakeFeed
from tests.support.consumers import Log
from tests.support.replicas import Replica, stands_by
from tests.support.shared_memory import SharedMemory

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


def orders_at(url):
    """Consume ten orders, which are the same at any URL; return the feed."""

    def answer(request):
        after, size = int(request.url.params.get("after", 0)), int(request.url.params.get("per_page", 4))
        return httpx.Response(200, json=[{"id": str(number)} for number in range(1, 11)][after : after + size])

    pages = OldestFirst(cursor=from_last("id"), send=to_query("after"))
    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return PagedFeed(url, client=client, entries=Entries(id="id"), pages=pages)


@pytest.mark.parametrize("name", [None, "orders"])
async def test_g6_a_changed_page_size_processes_nothing_again(name):
    store = MemoryStore()
    first = Log(orders_at("https://shop.example/orders?per_page=2"), store=store, name=name)
    second = Log(orders_at("https://shop.example/orders?per_page=5"), store=store, name=name)
    assert [(await consumer.poll_now()).caught_up for consumer in (first, second)] == [True, True]
    assert (len(first.processed), second.processed) == (10, [])


@pytest.mark.parametrize("name", [None, "orders"])
async def test_g6_a_feed_at_a_new_address_processes_nothing_again_once_its_name_is_rebound(name):
    store, moved = MemoryStore(), orders_at("https://api.shop.example/v2/orders")
    first = Log(orders_at("https://shop.example/orders"), store=store, name=name)
    await first.poll_now()
    await store.rebind(first.name, feed=moved.identity)
    second = Log(moved, store=store, name=name)
    await second.poll_now()
    assert (len(first.processed), second.processed) == (10, [])


async def test_g6_a_message_that_another_replica_recorded_is_not_processed_again(running):
    feed, shared = FakeFeed(page_size=3), SharedMemory()
    feed.publish(10)
    owner, standby = Replica(feed, shared.replica("first")), Replica(feed, shared.replica("second"))
    async with anyio.create_task_group() as process:
        process.start_soon(owner.run)
        await owner.until(10)
        running(standby)
        await stands_by(standby)
        await anyio.sleep(1)  # until the last commit
        owner.store.crash()
        process.cancel_scope.cancel()
    feed.forget()
    feed.publish("new")
    await standby.until(1)
    assert (standby.processed, standby.status().counters.duplicates) == (["new"], 10)
