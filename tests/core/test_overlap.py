"""Messages that become visible late are lost without an overlap, and found with one.

Time and times of day are virtual; a crash loses everything uncommitted.
"""

import logging
import random
from contextlib import suppress
from dataclasses import dataclass

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from push_to_poll_client import (
    CursorExpired,
    FeedError,
    Hooks,
    MemoryStore,
    Message,
    Page,
    PagesChanged,
    Push,
    StoreError,
)
from push_to_poll_client._position import FULL_HISTORY, LAST_WALK_KEY
from push_to_poll_client.testing import FakeFeed
from push_to_poll_client.testing._manual_listener import ManualListener
from push_to_poll_client.testing._virtual_time import START, virtual_time
from tests.support.clock import time_of_day
from tests.support.consumers import Log, times
from tests.support.database_feed import DatabaseFeed, Row, rows_of
from tests.support.forms import form

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_day")]

LONGEST = 5.0
"""Longest duration of a transaction, in seconds."""


# Any table, any handler, any crash


@dataclass(frozen=True)
class Story:
    """One way in which a table is written, served and consumed."""

    rows: tuple
    feed: dict
    consumer: dict
    slow: float = 0.0
    crashes: tuple = ()
    backend: str = "asyncio"


class Random(Log):
    """Take any time up to `takes`."""

    def __init__(self, feed, *, takes, **settings):
        super().__init__(feed, takes=0.0, **settings)
        self.slow, self.random = takes, random.Random(0)  # noqa: S311  # not for secrets

    async def process(self, message):
        await anyio.sleep(self.slow * self.random.random())
        await super().process(message)


async def refuse(**_):
    raise StoreError("crashed")


async def run_until_crash(consumer, end, cursors):
    async def run():
        with suppress(StoreError):
            await consumer.run()

    async with anyio.create_task_group() as tasks:
        await consumer.__aenter__()
        watch(consumer, cursors)
        tasks.start_soon(run)
        await anyio.sleep_until(end)
        consumer._parts.session.commit = refuse
        tasks.cancel_scope.cancel()
    await consumer.__aexit__(None, None, None)


def watch(consumer, cursors):
    """Record the cursors that it saves."""
    commit = consumer._parts.session.commit

    async def watched(**what):
        await commit(**what)
        if what["cursor"] is not None:
            cursors.append(what["cursor"])

    consumer._parts.session.commit = watched


def tell(story, overlap):
    """Return the processed messages, the saved cursors with counts, and the number of requests."""
    feed, store = DatabaseFeed(list(story.rows), **story.feed), MemoryStore()
    done, cursors, late = [], [], 0

    async def main():
        nonlocal late
        for end in (*story.crashes, story.rows[-1].drawn + form(300, 1_000)):
            consumer = Random(
                feed, store=store, takes=story.slow, overlap=overlap, shutdown_timeout=0.001, **story.consumer
            )
            await run_until_crash(consumer, START + end, cursors)
            done.extend(consumer.processed)
            late += consumer.status().counters.late

    backend, options = virtual_time(story.backend)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("push_to_poll_client._event_loop.wall_clock", time_of_day)
        anyio.run(main, backend=backend, backend_options=options)
    return done, [int(cursor) for cursor in cursors], late, len(feed.asked)


GAPS = [0.0, 0.1, 0.5, 2.0, 10.0]
LENGTHS = [0.0, 0.1, 1.0, LONGEST]


@st.composite
def stories(draw):
    size = draw(st.integers(1, 50))
    some = st.lists(st.sampled_from(GAPS), min_size=size, max_size=size)
    rows = rows_of(draw(some), draw(st.lists(st.sampled_from(LENGTHS), min_size=size, max_size=size)))
    crashes = draw(st.lists(st.floats(0.1, max(rows[-1].drawn, 0.2)), max_size=4).map(sorted))
    return Story(
        tuple(rows),
        {
            "page_size": draw(st.sampled_from([1, 3, 10])),
            "cursors": draw(st.sampled_from(["message", "page"])),
            "ends_empty": draw(st.booleans()),
            "max_wait": draw(st.sampled_from([None, 20.0])),
            "before": draw(st.sampled_from([0.0, 0.3])),
            "after": draw(st.sampled_from([0.0, 0.3])),
            "read_ahead": draw(st.booleans()),
        },
        {
            "fallback_interval": draw(st.sampled_from([1.0, 7.0, 30.0])),
            "degraded_interval": None,
            "rate": None,
            "max_poll_time": draw(st.sampled_from([1.0, 5.0, 30.0])),
            "commit_interval": draw(st.sampled_from([0.0, 0.05, 10.0])),
        },
        draw(st.sampled_from([0.0, 0.05, 1.0, 3.0])),
        tuple(crashes),
        draw(st.sampled_from(["asyncio", "trio"])),
    )


@settings(max_examples=form(10, 1_500))
@given(stories())
def test_no_message_is_lost_if_the_overlap_is_as_long_as_the_longest_transaction(story):
    done, cursors, _, _ = tell(story, LONGEST)
    assert set(done) == {str(n + 1) for n in range(len(story.rows))}
    assert cursors == sorted(cursors), "the saved cursor never goes back"
    if not story.crashes:
        assert len(done) == len(set(done)), "nothing is processed twice"


ROWS = form(60, 150)


def seeded(seed, **feed):
    rng = random.Random(seed)  # noqa: S311  # not for secrets
    rows = rows_of(rng.choices(GAPS, k=ROWS), rng.choices(LENGTHS, k=ROWS))
    crashes = tuple(sorted(rng.uniform(1, rows[-1].drawn) for _ in range(3)))
    consumer = {"fallback_interval": 7.0, "degraded_interval": None, "rate": None, "max_poll_time": 5.0}
    return Story(tuple(rows), {"before": 0.1, "after": 0.1, **feed}, consumer, rng.choice([0.0, 1.0]), crashes)


@pytest.mark.parametrize("feed", [{}, {"cursors": "page"}, {"max_wait": 20.0}, {"ends_empty": True}], ids=str)
def test_late_messages_are_lost_without_an_overlap_and_found_with_one(feed):
    lost = [0, 0]
    for seed in range(form(2, 8)):
        story = seeded(seed, **feed)
        for which, overlap in enumerate([0.0, LONGEST]):
            done, cursors, late, _ = tell(story, overlap)
            lost[which] += len(story.rows) - len(set(done))
            assert cursors == sorted(cursors)
            assert bool(late) == bool(overlap)
    assert lost[0] > form(10, 100)
    assert lost[1] == 0


# The stories that a simpler reckoning would lose


async def all_of(consumer, feed, seconds):
    with anyio.move_on_after(seconds):
        await consumer.run()
    return sorted(map(int, consumer.processed)) == [n + 1 for n in range(len(feed.rows))]


async def test_a_late_message_is_found_if_a_page_takes_longer_to_process_than_the_overlap():
    """Row 2 appears while page 1 is processed. When page 2 is requested, page 1 is older than the overlap."""
    rows = [Row(0.0, 0.0), Row(0.0, 3.0), Row(0.0, 0.0), Row(0.1, 0.1), Row(9.0, 9.0), Row(9.0, 9.0)]
    feed = DatabaseFeed(rows, page_size=3)
    assert await all_of(Log(feed, takes=5.0, overlap=LONGEST), feed, 300)


async def test_a_late_message_is_found_after_a_page_that_the_server_held(running):
    """Row 1 gets its number shortly before the server answers an old request, and becomes visible long after."""
    rows = [Row(14.9, 19.8), Row(15.0, 15.0), Row(15.5, 15.5)]
    feed = DatabaseFeed(rows, max_wait=30.0)
    assert await all_of(Log(feed, overlap=LONGEST), feed, 300)


async def test_long_polls_deliver_new_messages_at_once_and_still_find_a_late_one(running):
    rows = [Row(float(n), float(n)) for n in range(5)]
    rows += [Row(100.0, 104.0), Row(100.5, 100.5), Row(200.0, 200.0)]
    feed = DatabaseFeed(rows, max_wait=60.0)
    consumer = running(Log(feed, overlap=LONGEST, fallback_interval=60))
    await consumer.until(len(rows))
    at = dict(zip(consumer.processed, [at - START for at in consumer.at], strict=True))
    assert (at["5"], at["7"], at["8"]) == (4.0, 100.5, 200.0), "each was there when it was to be"
    assert at["6"] <= 104.0 + 60.0
    assert consumer.status().counters.late == 1
    assert len(feed.asked) < 60


@pytest.mark.no_cover  # lines are counted where it is quick
async def test_late_messages_are_found_on_a_feed_that_is_never_caught_up(running):
    """The feed is written faster than it is fetched: each page has a next page."""
    end = form(190, 390)
    number = 10 * end
    rows = rows_of([0.1] * (number + 100), [0.0, 0.0, 0.0, LONGEST] * (number // 4 + 25))
    feed = DatabaseFeed(rows, page_size=100, ends_empty=True, before=0.3)
    consumer = running(Log(feed, overlap=LONGEST, max_poll_time=10))
    await anyio.sleep(end)
    assert consumer.status().last_caught_up is None
    missing = set(range(1, number)) - {int(processed) for processed in consumer.processed}
    assert not {n for n in missing if rows[n - 1].committed < end - 2 * (10 + LONGEST) - 5}
    assert len(feed.asked) < 2 * end / 0.3


async def test_a_late_message_is_found_after_a_slow_page_and_a_restart():
    """A restart comes between the slow page and the next poll."""
    rows = [Row(0.0, 3.0), Row(0.0, 0.0), Row(0.0, 0.0), Row(0.0, 0.0), Row(0.1, 0.1), Row(0.1, 0.1)]
    feed, store = DatabaseFeed(rows, page_size=3), MemoryStore()
    await anyio.sleep(1)
    first = Log(feed, store=store, takes=5.0, overlap=LONGEST)
    await first.poll_now()
    assert first.processed == ["2", "3", "4", "5", "6"]
    second = Log(feed, store=store, overlap=LONGEST)
    await second.poll_now()
    assert second.processed == ["1"]


async def test_an_overlap_that_takes_longer_than_a_poll_is_read_to_its_end(running):
    feed = FakeFeed(page_size=1, latency=1.0)
    feed.publish(20)
    consumer = running(Log(feed, overlap=1_000, max_poll_time=5))
    await consumer.until(20)
    published = anyio.current_time()
    feed.publish("new")
    consumer.wake()
    await consumer.until(21)
    assert anyio.current_time() - published < 50


async def test_the_saved_cursor_moves_during_a_backlog_on_a_feed_with_page_cursors(running):
    """If only pages have cursors, a backlog must still save some of them."""
    rows = [Row(0.0, 0.0), Row(0.0, 4.5), Row(0.0, 0.0), Row(0.0, 0.0), Row(0.0, 0.0)] + [Row(3.0, 3.0)] * 100
    feed, cursors = DatabaseFeed(rows, page_size=3, cursors="page"), []
    consumer = Log(feed, takes=1.0, overlap=LONGEST, max_poll_time=5, fallback_interval=2, degraded_interval=None)
    async with consumer:
        watch(consumer, cursors)
        running(consumer)
        await anyio.sleep(50)
        assert len(cursors) > 10, "it moves while the backlog is worked off"
        await consumer.until(len(rows))
        await anyio.sleep(60)
    assert sorted(map(int, consumer.processed)) == list(range(1, len(rows) + 1))
    assert [int(cursor) for cursor in cursors] == sorted(map(int, cursors))
    assert consumer.status().counters.late == 1


async def test_pages_that_appear_late_are_found_after_slow_polls_on_a_feed_with_page_cursors(running):
    """Whole pages appear late. The walk stops on one of them because it is slow."""
    rows = [Row(0.0, 0.0)] * 3 + [Row(0.0, 4.0)] * 9 + [Row(0.0, 0.0)] * 2
    feed = DatabaseFeed(rows, page_size=3, cursors="page")
    settings = {"overlap": LONGEST, "max_poll_time": 5, "fallback_interval": 10, "degraded_interval": None}
    consumer = running(Log(feed, **settings))
    began = anyio.current_time()
    await consumer.until(5)
    consumer.takes = 2.0
    await consumer.until(len(rows))
    assert anyio.current_time() - began < 100


async def test_a_poll_that_fails_within_an_overlap_does_not_move_the_cursor(virtual_day):
    """It fails before the saved cursor. Otherwise the walk after the crash would begin behind unseen messages."""
    feed = FakeFeed(page_size=1)
    feed.publish("1")
    feed.publish("2", lag=3)
    feed.publish("3")
    feed.publish("4", lag=4)
    feed.publish("5")
    store = MemoryStore()
    await Log(feed, store=store, overlap=LONGEST).poll_now()
    await anyio.sleep(4)
    feed.answer(None, None, FeedError("down"))
    consumer = Log(feed, store=store, overlap=LONGEST)
    async with consumer:
        with pytest.raises(FeedError):
            await consumer.poll_now()
        assert consumer.processed == ["2"]
        assert consumer.status().cursor == feed.after(5)
    last = Log(feed, store=store, overlap=LONGEST)
    await last.poll_now()
    assert last.processed == ["4"]


async def test_an_overlap_walk_continues_after_a_restart(virtual_day):
    """Each poll has its own session, as with a cron job."""
    feed, store = FakeFeed(), MemoryStore()
    asked_from = []
    for n in range(40):
        feed.publish(f"late-{n}", lag=4)
        feed.publish(f"{n}")
        consumer = Log(feed, store=store, overlap=LONGEST)
        asked = len(feed.requests)
        await consumer.poll_now()
        asked_from.append((n, feed.requests[asked].request.cursor))
        await anyio.sleep(2)
    assert int(asked_from[-1][1][6:].split(".")[0]) >= 2 * 40 - 12, "no further back than it must"
    await anyio.sleep(10)
    last = Log(feed, store=store, overlap=LONGEST)
    result = await last.poll_now()
    assert result.messages + consumer.status().counters.messages >= 2
    seen = await claimed(store)
    assert await seen.unseen([f"late-{n}" for n in range(40)]) == set()
    await seen.release()


async def claimed(store):
    return await store.claim("fake-feed", feed="fake-feed")


async def test_polls_start_at_the_saved_cursor_once_the_overlap_time_has_passed(running):
    feed = FakeFeed()
    feed.publish(3)
    running(Log(feed, overlap=LONGEST, fallback_interval=2, degraded_interval=None))
    await anyio.sleep(1)
    feed.publish(3)
    await anyio.sleep(30)
    from_where = [asked.request.cursor for asked in feed.requests]
    assert from_where[0] is None
    assert from_where[1] is None, "it was not long ago"
    assert from_where[-1] == feed.after(6)
    assert from_where.index(feed.after(6)) <= 6


# Whose cursors vanish


async def test_the_saved_cursor_moves_if_its_message_vanished_and_the_last_page_is_empty():
    """On a compacted feed, a newer version of an entry replaces the one that was read last."""
    consumer = Log(FakeFeed(), overlap=LONGEST)
    feed = consumer._feed
    one, two, three = (Message(name, cursor=name) for name in ("a", "b", "c"))
    async with consumer:
        feed.answer(Page([one, two], next_page="b"), Page())
        await consumer.poll_now()
        feed.answer(Page([one, three], next_page="c"), Page())
        await consumer.poll_now()
        assert consumer.processed == ["a", "b", "c"]
        assert consumer.status().cursor == "c"
        assert consumer.status().counters.late == 0


# Expired


class Heard(Hooks):
    def __init__(self):
        self.events = []

    def resynced(self, event):
        self.events.append(event)


def expired(cursors):
    return lambda request: CursorExpired("too old") if request.cursor in cursors else None


async def saving(consumer, feed, count):
    for _ in range(count):
        feed.publish(1)
        await consumer.poll_now()
        await anyio.sleep(2)


async def test_an_overlap_whose_first_cursor_expired_resyncs_to_the_saved_cursor(caplog):
    feed, heard = FakeFeed(), Heard()
    consumer = Log(feed, overlap=100, hooks=heard)
    async with consumer:
        await saving(consumer, feed, 8)
        feed.answer(expired({None}))
        feed.publish("new")
        asked = len(feed.requests)
        await consumer.poll_now()
        assert [one.request.cursor for one in feed.requests[asked:]] == [None, feed.after(8)]
        assert consumer.processed[-1] == "new"
        status = consumer.status()
        assert (status.counters.resyncs, status.counters.failed_polls) == (1, 0)
        assert status.last_resync == heard.events[0]
        assert status.last_resync.cursor == feed.after(8)
        assert status.last_resync.why == "the cursor at the start of the overlap expired"
        assert "continuing from cursor 'after-8.0', processed messages are not processed again" in caplog.text
        await saving(consumer, feed, 3)
        assert feed.requests[-1].request.cursor == feed.after(8), "the oldest one that the feed is known to know"
    assert len(heard.events) == 1


async def test_an_overlap_grows_back_to_its_length_after_its_first_cursor_expired():
    feed = FakeFeed()
    consumer = Log(feed, overlap=LONGEST, rate=None)
    async with consumer:
        await saving(consumer, feed, 10)
        feed.answer(CursorExpired("too old"))
        await saving(consumer, feed, 10)
        assert consumer.status().counters.resyncs == 1
        assert feed.requests[-1].request.cursor in {feed.after(16), feed.after(17)}, "as before"


async def test_a_walk_starts_again_if_a_later_page_of_an_overlap_has_expired():
    feed = FakeFeed(page_size=1)
    consumer = Log(feed, overlap=100)
    async with consumer:
        await saving(consumer, feed, 4)
        feed.answer(None, CursorExpired("too old"))
        feed.publish("new")
        asked = len(feed.requests)
        await consumer.poll_now()
        assert consumer.processed == ["1", "2", "3", "4", "new"]
        assert consumer.status().counters.resyncs == 0
        assert [one.request.cursor for one in feed.requests[asked : asked + 4]] == [
            None,
            feed.after(1),
            None,
            feed.after(1),
        ]


async def test_cursor_expired_is_raised_if_the_saved_cursor_expires_once_an_overlap_has_passed_it():
    feed = FakeFeed(page_size=1)
    consumer = Log(feed, overlap=100)
    async with consumer:
        await saving(consumer, feed, 2)
        feed.publish("new", "newer")
        feed.answer(None, None, None, CursorExpired("too old"))
        with pytest.raises(CursorExpired):
            await consumer.poll_now()


# Counted


async def test_late_arrivals_before_a_known_message_of_their_page_are_counted(running):
    feed = FakeFeed(page_size=4)
    consumer = running(Log(feed, overlap=LONGEST, fallback_interval=3, degraded_interval=None))
    for _ in range(10):
        feed.publish(2)
        feed.publish(3, lag=3.5)
        feed.publish(1)
        await anyio.sleep(7)
    await consumer.until(60)
    assert 0 < consumer.status().counters.late <= 30
    assert consumer.status().counters.resyncs == 0


@pytest.mark.parametrize("cursors", ["message", "page", "chain"])
async def test_messages_that_a_feed_repeats_are_not_counted_as_late(running, cursors):
    feed = FakeFeed(page_size=3, overlap=2, cursors=cursors)
    feed.publish(10)
    consumer = running(Log(feed, overlap=LONGEST, fallback_interval=3, degraded_interval=None))
    for _ in range(10):
        await anyio.sleep(2)
        feed.publish(7)
    await consumer.until(80)
    await anyio.sleep(20)
    assert consumer.status().counters.late == 0
    assert len(consumer.processed) == 80


async def test_a_late_message_is_found_if_the_pages_change_during_the_walk(virtual_day):
    """The walk starts again at its start, not at the saved cursor."""
    feed = FakeFeed(page_size=2)
    feed.publish("1")
    feed.publish("late", lag=3)
    feed.publish("2", "3", "4")
    async with Log(feed, overlap=LONGEST) as consumer:
        await consumer.poll_now()
        await anyio.sleep(3)
        feed.publish("5")
        feed.answer(PagesChanged("changed"))
        await consumer.poll_now()
        assert consumer.processed == ["1", "2", "3", "4", "late", "5"]
        assert consumer.status().cursor == feed.after(6)


# What an overlap repeats is nothing new


async def test_a_repeated_message_of_an_overlap_does_not_count_as_the_pushed_one(running):
    """A push that is faster than its data is polled for again, although the poll found messages of the overlap."""
    feed, listener = FakeFeed(), ManualListener()
    feed.publish(3)
    consumer = running(Log(feed, listeners=[listener], overlap=LONGEST))
    await consumer.until(3)
    await listener.connected()
    await anyio.sleep(0.5)
    asked = len(feed.requests)
    feed.publish("late", lag=0.7)
    listener.push()
    pushed = anyio.current_time()
    await consumer.until(4)
    assert feed.requests[asked].request.cursor is None
    assert anyio.current_time() - pushed < 2


async def test_repeated_messages_of_an_overlap_do_not_count_as_missed_pushes(running):
    feed, listener = FakeFeed(), ManualListener()
    consumer = running(Log(feed, listeners=[listener], overlap=50, fallback_interval=10, degraded_interval=5))
    await listener.connected()
    feed.publish(3)
    listener.push()
    await anyio.sleep(45)
    assert consumer.status().counters.duplicates >= 9
    assert consumer.status().counters.missed_pushes == 0
    assert not consumer.status().losing_pushes


async def test_g1_a_hint_never_drops_a_wake_of_a_consumer_with_an_overlap(running):
    feed = FakeFeed()
    feed.publish(1)
    consumer = running(Log(feed, overlap=LONGEST))
    await consumer.until(1)
    await anyio.sleep(50)
    asked = len(feed.requests)
    consumer.wake(Push(cursor=feed.after(1)))
    await anyio.sleep(1)
    assert len(feed.requests) > asked
    assert consumer.status().counters.dropped == 0


async def test_an_overlap_does_not_keep_a_poll_from_being_caught_up(virtual_day):
    feed = FakeFeed(page_size=2)
    feed.publish(7)
    async with Log(feed, overlap=LONGEST) as consumer:
        await consumer.poll_now()
        result = await consumer.poll_now()
        assert (result.messages, result.duplicates, result.caught_up) == (0, 7, True)


async def test_a_wake_interrupts_the_long_poll_at_the_end_of_an_overlap(running):
    feed = FakeFeed(max_wait=1000)
    feed.publish(1)
    consumer = running(Log(feed, overlap=LONGEST, fallback_interval=1000))
    await consumer.until(1)
    await anyio.sleep(2)
    assert feed.requests[-1].request.wait == 1000
    consumer.wake()
    await anyio.sleep(0.1)
    assert [asked.request.wait for asked in feed.requests[-3:]] == [0, 0, 1000]


async def test_retry_after_is_obeyed_between_the_requests_of_an_overlap(running):
    ends, hooks = [], Hooks()
    hooks.caught_up = ends.append
    feed = FakeFeed(max_wait=1000, retry_after=30)
    feed.publish(1)
    consumer = running(Log(feed, overlap=200, fallback_interval=100, hooks=hooks))
    await anyio.sleep(110)
    assert consumer.processed == ["1"]
    between = [after - before for before, after in zip(times(feed), times(feed)[1:], strict=False)]
    assert min(between) >= 30
    assert len(ends) == consumer.status().counters.polls


# Kept


async def test_an_overlap_that_is_set_later_starts_from_the_cursors_already_kept(virtual_day):
    feed, store = FakeFeed(), MemoryStore()
    async with Log(feed, store=store) as consumer:
        await saving(consumer, feed, 10)
        assert LAST_WALK_KEY not in consumer._parts.session.state
    asked = len(feed.requests)
    async with Log(feed, store=store, overlap=LONGEST) as consumer:
        await consumer.poll_now()
        assert feed.requests[asked].request.cursor == feed.after(7)
        assert LAST_WALK_KEY in consumer._parts.session.state
    async with Log(feed, store=store) as consumer:
        await consumer.poll_now()
        assert LAST_WALK_KEY not in consumer._parts.session.state, (
            "it would be long ago when an overlap is set again"
        )


@pytest.mark.no_cover  # lines are counted where it is quick
async def test_an_overlap_longer_than_the_kept_cursors_is_logged_once(caplog, virtual_day):
    caplog.set_level(logging.WARNING)
    feed, store = FakeFeed(), MemoryStore()
    async with Log(feed, store=store, rate=None) as consumer:
        await saving(consumer, feed, FULL_HISTORY - 5)
    async with Log(feed, store=store, overlap=10_000, rate=None) as consumer:
        await saving(consumer, feed, 10)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("fake-feed: overlap=10000 s is longer than the history of saved cursors (5")


async def test_a_new_consumer_with_a_long_overlap_logs_no_warning(caplog, virtual_day):
    feed = FakeFeed()
    async with Log(feed, overlap=10_000) as consumer:
        await saving(consumer, feed, 5)
    assert caplog.records == []


async def test_an_overlap_is_read_again_after_the_held_fetch_behind_it_failed(running):
    feed = FakeFeed(max_wait=50)
    feed.answer(*[lambda request: FeedError("400: no long polling") if request.wait else None] * 1_000)
    feed.publish("late", lag=3)
    feed.publish("new")
    consumer = running(Log(feed, overlap=LONGEST))
    await consumer.until(1)
    await anyio.sleep(3.1)
    assert feed.requests[-1].request.wait
    assert (await consumer.poll_now()).caught_up
    assert consumer.processed == ["new", "late"]


async def test_a_late_message_is_found_although_the_clock_was_set_back_between_two_runs(monkeypatch):
    """The time of the last walk is in the future then, and new saved cursors look old."""
    feed, store = FakeFeed(page_size=1, latency=1.0), MemoryStore()
    feed.publish(3)
    await Log(feed, store=store, overlap=LONGEST).poll_now()
    monkeypatch.setattr("push_to_poll_client._event_loop.wall_clock", lambda: time_of_day() - 3_600)
    feed.publish("late", lag=20)
    feed.publish(*"abcdefgh")
    second = Log(feed, store=store, overlap=LONGEST, max_poll_time=7)
    assert not (await second.poll_now()).caught_up
    assert "a" in second.processed
    await anyio.sleep(20)
    third = Log(feed, store=store, overlap=LONGEST)
    await third.poll_now()
    assert "late" in third.processed
