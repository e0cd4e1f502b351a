"""The feed suite for each vendor's declared feed. In virtual time, on servers in memory.

A feed has the hooks that its server supports: the suite skips changes where entries do not change, and late
entries where entries are listed in the order of writing.
"""

from dataclasses import replace

import anyio
import httpx
import pytest
import respx

from push_to_poll_client.testing import FeedSuite
from push_to_poll_client.testing._feed_suite import walk
from tests.feeds.test_paged_vendors import inception
from tests.support.declared import DECLARED, feed_of
from tests.vendors.calendar import Calendar
from tests.vendors.couchdb import CouchDB
from tests.vendors.discord import Discord
from tests.vendors.drive import Drive
from tests.vendors.dropbox import Dropbox
from tests.vendors.github import GitHub
from tests.vendors.gmail import Gmail
from tests.vendors.graph import Graph
from tests.vendors.hubspot import HubSpot
from tests.vendors.matrix import Matrix
from tests.vendors.nextcloud import Nextcloud
from tests.vendors.ntfy import Ntfy
from tests.vendors.okta import Okta
from tests.vendors.pagerduty import PagerDuty
from tests.vendors.plaid import Plaid
from tests.vendors.remote_settings import RemoteSettings
from tests.vendors.stripe import Stripe
from tests.vendors.syncthing import Syncthing
from tests.vendors.telegram import Telegram
from tests.vendors.vendor import SECRET
from tests.vendors.zendesk import Zendesk


class Stalls(httpx.AsyncByteStream):
    """A body that stops in the middle."""

    async def __aiter__(self):
        yield b"["
        await anyio.sleep_forever()


class From:
    """A feed that starts at a given cursor, because its server requires one."""

    def __init__(self, feed, start):
        self._feed, self._start = feed, start

    def __getattr__(self, name):
        return getattr(self._feed, name)

    def __repr__(self):
        return repr(self._feed)

    async def fetch(self, request):
        return await self._feed.fetch(request if request.cursor else replace(request, cursor=self._start))


class Declared(FeedSuite):
    """The suite of one vendor (`kind`). `ahead`: the next page may be fetched before one is settled."""

    kind = None
    ahead = True
    secrets = (SECRET,)
    longest_fetch = 5

    async def make_feed(self, count):
        self.vendor = self.kind(count)
        return await self.reopen(None)

    async def reopen(self, feed):
        return From(feed_of(self.vendor, timeout=4.0, read_ahead=self.ahead), inception(self.vendor))

    async def publish(self, feed, count):
        self.vendor.publish(count)

    async def break_next(self, feed):
        self.vendor.script.append(httpx.Response(500, text=SECRET))

    async def hang(self, feed):
        self.vendor.script.append(httpx.Response(200, stream=Stalls()))


class Changing(Declared):
    """For feeds of states, whose entries change."""

    async def change(self, feed):
        self.vendor.change(0)


class ByContents(Changing):
    """For messages whose names depend on the cursor that they were read from; compares `CONTENTS`."""

    async def test_going_on_after_the_end_finds_what_came_since(self):
        """The names differ from those of a read from the inception, so the contents are compared."""
        async with self._caught_up() as (feed, cursor):
            await self.publish(feed, 2)
            everything, since = await walk(feed), await walk(feed, cursor)
        assert [message.data for message in since.messages] == [m.data for m in everything.messages[-2:]]


class Late(Declared):
    """For newest-first feeds, where a late entry looks like an old one."""

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


class TestDrive(ByContents):
    kind = Drive


class TestDropbox(ByContents):
    kind = Dropbox
    ahead = False

    async def change(self, feed):
        self.vendor.delete(0)

    async def test_two_walks_at_once_do_not_disturb_each_other(self):
        pytest.skip("Dropbox answers the second of two requests at a time with 429")


class TestGitHub(Late):
    kind = GitHub


class TestGmail(Declared):
    kind = Gmail


class TestGraph(ByContents):
    kind = Graph


class TestHubSpot(Changing):
    kind = HubSpot
    repeats = True


class TestMatrix(Declared):
    kind = Matrix
    """One room: with several rooms, new events come room by room, in another order for each response."""

    async def make_feed(self, count):
        feed = await super().make_feed(0)
        entry = self.vendor.entry
        self.vendor.entry = lambda number: entry(2 * number)
        self.vendor.publish(count)
        return feed


class TestNextcloud(Declared):
    kind = Nextcloud


class TestNtfy(Declared):
    kind = Ntfy


class TestOkta(Declared):
    kind = Okta


class TestPagerDuty(Late):
    kind = PagerDuty


class TestPlaid(ByContents):
    kind = Plaid

    async def change(self, feed):
        self.vendor.modify(0)


class TestRemoteSettings(Changing):
    kind = RemoteSettings


class TestStripe(Late):
    kind = Stripe


class TestSyncthing(Declared):
    kind = Syncthing


class TestTelegram(Declared):
    """Uses the feed's own client: another one would log the URL, which contains the token."""

    kind = Telegram
    acknowledges = True

    @pytest.fixture(autouse=True)
    def wire(self):
        with respx.mock(assert_all_called=False) as router:
            router.route().mock(side_effect=self.answer)
            yield

    async def answer(self, request):
        return await self.vendor.handle(request)

    async def reopen(self, feed):
        return feed_of(self.vendor, timeout=4.0, client=None)


class TestZendesk(Changing):
    kind = Zendesk


def test_every_declared_vendor_has_a_suite():
    suites = [suite for name, suite in globals().items() if name.startswith("Test")]
    assert [suite.kind for suite in suites] == sorted(DECLARED, key=lambda kind: kind.__name__.lower())
