"""The programs of `docs/databases.md` for `PostgresStore`, on a real server: rows with their records."""

import json
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from push_to_poll_client import Consumer, OwnershipLost
from push_to_poll_client.testing import FakeFeed
from tests.support.forms import GUARD
from tests.support.postgres_server import shared_server

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "databases.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
ADA = {"customer": "Ada", "cents": 995}


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[str] = mapped_column(primary_key=True)
    customer: Mapped[str]
    cents: Mapped[int]


def block_with(text, conninfo):
    (block,) = (block for block in BLOCKS if text in block)
    return block.replace("postgresql://me@db.example/shop", conninfo)


@pytest.fixture
def server(request):
    server = shared_server(request.config)
    server.execute("CREATE TABLE orders(id text PRIMARY KEY, customer text NOT NULL, cents int NOT NULL)")
    yield server
    server.execute("DROP TABLE orders CASCADE", "DROP SCHEMA IF EXISTS push_to_poll CASCADE")


def ask(server, statement):
    with psycopg.connect(server.conninfo) as connection:
        return [row[0] for row in connection.execute(statement)]


def orders(server):
    return ask(server, "SELECT id FROM orders ORDER BY id")


def records(server):
    return ask(server, "SELECT count(*) FROM push_to_poll.record")[0]


class Program:
    """A program of the page, and the handler that it gives to the consumer."""

    def __init__(self, server, kind):
        self.names = {"Order": Order}
        text = {"sql": "INSERT INTO orders"}.get(kind, "def in_savepoints")
        self._run(block_with(text, server.conninfo))
        if kind == "sqlalchemy async":
            self._run(block_with("create_async_engine", server.conninfo))
        self.store = self.names["store"]
        self.kind = kind

    def _run(self, block):
        exec(compile(block, "databases.md", "exec"), self.names)  # noqa: S102  # it is ours

    def handler(self, then):
        """Return the handler of the page, followed by a function for each message."""
        process, process_async = self.names["process"], self.names.get("process_async")

        def plain(message):
            process(message)
            then(message)

        async def in_loop(message):
            await process_async(message)
            then(message)

        return in_loop if self.kind == "sqlalchemy async" else plain

    async def consume(self, handler, count=3, **settings):
        """Process so many messages, and return the result."""
        feed = FakeFeed()
        for number in range(count):
            feed.publish(f"m{number}", data=ADA)
        kind = {"retry": None, "on_failure": "skip", **settings}
        async with Consumer(feed, store=self.store, name="orders", process=handler, **kind) as consumer:
            return await consumer.poll_now()


@pytest.fixture(params=["sql", "sqlalchemy", "sqlalchemy async"])
async def program(request, server):
    program = Program(server, request.param)
    yield program
    await program.store.aclose()


only_sqlalchemy = pytest.mark.parametrize("program", ["sqlalchemy", "sqlalchemy async"], indirect=True)


async def test_each_row_is_committed_with_its_record(program, server):
    seen = []

    def then(_):
        seen.append((orders(server), records(server)))

    await program.consume(program.handler(then))
    assert seen == [([], 0), (["m0"], 1), (["m0", "m1"], 2)]
    assert (orders(server), records(server)) == (["m0", "m1", "m2"], 3)


async def test_a_replaced_owner_commits_neither_row_nor_record(program, server):
    def then(message):
        if message.id == "m1":
            server.execute("UPDATE push_to_poll.consumer SET token = token + 1")

    with pytest.raises(OwnershipLost):
        await program.consume(program.handler(then))
    assert (orders(server), records(server)) == (["m0"], 1)


async def test_a_handler_that_raises_undoes_what_a_session_has_committed(program, server):
    def then(message):
        if message.id == "m1":
            raise ValueError("after the commit")

    assert (await program.consume(program.handler(then))).skipped == 1
    assert (orders(server), records(server)) == (["m0", "m2"], 3)


async def test_a_unique_key_that_fails_is_a_failure_of_its_message_alone(program, server):
    server.execute("INSERT INTO orders VALUES ('m1', 'Bob', 1)")
    assert (await program.consume(program.handler(lambda _: None))).skipped == 1
    assert orders(server) == ["m0", "m1", "m2"]
    assert ask(server, "SELECT customer FROM orders WHERE id = 'm1'") == ["Bob"]


async def test_several_handlers_at_a_time_use_the_engine(program, server):
    settings = {"concurrency": 4, "ordering_key": lambda message: message.id}
    await program.consume(program.handler(lambda _: None), count=20, **settings)
    assert len(orders(server)) == records(server) == 20


def new(name):
    return Order(id=name, **ADA)


@pytest.mark.parametrize("program", ["sqlalchemy"], indirect=True)
async def test_a_session_undoes_only_its_own_rows(program, server):
    engine = program.names["engine"]

    def process(message):
        with Session(engine) as outer, outer.begin():
            outer.add(new(f"{message.id}-outer"))
            outer.flush()
            with Session(engine) as inner:
                inner.add(new(f"{message.id}-inner"))
                inner.flush()
                inner.rollback()
            with outer.begin_nested() as savepoint:
                outer.add(new(f"{message.id}-savepoint"))
                outer.flush()
                savepoint.rollback()
            with outer.begin_nested():
                outer.add(new(f"{message.id}-nested"))
        with Session(engine) as closed:
            closed.add(new(f"{message.id}-closed"))
            closed.flush()
        with pytest.raises(sqlalchemy.exc.IntegrityError), engine.begin() as connection:
            connection.execute(sqlalchemy.insert(Order), [{"id": f"{message.id}-outer", **ADA}])

    assert (await program.consume(process, 2)).skipped == 0
    assert orders(server) == ["m0-nested", "m0-outer", "m1-nested", "m1-outer"]


@pytest.mark.parametrize("program", ["sqlalchemy async"], indirect=True)
async def test_an_async_session_undoes_only_its_own_rows(program, server):
    engine = program.names["async_engine"]

    async def process(message):
        async with AsyncSession(engine) as outer, outer.begin():
            outer.add(new(f"{message.id}-outer"))
            await outer.flush()
            async with outer.begin_nested() as savepoint:
                outer.add(new(f"{message.id}-savepoint"))
                await outer.flush()
                await savepoint.rollback()
            async with outer.begin_nested():
                outer.add(new(f"{message.id}-nested"))
        async with AsyncSession(engine) as closed:
            closed.add(new(f"{message.id}-closed"))
            await closed.flush()

    assert (await program.consume(process, 2)).skipped == 0
    assert orders(server) == ["m0-nested", "m0-outer", "m1-nested", "m1-outer"]


@only_sqlalchemy
async def test_a_conflict_through_sqlalchemy_is_not_a_failed_attempt(program, server):
    calls = []
    conflict = sqlalchemy.text("DO $$BEGIN RAISE EXCEPTION 'planted' USING ERRCODE = '40001'; END$$")

    def process(message):
        with Session(program.names["engine"]) as session:
            session.add(new(message.id))
            calls.append(message.id)
            if len(calls) == 1:
                session.execute(conflict)
            session.commit()

    async def process_async(message):
        async with AsyncSession(program.names["async_engine"]) as session:
            session.add(new(message.id))
            calls.append(message.id)
            if len(calls) == 1:
                await session.execute(conflict)
            await session.commit()

    handler = process if program.kind == "sqlalchemy" else process_async
    assert (await program.consume(handler, 1)).skipped == 0
    assert calls == ["m0", "m0"]
    assert orders(server) == ["m0"]


@pytest.mark.parametrize("program", ["sqlalchemy"], indirect=True)
async def test_the_engine_of_handlers_refuses_to_work_elsewhere(program):
    with Session(program.names["engine"]) as session, pytest.raises(RuntimeError, match="while a message"):
        session.execute(sqlalchemy.text("SELECT 1"))


DJANGO = """
import json, sys
from urllib.parse import urlsplit
import anyio, django
from django.conf import settings
url = urlsplit(sys.argv[1])
database = {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "USER": "me", "HOST": url.hostname,
    "PORT": url.port, "CONN_MAX_AGE": 60}
settings.configure(DATABASES={"default": database}, DEFAULT_AUTO_FIELD="django.db.models.AutoField")
django.setup()
from django.db import connection, models, transaction

class Order(models.Model):
    id = models.TextField(primary_key=True)
    customer = models.TextField()
    cents = models.IntegerField()
    class Meta:
        app_label = "shop"
        db_table = "orders"

class Line(models.Model):
    order = models.ForeignKey(Order, models.CASCADE)
    class Meta:
        app_label = "shop"
        db_table = "line"

with connection.schema_editor() as editor:
    editor.create_model(Line)
BLOCK
from push_to_poll_client.testing import FakeFeed
from tests.docs.test_databases_postgres import ask, orders as stored
from types import SimpleNamespace
server = SimpleNamespace(conninfo=sys.argv[1])
seen, called = {}, []

def handler(message):
    process(message)
    seen[message.id] = stored(server)
    transaction.on_commit(lambda: called.append(stored(server)))
    if message.id == "m1":
        try:
            with transaction.atomic():
                Order.objects.create(id="inner", customer="Ada", cents=1)
                raise ValueError
        except ValueError:
            pass
    if message.id == "m2":
        raise ValueError("planted")
    if message.id == "m3":
        Line.objects.create(order_id="missing")  # found at the commit

async def main():
    feed = FakeFeed()
    for number in range(5):
        feed.publish(f"m{number}", data={"customer": "Ada", "cents": 1})
    settings = {"retry": None, "on_failure": "dead_letter"}
    async with Consumer(feed, store=store, name="orders", process=handler, **settings) as consumer:
        await consumer.poll_now()
        letters = {letter.id: letter.error for letter in await consumer.dead_letters.list()}
    await store.aclose()
    print(json.dumps({"seen": seen, "stored": stored(server), "letters": letters, "called": called,
        "records": ask(server, "SELECT count(*) FROM push_to_poll.record")[0]}))

anyio.run(main)
"""


def test_the_orm_of_django_writes_in_the_transaction_of_the_records(server):
    script = DJANGO.replace("BLOCK", block_with("def django_transaction", server.conninfo))
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{script}", server.conninfo],
        check=False,
        capture_output=True,
        text=True,
        timeout=GUARD,
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["seen"] == {
        "m0": [],
        "m1": ["m0"],
        "m2": ["m0", "m1"],
        "m3": ["m0", "m1"],
        "m4": ["m0", "m1"],
    }
    assert told["stored"] == ["m0", "m1", "m4"]
    assert told["records"] == 5
    assert told["called"] == [["m0"], ["m0", "m1"], ["m0", "m1", "m4"]]
    assert set(told["letters"]) == {"m2", "m3"}
    assert "violates foreign key constraint" in told["letters"]["m3"]
