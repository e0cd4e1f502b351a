"""The store's connection for handlers: all SQL except statements that break the transaction."""

import asyncio
import contextvars
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest
from anyio import to_thread

from push_to_poll_client import OwnershipLost, StoreError
from push_to_poll_client.stores._sqlite import connection as connection_module
from tests.support.effects import Database, Planned

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # in virtual time an event loop is busy while it waits for a worker thread


@pytest.fixture
def database(tmp_path):
    database = Database(tmp_path / "store.db")
    yield database
    database.stop()


@pytest.fixture
def session(database):
    return database.session()


ENDS_IT = [
    "COMMIT",
    "commit",
    "Commit Transaction",
    "END",
    "/* now */ COMMIT",
    "-- now\nCOMMIT;",
    "\ufeffCOMMIT",
    "\n  COMMIT  ",
    "COMMIT\n--push_to_poll",
    "ROLLBACK",
    "rollback transaction",
    "BEGIN",
    "BEGIN IMMEDIATE",
    "BEGIN IMMEDIATE\n--push_to_poll",
    "ATTACH ':memory:' AS other",
    "DETACH main",
    "PRAGMA synchronous = OFF",
    "pragma Journal_Mode(DELETE)",
    "PRAGMA main.writable_schema = ON",
    "PRAGMA foreign_keys = OFF",
    "INSERT INTO push_to_poll_record(key) VALUES ('mine')",
    "INSERT OR REPLACE INTO Push_To_Poll_Record(key) VALUES ('old')",
    "UPDATE push_to_poll_record SET key = 'mine'",
    'DELETE FROM "push_to_poll_record"',
    "WITH a AS (SELECT 1) DELETE FROM push_to_poll_record",
    "DROP TABLE push_to_poll_record",
    "ALTER TABLE push_to_poll_record ADD COLUMN mine",
    "ALTER TABLE push_to_poll_record RENAME TO mine",
    "ALTER TABLE note RENAME TO [Push_To_Poll_Mine]",
    "DROP INDEX push_to_poll_index",
    "CREATE INDEX mine ON push_to_poll_record(key)",
    "CREATE TRIGGER mine AFTER INSERT ON push_to_poll_record BEGIN SELECT 1; END",
    "CREATE TEMP TRIGGER mine AFTER INSERT ON push_to_poll_record BEGIN SELECT 1; END",
    "CREATE TEMP TABLE push_to_poll_record(key)",
    "CREATE VIEW push_to_poll_view AS SELECT 1",
    "EXPLAIN COMMIT",
]

FREE = [
    "SELECT count(*) FROM push_to_poll_record",
    "INSERT INTO note(text) VALUES ('COMMIT')",
    "UPDATE note SET text = 'ROLLBACK; COMMIT'",
    "SELECT 'COMMIT' -- COMMIT\n--push_to_poll",
    "DELETE FROM note",
    "CREATE TABLE mine(a PRIMARY KEY, push_to_poll_column)",
    "CREATE TEMP TABLE mine(a)",
    "CREATE INDEX mine ON note(text)",
    "CREATE TRIGGER mine AFTER INSERT ON note BEGIN DELETE FROM account; END",
    "ALTER TABLE note ADD COLUMN more",
    "DROP TABLE note",
    "ANALYZE",
    "REINDEX",
    "PRAGMA foreign_keys",
    "PRAGMA table_info(note)",
    "SELECT * FROM pragma_table_info('note')",
    "PRAGMA user_version = 7",
    "SAVEPOINT mine",
]


class TestStatements:
    @pytest.mark.parametrize("sql", ENDS_IT)
    async def test_sql_that_ends_the_transaction_or_changes_the_store_is_refused(self, session, database, sql):
        """In any spelling and through any method. If the handler swallows the error, nothing is committed."""
        connection = session.connection
        await session.note("before")
        async with session.transaction():
            connection.execute("INSERT INTO note(text) VALUES ('kept')")
            for run in (
                connection.execute,
                connection.cursor().execute,
                lambda sql: connection.executemany(sql, [()]),
                lambda sql: connection.cursor().executemany(sql, [()]),
            ):
                with pytest.raises(
                    RuntimeError, match=r"store\.db: a handler must not .* on the store's connection: "
                ):
                    run(sql)
            assert connection.in_transaction
        await session.commit("new")
        assert database.notes() == ["before", "kept"]
        assert await session.ask("SELECT key FROM push_to_poll_record") == [("before",), ("new",), ("old",)]

    async def test_a_plain_sqlite3_cursor_cannot_commit(self, session):
        async with session.transaction():
            with pytest.raises(sqlite3.DatabaseError, match="not authorized"):  # it would be committed at once
                sqlite3.Cursor(session.connection).execute("INSERT INTO note(text) VALUES ('a')")
            session.connection.execute("SELECT 1")
            with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
                sqlite3.Cursor(session.connection).execute("COMMIT")

    async def test_a_trigger_of_the_application_cannot_change_store_tables(self, session):
        async with session.transaction():
            session.connection.execute(
                "CREATE TRIGGER mine AFTER INSERT ON note BEGIN DELETE FROM push_to_poll_record; END"
            )
            with pytest.raises(RuntimeError, match="push_to_poll_record"):
                session.connection.execute("INSERT INTO note(text) VALUES (1)")

    @pytest.mark.parametrize("sql", FREE)
    async def test_other_sql_of_a_handler_is_allowed(self, session, sql):
        async with session.transaction():
            session.connection.execute(sql).fetchall()
        await session.commit("new")

    async def test_refused_sql_is_refused_again_when_it_is_repeated(self, session):
        """The statement cache does not keep refused statements. The store's own ones have another spelling."""
        await session.note("begun and ended by the store")
        await session.commit()
        async with session.transaction():
            for _ in range(3):
                for sql in ("COMMIT", "BEGIN IMMEDIATE", "INSERT INTO push_to_poll_record(key) VALUES (?)"):
                    with pytest.raises(RuntimeError, match="a handler must not"):
                        session.connection.execute(sql, "k" * sql.count("?"))

    async def test_the_store_can_commit_after_a_handler_changed_the_schema(self, session):
        """A schema change makes SQLite compile and authorize all statements again, including the store's."""
        await session.note("a")
        async with session.transaction():
            session.connection.execute("CREATE TABLE mine(a)")
        with pytest.raises(Planned):
            await session.fail("CREATE TABLE other(a)")
        await session.commit("1")
        await session.note("b")
        await session.commit("2")

    async def test_errors_of_sqlite_reach_the_handler_unchanged(self, session):
        async with session.transaction():
            with pytest.raises(sqlite3.OperationalError, match="no such table"):
                session.connection.execute("SELECT * FROM nowhere")
            with pytest.raises(sqlite3.IntegrityError):
                session.connection.executemany("INSERT INTO account VALUES (?, ?)", [("a", 1), ("a", 2)])
            with pytest.raises(sqlite3.OperationalError, match="VACUUM"):
                session.connection.execute("VACUUM")
            with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
                sqlite3.Cursor(session.connection).execute("COMMIT")
            with pytest.raises(sqlite3.ProgrammingError, match="bindings"):
                session.connection.execute("SELECT ?", ())


class TestMethods:
    @pytest.mark.parametrize(
        "use",
        [
            lambda connection: connection.commit(),
            lambda connection: connection.rollback(),
            lambda connection: connection.close(),
            lambda connection: connection.executescript("SELECT 1"),
            lambda connection: connection.cursor().executescript("SELECT 1"),
            lambda connection: connection.__enter__(),
            lambda connection: connection.cursor(sqlite3.Cursor),
            lambda connection: connection.set_authorizer(None),
            lambda connection: connection.set_progress_handler(None, 1),
            lambda connection: connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 10),
            lambda connection: connection.deserialize(b""),
            lambda connection: connection.create_function("json_extract", 1, len),
            lambda connection: connection.create_aggregate("count", 1, list),
            lambda connection: connection.create_window_function("sum", 1, list),
            lambda connection: connection.create_collation("BINARY", max),
            lambda connection: connection.backup(connection),
            lambda connection: setattr(connection, "isolation_level", None),
            lambda connection: setattr(connection, "isolation_level", "DEFERRED"),
            lambda connection: setattr(connection, "autocommit", False),
            lambda connection: setattr(connection, "text_factory", bytes),
            lambda connection: connection.blobopen("push_to_poll_record", "data", 1),
            lambda connection: connection.blobopen("PUSH_TO_POLL_RECORD", "data", 1),
        ],
    )
    async def test_methods_that_end_the_transaction_or_change_the_store_are_refused(self, session, database, use):
        async with session.transaction():
            session.connection.execute("INSERT INTO note(text) VALUES ('kept')")
            with pytest.raises(
                RuntimeError, match=r"store\.db: a handler must not .* on the store's connection: "
            ):
                use(session.connection)
        await session.commit()
        assert database.notes() == ["kept"]

    async def test_settings_of_the_connection_can_be_read(self, session):
        connection = session.connection
        assert (connection.isolation_level, connection.autocommit, connection.text_factory) == (None, True, str)

    async def test_a_row_factory_of_a_handler_does_not_affect_the_store(self, session):
        async with session.transaction():
            session.connection.row_factory = lambda cursor, row: {"row": row}
            assert session.connection.execute("SELECT 1").fetchone() == {"row": (1,)}
        assert await session.ask("SELECT 1") == [(1,)]

    async def test_blobs_can_be_read_and_written(self, session):
        async with session.transaction():
            with session.connection.blobopen("note", "data", 1) as blob:
                blob.write(b"1")
            with session.connection.blobopen("push_to_poll_record", "data", 1, readonly=True) as blob:
                assert blob.read() == b"\0"
            session.connection.interrupt()  # no statement is running
        await session.commit()
        async with session.transaction():
            assert session.connection.execute("SELECT data FROM note").fetchone() == (b"1",)

    async def test_a_dump_can_be_made(self, session):
        async with session.transaction():
            assert "CREATE TABLE note" in "".join(session.connection.iterdump())
            assert session.connection.serialize()


USES = [
    lambda connection: connection.execute("SELECT 1"),
    lambda connection: connection.executemany("INSERT INTO note(text) VALUES (?)", [("x",)]),
    lambda connection: connection.cursor(),
    lambda connection: connection.blobopen("note", "data", 1),
    lambda connection: connection.interrupt(),
]


class TestWhere:
    @pytest.mark.parametrize("use", USES)
    async def test_using_the_connection_outside_a_handler_is_a_runtime_error(self, session, use):
        with pytest.raises(RuntimeError, match=r"store\.db: .* only while a message is processed"):
            use(session.connection)
        await session.note("a")
        with pytest.raises(RuntimeError, match=r"store\.db: .* only while a message is processed"):
            use(session.connection)

    async def test_a_cursor_cannot_be_used_after_its_handler_ended(self, session):
        async with session.transaction():
            cursor = session.connection.execute("SELECT text FROM note UNION SELECT 2")
            other = session.connection.cursor()
        for use in (cursor.execute, lambda sql: other.executemany(sql, []), other.execute):
            with pytest.raises(RuntimeError, match="only while a message is processed"):
                use("SELECT 1")
        with pytest.raises(sqlite3.ProgrammingError, match="closed cursor"):
            cursor.fetchone()
        async with session.transaction():
            with pytest.raises(RuntimeError, match="this cursor belongs to an earlier message"):
                cursor.execute("SELECT 1")

    async def test_a_blob_is_closed_when_its_handler_ends(self, session):
        """An open blob could write after the end of the transaction, without a statement."""
        async with session.transaction():
            blob = session.connection.blobopen("note", "data", 1)
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            blob.write(b"1")

    async def test_tasks_started_by_a_handler_can_use_the_connection(self, session):
        """Only tasks that the handler started have access."""
        answers = []

        async def use(who):
            try:
                answers.append((who, session.connection.execute("SELECT 1").fetchone()))
            except RuntimeError as error:
                answers.append((who, type(error)))

        async with anyio.create_task_group() as others, session.transaction():
            async with anyio.create_task_group() as own:
                own.start_soon(use, "own")
            others.start_soon(use, "started in the block")
            await anyio.wait_all_tasks_blocked()
        assert answers == [("own", (1,)), ("started in the block", (1,))]

    async def test_a_task_started_before_the_handler_cannot_use_the_connection(self, session):
        answers, begun = [], anyio.Event()

        async def use():
            await begun.wait()
            with pytest.raises(RuntimeError, match="only while a message is processed"):
                session.connection.execute("SELECT 1")
            answers.append("refused")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use)
            async with session.transaction():
                begun.set()
                await anyio.wait_all_tasks_blocked()
        assert answers == ["refused"]

    async def test_a_task_cannot_use_the_connection_after_its_handler_ended(self, session):
        """Also while the session processes the next message."""
        answers, go = [], anyio.Event()

        async def use():
            session.connection.execute("SELECT 1")
            await go.wait()
            with pytest.raises(RuntimeError, match="only while a message is processed"):
                session.connection.execute("SELECT 1")
            answers.append("refused")

        async with anyio.create_task_group() as tasks:
            async with session.transaction():
                tasks.start_soon(use)
                await anyio.wait_all_tasks_blocked()
            async with session.transaction():
                go.set()
                await anyio.wait_all_tasks_blocked()
        assert answers == ["refused"]

    @pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
    async def test_threads_that_take_over_the_context_can_use_the_connection(self, session):
        def use():
            return session.connection.execute("SELECT 1").fetchone()

        async with session.transaction():
            for call in (to_thread.run_sync, asyncio.to_thread):
                assert await call(use) == (1,)
            loop = asyncio.get_running_loop()
            assert await loop.run_in_executor(None, contextvars.copy_context().run, use) == (1,)

    @pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
    async def test_the_error_in_other_threads_explains_how_to_pass_the_context(self, session):
        def use():
            with pytest.raises(RuntimeError) as caught:
                session.connection.execute("SELECT 1")
            told.append(str(caught.value))

        told = []
        async with session.transaction():
            with ThreadPoolExecutor() as executor:
                executor.submit(use).result()
            thread = threading.Thread(target=use)
            thread.start()
            thread.join()
            await asyncio.get_running_loop().run_in_executor(None, use)
        assert len(told) == 3
        for error in told:
            assert "For a thread use anyio.to_thread.run_sync() or asyncio.to_thread()" in error
            assert "threading.Thread, executors and loop.run_in_executor() need" in error
            assert "contextvars.copy_context().run" in error

    async def test_nested_effects_of_two_databases_can_use_both_connections(self, session, tmp_path):
        other = Database(tmp_path / "other.db")
        try:
            async with session.transaction():
                async with other.session().transaction():
                    session.connection.execute("SELECT 1")
                    other.connection.execute("SELECT 1")
                session.connection.execute("SELECT 1")
                with pytest.raises(RuntimeError, match=r"other\.db"):
                    other.connection.execute("SELECT 1")
        finally:
            other.stop()

    async def test_effects_begun_in_the_context_of_an_ended_handler_hold_no_reference_to_it(
        self, session, tmp_path
    ):
        """A consumer started by another consumer's handler runs in the context of that handler."""
        other = Database(tmp_path / "other.db")
        try:
            async with session.transaction():
                context = contextvars.copy_context()
            block = other.session().transaction()
            context.run(block.enter)
            assert block.outer is None
            context.run(block.leave)
        finally:
            other.stop()

    async def test_a_forked_child_cannot_use_the_connection(self, session, monkeypatch):
        """Run the child's code in this process."""
        async with session.transaction():
            session.connection.execute("SELECT 1")
            block = session.connection.guard.scope
            with monkeypatch.context() as child:
                child.setattr(os, "getpid", lambda: 1)
                with pytest.raises(RuntimeError, match="only while a message is processed"):
                    session.connection.execute("SELECT 1")
                with pytest.raises(OwnershipLost, match="the parent of this forked process"):
                    await block.__aexit__(None, None, None)
            session.connection.execute("SELECT 1")


class TestRolledBack:
    @pytest.mark.parametrize(
        "sql",
        ["INSERT OR ROLLBACK INTO note(id) VALUES (1)", "INSERT INTO account VALUES ('raise', 1)"],
    )
    async def test_nothing_is_written_when_sqlite_rolled_back_by_itself(self, session, database, sql):
        """Otherwise later writes of a handler that swallows the error would be committed at once."""
        await session.note("a")
        with pytest.raises(StoreError, match="writes are undone and its message is not processed"):
            await self._swallow(session, sql)
        assert database.notes() == ["a"]
        await session.note("c")
        await session.commit("d")
        assert database.notes() == ["a", "c"]

    @staticmethod
    async def _swallow(session, sql):
        connection = session.connection
        async with session.transaction():
            connection.execute(
                "CREATE TRIGGER mine BEFORE INSERT ON account BEGIN SELECT RAISE(ROLLBACK, 'no'); END"
            )
            cursor = connection.cursor()
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute(sql)
            for use in (connection.execute, cursor.execute):
                with pytest.raises(StoreError, match="rolled the transaction back"):
                    use("INSERT INTO note(text) VALUES ('b')")


def test_a_handler_that_ends_late_does_not_end_the_access_of_the_next_one(tmp_path):
    """For example the first handler's session was released while it ran, and another session started."""

    def overlap():
        guard = connection_module.Guard(str(tmp_path / "store.db"))
        late, next_one = connection_module.HandlerScope(guard), connection_module.HandlerScope(guard)
        late.enter()
        next_one.enter()
        assert guard.scope is next_one
        late.is_active = False
        assert guard.scope is next_one
        next_one.leave()
        assert guard.scope is None

    contextvars.copy_context().run(overlap)
