"""The tables of PostgresStore are created once, migrated, and never mixed with tables of something else."""

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from push_to_poll_client import StoreError
from push_to_poll_client._types import Record
from push_to_poll_client.stores._postgres import schema as tables
from push_to_poll_client.stores._postgres.schema import Migration
from push_to_poll_client.stores.postgres import PostgresStore
from tests.support.forms import GUARD
from tests.support.postgres_server import shared_server
from tests.support.postgres_stores import PostgresStores

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"  # all of this happens in worker threads


@pytest.fixture
async def stores(request, anyio_backend):
    opened = PostgresStores(shared_server(request.config))
    yield opened
    await opened.aclose()


async def use(store):
    session = await store.claim("a", feed="f")
    await session.commit(cursor="c", records=[Record(f"{session.fencing_token}")])
    await session.release()


def version(stores):
    return stores.execute("SELECT version, oldest_writer FROM {s}.version")


NEWEST = len(tables.MIGRATIONS)


@pytest.fixture
def next_step(monkeypatch):
    """Add a step to the migrations, which the code of the last version can live with or not."""

    def add(*statements, oldest_writer=NEWEST):
        step = Migration(statements or ("ALTER TABLE {s}.consumer ADD note text",), oldest_writer=oldest_writer)
        monkeypatch.setattr(tables, "MIGRATIONS", (*tables.MIGRATIONS, step))

    return add


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_replicas_that_start_at_once_create_the_tables_once(stores, isolation):
    """Whatever isolation the database has by default."""
    together = threading.Barrier(6)

    def prepare(_):
        options = f"-c default_transaction_isolation={isolation.replace(' ', chr(92) + ' ')}"
        with psycopg.connect(stores.server.conninfo, autocommit=True, options=options) as connection:
            together.wait(GUARD)
            tables.prepare(connection, stores.schema, "here", migrate=True)

    with ThreadPoolExecutor(6) as threads:
        assert [*threads.map(prepare, range(6))] == [None] * 6
    assert version(stores) == [(NEWEST, tables.MIGRATIONS[-1].oldest_writer)]


async def test_missing_tables_are_an_error_without_migrate(stores):
    with pytest.raises(StoreError, match="has no tables; run push-to-poll migrate"):
        await stores.store(migrate=False).claim("a", feed="f")
    assert stores.execute("SELECT 1 FROM pg_namespace WHERE nspname = %(name)s", name=stores.schema) == []
    await use(stores.store())
    await use(stores.store(migrate=False))


async def test_old_tables_are_an_error_without_migrate(stores, next_step):
    await use(stores.store())
    next_step()
    with pytest.raises(
        StoreError, match=f"has tables of version {NEWEST}, and needs {NEWEST + 1}; run push-to-poll"
    ):
        await stores.store(migrate=False).claim("a", feed="f")
    assert version(stores) == [(NEWEST, tables.MIGRATIONS[-2].oldest_writer)]
    await use(stores.store())
    await use(stores.store(migrate=False))


async def test_two_versions_of_the_code_write_during_a_rolling_deployment(stores, monkeypatch, next_step):
    old = stores.store()
    session = await old.claim("b", feed="f")
    await use(old)
    with monkeypatch.context() as patch:
        step = Migration(("ALTER TABLE {s}.consumer ADD note text",), oldest_writer=1)
        patch.setattr(tables, "MIGRATIONS", (*tables.MIGRATIONS, step))
        await use(stores.store())
        assert version(stores) == [(NEWEST + 1, 1)]
    await session.commit(cursor="c", records=[])
    await use(old)
    await use(stores.store())  # the old code starts again
    await session.release()
    assert version(stores) == [(NEWEST + 1, 1)]


async def test_tables_that_this_version_cannot_write_are_an_error(stores, monkeypatch):
    with monkeypatch.context() as patch:
        step = Migration(("ALTER TABLE {s}.consumer ADD note text",), oldest_writer=NEWEST + 1)
        patch.setattr(tables, "MIGRATIONS", (*tables.MIGRATIONS, step))
        await use(stores.store())
    for migrate in (True, False):
        with pytest.raises(StoreError, match=rf"its tables have version {NEWEST + 1}, .* update the library"):
            await stores.store(migrate=migrate).claim("a", feed="f")


async def test_a_step_that_fails_leaves_the_tables_as_they_were(stores, next_step):
    await use(stores.store())
    next_step("ALTER TABLE {s}.consumer ADD note text", "SELECT 1/0")
    with pytest.raises(StoreError, match="division by zero"):
        await stores.store().claim("a", feed="f")
    assert version(stores) == [(NEWEST, tables.MIGRATIONS[-2].oldest_writer)]
    columns = "SELECT 1 FROM information_schema.columns WHERE table_schema = %(s)s AND column_name = 'note'"
    assert stores.execute(columns, s=stores.schema) == []


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM {s}.version",
        "INSERT INTO {s}.version VALUES (1, 1)",
        "UPDATE {s}.version SET version = -1",
        "UPDATE {s}.version SET oldest_writer = 0",
        "ALTER TABLE {s}.version ALTER version TYPE text USING 'garbage'",
        "ALTER TABLE {s}.version ALTER version DROP NOT NULL; UPDATE {s}.version SET version = NULL",
        "INSERT INTO {s}.version SELECT 1, 1 FROM generate_series(1, 100000)",
    ],
)
async def test_a_damaged_version_is_an_error_that_shows_it(stores, damage):
    await use(stores.store())
    for statement in damage.split(";"):
        stores.execute(statement)
    with pytest.raises(StoreError, match="the table of its version must have one row of two numbers") as caught:
        await stores.store().claim("a", feed="f")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("table", ["version(major int)", "state(id int)", "consumer(id int)"])
async def test_tables_of_something_else_are_left_alone(stores, table):
    stores.execute("CREATE SCHEMA {s}")
    stores.execute(f"CREATE TABLE {{s}}.{table}")
    with pytest.raises(StoreError, match=r"has other tables .*; choose another schema") as caught:
        await stores.store().claim("a", feed="f")
    assert type(caught.value) is StoreError
    names = "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(%(s)s) AND relkind = 'r'"
    assert stores.execute(names, s=stores.schema) == [(table.split("(")[0],)]


async def test_a_schema_with_other_names_is_used(stores):
    stores.execute("CREATE SCHEMA {s}")
    stores.execute("CREATE TABLE {s}.orders(id int)")
    await use(stores.store())


async def test_the_schema_public_can_be_used(stores):
    store = stores.store(schema="public")
    await use(store)
    await store.aclose()
    for table in ("record", "lease", "segment", "dead_letter", "history", "state", "version", "consumer"):
        stores.execute(f"DROP TABLE public.{table} CASCADE")
    stores.execute("DROP FUNCTION public.settle")


async def test_a_schema_with_capital_letters_and_the_longest_name_can_be_used(stores):
    stores.schema = '"' + "Orders_" + "x" * 41 + '"'
    store, other = (PostgresStore(stores.server.conninfo, schema=stores.schema.strip('"')) for _ in range(2))
    await use(store)
    session = await store.claim("a", feed="f")
    other.forward("a", None)
    await session.release()
    await store.aclose()
    await other.aclose()


@pytest.mark.parametrize("schema", ["", "1a", "a-b", 'a"b', "a.b", "a b", "ä", "a\n", "x" * 49, "a;drop"])
def test_a_schema_that_needs_escapes_is_refused(schema):
    with pytest.raises(ValueError, match="schema must be 1 to 48 letters"):
        PostgresStore("dbname=x", schema=schema)


@pytest.mark.parametrize("schema", [None, 7, b"a"])
def test_a_schema_that_is_not_a_str_is_refused(schema):
    with pytest.raises(TypeError, match="schema must be a str"):
        PostgresStore("dbname=x", schema=schema)


async def test_a_schema_of_postgresql_itself_is_refused(stores):
    with pytest.raises(StoreError, match='unacceptable schema name "pg_store"'):
        await stores.store(schema="pg_store").claim("a", feed="f")


@pytest.mark.parametrize("instance", ["", 7, b"pod"])
def test_an_instance_that_names_nothing_is_refused(instance):
    with pytest.raises((TypeError, ValueError), match="instance must be a str"):
        PostgresStore("dbname=x", instance=instance)


async def test_the_longest_lease_can_be_used(stores):
    """The limits of a transaction are milliseconds that fit into 31 bits."""
    await use(stores.store(lease=1e9))
