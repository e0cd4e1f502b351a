"""Blocks of effects, their commit, and whose turn it is."""

import asyncio
import sqlite3
import threading
from contextlib import asynccontextmanager, closing

import anyio
import pytest
from anyio import to_thread

from push_to_poll_client import OwnershipLost, StoreError
from push_to_poll_client.stores._fair_lock import FairLock
from push_to_poll_client.stores._sqlite.transaction import in_thread, undo
from tests.support.effects import Database, Planned, look
from tests.support.forms import GUARD

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # in virtual time an event loop is busy while it waits for a worker thread


@pytest.fixture
def database(tmp_path):
    database = Database(tmp_path / "store.db")
    yield database
    database.close()


@pytest.fixture
def session(database):
    return database.session()


def is_free(database):
    """Whether another program could write now."""
    with closing(sqlite3.connect(database.path, timeout=0, isolation_level=None)) as other:
        try:
            other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        return True


@asynccontextmanager
async def busy(database):
    """A thread of the store is at work until the event loop has gone on."""
    held, go = threading.Event(), threading.Event()

    def hold():
        with database.mutex:
            held.set()
            assert go.wait(GUARD)

    async def let_go():
        go.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(to_thread.run_sync, hold)
        await to_thread.run_sync(held.wait)
        tasks.start_soon(let_go)
        yield


class TestBlocks:
    async def test_effects_become_visible_only_with_the_commit(self, session, database):
        await session.note("a")
        await session.note("b")
        assert database.notes() == []
        assert not is_free(database)
        await session.commit("1", "2")
        assert database.notes() == ["a", "b"]
        assert look(database.path, "SELECT key FROM push_to_poll_record") == ["1", "2", "old"]
        assert is_free(database)

    async def test_a_failed_handler_rolls_back_only_its_own_writes(self, session, database):
        await session.note("a")
        with pytest.raises(Planned):
            await session.fail("DELETE FROM note", "SAVEPOINT own", "CREATE TABLE mine(a)")
        assert session.transaction.records == ["a"]
        await session.note("b")
        await session.commit()
        assert database.notes() == ["a", "b"]
        assert look(database.path, "SELECT name FROM sqlite_master WHERE name = 'mine'") == []

    async def test_a_failed_first_handler_leaves_no_transaction_open(self, session, database):
        """Whoever waits then, to try again, keeps nobody from writing."""
        for _ in range(2):
            with pytest.raises(Planned):
                await session.fail("DELETE FROM note")
            assert not session.transaction.is_open
            assert is_free(database)

    async def test_a_cancelled_handler_rolls_back_its_writes(self, session, database):
        with anyio.CancelScope() as scope:
            async with session.effects():
                session.connection.execute("INSERT INTO note(text) VALUES ('half')")
                scope.cancel()
                await anyio.sleep_forever()
        assert is_free(database)
        await session.note("a")
        await session.commit()
        assert database.notes() == ["a"]

    async def test_a_savepoint_of_a_handler_ends_with_the_handler(self, session, database):
        """One that is left open ends with its handler, and the next one cannot go back to it."""
        connection = session.connection
        async with session.effects():
            connection.execute("INSERT INTO note(text) VALUES ('a')")
            connection.execute("SAVEPOINT own")
            connection.execute("INSERT INTO note(text) VALUES ('b')")
            connection.execute("ROLLBACK TO own")
            connection.execute("INSERT INTO note(text) VALUES ('c')")
        async with session.effects():
            with pytest.raises(sqlite3.OperationalError, match="no such savepoint"):
                connection.execute("ROLLBACK TO own")
        await session.commit()
        assert database.notes() == ["a", "c"]

    async def test_unread_statements_of_a_handler_do_not_block_the_commit(self, session, database):
        """SQLite releases no savepoint while a statement writes: INSERT ... RETURNING does until it is read."""
        kept = []
        async with session.effects():
            kept.append(session.connection.execute("INSERT INTO note(text) VALUES ('a'), ('b') RETURNING id"))
            kept.append(session.connection.execute("SELECT * FROM note"))
        with pytest.raises(Planned):
            await session.fail("INSERT INTO note(text) VALUES ('c'), ('d') RETURNING id", keep=kept)
        await session.commit()
        assert database.notes() == ["a", "b"]

    async def test_records_given_to_effects_are_kept_until_the_commit(self, session):
        async with session.effects("1"):
            pass
        async with session.effects("2", "3"):
            pass
        assert session.transaction.records == ["1", "2", "3"]
        await session.commit()
        assert session.transaction.records == []

    async def test_the_session_reads_in_its_own_transaction(self, session):
        """Between messages and within one, also from the handler itself."""
        query = "SELECT count(*) FROM note"
        await session.note("a")
        assert await session.ask(query) == [(2,)]
        async with session.effects():
            assert await session.ask(query) == [(2,)]
            session.connection.execute("DELETE FROM note")
            assert await session.ask(query) == [(0,)]

    async def test_a_commit_waits_for_the_running_handler(self, session, database):
        """A commit from elsewhere, as for a dead letter, waits for the message in hand, and takes it along."""
        done = []

        async def commit():
            await session.commit("1")
            done.append(database.notes())

        async with anyio.create_task_group() as tasks, session.effects():
            tasks.start_soon(commit)
            await anyio.wait_all_tasks_blocked()
            assert done == []
            session.connection.execute("INSERT INTO note(text) VALUES ('a')")
        assert done == [["a"]]

    async def test_effects_wait_for_a_busy_worker_thread_of_the_store(self, session, database):
        """Its savepoint is begun and ended in a thread then: the event loop does not wait."""
        await session.note("a")
        async with busy(database), session.effects():
            session.connection.execute("INSERT INTO note(text) VALUES ('b')")
        for error, text in ((None, "c"), (Planned, "d")):
            block = session.effects()
            await block.__aenter__()
            session.connection.execute("INSERT INTO note(text) VALUES (?)", (text,))
            async with busy(database):
                await block.__aexit__(error, error and error(), None)
        await session.commit()
        assert database.notes() == ["a", "b", "c"]

    async def test_a_handler_cancelled_while_its_end_waits_for_a_thread_rolls_back_its_writes(
        self, session, database
    ):
        """The next commit does not take it along; and if the block raises the cancellation, nothing at all."""
        await session.note("a")
        block = session.effects()
        await block.__aenter__()
        session.connection.execute("INSERT INTO note(text) VALUES ('b')")
        async with busy(database):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await block.__aexit__(Planned, Planned(), None)
        assert session.transaction.is_open != scope.cancelled_caught
        await session.commit()
        assert database.notes() == ([] if scope.cancelled_caught else ["a"])

    async def test_a_rollback_waits_for_a_busy_worker_thread_of_the_store(self, session, database):
        await session.note("a")
        async with busy(database):
            await undo(session.transaction, limiter=session.limiter)
        assert is_free(database)


class TestFailures:
    async def test_a_failed_commit_rolls_back_all_effects_since_the_last_commit(self, session, database):
        await session.note("a")
        await session.commit("1")
        await session.note("b")
        await session.note("c")
        with pytest.raises(
            StoreError, match=r"UNIQUE.*what handlers wrote since the last commit is undone"
        ) as caught:
            await session.commit("2", "1")
        assert caught.value.__cause__ is not None
        assert session.transaction.records == []
        assert is_free(database)
        await session.note("d")
        await session.commit("2")
        assert database.notes() == ["a", "d"]

    async def test_the_error_of_a_failed_commit_without_effects_does_not_mention_handlers(self, session, database):
        with pytest.raises(StoreError) as caught:
            await session.commit("old")
        assert "handlers" not in str(caught.value)
        assert is_free(database)

    async def test_a_type_error_while_writing_rolls_the_transaction_back(self, session, database):
        await session.note("a")
        with pytest.raises(TypeError):
            await session.commit(object(), 1, *"ab", before=lambda: sorted([1, "a"]))
        assert session.transaction.is_open
        with pytest.raises(TypeError):
            await in_thread(self._raise_within(session), limiter=session.limiter)
        assert is_free(database)

    @staticmethod
    def _raise_within(session):
        def work():
            with session.transaction.access(), session.transaction.writing():
                raise TypeError

        return work

    async def test_an_ownership_lost_error_keeps_its_type_when_effects_are_rolled_back(self, session, database):
        def lose():
            with session.transaction.access(), session.transaction.writing():
                raise OwnershipLost("somebody else has it")

        await session.note("a")
        with pytest.raises(OwnershipLost, match="somebody else has it; what handlers wrote"):
            await in_thread(lose, limiter=session.limiter)
        assert database.notes() == []

    async def test_a_commit_fails_when_its_transaction_was_already_rolled_back(self, session, database):
        """Nothing is committed by halves: not the records alone either."""
        await session.note("a")
        with session.connection.guard.store_access():
            session.connection.execute("ROLLBACK")
        with pytest.raises(StoreError, match="rolled the transaction back"):
            await session.commit("1")
        assert look(database.path, "SELECT key FROM push_to_poll_record") == ["old"]
        await session.note("b")
        await session.commit("1")
        assert database.notes() == ["b"]

    @pytest.mark.parametrize("raises", [False, True])
    async def test_a_missing_savepoint_rolls_the_transaction_back(self, session, database, raises):
        """Nobody can take it away; should it happen all the same, half of it is not kept."""
        await session.note("a")
        with pytest.raises(StoreError, match="no such savepoint: push_to_poll; what handlers wrote"):
            await self._lose_the_savepoint(session, raises=raises)
        assert is_free(database)

    @staticmethod
    async def _lose_the_savepoint(session, *, raises):
        async with session.effects():
            with session.connection.guard.store_access():
                session.connection.execute("RELEASE push_to_poll")
            if raises:
                raise Planned

    async def test_a_failed_savepoint_statement_rolls_the_transaction_back(self, session, database, monkeypatch):
        await session.note("a")
        monkeypatch.setattr(
            session.transaction, "_cursor", sqlite3.connect(":memory:", isolation_level=None).cursor()
        )
        monkeypatch.setattr("push_to_poll_client.stores._sqlite.transaction._BEGIN", "SAVEPOINT")
        with pytest.raises(StoreError, match="what handlers wrote since the last commit is undone"):
            await session.note("b")
        session.transaction._cursor.connection.close()
        assert is_free(database)

    async def test_effects_and_commits_fail_while_another_program_writes(self, session, database):
        with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="another program writes to it"):
                await session.note("a")
            with pytest.raises(StoreError, match="another program writes to it"):
                await session.commit("1")
        await session.note("b")
        await session.commit("1")
        assert database.notes() == ["b"]

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
        """As by the release of the session. What another session does then is not touched."""
        other, undone = database.session(), anyio.Event()

        async def use():
            await undone.wait()
            async with other.effects():
                session.connection.execute("INSERT INTO note(text) VALUES ('a')")
                await over.wait()
                session.connection.execute("INSERT INTO note(text) VALUES ('b')")

        async def be_abandoned():
            async with session.effects():
                await to_thread.run_sync(session.transaction.abandon)
                undone.set()
                while not other.transaction.is_open:
                    await to_thread.run_sync(lambda: None)
                with pytest.raises(RuntimeError, match="only while a message is processed"):
                    session.connection.execute("SELECT 1")

        over = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use)
            with pytest.raises(StoreError, match="or the session was released"):
                await be_abandoned()
            over.set()
        await other.commit()
        assert database.notes() == ["a", "b"]


class TestRaces:
    async def test_a_read_takes_a_new_turn_when_its_transaction_ends_while_it_waits(self, session, database):
        """That thread then takes its turn like any other."""
        await session.note("a")
        answers, other = [], database.session()

        async def ask():
            answers.append(await session.ask("SELECT count(*) FROM note"))

        async with anyio.create_task_group() as tasks:
            with database.mutex:
                tasks.start_soon(ask)
                while not session.limiter.statistics().borrowed_tokens:
                    await anyio.lowlevel.checkpoint()
                await to_thread.run_sync(lambda: None)
                with session.connection.guard.store_access():
                    session.transaction.undo()
                database.fair_lock.release()
        assert answers == [[(1,)]]
        await other.note("b")

    def test_effects_do_not_begin_in_a_transaction_that_has_just_ended(self, session):
        """The block then begins another one, in its turn."""

        class Mutex:
            def acquire(self, *, blocking):
                session.transaction.is_open = False
                return True

            def release(self):
                pass

        session.transaction.is_open, session.transaction._mutex = True, Mutex()
        assert not session.transaction.try_inline(pytest.fail)


class TestTurns:
    async def test_transactions_of_several_sessions_do_not_mix(self, database):
        """Each is whole: two that write at once never mix, whatever they wait for."""

        async def consume(name):
            session = database.session()
            for number in range(5):
                for _ in range(3):
                    async with session.effects():
                        session.connection.execute("INSERT INTO note(text) VALUES (?)", (f"{name}{number}",))
                        await anyio.lowlevel.checkpoint()
                    await to_thread.run_sync(lambda: None)
                await session.commit()

        async with anyio.create_task_group() as tasks:
            for name in "abc":
                tasks.start_soon(consume, name)
        notes = database.notes()
        threes = [set(notes[at : at + 3]) for at in range(0, len(notes), 3)]
        assert all(len(three) == 1 for three in threes)
        assert len(set.union(*threes)) == 15

    async def test_a_busy_session_does_not_keep_another_waiting(self, database):
        """The turn is handed on to who waits, not had again by who gave it back."""
        busy, other, stop = database.session(), database.session(), []

        async def consume():
            while not stop:
                await busy.note("busy")
                await busy.commit()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consume)
            for _ in range(5):
                await other.note("other")
                await other.commit()
            stop.append(True)
        assert database.notes().count("other") == 5

    async def test_a_read_waits_for_the_transaction_of_another_session(self, database):
        first, second = database.session(), database.session()
        answers = []

        async def ask():
            answers.append(await second.ask("SELECT count(*) FROM note"))

        await first.note("a")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            for _ in range(20):
                await to_thread.run_sync(lambda: None)
            assert answers == []
            await first.commit()
        assert answers == [[(2,)]]

    async def test_effects_begun_inside_a_handler_are_a_runtime_error(self, database):
        """It would wait for itself."""
        first, second = database.session(), database.session()
        async with first.effects():
            for session in (first, second):
                with pytest.raises(RuntimeError, match="cannot wait for what other consumers of that store do"):
                    await session.note("b")
        await first.commit()
        await second.note("c")

    async def test_waiting_for_a_turn_can_be_cancelled(self, database):
        first, second = database.session(), database.session()
        await first.note("a")
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(second.note, "b")
                while not database.fair_lock._waiting:
                    await to_thread.run_sync(lambda: None)
                scope.cancel()
        assert not database.fair_lock._waiting
        await first.commit()
        await second.note("c")
        await second.commit()
        assert database.notes() == ["a", "c"]

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_waiting_for_a_turn_can_be_cancelled_by_asyncio(self, database):
        """That leaves no thread behind which begins a transaction later, for nobody."""
        first, second = database.session(), database.session()
        await first.note("a")
        task = asyncio.ensure_future(second.note("b"))
        while not database.fair_lock._waiting:
            await to_thread.run_sync(lambda: None)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await first.commit()
        assert is_free(database)
        await second.note("c")
        await second.commit()
        assert database.notes() == ["a", "c"]

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_effects_begun_while_their_task_is_cancelled_are_rolled_back(self, session, database):
        task = asyncio.ensure_future(session.note("a"))
        session.check = lambda: task.get_loop().call_soon_threadsafe(task.cancel) and held.wait(0.2)
        held = threading.Event()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert is_free(database)
        session.check = lambda: None
        await session.note("b")
        await session.commit()
        assert database.notes() == ["b"]

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_a_cancellation_at_the_end_of_a_handler_rolls_the_transaction_back(self, session, database):
        """The caller cannot tell whether it ended well, and so it did not."""
        await session.note("a")
        at_work, end = asyncio.Event(), asyncio.Event()

        async def handle():
            async with session.effects():
                session.connection.execute("INSERT INTO note(text) VALUES ('b')")
                at_work.set()
                await end.wait()

        task = asyncio.ensure_future(handle())
        await at_work.wait()
        async with busy(database):
            end.set()
            await asyncio.sleep(0)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not session.transaction.is_open
        assert is_free(database)

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_a_commit_completes_although_its_task_is_cancelled(self, session, database):
        """And when it fails then, that is what is told: it matters more."""
        await session.note("a")
        task = asyncio.ensure_future(
            session.commit("1", before=lambda: task.get_loop().call_soon_threadsafe(task.cancel))
        )
        with pytest.raises(asyncio.CancelledError):
            await task
        assert database.notes() == ["a"]
        await session.note("b")
        task = asyncio.ensure_future(
            session.commit("1", before=lambda: task.get_loop().call_soon_threadsafe(task.cancel))
        )
        with pytest.raises(StoreError):
            await task
        assert database.notes() == ["a"]

    def test_turns_are_granted_in_the_order_of_requests(self):
        fair_lock, order = FairLock(), []
        fair_lock.acquire(self)
        threads = []
        for number in range(4):
            thread = threading.Thread(
                target=lambda number=number: (fair_lock.acquire(self), order.append(number), fair_lock.release())
            )
            thread.start()
            threads.append(thread)
            while len(fair_lock._waiting) <= number:
                pass
        fair_lock.release()
        for thread in threads:
            thread.join()
        assert order == [0, 1, 2, 3]

    async def test_a_turn_granted_to_a_cancelled_task_is_given_back(self, monkeypatch):
        """Whoever is called and has gone would keep all others waiting."""
        fair_lock = FairLock()
        fair_lock.acquire(self)

        def cancelled():
            fair_lock.release()
            raise Planned

        monkeypatch.setattr("push_to_poll_client.stores._fair_lock.from_thread.check_cancelled", cancelled)
        with pytest.raises(Planned):
            fair_lock.acquire(self)
        fair_lock.acquire(self)
