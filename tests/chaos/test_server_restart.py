"""A killed server loses no message, and is not flooded after its restart."""

import time

import pytest

from tests.chaos.journals import elapse, until
from tests.chaos.processes import GUARD, NEVER, ConsumerProcess, Load, ServerProcess
from tests.chaos.verdicts import (
    beyond_g2,
    beyond_g3,
    beyond_g7,
    beyond_reconnect_policy,
    disordered,
    lost,
    unrecorded,
)
from tests.support.forms import form

pytestmark = pytest.mark.long_form

RATE, BURST = 10, 5
DEGRADED = 0.5


@pytest.fixture
def server(started):
    return started(ServerProcess, page_size=100)


@pytest.fixture
def consumers(started, server):
    """One consumer on each event loop, one with each kind of push channel."""
    limits = {"fallback_interval": NEVER, "degraded_interval": DEGRADED, "rate": RATE, "burst": BURST}
    consumers = [
        started(
            ConsumerProcess,
            name=kind,
            url=server.url,
            push=[(kind, {"port": server.port})],
            takes=0.0005,
            **limits,
        )
        for kind in ("websocket", "sse")
    ]
    for consumer, backend in zip(consumers, ["asyncio", "trio"], strict=True):
        consumer.start(backend)
    return consumers


@pytest.fixture
def load(server, started, chance):
    return started(Load, server, seed=chance.random(), rate=300)


def until_asked(server):
    before = len(server.journal.read().asked)
    until(lambda: len(server.journal.read().asked) > before, GUARD, "a request arrives")


def test_no_message_is_lost_when_the_server_is_killed_under_load_and_restarted(
    server, consumers, load, chance, figures
):
    restarts, ill = form(2, 12), 0.0
    for _ in range(restarts):
        until_asked(server)
        elapse(ill + chance.uniform(0.1, 0.8))
        began = time.monotonic()
        server.kill()
        elapse(chance.choice([0.0, chance.uniform(0.0, 0.7)]))
        server.start()
        for consumer in consumers:
            consumer.until_current(server)
        ill = form(0.0, time.monotonic() - began)  # a streak of failures ends when all was well for as long
    load.pause()
    for consumer in consumers:
        consumer.until_current(server)
        consumer.stop()
    ids, journal = server.ids(), server.journal.read()
    figures(
        f"{restarts} times killed and started; {len(ids)} published, {len(journal.dialled)} connections in all"
    )
    assert len(ids) == server.published
    fetches, dialled = [], []
    for consumer in consumers:
        handled = consumer.journal.read().handled
        assert lost(ids, handled) == []
        assert disordered(handled) == []
        assert beyond_g7(handled, killed=set(), commit_interval=0) == []
        fetches += consumer.journal.fetches
        dialled += consumer.journal.dialled
    assert beyond_g2(fetches) == []
    assert beyond_g3(fetches, rate=RATE, burst=BURST) == []
    assert beyond_reconnect_policy(dialled) == []
    assert unrecorded(journal.asked, fetches) == []
    assert unrecorded(journal.dialled, dialled) == []
