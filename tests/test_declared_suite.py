"""Each vendor's feed, as it is declared, does what every feed has to do. In virtual time, on servers in memory.

A feed has the hooks that its server has: what nothing changes cannot change, and what a server lists by the time of
its writing cannot be late.
"""

from dataclasses import replace

import anyio
import httpx
import pytest
import respx
from declared import DECLARED, feed_of
from test_paged_vendors import inception
from vendors.calendar import Calendar
from vendors.couchdb import CouchDB
from vendors.discord import Discord
from vendors.drive import Drive
from vendors.dropbox import Dropbox
from vendors.github import GitHub
from vendors.gmail import Gmail
from vendors.graph import Graph
from vendors.hubspot import HubSpot
from vendors.matrix import Matrix
from vendors.nextcloud import Nextcloud
from vendors.ntfy import Ntfy
from vendors.okta import Okta
from vendors.pagerduty import PagerDuty
from vendors.plaid import Plaid
from vendors.remote_settings import RemoteSettings
from vendors.stripe import Stripe
from vendors.telegram import Telegram
from vendors.vendor import SECRET
from vendors.zendesk import Zendesk

from push_to_poll_client.testing import FeedSuite


class Stalls(httpx.AsyncByteStream):
    """A body that stops in its middle."""

    async def __aiter__(self):
        yield b"["
        await anyio.sleep_forever()


class From:
    """A feed that begins where its server has to be told to."""

    def __init__(self, feed, start):
        self._feed, self._start = feed, start

    def __getattr__(self, name):
        return getattr(self._feed, name)

    def __repr__(self):
        return repr(self._feed)

    async def fetch(self, request):
        return await self._feed.fetch(request if request.cursor else replace(request, cursor=self._start))


class Declared(FeedSuite):
    """The suite of one vendor: `kind`."""

    kind = None
    secrets = (SECRET,)
    longest_fetch = 5

    async def make_feed(self, count):
        self.vendor = self.kind(count)
        return await self.reopen(None)

    async def reopen(self, feed):
        return From(feed_of(self.vendor, timeout=4.0), inception(self.vendor))

    async def publish(self, feed, count):
        self.vendor.publish(count)

    async def break_next(self, feed):
        self.vendor.script.append(httpx.Response(500, text=SECRET))

    async def hang(self, feed):
        self.vendor.script.append(httpx.Response(200, stream=Stalls()))


class Changing(Declared):
    """Of states: what is there may change."""

    async def change(self, feed):
        self.vendor.change(0)


class Late(Declared):
    """Newest first, so that nobody can tell an entry that is late from one that was always there."""

    async def publish_late(self, feed):
        self.vendor.entries.insert(1, self.vendor.entry(90_000))


class TestCalendar(Declared):
    kind = Calendar

    async def change(self, feed):
        self.vendor.cancel(0)


class TestCouchDB(Changing):
    kind = CouchDB


class TestDiscord(Declared):
    kind = Discord


class TestDrive(Changing):
    kind = Drive


class TestDropbox(Declared):
    kind = Dropbox

    async def change(self, feed):
        self.vendor.delete(0)


class TestGitHub(Late):
    kind = GitHub


class TestGmail(Declared):
    kind = Gmail


class TestGraph(Changing):
    kind = Graph


class TestHubSpot(Changing):
    kind = HubSpot


class TestMatrix(Declared):
    kind = Matrix


class TestNextcloud(Declared):
    kind = Nextcloud


class TestNtfy(Declared):
    kind = Ntfy


class TestOkta(Declared):
    kind = Okta


class TestPagerDuty(Late):
    kind = PagerDuty


class TestPlaid(Declared):
    kind = Plaid

    async def change(self, feed):
        self.vendor.modify(0)


class TestRemoteSettings(Changing):
    kind = RemoteSettings


class TestStripe(Late):
    kind = Stripe


class TestTelegram(Declared):
    kind = Telegram
    acknowledges = True


class TestZendesk(Changing):
    kind = Zendesk


def test_all_vendors_are_here():
    assert {suite.kind for suite in Declared.__subclasses__()} >= {*DECLARED}
