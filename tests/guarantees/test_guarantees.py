"""The contract, each guarantee by its name, on a whole consumer with fakes that misbehave, in virtual time."""

import itertools
import logging
import traceback

import anyio
import httpx
import pytest

from push_to_poll_client import (
    Consumer,
    FeedError,
    HTTPFeed,
    MemoryStore,
    Message,
    Mode,
    OwnershipLost,
    Page,
    ProcessError,
    Push,
    StoreBusy,
    UndecodableMessage,
)
from push_to_poll_client.testing._fake_feed import FakeFeed
from push_to_poll_client.testing._manual_listener import ManualListener
from tests.support.consumers import Log, polls_on, times
from tests.support.forms import form

pytestmark = pytest.mark.anyio


# G1 no lost wake-up


async def test_g1_a_wake_during_a_poll_is_answered_by_a_poll_that_starts_after_it(running):
    feed = FakeFeed(latency=1.0)
    listener = ManualListener()
    consumer = running(Log(feed, listeners=[listener]))
    await listener.connected()
    await anyio.sleep(10)
    count = len(feed.requests)
    feed.publish("early")  # so that the poll finds something, and no re-poll makes up for what was lost
    listener.push()
    await feed.asked(count + 1)
    await anyio.sleep(0.5)
    feed.publish("late")  # the answer under way was frozen before it
    listener.push()
    pushed = anyio.current_time()
    await consumer.until(2)
    assert anyio.current_time() - pushed <= 2 * feed.latency


async def test_g1_a_wake_outlives_failed_polls(running):
    feed = FakeFeed()
    consumer = running(Log(feed, fallback_interval=None))
    await feed.asked(1)
    await anyio.sleep(100)
    feed.fail(FeedError("down"), times=4)
    feed.publish("one")
    consumer.wake()
    await consumer.until(1)
    assert anyio.current_time() - times(feed)[1] < 20


async def test_g1_a_wake_while_paused_is_kept(running):
    feed = FakeFeed()
    consumer = running(Log(feed))
    await feed.asked(1)
    consumer.pause()
    feed.publish("one")
    consumer.wake()
    await anyio.sleep(1000)
    assert len(feed.requests) == 1
    assert consumer.status().mode is Mode.PAUSED
    consumer.resume()
    await consumer.until(1)
    assert len(feed.requests) == 2


async def test_g1_only_a_hint_that_is_the_saved_cursor_drops_its_wake(running):
    feed = FakeFeed()
    feed.publish(1)
    consumer = running(Log(feed))
    await consumer.until(1)
    await anyio.sleep(1)
    saved = consumer.status().cursor
    polls = len(feed.requests)
    consumer.wake(Push(cursor=saved))
    await anyio.sleep(1)
    assert len(feed.requests) == polls
    consumer.wake(Push(cursor=saved + "0"))
    await feed.asked(polls + 1)
    assert feed.requests[-1].request.hint == Push(cursor=saved + "0")
    assert consumer.status().counters.dropped == 1


# G2 single flight


async def test_g2_never_two_polls_at_a_time(running):
    feed = FakeFeed(latency=1.0)
    consumer = running(Log(feed, rate=None))
    async with anyio.create_task_group() as tasks:
        for delay in range(40):
            tasks.start_soon(later, delay / 4, consumer.poll_now)
            tasks.start_soon(later, delay / 8, consumer.wake)
    began = times(feed)
    assert all(b - a >= feed.latency for a, b in itertools.pairwise(began))


async def later(delay, function):
    await anyio.sleep(delay)
    result = function()
    if result is not None:
        await result


async def test_g2_joiners_share_a_poll_that_started_after_their_call(running):
    feed = FakeFeed(latency=1.0)
    consumer = running(Log(feed))
    await feed.asked(1)
    await anyio.sleep(0.5)
    feed.publish(3)  # too late for the answer under way
    results = []

    async def ask():
        results.append(await consumer.poll_now())

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(ask)
    assert [result.messages for result in results] == [3] * 5
    assert len(feed.requests) == 2


# G3 rate


async def test_g3_a_flood_of_pushes_is_held_to_the_rate(running):
    feed = FakeFeed()
    listener = ManualListener()
    running(Log(feed, listeners=[listener], rate=2.0, burst=3))
    await listener.connected()
    for _ in range(1000):
        listener.push()
        await anyio.sleep(0.01)
    began = times(feed)
    for first, start in enumerate(began):
        for last, end in enumerate(began[first:], first):
            assert last - first + 1 <= 3 + 2.0 * (end - start) + 1e-6


async def test_g3_retry_after_beats_push_timer_and_poll_now(running):
    feed = FakeFeed()
    listener = ManualListener()
    consumer = running(Log(feed, listeners=[listener], fallback_interval=5, degraded_interval=5))
    await listener.connected()
    await anyio.sleep(1)
    feed.fail(FeedError("503", retry_after=600))
    count = len(feed.requests)
    listener.push()
    await feed.asked(count + 1)
    asked = anyio.current_time()
    for _ in range(1000):
        listener.push()
        await anyio.sleep(0.1)
    await consumer.poll_now(timeout=None)
    assert 600 <= times(feed)[count + 1] - asked <= 660


@pytest.mark.parametrize("retry_after", [None, "20"])
async def test_g3_a_server_that_answers_503_for_a_minute_is_left_alone_whatever_is_pushed(retry_after, running):
    began, asked = anyio.current_time(), []

    def answer(request):
        asked.append(anyio.current_time() - began)
        if asked[-1] < 60:
            return httpx.Response(503, headers={"Retry-After": retry_after} if retry_after else {})
        return httpx.Response(200, json=[])

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        consumer = running(Log(HTTPFeed("https://shop.example/feed", client=client)))
        for _ in range(1000):
            consumer.wake()
            await anyio.sleep(0.06)
        await consumer.poll_now(timeout=None)
    failed = [at for at in asked if at < 60]
    if retry_after is None:
        assert 5 <= len(failed) <= 8, "after 1, 2, 4, 8, 16, 32 seconds, each at least half of it"
    else:
        assert len(failed) == 3
        assert all(after - before >= 20 for before, after in itertools.pairwise(failed))


async def test_g3_not_before_holds_for_further_pages(running):
    feed = FakeFeed(page_size=1, retry_after=30)
    feed.publish(3)
    consumer = running(Log(feed))
    await consumer.until(3)
    began = times(feed)
    assert [b - a >= 30 for a, b in itertools.pairwise(began)] == [True, True]


async def test_g3_further_pages_and_continuations_take_no_token(running):
    feed = FakeFeed(page_size=1)
    feed.publish(100)
    consumer = running(
        Log(feed, takes=1.0, max_poll_time=10, rate=0.02, burst=1, fallback_interval=50, degraded_interval=None)
    )
    began = anyio.current_time()
    await consumer.until(100)
    assert anyio.current_time() - began == pytest.approx(100)
    assert consumer.status().counters.polls >= 9


# G4 fallback


async def test_g4_a_lost_push_costs_the_fallback_interval_at_most(running):
    feed = FakeFeed()
    listener = ManualListener()
    consumer = running(Log(feed, listeners=[listener]))
    await listener.connected()
    await anyio.sleep(100)
    feed.publish("one")
    published = anyio.current_time()
    await consumer.until(1)
    assert anyio.current_time() - published <= 60


async def test_g4_the_interval_is_shorter_while_a_channel_is_down(running):
    feed = FakeFeed()
    listener = ManualListener()
    running(Log(feed, listeners=[listener], fallback_interval=60, degraded_interval=5))
    await listener.connected()
    await anyio.sleep(200)
    listener.disconnect(OSError("reset"))
    count = len(feed.requests)
    await anyio.sleep(100)
    assert len(feed.requests) - count >= 20


async def test_g4_no_fallback_with_listeners_is_refused():
    with pytest.raises(ValueError, match="fallback_interval=None together with listeners"):
        Log(FakeFeed(), listeners=[ManualListener()], fallback_interval=None)


# G5 cursor behind work


@pytest.mark.parametrize("cursors", ["message", "page", "chain"])
async def test_g5_what_a_stop_leaves_is_a_contiguous_prefix(cursors):
    feed = FakeFeed(page_size=4, cursors=cursors)
    feed.publish(20)
    store = MemoryStore()
    processed = []
    for stop_at in range(0, 20, 3):
        consumer = Log(feed, store=store, takes=1.0, shutdown_timeout=0.2)
        consumer.processed = processed
        with anyio.move_on_after(stop_at + 0.5):
            await consumer.run()
    final = Log(feed, store=store)
    final.processed = processed
    await final.poll_now()
    assert processed == [str(number) for number in range(1, 21)]


async def test_g5_a_failing_store_leaves_the_cursor_behind(monkeypatch):
    feed = FakeFeed()
    feed.publish(3)
    consumer = Log(feed)
    async with consumer:
        session = consumer._parts.session
        commit = session.commit
        broken = OSError("disk full")

        async def fail(**_):
            raise broken

        monkeypatch.setattr(session, "commit", fail)
        with pytest.raises(OSError, match="disk full"):
            await consumer.poll_now()
        assert session.cursor is None
        monkeypatch.setattr(session, "commit", commit)
        await consumer.poll_now()
        assert session.cursor == feed.newest
    assert consumer.processed == ["1", "2", "3"], "what was done is remembered until it can be written down"


# G6 dedupe


async def test_g6_a_silent_full_replay_processes_nothing_again(running):
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


async def test_g6_a_page_that_repeats_a_message_processes_it_once():
    feed = FakeFeed()
    feed.answer(Page([Message("a"), Message("b"), Message("a")], cursor="end"))
    consumer = Log(feed)
    result = await consumer.poll_now()
    assert (result.messages, result.duplicates) == (2, 1)
    assert consumer.processed == ["a", "b"]


async def test_g6_overlapping_reads_find_what_became_visible_late():
    feed = FakeFeed(overlap=2)
    feed.publish("a")
    feed.publish("b", lag=5)
    feed.publish("c")
    consumer = Log(feed)
    await consumer.poll_now()
    await anyio.sleep(10)
    await consumer.poll_now()
    assert sorted(consumer.processed) == ["a", "b", "c"]


# G7 small redo


@pytest.mark.parametrize(("takes", "flush", "most"), [(1.0, 0.05, 1), (0.01, 0.05, 6), (0.01, 0.0, 1)])
async def test_g7_a_crash_at_any_message_redoes_the_flush_interval_at_most(takes, flush, most, monkeypatch):
    feed = FakeFeed()
    feed.publish(40)
    recorded, unrecorded = [], []

    class Watched(Log):
        async def process(self, message):
            await super().process(message)
            unrecorded.append(len(self.processed) - len(recorded))

    consumer = Watched(feed, takes=takes, flush_interval=flush)
    async with consumer:
        session = consumer._parts.session
        commit = session.commit

        async def watched(*, cursor, records, **others):
            await commit(cursor=cursor, records=records, **others)
            recorded.extend(records)

        monkeypatch.setattr(session, "commit", watched)
        await consumer.poll_now()
    assert len(recorded) == len(unrecorded) == 40
    assert max(unrecorded) <= most


async def test_g7_fast_handlers_get_a_commit_a_page_and_slow_ones_one_a_message(monkeypatch):
    commits = []
    for takes in (0.0, 1.0):
        feed = FakeFeed(page_size=10)
        feed.publish(30)
        consumer = Log(feed, takes=takes, max_poll_time=100)
        async with consumer:
            session = consumer._parts.session
            commit = session.commit

            async def watched(commit=commit, takes=takes, **progress):
                commits.append(takes)
                await commit(**progress)

            monkeypatch.setattr(session, "commit", watched)
            await consumer.poll_now()
    assert (commits.count(0.0), commits.count(1.0)) == (3, 30)


# G9 no silent skip, no silent block


async def test_g9_a_failing_message_is_retried_and_then_stops_the_consumer_by_name(virtual_day):
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
    feed.publish("torn", error=UndecodableMessage("torn"))
    consumer = Log(feed)
    with pytest.raises(ProcessError, match="torn"):
        await consumer.poll_now()
    assert consumer.processed == ["good"]


# G10 one owner


async def test_g10_a_second_consumer_of_the_same_name_is_refused(running):
    feed, store = FakeFeed(), MemoryStore()
    running(Log(feed, store=store))
    await feed.asked(1)
    with pytest.raises(StoreBusy):
        await Log(feed, store=store).run()
    await Log(feed, store=store, name="another").poll_now()


async def test_g10_a_stale_owner_stops_at_its_next_write(running):
    feed, store = FakeFeed(), MemoryStore()
    stale = Log(feed, store=store)
    async with stale:
        await stale.poll_now()
        await stale._parts.session.release()  # as if its lease had run out
        fresh = Log(feed, store=store)
        async with fresh:
            feed.publish(1)
            with pytest.raises(OwnershipLost):
                await stale.poll_now()
            await fresh.poll_now()
    assert fresh.processed == ["1"]


# G11 bounded


async def test_g11_a_flood_of_wakes_from_a_thread_is_kept_in_bounded_space():
    consumer = Log(FakeFeed())
    for _ in range(form(1_000, 100_000)):
        consumer.wake(Push(cursor="x"))
    assert len(consumer._inbox._pushes) <= 64
    await consumer.poll_now()
    assert consumer.status().counters.wakes <= 64


async def test_g11_an_error_of_any_size_is_kept_as_one_short_line():
    feed = FakeFeed()
    feed.fail(FeedError("evil\n\x1b[31m" * 100_000))
    consumer = Log(feed)
    with pytest.raises(FeedError):
        await consumer.poll_now()
    text = consumer.status().last_error
    assert len(text) <= 500
    assert text.isprintable()


# G12 credentials stay home


@pytest.mark.parametrize("status", [200, 307, 401, 500])
async def test_g12_a_secret_is_in_no_log_error_repr_or_status_and_goes_to_no_other_origin(status, caplog):
    caplog.set_level(logging.DEBUG)
    asked = []

    def answer(request):
        asked.append(request)
        return httpx.Response(status, json=[], headers={"Location": "https://thief.example/feed"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), follow_redirects=True) as client:
        feed = HTTPFeed("https://shop.example/feed?key=canary", auth="canary", client=client)
        consumer = Log(feed)
        said = None
        try:
            await consumer.poll_now()
        except FeedError as error:
            said = "".join(traceback.format_exception(error))
        assert (said is None) == (status == 200)
    assert {request.url.host for request in asked} == {"shop.example"}
    assert {request.headers["authorization"] for request in asked} == {"Bearer canary"}
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("push_to_poll_client")]
    assert "canary" not in f"{said} {ours} {feed!r} {consumer!r} {consumer.status()!r} {consumer.name}"
