"""Replicas of one consumer as processes on one database, each behind its own proxies, and random faults."""

import contextlib
import time
from collections import Counter
from dataclasses import dataclass

import psycopg
import pytest

from push_to_poll_client.stores._postgres.notices import Kind, Notice, digest_of
from tests.chaos.database_history import STORE, prepare_database, read_history
from tests.chaos.journals import elapse, until
from tests.chaos.processes import GUARD, ConsumerProcess
from tests.chaos.replica_verdicts import judge
from tests.chaos.verdicts import lost
from tests.support.forms import form
from tests.support.postgres_server import PostgresServer
from tests.support.tcp_proxy import TCPProxy
from tests.support.transaction_pooler import TransactionPooler

LEASE = form(1.0, 2.0)

HANDLERS = {"effects elsewhere": None, "coroutine": "coroutine", "function": "function"}


def handlers(*, short, long=tuple(HANDLERS)):
    """Parametrize a test by the kind of handler: one in the short form."""
    kinds = [pytest.param(HANDLERS[k], id=k, marks=() if k == short else pytest.mark.long_form) for k in long]
    return pytest.mark.parametrize("transfers", kinds)


HASTE = 10.0
"""Factor that shortens delays after failures."""

DATABASE = ("synchronous_commit=on", "autovacuum=on", "max_connections=100")
"""Settings of the server: a commit that was answered survives a kill."""

NAME = "chaos"
"""Identity of the feed and name of the consumer."""

OWNER = "SELECT convert_from(instance, 'UTF8') FROM push_to_poll.lease WHERE owner IS NOT NULL AND until > now()"


class Database:
    """The database with the tables of the store, of the application, and of the history.

    Attributes:
        server: The primary server.
        standby: Its standby, or None.
    """

    standby = None

    def __init__(self, directory):
        self.server = PostgresServer(settings=DATABASE)
        self.server.start()
        prepare_database(self.server.conninfo)

    def start_standby(self):
        """Return a standby that follows the server."""
        self.standby = self.server.replica()
        self.standby.start()
        return self.standby

    def follow_standby(self):
        """Use the standby in place of the server, which has ended."""
        self.server.close()
        self.server, self.standby = self.standby, None

    def close(self):
        for server in (self.server, self.standby):
            if server is not None:
                server.close()

    def one(self, query):
        """Return the first column of the only row; `None` without a row."""
        with psycopg.connect(self.server.conninfo, autocommit=True) as connection:
            row = connection.execute(query).fetchone()
        return row and row[0]

    def owner(self):
        """Return the instance that owns the name; `None` without one, or if the server cannot tell."""
        with contextlib.suppress(psycopg.OperationalError):
            return self.one(OWNER)
        return None

    def place(self):
        """Return the number of the saved cursor."""
        return int(self.one("SELECT cursor FROM push_to_poll.consumer") or b"0")


@dataclass
class Replica:
    """One process, and the proxies before its store and its feed."""

    process: ConsumerProcess
    store: TCPProxy
    feed: TCPProxy
    backend: str

    @property
    def name(self):
        return self.process.name

    def start(self):
        self.process.start(self.backend)

    def handled(self):
        """Return the number of messages that it has begun."""
        return len(self.process.journal.read().handled)


class Replicas:
    """All replicas, the feed's server and the database.

    Args:
        started: The fixture.
        fork_server: The fixture.
        stack: Closes the proxies.
        server: Server of the feed.
        database: The `Database`.
        count: Number of replicas.
        lease: Seconds.
        transfers: As for `chaos_replica.main`. Coroutines need asyncio.
        takes: Seconds that the handler takes for a message.
        pooled: True for a pooler in transaction mode before the database.
    """

    def __init__(
        self, started, fork_server, stack, server, database, *, count, lease, transfers, takes, pooled=False
    ):
        port = database.server.port
        if pooled:
            port = stack.enter_context(TransactionPooler(port, size=8)).port
        self.server, self.database, self.lease, self.transfers = server, database, lease, transfers
        self.all = []
        for number in range(count):
            store, feed = (stack.enter_context(TCPProxy(port)) for port in (port, server.port))
            name = f"replica{number}"
            process = started(
                ConsumerProcess,
                name=name,
                url=f"http://127.0.0.1:{feed.port}/feed",
                push=[("websocket", {"port": feed.port})],
                takes=takes,
                answer_within=1.0,
                haste=HASTE,
                fork_server=fork_server,
                program="chaos_replica",
                database={
                    "conninfo": f"postgresql://me@127.0.0.1:{store.port}/postgres",
                    "lease": lease,
                    "instance": name,
                },
                more={"transfers": transfers, "identity": NAME},
                fallback_interval=1.0,
                degraded_interval=0.5,
                rate=20,
            )
            trio = number % 2 and transfers != "coroutine"
            self.all.append(Replica(process, store, feed, "trio" if trio else "asyncio"))
        for replica in self.all:
            replica.start()

    def owner(self):
        """Return the replica that owns the name; `None` without one."""
        name = self.database.owner()
        return next((replica for replica in self.all if replica.name == name), None)

    def until(self, happened, what):
        """Wait while all replicas run."""

        def checked():
            for replica in self.all:
                assert replica.process.alive, f"{replica.name} ended by itself: {replica.process.last_words}"
            return happened()

        return until(checked, GUARD, what)

    def until_one_handles(self):
        """Return the next replica that begins a message. A killed one owns the name without handling any."""
        before = {replica.name: replica.handled() for replica in self.all}

        def one():
            return next((replica for replica in self.all if replica.handled() > before[replica.name]), None)

        return self.until(one, "a replica handles a message")

    def until_owned(self):
        return until(self.owner, GUARD, f"a replica owns the name; {self.last_words}")

    def next_poll(self, former, since):
        """Return the time at which a replica other than `former` began its first poll since then."""

        def first():
            others = [replica for replica in self.all if replica is not former]
            fetches = [fetch.at for other in others for fetch in other.process.journal.read().fetches]
            return min((at for at in fetches if at > since), default=None)

        return until(first, GUARD, f"another replica polls; {self.last_words}")

    def request_handover(self):
        """Ask the owner to hand over, as `push-to-poll release` does."""
        self.database.server.execute("UPDATE push_to_poll.lease SET wanted = true WHERE owner IS NOT NULL")
        self.database.server.notify(STORE, Notice(Kind.WANTED, digest_of(NAME)).encode())

    def lead_to(self, server):
        """Lead the connections to the store to another server, and cut the open ones."""
        for replica in self.all:
            replica.store.target = server.port
            replica.store.cut()

    def claims(self):
        """Return the number of claims."""
        return self.database.one("SELECT token FROM push_to_poll.consumer") or 0

    def until_current(self):
        """Wait until all published messages are processed, as long as more of them are."""
        while (place := self.database.place()) < self.server.published:
            until(
                lambda place=place: self.database.place() > place,
                GUARD,
                f"more than {place} of {self.server.published} messages are processed",
            )

    @property
    def last_words(self):
        return "\n".join(f"{replica.name}: {replica.process.last_words}" for replica in self.all)

    def end(self):
        """Publish one more message, let an owner process all, and let the replicas end by themselves."""
        self.server.publish()
        try:
            self.until_current()
        except TimeoutError as error:
            error.add_note(self.last_words)
            raise
        for replica in self.all:
            replica.process.stop()

    def judge(self):
        """Check by the history of the database. Return figures, and count `repeated` messages."""
        ids, history = self.server.ids(), read_history(self.database.server.conninfo)
        assert len(ids) == self.server.published
        wrong = judge(history, ids, lease=self.lease, transactional=self.transfers is not None)
        assert wrong == [], f"{len(wrong)} faults, the first: {wrong[:10]}"
        handled = [line for replica in self.all for line in replica.process.journal.read().handled]
        if self.transfers is None:
            assert lost(ids, handled) == []
        self.repeated = len(handled) - len({line.id for line in handled})
        return (
            f"{len(ids)} published, each recorded once; {history.changes[-1].token} claims, "
            f"{history.changes[-1].commits} commits; {self.repeated} messages were handled again"
        )


class Faults:
    """Faults at random, several at a time, at most one of each part of each replica.

    Args:
        replicas: The `Replicas`.
        chance: Random numbers.
        database: True to stop and kill the database too.
        network: True for faults of the proxies.
    """

    def __init__(self, replicas, chance, *, database=False, network=True):
        self.counts = Counter()
        self._replicas, self._chance = replicas, chance
        self._running = {}  # part: when it ends, and how
        self._kinds = {"process": 3}
        if network:
            self._kinds |= {"store": 4, "feed": 2, "handover": 1}
        self._last_database = time.monotonic()
        self._database = database

    def __str__(self):
        return ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))

    def run(self, seconds):
        """Begin and end faults for so long, then end all."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self._end(time.monotonic())
            self._begin()
            elapse(self._chance.uniform(0, self._replicas.lease / 2))
        self._end(float("inf"))

    def _begin(self):
        if self._database and "database" not in self._running:
            if time.monotonic() - self._last_database > self._replicas.lease * self._chance.uniform(1, 3):
                self._break_database()
            return
        owner = self._replicas.owner()
        victim = owner if owner and self._chance.random() < 0.6 else self._chance.choice(self._replicas.all)
        [kind] = self._chance.choices(list(self._kinds), weights=list(self._kinds.values()))
        if (victim.name, kind) not in self._running:
            undo = getattr(self, f"_break_{kind}")(victim)
            self._running[victim.name, kind] = (time.monotonic() + self._length(), undo)

    def _length(self):
        """Return seconds; in one of two cases longer than a lease."""
        return self._replicas.lease * self._chance.choice([self._chance.uniform(0, 1), self._chance.uniform(1, 3)])

    def _end(self, now):
        for part, (ends, undo) in list(self._running.items()):
            if ends <= now:
                del self._running[part]
                undo()

    def _break_process(self, victim):
        assert victim.process.alive, f"{victim.name} ended by itself: {victim.process.last_words}"
        how = self._chance.choice(["kill", "pause", "terminate"])
        self.counts[how] += 1
        getattr(victim.process, how)()
        if how == "pause":
            return victim.process.resume

        def start():
            victim.process.kill()
            victim.start()

        return victim.start if how == "kill" else start

    def _break_store(self, victim):
        return self._break_proxy(victim.store, "store")

    def _break_feed(self, victim):
        return self._break_proxy(victim.feed, "feed")

    def _break_proxy(self, proxy, name):
        chance = self._chance
        faults = {
            "blackhole": proxy.blackhole,
            "answers lost": lambda: proxy.blackhole(up=False),
            "requests lost": lambda: proxy.blackhole(down=False),
            "refuse": lambda: (proxy.refuse(), proxy.cut(rst=True)),
            "delay": lambda: proxy.delay(chance.uniform(0, self._replicas.lease / 5)),
            "late": lambda: proxy.delay(self._replicas.lease * chance.uniform(1, 2)),  # after a claim of another
            "cut": lambda: proxy.cut(rst=chance.random() < 0.5),
            "cut after": lambda: proxy.cut_after(chance.randrange(300), rst=chance.random() < 0.5),
            "throttle": lambda: proxy.throttle(chance.choice([10, 100, 1000])),
            "half close": proxy.half_close,
        }
        fault = chance.choice(list(faults))
        self.counts[f"{name}: {fault}"] += 1
        faults[fault]()
        return proxy.heal

    def _break_handover(self, victim):
        self.counts["handover"] += 1
        with contextlib.suppress(psycopg.OperationalError):  # it is down
            self._replicas.request_handover()
        return lambda: None

    def _break_database(self):
        how = self._chance.choice(["stop", "kill"])
        self.counts[f"database: {how}"] += 1
        getattr(self._replicas.database.server, how)()

        def start():
            self._replicas.database.server.start()
            self._last_database = time.monotonic()

        self._running["database"] = (time.monotonic() + self._length() / 2, start)
