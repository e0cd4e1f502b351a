"""An error of `raise_for_status()` in a user's feed counts like an error of the library's feeds."""

import httpx
import pytest

from push_to_poll_client import Consumer, FeedError, FeedGone, FeedRefused, MemoryStore, Throttled

pytestmark = pytest.mark.anyio


def answers(status, **headers):
    """A consumer of a ten-line feed."""

    class Feed:
        async def fetch(self, request):
            transport = httpx.MockTransport(lambda request: httpx.Response(status, headers=headers))
            async with httpx.AsyncClient(transport=transport) as client:
                (await client.get("https://user:pa55@shop.example/feed?key=c4n4ry")).raise_for_status()

    return Consumer(Feed(), store=MemoryStore(), process=print)


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        (404, FeedRefused, "https://shop.example/feed?key=… answered 404 Not Found; check"),
        (410, FeedGone, "https://shop.example/feed?key=… answered 410 Gone"),
        (
            503,
            FeedError,
            "https://shop.example/feed?key=… answered 503 Service Unavailable; retrying later",
        ),
        (307, FeedError, "https://shop.example/feed?key=… answered 307 Temporary Redirect"),
    ],
)
async def test_an_http_status_error_of_a_user_feed_becomes_a_feed_error(status, kind, text):
    with pytest.raises(FeedError) as failed:
        await answers(status).poll_now()
    assert type(failed.value) is kind
    assert str(failed.value).startswith(text)


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_of_an_http_status_error_throttles_the_consumer(status):
    consumer = answers(status, **{"Retry-After": "120"})
    with pytest.raises(FeedError) as failed:
        await consumer.poll_now()
    assert failed.value.retry_after == 120
    with pytest.raises(Throttled):
        await consumer.poll_now(timeout=100)


class Odd(Exception):
    response = "none"


async def test_another_exception_is_named_by_its_class():
    class Feed:
        async def fetch(self, request):
            raise Odd("text")

    with pytest.raises(FeedError, match="raised Odd: text"):
        await Consumer(Feed(), store=MemoryStore(), process=print).poll_now()
