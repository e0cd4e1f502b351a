"""Records go by age and by number, a segment at a time, and never those whose messages may be fetched again."""

import pytest

from push_to_poll_client import _types
from push_to_poll_client.stores import MemoryStore, SQLiteStore
from tests.support.forms import form

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # worker threads take real time


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["memory", "sqlite"])
async def claim(request, tmp_path, clock, anyio_backend):
    """Claim a name of a store with this retention; released after the test."""
    sessions = []

    async def claim(**retention):
        if request.param == "memory":
            store = MemoryStore(clock=clock, **retention)
        else:
            store = SQLiteStore(tmp_path / "store.db", clock=clock, **retention)
        sessions.append(await store.claim("a", feed="f"))
        return sessions[-1]

    yield claim
    for session in sessions:
        await session.release()


def keys(start, stop):
    return [f"{number}" for number in range(start, stop)]


async def add(session, start, stop, *, cursor="c"):
    await session.commit(cursor=cursor, records=[_types.Record(key) for key in keys(start, stop)])


async def seen(session, start, stop):
    return len(keys(start, stop)) - len(await session.unseen(keys(start, stop)))


async def test_the_oldest_records_are_removed_above_max_records(claim):
    session = await claim(max_records=10)
    await add(session, 0, 10)
    assert session.size == 10
    await add(session, 10, 13)
    assert session.size == 10
    assert await session.unseen(keys(0, 13)) == set(keys(0, 3))


async def test_records_older_than_the_retention_are_removed(claim, clock):
    session = await claim(retention=60)
    await add(session, 0, 3)
    clock.now += 60
    await add(session, 3, 6)
    assert await seen(session, 0, 6) == 6
    clock.now += 0.5
    await add(session, 6, 7)
    assert await session.unseen(keys(0, 7)) == set(keys(0, 3))


async def test_recording_a_key_again_restarts_its_retention(claim, clock):
    session = await claim(retention=60)
    await add(session, 0, 3)
    clock.now += 50
    await add(session, 0, 1)
    assert await seen(session, 0, 3) == 3
    clock.now += 20
    await add(session, 3, 4)
    assert await session.unseen(keys(0, 4)) == {"1", "2"}


async def test_records_are_not_removed_until_a_cursor_after_them_is_saved(claim, clock):
    """A page larger than the limit, settled message by message: after a crash all of it is fetched again."""
    session = await claim(retention=60, max_records=1)
    for number in range(5):
        clock.now += 100
        await add(session, number, number + 1, cursor=None)
    assert await seen(session, 0, 5) == 5
    await add(session, 5, 6, cursor="c1")
    assert await session.unseen(keys(0, 6)) == set(keys(0, 5))


async def test_a_commit_without_a_cursor_removes_only_records_before_the_saved_cursor(claim):
    session = await claim(max_records=10)
    await add(session, 0, 10)
    await add(session, 10, 15)
    assert await session.unseen(keys(0, 15)) == set(keys(0, 5))
    await add(session, 15, 18, cursor=None)
    assert await session.unseen(keys(0, 18)) == set(keys(0, 8))
    await add(session, 18, 25, cursor=None)
    assert await session.unseen(keys(0, 25)) == set(keys(0, 10))


async def test_a_commit_that_saves_a_cursor_keeps_its_own_records(claim):
    """With several messages in hand, some of them lie behind the cursor and some before it."""
    session = await claim(max_records=1)
    await add(session, 0, 50)
    assert await seen(session, 0, 50) == 50
    await add(session, 50, 51)
    assert await session.unseen(keys(0, 51)) == set(keys(0, 50))


async def test_records_are_removed_an_eighth_at_a_time_and_never_below_max_records(claim):
    session = await claim(max_records=80)
    count = form(120, 200)
    for number in range(count):
        await add(session, number, number + 1)
        assert min(number + 1, 80) <= session.size < 90
        assert await seen(session, 0, count) == session.size
    assert session.size == 80
    assert await session.unseen(keys(0, count)) == set(keys(0, count - 80))


async def test_the_store_holds_at_most_an_eighth_more_than_max_records(claim):
    session = await claim(max_records=500)
    for start in range(0, 5000, 250):
        await add(session, start, start + 250)
        assert session.size <= 500 + 500 // 8
    assert await seen(session, 4500, 5000) == 500


async def test_a_record_is_removed_at_most_an_eighth_of_the_retention_late(claim, clock):
    """In a segment there is no telling them apart, and a slow feed fills none."""
    session = await claim(retention=80)
    made = {}
    for number in range(form(180, 300)):
        await add(session, number, number + 1)
        made[str(number)] = clock.now
        there = made.keys() - await session.unseen(list(made))
        assert {key for key, at in made.items() if clock.now - at <= 80} <= there
        assert there <= {key for key, at in made.items() if clock.now - at <= 80 * 9 / 8}
        clock.now += 1


async def test_a_key_recorded_in_two_segments_counts_twice_until_the_first_is_removed(claim):
    session = await claim(max_records=8)
    await add(session, 0, 1)
    await add(session, 0, 1)
    assert session.size == 2
    await add(session, 1, 8)
    assert session.size == 8
    assert await session.unseen(keys(0, 8)) == set()


async def test_no_record_is_removed_without_retention_and_max_records(claim, clock):
    session = await claim(retention=None, max_records=None)
    await add(session, 0, 200)
    clock.now += 1e9
    await add(session, 200, 201)
    assert session.size == 201


async def test_records_are_kept_for_at_least_30_days_by_default(claim, clock):
    session = await claim()
    await add(session, 0, 1)
    clock.now += 30 * 86_400
    await add(session, 1, 2)
    assert await seen(session, 0, 2) == 2


async def test_records_are_kept_longer_after_the_clock_was_ahead(claim, clock):
    session = await claim(retention=60)
    clock.now += 1e9
    await add(session, 0, 1)
    clock.now -= 1e9
    await add(session, 1, 2)
    clock.now += 1000
    await add(session, 2, 3)
    assert await seen(session, 0, 3) == 3


async def test_no_record_is_removed_when_the_clock_went_back_for_a_while(claim, clock):
    session = await claim(retention=60)
    await add(session, 0, 1)
    clock.now -= 1000
    await add(session, 1, 2)
    clock.now += 1010
    await add(session, 2, 3)
    assert await seen(session, 0, 3) == 3


async def test_records_made_before_a_reset_can_be_removed_after_it(claim, clock):
    session = await claim(max_records=1)
    await add(session, 0, 5, cursor=None)
    await session.reset("c0", forget=False)
    assert await seen(session, 0, 5) == 5
    await add(session, 5, 6, cursor=None)
    assert await session.unseen(keys(0, 6)) == set(keys(0, 5))


async def test_the_history_has_the_last_256_cursors_a_second_apart(claim, clock):
    session = await claim()
    begun = clock.now
    for number in range(600):
        await session.commit(cursor=str(number), records=[])
        clock.now += 0.5
    *before, saved = session.history
    assert saved == ("599", clock.now - 0.5)
    assert len(before) == 256
    assert [at - begun for _, at in before] == [float(second) for second in range(300 - 256, 300)]
    assert all(float(cursor) == (at - begun) * 2 for cursor, at in before)


async def test_the_history_goes_on_although_the_clock_went_back(claim, clock):
    session = await claim()
    for cursor in "abc":
        clock.now -= 1000
        await session.commit(cursor=cursor, records=[])
    assert [cursor for cursor, _ in session.history] == [None, "a", "b", "c"]
