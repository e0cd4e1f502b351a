"""The sides of the rows of `postgres.py`: loops written by hand with psycopg, this library, and pgqueuer."""

import asyncio
import functools
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import anyio
import psycopg

from push_to_poll_client import Consumer, FetchRequest, Message, Page
from push_to_poll_client.stores.postgres import PostgresStore

PAGE = 1_000

LEASE = 60.0
"""Seconds. A busy machine may stop the server's disk for some seconds, which is not to end a turn."""

CONCURRENCY = 8
"""Connections of the sides that process several messages at a time."""

TABLES = """
    CREATE TABLE effect(id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, message text, amount integer);
    CREATE TABLE seen(id text PRIMARY KEY);
    CREATE TABLE saved(name text PRIMARY KEY, cursor text);
    INSERT INTO saved VALUES ('orders', NULL);
"""

EFFECT = "INSERT INTO effect(message, amount) VALUES (%s, %s)"

SEEN = "INSERT INTO seen VALUES (%s) ON CONFLICT DO NOTHING RETURNING id"

SEEN_PAGE = "INSERT INTO seen SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING RETURNING id"

SAVE = "UPDATE saved SET cursor = %s WHERE name = 'orders'"


class Side(NamedTuple):
    """One way to process messages."""

    run: Callable[[str, list[str]], None]
    prepare: Callable[[str, list[str]], None]
    check: Callable[[str, list[str]], None]
    beside: str  # the side to compare with; "" for none


class Feed:
    """A feed in memory, with a cursor for each page. It may be read one page ahead, like `HTTPFeed`."""

    read_ahead = True

    def __init__(self, ids: Sequence[str]) -> None:
        self._pages = [[Message(key, 1) for key in page] for page in pages_of(ids)]

    async def fetch(self, request: FetchRequest) -> Page:
        """Return the page after the cursor."""
        number = int(request.cursor or "0")
        if number == len(self._pages):
            return Page([])
        cursor = str(number + 1)
        return Page(self._pages[number], cursor=cursor, next_page=cursor)


def pages_of(ids: Sequence[str]) -> list[Sequence[str]]:
    """Divide ids among pages."""
    return [ids[start : start + PAGE] for start in range(0, len(ids), PAGE)]


def create_tables(database: str, _: list[str]) -> None:
    """Create the tables of the handler and of the loops by hand."""
    with psycopg.connect(database) as connection:
        connection.execute(TABLES)


def count_in(table: str) -> Callable[[str, list[str]], None]:
    """Return a check: the table has a row for each message."""

    def check(database: str, ids: list[str]) -> None:
        with psycopg.connect(database) as connection:
            row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608  # a constant
        assert row == (len(ids),), row  # noqa: S101  # else the times mean nothing

    return check


# Catch-up: the handler does nothing.


def catch_up_by_hand(database: str, ids: list[str]) -> None:
    """A transaction for each page, which inserts the ids, processes the new ones, and saves the cursor."""
    processed = 0

    def process(_: str) -> None:
        nonlocal processed
        processed += 1

    with psycopg.connect(database, autocommit=True) as connection:
        for number, page in enumerate(pages_of(ids), 1):
            with connection.transaction():
                new = {key for (key,) in connection.execute(SEEN_PAGE, (page,))}
                for key in page:
                    if key in new:
                        process(key)
                connection.execute(SAVE, (str(number),))
    assert processed == len(ids)  # noqa: S101  # else the times mean nothing


def catch_up(database: str, ids: list[str]) -> None:
    """A consumer with a `PostgresStore`."""
    processed = 0

    async def process(_: Message) -> None:
        nonlocal processed
        processed += 1

    anyio.run(consume, PostgresStore(database, lease=LEASE), ids, process)
    assert processed == len(ids)  # noqa: S101  # else the times mean nothing


async def consume(store: PostgresStore, ids: list[str], process: Callable[[Message], Any], **options: Any) -> None:
    """Process all messages."""
    consumer = Consumer(Feed(ids), store=store, name="orders", process=process, **options)
    async with consumer:
        while not (await consumer.poll_now()).caught_up:
            pass
    await store.aclose()


# A handler that writes one row.


def bare_transactions(database: str, ids: list[str]) -> None:
    """A transaction for each effect, without a record or a cursor."""
    with psycopg.connect(database, autocommit=True) as connection:
        for key in ids:
            with connection.transaction():
                connection.execute(EFFECT, (key, 1))


def effects_by_hand(database: str, ids: list[str]) -> None:
    """A transaction for each message, which inserts its id and the effect. The cursor is saved after each page."""
    with psycopg.connect(database, autocommit=True) as connection:
        for number, page in enumerate(pages_of(ids), 1):
            for key in page:
                with connection.transaction():
                    if connection.execute(SEEN, (key,)).fetchone():
                        connection.execute(EFFECT, (key, 1))
            connection.execute(SAVE, (str(number),))


def effects_in_a_pipeline_by_hand(database: str, ids: list[str]) -> None:
    """The same, but the page is compared with the records before, and a message costs one network round trip."""
    with psycopg.connect(database, autocommit=True) as connection:
        for number, page in enumerate(pages_of(ids), 1):
            rows = connection.execute("SELECT id FROM seen WHERE id = ANY(%s)", (page,))
            known = {key for (key,) in rows}
            for key in page:
                if key not in known:
                    with connection.pipeline(), connection.transaction():
                        connection.execute(EFFECT, (key, 1))
                        connection.execute("INSERT INTO seen VALUES (%s)", (key,))
            connection.execute(SAVE, (str(number),))


def effects_by_hand_async(database: str, ids: list[str], *, connections: int) -> None:
    """`effects_by_hand` with `AsyncConnection`, on so many connections at a time."""

    async def settle(share: Sequence[str], connection: psycopg.AsyncConnection) -> None:
        for key in share:
            async with connection.transaction():
                if await (await connection.execute(SEEN, (key,))).fetchone():
                    await connection.execute(EFFECT, (key, 1))

    async def run() -> None:
        opened = [await psycopg.AsyncConnection.connect(database, autocommit=True) for _ in range(connections)]
        for number, page in enumerate(pages_of(ids), 1):
            async with anyio.create_task_group() as tasks:
                for start, connection in enumerate(opened):
                    tasks.start_soon(settle, page[start::connections], connection)
            await opened[0].execute(SAVE, (str(number),))
        for connection in opened:
            await connection.close()

    anyio.run(run)


def effects(database: str, ids: list[str]) -> None:
    """A transactional `PostgresStore` and a plain function."""
    store = PostgresStore(database, transactional=True, lease=LEASE)

    def process(message: Message) -> None:
        store.connection.execute(EFFECT, (message.id, message.data))

    anyio.run(consume, store, ids, process)


def effects_async(database: str, ids: list[str], *, concurrency: int) -> None:
    """A transactional `PostgresStore` and a coroutine function."""
    store = PostgresStore(database, transactional=True, lease=LEASE)

    async def process(message: Message) -> None:
        await store.connection.execute(EFFECT, (message.id, message.data))

    options = {"concurrency": concurrency, "ordering_key": lambda message: message.id} if concurrency > 1 else {}
    anyio.run(functools.partial(consume, store, ids, process, **options))


# pgqueuer. A job is done at least once: its effect and its removal from the queue are two transactions.


def install_jobs(database: str, ids: list[str]) -> None:
    """Create the tables, and enqueue a job for each message."""
    import asyncpg
    from pgqueuer.db import AsyncpgDriver
    from pgqueuer.queries import Queries

    async def enqueue() -> None:
        connection = await asyncpg.connect(database)
        queries = Queries(AsyncpgDriver(connection))
        await queries.install()
        for page in pages_of(ids):
            await queries.enqueue(["job"] * len(page), [key.encode() for key in page], [0] * len(page))
        await connection.close()

    create_tables(database, ids)
    asyncio.run(enqueue())


def effects_by_pgqueuer(database: str, ids: list[str]) -> None:
    """The fastest of seven settings: asyncpg, uvloop, 1,000 jobs at a time, a pool of connections."""
    import asyncpg
    import uvloop
    from pgqueuer import PgQueuer
    from pgqueuer.models import Job

    async def run() -> None:
        async with asyncpg.create_pool(database, min_size=CONCURRENCY, max_size=CONCURRENCY) as pool:
            queue = PgQueuer.from_asyncpg_pool(pool)
            left = itertools.count(len(ids) - 1, -1)

            @queue.entrypoint("job")
            async def process(job: Job) -> None:
                insert = "INSERT INTO effect(message, amount) VALUES ($1, $2)"
                await pool.execute(insert, (job.payload or b"").decode(), 1)
                if not next(left):
                    queue.shutdown.set()

            await queue.run(batch_size=PAGE)

    uvloop.run(run())


def _prepare_store(database: str, ids: list[str]) -> None:
    """Create the tables of the handler and of the store."""

    async def claim() -> None:
        store = PostgresStore(database)
        session = await store.claim("another", feed="another")
        await session.release()
        await store.aclose()

    create_tables(database, ids)
    anyio.run(claim)


def _effects(run: Callable[[str, list[str]], None], *, beside: str = "by hand") -> Side:
    return Side(run, create_tables, count_in("effect"), beside)


def _our_effects(run: Callable[[str, list[str]], None], *, beside: str) -> Side:
    return Side(run, _prepare_store, count_in("effect"), beside)


_HAND, _HAND_ASYNC = "by hand", "by hand with AsyncConnection"
_HAND_CONCURRENT = f"by hand with {CONCURRENCY} AsyncConnections"

CATCH_UP = {
    _HAND: Side(catch_up_by_hand, create_tables, count_in("seen"), ""),
    "PostgresStore": Side(catch_up, _prepare_store, lambda _, __: None, _HAND),
}

EFFECTS = {
    "bare transactions": _effects(bare_transactions, beside=_HAND),
    _HAND: _effects(effects_by_hand, beside=""),
    "by hand in a pipeline": _effects(effects_in_a_pipeline_by_hand),
    "PostgresStore with def": _our_effects(effects, beside=_HAND),
    _HAND_ASYNC: _effects(functools.partial(effects_by_hand_async, connections=1)),
    "PostgresStore with async def": _our_effects(
        functools.partial(effects_async, concurrency=1), beside=_HAND_ASYNC
    ),
    _HAND_CONCURRENT: _effects(functools.partial(effects_by_hand_async, connections=CONCURRENCY)),
    f"PostgresStore with async def, concurrency={CONCURRENCY}": _our_effects(
        functools.partial(effects_async, concurrency=CONCURRENCY), beside=_HAND_CONCURRENT
    ),
}

if importlib.util.find_spec("pgqueuer") is not None:
    EFFECTS["pgqueuer"] = Side(effects_by_pgqueuer, install_jobs, count_in("effect"), _HAND)
