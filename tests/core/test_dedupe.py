"""Identity of messages by the user's functions: dedupe keys, and fingerprints of content."""

import contextlib
import hashlib
import sqlite3

import anyio
import pytest
from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

from push_to_poll_client import (
    Consumer,
    ContentChanged,
    DecodeError,
    MemoryStore,
    Message,
    Page,
    ProcessError,
    SQLiteStore,
)
from push_to_poll_client.testing import FakeFeed
from tests.support.consumers import Log
from tests.support.in_flight import Ledger, Many, feed_of, lane

pytestmark = pytest.mark.anyio


def content(message):
    return str(message.data).encode()


def entry(name, data=None):
    return Message(name, data)


def feed_with(*pages):
    """Create a feed; each page is a list of (id, data)."""
    feed = FakeFeed(read_ahead=True)
    last = len(pages)
    feed.answer(
        *(
            Page([entry(*one) for one in page], cursor=f"c{n}", next_page=None if n == last else f"c{n}")
            for n, page in enumerate(pages, 1)
        )
    )
    return feed


class Reads(Log):
    """Record ids and data."""

    async def process(self, message):
        await anyio.sleep(self.takes)
        self.processed.append((message.id, message.data))


# Dedupe keys


async def test_a_message_with_a_processed_dedupe_key_is_a_duplicate():
    feed = feed_with([("1", "order 7"), ("2", "order 8")], [("3", "order 7"), ("4", "order 9"), ("5", "order 9")])
    store = Ledger()
    consumer = Reads(feed, store=store, dedupe_key=lambda message: message.data)
    result = await consumer.poll_now()
    assert [name for name, _ in consumer.processed] == ["1", "2", "4"]
    assert (result.messages, result.duplicates) == (3, 2)
    assert store.recorded == ["order 7", "order 8", "order 9"]


async def test_dedupe_keys_are_remembered_after_a_restart():
    store = Ledger()
    first = Reads(feed_with([("1", "order 7")]), store=store, dedupe_key=lambda message: message.data)
    await first.poll_now()
    again = feed_with([("2", "order 7"), ("3", "order 8")])
    second = Reads(again, store=store.as_of_now(), dedupe_key=lambda message: message.data)
    await second.poll_now()
    assert second.processed == [("3", "order 8")]


WRONG = {
    "raises": (lambda message: message.data["order"], "dedupe_key= failed for message '2': TypeError: "),
    "no str": (
        lambda message: 7,
        "dedupe_key= failed for message '2': ValueError: its result must be a str, got int",
    ),
    "a subclass of str": (
        lambda message: type("Text", (str,), {})("7"),
        "dedupe_key= failed for message '2': ValueError: its result must be a str, got Text; convert",
    ),
    "nothing": (
        lambda message: None,
        "dedupe_key= failed for message '2': ValueError: its result must be a str, got NoneType",
    ),
    "empty": (
        lambda message: "",
        "dedupe_key= failed for message '2': ValueError: its result must not be empty: two messages",
    ),
    "too long": (
        lambda message: "x" * 4_097,
        "dedupe_key= failed for message '2': ValueError: its result must have at most 4096 characters",
    ),
}


async def test_a_dedupe_key_may_have_4096_characters():
    feed = feed_with([("1", "a"), ("2", "b"), ("3", "b")])
    consumer = Reads(feed, dedupe_key=lambda message: message.data * 4_096)
    assert (await consumer.poll_now()).duplicates == 1


@pytest.mark.parametrize("key", WRONG)
async def test_a_failing_dedupe_key_stops_the_consumer_after_all_earlier_messages(key):
    function, why = WRONG[key]
    feed, store = feed_with([("1", "a"), ("2", "b"), ("3", "c")]), Ledger()
    consumer = Reads(feed, store=store, dedupe_key=lambda one: function(one) if one.id == "2" else one.id)
    with pytest.raises(ProcessError, match="message '2' failed and stops the consumer: DecodeError: ") as caught:
        await consumer.poll_now()
    assert why in str(caught.value)
    assert caught.value.id == "2"
    assert store.recorded == ["1"], "what was before it is recorded"
    assert consumer.processed == [("1", "a")], "and it is not tried again and again"


@pytest.mark.parametrize(("policy", "state"), [("skip", "skipped"), ("dead_letter", "dead")])
async def test_a_message_whose_dedupe_key_fails_follows_the_failure_policy_once(policy, state):
    """G9: it blocks nothing, and gets a key that no other message can have."""
    feed, store = feed_with([("1", "2"), ("2", None), ("3", "c")]), Ledger()

    def key(message):
        return message.data + ""

    consumer = Reads(feed, store=store, dedupe_key=key, on_failure=policy)
    async with consumer:
        result = await consumer.poll_now()
        assert (result.messages, result.caught_up) == (3, True)
        feed.answer(Page([entry("1", "2"), entry("2"), entry("3", "c")], cursor="c2"))
        assert (await consumer.poll_now()).duplicates == 3
        letters = [(letter.id, letter.error) for letter in await consumer.dead_letters.list()]
    assert [name for name, _ in consumer.processed] == ["1", "3"]
    assert store.states == {"2": "processed", "dedupe_key= failed: 2": state, "c": "processed"}
    if policy == "dead_letter":
        assert letters[0][0] == "2"
        assert "dedupe_key= failed for message '2': TypeError: " in letters[0][1]


async def test_an_unreadable_message_keeps_its_own_key_and_dedupe_key_is_not_called_for_it():
    feed = FakeFeed()
    feed.publish("1", data="a")
    feed.publish("torn", error=DecodeError("no JSON"))
    feed.publish("3", data="c")
    consumer = Reads(feed, dedupe_key=lambda message: message.data, on_failure="dead_letter", fingerprint=content)
    async with consumer:
        assert (await consumer.poll_now()).messages == 3
        feed.forget()
        assert (await consumer.poll_now()).duplicates == 3
        (letter,) = await consumer.dead_letters.list()
    assert (letter.dedupe_key, letter.error) == ("torn", "DecodeError: no JSON")


async def test_an_undecodable_message_error_raised_by_dedupe_key_is_reported_unchanged():
    def key(message):
        raise DecodeError("the bytes end in the middle")

    with pytest.raises(ProcessError, match="stops the consumer: DecodeError: the bytes end in the middle"):
        await Log(feed_of("a1"), dedupe_key=key).poll_now()


async def test_a_dead_letter_whose_dedupe_key_failed_can_be_retried():
    def key(message):
        return {"1": "one"}[message.id]

    consumer = Reads(feed_with([("1", "a"), ("2", "b")]), dedupe_key=key, on_failure="dead_letter")
    async with consumer:
        await consumer.poll_now()
        assert (await consumer.dead_letters.retry()).processed == 1
        assert await consumer.dead_letters.list() == []
    assert consumer.processed == [("1", "a"), ("2", "b")]


@pytest.mark.parametrize("name", ["dedupe_key", "fingerprint", "ordering_key"])
def test_a_key_option_that_is_not_a_function_is_a_type_error(name):
    with pytest.raises(TypeError, match=f"{name} must be a function of a message or None, got 'id'"):
        Log(FakeFeed(), **{name: "id"})


async def test_a_replay_computes_the_dedupe_keys_again():
    feed, store = feed_of("a1 a2 b1"), Ledger()
    asked = []

    def key(message):
        asked.append(message.id)
        return {"a1": "1", "b1": "2"}[message.id]

    consumer = Log(feed, store=store, dedupe_key=key, on_failure="skip", fingerprint=lambda m: m.id.encode())
    async with consumer:
        await consumer.poll_now()
        before = list(asked)
        result = await consumer.replay("inception")
        assert (asked, result.messages) == (before * 2, 3)
        assert consumer.processed == ["a1", "b1"] * 2


async def test_fingerprints_still_detect_changed_content_after_a_replay():
    feed = FakeFeed()
    feed.publish("1", data="a")
    feed.publish("torn", error=DecodeError("no JSON"))
    feed.publish("2", data=None)
    consumer = Reads(feed, fingerprint=lambda message: (message.data + "").encode(), on_failure="skip")
    async with consumer:
        await consumer.poll_now()
        assert (await consumer.replay("inception")).messages == 3
        feed.answer(Page([entry("1", "a"), entry("1", "b")]))
        result = await consumer.poll_now()
    assert (result.messages, result.duplicates) == (1, 1)
    assert [name for name, _ in consumer.processed] == ["1", "1"]


# Fingerprints


async def test_a_message_with_the_same_id_and_content_is_a_duplicate():
    feed = feed_with([("1", "a"), ("1", "a"), ("2", "b")], [("1", "a"), ("2", "b"), ("3", "c")])
    consumer = Reads(feed, fingerprint=content)
    result = await consumer.poll_now()
    assert (result.messages, result.duplicates) == (3, 3)
    assert consumer.processed == [("1", "a"), ("2", "b"), ("3", "c")]


async def test_content_is_not_compared_without_a_fingerprint():
    consumer = Reads(feed_with([("1", "a"), ("1", "b")], [("1", "c")]))
    result = await consumer.poll_now()
    assert (result.messages, result.duplicates) == (1, 2)


CHANGED = {
    "within a page": [[("1", "a"), ("1", "b")]],
    "over pages": [[("1", "a"), ("2", "x")], [("1", "b")]],
    "after a duplicate": [[("1", "a"), ("1", "a")], [("1", "a"), ("1", "b")]],
}


@pytest.mark.parametrize("pages", CHANGED.values(), ids=CHANGED)
async def test_other_content_under_a_known_id_fails_and_does_not_reach_the_handler(pages):
    consumer = Reads(feed_with(*pages), fingerprint=content)
    with pytest.raises(ProcessError, match="message '1' came again with other content") as caught:
        await consumer.poll_now()
    assert isinstance(caught.value.__cause__, ContentChanged)
    assert "dedupe_key= must return different keys" in str(caught.value)
    assert ("1", "b") not in consumer.processed
    assert consumer.processed[0] == ("1", "a")


async def test_other_content_under_a_known_id_is_detected_after_a_restart():
    store = Ledger()
    await Reads(feed_with([("1", "a")]), store=store, fingerprint=content).poll_now()
    second = Reads(feed_with([("1", "b")]), store=store.as_of_now(), fingerprint=content)
    with pytest.raises(ProcessError, match="other content"):
        await second.poll_now()
    assert second.processed == []


async def test_a_message_recorded_without_a_fingerprint_is_a_duplicate_with_any_content():
    store = Ledger()
    await Reads(feed_with([("1", "a")]), store=store).poll_now()
    second = Reads(feed_with([("1", "b")]), store=store.as_of_now(), fingerprint=content)
    assert (await second.poll_now()).duplicates == 1


async def test_other_content_under_a_known_dedupe_key_fails():
    feed = feed_with([("1", "order 7"), ("2", "order 7")])
    consumer = Reads(feed, dedupe_key=lambda message: message.data, fingerprint=lambda m: m.id.encode())
    with pytest.raises(ProcessError, match="under the dedupe key 'order 7'"):
        await consumer.poll_now()


@pytest.mark.parametrize(("policy", "state"), [("skip", "skipped"), ("dead_letter", "dead")])
async def test_changed_content_follows_the_policy_without_a_retry(policy, state):
    feed, store = feed_with([("1", "a"), ("2", "x"), ("1", "b"), ("3", "y")]), Ledger()
    consumer = Reads(feed, store=store, fingerprint=content, on_failure=policy)
    async with consumer:
        result = await consumer.poll_now()
        letters = [(letter.id, letter.raw) for letter in await consumer.dead_letters.list()]
    assert (result.messages, result.caught_up) == (4, True)
    assert consumer.processed == [("1", "a"), ("2", "x"), ("3", "y")]
    assert store.states["1"] == state
    assert letters == ([("1", b'"b"')] if policy == "dead_letter" else [])
    assert consumer.status().counters.retries == 0


@pytest.mark.parametrize("pages", [1, 2, 3], ids=["within a page", "over pages", "over a restart"])
async def test_changed_content_that_was_settled_is_a_duplicate_when_it_comes_again(pages):
    """Content is compared with the last settled content of an id."""
    entries = [("1", "a"), ("1", "b"), ("1", "b"), ("1", "c")]
    store = Ledger()
    settings = {"fingerprint": content, "on_failure": "dead_letter"}
    if pages == 3:
        await Reads(feed_with(entries[:2]), store=store, **settings).poll_now()
        store, rest = store.as_of_now(), [entries[2:]]
    else:
        rest = [entries] if pages == 1 else [entries[:2], entries[2:]]
    consumer = Reads(feed_with(*rest), store=store, **settings)
    async with consumer:
        result = await consumer.poll_now()
        (letter,) = await consumer.dead_letters.list()
    assert result.duplicates == 1
    assert letter.raw == b'"c"'


async def test_a_dead_letter_that_is_processed_at_last_keeps_its_fingerprint():
    feed = feed_with([("1", "a")])
    consumer = Reads(feed, fingerprint=content, on_failure="dead_letter", retry=None)
    consumer.process_error = True
    async with consumer:
        await consumer.poll_now()
        feed.answer(Page([entry("1", "b")]))
        await consumer.poll_now()
        assert (await consumer.dead_letters.retry()).processed == 1
        assert consumer.processed == [("1", "a"), ("1", "b")]
        feed.answer(Page([entry("1", "b"), entry("1", "c")]))
        result = await consumer.poll_now()
        assert (result.messages, result.duplicates) == (1, 1)
        (letter,) = await consumer.dead_letters.list()
    assert letter.raw == b'"c"'


async def test_a_dead_letter_that_is_dropped_keeps_its_fingerprint():
    feed = feed_with([("1", "a"), ("1", "b")])
    consumer = Reads(feed, fingerprint=content, on_failure="dead_letter")
    async with consumer:
        await consumer.poll_now()
        await consumer.dead_letters.drop("1")
        feed.answer(Page([entry("1", "b"), entry("1", "c")]))
        result = await consumer.poll_now()
    assert (result.messages, result.duplicates) == (1, 1)


FAILING = {
    "raises": (lambda message: message.data + b"", "fingerprint= failed for message '2': TypeError: "),
    "no bytes": (lambda message: "text", "fingerprint= failed for message '2': TypeError: "),
}


@pytest.mark.parametrize("kind", FAILING)
async def test_a_failing_fingerprint_fails_only_its_own_message(kind):
    function, why = FAILING[kind]
    feed, store = feed_with([("1", "a"), ("2", "b"), ("3", "c")]), Ledger()
    consumer = Reads(
        feed,
        store=store,
        fingerprint=lambda one: function(one) if one.id == "2" else content(one),
        on_failure="dead_letter",
    )
    async with consumer:
        await consumer.poll_now()
        (letter,) = await consumer.dead_letters.list()
    assert why in letter.error
    assert store.states == {"1": "processed", "2": "dead", "3": "processed"}


@pytest.mark.parametrize("pages", [1, 2])
async def test_a_repeated_message_is_a_duplicate_if_it_was_recorded_without_a_fingerprint(pages):
    entries = [("1", "a"), ("1", "a")]
    consumer = Reads(
        feed_with(*([entries] if pages == 1 else [entries[:1], entries[1:]])),
        fingerprint=lambda message: 1 / 0,
        on_failure="skip",
    )
    result = await consumer.poll_now()
    assert (result.messages, result.duplicates) == (1, 1)


async def test_a_repeated_message_fails_if_its_fingerprint_can_no_longer_be_computed():
    """Nothing shows that the content is the same."""
    seen = []

    def fingerprint(message):
        seen.append(message.id)
        return content(message) if len(seen) == 1 else 1 / 0

    consumer = Reads(feed_with([("1", "a")], [("1", "a")]), fingerprint=fingerprint, on_failure="skip")
    result = await consumer.poll_now()
    assert (result.messages, result.duplicates) == (2, 0)
    assert consumer.status().counters.skipped == 1


async def test_a_message_keeps_its_fingerprint_over_failed_attempts():
    class Fails(Reads):
        failures = 2

        async def process(self, message):
            if self.failures:
                self.failures -= 1
                raise ValueError
            await super().process(message)

    feed, store = FakeFeed(), Ledger()
    feed.publish("1", data="a")
    retry = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(60))
    consumer = Fails(feed, store=store, fingerprint=content, retry=retry)
    async with consumer:
        await consumer.poll_now()
        await consumer.poll_now(timeout=None)
        assert (await consumer.poll_now(timeout=None)).caught_up
        feed.answer(Page([entry("1", "a"), entry("1", "b")]))
        with pytest.raises(ProcessError, match="other content"):
            await consumer.poll_now()


async def test_other_content_waits_until_the_first_message_of_the_same_id_is_settled():
    """Otherwise the record of the first message would replace the second, and delete its dead letter."""
    feed, store = FakeFeed(), Ledger()
    feed.answer(Page([entry("1", "a"), entry("2", "x"), entry("1", "b")]))
    many = Many(
        feed,
        store=store,
        times={"1": 5.0},
        ordering_key=lambda m: m.data,
        fingerprint=content,
        on_failure="dead_letter",
    )
    async with many:
        await many.poll_now()
        (letter,) = await many.dead_letters.list()
    assert letter.raw == b'"b"'
    assert store.states == {"1": "dead", "2": "processed"}
    assert [key for key in store.recorded if key == "1"] == ["1", "1"]


@pytest.mark.parametrize("data", ["a", "b"])
async def test_content_is_compared_with_messages_that_wait_for_a_full_batch(data):
    class Batches(Consumer):
        calls = ()

        async def process_batch(self, messages):
            self.calls = (*self.calls, [message.id for message in messages])

    names = [(str(n), "a") for n in range(10)]
    feed = feed_with(names, [("3", data), ("new", "a")])
    feed.latency = 1.0
    consumer = Batches(
        feed, store=MemoryStore(), batch_wait=100.0, batch_size=50, fingerprint=content, on_failure="skip"
    )
    result = await consumer.poll_now()
    assert consumer.status().counters.skipped == (data == "b")
    assert result.duplicates == (data == "a")
    assert sorted(name for call in consumer.calls for name in call) == sorted(
        [name for name, _ in names] + ["new"]
    )


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])  # in real time, for the threads of the store
async def test_a_transactional_store_records_fingerprints_and_accepts_messages_without_one(tmp_path):
    class Writes(Consumer):
        async def process(self, message):
            store.connection.execute("INSERT INTO orders VALUES (?)", (message.id,))

    path = tmp_path / "orders.db"
    with contextlib.closing(sqlite3.connect(path)) as application:
        application.execute("CREATE TABLE orders (id)")
    store, feed = SQLiteStore(path, transactional=True), feed_with([("1", "a"), ("2", None)])
    consumer = Writes(feed, store=store, fingerprint=lambda m: (m.data + "").encode(), on_failure="dead_letter")
    async with consumer:
        assert (await consumer.poll_now()).messages == 2
        assert (await consumer.dead_letters.retry("2")).processed == 1
        feed.answer(Page([entry("1", "a"), entry("1", "b")]))
        result = await consumer.poll_now()
        assert (result.messages, result.duplicates) == (1, 1)
    with contextlib.closing(sqlite3.connect(path)) as application:
        assert application.execute("SELECT id FROM orders ORDER BY id").fetchall() == [("1",), ("2",)]


def test_a_fingerprint_is_stored_as_63_bits_of_a_digest():
    from push_to_poll_client._processor import _hash_content

    assert _hash_content(b"a") == int.from_bytes(hashlib.blake2b(b"a", digest_size=8).digest()) >> 1
    assert max(_hash_content(bytes([n])) for n in range(256)) < 2**63


async def test_fingerprints_and_dedupe_keys_work_with_concurrent_messages():
    feed, store = feed_of("a1 b1 a2 b2"), Ledger()
    settings = {
        "dedupe_key": lambda m: f"key {m.id}",
        "fingerprint": lambda m: m.id.encode(),
        "ordering_key": lane,
    }
    async with Many(feed, store=store, **settings) as many:
        await many.poll_now()
        feed.forget()
        assert (await many.poll_now()).duplicates == 4
    assert sorted(store.recorded) == ["key a1", "key a2", "key b1", "key b2"]
