"""The program for several workers in docs/deployment.md runs under uvicorn, with two workers and PostgreSQL."""

import base64
import contextlib
import os
import queue
import re
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from push_to_poll_client.testing import serve_in_thread
from tests.support.forms import GUARD
from tests.support.postgres_server import free_port, shared_server
from tests.support.signing import standard_webhook

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deployment.md").read_text().split("### Several workers\n", 1)[1]
(PROGRAM,) = re.findall(r"^```python\n(.*?)^```$", PAGE.split("\n## ", 1)[0], re.MULTILINE | re.DOTALL)
(COMMAND,) = re.findall(r"^uvicorn (.*)$", PAGE, re.MULTILINE)
KEY = base64.b64decode("cHJhY3RpY2U=")


class Workers:
    """The documented command, with two workers. They print the ids of messages."""

    def __init__(self, folder):
        self._port, self._clients, self._lines = free_port(), [], queue.Queue()
        words = shlex.split(COMMAND)
        words[words.index("--port") + 1] = str(self._port)
        words[words.index("--workers") + 1] = "2"
        self._process = subprocess.Popen(
            # The default of 5 s is too short for the imports on a busy machine.
            [sys.executable, "-m", "uvicorn", *words, "--timeout-worker-healthcheck", "20"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            if line.strip().isdecimal():  # not a line of uvicorn about a request
                self._lines.put(line.strip())

    def printed(self, count):
        """Wait for so many ids, and return them."""
        return [self._lines.get(timeout=GUARD) for _ in range(count)]

    def client(self, *modes):
        """Return a client whose connection leads to a worker in one of these modes."""
        until = time.monotonic() + 2 * GUARD
        while time.monotonic() < until:
            client = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=GUARD)
            self._clients.append(client)
            with contextlib.suppress(httpx.TransportError):  # the workers do not listen yet
                if client.get("/health").json()["mode"] in modes:
                    return client
            time.sleep(0.01)
        raise TimeoutError(f"no worker is {modes}, the command ended with {self._process.poll()}")

    def close(self):
        """Stop it as a supervisor does. Return its exit code."""
        for client in self._clients:
            client.close()
        self._process.terminate()
        try:
            return self._process.wait(GUARD)
        finally:
            self._process.kill()
            self._reader.join(GUARD)
            self._process.stdout.close()


@pytest.fixture
def server():
    with serve_in_thread(backlog=3) as server:
        yield server


@pytest.fixture
def workers(server, request, tmp_path):
    database = shared_server(request.config)
    program = PROGRAM
    for documented, here in (
        ("https://shop.example/orders", server.url),
        ("postgresql://me@db.example/shop", database.conninfo),
        ('name="orders",', 'name="orders", fallback_interval=3600,'),  # no timer polls
    ):
        assert documented in program
        program = program.replace(documented, here)
    (tmp_path / "app.py").write_text(program)
    workers = Workers(tmp_path)
    yield workers
    workers.close()
    database.execute("DROP SCHEMA IF EXISTS push_to_poll CASCADE")


def test_a_webhook_at_any_worker_wakes_the_owner(server, workers):
    owner, other = workers.client("idle", "pending", "polling"), workers.client("standby")
    assert workers.printed(3) == [f"{n:012}" for n in (1, 2, 3)]
    for client in (other, owner, other):
        ids = server.publish(1)
        assert client.post("/hooks/", **standard_webhook(KEY, ids[0])).status_code == 200
        assert workers.printed(1) == ids
