"""A consumer that is stopped with SIGSTOP for a while and goes on: time has passed, and it noticed none of it.

Its connections may be dead by then, timers are overdue, pushes have piled up. It has to be current again soon, and
what was missed is no reason to ask more often than the rate allows.
"""

import time

import pytest
from forms import form
from journals import elapse, until
from processes import PATIENCE, ConsumerProcess, Load, ServerProcess
from tcp_proxy import TCPProxy
from verdicts import beyond_g3, beyond_g7, disordered, longest_quiet, lost

PAUSE = form(2.0, 60.0)
"""Seconds."""

RATE, BURST = 2, 3
FALLBACK = 5.0
AT_ONCE = 2.0
"""Seconds until the first poll, on two busy cores: a timer is overdue, or a channel is found dead."""

SOON = 5.0
"""Seconds in which all are current again: a token, a reconnect and a poll, on two busy cores."""


@pytest.fixture
def server(started):
    return started(ServerProcess, page_size=100)


@pytest.fixture
def proxy(server):
    with TCPProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def consumers(started, server, proxy):
    """Of each kind of push channel, one whose connection outlives the pause and one whose connection does not."""
    consumers = []
    for kind in ("websocket", "sse"):
        for port, fate in ((server.port, "living"), (proxy.port, "dead")):
            push = [(kind, {"port": port})]
            limits = {"fallback_interval": FALLBACK, "degraded_interval": 1.0, "rate": RATE, "burst": BURST}
            name = f"{kind}-{fate}"
            consumers.append(started(ConsumerProcess, name=name, url=server.url, push=push, **limits))
    return consumers


@pytest.fixture
def load(server, started, chance):
    load = started(Load, server, seed=chance.random(), rate=50)
    load.pause()
    return load


def test_what_was_stopped_is_current_soon_after(server, proxy, consumers, load, figures):
    for consumer, backend in zip(consumers, ["asyncio", "trio", "trio", "asyncio"], strict=True):
        consumer.start(backend)
    until(lambda: connected(server) == len(consumers), PATIENCE, "all are connected")
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
    until(lambda: all(is_current(consumer, server) for consumer in consumers), SOON, "all are current")
    took = time.monotonic() - resumed
    proxy.wait_for(lambda counts: counts.accepted >= dialled + 2, timeout=SOON)
    load.pause()
    for consumer in consumers:
        consumer.until_current(server, SOON)
        consumer.stop()
        judge(consumer, server, resumed)
    figures(f"stopped for {PAUSE:g} s, current again after {took:.2f} s; the dead connections were made anew")


def connected(server):
    stats = server.stats()
    return stats["websockets_open"] + stats["streams_open"]


def is_current(consumer, server):
    """It has what was published until now; the load goes on."""
    return len(consumer.journal.read().ids) >= server.published - 50


def judge(consumer, server, resumed):
    handled, ids = consumer.journal.read().handled, server.ids()
    asked = [request for request in server.journal.read().asked if request.client == consumer.client]
    assert lost(ids, handled) == []
    assert disordered(handled) == []
    assert beyond_g7(handled, killed=set(), flush_interval=0) == []
    assert beyond_g3(asked, rate=RATE, burst=BURST, slack=0.25) == []
    assert next(request.at for request in asked if request.at > resumed) - resumed < AT_ONCE
    assert longest_quiet(asked, since=resumed, until=asked[-1].at) < FALLBACK + 1
