"""The fakes and the real feeds pass the same suite."""

import anyio
import pytest
from anyio.to_thread import run_sync

from push_to_poll_client.feeds.http_feed import HTTPFeed
from push_to_poll_client.testing import FakeFeed, FeedSuite, serve_in_thread


class TestFakeFeed(FeedSuite):
    async def make_feed(self, count):
        feed = FakeFeed(page_size=2, max_wait=60, latency=0.1)
        feed.publish(count)
        return feed

    async def publish(self, feed, count):
        feed.publish(count)


class TestFakeFeedWithCursorsOnPages(TestFakeFeed):
    async def make_feed(self, count):
        feed = await super().make_feed(count)
        feed.cursors, feed.ends_empty = "page", True
        return feed


class TestFakeFeedWithCursorsAtTheEndOfTheChain(TestFakeFeed):
    async def make_feed(self, count):
        feed = await super().make_feed(count)
        feed.cursors, feed.max_wait = "chain", None
        return feed


class TestHTTPFeed(FeedSuite):
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request):
        return request.param

    @pytest.fixture(autouse=True)
    def server(self):
        with serve_in_thread(page_size=2) as self.server:
            yield

    async def make_feed(self, count):
        self.server.publish(count)
        return HTTPFeed(self.server.url, max_wait=60)

    async def publish(self, feed, count):
        await run_sync(self.server.publish, count)

    async def held(self, feed):
        await run_sync(lambda: self.server.stats.wait_for(lambda stats: stats.held))


class Plain:
    """A user's feed has `fetch` and no more."""

    def __init__(self, feed):
        self.fetch = feed.fetch


class TestAFeedWithFetchAlone(TestFakeFeed):
    async def make_feed(self, count):
        self.fake = await super().make_feed(count)
        return Plain(self.fake)

    async def publish(self, feed, count):
        self.fake.publish(count)


@pytest.mark.anyio
async def test_the_suite_wants_its_hooks():
    with pytest.raises(NotImplementedError):
        await FeedSuite().make_feed(1)
    with pytest.raises(NotImplementedError):
        await FeedSuite().publish(FakeFeed(), 1)


class Liar(FakeFeed):
    """Misbehaves where no test asked it to."""

    def __init__(self, lie):
        super().__init__(page_size=2, max_wait=60)
        self.lie = lie

    async def fetch(self, request):
        return self.lie(self, request, await super().fetch(request))


def skip_one(feed, request, page):
    return type(page)(page.messages[:-1], page.cursor, page.next)


def keep_the_cursor_to_itself(feed, request, page):
    return type(page)([type(m)(m.id) for m in page.messages], None, page.next)


def move_at_the_end(feed, request, page):
    return page if page.messages else type(page)([], "elsewhere")


def turn_round(feed, request, page):
    walks = sum(asked.request.cursor is None for asked in feed.requests)
    return type(page)(page.messages[:: (-1) ** walks], page.cursor, page.next)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("lie", "test"),
    [
        (skip_one, "test_the_inception_reads_everything_each_time_in_the_same_order"),
        (turn_round, "test_the_inception_reads_everything_each_time_in_the_same_order"),
        (skip_one, "test_every_cursor_that_may_be_saved_reads_exactly_the_rest"),
        (keep_the_cursor_to_itself, "test_a_walk_that_found_something_ends_with_a_cursor_behind_it"),
        (move_at_the_end, "test_at_the_end_the_cursor_stays"),
    ],
)
async def test_the_suite_catches(lie, test):
    class Caught(TestFakeFeed):
        async def make_feed(self, count):
            feed = Liar(lie)
            feed.publish(count)
            return feed

    with anyio.fail_after(100), pytest.raises((AssertionError, IndexError)):
        await getattr(Caught(), test)()
