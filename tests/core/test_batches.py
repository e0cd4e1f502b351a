"""Batch handlers: sizes of batches, failed batches, and waits for a full batch."""

import itertools
import math

import anyio
import pytest
from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

from push_to_poll_client import (
    Consumer,
    DeadLetterMessage,
    DecodeError,
    FeedError,
    MemoryStore,
    Message,
    Page,
    ProcessError,
    RetryMessage,
    SkipMessage,
    StopConsumer,
)
from push_to_poll_client.testing import FakeFeed
from tests.support.consumers import polls_on
from tests.support.in_flight import Ledger, check_prefix, feed_of, lane

pytestmark = pytest.mark.anyio


class Batches(Consumer):
    """Take `takes` seconds for a batch. A message of `poison` makes its batch fail with the given error."""

    def __init__(self, feed, *, store=None, takes=0.0, poison=None, retry=None, **settings):
        super().__init__(feed, store=Ledger() if store is None else store, retry=retry, **settings)
        self.ledger = self._store
        self.takes = takes
        self.poison = {} if poison is None else dict(poison)
        self.calls = []
        self.at = []
        self.processed = []
        self.under_way = self.most = 0

    async def process_batch(self, messages):
        self.calls.append([message.id for message in messages])
        self.at.append(anyio.current_time())
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await anyio.sleep(self.takes)
        finally:
            self.under_way -= 1
        for message in messages:
            if (error := self.poison.get(message.id)) is not None:
                raise error
        self.processed += [message.id for message in messages]

    @property
    def sizes(self):
        return [len(call) for call in self.calls]


def numbered(count, **settings):
    feed = FakeFeed(**settings)
    feed.publish(count)
    return feed


def ids(*numbers):
    return [str(number) for number in itertools.chain(*numbers)]


# How many


async def test_batches_have_batch_size_messages_and_the_last_of_a_page_has_the_rest():
    feed = numbered(25, page_size=20)
    async with Batches(feed, batch_size=8) as batches:
        result = await batches.poll_now()
    assert batches.sizes == [8, 8, 4, 5]
    assert batches.processed == ids(range(1, 26))
    assert (result.messages, result.pages, result.caught_up) == (25, 2, True)
    assert batches.ledger.commits[-1][0] == feed.after(25)


async def test_a_batch_has_a_hundred_messages_by_default():
    batches = Batches(numbered(250, page_size=1_000))
    await batches.poll_now()
    assert batches.sizes == [100, 100, 50]


async def test_with_batch_size_one_each_batch_has_one_message():
    batches = Batches(numbered(3), batch_size=1)
    await batches.poll_now()
    assert batches.calls == [["1"], ["2"], ["3"]]


async def test_process_batch_may_be_a_plain_function():
    class Plain(Consumer):
        calls = ()

        def process_batch(self, messages):
            self.calls = (*self.calls, [message.id for message in messages])

    plain = Plain(numbered(5), store=MemoryStore(), batch_size=3)
    assert (await plain.poll_now()).messages == 5
    assert plain.calls == (ids(range(1, 4)), ids(range(4, 6)))


async def test_a_batch_leaves_out_messages_that_were_already_processed():
    feed, store = feed_of("a b c d"), Ledger()
    await Batches(feed, store=store).poll_now()
    feed.forget()
    feed.publish("e", "f")
    batches = Batches(feed, store=store.as_of_now())
    result = await batches.poll_now()
    assert (batches.calls, result.duplicates) == ([["e", "f"]], 4)


async def test_a_batch_spans_messages_that_were_processed_earlier_out_of_order():
    """The result has no gap: all messages are in order, and some were processed before."""
    feed, store = FakeFeed(), Ledger()
    feed.answer(Page([Message("2"), Message("4")], cursor=None))
    await Batches(feed, store=store).poll_now()
    feed.publish(5)
    batches = Batches(feed, store=store.as_of_now())
    await batches.poll_now()
    assert batches.calls == [["1", "3", "5"]]


async def test_an_unreadable_message_is_not_in_a_batch_and_is_settled_in_feed_order():
    feed = feed_of("a b")
    feed.publish("torn", error=DecodeError("no JSON"))
    feed.publish("c", "d")
    batches = Batches(feed, on_failure="dead_letter")
    async with batches:
        await batches.poll_now()
        (letter,) = await batches.dead_letters.list()
    assert batches.calls == [["a", "b"], ["c", "d"]]
    assert letter.id == "torn"
    stopped = Batches(feed)
    with pytest.raises(ProcessError, match="no JSON"):
        await stopped.poll_now()
    assert stopped.calls == [["a", "b"]], "what comes after it has to wait"
    assert stopped.status().counters.messages == 2


@pytest.mark.parametrize("form", ["neither", "both", "passed"])
def test_a_consumer_must_have_exactly_one_of_process_and_process_batch(form):
    class Neither(Consumer):
        pass

    class Both(Consumer):
        async def process(self, message):
            pass

        async def process_batch(self, messages):
            pass

    cls, settings = {"neither": (Neither, {}), "both": (Both, {}), "passed": (Batches, {"process": print})}[form]
    with pytest.raises(
        TypeError, match=r"handler: (override process or process_batch|define only one of process)"
    ):
        cls(FakeFeed(), store=MemoryStore(), **settings)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"batch_size": 0}, ValueError),
        ({"batch_size": True}, TypeError),
        ({"batch_size": 1.5}, TypeError),
        ({"batch_wait": -1}, ValueError),
        ({"batch_wait": "1"}, TypeError),
        ({"batch_wait": math.nan}, ValueError),
    ],
)
def test_invalid_batch_settings_are_refused_at_construction(settings, error):
    with pytest.raises(error, match=next(iter(settings))):
        Batches(FakeFeed(), **settings)


# A batch that fails


@pytest.mark.parametrize("place", [1, 2, 37, 63, 64])
@pytest.mark.parametrize("policy", ["skip", "dead_letter"])
async def test_a_failing_batch_is_halved_until_the_failing_message_is_alone(place, policy):
    feed = numbered(64)
    poison = {str(place): ValueError("no such customer")}
    batches = Batches(feed, batch_size=64, poison=poison, on_failure=policy)
    async with batches:
        assert (await batches.poll_now()).messages == 64
        letters = [letter.id for letter in await batches.dead_letters.list()]
    assert len(batches.calls) == 1 + 2 * 6, "twice for each halving"
    assert batches.processed == ids(range(1, place), range(place + 1, 65))
    assert batches.calls.count([str(place)]) == 1
    assert letters == ([str(place)] if policy == "dead_letter" else [])
    check_prefix(batches.ledger, ids(range(1, 65)))


async def test_only_the_failing_message_of_a_batch_is_retried():
    retry = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(0.2))
    batches = Batches(numbered(8), poison={"3": ValueError()}, retry=retry, on_failure="skip")
    await batches.poll_now()
    assert batches.calls.count(["3"]) == 3
    assert batches.status().counters.retries == 2
    assert batches.processed == ids(range(1, 3), range(4, 9))


async def test_several_failing_messages_are_isolated_and_each_other_message_is_processed_once():
    poison = dict.fromkeys(ids([3, 4, 9, 31]), ValueError())
    batches = Batches(numbered(32), poison=poison, on_failure="skip")
    result = await batches.poll_now()
    assert (result.messages, batches.status().counters.skipped) == (32, 4)
    assert batches.processed == [name for name in ids(range(1, 33)) if name not in poison]


async def test_a_failing_message_that_stops_the_consumer_leaves_only_earlier_messages_settled():
    feed = numbered(16)
    batches = Batches(feed, poison={"11": ValueError("no such customer")})
    with pytest.raises(ProcessError, match="'11' failed and stops the consumer: ValueError: no such customer"):
        await batches.poll_now()
    assert batches.processed == batches.ledger.recorded == ids(range(1, 11))
    assert batches.ledger.commits[-1][0] == feed.after(10)


async def test_a_failing_message_with_a_long_retry_delay_ends_the_poll_and_is_retried_alone():
    feed = numbered(8)
    retry = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(60))
    batches = Batches(feed, poison={"3": ValueError()}, retry=retry)
    async with batches:
        assert (await batches.poll_now()).retry_in == pytest.approx(60)
        assert batches.processed == ["1", "2"]
        batches.poison.clear()
        before = len(batches.calls)
        await batches.poll_now(timeout=None)
        assert batches.calls[before:] == [["3"], ids(range(4, 9))]


async def test_a_batch_that_raises_retry_message_with_a_long_delay_is_not_split():
    feed = numbered(8)
    poison = {"5": RetryMessage("429", after=60)}
    batches = Batches(feed, poison=poison)
    async with batches:
        assert (await batches.poll_now()).retry_in == pytest.approx(60)
        assert batches.sizes == [8]
        batches.poison.clear()
        await batches.poll_now(timeout=None)
    assert batches.processed == ids(range(1, 9))
    assert batches.sizes == [8, 1, 7]


async def test_a_batch_that_raises_retry_message_with_a_short_delay_is_retried_in_the_same_poll():
    class Busy(Batches):
        async def process_batch(self, messages):
            if not self.calls:
                self.calls.append([message.id for message in messages])
                raise RetryMessage("429", after=0.5)
            await super().process_batch(messages)

    busy = Busy(numbered(4))
    assert (await busy.poll_now()).caught_up
    assert busy.calls == [ids(range(1, 5)), ["1"], ids(range(2, 5))]


async def test_a_batch_that_raises_stop_consumer_stops_the_consumer_before_its_first_message():
    feed = numbered(6)
    batches = Batches(feed, batch_size=3, poison={"5": StopConsumer("closed for today")})
    with pytest.raises(ProcessError, match="'4' failed and stops the consumer: StopConsumer: closed for today"):
        await batches.poll_now()
    assert batches.sizes == [3, 3]
    assert batches.ledger.recorded == ["1", "2", "3"]


@pytest.mark.parametrize(("error", "state"), [(SkipMessage(), "skipped"), (DeadLetterMessage(), "dead")])
async def test_skip_message_and_dead_letter_message_settle_only_the_message_that_raises_them(error, state):
    batches = Batches(numbered(4), poison={"2": error})
    await batches.poll_now()
    assert batches.ledger.states == {"1": "processed", "2": state, "3": "processed", "4": "processed"}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_system_exit_is_raised_unchanged_and_the_batch_is_processed_again(error):
    feed, store = numbered(6), Ledger()
    with pytest.raises(type(error)):
        await Batches(feed, store=store, batch_size=3, poison={"5": error}).poll_now()
    assert store.recorded == ["1", "2", "3"]
    again = Batches(feed, store=store.as_of_now())
    await again.poll_now()
    assert again.calls == [["4", "5", "6"]]


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_a_stop_or_cancel_lets_the_running_batch_finish_and_starts_no_other(how):
    feed = numbered(12)
    batches = Batches(feed, batch_size=4, takes=5.0, shutdown_timeout=10.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(batches.run)
        await anyio.sleep(7.0)
        if how == "stop":
            batches.stop()
        else:
            tasks.cancel_scope.cancel()
    assert batches.ledger.recorded == ids(range(1, 9))


async def test_a_stop_ends_the_splitting_of_a_failing_batch():
    feed = numbered(64)
    batches = Batches(feed, batch_size=64, takes=1.0, poison={"64": ValueError()}, on_failure="skip")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(batches.run)
        await anyio.sleep(3.5)
        batches.stop()
    assert batches.sizes == [64, 32, 32, 16]
    assert batches.ledger.recorded == ids(range(1, 49))


async def test_a_cancelled_batch_is_not_recorded_as_processed():
    feed, store = numbered(4), Ledger()
    batches = Batches(feed, store=store, takes=1e9)
    async with batches:
        with anyio.move_on_after(5):
            await batches.poll_now()
    assert (batches.sizes, store.recorded) == ([4], [])


# How long one may wait


def following(**settings):
    """Create a feed with pages of 10 messages, whose next page is fetched while one is processed."""
    return FakeFeed(**{"read_ahead": True, "page_size": 10, **settings})


async def test_a_batch_is_filled_from_several_pages_that_arrive_within_batch_wait():
    feed = following(latency=1.0)
    feed.publish(60)
    batches = Batches(feed, batch_size=25, batch_wait=100.0)
    async with batches:
        result = await batches.poll_now()
    assert batches.sizes == [25, 25, 10]
    assert batches.processed == ids(range(1, 61))
    assert (result.messages, result.caught_up) == (60, True)
    check_prefix(batches.ledger, ids(range(1, 61)))


@pytest.mark.parametrize(
    ("read_ahead", "settings"),
    [
        (True, {"batch_wait": 0.0}),
        (False, {"batch_wait": 100.0}),
    ],
    ids=["it may not wait", "no page is on its way"],
)
async def test_a_batch_does_not_wait_without_batch_wait_or_read_ahead(read_ahead, settings):
    feed = following(latency=1.0, read_ahead=read_ahead)
    feed.publish(30)
    committed = []

    def look(request):
        committed.append(len(batches.ledger.recorded))

    feed.answer(look, look, look)
    batches = Batches(feed, batch_size=25, **settings)
    await batches.poll_now()
    assert batches.sizes == [10, 10, 10]
    if not read_ahead:
        assert committed == [0, 10, 20], "such a feed may take a fetch for an acknowledgement"


@pytest.mark.parametrize("wait", [0.5, 3.0])
async def test_a_batch_waits_for_a_slow_page_at_most_batch_wait(wait):
    feed = following(latency=5.0)
    feed.publish(20)
    batches = Batches(feed, batch_size=100, batch_wait=wait)
    async with batches:
        began = anyio.current_time()
        await batches.poll_now()
    assert batches.sizes == [10, 10]
    assert batches.at[0] - began == pytest.approx(5.0 + wait)
    assert batches.at[1] - began == pytest.approx(10.0)


async def test_batch_wait_counts_from_the_first_message_of_the_batch():
    """This holds also if pages keep coming that do not fill the batch."""
    feed = following(latency=1.0)
    feed.publish(100)
    batches = Batches(feed, batch_size=1_000, batch_wait=3.5)
    async with batches:
        began = anyio.current_time()
        await batches.poll_now()
    assert batches.sizes[0] == 40
    assert batches.at[0] - began == pytest.approx(1.0 + 3.5)
    assert batches.processed == ids(range(1, 101))


async def test_messages_held_during_a_slow_batch_are_joined_by_a_page_that_has_arrived():
    """This costs no time, and a handler that is slower than its feed gets full batches."""
    feed = following(latency=1.0)
    feed.publish(30)
    batches = Batches(feed, batch_size=8, takes=10.0, batch_wait=5.0)
    async with batches:
        began = anyio.current_time()
        await batches.poll_now()
    assert batches.sizes == [8, 8, 8, 6]
    assert [at - began for at in batches.at] == pytest.approx([1, 11, 21, 31])


async def test_messages_held_during_a_slow_batch_do_not_wait_for_a_page_that_has_not_arrived():
    feed = following(latency=30.0)
    feed.publish(20)
    batches = Batches(feed, batch_size=8, takes=10.0, batch_wait=5.0, max_poll_time=1e6)
    async with batches:
        began = anyio.current_time()
        await batches.poll_now()
    assert batches.sizes == [8, 2, 8, 2]
    assert [at - began for at in batches.at] == pytest.approx([30, 40, 60, 70])


async def test_only_processed_messages_are_recorded_while_others_are_held():
    feed = following(latency=1.0)
    feed.publish(30)
    saved = []

    class Watched(Batches):
        async def process_batch(self, messages):
            await super().process_batch(messages)
            saved.append((self.status().cursor, self.ledger.recorded))

    batches = Watched(feed, batch_size=7, batch_wait=100.0, commit_interval=0)
    async with batches:
        await batches.poll_now()
    assert batches.sizes == [7, 7, 7, 7, 2]
    assert saved == [(feed.after(7 * n) if n else None, ids(range(1, 7 * n + 1))) for n in range(5)]
    check_prefix(batches.ledger, ids(range(1, 31)))


async def test_a_page_cursor_is_not_saved_while_messages_of_the_page_are_held():
    feed = following(latency=1.0, cursors="page")
    feed.publish(30)
    batches = Batches(feed, batch_size=14, batch_wait=100.0, commit_interval=0)
    async with batches:
        await batches.poll_now()
    assert batches.sizes == [14, 14, 2]
    saved = [(cursor, len(records)) for cursor, records in batches.ledger.commits]
    assert saved == [(feed.after(10), 14), (feed.after(20), 14), (feed.after(30), 2)]


async def test_a_message_repeated_by_the_feed_while_it_is_held_is_processed_once():
    feed = FakeFeed(read_ahead=True, latency=1.0)
    names = ids(range(10))
    feed.answer(
        Page([Message(name) for name in names], cursor="c1", next_page="c1"),
        Page([Message(name) for name in [*names, "new"]], cursor="c2"),
    )
    batches = Batches(feed, batch_size=50, batch_wait=100.0)
    result = await batches.poll_now()
    assert batches.calls == [[*names, "new"]]
    assert (result.messages, result.duplicates) == (11, 10)


async def test_held_messages_are_settled_before_a_failed_fetch_is_raised():
    feed = following(latency=1.0)
    feed.publish(20)
    feed.answer(None, FeedError("not now"))
    batches = Batches(feed, batch_size=50, batch_wait=100.0)
    with pytest.raises(FeedError, match="not now"):
        await batches.poll_now()
    assert batches.processed == batches.ledger.recorded == ids(range(1, 11))


async def test_held_messages_are_settled_before_a_page_whose_ids_cannot_be_used_is_refused():
    feed = following(latency=1.0)
    first = Page([Message(name) for name in ids(range(1, 11))], cursor="c1", next_page="c1")
    feed.answer(first, Page([Message("")], cursor="c2"))
    batches = Batches(feed, batch_size=50, batch_wait=100.0)
    with pytest.raises(FeedError, match="an invalid message: its id must not be empty"):
        await batches.poll_now()
    assert batches.processed == batches.ledger.recorded == ids(range(1, 11))


async def test_a_poll_that_reaches_max_poll_time_settles_messages_left_by_a_slow_batch():
    feed = following(latency=1.0)
    feed.publish(20)
    batches = Batches(feed, batch_size=8, takes=3.0, batch_wait=100.0, max_poll_time=2.5)
    async with batches:
        assert not (await batches.poll_now()).caught_up
        assert batches.processed == batches.ledger.recorded == ids(range(1, 11))
        while not (await batches.poll_now()).caught_up:
            pass
    assert batches.processed == ids(range(1, 21))


async def test_messages_left_by_a_slow_batch_may_be_postponed_by_retry_message():
    feed = following(latency=1.0)
    feed.publish(20)
    poison = {"10": RetryMessage("429", after=60)}
    batches = Batches(feed, batch_size=8, takes=3.0, batch_wait=100.0, max_poll_time=2.5, poison=poison)
    async with batches:
        assert (await batches.poll_now()).retry_in == pytest.approx(60)
        assert batches.ledger.recorded == ids(range(1, 9))
        batches.poison.clear()
        while not (await batches.poll_now(timeout=None)).caught_up:
            pass
    assert batches.processed == ids(range(1, 21))


async def test_held_messages_are_settled_when_the_page_chain_loops():
    feed = FakeFeed(read_ahead=True, latency=1.0)
    first, second = [[Message(name) for name in ids(range(n, n + 10))] for n in (0, 10)]
    feed.answer(
        Page(first, next_page="x"),
        Page(second, next_page="y"),
        Page(first, next_page="x"),
        Page(second, next_page="y"),
    )
    batches = Batches(feed, batch_size=50, batch_wait=100.0)
    result = await batches.poll_now()
    assert (batches.processed, result.duplicates) == (ids(range(20)), 10)


async def test_a_poll_that_reaches_max_poll_time_settles_held_messages():
    feed = following(latency=1.0)
    feed.publish(40)
    batches = Batches(feed, batch_size=50, batch_wait=100.0, max_poll_time=2.5)
    async with batches:
        result = await batches.poll_now()
        assert (result.caught_up, batches.sizes) == (False, [30])
        assert batches.ledger.commits[-1][0] == feed.after(30)
        await batches.poll_now()
    assert batches.processed == ids(range(1, 41))


async def test_held_messages_at_max_poll_time_may_be_postponed_by_retry_message():
    class Waits(Batches):
        async def process_batch(self, messages):
            raise RetryMessage("busy", after=100)

    feed = following(latency=1.0)
    feed.publish(40)
    batches = Waits(feed, batch_size=50, batch_wait=100.0, max_poll_time=2.5)
    async with batches:
        result = await batches.poll_now()
        assert (result.messages, result.retry_in) == (0, pytest.approx(100))
        assert batches.status().cursor is None


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_a_stop_or_cancel_does_not_process_held_messages_and_they_are_fetched_again(how):
    feed, store = following(latency=1.0), Ledger()
    feed.publish(20)
    batches = Batches(feed, store=store, batch_size=8, batch_wait=100.0)
    async with anyio.create_task_group() as tasks:
        feed.answer(None, lambda request: setattr(feed, "latency", 1e9))
        tasks.start_soon(batches.run)
        await anyio.sleep(50.0)
        if how == "stop":
            batches.stop()
        else:
            tasks.cancel_scope.cancel()
    assert batches.calls == [ids(range(1, 9))]
    feed.latency = 0.0
    again = Batches(feed, store=store)
    result = await again.poll_now()
    assert (again.calls, result.duplicates) == ([ids(range(9, 19)), ["19", "20"]], 0)


async def test_messages_held_by_a_cancelled_poll_are_processed_once_by_the_next_poll():
    feed = following(latency=1.0)
    feed.publish(20)
    batches = Batches(feed, batch_size=50, batch_wait=1_000.0)
    async with batches:
        feed.answer(None, lambda request: setattr(feed, "latency", 1e9))
        with anyio.move_on_after(50.0):
            await batches.poll_now()
        feed.latency = 1.0
        result = await batches.poll_now()
    assert (result.messages, result.duplicates) == (20, 0)
    assert batches.calls == [ids(range(1, 21))]


async def test_messages_held_by_a_cancelled_poll_are_dropped_after_a_rewind():
    feed = following(latency=1.0)
    feed.publish(40)
    batches = Batches(feed, batch_size=50, batch_wait=1_000.0)
    async with batches:
        feed.answer(None, lambda request: setattr(feed, "latency", 1e9))
        with anyio.move_on_after(50.0):
            await batches.poll_now()
        feed.latency = 1.0
        await batches.rewind(feed.after(35))
        await batches.poll_now()
    assert batches.calls == [ids(range(36, 41))]


async def test_a_failing_message_in_a_batch_of_several_pages_holds_the_messages_after_it():
    feed = following(latency=1.0)
    feed.publish(30)
    retry = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(60))
    batches = Batches(feed, batch_size=15, batch_wait=100.0, retry=retry, poison={"13": ValueError()})
    async with batches:
        assert (await batches.poll_now()).retry_in == pytest.approx(60)
        assert batches.processed == batches.ledger.recorded == ids(range(1, 13))
        batches.poison.clear()
        with pytest.raises(TimeoutError), anyio.fail_after(500):
            await polls_on(batches)
    assert batches.processed == ids(range(1, 31))
    assert len(batches.ledger.recorded) == 30


# Several at a time


@pytest.mark.parametrize("concurrency", [2, 4])
async def test_batches_of_different_keys_run_concurrently(concurrency):
    feed = feed_of(" ".join(f"k{n}x" for n in range(40)))
    batches = Batches(feed, takes=1.0, batch_size=5, concurrency=concurrency, ordering_key=lane)
    async with batches:
        began = anyio.current_time()
        await batches.poll_now()
        assert anyio.current_time() - began == pytest.approx(8 / concurrency)
    assert batches.most == concurrency
    assert sorted(batches.sizes) == [5] * 8


async def test_messages_of_a_key_are_processed_in_feed_order_across_batches():
    names = [f"{'abc'[n % 3]}{n // 3 + 1}" for n in range(30)]
    feed = feed_of(" ".join(names))
    batches = Batches(feed, takes=1.0, batch_size=4, concurrency=3, ordering_key=lane)
    await batches.poll_now()
    for key in "abc":
        assert [name for call in batches.calls for name in call if name[0] == key] == [
            name for name in names if name[0] == key
        ]
    check_prefix(batches.ledger, names)


async def test_the_end_of_a_batch_with_two_keys_starts_a_batch_for_each_key():
    """A batch frees several keys, and other tasks had nothing to do."""
    feed = feed_of("a1 b1 a2 a3 b2 b3")
    batches = Batches(feed, takes=1.0, batch_size=2, concurrency=2, ordering_key=lane)
    await batches.poll_now()
    assert [sorted(call) for call in batches.calls[:1]] == [["a1", "b1"]]
    assert sorted(batches.calls[1:]) == [["a2", "a3"], ["b2", "b3"]]
    assert batches.most == 2


async def test_a_postponed_message_holds_only_the_messages_of_its_own_key():
    feed = feed_of("a1 b1 c1 a2 b2 c2 a3 c3")
    retry = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(60))
    batches = Batches(
        feed, batch_size=6, concurrency=2, ordering_key=lane, retry=retry, poison={"b1": ValueError()}
    )
    async with batches:
        assert (await batches.poll_now()).retry_in == pytest.approx(60)
        assert sorted(batches.processed) == ["a1", "a2", "a3", "c1", "c2", "c3"]
        assert batches.status().cursor == feed.after(1)
        batches.poison.clear()
        assert (await batches.poll_now(timeout=None)).messages == 2
    assert batches.processed[-2:] == ["b1", "b2"]
    assert len(batches.ledger.recorded) == len(batches.ledger.states) == 8


async def test_messages_after_a_postponed_batch_wait_if_they_share_one_of_its_keys():
    feed = feed_of("a1 b1")
    feed.publish("torn", error=DecodeError("no JSON"))
    feed.publish("b2", "c1")
    poison = {"b1": RetryMessage("429", after=60)}
    batches = Batches(feed, concurrency=2, ordering_key=lane, on_failure="skip", poison=poison)
    async with batches:
        assert (await batches.poll_now()).retry_in == pytest.approx(60)
        assert batches.calls == [["a1", "b1"], ["c1"]]
        batches.poison.clear()
        await batches.poll_now(timeout=None)
    assert batches.processed == ["c1", "a1", "b1", "b2"]


@pytest.mark.parametrize("waits", [(90, 30), (30, 90)])
async def test_postponed_is_the_shorter_delay_of_two_failing_messages_of_a_batch(waits):
    def wait(state):
        return dict(zip(("a1", "b1"), waits, strict=True))[state.args[0].id]

    poison = {"a1": ValueError(), "b1": ValueError()}
    feed = feed_of("a1 b1 c1")
    batches = Batches(feed, concurrency=2, ordering_key=lane, retry=AsyncRetrying(wait=wait), poison=poison)
    assert (await batches.poll_now()).retry_in == pytest.approx(30)
    assert batches.processed == ["c1"]


async def test_a_postponed_batch_of_several_keys_is_called_once():
    feed = feed_of("a1 b1 c1 d1")
    batches = Batches(feed, concurrency=2, ordering_key=lane, poison={"c1": RetryMessage(after=60)})
    assert (await batches.poll_now()).retry_in == pytest.approx(60)
    assert batches.sizes == [4]


async def test_concurrent_batches_are_filled_from_several_pages():
    feed = following(latency=1.0)
    feed.publish(60)
    batches = Batches(feed, takes=0.1, batch_size=25, batch_wait=100.0, concurrency=4, ordering_key=lambda m: m.id)
    async with batches:
        await batches.poll_now()
    assert sorted(batches.sizes) == [10, 25, 25]
    assert sorted(batches.processed) == sorted(ids(range(1, 61)))
    check_prefix(batches.ledger, ids(range(1, 61)))
