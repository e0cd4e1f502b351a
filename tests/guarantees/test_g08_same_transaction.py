"""G8, same transaction: what a handler writes is committed with the record of its message, or not at all."""

import contextlib
import sqlite3
import threading

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

from push_to_poll_client import (
    Consumer,
    DeadLetterMessage,
    DecodeError,
    ProcessError,
    SQLiteStore,
    StoreError,
)
from push_to_poll_client.testing import FakeFeed
from tests.support.forms import GUARD
from tests.support.replicas import Replica
from tests.support.shared_memory import SharedMemory

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # worker threads take real time


TWICE = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_fixed(0.001))
TABLE = "CREATE TABLE done(id TEXT)"  # without a key: an effect that is done twice has two rows


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "application.db"
    with sqlite3.connect(path) as connection:
        connection.execute(TABLE)
    connection.close()
    return path


def done(path):
    connection = sqlite3.connect(path)
    rows = [name for (name,) in connection.execute("SELECT id FROM done ORDER BY rowid")]
    connection.close()
    return rows


class Writes(Consumer):
    """Write each message down, then fail for messages in `failing`, which may say how often."""

    def __init__(self, feed, path, *, failing=(), error=None, **settings):
        self.store = SQLiteStore(path, transactional=True)
        super().__init__(feed, store=self.store, **settings)
        self.failing = dict.fromkeys(failing, 10**9) if not isinstance(failing, dict) else failing
        self.error = error or ValueError("no")

    async def process(self, message):
        self.write(message)
        await anyio.lowlevel.checkpoint()
        self.fail(message)

    def write(self, message):
        self.store.connection.execute("INSERT INTO done VALUES (?)", (message.id,))

    def fail(self, message):
        if self.failing.get(message.id, 0) > 0:
            self.failing[message.id] -= 1
            raise self.error


class WritesInAThread(Writes):
    def process(self, message):
        self.write(message)
        self.fail(message)


class WritesBatches(Writes):
    process = Consumer.process

    async def process_batch(self, messages):
        for message in messages:
            self.write(message)
        await anyio.lowlevel.checkpoint()
        for message in messages:
            self.fail(message)


KINDS = [Writes, WritesInAThread, WritesBatches]


def feed_of(count, **settings):
    feed = FakeFeed(**settings)
    feed.publish(count)
    return feed


def ids(count, *, but=()):
    return [str(n) for n in range(1, count + 1) if str(n) not in but]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("commit_interval", [0.0, 0.05, 1000.0])
async def test_g8_effects_and_records_are_committed_together(kind, commit_interval, path):
    feed = feed_of(25, page_size=10)
    consumer = kind(feed, path, commit_interval=commit_interval, batch_size=4)
    result = await consumer.poll_now()
    assert (result.messages, result.caught_up) == (25, True)
    assert done(path) == ids(25)
    assert (await kind(feed, path).poll_now()).messages == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_g8_a_failure_rolls_back_only_the_failed_message(kind, path):
    feed = feed_of(9)
    consumer = kind(feed, path, failing=["3", "7"], on_failure="dead_letter", retry=TWICE, batch_size=4)
    async with consumer:
        result = await consumer.poll_now()
        assert [letter.id for letter in await consumer.dead_letters.list()] == ["3", "7"]
        assert result.messages == 9
        assert done(path) == ids(9, but={"3", "7"})
        consumer.failing.clear()
        retried = await consumer.dead_letters.retry()
        assert (retried.processed, retried.failed) == (2, 0)
        assert consumer.status().dead_letters == 0
    assert sorted(done(path)) == ids(9)
    assert (await kind(feed, path).poll_now()).messages == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_g8_a_retried_message_keeps_no_effects_of_failed_attempts(kind, path):
    consumer = kind(feed_of(5), path, failing={"2": 1, "4": 1}, retry=TWICE, batch_size=2)
    await consumer.poll_now()
    assert done(path) == ids(5)


@pytest.mark.parametrize("kind", KINDS)
async def test_g8_a_retry_wait_commits_the_messages_before_and_leaves_no_transaction_open(kind, path):
    feed = feed_of(5)
    retry = AsyncRetrying(wait=wait_fixed(1000))
    consumer = kind(feed, path, failing=["3"], retry=retry, commit_interval=1000.0, batch_size=10)
    async with consumer:
        result = await consumer.poll_now()
        assert (result.messages, result.caught_up) == (2, False)
        assert done(path) == ids(2)
        with sqlite3.connect(path, timeout=0) as other:  # no program holds the lock
            other.execute("INSERT INTO done VALUES ('other')")
        other.close()


async def test_g8_no_transaction_is_open_while_a_failure_policy_or_retry_strategy_runs(path):
    seen = []

    def look():
        with contextlib.closing(sqlite3.connect(path, timeout=0)) as other, other:
            other.execute("BEGIN IMMEDIATE")
        seen.append(done(path))

    async def policy(message, error):
        look()
        await anyio.lowlevel.checkpoint()
        return "skip"

    async def never(state):
        look()
        return False

    for retry in (None, AsyncRetrying(retry=never)):
        consumer = Writes(
            feed_of(4),
            path,
            failing=["3"],
            retry=retry,
            on_failure=policy,
            commit_interval=1000.0,
            name=str(retry),
        )
        await consumer.poll_now()
    assert seen == [ids(2), [*ids(4, but={"3"}), *ids(2)], [*ids(4, but={"3"}), *ids(2)]]


@pytest.mark.parametrize("kind", KINDS)
async def test_g8_a_consumer_stopped_by_a_failure_keeps_only_the_effects_before_it(kind, path):
    consumer = kind(feed_of(5), path, failing=["4"], retry=None, batch_size=3)
    with pytest.raises(ProcessError):
        await consumer.run()
    assert done(path) == ids(3)


@pytest.mark.parametrize("kind", KINDS)
async def test_g8_effects_that_cannot_be_committed_are_done_by_the_next_poll(kind, path, monkeypatch):
    consumer = kind(feed_of(12, page_size=5), path, batch_size=2)
    async with consumer:
        claimed = consumer._parts.session._progress
        calls = []
        # Within the transaction of the effects, before it is committed.
        write = claimed.records.write

        def fails(*what, **when):
            calls.append(what)
            if len(calls) == 4:
                raise StoreError("planted")
            return write(*what, **when)

        monkeypatch.setattr(claimed.records, "write", fails)
        with pytest.raises(StoreError, match="planted"):
            await consumer.poll_now()
        assert done(path) == ids(len(done(path)))
        assert len(done(path)) < 12
        while not (await consumer.poll_now()).caught_up:
            pass
    assert done(path) == ids(12)


@pytest.mark.parametrize("kind", KINDS)
async def test_g8_a_failed_commit_of_the_cursor_repeats_no_effects(kind, path, monkeypatch):
    consumer = kind(feed_of(12, page_size=5), path, batch_size=2, commit_interval=1000.0)
    async with consumer:
        session = consumer._parts.session
        commit, calls = session.commit, []

        async def fails_once(**what):
            calls.append(what)
            if len(calls) == 2:
                what = {**what, "state": {"x": object()}}  # SQLite cannot store it
            await commit(**what)

        monkeypatch.setattr(session, "commit", fails_once)
        with pytest.raises(Exception, match=r".") as caught:
            await consumer.poll_now()
        assert not isinstance(caught.value, ProcessError)
        assert done(path) == ids(10)
        while not (await consumer.poll_now()).caught_up:
            pass
        assert session.record_count == 12
    assert done(path) == ids(12)


class RollsBack(Writes):
    """Roll back the whole transaction by a statement of the handler."""

    async def process(self, message):
        self.write(message)
        if message.id == "3":
            execute = self.store.connection.execute
            execute("CREATE TABLE once(id UNIQUE)")
            execute("INSERT INTO once VALUES (1)")
            self.roll_back(lambda: execute("INSERT OR ROLLBACK INTO once VALUES (1)"))

    def roll_back(self, call):
        call()


async def test_g8_a_handler_that_rolls_its_transaction_back_and_raises_fails_as_others_do(path):
    await RollsBack(feed_of(5), path, retry=None, on_failure="skip").poll_now()
    assert done(path) == ids(5, but={"3"})


async def test_g8_a_handler_that_rolls_its_transaction_back_and_goes_on_stops_the_consumer(path):
    class GoesOn(RollsBack):
        def roll_back(self, call):
            with pytest.raises(sqlite3.IntegrityError):
                call()

    feed = feed_of(5)
    with pytest.raises(StoreError, match="rolled the transaction back"):
        await GoesOn(feed, path, on_failure="skip").run()
    assert done(path) == ids(2)
    await Writes(feed, path).poll_now()
    assert done(path) == ids(5)


@contextlib.contextmanager
def another_program(path, timeout=0.0):
    """Another program, which writes in autocommit mode."""
    with contextlib.closing(
        sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    ) as other:
        yield other


def is_locked(path):
    """Return True if another program could not write now."""
    with another_program(path) as other:
        try:
            other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        other.execute("ROLLBACK")
        return False


async def test_g8_the_transaction_begins_with_the_first_statement_and_ends_with_the_handler(path):
    locked = []

    class Looks(Writes):
        async def process(self, message):
            connection = self.store.connection
            await anyio.lowlevel.checkpoint()
            cursor = connection.cursor()
            locked.append((is_locked(path), done(path)))
            cursor.execute("SELECT 1")
            locked.append((is_locked(path), done(path)))
            self.write(message)

    await Looks(feed_of(2), path, commit_interval=1000.0).poll_now()
    assert locked == [(False, []), (True, []), (False, ["1"]), (True, ["1"])]
    assert not is_locked(path)


async def test_g8_a_handler_without_a_statement_begins_no_transaction(path):
    commits = []

    class Idle(Writes):
        async def process(self, message):
            commits.append(self._parts.session.record_count)

    consumer = Idle(feed_of(5), path, commit_interval=1000.0)
    async with consumer:
        await consumer.poll_now()
        assert commits == [0] * 5
        assert consumer._parts.session.record_count == 5


async def test_g8_an_async_handler_that_finds_the_database_locked_is_called_again_with_the_lock(path):
    """This is not a failed attempt, even if the handler swallows the error."""
    calls, errors = [], []

    with another_program(path) as other:

        class Waits(Writes):
            async def process(self, message):
                calls.append(is_locked(path))
                if len(calls) == 1:
                    other.execute("BEGIN IMMEDIATE")
                    context.callback(other.execute, "COMMIT")
                with contextlib.ExitStack() as ended:
                    ended.callback(lambda: len(calls) == 1 and context.close())
                    try:
                        self.write(message)
                    except StoreError as error:
                        errors.append(str(error))

        context = contextlib.ExitStack()
        consumer = Waits(feed_of(3), path, retry=None)
        assert (await consumer.poll_now()).messages == 3
    assert calls == [False, True, False, False]
    assert len(errors) == 1
    assert "the handler is called again" in errors[0]
    assert done(path) == ids(3)
    assert consumer.status().counters.retries == 0


@pytest.mark.parametrize("in_thread", ["plain", "to_thread"])
async def test_g8_a_handler_in_a_thread_waits_for_the_lock(in_thread, path):
    calls, released = [], threading.Event()

    def write(consumer, message):
        calls.append(message.id)
        if message.id == "1":
            other.execute("BEGIN IMMEDIATE")
            threading.Timer(0.1, lambda: (other.execute("COMMIT"), released.set())).start()
        consumer.write(message)

    class Plain(Writes):
        def process(self, message):
            write(self, message)

    class Threaded(Writes):
        async def process(self, message):
            await anyio.to_thread.run_sync(write, self, message)

    with another_program(path) as other:
        await (Plain if in_thread == "plain" else Threaded)(feed_of(3), path, retry=None).poll_now()
        assert released.wait(GUARD)
    assert calls == ids(3)
    assert done(path) == ids(3)


async def test_g8_consumers_of_one_store_do_not_wait_for_a_handler_without_a_statement(path):
    store = SQLiteStore(path, transactional=True)
    waits, go_on = anyio.Event(), anyio.Event()

    async def wait_and_write(message):
        waits.set()
        await go_on.wait()
        store.connection.execute("INSERT INTO done VALUES ('late')")

    async def write(message):
        store.connection.execute("INSERT INTO done VALUES ('early')")

    late = Consumer(feed_of(1), store=store, name="late", process=wait_and_write)
    early = Consumer(feed_of(1), store=store, name="early", process=write)
    with anyio.fail_after(GUARD):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(late.poll_now)
            await waits.wait()
            await early.poll_now()
            assert done(path) == ["early"]
            go_on.set()
    assert done(path) == ["early", "late"]


async def test_g8_a_message_dead_lettered_by_its_handler_has_no_effects(path):
    consumer = Writes(feed_of(3), path, failing=["2"], error=DeadLetterMessage("not ours"))
    await consumer.poll_now()
    assert done(path) == ["1", "3"]


async def test_g8_a_cancelled_handler_leaves_no_effects(path):
    class Hangs(Writes):
        async def process(self, message):
            self.write(message)
            if message.id == "3":
                self.hangs.set()
                await anyio.sleep_forever()

    feed = feed_of(5)
    consumer = Hangs(feed, path, shutdown_timeout=0.0)
    consumer.hangs = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await consumer.hangs.wait()
        consumer.stop()
    assert done(path) == ids(2)
    await Writes(feed, path).poll_now()
    assert done(path) == ids(5)


async def test_g8_consumers_of_one_store_take_their_transactions_in_turn(path):
    store = SQLiteStore(path, transactional=True)

    class Shares(Consumer):
        async def process(self, message):
            store.connection.execute("INSERT INTO done VALUES (?)", (f"{self.name}-{message.id}",))
            await anyio.sleep(0.001)

    consumers = [Shares(feed_of(8, page_size=3), store=store, name=name) for name in "abc"]
    async with anyio.create_task_group() as tasks:
        for consumer in consumers:
            tasks.start_soon(consumer.poll_now)
    for name in "abc":
        assert [row for row in done(path) if row[0] == name] == [f"{name}-{n}" for n in ids(8)]


async def test_g8_polling_another_consumer_of_the_store_inside_process_is_refused(path):
    store = SQLiteStore(path, transactional=True)

    async def nests(message):
        await other.poll_now()

    async def writes(message):
        pass

    other = Consumer(feed_of(1), store=store, name="other", process=writes)
    consumer = Consumer(feed_of(1), store=store, process=nests, retry=None)
    with pytest.raises(ProcessError, match="RuntimeError"):
        await consumer.poll_now()


def test_concurrency_above_one_is_refused_on_a_transactional_sqlite_store(path):
    with pytest.raises(ValueError, match="concurrency=2 cannot be used with a transactional SQLiteStore"):
        Writes(FakeFeed(), path, concurrency=2, ordering_key=lambda message: message.id)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_repeated_message_with_another_fingerprint_fails_and_writes_nothing(kind, path):
    def fingerprint(message):
        return message.raw if message.id != "2" else 1 / 0

    feed = FakeFeed()
    for name, data in (("1", "a"), ("2", "b"), ("3", "c"), ("1", "a"), ("3", "other")):
        feed.publish(name, data=data)
    feed.publish("4", error=DecodeError("no JSON"))
    consumer = kind(feed, path, fingerprint=fingerprint, on_failure="skip", batch_size=2)
    result = await consumer.poll_now()
    assert (result.messages, result.duplicates) == (5, 1)
    assert done(path) == ["1", "3"]


async def test_effects_of_replayed_messages_are_committed(path):
    feed = feed_of(3)
    consumer = Writes(feed, path)
    async with consumer:
        await consumer.poll_now()
        await consumer.replay("inception", feed.after(2))
    assert done(path) == ["1", "2", "3", "1", "2"]


@pytest.mark.parametrize("outcome", ["lost", "landed", "late"])
async def test_g8_effects_are_done_once_although_the_outcome_of_their_commit_was_unknown(outcome, running):
    feed, shared = FakeFeed(), SharedMemory(transactional=True)
    feed.publish(3)

    class Writing(Replica):
        async def process(self, message):
            self.store.connection.write(message.id)
            await super().process(message)

    owner = Writing(feed, shared.replica("owner"))
    with anyio.fail_after(GUARD):
        async with owner.store.in_doubt(outcome):
            running(owner)
            await owner.until(3 if outcome == "landed" else 4)
        while owner.status().counters.messages < 2:  # noqa: ASYNC110  # no event tells it
            await anyio.sleep(0.01)
    assert shared.effects == ["1", "2", "3"]
