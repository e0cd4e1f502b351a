"""Reading the tables of a store in PostgreSQL, and requests to the owner of a name."""

import os
import threading

import anyio
import pytest
from anyio import to_thread

from push_to_poll_client import DeadLetter, Record, Settlement, StoreError, StoreUnavailable
from push_to_poll_client._types import SavedCursor
from push_to_poll_client.stores.reader import NameOwner, all_dead_letters
from push_to_poll_client.testing import FakeFeed
from tests.support.consumers import Log
from tests.support.forms import GUARD
from tests.support.postgres_server import shared_server
from tests.support.postgres_stores import LEASE, PostgresStores

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # a server takes real time


@pytest.fixture
def stores(pytestconfig):
    stores = PostgresStores(shared_server(pytestconfig))
    yield stores
    stores.drop()


@pytest.fixture
async def store(stores):
    store = stores.store()
    yield store
    await store.aclose()


@pytest.fixture
def reader(store):
    return store.reader()


def letters_of(keys, **fields):
    return [DeadLetter(dedupe_key=key, id=f"id of {key}", raw=b"raw", error="e", **fields) for key in keys]


async def bury(store, name, letters):
    session = await store.claim(name, feed=f"feed of {name}")
    await session.commit(cursor="c1", records=[], dead_letters=letters)
    await session.release()


async def test_a_snapshot_has_the_progress_and_the_owner_of_each_name(store, stores, reader):
    """In the order of code points, with any string."""
    for name in ("\ud800", "b", "a", "\uffff", "\0"):
        session = await store.claim(name, feed=f"feed of {name}")
        await session.commit(cursor=name, records=[Record(str(number)) for number in range(3)])
        if name == "b":
            owned = session
        else:
            await session.release()
    ((now,),) = stores.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
    snapshot = await to_thread.run_sync(reader.snapshot)
    assert (snapshot.where, snapshot.size > 0) == (reader.where, True)
    assert now <= snapshot.time <= now + GUARD
    assert [(one.name, one.feed, one.cursor, one.records, one.fencing_token) for one in snapshot.progress] == [
        (name, f"feed of {name}", name, 3, 1) for name in ("\0", "a", "b", "\ud800", "\uffff")
    ]
    assert all(0 <= now - one.last_progress < GUARD for one in snapshot.progress)
    *_, owner, _, last = snapshot.owners
    assert last == NameOwner("\uffff", None, seconds_left=None, wanted=False, fencing_token=1)
    assert 0 < owner.seconds_left <= LEASE
    assert owner.owner.endswith(f":{os.getpid()}")
    await owned.release()


async def test_forgotten_records_do_not_count(store, reader):
    session = await store.claim("a", feed="f")
    await session.commit(cursor="1", records=[Record("1"), Record("2")])
    await session.reset(None, forget=True)
    (progress,) = (await to_thread.run_sync(reader.snapshot)).progress
    assert (progress.records, progress.last_progress, progress.cursor) == (0, None, None)
    await session.release()


async def test_the_history_ends_with_the_current_cursor(store, reader):
    session = await store.claim("a", feed="f")
    for number in range(3):
        await session.commit(cursor=f"\ud800{number}", records=[], read_at=1e9 + 10 * number)
    assert await to_thread.run_sync(reader.history, "a") == tuple(session.history)
    assert session.history[-1] == SavedCursor("\ud8002", 1e9 + 20)
    await session.release()


async def test_dead_letters_are_read_page_by_page_by_key_and_by_message(store, reader):
    letters = letters_of(
        sorted({*map(str, range(250)), "\ud800", "\uffff", "", "\0", "x" * 5000, "x" * 5000 + "y"})
    )
    await bury(store, "a", letters)
    await bury(store, "b", letters_of("b"))
    assert await to_thread.run_sync(lambda: list(all_dead_letters(reader, "a"))) == letters
    for letter in letters[:3]:
        assert await to_thread.run_sync(reader.dead_letter, "a", letter.dedupe_key) == letter
        assert await to_thread.run_sync(reader.find_dead_letters, "a", letter.dedupe_key) == (
            [letter.dedupe_key],
            False,
        )
        assert await to_thread.run_sync(reader.find_dead_letters, "a", letter.id) == ([letter.dedupe_key], False)
    assert await to_thread.run_sync(reader.dead_letter, "a", "b") is None
    assert await to_thread.run_sync(reader.find_dead_letters, "a", "nothing") == ([], False)


async def test_at_most_five_keys_of_one_message_are_found(store, reader):
    await bury(store, "a", [DeadLetter(dedupe_key=str(key), id="m", raw=b"", error="") for key in range(6)])
    assert await to_thread.run_sync(reader.find_dead_letters, "a", "m") == (list("01234"), True)


@pytest.mark.parametrize("read", ["dead_letters", "history"])
async def test_an_unknown_name_is_a_store_error(store, reader, read):
    await bury(store, "a", [])
    with pytest.raises(StoreError, match=r"has no consumer 'x'; push-to-poll status shows the names"):
        await to_thread.run_sync(getattr(reader, read), "x")


async def test_a_reader_creates_nothing(stores, store, reader):
    with pytest.raises(StoreError, match="has no tables; run push-to-poll migrate"):
        await to_thread.run_sync(reader.snapshot)
    assert stores.execute("SELECT 1 FROM pg_namespace WHERE nspname = %(s)s", s=stores.schema) == []


@pytest.mark.parametrize(("attempts", "failing"), [(None, 0), ("{}", 0), ('{"1":[1,0.0],"\\ud800":[2,0.0]}', 2)])
async def test_messages_waiting_for_a_retry_are_counted(store, reader, attempts, failing):
    session = await store.claim("a", feed="f")
    await session.commit(cursor=None, records=[], state={"attempts": attempts, "other": "no JSON"})
    assert (await to_thread.run_sync(reader.snapshot)).progress[0].failing == failing
    await session.release()


@pytest.mark.parametrize("value", ["garbage", "[]", '{"a":1', "\ud800", "[" * 5000, '{"a":' + "9" * 5000 + "}"])
async def test_a_malformed_state_is_a_store_error(store, reader, value):
    session = await store.claim("a", feed="f")
    await session.commit(cursor=None, records=[], state={"attempts": value})
    with pytest.raises(StoreError, match="the tables contain a value that this library does not write"):
        await to_thread.run_sync(reader.snapshot)
    await session.release()


async def test_a_reader_waits_for_no_writer_and_no_writer_for_it(stores, store, reader):
    """A transaction that has changed all tables, and a claim beside it."""
    await bury(store, "a", letters_of("k"))

    def read_beside_a_writer():
        snapshot = reader.snapshot()
        return snapshot.progress[0].cursor, reader.dead_letter("a", "k").error

    with stores.changing("UPDATE {s}.consumer SET cursor = 'later'", "UPDATE {s}.dead_letter SET error = 'later'"):
        with anyio.fail_after(GUARD):
            assert await to_thread.run_sync(read_beside_a_writer) == ("c1", "e")


async def test_a_server_that_is_away_makes_the_store_unavailable_for_its_reader(stores, store, reader):
    await bury(store, "a", [])
    async with stores.unreachable(store):
        with pytest.raises(StoreUnavailable):
            await to_thread.run_sync(reader.snapshot)
    await to_thread.run_sync(reader.snapshot)


# Requests


class Fails(Log):
    """Fails until it is mended, and signals each attempt."""

    is_mended = False

    def process(self, message):
        self.attempted.set()
        if not self.is_mended:
            raise ValueError("no such account")


async def test_a_running_owner_retries_and_drops_what_another_process_asks_for(stores, store):
    feed = FakeFeed()
    feed.publish("a", "b", "c")
    consumer = Fails(feed, store=store, name="orders", retry=None, on_failure="dead_letter")
    consumer.attempted = threading.Event()
    other = stores.store()
    await consumer.poll_now()
    consumer.is_mended = True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await consumer.poll_now(timeout=None)
        assert len(await consumer.dead_letters.list()) == 3
        consumer.attempted.clear()
        assert await other.request("orders", ["b", "unknown"], "drop") == 1
        assert await other.request("orders", ["a"], "retry") == 1
        # A wake, long before the timer of the next poll.
        assert await to_thread.run_sync(consumer.attempted.wait, GUARD)
        assert [letter.dedupe_key for letter in await consumer.dead_letters.list()] == ["c"]
        consumer.stop()
    await other.aclose()
    rows = stores.execute("SELECT state, count(*) FROM {s}.record GROUP BY state")
    assert sorted(rows, key=str) == [(Settlement.DEAD_LETTERED, 1), (Settlement.SKIPPED, 1), (None, 1)]


async def test_a_request_without_keys_is_for_all_dead_letters_of_the_name(store):
    for name in "ab":
        await bury(store, name, letters_of("123"))
    assert await store.request("a", None, "retry") == 3
    assert await store.request("a", [], "drop") == 0
    for name, marked in (("a", 3), ("b", 0)):
        session = await store.claim(name, feed=f"feed of {name}")
        assert len(await session.dead_letters(retry_requested=True)) == marked
        assert await session.dead_letters() == letters_of("123", retry_requested=bool(marked))
        await session.release()


async def test_a_request_that_cannot_be_understood_changes_nothing(store):
    await bury(store, "a", letters_of("1"))
    with pytest.raises(ValueError, match="what must be 'retry' or 'drop', got 'forget'"):
        await store.request("a", None, "forget")
    with pytest.raises(StoreError, match="has no consumer 'x'"):
        await store.request("x", None, "retry")
    with pytest.raises(StoreError, match="has no consumer 'x'"):
        await store.request_hand_over("x")
    session = await store.claim("a", feed="feed of a")
    assert list(await session.dead_letters(retry_requested=True)) == []
    await session.release()


async def test_a_hand_over_is_asked_of_an_owner_only(stores, store):
    await bury(store, "a", [])
    assert await store.request_hand_over("a") is None
    owner = stores.store(instance="web-2 \ud800")
    session = await owner.claim("a", feed="feed of a")
    wanted = threading.Event()
    session.subscribe(changed=wanted.set, wake=lambda push: None)
    assert await store.request_hand_over("a") == "web-2 \ud800"
    assert await to_thread.run_sync(wanted.wait, GUARD)
    assert session.wanted
    await session.release()
    await owner.aclose()
