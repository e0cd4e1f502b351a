"""The feeds of `docs/outbox.md` lose no message while many transactions write to a real PostgreSQL.

Most tests run the transactions step by step in one thread, in a random order that depends on the seed alone. The
clock moves only when a test moves it.
"""

import asyncio
import contextlib
import random
import re
import sqlite3
import threading
from pathlib import Path

import anyio
import psycopg
import pytest

from push_to_poll_client import Consumer, FetchRequest, MemoryStore
from tests.support.consumers import Log
from tests.support.forms import GUARD, SEED, form
from tests.support.postgres_server import shared_server

PAGE = (Path(__file__).parents[2] / "docs" / "outbox.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SQL = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)

BOUND = "xid < pg_snapshot_xmin(pg_current_snapshot())"

LONGEST = 30.0
"""Seconds of the longest transaction, and of the overlap on the page."""


class StandingClock(asyncio.SelectorEventLoop):
    """An event loop whose clock moves only when a test moves it."""

    now = 1000.0

    def time(self):
        return self.now


ASYNCIO = ("asyncio", {"loop_factory": StandingClock})
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", [ASYNCIO], ids=["asyncio"]),  # psycopg supports only asyncio
]


@pytest.fixture
def server(request):
    server = shared_server(request.config)
    tables = "DROP TABLE IF EXISTS outbox, events", "DROP FUNCTION IF EXISTS wake_consumers"
    server.execute(*tables, *(sql.partition("ALTER ROLE")[0] for sql in SQL if "CREATE TABLE" in sql))
    yield server
    server.execute(*tables)


def names_of_page(server, *, page_size=100, edit=("", "")):
    """Execute the programs of the page, for this server. `edit` replaces some text of the feeds."""
    names = {}
    for block in PYTHON:
        source = block.replace("postgresql://me@db.example/shop", server.conninfo).replace(*edit)
        source = source.replace("101", str(page_size + 1)).replace("100", str(page_size))
        exec(compile(source, "outbox.md", "exec"), names)  # noqa: S102  # it is ours
    return names


def feed_of(server, name, **changes):
    return names_of_page(server, **changes)[name](server.conninfo)


ADD = {
    "Outbox": "INSERT INTO outbox (event) VALUES (to_jsonb(%s::int))",
    "Events": "INSERT INTO events (event) VALUES (to_jsonb(%s::int))",
}
ADD_MANY = {
    name: insert.replace(
        "VALUES (to_jsonb(%s::int))", "SELECT to_jsonb(n) FROM generate_series(%s::int, %s::int) n"
    )
    for name, insert in ADD.items()
}


# Many transactions at a time


class Writers:
    """Connections with transactions that overlap. A step of a random one is a row, a commit or a rollback."""

    def __init__(self, stack, server, name, rng, count=5):
        self.connections = [stack.enter_context(psycopg.connect(server.conninfo)) for _ in range(count)]
        self.insert, self.rng = ADD[name], rng
        self.open = {}  # the connection, with the events of its transaction and the time of the first
        self.written, self.committed = 0, []

    def step(self):
        connection = self.rng.choice(self.connections)
        if connection in self.open and self.rng.random() < 0.3:
            self.end(connection, commit=self.rng.random() < 0.8)
            return
        self.written += 1
        connection.execute(self.insert, (self.written,))
        _, events = self.open.setdefault(connection, (clock(), []))
        events.append(self.written)

    def end(self, connection, *, commit=True):
        _, events = self.open.pop(connection)
        if commit:
            connection.commit()
            self.committed += events
        else:
            connection.rollback()

    def end_before(self, moment):
        """End each transaction that would be too long at this moment."""
        for connection, (began, _) in list(self.open.items()):
            if moment - began > LONGEST:
                self.end(connection)


def clock():
    return asyncio.get_running_loop().now


class Events(Log):
    """Writes down the event of each message."""

    async def process(self, message):
        self.events.append(message.data)


async def lost_and_repeated(server, feed, name, rng, *, steps, **settings):
    """Have transactions write while a consumer polls and restarts; return what it missed and did twice."""
    loop, store, processed = asyncio.get_running_loop(), MemoryStore(), []

    async def poll(times):
        async with Events(feed, store=store, rate=None, name="outbox", **settings) as consumer:
            consumer.events = processed
            for _ in range(times):
                await consumer.poll_now()

    with contextlib.ExitStack() as stack:
        writers = Writers(stack, server, name, rng)
        for _ in range(steps):
            writers.step()
            moment = loop.now + rng.choice([0.0, 0.1, 3.0, 10.0])
            writers.end_before(moment)
            loop.now = moment
            if rng.random() < 0.5:
                await poll(rng.choice([1, 2]))
        for connection in list(writers.open):
            writers.end(connection)
        await poll(2)
        loop.now += 2 * LONGEST
        await poll(2)
    repeated = [event for event in set(processed) if processed.count(event) > 1]
    return sorted(set(writers.committed) - set(processed)), repeated + sorted(
        set(processed) - set(writers.committed)
    )


STEPS = form(60, 300)

SAFE = {"Outbox": {}, "Events": {"overlap": LONGEST}}


@pytest.mark.parametrize("name", SAFE)
async def test_each_committed_row_is_processed_once_while_transactions_overlap(server, name):
    feed = feed_of(server, name, page_size=5)
    rng = random.Random(SEED)  # noqa: S311  # not for secrets
    assert await lost_and_repeated(server, feed, name, rng, steps=STEPS, **SAFE[name]) == ([], [])


MISTAKES = {
    "an id without an overlap": ("Events", {}, ("", "")),
    "transactions without the bound": ("Outbox", {}, (BOUND, "true")),
    "a bound that still runs": ("Outbox", {}, (BOUND, BOUND.replace("xmin", "xmax"))),
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_mistake_in_the_feed_loses_rows(server, mistake):
    """So the test above can fail."""
    name, settings, edit = MISTAKES[mistake]
    feed = feed_of(server, name, page_size=5, edit=edit)
    rng = random.Random(7)  # noqa: S311
    lost, _ = await lost_and_repeated(server, feed, name, rng, steps=60, **settings)
    assert lost


async def test_rows_of_writers_in_threads_are_each_processed_once(server):
    """Transactions end while the feed reads, which a single thread cannot show."""
    feed = feed_of(server, "Outbox", page_size=7)
    each, committed, processed = form(40, 400), set(), []

    def write(number):
        rng = random.Random(SEED + number)  # noqa: S311
        with psycopg.connect(server.conninfo) as connection:
            for n in range(each):
                events = [number * 100_000 + n * 10 + part for part in range(rng.randrange(1, 4))]
                for event in events:
                    connection.execute(ADD["Outbox"], (event,))
                if rng.random() < 0.2:
                    connection.rollback()
                else:
                    connection.commit()
                    committed.update(events)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    async with Events(feed, rate=None, name="outbox") as consumer:
        consumer.events = processed
        while any(thread.is_alive() for thread in threads):
            await consumer.poll_now()
        await consumer.poll_now()
    for thread in threads:
        thread.join(GUARD)
    assert sorted(processed) == sorted(committed)


# By transaction


async def test_rows_behind_a_long_transaction_are_held_back_and_polled_for(server):
    feed = feed_of(server, "Outbox")
    with psycopg.connect(server.conninfo) as long, psycopg.connect(server.conninfo) as short:
        long.execute(ADD["Outbox"], (1,))
        short.execute(ADD["Outbox"], (2,))
        short.commit()
        held_back = await feed.fetch(FetchRequest())
        long.commit()
        shown = await feed.fetch(FetchRequest(held_back.cursor))
    assert (held_back.messages, held_back.poll_within) == ([], 2)
    assert [message.data for message in shown.messages] == [1, 2]
    assert (shown.next_page, shown.poll_within) == (None, None)


@pytest.mark.parametrize(
    ("statement", "held_back"),
    [
        ("SELECT pg_advisory_lock_shared(1)", False),
        ("SELECT * FROM outbox", False),
        ("CREATE TABLE other (n int)", True),
    ],
)
async def test_a_transaction_that_only_reads_holds_nothing_back(server, statement, held_back):
    feed = feed_of(server, "Outbox")
    with psycopg.connect(server.conninfo) as other:
        other.execute(statement)
        with psycopg.connect(server.conninfo) as writer:
            writer.execute(ADD["Outbox"], (1,))
        page = await feed.fetch(FetchRequest())
        other.rollback()
    assert (page.poll_within is not None, len(page.messages)) == ((True, 0) if held_back else (False, 1))


@pytest.mark.parametrize("name", ADD)
async def test_each_row_is_given_once_in_pages(server, name):
    feed = feed_of(server, name)
    with psycopg.connect(server.conninfo, autocommit=True) as connection:
        for first in range(0, 250, 50):
            connection.execute(ADD_MANY[name], (first, first + 49))
    messages = await all_of(feed)
    assert [message.data for message in messages] == list(range(250))
    assert (await all_of(feed, messages[99].cursor))[0].data == 100


async def all_of(feed, cursor=None):
    messages = []
    while True:
        page = await feed.fetch(FetchRequest(cursor))
        messages += page.messages
        cursor = page.next_page
        if cursor is None:
            return messages


@pytest.mark.parametrize(("edit", "all_there"), [(("", ""), True), (("BY outbox.xid", "BY xid"), False)])
async def test_transaction_numbers_may_get_one_digit_more(server, edit, all_there):
    feed = feed_of(server, "Outbox", edit=edit)
    numbers = list(range(50, 250))  # as text, 100 comes before 99
    with psycopg.connect(server.conninfo, autocommit=True) as connection:
        for number in numbers:
            connection.execute(
                "INSERT INTO outbox (xid, event) VALUES (%s::text::xid8, to_jsonb(%s::int))", (str(number), number)
            )
    assert ([message.data for message in await all_of(feed)] == numbers) is all_there


async def test_after_a_restore_the_numbers_are_reset_and_no_message_is_repeated(server):
    feed, processed = feed_of(server, "Outbox"), []
    with psycopg.connect(server.conninfo, autocommit=True) as connection:
        connection.execute(ADD_MANY["Outbox"], (1, 3))
        connection.execute("UPDATE outbox SET xid = '7'")
        async with Events(feed, rate=None, name="outbox") as consumer:
            consumer.events = processed
            await consumer.poll_now()
            (reset,) = re.findall(r"`(UPDATE outbox SET xid = '0')`", PAGE)
            connection.execute(reset)
            connection.execute(ADD["Outbox"], (4,))
            await consumer.rewind("inception")
            await consumer.poll_now()
    assert processed == [1, 2, 3, 4]


@pytest.mark.parametrize(("raised", "processed"), [(False, [1, 2]), (True, [1, 2, 3])])
@pytest.mark.parametrize("name", ADD)
async def test_after_an_old_backup_new_events_need_a_higher_sequence(server, name, raised, processed):
    feed, found = feed_of(server, name), []
    table = {"Outbox": "outbox", "Events": "events"}[name]
    with psycopg.connect(server.conninfo, autocommit=True) as connection:
        connection.execute(ADD_MANY[name], (1, 2))
        async with Events(feed, rate=None, name=table, **SAFE[name]) as consumer:
            consumer.events = found
            await consumer.poll_now()
            connection.execute(f"DELETE FROM {table} WHERE id = 2")  # noqa: S608  # as in a backup from before row 2
            connection.execute(f"SELECT setval('{table}_id_seq', 1)")
            if raised:
                (raise_sequence,) = re.findall(r"`(SELECT setval\(.*?\))`", PAGE)
                connection.execute(raise_sequence.replace("outbox", table))
            connection.execute(ADD[name], (3,))
            await consumer.rewind("inception")
            await consumer.poll_now()
    assert found == processed


# By id


@pytest.mark.parametrize(("overlap", "found"), [(0, False), (5, False), (LONGEST, True)])
async def test_a_late_row_is_found_and_counted_if_the_overlap_is_long_enough(server, overlap, found):
    loop, processed = asyncio.get_running_loop(), []
    feed = feed_of(server, "Events")
    with psycopg.connect(server.conninfo) as late, psycopg.connect(server.conninfo, autocommit=True) as other:
        late.execute(ADD["Events"], (1,))
        async with Events(feed, rate=None, name="events", overlap=overlap) as consumer:
            consumer.events = processed
            for event in (2, 3, 4):
                other.execute(ADD["Events"], (event,))
                await consumer.poll_now()
                loop.now += LONGEST / 3
            late.commit()
            await consumer.poll_now()
            late_rows = consumer.status().counters.late
    assert (processed, late_rows) == (([2, 3, 4, 1], 1) if found else ([2, 3, 4], 0))


async def test_the_server_ends_a_transaction_that_is_too_long(server):
    (setting,) = re.findall(r"SET (transaction_timeout) = '20s'", PAGE)
    with psycopg.connect(server.conninfo) as connection, pytest.raises(psycopg.errors.TransactionTimeout):
        # One statement: between two the server may end the connection, and the error would differ.
        connection.execute("SELECT set_config(%s, '10ms', true), pg_sleep(600)", (setting,))


# NOTIFY, deletion, SQLite


async def test_the_trigger_notifies_once_at_each_commit_and_not_at_a_rollback(server):
    server.execute(*(sql for sql in SQL if "CREATE TRIGGER" in sql))
    with (
        psycopg.connect(server.conninfo, autocommit=True) as listening,
        psycopg.connect(server.conninfo) as writer,
    ):
        listening.execute("LISTEN outbox")
        for end in (writer.rollback, writer.commit):
            writer.execute(ADD["Outbox"], (1,))
            writer.execute(ADD["Outbox"], (2,))
            end()
        pushes = list(listening.notifies(timeout=GUARD, stop_after=1))
        pushes += listening.notifies(timeout=0)
    assert [push.channel for push in pushes] == ["outbox"]


async def test_old_rows_are_deleted(server):
    (delete,) = (sql for sql in SQL if "DELETE FROM" in sql)
    server.execute("INSERT INTO outbox (event, at) VALUES ('1', now() - interval '31 days'), ('2', now())", delete)
    with psycopg.connect(server.conninfo) as connection:
        assert connection.execute("SELECT event FROM outbox").fetchall() == [(2,)]


async def test_sqlite_gives_the_id_of_a_deleted_row_again_without_autoincrement():
    def ids(kind):
        with contextlib.closing(sqlite3.connect(":memory:")) as connection:
            connection.execute(f"CREATE TABLE outbox (id INTEGER PRIMARY KEY {kind}, event TEXT)")
            first = connection.execute("INSERT INTO outbox (event) VALUES ('a')").lastrowid
            connection.execute("DELETE FROM outbox")
            return first, connection.execute("INSERT INTO outbox (event) VALUES ('b')").lastrowid

    assert (ids(""), ids("AUTOINCREMENT")) == ((1, 1), (1, 2))


# Whole


async def test_the_program_of_the_page_is_woken_by_the_trigger(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server.execute(*(sql for sql in SQL if "CREATE TRIGGER" in sql))
    names = names_of_page(server)
    done, processed = anyio.Event(), []

    async def process(message):
        processed.append(message.data)
        if message.data == 2:
            done.set()

    orders = Consumer(
        names["Outbox"](server.conninfo),
        listeners=[names["PostgresListener"](server.conninfo, "outbox")],
        store=MemoryStore(),
        name="orders",
        process=process,
    )
    with psycopg.connect(server.conninfo, autocommit=True) as connection:
        connection.execute(ADD["Outbox"], (1,))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(orders.run)
            while not server.listeners():
                await anyio.lowlevel.checkpoint()
            connection.execute(ADD["Outbox"], (2,))
            await done.wait()
            tasks.cancel_scope.cancel()
    assert processed == [1, 2]


async def test_the_page_gives_the_overlap_to_the_feed_that_needs_it(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = names_of_page(server)
    assert "Events(DATABASE),\n    overlap=30," in PAGE
    assert names["orders"].name == "orders"
    assert names["late_orders"].name == "events"
