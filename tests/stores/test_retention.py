"""Retention removes old segments, but no record of a message that may be fetched again."""

import pytest

from push_to_poll_client import _types
from push_to_poll_client.stores import MemoryStore, SQLiteStore
from push_to_poll_client.stores._postgres.progress import ClaimedName
from tests.support.forms import form
from tests.support.postgres_server import shared_server
from tests.support.postgres_stores import PostgresStores

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]


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


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def claim(request, tmp_path, clock, anyio_backend, monkeypatch):
    """Claim a name of a store with this retention, repeatedly if needed; released after the test."""
    sessions = []
    memory = {}
    if request.param == "postgres":
        if anyio_backend == "trio":
            pytest.skip("all of it runs in worker threads, so one event loop is enough")
        monkeypatch.setattr(ClaimedName, "time", lambda _: clock.now)
        postgres = PostgresStores(shared_server(request.config), own_tables="")

    async def claim(**retention):
        while sessions:
            await sessions.pop().release()
        if request.param == "memory":
            store = memory.setdefault("store", MemoryStore(clock=clock, **retention))
        elif request.param == "postgres":
            store = postgres.store(**retention)
        else:
            store = SQLiteStore(tmp_path / "store.db", clock=clock, **retention)
        sessions.append(await store.claim("a", feed="f"))
        return sessions[-1]

    yield claim
    for session in sessions:
        await session.release()
    if request.param == "postgres":
        await postgres.aclose()


def keys(start, stop):
    return [f"{number}" for number in range(start, stop)]


async def add(session, start, stop, *, cursor="c"):
    await session.commit(cursor=cursor, records=[_types.Record(key) for key in keys(start, stop)])


async def seen(session, start, stop):
    return len(keys(start, stop)) - len(await session.unseen(keys(start, stop)))


async def test_the_oldest_records_are_removed_above_max_records(claim):
    session = await claim(max_records=10)
    await add(session, 0, 10)
    assert session.record_count == 10
    await add(session, 10, 13)
    assert session.record_count == 10
    assert await session.unseen(keys(0, 13)) == set(keys(0, 3))


async def test_records_older_than_the_retention_are_removed(claim, clock):
    session = await claim(retention=60)
    await add(session, 0, 3)
    for number in range(3, 11):
        clock.now += 7.6
        await add(session, number, number + 1)
    assert await seen(session, 0, 11) == 11
    clock.now += 0.5
    await add(session, 11, 12)
    assert await session.unseen(keys(0, 12)) == set(keys(0, 3))


@pytest.mark.parametrize("limit", [{"retention": 60}, {"max_records": 8}])
async def test_a_record_made_again_keeps_its_age(claim, clock, limit):
    """A replay ends where the feed was before: replayed records must not outlive newer ones."""
    session = await claim(**limit)
    for number in range(8):
        clock.now += 7
        await add(session, number, number + 1)
    await add(session, 0, 4)
    assert await seen(session, 0, 8) == session.record_count == 8
    for number in range(8, 11):
        clock.now += 6.5
        await add(session, number, number + 1)
    assert await session.unseen(keys(0, 11)) == set(keys(0, 3 if "max_records" in limit else 2))
    assert session.record_count == await seen(session, 0, 11)


async def test_records_are_not_removed_until_a_cursor_after_them_is_saved(claim, clock):
    """The page is larger than the limit. After a crash between its messages the whole page is fetched again."""
    session = await claim(retention=60, max_records=1)
    for number in range(15):
        clock.now += 6
        await add(session, number, number + 1, cursor=None)
    assert await seen(session, 0, 15) == 15
    await add(session, 15, 16, cursor="c1")
    assert await session.unseen(keys(0, 16)) == set(keys(0, 15))


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
    """With several messages in flight, some are before the saved cursor and some are after it."""
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
        assert min(number + 1, 80) <= session.record_count < 90
        assert await seen(session, 0, count) == session.record_count
    assert session.record_count == 80
    assert await session.unseen(keys(0, count)) == set(keys(0, count - 80))


async def test_the_store_holds_at_most_an_eighth_more_than_max_records(claim):
    session = await claim(max_records=500)
    for start in range(0, 5000, 250):
        await add(session, start, start + 250)
        assert session.record_count <= 500 + 500 // 8
    assert await seen(session, 4500, 5000) == 500


async def test_a_record_is_removed_at_most_an_eighth_of_the_retention_late(claim, clock):
    """Records of one segment are removed together, and a slow feed does not fill a segment."""
    session = await claim(retention=80)
    made = {}
    for number in range(form(180, 300)):
        await add(session, number, number + 1)
        made[str(number)] = clock.now
        there = made.keys() - await session.unseen(list(made))
        assert {key for key, at in made.items() if clock.now - at <= 80} <= there
        assert there <= {key for key, at in made.items() if clock.now - at <= 80 * 9 / 8}
        clock.now += 1


@pytest.mark.parametrize("again", [False, True])
async def test_a_replay_takes_no_other_record_away(claim, again):
    """Neither during the replay nor when the feed then sends as many new messages as there are records."""
    session = await claim(max_records=400)
    for start in range(0, 400, 40):
        await add(session, start, start + 40)
    if again:
        session = await claim(max_records=400)
    for start in range(0, 200, 20):
        await add(session, start, start + 20, cursor=None)
        assert session.record_count == 400
    assert await session.unseen(keys(0, 400)) == set()
    for start in range(400, 800, 50):
        await add(session, start, start + 50)
        assert await session.unseen(keys(start - 350, start + 50)) == set()
    assert await seen(session, 0, 800) == session.record_count == 400


async def test_a_page_of_old_and_new_keys_adds_the_new_ones(claim):
    session = await claim(max_records=8)
    await add(session, 0, 4)
    await add(session, 2, 8)
    assert session.record_count == 8
    assert await session.unseen(keys(0, 8)) == set()
    await session.commit(cursor="c", records=[_types.Record(key) for key in ["8", "3", "8", "3"]])
    assert await session.unseen(keys(0, 9)) == {"0"}
    assert session.record_count == 8


async def test_no_record_is_removed_without_retention_and_max_records(claim, clock):
    session = await claim(retention=None, max_records=None)
    await add(session, 0, 200)
    clock.now += 1e9
    await add(session, 200, 201)
    assert session.record_count == 201


async def test_records_are_kept_for_at_least_30_days_by_default(claim, clock):
    session = await claim()
    await add(session, 0, 1)
    clock.now += 30 * 86_400
    await add(session, 1, 2)
    assert await seen(session, 0, 2) == 2


YEARS = 56 * 365.25 * 86_400


@pytest.mark.parametrize("restart", ["before", "after", "both", "never"])
async def test_no_record_is_removed_when_the_clock_was_behind_and_is_set(claim, clock, restart):
    """A machine without a clock battery starts in 1970 until it synchronises its clock."""
    session = await claim(retention=60, max_records=400)
    for start in range(0, 200, 20):
        await add(session, start, start + 20)
        clock.now += 1
    if restart in {"before", "both"}:
        session = await claim(retention=60, max_records=400)
    clock.now += YEARS
    await add(session, 200, 220)
    if restart in {"after", "both"}:
        session = await claim(retention=60, max_records=400)
    for start in range(220, 300, 20):
        clock.now += 1
        await add(session, start, start + 20)
    assert await session.unseen(keys(0, 300)) == set()
    assert session.record_count == 300
    for number in range(300, 310):
        clock.now += 7
        await add(session, number, number + 1)
    assert await session.unseen(keys(0, 310)) == set(keys(0, 300))


async def test_no_record_is_removed_by_a_commit_without_records_when_the_clock_is_set(claim, clock):
    session = await claim(retention=60)
    await add(session, 0, 3)
    for _ in range(20):
        clock.now += 50
        await add(session, 3, 3)
    clock.now += YEARS
    await add(session, 3, 3)
    await add(session, 3, 4)
    assert await session.unseen(keys(0, 4)) == set()


async def test_one_reading_of_the_clock_ages_records_by_an_eighth_of_the_retention(claim, clock):
    """The clock may have been set, or the feed was quiet for that long. Waiting is safe in both cases."""
    session = await claim(retention=80)
    await add(session, 0, 1)
    for number in range(1, 10):
        assert await seen(session, 0, number) == number
        clock.now += 70
        await add(session, number, number + 1)
    assert await session.unseen(keys(0, 10)) == {"0"}


async def test_a_clock_that_is_set_forward_and_back_removes_nothing(claim, clock):
    session = await claim(retention=60, max_records=400)
    for start in range(0, 300, 10):
        clock.now += YEARS if start % 20 else -YEARS
        await add(session, start, start + 10)
    assert await session.unseen(keys(0, 300)) == set()


@pytest.mark.parametrize("step", [1e9, 50])
async def test_records_made_while_the_clock_was_ahead_do_not_stay_for_ever(claim, clock, step):
    """Records from the future would block the removal of later ones."""
    session = await claim(retention=60)
    clock.now += step
    await add(session, 0, 1)
    clock.now -= step
    for number in range(1, 30):
        await add(session, number, number + 1)
        clock.now += 6
    assert "0" in await session.unseen(keys(0, 30))


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
