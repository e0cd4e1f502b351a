"""The Kinto declaration of `docs/vendors.md` with a real Kinto server. Waits for events, never for time.

Records change and disappear during a listing, a response header counts the pages, and a service has an end.
"""

import anyio
import httpx
import pytest
from anyio.to_thread import run_sync

from push_to_poll_client import FeedError, FeedGone, FeedRefused, FetchRequest, Throttled
from push_to_poll_client.feeds import paged
from push_to_poll_client.testing import FeedSuite
from tests.docs.test_feeds import DECLARED
from tests.support.consumers import Log
from tests.support.forms import GUARD
from tests.support.kinto_server import WHO, serving
from tests.support.served import PATIENCE

pytestmark = pytest.mark.anyio


needs_a_server_of_its_own = pytest.mark.long_form
"""Kinto takes a second to start; the short form reads the same responses from simulated servers."""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture(scope="module")
def server():
    with serving(paginate_by="2") as server:
        yield server


@pytest.fixture
async def feed_of():
    """Return a function that makes feeds, which are closed after the test."""
    feeds = []

    def make(collection, **settings):
        feeds.append(declared(collection, **settings))
        return feeds[-1]

    yield make
    for feed in feeds:
        await feed.aclose()


def declared(collection, **settings):
    """Return the feed that the page declares, with another URL and further arguments."""

    def of(url, *, auth, **parts):
        at = collection.records + url.removeprefix(url.partition("?")[0])
        return paged.PagedFeed(at, **{"auth": WHO, **parts, **settings})

    names = {part: getattr(paged, part) for part in paged.__all__}
    names |= {"PagedFeed": of, "PASSWORD": WHO[1]}
    exec(DECLARED["kinto"], names)  # noqa: S102  # it is ours
    return names["kinto"]


def reading(feed, **settings):
    return Log(feed, **{"patience": PATIENCE, **settings})


def names(consumer):
    """Return the ids of the records of which a version was processed."""
    return [name.partition("@")[0] for name in consumer.processed]


def orders(*bounds):
    return [f"order-{number}" for number in range(*bounds)]


class TestKinto(FeedSuite):
    secrets = (WHO[1],)

    @pytest.fixture(autouse=True)
    def given(self, server):
        self.server = server

    def feed(self):
        return declared(self.collection)

    async def make_feed(self, count):
        self.collection = self.server.collection(count)
        return self.feed()

    async def reopen(self, feed):
        return self.feed()

    async def publish(self, feed, count):
        self.collection.add(count)

    async def change(self, feed):
        self.collection.put("order-1", state="paid")


LINKS = paged.OldestFirst(
    cursor=paged.at_end(paged.from_header("etag")),
    send=paged.to_query("_since"),
    next=paged.from_header("next-page"),
    send_next=paged.as_url(),
)
"""Feed that follows the links in the response header. Each request gets another link."""


@pytest.mark.long_form
class TestKintoByLinks(TestKinto):
    def feed(self):
        return declared(self.collection, pages=LINKS)


async def test_a_consumer_reads_all_pages_and_then_only_new_and_changed_records(server, feed_of):
    collection = server.collection(5)
    consumer = reading(feed_of(collection))
    result = await consumer.poll_now()
    assert (result.messages, result.pages, result.caught_up) == (5, 3, True)
    collection.add(2)
    collection.put("order-3", state="paid")
    assert (await consumer.poll_now()).messages == 3
    assert names(consumer) == [*orders(1, 8), "order-3"]
    assert len({*consumer.processed}) == 8


async def test_a_deleted_record_is_a_message_marked_as_deleted(server, feed_of):
    collection = server.collection(3)
    feed = feed_of(collection)
    cursor = (await feed.fetch(FetchRequest())).messages[0].cursor
    collection.delete("order-2")
    collection.put("order-1", state="paid")
    page = await feed.fetch(FetchRequest(cursor))
    said = [(message.id.partition("@")[0], message.deleted) for message in page.messages]
    page = await feed.fetch(FetchRequest(page.next_page))
    said += [(message.id.partition("@")[0], message.deleted) for message in page.messages]
    assert said == [("order-3", False), ("order-2", True), ("order-1", False)]
    assert page.messages[0].data["state"] == "paid"


async def test_records_that_change_while_they_are_listed_are_not_missed(server, feed_of):
    """A changed record moves to the end of the list, and later pages shift."""
    collection = server.collection(6)

    class Moving(Log):
        async def process(self, message):
            await super().process(message)
            if message.id.startswith("order-2@") and message.data.get("state") == "new":
                collection.put("order-1", state="paid")
                collection.put("order-3", state="paid")
                collection.delete("order-4")

    consumer = Moving(feed_of(collection))
    await consumer.poll_now()
    assert names(consumer) == ["order-1", "order-2", "order-5", "order-6", "order-1", "order-3", "order-4"]


async def test_a_consumer_can_follow_the_next_page_links(server, feed_of):
    collection = server.collection(5)
    consumer = reading(feed_of(collection, pages=LINKS))
    assert (await consumer.poll_now()).pages == 3
    collection.add(1)
    await consumer.poll_now()
    assert names(consumer) == orders(1, 7)


@needs_a_server_of_its_own
async def test_a_cacheable_page_is_requested_again_only_by_a_fresh_fetch_and_answered_with_304():
    statuses = []

    async def note(response):
        statuses.append(response.status_code)

    hooks = {"response": [note]}
    with serving(record_cache_expires_seconds="3600") as server:
        collection = server.collection(1, read=["system.Everyone"])
        async with httpx.AsyncClient(event_hooks=hooks, trust_env=False) as client:
            feed = declared(collection, client=client, auth=None)
            cursor = (await feed.fetch(FetchRequest())).cursor
            for fresh in (False, False, False, True):
                assert not (await feed.fetch(FetchRequest(cursor, bypass_cache=fresh))).messages
            assert statuses == [200, 200, 304]
            collection.add(1)
            assert len((await feed.fetch(FetchRequest(cursor, bypass_cache=True))).messages) == 1


async def test_a_new_consumer_name_can_start_at_the_end_of_the_feed(server, feed_of):
    for size in (0, 3):
        collection = server.collection(size)
        consumer = reading(feed_of(collection), start="latest")
        assert (await consumer.poll_now()).messages == 0
        collection.add(1)
        await consumer.poll_now()
        assert names(consumer) == orders(size + 1, size + 2)


@needs_a_server_of_its_own
async def test_a_consumer_continues_after_the_server_was_killed_and_restarted(feed_of):
    """The server's records are lost with it; the later ones are new."""
    with serving(paginate_by="2") as server:
        collection = server.collection(3)
        feed = feed_of(collection)
        consumer = reading(feed)
        await consumer.poll_now()
        await run_sync(server.kill)
        with pytest.raises(FeedError, match="ConnectError"):
            await consumer.poll_now()
        await run_sync(server.start)
        with pytest.raises(FeedRefused, match="answered 403 Forbidden"):
            await reading(feed).poll_now()
        collection.create()
        collection.add(2)
        await consumer.poll_now(timeout=None)
        assert names(consumer) == orders(1, 6)


@needs_a_server_of_its_own
async def test_a_backoff_requested_by_the_server_throttles_the_consumer(feed_of):
    with serving(backoff="100") as server:
        consumer = reading(feed_of(server.collection(1)))
        assert (await consumer.poll_now()).messages == 1
        with pytest.raises(Throttled), anyio.fail_after(GUARD):
            await consumer.poll_now(timeout=0)


@needs_a_server_of_its_own
async def test_a_service_that_has_ended_stops_the_consumer(feed_of):
    with serving(eos="2020-01-01") as server:

        class Ended:
            records = f"{server.url}/buckets/shop/collections/orders/records"

        with pytest.raises(FeedGone, match="410 Gone: the feed no longer exists"), anyio.fail_after(GUARD):
            await reading(feed_of(Ended)).run()


async def test_wrong_credentials_are_refused_and_not_shown_in_the_error(server, feed_of):
    with pytest.raises(FeedRefused, match=r"403 Forbidden") as refused:
        await reading(feed_of(server.collection(1), auth=("somebody", "3lse"))).poll_now()
    assert "3lse" not in str(refused.value)
