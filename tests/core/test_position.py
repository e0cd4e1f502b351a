"""Start, rewind, expired cursors, and replay."""

import anyio
import pytest
from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

from push_to_poll_client import (
    Consumer,
    CursorExpired,
    DeadLetterMessage,
    FeedError,
    Hooks,
    MemoryStore,
    Message,
    Mode,
    Page,
    PagesChanged,
    PollResult,
    ProcessError,
    Resync,
    SkipMessage,
    SQLiteStore,
    StoreBusy,
    StoreError,
)
from push_to_poll_client._types import MAX_CURSOR
from push_to_poll_client.testing import FakeFeed
from tests.support.clock import time_of_day
from tests.support.consumers import Log, times

pytestmark = pytest.mark.anyio

TWICE = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(600))


def feed_of(*names, **settings):
    feed = FakeFeed(**settings)
    if names:
        feed.publish(*names)
    return feed


class Blind:
    """A feed without `latest()`."""

    async def fetch(self, request):
        return Page()


class Fails(Log):
    """Fail for the messages of `failing`."""

    def __init__(self, feed, *, failing, **settings):
        super().__init__(feed, **settings)
        self.failing = set(failing)
        self.attempts = []

    async def process(self, message):
        self.attempts.append(message.id)
        if message.id in self.failing:
            raise ValueError(message.id)
        await super().process(message)


# Where a name begins


LOOKALIKES = {
    "lastest": "latest",
    "latset": "latest",
    "latst": "latest",
    "latesd": "latest",
    "Latest": "latest",
    "LATEST": "latest",
    " latest": "latest",
    "end": "latest",
    "Inception": "inception",
    "incepton": "inception",
    "inceptoin": "inception",
    "beginning": "inception",
    "earliest": "inception",
    "start": "inception",
}


@pytest.mark.parametrize(("typed", "meant"), LOOKALIKES.items())
async def test_a_word_that_looks_like_latest_or_inception_is_refused_with_a_suggestion(typed, meant):
    def text(name):
        return f"^{name} must be 'inception', 'latest' or a cursor of the feed, got '{typed}'; use '{meant}'"

    feed = FakeFeed()
    with pytest.raises(ValueError, match=text("start")):
        Log(feed, start=typed)
    with pytest.raises(ValueError, match=text("to")):
        Resync(typed, forget=False)
    consumer = Log(feed)
    with pytest.raises(ValueError, match=text("to")):
        await consumer.rewind(typed)
    with pytest.raises(ValueError, match=text("start")):
        await consumer.replay(typed)
    with pytest.raises(ValueError, match=text("end")):
        await consumer.replay("inception", typed)
    assert feed.requests == []


@pytest.mark.parametrize(
    "cursor",
    [
        # Real ones: CouchDB and Durable Streams have "now", ntfy has "all", Zulip has "newest" and "oldest".
        *("now", "all", "newest", "oldest", "1", "-1", "0-0", "$", "2026-01-01"),
        *("", "l", "last", "late", "test", "fastest", "latest-1", "latest:42", "tseta"),
        *("exception", "inception-2", "e", "en", "ends", "starts"),
    ],
)
def test_a_cursor_that_only_resembles_latest_or_inception_is_a_cursor(cursor):
    Log(FakeFeed(), start=cursor)
    Resync(cursor, forget=False)


async def test_a_new_consumer_name_starts_at_the_inception():
    consumer = Log(feed_of("a", "b"))
    await consumer.poll_now()
    assert consumer.processed == ["a", "b"]


async def test_a_new_consumer_name_can_start_at_the_end_of_the_feed(running):
    feed = feed_of("a", "b")
    consumer = running(Log(feed, start="latest"))
    await feed.asked(1)
    assert consumer.status().cursor == feed.after(2)
    feed.publish("c")
    consumer.wake()
    await consumer.until(1)
    assert consumer.processed == ["c"]
    assert consumer.status().counters.resyncs == 0


async def test_a_new_consumer_name_can_start_at_a_cursor():
    feed = feed_of("a", "b", "c")
    consumer = Log(feed, start=feed.after(1))
    await consumer.poll_now()
    assert consumer.processed == ["b", "c"]


@pytest.mark.parametrize("start", ["latest", "inception", "after-1.0"])
async def test_start_is_ignored_when_the_consumer_name_has_a_saved_cursor(start):
    feed, store = feed_of("a"), MemoryStore()
    await Log(feed, store=store).poll_now()
    feed.publish("b", "c")
    consumer = Log(feed, store=store, start=start)
    await consumer.poll_now()
    assert consumer.processed == ["b", "c"]


@pytest.mark.parametrize("first", ["latest", "inception"])
@pytest.mark.parametrize("then", ["latest", "inception"])
async def test_start_is_ignored_after_a_poll_of_an_empty_feed_and_no_message_is_skipped(first, then):
    feed, store = feed_of(), MemoryStore()
    await Log(feed, store=store, start=first).poll_now()
    feed.publish("a", "b")
    consumer = Log(feed, store=store, start=then)
    await consumer.poll_now()
    assert consumer.processed == ["a", "b"]


async def test_start_is_ignored_after_a_first_poll_that_settled_nothing(virtual_day):
    feed, store = feed_of("bad", "b"), MemoryStore()
    await Fails(feed, failing=["bad"], store=store, retry=TWICE).poll_now()
    consumer = Fails(feed, failing=[], store=store, start="latest")
    await consumer.poll_now(timeout=None)
    await anyio.sleep(600)
    await consumer.poll_now(timeout=None)
    assert consumer.processed == ["bad", "b"]


async def test_start_still_applies_after_a_first_poll_that_failed():
    feed, store = feed_of("a"), MemoryStore()
    feed.fail(FeedError("down"))
    with pytest.raises(FeedError):
        await Log(feed, store=store).poll_now()
    consumer = Log(feed, store=store, start="latest")
    await consumer.poll_now()
    assert consumer.processed == []


@pytest.mark.parametrize(
    "setting", [{"start": "latest"}, {"on_cursor_expired": Resync("latest", forget=True)}], ids=str
)
def test_start_or_resync_at_latest_is_refused_for_a_feed_without_latest(setting):
    with pytest.raises(ValueError, match=r"Blind has no latest\(\), so 'latest' cannot be used"):
        Log(Blind(), **setting)


@pytest.mark.parametrize("start", [None, 3, b"x"])
def test_a_start_of_the_wrong_type_is_refused_at_construction(start):
    with pytest.raises(TypeError, match="start must be 'inception', 'latest' or a cursor, got"):
        Log(FakeFeed(), start=start)


@pytest.mark.parametrize(
    ("wrong", "text"), [({"to": None, "forget": True}, "to must be"), ({"to": "x", "forget": 1}, "forget must be")]
)
def test_a_resync_with_invalid_arguments_is_refused_at_construction(wrong, text):
    with pytest.raises(TypeError, match=text):
        Resync(**wrong)


async def failing_latest():
    raise ConnectionError("no route")


async def test_a_poll_fails_and_is_retried_when_latest_raises(running, monkeypatch):
    feed = feed_of("a")
    monkeypatch.setattr(feed, "latest", failing_latest)
    consumer = running(Log(feed, start="latest"))
    await anyio.sleep(3)
    assert consumer.status().mode is Mode.BACKOFF
    assert consumer.status().last_error == "FeedError: FakeFeed.latest() raised ConnectionError: no route"
    assert feed.requests == []
    monkeypatch.undo()
    await feed.asked(1)
    assert consumer.processed == []
    assert consumer.status().cursor == feed.after(1)
    assert consumer.status().counters.failed_polls >= 2


@pytest.mark.parametrize("cursor", [3, "x" * (MAX_CURSOR + 1)], ids=["number", "long"])
async def test_a_poll_fails_when_latest_does_not_return_a_valid_cursor(monkeypatch, cursor):
    async def latest():
        return cursor

    feed = feed_of("a")
    monkeypatch.setattr(feed, "latest", latest)
    with pytest.raises(
        FeedError, match=r"latest\(\) must return None or a cursor of at most 65536 characters, got"
    ):
        await Log(feed, start="latest").poll_now()


@pytest.mark.parametrize(
    "page", [{"cursor": "x" * (MAX_CURSOR + 1)}, {"next_page": "x" * (MAX_CURSOR + 1)}], ids=list
)
async def test_a_poll_fails_when_the_cursor_of_a_page_is_too_long(page):
    feed = feed_of()
    feed.answer(Page([Message("a")], **page))
    consumer = Log(feed)
    with pytest.raises(FeedError, match="a cursor must have at most 65536 characters, got 65537"):
        await consumer.poll_now()
    assert consumer.processed == []


async def test_g3_retry_after_of_a_failed_latest_is_respected(running, monkeypatch):
    asked = []

    async def latest():
        asked.append(anyio.current_time())
        raise FeedError("429", retry_after=500)

    feed = feed_of("a")
    monkeypatch.setattr(feed, "latest", latest)
    running(Log(feed, start="latest"))
    await anyio.sleep(1_200)
    assert len(asked) <= 3
    assert asked[1] - asked[0] >= 500


# Rewind


async def polled(feed, **settings):
    """Create a consumer that has read all, one message at a time, with ten seconds between."""
    consumer = Log(feed, **settings)
    await consumer.__aenter__()
    return consumer


async def at_ten_seconds_each(consumer, *names):
    for name in names:
        consumer._feed.publish(name)
        await consumer.poll_now(timeout=None)
        await anyio.sleep(10)


@pytest.mark.parametrize("forget", [True, False])
async def test_rewind_to_the_inception_processes_messages_again_only_with_forget(forget):
    feed = feed_of()
    async with Log(feed) as consumer:
        await at_ten_seconds_each(consumer, "a", "b")
        await consumer.rewind("inception", forget=forget)
        assert consumer.status().cursor is None
        result = await consumer.poll_now()
        assert result.messages == (2 if forget else 0)
        assert result.duplicates == (0 if forget else 2)
        assert consumer.processed == ["a", "b"] + ["a", "b"] * forget
        assert consumer.status().cursor == feed.after(2)


async def test_rewind_to_a_cursor_or_to_latest_moves_the_cursor_and_is_reported(caplog):
    heard = []

    class Heard(Hooks):
        def resynced(self, event):
            heard.append(event)

    feed = feed_of("a", "b", "c")
    async with Log(feed, hooks=Heard()) as consumer:
        await consumer.poll_now()
        await consumer.rewind(feed.after(1), forget=True)
        feed.publish("d")
        await consumer.rewind("latest", forget=True)
        assert (await consumer.poll_now()).messages == 0
        status = consumer.status()
        assert status.cursor == feed.after(4)
        assert status.counters.resyncs == 2
        assert [(event.why, event.cursor, event.forget) for event in heard] == [
            ("rewind() was called", feed.after(1), True),
            ("rewind() was called", feed.after(4), True),
        ]
        assert status.last_resync == heard[-1]
    assert (
        "continuing from cursor 'after-1.0', repeated messages are processed again: rewind() was called"
        in caplog.text
    )


async def test_rewind_with_ago_goes_to_the_cursor_saved_at_that_time(virtual_day):
    feed = feed_of()
    async with Log(feed) as consumer:
        await at_ten_seconds_each(consumer, "a", "b", "c", "d")
        await consumer.rewind(ago=25, forget=True)
        assert consumer.status().cursor == feed.after(2), "it was saved 30 seconds ago, the next one 20"
        await consumer.poll_now()
    assert consumer.processed == ["a", "b", "c", "d", "c", "d"]


@pytest.mark.parametrize(("allowed", "place"), [(20, 2), (25, 1)], ids=["shorter", "the number in the error"])
async def test_rewind_with_ago_beyond_the_oldest_saved_cursor_is_refused(allowed, place, virtual_day):
    feed, store = feed_of("z"), MemoryStore(clock=time_of_day)
    async with Log(feed, start="after-1.0", store=store) as consumer:
        await consumer.poll_now()
        await anyio.sleep(5.7)
        await at_ten_seconds_each(consumer, "a", "b")
        with pytest.raises(
            ValueError, match="ago= must be at most 25, the age of the oldest saved cursor, got 26"
        ):
            await consumer.rewind(ago=26)
        assert consumer.status().cursor == feed.after(3), "nothing has changed"
        await consumer.rewind(ago=allowed)
        assert consumer.status().cursor == feed.after(place)


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ({}, TypeError),
        ({"to": "latest", "ago": 3}, TypeError),
        ({"to": 3}, TypeError),
        ({"ago": "3"}, TypeError),
        ({"ago": -1}, ValueError),
        ({"ago": float("nan")}, ValueError),
    ],
)
async def test_a_rewind_with_invalid_arguments_is_refused_before_it_claims_the_name(place, error):
    store = MemoryStore()
    with pytest.raises(error):
        await Log(FakeFeed(), store=store).rewind(**place)
    assert store._progress == {}, "nothing was claimed"


async def test_a_rewind_to_latest_is_refused_for_a_feed_without_latest():
    with pytest.raises(ValueError, match=r"Blind has no latest\(\)"):
        await Log(Blind()).rewind("latest")


async def test_rewind_without_run_is_kept_in_the_store():
    feed, store = feed_of("a", "b"), MemoryStore()
    await Log(feed, store=store).poll_now()
    await Log(feed, store=store).rewind("inception", forget=True)
    consumer = Log(feed, store=store)
    await consumer.poll_now()
    assert consumer.processed == ["a", "b"]


async def test_start_is_ignored_after_a_rewind_before_the_first_poll():
    feed, store = feed_of("a", "b"), MemoryStore()
    await Log(feed, store=store).rewind("inception")
    consumer = Log(feed, store=store, start="latest")
    await consumer.poll_now()
    assert consumer.processed == ["a", "b"]


async def test_rewind_waits_for_the_running_poll_and_starts_another_soon(running):
    feed = feed_of("a", "b")
    consumer = running(Log(feed, takes=5.0))
    await anyio.sleep(2)
    began = anyio.current_time()
    await consumer.rewind("inception", forget=True)
    assert anyio.current_time() - began == pytest.approx(8), "both messages are processed first"
    assert consumer.processed == ["a", "b"]
    await consumer.until(4)
    assert consumer.processed == ["a", "b", "a", "b"]
    assert anyio.current_time() - began <= 20


async def test_rewind_interrupts_a_waiting_fetch(running):
    feed = feed_of("a", max_wait=1_000)
    consumer = running(Log(feed, fallback_interval=1_000))
    await feed.asked(2)
    began = anyio.current_time()
    await consumer.rewind("inception", forget=True)
    await consumer.until(2)
    assert anyio.current_time() - began < 1


async def test_rewind_discards_the_next_page_of_an_unfinished_poll():
    feed = feed_of(*"abcdef", page_size=1, cursors="chain")
    async with Log(feed, takes=2.0, max_poll_time=3) as consumer:
        assert not (await consumer.poll_now()).caught_up
        await consumer.rewind("inception")
        assert not (await consumer.poll_now()).caught_up
    assert feed.requests[2].request.cursor is None


async def test_rewind_drops_the_pages_that_were_fetched_ahead():
    feed = feed_of(100, page_size=10, read_ahead=True)
    async with Log(feed, takes=1.0, max_poll_time=15) as consumer:
        await consumer.poll_now()
        asked = len(feed.requests)
        assert asked > 2
        await consumer.rewind("inception", forget=True)
        await consumer.poll_now()
        assert feed.requests[asked].request.cursor is None
        assert consumer.processed[20:40] == consumer.processed[:20]


async def test_rewind_does_not_wait_for_the_retry_of_a_failing_message(running):
    feed = feed_of("bad", "b")
    consumer = running(Fails(feed, failing=["bad"], retry=TWICE))
    await anyio.sleep(5)
    assert [one.id for one in consumer.status().failing] == ["bad"]
    consumer.failing.clear()
    rewound = anyio.current_time()
    await consumer.rewind(feed.after(1))
    await consumer.until(1)
    assert anyio.current_time() - rewound < 5
    assert consumer.processed == ["b"]
    assert consumer.status().failing == ()


async def test_rewind_resets_the_attempts_of_a_failing_message(virtual_day):
    feed, store = feed_of("bad"), MemoryStore()
    async with Fails(feed, failing=["bad"], store=store, retry=TWICE) as consumer:
        await consumer.poll_now()
        await consumer.rewind("inception")
        assert "attempts" not in consumer._parts.session.state
        assert (await consumer.poll_now()).retry_in == pytest.approx(600), "the first of two attempts again"
    assert consumer.attempts == ["bad", "bad"]


async def test_rewind_deletes_the_attempts_in_the_same_write_as_the_cursor(monkeypatch):
    """Otherwise a crash in between would leave a wait for a message that may never come again."""

    class Fails(Log):
        async def process(self, message):
            raise ValueError("no")

    feed = feed_of(3)
    async with Fails(feed, retry=TWICE) as consumer:
        await consumer.poll_now()
        session = consumer._parts.session
        assert "attempts" in session.state
        monkeypatch.setattr(session, "commit", None)  # there is no other write
        await consumer.rewind(feed.after(2))
        assert "attempts" not in session.state
        assert consumer.status().failing == ()


async def test_a_chain_restart_after_a_rewind_does_not_postpone_the_next_poll():
    """The wait of the last poll is forgotten even if this poll settles nothing."""
    feed = feed_of("bad", "b")
    async with Fails(feed, failing=["bad"], retry=TWICE, max_poll_time=1) as consumer:
        await consumer.poll_now()
        await consumer.rewind("inception")
        feed.latency = 2
        feed.answer(PagesChanged("changed"))
        result = await consumer.poll_now()
        assert (result.pages, result.caught_up, result.retry_in) == (0, False, None)
        assert consumer.status().mode is not Mode.BACKOFF


@pytest.mark.parametrize("call", ["rewind", "replay"])
async def test_rewind_and_replay_inside_the_handler_raise_a_runtime_error(call):
    async def process(message):
        with pytest.raises(
            RuntimeError, match=rf"{call}\(\) was called from the handler and would wait for itself"
        ):
            await getattr(consumer, call)("inception")

    consumer = Consumer(feed_of("a"), store=MemoryStore(), process=process)
    assert (await consumer.poll_now()).messages == 1


@pytest.mark.parametrize("call", ["rewind", "replay"])
async def test_rewind_and_replay_are_refused_while_another_owner_has_the_name(call):
    feed, store = feed_of("a"), MemoryStore()
    async with Log(feed, store=store) as owner:
        await owner.poll_now()
        with pytest.raises(StoreBusy):
            await getattr(Log(feed, store=store), call)("inception")
        assert owner.status().cursor == feed.after(1)


async def test_g3_a_rewind_to_latest_waits_for_retry_after_of_the_server(monkeypatch):
    feed, asked = feed_of("a"), []
    latest = feed.latest

    async def watched():
        asked.append(anyio.current_time())
        return await latest()

    monkeypatch.setattr(feed, "latest", watched)
    async with Log(feed) as consumer:
        feed.answer(Page(retry_after=100))
        await consumer.poll_now()
        began = anyio.current_time()
        await consumer.rewind("latest")
    assert asked[0] - began >= 100


@pytest.mark.usefixtures("inline_threads")
async def test_a_rewind_is_saved_in_a_sqlite_file(tmp_path):
    feed, store = feed_of("a", "b"), SQLiteStore(tmp_path / "x.db")
    await Log(feed, store=store).poll_now()
    await Log(feed, store=store).rewind("inception", forget=True)
    consumer = Log(feed, store=store, start="latest")
    await consumer.poll_now()
    assert consumer.processed == ["a", "b"]


# The cursor expired


async def expiring(on_cursor_expired, *, start=None, **settings):
    """Create a consumer of a, b and c whose cursors expire."""
    feed = feed_of("a", "b", "c")
    consumer = Log(feed, on_cursor_expired=on_cursor_expired, **settings)
    await consumer.poll_now()
    feed.expire(start=start)
    feed.publish("d")
    return feed, consumer


async def test_an_expired_cursor_stops_the_consumer_with_the_stop_policy():
    _, consumer = await expiring("stop")
    with pytest.raises(CursorExpired):
        await consumer.run()
    assert consumer.processed == ["a", "b", "c"]
    assert consumer.status().counters.resyncs == 0


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize(
    ("resync", "processed"),
    [
        (Resync("inception", forget=True), "abcabcd"),
        (Resync("inception", forget=False), "abcd"),
        (Resync("latest", forget=True), "abc"),
        (Resync("after-2.1", forget=True), "abccd"),
        (Resync("after-2.1", forget=False), "abcd"),
    ],
    ids=str,
)
async def test_a_resync_continues_from_its_cursor_in_the_same_poll(resync, processed, asynchronous, caplog):
    async def later(error):
        return resync

    heard = []
    hooks = Hooks()
    hooks.resynced = heard.append
    for policy in (resync, later if asynchronous else lambda error: resync):
        feed, consumer = await expiring(policy, hooks=hooks)
        result = await consumer.poll_now()
        assert result.caught_up
        assert "".join(consumer.processed) == processed
        status = consumer.status()
        assert status.counters.resyncs == 1
        assert status.counters.failed_polls == 0
        assert status.last_resync == heard[-1]
        assert status.last_resync.forget == resync.forget
        assert status.last_resync.why.startswith("the cursor expired: CursorExpired: The fake feed")
        feed.publish("e")
        await consumer.poll_now()
        assert consumer.processed[-1] == "e"
    assert caplog.text.count("the cursor expired") == 2


async def test_a_resync_function_can_use_the_start_offered_by_the_feed():
    _, consumer = await expiring(lambda error: Resync(error.start, forget=True), start=3)
    await consumer.poll_now()
    assert consumer.processed == ["a", "b", "c", "d"]
    assert consumer.status().last_resync.cursor == "after-3.1"


async def test_a_resync_function_that_returns_none_lets_cursor_expired_be_raised():
    _, consumer = await expiring(lambda error: None)
    with pytest.raises(CursorExpired, match=r"expire its cursors\.$"):
        await consumer.poll_now()


async def say_so(error):
    raise error


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (lambda error: 1 / 0, "on_cursor_expired failed: ZeroDivisionError"),
        (lambda error: "inception", "TypeError: on_cursor_expired must return a Resync or None, got 'inception'"),
        (lambda error: Resync(error.start, forget=True), "TypeError: to must be"),
        (say_so, r"expire its cursors\.$"),
    ],
)
async def test_a_failing_resync_function_stops_the_consumer_and_is_explained_in_the_error(policy, why):
    _, consumer = await expiring(policy)
    with pytest.raises(CursorExpired, match="The fake feed was told to expire") as caught:
        await consumer.run()
    caught.match(why)
    assert consumer.status().counters.resyncs == 0


async def test_a_resync_function_cannot_choose_latest_for_a_feed_without_latest():
    class Expires(Blind):
        async def fetch(self, request):
            raise CursorExpired("gone", start="x")

    consumer = Log(Expires(), on_cursor_expired=lambda error: Resync("latest", forget=True))
    with pytest.raises(
        CursorExpired, match=r"gone; on_cursor_expired failed: ValueError: Expires has no"
    ) as caught:
        await consumer.poll_now()
    assert caught.value.start == "x"


@pytest.mark.parametrize("wrong", [None, "inception", 3])
def test_an_invalid_on_cursor_expired_is_refused_at_construction(wrong):
    with pytest.raises(TypeError, match="on_cursor_expired must be 'stop', a Resync or a function"):
        Log(FakeFeed(), on_cursor_expired=wrong)


async def test_the_consumer_stops_when_the_cursor_of_a_resync_has_expired_too():
    feed, consumer = await expiring(Resync("inception", forget=False))
    feed.fail(CursorExpired("again", start="5"), times=None)
    with pytest.raises(
        CursorExpired, match="again; on_cursor_expired= chose the inception, which the feed rejects too"
    ) as caught:
        await consumer.run()
    assert caught.value.start == "5"
    assert consumer.status().counters.resyncs == 1
    assert len(feed.requests) == 3


async def test_a_poll_fails_when_latest_raises_during_a_resync(running, monkeypatch):
    feed, consumer = await expiring(Resync("latest", forget=False))
    with monkeypatch.context() as patch:
        patch.setattr(feed, "latest", failing_latest)
        with pytest.raises(FeedError, match="no route"):
            await consumer.poll_now()
        assert consumer.status().counters.resyncs == 0
    await consumer.poll_now(timeout=None)
    assert consumer.status().counters.resyncs == 1


async def test_g3_a_resync_that_waits_for_the_server_comes_before_the_next_fetch_of_the_session():
    feed, consumer = await expiring(Resync("latest", forget=False))
    feed.fail(CursorExpired("gone", retry_after=100))
    async with consumer:
        assert not (await consumer.poll_now()).caught_up
        asked = len(feed.requests)
        assert (await consumer.poll_now(timeout=None)).caught_up
        assert [asked_for.request.cursor for asked_for in feed.requests[asked:]] == [await feed.latest()]
        assert consumer.status().counters.resyncs == 1


async def test_a_poll_with_a_resync_still_ends_at_max_poll_time():
    feed, consumer = await expiring(Resync("inception", forget=False), max_poll_time=1)
    feed.latency = 2
    async with consumer:
        result = await consumer.poll_now()
        assert not result.caught_up
        feed.latency = 0
        assert (await consumer.poll_now()).caught_up
    assert consumer.processed == ["a", "b", "c", "d"]


class Batches(Consumer):
    def __init__(self, feed, **settings):
        super().__init__(feed, store=MemoryStore(), **settings)
        self.processed = []

    async def process_batch(self, messages):
        self.processed.extend(message.id for message in messages)


async def test_messages_waiting_for_a_full_batch_are_settled_before_a_resync():
    """Otherwise its cursors would be saved behind the resync, and the messages between would be lost."""
    feed = feed_of(35, page_size=10, read_ahead=True)
    settings = {"batch_size": 100, "batch_wait": 50.0, "on_cursor_expired": Resync("after-3.0", forget=False)}
    async with Batches(feed, **settings) as consumer:
        feed.answer(None, None, CursorExpired("gone"))
        await consumer.poll_now()
        assert sorted(map(int, consumer.processed)) == list(range(1, 36))
        assert consumer.status().cursor == feed.after(35)
        assert consumer.status().counters.resyncs == 1


async def test_messages_pending_when_the_consumer_stopped_are_not_processed_after_a_rewind():
    """Otherwise they would be processed after the rewind, and their cursors saved there."""

    def dedupe_key(message):
        return 1 / 0 if message.id == "15" else message.id

    feed = feed_of(35, page_size=10, read_ahead=True)
    async with Batches(feed, batch_size=100, batch_wait=50.0, dedupe_key=dedupe_key) as consumer:
        with pytest.raises(ProcessError, match="dedupe_key= failed"):
            await consumer.poll_now()
        before = list(consumer.processed)
        assert before == [str(n) for n in range(1, 15)]
        await consumer.rewind(feed.after(30))
        await consumer.poll_now(timeout=None)
        assert consumer.processed == [*before, "31", "32", "33", "34", "35"]


async def test_a_failing_message_of_a_pending_batch_ends_the_poll_before_a_resync():
    class Waits(Batches):
        async def process_batch(self, messages):
            raise ValueError("no")

    feed = feed_of(35, page_size=10, read_ahead=True)
    settings = {"batch_size": 100, "batch_wait": 50.0, "on_cursor_expired": Resync("latest", forget=False)}
    async with Waits(feed, retry=TWICE, **settings) as consumer:
        feed.answer(None, None, CursorExpired("gone"))
        assert (await consumer.poll_now()).retry_in == pytest.approx(600)
        assert consumer.status().counters.resyncs == 0


async def test_the_next_poll_starts_at_a_pending_message_that_failed_at_max_poll_time():
    class Waits(Batches):
        async def process_batch(self, messages):
            raise ValueError("no")

    feed = feed_of(35, page_size=10, read_ahead=True, latency=1.0)
    async with Waits(feed, batch_size=100, batch_wait=50.0, retry=TWICE, max_poll_time=0.5) as consumer:
        assert (await consumer.poll_now()).retry_in == pytest.approx(600)
        with pytest.raises(ProcessError, match="'1' failed"):
            await consumer.poll_now(timeout=None)
        assert feed.requests[-1].request.cursor is None


# Replay


async def read(*names, **settings):
    """Create a feed, and a consumer that has read all of it."""
    feed = feed_of(*names, page_size=2)
    consumer = Log(feed, **settings)
    await consumer.poll_now()
    consumer.processed.clear()
    return feed, consumer


async def test_a_replay_gives_a_range_to_the_handler_again():
    feed, consumer = await read(*"abcdef")
    async with consumer:
        result = await consumer.replay(feed.after(1), feed.after(4))
        assert consumer.processed == ["b", "c", "d"]
        assert result == PollResult(messages=3, duplicates=0, pages=2, caught_up=False)
        assert consumer.status().cursor == feed.after(6), "it stays where it is"
        assert (await consumer.poll_now()).messages == 0


async def test_a_replay_counts_dead_lettered_and_skipped_messages():
    async def process(message):
        if message.id in "bd":
            raise DeadLetterMessage if message.id == "b" else SkipMessage

    feed = feed_of(*"abcdef", page_size=2)
    consumer = Consumer(feed, store=MemoryStore(), process=process)
    await consumer.poll_now()
    result = await consumer.replay("inception")
    assert (result.messages, result.dead_lettered, result.skipped) == (6, 1, 1)
    result = await consumer.replay(feed.after(2), feed.after(4))
    assert (result.messages, result.dead_lettered, result.skipped) == (2, 0, 1)


async def test_a_replay_without_an_end_cursor_runs_to_the_end_of_the_feed():
    _, consumer = await read(*"abcde")
    result = await consumer.replay("inception")
    assert consumer.processed == list("abcde")
    assert result == PollResult(messages=5, duplicates=0, pages=3, caught_up=True)


async def test_a_replay_ends_at_the_cursor_of_a_page():
    feed = feed_of(*"abcdef", page_size=2, cursors="page")
    consumer = Log(feed)
    result = await consumer.replay("inception", feed.after(4))
    assert consumer.processed == list("abcd")
    assert not result.caught_up


async def test_a_replay_is_caught_up_if_its_end_cursor_never_appears():
    feed = feed_of(*"abc", page_size=2, cursors="page")
    consumer = Log(feed)
    assert (await consumer.replay("inception", feed.after(1))).caught_up
    assert consumer.processed == list("abc")


async def test_a_replay_of_an_empty_range_fetches_no_page():
    feed, consumer = await read(*"abc")
    asked = len(feed.requests)
    result = await consumer.replay(feed.after(1), feed.after(1))
    assert result == PollResult(messages=0, duplicates=0, pages=0, caught_up=False)
    assert len(feed.requests) == asked


async def test_a_replay_can_end_at_the_latest_cursor():
    feed, consumer = await read(*"abc")
    feed.publish("d", lag=5)
    feed.latency = 1
    assert not (await consumer.replay(feed.after(1), "latest")).caught_up
    assert consumer.processed == ["b", "c"]


async def test_a_replay_from_the_latest_cursor_replays_nothing():
    feed, consumer = await read(*"abc")
    result = await consumer.replay("latest")
    assert (result.messages, result.caught_up) == (0, True)
    assert feed.requests[-1].request.cursor == feed.after(3)


async def test_a_replay_to_the_latest_cursor_of_a_feed_without_one_is_refused():
    class Feed:
        async def fetch(self, request):
            raise AssertionError

    with pytest.raises(ValueError, match=r"Feed has no latest\(\)"):
        await Log(Feed()).replay("inception", "latest")


@pytest.mark.parametrize("wrong", [{"start": None}, {"start": 3}, {"start": "inception", "end": 3}])
async def test_a_replay_with_invalid_arguments_is_refused(wrong):
    with pytest.raises(TypeError, match="must be 'inception', 'latest' or a cursor"):
        await Log(FakeFeed()).replay(**wrong)


async def test_a_replay_ends_at_an_empty_page_that_leads_to_itself():
    feed = FakeFeed()
    feed.answer(Page([Message("1")], next_page="x"), Page([], cursor="x", next_page="x"))
    consumer = Log(feed)
    result = await consumer.replay("inception")
    assert not result.caught_up, "the feed announces more pages"
    assert result.standstill.startswith("the feed announces more pages, but leads back to cursor 'x'")
    assert consumer.processed == ["1"]


async def test_a_replay_fails_when_the_pages_lead_in_a_circle():
    class Circle:
        async def fetch(self, request):
            place = int(request.cursor or 0)
            return Page([Message(str(place))], next_page=str((place + 1) % 7))

    consumer = Log(Circle())
    with pytest.raises(FeedError, match="the pages of the feed repeat, so the replay cannot reach"):
        await consumer.replay("inception")
    assert len(consumer.processed) < 40


async def test_a_failed_fetch_ends_a_replay_and_earlier_messages_are_recorded():
    feed = feed_of(*"abcd", page_size=2)
    async with Log(feed) as consumer:
        feed.answer(None, FeedError("down"))
        with pytest.raises(FeedError, match="down"):
            await consumer.replay("inception")
        assert consumer.processed == ["a", "b"]
        await consumer.poll_now()
        assert consumer.processed == list("abcd"), "and not processed again by the next poll"


async def test_a_replay_retries_a_failing_message_and_then_applies_on_failure():
    feed = feed_of("a", "bad", "c")
    async with Fails(feed, failing=["bad"], retry=TWICE, on_failure="dead_letter") as consumer:
        began = anyio.current_time()
        result = await consumer.replay("inception")
        assert anyio.current_time() - began == pytest.approx(600)
        assert result.messages == 3
        assert consumer.attempts == ["a", "bad", "bad", "c"]
        assert [letter.id for letter in await consumer.dead_letters.list()] == ["bad"]


async def test_a_replay_that_is_stopped_loses_no_dead_letter():
    """The cursor is past the message: a new dead letter of the replay does not come again."""

    def decide(message, error):
        return "dead_letter" if message.id == "dies" else "stop"

    feed, store = feed_of("a", "dies", "stops", "d"), MemoryStore()
    await Log(feed, store=store).poll_now()
    consumer = Fails(feed, failing=["dies", "stops"], store=store, retry=None, on_failure=decide)
    with pytest.raises(ProcessError, match="stops"):
        await consumer.replay("inception")
    assert consumer.processed == ["a"]
    assert [letter.id for letter in await consumer.dead_letters.list()] == ["dies"]


async def test_a_cancelled_replay_records_the_messages_it_processed():
    feed, store = feed_of("a", "b", "c"), MemoryStore()
    consumer = Log(feed, store=store, takes=1.0)
    with anyio.move_on_after(2.5):
        await consumer.replay("inception")
    again = Log(feed, store=store)
    await again.poll_now()
    assert again.processed == ["c"]


async def test_no_poll_starts_while_a_replay_runs(running):
    feed, consumer = await read(*"abcd", takes=0.0)
    running(consumer)
    await anyio.sleep(1)
    consumer.takes = 5.0
    feed.publish("new")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.replay, "inception", feed.after(4))
        await anyio.sleep(1)
        consumer.wake()
        await anyio.sleep(15)
        assert len(consumer.processed) == 3
    await consumer.until(5)
    assert consumer.processed == ["a", "b", "c", "d", "new"]


async def test_g3_a_replay_respects_retry_after():
    feed = feed_of(*"abcd", page_size=2, retry_after=100)
    consumer = Log(feed)
    await consumer.replay("inception")
    first, second = times(feed)
    assert 100 <= second - first <= 110


async def test_a_replay_keeps_fingerprints():
    def fingerprint(message):
        return message.data.encode()

    feed, store = FakeFeed(), MemoryStore()
    feed.publish("a", data="one")
    await Log(feed, store=store, fingerprint=fingerprint).poll_now()
    await Log(feed, store=store, fingerprint=fingerprint).replay("inception")
    feed.publish("a", data="two")
    with pytest.raises(ProcessError, match="came again with other content"):
        await Log(feed, store=store, fingerprint=fingerprint, retry=None).poll_now()


async def test_a_message_fails_in_a_replay_when_its_fingerprint_function_fails():
    feed = feed_of("a", "b")
    async with Log(feed, fingerprint=lambda message: 1 / 0, on_failure="dead_letter") as consumer:
        await consumer.replay("inception")
        assert len(await consumer.dead_letters.list()) == 2
    assert consumer.processed == []


async def test_a_store_that_fails_ends_a_replay(monkeypatch):
    async def refuse(**_):
        raise StoreError("disk full")

    async with Log(feed_of("a")) as consumer:
        with monkeypatch.context() as patch:
            patch.setattr(consumer._parts.session, "commit", refuse)
            with pytest.raises(StoreError, match="disk full"):
                await consumer.replay("inception")
