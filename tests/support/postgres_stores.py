"""Stores in a real PostgreSQL server for tests: leases that end on demand, commits in doubt, cut connections.

opened = PostgresStores(shared_server(config))
first, second = opened.store(), opened.store()     # two replicas with the tables of one new schema
"""

import itertools
import time
import weakref
from collections import defaultdict
from contextlib import asynccontextmanager, contextmanager, suppress
from unittest.mock import patch

import anyio
import psycopg
from anyio import to_thread

from push_to_poll_client import CommitInDoubt, OwnershipLost
from push_to_poll_client.stores._postgres.errors import commit_error
from push_to_poll_client.stores._postgres.notices import Kind, Notice, digest_of
from push_to_poll_client.stores._postgres.progress import ClaimedName
from push_to_poll_client.stores._postgres.transaction import Transaction
from push_to_poll_client.stores.postgres import PostgresStore
from tests.support.forms import GUARD
from tests.support.tcp_proxy import TCPProxy

__all__ = ["LEASE", "PostgresStores", "ReplicaStore", "until"]

LEASE = 60.0
"""Seconds: a busy machine must not lose a lease by itself."""

_schemas = itertools.count(1)


async def until(happened):
    """Wait until a function returns a true value."""
    with anyio.fail_after(GUARD):
        while not happened():  # noqa: ASYNC110  # a thread changes it
            await anyio.sleep(0.005)


class ReplicaStore(PostgresStore):
    """A store object with a clock that can jump, and connections that can be cut."""

    def __init__(self, proxy, conninfo, **options):
        self.jump = 0.0
        self.proxy = proxy
        super().__init__(conninfo, **{"lease": LEASE, **options})

    def _now(self):
        return super()._now() + self.jump

    async def aclose(self):
        await super().aclose()
        self.proxy.__exit__()


_used = weakref.WeakKeyDictionary()
"""For each server and each text of `own_tables`, names of schemas that are empty and can be used again."""

_CHANGES_TABLES = ("CREATE", "ALTER", "DROP", "GRANT")


class PostgresStores:
    """Store objects with one schema without rows.

    Args:
        own_tables: Statement that creates the table `effect` of the test, or an empty text. The emptied schema of
            an earlier test is then used again, unless `execute()` or `failing()` has changed its tables: creating
            and dropping the tables takes as long as a usual test. None for a new schema.
    """

    def __init__(self, server, *, own_tables=None, **options):
        self.server = server
        self._own_tables = own_tables
        self._options = options
        self._opened = []
        self._are_tables_changed = False
        if used := self._used():
            self.schema = used.pop()
        else:
            self.schema = f"store_{next(_schemas)}"
            if own_tables:
                self.execute("CREATE SCHEMA {s}")
                self.execute(own_tables)
        self._are_tables_changed = False

    def store(self, **options):
        """Open the tables as a replica does, through its own proxy."""
        proxy = TCPProxy(self.server.port)
        proxy.__enter__()
        conninfo = f"postgresql://me@127.0.0.1:{proxy.port}/postgres"
        store = ReplicaStore(proxy, conninfo, **{"schema": self.schema, **self._options, **options})
        self._opened.append(store)
        return store

    def execute(self, statement, **values):
        """Execute a statement with `{s}` for the schema; return its rows."""
        self._are_tables_changed |= statement.lstrip().startswith(_CHANGES_TABLES)
        with self.server.connection() as connection:
            cursor = connection.execute(statement.replace("{s}", self.schema).encode(), values)
            return cursor.fetchall() if cursor.description else []

    def notify(self, kind, name):
        """Send a notice to all replicas."""
        self.server.notify(self.schema, Notice(kind, digest_of(name)).encode())

    async def expire(self, store, name):
        """Let the lease of a name run out, and the clock of its owner too."""
        await to_thread.run_sync(self._expire, store, name)

    def _expire(self, store, name):
        self._change_lease(name, "until = clock_timestamp()")
        store.jump += 10 * LEASE  # only now: a heartbeat in between must not count from the new time
        self.notify(Kind.FREED, name)  # instead of waiting for the end of the lease

    async def want(self, name):
        """Ask the owner of a name to hand it over."""
        await to_thread.run_sync(self._want, name)

    def _want(self, name):
        self._change_lease(name, "wanted = true")
        self.notify(Kind.WANTED, name)

    def _change_lease(self, name, change):
        self.execute(
            f"UPDATE {{s}}.lease SET {change} FROM {{s}}.consumer WHERE consumer = id AND digest = %(d)s",  # noqa: S608
            d=digest_of(name),
        )

    @asynccontextmanager
    async def unreachable(self, store):
        """Cut the connections of a store, and refuse new ones."""
        store.proxy.refuse()
        store.proxy.cut()
        try:
            yield
        finally:
            store.proxy.heal()

    @asynccontextmanager
    async def in_doubt(self, store, outcome):
        """Lose the answer of the next commit: it never arrives, takes effect, or arrives at the block's end."""
        late = []
        write, planned = ClaimedName._write, [outcome]

        def write_in_doubt(claimed, connection, plan):
            if claimed._database is not store._database or not planned:
                return write(claimed, connection, plan)
            planned.clear()
            if outcome == "landed":
                write(claimed, connection, plan._replace(apply=lambda _: None))
            elif outcome == "late":
                late.append((claimed, plan._replace(apply=lambda _: None)))
            connection.close()
            raise commit_error("planted", psycopg.OperationalError("planted: connection lost"), connection)

        commit = Transaction._commit

        def commit_in_doubt(transaction, statements):
            if transaction.database is not store._database or not planned:
                return commit(transaction, statements)
            planned.clear()
            connection, transaction._raw = transaction._raw, None
            if outcome == "late":
                late.append((transaction, connection, statements))
            else:
                if outcome == "landed":
                    transaction._raw = connection
                    commit(transaction, statements)
                    transaction._raw = None
                connection.close()
            raise CommitInDoubt("planted: connection lost")

        with (
            patch.object(ClaimedName, "_write", write_in_doubt),
            patch.object(Transaction, "_commit", commit_in_doubt),
        ):
            yield
        for one in late:
            await to_thread.run_sync(self._write_late, write, commit, *one)

    def _write_late(self, write, commit, one, *rest):
        with suppress(OwnershipLost):
            if isinstance(one, Transaction):
                one._raw, statements = rest
                try:
                    commit(one, statements)
                finally:
                    one._raw.close()
            else:
                with one._database.connection() as connection:
                    write(one, connection, *rest)

    @contextmanager
    def failing(self):
        """Let writes of `state` fail in the server."""
        self.execute("""
            CREATE OR REPLACE FUNCTION {s}.fail() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN RAISE EXCEPTION ''planted''; END'
        """)
        self.execute("""
            CREATE TRIGGER fails BEFORE INSERT OR UPDATE ON {s}.state FOR EACH ROW EXECUTE FUNCTION {s}.fail()
        """)
        try:
            yield
        finally:
            self.execute("DROP TRIGGER fails ON {s}.state")

    @contextmanager
    def changing(self, *statements):
        """Keep a transaction with these statements open in the block, and roll it back."""
        with psycopg.connect(self.server.conninfo) as connection:
            for statement in statements:
                connection.execute(statement.replace("{s}", self.schema).encode())
            yield
            connection.rollback()

    async def aclose(self):
        """Close all stores, and drop the tables."""
        for store in self._opened:
            if store.proxy.is_running:
                await store.aclose()
        await to_thread.run_sync(self.drop)

    def drop(self):
        """Drop the tables, or empty them for the next test."""
        if self._own_tables is not None and not self._are_tables_changed and self._are_emptied():
            self._used().append(self.schema)
        else:
            self.execute("DROP SCHEMA IF EXISTS {s} CASCADE")

    def _used(self):
        return _used.setdefault(self.server, defaultdict(list))[self._own_tables]

    def _are_emptied(self):
        """Delete all rows. Return False without tables, or if a connection could still write."""
        others = "SELECT FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        gives_up = time.monotonic() + 1.0
        while self.execute(others):
            if time.monotonic() > gives_up:
                return False
            time.sleep(0.002)
        tables = ["consumer", "record", *(["effect"] if self._own_tables else [])]  # the others follow `consumer`
        try:
            self.execute("; ".join(f"DELETE FROM {{s}}.{table}" for table in tables))  # noqa: S608
        except psycopg.errors.UndefinedTable:
            return False
        return True
