"""MemoryStore passes the store suite; its progress lasts as long as the object."""

import contextlib
import gc

import anyio
import pytest

from push_to_poll_client import _types
from push_to_poll_client.stores import MemoryStore
from push_to_poll_client.testing._store_suite import StoreSuite


class TestMemoryStore(StoreSuite):
    async def make_store(self):
        return MemoryStore()

    async def state(self, store, name, key):
        record = store._progress[name].records.get(key)
        return record and record.state

    @contextlib.contextmanager
    def failing(self, store):
        pytest.skip("memory does not fail")

    async def steal(self, store, name):
        del store._owners[name]
        stolen = await store.claim(name, feed="https://feed.example/")
        await stolen.release()


pytestmark = pytest.mark.anyio


async def test_a_released_session_shows_its_own_cursor_and_not_that_of_the_next_owner():
    store = MemoryStore()
    first = await store.claim("a", feed="f")
    await first.commit(cursor="1", records=[])
    await first.release()
    second = await store.claim("a", feed="f")
    await second.commit(cursor="2", records=[], state={"name": "value"})
    assert (first.cursor, dict(first.state)) == ("1", {})
    assert (second.cursor, second.fencing_token) == ("2", 2)


async def test_a_garbage_collected_session_releases_its_name():
    store = MemoryStore()
    session = await store.claim("a", feed="f")
    del session
    gc.collect()
    await (await store.claim("a", feed="f")).release()


async def test_a_cancelled_commit_writes_nothing():
    session = await MemoryStore().claim("a", feed="f")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await session.commit(cursor="c1", records=[_types.Record("1")])
    assert scope.cancelled_caught
    assert (session.cursor, await session.unseen(["1"])) == (None, {"1"})


async def test_the_size_of_a_session_is_its_number_of_distinct_records():
    session = await MemoryStore().claim("a", feed="f")
    await session.commit(cursor="c1", records=[_types.Record("1"), _types.Record("2"), _types.Record("1")])
    assert session.record_count == 2


def test_the_repr_of_a_memory_store_shows_no_keys():
    assert repr(MemoryStore()) == "MemoryStore(0 names)"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"retention": 0}, ValueError),
        ({"retention": float("nan")}, ValueError),
        ({"retention": "30 days"}, TypeError),
        ({"max_records": 0}, ValueError),
        ({"max_records": 1e6}, TypeError),
    ],
)
def test_a_limit_that_is_not_a_positive_number_is_refused(wrong, error):
    with pytest.raises(error, match=f"{next(iter(wrong))} must be"):
        MemoryStore(**wrong)
