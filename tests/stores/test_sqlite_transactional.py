"""A SQLiteStore in the application's database: handlers write through its connection (G8)."""

import asyncio
import contextlib
import gc
import sqlite3
import subprocess
import sys
import threading
from functools import partial

import anyio
import pytest
from anyio import to_thread

from push_to_poll_client import OwnershipLost, Record, Settlement, SQLiteStore, StoreError
from push_to_poll_client.stores._sqlite import schema
from push_to_poll_client.stores._sqlite.reader import SQLiteReader
from push_to_poll_client.testing import TransactionalStoreSuite
from tests.support.forms import GUARD, form

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]

FEED = "https://feed.example/"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # worker threads take real time


@pytest.fixture
def path(tmp_path):
    return tmp_path / "app.db"


def application(path, *statements, values=()):
    """Run SQL as the application, through another connection."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        return [connection.execute(statement, values).fetchall() for statement in statements][-1]


@contextlib.asynccontextmanager
async def claimed(store, name="a"):
    session = await store.claim(name, feed=FEED)
    try:
        yield session
    finally:
        await session.release()


async def note(store, session, *texts):
    async with session.transaction([Record(text) for text in texts]):
        for text in texts:
            store.connection.execute("INSERT INTO note(text) VALUES (?)", (text,))


def notes(path):
    return [text for (text,) in application(path, "SELECT text FROM note ORDER BY id")]


FORK = """
import os, signal, sys
import anyio
from push_to_poll_client import SQLiteStore, StoreError

signal.alarm(60)

async def main():
    store = SQLiteStore(sys.argv[1], transactional=True)
    session = await store.claim("a", feed="f")
    async with session.transaction([]):
        connection = store.connection
        connection.execute("INSERT INTO note(text) VALUES ('before')")
    try:
        async with session.transaction([]):
            connection.execute("INSERT INTO note(text) VALUES ('parent''s')")
            if not os.fork():
                try:
                    connection.execute("DELETE FROM note")
                except RuntimeError:
                    raise KeyError
    except StoreError as error:
        print(type(error).__name__, end=" ", flush=True)
        os._exit(7)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
    await session.commit(cursor=None, records=[])
    await session.release()

anyio.run(main, backend=sys.argv[2])
"""


@pytest.fixture
def store(path):
    application(path, "CREATE TABLE note(id INTEGER PRIMARY KEY, text)")
    return SQLiteStore(path, transactional=True)


class TestTransactionalSQLiteStore(TransactionalStoreSuite):
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path):
        self.path = tmp_path / "app.db"

    async def make_store(self):
        application(self.path, "CREATE TABLE note(id INTEGER PRIMARY KEY, text)")
        return SQLiteStore(self.path, transactional=True)

    async def reopen(self, store):
        return SQLiteStore(store.path, transactional=True)

    async def steal(self, store, name):
        application(self.path, "UPDATE push_to_poll_consumer SET token = token + 1 WHERE name = ?", values=(name,))

    async def state(self, store, name, key):
        rows = application(
            self.path,
            """
            SELECT coalesce(state, 'processed') FROM push_to_poll_record JOIN push_to_poll_consumer
            ON consumer = id WHERE name = ? AND key = ? ORDER BY segment DESC
            """,
            values=(name, key),
        )
        return Settlement(rows[0][0]) if rows else None

    @contextlib.contextmanager
    def failing(self, store):
        guard, connection = store._file.guard, store._file.connection
        with guard.store_access():
            connection.execute(
                "CREATE TEMP TRIGGER broken AFTER INSERT ON push_to_poll_state BEGIN SELECT RAISE(FAIL, 'no'); END"
            )
        yield
        with guard.store_access():
            connection.execute("DROP TRIGGER IF EXISTS broken")

    async def write(self, store, text):
        store.connection.execute("INSERT INTO note(text) VALUES (?)", (text,))

    async def written(self, store):
        return notes(self.path)


async def test_the_suite_skips_a_store_that_is_not_transactional(path):
    class Plain(TransactionalStoreSuite):
        async def make_store(self):
            return SQLiteStore(path)

    suite = Plain()
    with pytest.raises(pytest.skip.Exception, match="not transactional"):
        await suite.test_effects_are_durable_when_the_handler_returns()
    for call in (suite.write(None, "1"), suite.written(None)):
        with pytest.raises(NotImplementedError):
            await call


async def test_the_suite_skips_the_waiting_test_for_concurrent_transactions(tmp_path):
    class Concurrent(SQLiteStore):
        concurrent_transactions = True

    class Suite(TestTransactionalSQLiteStore):
        path = tmp_path / "other.db"

        async def make_store(self):
            application(self.path, "CREATE TABLE note(id INTEGER PRIMARY KEY, text)")
            return Concurrent(self.path, transactional=True)

    with pytest.raises(pytest.skip.Exception, match="do not wait for each other"):
        await Suite().test_a_handler_cannot_wait_for_what_waits_for_it()


class TestConnection:
    async def test_a_store_that_is_not_transactional_refuses_to_give_its_connection(self, path):
        store = SQLiteStore(path)
        assert not store.transactional
        assert not store.concurrent_transactions
        with pytest.raises(RuntimeError, match=r"app\.db: .* transactional=True"):
            store.connection  # noqa: B018
        async with claimed(store) as session:
            assert not hasattr(session, "transaction")

    async def test_the_connection_is_refused_before_a_claim_and_after_its_release(self, store, path):
        assert store.transactional
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"app\.db: .* only while a message is processed"):
                store.connection  # noqa: B018
            async with claimed(store) as session:
                await note(store, session, "a")
                await session.commit(cursor=None, records=[])
        assert notes(path) == ["a", "a"]

    async def test_effects_of_one_store_do_not_open_the_connection_of_another_store(self, store, tmp_path):
        other = SQLiteStore(tmp_path / "other.db", transactional=True)
        async with claimed(store) as session, claimed(other) as others, session.transaction([]):
            with pytest.raises(RuntimeError, match=r"other\.db"):
                other.connection  # noqa: B018
            async with others.transaction([]):
                assert other.connection is not store.connection
            await others.commit(cursor="c1", records=[])  # does not wait for the other session

    @pytest.mark.parametrize("anyio_backend", form(["trio"], ["asyncio", "trio"]))
    async def test_a_forked_child_cannot_use_the_connection_and_the_parent_keeps_its_effects(
        self, store, path, anyio_backend
    ):
        """Whatever the child does, even if it returns from the handler."""
        script = [sys.executable, "-c", FORK, str(path), anyio_backend]
        forked = await anyio.run_process(script, check=False)
        assert (forked.returncode, forked.stdout) == (0, b"OwnershipLost 7\n"), forked.stderr
        assert notes(path) == ["before", "parent's"]


class TestFile:
    async def test_a_store_adds_its_tables_without_changing_those_of_the_application(self, path):
        """The application id, user version, views and triggers stay unchanged."""
        application(
            path,
            "PRAGMA application_id = 77",
            "PRAGMA user_version = 5",
            "CREATE TABLE account(name PRIMARY KEY, amount)",
            "CREATE TABLE consumer(id)",
            "CREATE VIEW rich AS SELECT * FROM account WHERE amount > 100",
            "CREATE TRIGGER logged AFTER INSERT ON account BEGIN INSERT INTO consumer VALUES (new.name); END",
        )
        before = application(path, "SELECT * FROM sqlite_master")
        store = SQLiteStore(path, transactional=True)
        async with claimed(store) as session:
            async with session.transaction([Record("1")]):
                store.connection.execute("INSERT INTO account VALUES ('a', 101)")
            await session.commit(cursor="c1", records=[Record("1")])
        assert application(path, "SELECT * FROM sqlite_master")[: len(before)] == before
        assert application(path, "PRAGMA application_id") == [(77,)]
        assert application(path, "PRAGMA user_version") == [(5,)]
        assert application(path, "SELECT * FROM rich, consumer") == [("a", 101, "a")]
        assert [progress.cursor for progress in SQLiteReader(path).snapshot().progress] == ["c1"]
        async with claimed(SQLiteStore(path, transactional=True)) as session:
            assert session.cursor == "c1"

    async def test_a_store_file_can_be_opened_with_and_without_transactional(self, path):
        for number in range(4):
            async with claimed(SQLiteStore(path, transactional=bool(number % 2))) as session:
                assert session.cursor == (str(number - 1) if number else None)
                await session.commit(cursor=str(number), records=[Record(str(number))])
        async with claimed(SQLiteStore(path)) as session:
            assert await session.unseen([*"01234"]) == {"4"}

    async def test_a_database_of_an_application_is_refused_without_transactional(self, path):
        application(path, "CREATE TABLE note(id INTEGER PRIMARY KEY, text)")
        with pytest.raises(StoreError, match="a database of another application"):
            await SQLiteStore(path).claim("a", feed=FEED)

    async def test_a_file_that_is_not_a_sqlite_database_is_refused(self, path):
        path.write_bytes(b"no database" * 512)
        with pytest.raises(StoreError, match="is not a SQLite database"):
            await SQLiteStore(path, transactional=True).claim("a", feed=FEED)
        path.unlink()
        async with claimed(SQLiteStore(path, transactional=True)):
            pass

    async def test_foreign_keys_are_enforced(self, path):
        application(
            path,
            "CREATE TABLE account(name PRIMARY KEY)",
            "CREATE TABLE transfer(account REFERENCES account(name))",
            "CREATE TABLE later(account REFERENCES account(name) DEFERRABLE INITIALLY DEFERRED)",
        )
        store = SQLiteStore(path, transactional=True)
        async with claimed(store) as session:
            with pytest.raises(StoreError, match="FOREIGN KEY constraint failed"):
                await self._break_foreign_keys(store, session)
        assert application(path, "SELECT * FROM later") == []

    async def _break_foreign_keys(self, store, session):
        async with session.transaction([]):
            with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
                store.connection.execute("INSERT INTO transfer VALUES ('nobody')")
            store.connection.execute("INSERT INTO later VALUES ('nobody')")


class TestSessions:
    async def test_release_during_a_message_rolls_back_its_effects_and_refuses_later_writes(self, store, path):
        """If the handler continues, its effects are rolled back and its later writes are rejected."""
        session = await store.claim("a", feed=FEED)
        with pytest.raises(StoreError, match="or the session was released"):
            await self._released_meanwhile(store, session)
        assert notes(path) == []
        async with claimed(store) as session:
            await note(store, session, "2")
            await session.commit(cursor=None, records=[])
        assert notes(path) == ["2"]

    async def _released_meanwhile(self, store, session):
        async with session.transaction([Record("1")]):
            connection = store.connection
            connection.execute("INSERT INTO note(text) VALUES ('1')")
            await session.release()
            with pytest.raises((StoreError, RuntimeError, sqlite3.ProgrammingError)):
                connection.execute("INSERT INTO note(text) VALUES ('2')")

    async def test_the_last_session_of_a_file_is_refused_for_its_release_and_not_for_the_closed_file(self, store):
        session = await store.claim("a", feed=FEED)
        await session.release()
        with pytest.raises(OwnershipLost, match="was released"):
            await session.commit(cursor="1", records=[])

    async def test_a_dropped_session_is_rolled_back_and_does_not_block_the_next_one(self, store, path):
        """For example the event loop ended during the message. The next session rolls the transaction back."""

        async def begin():
            session = await store.claim("a", feed=FEED)
            await store._thread.run(partial(session._transaction.begin, lambda: None), session._transaction)
            with store._file.guard.store_access():
                store._file.connection.execute("INSERT INTO note(text) VALUES ('1')")

        async with claimed(store, "b") as second:
            await begin()
            gc.collect()
            second._transaction.begin_first = True
            await note(store, second, "2")
            await begin()
            gc.collect()
            await note(store, second, "3")
        assert notes(path) == ["2", "3"]

    async def test_a_claim_waits_for_an_open_transaction_and_can_be_cancelled(self, store):
        waits = anyio.Event()

        async def claim():
            await begun.wait()
            waits.set()
            await self._claim_and_release(store)

        begun = anyio.Event()
        async with claimed(store) as session:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(claim)
                async with session.transaction([]):
                    store.connection.execute("INSERT INTO note(text) VALUES ('1')")
                    begun.set()
                    await waits.wait()
                    while not store._thread._waiting:
                        await to_thread.run_sync(lambda: None)
                    tasks.cancel_scope.cancel()
            await self._claim_and_release(store)

    async def _claim_and_release(self, store):
        async with claimed(store, "b"):
            pass

    async def test_a_release_does_not_wait_for_the_transaction_of_another_session(self, store):
        async with claimed(store) as session:
            other = await store.claim("b", feed=FEED)
            async with session.transaction([]):
                store.connection.execute("INSERT INTO note(text) VALUES ('1')")
                await other.release()

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_a_commit_completes_when_its_task_is_cancelled(self, store, path, monkeypatch):
        begun, go = threading.Event(), threading.Event()

        def clock():
            begun.set()
            assert go.wait(GUARD)
            return 1.0

        async with claimed(store) as session:
            await note(store, session, "1")
            monkeypatch.setattr(session._progress, "_clock", clock)
            task = asyncio.ensure_future(session.commit(cursor="c1", records=[Record("1")]))
            await to_thread.run_sync(begun.wait)
            task.cancel()
            await anyio.wait_all_tasks_blocked()
            go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert session.cursor == "c1"
            await note(store, session, "2")
            await session.commit(cursor="c2", records=[Record("2")])
        assert notes(path) == ["1", "2"]

    async def test_effects_whose_records_cannot_be_written_are_rolled_back(self, store, path):
        """The consumer processes the messages again, so their effects must not be applied twice."""
        async with claimed(store) as session:
            with pytest.raises(AttributeError):
                async with session.transaction([None]):
                    store.connection.execute("INSERT INTO note(text) VALUES ('1')")
            await note(store, session, "2")
        assert notes(path) == ["2"]

    async def test_a_record_that_is_given_twice_is_written_once(self, store):
        async with claimed(store) as session:
            await note(store, session, "1", "2")
            written = []
            store._file.connection.set_trace_callback(
                lambda sql: "push_to_poll_record" in sql and written.append(sql)
            )
            await session.commit(cursor=None, records=[Record("1"), Record("2")])
            assert not written
            await note(store, session, "3")
            await session.commit(cursor=None, records=(Record("3", Settlement.SKIPPED), Record("4")))
            assert session.record_count == 4
            assert not session._written
            assert await session.unseen(["1", "2", "3", "4", "5"]) == {"5"}


THREADS = """
import sqlite3, sys
import anyio, anyio.to_thread
from push_to_poll_client import Consumer, MemoryStore, SQLiteStore
from push_to_poll_client.testing import FakeFeed

async def main(path):
    store, feed = SQLiteStore(path, transactional=True), FakeFeed()
    feed.publish(60)

    def write(message, thread):
        for n in range(5):
            store.connection.execute(f"INSERT INTO note VALUES (?) -- {message.id} {thread}", (n,))
            store.connection.execute(f"SELECT * FROM note -- {message.id} {n}").fetchall()

    async def process(message):
        async with anyio.create_task_group() as threads:
            for thread in range(4):
                threads.start_soon(anyio.to_thread.run_sync, write, message, thread)

    await Consumer(feed, store=store, name="c", process=process).catch_up()

anyio.run(main, sys.argv[1])
"""


def test_threads_of_one_handler_do_not_block_each_other_for_ever(tmp_path):
    """In a separate process: the deadlock would hold Python's global lock and stop the test too."""
    path = tmp_path / "bank.db"
    application(path, "CREATE TABLE note(number)")
    subprocess.run([sys.executable, "-c", THREADS, path], check=True, timeout=GUARD, capture_output=True)
    assert application(path, "SELECT count(*) FROM note") == [(60 * 4 * 5,)]


async def test_the_file_may_be_closed_while_another_consumer_claims_its_name(path, monkeypatch):
    """The store's thread closes the file, between any two steps of a claim or of a read of `connection`."""
    store = SQLiteStore(path, transactional=True)
    session = await store.claim("a", feed=FEED)
    file, looks = store._file, []

    def look(_):
        looks.append(len(looks))
        return file if len(looks) == 1 else None

    with monkeypatch.context() as patch:
        patch.setattr(SQLiteStore, "_file", property(look), raising=False)
        store._prepare_for_claim()
        looks.clear()
        with pytest.raises(RuntimeError, match="only while a message is processed"):
            _ = store.connection
    await session.release()


async def test_a_first_claim_waits_for_an_application_that_writes(path, monkeypatch):
    """SQLite itself does not wait when it changes a new file to WAL mode."""
    application(path, "CREATE TABLE note(id INTEGER PRIMARY KEY, text)")
    migrate, ends = schema._migrate, []

    def migrate_and_write(*args):
        migrate(*args)
        other.execute("BEGIN IMMEDIATE")
        ends.append(threading.Timer(0.1, lambda: other.execute("COMMIT")))
        ends[0].start()

    monkeypatch.setattr(schema, "_migrate", migrate_and_write)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        try:
            async with claimed(SQLiteStore(path, transactional=True)):
                assert not other.in_transaction
        finally:
            ends[0].join()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_writes_of_a_handler_are_not_committed_later_when_its_event_loop_shuts_down(path, anyio_backend):
    """Asyncio then cancels all tasks, including the task that will end the transaction."""
    application(path, "CREATE TABLE note(id INTEGER PRIMARY KEY, text)")
    store = SQLiteStore(path, transactional=True)

    def shut_down():
        for task in asyncio.all_tasks() - tasks_before:
            task.cancel()

    async def handle():
        async with session.transaction([Record("m1")]):
            store.connection.execute("INSERT INTO note(text) VALUES ('m1')")
            asyncio.get_running_loop().call_soon(shut_down)

    async with claimed(store) as session:
        tasks_before = asyncio.all_tasks()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(handle())
        await session.commit(cursor="c0", records=[Record("m0")])
        assert await session.unseen(["m0", "m1"]) == {"m1"}
    assert notes(path) == []
