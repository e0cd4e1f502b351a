"""A number that is too large for what it is used for is a clear `ValueError` at construction."""

import contextlib
import gzip
import math

import anyio
import httpx
import pytest

from push_to_poll_client import (
    AtomFeed,
    ConnectionListener,
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
from push_to_poll_client.listeners.verifiers import HMACSignature, anybody, standard_webhooks, stripe, svix
from push_to_poll_client.testing import FakeFeed
from tests.support.consumers import Log

URL = "https://feed.example/"
ENTRIES = Entries("data", id="id")
PAGES = OldestFirst(cursor=from_body("cursor"), send=to_query("since"), more=from_body("more"))

ARGUMENTS = {
    "Consumer": (
        lambda **more: Log(FakeFeed(), **more),
        "fallback_interval degraded_interval rate burst wake_delay max_poll_time flush_interval shutdown_timeout",
    ),
    "Consumer of messages": (
        lambda **more: Log(FakeFeed(), **more),
        "batch_size batch_wait concurrency overlap",
    ),
    "HTTPFeed": (lambda **more: HTTPFeed(URL, **more), "max_wait timeout max_body"),
    "AtomFeed": (lambda **more: AtomFeed(URL, **more), "timeout max_body"),
    "PagedFeed": (lambda **more: PagedFeed(URL, entries=ENTRIES, pages=PAGES, **more), "timeout max_body"),
    "DurableStreamFeed": (lambda **more: DurableStreamFeed(URL, **more), "max_wait timeout max_body"),
    "LongPoll": (lambda **more: LongPoll(to_query("t"), **{"longest": 1} | more), "longest per_second"),
    "full_page": (full_page, "size"),
    "MemoryStore": (MemoryStore, "retention max_records"),
    "SQLiteStore": (lambda **more: SQLiteStore("no.db", **more), "retention max_records"),
    "WebSocketListener": (
        lambda **more: WebSocketListener("wss://feed.example/", **more),
        "max_age max_silence ping_interval ping_timeout open_timeout max_body",
    ),
    "SSEListener": (lambda **more: SSEListener(URL, **more), "max_age max_silence open_timeout max_body"),
    "LongPollListener": (lambda **more: LongPollListener(URL, **more), "wait max_age open_timeout max_body"),
    "ConnectionListener": (lambda **more: ConnectionListener(print, name="own", **more), "max_age open_timeout"),
    "PostgresListener": (
        lambda **more: PostgresListener("postgresql://db.example", "c", **more),
        "max_age max_silence open_timeout",
    ),
    "RedisListener": (
        lambda **more: RedisListener("redis://cache.example", "c", **more),
        "max_age max_silence open_timeout max_body",
    ),
    "PullWakeListener": (
        lambda **more: PullWakeListener(URL, streams=["orders"], wake_stream="wakes", **more),
        "lease confirm_every max_age max_silence open_timeout",
    ),
    "DurableStreamsWebhook": (
        lambda **more: DurableStreamsWebhook(URL, streams=["orders"], callback=URL, **more),
        "lease confirm_every tolerance",
    ),
    "DurableStreamsSignature": (lambda **more: DurableStreamsSignature(URL, **more), "tolerance"),
    "WebSub": (lambda **more: WebSub(URL, callback=URL, **more), "lease timeout"),
    "WebhookListener": (lambda **more: WebhookListener(anybody(), **more), "max_body body_timeout rate burst"),
    "cloudevents_origins": (lambda **more: cloudevents_origins(["a.example"], **more), "rate"),
    "HMACSignature": (
        lambda **more: HMACSignature("s", header="x", timestamp="y", **more),
        "timestamp_unit tolerance",
    ),
    "standard_webhooks": (lambda **more: standard_webhooks("c2VjcmV0", **more), "tolerance"),
    "svix": (lambda **more: svix("c2VjcmV0", **more), "tolerance"),
    "stripe": (lambda **more: stripe("secret", **more), "tolerance"),
    "RetryMessage": (RetryMessage, "after"),
}

CASES = [
    pytest.param(make, name, id=f"{what} {name}")
    for what, (make, names) in ARGUMENTS.items()
    for name in names.split()
]


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
        (-1, "n must be finite and at least 0, not -1"),
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
    """A feed that asks for a wait of any length."""

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
