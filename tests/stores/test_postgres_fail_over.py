"""Owners of a store in PostgreSQL that were replaced, also by a standby that lacks their last commit."""

import contextlib

import pytest
from anyio import to_thread

from push_to_poll_client import OwnershipLost, Record, StoreUnavailable
from tests.support.postgres_server import PostgresServer, shared_server
from tests.support.postgres_stores import PostgresStores

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def servers():
    """A primary and its standby."""
    with contextlib.closing(PostgresServer()) as primary:
        primary.start()
        with contextlib.closing(primary.replica()) as standby:
            standby.start()
            yield primary, standby


async def test_a_standby_is_waited_for_and_refuses_an_owner_that_is_ahead_of_it(servers):
    primary, standby = servers
    store = PostgresStores(primary).store()
    session = await store.claim("orders", feed="feed")
    await session.commit(cursor="1", records=[])
    await to_thread.run_sync(standby.catch_up)
    await to_thread.run_sync(standby.disconnect)
    await session.commit(cursor="2", records=[])  # is lost
    store.proxy.target = standby.port
    store.proxy.cut()
    with pytest.raises(StoreUnavailable, match="it is a read-only standby"):
        await session.commit(cursor="3", records=[])
    with pytest.raises(StoreUnavailable, match="it is a read-only standby"):
        await store.claim("other", feed="feed")
    await to_thread.run_sync(standby.promote)
    with pytest.raises(OwnershipLost):
        await session.commit(cursor="3", records=[])
    await session.release()
    session = await store.claim("orders", feed="feed")
    assert session.cursor == "1"
    await session.release()
    await store.aclose()


@pytest.mark.parametrize("transactional", [False, True])
async def test_an_owner_that_was_replaced_cannot_record_what_the_next_owner_has_recorded(request, transactional):
    """The server may find the record that exists before it compares the owner."""
    stores = PostgresStores(shared_server(request.config), transactional=transactional)
    former, latter, record = stores.store(), stores.store(), Record("1")
    older = await former.claim("orders", feed="feed")
    await older.commit(cursor="0", records=[Record("0")])  # the segment of both
    await older.unseen(["1"])
    stores.execute("UPDATE {s}.lease SET until = clock_timestamp()")  # the former owner does not know yet
    newer = await latter.claim("orders", feed="feed")
    await newer.unseen(["1"])
    await newer.commit(cursor="1", records=[record])

    async def write():
        if transactional:
            async with older.transaction([record]):
                await former.connection.execute("SELECT 1")
        else:
            await older.commit(cursor="1", records=[record])

    with pytest.raises(OwnershipLost):
        await write()
    assert older.lost
    for session in (older, newer):
        await session.release()
    for store in (former, latter):
        await store.aclose()
    stores.drop()
