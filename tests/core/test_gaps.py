"""Gaps reported by a feed: each is reported once, and the messages behind it are processed."""

import anyio
import pytest
from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

from push_to_poll_client import Consumer, Gap, Hooks, MemoryStore, Message, Page, SQLiteStore
from push_to_poll_client.stores._sqlite.reader import SQLiteReader
from push_to_poll_client.testing import FakeFeed
from tests.support.consumers import Log, polls_on

pytestmark = pytest.mark.anyio

WHAT = "all between 17 and 40"


class Heard(Hooks):
    def __init__(self):
        self.events = []

    def gap(self, event):
        self.events.append(event)


def page(name, gap=WHAT, **rest):
    return Page([Message(name, cursor=name)], cursor=name, gap=gap, **rest)


def lines(caplog):
    return [record.message for record in caplog.records if "missing" in record.message]


@pytest.mark.usefixtures("inline_threads")
async def test_g9_a_gap_is_logged_counted_stored_and_passed_to_hooks(tmp_path, caplog):
    feed, heard, path = FakeFeed(), Heard(), tmp_path / "state.db"
    feed.answer(page("41"))
    consumer = Log(feed, store=SQLiteStore(path), hooks=heard)
    result = await consumer.poll_now()
    assert (result.messages, consumer.processed) == (1, ["41"])
    status = consumer.status()
    assert (status.counters.gaps, status.last_gap.description) == (1, WHAT)
    assert heard.events == [status.last_gap]
    assert lines(caplog) == [f"fake-feed: messages may be missing, the feed can no longer return them: {WHAT}"]
    (kept,) = SQLiteReader(path).snapshot().progress
    assert (kept.gap, kept.gap_at, kept.cursor) == (WHAT, status.last_gap.at, "41")


async def test_a_feed_without_a_gap_reports_no_gap(caplog):
    feed = FakeFeed()
    feed.publish("a")
    consumer = Log(feed, hooks=Heard())
    await consumer.poll_now()
    status = consumer.status()
    assert (status.counters.gaps, status.last_gap, lines(caplog)) == (0, None, [])


async def test_the_gap_of_a_page_that_is_fetched_again_is_reported_once(caplog):
    feed = FakeFeed()
    feed.answer(page("41"), page("41"))
    failures = [ValueError("not yet")]

    async def process(_):
        if failures:
            raise failures.pop()

    retry = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(60))
    consumer = Consumer(feed, store=MemoryStore(), process=process, retry=retry)
    assert (await consumer.poll_now()).retry_in
    await consumer.poll_now(timeout=None)
    assert (consumer.status().counters.gaps, len(lines(caplog))) == (1, 1)


async def test_every_page_with_a_gap_is_reported(caplog):
    feed = FakeFeed()
    feed.answer(page("41", next_page="41"), page("50", next_page="50"), page("60", gap="what came before 60"))
    consumer = Log(feed)
    await consumer.poll_now()
    assert consumer.status().counters.gaps == 3
    assert [line.rpartition(": ")[2] for line in lines(caplog)] == [WHAT, WHAT, "what came before 60"]


async def test_a_gap_with_another_text_at_the_same_cursor_is_reported_again(caplog):
    feed = FakeFeed()
    feed.answer(Page([Message("41")], gap="a"), Page([Message("42")], gap="b"), Page([Message("43")], gap="b"))
    consumer = Log(feed)
    for _ in range(3):
        await consumer.poll_now()
    assert [line.rpartition(": ")[2] for line in lines(caplog)] == ["a", "b"]


class Slow(MemoryStore):
    """Commits take a second, and a session has one at a time."""

    async def claim(self, name, *, feed):
        session = await super().claim(name, feed=feed)
        commit, lock = session.commit, anyio.Lock()

        async def slowly(**what):
            lock.acquire_nowait()
            await anyio.sleep(1)
            await commit(**what)
            lock.release()

        session.commit = slowly
        return session


async def test_a_gap_is_never_stored_during_another_commit():
    feed = FakeFeed(read_ahead=True)
    many = [Message(f"a{number}", cursor=f"a{number}") for number in range(20)]
    feed.answer(Page(many, cursor="a19", next_page="a19"), page("41"))
    consumer = Log(feed, store=Slow())
    assert (await consumer.poll_now()).messages == 21


async def test_the_gap_of_a_prefetched_page_is_not_reported_before_the_earlier_page_is_done():
    feed, heard = FakeFeed(read_ahead=True), Heard()
    many = [Message(f"a{number}", cursor=f"a{number}") for number in range(20)]
    feed.answer(Page(many, cursor="a19", next_page="a19"), page("41"))
    consumer = Log(feed, hooks=heard, takes=1.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(polls_on, consumer)
        await feed.asked(2)
        await anyio.sleep(5)
        assert heard.events == []
        await consumer.until(21)
        assert [event.description for event in heard.events] == [WHAT]
        tasks.cancel_scope.cancel()


async def test_a_gap_is_stored_together_with_the_messages_settled_before_it():
    feed, store = FakeFeed(), MemoryStore()
    feed.answer(page("1", gap="", next_page="1"), page("41"))
    consumer = Log(feed, store=store, commit_interval=1000)
    await consumer.poll_now()
    session = await store.claim(consumer.name, feed=feed.identity)
    assert (session.cursor, session.record_count) == ("41", 2)
    assert WHAT in session.state["gap"]


@pytest.mark.usefixtures("inline_threads")
async def test_the_text_of_a_gap_is_shortened_and_printable(caplog, tmp_path):
    feed, path = FakeFeed(), tmp_path / "state.db"
    feed.answer(page("41", gap="\x1b[2J\n\ud800" + "x" * 1_000_000))
    consumer = Log(feed, store=SQLiteStore(path))
    await consumer.poll_now()
    what = consumer.status().last_gap.description
    assert what.isprintable()
    assert len(what) == 500
    assert what == SQLiteReader(path).snapshot().progress[0].gap
    assert len(lines(caplog)[0]) < 600


async def test_a_replay_reports_a_gap_too():
    feed, heard = FakeFeed(), Heard()
    feed.answer(page("41"))
    consumer = Log(feed, hooks=heard)
    assert (await consumer.replay("inception")).messages == 1
    assert [event.description for event in heard.events] == [WHAT]


def test_a_gap_has_the_time_at_which_it_was_seen():
    assert Gap("a", 1.0) == Gap("a", 1.0)
    assert Gap("a").at > 1e9
