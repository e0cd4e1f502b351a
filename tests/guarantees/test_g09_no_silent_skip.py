"""G9, no silent skip, no silent block: a failing message is retried, then the user's policy decides.

Stop, dead-letter, or skip: each is visible. A message that cannot be decoded goes the same way.
"""

import anyio
import pytest

from push_to_poll_client import (
    Consumer,
    DecodeError,
    MemoryStore,
    ProcessError,
    RetryMessage,
)
from push_to_poll_client.testing._fake_feed import FakeFeed
from tests.support.consumers import Log, polls_on

pytestmark = pytest.mark.anyio


async def test_g9_a_failing_message_is_retried_and_then_stops_the_consumer_with_its_id(virtual_day):
    feed = FakeFeed()
    feed.publish("good", "bad", "after")
    processed = []

    async def process(message):
        if message.id == "bad":
            raise ValueError("no such customer")
        processed.append(message.id)

    store = MemoryStore()
    consumer = Consumer(feed, store=store, process=process)
    began = anyio.current_time()
    with pytest.raises(ProcessError, match="'bad'") as caught:
        await consumer.run()
    assert caught.value.id == "bad"
    assert isinstance(caught.value.__cause__, ValueError)
    assert 7 <= anyio.current_time() - began <= 11, "five attempts with backoff"
    assert processed == ["good"]
    assert consumer.status().counters.retries == 4
    assert consumer.status().last_error.startswith("ProcessError: message 'bad'")
    with pytest.raises(ProcessError, match="'bad'"):
        await polls_on(consumer)
    assert processed == ["good"], "what was done before it is recorded"


async def test_g9_an_unreadable_message_fails_without_reaching_the_handler():
    feed = FakeFeed()
    feed.publish("good")
    feed.publish("torn", error=DecodeError("torn"))
    consumer = Log(feed)
    with pytest.raises(ProcessError, match="torn"):
        await consumer.poll_now()
    assert consumer.processed == ["good"]


async def test_g9_a_message_that_waits_is_shown_by_the_first_poll_after_a_restart(virtual_day):
    class Waits(Log):
        async def process(self, message):
            raise RetryMessage("busy", after=600)

    feed, store = FakeFeed(), MemoryStore()
    feed.publish("bad")
    first, second = Waits(feed, store=store), Waits(feed, store=store)
    await first.poll_now()
    await anyio.sleep(60)
    await second.poll_now()
    assert second.status().failing == first.status().failing
    assert second.status().failing[0].retry_at == pytest.approx(1e9 + anyio.current_time() + 540)
