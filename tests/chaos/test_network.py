"""A network that cuts, delays, drops, refuses, half-closes and slows down, between a consumer and its server.

Feed and push channel each have a proxy, so that one can fail alone. Whatever happens: nothing is lost or repeated,
the consumer becomes current again, and polls keep G2 and G3. There is no fallback, so messages are found only by
the mechanism that a test is about.
"""

from time import monotonic

import anyio
import anyio.to_thread
import pytest

from push_to_poll_client import FeedError, SSEListener, WebSocketListener
from push_to_poll_client._http import transport
from push_to_poll_client.listeners import _websocket_client
from push_to_poll_client.testing import serve_in_thread
from tests.chaos.chaos_server import RecordingApp
from tests.chaos.journals import Dialled, ServerJournal
from tests.chaos.processes import GUARD, NEVER
from tests.chaos.verdicts import beyond_g2, beyond_g3, beyond_reconnect_policy, unrecorded
from tests.chaos.watched import WatchedFeed, WatchedListener
from tests.support.consumers import Log
from tests.support.tcp_proxy import TCPProxy

pytestmark = pytest.mark.anyio

RATE, BURST = 10, 5
DEGRADED = 0.3
TIMEOUT = 0.6
"""Seconds to wait for a missing answer."""

DEAD = 0.6
"""Seconds in which a listener notices a dead connection, where there is one."""

WORLDS = [("asyncio", "websocket"), ("trio", "sse"), ("trio", "websocket"), ("asyncio", "sse")]
"""Event loop and kind of push channel. The first two cover all of both."""


def in_worlds(faults, *, short=None):
    """Each fault in each world; in the short form, one fault in one world."""
    cases = [
        pytest.param(
            backend,
            kind,
            fault,
            id=f"{fault}, {kind}, {backend}",
            marks=() if fault == short and world == 0 else pytest.mark.long_form,
        )
        for number, fault in enumerate(faults)
        for world, (backend, kind) in enumerate(WORLDS[number % 2 :] + WORLDS[: number % 2])
    ]
    return pytest.mark.parametrize(("anyio_backend", "kind", "fault"), cases, indirect=["anyio_backend"])


@pytest.fixture
def anyio_backend(request):
    return request.param


class Bell:
    """Notify one task of an event loop."""

    def __init__(self):
        self._event = anyio.Event()

    def ring(self):
        self._event.set()
        self._event = anyio.Event()

    async def until(self, happened):
        with anyio.fail_after(GUARD):
            while not happened():
                await self._event.wait()


class CountedFeed(WatchedFeed):
    """Record fetches, the number of failures, and if the last one reached the end."""

    def __init__(self, url, bell, *, timeout):
        self.fetches = []
        super().__init__(url, client="c", timeout=timeout, began=self.fetches.append, over=self._ring)
        self.bell = bell
        self.failures = 0

    @property
    def ended(self):
        last = self.fetches[-1] if self.fetches else None
        return last is not None and not last.failed and last.next is None

    def _ring(self, fetch):
        self.bell.ring()

    async def fetch(self, request):
        try:
            return await super().fetch(request)
        except FeedError:
            self.failures += 1
            raise


class CountedListener(WatchedListener):
    """Record if the listener is up, and how often it was down."""

    def __init__(self, listener, bell):
        self.dialled = []
        super().__init__(listener, self._hear, lambda: self.dialled.append(Dialled("c", monotonic(), "push")))
        self.bell = bell
        self.is_up = False
        self.downs = 0
        listener._fraction = lambda: 0.0  # the shortest delays of the policy

    def _hear(self, what):
        if what != "pushed":
            self.is_up = what == "up"
            self.downs += what == "down"
            self.bell.ring()


def listener(kind, port, *, dead, late):
    """Create a listener that notices a dead connection within `dead` seconds.

    Silence of `late` seconds means that the connection is dead. It has as much time to connect.
    """
    settings = {"open_timeout": late, "headers": {"x-client": "c"}}
    if kind == "sse":
        return SSEListener(f"http://127.0.0.1:{port}/events", max_silence=late, **settings)
    pings = {"ping_interval": dead / 2, "ping_timeout": late / 2}
    return WebSocketListener(f"ws://127.0.0.1:{port}/push", **pings, **settings)


class World:
    """A server, proxies before its feed and its push channel, and a consumer behind both."""

    def __init__(self, server, journal, feed, push, kind):
        self.server, self.journal, self.feed, self.push, self.kind = server, journal, feed, push, kind
        self.bell = Bell()
        self.ids = []

    async def begin(self, running, *, answer_within=GUARD, late=GUARD, degraded=NEVER):
        """Become current, connected, and idle.

        Args:
            running: Starts the consumer.
            answer_within: Seconds for an answer of the feed.
            late: Seconds of silence after which a channel is dead.
            degraded: Seconds between polls while the channel is down.
        """
        self.watched = CountedFeed(f"http://127.0.0.1:{self.feed.port}/feed", self.bell, timeout=answer_within)
        self.channel = CountedListener(listener(self.kind, self.push.port, dead=DEAD, late=late), self.bell)
        self.consumer = Log(
            self.watched,
            listeners=[self.channel],
            patience=GUARD,
            fallback_interval=NEVER,
            degraded_interval=degraded,
            rate=RATE,
            burst=BURST,
        )
        running(self.consumer)
        await self.bell.until(lambda: self.channel.is_up)
        await self.publish(3)
        await self.bell.until(lambda: self.watched.ended)

    async def publish(self, count=1):
        """Publish while no poll runs, and wait until it is processed."""
        await self.bell.until(lambda: self.watched.ended)
        self.ids += self.server.publish(count)
        await self.consumer.until(len(self.ids))

    async def pushes_arrive(self):
        """Check that new messages are processed, although no timer would find them."""
        for _ in range(3):
            await self.publish()

    def judge(self):
        """Check: nothing lost, nothing twice, all in order; G2, G3 and slow reconnects."""
        journal, fetches, dialled = self.journal.read(), self.watched.fetches, self.channel.dialled
        assert self.consumer.processed == self.ids
        assert beyond_g2(fetches) == []
        assert beyond_g3(fetches, rate=RATE, burst=BURST) == []
        assert beyond_reconnect_policy(dialled) == []
        assert unrecorded(journal.asked, fetches) == []
        assert len(journal.dialled) <= self.push.counts.accepted <= len(dialled)


@pytest.fixture
def world(tmp_path, monkeypatch, kind):
    for name in ("ws_proxy", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_websocket_client, "CLOSE_TIMEOUT", 0.1)
    monkeypatch.setattr(transport, "CLOSE_TIMEOUT", 0.1)
    app = RecordingApp(tmp_path / "server", page_size=100, keep_alive=DEAD / 6)
    with serve_in_thread(app) as server:
        port = int(server.base_url.rpartition(":")[2])
        with TCPProxy(port) as feed, TCPProxy(port) as push:
            yield World(server, ServerJournal(tmp_path / "server"), feed, push, kind)


def refuse(proxy):
    proxy.refuse()
    proxy.cut()


FEED_FAILS = {
    "cut by FIN in the middle": lambda proxy: proxy.cut_after(1000),
    "cut by RST in the middle": lambda proxy: proxy.cut_after(1000, rst=True),
    "swallowed": lambda proxy: proxy.blackhole(),
    "requests swallowed": lambda proxy: proxy.blackhole(down=False),
    "answers swallowed": lambda proxy: proxy.blackhole(up=False),
    "refused": refuse,
    "trickling too slowly": lambda proxy: proxy.throttle(50),
}

FEED_SURVIVES = {
    "late": lambda proxy: proxy.delay(0.1),
    "trickling": lambda proxy: proxy.throttle(2000),
    "idle connection cut by FIN": lambda proxy: proxy.cut(),
    "idle connection cut by RST": lambda proxy: proxy.cut(rst=True),
    "idle connection half closed": lambda proxy: proxy.half_close(),
}

PUSH_ENDS = {
    "cut by FIN": lambda proxy: proxy.cut(),
    "cut by RST": lambda proxy: proxy.cut(rst=True),
    "half closed": lambda proxy: proxy.half_close(),
}

PUSH_STAYS_BROKEN = {
    "swallowed": lambda proxy: proxy.blackhole(),
    "answers swallowed": lambda proxy: proxy.blackhole(up=False),
    "refused": refuse,
    "requests swallowed": lambda proxy: proxy.blackhole(down=False),
}

PUSH_SURVIVES = {"late": lambda proxy: proxy.delay(0.1), "trickling": lambda proxy: proxy.throttle(20)}


@in_worlds(FEED_FAILS, short="cut by RST in the middle")
async def test_a_failed_poll_is_retried_and_finds_the_missed_messages(world, running, fault):
    await world.begin(running, answer_within=TIMEOUT)
    failures = world.watched.failures
    FEED_FAILS[fault](world.feed)
    world.ids += world.server.publish(40)
    await world.bell.until(lambda: world.watched.failures > failures)
    world.feed.heal()
    await world.publish()
    world.judge()


@in_worlds(FEED_SURVIVES)
async def test_polls_succeed_on_a_slow_network_and_after_an_idle_connection_is_cut(world, running, fault):
    await world.begin(running)
    FEED_SURVIVES[fault](world.feed)
    await world.publish(40)
    await world.publish()
    assert not world.watched.failures
    world.judge()


@in_worlds(PUSH_ENDS, short="cut by RST")
async def test_a_listener_reconnects_when_its_connection_ends(world, running, fault):
    await world.begin(running)
    PUSH_ENDS[fault](world.push)
    world.ids += world.server.publish(1)
    await world.bell.until(lambda: world.channel.downs)
    await world.bell.until(lambda: world.channel.is_up)
    await world.consumer.until(len(world.ids))  # by the wake of the connect: the push is gone
    await world.pushes_arrive()
    world.judge()


@in_worlds(PUSH_STAYS_BROKEN, short="swallowed")
async def test_a_listener_detects_a_dead_connection_and_the_consumer_polls_more_often(world, running, fault, kind):
    await world.begin(running, late=DEAD, degraded=DEGRADED)
    downs = world.channel.downs
    PUSH_STAYS_BROKEN[fault](world.push)
    if fault == "requests swallowed" and kind == "sse":
        world.push.cut()  # an open stream has nothing to say upwards; only the next one is in need of it
    world.ids += world.server.publish(1)
    await world.bell.until(lambda: world.channel.downs > downs)
    for _ in range(3):
        await world.publish()
    world.push.heal()
    await world.bell.until(lambda: world.channel.is_up)
    await world.pushes_arrive()
    world.judge()


@in_worlds(PUSH_SURVIVES)
async def test_pushes_arrive_over_a_slow_connection(world, running, fault):
    await world.begin(running)
    PUSH_SURVIVES[fault](world.push)
    await world.pushes_arrive()
    assert not world.channel.downs
    world.judge()
