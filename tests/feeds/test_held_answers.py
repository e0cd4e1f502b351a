"""Servers that hold a response for too long. In virtual time, without sockets.

The feed stops waiting a few seconds after the requested time, and asks for an immediate response. The poll fails
only if that response does not come either.
"""

import anyio
import httpx
import pytest

from push_to_poll_client import FeedError, FetchRequest, HTTPFeed, Page
from push_to_poll_client.feeds.paged import (
    Entries,
    LongPoll,
    NewestFirst,
    OldestFirst,
    PagedFeed,
    from_each,
    from_last,
    to_query,
)
from tests.support.consumers import Log
from tests.vendors.vendor import Wire

pytestmark = pytest.mark.anyio

URL = "https://shop.example/orders"
WAIT = 20


class Body(httpx.AsyncByteStream):
    """A body in pieces, with some seconds between them."""

    def __init__(self, *pieces):
        self.pieces = pieces

    async def __aiter__(self):
        for seconds, piece in self.pieces:
            await anyio.sleep(seconds)
            yield piece


class Server:
    """Send `held` to a request that may be held, and `plain` to another one at once; None sends nothing."""

    def __init__(self, held, plain=b"[]"):
        self.held = held
        self.plain = plain
        self.waits = []

    async def __call__(self, request):
        self.waits.append(request.url.params.get("timeout"))
        if self.waits[-1] is not None:
            return await self.held()
        return httpx.Response(200, content=self.plain) if self.plain is not None else await silent()

    def client(self, **options):
        return httpx.AsyncClient(transport=Wire(self), **options)


async def silent():
    await anyio.sleep(80_000)


async def only_headers():
    return httpx.Response(200, headers={"content-type": "application/json"}, stream=Body((80_000, b"[]")))


async def newlines():
    """Newlines, which CouchDB sends to keep the connection alive."""
    return httpx.Response(200, stream=Body(*[(5, b"\n")] * 1_000))


HELD = [(silent, 5), (only_headers, 10), (newlines, 10)]


def http_feed(server, **options):
    return HTTPFeed(URL, max_wait=WAIT, client=server.client(), **options)


def paged_feed(server, **options):
    return PagedFeed(
        URL,
        entries=Entries(),
        pages=OldestFirst(cursor=from_each("id"), send=to_query("since")),
        long_poll=LongPoll(to_query("timeout"), longest=WAIT),
        client=server.client(),
        **options,
    )


def newest_first_feed(server, **options):
    return PagedFeed(
        URL,
        entries=Entries(),
        pages=NewestFirst(next=from_last("id"), send=to_query("before"), more=lambda _: False),
        long_poll=LongPoll(to_query("timeout"), longest=WAIT),
        client=server.client(),
        **options,
    )


FEEDS = pytest.mark.parametrize("feed_on", [http_feed, paged_feed, newest_first_feed])


@FEEDS
@pytest.mark.parametrize(("held", "grace"), HELD)
async def test_after_a_held_answer_timed_out_the_next_request_asks_for_an_immediate_answer(feed_on, held, grace):
    server = Server(held)
    feed = feed_on(server)
    began = anyio.current_time()
    page = await feed.fetch(FetchRequest(wait=WAIT))
    assert not page.messages
    assert page.next_page is None
    assert anyio.current_time() - began == WAIT + grace
    assert len(server.waits) == 2
    assert server.waits[1] is None


@FEEDS
async def test_news_of_a_hold_that_was_cut_off_are_in_the_answer_at_once(feed_on):
    server = Server(silent, b'[{"id": "1", "source": "s"}]')
    page = await feed_on(server).fetch(FetchRequest(wait=WAIT))
    assert [message.id for message in page.messages] == ["1"]


@FEEDS
async def test_a_server_that_does_not_answer_at_once_either_is_a_failed_poll(feed_on):
    """Silence does not prove that there are no new events: the server may be dead."""
    server = Server(silent, None)
    began = anyio.current_time()
    with pytest.raises(FeedError, match="did not send a whole response within 30 seconds"):
        await feed_on(server).fetch(FetchRequest(wait=WAIT))
    assert anyio.current_time() - began == WAIT + 5 + 30


@FEEDS
async def test_a_fetch_without_a_wait_fails_after_the_timeout(feed_on):
    server = Server(silent, None)
    with pytest.raises(FeedError, match="within 7 seconds"):
        await feed_on(server, timeout=7).fetch(FetchRequest())
    assert server.waits == [None]


@FEEDS
async def test_a_timeout_that_is_shorter_ends_the_wait_earlier(feed_on):
    server = Server(silent)
    began = anyio.current_time()
    await feed_on(server, timeout=3).fetch(FetchRequest(wait=WAIT))
    assert anyio.current_time() - began == WAIT + 3


@FEEDS
async def test_an_answer_that_has_begun_is_read_to_its_end(feed_on):
    entry = b'{"id": "1", "source": "s"}'

    async def slow():
        return httpx.Response(
            200, stream=Body((WAIT + 5, b"[" + b" " * 1024), (9, b" " * 1024), (9, entry + b"]"))
        )

    server = Server(slow)
    page = await feed_on(server).fetch(FetchRequest(wait=WAIT))
    assert [message.id for message in page.messages] == ["1"]
    assert len(server.waits) == 1


@FEEDS
async def test_an_answer_that_begins_and_stalls_is_a_failed_poll(feed_on):
    async def stalls():
        return httpx.Response(200, stream=Body((5, b"[" + b" " * 1024), (80_000, b"]")))

    server = Server(stalls)
    with pytest.raises(FeedError, match="sent less than 1024 bytes of its body in 10 seconds"):
        await feed_on(server).fetch(FetchRequest(wait=WAIT))
    assert len(server.waits) == 1


@pytest.mark.parametrize("answered", [WAIT, WAIT + 4])
@FEEDS
async def test_a_server_that_is_a_little_late_is_asked_once(feed_on, answered):
    async def late():
        await anyio.sleep(answered)
        return httpx.Response(200, content=b"[]")

    server = Server(late)
    assert not (await feed_on(server).fetch(FetchRequest(wait=WAIT))).messages
    assert len(server.waits) == 1


async def test_a_read_timeout_of_the_users_client_ends_the_wait_as_well():
    async def times_out():
        raise httpx.ReadTimeout("")

    server = Server(times_out)
    assert await http_feed(server).fetch(FetchRequest("7", wait=WAIT)) == Page([])
    assert server.waits == ["20000", None]


async def test_a_read_timeout_of_an_answer_that_may_not_be_held_is_a_failed_poll():
    async def times_out(_request):
        raise httpx.ReadTimeout("")

    feed = HTTPFeed(URL, client=httpx.AsyncClient(transport=Wire(times_out)))
    with pytest.raises(FeedError, match="ReadTimeout"):
        await feed.fetch(FetchRequest())


@FEEDS
async def test_no_poll_fails_by_a_server_that_always_holds_too_long(feed_on, running):
    server = Server(silent)
    consumer = running(Log(feed_on(server)))
    await anyio.sleep(200)
    counters = consumer.status().counters
    assert counters.failed_polls == 0
    assert counters.polls > 5
