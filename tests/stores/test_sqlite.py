"""SQLiteStore on a real disk: durability, damaged files, and files of other programs."""

import asyncio
import contextlib
import errno
import gc
import hashlib
import itertools
import logging
import os
import sqlite3
import stat
import threading

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from push_to_poll_client import OwnershipLost, StoreBusy, StoreError, StoreMismatch
from push_to_poll_client._types import DeadLetter, Record, Settlement
from push_to_poll_client.stores import SQLiteStore
from push_to_poll_client.stores._sqlite import dead_letters, owner_lock, schema
from push_to_poll_client.stores._sqlite import file as file_module
from push_to_poll_client.stores._sqlite.reader import SQLiteReader
from push_to_poll_client.testing._store_suite import StoreSuite
from tests.support.clock import DAY
from tests.support.forms import GUARD

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]

FEED = "https://feed.example/"

DAMAGED = (
    "is damaged: it contains a value that this library does not write; restore a copy, or move it away to start "
    "over"
)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # worker threads take real time


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


@contextlib.asynccontextmanager
async def claimed(store, name="a"):
    session = await store.claim(name, feed=FEED)
    try:
        yield session
    finally:
        await session.release()


@contextlib.contextmanager
def other_program(path):
    """Change the file in a transaction, as another program would."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        yield connection


def records(*keys):
    return [Record(key) for key in keys]


def letter(key):
    return DeadLetter(dedupe_key=key, id=key, raw=b"raw", error="broken")


class TestSQLiteStore(StoreSuite):
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path):
        self.path = tmp_path / "store.db"

    async def make_store(self):
        return SQLiteStore(self.path)

    async def reopen(self, store):
        return SQLiteStore(store.path)

    async def steal(self, store, name):
        with other_program(self.path) as connection:
            connection.execute("UPDATE push_to_poll_consumer SET token = token + 1 WHERE name = ?", (name,))

    async def state(self, store, name, key):
        query = """
            SELECT coalesce(state, 'processed') FROM push_to_poll_record JOIN push_to_poll_consumer ON consumer =
            id WHERE name = ? AND key = ? ORDER BY segment DESC
        """
        with other_program(self.path) as connection:
            row = connection.execute(query, (name, key)).fetchone()
        return row and Settlement(row[0])

    @contextlib.contextmanager
    def failing(self, store):
        connection = store._file.connection
        connection.execute(
            "CREATE TEMP TRIGGER broken AFTER INSERT ON push_to_poll_state "
            "BEGIN SELECT RAISE(FAIL, 'planted'); END"
        )
        yield
        connection.execute("DROP TRIGGER broken")


class NotForked:
    """Thread of a store as a forked child finds it: it accepts jobs and never runs them."""

    async def run(self, *_, **__):
        pytest.fail("would wait for ever")


class TestOwnership:
    async def test_consumers_of_a_store_share_one_connection_until_the_last_one_releases(self, path):
        store = SQLiteStore(path)
        async with claimed(store, "b") as b:
            async with claimed(store, "a") as a:
                assert a._file is b._file
            await b.commit(cursor="c1", records=[])
            with pytest.raises(StoreBusy):
                await SQLiteStore(path).claim("a", feed=FEED)
        async with claimed(SQLiteStore(path), "b") as b:
            assert b.cursor == "c1"

    async def test_a_claim_by_a_second_store_object_is_a_store_busy_error(self, path):
        async with claimed(SQLiteStore(path)):
            with pytest.raises(StoreBusy, match=r"store\.db is in use by another store object of this process"):
                await SQLiteStore(path).claim("b", feed=FEED)

    async def test_a_failed_claim_releases_the_file(self, path):
        async with claimed(SQLiteStore(path)):
            pass
        with pytest.raises(StoreError):
            await SQLiteStore(path).claim("a", feed="other")
        async with claimed(SQLiteStore(path)):
            pass

    async def test_a_failed_claim_does_not_affect_other_consumer_names(self, path):
        store = SQLiteStore(path)
        async with claimed(store, "a"):
            pass
        async with claimed(store, "b") as b:
            with pytest.raises(StoreError):
                await store.claim("a", feed="other")
            await b.commit(cursor="c1", records=[])

    async def test_two_spellings_of_a_path_are_one_file(self, path, tmp_path, monkeypatch):
        link = tmp_path / "link.db"
        link.symlink_to(path)
        monkeypatch.chdir(tmp_path)
        async with claimed(SQLiteStore(path)):
            for spelling in ("store.db", "./store.db", link, tmp_path / ".." / tmp_path.name / "store.db"):
                with pytest.raises(StoreBusy):
                    await SQLiteStore(spelling).claim("a", feed=FEED)

    async def test_a_change_of_directory_does_not_change_the_file(self, path, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        store = SQLiteStore("store.db")
        monkeypatch.chdir("/")
        async with claimed(store):
            assert path.exists()

    @pytest.mark.parametrize(("content", "owner"), [(b"41\0", "another process"), (b"4711", "process 4711")])
    async def test_the_content_of_the_lock_file_names_the_owner_but_does_not_grant_ownership(
        self, path, tmp_path, content, owner
    ):
        lock = tmp_path / "store.db.lock"
        lock.write_bytes(content)
        async with claimed(SQLiteStore(path)):
            assert lock.read_text() == str(os.getpid())
            lock.write_bytes(content)
            with pytest.raises(StoreBusy, match=f"in use by {owner};"):
                await SQLiteStore(path).claim("a", feed=FEED)
        assert lock.exists()

    async def test_a_file_system_without_locks_is_refused(self, path, monkeypatch):
        def no_locks(descriptor):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(owner_lock, "_lock", no_locks)
        with pytest.raises(StoreError, match=r"store\.db.*No locks available.*local disk"):
            await SQLiteStore(path).claim("a", feed=FEED)
        assert not path.exists()

    async def test_a_forked_child_closes_the_lock_without_unlocking_it(self, path):
        """Run the child's code in this process; another descriptor stands for the parent's."""
        lock = owner_lock.OwnerLock(str(path))
        parents = os.dup(lock._descriptor)
        owner_lock._close_in_child()
        lock.release()
        with pytest.raises(StoreBusy):
            owner_lock.OwnerLock(str(path))
        os.close(parents)
        owner_lock.OwnerLock(str(path)).release()

    async def test_a_forked_child_cannot_use_the_session_of_its_parent(self, path, monkeypatch):
        async with claimed(SQLiteStore(path)) as session:
            with monkeypatch.context() as forked:
                forked.setattr(os, "getpid", lambda: -1)
                with pytest.raises(OwnershipLost, match="forked"):
                    await session.commit(cursor="c1", records=[])
                await session.release()
            await session.commit(cursor="c2", records=[])
        async with claimed(SQLiteStore(path)) as session:
            assert session.cursor == "c2"

    async def test_a_store_in_a_forked_child_is_busy_and_does_not_wait_for_the_thread_of_its_parent(
        self, path, monkeypatch
    ):
        store = SQLiteStore(path)
        async with claimed(store) as session:
            store._process = -1
            store._thread = NotForked()
            with pytest.raises(StoreBusy, match="in use by"):
                await store.claim("b", feed=FEED)
            assert session._file.connection.execute("SELECT 1").fetchone() == (1,)
            store._owners["a"], store._file, store._thread = session, session._file, session._file.thread

    async def test_a_garbage_collected_session_releases_its_consumer_name(self, path):
        store = SQLiteStore(path)
        await store.claim("a", feed=FEED)
        with anyio.fail_after(GUARD):
            while store._owners:  # the worker thread keeps its result a moment longer
                gc.collect()
                await anyio.lowlevel.checkpoint()
        async with claimed(store) as session:
            assert session.fencing_token == 2


class TestThreads:
    async def test_a_commit_completes_although_its_task_is_cancelled(self, path):
        begun, go_on, times = threading.Event(), threading.Event(), [DAY]

        def clock():
            if not times:
                begun.set()
                assert go_on.wait(GUARD)
            return times.pop() if times else DAY

        async def cancel_when_begun(scope):
            await anyio.to_thread.run_sync(begun.wait, 60)
            scope.cancel()
            go_on.set()

        async with claimed(SQLiteStore(path, clock=clock)) as session:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cancel_when_begun, tasks.cancel_scope)
                await session.commit(cursor="c1", records=records("1"))
            assert begun.is_set()
            assert (session.cursor, await session.unseen(["1"])) == ("c1", set())

    @pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
    async def test_a_commit_completes_although_asyncio_cancels_its_task(self, path):
        """`asyncio.timeout()` cancels like this, and no shield stops it. The caller still learns the result."""
        begun, go_on, times = threading.Event(), threading.Event(), [DAY]

        def clock():
            if not times:
                begun.set()
                assert go_on.wait(GUARD)
            return times.pop() if times else DAY

        async with claimed(SQLiteStore(path, clock=clock)) as session:
            task = asyncio.ensure_future(session.commit(cursor="c1", records=records("1")))
            await anyio.to_thread.run_sync(begun.wait, 60)
            task.cancel()
            for _ in range(3):
                await asyncio.sleep(0)
            assert not task.done()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert session.cursor == "c1"
            assert await session.unseen(["1"]) == set()
            await session.commit(cursor="c2", records=records("2"))
            assert (session.cursor, session.record_count) == ("c2", 2)

    async def test_a_cancelled_task_still_releases_its_session(self, path):
        store = SQLiteStore(path)
        with anyio.CancelScope() as scope:
            async with claimed(store):
                scope.cancel()
        async with claimed(SQLiteStore(path)):
            pass

    async def test_several_consumers_can_commit_at_the_same_time(self, path):
        store = SQLiteStore(path)

        async def commit(name):
            async with claimed(store, name) as session:
                for number in range(20):
                    await session.commit(cursor=f"{name}{number}", records=records(f"{number}"))

        async with anyio.create_task_group() as tasks:
            for name in "abcd":
                tasks.start_soon(commit, name)
        for name in "abcd":
            async with claimed(store, name) as session:
                assert (session.cursor, session.record_count) == (f"{name}19", 20)


def test_a_store_serves_one_event_loop_after_another(path):
    store = SQLiteStore(path)

    async def step(expected):
        async with claimed(store) as session:
            assert session.cursor == expected
            await session.commit(cursor=f"{expected}+", records=[])

    anyio.run(step, None, backend="asyncio")
    anyio.run(step, "None+", backend="trio")
    anyio.run(step, "None++", backend="asyncio")


def content(directory):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}


@contextlib.asynccontextmanager
async def refused(path, reason):
    """Expect that the claim fails for this reason and changes only the lock file."""
    before = content(path.parent)
    with pytest.raises(StoreError, match=reason) as caught:
        await SQLiteStore(path).claim("a", feed=FEED)
    assert str(path) in str(caught.value)
    after = content(path.parent)
    del after[f"{path.name}.lock"]
    before.pop(f"{path.name}.lock", None)
    assert after == before
    yield


async def filled(path):
    async with claimed(SQLiteStore(path)) as session:
        await session.commit(cursor="c1", records=records(*map(str, range(200))))


async def check_damage(path, statement, value):
    """Write this value as another program; expect that the claim fails and leaves the file unchanged."""
    with other_program(path) as connection:
        connection.execute(statement, [value])
    before = path.read_bytes()
    with pytest.raises(StoreError, match=DAMAGED) as caught:
        await SQLiteStore(path).claim("a", feed=FEED)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


async def test_the_state_that_a_session_shows_cannot_be_changed_past_the_file(path):
    for _ in range(2):  # once as committed, once as read
        async with claimed(SQLiteStore(path)) as session:
            await session.commit(cursor=None, records=[], state={} if session.state else {"a": "1"})
            with pytest.raises(TypeError):
                session.state["a"] = "2"


class TestFiles:
    async def test_a_missing_and_an_empty_file_become_stores(self, tmp_path):
        (tmp_path / "empty.db").touch()
        for name in ("empty.db", "missing.db"):
            await filled(tmp_path / name)
            async with claimed(SQLiteStore(tmp_path / name)) as session:
                assert session.cursor == "c1"

    async def test_only_the_user_of_the_process_may_read_the_files_of_a_store(self, path, tmp_path):
        async with claimed(SQLiteStore(path)) as session:
            await session.commit(cursor="c1", records=[])
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
        names = ("store.db", "store.db-shm", "store.db-wal", "store.db.lock")
        assert modes == dict.fromkeys(names, 0o600)

    async def test_only_the_lock_file_stays_beside_a_released_store(self, path, tmp_path):
        await filled(path)
        assert {file.name for file in tmp_path.iterdir()} == {"store.db", "store.db.lock"}

    async def test_a_reader_in_another_program_does_not_block_commits(self, path):
        async with claimed(SQLiteStore(path)) as session:
            await session.commit(cursor="c1", records=[])
            with other_program(path) as connection:
                connection.execute("BEGIN")
                assert connection.execute("SELECT cursor FROM push_to_poll_consumer").fetchone() == ("c1",)
                await session.commit(cursor="c2", records=records("1"))

    @pytest.mark.parametrize(("synchronous", "level"), [("FULL", 2), ("NORMAL", 1)])
    async def test_the_file_uses_wal_mode_and_the_given_synchronous_level(self, path, synchronous, level):
        async with claimed(SQLiteStore(path, synchronous=synchronous)) as session:
            connection = session._file.connection
            assert connection.execute("PRAGMA synchronous").fetchone() == (level,)
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    async def test_the_file_keeps_only_the_newest_256_cursors_of_the_history(self, path):
        now = itertools.count(DAY)
        async with claimed(SQLiteStore(path, clock=now.__next__)) as session:
            for number in range(300):
                await session.commit(cursor=str(number), records=[])
            history = session.history
            query = "SELECT count(*) FROM push_to_poll_history"
            assert session._file.connection.execute(query).fetchone() == (256,)
        async with claimed(SQLiteStore(path, clock=now.__next__)) as session:
            assert session.history == history
            await session.commit(cursor="next", records=[])
            assert session.history == (*history[1:], ("next", DAY + 302))

    async def test_long_keys_take_little_space_in_the_file(self, path):
        async with claimed(SQLiteStore(path)) as session:
            await session.commit(cursor=None, records=records(*(f"{'x' * 10_000}{n}" for n in range(100))))
        assert path.stat().st_size < 100_000

    async def test_a_key_equal_to_the_digest_of_another_key_is_a_different_key(self, path):
        async with claimed(SQLiteStore(path)) as session:
            await session.commit(cursor=None, records=records("x" * 1000))
            (digest,) = session._file.connection.execute("SELECT key FROM push_to_poll_record").fetchone()
            assert await session.unseen([digest, "x" * 1000]) == {digest}

    async def test_a_page_of_keys_is_committed_and_looked_up_with_one_statement_each(self, path):
        """With one statement per key, the thread would wait for other threads a thousand times."""
        async with claimed(SQLiteStore(path)) as session:
            await session.commit(cursor="b", records=[])  # the second commit writes a mark
            statements = []
            session._file.connection.set_trace_callback(statements.append)
            await session.commit(cursor="c", records=records(*map(str, range(1000))))
            await session.unseen([str(n) for n in range(1000)])
        assert sum("json_each(" in statement for statement in statements) == 2
        assert len(statements) < 10

    async def test_keys_above_all_recorded_keys_are_unseen_without_a_query(self, path):
        """Keys of most feeds increase, so no message waits for a thread."""
        async with claimed(SQLiteStore(path)) as session:
            statements = []
            session._file.connection.set_trace_callback(statements.append)
            assert await session.unseen(["1", "2"]) == {"1", "2"}
            assert await session.unseen([]) == set()
            assert not statements
            await session.commit(cursor="c1", records=[Record("2"), Record("1", Settlement.DEAD_LETTERED)])
            statements.clear()
            assert await session.unseen(["3", "20"]) == {"3", "20"}
            assert not statements
            assert await session.unseen(["3", "2", "1"]) == {"3"}
            assert len(statements) == 1

    @pytest.mark.parametrize("key", ["\uffff" * 300, "\x7f", "\ud800", "\U0010ffff", "~" * 300])
    async def test_long_and_unusual_keys_are_recognised_also_after_a_restart(self, path, key):
        """A key stored as a digest is not above all recorded keys."""
        for name in ("a", "b"):
            async with claimed(SQLiteStore(path), name) as session:
                await session.commit(cursor="c1", records=records("1", key))
                assert await session.unseen([key]) == set()
            async with claimed(SQLiteStore(path), name) as session:
                assert await session.unseen([key]) == set()

    async def test_keys_in_a_utf_16_file_are_recognised_after_a_restart(self, path):
        """UTF-16 orders them differently. This library does not make such files, but tools that copy them may."""
        with other_program(path) as connection:
            connection.execute("PRAGMA encoding = 'UTF-16'")
            schema.prepare(connection, str(path), synchronous="FULL")
        async with claimed(SQLiteStore(path)) as session:
            await session.commit(cursor="c1", records=records("\uffff", "\U0001f600"))
        async with claimed(SQLiteStore(path)) as session:
            assert await session.unseen(["\U0001f600"]) == set()

    async def test_a_commit_of_a_page_is_five_statements(self, path):
        """Rare work does not slow down ordinary commits."""
        async with claimed(SQLiteStore(path)) as session:
            await session.commit(cursor="c0", records=records("0"), dead_letters=[letter("0")], state={"s": "0"})
            statements = []
            session._file.connection.set_trace_callback(statements.append)
            await session.commit(cursor="c1", records=records(*map(str, range(1, 1001))))
            verbs = [statement.split()[0] for statement in statements]
            assert verbs == ["BEGIN", "UPDATE", "INSERT", "INSERT", "COMMIT"]
            statements.clear()
            await session.commit(cursor=None, records=records("0"))
            assert sum("dead_letter" in statement for statement in statements) > 0
            assert session.dead_letter_count == 0

    async def test_dead_letters_are_counted_correctly_when_too_many_to_keep_their_keys_in_memory(
        self, path, monkeypatch
    ):
        monkeypatch.setattr(dead_letters, "_MAX_INDEXED_KEYS", 2)
        async with claimed(SQLiteStore(path)) as session:
            for keys, left in (("abc", 3), ("", 3), ("xb", 2), ("yy", 2), ("ac", 0)):
                letters = [letter(key) for key in keys] if left == 3 else []
                await session.commit(cursor=None, records=[] if letters else records(*keys), dead_letters=letters)
                assert session.dead_letter_count == left
        async with claimed(SQLiteStore(path)) as session:
            assert (session.dead_letter_count, list(await session.dead_letters())) == (0, [])

    async def test_a_missing_record_table_is_a_store_error(self, path):
        await filled(path)
        async with claimed(SQLiteStore(path)) as session:
            with other_program(path) as connection:
                connection.execute("DROP TABLE push_to_poll_record")
            with pytest.raises(StoreError, match="no such table"):
                await session.unseen(["1"])

    @pytest.mark.parametrize("garbage", [b"x", b"\n" * 1000, b"\n" * 2048, b"SQLite format 3\0" + b"\xff" * 1008])
    async def test_a_file_that_is_not_a_database_is_refused_and_left_unchanged(self, path, garbage):
        path.write_bytes(garbage)
        async with refused(path, "not a SQLite database.*choose another file"):
            pass

    @pytest.mark.parametrize("size", [1, 99, 1024, 10_000, -1024, -1])
    async def test_a_truncated_file_is_refused(self, path, size):
        await filled(path)
        os.truncate(path, size % path.stat().st_size)
        async with refused(path, "cut off"):
            pass

    async def test_a_file_with_another_page_size_is_not_refused_as_truncated(self, path):
        await filled(path)
        with other_program(path) as connection:
            connection.executescript(
                "CREATE TABLE odd(x); PRAGMA journal_mode = DELETE; PRAGMA page_size = 512; VACUUM"
            )
        assert path.stat().st_size % 4096
        async with claimed(SQLiteStore(path)) as session:
            assert session.record_count > 0

    async def test_a_claim_succeeds_when_the_page_size_cannot_be_read(self, path, monkeypatch):
        await filled(path)

        def refuse(*args, **options):
            raise PermissionError

        monkeypatch.setattr(file_module.Path, "open", refuse)
        async with claimed(SQLiteStore(path)) as session:
            assert session.record_count > 0

    async def test_a_file_whose_last_pages_are_in_the_wal_is_not_refused_as_truncated(self, path, tmp_path):
        """A crash during a checkpoint leaves this: a short database file, and the missing pages in the WAL."""
        crashed = tmp_path / "crashed.db"
        async with claimed(SQLiteStore(path)) as session:
            await session.commit(cursor="c1", records=records(*map(str, range(200))))
            for suffix in ("", "-wal"):  # in another process: closing the file in this one drops its locks
                await anyio.run_process(["cp", f"{path}{suffix}", f"{crashed}{suffix}"])
        with crashed.open("ab") as file:
            file.write(bytes(500))
        async with claimed(SQLiteStore(crashed)) as session:
            assert (session.cursor, session.record_count) == ("c1", 200)

    @pytest.mark.parametrize("wal", [False, True])
    @pytest.mark.parametrize("script", ["CREATE TABLE t(x)", "PRAGMA user_version=1", "PRAGMA application_id=-7"])
    async def test_a_database_of_another_application_is_refused(self, path, script, wal):
        with other_program(path) as connection:
            connection.execute(script)
        if wal:
            with contextlib.closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
        async with refused(path, "another application"):
            pass

    async def test_a_store_of_a_newer_version_is_refused(self, path):
        await filled(path)
        with other_program(path) as connection:
            connection.execute("UPDATE push_to_poll_schema SET version = 3")
        async with refused(path, r"newer push_to_poll_client: .*version 3, this one knows up to 2; update"):
            pass

    @pytest.mark.parametrize(
        ("script", "shown"),
        [
            ("UPDATE push_to_poll_schema SET version = -1", r"\[\(-1,\)\]"),
            ("UPDATE push_to_poll_schema SET version = 'a' || char(10) || 'b'", r"a\\\\nb"),
            ("INSERT INTO push_to_poll_schema VALUES (1)", r"\[\(2,\), \(1,\)\]"),
            ("DELETE FROM push_to_poll_schema", r"\[\]"),
        ],
    )
    async def test_a_store_with_an_invalid_schema_version_is_refused_as_damaged(self, path, script, shown):
        await filled(path)
        with other_program(path) as connection:
            connection.execute(script)
        async with refused(path, rf"is damaged: .*{shown}.*; restore a copy, or move it away to start over"):
            pass

    async def test_a_store_whose_schema_is_not_text_is_refused_as_damaged(self, path):
        await filled(path)
        words = b"CREATE TABLE push_to_poll_record"
        path.write_bytes(path.read_bytes().replace(words, words.replace(b"TABLE", b"T\x9d\x9d\x9dE"), 1))
        async with refused(
            path, "is damaged: it contains a value that this library does not write; restore a copy"
        ):
            pass

    async def test_an_application_can_keep_its_tables_and_version_numbers_in_a_store(self, path):
        await filled(path)
        with other_program(path) as connection:
            connection.executescript(
                "PRAGMA application_id = 7; PRAGMA user_version = 99; "
                "CREATE TABLE theirs(x); CREATE INDEX i ON theirs(x)"
            )
        async with claimed(SQLiteStore(path)) as session:
            assert session.record_count == 200

    async def test_store_tables_are_added_to_a_shared_database_of_an_application(self, path):
        with other_program(path) as connection:
            connection.executescript(
                "PRAGMA application_id = 7; PRAGMA user_version = 99; "
                "CREATE TABLE consumer(x); CREATE VIEW v AS SELECT * FROM consumer; "
                "CREATE TRIGGER t AFTER INSERT ON consumer BEGIN DELETE FROM consumer; END"
            )
            for _ in range(2):
                schema.prepare(connection, str(path), synchronous="FULL", shared=True)
            assert connection.execute("PRAGMA user_version").fetchone() == (99,)
            assert connection.execute("SELECT * FROM v").fetchall() == []
        async with refused(path, "has a view, a trigger"):
            pass

    @pytest.mark.parametrize(
        "statement",
        [
            "CREATE TRIGGER t AFTER UPDATE ON push_to_poll_consumer BEGIN SELECT 1; END",
            "DROP TABLE push_to_poll_record; CREATE VIEW Push_To_Poll_RECORD AS SELECT 1 AS consumer",
            "DROP TABLE push_to_poll_schema; CREATE VIEW push_to_poll_schema AS SELECT 1 AS version",
            "DROP TABLE push_to_poll_record; CREATE VIRTUAL TABLE push_to_poll_record USING fts5(consumer, key)",
            "CREATE VIEW v AS SELECT 1; CREATE TRIGGER push_to_poll_t INSTEAD OF DELETE ON v BEGIN SELECT 1; END",
        ],
    )
    async def test_triggers_and_views_on_store_tables_are_refused_in_a_shared_database(self, path, statement):
        await filled(path)
        with other_program(path) as connection:
            connection.executescript(statement)
            with pytest.raises(StoreError, match="has a view, a trigger or a virtual table"):
                schema.prepare(connection, str(path), synchronous="FULL", shared=True)

    @pytest.mark.parametrize(
        "statement",
        [
            "CREATE VIEW v AS SELECT * FROM push_to_poll_record",
            "CREATE TRIGGER t AFTER UPDATE ON push_to_poll_consumer BEGIN DELETE FROM push_to_poll_record; END",
            "CREATE VIRTUAL TABLE t USING fts5(x)",
        ],
    )
    async def test_a_store_with_a_foreign_view_trigger_or_virtual_table_is_refused(self, path, statement):
        await filled(path)
        with other_program(path) as connection:
            connection.execute(statement)
        async with refused(path, r"has a view, a trigger or a virtual table, .*; drop it, or restore a copy"):
            pass

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("cursor", 5),
            ("cursor", 1.5),
            ("cursor", b"\xff\xfe\x00"),
            ("feed", 5),
            ("feed", b"\xff"),
            ("token", 2**63 - 1),
            ("at", "\x1b[31m"),
            ("first", "\x1b[31m"),
            ("first", -1),
            ("behind", 1.5),
        ],
    )
    async def test_an_invalid_value_in_a_consumer_row_is_refused_as_damage(self, path, column, value):
        await filled(path)
        await check_damage(path, f"UPDATE push_to_poll_consumer SET {column} = ?", value)  # noqa: S608

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("number", -1),
            ("number", 2**62),
            ("size", "\x1b[31m"),
            ("size", -1),
            ("size", b"x"),
            ("first_at", float("inf")),
            ("last_at", b"x"),
            ("low", b"\xff"),
            ("high", b"a"),
        ],
    )
    async def test_an_invalid_value_in_a_segment_row_is_refused_as_damage(self, path, column, value):
        await filled(path)
        await check_damage(path, f"UPDATE push_to_poll_segment SET {column} = ?", value)  # noqa: S608

    @pytest.mark.parametrize(
        "row",
        [
            "push_to_poll_state VALUES (1, x'ff', ?)",
            "push_to_poll_state VALUES (1, 's', ?)",
            "push_to_poll_history VALUES (1, 0, 0, ?, 0)",
            "push_to_poll_history VALUES (1, 0, 0, NULL, ?)",
        ],
    )
    async def test_an_invalid_value_in_a_state_or_history_row_is_refused_as_damage(self, path, row):
        await filled(path)
        await check_damage(path, f"INSERT INTO {row}", b"\xff")

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("key", b"\xff"),
            ("id", 5),
            ("raw", "x"),
            ("error", b"\xff"),
            ("traceback", 1.5),
            ("attempts", "\x1b[31m"),
            ("first_failed", b"x"),
        ],
    )
    async def test_an_invalid_value_in_a_dead_letter_is_reported_as_damage(self, path, column, value):
        async with claimed(SQLiteStore(path)) as session:
            await session.commit(cursor=None, records=[], dead_letters=[letter("k")])
            with other_program(path) as connection:
                connection.execute(f"UPDATE push_to_poll_dead_letter SET {column} = ?", [value])  # noqa: S608
            with pytest.raises(StoreError, match=DAMAGED):
                await session.dead_letters()
            if column != "key":
                with pytest.raises(StoreError, match=DAMAGED):
                    await session.dead_letter("k")

    async def test_an_invalid_fingerprint_is_reported_as_damage(self, path):
        async with claimed(SQLiteStore(path)) as session:
            await session.commit(cursor="c1", records=records("k"))
            with other_program(path) as connection:
                connection.execute("UPDATE push_to_poll_record SET fingerprint = 'x'")
            with pytest.raises(StoreError, match=DAMAGED):
                await session.fingerprints(["k"])

    async def test_the_next_commit_overwrites_a_consumer_row_damaged_meanwhile(self, path):
        """The owner does not need the row: it has its state in memory."""
        async with claimed(SQLiteStore(path)) as session:
            with other_program(path) as connection:
                connection.execute("UPDATE push_to_poll_consumer SET cursor = 5, at = 'then', behind = x'ff'")
            await session.commit(cursor="c1", records=records("k"))
        async with claimed(SQLiteStore(path)) as session:
            assert (session.cursor, session.record_count) == ("c1", 1)

    async def test_a_replaced_owner_gets_ownership_lost_although_the_next_one_wrote_the_same_key(self, path):
        """G10: also if both would write the same key."""
        async with claimed(SQLiteStore(path)) as session:
            with other_program(path) as connection:
                connection.execute("UPDATE push_to_poll_consumer SET token = token + 1")
                connection.execute("INSERT INTO push_to_poll_record VALUES (1, 1, 'ours', 'dead', NULL)")
            with pytest.raises(OwnershipLost, match="claimed by another session"):
                await session.commit(cursor="c1", records=records("ours"))

    async def test_errors_with_very_long_names_and_feeds_are_one_short_printable_line(self, path):
        evil = "\x1b[31m\n\u202e" + "x" * 1_000_000
        store = SQLiteStore(path)
        session = await store.claim(evil, feed=evil)
        with pytest.raises(StoreBusy) as busy:
            await store.claim(evil, feed=evil)
        await session.release()
        with pytest.raises(StoreMismatch) as mismatch:
            await store.claim(evil, feed=evil[::-1])
        with pytest.raises(OwnershipLost) as lost:
            await session.unseen(["k"])
        for caught in (busy, mismatch, lost):
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 1000 + len(str(path))

    @pytest.mark.parametrize("how", ["FAIL", "ROLLBACK"])
    async def test_errors_of_sqlite_are_shown_without_control_characters(self, path, how):
        """SQLite quotes a damaged schema, so the text may come from another program."""
        async with claimed(SQLiteStore(path)) as session:
            evil = f"SELECT RAISE({how}, '\x1b[31m\n\x9b')"
            session._file.connection.execute(
                f"CREATE TEMP TRIGGER evil BEFORE UPDATE ON push_to_poll_consumer BEGIN {evil}; END"
            )
            with pytest.raises(StoreError) as caught:
                await session.commit(cursor="c1", records=[])
        assert str(caught.value).isprintable()

    async def test_a_directory_is_refused(self, tmp_path):
        (tmp_path / "store.db").mkdir()
        with pytest.raises(StoreError, match=r"store\.db is not a file; choose"):
            await SQLiteStore(tmp_path / "store.db").claim("a", feed=FEED)

    @pytest.mark.parametrize("parent", ["missing", "file"])
    async def test_a_path_without_a_valid_parent_directory_is_refused(self, tmp_path, parent):
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match=rf"{parent}/store\.db: cannot create the lock file .*directory"):
            await SQLiteStore(tmp_path / parent / "store.db").claim("a", feed=FEED)

    async def test_a_file_that_cannot_be_created_is_a_store_error(self, path, monkeypatch):
        really = os.open

        def refuse(name, flags, *args, **kwargs):
            if name == str(path):
                raise PermissionError(errno.EACCES, "Permission denied")
            return really(name, flags, *args, **kwargs)

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(StoreError, match=r"cannot create .*store\.db: Permission denied; choose"):
            await SQLiteStore(path).claim("a", feed=FEED)

    async def test_a_commit_to_a_read_only_file_is_a_store_error(self, path):
        """SQLite reports the file as read-only. A file mode would not do: root may write to any file."""
        store = SQLiteStore(path)
        async with claimed(store) as session:
            session._file.connection.execute("PRAGMA query_only=ON")
            with pytest.raises(StoreError, match="readonly database; make the file and its directory writable"):
                await session.commit(cursor="c1", records=[])

    async def test_a_commit_on_a_full_disk_changes_nothing_and_can_be_repeated(self, path):
        async with claimed(SQLiteStore(path)) as session:
            await session.commit(cursor="c1", records=records("1"))
            (pages,) = session._file.connection.execute("PRAGMA page_count").fetchone()
            session._file.connection.execute(f"PRAGMA max_page_count={pages}")
            with pytest.raises(StoreError, match=r"store\.db cannot be used: .*full; free some space"):
                await session.commit(cursor="c2", records=records(*map(str, range(1000))))
            assert (session.cursor, session.record_count) == ("c1", 1)
            assert await session.unseen(["1", "2"]) == {"2"}
            session._file.connection.execute(f"PRAGMA max_page_count={pages + 1000}")
            await session.commit(cursor="c2", records=records("2"))
        async with claimed(SQLiteStore(path)) as session:
            assert (session.cursor, await session.unseen(["1", "2", "3"])) == ("c2", {"3"})

    async def test_a_commit_waits_only_a_limited_time_for_another_writer(self, path):
        async with claimed(SQLiteStore(path)) as session:
            session._file.connection.execute("PRAGMA busy_timeout=1")
            with other_program(path) as connection:
                connection.execute("BEGIN IMMEDIATE")
                with pytest.raises(StoreError, match="locked; another program has kept a write transaction open"):
                    await session.commit(cursor="c1", records=[])
            await session.commit(cursor="c1", records=[])


class TestMigration:
    STEP = ("ALTER TABLE push_to_poll_consumer ADD COLUMN note", "UPDATE push_to_poll_consumer SET note = 'moved'")

    async def test_an_older_store_is_brought_up_to_date(self, path, monkeypatch):
        await filled(path)
        monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, self.STEP))
        for _ in range(2):
            async with claimed(SQLiteStore(path)) as session:
                assert (session.cursor, session.record_count) == ("c1", 200)
        with other_program(path) as connection:
            assert connection.execute("SELECT note FROM push_to_poll_consumer").fetchone() == ("moved",)
            assert connection.execute("SELECT version FROM push_to_poll_schema").fetchall() == [(3,)]

    async def test_a_new_store_runs_all_migration_steps(self, path, monkeypatch):
        monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, self.STEP))
        await filled(path)
        with other_program(path) as connection:
            assert connection.execute("SELECT note FROM push_to_poll_consumer").fetchone() == (None,)

    async def test_a_failed_migration_step_leaves_the_file_unchanged(self, path, monkeypatch):
        await filled(path)
        with monkeypatch.context() as newer:
            newer.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, (*self.STEP, "planted")))
            async with refused(path, 'near "planted": syntax error'):
                pass
        async with claimed(SQLiteStore(path)) as session:
            assert session.cursor == "c1"


class TestWarning:
    @pytest.fixture(autouse=True)
    def _each_time(self):
        schema.warn_of_old_sqlite.cache_clear()
        yield
        schema.warn_of_old_sqlite.cache_clear()

    @pytest.mark.parametrize("version", [(3, 44, 5), (3, 45, 0), (3, 46, 1), (3, 50, 6), (3, 51, 0), (3, 51, 2)])
    async def test_an_old_sqlite_version_is_reported_once_in_a_process(
        self, tmp_path, monkeypatch, caplog, version
    ):
        """A warning only for a file that an application also writes. The owner lock protects other files."""
        monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
        with caplog.at_level(logging.INFO, "push_to_poll_client"):
            for _ in range(2):
                await filled(tmp_path / "1.db")
                await filled(tmp_path / "2.db")
            assert [record.levelno for record in caplog.records] == [logging.INFO]
            assert "3.51.3" in caplog.text
            for name in ("3.db", "4.db"):
                async with claimed(SQLiteStore(tmp_path / name, transactional=True)):
                    assert len(caplog.records) == 1, "as of a command, which only claims"
            for name in ("3.db", "4.db"):
                store = SQLiteStore(tmp_path / name, transactional=True)
                async with claimed(store) as session, session.transaction([]):
                    pass
        assert [record.levelno for record in caplog.records] == [logging.INFO, logging.WARNING]

    async def test_reading_a_store_reports_no_old_version(self, path, monkeypatch, caplog):
        await filled(path)
        schema.warn_of_old_sqlite.cache_clear()
        monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 46, 1))
        caplog.clear()
        with caplog.at_level(logging.DEBUG, "push_to_poll_client"):
            assert len(SQLiteReader(path).snapshot().progress) == 1
        assert not caplog.records

    @pytest.mark.parametrize("version", [(3, 44, 6), (3, 44, 7), (3, 50, 7), (3, 51, 3), (3, 52, 0), (4, 0, 0)])
    async def test_a_fixed_sqlite_version_causes_no_warning(self, path, monkeypatch, caplog, version):
        monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
        with caplog.at_level(logging.INFO, "push_to_poll_client"):
            async with claimed(SQLiteStore(path, transactional=True)) as session, session.transaction([]):
                pass
        assert not caplog.records


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"path": ""}, "path"),
        ({"path": ":memory:"}, "MemoryStore"),
        ({"path": "x", "synchronous": "OFF"}, "synchronous"),
        ({"path": "x", "retention": -1}, "retention"),
        ({"path": "x", "max_records": 0}, "max_records"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(arguments, word):
    with pytest.raises(ValueError, match=word):
        SQLiteStore(**arguments)


def test_the_repr_of_a_store_names_the_file(path):
    assert repr(SQLiteStore(path)) == f"SQLiteStore({os.path.realpath(path)!r})"
