"""Whole consumers with PostgreSQL, Valkey and a long poll, through a proxy that swallows all bytes.

The fallback interval is an hour, so that it cannot hide a lost push.
"""

import contextlib
import functools
import itertools
import threading

import anyio
import pytest
from anyio.to_thread import run_sync

from push_to_poll_client.listeners.long_poll import LongPollListener
from push_to_poll_client.listeners.postgres import PostgresListener
from push_to_poll_client.listeners.redis import RedisListener
from push_to_poll_client.testing import FakeFeed
from tests.support import postgres_server, valkey_server
from tests.support.channels import HOST, Raw
from tests.support.consumers import Log
from tests.support.forms import GUARD
from tests.support.tcp_proxy import TCPProxy

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_is_left_unclosed")]

QUICK = {"open_timeout": 0.5}
HOUR = 3600.0


@pytest.fixture
def anyio_backend():
    """Real time, and only asyncio, as psycopg and redis-py."""
    return "asyncio"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("https", "http", "all"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


class Holding:
    """Answer each long poll once there are events, with one number at most."""

    def __init__(self):
        self._changed = threading.Condition()
        self._newest = 0
        self._closed = False

    def push(self):
        with self._changed:
            self._newest += 1
            self._changed.notify_all()

    def close(self):
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def treat(self, accepted, number):
        threading.Thread(target=self._serve, args=(accepted,), daemon=True).start()

    def _serve(self, accepted):
        with contextlib.suppress(OSError):
            while asked := accepted.recv(65536):
                since = int(asked.partition(b"since=")[2].partition(b" ")[0] or b"0")
                body = b'{"newest": %d}' % self._after(since)
                accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    def _after(self, since):
        with self._changed:
            self._changed.wait_for(lambda: self._newest > since or self._closed)
            return self._newest


@pytest.fixture
def holding():
    holding = Holding()
    with Raw(holding.treat) as raw:
        yield holding, raw
        holding.close()


@pytest.fixture(params=["postgres", "valkey", "long poll"])
def pushed(request):
    """Return a listener behind a proxy, the proxy, and a function that pushes."""
    if request.param == "postgres":
        server = postgres_server.shared_server(request.config)
        with TCPProxy(server.port) as proxy:
            conninfo = server.conninfo.replace(str(server.port), str(proxy.port))
            listener = PostgresListener(conninfo, "orders", max_silence=0.2, **QUICK)
            yield listener, proxy, functools.partial(server.notify, "orders")
    elif request.param == "valkey":
        server = valkey_server.shared_server(request.config)
        with TCPProxy(server.port) as proxy:
            listener = RedisListener(f"redis://{HOST}:{proxy.port}", "orders", max_silence=0.2, **QUICK)
            yield listener, proxy, functools.partial(server.publish, "orders")
    else:
        holding, raw = request.getfixturevalue("holding")
        with TCPProxy(raw.port) as proxy:
            url = f"http://{HOST}:{proxy.port}/?since=0"
            listener = LongPollListener(url, next={"since": "newest"}, wait=0.8, **QUICK)
            yield listener, proxy, holding.push


class Noted:
    """A listener with an event for each change of its state, and a count of its connects."""

    def __init__(self, listener):
        self._listener = listener
        self.ups = 0
        self.changed = anyio.Event()

    async def listen(self, channel):
        up, down = channel.up, channel.down

        def note_up():
            up()
            self.ups += 1
            self.changed.set()

        def note_down(error=None):
            down(error)
            self.changed.set()

        channel.up, channel.down = note_up, note_down
        await self._listener.listen(channel)


async def until(consumer, noted, *, up):
    with anyio.fail_after(GUARD):
        while consumer.status().listeners[0].up != up:
            noted.changed = anyio.Event()
            await noted.changed.wait()


async def test_a_push_causes_a_poll_and_the_message_of_a_lost_push_is_polled_after_a_reconnect(pushed):
    listener, proxy, push = pushed
    listener._fraction = itertools.repeat(0.0).__next__
    feed, noted = FakeFeed(), Noted(listener)
    consumer = Log(feed, listeners=[noted], fallback_interval=HOUR, degraded_interval=None, patience=GUARD)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await until(consumer, noted, up=True)
        await consumer.poll_now()
        feed.publish(1)
        await run_sync(push)
        await consumer.until(1)

        proxy.blackhole()
        feed.publish(1)
        await run_sync(push)
        await until(consumer, noted, up=False)
        assert len(consumer.processed) == 1 or noted.ups > 1  # a busy machine may reconnect, and polls
        proxy.heal()
        await consumer.until(2)
        tasks.cancel_scope.cancel()
