"""A consumer that is suspended by SIGSTOP for a while, and continues.

Then its connections may be dead, timers are overdue, and pushes have piled up. There is no fallback: pushes, or
the detection of the dead connection, must make it current again. Missed time does not allow more polls than the
rate. A consumer without a channel has only its timer.
"""

import time

import pytest

from tests.chaos.journals import elapse, until
from tests.chaos.processes import GUARD, NEVER, ConsumerProcess, Load, ServerProcess
from tests.chaos.verdicts import beyond_g2, beyond_g3, beyond_g7, disordered, lost, unrecorded
from tests.support.forms import form
from tests.support.tcp_proxy import TCPProxy

pytestmark = pytest.mark.long_form

PAUSE = form(2.0, 60.0)
"""Duration in seconds."""

RATE, BURST = 2, 3
HASTE = 10.0
"""Factor that shortens delays after failures: on a busy machine a connection may be lost more than once."""


@pytest.fixture
def server(started):
    return started(ServerProcess, page_size=100)


@pytest.fixture
def proxy(server):
    with TCPProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def consumers(started, server, proxy):
    """Consumers for each kind of push channel.

    The connection of one consumer outlives the pause; the connection of another does not. One further consumer has
    no channel; its timer is due in the pause.
    """
    channels = {
        f"{kind}-{fate}": [(kind, {"port": port})]
        for kind in ("websocket", "sse")
        for port, fate in ((server.port, "living"), (proxy.port, "dead"))
    }
    limits = {"degraded_interval": 1.0, "rate": RATE, "burst": BURST, "haste": HASTE}
    return [
        started(
            ConsumerProcess,
            name=name,
            url=server.url,
            push=push,
            fallback_interval=NEVER if push else PAUSE / 2,
            **limits,
        )
        for name, push in {**channels, "timer": []}.items()
    ]


@pytest.fixture
def load(server, started, chance):
    load = started(Load, server, seed=chance.random(), rate=50)
    load.pause()
    return load


def test_a_consumer_stopped_with_sigstop_catches_up_after_it_resumes(server, proxy, consumers, load, figures):
    for consumer, backend in zip(consumers, ["asyncio", "trio", "trio", "asyncio", "trio"], strict=True):
        consumer.start(backend)
    until(lambda: connected(server) == len(consumers) - 1, GUARD, "all are connected")
    load.resume()
    for consumer in consumers:
        consumer.pause()
    proxy.blackhole()
    dialled = proxy.counts.accepted
    elapse(PAUSE)
    proxy.heal()
    resumed = time.monotonic()
    for consumer in consumers:
        consumer.resume()
    until(lambda: all(is_current(consumer, server) for consumer in consumers), GUARD, "all are current")
    took = time.monotonic() - resumed
    proxy.wait_for(lambda counts: counts.accepted >= dialled + 2, timeout=GUARD)
    load.pause()
    for consumer in consumers:
        consumer.until_current(server)
        consumer.stop()
    ids, fetches = server.ids(), []
    for consumer in consumers:
        handled = consumer.journal.read().handled
        assert lost(ids, handled) == []
        assert disordered(handled) == []
        assert beyond_g7(handled, killed=set(), commit_interval=0) == []
        fetches += consumer.journal.fetches
    assert beyond_g2(fetches) == []
    assert beyond_g3(fetches, rate=RATE, burst=BURST) == []
    assert unrecorded(server.journal.read().asked, fetches) == []
    figures(f"stopped for {PAUSE:g} s, current again after {took:.2f} s; the dead connections were made anew")


def connected(server):
    stats = server.stats()
    return stats["websockets_open"] + stats["streams_open"]


def is_current(consumer, server):
    """Return True if it has handled all messages published until now; the load continues."""
    return len(consumer.journal.read().ids) >= server.published - 50
