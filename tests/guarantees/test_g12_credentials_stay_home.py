"""G12, credentials stay home: secrets go only to their origin, and into no log, error or `repr`."""

import logging
import traceback

import httpx
import pytest

from push_to_poll_client import (
    FeedError,
    HTTPFeed,
)
from tests.support.consumers import Log

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("status", [200, 307, 401, 500])
async def test_g12_a_secret_is_not_shown_and_not_sent_to_another_origin(status, caplog):
    caplog.set_level(logging.DEBUG)
    asked = []

    def answer(request):
        asked.append(request)
        return httpx.Response(status, json=[], headers={"Location": "https://thief.example/feed"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), follow_redirects=True) as client:
        feed = HTTPFeed("https://shop.example/feed?key=canary", auth="canary", client=client)
        consumer = Log(feed)
        said = None
        try:
            await consumer.poll_now()
        except FeedError as error:
            said = "".join(traceback.format_exception(error))
        assert (said is None) == (status == 200)
    assert {request.url.host for request in asked} == {"shop.example"}
    assert {request.headers["authorization"] for request in asked} == {"Bearer canary"}
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("push_to_poll_client")]
    assert "canary" not in f"{said} {ours} {feed!r} {consumer!r} {consumer.status()!r} {consumer.name}"
