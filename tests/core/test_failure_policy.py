"""A failed message is retried, then settled by the user's policy (G9)."""

import contextlib
from itertools import cycle, pairwise

import anyio
import pytest
from tenacity import (
    AsyncRetrying,
    retry_if_not_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_fixed,
    wait_random,
)

from push_to_poll_client import (
    Consumer,
    DeadLetterMessage,
    DecodeError,
    MemoryStore,
    Message,
    Mode,
    Page,
    ProcessError,
    RetryMessage,
    SkipMessage,
    StopConsumer,
    StoreError,
    StoreUnavailable,
)
from push_to_poll_client._progress import Attempts, TimeOfDay
from push_to_poll_client.testing import FakeFeed
from tests.support.consumers import Log, polls_on
from tests.support.forms import form
from tests.support.refusing_store import RefusingStore

pytestmark = pytest.mark.anyio

WAITS_2_S = AsyncRetrying(wait=wait_fixed(2))
TWICE = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(0.5))


class Fails(Log):
    """Raise `error` for the messages of `failing`, which may say how often."""

    def __init__(self, feed, *, failing, error=None, **settings):
        super().__init__(feed, **settings)
        self.failing = dict.fromkeys(failing, 10**9) if not isinstance(failing, dict) else failing
        self.error = error or ValueError("no such customer")
        self.attempts = []

    async def process(self, message):
        self.attempts.append((message.id, anyio.current_time()))
        if self.failing.get(message.id, 0) > 0:
            self.failing[message.id] -= 1
            raise self.error
        await super().process(message)

    def attempts_of(self, name):
        return [at for one, at in self.attempts if one == name]


def feed_of(*names, **settings):
    feed = FakeFeed(**settings)
    feed.publish(*names)
    return feed


# Trying again


async def test_a_long_retry_wait_ends_the_poll_and_the_next_poll_continues_at_that_message(running):
    feed = feed_of("a", "bad", "c")
    retry = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(120))
    consumer = running(Fails(feed, failing={"bad": 2}, retry=retry))
    await consumer.until(1)
    await anyio.sleep(1)
    status = consumer.status()
    assert status.mode is Mode.BACKOFF
    assert [(one.id, one.attempts) for one in status.failing] == [("bad", 1)]
    assert status.failing[0].error == "ValueError: no such customer"
    assert status.cursor == feed.after(1)
    await consumer.until(3)
    first, second, third = consumer.attempts_of("bad")
    assert (second - first, third - second) == (pytest.approx(120), pytest.approx(120))
    assert consumer.processed == ["a", "bad", "c"]
    assert consumer.status().failing == ()
    assert consumer.status().counters.retries == 2


async def test_wakes_do_not_cause_a_poll_while_a_failed_message_waits_for_its_retry(running):
    feed = feed_of("bad")
    consumer = running(Fails(feed, failing={"bad": 1}, retry=AsyncRetrying(wait=wait_fixed(600))))
    await feed.asked(1)
    await anyio.sleep(1)
    for _ in range(100):
        consumer.wake()
        await anyio.sleep(1)
    assert len(feed.requests) == 1
    await consumer.until(1)
    assert consumer.attempts_of("bad")[1] - consumer.attempts_of("bad")[0] == pytest.approx(600)


async def test_stop_does_not_wait_for_the_retry_of_a_failed_message(running):
    feed = feed_of("bad")
    for wait in (0.9, 3600):
        consumer = Fails(feed, failing=["bad"], retry=AsyncRetrying(wait=wait_fixed(wait)), shutdown_timeout=50)
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer.run)
            await anyio.sleep(0.3)
            consumer.stop()
        assert anyio.current_time() - began == pytest.approx(0.3)


async def test_attempts_and_retry_waits_continue_after_a_restart(virtual_day):
    feed, store = feed_of("bad"), MemoryStore()
    retry = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(100))
    first = Fails(feed, failing=["bad"], store=store, retry=retry)
    assert (await first.poll_now()).retry_in == pytest.approx(100)
    second = Fails(feed, failing=["bad"], store=store, retry=retry)
    result = await second.poll_now()
    assert second.attempts == [], "the wait of the first run is not over"
    assert 95 < result.retry_in <= 100
    await second.poll_now(timeout=None)
    third = Fails(feed, failing=["bad"], store=store, retry=retry)
    with pytest.raises(ProcessError):
        await polls_on(third)
    assert len(first.attempts) + len(second.attempts) + len(third.attempts) == 3


async def test_a_clock_set_back_between_runs_makes_no_wait_longer(monkeypatch):
    """Bare polls, as in a cron job: each reads the clock anew."""
    offset = 0.0
    monkeypatch.setattr("push_to_poll_client._event_loop.wall_clock", lambda: 1e9 + offset + anyio.current_time())
    feed, store, settings = feed_of("bad"), MemoryStore(), {"error": RetryMessage("busy", after=5)}
    await Fails(feed, failing={"bad": 1}, store=store, **settings).poll_now()
    offset = -3600.0
    waits = Fails(feed, failing={}, store=store)
    assert (await waits.poll_now()).retry_in == pytest.approx(5)
    (failing,) = waits.status().failing
    assert failing.retry_at == pytest.approx(1e9 - 3600 + anyio.current_time() + 5)
    await anyio.sleep(3)
    result = await Fails(feed, failing={}, store=store).poll_now()
    assert result.retry_in == pytest.approx(2), "the wait goes on, and does not begin anew"
    await anyio.sleep(2)
    late = Fails(feed, failing={}, store=store)
    await late.poll_now()
    assert late.processed == ["bad"]


async def test_a_clock_set_back_between_polls_of_one_consumer_corrects_its_status(monkeypatch):
    offset = 0.0
    monkeypatch.setattr("push_to_poll_client._event_loop.wall_clock", lambda: 1e9 + offset + anyio.current_time())
    consumer = Fails(feed_of("bad"), failing=["bad"], error=RetryMessage("busy", after=5))
    await consumer.poll_now()
    offset = -3600.0
    await consumer.poll_now()
    (failing,) = consumer.status().failing
    assert failing.retry_at == pytest.approx(1e9 - 3600 + anyio.current_time() + 5)


async def test_a_message_that_stopped_the_consumer_gets_all_its_attempts_again():
    feed, store = feed_of("bad"), MemoryStore()
    for _ in range(2):
        consumer = Fails(feed, failing=["bad"], store=store, retry=TWICE)
        with pytest.raises(ProcessError):
            await consumer.poll_now()
        assert len(consumer.attempts) == 2


async def test_stop_after_delay_counts_seconds_from_the_first_failure(running):
    feed = feed_of("bad", "next")
    retry = AsyncRetrying(stop=stop_after_delay(1000), wait=wait_fixed(300))
    consumer = running(Fails(feed, failing=["bad"], retry=retry, on_failure="skip"))
    await consumer.until(1)
    times = consumer.attempts_of("bad")
    assert [round(at - times[0]) for at in times] == [0, 300, 600, 900, 1200]


async def test_retry_strategies_can_be_coroutine_functions():
    async def never(state):
        return False

    async def soon(state):
        return 0.25

    async def after_two(state):
        return state.attempt_number >= 2

    feed = feed_of("bad")
    consumer = Fails(feed, failing=["bad"], retry=AsyncRetrying(stop=after_two, wait=soon))
    with pytest.raises(ProcessError):
        await consumer.poll_now()
    assert len(consumer.attempts) == 2
    consumer = Fails(feed, failing=["bad"], retry=AsyncRetrying(retry=never))
    with pytest.raises(ProcessError):
        await consumer.poll_now()
    assert len(consumer.attempts) == 1


@pytest.mark.parametrize("wait", [lambda _: float("nan"), lambda _: -1, lambda _: "soon", lambda _: 1 / 0])
async def test_an_invalid_wait_of_a_retry_strategy_stops_the_consumer_with_both_errors(wait):
    feed = feed_of("a", "bad")
    consumer = Fails(feed, failing=["bad"], retry=AsyncRetrying(wait=wait))
    with pytest.raises(ProcessError, match="no such customer; on_failure= or retry= failed: ") as caught:
        await consumer.poll_now()
    assert isinstance(caught.value.__cause__, ValueError)
    assert consumer.processed == ["a"]


async def test_a_store_that_refuses_before_a_policy_is_awaited_is_not_a_failure_of_the_policy():
    async def skip(message, error):
        return "skip"

    store = RefusingStore("commit")
    consumer = Fails(feed_of("a", "bad"), store=store, failing=["bad"], retry=None, on_failure=skip)
    with pytest.raises(StoreUnavailable):
        await consumer.poll_now()
    store.refuses.clear()
    await consumer.poll_now(timeout=None)
    assert store.commits[:2] == [["a"], ["bad"]]
    assert consumer.status().counters.skipped == 1


async def test_attempts_that_could_not_be_committed_are_counted_in_the_next_session(virtual_day):
    store = RefusingStore("commit")
    consumer = Fails(feed_of("bad"), store=store, failing=["bad"], retry=TWICE, on_failure="dead_letter")
    with pytest.raises(StoreUnavailable):
        await consumer.poll_now()
    store.refuses.clear()
    await consumer.poll_now(timeout=None)
    assert len(consumer.attempts) == 2
    assert (await consumer.dead_letters.get("bad")).attempts == 2


# What then


async def test_g9_skip_continues_after_the_message_and_counts_it(caplog):
    feed, store = feed_of("a", "bad", "c"), MemoryStore()
    consumer = Fails(feed, failing=["bad"], store=store, retry=TWICE, on_failure="skip")
    result = await consumer.poll_now()
    assert (result.messages, result.caught_up) == (3, True)
    assert consumer.processed == ["a", "c"]
    assert consumer.status().counters.skipped == 1
    assert "message 'bad' failed (attempt 2), skipped: ValueError: no such customer" in caplog.text
    assert await store_has(store, "bad")


async def store_has(store, key):
    session = await store.claim("fake-feed", feed="fake-feed")
    seen = await session.unseen([key]) == set()
    await session.release()
    return seen


async def test_g9_a_dead_letter_is_durable_before_the_cursor_passes_it(monkeypatch):
    commits = []
    feed = feed_of("a", "bad", "c")
    consumer = Fails(feed, failing=["bad"], retry=TWICE, on_failure="dead_letter", commit_interval=0)
    async with consumer:
        session = consumer._parts.session
        commit = session.commit

        async def watched(**what):
            commits.append((what["cursor"], [letter.dedupe_key for letter in what["dead_letters"]]))
            await commit(**what)

        monkeypatch.setattr(session, "commit", watched)
        await consumer.poll_now()
        assert (feed.after(2), ["bad"]) in commits
        (letter,) = await consumer.dead_letters.list()
    assert consumer.processed == ["a", "c"]
    assert (letter.dedupe_key, letter.id, letter.raw, letter.attempts) == ("bad", "bad", b"null", 2)
    assert letter.error == "ValueError: no such customer"
    assert "in process\n" in letter.traceback
    assert letter.last_failed - letter.first_failed == pytest.approx(0.5)


async def test_on_failure_may_decide_for_each_message_and_exception():
    feed = feed_of("skip", "keep", "good", "stop", "after")

    async def decide(message, error):
        assert isinstance(error, ValueError)
        return {"skip": "skip", "keep": "dead_letter", "stop": "stop"}[message.id]

    consumer = Fails(feed, failing=["skip", "keep", "stop"], retry=None, on_failure=decide)
    async with consumer:
        with pytest.raises(ProcessError, match="'stop'"):
            await consumer.poll_now()
        assert [letter.id for letter in await consumer.dead_letters.list()] == ["keep"]
        assert consumer.status().dead_letters == 1
    assert consumer.processed == ["good"]


@pytest.mark.parametrize(
    ("on_failure", "why"),
    [
        (lambda message, error: "forget", "must be or return one of 'stop', 'dead_letter', 'skip', got 'forget'"),
        (lambda message, error: 1 / 0, "ZeroDivisionError"),
    ],
)
async def test_a_policy_that_fails_stops_the_consumer_with_both_errors(on_failure, why):
    consumer = Fails(feed_of("bad"), failing=["bad"], retry=None, on_failure=on_failure)
    with pytest.raises(ProcessError, match="no such customer; on_failure= or retry= failed") as caught:
        await consumer.poll_now()
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"on_failure": "forget"}, ValueError),
        ({"on_failure": None}, ValueError),
        ({"retry": 3}, TypeError),
    ],
)
def test_an_invalid_policy_is_refused_at_construction(setting, error):
    with pytest.raises(error, match=next(iter(setting))):
        Log(FakeFeed(), **setting)


async def test_on_failure_applies_to_an_unreadable_message_without_an_attempt():
    feed = FakeFeed()
    feed.publish("a")
    feed.publish("garbage", error=DecodeError("no JSON"))
    feed.publish("c")
    for policy, settled in (("skip", 3), ("dead_letter", 3)):
        consumer = Fails(feed, failing=[], on_failure=policy)
        async with consumer:
            assert (await consumer.poll_now()).messages == settled
            letters = await consumer.dead_letters.list()
        assert consumer.processed == ["a", "c"]
        assert [one for one, _ in consumer.attempts] == ["a", "c"]
        assert [letter.error for letter in letters] == ["DecodeError: no JSON"] * (policy == "dead_letter")


async def test_data_that_json_would_change_stops_the_consumer_instead_of_a_dead_letter():
    """It could not be retried, so the consumer stops."""
    feed = FakeFeed()
    feed.publish("bad", data=(1, 2))
    consumer = Fails(feed, failing=["bad"], retry=None, on_failure="dead_letter")
    problem = "the data of .* would change if written as JSON"
    with pytest.raises(ProcessError, match=f"cannot keep it as a dead letter: TypeError: {problem}"):
        await consumer.poll_now()
    assert consumer.status().dead_letters == 0


async def test_data_that_json_cannot_represent_stops_the_consumer_instead_of_a_dead_letter():
    feed = FakeFeed()
    feed.publish("bad", data=object())
    consumer = Fails(feed, failing=["bad"], retry=None, on_failure="dead_letter")
    problem = "cannot write the data of .* as JSON"
    with pytest.raises(ProcessError, match=f"cannot keep it as a dead letter: TypeError: {problem}"):
        await consumer.poll_now()


async def test_too_many_dead_letters_stop_the_consumer(monkeypatch):
    monkeypatch.setattr("push_to_poll_client._retry.MAX_DEAD_LETTERS", 2)
    feed = feed_of("1", "2", "3")
    consumer = Fails(feed, failing=["1", "2", "3"], retry=None, on_failure="dead_letter")
    with pytest.raises(
        ProcessError,
        match="'3' failed and stops the consumer: cannot keep more than 2 dead letters, retry or delete some",
    ):
        await consumer.poll_now()


async def test_the_error_and_traceback_of_a_dead_letter_are_bounded():
    def deep(n):
        if not n:
            raise ValueError("x" * 1_000_000)
        deep(n - 1)

    async def process(message):
        deep(200)

    consumer = Consumer(feed_of("bad"), store=MemoryStore(), process=process, retry=None, on_failure="dead_letter")
    async with consumer:
        await consumer.poll_now()
        (letter,) = await consumer.dead_letters.list()
    assert len(letter.error) <= 600
    assert len(letter.traceback) == 16_384


# What a handler says itself


async def test_retry_message_is_not_limited_by_the_attempts_of_the_retry_strategy(running, caplog):
    consumer = running(
        Fails(feed_of("busy"), failing={"busy": 20}, error=RetryMessage("429", after=90), retry=TWICE)
    )
    await consumer.until(1)
    times = consumer.attempts_of("busy")
    assert [round(after - before) for before, after in pairwise(times)] == [90] * 20
    assert "message 'busy' failed (attempt 1), retrying in" in caplog.text


async def test_skip_message_and_stop_consumer_take_effect_without_a_retry():
    class Says(Log):
        async def process(self, message):
            if message.data:
                raise message.data("it said so") from KeyError("why")
            await super().process(message)

    feed = FakeFeed()
    feed.publish("1", data=SkipMessage)
    feed.publish("2")
    feed.publish("3", data=StopConsumer)
    consumer = Says(feed)
    async with consumer:
        with pytest.raises(ProcessError, match="'3' failed and stops the consumer: StopConsumer: it said so"):
            await consumer.poll_now()
        assert (consumer.processed, consumer.status().counters.skipped) == (["2"], 1)
        assert consumer.status().counters.retries == 0


async def test_dead_letter_message_creates_a_dead_letter_at_the_first_attempt():
    consumer = Fails(feed_of("bad"), failing=["bad"], error=DeadLetterMessage("not ours"))
    async with consumer:
        await consumer.poll_now()
        (letter,) = await consumer.dead_letters.list()
    assert (letter.error, letter.attempts) == ("DeadLetterMessage: not ours", 1)


@pytest.mark.parametrize(("after", "error"), [("soon", TypeError), (-1, ValueError), (float("nan"), ValueError)])
def test_retry_message_refuses_an_invalid_delay(after, error):
    with pytest.raises(error, match="after must be"):
        RetryMessage(after=after)


async def test_a_skip_message_raised_inside_a_task_group_skips_the_message():
    class Groups(Log):
        async def process(self, message):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.skip)

        async def skip(self):
            raise SkipMessage("not ours")

    consumer = Groups(feed_of("a", "b"))
    await consumer.poll_now()
    assert consumer.status().counters.skipped == 2


# Bounds


async def test_on_failure_applies_to_every_message_if_more_fail_than_max_failing(monkeypatch):
    """Otherwise the attempts of the first messages would be forgotten for the last ones, without end."""
    monkeypatch.setattr("push_to_poll_client._progress.MAX_FAILING", 20)
    monkeypatch.setattr("push_to_poll_client._workers.MAX_FAILING", 20)
    names = [str(n) for n in range(100)]
    retry = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(5))
    settings = {
        "concurrency": 16,
        "ordering_key": lambda message: message.id,
        "on_failure": "skip",
        "retry": retry,
    }
    consumer = Fails(feed_of(*names), failing=names, **settings)
    async with consumer:
        with anyio.fail_after(1000):
            while not (await consumer.poll_now(timeout=None)).caught_up:
                pass
    assert consumer.status().counters.skipped == 100
    assert len(consumer.attempts) == 300


@pytest.mark.no_cover  # lines are counted where it is quick
async def test_the_kept_attempts_of_failing_messages_are_bounded(monkeypatch, virtual_day):
    """The messages do not come again. Each poll is a new process, which need not wait before it."""
    monkeypatch.setattr("push_to_poll_client._progress.MAX_FAILING", 100)
    store, feed = MemoryStore(), FakeFeed()
    feed.answer(*(Page([Message(str(n))]) for n in range(120)))
    for n in range(120):
        await Fails(feed, failing=[str(n)], store=store, error=RetryMessage("busy", after=86_400)).poll_now()
    session = await store.claim("fake-feed", feed="fake-feed")
    assert len(Attempts(session.state, TimeOfDay(anyio.current_time))) == 100
    assert len(session.state["attempts"]) < 100 * (200 + 100)


@pytest.mark.parametrize("bare", [True, False])
async def test_attempts_are_dropped_when_their_message_does_not_come_again(bare, virtual_day):
    """The failing entry of a state feed is always replaced by a version that fails too."""
    store, feed = MemoryStore(), FakeFeed()
    versions = [Page([Message(f"entry@{n}")], cursor=None) for n in range(50)]
    feed.answer(*versions, Page([Message("entry@good")], cursor="c1"))
    consumer = Fails(feed, failing=[f"entry@{n}" for n in range(50)], store=store, retry=WAITS_2_S)
    async with contextlib.AsyncExitStack() as stack:
        if not bare:
            await stack.enter_async_context(consumer)
        for n in range(50):
            await consumer.poll_now(timeout=None)
            failing = [one.id for one in consumer.status().failing]
            assert failing[-1] == f"entry@{n}"
            assert len(failing) <= 7, "those of the last hour"
            await anyio.sleep(600)
        assert (await consumer.poll_now(timeout=None)).caught_up
    assert (consumer.status().failing, consumer.status().failing_count) == ((), 0)
    session = await store.claim("fake-feed", feed="fake-feed")
    assert "attempts" not in session.state


async def test_attempts_of_a_message_behind_one_that_waits_are_kept(running, virtual_day):
    """A poll that ends at the waiting message does not always reach the page of the other message."""
    feed, tried = FakeFeed(cursors="page"), []
    feed.publish(20)
    feed.answer(*[lambda request: setattr(feed, "page_size", next(sizes))] * 1_000)
    sizes = cycle([20, 5, 5])

    async def process(message):
        if message.id == "2":
            raise RetryMessage(after=5)
        if message.id == "15":
            tried.append(message.id)
            raise ValueError(message.id)

    retry = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(2))
    lanes = {"concurrency": 4, "ordering_key": lambda message: message.id}
    consumer = Consumer(feed, store=MemoryStore(), process=process, retry=retry, on_failure="skip", **lanes)
    running(consumer)
    await anyio.sleep(300)
    assert len(tried) == 3
    assert consumer.status().counters.skipped == 1


async def test_attempts_of_a_message_that_is_not_due_are_kept_while_a_feed_does_not_give_it(virtual_day):
    """A server's replica that lags behind can omit the message."""
    feed, store, attempts = feed_of("bad"), MemoryStore(), []
    feed.answer(None, Page(), None, None)
    retry = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(100))
    for postponed in (100, None, 100, None):
        consumer = Fails(feed, failing=["bad"], store=store, retry=retry, on_failure="skip")
        result = await consumer.poll_now()
        assert result.retry_in == (postponed and pytest.approx(postponed, abs=1))
        attempts += consumer.attempts
        if len(feed.requests) == 3:
            await anyio.sleep(101)
    assert len(attempts) == 2


async def test_attempts_of_a_message_whose_wait_ends_during_a_poll_that_meets_it_are_kept(virtual_day):
    feed, store = FakeFeed(), MemoryStore()
    retry = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(15))
    settings = {"concurrency": 2, "ordering_key": lambda message: message.id, "retry": retry, "on_failure": "skip"}
    for name, takes, attempts in (("bad", 0, 1), ("a", 10, 0), ("b", 20, 0)):
        feed.publish(name)
        consumer = Fails(feed, failing=["bad"], store=store, takes=takes, **settings)
        assert not (await consumer.poll_now()).caught_up
        assert len(consumer.attempts_of("bad")) == attempts
    last = Fails(feed, failing=["bad"], store=store, **settings)
    assert (await last.poll_now()).caught_up
    assert last.status().counters.skipped == 1, "at its second attempt"


@pytest.mark.parametrize("options", [{}, {"overlap": 3.0}, {"max_poll_time": 0.5}], ids=str)
async def test_attempts_of_all_messages_that_wait_at_a_time_are_kept(options, virtual_day):
    """Each poll reads the messages behind the first waiting one again, so none counts as gone."""
    names = [str(n) for n in range(form(15, 30))]
    feed = feed_of(*names, page_size=len(names) // 3, latency=0.2)
    consumer = Fails(
        feed,
        failing=names,
        concurrency=8,
        ordering_key=lambda message: message.id,
        on_failure="skip",
        retry=AsyncRetrying(stop=stop_after_attempt(4), wait=wait_random(1.5, 60)),
        **options,
    )
    async with consumer:
        with anyio.fail_after(10_000):
            while not (await consumer.poll_now(timeout=None)).caught_up:
                pass
    assert {name: len(consumer.attempts_of(name)) for name in names} == dict.fromkeys(names, 4)
    assert consumer.status().failing == ()


async def test_status_shows_the_messages_that_failed_last_and_counts_them_all(virtual_day):
    names = [str(n) for n in range(150)]
    settings = {
        "concurrency": 4,
        "ordering_key": lambda message: message.id,
        "error": RetryMessage("busy", after=600),
    }
    feed, store = feed_of(*names, page_size=150), MemoryStore()
    consumer = Fails(feed, failing=names, store=store, **settings)
    await consumer.poll_now()
    assert [one.id for one in consumer.status().failing] == names[50:]
    assert consumer.status().failing_count == 150


async def test_a_restart_logs_a_bounded_number_of_messages_that_wait(virtual_day, caplog):
    names = [str(n) for n in range(150)]
    settings = {
        "concurrency": 4,
        "ordering_key": lambda message: message.id,
        "error": RetryMessage("busy", after=600),
    }
    feed, store = feed_of(*names, page_size=150), MemoryStore()
    await Fails(feed, failing=names, store=store, **settings).poll_now()
    caplog.clear()
    consumer = Fails(feed, failing=names, store=store, **settings)
    await consumer.poll_now()
    assert consumer.status().failing_count == 150
    assert caplog.text.count("before this run") == 100


def test_the_attempts_of_thousands_of_messages_are_not_written_at_each_change(monkeypatch):
    now = 0.0
    monkeypatch.setattr("push_to_poll_client._event_loop.wall_clock", lambda: 1e9 + now)
    attempts, written = Attempts({}, TimeOfDay(lambda: now)), 0
    for n in range(5_000):
        attempts.record_failure(str(n))
        attempts.postpone(str(n), 60.0, "ValueError: " + "x" * 1000)
        now += 0.001
        written += sum(map(len, attempts.take_changes().values()))
    assert written < 6_000_000, "1 MB a second"
    attempts.write_soon()
    (last,) = attempts.take_changes().values()
    assert len(last) < 1_000_000
    assert len(Attempts({"attempts": last}, TimeOfDay(lambda: now))) == 5_000


DEEP = "[" * 5000 + "]" * 5000


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({"attempts": "{"}, "cannot read the attempts of failing messages"),
        ({"attempts": "\udcff"}, "cannot read the attempts of failing messages"),
        ({"attempts": f'{{"a": [1, 2.0, 3.0, 4.0, {DEEP}]}}'}, "cannot read the attempts of failing messages"),
        ({"looked": "soon"}, "cannot read the time of the last overlap"),
    ],
    ids=["cut", "half a surrogate pair", "deep", "no number"],
)
async def test_unreadable_saved_state_is_a_store_error_and_releases_the_name(kept, said):
    store = MemoryStore()
    session = await store.claim("fake-feed", feed="fake-feed")
    await session.commit(cursor=None, records=[], state=kept)
    await session.release()
    with pytest.raises(StoreError, match=said) as caught:
        await Log(FakeFeed(), store=store).poll_now()
    session = await store.claim("fake-feed", feed="fake-feed")
    assert caught.value, "which still refers to the session that could not be read, and must not hold its name"
    await session.release()


async def test_on_failure_applies_without_a_retry_to_errors_excluded_by_the_retry_strategy():
    retry = AsyncRetrying(stop=stop_after_attempt(3), retry=retry_if_not_exception_type(ValueError))
    consumer = Fails(feed_of("bad", "good"), failing=["bad"], retry=retry, on_failure="skip")
    await consumer.poll_now()
    assert (consumer.processed, consumer.status().counters.retries) == (["good"], 0)
