"""G11, bounded: memory, queues, records, errors and log lines have a limit."""

import threading

import pytest

from push_to_poll_client import (
    FeedError,
    Push,
)
from push_to_poll_client.testing._fake_feed import FakeFeed
from tests.support.consumers import Log
from tests.support.forms import form

pytestmark = pytest.mark.anyio


async def test_g11_a_flood_of_wakes_is_kept_in_bounded_memory():
    consumer = Log(FakeFeed())
    for _ in range(form(1_000, 100_000)):
        consumer.wake(Push(cursor="x"))
    assert len(consumer._wakes._pushes) <= 64
    await consumer.poll_now()
    assert consumer.status().counters.wakes <= 64


async def test_g11_a_flood_of_wakes_while_the_loop_is_busy_leaves_one_callback(monkeypatch):
    async with Log(FakeFeed()) as consumer:
        callbacks, loop = [], consumer._open_session.loop
        monkeypatch.setattr(loop, "_call_soon", callbacks.append)

        def flood():
            for _ in range(form(1_000, 1_000_000)):
                consumer.wake()

        thread = threading.Thread(target=flood)
        thread.start()
        thread.join()  # the loop is busy here
        assert len(callbacks) == 1
        callbacks.pop()()
        assert consumer.status().counters.wakes == 64
        consumer.wake()
        assert len(callbacks) == 1


async def test_g11_an_error_of_any_size_is_kept_as_one_short_line():
    feed = FakeFeed()
    feed.fail(FeedError("evil\n\x1b[31m" * 100_000))
    consumer = Log(feed)
    with pytest.raises(FeedError):
        await consumer.poll_now()
    text = consumer.status().last_error
    assert len(text) <= 500
    assert text.isprintable()
