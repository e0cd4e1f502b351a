"""Blocks of effects on a database with application tables, without consumer names."""

import contextlib
import functools
import pathlib
import sqlite3
import tempfile
import threading
from types import SimpleNamespace

from push_to_poll_client.stores._sqlite.connection import Guard, GuardedConnection
from push_to_poll_client.stores._sqlite.thread import Job, StoreThread
from push_to_poll_client.stores._sqlite.transaction import Effects, LockGaps, SharedFile, Transaction
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
    """Return the bytes of a new database; writing them is faster than creating one."""
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "template.db")
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(SCHEMA)
        return path.read_bytes()


def make(path):
    pathlib.Path(path).write_bytes(template())


def look(path, query):
    """Return the committed rows, as another program sees them."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute(query)]


class Planned(Exception):
    """Error that a handler raises."""


class Database(SharedFile):
    """A database file with application tables, shared by sessions."""

    def __init__(self, path):
        make(path)
        self.path = str(path)
        self.guard = Guard(self.path)
        self.connection = GuardedConnection(self.path, self.guard, timeout=0)
        self.thread = StoreThread("test")
        self.gaps = LockGaps()
        self._checkpoints = SimpleNamespace(before_commit=lambda: None, after_commit=lambda: None)
        self._in_place = ()

    def session(self):
        return Session(self)

    def stop(self):
        ended = threading.Event()
        self.thread.submit(Job(self._close, ended.set, urgent=True))
        assert ended.wait(GUARD)

    def _close(self):
        with self.access():
            self.connection.close()

    def notes(self):
        return look(self.path, "SELECT text FROM note ORDER BY id")[1:]


class Session:
    """Transaction of a session."""

    def __init__(self, database):
        self.database = database
        self.connection = database.connection
        self.inner = Transaction(database)
        self.gate = self.inner.gate
        self.check = lambda: None

    def transaction(self, *records):
        return Effects(
            self.inner,
            lambda: self.write(*records),
            check=self.run_check,
        )

    def run_check(self):
        self.check()

    def write(self, *keys):
        with self.database.transaction():
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
        """Run a function in the thread of the store, as a session does."""

        def with_access():
            with self.database.access():
                return work()

        return await self.database.thread.run(with_access, self.inner, urgent=urgent)
