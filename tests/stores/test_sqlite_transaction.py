"""Effects blocks: their commit, and the order in which sessions get the transaction."""

import asyncio
import contextlib
import contextvars
import sqlite3
import threading
import time
from contextlib import asynccontextmanager, closing
from functools import partial
from types import SimpleNamespace

import anyio
import pytest
from anyio import from_thread, to_thread

from push_to_poll_client import OwnershipLost, StoreError, StoreUnavailable
from push_to_poll_client._protocols import TransactionConflict
from push_to_poll_client.stores._sqlite import transaction as transaction_module
from push_to_poll_client.stores._sqlite.thread import Job
from push_to_poll_client.stores._sqlite.transaction import GAP, LockGaps
from tests.support.effects import Database, Planned, look
from tests.support.forms import GUARD

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


def is_free(database):
    """Return True if another program could write now."""
    with closing(sqlite3.connect(database.path, timeout=0, isolation_level=None)) as other:
        try:
            other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        return True


async def undo(transaction):
    await transaction.file.thread.run(transaction.abandon, urgent=True)


async def begin(session):
    """Begin a transaction, as for a handler whose last call met a conflict."""
    await session.database.thread.run(partial(session.inner.begin, lambda: None), session.inner)


@asynccontextmanager
async def busy(database):
    """Keep a thread of the store busy until the event loop has continued."""
    held, go = threading.Event(), threading.Event()

    def hold():
        held.set()
        assert go.wait(GUARD)

    async def let_go():
        go.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(database.thread.run, hold, urgent=True))
        await to_thread.run_sync(held.wait)
        tasks.start_soon(let_go)
        yield


class TestBlocks:
    async def test_effects_are_committed_with_their_records_when_the_handler_returns(self, session, database):
        async with session.transaction("1", "2"):
            assert is_free(database)
            session.connection.execute("INSERT INTO note(text) VALUES ('a')")
            assert not is_free(database)
            assert database.notes() == []
        assert database.notes() == ["a"]
        assert look(database.path, "SELECT key FROM push_to_poll_record") == ["1", "2", "old"]
        assert is_free(database)

    async def test_a_handler_without_a_statement_begins_no_transaction(self, session, database):
        async with session.transaction("1"):
            session.connection.cursor()
        with pytest.raises(Planned):
            await session.fail()
        assert look(database.path, "SELECT key FROM push_to_poll_record") == ["old"]

    async def test_a_failed_handler_rolls_back_only_its_own_writes(self, session, database):
        await session.note("a")
        with pytest.raises(Planned):
            await session.fail("DELETE FROM note", "SAVEPOINT own", "CREATE TABLE mine(a)")
        assert not session.inner.is_open
        assert is_free(database)
        await session.note("b")
        assert database.notes() == ["a", "b"]
        assert look(database.path, "SELECT name FROM sqlite_master WHERE name = 'mine'") == []

    async def test_a_cancelled_handler_rolls_back_its_writes(self, session, database):
        with anyio.CancelScope() as scope:
            async with session.transaction():
                session.connection.execute("INSERT INTO note(text) VALUES ('half')")
                scope.cancel()
                await anyio.sleep_forever()
        assert is_free(database)
        await session.note("a")
        await session.commit()
        assert database.notes() == ["a"]

    async def test_a_savepoint_of_a_handler_ends_with_the_handler(self, session, database):
        """An open savepoint ends with its handler, and the next handler cannot roll back to it."""
        connection = session.connection
        async with session.transaction():
            connection.execute("INSERT INTO note(text) VALUES ('a')")
            connection.execute("SAVEPOINT own")
            connection.execute("INSERT INTO note(text) VALUES ('b')")
            connection.execute("ROLLBACK TO own")
            connection.execute("INSERT INTO note(text) VALUES ('c')")
        async with session.transaction():
            with pytest.raises(sqlite3.OperationalError, match="no such savepoint"):
                connection.execute("ROLLBACK TO own")
        await session.commit()
        assert database.notes() == ["a", "c"]

    async def test_unread_statements_of_a_handler_do_not_block_the_commit(self, session, database):
        """SQLite cannot release a savepoint while INSERT ... RETURNING still has unread rows."""
        kept = []
        async with session.transaction():
            kept.append(session.connection.execute("INSERT INTO note(text) VALUES ('a'), ('b') RETURNING id"))
            kept.append(session.connection.execute("SELECT * FROM note"))
        with pytest.raises(Planned):
            await session.fail("INSERT INTO note(text) VALUES ('c'), ('d') RETURNING id", keep=kept)
        await session.commit()
        assert database.notes() == ["a", "b"]

    async def test_the_session_reads_in_its_own_transaction(self, session):
        """Between messages and during a message, also from the handler itself."""
        query = "SELECT count(*) FROM note"
        await session.note("a")
        assert await session.ask(query) == [(2,)]
        async with session.transaction():
            session.connection.execute("DELETE FROM note")
            assert await session.ask(query) == [(0,)]

    async def test_a_commit_waits_for_the_running_handler(self, session, database):
        """A commit for something else, such as a dead letter, does not commit half of a message."""
        done = []

        async def commit():
            await session.commit("1")
            done.append(database.notes())

        async with anyio.create_task_group() as tasks, session.transaction():
            tasks.start_soon(commit)
            await anyio.wait_all_tasks_blocked()
            assert done == []
            session.connection.execute("INSERT INTO note(text) VALUES ('a')")
        assert done == [["a"]]

    async def test_the_end_of_effects_waits_for_a_busy_worker_thread_of_the_store(self, session, database):
        for error, text in ((None, "a"), (Planned, "b")):
            block = session.transaction()
            await block.__aenter__()
            session.connection.execute("INSERT INTO note(text) VALUES (?)", (text,))
            async with busy(database):
                await block.__aexit__(error, error and error(), None)
        assert database.notes() == ["a"]

    async def test_a_first_statement_does_not_wait_for_a_busy_worker_thread_of_the_store(self, session, database):
        async with busy(database):
            with pytest.raises(TransactionConflict):
                await session.note("a")
        await session.note("b")
        assert database.notes() == ["b"]

    async def test_a_cancelled_end_of_effects_is_completed_first(self, session, database):
        """The caller must learn the result, so its next checkpoint raises the cancellation."""
        with anyio.CancelScope() as scope:
            async with session.transaction("1"):
                session.connection.execute("INSERT INTO note(text) VALUES ('a')")
                scope.cancel()
            assert database.notes() == ["a"]
            await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught

    async def test_a_rollback_waits_for_a_busy_worker_thread_of_the_store(self, session, database):
        block = session.transaction()
        await block.__aenter__()
        session.connection.execute("INSERT INTO note(text) VALUES ('a')")
        async with busy(database):
            await undo(session.inner)
        assert is_free(database)
        with pytest.raises(StoreError, match="or the session was released"):
            await block.__aexit__(None, None, None)


class TestFirstStatement:
    async def test_in_the_event_loop_it_does_not_wait_for_another_handler(self, database):
        """If the handler swallows the error, its block raises it again."""
        first, second, begun, tried = database.session(), database.session(), anyio.Event(), anyio.Event()

        async def conflict():
            await begun.wait()
            with pytest.raises(TransactionConflict, match="the handler is called again"):
                await self._swallow(second)
            tried.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(conflict)
            async with first.transaction():
                first.connection.execute("INSERT INTO note(text) VALUES ('a')")
                begun.set()
                await tried.wait()
        await second.note("b")
        assert database.notes() == ["a", "b"]

    async def _swallow(self, session):
        async with session.transaction():
            for _ in range(2):
                with pytest.raises(TransactionConflict):
                    session.connection.execute("INSERT INTO note(text) VALUES ('x')")

    async def test_the_block_after_a_conflict_has_the_lock_before_its_handler_is_called(self, session, database):
        with closing(sqlite3.connect(database.path, isolation_level=None, check_same_thread=False)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(TransactionConflict):
                await session.note("a")
            other.execute("COMMIT")
        async with session.transaction():
            assert not is_free(database)
        async with session.transaction():
            assert is_free(database)

    async def test_a_cancelled_handler_with_a_conflict_raises_the_cancellation(self, session, database):
        with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with anyio.CancelScope() as scope:
                async with session.transaction():
                    with pytest.raises(TransactionConflict):
                        session.connection.execute("SELECT 1")
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught

    async def test_a_thread_that_waits_for_the_lock_keeps_the_event_loop_from_beginning(self, session, database):
        """For example two threads of a handler begin at once: one succeeds, and neither waits for ever."""
        insert = "INSERT INTO note(text) VALUES ('a')"
        async with session.transaction(), anyio.create_task_group() as tasks:
            scope = session.connection.guard.scope
            with scope._begin_lock, pytest.raises(TransactionConflict):
                session.connection.execute("SELECT 1")
            scope._failure = None
            for _ in range(3):
                tasks.start_soon(to_thread.run_sync, session.connection.execute, insert)
        assert database.notes() == ["a"] * 3

    async def test_a_thread_cannot_begin_when_the_handler_has_ended(self, session, database):
        """Nothing would end that transaction."""
        errors = []

        def use():
            assert go.wait(GUARD)
            try:
                session.connection.execute("SELECT 1")
            except RuntimeError as error:
                errors.append(error)

        go = threading.Event()
        async with session.transaction():
            thread = threading.Thread(target=contextvars.copy_context().run, args=(use,))
            thread.start()
        go.set()
        await to_thread.run_sync(thread.join)
        assert len(errors) == 1
        assert is_free(database)

    async def test_a_thread_that_waits_to_begin_when_its_handler_ends_begins_nothing(self, session, database):
        errors, go = [], threading.Event()

        def use():
            try:
                session.connection.execute("SELECT 1")
            except RuntimeError as error:
                errors.append(error)

        async def let_go():
            await anyio.wait_all_tasks_blocked()
            go.set()

        async with anyio.create_task_group() as tasks, session.transaction():
            database.thread.submit(Job(lambda: go.wait(GUARD), lambda: None, urgent=True))
            thread = threading.Thread(target=contextvars.copy_context().run, args=(use,))
            thread.start()
            while not session.connection.guard.scope._begin_lock.locked():
                await to_thread.run_sync(lambda: None)
            tasks.start_soon(let_go)
        await to_thread.run_sync(thread.join)
        assert len(errors) == 1
        assert is_free(database)


class TestGaps:
    @pytest.fixture
    def clock(self, monkeypatch):
        now = [100.0]
        monkeypatch.setattr(transaction_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
        return now

    def hold(self, gaps, clock, held, free):
        clock[0] += free
        gaps.taken()
        clock[0] += held
        gaps.released()

    def test_a_gap_follows_when_the_lock_was_held_for_a_second_almost_without_a_break(self, clock):
        gaps = LockGaps()
        for _ in range(33):
            self.hold(gaps, clock, 0.03, 0.0001)
            assert gaps.pause == 0
        for _ in range(2):
            self.hold(gaps, clock, 0.03, 0.0001)
        assert gaps.pause == pytest.approx(GAP)
        clock[0] += GAP / 2
        assert gaps.pause == pytest.approx(GAP / 2)
        self.hold(gaps, clock, 0.03, GAP)
        assert gaps.pause == 0

    def test_no_gap_follows_if_the_lock_is_often_free(self, clock):
        gaps = LockGaps()
        for _ in range(10_000):
            self.hold(gaps, clock, 0.0003, 0.0001)
        assert gaps.pause == 0

    async def test_a_handler_waits_for_the_gap_and_so_does_its_thread(self, session, monkeypatch):
        pauses = []
        monkeypatch.setattr(LockGaps, "pause", 0.25)

        async def sleep(seconds):
            pauses.append(seconds)

        monkeypatch.setattr(transaction_module, "anyio", SimpleNamespace(sleep=sleep))
        monkeypatch.setattr(
            transaction_module, "time", SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic)
        )
        async with session.transaction():
            await to_thread.run_sync(session.connection.execute, "SELECT 1")
        assert pauses == [0.25, 0.25]


class TestFailures:
    async def test_effects_whose_commit_fails_are_rolled_back(self, session, database):
        await session.note("a")
        with pytest.raises(StoreError, match="UNIQUE"):
            await self._write_and_record(session, "a")
        assert is_free(database)
        await session.note("d")
        assert database.notes() == ["a", "d"]

    async def _write_and_record(self, session, *keys):
        async with session.transaction(*keys):
            session.connection.execute("INSERT INTO note(text) VALUES ('b')")

    async def test_the_error_of_a_failed_commit_without_effects_does_not_mention_handlers(self, session, database):
        with pytest.raises(StoreError) as caught:
            await session.commit("old")
        assert "handlers" not in str(caught.value)
        assert is_free(database)

    async def test_a_type_error_while_writing_rolls_the_transaction_back(self, session, database):
        with pytest.raises(TypeError):
            await session.run(self._raise_within(session))
        assert is_free(database)

    @staticmethod
    def _raise_within(session):
        def work():
            with session.database.transaction():
                raise TypeError

        return work

    async def test_an_ownership_lost_error_keeps_its_type(self, session, database):
        def lose():
            with session.database.transaction():
                raise OwnershipLost("another owner")

        with pytest.raises(OwnershipLost, match="another owner"):
            await session.run(lose)
        assert is_free(database)

    async def test_effects_fail_when_their_transaction_was_already_rolled_back(self, session, database):
        """Neither the effects nor the records alone are committed."""
        with pytest.raises(StoreError, match="rolled the transaction back"):
            await self._roll_back(session, "1")
        assert look(database.path, "SELECT key FROM push_to_poll_record") == ["old"]
        await session.note("b")
        assert database.notes() == ["b"]

    async def _roll_back(self, session, *keys):
        async with session.transaction(*keys):
            session.connection.execute("INSERT INTO note(text) VALUES ('a')")
            with session.connection.guard.store_access():
                session.connection.execute("ROLLBACK")

    async def test_effects_and_commits_fail_while_another_program_writes(self, session, database):
        with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(TransactionConflict):
                await session.note("a")
            for write in (session.note, session.commit):
                with pytest.raises(StoreUnavailable, match="another program has kept a write transaction open"):
                    await write("1")
            with pytest.raises(StoreUnavailable, match="another program has kept a write transaction open"):
                await self._write_in_thread(session)
        await session.note("b")
        await session.commit("1")
        assert database.notes() == ["b"]

    async def _write_in_thread(self, session):
        async with session.transaction():
            with pytest.raises(StoreUnavailable):
                await to_thread.run_sync(session.connection.execute, "INSERT INTO note(text) VALUES ('a')")

    async def test_a_session_that_has_ended_begins_no_transaction(self, session, database):
        def over():
            raise StoreError("over")

        session.check = over
        with pytest.raises(StoreError, match="over"):
            await session.note("a")
        assert is_free(database)

    async def test_a_rollback_during_a_handler_is_a_store_error_and_keeps_other_sessions_writes(
        self, session, database
    ):
        """For example releasing the session rolls back. Later writes of another session stay."""
        other, undone = database.session(), anyio.Event()

        async def use():
            await undone.wait()
            async with other.transaction():
                session.connection.execute("INSERT INTO note(text) VALUES ('a')")
                await over.wait()
                session.connection.execute("INSERT INTO note(text) VALUES ('b')")

        async def be_abandoned():
            async with session.transaction():
                session.connection.execute("INSERT INTO note(text) VALUES ('x')")
                await undo(session.inner)
                undone.set()
                while not other.inner.is_open:
                    await to_thread.run_sync(lambda: None)
                with pytest.raises(StoreError, match="or the session was released"):
                    session.connection.execute("SELECT 1")

        over = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use)
            with pytest.raises(StoreError, match="or the session was released"):
                await be_abandoned()
            over.set()
        assert database.notes() == ["a", "b"]


class TestRaces:
    async def test_a_read_takes_its_turn_when_its_transaction_ends_while_it_waits(self, session, database):
        answers, other = [], database.session()

        async def ask():
            answers.append(await session.ask("SELECT count(*) FROM note"))

        await begin(session)
        async with anyio.create_task_group() as tasks, busy(database):
            tasks.start_soon(ask)
            tasks.start_soon(undo, session.inner)
        assert answers == [[(1,)]]
        await other.note("b")

    async def test_effects_that_are_released_while_their_end_waits_are_rolled_back(self, session, database):
        async def release():
            await ends.wait()
            async with busy(database):
                released.start_soon(undo, session.inner)
                await anyio.wait_all_tasks_blocked()
                go_on.set()
                await anyio.wait_all_tasks_blocked()

        ends, go_on = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as released:
            released.start_soon(release)
            with pytest.raises(StoreError, match="or the session was released"):
                await self._write_and_wait(session, ends, go_on)
        assert database.notes() == []
        assert is_free(database)

    @staticmethod
    async def _write_and_wait(session, ends, go_on):
        async with session.transaction():
            session.connection.execute("INSERT INTO note(text) VALUES ('a')")
            ends.set()
            await go_on.wait()


class TestTurns:
    @pytest.fixture(autouse=True)
    def _short_waits(self, monkeypatch):
        """Shorten each wait that ends with a conflict."""
        monkeypatch.setattr("push_to_poll_client.stores._sqlite.transaction.MAX_LOOP_WAIT", 0.02)

    async def test_transactions_of_several_sessions_do_not_mix(self, database):
        """Each is atomic: two sessions that write at once never mix, whatever they wait for."""

        async def consume(name):
            session = database.session()
            for number in range(5):
                while True:
                    with contextlib.suppress(TransactionConflict):
                        await write(session, f"{name}{number}")
                        break

        async def write(session, text):
            async with session.transaction():
                for _ in range(3):
                    session.connection.execute("INSERT INTO note(text) VALUES (?)", (text,))
                    await anyio.lowlevel.checkpoint()
                    await to_thread.run_sync(lambda: None)

        async with anyio.create_task_group() as tasks:
            for name in "abc":
                tasks.start_soon(consume, name)
        notes = database.notes()
        threes = [set(notes[at : at + 3]) for at in range(0, len(notes), 3)]
        assert all(len(three) == 1 for three in threes)
        assert len(set.union(*threes)) == 15

    async def test_a_busy_session_does_not_keep_another_waiting(self, database):
        """The turn goes to a waiting session, not back to the one that ended."""
        busy, other, stop = database.session(), database.session(), []

        async def consume():
            while not stop:
                await write(busy, "busy")

        async def write(session, text):
            with contextlib.suppress(TransactionConflict):
                async with session.transaction():
                    session.connection.execute("INSERT INTO note(text) VALUES (?)", (text,))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consume)
            for _ in range(10):  # at least every second call gets the turn
                await write(other, "other")
            stop.append(True)
        assert database.notes().count("other") >= 5

    async def test_a_read_waits_for_the_transaction_of_another_session(self, database):
        first, second = database.session(), database.session()
        answers, begun = [], anyio.Event()

        async def ask():
            await begun.wait()
            answers.append(await second.ask("SELECT count(*) FROM note"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            async with first.transaction():
                first.connection.execute("INSERT INTO note(text) VALUES ('a')")
                begun.set()
                for _ in range(20):
                    await to_thread.run_sync(lambda: None)
                assert answers == []
        assert answers == [[(2,)]]

    async def test_effects_begun_inside_a_handler_are_a_runtime_error(self, database):
        """The block would wait for itself."""
        first, second = database.session(), database.session()
        async with first.transaction():
            for session in (first, second):
                with pytest.raises(RuntimeError, match="cannot wait for a consumer of that store"):
                    await session.note("b")
        await first.commit()
        await second.note("c")

    async def test_waiting_for_a_turn_can_be_cancelled(self, database):
        session, done = database.session(), database.session()
        await begin(done)
        session.inner.begin_first = True
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(session.note, "b")
                while not database.thread._waiting:
                    await to_thread.run_sync(lambda: None)
                scope.cancel()
        await undo(done.inner)
        await session.note("c")
        assert database.notes() == ["c"]

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_waiting_for_a_turn_can_be_cancelled_by_asyncio(self, database):
        """No thread is left that begins a transaction later, for a caller that is gone."""
        session, done = database.session(), database.session()
        await begin(done)
        session.inner.begin_first = True
        task = asyncio.ensure_future(session.note("b"))
        while not database.thread._waiting:
            await to_thread.run_sync(lambda: None)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await undo(done.inner)
        assert is_free(database)
        await session.note("c")
        assert database.notes() == ["c"]

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_effects_begun_while_their_task_is_cancelled_are_rolled_back(self, session, database):
        session.inner.begin_first = True
        checks, held = [], threading.Event()

        def check():
            checks.append(threading.get_ident())
            if len(checks) == 2:  # in the worker thread
                task.get_loop().call_soon_threadsafe(task.cancel)
                held.wait(0.2)

        session.check = check
        task = asyncio.ensure_future(session.note("a"))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert is_free(database)
        await session.note("b")
        assert database.notes() == ["b"]

    async def test_effects_begun_while_their_scope_is_cancelled_are_rolled_back(self, session, database):
        session.inner.begin_first = True
        checks = []

        def check():
            checks.append(threading.get_ident())
            if len(checks) == 2:  # in the worker thread, which the cancellation no longer reaches
                from_thread.run_sync(scope.cancel, token=token)

        session.check = check
        token = anyio.lowlevel.current_token()
        with anyio.CancelScope() as scope:
            await session.note("a")
        assert is_free(database)
        await session.note("b")
        # On trio the cancellation must not be raised before the scope ends.
        assert database.notes() == (["b"] if scope.cancelled_caught else ["a", "b"])

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_effects_are_committed_although_their_task_is_cancelled_by_asyncio(self, session, database):
        """The caller's next checkpoint raises the cancellation, so the caller knows the result."""
        at_work, end, returned = asyncio.Event(), asyncio.Event(), []

        async def handle():
            async with session.transaction("1"):
                session.connection.execute("INSERT INTO note(text) VALUES ('b')")
                at_work.set()
                await end.wait()
            returned.append(database.notes())
            await anyio.lowlevel.checkpoint()

        task = asyncio.ensure_future(handle())
        await at_work.wait()
        async with busy(database):
            end.set()
            await asyncio.sleep(0)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert returned == [["b"]]

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_a_commit_completes_although_its_task_is_cancelled(self, session, database):
        """If the commit fails, its error is raised instead of the cancellation, because it matters more."""

        def cancel():
            task.get_loop().call_soon_threadsafe(task.cancel)

        for error in (asyncio.CancelledError, StoreError):
            task = asyncio.ensure_future(session.commit("1", before=cancel))
            with pytest.raises(error):
                await task
        assert look(database.path, "SELECT key FROM push_to_poll_record") == ["1", "old"]
