"""Dead letters are listed, retried, dropped and exported, with a running and a stopped consumer."""

import json
from contextlib import AsyncExitStack, suppress
from dataclasses import replace

import anyio
import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

from push_to_poll_client import (
    CloudEvent,
    DeadLetter,
    DecodeError,
    FailureAction,
    Hooks,
    HTTPFeed,
    MemoryStore,
    Message,
    ProcessError,
    Record,
    RetryResult,
    Settlement,
    SkipMessage,
    SQLiteStore,
    StoreBusy,
    StoreError,
    StoreUnavailable,
)
from push_to_poll_client._dead_letters import as_json
from push_to_poll_client.testing import FakeFeed
from push_to_poll_client.testing._virtual_time import virtual_time
from tests.support.consumers import Log
from tests.support.forms import form
from tests.support.refusing_store import RefusingStore
from tests.support.shared_memory import SharedMemory

pytestmark = pytest.mark.anyio


class Fails(Log):
    """Fails for the messages of `failing`."""

    def __init__(self, feed, *, failing=(), retry=None, on_failure="dead_letter", **settings):
        super().__init__(feed, retry=retry, on_failure=on_failure, **settings)
        self.failing = set(failing)
        self.attempts = []
        self.data = []

    async def process(self, message):
        self.attempts.append(message.id)
        if message.id in self.failing:
            raise ValueError(f"no such customer: {message.id}")
        await super().process(message)
        self.data.append(message.data)


async def dead(*names, store=None, **settings):
    """A stopped consumer; each message of its feed is a dead letter."""
    feed = FakeFeed()
    feed.publish(*names, data={"n": 1})
    consumer = Fails(feed, failing=names, store=store or MemoryStore(), **settings)
    await consumer.poll_now()
    consumer.attempts.clear()
    return consumer


async def state_of(store, key):
    session = await store.claim("fake-feed", feed="fake-feed")
    unseen = await session.unseen([key])
    letter = await session.dead_letter(key)
    await session.release()
    return None if unseen else (Settlement.DEAD_LETTERED if letter else "settled")


async def mark(consumer, *keys, **marks):
    """Mark dead letters as the command line does while no process owns the store."""
    session = await consumer._store.claim("fake-feed", feed="fake-feed")
    letters = [await session.dead_letter(key) for key in keys]
    marked = [msgspec.structs.replace(letter, **(marks or {"retry_requested": True})) for letter in letters]
    await session.commit(cursor=None, records=[], dead_letters=marked)
    await session.release()


# List and get


async def test_list_and_get_work_on_a_stopped_consumer_and_release_its_name():
    consumer = await dead("b", "a")
    assert [letter.dedupe_key for letter in await consumer.dead_letters.list()] == ["a", "b"]
    letter = await consumer.dead_letters.get("a")
    assert (letter.id, letter.raw, letter.error) == ("a", b'{"n":1}', "ValueError: no such customer: a")
    assert not consumer.status().is_owner, "each call gives the name back"


async def test_list_and_retry_work_on_a_running_consumer_after_its_current_poll(running):
    feed = FakeFeed()
    consumer = running(Fails(feed, failing=["bad"], takes=3.0))
    feed.publish("bad", "next")
    await feed.asked(1)
    began = anyio.current_time()
    await anyio.sleep(1)
    assert [letter.dedupe_key for letter in await consumer.dead_letters.list()] == ["bad"]
    assert anyio.current_time() - began == 3.0, "it waits for the poll that runs"
    consumer.failing.clear()
    assert await consumer.dead_letters.retry("bad") == RetryResult(processed=1, failed=0)
    assert consumer.processed == ["next", "bad"]
    assert consumer.status().dead_letters == 0
    assert consumer.status().is_owner


async def test_a_key_without_a_dead_letter_is_a_lookup_error():
    consumer = await dead("a")
    letters = consumer.dead_letters
    for call in (letters.get, letters.retry, letters.drop):
        with pytest.raises(LookupError, match="found no dead letter with the key 'b'"):
            await call("b")


async def test_list_returns_100_dead_letters_at_a_time_and_export_and_retry_cover_all():
    names = [f"{n:03}" for n in range(250)]
    consumer = await dead(*names)
    first = await consumer.dead_letters.list()
    assert [letter.dedupe_key for letter in first] == names[:100]
    assert [letter.dedupe_key for letter in await consumer.dead_letters.list(after=first[-1])] == names[100:200]
    assert [json.loads(line)["dedupe_key"] async for line in consumer.dead_letters.export()] == names
    consumer.failing.clear()
    assert await consumer.dead_letters.retry() == RetryResult(250, 0)
    assert consumer.processed == names


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("claimed", [False, True])
async def test_async_for_yields_all_dead_letters_and_each_may_be_dropped_in_the_loop(kind, claimed, tmp_path):
    names = [f"{n:03}" for n in range(120)]
    consumer = await dead(*names, store=SQLiteStore(tmp_path / "state.db") if kind == "sqlite" else None)
    async with AsyncExitStack() as stack:
        if claimed:
            await stack.enter_async_context(consumer)
        letters = consumer.dead_letters
        assert [letter.dedupe_key async for letter in letters] == names
        assert [letter.id async for letter in letters] == names, "each loop begins with the first one"
        seen = []
        async for letter in letters:
            seen.append(letter.dedupe_key)
            if letter.dedupe_key in {"007", "099"}:  # also the last one of a page
                await letters.drop(letter.dedupe_key)
        assert seen == names
        assert [letter.dedupe_key async for letter in letters] == [
            name for name in names if name not in {"007", "099"}
        ]


async def test_polls_run_between_two_pages_of_an_async_for(running):
    feed = FakeFeed()
    names = [f"{n:03}" for n in range(150)]
    consumer = running(Fails(feed, failing=names))
    feed.publish(*names)
    await anyio.sleep(100)
    seen = 0
    async for _ in consumer.dead_letters:
        seen += 1
        if seen == 50:
            feed.publish("new")
            consumer.wake()
            await consumer.until(1)
    assert seen == 150


@pytest.mark.parametrize("call", ["list", "get", "retry", "drop", "export", "async for"])
async def test_each_call_raises_store_busy_while_another_owner_has_the_name(call):
    consumer = await dead("a")
    async with consumer:
        letters = Fails(consumer._feed, store=consumer._store).dead_letters
        with pytest.raises(StoreBusy):
            await use(letters, call)


async def use(letters, call):
    if call == "export":
        return [line async for line in letters.export()]
    if call == "async for":
        return [letter async for letter in letters]
    return await getattr(letters, call)(*(["a"] if call in {"get", "drop"} else []))


@pytest.mark.parametrize("call", ["list", "get", "retry", "drop", "export", "async for"])
async def test_a_dead_letters_call_inside_process_is_a_runtime_error(call):
    consumer = await dead("a")

    class Nested(Fails):
        async def process(self, message):
            with pytest.raises(
                RuntimeError, match="dead_letters was called from the handler and would wait for itself"
            ):
                await use(self.dead_letters, call)
            await super().process(message)

    nested = Nested(consumer._feed, store=consumer._store)
    consumer._feed.publish("new")
    await nested.poll_now()
    assert nested.processed == ["new"]
    assert await nested.dead_letters.retry("a") == RetryResult(1, 0), "also while a dead letter is tried again"


# Retry


@pytest.mark.usefixtures("inline_threads")
@pytest.mark.parametrize("make", [MemoryStore, lambda: None], ids=["memory", "file"])
async def test_a_retried_dead_letter_is_processed_once_and_then_removed(make, tmp_path):
    consumer = await dead("a", "b", store=make() or SQLiteStore(tmp_path / "x.db"))
    assert await state_of(consumer._store, "a") is Settlement.DEAD_LETTERED
    consumer.failing.clear()
    assert await consumer.dead_letters.retry("a") == RetryResult(processed=1, failed=0)
    assert (consumer.processed, consumer.data) == (["a"], [{"n": 1}])
    assert await state_of(consumer._store, "a") == "settled"
    assert [letter.dedupe_key for letter in await consumer.dead_letters.list()] == ["b"]
    consumer._feed.publish("a", "b")
    result = await consumer.poll_now()
    assert (result.messages, result.duplicates) == (0, 2), "it is not processed again when the feed repeats it"
    assert consumer.attempts == ["a"]


async def test_a_failed_retry_updates_the_dead_letter_and_keeps_the_time_of_the_first_failure(virtual_day):
    consumer = await dead("a", retry=AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(0.5)))
    before = await consumer.dead_letters.get("a")
    assert before.attempts == 3
    await anyio.sleep(100)
    consumer.failing = {"a"}
    consumer.attempts.clear()
    assert await consumer.dead_letters.retry("a") == RetryResult(processed=0, failed=1)
    assert consumer.attempts == ["a"], "once, whatever retry= says"
    after = await consumer.dead_letters.get("a")
    assert after.attempts == 4
    assert after.first_failed == before.first_failed
    assert after.last_failed == pytest.approx(before.last_failed + 100)
    assert "no such customer" in after.traceback
    assert await state_of(consumer._store, "a") is Settlement.DEAD_LETTERED


async def test_a_retry_of_all_continues_after_dead_letters_that_fail_or_are_gone():
    consumer = await dead("a", "b", "c")
    consumer.failing = {"b"}
    process = consumer.process

    async def drops_c(message):
        if message.id == "a":
            consumer._parts.progress.pending.append(Record("c"))
        await process(message)

    consumer._open_session.options = replace(consumer._options, handler=drops_c)
    assert await consumer.dead_letters.retry() == RetryResult(processed=1, failed=1)
    assert [letter.dedupe_key for letter in await consumer.dead_letters.list()] == ["b"]


async def test_a_retry_of_all_and_a_drop_of_many_each_claim_the_name_once(monkeypatch):
    consumer, claims = await dead(*map(str, range(20))), []
    claim = consumer._store.claim

    async def watched(*args, **kwargs):
        claims.append(args)
        return await claim(*args, **kwargs)

    monkeypatch.setattr(consumer._store, "claim", watched)
    await consumer.dead_letters.retry()
    await consumer.dead_letters.drop(*map(str, range(20)))
    assert len(claims) == 2


async def test_polls_run_between_the_dead_letters_of_a_retry(running):
    """A retry and a poll wait for each other only for one dead letter at a time."""
    consumer = await dead("a", "b", "c")
    consumer.failing.clear()
    running(consumer)
    await anyio.sleep(1)
    consumer.takes = 10.0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.dead_letters.retry)
        await anyio.sleep(1)
        consumer._feed.publish("new")
        consumer.wake()
    assert consumer.processed.index("new") < 3


async def test_a_skip_message_from_the_handler_is_a_failed_retry():
    consumer = await dead("a")

    async def process(message):
        raise SkipMessage("not ours")

    consumer._open_session.options = replace(consumer._options, handler=process)
    assert await consumer.dead_letters.retry("a") == RetryResult(0, 1)
    assert (await consumer.dead_letters.get("a")).error == "SkipMessage: not ours"


async def test_a_retry_that_is_cancelled_changes_nothing():
    consumer = await dead("a")
    consumer.failing.clear()
    consumer.takes = 10.0
    with anyio.move_on_after(1):
        await consumer.dead_letters.retry("a")
    assert consumer.processed == []
    assert (await consumer.dead_letters.get("a")).attempts == 1


async def test_a_retry_whose_commit_fails_keeps_the_dead_letter_until_the_next_poll(monkeypatch):
    async def refuse(**_):
        raise StoreError("disk full")

    consumer = await dead("a")
    consumer.failing.clear()
    async with consumer:
        with monkeypatch.context() as patch:
            patch.setattr(consumer._parts.session, "commit", refuse)
            with pytest.raises(StoreError):
                await consumer.dead_letters.retry("a")
        assert (await consumer.dead_letters.get("a")).attempts == 1
        await consumer.poll_now()
        assert consumer.status().dead_letters == 0, "the next poll has committed what was done"
    assert consumer.attempts == ["a"]


# Drop


async def test_the_message_of_a_dropped_dead_letter_is_skipped_when_it_is_repeated():
    consumer = await dead("a", "b")
    assert await consumer.dead_letters.drop("a", "b") == 2
    assert await consumer.dead_letters.list() == []
    records = consumer._store._progress["fake-feed"].records.values()
    assert {record.state for record in records} == {Settlement.SKIPPED}
    consumer.failing.clear()
    consumer._feed.publish("a", "b", "c")
    await consumer.poll_now()
    assert consumer.attempts == ["c"]


async def test_drop_without_keys_is_a_type_error():
    consumer = await dead("a")
    with pytest.raises(TypeError, match="drop"):
        await consumer.dead_letters.drop()
    assert len(await consumer.dead_letters.list()) == 1


# Marked for a retry


async def test_marked_dead_letters_are_retried_once_before_new_messages_of_the_next_run(running):
    consumer = await dead("a", "b", "c")
    consumer.failing = {"b"}
    await mark(consumer, "a", "b")
    consumer._feed.publish("new")
    running(consumer)
    await consumer.until(2)
    await anyio.sleep(200)
    assert consumer.attempts == ["a", "b", "new"], "before what is new"
    assert [(one.dedupe_key, one.retry_requested, one.attempts) for one in await consumer.dead_letters.list()] == [
        ("b", False, 2),
        ("c", False, 1),
    ]


async def test_poll_now_retries_a_marked_dead_letter_and_get_does_not():
    consumer = await dead("a")
    consumer.failing.clear()
    await mark(consumer, "a")
    assert (await consumer.dead_letters.get("a")).retry_requested
    assert consumer.attempts == []
    assert (await consumer.poll_now()).messages == 0, "it is nothing that the feed brought"
    assert consumer.processed == ["a"]


async def test_the_next_poll_retries_the_remaining_marked_dead_letters_after_a_store_error(monkeypatch):
    consumer = await dead("a", "b")
    await mark(consumer, "a", "b")
    failing = [StoreError("disk full")]
    async with consumer:
        commit = consumer._parts.session.commit

        async def once(**what):
            if consumer.attempts == ["a"] and failing:
                raise failing.pop()
            await commit(**what)

        monkeypatch.setattr(consumer._parts.session, "commit", once)
        with pytest.raises(StoreError):
            await consumer.poll_now()
        await consumer.poll_now(timeout=None)
        assert consumer.attempts == ["a", "b"]
        assert [one.retry_requested for one in await consumer.dead_letters.list()] == [False, False]


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_a_stop_or_cancel_finishes_the_current_retry_and_leaves_the_other_marks(how):
    consumer = await dead("a", "b", "c")
    consumer.failing.clear()
    consumer.takes = 5.0
    await mark(consumer, "a", "b", "c")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await anyio.sleep(7)
        consumer.stop() if how == "stop" else tasks.cancel_scope.cancel()
    assert consumer.processed == ["a", "b"]
    assert [(one.dedupe_key, one.retry_requested) for one in await consumer.dead_letters.list()] == [("c", True)]


async def test_marks_that_a_stop_has_left_are_retried_by_the_next_poll_of_the_session():
    consumer = await dead("a", "b", "c")
    consumer.failing.clear()
    consumer.takes = 5.0
    await mark(consumer, "a", "b", "c")
    async with consumer, anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await anyio.sleep(7)
        consumer.stop()
        await consumer.poll_now()
    assert consumer.processed == ["a", "b", "c"]


async def test_the_retry_of_a_marked_dead_letter_is_cancelled_after_the_shutdown_timeout():
    consumer = await dead("a", shutdown_timeout=2)
    consumer.failing.clear()
    consumer.takes = 50.0
    await mark(consumer, "a")
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await anyio.sleep(7)
        consumer.stop()
    assert anyio.current_time() - began == 9
    assert consumer.processed == []
    assert [one.retry_requested for one in await consumer.dead_letters.list()] == [True]


async def test_the_next_run_drops_a_dead_letter_that_is_marked_for_it():
    consumer = await dead("a", "b")
    await mark(consumer, "a", drop_requested=True)
    assert (await consumer.poll_now()).messages == 0
    assert [letter.dedupe_key for letter in await consumer.dead_letters.list()] == ["b"]
    assert consumer.attempts == []
    assert await state_of(consumer._store, "a") == "settled"


# Marked while a consumer runs, in a store on a server


async def test_an_owner_retries_and_drops_dead_letters_that_are_marked_while_it_runs(running):
    shared = SharedMemory()
    consumer = await dead("a", "b", "c", "d", store=shared.replica())
    consumer.failing = {"b"}
    running(consumer)
    await anyio.sleep(10)
    shared.request("fake-feed", "a", retry_requested=True)
    shared.request("fake-feed", "b", retry_requested=True)
    shared.request("fake-feed", "c", drop_requested=True)
    await anyio.sleep(2)  # a wake, long before the timer
    left = [(one.dedupe_key, one.retry_requested, one.attempts) for one in await consumer.dead_letters.list()]
    assert left == [("b", False, 2), ("d", False, 1)]
    assert consumer.attempts == ["a", "b"]
    assert consumer.status().dead_letters == len(left)


async def test_an_owner_finds_marks_at_its_next_poll_if_no_wake_arrives(running):
    shared = SharedMemory()
    consumer = await dead("a", store=shared.replica(), fallback_interval=30)
    consumer.failing.clear()
    running(consumer)
    await anyio.sleep(10)
    shared.owner_of("fake-feed").subscribe(changed=lambda: None, wake=lambda push: None)
    shared.request("fake-feed", "a", retry_requested=True)
    await anyio.sleep(40)
    assert consumer.processed == ["a"]


# Restoring the message of a dead letter


def event(**fields):
    return {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "time": "2026-01-01T00:00:00Z", **fields}


def http_feed(body):
    answers = [httpx.Response(200, content=body, headers={"content-type": "application/cloudevents-batch+json"})]

    def answer(request):
        return answers.pop() if answers else httpx.Response(200, json=[])

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return HTTPFeed("https://shop.example/orders", client=client)


async def test_a_retried_dead_letter_of_an_http_feed_is_a_cloud_event_again():
    body = json.dumps([event(data={"n": [1, None]}, subject="s", custom="x")]).encode()
    consumer = Fails(http_feed(body), failing=["1"])
    seen = []
    async with consumer:
        await consumer.poll_now()
        (letter,) = await consumer.dead_letters.list()
        assert json.loads(letter.raw) == event(data={"n": [1, None]}, subject="s", custom="x")
        consumer.failing.clear()
        process = consumer.process

        async def watched(message):
            seen.append(message)
            await process(message)

        consumer._parts.dead_letters.retry.handler = watched
        assert await consumer.dead_letters.retry(letter.dedupe_key) == RetryResult(1, 0)
    (again,) = seen
    assert isinstance(again, CloudEvent)
    assert (again.id, again.dedupe_key, again.subject, again.data) == (
        "1",
        letter.dedupe_key,
        "s",
        {"n": [1, None]},
    )


async def test_a_retried_unreadable_entry_of_an_http_feed_stays_a_dead_letter_with_its_bytes():
    entry = b'{"specversion": "1.0", "id": 7, "odd": "\xc3\xa9"}'
    async with Fails(http_feed(b"[" + entry + b"]")) as consumer:
        await consumer.poll_now()
        (letter,) = await consumer.dead_letters.list()
        assert (letter.raw, letter.attempts) == (entry, 0)
        assert await consumer.dead_letters.retry(letter.dedupe_key) == RetryResult(0, 1)
        (again,) = await consumer.dead_letters.list()
        assert (again.raw, again.attempts, again.dedupe_key) == (entry, 0, letter.dedupe_key)
        assert again.error.startswith("DecodeError: ")
        assert consumer.attempts == []


async def test_a_dead_letter_of_a_feed_without_restore_is_decoded_as_json():
    class Odd(Message):
        __slots__ = ()

        @property
        def raw(self):
            return b"\xff"

    feed = FakeFeed()
    feed.publish("json", data=[1, {"a": "\ud800".encode("utf-8", "replace").decode()}])
    feed.publish(Odd("odd"))
    async with Fails(feed, failing=["json", "odd"]) as consumer:
        await consumer.poll_now()
        consumer.failing.clear()
        assert await consumer.dead_letters.retry() == RetryResult(1, 1)
        assert consumer.data == [[1, {"a": "?"}]]
        (letter,) = await consumer.dead_letters.list()
        assert letter.error.startswith("DecodeError: dead letter 'odd' cannot be restored: DecodeError: ")
        assert "DecodeError" in letter.traceback
        assert (letter.raw, letter.attempts) == (b"\xff", 1)


@pytest.mark.parametrize("restore", [lambda letter: 1 / 0, lambda letter: None], ids=["raises", "nothing"])
async def test_a_dead_letter_is_kept_if_the_feed_cannot_restore_it(restore):
    consumer = await dead("a")
    consumer._feed.restore = restore
    assert await consumer.dead_letters.retry("a") == RetryResult(0, 1)
    letter = await consumer.dead_letters.get("a")
    assert "dead letter 'a' cannot be restored: " in letter.error
    assert letter.raw == b'{"n":1}'


@pytest.mark.parametrize("other_id", ["b", 7], ids=["another id", "no str"])
async def test_a_dead_letter_keeps_its_id_if_the_feed_restores_it_with_another(other_id):
    consumer = await dead("a")
    consumer._feed.restore = lambda letter: Message(other_id)
    consumer.failing.add(other_id)
    assert await consumer.dead_letters.retry("a") == RetryResult(0, 1)
    assert (await consumer.dead_letters.get("a")).id == "a"


async def test_hooks_are_called_for_a_dead_letter_that_the_feed_cannot_restore():
    class Told(Hooks):
        failed = ()

        def message_failed(self, message, error, attempt, action):
            self.failed = (*self.failed, (message.id, type(error), attempt, action))

    feed, hooks = FakeFeed(), Told()
    feed.publish("a")
    async with Fails(feed, failing=["a"], hooks=hooks) as consumer:
        await consumer.poll_now()
        feed.restore = lambda letter: 1 / 0
        await consumer.dead_letters.retry("a")
    assert hooks.failed[1:] == (("a", DecodeError, 1, FailureAction.DEAD_LETTER),)


async def test_a_dead_letter_is_identified_by_its_dedupe_key():
    feed = FakeFeed()
    feed.publish("1", "2", data="order-7")
    async with Fails(feed, failing=["1"], dedupe_key=lambda message: message.data) as consumer:
        await consumer.poll_now()
        assert consumer.attempts == ["1"], "the other one is the same order"
        assert (await consumer.dead_letters.get("order-7")).id == "1"
        consumer.failing.clear()
        await consumer.dead_letters.retry("order-7")
        assert consumer.processed == ["1"]


# Export


def letter_of(**fields):
    return DeadLetter(**{"dedupe_key": "k", "id": "i", "raw": b"{}", "error": "e", **fields})


@pytest.mark.parametrize(
    ("raw", "field", "value"),
    [
        (b'{"a": 1}', "raw", '{"a": 1}'),
        ("é\n\x00".encode(), "raw", "é\n\x00"),
        (b"\xff\xfe", "raw_base64", "//4="),
        (b"\xed\xa0\x80", "raw_base64", "7aCA"),
        (b"", "raw", ""),
    ],
)
def test_an_exported_dead_letter_contains_its_bytes_as_text_or_base64(raw, field, value):
    line = as_json(letter_of(raw=raw))
    assert b"\n" not in line
    fields = json.loads(line)
    assert fields[field] == value
    assert ("raw" in fields) != ("raw_base64" in fields)


def test_an_exported_dead_letter_is_utf8_and_escapes_lone_surrogates():
    fields = json.loads(
        as_json(letter_of(dedupe_key="\ud800", id="a\udfffb", error="\n", traceback="é", attempts=3)).decode()
    )
    assert (fields["dedupe_key"], fields["id"], fields["error"], fields["traceback"]) == (
        r"\ud800",
        r"a\udfffb",
        "\n",
        "é",
    )
    assert (fields["attempts"], fields["retry_requested"]) == (3, False)


@given(st.binary(), st.text(st.characters(codec=None)))
def test_any_exported_dead_letter_is_one_line_of_json(raw, text):
    line = as_json(letter_of(raw=raw, dedupe_key=text, error=text))
    assert b"\n" not in line
    assert json.loads(line.decode())["error"] == text.encode("utf-8", "backslashreplace").decode()


async def test_an_export_that_is_not_read_to_its_end_does_not_block_later_calls():
    consumer = await dead("a", "b")
    async for line in consumer.dead_letters.export():
        assert json.loads(line)["dedupe_key"] == "a"
        break
    async for letter in consumer.dead_letters:
        assert letter.dedupe_key == "a"
        break
    assert await use(consumer.dead_letters, "export") == [
        as_json(one) for one in await consumer.dead_letters.list()
    ]


# No message is lost


async def test_g9_a_crash_between_dead_letter_and_commit_loses_nothing(monkeypatch):
    feed, store = FakeFeed(), MemoryStore()
    feed.publish("a", "bad", "c")

    async def refuse(**_):
        raise StoreError("crashed")

    first = Fails(feed, failing=["bad"], store=store, commit_interval=1_000)
    with suppress(StoreError):
        async with first:
            monkeypatch.setattr(first._parts.session, "commit", refuse)
            await first.poll_now()
    assert first.processed == ["a", "c"]
    second = Fails(feed, failing=["bad"], store=store)
    await second.poll_now()
    assert second.attempts == ["a", "bad", "c"], "all of it is done again"
    assert [letter.dedupe_key for letter in await second.dead_letters.list()] == ["bad"]


class Fates(Hooks):
    """Records the decision about each message."""

    def __init__(self):
        self.failed = []

    def message_failed(self, message, error, attempt, action):
        if action is not FailureAction.RETRY:
            self.failed.append((message.id, action))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(1, 4)),
        st.tuples(st.just("poll")),
        st.tuples(st.just("crash"), st.integers(1, 3)),
        st.tuples(st.just("heal"), st.integers(1, 12)),
        st.tuples(st.just("break"), st.integers(1, 12)),
        st.tuples(st.just("retry")),
        st.tuples(st.just("mark")),
        st.tuples(st.just("drop")),
        st.tuples(st.just("repeat"), st.integers(1, 12)),
        st.tuples(st.just("replay")),
    ),
    min_size=3,
    max_size=20,
)


class World:
    """Recreate a consumer on one store, and track the outcome of each message."""

    def __init__(self):
        self.feed, self.store = FakeFeed(page_size=3), MemoryStore()
        self.broken, self.published, self.dropped = set(), set(), set()
        self.done = {}
        self.crash_at = None

    def consumer(self):
        consumer = Fails(self.feed, store=self.store, on_failure=self.policy, commit_interval=0)
        consumer.failing = self.broken
        return consumer

    def policy(self, message, error):
        return ["dead_letter", "skip", "stop"][int(message.id) % 3]

    async def do(self, what, number=0):
        consumer = self.consumer()
        with suppress(StoreError, ProcessError):
            async with consumer:
                await getattr(self, f"_{what}")(consumer, number)
        for name in consumer.processed:
            self.done[name] = self.done.get(name, 0) + 1

    async def _publish(self, consumer, number):
        self.published.update(self.feed.publish(number))

    async def _repeat(self, consumer, number):
        if str(number) in self.published:
            self.feed.publish(str(number))

    async def _poll(self, consumer, number):
        await consumer.poll_now(timeout=None)

    async def _crash(self, consumer, number):
        commit, left = consumer._parts.session.commit, [number]

        async def fails(**what):
            left[0] -= 1
            if left[0] <= 0:
                raise StoreError("crashed")
            await commit(**what)

        consumer._parts.session.commit = fails
        await consumer.poll_now(timeout=None)

    async def _heal(self, consumer, number):
        self.broken.discard(str(number))

    async def _break(self, consumer, number):
        self.broken.add(str(number))

    async def _retry(self, consumer, number):
        await consumer.dead_letters.retry()

    async def _mark(self, consumer, number):
        session = consumer._parts.session
        letters = [msgspec.structs.replace(one, retry_requested=True) for one in await session.dead_letters()]
        await session.commit(cursor=None, records=[], dead_letters=letters)

    async def _drop(self, consumer, number):
        for letter in (await consumer.dead_letters.list())[:1]:
            await consumer.dead_letters.drop(letter.dedupe_key)
            self.dropped.add(letter.dedupe_key)

    async def _replay(self, consumer, number):
        await consumer.replay("inception")


@pytest.mark.parametrize("keys", [("1",), ()])
async def test_a_retried_dead_letter_whose_commit_failed_is_not_tried_again(keys):
    consumer = await dead("1", store=RefusingStore())
    consumer.failing.clear()
    consumer._store.refuses = {"commit"}
    with pytest.raises(StoreUnavailable):
        await consumer.dead_letters.retry(*keys)
    consumer._store.refuses.clear()
    if keys:
        with pytest.raises(LookupError):
            await consumer.dead_letters.retry(*keys)
    else:
        assert await consumer.dead_letters.retry() == RetryResult(0, 0)
    assert consumer.attempts == ["1"]


@settings(max_examples=form(30, 100))
@given(STEPS)
def test_every_message_is_processed_dead_lettered_or_skipped_after_any_sequence_of_steps(steps):
    async def main():
        world = World()
        for step in (*steps, ("poll",)):
            await world.do(*step)
            await check(world)
        world.broken.clear()
        await world.do("poll")
        await check(world, settled=True)

    backend, options = virtual_time("asyncio")
    anyio.run(main, backend=backend, backend_options=options)


async def check(world, *, settled=False):
    session = await world.store.claim("fake-feed", feed="fake-feed")
    letters = {letter.dedupe_key for letter in await session.dead_letters()}
    unseen = await session.unseen(sorted(world.published))
    states = {key: record.state for key, record in world.store._progress["fake-feed"].records.items()}
    passed = 0 if session.cursor is None else int(session.cursor.split("-")[1].split(".")[0])
    await session.release()
    dead = {key for key, state in states.items() if state is Settlement.DEAD_LETTERED}
    assert letters == dead, "a dead letter for each record that says so, and no other"
    assert not letters & unseen
    processed = {key for key, state in states.items() if state is Settlement.PROCESSED}
    assert processed <= set(world.done), "what is recorded as processed was"
    assert {str(n + 1) for n in range(passed)} & world.published <= set(states), "none is passed over"
    assert not settled or not unseen
