"""A store in PostgreSQL whose connections lead to a standby: writes wait until it is promoted."""

import contextlib

import pytest
from anyio import to_thread

from push_to_poll_client import OwnershipLost, StoreUnavailable
from tests.support.postgres_server import PostgresServer
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
