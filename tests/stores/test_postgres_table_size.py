"""Tables of a busy name in PostgreSQL stay at their size, since rows that nobody needs are deleted and vacuumed.

`make test` calls VACUUM itself. `make chaos` watches autovacuum, whose settings the store gives its tables.
"""

import itertools

import anyio
import pytest

from push_to_poll_client._types import DeadLetter, Record
from tests.support.forms import form
from tests.support.postgres_server import PostgresServer, shared_server
from tests.support.postgres_stores import PostgresStores

pytestmark = pytest.mark.anyio

MAX_RECORDS = form(1_000, 50_000)

PAGE = form(50, 200)

SIZES = """
    SELECT relname, pg_table_size(oid) + pg_indexes_size(oid) FROM pg_class
    WHERE relkind = 'r' AND relnamespace = to_regnamespace('{s}')
"""

AUTOVACUUMS = "SELECT sum(autovacuum_count)::int FROM pg_stat_user_tables WHERE schemaname = '{s}'"

TABLES = ("record", "consumer", "lease", "segment", "history", "state", "dead_letter")


@pytest.fixture
def anyio_backend():
    return "asyncio"  # the tables do not depend on the event loop


async def work(session, numbers, records):
    """Process so many messages as a busy consumer does, with each kind of row that comes and goes."""
    for number in itertools.islice(numbers, records // PAGE):
        page = [Record(f"{number}-{n}") for n in range(PAGE)]
        letter = DeadLetter(dedupe_key="broken", id="broken", raw=b"raw" * 1000, error="broken")
        state = {f"of {number % 7}": str(number)}
        await session.commit(cursor=f"c{number}", records=page, dead_letters=[letter], state=state)
        await session.commit(cursor=f"c{number}b", records=[Record("broken")], state={f"of {number % 5}": None})


async def sizes_while_working(stores, *, rounds, before=(), after_each=()):
    """Return the bytes of each table, with its indexes, after each round, which replaces a quarter of the records.

    Args:
        stores: Stores in a new schema, whose tables are created.
        rounds: Number of rounds.
        before: Statements that are executed first.
        after_each: Statements that are executed after each round.
    """
    sizes, numbers = [], itertools.count()
    session = await stores.store(max_records=MAX_RECORDS).claim("a", feed="f")
    for statement in before:
        await anyio.to_thread.run_sync(stores.execute, statement)
    for _ in range(rounds):
        await work(session, numbers, MAX_RECORDS // 4)
        for statement in after_each:
            await anyio.to_thread.run_sync(stores.execute, statement)
        sizes.append(dict(await anyio.to_thread.run_sync(stores.execute, SIZES)))
    await session.release()
    return sizes


def growth(sizes):
    """Return by which factor the table of records grows between the halves, once the records are complete."""
    full = [size["record"] for size in sizes[8:]]
    return max(full[len(full) // 2 :]) / max(full[: len(full) // 2])


def largest(sizes):
    """Return the largest size of each table."""
    return {table: max(size[table] for size in sizes) for table in TABLES}


def are_flat(sizes):
    """Return True if no table grows. Those with a few rows for each name have no use for more than a megabyte."""
    others = [size for table, size in largest(sizes).items() if table != "record"]
    return growth(sizes) < 1.25 and max(others) < 1_000_000


@pytest.mark.parametrize("vacuums", [True, False])
async def test_the_tables_of_a_busy_name_stay_at_their_size_if_they_are_vacuumed(request, vacuums):
    stores = PostgresStores(shared_server(request.config))
    vacuum = ["VACUUM " + ", ".join(f"{{s}}.{table}" for table in TABLES)] if vacuums else []
    try:
        sizes = await sizes_while_working(stores, rounds=20, after_each=vacuum)
    finally:
        await stores.aclose()
    assert are_flat(sizes) is vacuums


@pytest.mark.long_form
@pytest.mark.parametrize("vacuums", [True, False])
async def test_autovacuum_keeps_the_tables_of_a_busy_name_at_their_size(vacuums, record_property):
    server = PostgresServer(settings=["autovacuum=on", "autovacuum_naptime=1s"])
    server.start()
    stores = PostgresStores(server)
    off = [] if vacuums else [f"ALTER TABLE {{s}}.{table} SET (autovacuum_enabled = false)" for table in TABLES]
    try:
        sizes = await sizes_while_working(stores, rounds=48, before=off)
        ((count,),) = stores.execute(AUTOVACUUMS)
        await stores.aclose()
    finally:
        server.close()
    record_property("figures", f"{count} autovacuums, growth {growth(sizes):.2f}, largest sizes {largest(sizes)}")
    assert are_flat(sizes) is vacuums
