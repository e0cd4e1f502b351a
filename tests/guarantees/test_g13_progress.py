"""G13, progress: a consumer reaches the end of the feed in a bounded number of requests.

With a working feed, store and handler, this holds for every shape of cursors, all options, restarts and any length
of the chain. If something keeps the consumer from the end, it is named in status and in one log line, also after a
restart: a message that waits, a cursor that does not move, a feed that does not advance. A consumer does not
report that it has caught up before it has.
"""

import logging

import anyio
import pytest

from push_to_poll_client import (
    Consumer,
    CursorExpired,
    FeedError,
    FeedGone,
    FeedRefused,
    Hooks,
    MemoryStore,
    Message,
    Page,
    PagesChanged,
    Resync,
    RetryMessage,
    SQLiteStore,
)
from push_to_poll_client.testing import FakeFeed
from tests.support.clock import time_of_day
from tests.support.consumers import Log

pytestmark = pytest.mark.anyio


def chain_of(count, **settings):
    """Create a feed whose only cursor is at the end of a chain of pages."""
    feed = FakeFeed(cursors="chain", **{"page_size": 20, "latency": 0.5, **settings})
    feed.publish(count)
    return feed


PAGES_CHANGED = PagesChanged("the pages changed")
PAGES_CHANGED.retry_after = 0.01


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.no_cover  # lines are counted where it is quick
async def test_g13_an_overlap_reaches_the_end_of_a_chain_that_is_longer_than_a_poll(running):
    feed = chain_of(3000)
    consumer = running(Log(feed, patience=2_000, overlap=5))
    await consumer.until(3000)
    await anyio.sleep(1)
    assert len(feed.requests) <= 151
    assert consumer.status().cursor == feed.after(3000)


@pytest.mark.parametrize("overlap", [0, 5])
async def test_g13_a_bare_poll_goes_on_to_the_first_cursor_that_can_be_saved(overlap, caplog):
    caplog.set_level(logging.INFO)
    feed = chain_of(3000)
    result = await Log(feed, overlap=overlap).poll_now()
    assert (result.messages, result.duplicates, result.pages, result.caught_up) == (3000, 0, 150, True)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("fake-feed: no cursor to save yet, continuing until there is one")


async def test_g13_bare_polls_end_after_max_poll_time_once_a_cursor_is_saved():
    feed, store = chain_of(3000), MemoryStore()
    feed.cursors = "page"
    results = [await Log(feed, store=store).poll_now() for _ in range(3)]
    assert [result.pages for result in results] == [60, 60, 30]
    assert sum(result.duplicates for result in results) == 0


async def test_g13_bare_polls_with_an_overlap_that_is_longer_than_a_poll_get_on(virtual_day):
    """Each call reads only the pages of the last two calls again, not all since the first call."""
    feed, store = chain_of(2000), MemoryStore()
    feed.cursors = "page"
    results = []
    while not results or not results[-1].caught_up:
        results.append(await Log(feed, store=store, overlap=5, max_poll_time=4).poll_now())
    assert sum(result.messages for result in results) == 2000
    assert sum(result.pages for result in results) < 4 * 100


async def test_g13_a_caller_that_keeps_the_session_open_gets_back_control_after_max_poll_time():
    async with Log(chain_of(3000)) as consumer:
        pages = [(await consumer.poll_now()).pages for _ in range(3)]
    assert pages == [60, 60, 30]


async def test_g13_a_bare_poll_waits_between_pages_as_the_server_asks(caplog):
    feed = chain_of(100, retry_after=5)
    assert (await Log(feed).poll_now()).messages == 100
    feed = chain_of(100, retry_after=500)
    result = await Log(feed).poll_now()
    assert (result.messages, result.caught_up) == (20, False)
    assert warnings(caplog)[-1].startswith(
        "fake-feed: no cursor to save yet, the next call reads the same pages again: "
    )


def failing_now_and_then(feed, every):
    """Let one of every n fetches fail once."""
    answers = [FeedError("503") if number % every == every - 1 else None for number in range(1000)]
    feed.answer(*answers)


@pytest.mark.no_cover  # lines are counted where it is quick
async def test_g13_a_failure_that_passes_does_not_throw_away_the_place_in_a_chain(running):
    feed = chain_of(6000, latency=0.1)
    failing_now_and_then(feed, 50)
    consumer = running(Log(feed, patience=2_000))
    await consumer.until(6000)
    assert len(feed.requests) <= 300 + 7


@pytest.mark.no_cover  # lines are counted where it is quick
async def test_g13_a_bare_poll_goes_on_after_a_failure_that_passes():
    feed = chain_of(6000, latency=0.1)
    failing_now_and_then(feed, 50)
    result = await Log(feed, max_poll_time=10).poll_now()
    assert (result.messages, result.duplicates, result.pages) == (6000, 0, 300)


@pytest.mark.parametrize(("error", "asked"), [(FeedError("400"), 3), (FeedRefused("401"), 1)])
async def test_g13_a_postponed_address_unknown_to_the_server_is_dropped(running, error, asked):
    feed = chain_of(100, latency=0)
    forgotten = []

    def answer(request):
        if (
            request.cursor is not None
            and (not forgotten or request.cursor == forgotten[0])
            and len(forgotten) < asked
        ):
            forgotten.append(request.cursor)
            return error
        return None

    feed.answer(*[answer] * 100)
    consumer = running(Log(feed, patience=2_000))
    await consumer.until(100)
    assert len(set(forgotten)) == 1
    assert [one.request.cursor for one in feed.requests][: asked + 2] == [None, *forgotten, None]


async def test_g13_a_page_token_that_expired_is_not_taken_for_the_saved_cursor(running):
    feed = chain_of(200, latency=0)
    consumer = running(Log(feed, patience=2_000, on_cursor_expired=Resync("inception", forget=True)))
    feed.answer(None, None, None, CursorExpired("this page token is too old"))
    await consumer.until(200)
    await anyio.sleep(1)
    assert len(consumer.processed) == 200, "none twice"
    assert consumer.status().counters.resyncs == 0
    assert [one.request.cursor for one in feed.requests[3:5]] == ["more-60.0", None]


@pytest.mark.parametrize("forget", [False, True])
async def test_g13_a_resync_delayed_by_the_server_is_done_after_a_restart(forget):
    feed, store = FakeFeed(), MemoryStore()
    feed.publish(3)
    await Log(feed, store=store).poll_now()
    feed.fail(CursorExpired("gone", retry_after=3600))
    feed.publish(2)
    consumers = [Log(feed, store=store, on_cursor_expired=Resync("latest", forget=forget)) for _ in range(3)]
    assert [(await consumer.poll_now()).caught_up for consumer in consumers] == [False, True, True]
    assert [consumer.status().counters.resyncs for consumer in consumers] == [0, 1, 0]
    assert consumers[1].status().last_resync.forget is forget
    assert len(feed.requests) == 4


@pytest.mark.parametrize("error", [FeedGone("410"), FeedError("503", retry_after=30)])
async def test_g13_a_bare_poll_raises_a_failure_that_does_not_pass_within_its_timeout(error):
    feed = chain_of(100)
    feed.answer(None, error)
    with pytest.raises(type(error), match=str(error)):
        await Log(feed).poll_now()
    assert len(feed.requests) == 2


@pytest.mark.no_cover  # lines are counted where it is quick
async def test_g13_a_bare_poll_ends_on_a_feed_that_gives_nothing_but_pages_without_messages():
    feed = FakeFeed()
    numbers = iter(range(100_000))
    feed.answer(*[lambda request: Page(next_page=f"token-{next(numbers)}")] * 2_000)
    result = await Log(feed).poll_now()
    assert (result.pages, result.caught_up) == (1_000, False)


async def test_g13_pages_that_change_again_and_again_are_a_failed_poll_though_the_server_asks_for_time(running):
    feed = FakeFeed()
    feed.fail(PAGES_CHANGED, times=None)
    consumer = running(Log(feed, rate=1, burst=1))
    await anyio.sleep(60)
    assert len(feed.requests) < 15
    assert consumer.status().last_error.startswith(
        "FeedError: pages changed or expired, retrying when the server allows it: "
    )


async def test_g13_a_message_that_waits_at_a_standstill_is_tried_again_when_its_time_has_come(running):
    class Batches(Consumer):
        async def process_batch(self, messages):
            if any(message.id == "bad" for message in messages):
                tried.append(anyio.current_time())
                raise RetryMessage(after=5)

    tried, feed = [], FakeFeed(read_ahead=True)
    messages = [Message(name) for name in ("bad", *"abcdefghij")]
    feed.answer(*[lambda request: Page(messages, next_page="a")] * 1_000)
    running(Batches(feed, store=MemoryStore(), batch_wait=5, fallback_interval=600))
    await anyio.sleep(60)
    assert len(tried) > 5


async def test_g13_a_walk_that_left_something_out_does_not_call_itself_caught_up():
    feed = FakeFeed(cursors="page", page_size=1, latency=1.0)
    feed.publish(3)
    feed.publish("late-1", "late-2", "late-3", "late-4", lag=60)
    feed.publish("last")
    async with Log(feed, overlap=1_000, max_poll_time=2) as consumer:
        while not (await consumer.poll_now()).caught_up:
            pass
        await anyio.sleep(60)
        consumer.processed.clear()
        while not (await consumer.poll_now()).caught_up:
            pass
        assert sorted(consumer.processed) == ["late-1", "late-2", "late-3", "late-4"]


async def test_g13_page_tokens_that_always_expire_are_a_failed_poll(running, caplog):
    feed = chain_of(200, latency=0)
    feed.answer(*[lambda request: CursorExpired("too old") if request.cursor == "more-60.0" else None] * 1000)
    consumer = running(Log(feed, patience=2_000, on_cursor_expired="stop"))
    await anyio.sleep(10)
    assert len(consumer.processed) == 60
    assert (
        "pages changed or expired again after 3 restarts of the poll: CursorExpired: too old"
        in consumer.status().last_error
    )
    assert warnings(caplog)


async def test_g13_a_feed_that_leads_back_to_where_it_was_is_named_and_not_called_caught_up(running, caplog):
    feed = FakeFeed()
    circle = {None: "a", "a": "b", "b": "a"}
    feed.answer(*[lambda request: Page([Message("1")], next_page=circle[request.cursor])] * 1000)
    consumer = running(Log(feed, patience=2_000))
    await anyio.sleep(600)
    status = consumer.status()
    assert status.standstill.startswith("the feed announces more pages, but leads around after the inception ")
    assert status.last_caught_up is None
    assert warnings(caplog) == [f"fake-feed: the end of the feed is not reached: {status.standstill}"]
    assert len(feed.requests) < 100
    feed.recover()
    await anyio.sleep(100)
    assert consumer.status().standstill is None
    assert consumer.status().last_caught_up is not None


@pytest.mark.parametrize("has_messages", [True, False])
async def test_g13_a_circle_of_pages_that_takes_several_polls_is_named_once(running, caplog, has_messages):
    def page(request):
        place = int(request.cursor or 0) % 100
        return Page([Message(f"m{place}")] if has_messages else [], next_page=str(place + 1))

    feed = FakeFeed(latency=1.0)
    feed.answer(*[page] * 10_000)
    consumer = running(Log(feed))
    await anyio.sleep(600)
    assert "but leads around after the inception without a new message" in consumer.status().standstill
    named = [line for line in warnings(caplog) if "leads around" in line]
    assert named == [f"fake-feed: the end of the feed is not reached: {consumer.status().standstill}"]
    asked = len(feed.requests)
    await anyio.sleep(1500)
    assert len(feed.requests) - asked < 1400, "the feed is left alone for the fallback interval after each round"
    assert [line for line in warnings(caplog) if "leads around" in line] == named
    assert consumer.status().last_caught_up is None


@pytest.mark.parametrize(("seconds", "logged"), [(600, False), (661, True)])
async def test_g13_a_long_pause_that_the_server_asks_for_after_a_successful_poll_is_logged(
    running, caplog, seconds, logged
):
    """For example `RateLimit-Remaining: 0` because other clients used up the quota of the day."""
    feed = FakeFeed(retry_after=seconds / 1.1)  # a consumer adds up to a tenth
    feed.publish(1)
    consumer = running(Log(feed))
    await consumer.until(1)
    await anyio.sleep(1)
    pause = "fake-feed: the server asked for a pause, polling again in "
    assert [line.startswith(pause) for line in warnings(caplog)] == [True] * logged
    assert consumer.status().mode == "throttled"


@pytest.mark.parametrize("cursors", ["message", "page", "chain"])
async def test_g13_catch_up_reaches_the_end_of_a_feed_of_any_length(cursors):
    feed = chain_of(2000, latency=60.0)
    feed.cursors = cursors
    consumer = Log(feed)
    result = await consumer.catch_up()
    assert (result.caught_up, result.messages, len(feed.requests)) == (True, 2000, 100)
    assert consumer.status().cursor == feed.newest


async def test_g13_a_feed_that_gives_pages_without_messages_is_named_and_asked_at_the_rate(running, caplog):
    feed = FakeFeed(latency=0.02)
    numbers = iter(range(100_000))
    feed.answer(*[lambda request: Page(next_page=f"token-{next(numbers)}")] * 1000)
    consumer = running(Log(feed, patience=2_000, rate=1, burst=1))
    await anyio.sleep(300)
    assert 290 <= len(feed.requests) <= 315
    assert consumer.status().standstill.startswith("the feed has returned 10 pages or more")
    assert warnings(caplog) == [f"fake-feed: the end of the feed is not reached: {consumer.status().standstill}"]
    feed.recover()
    feed.publish("1")
    feed.answer(Page([Message("x")], next_page="after-0.0"))
    await consumer.until(2)
    await anyio.sleep(1)
    assert consumer.status().standstill is None


async def test_g13_pages_without_messages_do_not_keep_a_bare_poll_from_the_end():
    feed = FakeFeed()
    feed.publish("1")
    feed.answer(*[Page(next_page=f"token-{number}") for number in range(40)], Page(next_page="after-0.0"))
    assert (await Log(feed).poll_now()).messages == 1


async def test_g13_a_walk_without_a_cursor_to_save_is_named_after_five_minutes(running, caplog):
    feed = chain_of(20 * 100, latency=5.0)
    consumer = running(Log(feed, patience=2_000))
    await anyio.sleep(290)
    assert consumer.status().standstill is None
    await anyio.sleep(100)
    assert consumer.status().standstill.startswith("no cursor to save for 300 s or more: a restart would")
    assert warnings(caplog) == [f"fake-feed: the end of the feed is not reached: {consumer.status().standstill}"]
    await consumer.until(20 * 100)
    await anyio.sleep(10)
    assert consumer.status().standstill is None


# A message that waits


class Waits(Log):
    """Let the message "bad" wait for a day."""

    async def process(self, message):
        if message.id == "bad":
            raise RetryMessage("the bank is closed", after=86_400)
        await super().process(message)


class Waiting(Hooks):
    def __init__(self):
        self.told = []

    def message_postponed(self, message, failing):
        self.told.append((message.id, failing))


@pytest.mark.usefixtures("virtual_day", "inline_threads")
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_g13_a_message_that_waits_is_named_in_status_log_and_hook_after_a_restart(
    kind, caplog, tmp_path, running
):
    feed, hooks = FakeFeed(), Waiting()
    feed.publish("good", "bad", "after")
    store = MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "state.db")
    await Waits(feed, store=store).poll_now()
    await anyio.sleep(3600)
    caplog.clear()
    consumer = running(Waits(feed, store=store, hooks=hooks))
    await anyio.sleep(7200)
    (failing,) = consumer.status().failing
    assert (failing.id, failing.attempts) == ("bad", 1)
    assert failing.error == "RetryMessage: the bank is closed"
    assert failing.retry_at == pytest.approx(time_of_day() + 86_400 - 3600 - 7200, abs=10)
    assert consumer.status().failing_count == 1
    assert hooks.told == [("bad", failing)]
    (line,) = [record.getMessage() for record in caplog.records if "'bad'" in record.getMessage()]
    assert line.startswith("fake-feed: message 'bad' failed before this run (attempt 1), retrying in 828")
    assert line.endswith(" s: RetryMessage: the bank is closed")


async def test_g13_a_message_that_waits_is_named_although_an_earlier_version_did_not_keep_its_error(
    virtual_day, caplog
):
    feed, store = FakeFeed(), MemoryStore()
    feed.publish("bad")
    session = await store.claim("fake-feed", feed="fake-feed")
    again = time_of_day() + 3600
    await session.commit(cursor=None, records=[], state={"attempts": f'{{"bad":[3,{again - 9},{again},3600.0]}}'})
    await session.release()
    consumer = Log(feed, store=store)
    assert (await consumer.poll_now()).retry_in == pytest.approx(3600, abs=1)
    (failing,) = consumer.status().failing
    assert (failing.id, failing.attempts, failing.retry_at) == ("bad", 3, again)
    assert failing.error == "its error was not kept"
    assert "message 'bad' failed before this run (attempt 3)" in caplog.text
