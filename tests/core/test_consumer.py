"""The public interface of `Consumer`: constructor, process, poll_now, wake, run, stop, status."""

import asyncio
import dataclasses
import functools
import gc
import inspect
import itertools
import logging
import math
import sys
import threading
import traceback
from contextlib import suppress

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from tenacity import AsyncRetrying, retry_if_not_exception_type, stop_after_attempt, wait_fixed

from push_to_poll_client import (
    Consumer,
    CursorExpired,
    DeadLetterMessage,
    DecodeError,
    FeedError,
    FeedGone,
    FeedRefused,
    ListenerError,
    MemoryStore,
    Message,
    Mode,
    Page,
    PagesChanged,
    PollResult,
    ProcessError,
    Push,
    RetryMessage,
    SkipMessage,
    SQLiteStore,
    StoreBusy,
    StoreError,
    StoreMismatch,
    StoreUnavailable,
    Throttled,
)
from push_to_poll_client.testing._fake_feed import FakeFeed
from push_to_poll_client.testing._manual_listener import ManualListener
from push_to_poll_client.testing._virtual_time import virtual_time
from tests.support.consumers import Log, times
from tests.support.refusing_store import RefusingStore

pytestmark = pytest.mark.anyio


async def nothing(message):
    pass


def consumer_of(feed, process=nothing, **settings):
    return Consumer(feed, store=MemoryStore(), process=process, **settings)


# Construction


def test_a_consumer_without_a_handler_is_a_type_error():
    with pytest.raises(
        TypeError, match=r"override process or process_batch in a subclass of Consumer, or pass process="
    ):
        Consumer(FakeFeed(), store=MemoryStore())


async def test_all_counters_of_a_new_consumer_are_zero():
    async with consumer_of(FakeFeed()) as consumer:
        assert set(dataclasses.asdict(consumer.status().counters).values()) == {0}


async def test_process_and_process_batch_of_the_base_class_raise_not_implemented_error():
    with pytest.raises(NotImplementedError):
        consumer_of(FakeFeed()).process(Message("1"))
    with pytest.raises(NotImplementedError):
        consumer_of(FakeFeed()).process_batch([Message("1")])


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"fallback_interval": 0}, ValueError, "fallback_interval must be finite and above 0"),
        ({"fallback_interval": "60"}, TypeError, "fallback_interval must be a number or None"),
        ({"fallback_interval": float("nan")}, ValueError, "fallback_interval must be finite"),
        ({"degraded_interval": -1}, ValueError, "degraded_interval"),
        ({"rate": 0}, ValueError, "rate must be finite and above 0"),
        ({"rate": True}, TypeError, "rate must be a number"),
        ({"burst": 0}, ValueError, "burst must be at least 1, got 0"),
        ({"burst": 1.5}, TypeError, "burst must be a whole number, got 1.5"),
        ({"wake_delay": -1}, ValueError, "wake_delay must be finite and at least 0"),
        ({"wake_delay": None}, TypeError, "wake_delay must be a number, got None"),
        ({"wake_delay": 100}, ValueError, "shorter than wake_delay"),
        ({"max_poll_time": 0}, ValueError, "max_poll_time"),
        ({"commit_interval": float("inf")}, ValueError, "commit_interval"),
        ({"shutdown_timeout": -1}, ValueError, "shutdown_timeout"),
        ({"rate": 0.01}, ValueError, "is too short for rate=0.01; use at least 1 / rate, about 100 seconds"),
        ({"retry": 3}, TypeError, "retry must be a tenacity.AsyncRetrying or None"),
        ({"store": MemoryStore}, TypeError, r"expected an object with a method claim\(\)"),
        ({"listeners": [object()]}, TypeError, r"expected an object with a method listen\(\)"),
        (
            {"listeners": ManualListener()},
            TypeError,
            r"listeners must be a sequence, got one listener; pass listeners=\[",
        ),
    ],
)
def test_wrong_arguments_are_found_at_construction(wrong, error, text):
    with pytest.raises(error, match=text):
        Consumer(FakeFeed(), **{"store": MemoryStore(), "process": nothing, **wrong})


def test_a_feed_must_have_fetch():
    with pytest.raises(TypeError, match=r"expected an object with a method fetch\(\)"):
        Consumer(object(), store=MemoryStore(), process=nothing)


def test_the_name_defaults_to_the_feeds_identity():
    assert consumer_of(FakeFeed(identity="shop/orders")).name == "shop/orders"
    assert consumer_of(FakeFeed(), name="mine").name == "mine"


async def test_a_consumer_is_named_after_the_feed_class_if_the_feed_has_no_identity():
    class Plain:
        async def fetch(self, request):
            return Page()

    assert consumer_of(Plain()).name == f"{Plain.__qualname__}"


async def test_a_name_that_was_used_with_another_feed_is_refused():
    store = MemoryStore()
    await Consumer(FakeFeed(identity="a"), store=store, process=nothing, name="x").poll_now()
    with pytest.raises(StoreMismatch):
        await Consumer(FakeFeed(identity="b"), store=store, process=nothing, name="x").poll_now()


# process


async def test_a_plain_function_runs_in_a_worker_thread():
    feed, threads = FakeFeed(), []
    feed.publish(2)

    def process(message):
        threads.append((message.id, threading.get_ident()))

    await consumer_of(feed, process).poll_now()
    assert [name for name, _ in threads] == ["1", "2"]
    assert threading.get_ident() not in {thread for _, thread in threads}


async def test_process_can_be_overridden_with_a_sync_method():
    class Plain(Consumer):
        def process(self, message):
            self.seen = message.id

    feed = FakeFeed()
    feed.publish("one")
    consumer = Plain(feed, store=MemoryStore())
    await consumer.poll_now()
    assert consumer.seen == "one"


class Recorder:
    def __init__(self):
        self.seen = []

    async def __call__(self, message, suffix=""):
        self.seen.append(message.id + suffix)


def plain(target):
    """A plain function that returns an awaitable."""

    def process(message):
        return target(message)

    return process


async def test_partials_callable_objects_and_functions_returning_awaitables_work_as_handlers():
    for wrap, expected in (
        (lambda target: target, "1"),
        (lambda target: functools.partial(target, suffix="!"), "1!"),
        (plain, "1"),
    ):
        target, feed = Recorder(), FakeFeed()
        feed.publish(1)
        await consumer_of(feed, wrap(target)).poll_now()
        assert target.seen == [expected]


async def test_a_message_with_undecodable_data_is_not_retried():
    class Torn(Message):
        __slots__ = ()

        @property
        def data(self):
            raise DecodeError("torn")

    attempts = []

    async def process(message):
        attempts.append(message.id)
        message.data  # noqa: B018  # reading it decodes it

    feed = FakeFeed()
    feed.publish(Torn("t"))
    with pytest.raises(ProcessError, match="'t' failed"):
        await consumer_of(feed, process).poll_now()
    assert attempts == ["t"], "not tried again"


# Retry


def failing(times):
    left = [times]

    async def process(message):
        if left[0]:
            left[0] -= 1
            raise ValueError("no")

    return process


async def test_a_message_that_succeeds_after_three_failures_is_settled(caplog, virtual_day):
    feed = FakeFeed()
    feed.publish(2)
    consumer = consumer_of(feed, failing(3))
    result = await consumer.poll_now()
    assert (result.messages, result.caught_up) == (0, False), "the second failure waits longer than a poll does"
    assert 1 < result.retry_in <= 1.5
    while not (result := await consumer.poll_now()).caught_up:  # noqa: ASYNC110  # it says for how long
        await anyio.sleep(result.retry_in)
    assert result == PollResult(messages=2, duplicates=0, pages=1, caught_up=True)
    assert [record.levelno for record in caplog.records if "attempt" in record.getMessage()] == [
        logging.WARNING
    ] * 3


async def test_a_tenacity_strategy_sets_the_number_of_attempts_and_the_waits():
    feed = FakeFeed()
    feed.publish(1)
    retry = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(7))
    began = anyio.current_time()
    with pytest.raises(ProcessError):
        await consumer_of(feed, failing(99), retry=retry).run()
    assert anyio.current_time() - began == pytest.approx(14)


async def test_errors_excluded_by_the_retry_strategy_are_not_retried():
    feed = FakeFeed()
    feed.publish(1)
    retry = AsyncRetrying(stop=stop_after_attempt(3), retry=retry_if_not_exception_type(ValueError))
    consumer = consumer_of(feed, failing(99), retry=retry)
    with pytest.raises(ProcessError):
        await consumer.poll_now()
    assert consumer.status().counters.retries == 0


async def test_a_failed_message_is_not_retried_if_retry_is_none():
    feed = FakeFeed()
    feed.publish(1)
    began = anyio.current_time()
    with pytest.raises(ProcessError):
        await consumer_of(feed, failing(1), retry=None).poll_now()
    assert anyio.current_time() == began


async def test_the_messages_before_a_failed_one_are_committed_before_the_retry_wait():
    class FailsAtC(Log):
        async def process(self, message):
            if message.id == "c":
                raise ValueError
            await super().process(message)

    feed, store = FakeFeed(), MemoryStore()
    feed.publish("a", "b", "c")
    async with (
        FailsAtC(feed, store=store, commit_interval=1000, retry=AsyncRetrying(wait=wait_fixed(0.9))) as consumer,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(consumer.poll_now)
        await anyio.sleep(0.5)
        assert await consumer._parts.session.unseen(["a", "b", "c"]) == {"c"}
        assert consumer.status().cursor == feed.after(2)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("anyio_backend", [virtual_time("asyncio")])
async def test_a_handler_that_awaits_a_cancelled_task_fails():
    async def process(message):
        task = asyncio.ensure_future(anyio.sleep(1))
        task.cancel()
        await task

    feed = FakeFeed()
    feed.publish(1)
    with pytest.raises(ProcessError, match="awaited a task or future that other code cancelled"):
        await consumer_of(feed, process, retry=None).poll_now()


@pytest.mark.parametrize("anyio_backend", [virtual_time("asyncio")])
async def test_a_retry_that_awaits_a_cancelled_task_counts_as_a_failed_attempt():
    attempts = []

    async def process(message):
        attempts.append(message.id)
        if len(attempts) == 1:
            raise ValueError("no")
        task = asyncio.ensure_future(anyio.sleep(1))
        task.cancel()
        await task

    feed = FakeFeed()
    feed.publish(1)
    with pytest.raises(ProcessError, match="awaited a task or future that other code cancelled"):
        await consumer_of(feed, process, retry=AsyncRetrying(stop=stop_after_attempt(3))).poll_now()
    assert len(attempts) == 3


# poll_now


def gives_up_on(*, dead_letters, skips):
    """Return a handler that fails for good for the messages with these ids."""

    async def process(message):
        if message.id in dead_letters:
            raise DeadLetterMessage("no such customer")
        if message.id in skips:
            raise SkipMessage

    return process


@pytest.mark.parametrize("settings", [{}, {"concurrency": 3, "ordering_key": lambda message: message.id}])
async def test_poll_now_counts_dead_lettered_and_skipped_messages(settings):
    feed = FakeFeed(page_size=2)
    feed.publish(6)
    consumer = consumer_of(feed, gives_up_on(dead_letters={"2", "5"}, skips={"3"}), **settings)
    result = await consumer.poll_now()
    assert (result.messages, result.dead_lettered, result.skipped) == (6, 2, 1), "they are among the messages"
    feed.publish(1)
    result = await consumer.poll_now()
    assert (result.messages, result.dead_lettered, result.skipped) == (1, 0, 0), "those of this call alone"
    counters = consumer.status().counters
    assert (counters.messages, counters.dead_lettered, counters.skipped) == (7, 2, 1)


async def test_poll_now_sums_dead_lettered_and_skipped_messages_of_all_its_polls():
    feed = FakeFeed(page_size=1, cursors="chain", latency=1)
    feed.publish(9)
    # One poll ends after two pages, and one fails. Without a cursor to save, the call continues.
    feed.answer(None, None, None, FeedError("503"))
    process = gives_up_on(dead_letters={"1", "4"}, skips={"3", "9"})
    result = await consumer_of(feed, process, max_poll_time=2).poll_now()
    assert (result.messages, result.dead_lettered, result.skipped, result.pages) == (9, 2, 2, 9)


async def test_poll_now_works_without_run():
    feed = FakeFeed(page_size=2)
    feed.publish(5)
    consumer = Log(feed)
    assert await consumer.poll_now() == PollResult(messages=5, duplicates=0, pages=3, caught_up=True)
    assert await consumer.poll_now() == PollResult(messages=0, duplicates=0, pages=1, caught_up=True)
    assert feed.closed == 2


def test_poll_now_works_in_one_event_loop_after_another():
    feed = FakeFeed()
    consumer = Log(feed)
    for backend in ("asyncio", "trio", "asyncio"):
        feed.publish(1)
        assert anyio.run(consumer.poll_now, backend=backend).messages == 1


def test_retry_after_still_holds_in_the_next_event_loop():
    feed = FakeFeed()
    consumer = Log(feed)
    feed.fail(FeedError("503", retry_after=1000))
    with pytest.raises(FeedError):
        anyio.run(consumer.poll_now)
    with pytest.raises(Throttled):
        anyio.run(consumer.poll_now, backend="trio")


async def test_a_consumer_in_use_in_one_event_loop_is_refused_in_another():
    async with Log(FakeFeed()) as consumer:
        with pytest.raises(RuntimeError, match="in use in another event loop"):
            await anyio.to_thread.run_sync(anyio.run, consumer.poll_now)


async def test_a_consumer_stays_paused_after_poll_now_until_resume():
    consumer = Log(FakeFeed())
    consumer.pause()
    await consumer.poll_now()
    assert consumer._schedule.paused
    consumer.resume()
    assert not consumer._schedule.paused


@pytest.mark.parametrize("max_wait", [None, 60])
async def test_pause_and_resume_can_be_called_from_any_thread(running, max_wait):
    feed = FakeFeed(max_wait=max_wait)
    consumer = running(Log(feed, fallback_interval=None if max_wait is None else 60))
    await anyio.sleep(10)
    for call, count in ((consumer.pause, 0), (consumer.resume, 1)):
        feed.publish(1)
        consumer.wake()
        thread = threading.Thread(target=call)  # not an anyio thread: virtual time would advance
        thread.start()
        thread.join()
        await anyio.sleep(10)
        assert len(consumer.processed) == 2 * count


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_pause_resume_and_stop_do_nothing_when_the_event_loop_has_ended(backend):
    consumer = Log(FakeFeed())
    anyio.run(consumer.poll_now, backend=backend)
    consumer.pause()
    consumer.resume()
    consumer.stop()
    assert anyio.run(consumer.poll_now, backend=backend).caught_up


async def test_async_with_keeps_ownership_of_the_name_until_it_exits():
    feed, store = FakeFeed(), MemoryStore()
    async with Log(feed, store=store) as consumer:
        await consumer.poll_now()
        await consumer.poll_now()
        assert consumer.status().is_owner
        assert feed.closed == 0
        with pytest.raises(StoreBusy):
            await Log(feed, store=store).poll_now()
    assert not consumer.status().is_owner
    assert feed.closed == 1


async def test_a_feed_that_two_consumers_share_is_closed_with_the_last_one():
    feed, store = FakeFeed(), MemoryStore()
    async with Log(feed, store=store, name="one"):
        async with Log(feed, store=store, name="two") as second, Log(FakeFeed(), store=store, name="three"):
            await second.poll_now()
        assert feed.closed == 0
    assert feed.closed == 1


async def test_a_waiting_poll_now_takes_over_when_the_polling_call_is_cancelled(running):
    feed = FakeFeed(latency=10.0)
    feed.publish(1)
    consumer = Log(feed)
    results = []

    async def join():
        results.append(await consumer.poll_now())

    async with anyio.create_task_group() as joiners:
        async with anyio.create_task_group() as leader:
            leader.start_soon(consumer.poll_now)
            await feed.asked(1)
            joiners.start_soon(join)
            joiners.start_soon(join)
            await anyio.sleep(1)
            leader.cancel_scope.cancel()
        assert results == []
    assert [result.messages for result in results] == [1, 1]
    assert len(feed.requests) == 2


async def test_a_failed_poll_raises_in_every_poll_now_call_that_shares_it():
    feed = FakeFeed(latency=1.0)
    consumer = Log(feed)
    errors = []

    async def join():
        try:
            await consumer.poll_now()
        except FeedError as error:
            errors.append(error)

    async with consumer, anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.poll_now)
        await feed.asked(1)
        feed.answer(FeedError("down"))
        for _ in range(3):
            tasks.start_soon(join)
    assert [str(error) for error in errors] == ["down"] * 3


async def test_poll_now_raises_throttled_when_it_would_wait_too_long():
    feed = FakeFeed()
    consumer = Log(feed)
    feed.fail(FeedError("503", retry_after=100))
    with pytest.raises(FeedError):
        await consumer.poll_now()
    with pytest.raises(Throttled, match="the next poll must wait") as caught:
        await consumer.poll_now()
    assert 90 <= caught.value.until - anyio.current_time() <= 110
    await consumer.poll_now(timeout=120)
    assert len(feed.requests) == 2


async def test_poll_now_waits_for_a_token():
    feed = FakeFeed()
    consumer = Log(feed, rate=0.5, burst=1)
    for _ in range(4):
        await consumer.poll_now()
    began = times(feed)
    assert [b - a for a, b in itertools.pairwise(began)] == pytest.approx([2, 2, 2])


async def test_poll_now_inside_process_is_refused():
    feed, errors = FakeFeed(), []
    feed.publish(1)

    async def process(message):
        for nested in (consumer.poll_now, poll_in_a_thread):
            with pytest.raises(RuntimeError, match=r"call wake\(\) instead") as caught:
                await nested()
            errors.append(caught.value)

    async def poll_in_a_thread():
        await anyio.to_thread.run_sync(anyio.from_thread.run, consumer.poll_now)

    consumer = consumer_of(feed, process)
    await consumer.poll_now()
    assert len(errors) == 2


async def test_wake_inside_process_leads_to_another_poll(running):
    feed = FakeFeed()
    feed.publish(1)

    async def process(message):
        consumer.wake()

    consumer = running(consumer_of(feed, process))
    await feed.asked(2)
    assert times(feed)[1] - times(feed)[0] < 1


async def test_poll_now_and_wakes_are_served_within_bounded_time_during_a_long_backlog(running):
    feed = FakeFeed(page_size=2)
    feed.publish(10_000)
    consumer = running(Log(feed, takes=1.0, max_poll_time=10))
    await anyio.sleep(55)
    asked = anyio.current_time()
    result = await consumer.poll_now()
    assert not result.caught_up
    assert anyio.current_time() - asked <= 2 * (10 + 2)
    woken = anyio.current_time()
    consumer.wake(Push(cursor="hint"))
    await anyio.sleep(30)
    served = next(asked.at for asked in feed.requests if asked.request.hint is not None)
    assert served - woken <= 10 + 2, "max_poll_time, and the page in hand"


# Pages


async def test_any_exception_raised_by_fetch_is_a_failed_poll():
    feed = FakeFeed()
    for error in (ConnectionError("reset"), DecodeError("not for a fetch to raise")):
        feed.fail(error)
        with pytest.raises(FeedError, match=rf"FakeFeed.fetch\(\) raised {type(error).__name__}"):
            await Log(feed).poll_now()


async def test_a_fetch_that_does_not_return_a_page_is_a_failed_poll():
    class Wrong:
        async def fetch(self, request):
            return [1, 2, 3]

    with pytest.raises(FeedError, match=r"Wrong.fetch\(\) must return a Page, got list"):
        await consumer_of(Wrong()).poll_now()


class Text(str):
    """A subclass of `str`, as some XML parsers return. SQLite accepts it, the JSON encoder does not."""

    __slots__ = ()


@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize(
    ("message", "said"),
    [
        (Message(5), r"an invalid message: its id must be a str, got int; convert it with str\(\)"),
        (Message(None), "an invalid message: its id must be a str, got NoneType"),
        (Message(Text("5")), "an invalid message: its id must be a str, got Text"),
        (Message("5", dedupe_key=5), "an invalid message: its dedupe_key must be a str, got int"),
        (Message(5, dedupe_key="5"), "an invalid message: its id must be a str, got int"),
        (Message(""), "an invalid message: its id must not be empty: two messages"),
        (Message("5", dedupe_key=""), "an invalid message: its dedupe_key must not be empty: two messages"),
        (Message("5" * 4097), "an invalid message: its id must have at most 4096 characters, got 4097; use"),
        (
            Message("5", dedupe_key="5" * 4097),
            "an invalid message: its dedupe_key must have at most 4096 characters, got 4097",
        ),
    ],
    ids=["int", "None", "Text", "key int", "id int", "empty", "key empty", "long", "key long"],
)
async def test_a_message_with_an_invalid_id_or_key_is_a_failed_poll(
    store, message, said, tmp_path, inline_threads
):
    """Otherwise a store fails without naming the feed, or takes two messages for one (G11)."""
    feed, progress = FakeFeed(), MemoryStore() if store == "memory" else SQLiteStore(tmp_path / "state.db")
    feed.answer(Page([Message("1"), message], cursor="c1"))
    consumer = Log(feed, store=progress)
    with pytest.raises(FeedError, match=rf"FakeFeed.fetch\(\) returned {said}"):
        await consumer.poll_now()
    assert consumer.processed == []


async def test_a_chain_that_restarts_is_read_again_from_the_saved_cursor():
    feed = FakeFeed(page_size=2, cursors="chain")
    feed.publish(6)
    feed.answer(None, PagesChanged("the pages changed"))
    consumer = Log(feed)
    result = await consumer.poll_now()
    assert consumer.processed == ["1", "2", "3", "4", "5", "6"]
    assert result.duplicates == 2


@pytest.mark.parametrize("what", ["dead letters", "rewind", "poll"])
async def test_a_poll_now_that_waits_for_the_server_does_not_block_other_calls(what):
    feed = FakeFeed(retry_after=3600)
    async with Log(feed) as consumer, anyio.create_task_group() as tasks:
        await consumer.poll_now()
        tasks.start_soon(functools.partial(consumer.poll_now, timeout=None))
        await anyio.sleep(1)
        began = anyio.current_time()
        if what == "poll":
            with pytest.raises(Throttled):
                await consumer.poll_now(timeout=10)
        else:
            await (consumer.dead_letters.list() if what == "dead letters" else consumer.rewind("inception"))
        assert anyio.current_time() - began < 1
    assert len(feed.requests) == 2


async def test_poll_now_is_not_throttled_by_a_time_that_has_passed_while_it_waited_for_a_poll():
    feed = FakeFeed(latency=20)
    async with Log(feed, rate=0.1, burst=1, takes=5) as consumer, anyio.create_task_group() as tasks:
        feed.fail(FeedError("down"))
        tasks.start_soon(ignore_feed_error, consumer.poll_now)
        await feed.asked(1)
        feed.latency = 0
        await anyio.sleep(15)
        with anyio.fail_after(30):
            assert (await consumer.poll_now(timeout=1)).caught_up


async def ignore_feed_error(function):
    with suppress(FeedError):
        await function()


async def test_a_poll_now_that_waits_for_a_token_is_not_delayed_by_held_fetches(running):
    feed = FakeFeed(max_wait=8, latency=0.1)
    feed.publish(3)
    settings = {"rate": 0.01, "burst": 1, "fallback_interval": 7200, "degraded_interval": None}
    consumer = running(Log(feed, **settings))
    await anyio.sleep(50)
    called = anyio.current_time()
    assert (await consumer.poll_now(timeout=None)).caught_up
    assert anyio.current_time() - called < 60


async def test_a_poll_now_that_waits_for_a_message_polls_at_once_after_a_rewind():
    class Waits(Log):
        async def process(self, message):
            if message.id == "2" and not self.processed[1:]:
                self.processed.append("waits")
                raise RetryMessage(after=80_000)
            await super().process(message)

    feed = FakeFeed()
    feed.publish(3)
    async with Waits(feed) as consumer, anyio.create_task_group() as tasks:
        await consumer.poll_now()
        tasks.start_soon(functools.partial(consumer.poll_now, timeout=None))
        await anyio.sleep(1)
        began = anyio.current_time()
        await consumer.rewind("inception")
        await consumer.until(4)
        assert anyio.current_time() - began < 10


class SlowToClaim(MemoryStore):
    async def claim(self, name, *, feed):
        await anyio.sleep(1_000)
        return await super().claim(name, feed=feed)


async def test_a_call_can_be_cancelled_while_another_one_waits_for_the_store_to_open():
    async with anyio.create_task_group() as tasks:
        consumer = Log(FakeFeed(), store=SlowToClaim())
        tasks.start_soon(consumer.poll_now)
        await anyio.sleep(0.1)
        began = anyio.current_time()
        with anyio.move_on_after(5):
            await consumer.poll_now()
        assert anyio.current_time() - began == 5


async def test_a_feed_is_not_closed_while_another_consumer_of_it_is_opened():
    feed = FakeFeed()
    async with anyio.create_task_group() as tasks:
        async with Log(feed, name="one") as one:
            await one.poll_now()
            tasks.start_soon(Log(feed, name="two", store=SlowToClaim()).poll_now)
            await anyio.sleep(0.1)
        assert feed.closed == 0
    assert feed.closed == 1


@pytest.mark.parametrize("read_ahead", [False, True])
async def test_a_cancelled_poll_now_abandons_a_commit_that_hangs(read_ahead):
    feed = FakeFeed(page_size=20, read_ahead=read_ahead, latency=0.5)
    feed.publish(300)
    began = anyio.current_time()
    with anyio.move_on_after(20), suppress(StoreError):
        async with Log(feed) as consumer:
            consumer._parts.session.commit = hang
            await consumer.poll_now()
    assert anyio.current_time() - began < 100


async def hang(**_):
    await anyio.sleep(50_000)


async def test_each_caller_of_a_failed_poll_gets_its_own_error():
    feed = FakeFeed(latency=1)
    feed.fail(FeedError("503", retry_after=7), times=2)
    errors = []

    async def ask(consumer):
        try:
            await consumer.poll_now(timeout=None)
        except FeedError as error:
            errors.append(error)

    async with Log(feed) as consumer, anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(ask, consumer)
    assert len(set(map(id, errors))) == 50
    assert {(str(error), error.retry_after) for error in errors} == {("503", 7)}
    assert max(len(list(traceback.walk_tb(error.__traceback__))) for error in errors) < 30


async def test_a_chain_that_restarts_for_ever_is_a_failed_poll():
    feed = FakeFeed(page_size=2, cursors="chain")
    feed.publish(6)
    feed.answer(*[None, PagesChanged("the pages changed")] * 10)
    with pytest.raises(FeedError, match="again after 3 restarts of the poll: PagesChanged"):
        await Log(feed).poll_now()


async def test_a_page_without_new_messages_and_without_a_new_cursor_ends_the_poll():
    feed = FakeFeed()
    again = Page([Message("1")], cursor="1", next_page="1")
    feed.answer(again, again, again)
    assert (await Log(feed).poll_now()).pages == 2


async def test_a_cycle_of_pages_ends_the_poll():
    class Circle:
        async def fetch(self, request):
            place = int(request.cursor or 0)
            return Page([Message(str(place))], next_page=str((place + 1) % 7))

    result = await consumer_of(Circle()).poll_now()
    assert result.messages == 7
    assert result.pages < 40


async def test_a_poll_after_max_poll_time_continues_the_page_chain_where_it_stopped():
    feed = FakeFeed(page_size=1, cursors="chain")
    feed.publish(5)
    async with Log(feed, takes=2.0, max_poll_time=3) as consumer:
        while not (await consumer.poll_now()).caught_up:
            pass
    assert consumer.processed == ["1", "2", "3", "4", "5"]
    assert len(feed.requests) == 5


@pytest.mark.parametrize("error", [CursorExpired("too old"), FeedGone("410")])
async def test_an_expired_cursor_or_a_gone_feed_stops_run(error):
    feed = FakeFeed()
    feed.fail(error)
    with pytest.raises(type(error)):
        await Log(feed).run()


async def test_a_refused_poll_is_retried_slowly(running):
    feed = FakeFeed()
    feed.fail(FeedRefused("401"), times=3)
    consumer = running(Log(feed))
    await feed.asked(4)
    began = times(feed)
    assert all(150 <= b - a <= 300 for a, b in itertools.pairwise(began))
    assert consumer.status().counters.failed_polls == 3


# Wakes


async def test_a_wake_from_another_thread_starts_a_poll_with_its_hint(running):
    feed = FakeFeed()
    consumer = running(Log(feed, fallback_interval=None, rate=None))
    await feed.asked(1)
    await anyio.to_thread.run_sync(consumer.wake)
    await feed.asked(2)
    await anyio.to_thread.run_sync(consumer.wake, Push(topics=("orders",)))
    await feed.asked(3)
    assert feed.requests[2].request.hint == Push(topics=("orders",))


async def test_a_wake_before_the_first_poll_is_kept_with_its_hint():
    feed = FakeFeed()
    consumer = Log(feed)
    consumer.wake(Push(cursor="hint"))
    await consumer.poll_now()
    assert feed.requests[0].request.hint == Push(cursor="hint")
    assert consumer.status().counters.wakes == 1


async def test_a_hint_is_sent_again_after_a_failed_poll(running):
    feed = FakeFeed()
    consumer = running(Log(feed))
    await feed.asked(1)
    await anyio.sleep(1)
    feed.fail(FeedError("down"))
    consumer.wake(Push(cursor="hint"))
    await feed.asked(3)
    assert [asked.request.hint for asked in feed.requests] == [None, Push(cursor="hint"), Push(cursor="hint")]


async def test_a_refused_hint_is_not_merged_into_the_hint_of_a_later_wake(running):
    """Otherwise one bad hint from a sender makes the feed refuse every later poll."""
    feed = FakeFeed(latency=1.0)
    consumer = running(Log(feed))
    await feed.asked(1)
    await anyio.sleep(5)
    feed.fail(FeedRefused("400 Bad Request"))
    consumer.wake(Push(cursor="forged"))
    await feed.asked(2)
    assert feed.requests[1].request.hint == Push(cursor="forged")
    consumer.wake(Push(topics=("orders",)))
    await feed.asked(3)
    asked = feed.requests[2].request
    assert (asked.hint, asked.bypass_cache) == (Push(topics=("orders",)), True)


async def test_a_hint_is_dropped_after_two_failed_polls_and_its_wake_still_polls(running):
    """Otherwise a server that answers 500 to an unknown hint would get that hint forever."""

    class Brittle(FakeFeed):
        async def fetch(self, request):
            page = await super().fetch(request)
            if request.hint is not None:
                raise FeedError("500 Internal Server Error")
            return page

    feed = Brittle()
    consumer = running(Log(feed))
    await feed.asked(1)
    await anyio.sleep(5)
    feed.publish()
    consumer.wake(Push(cursor="forged"))
    await consumer.until(1)
    hints = [asked.request.hint for asked in feed.requests[1:4]]
    assert hints == [Push(cursor="forged"), Push(cursor="forged"), None]
    assert feed.requests[3].request.bypass_cache


async def test_a_wake_polls_again_without_its_hint_after_the_feed_refused_the_hint(running):
    feed = FakeFeed()
    consumer = running(Log(feed, fallback_interval=None))
    await feed.asked(1)
    await anyio.sleep(1)
    feed.fail(FeedRefused("400 Bad Request"))
    consumer.wake(Push(cursor="forged"))
    await feed.asked(3)
    asked = feed.requests[2].request
    assert (asked.hint, asked.bypass_cache) == (None, True)


async def test_a_hint_that_arrives_during_a_failing_poll_is_merged_with_the_hint_of_that_poll(running):
    feed = FakeFeed(latency=1.0)
    consumer = running(Log(feed))
    await feed.asked(1)
    await anyio.sleep(5)
    feed.fail(FeedError("down"))
    consumer.wake(Push("1", ("orders",)))
    await feed.asked(2)
    consumer.wake(Push("2", ("users",)))
    await feed.asked(3)
    assert feed.requests[2].request.hint == Push("2", ("orders", "users"))


async def test_a_request_is_fresh_after_a_push_and_not_after_the_fallback_interval(running):
    feed = FakeFeed()
    listener = ManualListener()
    running(Log(feed, listeners=[listener]))
    await listener.connected()
    await anyio.sleep(1)
    listener.push()
    await anyio.sleep(200)
    fresh = [asked.request.bypass_cache for asked in feed.requests]
    assert fresh[1] is True
    assert fresh[-1] is False


async def test_a_push_that_arrives_before_its_message_is_visible_causes_another_poll(running):
    feed = FakeFeed()
    listener = ManualListener()
    consumer = running(Log(feed, listeners=[listener]))
    await listener.connected()
    await anyio.sleep(10)
    feed.publish("late", lag=0.7)
    listener.push()
    pushed = anyio.current_time()
    await consumer.until(1)
    assert anyio.current_time() - pushed < 2


async def test_wake_delay_gathers_wakes_into_one_poll(running):
    feed = FakeFeed()
    consumer = running(Log(feed, wake_delay=1.0))
    await feed.asked(1)
    await anyio.sleep(5)
    woken = anyio.current_time()
    for _ in range(10):
        consumer.wake()
        await anyio.sleep(0.05)
    await feed.asked(2)
    await anyio.sleep(5)
    assert times(feed)[1:] == pytest.approx([woken + 1.0])
    assert consumer.status().counters.coalesced == 9


# Long polling


async def test_an_idle_consumer_long_polls_the_feed(running):
    feed = FakeFeed(max_wait=20)
    consumer = running(Log(feed))
    await anyio.sleep(100)
    assert consumer.status().mode is Mode.WAITING
    assert {asked.request.wait for asked in feed.requests[1:]} == {20}
    feed.publish("one")
    published = anyio.current_time()
    await consumer.until(1)
    assert anyio.current_time() == published


async def test_a_long_poll_never_waits_longer_than_the_fallback_interval(running):
    feed = FakeFeed(max_wait=500)
    running(Log(feed, fallback_interval=30))
    await anyio.sleep(100)
    assert feed.requests[-1].request.wait == 30


async def test_a_wake_cancels_a_waiting_fetch(running):
    feed = FakeFeed(max_wait=1000, answers_early=False)
    consumer = running(Log(feed))
    await feed.asked(2)
    await anyio.sleep(10)
    consumer.wake()
    await feed.asked(3)
    assert feed.requests[2].request.wait == 0
    assert times(feed)[2] - times(feed)[1] == pytest.approx(10)


async def test_poll_now_cancels_a_waiting_fetch(running):
    feed = FakeFeed(max_wait=1000)
    consumer = running(Log(feed))
    await feed.asked(2)
    began = anyio.current_time()
    await consumer.poll_now()
    assert anyio.current_time() == began
    assert feed.requests[2].request.wait == 0


async def test_early_empty_answers_to_long_polls_do_not_cause_a_busy_loop(running):
    feed = FakeFeed(max_wait=30, answers_early=True)
    running(Log(feed))
    await anyio.sleep(600)
    assert len(feed.requests) <= 50


async def test_a_consumer_with_a_healthy_push_channel_does_not_long_poll(running):
    feed = FakeFeed(max_wait=30)
    listener = ManualListener()
    running(Log(feed, listeners=[listener]))
    await listener.connected()
    await anyio.sleep(1)
    count = len(feed.requests)
    await anyio.sleep(300)
    assert {asked.request.wait for asked in feed.requests[count:]} == {0}


# run and stop


async def test_run_twice_is_refused(running):
    consumer = running(Log(FakeFeed()))
    await anyio.sleep(1)
    with pytest.raises(RuntimeError, match="already running"):
        await consumer.run()


async def test_stop_makes_run_return_and_run_can_be_called_again():
    feed = FakeFeed()
    consumer = Log(feed)
    for count in (1, 2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer.run)
            await feed.asked(count)
            await anyio.sleep(1)
            consumer.stop()
        assert consumer.status().mode is Mode.STOPPED


async def test_stop_works_from_a_thread_and_does_nothing_when_nothing_runs():
    feed = FakeFeed()
    consumer = Log(feed, fallback_interval=None)
    consumer.stop()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await feed.asked(1)
        await anyio.to_thread.run_sync(consumer.stop)
    assert len(feed.requests) == 1


async def test_stop_reaches_a_run_that_was_called_and_has_not_begun():
    feed = FakeFeed()
    consumer = Log(feed)
    for count in (0, 1):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer.run)
            if count:
                await feed.asked(1)
            consumer.stop()
        assert len(feed.requests) == count


@pytest.mark.parametrize("anyio_backend", [virtual_time("asyncio")])
async def test_stop_after_create_task_ends_the_task():
    feed = FakeFeed()
    consumer = Log(feed)
    task = asyncio.create_task(consumer.run())
    consumer.stop()
    await task
    assert feed.requests == []


def test_run_can_be_called_before_there_is_an_event_loop():
    feed = FakeFeed()
    feed.publish(1)

    async def process(message):
        consumer.stop()

    consumer = consumer_of(feed, process)
    asyncio.run(consumer.run())
    assert consumer.status().counters.messages == 1
    stopped = consumer.run()
    consumer.stop()
    asyncio.run(stopped)
    assert len(feed.requests) == 1


@pytest.mark.filterwarnings("ignore:coroutine 'Consumer._run' was never awaited")
async def test_a_stop_before_run_is_called_and_a_run_that_is_never_awaited_leave_nothing_behind():
    feed = FakeFeed()
    consumer = Log(feed)
    consumer.run()
    gc.collect()
    consumer.stop()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await feed.asked(1)
        assert len(consumer._runners) == 1
        consumer.stop()


@pytest.mark.parametrize("takes", [0, math.inf])
async def test_stop_from_a_thread_ends_a_run_that_opens_its_session(takes):
    class Slow(MemoryStore):
        async def claim(self, name, *, feed):
            thread = threading.Thread(target=consumer.stop)
            thread.start()
            thread.join()
            await anyio.sleep(takes)
            return await super().claim(name, feed=feed)

    feed, store = FakeFeed(), Slow()
    consumer = Log(feed, store=store)
    with anyio.fail_after(1):
        await consumer.run()
    assert (feed.requests, list(store._owners)) == ([], [])


async def test_run_may_be_overridden_with_an_async_method():
    class Runs(Log):
        async def run(self):
            self.began = anyio.current_time()
            await super().run()

    feed = FakeFeed()
    consumer = Runs(feed)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await feed.asked(1)
        consumer.stop()
    assert consumer.began is not None


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.12 can mark such a function")
def test_frameworks_see_that_run_must_be_awaited():
    assert inspect.iscoroutinefunction(consumer_of(FakeFeed()).run)


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_the_message_being_processed_finishes_when_run_is_stopped_or_cancelled(how):
    feed, store = FakeFeed(), MemoryStore()
    feed.publish(3)
    consumer = Log(feed, store=store, takes=5.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await anyio.sleep(7)
        consumer.stop() if how == "stop" else tasks.cancel_scope.cancel()
    assert consumer.processed == ["1", "2"]
    again = Log(feed, store=store)
    await again.poll_now()
    assert again.processed == ["3"]


async def test_a_message_that_overruns_the_shutdown_timeout_is_cancelled(caplog):
    caplog.set_level(logging.INFO)
    feed, store = FakeFeed(), MemoryStore()
    feed.publish(3)
    consumer = Log(feed, store=store, takes=50.0, shutdown_timeout=3.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await anyio.sleep(57)
        consumer.stop()
        stopped = anyio.current_time()
    assert anyio.current_time() - stopped == pytest.approx(3.0)
    assert consumer.processed == ["1"]
    assert "message '2' was in flight" in caplog.text
    again = Log(feed, store=store)
    await again.poll_now()
    assert again.processed == ["2", "3"]


async def test_stop_does_not_wait_for_a_fetch_or_a_backoff():
    for feed in (FakeFeed(latency=1000), FakeFeed(max_wait=1000), FakeFeed()):
        feed.publish(1)
        consumer = consumer_of(feed, failing(99), retry=AsyncRetrying(wait=wait_fixed(1000)))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer.run)
            await anyio.sleep(5)
            consumer.stop()
            stopped = anyio.current_time()
        assert anyio.current_time() == stopped


async def test_a_stop_leaves_the_remaining_messages_of_the_page_unprocessed():
    feed = FakeFeed()
    feed.publish(3)

    async def process(message):
        consumer.stop()

    consumer = consumer_of(feed, process)
    await consumer.run()
    assert consumer.status().counters.messages == 1


async def test_a_cancelled_poll_now_commits_the_messages_it_processed():
    feed, store = FakeFeed(), MemoryStore()
    feed.publish(3)
    consumer = Log(feed, store=store, takes=2.0, commit_interval=100)
    with anyio.move_on_after(3):
        await consumer.poll_now()
    again = Log(feed, store=store)
    await again.poll_now()
    assert again.processed == ["2", "3"]


async def test_a_poll_now_call_finishes_after_run_was_stopped(running):
    feed = FakeFeed()
    consumer = Log(feed, takes=5.0, shutdown_timeout=1.0)
    results = []

    async def ask():
        results.append(await consumer.poll_now())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await feed.asked(1)
        await anyio.sleep(1)
        feed.publish(3)
        tasks.start_soon(ask)
        await anyio.sleep(1)
        consumer.stop()
    assert [result.messages for result in results] == [3]


# Listeners


async def test_a_listener_error_stops_run():
    listener = ManualListener()
    consumer = Log(FakeFeed(), listeners=[listener])
    listener.fail(ListenerError("410"))
    with pytest.raises(ListenerError, match="410"):
        await consumer.run()


async def test_an_unexpected_exception_of_a_listener_stops_run_and_names_the_listener():
    listener = ManualListener(name="redis")
    listener.fail(ConnectionError("no route"))
    with pytest.raises(ListenerError, match="listener redis failed: ConnectionError: no route") as caught:
        await Log(FakeFeed(), listeners=[listener]).run()
    assert isinstance(caught.value.__cause__, ConnectionError)


async def test_polls_go_on_at_the_degraded_interval_after_the_listener_ends(running):
    feed, listener = FakeFeed(), ManualListener()
    consumer = running(Log(feed, listeners=[listener]))
    await listener.connected()
    listener.finish()
    await anyio.sleep(100)
    assert not consumer.status().listeners[0].up
    assert len(feed.requests) >= 9, "polls go on, at the degraded interval"


async def test_a_connect_of_a_push_channel_causes_a_poll(running):
    feed, listener = FakeFeed(), ManualListener(connects=False)
    running(Log(feed, listeners=[listener]))
    await feed.asked(1)
    await anyio.sleep(1)
    listener.connect()
    await feed.asked(2)
    assert times(feed)[1] - times(feed)[0] == pytest.approx(1)


async def test_status_shows_a_lossy_push_channel_and_its_missed_pushes(running):
    feed, listener = FakeFeed(), ManualListener()
    consumer = running(Log(feed, listeners=[listener]))
    await listener.connected()
    for _ in range(3):
        await anyio.sleep(61)
        feed.publish(1)
    await anyio.sleep(61)
    status = consumer.status()
    assert status.losing_pushes
    assert status.counters.missed_pushes >= 2


# status


async def test_status_shows_cursor_mode_listeners_counters_and_lag(running):
    feed, listener = FakeFeed(), ManualListener(name="push")
    feed.publish(2)
    consumer = Log(feed, listeners=[listener, ManualListener(name="push", connects=False)])
    before = consumer.status()
    assert before.mode is Mode.STOPPED
    assert before.cursor is None
    assert before.lag(0.0) is None
    running(consumer)
    await consumer.until(2)
    await anyio.sleep(1)
    listener.push()
    listener.disconnect(OSError("reset by\npeer"))
    await anyio.sleep(10)
    status = consumer.status()
    assert status.cursor == feed.newest
    assert status.mode is Mode.IDLE
    assert status.fencing_token == 1
    assert [(one.name, one.up) for one in status.listeners] == [("push", False), ("push #2", False)]
    assert status.listeners[0].last_error == "OSError: reset by peer"
    assert status.listeners[0].pushes == 1
    assert status.counters.messages == 2
    assert status.last_poll >= status.last_caught_up >= status.last_progress > 0
    assert status.lag(status.last_caught_up + 5) == 5
    assert (await anyio.to_thread.run_sync(consumer.status)).cursor == status.cursor


@pytest.mark.parametrize("stores", ["memory", "sqlite"])
async def test_status_of_a_closed_consumer_shows_what_it_had_saved(stores, tmp_path):
    async def process(message):
        if message.id == "2":
            raise DeadLetterMessage("no such customer")

    feed = FakeFeed()
    feed.publish(3)
    store = MemoryStore() if stores == "memory" else SQLiteStore(tmp_path / "state.db")
    consumer = Consumer(feed, store=store, process=process)
    before = consumer.status()
    assert (before.cursor, before.records, before.dead_letters) == (None, 0, 0)
    await consumer.poll_now()
    status = consumer.status()
    assert (status.cursor, status.records, status.dead_letters) == (feed.newest, 3, 1)
    assert (status.mode, status.is_owner, status.fencing_token) == (Mode.STOPPED, False, None)
    await consumer.dead_letters.drop("2")
    await consumer.rewind(feed.after(1))
    status = consumer.status()
    assert (status.cursor, status.records, status.dead_letters) == (feed.after(1), 3, 0)


def test_status_shows_what_was_saved_before_the_event_loop_was_lost():
    feed = FakeFeed()
    feed.publish(3)
    consumer = Log(feed)

    async def poll_and_leave_the_session_open():
        await consumer.__aenter__()
        await consumer.poll_now()

    anyio.run(poll_and_leave_the_session_open)
    assert consumer.status().cursor == feed.newest

    async def fail_to_claim(*_, **__):
        raise StoreError("gone")

    consumer._store.claim = fail_to_claim
    with pytest.raises(StoreError, match="gone"):
        anyio.run(consumer.poll_now)
    status = consumer.status()
    assert (status.cursor, status.records, status.is_owner) == (feed.newest, 3, False)


async def test_a_failed_poll_is_logged_once_with_the_delay_until_the_next_one(running, caplog):
    feed = FakeFeed()
    feed.fail(FeedError("down"))
    running(Log(feed))
    await feed.asked(2)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "poll failed, retrying in" in record.getMessage()
    assert "FeedError: down" in record.getMessage()


async def test_run_waits_for_a_store_that_cannot_be_opened(caplog):
    feed, store = FakeFeed(), RefusingStore("claim")
    feed.publish(2)
    consumer = Log(feed, store=store)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await anyio.sleep(60.0)
        assert consumer.status().last_error == "StoreUnavailable: disk full"
        assert 12 < len(store.refused) < 20
        store.refuses.clear()
        await consumer.until(2)
        consumer.stop()
    assert "store unavailable, retrying in 5.0 s: StoreUnavailable: disk full" in caplog.text


async def test_run_that_waits_for_a_store_can_be_stopped():
    consumer = Log(FakeFeed(), store=RefusingStore("claim"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await anyio.sleep(60.0)
        stopped = anyio.current_time()
        consumer.stop()
    assert anyio.current_time() == stopped


async def test_the_error_of_a_stopped_run_says_what_the_store_could_not_save():
    feed, store = FakeFeed(), RefusingStore("commit")
    feed.publish(2)
    consumer = Log(feed, store=store)
    with pytest.raises(StoreUnavailable):
        await consumer.poll_now()
    store.refuses = {"claim"}
    async with anyio.create_task_group() as tasks:

        async def run():
            with pytest.raises(StoreUnavailable, match="disk full; 2 processed messages are not saved"):
                await consumer.run()

        tasks.start_soon(run)
        await anyio.sleep(60.0)
        consumer.stop()
    store.refuses.clear()
    await consumer.poll_now(timeout=None)
    assert consumer.processed == ["1", "2"]


async def test_a_replay_first_commits_the_progress_that_an_earlier_call_could_not(virtual_day):
    feed, store = FakeFeed(), RefusingStore("commit")
    feed.publish(2)
    consumer = Log(feed, store=store)
    with pytest.raises(StoreUnavailable):
        await consumer.poll_now()
    with pytest.raises(StoreUnavailable):
        await consumer.replay("inception")
    assert consumer.processed == ["1", "2"]
