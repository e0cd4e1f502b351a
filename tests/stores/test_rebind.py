"""Rebinding a name to another feed and renaming a consumer keep all progress."""

import contextlib
import itertools
import logging
import re
import sqlite3

import pytest

from push_to_poll_client import Consumer, OwnershipLost, StoreBusy, StoreError, StoreMismatch
from push_to_poll_client._types import DeadLetter, Record
from push_to_poll_client.stores import MemoryStore, SQLiteStore
from push_to_poll_client.stores._postgres.progress import ClaimedName
from push_to_poll_client.stores._sqlite.session import TABLES_OF_A_NAME
from push_to_poll_client.testing import FakeFeed
from tests.support.postgres_server import shared_server
from tests.support.postgres_stores import PostgresStores

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]

OLD, NEW = "https://old.example/orders", "https://new.example/orders"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # worker threads take real time


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


@pytest.fixture(params=["memory", "sqlite", "transactional", "postgres"])
async def store(request, path, monkeypatch, anyio_backend):
    if request.param == "memory":
        yield MemoryStore(clock=ticks())
    elif request.param == "postgres":
        if anyio_backend == "trio":
            pytest.skip("all of it runs in worker threads, so one event loop is enough")
        now = ticks()
        monkeypatch.setattr(ClaimedName, "time", lambda _: now())
        stores = PostgresStores(shared_server(request.config), own_tables="")
        yield stores.store()
        await stores.aclose()
    else:
        yield SQLiteStore(path, transactional=request.param == "transactional", clock=ticks())


@pytest.fixture
def sqlite(path):
    return SQLiteStore(path, clock=ticks())


def ticks():
    """Clock that advances one second per reading: the store keeps one cursor per second."""
    return itertools.count(1_000_000_000.0).__next__


@contextlib.asynccontextmanager
async def claimed(store, name, feed):
    session = await store.claim(name, feed=feed)
    try:
        yield session
    finally:
        await session.release()


def letter(key):
    return DeadLetter(dedupe_key=key, id=key, raw=b"raw", error="broken")


async def begin(store, name, feed, cursor="c1", keys=("1", "2")):
    async with claimed(store, name, feed) as session:
        records = [*map(Record, keys)]
        await session.commit(cursor=f"before {cursor}", records=[])
        await session.commit(cursor=cursor, records=records, dead_letters=[letter("d")], state={"a": "1"})
        return session.fencing_token


async def progress(store, name, feed):
    """Return everything stored under a name."""
    async with claimed(store, name, feed) as session:
        seen = {"1", "2", "3"} - await session.unseen(["1", "2", "3"])
        history = [saved.cursor for saved in session.history]
        return session.cursor, seen, session.dead_letter_count, dict(session.state), history


WHOLE = ("c1", {"1", "2"}, 1, {"a": "1"}, [None, "before c1", "c1"])
EMPTY = (None, set(), 0, {}, [None])


async def test_a_name_goes_on_with_another_feed(store):
    token = await begin(store, "orders", OLD)
    await store.rebind("orders", feed=NEW)
    assert await progress(store, "orders", NEW) == WHOLE
    with pytest.raises(StoreMismatch):
        await store.claim("orders", feed=OLD)
    async with claimed(store, "orders", NEW) as session:
        assert session.fencing_token > token + 1, "a former owner can write no more"


async def test_a_name_goes_on_under_another_name(store):
    await begin(store, OLD, OLD)
    await store.rebind(OLD, new_name="orders")
    assert await progress(store, "orders", OLD) == WHOLE
    assert await progress(store, OLD, OLD) == EMPTY


async def test_a_name_that_is_its_feeds_identity_is_renamed_with_the_feed(store):
    """For example a consumer without `name=`: its name becomes the identity of the new feed."""
    await begin(store, OLD, OLD)
    await store.rebind(OLD, feed=NEW)
    assert await progress(store, NEW, NEW) == WHOLE


async def test_a_name_gets_another_feed_and_another_name_at_once(store):
    await begin(store, OLD, OLD)
    await store.rebind(OLD, feed=NEW, new_name="orders")
    assert await progress(store, "orders", NEW) == WHOLE


async def test_a_correct_binding_stays_unchanged(store):
    await begin(store, "orders", OLD)
    await store.rebind("orders", feed=OLD, new_name="orders")
    assert await progress(store, "orders", OLD) == WHOLE


async def test_a_name_that_exists_is_not_taken(store):
    await begin(store, OLD, OLD)
    await begin(store, "orders", NEW, cursor="n1", keys=["3"])
    with pytest.raises(ValueError, match=r"'orders' exists already.*replace=True"):
        await store.rebind(OLD, feed=NEW, new_name="orders")
    assert await progress(store, OLD, OLD) == WHOLE
    assert (await progress(store, "orders", NEW))[:2] == ("n1", {"3"})


async def test_a_name_that_exists_is_replaced_with_all_that_it_has(store):
    await begin(store, OLD, OLD)
    await begin(store, "orders", NEW, cursor="n1", keys=["3"])
    await begin(store, "other", OLD)
    await store.rebind(OLD, feed=NEW, new_name="orders", replace=True)
    assert await progress(store, "orders", NEW) == WHOLE
    assert await progress(store, "other", OLD) == WHOLE
    assert await progress(store, OLD, OLD) == EMPTY


async def test_replace_needs_nothing_to_replace(store):
    await begin(store, OLD, OLD)
    await store.rebind(OLD, new_name="orders", replace=True)
    await store.rebind("orders", new_name="orders", replace=True)
    assert await progress(store, "orders", OLD) == WHOLE


async def test_an_unknown_name_is_refused(store):
    with pytest.raises(ValueError, match="has no name 'orders'"):
        await store.rebind("orders", feed=NEW)
    await begin(store, "a", OLD)
    with pytest.raises(ValueError, match="has no name 'orders'"):
        await store.rebind("orders", feed=NEW)


async def test_a_missing_file_is_not_made(sqlite, path):
    with pytest.raises(ValueError, match="has no name 'orders'"):
        await sqlite.rebind("orders", feed=NEW)
    assert not path.exists()


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({}, ValueError, "rebind needs feed= or new_name="),
        ({"feed": ""}, ValueError, "feed must be a str of at least 1 character, not ''"),
        ({"new_name": ""}, ValueError, "new_name must be a str of at least 1 character, not ''"),
        ({"feed": FakeFeed()}, TypeError, "feed must be a str of at least 1 character, not '<push_to_poll"),
        ({"new_name": 7}, TypeError, "new_name must be a str of at least 1 character, not '7'"),
    ],
)
async def test_wrong_arguments_are_refused(store, wrong, error, says):
    await begin(store, "orders", OLD)
    with pytest.raises(error, match=re.escape(says)):
        await store.rebind("orders", **wrong)
    assert await progress(store, "orders", OLD) == WHOLE


@pytest.mark.parametrize("owned", [OLD, "orders"])
async def test_a_name_with_an_owner_is_left_alone(store, owned):
    await begin(store, OLD, OLD)
    await begin(store, "orders", OLD)
    async with claimed(store, owned, OLD) as session:
        with pytest.raises(StoreBusy, match=re.escape(f"the name '{owned}'")):
            await store.rebind(OLD, new_name="orders", replace=True)
        await session.commit(cursor="c2", records=[])
        await begin(store, "other", OLD)
        await store.rebind("other", new_name="another")  # while `name` is owned
        await session.commit(cursor="c3", records=[])


async def test_a_file_of_another_process_is_left_alone(sqlite, path):
    await begin(sqlite, "orders", OLD)
    async with claimed(SQLiteStore(path), "other", OLD):
        with pytest.raises(StoreBusy):
            await sqlite.rebind("orders", feed=NEW)
    assert await progress(sqlite, "orders", OLD) == WHOLE


async def test_a_former_owner_writes_nothing_after_a_rebind(sqlite, path):
    """Even if the lock file was deleted while the owner ran (G10)."""
    session = await sqlite.claim("orders", feed=OLD)
    path.with_name("store.db.lock").unlink()
    await SQLiteStore(path).rebind("orders", feed=NEW)
    with pytest.raises(OwnershipLost):
        await session.commit(cursor="c9", records=[])
    await session.release()


async def test_a_rebind_that_fails_changes_nothing(sqlite, path):
    await begin(sqlite, OLD, OLD)
    await begin(sqlite, "orders", NEW, cursor="n1", keys=["3"])
    await begin(sqlite, "third", "third")
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE UNIQUE INDEX feeds ON push_to_poll_consumer(feed)")
    with pytest.raises(StoreError, match="UNIQUE constraint failed"):
        await sqlite.rebind(OLD, feed="third", new_name="orders", replace=True)
    assert await progress(sqlite, OLD, OLD) == WHOLE
    assert (await progress(sqlite, "orders", NEW))[:2] == ("n1", {"3"})


async def test_a_replaced_name_leaves_no_row_in_any_table(sqlite, path):
    await begin(sqlite, "orders", OLD)
    await begin(sqlite, "new", OLD)

    def rows():
        with contextlib.closing(sqlite3.connect(path)) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            counts = {table: connection.execute(f"SELECT count(*) FROM {table}") for (table,) in tables}  # noqa: S608
            return {table: cursor.fetchone()[0] for table, cursor in counts.items()}

    async with claimed(sqlite, "orders", OLD):
        before = rows()
    assert all(number for table, number in before.items() if "schema" not in table), "each table has something"
    await sqlite.rebind("orders", new_name="new", replace=True)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        tables = connection.execute(
            "SELECT m.name FROM sqlite_master AS m, pragma_table_info(m.name) AS c WHERE c.name = 'consumer'"
        ).fetchall()
        assert sorted(name for (name,) in tables) == sorted(TABLES_OF_A_NAME)
    after = rows()
    halves = {table: number // 2 for table, number in before.items() if table in TABLES_OF_A_NAME}
    assert {table: after[table] for table in halves} == halves


async def test_a_mismatch_names_both_feeds_and_the_remedy(store):
    await begin(store, "orders", OLD)
    with pytest.raises(StoreMismatch) as mismatch:
        await store.claim("orders", feed=NEW)
    text = str(mismatch.value)
    assert re.search(f"'orders' .*is bound to the feed '{OLD}', not to '{NEW}'; if .* rebind", text)
    assert mismatch.value.bound_to == OLD


# Identities that earlier versions gave to feeds


class Renamed(FakeFeed):
    """A feed whose identity was different in earlier versions."""

    former_identity = f"{OLD}?limit=…#9c21d9e6"


async def consume(store, **options):
    """Consume five messages and return the processed ones."""
    done = []
    feed = options.pop("feed", None) or Renamed(identity=OLD)
    feed.publish(5)
    await Consumer(feed, store=store, process=lambda message: done.append(message.id), **options).poll_now()
    return done


@pytest.mark.parametrize("name", [None, "orders"])
async def test_a_name_of_the_version_before_goes_on_although_the_identity_has_changed(store, name, caplog):
    caplog.set_level(logging.INFO)
    before = FakeFeed(identity=Renamed.former_identity)
    assert await consume(store, feed=before, name=name) == ["1", "2", "3", "4", "5"]
    assert await consume(store, name=name) == []
    assert await consume(store, name=name) == []
    assert await consume(store, feed=FakeFeed(identity=OLD), name=name) == [], "it is bound to the new identity"
    said = [record for record in caplog.records if "former identity" in record.getMessage()]
    assert [record.levelname for record in said] == ["INFO"]
    assert "new name" not in caplog.text


@pytest.mark.parametrize("name", [None, "orders"])
@pytest.mark.parametrize("version", [0, 1])
async def test_a_name_of_any_earlier_version_goes_on(store, name, version):
    class Twice(Renamed):
        former_identity = (f"{OLD}#4c0e5c8e", f"{OLD}?limit=…#9c21d9e6")

    await consume(store, feed=FakeFeed(identity=Twice.former_identity[version]), name=name)
    assert await consume(store, feed=Twice(identity=OLD), name=name) == []
    assert await consume(store, feed=FakeFeed(identity=OLD), name=name) == [], "it is bound to the new identity"


async def test_a_name_of_the_version_before_with_another_page_size_is_refused(store):
    await consume(store, feed=FakeFeed(identity=f"{OLD}?limit=…#00000000"), name="orders")
    with pytest.raises(StoreMismatch, match="rebind"):
        await consume(store, name="orders")


async def test_a_name_that_has_begun_again_is_not_overwritten_by_its_former_one(store):
    await consume(store, feed=FakeFeed(identity=Renamed.former_identity))
    assert await consume(store, feed=FakeFeed(identity=OLD)) == ["1", "2", "3", "4", "5"]
    assert await consume(store) == []
    assert await consume(store, feed=FakeFeed(identity=Renamed.former_identity)) == [], "it is there still"


async def test_a_store_without_rebind_claims_as_ever():
    class Other:
        def __init__(self):
            self.store = MemoryStore()

        async def claim(self, name, *, feed):
            return await self.store.claim(name, feed=feed)

    store = Other()
    assert await consume(store) == ["1", "2", "3", "4", "5"]
    await consume(store, feed=FakeFeed(identity=Renamed.former_identity), name="orders")
    with pytest.raises(StoreMismatch):
        await consume(store, name="orders")


async def test_a_store_that_cannot_be_rebound_now_begins_no_new_name(store):
    """Otherwise the old name would stay in the file."""
    await consume(store, feed=FakeFeed(identity=Renamed.former_identity))
    async with claimed(store, Renamed.former_identity, Renamed.former_identity):
        with pytest.raises(StoreBusy):
            await consume(store)


# New names in a file that has other names


def new_names(caplog):
    found = [record for record in caplog.records if "the new name" in record.getMessage()]
    caplog.clear()
    return [(record.levelname, record.getMessage()) for record in found]


async def begin_names(store, *pairs):
    for name, feed in pairs:
        async with claimed(store, name, feed):
            pass


async def test_a_changed_url_without_a_name_is_a_warning_once(sqlite, path, caplog):
    caplog.set_level(logging.INFO)
    await begin_names(sqlite, (OLD, OLD))
    assert new_names(caplog) == [], "the first name of a file causes no log line"
    await begin_names(sqlite, (NEW, NEW))
    assert new_names(caplog) == [
        (
            "WARNING",
            (
                f"{path}: the new name '{NEW}' starts at the beginning; there are already '{OLD}'. If one "
                "of them is the former name of this consumer, stop it and see push-to-poll rebind --help"
            ),
        )
    ]
    await begin_names(sqlite, (NEW, NEW), (OLD, OLD))
    assert new_names(caplog) == []


async def test_a_name_given_to_a_consumer_that_had_none_is_a_warning(sqlite, caplog):
    await begin_names(sqlite, (OLD, OLD), ("orders", OLD))
    assert [level for level, _ in new_names(caplog)] == ["WARNING"]


async def test_named_consumers_of_several_feeds_that_share_a_file_cause_no_warning(sqlite, caplog):
    """With a name, a changed URL is a `StoreMismatch`, and the feed's identity shows a changed name."""
    caplog.set_level(logging.INFO)
    await begin_names(sqlite, ("orders", OLD), ("invoices", NEW))
    assert [level for level, _ in new_names(caplog)] == ["INFO"]


async def test_the_names_of_the_same_feed_come_first_and_at_most_three_are_shown(sqlite, caplog):
    await begin_names(sqlite, *((f"name {n}", f"feed {n}") for n in range(5)), ("z", OLD))
    caplog.clear()
    await begin_names(sqlite, ("orders", OLD))
    ((_, text),) = new_names(caplog)
    assert "there are already 'z', 'name 0', 'name 1' and others. If" in text


async def test_a_strange_name_is_shown_on_one_short_line(sqlite, caplog):
    evil = "\x1b[31m\n\u202e\ud800" + "x" * 1_000_000
    await begin_names(sqlite, (evil, evil), (evil[::-1], evil[::-1]))
    ((_, text),) = new_names(caplog)
    assert text.isprintable()
    assert len(text) < 700


async def test_a_claim_that_fails_has_begun_no_name(sqlite, path, caplog):
    await begin_names(sqlite, (OLD, OLD))
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ALTER TABLE push_to_poll_state RENAME TO hidden")
    with pytest.raises(StoreError):
        await sqlite.claim(NEW, feed=NEW)
    assert new_names(caplog) == []
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ALTER TABLE hidden RENAME TO push_to_poll_state")
    await begin_names(sqlite, (NEW, NEW))
    assert len(new_names(caplog)) == 1
