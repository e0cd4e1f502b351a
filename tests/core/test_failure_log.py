"""The log of a failing message: one traceback, one line per attempt, and the outcome (G9, G11)."""

import logging
import threading
import traceback
from contextlib import nullcontext, suppress

import anyio
import pytest
from tenacity import AsyncRetrying, stop_after_attempt, stop_after_delay, wait_fixed

from push_to_poll_client import (
    Consumer,
    DeadLetterMessage,
    DecodeError,
    ListenerError,
    MemoryStore,
    ProcessError,
    Push,
    RetryMessage,
    SkipMessage,
    StopConsumer,
)
from push_to_poll_client._failure_log import MAX_TRACEBACKS, TRACEBACK_INTERVAL, FailureLog
from push_to_poll_client.testing import FakeFeed, ManualListener
from tests.support.consumers import Log

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_day")]


@pytest.fixture(autouse=True)
def caplog(caplog):
    caplog.set_level(logging.INFO, "push_to_poll_client")
    return caplog


def told(caplog):
    """Return the lines about messages without the consumer's name; True for those with a traceback."""
    about = ("message ", "dead letter ", "batch of ", "stopping: ", "retry= ")
    lines = [(record.getMessage().partition(": ")[2], bool(record.exc_info)) for record in caplog.records]
    return [(line, shown) for line, shown in lines if line.startswith(about)]


def begin(lines):
    """Return the beginnings of lines, without the delay and the error."""
    return [(line.partition(", retrying")[0].partition(":")[0], shown) for line, shown in lines]


def bill(order):
    return order["customer"]


class Broken(Log):
    """Fails `failures` times for messages that have no customer."""

    failures = 1_000_000

    async def process(self, message):
        if self.failures and message.data is not None:
            self.failures -= 1
            bill(message.data)
        await super().process(message)


def with_bad(*ids):
    feed = FakeFeed()
    feed.publish("good")
    feed.publish(*ids, data={"total": 5})
    feed.publish("last")
    return feed


async def test_g9_the_first_failure_and_the_end_of_a_message_are_logged_with_their_tracebacks(caplog, running):
    consumer = running(Broken(with_bad("bad"), on_failure="dead_letter"))
    await consumer.until(2)
    assert begin(told(caplog)) == [
        ("message 'bad' failed (attempt 1 of 5)", True),
        ("message 'bad' failed (attempt 2 of 5)", False),
        ("message 'bad' failed (attempt 3 of 5)", False),
        ("message 'bad' failed (attempt 4 of 5)", False),
        ("message 'bad' failed (attempt 5), kept as a dead letter", True),
    ]
    assert caplog.text.count('return order["customer"]') == 2
    assert "push_to_poll_client/_" not in caplog.text  # the traceback begins in the handler


async def test_g9_a_message_that_is_processed_after_failing_is_logged(caplog, running):
    consumer = Broken(with_bad("bad"))
    consumer.failures = 2
    await running(consumer).until(3)
    assert begin(told(caplog)) == [
        ("message 'bad' failed (attempt 1 of 5)", True),
        ("message 'bad' failed (attempt 2 of 5)", False),
        ("message 'bad' processed (attempt 3)", False),
    ]


@pytest.mark.parametrize(
    ("stop", "number"),
    [(stop_after_attempt(2), "1 of 2"), (stop_after_attempt(2) | stop_after_delay(60), "1")],
    ids=["number", "number or time"],
)
async def test_a_failure_names_the_number_of_attempts_if_the_stop_strategy_is_a_number(stop, number, caplog):
    consumer = Broken(with_bad("bad"), retry=AsyncRetrying(stop=stop, wait=wait_fixed(0.1)), on_failure="skip")
    await consumer.poll_now()
    assert begin(told(caplog))[0] == (f"message 'bad' failed (attempt {number})", True)


CALLS = {
    "run": Consumer.run,
    "poll_now": Consumer.poll_now,
    "catch_up": Consumer.catch_up,
    "replay": lambda consumer: consumer.replay("inception"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("policy", ["skip", "dead_letter", "stop"])
async def test_g9_a_message_that_is_not_retried_has_one_line_with_the_traceback(policy, call, caplog):
    consumer = Broken(with_bad("bad"), retry=None, on_failure=policy)
    with anyio.move_on_after(5), nullcontext() if policy != "stop" else pytest.raises(ProcessError) as raised:
        await CALLS[call](consumer)
    if policy == "stop":
        assert 'return order["customer"]' in "".join(traceback.format_exception(raised.value))
    ((line, shown),) = told(caplog)
    assert shown
    assert "'bad' failed" in line
    assert "KeyError: 'customer'" in line
    assert 'return order["customer"]' in caplog.text


POLICY_BUG = "KeyError: 'a bug of the policy'"


async def test_g9_each_of_several_messages_that_stop_the_consumer_at_once_has_a_line(caplog):
    """Only one of their errors can be raised."""
    consumer = Broken(
        with_bad("1", "2"), retry=None, concurrency=4, ordering_key=lambda message: message.id, on_failure="stop"
    )
    with pytest.raises(ProcessError):
        await consumer.run()
    lines = begin(told(caplog))  # trio runs tasks in any order
    assert sorted(text for text, _ in lines) == [
        "message '1' failed (attempt 1), stopping the consumer",
        "message '2' failed (attempt 1), stopping the consumer",
    ]
    assert [has_traceback for _, has_traceback in lines] == [True, False], "one traceback of a bug"


async def test_g9_a_bug_in_the_failure_policy_is_logged_with_its_traceback(caplog):
    def policy(message, error):
        return {}["a bug of the policy"]

    with pytest.raises(ProcessError):
        await Broken(with_bad("bad"), retry=None, on_failure=policy).poll_now()
    failed = "KeyError: 'customer'"
    assert told(caplog) == [
        (
            (
                f"message 'bad' failed (attempt 1), stopping the consumer: {failed}; "
                f"on_failure= or retry= failed: {POLICY_BUG}"
            ),
            True,
        ),
    ]
    assert 'return {}["a bug of the policy"]' in caplog.text


async def test_g11_a_flood_of_failing_messages_is_a_line_each_and_few_tracebacks(caplog):
    consumer = Broken(with_bad(*map(str, range(2_000))), retry=None, on_failure="skip")
    await consumer.poll_now()
    lines = told(caplog)
    assert len(lines) == 2_000
    assert [shown for _, shown in lines] == [True] + [False] * 1_999


async def test_g11_errors_of_ever_new_places_do_not_flood_the_log_with_tracebacks(caplog):
    async def process(message):
        kind = type(f"Error{message.id}", (Exception,), {})
        raise kind

    feed = FakeFeed()
    feed.publish(1_000)
    await Consumer(feed, store=MemoryStore(), process=process, retry=None, on_failure="skip").poll_now()
    assert [shown for _, shown in told(caplog)] == [True] * MAX_TRACEBACKS + [False] * (1_000 - MAX_TRACEBACKS)


async def test_a_traceback_is_logged_again_after_ten_minutes_and_at_once_for_another_bug(caplog):
    feed = FakeFeed()

    class Two(Log):
        async def process(self, message):
            if message.data:
                bill({})
            bill({})

    async with Two(feed, retry=None, on_failure="skip") as consumer:
        for data, pause in [(1, 1), (1, 1), (0, 1), (1, TRACEBACK_INTERVAL - 4), (1, 2), (1, 1), (0, 1)]:
            feed.publish(data=data)
            await consumer.poll_now()
            await anyio.sleep(pause)
    assert [shown for _, shown in told(caplog)] == [True, False, True, False, False, True, True]


async def test_at_level_debug_every_failure_has_its_traceback(caplog):
    caplog.set_level(logging.DEBUG, "push_to_poll_client")
    await Broken(with_bad("1", "2", "3"), retry=None, on_failure="skip").poll_now()
    assert [shown for _, shown in told(caplog)] == [True] * 3


async def test_different_bugs_that_are_raised_again_at_one_place_are_both_logged(caplog):
    """For example by a handler that wraps all errors in its own error, or in a group."""

    async def process(message):
        if message.id in "12":
            try:
                bill({}) if message.id == "1" else bill([])
            except Exception as error:
                raise RuntimeError("cannot bill") from error
        bugs = {"3": lambda: bill({}), "4": lambda: bill([])}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 1)
            bugs[message.id]()

    feed = FakeFeed()
    feed.publish(4)
    await Consumer(feed, store=MemoryStore(), process=process, retry=None, on_failure="skip").poll_now()
    assert [shown for _, shown in told(caplog)] == [True] * 4


async def test_errors_that_were_raised_from_each_other_in_a_circle_are_logged(caplog):
    async def process(message):
        first, second = ValueError("first"), ValueError("second")
        first.__cause__, second.__cause__ = second, first
        raise first

    feed = FakeFeed()
    feed.publish(1)
    await Consumer(feed, store=MemoryStore(), process=process, retry=None, on_failure="skip").poll_now()
    assert [shown for _, shown in told(caplog)] == [True]


# Ways to call a handler, and kinds of errors


class Unspeakable(Exception):
    def __str__(self):
        raise KeyError("no words")


def fail(message):
    raise Unspeakable


class Awaited(Consumer):
    async def process(self, message):
        fail(message)


class InThread(Consumer):
    def process(self, message):
        assert threading.current_thread() is not threading.main_thread()
        fail(message)


class Batches(Consumer):
    async def process_batch(self, messages):
        fail(messages)


class BatchesInThread(Consumer):
    def process_batch(self, messages):
        fail(messages)


class Groups(Consumer):
    async def process(self, message):
        raise ExceptionGroup("several", [ValueError(1), Unspeakable()])


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("kind", [Awaited, InThread, Batches, BatchesInThread, Groups])
async def test_g9_every_way_to_call_a_handler_logs_the_traceback_from_its_first_line(kind, concurrency, caplog):
    feed = FakeFeed()
    feed.publish("1", "2")
    options = {"concurrency": concurrency, "ordering_key": lambda message: message.id} if concurrency > 1 else {}
    consumer = kind(feed, store=MemoryStore(), retry=None, on_failure="skip", **options)
    await consumer.poll_now()
    assert consumer.status().counters.skipped == 2
    first, *others = told(caplog)
    assert first[1]
    text = next(record.exc_text for record in caplog.records if record.exc_info)
    assert "Unspeakable" in text
    assert "test_failure_log.py" in text.splitlines()[1]
    assert [shown for line, shown in others if line.startswith("message ")][-1] is False


async def test_g9_a_batch_that_fails_although_its_halves_do_not_is_logged(caplog):
    class Halves(Consumer):
        async def process_batch(self, messages):
            if len(messages) > 2:
                bill({})

    feed = FakeFeed()
    feed.publish(8)
    await Halves(feed, store=MemoryStore()).poll_now()
    assert told(caplog) == [("batch of 8 messages failed, retrying its halves: KeyError: 'customer'", True)]


async def test_a_batch_with_a_bad_message_is_a_line_for_the_batch_and_those_of_the_message(caplog):
    class One(Consumer):
        async def process_batch(self, messages):
            for message in messages:
                bill({"customer": 1} if message.id != "5" else {})

    feed = FakeFeed()
    feed.publish(100)
    await One(feed, store=MemoryStore(), retry=None, on_failure="skip").poll_now()
    assert begin(told(caplog)) == [
        ("batch of 100 messages failed", True),
        ("message '5' failed (attempt 1), skipped", True),
    ]


async def test_an_unreadable_message_is_logged_in_one_line_unless_its_error_has_a_cause(caplog):
    feed = FakeFeed()
    feed.publish("plain", error=DecodeError("not JSON"))
    caused = DecodeError("your decoder failed")
    try:
        bill({})
    except KeyError as error:
        caused.__cause__ = error
    feed.publish("caused", error=caused)
    await Log(feed, on_failure="skip").poll_now()
    assert [shown for _, shown in told(caplog)] == [False, True]
    assert 'return order["customer"]' in caplog.text


@pytest.mark.parametrize("decision", [RetryMessage, SkipMessage, DeadLetterMessage, StopConsumer])
async def test_a_handler_decision_is_logged_without_a_traceback_unless_an_error_caused_it(decision, caplog):
    arguments = {"after": 60} if decision is RetryMessage else {}

    async def process(message):
        if message.id == "1":
            raise decision("the bank is closed", **arguments)
        try:
            bill({})
        except KeyError as error:
            raise decision("no customer", **arguments) from (error if message.id == "2" else None)

    for number, shown in [("1", False), ("2", True), ("3", False)]:
        feed = FakeFeed()
        feed.publish(number)
        caplog.clear()
        with suppress(ProcessError):
            await Consumer(feed, store=MemoryStore(), process=process).poll_now()
        assert [has for _, has in told(caplog)] == [shown], number


async def test_g9_dead_letters_that_fail_again_are_logged_with_a_traceback(caplog):
    feed = with_bad("1", "2")
    consumer = Broken(feed, retry=None, on_failure="dead_letter")
    await consumer.poll_now()
    caplog.clear()
    await consumer.dead_letters.retry()
    assert begin(told(caplog)) == [
        ("dead letter '1' failed again (attempt 2)", True),
        ("dead letter '2' failed again (attempt 2)", False),
    ]


async def test_a_dead_letter_that_cannot_be_restored_is_logged_with_a_traceback(caplog):
    class Restoring(FakeFeed):
        def restore(self, dead_letter):
            return bill({})

    feed = Restoring()
    feed.publish("1", data={})
    consumer = Broken(feed, retry=None, on_failure="dead_letter")
    await consumer.poll_now()
    caplog.clear()
    await consumer.dead_letters.retry()
    ((line, shown),) = told(caplog)
    assert line.startswith("dead letter '1' failed again (attempt 1): DecodeError: dead letter '1' cannot be")
    assert shown


async def test_every_line_of_a_failure_has_the_fields_that_are_given_in_one_place(caplog, monkeypatch):
    fields = lambda self, failure, outcome: {"extra": {"failure": failure}}  # noqa: E731
    monkeypatch.setattr(FailureLog, "_record_fields", fields)
    store = MemoryStore()

    class Fails(Consumer):
        async def process_batch(self, messages):
            raise RetryMessage(after=60) if messages[-1].id == "again" else KeyError("customer")

    def poll(feed):
        return Fails(feed, store=store, retry=None, on_failure=lambda message, _: message.id).poll_now()

    feed = FakeFeed()
    feed.publish("skip", "dead_letter")
    await poll(feed)
    await Fails(feed, store=store).dead_letters.retry()
    feed.publish("again")
    for _ in range(2):
        await poll(feed)
    for wrong in ("stop", "unknown"):
        bad = FakeFeed(identity=wrong)
        bad.publish(wrong)
        with pytest.raises(ProcessError):
            await poll(bad)
    lines = [line for line, _ in begin(told(caplog))]
    fields = [(record.failure.key, record.failure.attempt) for record in caplog.records]
    assert list(zip(lines, fields, strict=True)) == [
        ("batch of 2 messages failed", ("skip", 1)),
        ("message 'skip' failed (attempt 1), skipped", ("skip", 1)),
        ("message 'dead_letter' failed (attempt 1), kept as a dead letter", ("dead_letter", 1)),
        ("dead letter 'dead_letter' failed again (attempt 2)", ("dead_letter", 2)),
        ("message 'again' failed (attempt 1)", ("again", 1)),
        ("message 'again' failed before this run (attempt 1)", ("again", 1)),
        ("message 'stop' failed (attempt 1), stopping the consumer", ("stop", 1)),
        ("message 'unknown' failed (attempt 1), stopping the consumer", ("unknown", 1)),
    ]


async def test_the_error_that_stops_a_consumer_has_the_traceback_of_the_bug(caplog):
    async def listen(channel):
        bill({})

    listener = ManualListener()
    listener.listen = listen
    with pytest.raises(ListenerError):
        await Log(FakeFeed(), listeners=[listener]).run()
    assert [shown for _, shown in told(caplog)] == [True]
    assert 'return order["customer"]' in caplog.text


async def test_a_listener_that_ends_with_the_failure_of_another_consumer_is_logged(caplog):
    class Chained:
        async def listen(self, channel):
            await inner.poll_now()

    inner = Broken(with_bad("bad"), name="inner", retry=None, on_failure="stop")
    with pytest.raises(ProcessError):
        await Log(FakeFeed(), name="outer", listeners=[Chained()]).run()
    stops = [record for record in caplog.records if "stopping: ProcessError" in record.getMessage()]
    assert [record.getMessage().partition(":")[0] for record in stops] == ["outer"]


async def test_a_should_poll_that_fails_is_logged_with_its_traceback_once(caplog, running):
    class Wary(Log):
        def should_poll(self, hint, status):
            return bill({})

    consumer = running(Wary(FakeFeed()))
    await anyio.sleep(1)
    for _ in range(3):
        consumer.wake(Push("c"))
        await anyio.sleep(1)
    (record,) = [record for record in caplog.records if "should_poll" in record.getMessage()]
    assert record.exc_info


async def test_the_text_of_an_error_in_a_traceback_is_bounded_and_does_nothing_to_a_terminal(caplog):
    """The text may be the content of a message from a hostile server."""

    async def process(message):
        raise ValueError("\x1b[2J" + "x" * 1_000_000 + "\nERROR forged: \x07" * 1_000)

    feed = FakeFeed()
    feed.publish(1)
    with pytest.raises(ProcessError):
        await Consumer(feed, store=MemoryStore(), name="orders", process=process, retry=None).run()
    (record,) = [record for record in caplog.records if record.exc_info]
    shown = logging.Formatter("%(levelname)s %(message)s").format(record)
    assert "Traceback (most recent call last)" in shown
    assert "in process" in shown
    assert len(shown) < 20_000
    assert all(line.isprintable() for line in shown.split("\n"))
    assert record.exc_info[0] is ValueError, "for those who group errors"
