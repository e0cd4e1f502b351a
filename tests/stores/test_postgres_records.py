"""Rows of a store in PostgreSQL: damaged ones, records that two threads see at once, and forgotten ones."""

import threading
from contextlib import asynccontextmanager
from unittest.mock import patch

import anyio
import psycopg
import pytest
from anyio import to_thread

from push_to_poll_client import CommitInDoubt, Settlement, StoreBusy, StoreError
from push_to_poll_client._types import DeadLetter, Record
from push_to_poll_client.stores._postgres import dead_letters as dead_letters_module
from push_to_poll_client.stores._postgres import records as records_module
from push_to_poll_client.stores._postgres.connection import Connection
from push_to_poll_client.stores._postgres.progress import ClaimedName
from tests.support.forms import GUARD
from tests.support.postgres_server import shared_server
from tests.support.postgres_stores import PostgresStores, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"  # all of this happens in worker threads


@pytest.fixture
async def stores(request, anyio_backend):
    opened = PostgresStores(shared_server(request.config))
    yield opened
    await opened.aclose()


@pytest.fixture
def store(stores):
    return stores.store()


async def begin(store):
    """Write a row into each table."""
    session = await store.claim("a", feed="f")
    letter = DeadLetter(dedupe_key="d", id="d", raw=b"raw", error="broken")
    await session.commit(cursor="c0", records=[Record("k")], dead_letters=[letter], state={"s": "1"})
    await session.commit(cursor="c1", records=[])
    await session.release()


# Damaged rows


@pytest.mark.parametrize(
    "damage",
    [
        r"UPDATE {s}.consumer SET cursor = '\xff'",
        "UPDATE {s}.consumer SET at = 'NaN'",
        "UPDATE {s}.consumer SET at = 'infinity'",
        "UPDATE {s}.consumer SET token = -5",
        "UPDATE {s}.consumer SET commits = 9223372036854775807",
        "UPDATE {s}.consumer SET first = -1",
        "UPDATE {s}.consumer SET behind = 9223372036854775807",
        "UPDATE {s}.segment SET size = -1",
        "UPDATE {s}.segment SET size = 9223372036854775807",
        "UPDATE {s}.segment SET number = 9223372036854775807",
        "UPDATE {s}.segment SET first_at = 'NaN'",
        "UPDATE {s}.segment SET last_at = '-infinity'",
        r"UPDATE {s}.history SET cursor = '\xc328'",
        "UPDATE {s}.history SET at = 'infinity'",
        r"UPDATE {s}.state SET name = '\xff'",
        r"UPDATE {s}.state SET value = '\x80'",
        r"UPDATE {s}.consumer SET feed = '\xff'",
        r"UPDATE {s}.consumer SET name = '\xff'",
        r"UPDATE {s}.lease SET instance = '\xff', until = now() + interval '1 hour'",
    ],
)
async def test_a_value_that_the_store_does_not_write_is_named_when_the_name_is_claimed(store, stores, damage):
    await begin(store)
    stores.execute(damage)
    with pytest.raises(StoreError, match=r"the tables contain a \w+.* that this library does not write") as caught:
        await store.claim("a", feed="f")
    assert type(caught.value) is StoreError
    await (await store.claim("b", feed="f")).release()


@pytest.mark.parametrize("column", ["key", "id", "error", "traceback"])
async def test_a_damaged_dead_letter_is_named_when_it_is_read(store, stores, column):
    await begin(store)
    stores.execute(rf"UPDATE {{s}}.dead_letter SET {column} = '\xff00'")  # noqa: S608
    session = await store.claim("a", feed="f")
    with pytest.raises(StoreError, match="the tables contain a string that this library does not write"):
        await session.dead_letters()
    with pytest.raises(StoreError, match="the tables contain a string that this library does not write"):
        await session.dead_letter("d")
    await session.commit(cursor="c2", records=[Record("d")])
    await session.release()


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM {s}.segment",  # records without their segment
        "UPDATE {s}.segment SET size = 0",
        "UPDATE {s}.segment SET size = 1000000000, first_at = 1e15, last_at = -1e15",
        "INSERT INTO {s}.segment SELECT consumer, 7, 3, 1e12, -1e12 FROM {s}.segment",
        "UPDATE {s}.consumer SET first = 5",
        "UPDATE {s}.consumer SET first = 4000000000000000000, behind = 3",
        "UPDATE {s}.segment SET number = 4000000000000000000",
        "UPDATE {s}.history SET slot = 999999, number = -9",
        "INSERT INTO {s}.history SELECT 1, 1000 + i, i, 'x', i FROM generate_series(1, 20000) AS i",
        r"UPDATE {s}.record SET digest = '\x00'",
        "UPDATE {s}.record SET state = 'nonsense', fingerprint = -9223372036854775808",
        "DELETE FROM {s}.record",
    ],
)
async def test_the_store_goes_on_with_rows_that_do_not_fit_together(store, stores, damage):
    await begin(store)
    stores.execute(damage)
    session = await store.claim("a", feed="f")
    assert len(session.history) <= 257
    for number in range(3):
        await session.unseen(["k", f"n{number}"])
        await session.commit(cursor=f"c{number}", records=[Record("k"), Record(f"n{number}")])
        assert await session.unseen(["k", f"n{number}"]) == set()
    await session.fingerprints(["k"])
    await session.reset("r", forget=True)
    await session.commit(cursor="c", records=[Record("k")])
    assert await session.unseen(["k", "n1"]) == {"n1"}
    await session.release()


async def test_the_newest_256_cursors_of_a_long_history_are_read(store, stores):
    await begin(store)
    stores.execute(
        "INSERT INTO {s}.history SELECT id, 1000 + i, 9 + i, ('x' || i)::bytea, i FROM {s}.consumer, "
        "generate_series(1, 300) AS i"
    )
    session = await store.claim("a", feed="f")
    cursors = [cursor for cursor, _ in session.history]
    assert cursors == [*(f"x{number}" for number in range(45, 301)), "c1"]
    await session.release()


# Two threads


@asynccontextmanager
async def searching(session, key):
    """Search for a key, and let the search note after the block that it has found nothing."""
    searched, go_on = threading.Event(), threading.Event()
    find = ClaimedName._find

    def slow(claimed, digests):
        found = find(claimed, digests)
        searched.set()
        assert go_on.wait(GUARD)
        return found

    async with anyio.create_task_group() as tasks:
        with patch.object(ClaimedName, "_find", slow):
            tasks.start_soon(session.unseen, [key])
            await to_thread.run_sync(searched.wait, GUARD)
        yield
        go_on.set()


async def test_a_key_recorded_during_a_search_is_found_by_the_next_commit(store, stores):
    """The search did not find it, and a commit that believes so would add a second record."""
    session = await store.claim("a", feed="f")
    await session.commit(cursor="c0", records=[Record("other")])
    async with searching(session, "k"):
        await session.commit(cursor="c1", records=[Record("k", Settlement.DEAD_LETTERED)])
    await session.commit(cursor="c2", records=[Record("k")])
    assert session.record_count == 2
    assert stores.execute("SELECT count(*) FROM {s}.record") == [(2,)]
    await session.release()


@pytest.mark.parametrize("most", [1, 100_000])
async def test_a_key_settled_by_a_handler_during_a_search_is_found_by_the_next_commit(stores, monkeypatch, most):
    store = stores.store(transactional=True)
    session = await store.claim("a", feed="f")
    await session.commit(cursor="c0", records=[Record("other")])
    monkeypatch.setattr(records_module, "_MAX_UNFOUND", most)
    await session.unseen(["k"])
    async with searching(session, "k"), session.transaction([Record("k")]):
        await store.connection.execute("SELECT 1")
    await session.commit(cursor="c2", records=[Record("k", fingerprint=1)])
    assert await session.fingerprints(["k"]) == {"k": 1}
    assert stores.execute("SELECT count(*) FROM {s}.record") == [(2,)]
    await session.release()


async def test_a_rebind_sees_a_claim_that_was_committed_while_it_waited(store, stores):
    await begin(store)
    with psycopg.connect(stores.server.conninfo) as claiming:
        claiming.execute(f"SET search_path = {stores.schema}")
        claiming.execute("UPDATE lease SET until = now() + interval '1 hour'")
        claiming.execute("UPDATE consumer SET token = token + 1")

        async def rebind():
            with pytest.raises(StoreBusy):
                await store.rebind("a", feed="new")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rebind)
            waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
            await until(lambda: stores.execute(waiting))
            claiming.commit()


async def test_an_error_behind_a_commit_leaves_it_in_doubt(store, monkeypatch):
    """With more dead letters than are kept in memory, a commit counts them afterwards."""
    monkeypatch.setattr(dead_letters_module, "_MAX_INDEXED", 1)
    session = await store.claim("a", feed="f")
    letters = [DeadLetter(dedupe_key=key, id=key, raw=b"", error="e") for key in "123"]
    await session.commit(cursor="c", records=[], dead_letters=letters)
    assert session.dead_letter_count == 3
    execute = Connection.execute

    def cut(connection, query, *arguments, **options):
        if b"count(*)" in query[:20] if isinstance(query, bytes) else False:
            connection.pgconn.finish()
        return execute(connection, query, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "execute", cut)
        with pytest.raises(CommitInDoubt):
            await session.commit(cursor="c2", records=[Record("1")])
    session = await session.again()
    assert (session.cursor, session.dead_letter_count) == ("c2", 2)
    await session.release()


# Forgotten records


def rows(stores):
    return stores.execute("SELECT (SELECT count(*) FROM {s}.record), (SELECT count(*) FROM {s}.segment)")[0]


async def test_the_tables_stay_flat_while_records_are_forgotten(stores, monkeypatch):
    monkeypatch.setattr(records_module, "_SWEPT_AT_LEAST", 4)
    store = stores.store(max_records=80)
    for _ in range(2):  # also for the next owner
        session = await store.claim("a", feed="f")
        for page in range(40):
            records = [Record(f"{session.fencing_token}.{page}.{number}") for number in range(10)]
            await session.unseen([record.key for record in records])
            await session.commit(cursor=f"{page}", records=records)
            kept, segments = rows(stores)
            assert session.record_count <= 90 + 10
            assert kept <= session.record_count + 3 * 10 + 4
            assert segments <= 20
        await session.release()


async def test_the_records_before_a_reset_are_swept_by_later_commits(stores, monkeypatch):
    monkeypatch.setattr(records_module, "_SWEPT_AT_LEAST", 10)
    store = stores.store()
    session = await store.claim("a", feed="f")
    await session.commit(cursor="c", records=[Record(f"old {number}") for number in range(100)])
    await session.reset("r", forget=True)
    assert session.record_count == 0
    assert rows(stores) == (100, 1)
    await session.release()
    session = await store.claim("a", feed="f")
    for number in range(12):
        await session.commit(cursor=f"{number}", records=[Record(f"{number}")])
        assert session.record_count == number + 1
    assert rows(stores) == (12, 1)
    await session.release()


async def test_each_forgotten_record_is_swept_by_the_next_commit_that_adds_one(stores):
    """Also if the commit before could have deleted more than there was."""
    session = await stores.store().claim("a", feed="f")
    for epoch in range(3):
        await session.commit(cursor="c", records=[Record(f"{epoch}.{number}") for number in range(10)])
        await session.reset("r", forget=True)
        await session.commit(cursor="c", records=[Record("k")])
        assert rows(stores) == (1, 1)
    await session.release()


async def test_old_records_are_forgotten_by_the_clock_of_the_server(stores):
    store = stores.store(retention=3600.0)
    session = await store.claim("a", feed="f")
    await session.commit(cursor="c", records=[Record("old")])
    await session.release()
    for step in range(10):  # each commit believes an eighth of the retention
        stores.execute("UPDATE {s}.segment SET first_at = first_at - 440, last_at = last_at - 440")
        session = await store.claim("a", feed="f")
        await session.commit(cursor=f"{step}", records=[Record(f"{step}")])
        await session.release()
    session = await store.claim("a", feed="f")
    assert "old" in await session.unseen(["old", "9"])
    assert session.record_count < 11
    await session.release()
