"""The store in PostgreSQL passes the suites for stores, with a real server."""

from typing import ClassVar

import pytest
from anyio import to_thread

from push_to_poll_client import Settlement
from push_to_poll_client.stores._postgres.notices import digest_of
from push_to_poll_client.testing import LeasedStoreSuite, TransactionalStoreSuite
from tests.support.postgres_server import shared_server
from tests.support.postgres_stores import PostgresStores


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # a server takes real time


class TestPostgresStore(LeasedStoreSuite):
    options: ClassVar = {"own_tables": ""}

    @pytest.fixture(autouse=True)
    def opened(self, request):
        self.stores = PostgresStores(shared_server(request.config), **self.options)
        yield
        self.stores.drop()

    async def make_store(self):
        return self.stores.store()

    async def second(self, store):
        return self.stores.store()

    async def expire(self, store, name):
        await self.stores.expire(store, name)

    async def want(self, store, name):
        await self.stores.want(name)

    def in_doubt(self, store, outcome):
        return self.stores.in_doubt(store, outcome)

    def unreachable(self, store):
        return self.stores.unreachable(store)

    def failing(self, store):
        return self.stores.failing()

    async def store_time(self, store):
        ((now,),) = self.stores.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        return now

    async def state(self, store, name, key):
        rows = await to_thread.run_sync(self._states, key)
        return Settlement(rows[0][0] or "processed") if rows else None

    def _states(self, key):
        return self.stores.execute("SELECT state FROM {s}.record WHERE digest = %(d)s", d=digest_of(key))


class TestTransactionalPostgresStore(TestPostgresStore, TransactionalStoreSuite):
    # The other tests run above, with the same code.
    locals().update({name: None for name in dir(LeasedStoreSuite) if name.startswith("test_")})

    options: ClassVar = {
        "own_tables": "CREATE TABLE {s}.effect(number int GENERATED ALWAYS AS IDENTITY, text text)",
        "transactional": True,
    }

    async def write(self, store, text):
        insert = f"INSERT INTO {self.stores.schema}.effect(text) VALUES (%s)"  # noqa: S608
        await to_thread.run_sync(lambda: store.connection.execute(insert, (text,)))

    async def written(self, store):
        rows = await to_thread.run_sync(self.stores.execute, "SELECT text FROM {s}.effect ORDER BY number")
        return [text for (text,) in rows]
