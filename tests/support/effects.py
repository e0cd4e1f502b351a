"""Blocks of effects on a database of plain sqlite3, with nothing of a store around them."""

import contextlib
import functools
import pathlib
import sqlite3
import tempfile
import threading

import anyio

from push_to_poll_client.stores._sqlite.connection import Guard, GuardedConnection
from push_to_poll_client.stores._sqlite.thread import Job, StoreThread
from push_to_poll_client.stores._sqlite.transaction import Effects, LockGaps, Transaction, roll_back
from tests.support.forms import GUARD

SCHEMA = """
    CREATE TABLE account(name TEXT PRIMARY KEY, amount INTEGER NOT NULL CHECK (amount >= 0));
    CREATE TABLE note(id INTEGER PRIMARY KEY, text, data BLOB);
    CREATE TABLE push_to_poll_record(id INTEGER PRIMARY KEY, key UNIQUE, data BLOB);
    CREATE INDEX push_to_poll_index ON push_to_poll_record(data);
    INSERT INTO push_to_poll_record(key, data) VALUES ('old', x'00');
    INSERT INTO note(text, data) VALUES ('first', x'00');
"""


@functools.cache
def template():
    """Return the bytes of a new database, which take longer to make than to write."""
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "template.db")
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(SCHEMA)
        return path.read_bytes()


def make(path):
    pathlib.Path(path).write_bytes(template())


def look(path, query):
    """What another program sees: what is committed."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute(query)]


class Planned(Exception):
    """What a handler raises."""


class Database:
    """A connection that sessions share."""

    def __init__(self, path):
        self.path = path
        make(path)
        self.connection = GuardedConnection(str(path), Guard(str(path)), timeout=0)
        self.thread = StoreThread("test")
        self.gaps = LockGaps()

    def session(self):
        return Session(self)

    def close(self):
        ended = threading.Event()
        self.thread.submit(Job(self._close, ended.set, urgent=True))
        assert ended.wait(GUARD)

    def _close(self):
        with self.connection.guard.store_access():
            self.connection.close()

    def notes(self):
        return look(self.path, "SELECT text FROM note ORDER BY id")[1:]


class Session:
    """What a session does with its transaction."""

    def __init__(self, database):
        self.database = database
        self.connection = database.connection
        self.inner = Transaction(database.connection, database.thread, database.gaps)
        self.gate = anyio.Lock(fast_acquire=True)
        self.check = lambda: None

    def transaction(self, *records):
        return Effects(
            self.inner,
            lambda: self.write(*records),
            gate=self.gate,
            check=self.run_check,
        )

    def run_check(self):
        self.check()

    def write(self, *keys):
        with self.inner.writing():
            for key in keys:
                self.connection.execute("INSERT INTO push_to_poll_record(key) VALUES (?)", (key,))

    async def note(self, *texts):
        """A handler that writes."""
        async with self.transaction(*texts):
            for text in texts:
                self.connection.execute("INSERT INTO note(text) VALUES (?)", (text,))

    async def fail(self, *statements, keep=None):
        """A handler that writes and then fails."""
        async with self.transaction("failed"):
            for statement in statements:
                cursor = self.connection.execute(statement)
                if keep is not None:
                    keep.append(cursor)
            raise Planned

    async def commit(self, *keys, before=lambda: None):
        def work():
            before()
            self.write(*keys)

        async with self.gate:
            await self.run(work)

    async def ask(self, query):
        return await self.run(lambda: self.connection.execute(query).fetchall())

    async def run(self, work, *, urgent=False):
        """Work in the thread of the store, as a session does."""

        def with_access():
            with self.connection.guard.store_access():
                if not self.inner.is_open:
                    roll_back(self.connection)
                return work()

        return await self.database.thread.run(with_access, self.inner, urgent=urgent)
