"""The programs of `docs/databases.md` have each effect exactly once, on real databases.

Plain handlers run in worker threads, which take real time.
"""

import contextlib
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import push_to_poll_client
from push_to_poll_client import Consumer, MemoryStore, SQLiteStore, StoreUnavailable
from push_to_poll_client.testing import FakeFeed
from tests.support.forms import GUARD
from tests.support.postgres_server import shared_server

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "databases.md").read_text()
BLOCKS = re.findall(r"```(?:python|sql)\n(.*?)```", PAGE, re.DOTALL)


def block_with(text):
    (block,) = (block for block in BLOCKS if text in block)
    return block


def program(text, **names):
    """Execute the block with this text, and return its names."""
    exec(compile(block_with(text), "databases.md", "exec"), names)  # noqa: S102  # it is ours
    return names


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """The directory in which the programs of the page make their files."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(path, statement):
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement).fetchall()


def feed_of(*data):
    feed = FakeFeed()
    for number, message in enumerate(data):
        feed.publish(f"m{number}", data=message)
    return feed


# SQLite


async def test_the_first_program_moves_money_or_makes_a_dead_letter(directory):
    ask("bank.db", "CREATE TABLE account(name TEXT PRIMARY KEY, cents INTEGER NOT NULL)")
    ask("bank.db", "INSERT INTO account VALUES ('ann', 1000), ('bob', 0)")
    names = program("unknown account")
    moves = [{"from": "ann", "to": to, "cents": 10} for to in ("bob", "nobody", "bob")]
    bank = Consumer(
        feed_of(*moves),
        store=names["store"],
        name="transfers",
        process=names["transfer"],
        on_failure="dead_letter",
    )
    async with bank:
        await bank.poll_now()
        assert [letter.id for letter in await bank.dead_letters.list()] == ["m1"]
    assert ask("bank.db", "SELECT * FROM account ORDER BY name") == [("ann", 980), ("bob", 20)]


# SQLAlchemy


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[str] = mapped_column(primary_key=True)
    customer: Mapped[str]
    cents: Mapped[int]


@pytest.fixture
def shop(directory):
    """The names of the page's program, and a file with the tables of its models."""
    ordinary = sqlalchemy.create_engine("sqlite:///shop.db")
    Base.metadata.create_all(ordinary)
    ordinary.dispose()
    return program("class HandlerConnection", Order=Order)


def orders():
    return [order for (order,) in ask("shop.db", "SELECT id FROM orders ORDER BY id")]


def order_of(message):
    return Order(id=message.id, **message.data)


ADA = {"customer": "Ada", "cents": 995}


async def consume(shop, handler, count=3, **settings):
    """Have the handler process so many messages, and return the consumer's result."""
    consumer = Consumer(
        feed_of(*[ADA] * count),
        store=shop["store"],
        name="o",
        process=handler,
        retry=None,
        on_failure="skip",
        **settings,
    )
    return await consumer.poll_now()


async def test_sqlalchemy_commits_into_the_stores_transaction(shop):
    await consume(shop, shop["process"])
    assert orders() == ["m0", "m1", "m2"]


async def test_an_async_handler_may_use_sqlalchemy_too(shop):
    async def process(message):
        shop["process"](message)

    await consume(shop, process)
    assert orders() == ["m0", "m1", "m2"]


async def test_a_handler_that_raises_takes_back_what_sqlalchemy_committed(shop):
    def process(message):
        shop["process"](message)
        if message.id == "m1":
            raise ValueError("after the commit")

    assert (await consume(shop, process)).skipped == 1
    assert orders() == ["m0", "m2"]


async def test_a_session_that_is_rolled_back_or_closed_takes_back_only_its_own_rows(shop):
    def process(message):
        shop["process"](message)
        for end in (Session.rollback, Session.close):
            with Session(shop["engine"]) as session:
                session.add(Order(id=f"{message.id}-{end.__name__}", **ADA))
                session.flush()
                end(session)
        with contextlib.suppress(ValueError), shop["engine"].begin() as connection:
            connection.execute(sqlalchemy.insert(Order).values(id=f"{message.id}-raised", **ADA))
            raise ValueError("caught by the handler")

    assert (await consume(shop, process)).skipped == 0
    assert orders() == ["m0", "m1", "m2"]


async def test_an_inner_session_and_savepoints_keep_their_meaning(shop):
    def process(message):
        with Session(shop["engine"]) as outer, outer.begin():
            outer.add(order_of(message))
            outer.flush()
            with Session(shop["engine"]) as inner, inner.begin():
                inner.add(Order(id=f"{message.id}-inner", **ADA))
            with outer.begin_nested() as savepoint:
                outer.add(Order(id=f"{message.id}-savepoint", **ADA))
                outer.flush()
                savepoint.rollback()
            if message.id == "m1":
                outer.rollback()

    await consume(shop, process)
    assert orders() == ["m0", "m0-inner", "m2", "m2-inner"]


async def test_a_unique_key_that_fails_is_a_failure_of_its_message_alone(shop):
    ask("shop.db", "INSERT INTO orders VALUES ('m1', 'Bob', 1)")
    assert (await consume(shop, shop["process"])).skipped == 1
    assert ask("shop.db", "SELECT id, customer FROM orders ORDER BY id") == [
        ("m0", "Ada"),
        ("m1", "Bob"),
        ("m2", "Ada"),
    ]


async def test_a_handler_that_finds_the_file_locked_is_called_again_through_sqlalchemy(shop, monkeypatch):
    monkeypatch.setattr("push_to_poll_client.stores._sqlite.transaction.MAX_LOOP_WAIT", 0.01)
    calls = []
    with contextlib.closing(sqlite3.connect("shop.db", isolation_level=None)) as other:

        async def process(message):
            if not calls:
                other.execute("BEGIN IMMEDIATE")
            calls.append(message.id)
            try:
                shop["process"](message)
            except StoreUnavailable:
                other.execute("COMMIT")
                raise

        await consume(shop, process, count=2)
    assert calls == ["m0", "m0", "m1"]
    assert orders() == ["m0", "m1"]


async def test_the_engine_of_handlers_refuses_to_work_elsewhere(shop):
    await consume(shop, shop["process"], count=1)
    with Session(shop["engine"]) as session:
        session.add(Order(id="elsewhere", **ADA))
        with pytest.raises(RuntimeError, match="handler"):
            session.flush()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_without_the_adapter_sqlalchemy_fails_as_the_page_says(shop, caplog):
    engine = sqlalchemy.create_engine(
        "sqlite://", creator=lambda: shop["store"].connection, poolclass=sqlalchemy.pool.StaticPool
    )

    def process(message):
        with Session(engine) as session:
            session.add(order_of(message))
            session.commit()

    assert (await consume(shop, process, count=1)).skipped == 1
    assert "a handler must not call create_function() on the store's connection" in caplog.text
    assert "create_function() on the store's connection" in PAGE
    assert orders() == []


# PostgreSQL

CRASH = """
import os, re, sys
import anyio, psycopg
from push_to_poll_client import Consumer, SQLiteStore
from tests.docs.test_databases import BANK, bank_program, feed_of, transfers
when, conninfo, edit = sys.argv[1:]
commit, commits = psycopg.AsyncConnection.commit, 0

async def dying_commit(self):
    global commits
    commits += 1
    if commits == 3 and when == "before":
        os._exit(9)
    await commit(self)
    if commits == 3 and when == "after":
        os._exit(9)

psycopg.AsyncConnection.commit = dying_commit
anyio.run(transfers, bank_program(conninfo, edit))
"""


def bank_program(conninfo, edit=""):
    """Return the handler of the page, on this server. `edit="keyless"` removes the check of the key."""
    block = block_with("ON CONFLICT DO NOTHING").replace("postgresql://me@db.example/bank", conninfo)
    if edit == "keyless":
        block = block.replace("if recorded.rowcount:", "if True:")
    names = {}
    exec(compile(block, "databases.md", "exec"), names)  # noqa: S102  # it is ours
    return names["transfer"]


BANK = [{"to": "bob", "cents": 10**n} for n in range(5)]


async def transfers(transfer):
    """Process five transfers, with the state in a file of the current directory."""
    store = SQLiteStore("transfers.db", synchronous="NORMAL")
    await Consumer(feed_of(*BANK), store=store, name="transfers", process=transfer).poll_now()


@pytest.fixture
def postgres(request, directory):
    server = shared_server(request.config)
    server.execute(
        "DROP TABLE IF EXISTS processed, account",
        *block_with("CREATE TABLE processed").split(";")[:2],
        "CREATE TABLE account(name text PRIMARY KEY, cents int NOT NULL)",
        "INSERT INTO account VALUES ('bob', 0)",
    )
    yield server
    server.execute("DROP TABLE processed, account")


def cents(server):
    with psycopg.connect(server.conninfo) as connection:
        return connection.execute("SELECT cents FROM account").fetchone()[0]


def crash(server, when, edit=""):
    """Process the transfers in a process that ends at the commit of the third."""
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{CRASH}",
            when,
            server.conninfo,
            edit,
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=GUARD,
    )
    assert ended.returncode == 9, ended.stderr


ASYNCIO = pytest.mark.parametrize("anyio_backend", ["asyncio"])  # psycopg supports only asyncio


@ASYNCIO
@pytest.mark.parametrize(("when", "done"), [("before", 11), ("after", 111)])
async def test_each_transfer_is_made_once_if_the_process_is_killed_at_the_commit(postgres, when, done):
    crash(postgres, when)
    assert cents(postgres) == done
    await transfers(bank_program(postgres.conninfo))
    assert cents(postgres) == 11_111


@ASYNCIO
async def test_without_the_key_a_crash_repeats_a_transfer(postgres):
    """So the test above can fail."""
    crash(postgres, "after", "keyless")
    await transfers(bank_program(postgres.conninfo, "keyless"))
    assert cents(postgres) > 11_111


@ASYNCIO
async def test_a_lost_state_file_and_a_second_process_repeat_no_transfer(postgres):
    transfer = bank_program(postgres.conninfo)
    for _ in range(2):
        consumer = Consumer(feed_of(*BANK), store=MemoryStore(), name="transfers", process=transfer)
        await consumer.poll_now()
    assert cents(postgres) == 11_111


@ASYNCIO
async def test_a_transfer_that_fails_leaves_no_key(postgres):
    transfer = bank_program(postgres.conninfo)
    feed = feed_of({"to": "bob", "cents": 1}, {"to": "bob", "cents": "many"})
    settings = {"retry": None, "on_failure": "dead_letter"}
    consumer = Consumer(feed, store=MemoryStore(), name="transfers", process=transfer, **settings)
    async with consumer:
        await consumer.poll_now()
        assert [letter.id for letter in await consumer.dead_letters.list()] == ["m1"]
    with psycopg.connect(postgres.conninfo) as connection:
        assert connection.execute("SELECT key FROM processed").fetchall() == [("m0",)]


def test_the_programs_of_the_page_use_public_names():
    used = re.findall(r"from push_to_poll_client import (.*)", "\n".join(BLOCKS))
    assert {name.strip() for line in used for name in line.split(",")} <= set(push_to_poll_client.__all__)
