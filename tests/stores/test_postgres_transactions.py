"""A consumer whose handlers write to PostgreSQL: effects and records together, or neither (G8).

A script is a generator of steps: a text is executed as SQL on the store's connection, a function is called with
it. What a step raises is raised in the script. So each test runs with a plain handler (`def`), with an `async def`
handler, and with connections of the store and of a pool.
"""
# ruff: noqa: S608  # the names of our own tables

import asyncio
import inspect
import select
import threading
from collections import Counter
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

import anyio
import psycopg
import psycopg_pool
import pytest
from anyio import to_thread
from psycopg.rows import dict_row
from tenacity import AsyncRetrying, stop_after_attempt, wait_none

from push_to_poll_client import Consumer, Record, StoreError, StoreUnavailable
from push_to_poll_client.stores._postgres.transaction import Transaction
from push_to_poll_client.testing import FakeFeed
from tests.support.forms import GUARD
from tests.support.postgres_server import shared_server
from tests.support.postgres_stores import PostgresStores, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]

TWICE = AsyncRetrying(stop=stop_after_attempt(2), wait=wait_none())

CONFLICT = "DO $$BEGIN RAISE EXCEPTION 'planted' USING ERRCODE = '40001'; END$$"


@dataclass(frozen=True)
class Form:
    """How the handler is written, where it runs, and whose connections it uses."""

    handler: str
    loop: str
    connections: str = "own"

    def __str__(self):
        return f"{self.handler}-{self.loop}-{self.connections}"


OWN = [Form("def", "asyncio"), Form("def", "trio"), Form("async def", "asyncio")]
POOLS = [Form("def", "asyncio", "pool"), Form("async def", "asyncio", "pool")]


@pytest.fixture(params=[OWN[0], OWN[2], *POOLS], ids=str)
def form(request):
    return request.param


also_on_trio = pytest.mark.parametrize("form", [*OWN, *POOLS], ids=str)
only_own = pytest.mark.parametrize("form", OWN, ids=str)
only_pools = pytest.mark.parametrize("form", POOLS, ids=str)
only_plain = pytest.mark.parametrize("form", OWN[:2], ids=str)
only_async = pytest.mark.parametrize("form", OWN[2:], ids=str)


@pytest.fixture
def anyio_backend(form):
    return form.loop


@pytest.fixture
async def stores(request):
    own_tables = "CREATE TABLE {s}.effect(id text, number int GENERATED ALWAYS AS IDENTITY)"
    stores = PostgresStores(shared_server(request.config), own_tables=own_tables, transactional=True)
    yield stores
    await stores.aclose()


class Shop:
    """A store, and consumers of it whose handler runs a script for each message."""

    def __init__(self, form, stores, options=""):
        self.form = form
        self.stores = stores
        self.options = options
        self.calls = []
        self.rolled_back = []

    @asynccontextmanager
    async def open(self):
        pool = None
        if self.form.connections == "pool":
            kind = psycopg_pool.ConnectionPool if self.form.handler == "def" else psycopg_pool.AsyncConnectionPool
            pool = kind("", min_size=1, max_size=4, open=False, kwargs={"options": self.options})
        options = {} if pool is None else {"connections": pool.connection}
        self.store = self.stores.store(**options)
        conninfo = f"postgresql://me@127.0.0.1:{self.store.proxy.port}/postgres"
        self.conninfo = psycopg.conninfo.make_conninfo(conninfo, options=self.options)
        self.store._database._conninfo = self.conninfo
        try:
            if pool is not None:
                pool.conninfo = conninfo
                opened = pool.open()
                await opened if inspect.isawaitable(opened) else None
            yield self
        finally:
            if pool is not None:
                closed = pool.close()
                await closed if inspect.isawaitable(closed) else None
            await self.store.aclose()

    def insert(self, message):
        name = getattr(message, "id", message)
        return f"INSERT INTO {self.stores.schema}.effect VALUES ('{name}')"

    def consumer(self, count, script=None, *, batch=False, **settings):
        """Return a consumer of so many messages. The usual script inserts one row."""
        script = script or self.usual

        def plain(work):
            self.called(work)
            run_script(script(work), lambda: self.store.connection)

        async def in_loop(work):
            self.called(work)
            await run_async_script(script(work), lambda: self.store.connection)

        handler = plain if self.form.handler == "def" else in_loop
        feed = FakeFeed()
        feed.publish(*(f"m{number}" for number in range(count)))
        kind = {"retry": None, "on_failure": "stop", **settings}
        if "concurrency" in settings:
            kind["ordering_key"] = lambda message: message.id
        if not batch:
            return Consumer(feed, store=self.store, name="shop", process=handler, **kind)

        class Batches(Consumer):
            process_batch = staticmethod(handler)

        return Batches(feed, store=self.store, name="shop", **kind)

    def called(self, work):
        self.calls.append([message.id for message in work] if isinstance(work, list | tuple) else work.id)

    def usual(self, message):
        yield self.insert(message)

    def in_thread(self, function):
        """Return a step that waits for a function: in the handler's thread, or without stopping the event loop."""
        if self.form.handler == "def":
            return lambda _: function()
        return lambda _: to_thread.run_sync(function)

    def meets(self, meeting):
        """Return a step that waits for another handler."""
        return self.in_thread(meeting.meet)

    @property
    def effects(self):
        return [row[0] for row in self.stores.execute("SELECT id FROM {s}.effect ORDER BY number")]

    @property
    def recorded(self):
        return self.stores.execute("SELECT count(*) FROM {s}.record")[0][0]

    def check(self, count, left_out=()):
        """Check that each message has its effect once, and a record."""
        expected = Counter(f"m{number}" for number in range(count) if f"m{number}" not in left_out)
        assert Counter(self.effects) == expected
        assert self.recorded == count


@pytest.fixture
async def shop(form, stores):
    async with Shop(form, stores).open() as shop:
        yield shop


def run_script(script, connection):
    try:
        step = next(script)
        while True:
            try:
                result = connection().execute(step) if isinstance(step, str) else step(connection())
            except BaseException as error:  # noqa: BLE001  # raised in the script
                step = script.throw(error)
            else:
                step = script.send(result)
    except StopIteration:
        pass


async def run_async_script(script, connection):
    try:
        step = next(script)
        while True:
            try:
                result = connection().execute(step) if isinstance(step, str) else step(connection())
                if inspect.isawaitable(result):
                    result = await result
            except BaseException as error:  # noqa: BLE001  # raised in the script
                step = script.throw(error)
            else:
                step = script.send(result)
    except StopIteration:
        pass


async def poll_all(consumer, tries=30):
    """Poll until caught up, also after errors of the store."""
    errors = []
    for _ in range(tries):
        try:
            result = await consumer.poll_now(timeout=None)
        except StoreUnavailable as error:
            errors.append(error)
        else:
            if result.caught_up:
                return errors
    raise AssertionError(f"not caught up after {errors}")


def fail(_):
    raise ValueError("planted")


# What belongs together


@also_on_trio
async def test_each_message_has_its_effect_and_its_record(shop):
    async with shop.consumer(20) as consumer:  # more than psycopg executes before it prepares a statement
        await consumer.poll_now()
        shop.check(20)
        assert consumer.status().cursor is not None


@also_on_trio
@pytest.mark.parametrize("batch", [False, True], ids=["one by one", "batches"])
async def test_several_handlers_at_a_time_have_a_transaction_each(shop, batch):
    settings = {"batch_size": 3, "batch": True} if batch else {}
    met = Meeting(2)

    def script(work):
        for message in work if batch else [work]:
            yield shop.insert(message)
        yield shop.meets(met)  # two transactions are open at once

    async with shop.consumer(12, script, concurrency=4, **settings) as consumer:
        await consumer.poll_now()
    shop.check(12)


@pytest.mark.parametrize("batch", [False, True], ids=["one by one", "batches"])
async def test_a_handler_that_raises_leaves_neither_effect_nor_record_of_its_call(shop, batch):
    settings = {"batch_size": 4, "batch": True} if batch else {}

    def script(work):
        messages = work if batch else [work]
        for message in messages:
            yield shop.insert(message)
        if any(message.id == "m2" for message in messages):
            yield fail

    async with shop.consumer(8, script, retry=TWICE, on_failure="skip", **settings) as consumer:
        await consumer.poll_now()
    shop.check(8, left_out={"m2"})
    assert shop.calls.count(["m2"] if batch else "m2") == 2


async def test_an_effect_is_written_with_the_retry_of_a_dead_letter(shop):
    broken = ["m1"]

    def script(message):
        yield shop.insert(message)
        if message.id in broken:
            yield fail

    async with shop.consumer(3, script, on_failure="dead_letter") as consumer:
        await consumer.poll_now()
        assert shop.effects == ["m0", "m2"]
        broken.clear()
        assert (await consumer.dead_letters.retry()).processed == 1
    shop.check(3)


async def test_the_transaction_method_of_the_connection_makes_a_savepoint(shop):
    def in_savepoint(connection):
        with suppress(psycopg.errors.DivisionByZero), connection.transaction():
            connection.execute(shop.insert("lost"))
            connection.execute("SELECT 1/0")
        with connection.transaction():
            connection.execute(shop.insert("kept"))

    async def in_async_savepoint(connection):
        with suppress(psycopg.errors.DivisionByZero):
            async with connection.transaction():
                await connection.execute(shop.insert("lost"))
                await connection.execute("SELECT 1/0")
        async with connection.transaction():
            await connection.execute(shop.insert("kept"))

    def script(message):
        yield in_savepoint if shop.form.handler == "def" else in_async_savepoint
        if message.id == "m0":
            yield fail

    async with shop.consumer(2, script, on_failure="skip") as consumer:
        await consumer.poll_now()
    assert shop.effects == ["kept"]


# What a handler must not do


async def test_an_sql_error_that_the_handler_catches_is_a_failure_of_its_message(shop, caplog):
    def script(message):
        yield shop.insert(message)
        if message.id == "m1":
            with pytest.raises(psycopg.errors.DivisionByZero):
                yield "SELECT 1/0"

    async with shop.consumer(3, script, retry=TWICE, on_failure="dead_letter") as consumer:
        await consumer.poll_now()
        (letter,) = await consumer.dead_letters.list()
    assert "use `with connection.transaction()`" in letter.error
    assert shop.calls == ["m0", "m1", "m1", "m2"]
    shop.check(3, left_out={"m1"})


async def test_a_statement_that_the_handler_has_not_ended_is_a_failure_of_its_message(shop):
    def begin_copy(connection):
        connection.pgconn.send_query(b"COPY (SELECT 1) TO STDOUT")

    def script(message):
        yield shop.insert(message)
        if message.id == "m1":
            yield begin_copy

    async with shop.consumer(3, script, on_failure="skip") as consumer:
        await consumer.poll_now()
    shop.check(3, left_out={"m1"})


@pytest.mark.parametrize(
    "statements", [["COMMIT"], ["COMMIT; BEGIN"], ["ROLLBACK"], ["COMMIT", "SELECT 1"]], ids=" then ".join
)
@pytest.mark.parametrize("when", ["m0", "m1"])  # the records of later messages are written in another way
async def test_a_handler_that_ends_the_transaction_with_sql_stops_the_consumer(shop, statements, when):
    def script(message):
        yield shop.insert(message)
        if message.id == when:
            for statement in statements:  # noqa: UP028  # it would pass results on to an iterator of texts
                yield statement

    async with shop.consumer(3, script, on_failure="skip") as consumer:
        with pytest.raises(StoreError, match="has ended the transaction of its message"):
            await consumer.poll_now()
    assert shop.calls[-1] == when
    assert shop.recorded == int(when[1:])


async def test_a_handler_that_commits_and_raises_is_not_called_again(shop):
    def script(message):
        yield shop.insert(message)
        yield "COMMIT"
        yield fail

    async with shop.consumer(1, script, retry=TWICE, on_failure="skip") as consumer:
        with pytest.raises(StoreError, match="has ended the transaction of its message"):
            await consumer.poll_now()
    assert shop.calls == ["m0"]


@only_own
@pytest.mark.parametrize("method", ["commit", "rollback", "close"])
async def test_the_methods_that_would_end_the_transaction_raise(shop, method):
    def script(message):
        yield shop.insert(message)
        with pytest.raises(RuntimeError, match=rf"a handler must not call {method}\(\)"):
            yield lambda connection: getattr(connection, method)()

    async with shop.consumer(1, script) as consumer:
        await consumer.poll_now()
    shop.check(1)


@only_pools
async def test_a_commit_on_the_connection_of_the_application_stops_the_consumer(shop):
    def script(message):
        yield shop.insert(message)
        yield lambda connection: connection.commit()

    async with shop.consumer(1, script) as consumer:
        with pytest.raises(StoreError, match="has ended the transaction of its message"):
            await consumer.poll_now()
    assert shop.recorded == 0


@only_own
async def test_the_next_handler_gets_a_new_connection_object(shop):
    """A row factory of one handler is not seen by the next, and a kept object writes nothing."""
    kept, rows = [], []

    def set_up(connection):
        kept.append(connection)
        connection.row_factory = dict_row

    def script(message):
        cursor = yield "SELECT 1 AS one"
        rows.append((yield lambda _: cursor.fetchone()))
        if not kept:
            yield set_up
            return
        with pytest.raises(RuntimeError, match="only while a message is processed"):
            yield lambda _: kept[0].execute(shop.insert(message))
        yield shop.insert(message)

    async with shop.consumer(3, script) as consumer:
        await consumer.poll_now()
    assert rows == [(1,)] * 3
    assert shop.effects == ["m1", "m2"]


async def test_a_handler_cannot_use_the_connection_of_another_store(form, stores, shop):
    async with Shop(form, stores).open() as other:

        def script(message):
            with pytest.raises(RuntimeError, match="only while a message is processed"):
                other.store.connection  # noqa: B018  # a property
            yield shop.insert(message)

        async with shop.consumer(1, script) as consumer:
            await consumer.poll_now()
    shop.check(1)


# Conflicts


@pytest.mark.parametrize("where", ["in the handler", "at the commit"])
@pytest.mark.parametrize("times", [10, 11])
async def test_ten_conflicts_are_not_counted_as_attempts(shop, where, times):
    plant_at_commit(shop.stores, CONFLICT)

    def script(message):
        yield shop.insert(message)
        if message.id == "m1" and shop.calls.count("m1") <= times:
            yield f"INSERT INTO {shop.stores.schema}.late VALUES (1)" if where == "at the commit" else CONFLICT

    async with shop.consumer(3, script, on_failure="skip") as consumer:
        result = await consumer.poll_now()
    assert shop.calls.count("m1") == 11
    assert result.skipped == (times == 11)
    shop.check(3, left_out={"m1"} if times == 11 else ())


def plant_at_commit(stores, statement):
    """Make a table `late`: a row in it executes a statement at the end of the transaction."""
    stores.execute("CREATE TABLE {s}.late(number int)")
    body = statement.removeprefix("DO $$").removesuffix("$$").replace("END", "RETURN NULL; END")
    stores.execute(f"CREATE FUNCTION {{s}}.at_end() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")
    stores.execute("""
        CREATE CONSTRAINT TRIGGER at_end AFTER INSERT ON {s}.late DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION {s}.at_end()
    """)


async def test_a_conflict_of_serializable_transactions_at_the_commit_is_tried_again(form, stores):
    stores.execute("CREATE TABLE {s}.a(number int)")
    stores.execute("CREATE TABLE {s}.b(number int)")
    serializable = "-c default_transaction_isolation=serializable"

    def meanwhile(_):
        with psycopg.connect(stores.server.conninfo, options=serializable) as other:
            other.execute(f"SELECT count(*) FROM {stores.schema}.b")
            other.execute(f"INSERT INTO {stores.schema}.a VALUES (1)")

    async with Shop(form, stores, serializable).open() as shop:

        def script(message):
            yield f"SELECT count(*) FROM {stores.schema}.a"
            yield f"INSERT INTO {stores.schema}.b VALUES (1)"
            yield shop.insert(message)
            if len(shop.calls) == 1:
                yield meanwhile

        async with shop.consumer(1, script) as consumer:
            await consumer.poll_now()
        assert shop.calls == ["m0", "m0"]
        shop.check(1)


async def test_a_deadlock_between_two_handlers_is_resolved(form, stores):
    stores.execute("CREATE TABLE {s}.account(id text PRIMARY KEY, cents int)")
    stores.execute("INSERT INTO {s}.account VALUES ('m0', 0), ('m1', 0)")
    async with Shop(form, stores, "-c deadlock_timeout=10").open() as shop:
        waiting = Meeting(2)

        def script(message):
            other = {"m0": "m1", "m1": "m0"}[message.id]
            yield f"UPDATE {stores.schema}.account SET cents = cents + 1 WHERE id = '{message.id}'"
            yield shop.meets(waiting)
            yield f"UPDATE {stores.schema}.account SET cents = cents + 1 WHERE id = '{other}'"
            yield shop.insert(message)

        async with shop.consumer(2, script, concurrency=2) as consumer:
            await consumer.poll_now()
        assert len(shop.calls) > 2
        shop.check(2)
    assert stores.execute("SELECT cents FROM {s}.account") == [(2,), (2,)]


class Meeting:
    """Handlers wait for each other, once."""

    def __init__(self, count):
        self._left = count
        self._met = threading.Event()

    def meet(self):
        self._left -= 1
        if self._left <= 0:
            self._met.set()
        assert self._met.wait(GUARD)


# Constraints that are checked at the commit


async def test_a_deferred_constraint_is_a_failure_of_its_message(shop):
    """As all foreign keys of Django are."""
    shop.stores.execute("ALTER TABLE {s}.effect ADD UNIQUE (id) DEFERRABLE INITIALLY DEFERRED")

    def script(message):
        yield shop.insert(message)
        if message.id == "m1":
            yield shop.insert(message)

    async with shop.consumer(3, script, retry=TWICE, on_failure="dead_letter") as consumer:
        await consumer.poll_now()
        (letter,) = await consumer.dead_letters.list()
    assert "duplicate key value violates unique constraint" in letter.error
    assert shop.calls == ["m0", "m1", "m1", "m2"]
    shop.check(3, left_out={"m1"})


async def test_a_deferred_check_that_waits_for_another_handler_does_not_block_its_commit(shop):
    """A check at the commit waits for a row that a second handler has locked; that one must be able to commit."""
    schema = shop.stores.schema
    shop.stores.execute("CREATE TABLE {s}.customer(id int PRIMARY KEY)")
    shop.stores.execute("INSERT INTO {s}.customer VALUES (1)")
    shop.stores.execute(
        "CREATE TABLE {s}.sale(customer int REFERENCES {s}.customer DEFERRABLE INITIALLY DEFERRED)"
    )
    locked, begun = Meeting(2), Meeting(2)

    def wait_until_blocked():
        waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'SET CONSTRAINTS%%'"
        with anyio_free_guard() as is_late:
            while not shop.stores.execute(waits):
                assert not is_late()

    def script(message):
        yield shop.insert(message)
        yield shop.meets(begun)
        if message.id == "m0":
            yield shop.meets(locked)
            yield f"INSERT INTO {schema}.sale VALUES (1)"
        else:
            yield f"SELECT 1 FROM {schema}.customer FOR UPDATE"
            yield shop.meets(locked)
            yield shop.in_thread(wait_until_blocked)

    async with shop.consumer(2, script, concurrency=2) as consumer:
        await consumer.poll_now()
    assert sorted(shop.calls) == ["m0", "m1"]
    shop.check(2)


@contextmanager
def anyio_free_guard():
    timer = threading.Event()
    watch = threading.Timer(GUARD, timer.set)
    watch.start()
    try:
        yield timer.is_set
    finally:
        watch.cancel()


# Lost connections


def kill(stores, pid):
    """End a session of the server, and wait until it has ended."""
    stores.execute("SELECT pg_terminate_backend(%(pid)s, 10000)", pid=pid)


@also_on_trio
@pytest.mark.parametrize("ends", ["raises", "returns"])
async def test_a_session_that_is_killed_in_a_handler_costs_no_attempt(shop, ends):
    def script(message):
        yield shop.insert(message)
        if message.id == "m1" and shop.calls.count("m1") == 1:
            yield lambda connection: kill(shop.stores, connection.info.backend_pid)
            if ends == "raises":
                yield "SELECT 1"

    async with shop.consumer(3, script) as consumer:
        assert len(await poll_all(consumer)) == 1
    assert shop.calls == ["m0", "m1", "m1", "m2"]
    shop.check(3)


async def test_a_session_that_is_killed_by_its_commit_costs_no_attempt(shop):
    plant_at_commit(shop.stores, "DO $$BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); END$$")

    def script(message):
        yield shop.insert(message)
        if shop.calls.count(message.id) == 1:
            yield f"INSERT INTO {shop.stores.schema}.late VALUES (1)"

    async with shop.consumer(2, script) as consumer:
        assert len(await poll_all(consumer)) == 2
    shop.check(2)


PHASES = {"_begin_statement": "begin", "_set_block": "begin", "_check_effects": "commit"}


class Cut:
    """Cut the connection at one point of the second message's transaction, once."""

    def __init__(self, shop, monkeypatch, phase, count):
        self.shop, self.phase, self.count = shop, phase, count
        for name in PHASES:
            monkeypatch.setattr(Transaction, name, self._around(name, getattr(Transaction, name)))

    def _around(self, phase, method):
        def wrapped(transaction, *args):
            if transaction._key == "m1":
                self.at(PHASES[phase])
            return method(transaction, *args)

        return wrapped

    def at(self, phase):
        if phase == self.phase:
            self.phase = None
            proxy = self.shop.store.proxy
            proxy.cut() if self.count is None else proxy.cut_after(self.count)


@pytest.mark.parametrize("count", [None, 0, 30], ids=["before", "at once", "after 30 bytes"])
@pytest.mark.parametrize("phase", ["begin", "statement", "commit"])
async def test_a_connection_that_is_cut_in_any_phase_costs_no_attempt(shop, monkeypatch, phase, count):
    cut = Cut(shop, monkeypatch, phase, count)

    def script(message):
        if message.id == "m1":
            yield "SELECT 1"
            cut.at("statement")
        yield shop.insert(message)

    async with shop.consumer(4, script) as consumer:
        errors = await poll_all(consumer)
    assert cut.phase is None
    assert len(errors) <= 1
    shop.check(4)


@only_pools
@pytest.mark.parametrize("count", [None, 0, 1])
async def test_a_commit_of_the_application_that_is_cut_is_in_doubt(shop, monkeypatch, count):
    leave = Transaction._leave_block
    cuts = []

    def leave_cut(transaction, error):
        if transaction._key == "m1" and not cuts:
            proxy = shop.store.proxy
            cuts.append(proxy.cut() if count is None else proxy.cut_after(count))
        leave(transaction, error)

    monkeypatch.setattr(Transaction, "_leave_block", leave_cut)
    async with shop.consumer(3) as consumer:
        errors = await poll_all(consumer)
    texts = {str(error).partition(": ")[2].partition(": ")[0] for error in errors}
    assert texts <= {"the connection was lost while connections= committed"}  # empty if another one was cut
    shop.check(3)


async def test_a_handler_that_idles_in_its_transaction_fails_its_message(shop):
    """Else a handler with a slow request after its first statement would be repeated for ever."""
    limits = []

    def idle(connection):
        assert select.select([connection.fileno()], [], [], GUARD)[0]  # the server has closed it

    def script(message):
        cursor = yield "SHOW idle_in_transaction_session_timeout"
        limits.append((yield lambda _: cursor.fetchone()))
        yield shop.insert(message)
        if message.id != "m0":
            yield "SET LOCAL idle_in_transaction_session_timeout = 50"
            yield idle
        if message.id == "m1":
            yield "SELECT 1"

    async with shop.consumer(3, script, on_failure="dead_letter") as consumer:
        await consumer.poll_now()
        letters = await consumer.dead_letters.list()
    assert [letter.id for letter in letters] == ["m1", "m2"]
    assert all("do slow work before the first statement" in letter.error for letter in letters)
    assert limits == [("1min",)] * 3
    shop.check(3, left_out={"m1", "m2"})


async def test_a_connection_that_was_unused_for_long_is_used_again(shop):
    """The deadline of the last commit must not limit the next transaction."""

    def script(message):
        for connection in shop.store._database._idle:
            connection.deadline = 0.0
        yield shop.insert(message)

    async with shop.consumer(3, script) as consumer:
        await consumer.poll_now()
    shop.check(3)


# The kinds of handlers


@pytest.mark.parametrize("form", [Form("async def", "trio")], ids=str)
async def test_an_async_handler_on_trio_stops_the_consumer_with_a_clear_error(shop):
    async with shop.consumer(2, on_failure="skip") as consumer:
        with pytest.raises(StoreError, match="no AsyncConnection for trio; define the handler with def"):
            await consumer.poll_now()
    assert shop.calls == ["m0"]


@pytest.mark.parametrize("form", [Form("async def", "trio", "pool")], ids=str)
async def test_a_pool_for_async_handlers_on_trio_stops_the_consumer(stores):
    store = stores.store(connections=nullcontext)
    consumer = Consumer(feed_of("m0"), store=store, name="a", process=anyio.lowlevel.checkpoint)
    async with consumer:
        with pytest.raises(StoreError, match="no AsyncConnection for trio"):
            await consumer.poll_now()


def feed_of(*names):
    feed = FakeFeed()
    feed.publish(*names)
    return feed


@pytest.mark.parametrize("form", [OWN[0], Form("async def", "trio")], ids=str)
async def test_an_async_handler_writes_in_its_threads(shop):
    async def process(message):
        await to_thread.run_sync(lambda: shop.store.connection.execute(shop.insert(message)))

    async with Consumer(feed_of("m0", "m1"), store=shop.store, name="shop", process=process) as consumer:
        await consumer.poll_now()
    shop.check(2)


@only_plain
async def test_a_plain_function_that_returns_an_awaitable_fails_its_message(shop):
    async def write(message):
        shop.store.connection.execute(shop.insert(message))

    consumer = Consumer(
        feed_of("m0"),
        store=shop.store,
        name="shop",
        process=lambda message: write(message),  # noqa: PLW0108  # not known as a coroutine function
        retry=None,
        on_failure="dead_letter",
    )
    async with consumer:
        await consumer.poll_now()
        (letter,) = await consumer.dead_letters.list()
    assert "define it with async def" in letter.error
    assert shop.effects == []


@only_plain
async def test_a_plain_handler_that_cannot_connect_costs_no_attempt(shop):
    handled = []

    def script(message):
        if message.id == "m1" and not handled:
            handled.append(shop.store._database.close())
            shop.store.proxy.refuse()
            try:
                yield shop.insert(message)
            finally:
                shop.store.proxy.heal()
        yield shop.insert(message)

    async with shop.consumer(3, script) as consumer:
        assert len(await poll_all(consumer)) == 1
    shop.check(3)


@only_plain
async def test_a_plain_handler_that_writes_nothing_opens_no_transaction(shop, monkeypatch):
    monkeypatch.setattr(Transaction, "_begin", fail)
    async with shop.consumer(3, lambda _: iter(())) as consumer:
        await consumer.poll_now()
    assert (shop.effects, shop.recorded) == ([], 3)


@only_async
async def test_a_lease_that_ends_before_the_handler_leaves_no_transaction_open(shop, monkeypatch):
    set_connection = Transaction._set_connection

    def begin_and_lose(transaction, connection):
        set_connection(transaction, connection)
        transaction._progress.lease.is_over = True

    monkeypatch.setattr(Transaction, "_set_connection", begin_and_lose)
    async with shop.consumer(1) as consumer:
        with pytest.raises(StoreError):
            await consumer.poll_now()
    idle = "SELECT 1 FROM pg_stat_activity WHERE state LIKE 'idle in transaction%%'"
    await until(lambda: not shop.stores.execute(idle))  # the server notes it a little later


@only_async
async def test_a_cancellation_after_a_conflict_is_not_lost(shop):
    """The conflict is the context of the cancellation, not a reason to call the handler again."""
    begun, calls = anyio.Event(), []

    async def process(message):
        calls.append(message.id)
        try:
            await shop.store.connection.execute(CONFLICT)
        except psycopg.Error:
            begun.set()
            await anyio.sleep_forever()

    async with Consumer(feed_of("m0"), store=shop.store, name="shop", process=process) as consumer:
        with anyio.fail_after(GUARD):
            task = asyncio.create_task(consumer.poll_now())
            await begun.wait()
            task.cancel()  # once, where anyio would cancel again and again
            with pytest.raises(asyncio.CancelledError):
                await task
        assert calls == ["m0"]
    assert shop.recorded == 0


# Functions for connections=


@contextmanager
def yields(connection):
    yield connection


@asynccontextmanager
async def yields_async(connection):
    yield connection


def raises(error):
    raise error


WRONG = {
    "the other kind": ({"def": yields_async, "async def": yields}, "must return a"),
    "another connection": ({"def": yields, "async def": yields_async}, "must yield a psycopg"),
    "nothing": ({"def": int, "async def": int}, "must return a"),
    "an error": ({"def": lambda _: raises(KeyError("k")), "async def": lambda _: raises(KeyError("k"))}, "failed"),
}


@only_pools
@pytest.mark.parametrize("wrong", WRONG)
async def test_a_wrong_function_for_connections_stops_the_consumer(form, stores, wrong):
    functions, text = WRONG[wrong]
    store = stores.store(connections=lambda: functions[form.handler](0))

    def plain(_):
        raise AssertionError("called")

    async def in_loop(_):
        raise AssertionError("called")

    process = plain if form.handler == "def" else in_loop
    async with Consumer(feed_of("m0"), store=store, name="a", process=process) as consumer:
        with pytest.raises(StoreError, match=f"connections= {text}"):
            await consumer.poll_now()


@only_pools
async def test_a_connection_in_autocommit_mode_is_refused(form, stores):
    plain = form.handler == "def"

    @contextmanager
    def connections():
        with psycopg.connect(stores.server.conninfo, autocommit=True) as connection:
            yield connection

    @asynccontextmanager
    async def connections_async():
        async with await psycopg.AsyncConnection.connect(stores.server.conninfo, autocommit=True) as connection:
            yield connection

    def process(_):
        raise AssertionError("called")

    async def process_async(_):
        raise AssertionError("called")

    store = stores.store(connections=connections if plain else connections_async)
    handler = process if plain else process_async
    async with Consumer(feed_of("m0"), store=store, name="a", process=handler) as consumer:
        with pytest.raises(StoreError, match="autocommit mode"):
            await consumer.poll_now()


@only_pools
async def test_a_pool_that_has_no_connection_left_is_waited_for(form, stores):
    """`PoolTimeout` passes, so the consumer tries again."""
    full = [psycopg_pool.PoolTimeout("planted")]

    async with Shop(form, stores).open() as shop:
        pool = shop.store._claimant.connections

        def connections():
            if full:
                raise full.pop()
            return pool()

        shop.store._claimant = shop.store._claimant._replace(connections=connections)
        async with shop.consumer(2) as consumer:
            assert len(await poll_all(consumer)) == 1
        shop.check(2)


@only_pools
async def test_notices_of_the_application_still_reach_its_own_functions(shop):
    """The store's own object for the same connection must not take them."""
    noted = []

    def listen(connection):
        connection.add_notice_handler(lambda notice: noted.append(notice.message_primary))

    def script(message):
        yield listen
        yield "DO $$BEGIN RAISE NOTICE 'hello'; END$$"

    async with shop.consumer(1, script) as consumer:
        await consumer.poll_now()
    assert noted == ["hello"]


@pytest.mark.parametrize("form", [OWN[0]], ids=str)
async def test_the_number_of_records_of_transactions_is_saved_once_a_second(stores):
    store = stores.store()
    session = await store.claim("orders", feed="feed")
    began, seconds = store._now(), [0.0]
    session._progress._clock = lambda: began + sum(seconds)  # the time that the test takes does not count
    await session.commit(cursor=None, records=[Record("first")])

    def process(key):
        with session.transaction_in_thread([Record(key)]):
            store.connection.execute("SELECT 1")

    saved = []
    for key, later in (("second", 0.0), ("third", 1.1), ("fourth", 0.0)):
        seconds.append(later)
        await session.unseen([key])
        await to_thread.run_sync(process, key)
        await session.commit(cursor=None, records=[Record(key)])
        (consumer,) = stores.execute("SELECT commits, size FROM {s}.consumer, {s}.segment")
        saved.append(consumer)
    assert saved == [(2, 1), (4, 3), (5, 3)]
    await session.commit(cursor="page", records=[])
    assert stores.execute("SELECT commits, size FROM {s}.consumer, {s}.segment") == [(6, 4)]
    await session.release()


@only_own
async def test_statements_of_handlers_are_prepared_and_a_migration_costs_no_attempt(shop):
    shop.stores.execute("CREATE TABLE {s}.item(id int)")
    prepared = []

    def script(message):
        if shop.calls.count("m7") == 1 and message.id == "m7":
            shop.stores.execute("ALTER TABLE {s}.item ADD COLUMN other int")
        yield f"SELECT * FROM {shop.stores.schema}.item"
        cursor = yield "SELECT count(*) FROM pg_prepared_statements"
        prepared.append(int(cursor.pgresult.get_value(0, 0)))
        yield shop.insert(message)

    async with shop.consumer(10, script) as consumer:
        await consumer.poll_now()
    shop.check(10)
    assert prepared[:7] == [0] * 5 + [2] * 2  # both of them from the sixth execution on
    assert shop.calls.count("m7") == 2
