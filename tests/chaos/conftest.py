"""Fixtures of the chaos tests, and the figures that are shown at the end.

test_kill.py            SIGKILL at random moments: nothing lost, little repeated (G5, G6, G7)
test_money.py           SIGKILL while money is moved between accounts: each transfer once (G8), or G7
test_pause.py           SIGSTOP, SIGCONT: current again soon, without a burst of polls
test_server_restart.py  a server that is killed under load and restarted
test_network.py         a proxy that cuts, delays, drops, refuses, half-closes and slows down
test_channels.py        each kind of push channel, with failing servers, networks and consumers
test_random_walk.py     all of these, in an order that the seed decides
test_replicas.py        replicas on one database: kills, stops, their network (G8, G10)
test_replica_databases.py  their database is killed, or replaced by a standby that lacks commits
test_replica_kills.py   their owner is killed while it moves money, or commits too late
test_takeover.py        a replica that is killed or hands over: how soon another one polls
test_workers.py         FastAPI with several workers: pushes to any of them, rolling restarts (chaos_workers.py)
test_no_orphans.py      no process outlives the tests

`make test` runs the tests that are not marked `long_form`: one with kills, one with money, some faults of the
network, the table of crashes, and tests that verdicts can fail. No verdict depends on the load of the machine, so
all of them may run beside other tests. Waits have a limit of minutes (`processes.GUARD`).

chaos_consumer.py       a consumer process, which records the messages that it handles
chaos_fork_server.py    forks many of them
chaos_listeners.py      a listener of each kind; watched.py: reports on it and on the feed to a test
kinds.py                for each kind the push server and the path of a push; chaos_hub.py: one server
chaos_bank.py           consumers that move money, a process for each life; bank_lives.py: all lives
chaos_writer.py         another program that writes to the same database
chaos_server.py         the reference server, which records its requests
journals.py             writes and reads the records
chaos_replica.py        a replica with a store in PostgreSQL; replica_processes.py: several, and their faults
database_history.py     what triggers of the database wrote; replica_verdicts.py: checks the guarantees by it alone
verdicts.py             checks the guarantees by the journals alone; test_verdicts.py: verdicts can fail
processes.py            starts, kills and stops processes
../support/forms.py     short or long form, and the seed
../support/tcp_proxy.py the proxy
"""

import contextlib
from functools import partial

import pytest

from tests.chaos.bank_lives import Banker, LivesOfABank
from tests.chaos.processes import ForkServer, Load, ServerProcess
from tests.chaos.replica_processes import Database, Replicas
from tests.support.forms import chance as chance_of


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "chaos":
            item.add_marker("chaos")


@pytest.fixture
def figures(record_property):
    """Function that adds a figure to the output at the end."""
    return partial(record_property, "figures")


@pytest.fixture
def chance(request):
    """Random numbers of this test, the same for the same seed."""
    return chance_of(request.node.name)


@pytest.fixture
def started(tmp_path):
    """Start servers, loads and consumers in the test's directory, and end them all."""
    things = []

    def start(kind, *args, **settings):
        thing = kind(*args, **settings) if kind is Load else kind(tmp_path, *args, **settings)
        things.append(thing)
        return thing

    yield start
    for thing in reversed(things):
        thing.close()


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory):
    """One fork server for all tests, since its imports take a while."""
    fork_server = ForkServer(tmp_path_factory.mktemp("fork_server"))
    yield fork_server
    fork_server.close()


@pytest.fixture(scope="session")
def banker(tmp_path_factory):
    """One banker for all tests, since its imports take a while."""
    banker = Banker(tmp_path_factory.mktemp("banker"))
    yield banker
    banker.close()


@pytest.fixture
def bank(tmp_path, banker):
    """Open a bank in the test's directory."""
    return partial(LivesOfABank, tmp_path, banker)


@pytest.fixture
def replicas(started, fork_server):
    """Start replicas with a database and a server; see `Replicas`."""
    with contextlib.ExitStack() as stack:

        def start(transfers, *, count, lease, takes=0.001, pooled=False):
            server, database = started(ServerProcess, page_size=100), started(Database)
            settings = {
                "count": count,
                "lease": lease,
                "transfers": transfers,
                "takes": takes,
                "pooled": pooled,
            }
            return Replicas(started, fork_server, stack, server, database, **settings)

        yield start
