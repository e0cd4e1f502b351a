"""Records in segments: few lookups for a page, and no search for removed records."""

import contextlib
import random
import sqlite3

import anyio
import pytest

from push_to_poll_client import Record
from push_to_poll_client.stores import SQLiteStore, _bloom
from push_to_poll_client.stores._sqlite import records as records_module
from push_to_poll_client.stores._sqlite import thread
from push_to_poll_client.stores._sqlite.records import Records
from push_to_poll_client.testing._store_suite import StoreSuite

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]

DICE = random.Random(1)  # noqa: S311

PAGE = 100


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # worker threads take real time


@pytest.fixture
async def claim(tmp_path, anyio_backend):
    """Claim a name of a store with segments of 200 records and these limits; released after the test."""
    sessions = []

    async def claim(**limits):
        while sessions:
            await sessions.pop().release()
        store = SQLiteStore(tmp_path / "store.db", **{"max_records": 1600, **limits})
        sessions.append(await store.claim("a", feed="f"))
        return sessions[-1]

    yield claim
    for session in sessions:
        await session.release()


def some_keys(number=PAGE):
    return [f"{DICE.getrandbits(128):032x}" for _ in range(number)]


async def record(session, keys):
    for start in range(0, len(keys), PAGE):
        page = keys[start : start + PAGE]
        session._progress.records._note_unfound(page)  # as after a search; the test does not count this one
        await session.commit(cursor="c", records=[Record(key, fingerprint=int(key[:8], 16)) for key in page])


@pytest.fixture
def lookups(monkeypatch):
    """Count, for each query, the lookups of a key in a segment."""
    lookups, ask = [], Records._find_in

    def counted(self, segments, keys):
        lookups.append(len(segments) * len(keys))
        return ask(self, segments, keys)

    monkeypatch.setattr(Records, "_find_in", counted)
    return lookups


@pytest.fixture
def read(monkeypatch):
    """Collect the segments whose keys were read for the filter."""
    read, add = [], _bloom.BloomFilters.add

    def noted(self, segment, keys):
        read.append((segment, len(keys)))
        add(self, segment, keys)

    monkeypatch.setattr(_bloom.BloomFilters, "add", noted)
    return read


async def test_increasing_ids_need_no_filter(claim, lookups, read):
    session = await claim()
    keys = [f"{number:08x}" for number in range(3000)]
    await record(session, keys)
    for start in range(1500, 2900, 70):
        assert await session.unseen(keys[start : start + 100]) == set()
    assert max(lookups) <= 2 * 100
    assert not read


@pytest.mark.parametrize("again", [False, True])
async def test_descending_keys_are_found_in_each_segment(claim, lookups, again):
    """The keys of each page are below the keys of the page before, in the same or the next segment."""
    session = await claim()
    keys = [f"{number:08x}" for number in range(600, 0, -1)]
    await record(session, keys)
    assert len(session._progress.records.segments.live) == 3
    if again:
        session = await claim()
    for start in range(0, 600, 50):
        assert await session.unseen(keys[start : start + 50]) == set()
        assert await session.unseen(keys[start : start + 1]) == set()
    assert len(await session.fingerprints(keys)) == 600
    lookups.clear()
    assert await session.unseen(["g", "h"]) == {"g", "h"}
    assert not lookups


async def test_new_keys_are_not_searched_for_again_by_their_commit(claim, lookups, read):
    session = await claim()
    await record(session, some_keys(1600))
    for _ in range(5):
        page = some_keys()
        assert await session.unseen(page) == set(page)
        lookups.clear()
        await session.commit(cursor="c", records=[Record(key) for key in page])
        assert not lookups
    await session.commit(cursor="c", records=[Record(key) for key in page])
    assert lookups


async def test_a_single_record_is_replaced_without_a_filter(claim, read):
    """For example the record of a dead letter that is retried."""
    session = await claim()
    keys = some_keys(1600)
    await record(session, keys)
    session = await claim()
    await session.commit(cursor=None, records=[Record(keys[300], fingerprint=7)])
    assert session.record_count == 1600
    assert not read
    assert await session.fingerprints([keys[300]]) == {keys[300]: 7}


async def test_few_looked_up_but_unrecorded_keys_are_remembered(claim, monkeypatch):
    monkeypatch.setattr(records_module, "_MAX_UNFOUND", 250)
    session = await claim()
    pages = [some_keys() for _ in range(9)]
    for page in pages:
        await session.unseen(page)
        assert len(session._progress.records._unfound) <= 250
    for page in pages:
        await session.commit(cursor="c", records=[Record(key) for key in page])
    assert session.record_count == 900
    assert not session._progress.records._unfound


async def test_new_random_keys_are_rarely_looked_up(claim, lookups, read):
    session = await claim()
    keys = some_keys(1600)
    await record(session, keys)
    for _ in range(20):
        page = some_keys()
        assert await session.unseen(page) == set(page)
    assert sum(lookups) < 200
    assert [number for _, number in read] == [200] * 8


async def test_the_filter_knows_keys_recorded_after_it_was_built(claim, read):
    session = await claim()
    await record(session, some_keys(1600))
    assert len(await session.unseen(some_keys())) == PAGE
    keys = some_keys(1500)
    await record(session, keys)
    assert await session.unseen(keys) == set()
    assert len(read) == 8 + 15


@pytest.mark.parametrize("again", [False, True])
async def test_a_replay_is_recognised_with_few_lookups(claim, lookups, again):
    """Each page needs the queries of one or two segments, except for finding the first segment."""
    session = await claim()
    keys = some_keys(1600)
    await record(session, keys)
    if again:
        session = await claim()
    for start in range(0, 1600, PAGE):
        assert await session.unseen([*keys[start : start + PAGE], "new"]) == {"new"}
    assert sum(lookups) < 1600 * 3


async def test_duplicates_from_all_segments_are_found(claim, lookups):
    session = await claim()
    keys = some_keys(1600)
    await record(session, keys)
    DICE.shuffle(keys)
    page = [*keys[:200], *some_keys()]
    assert await session.unseen(page) == set(page[200:])
    assert sum(lookups) < (8 + 2 * records_module._LOCAL_TRIES) * 210


async def test_the_newest_fingerprint_of_each_random_key_is_returned(claim, monkeypatch):
    """Several generations may contain the same key."""
    monkeypatch.setattr(_bloom, "_MIN_KEYS", 400)
    session = await claim()
    keys = some_keys(1600)
    await record(session, keys)
    assert len(await session.unseen(some_keys())) == PAGE
    assert len(session._progress.records._filters._generations) > 1
    await session.commit(cursor="c", records=[Record(keys[5], fingerprint=7), Record(keys[6])])
    found = await session.fingerprints([*keys, "new"])
    assert found == {**{key: int(key[:8], 16) for key in keys if key != keys[6]}, keys[5]: 7}


async def test_keys_of_removed_records_are_unseen(claim):
    session = await claim()
    keys = some_keys(1600)
    await record(session, keys)
    assert await session.unseen(keys) == set()
    later = some_keys(800)
    await record(session, later)
    assert await session.unseen([*keys, *later]) == set(keys[:800])


async def test_the_filter_drops_removed_segments(claim, monkeypatch):
    monkeypatch.setattr(_bloom, "_MIN_KEYS", 400)
    session = await claim()
    await record(session, some_keys(1600))
    await session.unseen(some_keys())
    for _ in range(5):
        await record(session, some_keys(1600))
        generations = session._progress.records._filters._generations
        assert sum(len(one.segments) for one in generations) == 8
        assert len(generations) <= 4


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("random_keys", [False, True])
async def test_expired_records_are_unseen_at_once_and_deleted_by_the_next_commits(claim, lookups, random_keys):
    clock = Clock()
    session = await claim(retention=60, clock=clock)
    keys = some_keys(1600) if random_keys else [f"{number:08x}" for number in range(1600)]
    await record(session, keys)
    assert await session.unseen([keys[0], keys[-1]]) == set()
    later = [f"{number:032x}" for number in range(9)]
    for key in later:
        assert session.record_count >= 1600
        clock.now += 7
        await record(session, [key])
    assert session.record_count == 9
    assert await session.unseen([*keys, *later]) == set(keys)
    assert await check_sweeps(session) == [6, 4, 2, 0]


async def check_sweeps(session):
    """Count the forgotten segments left in the file, after each commit that begins no segment."""
    left = []
    for number in range(4):
        if left:
            await session.commit(cursor="c", records=[Record("g" * number)])
        rows = session._file.connection.execute("SELECT count(*) FROM push_to_poll_segment").fetchone()[0]
        left.append(rows - len(session._progress.records.segments.live))
    records = session._file.connection.execute("SELECT count(*) FROM push_to_poll_record").fetchone()[0]
    assert records == session.record_count
    return left


@pytest.mark.parametrize("restart", [False, True])
async def test_each_commit_deletes_a_few_segments_of_an_ended_dedupe_epoch(claim, lookups, restart):
    session = await claim()
    keys = [f"{number:08x}" for number in range(1600)]
    await record(session, keys)
    await session.reset(None, forget=True)
    if restart:
        session = await claim()
    assert session.record_count == 0
    assert await session.unseen(keys) == set(keys)
    assert not any(lookups)
    await record(session, keys[:100])
    assert await session.unseen(keys) == set(keys[100:])
    if restart:
        session = await claim()
        assert await session.unseen(keys) == set(keys[100:])
    assert await check_sweeps(session) == [6, 4, 2, 0]
    assert await session.unseen([*keys, "g"]) == set(keys[100:])


async def test_a_new_segment_does_not_reuse_the_number_of_a_deleted_one(claim):
    """Even if the file has none of its records. Otherwise the next restart would forget the new records."""
    session = await claim()
    keys = [f"{number:08x}" for number in range(400)]
    await record(session, keys)
    await session.reset(None, forget=True)
    for _ in range(2):
        await session.commit(cursor="c", records=[])
    assert await check_sweeps(session) == [0, 0, 0, 0]
    await session.reset(None, forget=True)
    await session.commit(cursor="c", records=[])
    session = await claim()
    await record(session, keys)
    session = await claim()
    assert await session.unseen(keys) == set()


async def test_a_new_dedupe_epoch_builds_a_new_filter(claim, read):
    session = await claim()
    keys = some_keys(1600)
    await record(session, keys)
    assert await session.unseen(keys[:5]) == set()
    await session.reset(None, forget=True)
    assert await session.unseen(keys) == set(keys)
    again = some_keys(1600)
    await record(session, again)
    read.clear()
    assert await session.unseen([*keys, *again]) == set(keys)
    assert len(read) == 8


async def test_building_the_filter_can_be_cancelled(claim, monkeypatch):
    """Ten million records take seconds, and stopping must not wait for them."""
    session = await claim()
    keys = some_keys(1600)
    await record(session, keys)
    add, numbers, token = _bloom.BloomFilters.add, [], anyio.lowlevel.current_token()

    def cancelling(self, segment, keys):
        numbers.append(segment)
        anyio.from_thread.run_sync(scope.cancel, token=token)
        while not thread._this_thread.job.is_cancelled:
            anyio.from_thread.run(anyio.lowlevel.checkpoint, token=token)
        add(self, segment, keys)

    with monkeypatch.context() as slow, anyio.CancelScope() as scope:
        slow.setattr(_bloom.BloomFilters, "add", cancelling)
        await session.unseen(keys)
    assert scope.cancelled_caught
    assert len(numbers) == 1
    assert await session.unseen([*keys, "new"]) == {"new"}


class TestStoreInUTF16(StoreSuite):
    """SQLite cannot store U+FFFE or U+FFFF in UTF-16: it reads both as U+FFFD."""

    @pytest.fixture(autouse=True)
    def _application(self, tmp_path, anyio_backend):
        encoding = {"asyncio": "UTF-16le", "trio": "UTF-16be"}[anyio_backend]
        self.path = tmp_path / "application.db"
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            connection.execute(f"PRAGMA encoding = '{encoding}'")
            connection.execute("CREATE TABLE application(text)")
            assert connection.execute("PRAGMA encoding").fetchone() == (encoding,)

    async def make_store(self):
        return SQLiteStore(self.path, transactional=True)

    async def reopen(self, store):
        return SQLiteStore(store.path, transactional=True)
