"""Hooks: each is called at the right time, in order and once, and cannot change what happens."""

import logging
from typing import ClassVar
from unittest import mock

import anyio
import pytest
from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

from push_to_poll_client import (
    Consumer,
    DecodeError,
    Hooks,
    MemoryStore,
    PollResult,
    ProcessError,
    RetryMessage,
    SkipMessage,
)
from push_to_poll_client.testing import FakeFeed
from tests.support.in_flight import Ledger, feed_of, lane

pytestmark = pytest.mark.anyio

TWICE = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(0.5))


class Diary(Hooks):
    """Records its calls."""

    def __init__(self):
        self.pages = []

    def message_started(self, message):
        self.pages.append(("started", message.id))

    def message_settled(self, message, state):
        self.pages.append(("settled", message.id, str(state)))

    def message_failed(self, message, error, attempt, action):
        self.pages.append(("failed", message.id, str(error), attempt, str(action)))

    def resynced(self, event):
        self.pages.append(("resynced", event.cursor))

    def gap(self, event):
        self.pages.append(("gap", event.description))

    def caught_up(self, result):
        self.pages.append(("caught up", result.messages))

    def of(self, name):
        return [page for page in self.pages if page[1] == name]


class Told(Consumer):
    """Raises the next error listed for a message in `errors`."""

    def __init__(self, feed, *, errors=None, store=None, hooks=None, **settings):
        self.diary = Diary() if hooks is None else hooks
        super().__init__(feed, store=store or MemoryStore(), hooks=self.diary, **settings)
        self.errors = {name: list(some) for name, some in (errors or {}).items()}

    async def process(self, message):
        await anyio.sleep(1.0)
        if self.errors.get(message.id):
            raise self.errors[message.id].pop(0)


class ToldOfBatches(Told):
    process = Consumer.process

    async def process_batch(self, messages):
        for message in messages:
            if self.errors.get(message.id):
                raise self.errors[message.id][0]


async def test_hooks_report_each_message_as_started_and_settled_and_then_the_poll_as_caught_up():
    told = Told(feed_of("a b", page_size=1))
    await told.poll_now()
    assert told.diary.pages == [
        ("started", "a"),
        ("settled", "a", "processed"),
        ("started", "b"),
        ("settled", "b", "processed"),
        ("caught up", 2),
    ]
    await told.poll_now()
    assert told.diary.pages[5:] == [("caught up", 0)]


async def test_hooks_are_not_called_for_duplicates():
    feed = feed_of("a b a", overlap=2, page_size=1)
    told = Told(feed)
    assert (await told.poll_now()).duplicates == 4
    assert len(told.diary.of("a")) == len(told.diary.of("b")) == 2


async def test_hooks_report_each_attempt_of_a_failing_message_and_its_fate():
    told = Told(feed_of("a"), errors={"a": [ValueError("one"), ValueError("two")]}, retry=TWICE, on_failure="skip")
    await told.poll_now()
    assert told.diary.of("a") == [
        ("started", "a"),
        ("failed", "a", "one", 1, "retry"),
        ("started", "a"),
        ("failed", "a", "two", 2, "skip"),
        ("settled", "a", "skipped"),
    ]


async def test_a_message_with_a_delayed_retry_is_settled_in_a_later_poll():
    told = Told(feed_of("a"), errors={"a": [RetryMessage("429", after=60)]})
    async with told:
        await told.poll_now()
        assert told.diary.pages == [("started", "a"), ("failed", "a", "429", 1, "retry")]
        await told.poll_now(timeout=None)
    assert told.diary.pages[2:] == [("started", "a"), ("settled", "a", "processed"), ("caught up", 1)]


async def test_a_message_that_stops_the_consumer_is_reported_as_failed_and_not_settled():
    told = Told(feed_of("a b"), errors={"a": [ValueError("no such customer")]}, retry=None)
    with pytest.raises(ProcessError):
        await told.poll_now()
    assert told.diary.pages == [("started", "a"), ("failed", "a", "no such customer", 1, "stop")]


async def test_an_unreadable_message_fails_without_being_started():
    feed = FakeFeed()
    feed.publish("torn", error=DecodeError("no JSON"))
    told = Told(feed, on_failure="dead_letter")
    await told.poll_now()
    assert told.diary.of("torn") == [("failed", "torn", "no JSON", 1, "dead_letter"), ("settled", "torn", "dead")]


async def test_the_settled_hook_is_called_before_the_message_is_committed():
    store, told_by = Ledger(), []

    class Looks(Diary):
        def message_settled(self, message, state):
            told_by.append((message.id, list(store.recorded)))

    await Told(feed_of("a b"), store=store, hooks=Looks(), commit_interval=0).poll_now()
    assert told_by == [("a", []), ("b", ["a"])]


@pytest.mark.parametrize("concurrency", [2, 4])
async def test_hooks_report_each_attempt_and_outcome_of_concurrent_messages(concurrency):
    errors = {"a1": [SkipMessage("not ours")], "b1": [ValueError("busy")]}
    told = Told(
        feed_of("a1 b1 a2 b2 c1 d1"), errors=errors, retry=TWICE, concurrency=concurrency, ordering_key=lane
    )
    await told.poll_now()
    diary = told.diary
    assert diary.of("a1") == [
        ("started", "a1"),
        ("failed", "a1", "not ours", 1, "skip"),
        ("settled", "a1", "skipped"),
    ]
    assert diary.of("b1") == [
        ("started", "b1"),
        ("failed", "b1", "busy", 1, "retry"),
        ("started", "b1"),
        ("settled", "b1", "processed"),
    ]
    for name in ("a2", "b2", "c1", "d1"):
        assert diary.of(name) == [("started", name), ("settled", name, "processed")]
    assert diary.pages[-1] == ("caught up", 6)


async def test_hooks_report_each_message_of_a_batch_again_when_the_batch_is_split():
    told = ToldOfBatches(feed_of("a b c d"), errors={"c": [ValueError("poison")]}, retry=None, on_failure="skip")
    await told.poll_now()
    assert told.diary.of("a") == [("started", "a"), ("started", "a"), ("settled", "a", "processed")]
    assert told.diary.of("c") == [("started", "c")] * 3 + [
        ("failed", "c", "poison", 1, "skip"),
        ("settled", "c", "skipped"),
    ]
    settled = [name for what, name, *_ in told.diary.pages if what == "settled"]
    assert settled == ["a", "b", "c", "d"]


async def test_a_batch_that_is_retried_later_is_reported_as_a_failure_of_its_first_message():
    told = ToldOfBatches(feed_of("a b"), errors={"b": [RetryMessage("429", after=60)]})
    await told.poll_now()
    assert told.diary.pages == [("started", "a"), ("started", "b"), ("failed", "a", "429", 1, "retry")]


async def test_a_resync_calls_the_resynced_hook():
    feed = feed_of("a b")
    told = Told(feed)
    async with told:
        await told.poll_now()
        await told.rewind(feed.after(1), forget=True)
        await told.poll_now()
    assert told.diary.pages[5:] == [
        ("resynced", feed.after(1)),
        ("started", "b"),
        ("settled", "b", "processed"),
        ("caught up", 1),
    ]


async def test_hooks_report_retries_of_dead_letters():
    errors = {"a": [ValueError("one"), ValueError("two")]}
    told = Told(feed_of("a"), errors=errors, retry=None, on_failure="dead_letter")
    async with told:
        await told.poll_now()
        del told.diary.pages[:]
        await told.dead_letters.retry("a")
        await told.dead_letters.retry("a")
    assert told.diary.pages == [
        ("started", "a"),
        ("failed", "a", "two", 2, "dead_letter"),
        ("started", "a"),
        ("settled", "a", "processed"),
    ]


async def test_hooks_report_replayed_messages():
    told = Told(feed_of("a"))
    async with told:
        await told.poll_now()
        del told.diary.pages[:]
        await told.replay("inception")
    assert told.diary.pages == [("started", "a"), ("settled", "a", "processed")]


async def test_the_caught_up_hook_is_not_called_for_a_poll_that_reaches_its_time_limit():
    told = Told(feed_of("a b c", page_size=1), max_poll_time=1.5)
    async with told:
        await told.poll_now()
        assert ("caught up", 2) not in told.diary.pages
        await told.poll_now()
    assert [page for page in told.diary.pages if page[0] == "caught up"] == [("caught up", 1)]


@pytest.mark.parametrize("kind", [Told, ToldOfBatches])
async def test_hooks_that_fail_are_logged_and_change_nothing(kind, caplog):
    class Broken(Hooks):
        def __getattribute__(self, name):
            if name in {"message_started", "message_settled", "message_failed", "resynced", "caught_up"}:
                return mock.Mock(side_effect=KeyError(name), spec=["__call__"])  # a mock without `__name__`
            return super().__getattribute__(name)

    feed, store = feed_of("a b"), Ledger()
    told = kind(feed, store=store, hooks=Broken(), errors={"a": [ValueError("x")]}, retry=None, on_failure="skip")
    async with told:
        assert (await told.poll_now()).messages == 2
        await told.rewind("inception")
        await told.poll_now()
    assert store.states == {"a": "skipped", "b": "processed"}
    for name in ("message_started", "message_settled", "message_failed", "resynced", "caught_up"):
        assert f"hook {name} failed; its further failures are logged at DEBUG: KeyError: '{name}'" in caplog.text


async def test_only_the_first_failure_of_each_hook_is_a_warning_and_has_a_traceback(caplog):
    class Broken(Hooks):
        def message_settled(self, message, state):
            raise KeyError(message.id)

        def caught_up(self, result):
            raise ValueError("no")

    caplog.set_level(logging.DEBUG)
    told = Told(feed_of("a b c"), hooks=Broken())
    for _ in range(2):
        await told.poll_now()
    failures = [record for record in caplog.records if "hook" in record.getMessage()]
    assert [(record.levelname, record.exc_info[0]) for record in failures] == [
        ("WARNING", KeyError),
        ("DEBUG", KeyError),
        ("DEBUG", KeyError),
        ("WARNING", ValueError),
        ("DEBUG", ValueError),
    ]
    assert "hook message_settled failed; its further failures are logged at DEBUG: KeyError: 'a'" in caplog.text
    assert "hook message_settled failed; its further failures are logged at DEBUG: KeyError: 'b'" in caplog.text


async def test_a_message_that_waits_since_before_a_restart_is_reported_once(virtual_day, caplog):
    class Told(Hooks):
        told: ClassVar = []

        def message_postponed(self, message, failing):
            self.told.append((message.id, failing.id, failing.attempts))
            raise KeyError("postponed")

    def consumer(hooks):
        return Consumer(feed_of("a"), name="x", store=store, process=busy, hooks=hooks)

    async def busy(message):
        raise RetryMessage("busy", after=600)

    store = MemoryStore()
    await consumer(None).poll_now()
    again = consumer(Told())
    for _ in range(3):
        await again.poll_now(timeout=None)
    assert Told.told == [("a", "a", 1)]
    assert "hook message_postponed failed; its further failures are logged at DEBUG: KeyError: " in caplog.text


async def test_a_system_exit_raised_in_a_hook_propagates():
    class Leaves(Hooks):
        def message_started(self, message):
            raise SystemExit(3)

    with pytest.raises(SystemExit):
        await Told(feed_of("a"), hooks=Leaves()).poll_now()


async def test_hooks_without_overridden_methods_do_not_affect_a_poll():
    told = Told(feed_of("a"), hooks=Hooks())
    assert await told.poll_now() == PollResult(1, 0, 1, caught_up=True)


@pytest.mark.parametrize("hooks", [object(), Diary, "hooks", print])
def test_hooks_of_a_wrong_type_are_a_type_error_at_construction(hooks):
    with pytest.raises(TypeError, match="hooks must be a Hooks object or None, got "):
        Told(FakeFeed(), hooks=hooks)


def test_an_async_hook_is_a_type_error_at_construction():
    class Awaits(Hooks):
        async def caught_up(self, result):
            pass

    with pytest.raises(TypeError, match=r"Awaits\.caught_up must be a plain def"):
        Told(FakeFeed(), hooks=Awaits())
