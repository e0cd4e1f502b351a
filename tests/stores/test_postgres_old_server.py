"""The store works on the oldest PostgreSQL that a wheel has, see `tests/support/postgres_server.py`."""

import pytest

from push_to_poll_client import Record
from tests.stores.test_postgres_suite import TestPostgresStore as OfStores
from tests.stores.test_postgres_suite import TestTransactionalPostgresStore as OfTransactionalStores
from tests.support.postgres_server import old_server
from tests.support.postgres_stores import PostgresStores


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture
def opened(request):
    opened = PostgresStores(old_server(request.config), transactional=True)
    yield opened
    opened.drop()


@pytest.mark.anyio
async def test_progress_is_saved_on_an_old_server(opened):
    store = opened.store()
    session = await store.claim("orders", feed="feed")
    await session.commit(cursor="1", records=[Record("1")], state={"attempts": "2"})
    async with session.transaction([Record("2")]):
        pass
    assert await session.unseen(["1", "3"]) == {"3"}
    await session.release()
    session = await store.claim("orders", feed="feed")
    assert (session.cursor, session.fencing_token, dict(session.state)) == ("1", 2, {"attempts": "2"})
    await session.release()
    await store.aclose()


class OnOldServer:
    """The suite runs on the old server."""

    @pytest.fixture(autouse=True)
    def opened(self, request):
        self.stores = PostgresStores(old_server(request.config), **getattr(self, "options", {}))
        yield
        self.stores.drop()


@pytest.mark.long_form
class TestOldServer(OnOldServer, OfStores):
    pass


@pytest.mark.long_form
class TestTransactionsOfOldServer(OnOldServer, OfTransactionalStores):
    pass


del OfStores, OfTransactionalStores  # else pytest runs them here too
