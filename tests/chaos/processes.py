"""Processes of the chaos tests. Their standard input is a pipe of the parent, so none outlives the tests."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import MappingProxyType

import httpx
import psutil

from tests.chaos.journals import ConsumerJournal, ServerJournal, until
from tests.support.processes import has_ended, wait_for_end

ROOT = Path(__file__).parents[2]

GUARD = 120.0
"""Seconds after which an event counts as missing. It does not limit durations: no verdict depends on the speed
of the machine."""

NEVER = 3600.0
"""An interval in seconds that is longer than each test, for a timer that must not help."""


def reserved(port=0):
    """Bind a port without listening, so that no other process gets it while its server is down."""
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the server itself may bind it too
    reservation.bind(("127.0.0.1", port))
    return reservation


class Child:
    """One process."""

    def __init__(self, program, *arguments, log):
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.chaos.{program}", *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )

    def write(self, line):
        """Write a line to its standard input."""
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def line(self):
        """Return the next line of its output; empty if it has ended."""
        return self._process.stdout.readline()

    @property
    def output(self):
        """Its standard output."""
        return self._process.stdout

    def signal(self, number):
        self._process.send_signal(number)

    @property
    def pid(self):
        return self._process.pid

    @property
    def alive(self):
        return self._process.poll() is None

    def end(self, *, kill=True):
        """Kill it or wait for it, and close its pipes.

        Returns:
            Its exit code, or minus the signal that ended it.
        """
        if kill:
            self._process.kill()
        try:
            return self._process.wait(GUARD)
        finally:
            self._process.stdin.close()
            self._process.stdout.close()


class ForkServer:
    """The process that forks consumers, for tests with many of them."""

    def __init__(self, directory):
        self._log = (directory / "fork_server.log").open("ab")
        self._child = Child("chaos_fork_server", log=self._log)

    def ask(self, order):
        """Send an order; return the answer."""
        self._child.write(json.dumps(order))
        answer = self._child.line()
        assert answer, f"the process that forks consumers ended: {Path(self._log.name).read_text()[-2000:]}"
        return int(answer)

    def close(self):
        self._child.end()
        self._log.close()


class Forked:
    """A forked process, with the methods of a `Child`."""

    def __init__(self, fork_server, **order):
        self._fork_server = fork_server
        self.pid = fork_server.ask(order)
        self._process = psutil.Process(self.pid)  # no other process can get its id before the wait
        self._code = None

    def signal(self, number):
        os.kill(self.pid, number)

    @property
    def alive(self):
        return self._code is None and not has_ended(self._process)

    def end(self, *, kill=True):
        """See `Child.end`."""
        if self._code is None:
            if kill:
                self.signal(signal.SIGKILL)
            wait_for_end(self._process)
            self._code = self._fork_server.ask(self.pid)
        return self._code


class ServerProcess:
    """The reference server, killed and restarted on the same port with its messages.

    Attributes:
        published: Number of messages.
    """

    def __init__(self, directory, *, backlog=0, page_size=100):
        self.published = backlog
        self.journal = ServerJournal(directory / "server")
        self._directory = directory
        self._page_size = page_size
        self._log = (directory / "server.log").open("ab")
        self._publishing = threading.Lock()
        self._reservation = reserved()
        self._port = self._reservation.getsockname()[1]
        self._webhooks = {}
        self.start()

    def start(self):
        with self._publishing:
            path = self._directory / "server"
            self._child = Child("chaos_server", path, self._port, self.published, self._page_size, log=self._log)
            self.base_url = json.loads(self._child.line())["base_url"]
            self._http = httpx.Client(base_url=self.base_url, timeout=GUARD)
            for url, secret in self._webhooks.items():
                self._register(url, secret)

    def send_webhooks(self, url, secret):
        """Push to this URL too, also after restarts."""
        self._webhooks[url] = secret
        self._register(url, secret)

    def _register(self, url, secret):
        self._http.post("/webhooks", json={"url": url, "secret": secret}).raise_for_status()

    @property
    def url(self):
        return f"{self.base_url}/feed"

    @property
    def port(self):
        return self._port

    @property
    def pid(self):
        return self._child.pid

    def publish(self, count=1):
        """Publish this many messages. A server that is down has them after its restart."""
        with self._publishing:
            self.published += count
            if not self._http.is_closed:
                with contextlib.suppress(httpx.TransportError):  # it is killed meanwhile
                    self._http.post("/publish", json=count).raise_for_status()

    def order(self, **faults):
        """Set faults of the server, until it is killed."""
        self._http.post("/faults", json=faults).raise_for_status()

    def stats(self):
        return self._http.get("/stats").json()

    def ids(self):
        """Return the ids in the feed, read by plain HTTP."""
        ids = []
        while page := self._http.get("/feed", params={"lastEventId": ids[-1]} if ids else {}).json():
            ids += [event["id"] for event in page]
        return ids

    def kill(self):
        self._child.end()
        with self._publishing:
            self._http.close()

    def close(self):
        self.kill()
        self._reservation.close()
        self._log.close()


class Load:
    """Publish in the background at a varying rate, until closed.

    Args:
        server: The server.
        seed: Seed of the random numbers.
        rate: Messages a second, about.
    """

    def __init__(self, server, *, seed, rate):
        self._server = server
        self._random = random.Random(seed)  # noqa: S311
        self._rate = rate
        self._publishing = threading.Lock()
        self._paused = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        pause = 0.0
        while not self._closed.wait(pause):
            pause = self._random.uniform(0.01, 0.1)
            count = round(self._random.expovariate(1.0) * self._rate * pause)
            with self._publishing:
                if count and not self._paused:
                    self._server.publish(count)

    def pause(self):
        """Publish nothing more after this returns."""
        with self._publishing:
            self._paused = True

    def resume(self):
        with self._publishing:
            self._paused = False

    def close(self):
        self._closed.set()
        self._thread.join()


class ConsumerProcess:
    """`chaos_consumer.py`, restarted again and again on the same state.

    Args:
        directory: For the state, the journal and the log.
        name: Identifies a consumer within a test.
        url: URL of the feed.
        push: Kind and settings of each push channel, see `chaos_listeners.py`.
        takes: Seconds that the handler takes for a message.
        answer_within: Seconds for one answer of the feed.
        haste: Factor by which delays after failures are shortened.
        fork_server: Forks it; `None` to start a program.
        program: The module in which it runs.
        database: Path of the state, for `chaos_replica` arguments of its store; `None` for a file of its own.
        more: More settings for the program.
        consumer: Arguments for `Consumer`.

    Attributes:
        life: Number of the current life, from 1.
        killed: The killed lives.
    """

    def __init__(
        self,
        directory,
        *,
        name="consumer",
        url,
        push,
        takes=0.0,
        answer_within=10.0,
        haste=1.0,
        fork_server=None,
        program="chaos_consumer",
        database=None,
        more=MappingProxyType({}),
        **consumer,
    ):
        self._fork_server = fork_server
        self._program = program
        self.name = name
        self.life = 0
        self.killed = set()
        self.journal = ConsumerJournal(directory / name, name)
        self._log = (directory / f"{name}.log").open("ab")
        self._settings = {
            "url": url,
            "push": push,
            "database": database or str(directory / f"{name}.db"),
            "journal": str(directory / name),
            "takes": takes,
            "answer_within": answer_within,
            "haste": haste,
            "consumer": {"commit_interval": 0.05, **consumer},
            **more,
        }
        self._child = None

    @property
    def client(self):
        """Name of the current life for the server."""
        return f"{self.name}-{self.life}"

    def start(self, backend="asyncio"):
        self.life += 1
        settings = {**self._settings, "life": self.life, "client": self.client}
        if self._fork_server is None:
            self._child = Child(self._program, json.dumps(settings), backend, log=self._log)
        else:
            order = {"program": self._program, "settings": settings, "backend": backend, "log": self._log.name}
            self._child = Forked(self._fork_server, **order)

    def kill(self):
        """Send SIGKILL. A process that has ended before does not count as killed."""
        code = self._child.end()
        if code == -signal.SIGKILL or (code == -signal.SIGTERM and self.life not in self.journal.read().begun):
            self.killed.add(self.life)
        elif code:
            raise AssertionError(f"{self.client} crashed with {code}: {self.last_words}")

    @property
    def last_words(self):
        """Return the end of its log."""
        return Path(self._log.name).read_text()[-2000:]

    def terminate(self):
        """Send SIGTERM: it ends by itself, a little later."""
        self._child.signal(signal.SIGTERM)

    def stop(self):
        """Let it end by itself, after it can receive SIGTERM.

        Raises:
            AssertionError: It did not end well.
        """
        until(lambda: self.has_begun() or not self.alive, GUARD, f"{self.client} begins")
        self.terminate()
        if code := self._child.end(kill=False):
            raise AssertionError(f"{self.client} ended with {code}: {self.last_words}")

    def pause(self):
        """Send SIGSTOP: the process stands still while time passes."""
        self._child.signal(signal.SIGSTOP)

    def resume(self):
        """Send SIGCONT."""
        self._child.signal(signal.SIGCONT)

    @property
    def pid(self):
        return self._child.pid

    @property
    def alive(self):
        return self._child.alive

    def has_begun(self):
        """Return True if the current life has reached `run()`."""
        return self.life in self.journal.read().begun

    def until_current(self, server, timeout=GUARD):
        """Wait until all messages published by now are handled."""
        published = server.published
        until(lambda: len(self.journal.read().ids) >= published, timeout, f"{self.client} is current")

    def close(self):
        """End the process, whatever its state."""
        if self._child is not None:
            self._child.end()
        self._log.close()
