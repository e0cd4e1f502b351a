"""Under fire: what is here, and the figures that are shown at the end.

test_kill.py            SIGKILL at random moments: nothing lost, little done again (G5, G6, G7)
test_money.py           SIGKILL while money is moved between accounts: each transfer once (G8), or G7
test_pause.py           SIGSTOP, SIGCONT: current again soon, no burst of polls
test_server_restart.py  a server that is killed under load and comes back
test_network.py         a proxy that cuts, delays, swallows, refuses, half-closes and trickles
test_channels.py        each kind of push channel, and servers, network and consumers that fail
test_random_walk.py     all of it, in an order that the seed decides
test_no_orphans.py      no process outlives the tests

`make test` runs those that are not marked `long_form`: one with kills, one with money, some faults of the network,
what a crash repeats, and that verdicts can fail. No verdict depends on how busy the machine is, so all of them may
run beside other tests; what they wait for is given minutes (`processes.GUARD`).

chaos_consumer.py       the consumer, a process that writes down what it handles
chaos_fork_server.py    forks many of them
chaos_listeners.py      a listener of each kind; watched.py: what a test hears of it and of the feed
kinds.py                for each kind who pushes, on what way; chaos_hub.py: one of them
chaos_bank.py           the consumers that move money, a process for each life; bank_lives.py: all of them
chaos_writer.py         another program that writes to the same database
chaos_server.py         the reference server, which writes down what it is asked
journals.py             how that is written and read
verdicts.py             whether the guarantees held, judged by the journals alone; test_verdicts.py: they can fail
processes.py            starts, kills and stops
../support/forms.py     short or long, and the seed
../support/tcp_proxy.py the proxy
"""

from functools import partial

import pytest

from tests.chaos.bank_lives import Banker, LivesOfABank
from tests.chaos.processes import ForkServer, Load
from tests.support.forms import chance as chance_of


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "chaos":
            item.add_marker("chaos")


@pytest.fixture
def figures(record_property):
    """Call it with what to show at the end."""
    return partial(record_property, "figures")


@pytest.fixture
def chance(request):
    """The random numbers of this test, the same for the same seed."""
    return chance_of(request.node.name)


@pytest.fixture
def started(tmp_path):
    """Starts servers, loads and consumers in the test's directory, and ends them all."""
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
    """One for all, as it takes a while to import what each consumer needs."""
    fork_server = ForkServer(tmp_path_factory.mktemp("fork_server"))
    yield fork_server
    fork_server.close()


@pytest.fixture(scope="session")
def banker(tmp_path_factory):
    """One for all, as it takes a while to import what each life needs."""
    banker = Banker(tmp_path_factory.mktemp("banker"))
    yield banker
    banker.close()


@pytest.fixture
def bank(tmp_path, banker):
    """Opens a bank in the test's directory."""
    return partial(LivesOfABank, tmp_path, banker)
