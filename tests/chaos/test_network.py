"""A network that cuts, delays, swallows, refuses, half-closes and trickles, between a consumer and its server.

The feed and the push channel go through a proxy each, so that either can break alone. Whatever happens: nothing is
lost, nothing comes twice, the consumer is current again soon, and polls stay within G2, G3 and G4.
"""

import time

import anyio
import anyio.to_thread
import pytest
from chaos_server import RecordingApp
from consumers import Log
from forms import form
from journals import Dialled, ServerJournal
from tcp_proxy import TCPProxy
from verdicts import beyond_g2, beyond_g3, beyond_reconnect_policy, longest_quiet
from watched import WatchedListener

from push_to_poll_client import FeedError, HTTPFeed, SSEListener, WebSocketListener
from push_to_poll_client.listeners import _sending, _websocket_connection
from push_to_poll_client.testing import serve_in_thread

pytestmark = pytest.mark.anyio

RATE, BURST = 10, 5
FALLBACK, DEGRADED = 1.5, 0.3
TIMEOUT = 0.6
DEAD = 0.4
"""Seconds in which a listener finds that its connection is dead."""

FIRST_BACKOFF = 1.0
SLACK = 1.0
"""Seconds for a machine that is busy elsewhere."""

WORLDS = [("asyncio", "websocket"), ("trio", "sse"), ("trio", "websocket"), ("asyncio", "sse")]
"""Event loop and kind of push channel: the first two have all of either."""


def in_worlds(faults, *, short=1):
    """Each fault in each world; in the short form in one or two of them, in turn."""
    count = form(short, len(WORLDS))
    cases = [
        pytest.param(backend, kind, fault, id=f"{fault}, {kind}, {backend}")
        for number, fault in enumerate(faults)
        for backend, kind in [WORLDS[(number + more) % form(2, 4)] for more in range(count)]
    ]
    return pytest.mark.parametrize(("anyio_backend", "kind", "fault"), cases, indirect=["anyio_backend"])


@pytest.fixture
def anyio_backend(request):
    return request.param


class Bell:
    """Tells one task of an event loop that something happened."""

    def __init__(self):
        self._event = anyio.Event()

    def ring(self):
        self._event.set()
        self._event = anyio.Event()

    async def until(self, happened, within):
        with anyio.fail_after(within):
            while not happened():
                await self._event.wait()


class WatchedFeed(HTTPFeed):
    """Writes down how long each fetch took, and how many failed or found the end."""

    def __init__(self, url, bell, **settings):
        super().__init__(url, **settings)
        self.bell = bell
        self.took = []
        self.failures = 0
        self.ended = False

    async def fetch(self, request):
        began, self.ended = anyio.current_time(), False
        try:
            page = await super().fetch(request)
            self.ended = page.next is None
        except FeedError:
            self.failures += 1
            raise
        finally:
            self.took.append(anyio.current_time() - began)
            self.bell.ring()
        return page


class CountedListener(WatchedListener):
    """Knows whether it is up, and how often it was down."""

    def __init__(self, listener, bell):
        super().__init__(listener, self._hear)
        self.bell = bell
        self.is_up = False
        self.downs = 0
        listener._fraction = lambda: 0.0  # the shortest delays of the policy

    def _hear(self, what):
        if what != "pushed":
            self.is_up = what == "up"
            self.downs += what == "down"
            self.bell.ring()


def listener(kind, port):
    """One that finds within `DEAD` seconds that its connection is dead."""
    settings = {"open_timeout": 0.5, "headers": {"x-client": "c"}}
    if kind == "sse":
        return SSEListener(f"http://127.0.0.1:{port}/events", max_silence=DEAD, **settings)
    pings = {"ping_interval": DEAD / 2, "ping_timeout": DEAD / 2}
    return WebSocketListener(f"ws://127.0.0.1:{port}/push", **pings, **settings)


class World:
    """A server, a proxy before its feed, one before its push channel, and a consumer behind both."""

    def __init__(self, server, journal, feed, push, kind):
        self.server, self.journal, self.feed, self.push = server, journal, feed, push
        self.bell = Bell()
        url = f"http://127.0.0.1:{feed.port}/feed"
        self.watched = WatchedFeed(url, self.bell, timeout=TIMEOUT, headers={"x-client": "c"})
        self.channel = CountedListener(listener(kind, push.port), self.bell)
        self.consumer = Log(
            self.watched,
            listeners=[self.channel],
            patience=20,
            fallback_interval=FALLBACK,
            degraded_interval=DEGRADED,
            rate=RATE,
            burst=BURST,
        )
        self.ids = []

    async def begin(self, running):
        """Current, connected, and idle."""
        running(self.consumer)
        await self.bell.until(lambda: self.channel.is_up, SLACK)
        await self.publish(3, within=SLACK)
        await self.bell.until(lambda: self.watched.ended, SLACK)

    async def publish(self, count=1, *, within):
        """Publish when no poll runs, and see it processed in time."""
        await self.bell.until(lambda: self.watched.ended, within)
        self.ids += self.server.publish(count)
        with anyio.fail_after(within):
            await self.consumer.until(len(self.ids))

    async def pushes_arrive(self):
        """What is published now is processed sooner than any timer would find it."""
        for _ in range(3):
            await self.publish(within=FALLBACK * 0.9)

    def judge(self):
        """Nothing lost, nothing twice, all in order; and as the server saw it, G2, G3, G4 and calm reconnects."""
        journal = self.journal.read()
        assert self.consumer.processed == self.ids
        assert beyond_g2(journal.asked) == []
        assert beyond_g3(journal.asked, rate=RATE, burst=BURST, slack=0.25) == []
        dialled = [Dialled("c", at, "push") for at in self.push.accepted_at]  # also those that no server saw
        assert beyond_reconnect_policy(dialled) == []
        assert self.longest_quiet(since=journal.asked[0].at) < FALLBACK + TIMEOUT + SLACK

    def longest_quiet(self, *, since):
        """Seconds without a poll, as the server saw it, from then to now."""
        return longest_quiet(self.journal.read().asked, since=since, until=time.monotonic())


@pytest.fixture
def world(tmp_path, monkeypatch, kind):
    for name in ("ws_proxy", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_websocket_connection, "CLOSE_TIMEOUT", 0.1)
    monkeypatch.setattr(_sending, "CLOSE_TIMEOUT", 0.1)
    app = RecordingApp(tmp_path / "server", page_size=100, keep_alive=DEAD / 4)
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


@in_worlds(FEED_FAILS)
async def test_a_feed_that_fails_is_asked_again(world, running, fault):
    await world.begin(running)
    FEED_FAILS[fault](world.feed)
    world.ids += world.server.publish(40)
    await world.bell.until(lambda: world.watched.failures, TIMEOUT + SLACK)
    world.feed.heal()
    await world.publish(within=FIRST_BACKOFF + SLACK)
    assert max(world.watched.took) < TIMEOUT + 0.3, "a stalled answer ends at the timeout"
    world.judge()


@in_worlds(FEED_SURVIVES)
async def test_a_feed_that_is_slow_or_connects_anew_is_read_on(world, running, fault):
    await world.begin(running)
    FEED_SURVIVES[fault](world.feed)
    await world.publish(40, within=SLACK)
    await world.publish(within=SLACK)
    assert not world.watched.failures
    world.judge()


@in_worlds(PUSH_ENDS, short=2)
async def test_a_push_channel_that_ends_is_made_again(world, running, fault):
    await world.begin(running)
    PUSH_ENDS[fault](world.push)
    world.ids += world.server.publish(1)
    await world.bell.until(lambda: world.channel.downs, SLACK)
    await world.bell.until(lambda: world.channel.is_up, SLACK)
    with anyio.fail_after(FALLBACK * 0.9):  # by the wake of the connect: the push is gone
        await world.consumer.until(len(world.ids))
    await world.pushes_arrive()
    world.judge()


@in_worlds(PUSH_STAYS_BROKEN)
async def test_a_push_channel_that_is_broken_is_found_and_polling_goes_faster(world, running, fault, kind):
    await world.begin(running)
    began = anyio.current_time()
    PUSH_STAYS_BROKEN[fault](world.push)
    if fault == "requests swallowed" and kind == "sse":
        world.push.cut()  # an open stream has nothing to say upwards; only the next one is in need of it
    world.ids += world.server.publish(1)
    await world.bell.until(lambda: world.channel.downs, DEAD + SLACK)
    assert anyio.current_time() - began < DEAD + 0.5
    down = time.monotonic()
    for _ in range(3):
        await world.publish(within=DEGRADED + SLACK)
    assert world.longest_quiet(since=down) < DEGRADED + 0.5
    world.push.heal()
    await world.bell.until(lambda: world.channel.is_up, 5.0)
    await world.pushes_arrive()
    world.judge()


@in_worlds(PUSH_SURVIVES, short=2)
async def test_a_push_channel_that_is_slow_pushes_on(world, running, fault):
    await world.begin(running)
    PUSH_SURVIVES[fault](world.push)
    await world.pushes_arrive()
    assert not world.channel.downs
    world.judge()
