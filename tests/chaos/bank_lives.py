"""Lives of a bank: consumers in one process after the other, on one database, some killed."""

import json
import os
import select
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.chaos.chaos_bank import ACCOUNTS, DEPOSIT, open_bank, transfer
from tests.chaos.journals import ConsumerJournal, elapse
from tests.chaos.processes import GUARD, Child


class Banker:
    """The process that forks a process for each life of each bank."""

    def __init__(self, directory):
        self._log = (directory / "bank.log").open("ab")
        self._child = Child("chaos_bank", log=self._log)

    def write(self, line):
        self._child.write(line)

    def line(self, journal=None):
        """Return the next line. Wait as long as the `journal` file of the life grows."""
        size = None
        while not select.select([self._child.output], [], [], GUARD)[0]:
            before, size = size, journal.stat().st_size if journal is not None and journal.exists() else None
            assert size != before, f"it says nothing and does nothing: {self.last_words}"
        return self._child.line()

    @property
    def last_words(self):
        return Path(self._log.name).read_text()[-2000:]

    def close(self):
        self._child.end()
        self._log.close()


class LivesOfABank:
    """One consumer over all its lives, on one database.

    Attributes:
        killed: The killed lives.
        life: Number of the current life, from 1.
    """

    def __init__(self, directory, banker, **settings):
        self.killed = set()
        self.life = 0
        self.database = directory / "bank.db"
        self.journal = ConsumerJournal(directory / "journal")
        self._written = directory / "journal"
        self._settings = {**settings, "database": str(self.database), "journal": str(self._written)}
        self._banker = banker
        if "Elsewhere" not in settings["handler"]:
            open_bank(self.database)

    def live(self, backend, *, until=None, crash=None):
        """Run one life. Return True if it reached the end of the feed.

        Args:
            backend: Name of the event loop.
            until: Seconds after which it is killed; `None` for no kill from outside.
            crash: The step and the message at which it kills itself; `None` for no crash.
        """
        self.life += 1
        settings = {"life": {**self._settings, "life": self.life, "crash_at": crash}, "backend": backend}
        self._banker.write(json.dumps(settings))
        process = int(self._banker.line())
        if until is not None:
            elapse(until)
            os.kill(process, signal.SIGKILL)
        self._banker.write("wait for it")
        code = int(self._banker.line(self._written))
        assert code in {0, -signal.SIGKILL}, self._banker.last_words
        if code:
            self.killed.add(self.life)
        return not code

    def query(self, sql):
        with closing(sqlite3.connect(self.database)) as connection:
            return connection.execute(sql).fetchall()


def balances(count):
    """Return the balances after each transfer was done once."""
    owned = dict.fromkeys(range(ACCOUNTS), DEPOSIT)
    for number in range(1, count + 1):
        payer, payee, amount = transfer(number)
        owned[payer] -= amount
        owned[payee] += amount
    return owned
