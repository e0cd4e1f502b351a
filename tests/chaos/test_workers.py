"""A FastAPI service with several workers: a push to any of them reaches the handler, also while they restart.

There is no timer that polls. So a message is handled only because its push, or a later one, woke the owner.
"""

import contextlib
import http.client
import json
import os
import signal
import statistics
import threading
import time
from itertools import pairwise

import pytest

from tests.chaos.chaos_workers import ANSWERED_BY, WORKERS
from tests.chaos.database_history import read_history
from tests.chaos.journals import ConsumerJournal, elapse, until
from tests.chaos.processes import GUARD, NEVER, Child, ServerProcess, reserved
from tests.chaos.replica_processes import Database
from tests.chaos.replica_verdicts import judge
from tests.support.forms import form

LEASE = 60.0
"""Seconds. No worker is killed, so none waits for the end of a lease."""


NO_ANSWER = (OSError, http.client.HTTPException)


class Service:
    """The service, and the senders of its pushes."""

    def __init__(self, directory, server, database, monkeypatch):
        self._reservation = reserved()
        self._port = self._reservation.getsockname()[1]
        settings = {
            "feed": server.url,
            "store": {"conninfo": database.server.conninfo, "lease": LEASE},
            "journal": str(directory / "journal"),
            "fallback_interval": NEVER,
        }
        monkeypatch.setenv("SETTINGS", json.dumps(settings))
        self.journal = ConsumerJournal(directory / "journal")
        self._log_path = directory / "service.log"
        self._log = self._log_path.open("ab")
        self._child = Child("chaos_workers", self._port, log=self._log)
        self.server, self.database = server, database
        self.answers = []

    def push(self):
        """Send a push on a connection of its own. Return the worker that answered, and its mode."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=GUARD)) as connection:
            connection.request("POST", "/hooks/", "{}")
            answer = connection.getresponse()
            answer.read()
        self.answers.append(answer.status)
        return answer.getheader(ANSWERED_BY, "").split()

    def until_up(self):
        """Wait until all workers answer and one owns the name."""
        modes = {}

        def all_answer():
            with contextlib.suppress(*NO_ANSWER):
                worker, mode = self.push()
                modes[worker] = mode
            return len(modes) == WORKERS and set(modes.values()) - {"standby"}

        until(all_answer, GUARD, f"all workers answer: {modes}")

    def at(self, number):
        """Return the time at which the handler was called for the message with this number, or None."""
        handled = self.journal.read().handled
        return next((line.entered for line in reversed(handled) if int(line.id) == number), None)

    def restart(self):
        """Replace all workers, each after its new one has begun."""
        with self._until_logged("Finished server process", WORKERS):
            self._child.signal(signal.SIGHUP)

    def replace_owner(self):
        """Stop the worker that owns the name, and wait until the supervisor has started another one."""
        owner = until(self.database.owner, GUARD, "a worker owns the name")
        with self._until_logged("Application startup complete", 1):
            os.kill(int(owner.rpartition(":")[2]), signal.SIGTERM)

    @contextlib.contextmanager
    def _until_logged(self, line, count):
        before = self._log_path.read_text().count(line)
        yield
        logged = lambda: self._log_path.read_text().count(line) >= before + count  # noqa: E731
        until(logged, GUARD, f"{line!r} is logged {count} times")

    def pauses(self):
        """Return the seconds between the last message of each owner and the first one of the next owner."""
        calls = sorted(self.journal.read().handled, key=lambda line: line.entered)
        return [after.entered - before.entered for before, after in pairwise(calls) if before.life != after.life]

    def stop(self):
        self._child.signal(signal.SIGTERM)
        assert self._child.end(kill=False) in {0, -signal.SIGTERM}, self._log_path.read_text()[-2000:]

    def close(self):
        self._child.end()
        self._log.close()
        self._reservation.close()


@pytest.fixture
def service(tmp_path, started, monkeypatch):
    server, database = started(ServerProcess), started(Database)
    with contextlib.closing(Service(tmp_path, server, database, monkeypatch)) as service:
        service.until_up()
        yield service


def test_a_push_to_any_worker_wakes_the_owner(service, figures):
    seconds = {"the owner": [], "another worker": []}

    def push_and_wait():
        service.server.publish()
        number, sent = service.server.published, time.monotonic()
        _, mode = service.push()
        until(lambda: service.at(number), GUARD, "the push leads to a poll")
        where = "another worker" if mode == "standby" else "the owner"
        seconds[where].append(service.at(number) - sent)

    count = form(20, 1000)
    while len(seconds["the owner"]) + len(seconds["another worker"]) < count or not all(seconds.values()):
        push_and_wait()
        assert service.server.published < 10 * count, "all pushes reached the same worker"
    for where, some in seconds.items():
        figures(f"pushes at {where}, until the handler: {described(some)}")
    service.replace_owner()
    for _ in range(form(5, 100)):
        push_and_wait()
    service.stop()
    conclude(service)


@pytest.mark.long_form
def test_no_push_is_refused_while_workers_are_replaced(service, figures, chance):
    sent, failed, done = [], [], threading.Event()

    def load():
        while not done.wait(chance.uniform(0, 0.04)):
            service.server.publish()
            sent.append((service.server.published, time.monotonic()))
            try:
                service.push()
            except NO_ANSWER as error:
                failed.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(5):
            service.restart()
            elapse(chance.uniform(0, 1))
            service.replace_owner()
            elapse(chance.uniform(0, 1))
    finally:
        done.set()
        thread.join()
    service.server.publish()
    service.push()
    until(lambda: service.at(service.server.published), GUARD, "the last message is handled")
    service.stop()
    conclude(service)
    at = {int(line.id): line.entered for line in service.journal.read().handled}
    seconds = [at[number] - began for number, began in sent]
    figures(
        f"5 rolling restarts and 5 stops of the owner: pushes {described(seconds)} until the handler, "
        f"{len(failed)} without an answer; from an owner's last message to the next owner's first: "
        f"{described(service.pauses())}"
    )
    assert failed == []


def described(seconds):
    p99 = statistics.quantiles(seconds, n=100, method="inclusive")[98] if len(seconds) > 1 else seconds[0]
    median, worst = statistics.median(seconds), max(seconds)
    return (
        f"{len(seconds)} times, median {median * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, worst {worst * 1e3:.0f} ms"
    )


def conclude(service):
    """Check that no push was refused, and the history of the database."""
    assert set(service.answers) <= {200, 202, 204}
    history = read_history(service.database.server.conninfo)
    assert judge(history, service.server.ids(), lease=LEASE, transactional=False) == []
