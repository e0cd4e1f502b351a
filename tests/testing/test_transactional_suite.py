"""The suite finds transactional stores out: each lie below is caught by the test named beside it."""

import contextlib
import sqlite3

import anyio
import pytest

from push_to_poll_client import SQLiteStore, StoreError
from push_to_poll_client.testing import TransactionalStoreSuite
from tests.support.forms import GUARD

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # worker threads take real time


class Liar(SQLiteStore):
    """A store that misbehaves: `lie` gets each session that was claimed."""

    def __init__(self, path, lie):
        super().__init__(path, transactional=True)
        self.lie = lie

    async def claim(self, name, *, feed):
        session = await super().claim(name, feed=feed)
        self.lie(session, session._transaction)
        return session


def drop_the_savepoint(session, transaction):
    honest = transaction.end_savepoint
    transaction.end_savepoint = lambda place, records, *, keep: honest(place, records if keep else (), keep=True)


def take_back_all(session, transaction):
    honest = transaction.end_savepoint

    def end_block(place, records, *, keep):
        transaction._savepoints = transaction._savepoints if keep else 0
        honest(place, records, keep=keep)

    transaction.end_savepoint = end_block


def commit_effects_at_once(session, transaction):
    honest = transaction.end_savepoint

    def end_block(place, records, *, keep):
        honest(place, records, keep=keep)
        if keep:
            transaction._reset()
            transaction._connection.execute("COMMIT")

    transaction.end_savepoint = end_block


def forget_the_records_of_effects(session, transaction):
    session._with_effects = lambda records: records


def leave_it_open(session, transaction):
    honest = transaction.end_savepoint

    def end_block(place, records, *, keep):
        transaction._savepoints += 1
        honest(place, records, keep=keep)

    transaction.end_savepoint = end_block


def keep_the_effects_of_a_commit_that_fails(session, transaction):
    honest, execute = transaction._begin_to_write, transaction._connection.execute

    def begin_to_write():
        honest()
        execute("SAVEPOINT lie")

    def undo():
        transaction._reset()
        execute("ROLLBACK TO lie")
        execute("COMMIT")

    transaction._begin_to_write, transaction.undo = begin_to_write, undo


def forget_the_token(session, transaction):
    session._claimed._save = lambda *_: None


def process_after_release(session, transaction):
    session._check_released = lambda: None


def lend_the_connection(session, transaction):
    transaction.guard.__class__ = type("Open", (type(transaction.guard),), {"is_inside": True})
    transaction.guard.check_outside = lambda: None


def wait_for_yourself(session, transaction):
    transaction.guard.check_outside = lambda: None


LIES = [
    (drop_the_savepoint, "test_a_handler_that_raises_takes_back_its_own"),
    (drop_the_savepoint, "test_a_cancelled_handler_takes_back_its_own"),
    (take_back_all, "test_a_handler_that_raises_takes_back_its_own"),
    (commit_effects_at_once, "test_effects_are_not_durable_without_their_records"),
    (forget_the_records_of_effects, "test_records_of_effects_need_not_be_given_again"),
    (forget_the_records_of_effects, "test_a_reset_loses_no_effects"),
    (leave_it_open, "test_a_handler_that_raises_at_first_leaves_nothing_open"),
    (keep_the_effects_of_a_commit_that_fails, "test_a_commit_that_fails_leaves_both_or_neither"),
    (forget_the_token, "test_an_owner_that_was_replaced_has_no_effects"),
    (process_after_release, "test_a_released_session_has_no_effects"),
    (lend_the_connection, "test_the_connection_is_for_handlers_alone"),
    (wait_for_yourself, "test_a_handler_cannot_wait_for_what_waits_for_it"),
]

WAITS_FOR_EVER = {leave_it_open, wait_for_yourself}
"""With these a transaction waits for one that never ends. With the others a test of the suite fails by itself."""


@pytest.mark.parametrize(("lie", "test"), LIES)
async def test_the_suite_catches_each_misbehaving_store(lie, test, tmp_path):
    class Caught(Honest):
        path = tmp_path / "app.db"

        async def make_store(self):
            await super().make_store()
            return Liar(self.path, lie)

    if lie in WAITS_FOR_EVER:
        with pytest.raises(TimeoutError), anyio.fail_after(1):
            await getattr(Caught(), test)()
        return
    with pytest.raises((AssertionError, pytest.fail.Exception, StoreError, RuntimeError)), anyio.fail_after(GUARD):
        await getattr(Caught(), test)()


@pytest.mark.parametrize("test", sorted({test for _, test in LIES}))
async def test_an_honest_store_passes_each_test_that_catches_a_misbehaving_store(test, tmp_path):
    class Cleared(Honest):
        path = tmp_path / "app.db"

    await getattr(Cleared(), test)()


class Honest(TransactionalStoreSuite):
    """Derived from below, as pytest does not run what has no name of a test."""

    async def make_store(self):
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            connection.execute("CREATE TABLE note(id INTEGER PRIMARY KEY, text)")
        return SQLiteStore(self.path, transactional=True)

    async def reopen(self, store):
        return SQLiteStore(store.path, transactional=True)

    async def steal(self, store, name):
        with contextlib.closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("UPDATE push_to_poll_consumer SET token = token + 1")

    @contextlib.contextmanager
    def failing(self, store):
        guard, connection = store._file.guard, store._file.connection
        trigger = "AFTER INSERT ON push_to_poll_state BEGIN SELECT RAISE(FAIL, 'planted'); END"
        with guard.store_access():
            connection.execute(f"CREATE TEMP TRIGGER broken {trigger}")
        yield
        with guard.store_access():
            connection.execute("DROP TRIGGER IF EXISTS broken")

    async def write(self, store, text):
        store.connection.execute("INSERT INTO note(text) VALUES (?)", (text,))

    async def written(self, store):
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return [text for (text,) in connection.execute("SELECT text FROM note ORDER BY id")]
