"""The transactional suite rejects misbehaving stores: the test named beside a lie must catch it."""

import contextlib
import sqlite3

import anyio
import pytest

from push_to_poll_client import SQLiteStore, StoreError
from push_to_poll_client.stores._sqlite.connection import HandlerScope
from push_to_poll_client.testing import TransactionalStoreSuite
from tests.support.forms import GUARD

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # worker threads take real time


class Liar(SQLiteStore):
    """A misbehaving store: `lie` changes each claimed session."""

    def __init__(self, path, lie):
        super().__init__(path, transactional=True)
        self.lie = lie

    async def claim(self, name, *, feed):
        session = await super().claim(name, feed=feed)
        self.lie(session, session._transaction)
        return session


def keep_writes_of_a_failed_handler(session, transaction):
    file = transaction.file
    file.undo = lambda: file.connection.execute("COMMIT") and file.has_ended()


def commit_effects_before_their_records(session, transaction):
    honest = session._commit_effects

    def commit(records):
        transaction.file.connection.execute("COMMIT")
        transaction.file.connection.execute("BEGIN IMMEDIATE")
        honest(records if len(records) > 1 else ())

    session._commit_effects = commit


def forget_the_records_of_effects(session, transaction):
    honest = session._commit_effects
    session._commit_effects = lambda records: honest(())


def leave_it_open(session, transaction):
    transaction.file.undo = lambda: None


def commit_later(session, transaction):
    session._commit_effects = lambda records: None


def record_the_input_of_a_failed_commit(session, transaction):
    honest = session.commit

    async def commit(**what):
        if "state" in what:
            await honest(cursor=None, records=what["records"])
        await honest(**what)

    session.commit = commit


def take_the_records_for_written(session, transaction):
    honest = session.transaction

    def opened(records):
        session._written.update((record.key, record) for record in records)
        return honest(records)

    session.transaction = opened


def forget_the_token(session, transaction):
    session._progress._save = lambda *_, **__: None


def process_after_release(session, transaction):
    session._check_released = lambda: None


def lend_the_connection(session, transaction):
    guard = transaction.file.guard
    guard.__class__ = type("Open", (type(guard),), {"scope": HandlerScope(guard)})
    guard.check_outside = lambda: None


def wait_for_yourself(session, transaction):
    transaction.file.guard.check_outside = lambda: None


LIES = [
    (keep_writes_of_a_failed_handler, "test_a_handler_that_raises_takes_back_its_own"),
    (keep_writes_of_a_failed_handler, "test_a_cancelled_handler_takes_back_its_own"),
    (commit_effects_before_their_records, "test_effects_are_durable_when_the_handler_returns"),
    (forget_the_records_of_effects, "test_effects_are_durable_when_the_handler_returns"),
    (forget_the_records_of_effects, "test_a_reset_loses_no_effects"),
    (commit_later, "test_effects_are_durable_when_the_handler_returns"),
    (leave_it_open, "test_a_handler_that_raises_at_first_leaves_nothing_open"),
    (record_the_input_of_a_failed_commit, "test_a_commit_that_fails_takes_back_no_effects"),
    (take_the_records_for_written, "test_a_handler_that_wrote_nothing_is_recorded_by_the_commit"),
    (forget_the_token, "test_an_owner_that_was_replaced_has_no_effects"),
    (process_after_release, "test_a_released_session_has_no_effects"),
    (lend_the_connection, "test_the_connection_is_for_handlers_alone"),
    (wait_for_yourself, "test_a_handler_cannot_wait_for_what_waits_for_it"),
]

WAITS_FOR_EVER = {wait_for_yourself}
"""With these lies a transaction waits for one that never ends. With all others the test fails by itself."""


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
    """Its subclasses have no test names, so pytest does not collect them."""

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
