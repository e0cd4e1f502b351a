"""The log of a run: start, catching up, recovery and end, but no line for each poll or push."""

import logging
import re
from collections import Counter

import anyio
import pytest

from push_to_poll_client import FeedError, FeedGone, MemoryStore, StoreUnavailable
from push_to_poll_client.testing import FakeFeed, ManualListener
from tests.support.consumers import Log
from tests.support.day import simulate

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def caplog(caplog):
    caplog.set_level(logging.INFO, "push_to_poll_client")
    return caplog


def told(caplog, *beginnings):
    """Return the log lines with these beginnings, without the consumer's name."""
    ours = [record for record in caplog.records if record.name.startswith("push_to_poll_client")]
    lines = [record.getMessage().removeprefix(f"{record.consumer}: ") for record in ours]
    return [line for line in lines if line.startswith(beginnings or "")]


KINDS = {
    "started": r"started at .* of https://shop\.example/orders: polling every 60 s, 1 listener",
    "up": "manual: up",
    "caught up": r"caught up: \d+ messages? in \d+\.\d s",
    "failed": r"message '540' failed \(attempt \d of 5\), retrying in \d\.\d s: KeyError: 'customer'",
    "dead letter": r"message '540' failed \(attempt 5\), kept as a dead letter: KeyError: 'customer'",
    "poll failed": r"poll failed, retrying in \d\.\d s: FeedError: https://shop\.example/orders answered HTTP 503",
    "recovered": r"recovered after 1 failed poll in \d\.\d s",
    "stopped": r"stopped at cursor 'after-\d+\.0': stop\(\) was called",
}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_g11_the_log_of_a_day_has_a_few_lines_and_none_for_a_poll_or_a_push(backend):
    """`python -m tests.support.day` prints this log."""
    log, (polls, messages) = simulate(backend)
    assert (polls > 2_000, messages) == (True, 1_440)
    kinds = Counter()
    for record in log.records:
        text = record.getMessage().removeprefix("orders: ")
        (kind,) = [kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, text)]
        kinds[kind] += 1
    assert kinds == {
        "started": 2,
        "up": 2,
        "caught up": 3,
        "failed": 4,
        "dead letter": 1,
        "poll failed": 1,
        "recovered": 1,
        "stopped": 2,
    }
    assert {record.consumer for record in log.records} == {"orders"}
    assert sum(bool(record.exc_info) for record in log.records) == 2
    assert log.lines[0].startswith("00:00:00 INFO orders: started at the inception of ")
    assert any("started at cursor 'after-1080.0' of" in line for line in log.lines)


async def test_an_idle_consumer_logs_its_start_and_then_nothing(caplog, running):
    feed = FakeFeed()
    running(Log(feed, listeners=[listener := ManualListener()]))
    await anyio.sleep(6 * 3_600)
    assert len(feed.requests) >= 360
    assert told(caplog) == [
        "started at the inception of fake-feed: polling every 60 s, 1 listener",
        "manual: up",
        "caught up: 0 messages in 0.0 s",
    ]
    assert listener.listens == 1


@pytest.mark.parametrize(
    ("start", "place"),
    [("inception", "the inception"), ("latest", "the end"), ("after-2.0", "cursor 'after-2.0'")],
)
async def test_the_first_line_says_where_a_run_begins_and_the_last_one_where_it_ended(start, place, caplog):
    feed, store = FakeFeed(), MemoryStore()
    feed.publish(5)
    for begins in (place, "cursor 'after-5.0'"):
        caplog.clear()
        consumer = Log(feed, store=store, start=start, fallback_interval=None)
        with anyio.move_on_after(10):
            await consumer.run()
        lines = told(caplog)
        assert lines[0] == f"started at {begins} of fake-feed: polling only when woken, 0 listeners"
        assert lines[-1] == "stopped at cursor 'after-5.0': run() was cancelled"


async def test_the_last_line_says_why_a_run_ended(caplog):
    feed = FakeFeed()
    consumer = Log(feed)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await anyio.sleep(1)
        consumer.stop()
    feed.fail(FeedGone("410"))
    with pytest.raises(FeedGone):
        await consumer.run()
    feed.end()
    await consumer.run()
    assert told(caplog, "stopped", "stopping") == [
        "stopped at the inception: stop() was called",
        "stopping: FeedGone: 410",
        "stopped at the inception: because of an error",
        "stopped at the inception: the feed has ended, all messages are settled",
    ]


async def test_a_run_that_is_stopped_before_it_begins_logs_nothing(caplog):
    consumer = Log(FakeFeed())
    run = consumer.run()
    consumer.stop()
    await run
    assert told(caplog) == []


async def test_an_idle_long_poll_logs_nothing(caplog, running):
    feed = FakeFeed(max_wait=90)
    running(Log(feed, fallback_interval=300))
    await anyio.sleep(10)
    caplog.clear()
    await anyio.sleep(3_600)
    assert len(feed.requests) >= 40
    assert told(caplog) == []


async def test_an_outage_is_logged_with_its_end_and_how_long_it_took(caplog, running):
    feed = FakeFeed()
    consumer = running(Log(feed))
    await anyio.sleep(100)
    caplog.clear()
    feed.fail(FeedError("down"), times=None)
    await anyio.sleep(600)
    feed.publish(3)
    feed.recover()
    await consumer.until(3)
    await anyio.sleep(100)
    failures = len(told(caplog, "poll failed"))
    (recovered,) = told(caplog, "recovered")
    number, seconds = re.fullmatch(r"recovered after (\d+) failed polls in (\d+)\.\d s", recovered).groups()
    assert int(number) == failures > 5
    assert 500 < int(seconds) < 700
    (line,) = told(caplog, "caught up")
    assert line == f"caught up: 3 messages in {recovered.rpartition(' in ')[2]}"


async def test_a_store_that_is_available_again_is_logged(caplog, running):
    class Failing(MemoryStore):
        failures = 0

        async def claim(self, name, *, feed):
            session = await super().claim(name, feed=feed)
            commit = session.commit

            async def commit_or_fail(**written):
                if self.failures:
                    self.failures -= 1
                    raise StoreUnavailable("the disk is full")
                await commit(**written)

            session.commit = commit_or_fail
            return session

    feed, store = FakeFeed(), Failing()
    consumer = running(Log(feed, store=store))
    await anyio.sleep(10)
    caplog.clear()
    store.failures = 3
    feed.publish(1)
    consumer.wake()
    await anyio.sleep(100)
    failures = len(told(caplog, "store unavailable"))
    assert failures > 0
    (recovered,) = told(caplog, "recovered")
    assert recovered.startswith(f"recovered after {failures} failed polls in ")
    assert told(caplog, "caught up") == [f"caught up: 1 message in {recovered.rpartition(' in ')[2]}"]


async def test_a_long_backlog_is_logged_when_it_is_done_and_a_short_one_is_not(caplog, running):
    feed = FakeFeed(page_size=1, latency=1.0)
    consumer = running(Log(feed))
    await anyio.sleep(100)
    caplog.clear()
    feed.publish(45)  # two polls
    await consumer.until(45)
    await anyio.sleep(100)
    assert told(caplog) == []
    feed.publish(200)
    await consumer.until(245)
    await anyio.sleep(100)
    (line,) = told(caplog)
    assert re.fullmatch(r"caught up: 200 messages in 20\d\.\d s", line)


async def test_g11_a_feed_that_always_has_more_logs_a_line_a_minute_at_most(caplog, running):
    class Growing(FakeFeed):
        async def fetch(self, request):
            if len(self.requests) % 80:
                self.publish(1)
            return await super().fetch(request)

    running(Log(Growing(page_size=1, latency=1.0), fallback_interval=1))
    await anyio.sleep(600)
    assert 2 <= len(told(caplog)) <= 12


async def test_a_poll_now_without_run_logs_no_success(caplog):
    feed = FakeFeed()
    consumer = Log(feed)
    for _ in range(3):
        feed.publish(1)
        await consumer.poll_now()
    async with consumer:
        await consumer.poll_now()
    with anyio.move_on_after(1):
        await consumer.run()
    caplog.clear()
    async with consumer:
        await consumer.poll_now()
    assert told(caplog) == []


async def test_a_poll_now_during_run_can_be_the_one_that_recovers(caplog, running):
    feed = FakeFeed()
    consumer = running(Log(feed))
    await anyio.sleep(1)
    feed.fail(FeedError("down"))
    with pytest.raises(FeedError):
        await consumer.poll_now()
    await consumer.poll_now()
    assert len(told(caplog, "recovered after 1 failed poll in ")) == 1
