"""A store in PostgreSQL behind a pooler in transaction mode, such as PgBouncer."""

import anyio
import pytest

from push_to_poll_client import Record
from push_to_poll_client.stores._postgres import housekeeping
from push_to_poll_client.stores.postgres import PostgresStore
from tests.support.postgres_server import shared_server
from tests.support.postgres_stores import LEASE, until
from tests.support.transaction_pooler import TransactionPooler

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture
def server(request):
    server = shared_server(request.config)
    yield server
    server.execute("DROP SCHEMA IF EXISTS pooled CASCADE")


@pytest.fixture(params=[1, 5])
def pooler(request, server):
    with TransactionPooler(server.port, size=request.param) as pooler:
        yield pooler


SELECTS = ("SELECT %s::int", "SELECT %s::int AS other", "SELECT %s::int::int")


async def test_the_store_says_that_it_hears_no_wakes_through_a_pooler(pooler, monkeypatch, caplog):
    monkeypatch.setattr(housekeeping, "_ECHO_TIMEOUT", 0.3)
    store = PostgresStore(pooler.conninfo, schema="pooled", lease=LEASE)
    session = await store.claim("orders", feed="feed")

    def knows():
        store._housekeeping.poke()
        return store.hears_wakes is not None

    await until(knows)
    assert store.hears_wakes is False
    assert "give PostgresStore a listen_conninfo=" in caplog.text
    await session.release()
    await store.aclose()


async def test_a_direct_connection_for_notices_hears_wakes_beside_a_pooler(server, pooler):
    store = PostgresStore(pooler.conninfo, schema="pooled", listen_conninfo=server.conninfo, lease=LEASE)
    session = await store.claim("orders", feed="feed")
    await until(lambda: store.hears_wakes)
    await session.release()
    await store.aclose()


async def test_statements_of_handlers_are_not_prepared_for_one_server_connection(pooler):
    stores = [PostgresStore(pooler.conninfo, schema="pooled", lease=LEASE, transactional=True) for _ in range(2)]
    sessions = [await store.claim(f"orders{n}", feed="feed") for n, store in enumerate(stores)]
    for number in range(20):
        for store, session in zip(stores, sessions, strict=True):
            async with session.transaction([Record(str(number))]):
                select = SELECTS[number % 3]
                row = await anyio.to_thread.run_sync(
                    lambda s=store, q=select: s.connection.execute(q, [7]).fetchone()
                )
                assert row == (7,)
    for store, session in zip(stores, sessions, strict=True):
        await session.release()
        await store.aclose()


async def test_progress_is_saved_through_a_pooler(pooler):
    first, second = (PostgresStore(pooler.conninfo, schema="pooled", lease=LEASE) for _ in range(2))
    session = await first.claim("orders", feed="feed")
    for number in range(10):
        await session.unseen([str(number)])
        await session.commit(cursor=str(number), records=[Record(str(number))])
    await session.release()
    session = await second.claim("orders", feed="feed")
    assert (session.cursor, session.record_count) == ("9", 10)
    assert await session.unseen(["9", "10"]) == {"10"}
    await session.release()
    for store in (first, second):
        await store.aclose()
