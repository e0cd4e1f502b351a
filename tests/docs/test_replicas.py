"""The programs of docs/replicas.md run, and its figures are those of the code."""

import inspect
import os
import queue
import re
import subprocess
import sys
import threading
from pathlib import Path

import anyio
import pytest

from push_to_poll_client import Consumer, HTTPFeed
from push_to_poll_client.stores._postgres import lease
from push_to_poll_client.stores.postgres import PostgresStore
from push_to_poll_client.testing import serve_in_thread
from tests.support.forms import GUARD
from tests.support.postgres_server import shared_server

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "replicas.md").read_text()
PROGRAM, POOLED = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


class Replica:
    """The documented program in a process of its own."""

    def __init__(self, program):
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self._lines.put(line.strip())

    def until(self, text):
        """Wait for a line with this text."""
        seen = []
        while not seen or text not in seen[-1]:
            try:
                seen.append(self._lines.get(timeout=GUARD))
            except queue.Empty:
                raise AssertionError(f"{text!r} is not in {seen}") from None

    def close(self):
        self.process.kill()
        self.process.wait(GUARD)
        self._reader.join(GUARD)
        self.process.stdout.close()


@pytest.fixture
def started(request):
    """Function that starts a replica."""
    database, replicas = shared_server(request.config), []
    with serve_in_thread(backlog=3) as server:
        program = PROGRAM.replace("https://shop.example/orders", server.url)
        program = program.replace("postgresql://me@db.example/shop", database.conninfo)

        def start():
            replicas.append(Replica(program))
            return replicas[-1]

        start.server = server
        yield start
        for replica in replicas:
            replica.close()
    database.execute("DROP SCHEMA IF EXISTS push_to_poll CASCADE")


@pytest.mark.slow
def test_the_second_copy_of_the_documented_program_stands_by_and_continues(started):
    first = started()
    first.until(f"{3:012}")
    second = started()
    second.until("the name 'orders' has the owner")
    started.server.publish(1)  # the first one polls again in a minute
    first.process.terminate()
    assert first.process.wait(GUARD) == 0
    second.until(f"{4:012}")


def test_the_documented_rights_are_enough_for_a_service_that_creates_nothing(request):
    (grants,) = re.findall(r"^```sql\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    database, seen = shared_server(request.config), []
    with serve_in_thread(backlog=3) as server:

        def consumer(store):
            return Consumer(HTTPFeed(server.url), store=store, name="orders", process=seen.append)

        try:
            anyio.run(consumer(PostgresStore(database.conninfo)).poll_now)
            database.execute(f"CREATE ROLE app LOGIN; {grants}")
            server.publish(1)
            as_app = database.conninfo.replace("//me@", "//app@")
            anyio.run(consumer(PostgresStore(as_app, migrate=False)).catch_up)
        finally:
            database.execute("DROP SCHEMA IF EXISTS push_to_poll CASCADE; DROP ROLE IF EXISTS app")
    assert [message.id for message in seen] == [f"{number:012}" for number in range(1, 5)]


def test_the_documented_store_behind_a_pooler_has_two_addresses():
    names = {}
    exec(compile(POOLED, "replicas.md", "exec"), names)  # noqa: S102  # it is ours
    assert "pgbouncer.example:6432" in repr(names["store"])


def test_the_documented_settings_have_the_defaults_of_the_store():
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", PAGE.split("\n## Settings\n")[1], re.MULTILINE)
    named = {name: default for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    arguments = inspect.signature(PostgresStore).parameters
    assert named.keys() == arguments.keys() - {"conninfo"}
    assert named["lease"] == f"{arguments['lease'].default:g} s"
    assert named["max_connections"] == str(arguments["max_connections"].default)
    assert named["schema"] == f"`{arguments['schema'].default}`"
    assert f"renewing the lease for {lease.MAX_SILENCE:g} s" in PAGE
