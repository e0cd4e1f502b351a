"""Several messages at a time: in order for each key, in parallel for different keys."""

import asyncio
import itertools
import threading

import anyio
import pytest
from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

from push_to_poll_client import (
    Consumer,
    DeadLetterMessage,
    DecodeError,
    MemoryStore,
    Mode,
    ProcessError,
    RetryMessage,
    SkipMessage,
    StopConsumer,
)
from push_to_poll_client.testing import FakeFeed
from tests.support.consumers import Log
from tests.support.forms import GUARD, form
from tests.support.in_flight import Ledger, Many, check_prefix, feed_of, lane

pytestmark = pytest.mark.anyio

REAL_TIME = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
PATIENT = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(120))


def mixed(number, lanes):
    """Names of messages in several lanes, which alternate irregularly."""
    counts = dict.fromkeys(lanes, 0)
    for n in range(number):
        name = lanes[n * n % len(lanes)] if n % 3 else lanes[n % len(lanes)]
        counts[name] += 1
        yield f"{name}{counts[name]}"


# In order, and beside each other


@pytest.mark.parametrize("concurrency", [2, 4, 16])
async def test_messages_of_one_key_are_processed_in_feed_order_one_at_a_time(concurrency):
    names = list(mixed(90, "abcdefg"))
    times = {name: (n * 7 % 11) / 10 for n, name in enumerate(names)}
    feed = feed_of(" ".join(names), page_size=40)
    async with Many(feed, times=times, concurrency=concurrency, max_poll_time=1000) as many:
        result = await many.poll_now()
    assert (result.messages, result.caught_up) == (90, True)
    for key in "abcdefg":
        spans = [span for span in many.spans if span.name[0] == key]
        assert [span.name for span in spans] == [name for name in names if name[0] == key]
        assert all(before.end <= after.start for before, after in itertools.pairwise(spans))


@pytest.mark.parametrize("concurrency", [4, 16])
async def test_the_number_of_messages_processed_at_once_equals_concurrency(concurrency):
    feed = feed_of(" ".join(f"k{n}x" for n in range(48)))
    async with Many(feed, takes=1.0, concurrency=concurrency) as many:
        began = anyio.current_time()
        await many.poll_now()
        assert anyio.current_time() - began == pytest.approx(48 / concurrency)
    assert many.most == concurrency


async def test_a_slow_message_holds_its_own_key_and_no_other():
    feed = feed_of("a1 b1 a2 b2 b3 c1 c2")
    async with Many(feed, takes=1.0, times={"a1": 100.0}, concurrency=2) as many:
        began = anyio.current_time()
        await many.poll_now()
    ended = {span.name: span.end - began for span in many.spans}
    assert ended == {"b1": 1, "b2": 2, "b3": 3, "c1": 4, "c2": 5, "a1": 100, "a2": 101}


async def test_keys_of_any_hashable_type_are_distinguished():
    keys = [None, 1, "1", (1,), 1.5, frozenset("a"), b"1", object()]
    feed = FakeFeed()
    feed.publish(*map(str, range(len(keys))))
    async with Many(feed, takes=1.0, ordering_key=lambda message: keys[int(message.id)], concurrency=16) as many:
        await many.poll_now()
    assert many.most == len(keys)


@pytest.mark.parametrize(
    "key", [lambda message: 1 / 0, lambda message: [message.id]], ids=["raises", "unhashable"]
)
async def test_a_message_whose_key_function_fails_is_dead_lettered_alone(key):
    feed = feed_of("a1 bad b1")
    store = Ledger()
    consumer = Many(
        feed,
        store=store,
        ordering_key=lambda one: key(one) if one.id == "bad" else one.id,
        on_failure="dead_letter",
    )
    async with consumer:
        await consumer.poll_now()
        (letter,) = await consumer.dead_letters.list()
    assert sorted(consumer.processed) == ["a1", "b1"]
    assert store.states == {"a1": "processed", "bad": "dead", "b1": "processed"}
    assert letter.error.startswith("DecodeError: ordering_key= failed for message 'bad': ")
    assert ("ZeroDivisionError" in letter.error) or ("unhashable" in letter.error)


async def test_messages_whose_key_function_fails_do_not_wait_for_each_other():
    async def decide(message, error):
        await anyio.sleep(5.0)
        return "skip"

    feed = feed_of("bad1 none1 bad2")
    many = Many(feed, takes=7.0, ordering_key=lambda one: 1 / 0 if "bad" in one.id else None, on_failure=decide)
    async with many:
        began = anyio.current_time()
        assert (await many.poll_now()).messages == 3
        assert anyio.current_time() - began == pytest.approx(7.0)


async def test_an_unreadable_message_fails_with_its_own_error_and_key_is_not_called():
    asked = []
    feed = FakeFeed()
    feed.publish("a1")
    feed.publish("torn", error=DecodeError("no JSON"))
    feed.publish("b1")
    consumer = Many(
        feed, ordering_key=lambda message: asked.append(message.id) or lane(message), on_failure="dead_letter"
    )
    async with consumer:
        await consumer.poll_now()
        (letter,) = await consumer.dead_letters.list()
    assert (sorted(consumer.processed), asked) == (["a1", "b1"], ["a1", "b1"])
    assert letter.error == "DecodeError: no JSON"


async def test_an_undecodable_message_error_raised_by_key_stops_the_consumer():
    def key(message):
        raise DecodeError("the bytes end in the middle")

    consumer = Many(feed_of("a1"), ordering_key=key)
    with pytest.raises(ProcessError, match="stops the consumer: DecodeError: the bytes end in the middle"):
        await consumer.poll_now()


# Progress


@pytest.mark.parametrize("concurrency", [4, 16])
@pytest.mark.parametrize("cursors", ["message", "page", "chain"])
async def test_each_commit_covers_a_contiguous_prefix(cursors, concurrency):
    names = [f"k{n}x" for n in range(60)]
    times = {name: 1.0 + (60 - n) % 17 for n, name in enumerate(names)}
    feed, store = feed_of(" ".join(names), page_size=20, cursors=cursors), Ledger()
    async with Many(feed, store=store, times=times, concurrency=concurrency, max_poll_time=1e6) as many:
        await many.poll_now()
    assert many.processed != names, "or it would show nothing"
    check_prefix(store, names)
    assert store.commits[-1][0] == feed.after(60)
    assert len(store.commits) > 20
    assert sorted(store.recorded) == sorted(names)


async def test_only_unfinished_messages_are_processed_again_after_a_crash():
    feed, store = feed_of("a1 b1 c1 d1 a2 b2 c2 d2"), Ledger()
    first = Many(feed, store=store, takes=1.0, times={"a1": 100.0})
    async with first:
        with anyio.move_on_after(1.5):
            await first.poll_now()
        crashed = store.as_of_now()
        assert first.under_way == []
    assert sorted(first.processed) == ["b1", "c1", "d1"]
    assert {cursor for cursor, _ in store.commits} == {None}, "a1 is not settled"
    second = Many(feed, store=crashed)
    result = await second.poll_now()
    assert (result.messages, result.duplicates) == (5, 3)
    assert sorted(second.processed) == ["a1", "a2", "b2", "c2", "d2"]
    assert second.processed.index("a1") < second.processed.index("a2")


@pytest.mark.parametrize(("takes", "flush", "commit"), [(0.01, 0.05, 0.0), (0.01, 0.05, 0.3), (1.0, 0.05, 0.0)])
@pytest.mark.parametrize("concurrency", [4, 16])
async def test_g7_a_crash_repeats_at_most_the_commit_interval_and_the_messages_in_progress(
    takes, flush, commit, concurrency
):
    """Within the commit interval each lane does its share."""
    names = list(mixed(400, "abcdefghijklmnopqrst"))
    feed, store, uncommitted = feed_of(" ".join(names)), Ledger(), []
    store.takes = commit

    class Watched(Many):
        async def process(self, message):
            await super().process(message)
            uncommitted.append(len(self.processed) - len(store.recorded))

    times = {name: takes * (1 + n % 3) for n, name in enumerate(names)}
    settings = {"commit_interval": flush, "concurrency": concurrency, "max_poll_time": 1e6}
    async with Watched(feed, store=store, times=times, **settings) as many:
        await many.poll_now()
    assert len(store.recorded) == 400
    assert max(uncommitted) <= concurrency * (flush / takes + 1) + 1


# Failing messages


async def test_a_postponed_message_holds_only_the_messages_of_its_own_key(running, virtual_day):
    names = "a1 b1 a2 c1 b2 c2 d1 e1 f1"
    feed, store = feed_of(names, page_size=6), Ledger()
    many = Many(feed, store=store, takes=1.0, times={"b1": 2.0, "c1": 3.0}, retry=PATIENT)
    many.errors = {"a1": [ValueError("busy")] * 2}
    began = anyio.current_time()
    running(many)
    await many.until(4)
    assert anyio.current_time() - began == pytest.approx(4), "in the poll in which a1 began to wait"
    await anyio.sleep(1)
    assert sorted(many.processed) == ["b1", "b2", "c1", "c2"], "all of its page but what comes after it"
    assert store.states == dict.fromkeys(["b1", "b2", "c1", "c2"], "processed")
    assert many.status().cursor is None
    assert (many.status().mode, [one.id for one in many.status().failing]) == (Mode.BACKOFF, ["a1"])
    await many.until(9)
    first, second, third = (span.start for span in many.calls_of("a1"))
    assert (second - first, third - second) == (pytest.approx(121), pytest.approx(121))
    assert len(many.calls_of("b1")) == len(many.calls_of("c1")) == 1
    assert many.calls_of("a2")[0].start >= many.calls_of("a1")[2].end
    assert many.status().counters.retries == 2
    check_prefix(store, names.split())


async def test_several_postponed_messages_are_each_retried_when_their_own_delay_has_passed():
    def wait(state):
        return {"a1": 500, "b1": 100, "c1": 300}[state.args[0].id]

    feed = feed_of("a1 b1 c1 d1")
    errors = {name: [ValueError()] for name in ("a1", "b1", "c1")}
    many = Many(feed, errors=errors, retry=AsyncRetrying(wait=wait))
    async with many:
        began = anyio.current_time()
        assert (await many.poll_now()).retry_in == pytest.approx(100)
        for name, at in (("b1", 100), ("c1", 300), ("a1", 500)):
            result = await many.poll_now(timeout=None)
            assert (many.processed[-1], anyio.current_time() - began) == (name, pytest.approx(at))
        assert (result.retry_in, result.caught_up) == (None, True)
    assert many.processed == ["d1", "b1", "c1", "a1"]


async def test_a_short_retry_delay_holds_its_own_key_while_other_keys_continue():
    retry = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(0.5))
    feed = feed_of("a1 a2 b1 b2 b3 b4")
    async with Many(feed, takes=0.1, errors={"a1": [ValueError()]}, retry=retry) as many:
        result = await many.poll_now()
    assert (result.caught_up, result.retry_in) == (True, None)
    assert many.processed == ["b1", "b2", "b3", "b4", "a1", "a2"]


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_a_poll_ends_even_if_a_message_asks_for_short_retries_forever(concurrency):
    """Otherwise a caller that waits for the end of the poll would wait forever."""
    feed = feed_of("busy1 bad1")
    errors = {"busy1": RetryMessage("429", after=0.4), "bad1": ValueError("no such customer")}
    many = Many(feed, errors=errors, concurrency=concurrency, retry=None)
    with anyio.fail_after(10):
        if concurrency == 1:
            assert not (await many.poll_now()).caught_up
        else:
            with pytest.raises(ProcessError, match="'bad1'"):
                await many.poll_now()
    assert len(many.calls_of("busy1")) == 3


async def test_a_message_that_stops_the_consumer_lets_running_handlers_finish_and_starts_none():
    feed, store = feed_of("a1 b1 c1 d1 e1 a2 c2"), Ledger()
    times = {"a1": 5.0, "b1": 1.0, "c1": 3.0, "d1": 2.0}
    first = Many(feed, store=store, times=times, errors={"b1": ValueError("no such customer")}, retry=None)
    async with first:
        began = anyio.current_time()
        with pytest.raises(ProcessError, match="'b1' failed and stops the consumer: ValueError: no such customer"):
            await first.poll_now()
        assert anyio.current_time() - began == pytest.approx(5.0)
        assert store.states == dict.fromkeys(["a1", "c1", "d1"], "processed")
        assert first.status().cursor == feed.after(1)
    assert sorted(span.name for span in first.spans) == ["a1", "b1", "c1", "d1"]
    second = Many(feed, store=store)
    await second.poll_now()
    assert sorted(second.processed) == ["a2", "b1", "c2", "e1"]


async def test_the_first_of_several_messages_that_stop_the_consumer_is_named_and_none_is_settled():
    feed, store = feed_of("a1 b1 c1"), Ledger()
    errors = {"a1": ValueError("one"), "b1": StopConsumer("two")}
    many = Many(feed, store=store, times={"a1": 2.0, "b1": 1.0, "c1": 3.0}, errors=errors, retry=None)
    with pytest.raises(ProcessError, match="'b1' failed and stops the consumer: StopConsumer: two"):
        await many.poll_now()
    assert store.states == {"c1": "processed"}


@pytest.mark.parametrize(
    ("policy", "error"),
    [
        ("dead_letter", ValueError()),
        ("skip", ValueError()),
        ("stop", DeadLetterMessage()),
        ("stop", SkipMessage()),
    ],
)
async def test_a_skipped_or_dead_lettered_message_does_not_hold_later_messages(policy, error):
    names = "a1 b1 a2 b2 c1"
    feed, store = feed_of(names), Ledger()
    errors = {"a1": error, "b2": error}
    async with Many(feed, store=store, takes=1.0, errors=errors, retry=None, on_failure=policy) as many:
        assert (await many.poll_now()).caught_up
        letters = [letter.id for letter in await many.dead_letters.list()]
    assert sorted(many.processed) == ["a2", "b1", "c1"]
    kept = policy == "dead_letter" or isinstance(error, DeadLetterMessage)
    assert letters == (["a1", "b2"] if kept else [])
    assert many.status().counters.skipped == (0 if kept else 2)
    state = "dead" if kept else "skipped"
    assert store.states == {"a1": state, "b2": state, "a2": "processed", "b1": "processed", "c1": "processed"}
    check_prefix(store, names.split())


async def test_more_messages_may_fail_at_once_than_attempt_records_are_kept(monkeypatch):
    monkeypatch.setattr("push_to_poll_client._progress.MAX_FAILING", 10)
    feed = FakeFeed(page_size=2_000)
    number = form(15, 1_100)
    feed.publish(*(f"k{n}x" for n in range(number)))

    async def soon(state):
        await anyio.sleep(0.5)
        return 0.1

    retry = AsyncRetrying(stop=stop_after_attempt(2), wait=soon)
    errors = {f"k{n}x": [ValueError()] for n in range(number)}
    async with Many(feed, errors=errors, concurrency=number, retry=retry) as many:
        assert (await many.poll_now()).messages == number


# Ends


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_a_stop_or_cancel_lets_running_handlers_finish_and_starts_none(how):
    feed, store = feed_of("a1 b1 c1 d1 e1 a2"), Ledger()
    many = Many(feed, store=store, times={"a1": 9.0, "b1": 2.0, "c1": 4.0, "d1": 3.0}, shutdown_timeout=10.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(many.run)
        await anyio.sleep(1.0)
        if how == "stop":
            many.stop()
        else:
            tasks.cancel_scope.cancel()
    assert many.processed == ["b1", "d1", "c1", "a1"]
    assert sorted(span.name for span in many.spans) == ["a1", "b1", "c1", "d1"]
    assert sorted(store.recorded) == ["a1", "b1", "c1", "d1"]
    assert store.commits[-1][0] == feed.after(4)
    assert many.status().last_caught_up is None


async def test_finished_messages_are_recorded_when_a_stop_exceeds_shutdown_timeout():
    feed, store = feed_of("a1 b1 c1 d1 e1"), Ledger()
    times = {"a1": 1e9, "b1": 2.0, "c1": 1e9, "d1": 3.0}
    many = Many(feed, store=store, times=times, shutdown_timeout=5.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(many.run)
        await anyio.sleep(1.0)
        many.stop()
        began = anyio.current_time()
    assert anyio.current_time() - began == pytest.approx(5.0)
    assert sorted(store.recorded) == ["b1", "d1"]
    again = Many(feed, store=store)
    await again.poll_now()
    assert sorted(again.processed) == ["a1", "c1", "e1"]


async def test_a_cancelled_poll_leaves_finished_messages_recorded():
    feed, store = feed_of("a1 b1 c1 d1"), Ledger()
    async with Many(feed, store=store, times={"a1": 1.0, "b1": 9.0, "c1": 2.0, "d1": 9.0}) as many:
        with anyio.move_on_after(3.0) as scope:
            await many.poll_now()
        assert scope.cancelled_caught
        assert store.recorded == ["a1", "c1"]
        assert many.status().cursor == feed.after(1)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_finished_messages_are_recorded_when_asyncio_cancels_every_task():
    feed, store = feed_of("a1 b1 c1 d1"), Ledger()
    many, others = Many(feed, store=store, times={"b1": 1e9}, commit_interval=1e9), asyncio.all_tasks()
    running = asyncio.ensure_future(many.run())
    await many.until(3)
    for task in asyncio.all_tasks() - others:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(store.recorded) == ["a1", "c1", "d1"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_handler_that_awaits_a_cancelled_future_fails_and_others_continue():
    class Awaits(Many):
        async def process(self, message):
            if message.id == "b1":
                gone = asyncio.get_running_loop().create_future()
                gone.cancel()
                await gone
            await super().process(message)

    feed, store = feed_of("a1 b1 c1"), Ledger()
    many = Awaits(feed, store=store, takes=1.0, on_failure="skip", retry=None)
    assert (await many.poll_now()).caught_up
    assert store.states == {"a1": "processed", "b1": "skipped", "c1": "processed"}


@pytest.mark.parametrize("other", [None, ValueError("no such customer")], ids=["alone", "beside a failure"])
async def test_system_exit_in_a_handler_is_raised_unchanged_after_other_handlers_finish(other):
    feed, store = feed_of("a1 b1 c1 d1 e1"), Ledger()
    errors = {"b1": SystemExit(3), "a1": other}
    times = {"a1": 0.5 if other else 3.0, "b1": 1.0, "c1": 5.0, "d1": 2.0}
    many = Many(feed, store=store, times=times, errors=errors, retry=None)
    with pytest.raises(SystemExit):
        await many.run()
    assert sorted(store.recorded) == (["c1", "d1"] if other else ["a1", "c1", "d1"])
    assert many.calls_of("e1") == []


async def test_a_failed_commit_is_raised_after_running_handlers_finish(monkeypatch):
    feed, store = feed_of("a1 b1 c1 d1 e1 f1"), Ledger()
    many = Many(feed, store=store, times={"a1": 1.0, "b1": 2.0, "c1": 3.0, "d1": 4.0}, commit_interval=0)
    async with many:
        commit = many._parts.session.commit

        async def refuse(**progress):
            raise OSError("the disk is full")

        monkeypatch.setattr(many._parts.session, "commit", refuse)
        with pytest.raises(OSError, match="disk is full"):
            await many.poll_now()
        assert sorted(many.processed) == ["a1", "b1", "c1", "d1"], "what was under way finished"
        monkeypatch.setattr(many._parts.session, "commit", commit)
        await many.poll_now(timeout=None)
    assert sorted(many.processed) == ["a1", "b1", "c1", "d1", "e1", "f1"], "and is remembered"


async def test_a_poll_that_reaches_max_poll_time_settles_its_whole_page():
    feed = feed_of(" ".join(f"k{n}x" for n in range(30)), page_size=10)
    async with Many(feed, takes=1.0, concurrency=2, max_poll_time=4.0) as many:
        assert [(await many.poll_now()).messages for _ in range(3)] == [10, 10, 10]
        assert many.most == 2


async def test_poll_now_inside_a_concurrent_handler_is_a_runtime_error():
    refused = []

    async def process(message):
        with pytest.raises(RuntimeError, match="called from the handler"):
            await consumer.poll_now()
        refused.append(message.id)

    consumer = Consumer(feed_of("a1 b1"), store=MemoryStore(), process=process, concurrency=2, ordering_key=lane)
    await consumer.poll_now()
    assert sorted(refused) == ["a1", "b1"]


# Threads


@REAL_TIME
@pytest.mark.parametrize("concurrency", [4, 64])
async def test_plain_functions_run_in_as_many_threads_as_concurrency(concurrency):
    """This holds also above the default limit of 40 threads for a program."""
    together = threading.Barrier(concurrency)

    def process(message):
        together.wait(timeout=GUARD)

    feed = feed_of(" ".join(f"k{n}x" for n in range(concurrency * 2)), page_size=1_000)
    consumer = Consumer(
        feed, store=MemoryStore(), process=process, concurrency=concurrency, ordering_key=lambda m: m.id
    )
    assert (await consumer.poll_now()).messages == concurrency * 2


@REAL_TIME
async def test_plain_functions_of_one_key_run_one_after_the_other():
    running, most = [], []

    def process(message):
        running.append(message.id)
        most.append(len([name for name in running if name[0] == message.id[0]]))
        done.wait(0.001)
        running.remove(message.id)

    done = threading.Event()
    feed = feed_of(" ".join(mixed(40, "abc")))
    consumer = Consumer(feed, store=MemoryStore(), process=process, concurrency=4, ordering_key=lane)
    assert (await consumer.poll_now()).messages == 40
    assert set(most) == {1}


# Refused


@pytest.mark.parametrize(
    ("settings", "error", "why"),
    [
        ({"concurrency": 4}, ValueError, "concurrency=4 requires ordering_key="),
        ({"concurrency": 0}, ValueError, "concurrency must be at least 1, got 0"),
        ({"concurrency": -2, "ordering_key": lane}, ValueError, "concurrency must be at least 1, got -2"),
        ({"concurrency": True, "ordering_key": lane}, TypeError, "concurrency must be a whole number, got True"),
        ({"concurrency": 1.5, "ordering_key": lane}, TypeError, "concurrency must be a whole number, got 1.5"),
        ({"concurrency": "4", "ordering_key": lane}, TypeError, "concurrency must be a whole number, got '4'"),
        (
            {"concurrency": 4, "ordering_key": "subject"},
            TypeError,
            "ordering_key must be a function of a message or None",
        ),
    ],
)
def test_invalid_concurrency_settings_are_refused_at_construction(settings, error, why):
    with pytest.raises(error, match=why):
        Log(FakeFeed(), **settings)


async def test_key_without_concurrency_processes_messages_in_feed_order():
    feed = feed_of("a1 b1 a2")
    consumer = Log(feed, ordering_key=lane, takes=1.0)
    await consumer.poll_now()
    assert consumer.processed == ["a1", "b1", "a2"]


async def test_a_stop_ends_at_once_while_every_message_of_a_page_waits(running):
    many = Many(feed_of("a1 b1"), errors={"a1": RetryMessage(after=0.9), "b1": RetryMessage(after=3600)})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(many.run)
        await anyio.sleep(0.3)
        began = anyio.current_time()
        many.stop()
    assert anyio.current_time() == began


async def test_repeated_poll_now_calls_process_a_postponed_message():
    errors = {"a1": [RetryMessage(after=60)] * 5}
    many = Many(feed_of("a1 b1 a2"), errors=errors)
    async with many:
        with anyio.fail_after(1_000):
            while len(many.processed) < 3:
                await many.poll_now(timeout=None)
    assert many.processed == ["b1", "a1", "a2"]
