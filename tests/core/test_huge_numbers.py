"""A number that is too large is a clear `ValueError` in the constructor."""

import contextlib
import gzip
import inspect
import math

import anyio
import httpx
import pytest

from push_to_poll_client import (
    AtomFeed,
    ConnectionListener,
    Consumer,
    FeedError,
    FetchRequest,
    HTTPFeed,
    LongPollListener,
    MemoryStore,
    Page,
    PagedFeed,
    RetryMessage,
    SQLiteStore,
    SSEListener,
    Throttled,
    WebhookListener,
    WebSocketListener,
)
from push_to_poll_client._schedule import MAX_NOT_BEFORE
from push_to_poll_client._validation import MAX_NUMBER, check_number
from push_to_poll_client.durable_streams import (
    DurableStreamFeed,
    DurableStreamsSignature,
    DurableStreamsWebhook,
    PullWakeListener,
)
from push_to_poll_client.feeds.paged import Entries, LongPoll, OldestFirst, from_body, full_page, to_query
from push_to_poll_client.listeners.handshakes import cloudevents_origins
from push_to_poll_client.listeners.postgres import PostgresListener
from push_to_poll_client.listeners.redis import RedisListener
from push_to_poll_client.listeners.subscriptions import WebSub
from push_to_poll_client.listeners.verifiers import HMACSignature, no_verification, standard_webhooks, stripe, svix
from push_to_poll_client.testing import FakeFeed
from tests.support.consumers import Log

URL = "https://feed.example/"
ENTRIES = Entries("data", id="id")
PAGES = OldestFirst(cursor=from_body("cursor"), send=to_query("since"), more=from_body("more"))

KINDS = {
    Consumer: lambda **more: Log(FakeFeed(), **more),
    HTTPFeed: lambda **more: HTTPFeed(URL, **more),
    AtomFeed: lambda **more: AtomFeed(URL, **more),
    PagedFeed: lambda **more: PagedFeed(URL, entries=ENTRIES, pages=PAGES, **more),
    DurableStreamFeed: lambda **more: DurableStreamFeed(URL, **more),
    LongPoll: lambda **more: LongPoll(to_query("t"), **{"longest": 1} | more),
    full_page: full_page,
    MemoryStore: MemoryStore,
    SQLiteStore: lambda **more: SQLiteStore("no.db", **more),
    WebSocketListener: lambda **more: WebSocketListener("wss://feed.example/", **more),
    SSEListener: lambda **more: SSEListener(URL, **more),
    LongPollListener: lambda **more: LongPollListener(URL, **more),
    ConnectionListener: lambda **more: ConnectionListener(print, name="own", **more),
    PostgresListener: lambda **more: PostgresListener("postgresql://db.example", "c", **more),
    RedisListener: lambda **more: RedisListener("redis://cache.example", "c", **more),
    PullWakeListener: lambda **more: PullWakeListener(URL, streams=["orders"], wake_stream="wakes", **more),
    DurableStreamsWebhook: lambda **more: DurableStreamsWebhook(URL, streams=["orders"], callback=URL, **more),
    DurableStreamsSignature: lambda **more: DurableStreamsSignature(URL, **more),
    WebSub: lambda **more: WebSub(URL, callback=URL, **more),
    WebhookListener: lambda **more: WebhookListener(no_verification(), **more),
    cloudevents_origins: lambda **more: cloudevents_origins(["a.example"], **more),
    HMACSignature: lambda **more: HMACSignature("s", header="x", timestamp="y", **more),
    standard_webhooks: lambda **more: standard_webhooks("c2VjcmV0", **more),
    svix: lambda **more: svix("c2VjcmV0", **more),
    stripe: lambda **more: stripe("secret", **more),
    RetryMessage: RetryMessage,
}

NUMBERS = {int, float, int | None, float | None}

CASES = [
    pytest.param(make, argument.name, id=f"{kind.__name__} {argument.name}")
    for kind, make in KINDS.items()
    for argument in inspect.signature(kind).parameters.values()
    if argument.annotation in NUMBERS
]


def test_the_numbers_are_found_in_the_signatures():
    assert len(CASES) > 60


@pytest.mark.parametrize("number", [10**19, 10**400, -(10**400), 10**5000], ids=["19", "400", "-400", "5000"])
@pytest.mark.parametrize(("make", "name"), CASES)
def test_a_huge_whole_number_is_a_value_error_that_names_the_argument(make, name, number):
    with pytest.raises(ValueError, match=rf"{name} must be between 0 and 2\*\*63 - 1"):
        make(**{name: number})


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (1e300, "n must be between 0 and 2.*got 1e.300"),
        (-1e300, "n must be between 0 and 2.*got -1e.300"),
        (math.inf, "n must be finite"),
        (math.nan, "n must be finite"),
        (-1, "n must be finite and at least 0, got -1"),
    ],
)
def test_a_number_out_of_range_is_a_value_error(value, says):
    with pytest.raises(ValueError, match=says):
        check_number("n", value)


def test_the_largest_number_is_accepted():
    check_number("n", MAX_NUMBER)
    check_number("n", float(2**62))


@pytest.mark.anyio
async def test_the_largest_body_limit_reads_a_compressed_body():
    body = gzip.compress(b"[]")
    headers = {"content-encoding": "gzip", "content-type": "application/cloudevents-batch+json"}

    def answer(request):
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(body))

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        page = await HTTPFeed(URL, client=client, max_body=MAX_NUMBER).fetch(FetchRequest(None))
    assert page.messages == []


class WaitingFeed:
    """A feed that asks for a wait of arbitrary length."""

    name = "waiting"

    def __init__(self, answer):
        self.answer = answer

    async def fetch(self, request):
        if isinstance(self.answer, Page):
            return self.answer
        raise self.answer


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer", [Page((), retry_after=10**400), FeedError("busy", retry_after=10**400)], ids=["page", "error"]
)
async def test_a_wait_of_any_length_that_a_feed_asks_for_is_limited(answer):
    consumer = Log(WaitingFeed(answer))
    with contextlib.suppress(FeedError):
        await consumer.poll_now()
    with pytest.raises(Throttled) as throttled:
        await consumer.poll_now(timeout=0)
    assert 0 < throttled.value.until - anyio.current_time() <= 1.2 * MAX_NOT_BEFORE
