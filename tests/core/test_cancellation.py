"""Typical mistakes of hand-written loops: foreign cancellations, left-over state, odd pages."""

import asyncio
import contextlib
import gc
import logging
import os
import pathlib
import signal
import threading

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from tenacity import AsyncRetrying, retry_if_not_exception_type, stop_after_attempt

from push_to_poll_client import (
    Consumer,
    DecodeError,
    FeedError,
    FeedGone,
    ListenerError,
    MemoryStore,
    Message,
    Mode,
    Page,
    PagesChanged,
    ProcessError,
    Push,
    SQLiteStore,
    StoreError,
    Throttled,
)
from push_to_poll_client._validation import describe
from push_to_poll_client.testing import FakeFeed, ManualListener, virtual_time
from tests.support.consumers import Log, times
from tests.support.forms import GUARD, form

pytestmark = pytest.mark.anyio

on_asyncio = pytest.mark.parametrize("anyio_backend", [virtual_time("asyncio")], ids=["asyncio"])
in_real_time = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


async def cancelled_by_other_code():
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def nothing(message):
    pass


# Cancellations of other tasks


@on_asyncio
async def test_a_fetch_that_awaits_a_cancelled_future_is_a_failed_poll(running):
    class Feed(FakeFeed):
        async def fetch(self, request):
            page = await super().fetch(request)
            if len(self.requests) == 2:
                await cancelled_by_other_code()
            return page

    feed = Feed()
    consumer = running(Log(feed))
    await feed.asked(4)
    assert "awaited a task or future that other code cancelled" in consumer.status().last_error


@on_asyncio
async def test_a_store_that_awaits_a_cancelled_future_stops_run_with_an_error(monkeypatch):
    async with Log(FakeFeed()) as consumer:
        monkeypatch.setattr(consumer._parts.session, "unseen", lambda keys: cancelled_by_other_code())
        with pytest.raises(RuntimeError, match="a poll awaited a task or future that other code cancelled"):
            await consumer.run()


@on_asyncio
async def test_a_listener_that_awaits_a_cancelled_future_stops_run_with_a_listener_error():
    class Broken:
        async def listen(self, channel):
            await cancelled_by_other_code()

    with pytest.raises(ListenerError, match="awaited a task or future that other code cancelled"):
        await Log(FakeFeed(), listeners=[Broken()]).run()


async def test_system_exit_from_a_handler_is_not_wrapped_in_an_exception_group():
    feed = FakeFeed()
    feed.publish(1)

    async def leave(message):
        raise SystemExit(3)

    for way in ("run", "poll_now"):
        with pytest.raises(SystemExit) as left:
            await getattr(Consumer(feed, store=MemoryStore(), process=leave), way)()
        assert left.value.code == 3


class Grouped:
    """Raise from a task group inside another task group."""

    def __init__(self, error):
        self.error = error

    async def fail(self, *_):
        async with anyio.create_task_group() as outer, anyio.create_task_group():
            outer.start_soon(anyio.sleep, 1)
            raise self.error

    fetch = listen = latest = fail


async def test_a_feed_that_is_gone_stops_run_although_a_task_group_of_the_feed_raised_it():
    with anyio.fail_after(1000), pytest.raises(FeedGone, match="410"):
        await Log(Grouped(FeedGone("410"))).run()


async def test_the_retry_after_of_an_error_in_a_task_group_of_the_feed_is_respected():
    consumer = Log(Grouped(FeedError("busy", retry_after=60)))
    with pytest.raises(FeedError, match=r"^busy"):
        await consumer.poll_now()
    with pytest.raises(Throttled):
        await consumer.poll_now()


async def test_an_error_in_a_task_group_of_the_feed_is_named_without_the_group():
    for call in ("fetch", "latest"):
        with pytest.raises(FeedError, match=rf"Grouped.{call}\(\) raised KeyError: 'x'"):
            await Log(Grouped(KeyError("x")), start="latest" if call == "latest" else "inception").poll_now()


async def test_a_listener_error_in_a_task_group_of_the_listener_keeps_its_reason():
    with pytest.raises(ListenerError, match=r"^refused for good"):
        await Log(FakeFeed(), listeners=[Grouped(ListenerError("refused for good"))]).run()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_system_exit_from_a_listener_or_a_feed_is_not_wrapped_in_an_exception_group(error):
    group = BaseExceptionGroup("", [BaseExceptionGroup("", [error])])
    for raised in (error, group):

        class Leaves:
            async def fetch(self, request, raised=raised):
                raise raised

            async def listen(self, channel, raised=raised):
                raise raised

        for consumer in (Log(FakeFeed(), listeners=[Leaves()]), Log(Leaves())):
            with pytest.raises(type(error)) as left:
                await consumer.run()
            assert left.value is error


async def test_system_exit_in_a_task_group_of_a_handler_is_not_wrapped_in_an_exception_group():
    async def leave(message):
        raise BaseExceptionGroup("", [SystemExit(3)])

    feed = FakeFeed()
    feed.publish(1)
    with pytest.raises(SystemExit):
        await Consumer(feed, store=MemoryStore(), process=leave).run()


@on_asyncio
async def test_a_cancelled_asyncio_task_never_leaves_the_name_owned():
    store = MemoryStore()
    for ticks in range(40):
        task = asyncio.ensure_future(Log(FakeFeed(), store=store).poll_now())
        for _ in range(ticks):
            await anyio.lowlevel.checkpoint()
        task.cancel()
        await asyncio.wait([task])
        await Log(FakeFeed(), store=store).poll_now()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_sync_handler_never_runs_twice_at_the_same_time():
    begun, go_on = threading.Event(), threading.Event()
    in_hand, most = [], []

    def process(message):
        in_hand.append(message.id)
        most.append(len(in_hand))
        begun.set()
        assert go_on.wait(GUARD)
        in_hand.pop()

    feed = FakeFeed()
    feed.publish(1)
    consumer = Consumer(feed, store=MemoryStore(), process=process)
    with anyio.fail_after(GUARD):
        async with consumer:
            first = asyncio.ensure_future(consumer.poll_now())
            await anyio.to_thread.run_sync(begun.wait, GUARD)
            first.cancel()
            second = asyncio.ensure_future(consumer.poll_now())
            await anyio.wait_all_tasks_blocked()
            go_on.set()
            await asyncio.wait([first, second])
    assert max(most) == 1


# State that one poll leaves for the next


async def test_run_continues_at_once_where_poll_now_reached_max_poll_time(running):
    feed = FakeFeed(page_size=1)
    consumer = running(Log(feed, takes=1.0, max_poll_time=2, fallback_interval=None))
    await feed.asked(1)
    await anyio.sleep(1)
    feed.publish(8)
    began = anyio.current_time()
    assert not (await consumer.poll_now()).caught_up
    await consumer.until(8)
    assert anyio.current_time() - began == pytest.approx(8)


async def test_run_polls_again_within_a_second_after_poll_now_failed(running):
    feed = FakeFeed()
    consumer = running(Log(feed))
    await feed.asked(1)
    await anyio.sleep(1)
    feed.fail(FeedError("down"))
    with pytest.raises(FeedError):
        await consumer.poll_now()
    await feed.asked(3)
    assert times(feed)[2] - times(feed)[1] <= 1


async def test_run_polls_at_once_each_time(running):
    feed = FakeFeed()
    consumer = Log(feed, fallback_interval=3600)
    for count in (1, 2):
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer.run)
            await feed.asked(count)
            assert anyio.current_time() == began
            consumer.stop()


async def test_a_cancelled_continuation_counts_as_a_poll_for_the_rate_limit():
    feed = FakeFeed(page_size=1)
    feed.publish(1000)
    async with Log(feed, takes=1.0, max_poll_time=1, rate=1.0, burst=2) as consumer:
        await consumer.poll_now()
        feed.latency = 1.0
        began = anyio.current_time()
        while anyio.current_time() < began + 20:
            with anyio.move_on_after(0.05):
                await consumer.poll_now()
    assert len(feed.requests) <= 3 + 2 + 1.0 * 20


def test_the_rate_limit_holds_across_event_loops():
    feed = FakeFeed()
    consumer = Log(feed, rate=0.1, burst=2)
    for backend in ("asyncio", "trio"):
        anyio.run(consumer.poll_now, backend=backend)
    with pytest.raises(Throttled):
        anyio.run(lambda: consumer.poll_now(timeout=1.0))


async def test_retry_after_of_a_chain_restart_is_respected(running):
    feed = FakeFeed(page_size=1, cursors="chain")
    feed.publish(2)
    feed.answer(None, PagesChanged("changed", retry_after=30))
    consumer = running(Log(feed))
    await consumer.until(2)
    assert times(feed)[2] - times(feed)[1] >= 30


# Long polling


async def test_poll_now_never_waits_for_a_held_fetch(running):
    feed = FakeFeed(max_wait=60, latency=0.5)
    consumer = running(Log(feed, rate=None))
    await feed.asked(2)
    took = []

    async def ask(delay):
        await anyio.sleep(delay)
        began = anyio.current_time()
        await consumer.poll_now()
        took.append(anyio.current_time() - began)

    async with anyio.create_task_group() as tasks:
        for delay in (10, 10, 10.4, 10.6, 11):
            tasks.start_soon(ask, delay)
    assert max(took) <= 4 * feed.latency


async def test_a_wake_with_wake_delay_gets_its_own_poll_while_a_fetch_is_held(running):
    feed = FakeFeed(max_wait=60)
    consumer = running(Log(feed, wake_delay=5.0))
    await feed.asked(2)
    await anyio.sleep(10)
    consumer.wake(Push(cursor="hint"))
    await feed.asked(3)
    assert times(feed)[2] - times(feed)[1] == pytest.approx(15)
    assert (feed.requests[2].request.wait, feed.requests[2].request.hint) == (0, Push(cursor="hint"))


async def test_a_pause_cancels_a_held_fetch(running):
    feed = FakeFeed(max_wait=60)
    consumer = running(Log(feed))
    await feed.asked(2)
    await anyio.sleep(1)
    consumer.pause()
    feed.publish(1)
    await anyio.sleep(100)
    assert consumer.processed == []
    assert consumer.status().mode is Mode.PAUSED


async def test_the_retry_of_a_failed_poll_for_a_wake_is_still_fresh(running):
    feed = FakeFeed()
    consumer = running(Log(feed))
    await feed.asked(1)
    await anyio.sleep(1)
    feed.fail(FeedError("down"))
    consumer.wake()
    await feed.asked(3)
    assert [asked.request.bypass_cache for asked in feed.requests] == [False, True, True]


# Retry


async def failing(message):
    raise ValueError("no")


async def test_a_retry_error_callback_does_not_turn_a_failure_into_a_success():
    feed = FakeFeed()
    feed.publish(1)
    retry = AsyncRetrying(stop=stop_after_attempt(2), retry_error_callback=lambda state: None)
    with pytest.raises(ProcessError):
        await Consumer(feed, store=MemoryStore(), process=failing, retry=retry).poll_now()


async def test_system_exit_from_a_handler_is_never_retried():
    attempts = []

    async def process(message):
        attempts.append(message.id)
        raise ValueError if len(attempts) == 1 else SystemExit(4)

    feed = FakeFeed()
    feed.publish(1)
    retry = AsyncRetrying(stop=stop_after_attempt(9), retry=retry_if_not_exception_type(KeyError))
    with pytest.raises(SystemExit):
        await Consumer(feed, store=MemoryStore(), process=process, retry=retry).poll_now()
    assert len(attempts) == 2


async def test_a_message_that_is_undecodable_at_a_later_attempt_is_not_retried_again():
    attempts = []

    async def process(message):
        attempts.append(message.id)
        raise ValueError if len(attempts) == 1 else DecodeError("torn")

    feed = FakeFeed()
    feed.publish(1)
    with pytest.raises(ProcessError, match="torn"):
        await Consumer(feed, store=MemoryStore(), process=process).poll_now()
    assert len(attempts) == 2


async def test_a_store_error_before_a_retry_wait_is_raised_as_a_store_error(monkeypatch):
    async def process(message):
        if message.id == "2":
            raise ValueError("no")

    async def full(**_):
        raise StoreError("disk full")

    feed = FakeFeed()
    feed.publish(2)
    async with Consumer(feed, store=MemoryStore(), process=process) as consumer:
        monkeypatch.setattr(consumer._parts.session, "commit", full)
        with pytest.raises(StoreError, match="disk full"):
            await consumer.poll_now()


@on_asyncio
async def test_run_raises_an_error_if_a_handler_cancelled_the_polling_task():
    """For example by a timeout that cancels its task without `uncancel()`."""

    async def process(message):
        if message.id == "1":
            asyncio.current_task().cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await anyio.lowlevel.checkpoint()
        else:
            await cancelled_by_other_code()

    feed = FakeFeed()
    feed.publish(2)
    with pytest.raises(
        RuntimeError,
        match="the polling task was cancelled, perhaps by a handler; a handler must not cancel its caller",
    ):
        await Consumer(feed, store=MemoryStore(), process=process, retry=None).run()


# Stopping and closing


@in_real_time
async def test_a_signal_handler_may_stop_and_wake_an_idle_consumer():
    feed = FakeFeed()
    consumer = Log(feed, fallback_interval=3600)
    actions = iter([consumer.wake, consumer.stop])
    before = signal.signal(signal.SIGUSR1, lambda *_: next(actions)())
    try:
        with anyio.fail_after(GUARD):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(consumer.run)
                for count in (1, 2):
                    await feed.asked(count)
                    await anyio.to_thread.run_sync(os.kill, os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


async def test_an_error_of_a_listener_during_a_stop_is_ignored():
    class Untidy:
        async def listen(self, channel):
            try:
                await anyio.sleep_forever()
            finally:
                raise OSError("already closed")

    feed = FakeFeed()
    consumer = Log(feed, listeners=[Untidy()])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await feed.asked(1)
        consumer.stop()


async def test_an_error_when_closing_the_feed_is_logged_and_the_poll_still_succeeds(caplog):
    class Feed(FakeFeed):
        async def aclose(self):
            raise OSError("already closed")

    class Hanging(FakeFeed):
        async def aclose(self):
            await anyio.sleep_forever()

    for feed in (Feed(), Hanging()):
        feed.publish(1)
        assert (await Log(feed).poll_now()).messages == 1
    assert "cannot close the store or the feed: OSError: already closed" in caplog.text
    assert "cannot close the store or the feed: TimeoutError" in caplog.text


async def test_the_name_is_released_even_if_the_shutdown_timeout_is_zero():
    class Slow(MemoryStore):
        async def claim(self, name, *, feed):
            session = await super().claim(name, feed=feed)
            release = session.release

            async def slow_release():
                await anyio.sleep(1)
                await release()

            session.release = slow_release
            return session

    store = Slow()
    for _ in range(2):
        await Log(FakeFeed(), store=store, shutdown_timeout=0).poll_now()


async def test_a_retry_after_of_any_number_of_digits_is_a_day_at_most(running):
    feed = FakeFeed()
    feed.fail(FeedError("odd", retry_after=10**400))
    running(Log(feed))
    await feed.asked(2)
    assert 86_400 <= times(feed)[1] - times(feed)[0] <= 1.1 * 86_400


@pytest.mark.parametrize("retry_after", ["30", float("nan"), float("-inf")])
async def test_an_invalid_retry_after_of_a_feed_error_is_ignored(retry_after, running):
    feed = FakeFeed()
    feed.fail(FeedError("odd", retry_after=retry_after))
    running(Log(feed))
    await feed.asked(2)
    assert times(feed)[1] - times(feed)[0] <= 1


async def test_a_claim_that_is_cancelled_leaves_the_consumer_usable():
    class Slow(MemoryStore):
        async def claim(self, name, *, feed):
            await anyio.sleep(10)
            return await super().claim(name, feed=feed)

    consumer = Log(FakeFeed(), store=Slow())
    with anyio.move_on_after(5):
        await consumer.poll_now()
    assert (await consumer.poll_now()).caught_up


@pytest.mark.parametrize("kind", ["memory", "file", "transactional file"])
@pytest.mark.parametrize("backends", [("asyncio", "trio"), ("trio", "asyncio"), ("asyncio", "asyncio")])
def test_a_consumer_whose_event_loop_was_thrown_away_claims_its_name_again(backends, kind, tmp_path, caplog):
    if kind == "memory":
        store = MemoryStore()
    else:
        store = SQLiteStore(tmp_path / "progress.db", transactional=kind.startswith("transactional"))
    feed = FakeFeed()
    feed.publish(2)
    consumer = Log(feed, store=store)

    async def enter():
        await consumer.__aenter__()
        await consumer.poll_now()
        consumer.wake()

    first, second = backends
    anyio.run(enter, backend=first)
    feed.publish(1)
    assert anyio.run(consumer.poll_now, backend=second).messages == 1
    assert consumer.processed == ["1", "2", "3"]
    assert not consumer.status().is_owner
    assert "the event loop ended while the consumer was in use" in caplog.text


def test_a_poll_destroyed_long_after_its_event_loop_leaves_the_next_run_its_session():
    feed = FakeFeed(latency=3600)
    consumer = Log(feed)

    async def poll():
        task = asyncio.create_task(consumer.poll_now())
        await feed.asked(1)
        return task, task.get_coro()

    async def run_meanwhile():
        running = asyncio.create_task(consumer.run())
        await feed.asked(2)
        with contextlib.suppress(RuntimeError):  # its lock cannot be released any more
            destroyed.close()
        await anyio.wait_all_tasks_blocked()
        assert consumer.status().is_owner
        consumer.stop()
        await running

    loop = asyncio.new_event_loop()
    task, destroyed = loop.run_until_complete(poll())
    loop.set_exception_handler(lambda *_: None)  # a pending task is destroyed
    loop.close()
    anyio.run(run_meanwhile)
    del task


@pytest.mark.parametrize("plain", [False, True])
def test_the_end_of_asyncio_run_cancels_the_message_in_flight_and_keeps_earlier_progress(plain, tmp_path, caplog):
    """`asyncio.run()` cancels every task, including the task of the handler."""
    caplog.set_level(logging.INFO)
    feed, store = FakeFeed(), SQLiteStore(tmp_path / "progress.db")
    feed.publish(5)
    done, in_hand, go_on = [], threading.Event(), threading.Event()

    def begin(message):
        if message.id == "3":
            in_hand.set()
            return True
        done.append(message.id)
        return False

    async def process(message):
        if begin(message):
            await anyio.sleep_forever()

    def process_in_a_thread(message):
        if begin(message):
            go_on.wait(GUARD)

    handler = process_in_a_thread if plain else process
    consumer = Consumer(feed, store=store, process=handler, commit_interval=1000, listeners=[ManualListener()])

    async def main():
        task = asyncio.create_task(consumer.run())
        assert await anyio.to_thread.run_sync(in_hand.wait, GUARD)
        assert not task.done()

    asyncio.run(main())
    go_on.set()
    assert not consumer.status().is_owner
    assert caplog.text.count("cancelled while message '3' was in flight, it will be processed again") == 1
    in_hand.clear()
    anyio.run(Consumer(feed, store=store, process=lambda message: done.append(message.id)).poll_now)
    assert done == ["1", "2", "3", "4", "5"]


def test_the_end_of_asyncio_run_is_not_reported_as_a_cancellation_by_a_handler(caplog):
    """`asyncio.run()` cancels tasks in no particular order, so there are several."""

    async def main():
        feed = FakeFeed()
        feed.publish(1)
        consumers = [Log(feed, store=MemoryStore(), takes=GUARD) for _ in range(20)]
        tasks = [asyncio.create_task(consumer.run()) for consumer in consumers]
        await feed.asked(20)
        await anyio.sleep(0.01)
        assert not any(task.done() for task in tasks)

    asyncio.run(main())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.filterwarnings("ignore")  # Python warns about objects left by the closed event loop
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_run_begins_again_after_its_asyncio_loop_was_closed_under_it(kind, tmp_path):
    feed = FakeFeed(latency=0.01)
    store = MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "progress.db")

    class Up:
        async def listen(self, channel):
            channel.up()
            await anyio.sleep_forever()

    consumer = Log(feed, store=store, listeners=[Up()])

    async def keep_open():
        async with consumer:
            await anyio.sleep_forever()

    async def until(count):
        tasks = [asyncio.ensure_future(keep_open()), asyncio.ensure_future(consumer.run())]
        feed.publish(1)
        await consumer.until(count)
        while not consumer.status().records:  # noqa: ASYNC110  # until that is committed
            await anyio.sleep(0.01)
        return tasks

    loop = asyncio.new_event_loop()
    tasks = loop.run_until_complete(until(1))
    loop.close()

    async def again():
        nonlocal tasks
        keeps, new = await until(2)
        tasks = None
        gc.collect()  # destroys the coroutines of the old loop
        assert consumer._open_session._users == 2
        feed.publish(1)
        consumer.wake()
        await consumer.until(3)
        assert consumer.status().listeners[0].up
        with pytest.raises(RuntimeError, match="already running"):
            await consumer.run()
        consumer.stop()
        await new
        keeps.cancel()
        await asyncio.wait([keeps])

    asyncio.run(again())
    assert consumer.processed == ["1", "2", "3"]
    assert not consumer.status().is_owner


async def test_another_event_loop_is_refused_while_the_first_one_claims():
    class Slow(MemoryStore):
        async def claim(self, name, *, feed):
            with pytest.raises(RuntimeError, match="in use in another event loop"):
                await anyio.to_thread.run_sync(anyio.run, consumer.poll_now)
            return await super().claim(name, feed=feed)

    consumer = Log(FakeFeed(), store=Slow(), fallback_interval=None)
    await consumer.poll_now()


# Odd pages, odd arguments, odd errors


@pytest.mark.parametrize(
    "page",
    [
        None,
        Page(None),
        Page([{"id": "1"}]),
        Page(iter([Message("1")])),
        Page(cursor=7),
        Page(next_page=b"7"),
        Page(retry_after="30"),
        Page(retry_after=float("nan")),
        Page(poll_within="2"),
        Page(poll_within=-1),
        Page(poll_within=float("nan")),
    ],
)
async def test_a_page_that_cannot_be_used_is_a_failed_poll(page, running):
    class Feed:
        async def fetch(self, request):
            return page

    problem = "must return a Page, got NoneType" if page is None else "returned an invalid Page: "
    with pytest.raises(FeedError, match=rf"Feed.fetch\(\) {problem}"):
        await Log(Feed()).poll_now()


async def test_an_empty_string_is_a_valid_cursor():
    asked = []

    class Feed:
        async def fetch(self, request):
            asked.append(request.cursor)
            return Page([Message(str(len(asked)))], next_page="" if request.cursor is None else None)

    async with Log(Feed(), takes=2, max_poll_time=1) as consumer:
        await consumer.poll_now()
        await consumer.poll_now()
    assert asked == [None, ""]


async def generator(message):
    yield


@pytest.mark.parametrize("process", ["no function", generator, lambda message: (yield)])
def test_a_generator_or_a_non_callable_handler_is_a_type_error(process):
    with pytest.raises(TypeError, match="process must be a function of a message and not a generator"):
        Consumer(FakeFeed(), store=MemoryStore(), process=process)


def test_a_consumer_name_that_is_not_a_string_is_a_type_error():
    with pytest.raises(TypeError, match="name must be a str or None, got 5"):
        Consumer(FakeFeed(), store=MemoryStore(), process=nothing, name=5)


def test_listeners_with_the_same_name_get_unique_names_in_the_status():
    names = [ManualListener(name=name) for name in ("p", "p #2", "p", "p")]
    consumer = Log(FakeFeed(), listeners=names)
    assert [one.name for one in consumer.status().listeners] == ["p", "p #2", "p #3", "p #4"]


async def test_an_error_whose_str_raises_is_still_described():
    class Broken(Exception):
        def __str__(self):
            raise ZeroDivisionError

    assert describe(Broken()) == "Broken (its text cannot be read)"
    feed = FakeFeed()
    feed.fail(Broken())
    with pytest.raises(FeedError):
        await Log(feed).poll_now()


async def test_a_channel_whose_listener_has_ended_stays_down(running):
    channels = []

    class Late:
        async def listen(self, channel):
            channels.append(channel)

    feed = FakeFeed()
    consumer = running(Log(feed, listeners=[Late()]))
    await feed.asked(1)
    await anyio.sleep(1)
    channels[0].up()
    assert not consumer.status().listeners[0].up


class Interrupted(int):
    """A number whose addition lets other threads run, which Python rarely does by itself."""

    def __add__(self, other):
        pathlib.Path().stat()
        return Interrupted(int(self) + other)


async def test_pushes_from_threads_are_all_counted(running):
    channels, number = [], form(1_000, 10_000)

    class Threaded:
        async def listen(self, channel):
            channels.append(channel)
            await anyio.sleep_forever()

    def flood():
        for _ in range(number):
            channels[0].wake()

    consumer = running(Log(FakeFeed(), listeners=[Threaded()]))
    await anyio.wait_all_tasks_blocked()
    channels[0]._pushes = Interrupted()
    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert consumer.status().listeners[0].pushes == 4 * number


async def test_hints_that_wait_are_merged_and_bounded():
    feed = FakeFeed()
    for pushes, hint in (
        ([Push("1", ("orders",)), Push("2", ("users",))], Push("2", ("orders", "users"))),
        ([Push("1", ("orders",)), Push(None, ("orders",))], Push("1", ("orders",))),
        ([Push("1", ("orders",)), Push()], Push("1")),
        ([Push(None, (str(n),)) for n in range(1000)], Push()),
    ):
        consumer = Log(feed)
        async with consumer:
            for push in pushes:
                consumer._parts.polls.wake(push)
            await consumer.poll_now()
        assert feed.requests[-1].request.hint == hint


async def test_a_task_started_by_a_handler_can_call_poll_now_later():
    async def later():
        await anyio.sleep(0.5)
        await consumer.poll_now()

    async def process(message):
        tasks.start_soon(later)

    feed = FakeFeed()
    consumer = Consumer(feed, store=MemoryStore(), process=process)
    async with anyio.create_task_group() as tasks:
        for count in range(1, 21):
            feed.publish(1)
            await consumer.poll_now()
            await feed.asked(2 * count)
    assert consumer.status().counters.messages == 20
