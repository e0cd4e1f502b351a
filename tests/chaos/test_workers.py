"""A FastAPI service with several workers: a push to any of them reaches the handler, also while they restart.

There is no timer that polls. So a message is handled only because its push, or a later one, woke the owner.
"""

import contextlib
import json
import signal
import statistics
import threading
import time

import httpx
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
        self.server = server
        self.answers = []

    def push(self):
        """Send a push on a connection of its own. Return the worker that answered, and its mode."""
        answer = httpx.post(f"http://127.0.0.1:{self._port}/hooks/", json={}, timeout=GUARD)
        self.answers.append(answer.status_code)
        return answer.headers.get(ANSWERED_BY, "").split()

    def until_up(self):
        """Wait until all workers answer and one owns the name."""
        modes = {}

        def all_answer():
            with contextlib.suppress(httpx.TransportError):
                worker, mode = self.push()
                modes[worker] = mode
            return len(modes) == WORKERS and set(modes.values()) - {"standby"}

        until(all_answer, GUARD, f"all workers answer: {modes}")

    def at(self, number):
        """Return the time at which the handler was called for the message with this number, or None."""
        handled = self.journal.read().handled
        return next((line.entered for line in reversed(handled) if int(line.id) == number), None)

    def restart(self):
        """Replace all workers, one after the other."""
        before = self._log_path.read_text().count("Finished server process")
        self._child.signal(signal.SIGHUP)
        ended = lambda: self._log_path.read_text().count("Finished server process") >= before + WORKERS  # noqa: E731
        until(ended, GUARD, "all workers are replaced")

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
        service.database = database
        service.until_up()
        yield service


def test_a_push_to_any_worker_wakes_the_owner(service, figures):
    seconds, forwarded = [], 0
    for _ in range(form(20, 1000)):
        service.server.publish()
        sent = time.monotonic()
        _, mode = service.push()
        number = service.server.published
        until(lambda number=number: service.at(number), GUARD, "the push leads to a poll")
        seconds.append(service.at(number) - sent)
        forwarded += mode == "standby"
    service.stop()
    conclude(service)
    p99 = statistics.quantiles(seconds, n=100, method="inclusive")[98]
    median = statistics.median(seconds)
    figures(
        f"{len(seconds)} pushes, {forwarded} of them at a worker that stands by; until the handler: "
        f"median {median * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms"
    )
    assert forwarded > 0


@pytest.mark.long_form
def test_no_push_is_refused_while_workers_are_replaced(service, figures, chance):
    sent, failed, done = [], [], threading.Event()

    def load():
        while not done.wait(chance.uniform(0, 0.04)):
            service.server.publish()
            sent.append((service.server.published, time.monotonic()))
            try:
                service.push()
            except httpx.TransportError as error:
                failed.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(5):
            service.restart()
            elapse(chance.uniform(0, 1))
    finally:
        done.set()
        thread.join()
    service.server.publish()
    service.push()
    until(lambda: service.at(service.server.published), GUARD, "the last message is handled")
    service.stop()
    conclude(service)
    seconds = [service.at(number) - at for number, at in sent]
    p99 = statistics.quantiles(seconds, n=100, method="inclusive")[98]
    figures(
        f"{len(sent)} pushes during 5 rolling restarts, {len(failed)} got no answer; until the handler: median "
        f"{statistics.median(seconds) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms, worst {max(seconds) * 1000:.0f} ms"
    )
    assert failed == []


def conclude(service):
    """Check that no push was refused, and the history of the database."""
    assert set(service.answers) <= {200, 202, 204}
    history = read_history(service.database.server.conninfo)
    assert judge(history, service.server.ids(), lease=LEASE, transactional=False) == []
