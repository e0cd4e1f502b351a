"""The feed suite for Atom, in each form of RFC 5005, alone and in a consumer.

In virtual time, on a server in memory.
"""

import anyio
import anyio.lowlevel
import httpx
import pytest

from push_to_poll_client import AtomFeed, SQLiteStore
from push_to_poll_client.testing import FeedSuite
from tests.support import forms
from tests.support.consumers import Log
from tests.vendors.atom import FORMS, Atom
from tests.vendors.vendor import SECRET

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("inline_threads")]

in_each_form = pytest.mark.parametrize("form", FORMS)


def feed_of(vendor, **options):
    return AtomFeed(vendor.url, **{"client": vendor.client(), "headers": vendor.headers} | options)


class Stalls(httpx.AsyncByteStream):
    """A body that stops in the middle."""

    async def __aiter__(self):
        yield b"<feed xmlns='http://www.w3.org/2005/Atom'>"
        await anyio.sleep_forever()


class TestPaged(FeedSuite):
    form = "paged"
    secrets = (SECRET,)
    longest_fetch = 5

    async def make_feed(self, count):
        self.vendor = Atom(count, form=self.form)
        return feed_of(self.vendor, timeout=self.longest_fetch)

    async def publish(self, feed, count):
        self.vendor.publish(count)

    async def reopen(self, feed):
        return feed_of(self.vendor)

    async def break_next(self, feed):
        self.vendor.script.append(httpx.Response(500, text=SECRET))

    async def hang(self, feed):
        self.vendor.script.append(httpx.Response(200, stream=Stalls()))

    async def change(self, feed):
        self.vendor.change()

    async def publish_late(self, feed):
        self.vendor.publish_late()


class TestArchived(TestPaged):
    form = "archived"


class TestComplete(TestPaged):
    form = "complete"


# In a consumer


class Mortal(Log):
    """A handler that dies in the middle of a message, as a process does."""

    def __init__(self, feed, store, *, dies_at=None):
        super().__init__(feed, store=store, name="orders", commit_interval=0.0)
        self.dies_at = dies_at
        self.entries = []

    async def process(self, message):
        if len(self.processed) == self.dies_at:
            self.life.cancel()
            await anyio.lowlevel.checkpoint()
        await super().process(message)
        self.entries.append((message.entry_id, message.deleted))

    async def live(self):
        """Run until the handler dies, else to the end of the feed."""
        with anyio.CancelScope() as self.life:
            while not (await self.poll_now(timeout=None)).caught_up:
                pass
        return self.processed


@in_each_form
@pytest.mark.parametrize("dies_at", forms.form([1, 4], range(6)))
async def test_a_crash_at_any_message_loses_no_message_and_repeats_none(form, dies_at, tmp_path):
    vendor = Atom(6, form=form)
    first = await Mortal(feed_of(vendor), SQLiteStore(tmp_path / "state.db"), dies_at=dies_at).live()
    vendor.publish(3)
    second = await Mortal(feed_of(vendor), SQLiteStore(tmp_path / "state.db")).live()
    assert len(first) == dies_at
    assert len(first) + len(second) == len({*first, *second}) == 9


@in_each_form
@pytest.mark.parametrize("dies_at", forms.form([2], range(4)))
async def test_a_crash_among_changes_and_deletions_loses_no_message(form, dies_at, tmp_path):
    vendor, store = Atom(5, form=form), tmp_path / "state.db"
    known = await Mortal(feed_of(vendor), SQLiteStore(store)).live()
    ids = [entry["id"] for entry in vendor.entries]
    vendor.change(0)
    vendor.delete(2)
    vendor.publish(2)
    first = Mortal(feed_of(vendor), SQLiteStore(store), dies_at=dies_at)
    second = Mortal(feed_of(vendor), SQLiteStore(store))
    news = await first.live() + await second.live()
    assert len(news) == len({*news}) == 4
    assert {*news}.isdisjoint(known)
    deleted = [name for name, gone in first.entries + second.entries if gone]
    assert len(deleted) == 1
    assert {*deleted} <= {*ids}


@in_each_form
async def test_a_poll_without_changes_sends_a_conditional_request_and_returns_no_message(form, tmp_path):
    vendor = Atom(7, form=form)
    consumer = Mortal(feed_of(vendor), SQLiteStore(tmp_path / "state.db"))
    await consumer.live()
    asked = len(vendor.requests)
    for _ in range(3):
        await consumer.live()
    assert len(vendor.requests) - asked <= 4
    assert vendor.requests[-1].headers["if-none-match"]
    assert len(consumer.processed) == 7
