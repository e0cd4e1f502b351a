"""A hint can drop only the wake of its own push, and only if no poll is running or due (G1)."""

import logging

import anyio
import pytest

from push_to_poll_client import FeedError, MemoryStore, Push
from push_to_poll_client.testing import FakeFeed, ManualListener
from tests.support.consumers import Log

pytestmark = pytest.mark.anyio

OURS, THEIRS = Push(topics=("ours",)), Push(topics=("theirs",))


class Picky(Log):
    """Wants pushes of the topic "ours" only, and records the calls of `should_poll`."""

    def __init__(self, feed, **settings):
        super().__init__(feed, fallback_interval=1000.0, **settings)
        self.asked = []

    def should_poll(self, hint, status):
        self.asked.append((hint, status.cursor))
        return "ours" in hint.topics


@pytest.fixture
async def feed():
    feed = FakeFeed()
    feed.publish("1")
    return feed


async def quiet(consumer, feed):
    await consumer.until(1)
    await anyio.sleep(100)
    return len(feed.requests)


async def test_a_push_is_dropped_and_counted_when_should_poll_returns_false(running, feed):
    consumer = running(Picky(feed))
    before = await quiet(consumer, feed)
    consumer.wake(THEIRS)
    await anyio.sleep(100)
    assert len(feed.requests) == before
    assert consumer.asked == [(THEIRS, "after-1.0")]
    assert consumer.status().counters.dropped == 1


async def test_a_push_polls_and_the_feed_gets_its_hint_when_should_poll_returns_true(running, feed):
    consumer = running(Picky(feed))
    before = await quiet(consumer, feed)
    consumer.wake(OURS)
    await feed.asked(before + 1)
    assert feed.requests[before].request.hint == OURS


@pytest.mark.parametrize("push", [None, Push()])
async def test_a_push_without_a_hint_polls_without_calling_should_poll(running, feed, push):
    consumer = running(Picky(feed))
    before = await quiet(consumer, feed)
    consumer.wake(push)
    await feed.asked(before + 1)
    assert not consumer.asked


async def test_g1_no_push_is_dropped_while_another_wake_is_pending(running, feed):
    consumer = running(Picky(feed, wake_delay=5.0))
    before = await quiet(consumer, feed)
    consumer.wake()
    consumer.wake(THEIRS)
    await feed.asked(before + 1)
    assert consumer.status().counters.dropped == 0


async def test_g1_a_push_during_a_poll_is_not_dropped_by_should_poll(running, feed):
    feed.latency = 10.0
    consumer = running(Picky(feed))
    before = await quiet(consumer, feed)
    consumer.wake()
    await feed.asked(before + 1)
    consumer.wake(THEIRS)
    await feed.asked(before + 2)


async def test_g1_should_poll_is_not_called_with_an_overlap(running, feed):
    consumer = running(Picky(feed, overlap=10.0))
    before = await quiet(consumer, feed)
    consumer.wake(THEIRS)
    await feed.asked(before + 1)
    assert not consumer.asked


async def test_g1_a_push_polls_when_should_poll_raises_and_one_warning_is_logged(running, feed, caplog):
    class Wrong(Picky):
        def should_poll(self, hint, status):
            raise KeyError(hint.topics)

    consumer = running(Wrong(feed))
    before = await quiet(consumer, feed)
    caplog.set_level(logging.DEBUG, "push_to_poll_client")
    for number in (1, 2):
        consumer.wake(THEIRS)
        await feed.asked(before + number)
        await anyio.sleep(100)
    levels = [record.levelno for record in caplog.records if "should_poll failed" in record.message]
    assert levels == [logging.WARNING, logging.DEBUG], "whoever may push can make it fail at will"


def test_an_async_should_poll_is_a_type_error():
    class Slow(Log):
        async def should_poll(self, hint, status):
            return True

    with pytest.raises(TypeError, match="should_poll must be a plain def"):
        Slow(FakeFeed())


async def test_a_push_polls_by_default_unless_its_hint_has_the_saved_cursor(running, feed):
    consumer = running(Log(feed, fallback_interval=1000.0))
    before = await quiet(consumer, feed)
    consumer.wake(Push("after-1.0", ("orders",), 5))
    await anyio.sleep(100)
    assert len(feed.requests) == before
    consumer.wake(Push(count=0))  # not a reason to skip the poll: the count of a server is not reliable
    await feed.asked(before + 1)


async def test_merged_pushes_keep_all_topics_and_the_last_cursor_and_count(running, feed):
    feed.fail(FeedError("down"))
    consumer = Log(feed, fallback_interval=1000.0)
    for push in Push("5", ("orders",), 5), Push(None, ("users",), 7), Push("6", ("orders",)):
        consumer.wake(push)
    running(consumer)
    await consumer.until(1)
    assert feed.requests[0].request.hint == Push("6", ("orders", "users"), 7)


async def test_should_poll_is_called_for_pushes_of_listeners(running, feed):
    listener = ManualListener()
    consumer = running(Picky(feed, store=MemoryStore(), listeners=[listener]))
    await quiet(consumer, feed)
    listener.push(THEIRS)
    await anyio.sleep(1)
    assert consumer.asked == [(THEIRS, "after-1.0")]


async def test_g1_a_push_with_its_topics_in_a_list_polls(running, feed):
    """A hint that was read from JSON has a list."""
    consumer = running(Log(feed, fallback_interval=1000.0))
    before = await quiet(consumer, feed)
    consumer.wake(Push(topics=["orders"]))
    await feed.asked(before + 1)
    assert feed.requests[before].request.hint == Push(topics=("orders",))


def test_wake_with_a_string_is_a_type_error():
    with pytest.raises(TypeError, match="push must be a Push or None, got str"):
        Log(FakeFeed()).wake("orders")


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"cursor": 5}, "cursor"),
        ({"cursor": {}}, "cursor"),
        ({"topics": "orders"}, "topics"),
        ({"topics": None}, "topics"),
        ({"topics": [[]]}, "topics"),
        ({"count": []}, "count"),
    ],
)
def test_a_push_field_of_the_wrong_type_is_a_type_error(said, names):
    """Otherwise it would fail in the event loop, and stop the delivery of other pushes."""
    with pytest.raises(TypeError, match=f"{names} of a Push must be"):
        Push(**said)
