"""Guarantees for a handler on the application's database when its message fails (G8)."""

import contextlib
import sqlite3

import pytest
from anyio.lowlevel import checkpoint
from tenacity import AsyncRetrying, stop_after_attempt, wait_none

from push_to_poll_client import Consumer, OwnershipLost, SQLiteStore
from push_to_poll_client.testing import FakeFeed

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]

TWICE = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_none())


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # worker threads take real time


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "app.db"
    ask(path, "CREATE TABLE note(id INTEGER PRIMARY KEY, text)")
    return path


@pytest.fixture
def store(path):
    return SQLiteStore(path, transactional=True)


def ask(path, statement):
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        return [row[0] for row in connection.execute(statement)]


def notes(path):
    return ask(path, "SELECT text FROM note ORDER BY id")


def recorded(path):
    return ask(path, "SELECT key FROM push_to_poll_record ORDER BY key")


class Notes:
    """Handlers that write to a database, then run an action chosen by the test for some messages."""

    def __init__(self, store, then=None):
        self.store = store
        self.then = then or {}
        self.called = []

    def write(self, message):
        self.called.append(message.id)
        self.store.connection.execute("INSERT INTO note(text) VALUES (?)", (message.id,))
        if message.id in self.then:
            self.then[message.id](self)


def of_kind(kind, feed, notes, **settings):
    """Return a consumer whose handler is of one of the three kinds."""

    class Async(Consumer):
        async def process(self, message):
            notes.write(message)
            await checkpoint()

    class Plain(Consumer):
        def process(self, message):
            notes.write(message)

    class Batch(Consumer):
        async def process_batch(self, messages):
            for message in messages:
                notes.write(message)

    return {"async": Async, "plain": Plain, "batch": Batch}[kind](feed, store=notes.store, **settings)


every_kind = pytest.mark.parametrize("kind", ["async", "plain", "batch"])


def feed_of(*names, **settings):
    feed = FakeFeed(**settings)
    feed.publish(*names)
    return feed


def fail(_):
    raise ValueError("no such customer")


@every_kind
async def test_writes_of_a_failed_message_are_rolled_back_and_other_writes_are_kept(kind, store, path):
    for policy in ("dead_letter", "skip"):
        handler = Notes(store, {policy: fail})
        feed = feed_of("a" + policy, policy, "b" + policy)
        await of_kind(kind, feed, handler, name=policy, retry=TWICE, on_failure=policy).poll_now()
    assert notes(path) == ["adead_letter", "bdead_letter", "askip", "bskip"]
    assert recorded(path) == sorted(["adead_letter", "dead_letter", "bdead_letter", "askip", "skip", "bskip"])


@every_kind
async def test_writes_of_a_retried_dead_letter_are_committed_with_its_record(kind, store, path):
    handler = Notes(store, {"b": fail})
    consumer = of_kind(kind, feed_of(*"abc"), handler, retry=None, on_failure="dead_letter")
    await consumer.poll_now()
    assert (await consumer.dead_letters.retry()).failed == 1
    assert notes(path) == ["a", "c"]
    handler.then.clear()
    assert (await consumer.dead_letters.retry()).processed == 1
    assert notes(path) == ["a", "c", "b"]
    assert ask(path, "SELECT state FROM push_to_poll_record WHERE key = 'b' ORDER BY segment DESC")[0] is None


@every_kind
async def test_a_commit_inside_the_handler_raises_a_runtime_error(kind, store, path):
    """By any way to commit. If the handler ignores the error, nothing is committed."""
    told = []

    def commit(handler):
        connection = handler.store.connection
        for way in (connection.commit, lambda: connection.execute("/* now */ COMMIT")):
            with pytest.raises(RuntimeError, match="a handler must not"):
                way()
            told.append(way)

    await of_kind(kind, feed_of(*"abc"), Notes(store, {"b": commit})).poll_now()
    assert (len(told), notes(path)) == (2, [*"abc"])


async def test_writes_of_a_replaced_owner_are_rolled_back(store, path):
    async with of_kind("async", feed_of("a"), Notes(store)) as consumer:
        ask(path, "UPDATE push_to_poll_consumer SET token = token + 1")
        with pytest.raises(OwnershipLost):
            await consumer.poll_now()
    assert notes(path) == []
