"""The consumer's public face: construction, process, poll_now, wake, run, stop, status."""

import asyncio
import dataclasses
import functools
import itertools
import logging
import threading

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from tenacity import AsyncRetrying, retry_if_not_exception_type, stop_after_attempt, wait_fixed

from push_to_poll_client import (
    Consumer,
    CursorExpired,
    FeedError,
    FeedGone,
    FeedRefused,
    ListenerError,
    MemoryStore,
    Message,
    Mode,
    Page,
    PollResult,
    ProcessError,
    Push,
    StoreBusy,
    StoreMismatch,
    Throttled,
    UndecodableMessage,
)
from push_to_poll_client.testing._fake_feed import FakeFeed
from push_to_poll_client.testing._manual_listener import ManualListener
from push_to_poll_client.testing._virtual_time import virtual_time
from tests.support.consumers import Log, times

pytestmark = pytest.mark.anyio


async def nothing(message):
    pass


def consumer_of(feed, process=nothing, **settings):
    return Consumer(feed, store=MemoryStore(), process=process, **settings)


# Construction


def test_without_process_there_is_no_consumer():
    with pytest.raises(
        TypeError, match=r"override process or process_batch of Consumer in a subclass, or pass process="
    ):
        Consumer(FakeFeed(), store=MemoryStore())


async def test_a_new_consumer_has_counted_nothing():
    async with consumer_of(FakeFeed()) as consumer:
        assert set(dataclasses.asdict(consumer.status().counters).values()) == {0}


async def test_process_of_the_base_is_not_implemented():
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
        ({"burst": 0}, ValueError, "burst must be a whole number of polls"),
        ({"burst": 1.5}, ValueError, "burst"),
        ({"wake_delay": -1}, ValueError, "wake_delay must be finite and at least 0"),
        ({"wake_delay": None}, TypeError, "wake_delay must be a number, not None"),
        ({"wake_delay": 100}, ValueError, "shorter than wake_delay"),
        ({"max_poll_time": 0}, ValueError, "max_poll_time"),
        ({"flush_interval": float("inf")}, ValueError, "flush_interval"),
        ({"shutdown_timeout": -1}, ValueError, "shutdown_timeout"),
        ({"rate": 0.01}, ValueError, "asks for more polls than rate=0.01"),
        ({"retry": 3}, TypeError, "retry must be a tenacity.AsyncRetrying or None"),
        ({"store": MemoryStore}, TypeError, r"no object with a method claim\(\)"),
        ({"listeners": [object()]}, TypeError, r"no object with a method listen\(\)"),
        ({"listeners": ManualListener()}, TypeError, r"listeners are several: give \["),
    ],
)
def test_wrong_arguments_are_found_at_construction(wrong, error, text):
    with pytest.raises(error, match=text):
        Consumer(FakeFeed(), **{"store": MemoryStore(), "process": nothing, **wrong})


def test_a_feed_must_have_fetch():
    with pytest.raises(TypeError, match=r"no object with a method fetch\(\)"):
        Consumer(object(), store=MemoryStore(), process=nothing)


def test_the_name_defaults_to_the_feeds_identity():
    assert consumer_of(FakeFeed(identity="shop/orders")).name == "shop/orders"
    assert consumer_of(FakeFeed(), name="mine").name == "mine"


async def test_a_feed_without_an_identity_is_called_by_its_class():
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


async def test_a_plain_method_may_be_overridden_too():
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
    """A function that is not async and returns something to be awaited."""

    def process(message):
        return target(message)

    return process


async def test_partials_functions_that_return_awaitables_and_callable_objects_work():
    for wrap, expected in (
        (lambda target: target, "1"),
        (lambda target: functools.partial(target, suffix="!"), "1!"),
        (plain, "1"),
    ):
        target, feed = Recorder(), FakeFeed()
        feed.publish(1)
        await consumer_of(feed, wrap(target)).poll_now()
        assert target.seen == [expected]


async def test_data_that_cannot_be_decoded_is_not_the_handlers_fault():
    class Torn(Message):
        __slots__ = ()

        @property
        def data(self):
            raise UndecodableMessage("torn")

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


async def test_a_message_that_succeeds_in_the_end_is_settled(caplog, virtual_day):
    feed = FakeFeed()
    feed.publish(2)
    consumer = consumer_of(feed, failing(3))
    result = await consumer.poll_now()
    assert (result.messages, result.caught_up) == (0, False), "the second failure waits longer than a poll does"
    assert 1 < result.postponed <= 1.5
    while not (result := await consumer.poll_now()).caught_up:  # noqa: ASYNC110  # it says for how long
        await anyio.sleep(result.postponed)
    assert result == PollResult(messages=2, duplicates=0, pages=1, caught_up=True)
    assert [record.levelno for record in caplog.records if "attempt" in record.getMessage()] == [
        logging.WARNING
    ] * 3


async def test_tenacity_strategies_are_taken_as_they_are():
    feed = FakeFeed()
    feed.publish(1)
    retry = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(7))
    began = anyio.current_time()
    with pytest.raises(ProcessError):
        await consumer_of(feed, failing(99), retry=retry).run()
    assert anyio.current_time() - began == pytest.approx(14)


async def test_errors_that_the_strategy_excludes_are_not_tried_again():
    feed = FakeFeed()
    feed.publish(1)
    retry = AsyncRetrying(stop=stop_after_attempt(3), retry=retry_if_not_exception_type(ValueError))
    consumer = consumer_of(feed, failing(99), retry=retry)
    with pytest.raises(ProcessError):
        await consumer.poll_now()
    assert consumer.status().counters.retries == 0


async def test_without_retry_the_first_failure_is_the_last():
    feed = FakeFeed()
    feed.publish(1)
    began = anyio.current_time()
    with pytest.raises(ProcessError):
        await consumer_of(feed, failing(1), retry=None).poll_now()
    assert anyio.current_time() == began


async def test_before_a_backoff_the_finished_prefix_is_committed():
    class FailsAtC(Log):
        async def process(self, message):
            if message.id == "c":
                raise ValueError
            await super().process(message)

    feed, store = FakeFeed(), MemoryStore()
    feed.publish("a", "b", "c")
    async with (
        FailsAtC(feed, store=store, flush_interval=1000, retry=AsyncRetrying(wait=wait_fixed(0.9))) as consumer,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(consumer.poll_now)
        await anyio.sleep(0.5)
        assert await consumer._parts.session.unseen(["a", "b", "c"]) == {"c"}
        assert consumer.status().cursor == feed.after(2)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("anyio_backend", [virtual_time("asyncio")])
async def test_a_handler_that_awaits_what_somebody_else_cancelled_has_failed():
    async def process(message):
        task = asyncio.ensure_future(anyio.sleep(1))
        task.cancel()
        await task

    feed = FakeFeed()
    feed.publish(1)
    with pytest.raises(ProcessError, match="awaited something that was cancelled"):
        await consumer_of(feed, process, retry=None).poll_now()


@pytest.mark.parametrize("anyio_backend", [virtual_time("asyncio")])
async def test_a_later_attempt_that_awaits_what_somebody_else_cancelled_has_failed_too():
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
    with pytest.raises(ProcessError, match="awaited something that was cancelled"):
        await consumer_of(feed, process, retry=AsyncRetrying(stop=stop_after_attempt(3))).poll_now()
    assert len(attempts) == 3


# poll_now


async def test_poll_now_needs_no_run():
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


def test_what_the_server_asked_for_holds_in_the_next_event_loop():
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


async def test_a_pause_outlives_a_change_of_event_loop():
    consumer = Log(FakeFeed())
    consumer.pause()
    await consumer.poll_now()
    assert consumer._schedule.paused
    consumer.resume()
    assert not consumer._schedule.paused


async def test_within_async_with_the_name_is_kept():
    feed, store = FakeFeed(), MemoryStore()
    async with Log(feed, store=store) as consumer:
        await consumer.poll_now()
        await consumer.poll_now()
        assert consumer.status().owner
        assert feed.closed == 0
        with pytest.raises(StoreBusy):
            await Log(feed, store=store).poll_now()
    assert not consumer.status().owner
    assert feed.closed == 1


async def test_a_joiner_takes_over_when_the_leader_is_cancelled(running):
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


async def test_a_failed_poll_raises_in_every_joiner():
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
    with pytest.raises(Throttled, match="may not start for") as caught:
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
            with pytest.raises(RuntimeError, match="use wake") as caught:
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


async def test_a_feed_that_grows_faster_than_its_handler_starves_nobody(running):
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


async def test_a_fetch_that_raises_anything_is_a_failed_poll():
    feed = FakeFeed()
    for error in (ConnectionError("reset"), UndecodableMessage("not for a fetch to raise")):
        feed.fail(error)
        with pytest.raises(FeedError, match=rf"FakeFeed.fetch\(\) raised {type(error).__name__}"):
            await Log(feed).poll_now()


async def test_a_fetch_that_returns_no_page_is_a_failed_poll():
    class Wrong:
        async def fetch(self, request):
            return [1, 2, 3]

    with pytest.raises(FeedError, match=r"Wrong.fetch\(\) returned list, not a Page"):
        await consumer_of(Wrong()).poll_now()


async def test_a_chain_that_restarts_is_read_again_from_the_saved_cursor():
    feed = FakeFeed(page_size=2, cursors="chain")
    feed.publish(6)
    feed.restart_chain()
    consumer = Log(feed)
    result = await consumer.poll_now()
    assert consumer.processed == ["1", "2", "3", "4", "5", "6"]
    assert result.duplicates == 2


async def test_a_chain_that_restarts_for_ever_is_a_failed_poll():
    feed = FakeFeed(page_size=2, cursors="chain")
    feed.publish(6)
    feed.restart_chain(1000)
    with pytest.raises(FeedError, match="changed under the walk"):
        await Log(feed).poll_now()


async def test_a_page_that_brings_nothing_new_and_no_new_cursor_ends_the_poll():
    feed = FakeFeed()
    again = Page([Message("1")], cursor="1", next="1")
    feed.answer(again, again, again)
    assert (await Log(feed).poll_now()).pages == 2


async def test_pages_that_go_in_a_circle_end_the_poll():
    class Circle:
        async def fetch(self, request):
            place = int(request.cursor or 0)
            return Page([Message(str(place))], next=str((place + 1) % 7))

    result = await consumer_of(Circle()).poll_now()
    assert result.messages == 7
    assert result.pages < 40


async def test_a_continuation_goes_on_where_the_chain_was():
    feed = FakeFeed(page_size=1, cursors="chain")
    feed.publish(5)
    async with Log(feed, takes=2.0, max_poll_time=3) as consumer:
        while not (await consumer.poll_now()).caught_up:
            pass
    assert consumer.processed == ["1", "2", "3", "4", "5"]
    assert len(feed.requests) == 5


@pytest.mark.parametrize("error", [CursorExpired("too old"), FeedGone("410")])
async def test_what_cannot_be_mended_stops_run(error):
    feed = FakeFeed()
    feed.fail(error)
    with pytest.raises(type(error)):
        await Log(feed).run()


async def test_a_refusal_is_asked_again_slowly(running):
    feed = FakeFeed()
    feed.fail(FeedRefused("401"), times=3)
    consumer = running(Log(feed))
    await feed.asked(4)
    began = times(feed)
    assert all(150 <= b - a <= 300 for a, b in itertools.pairwise(began))
    assert consumer.status().counters.failed_polls == 3


# Wakes


async def test_wakes_from_threads_reach_the_loop(running):
    feed = FakeFeed()
    consumer = running(Log(feed, fallback_interval=None, rate=None))
    await feed.asked(1)
    await anyio.to_thread.run_sync(consumer.wake)
    await feed.asked(2)
    await anyio.to_thread.run_sync(consumer.wake, Push(topics=("orders",)))
    await feed.asked(3)
    assert feed.requests[2].request.hint == Push(topics=("orders",))


async def test_a_wake_before_run_is_kept_for_it():
    feed = FakeFeed()
    consumer = Log(feed)
    consumer.wake(Push(cursor="hint"))
    await consumer.poll_now()
    assert feed.requests[0].request.hint == Push(cursor="hint")
    assert consumer.status().counters.wakes == 1


async def test_a_hint_outlives_a_failed_poll(running):
    feed = FakeFeed()
    consumer = running(Log(feed))
    await feed.asked(1)
    await anyio.sleep(1)
    feed.fail(FeedError("down"))
    consumer.wake(Push(cursor="hint"))
    await feed.asked(3)
    assert [asked.request.hint for asked in feed.requests] == [None, Push(cursor="hint"), Push(cursor="hint")]


async def test_a_hint_with_which_a_feed_refused_is_dropped_and_its_wake_is_not(running):
    """Whoever may push can write anything into it: each later poll would be refused as well."""
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
    assert (asked.hint, asked.fresh) == (Push(topics=("orders",)), True)


async def test_a_hint_with_which_a_feed_fails_again_is_dropped_and_its_wake_is_not(running):
    """A server that answers 500 to what it never saw would else be asked so for ever."""

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
    assert feed.requests[3].request.fresh


async def test_a_wake_whose_hint_was_refused_is_answered_all_the_same(running):
    feed = FakeFeed()
    consumer = running(Log(feed, fallback_interval=None))
    await feed.asked(1)
    await anyio.sleep(1)
    feed.fail(FeedRefused("400 Bad Request"))
    consumer.wake(Push(cursor="forged"))
    await feed.asked(3)
    asked = feed.requests[2].request
    assert (asked.hint, asked.fresh) == (None, True)


async def test_what_arrives_during_a_poll_that_fails_joins_its_hint(running):
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


async def test_a_push_is_fresh_and_a_timer_is_not(running):
    feed = FakeFeed()
    listener = ManualListener()
    running(Log(feed, listeners=[listener]))
    await listener.connected()
    await anyio.sleep(1)
    listener.push()
    await anyio.sleep(200)
    fresh = [asked.request.fresh for asked in feed.requests]
    assert fresh[1] is True
    assert fresh[-1] is False


async def test_a_push_that_beats_its_data_is_answered_by_a_repoll(running):
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


async def test_an_idle_consumer_waits_at_the_feed(running):
    feed = FakeFeed(max_wait=20)
    consumer = running(Log(feed))
    await anyio.sleep(100)
    assert consumer.status().mode is Mode.WAITING
    assert {asked.request.wait for asked in feed.requests[1:]} == {20}
    feed.publish("one")
    published = anyio.current_time()
    await consumer.until(1)
    assert anyio.current_time() == published


async def test_a_wait_is_never_longer_than_the_fallback_interval(running):
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


async def test_a_server_that_answers_early_and_empty_is_not_asked_in_a_loop(running):
    feed = FakeFeed(max_wait=30, answers_early=True)
    running(Log(feed))
    await anyio.sleep(600)
    assert len(feed.requests) <= 50


async def test_with_a_healthy_channel_nothing_waits_at_the_feed(running):
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
    with pytest.raises(RuntimeError, match="running already"):
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


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_the_message_in_hand_finishes(how):
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
    assert "message '2' was in hand" in caplog.text
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


async def test_a_stop_between_two_messages_leaves_the_rest_of_the_page():
    feed = FakeFeed()
    feed.publish(3)

    async def process(message):
        consumer.stop()

    consumer = consumer_of(feed, process)
    await consumer.run()
    assert consumer.status().counters.messages == 1


async def test_a_cancelled_poll_now_commits_what_it_did():
    feed, store = FakeFeed(), MemoryStore()
    feed.publish(3)
    consumer = Log(feed, store=store, takes=2.0, flush_interval=100)
    with anyio.move_on_after(3):
        await consumer.poll_now()
    again = Log(feed, store=store)
    await again.poll_now()
    assert again.processed == ["2", "3"]


async def test_a_manual_poll_outlives_run(running):
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


async def test_a_listener_that_is_broken_for_good_stops_run():
    listener = ManualListener()
    consumer = Log(FakeFeed(), listeners=[listener])
    listener.fail(ListenerError("410"))
    with pytest.raises(ListenerError, match="410"):
        await consumer.run()


async def test_a_listener_that_raises_anything_else_is_named():
    listener = ManualListener(name="redis")
    listener.fail(ConnectionError("no route"))
    with pytest.raises(ListenerError, match="listener redis failed: ConnectionError: no route") as caught:
        await Log(FakeFeed(), listeners=[listener]).run()
    assert isinstance(caught.value.__cause__, ConnectionError)


async def test_a_listener_that_ends_leaves_a_plain_poller(running):
    feed, listener = FakeFeed(), ManualListener()
    consumer = running(Log(feed, listeners=[listener]))
    await listener.connected()
    listener.finish()
    await anyio.sleep(100)
    assert not consumer.status().listeners[0].up
    assert len(feed.requests) >= 9, "polls go on, at the degraded interval"


async def test_a_connect_wakes(running):
    feed, listener = FakeFeed(), ManualListener(connects=False)
    running(Log(feed, listeners=[listener]))
    await feed.asked(1)
    await anyio.sleep(1)
    listener.connect()
    await feed.asked(2)
    assert times(feed)[1] - times(feed)[0] == pytest.approx(1)


async def test_evidence_of_a_lossy_channel_is_shown(running):
    feed, listener = FakeFeed(), ManualListener()
    consumer = running(Log(feed, listeners=[listener]))
    await listener.connected()
    for _ in range(3):
        await anyio.sleep(61)
        feed.publish(1)
    await anyio.sleep(61)
    status = consumer.status()
    assert status.lossy
    assert status.counters.missed_pushes >= 2


# status


async def test_status_shows_what_an_operator_needs(running):
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
    assert status.token == 1
    assert [(one.name, one.up) for one in status.listeners] == [("push", False), ("push #2", False)]
    assert status.listeners[0].last_error == "OSError: reset by�peer"
    assert status.listeners[0].pushes == 1
    assert status.counters.messages == 2
    assert status.last_poll >= status.last_caught_up >= status.last_progress > 0
    assert status.lag(status.last_caught_up + 5) == 5
    assert (await anyio.to_thread.run_sync(consumer.status)).cursor == status.cursor


async def test_errors_of_a_run_are_logged_once_with_the_delay(running, caplog):
    feed = FakeFeed()
    feed.fail(FeedError("down"))
    running(Log(feed))
    await feed.asked(2)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "poll failed, next in" in record.getMessage()
    assert "FeedError: down" in record.getMessage()
