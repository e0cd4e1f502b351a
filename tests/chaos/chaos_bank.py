"""Bank consumers that move money, each in its own process that is killed.

`python -m tests.chaos.chaos_bank` reads lines from standard input. Each line is a JSON object with the settings of
a life, for which it forks a process and writes the process id. All modules are imported, so the process begins at
once. At the next line it waits for the end of the process and writes its exit code. The feed is in the process,
the same for each life.
"""

import ctypes
import functools
import json
import os
import signal
import sqlite3
import sys
import time
from contextlib import closing

import anyio
from anyio._backends import _asyncio, _trio  # noqa: F401  # else each life imports them

from push_to_poll_client import Consumer, Message, Page, SQLiteStore
from tests.chaos.journals import Journal

PR_SET_PDEATHSIG = 1

ACCOUNTS = 20
DEPOSIT = 1_000_000


def transfer(number):
    """Return source account, target account, and amount."""
    return number % ACCOUNTS, number * 7 % ACCOUNTS, number * 31 % 997


def open_bank(path):
    """Create the application's tables. A transfer that is done twice has two rows."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE account(number INTEGER PRIMARY KEY, balance INTEGER NOT NULL)")
        connection.execute("CREATE TABLE transfer(number INTEGER NOT NULL, life INTEGER NOT NULL)")
        rows = [(number, DEPOSIT) for number in range(ACCOUNTS)]
        connection.executemany("INSERT INTO account VALUES (?, ?)", rows)


def crash():
    os.kill(os.getpid(), signal.SIGKILL)


class Transfers:
    """A feed of numbered transfers, with a cursor on each or on each page."""

    identity = "transfers"

    def __init__(self, count, *, by_message, page_size=50, read_ahead=True):
        self.read_ahead = read_ahead
        self._count = count
        self._by_message = by_message
        self._page_size = page_size

    async def fetch(self, request):
        await anyio.sleep(0.0002)
        first = int(request.cursor or 0) + 1
        last = min(first + self._page_size - 1, self._count)
        messages = [
            Message(str(number), cursor=str(number) if self._by_message else None)
            for number in range(first, last + 1)
        ]
        return Page(messages, cursor=str(last), next_page=str(last) if last < self._count else None)


class Bank(Consumer):
    """Record each step, and move money as `move` does."""

    def __init__(self, feed, *, journal, life, takes, crash, **settings):
        super().__init__(feed, **settings)
        self._journal, self._life, self._takes = journal, life, takes
        self._step, self._last = crash or (None, None)

    def reach(self, step, message):
        """Crash if this is the chosen step."""
        if (self._step, self._last) == (step, message.id):
            crash()

    def enter(self, message):
        self.reach("before", message)
        self._journal.write("enters", self._life, message.id, time.monotonic())

    def leave(self, message):
        self.reach("in", message)
        self._journal.write("leaves", self._life, message.id, time.monotonic())

    def move(self, message):
        """Move money in two steps; a kill may come in between."""
        payer, payee, amount = transfer(int(message.id))
        execute = self._store.connection.execute
        execute("UPDATE account SET balance = balance - ? WHERE number = ?", (amount, payer))
        execute("INSERT INTO transfer VALUES (?, ?)", (int(message.id), self._life))
        execute("UPDATE account SET balance = balance + ? WHERE number = ?", (amount, payee))


class Coroutine(Bank):
    async def process(self, message):
        self.enter(message)
        self.move(message)
        await anyio.sleep(self._takes)
        self.leave(message)


class Function(Bank):
    def process(self, message):
        self.enter(message)
        self.move(message)
        time.sleep(self._takes)
        self.leave(message)


class Batch(Bank):
    async def process_batch(self, messages):
        for message in messages:
            self.enter(message)
            self.move(message)
        await anyio.sleep(self._takes)
        for message in messages:
            self.leave(message)


class Elsewhere(Coroutine):
    """Have effects outside of the transaction: only the journal shows them."""

    def move(self, message):
        pass


class BatchElsewhere(Batch, Elsewhere):
    process = Consumer.process


HANDLERS = {handler.__name__: handler for handler in (Coroutine, Function, Batch, Elsewhere, BatchElsewhere)}


def crash_around_commit(bank, step, last):
    """Crash with the commit that records this message."""
    session = bank._parts.session
    commit, connection = session.commit, session._file.connection
    if hasattr(session, "transaction"):
        session._commit_effects = crashing_effects(session._commit_effects, connection, step, last)
        return

    async def crashing(**what):
        if not any(record.key == last for record in what["records"]):
            await commit(**what)
            return
        if step == "after":
            crash()
        if step == "in the commit":  # by a hook of SQLite
            connection.set_trace_callback(lambda sql: sql.startswith("COMMIT") and crash())
        await commit(**what)
        if step == "after the commit":
            crash()

    session.commit = crashing


def crashing_effects(commit, connection, step, last):
    """Commit effects and records of a handler, and crash with those of this message."""

    def crashing(records):
        if not any(record.key == last for record in records):
            commit(records)
            return
        if step == "after":
            crash()
        if step == "in the commit":
            connection.set_trace_callback(lambda sql: sql.startswith("COMMIT") and crash())
        commit(records)
        if step == "after the commit":
            crash()

    return crashing


async def live(*, handler, database, journal, life, takes, count, by_message, consumer, crash_at=None, feed=None):
    journal = Journal(journal)
    settings = {**consumer, "ordering_key": lambda message: int(message.id) % ACCOUNTS}
    bank = HANDLERS[handler](
        Transfers(count, by_message=by_message, **(feed or {})),
        store=SQLiteStore(database, transactional="Elsewhere" not in handler),
        journal=journal,
        life=life,
        takes=takes,
        crash=crash_at,
        **settings,
    )
    async with bank:
        if crash_at is not None:
            crash_around_commit(bank, *crash_at)
        while not (await bank.poll_now(timeout=None)).caught_up:
            pass


def fork(settings, backend):
    """Fork a life. The child does not return."""
    if child := os.fork():
        return child
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        anyio.run(functools.partial(live, **settings), backend=backend)
    except BaseException:  # noqa: BLE001  # whatever it is: it is shown, and the parent sees the code
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def main():
    while line := sys.stdin.readline():
        settings = json.loads(line)
        child = fork(settings["life"], settings["backend"])
        print(child, flush=True)  # noqa: T201  # to who started it
        sys.stdin.readline()  # until then no other process can get its id
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201  # to who started it


if __name__ == "__main__":
    main()
