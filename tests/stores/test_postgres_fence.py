"""Each write of PostgresStore compares three numbers of the owner in the server, last, and an error undoes it."""

import pytest

from push_to_poll_client import OwnershipLost
from push_to_poll_client._types import DeadLetter, Record
from tests.support.postgres_server import shared_server
from tests.support.postgres_stores import PostgresStores, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"  # all of this happens in the server


@pytest.fixture
async def stores(request, anyio_backend):
    opened = PostgresStores(shared_server(request.config), own_tables="", transactional=True)
    yield opened
    await opened.aclose()


CHANGES = {
    "token": "UPDATE {s}.consumer SET token = token + 1",  # a later claim
    "owner": r"UPDATE {s}.consumer SET owner = '\x00'",  # the same token again, after a fail-over
    "commits": "UPDATE {s}.consumer SET commits = commits - 1",  # a commit that a fail-over lost
    "later commits": "UPDATE {s}.consumer SET commits = commits + 1",
    "no owner": "UPDATE {s}.consumer SET owner = NULL",  # after a rebind
    "no row": "DELETE FROM {s}.consumer",
}


async def commit(store, session):
    await session.commit(
        cursor="c2",
        records=[Record("new")],
        state={"a": "2"},
        dead_letters=[DeadLetter(dedupe_key="d", id="d", raw=b"", error="e")],
    )


async def reset(store, session):
    await session.reset("c2", forget=True, state={"a": "2"})


async def transaction(store, session):
    async with session.transaction([Record("new")]):
        await store.connection.execute("SELECT 1")


async def usual_commit(store, session):
    await session.commit(cursor="c2", records=[Record("new")])


def rows(stores):
    tables = ("consumer", "record", "segment", "dead_letter", "history", "state")
    return {table: stores.execute(f"SELECT * FROM {{s}}.{table} ORDER BY 1, 2, 3") for table in tables}  # noqa: S608


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("write", [commit, usual_commit, reset, transaction])
async def test_a_write_of_an_owner_that_was_replaced_changes_no_row(stores, change, write):
    store = stores.store()
    session = await store.claim("a", feed="f")
    await session.commit(cursor="c1", records=[Record("old")], state={"a": "1"})
    await session.unseen(["new"])
    await until(lambda: store.hears_wakes)
    await until(lambda: store._housekeeping._next_renewal > 0)  # so that no renewal finds the change first
    stores.execute(CHANGES[change])
    before = rows(stores)
    with pytest.raises(OwnershipLost):
        await write(store, session)
    assert rows(stores) == before
    assert session.lost
    await session.release()


@pytest.mark.parametrize("write", [commit, usual_commit, reset, transaction])
async def test_a_write_of_the_owner_is_compared_with_its_last_write(stores, write):
    """Each commit counts, so that an owner that knows of a lost one is refused."""
    store = stores.store()
    session = await store.claim("a", feed="f")
    for number in range(3):
        ((before,),) = stores.execute("SELECT commits FROM {s}.consumer")
        assert before == number
        if number < 2:
            await session.unseen(["new"])
            await write(store, session)
    await session.release()


async def test_the_row_of_the_consumer_is_not_locked_while_a_handler_runs(stores):
    """The comparison is last, so a heartbeat and the next claim do not wait for a slow handler."""
    store, other = stores.store(), stores.store()
    session = await store.claim("a", feed="f")
    taken = []

    async def slow_handler():
        async with session.transaction([Record("k")]):
            await store.connection.execute("SELECT 1")
            stores.execute("UPDATE {s}.lease SET until = clock_timestamp()")
            taken.append(await other.claim("a", feed="f"))

    with pytest.raises(OwnershipLost):
        await slow_handler()
    await session.release()
    (taken,) = taken
    assert await taken.unseen(["k"]) == {"k"}
    await taken.release()
