"""Declared feeds pass the suite of every feed, in virtual time: each way in which pages lead on."""

import anyio
import httpx
import pytest
from declared import feed_of
from vendors.calendar import Calendar
from vendors.couchdb import CouchDB
from vendors.dropbox import Dropbox
from vendors.github import GitHub
from vendors.graph import Graph
from vendors.ntfy import Ntfy
from vendors.okta import Okta
from vendors.plaid import Plaid
from vendors.remote_settings import RemoteSettings
from vendors.stripe import Stripe
from vendors.telegram import Telegram
from vendors.vendor import SECRET
from vendors.zendesk import Zendesk

from push_to_poll_client.testing import FeedSuite


class Stalls(httpx.AsyncByteStream):
    """A body that stops in the middle."""

    async def __aiter__(self):
        yield b'{"data": ['
        await anyio.sleep_forever()


class TestCouchDB(FeedSuite):
    kind = CouchDB
    secrets = (SECRET,)
    longest_fetch = 5

    async def make_feed(self, count):
        self.vendor = self.kind(count)
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
        self.vendor.change(0)


class TestZendesk(TestCouchDB):
    kind = Zendesk


class TestGraph(TestCouchDB):
    kind = Graph

    @pytest.mark.xfail(reason="CONTENTS names a message by the cursor that it was read from, too", strict=True)
    async def test_going_on_after_the_end_finds_what_came_since(self):
        await super().test_going_on_after_the_end_finds_what_came_since()


class TestPlaid(TestGraph):
    kind = Plaid

    async def change(self, feed):
        self.vendor.modify(0)


class OfEvents:
    """Whose entries do not change."""

    async def change(self, feed):
        pytest.skip("an event does not change")


class TestCalendar(OfEvents, TestCouchDB):
    kind = Calendar


class TestDropbox(OfEvents, TestCouchDB):
    kind = Dropbox

    async def test_two_walks_at_once_do_not_disturb_each_other(self):
        pytest.skip("Dropbox refuses a second request with the same parameters while it answers the first")


class TestNtfy(OfEvents, TestCouchDB):
    kind = Ntfy


class TestOkta(OfEvents, TestCouchDB):
    kind = Okta


class TestRemoteSettings(OfEvents, TestCouchDB):
    kind = RemoteSettings


class TestTelegram(OfEvents, TestCouchDB):
    kind = Telegram
    acknowledges = True
    secrets = ()
    """Its token stands in the URL, which the log of a given client tells; that of a feed's own does not."""


class TestStripe(OfEvents, TestCouchDB):
    kind = Stripe


class TestGitHub(TestStripe):
    kind = GitHub

    async def publish_late(self, feed):
        self.vendor.publish_late()
