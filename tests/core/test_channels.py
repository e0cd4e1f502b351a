"""State that a listener saves in the consumer's store for the time after a restart."""

import math

import anyio
import pytest

from push_to_poll_client import SQLiteStore, StoreError
from push_to_poll_client.testing import FakeFeed
from tests.support.consumers import Log
from tests.support.forms import GUARD
from tests.support.refusing_store import RefusingStore

pytestmark = pytest.mark.anyio


in_real_time = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
"""Real time: a file is written in a thread, and virtual time would advance meanwhile."""


class Keeps:
    """Passes its channel to the test."""

    def __init__(self, name="keeps"):
        self.name = name
        self.channel = None
        self._listens = anyio.Event()

    async def listen(self, channel):
        self.channel = channel
        self._listens.set()
        await anyio.sleep_forever()

    async def there(self):
        await self._listens.wait()
        return self.channel


@in_real_time
async def test_a_listener_gets_its_saved_state_after_a_restart(tmp_path):
    for saved in None, "first", "second":
        keeps = Keeps()
        consumer = Log(FakeFeed(), store=SQLiteStore(tmp_path / "s.db"), listeners=[keeps])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer.run)
            channel = await keeps.there()
            assert channel.state == saved
            await channel.save({None: "first", "first": "second", "second": None}[saved])
            tasks.cancel_scope.cancel()
        await anyio.lowlevel.checkpoint()
    keeps = Keeps()
    consumer = Log(FakeFeed(), store=SQLiteStore(tmp_path / "s.db"), listeners=[keeps])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        assert (await keeps.there()).state is None
        tasks.cancel_scope.cancel()


async def test_each_listener_has_its_own_saved_state(running):
    one, two = Keeps(), Keeps()  # with the same name, so the second is called keeps #2
    running(Log(FakeFeed(), listeners=[one, two]))
    await (await one.there()).save("1")
    await (await two.there()).save("2")
    assert (one.channel.state, two.channel.state) == ("1", "2")


@in_real_time
async def test_g8_listener_state_is_not_saved_while_a_transactional_handler_runs(tmp_path):
    feed, keeps = FakeFeed(), Keeps()
    feed.publish("1")
    store = SQLiteStore(tmp_path / "s.db", transactional=True)
    inside, saved, halves = anyio.Event(), anyio.Event(), []

    async def process(_message):
        store.connection.execute("CREATE TABLE half (n)")
        inside.set()
        with anyio.move_on_after(0.3):  # an unwanted save would come within this time
            await saved.wait()
        halves.append(keeps.channel.state)

    consumer = Log(feed, store=store, process=process, listeners=[keeps], retry=None)
    with anyio.fail_after(GUARD):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer.run)
            channel = await keeps.there()
            await inside.wait()
            await channel.save("saved")
            saved.set()
            tasks.cancel_scope.cancel()
    assert halves == [None]


async def test_listener_state_and_rewinds_wait_for_the_end_of_the_poll(running):
    """This store does not separate its commits by itself, as one with a single connection does."""
    feed, keeps, done = FakeFeed(page_size=1), Keeps(), []
    consumer = running(Log(feed, listeners=[keeps], takes=10))
    channel = await keeps.there()
    feed.publish(2)
    channel.request_poll()

    async def wait_for(call):
        await call()
        done.append(list(consumer.processed))

    async with anyio.create_task_group() as tasks:
        await anyio.sleep(5)  # in the middle of the first message
        tasks.start_soon(wait_for, lambda: channel.save("saved"))
        tasks.start_soon(wait_for, lambda: consumer.rewind("inception"))
        await anyio.sleep(5.5)  # between two pages
        assert channel.state is None
    assert done == [["1", "2"], ["1", "2"]]
    assert channel.state == "saved"


async def test_listener_state_is_limited_to_16384_characters(running):
    keeps = Keeps()
    running(Log(FakeFeed(), listeners=[keeps]))
    channel = await keeps.there()
    await channel.save("x" * 16_384)
    with pytest.raises(ValueError, match="keeps: state must have at most 16384 characters, got 16385"):
        await channel.save("x" * 16_385)
    assert channel.state == "x" * 16_384


async def test_a_failed_save_of_listener_state_raises_store_error_in_the_listener(running, monkeypatch):
    keeps = Keeps()
    consumer = running(Log(FakeFeed(), listeners=[keeps]))
    channel = await keeps.there()
    session = consumer._opened.session
    whole = session.commit

    async def commit(**what):
        if "listener:keeps" in what.get("state", ()):
            raise StoreError("full")
        await whole(**what)

    monkeypatch.setattr(session, "commit", commit)
    with pytest.raises(StoreError, match="full"):
        await channel.save("x")
    assert channel.state is None


async def test_a_save_of_listener_state_waits_for_a_store_that_is_unavailable(running, caplog):
    keeps, store = Keeps(), RefusingStore()
    running(Log(FakeFeed(), store=store, listeners=[keeps]))
    channel = await keeps.there()
    store.refuses = {"commit"}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(channel.save, "x")
        await anyio.sleep(60.0)
        assert channel.state is None
        store.refuses.clear()
    assert channel.state == "x"
    assert "store unavailable, retrying in 5.0 s: StoreUnavailable: disk full" in caplog.text


async def test_status_shows_the_time_until_which_a_listener_is_registered(running):
    keeps = Keeps()
    consumer = running(Log(FakeFeed(), listeners=[keeps]))
    channel = await keeps.there()
    for until in 1000.0, math.inf, None:
        channel.subscribed(until)
        assert consumer.status().listeners[0].subscribed_until == until


async def test_a_poll_requested_by_a_listener_is_not_counted_as_a_push(running):
    keeps, feed = Keeps(), FakeFeed()
    consumer = running(Log(feed, listeners=[keeps]))
    channel = await keeps.there()
    await feed.asked(1)
    await anyio.sleep(1)
    before = len(feed.requests)
    channel.request_poll()
    await feed.asked(before + 1)
    await anyio.sleep(5)
    assert len(feed.requests) == before + 1  # after a push with a hint there would be another request
    assert consumer.status().listeners[0].pushes == 0
