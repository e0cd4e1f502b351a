"""The declarations of the pages on servers with the habits that the pages describe."""

import json
import re

import anyio
import httpx
import pytest

from push_to_poll_client import (
    Consumer,
    CursorExpired,
    FetchRequest,
    JSONHint,
    MemoryStore,
    SSEListener,
    WebhookListener,
)
from push_to_poll_client.listeners.webhook import WebhookResponse
from tests.docs.test_feeds import declared, serve, walk
from tests.docs.test_push import BLOCKS, placeholders
from tests.support.channels import TimedChannel
from tests.vendors.couchdb import CouchDB
from tests.vendors.matrix import Matrix, notify
from tests.vendors.ntfy import KEEPALIVE, Ntfy
from tests.vendors.shop import Orders, Stock

pytestmark = pytest.mark.anyio

__all__ = ["serve"]  # a fixture


def of_push(name):
    """Return what the push page defines under this name."""
    (block,) = (block for block in BLOCKS if re.search(rf"^{name} = \w+Listener\(", block, re.MULTILINE))
    names = placeholders()
    exec(block, names)  # noqa: S102  # it is ours
    return names[name]


# CouchDB


@pytest.mark.parametrize("pending", ["counted", "null", "missing"])
async def test_a_backlog_of_couchdb_is_read_in_one_poll_with_any_pending_value(pending, serve):
    feed, url = declared("couchdb")
    vendor = serve(CouchDB(2500), url)
    vendor.pending = pending
    handled = []

    async def handle(message):  # a plain function would be called in a thread, 2500 times
        handled.append(message)

    async with Consumer(feed, store=MemoryStore(), name="orders", process=handle) as consumer:
        polled = await consumer.poll_now()
    assert (len(handled), polled.caught_up) == (2500, True)


@pytest.mark.parametrize("pending", ["null", "missing"])
async def test_a_held_answer_of_couchdb_without_pending_is_read(pending, serve):
    feed, url = declared("couchdb")
    vendor = serve(CouchDB(3), url)
    vendor.pending = pending
    _, cursors = await walk(feed, None)
    pages = []

    async def wait():
        pages.append(await feed.fetch(FetchRequest(cursors[-1], wait=50)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.sleep(10)
        vendor.publish(2)
    await feed.aclose()
    assert [len(page.messages) for page in pages] == [2]
    assert pages[0].next_page is None


async def test_couchdb_reads_everything_from_a_database_that_was_made_again(serve):
    feed, url = declared("couchdb")
    vendor = serve(CouchDB(5), url)
    _, cursors = await walk(feed, None)
    vendor.make_again()
    vendor.publish(3)
    after, _ = await walk(feed, cursors[-1])
    await feed.aclose()
    assert len(after) == 3


async def test_couchdb_answers_nothing_until_it_has_passed_a_cursor_from_before_its_restore(serve):
    feed, url = declared("couchdb")
    vendor = serve(CouchDB(5), url)
    _, cursors = await walk(feed, None)
    vendor.restore(2)
    vendor.publish(3)
    missed, _ = await walk(feed, cursors[-1])
    vendor.publish(1)
    after, _ = await walk(feed, cursors[-1])
    again, _ = await walk(feed, None)
    await feed.aclose()
    assert (len(missed), len(after), len(again)) == (0, 1, 6)


# A cursor that is ahead, and a cursor of two values


async def test_the_page_tells_a_cursor_that_is_ahead_of_a_restored_server(serve):
    feed, url = declared("stock")
    vendor = serve(Stock(5), url)
    _, cursors = await walk(feed, None)
    assert await walk(feed, cursors[-1]) == ([], [])
    vendor.restore(2)
    with pytest.raises(CursorExpired):
        await feed.fetch(FetchRequest(cursors[-1]))
    assert len((await walk(feed, None))[0]) == 2
    await feed.aclose()


async def test_a_cursor_of_time_and_id_loses_no_entry_of_a_time_that_fills_pages(serve):
    feed, url = declared("orders")
    vendor = serve(Orders(), url)
    vendor.of_one_time = 350
    vendor.publish(500)
    before, cursors = await walk(feed, None)
    vendor.publish(3)
    after, _ = await walk(feed, cursors[-1])
    rests = [len((await walk(feed, cursor))[0]) for cursor in cursors]
    await feed.aclose()
    assert len({message.id for message in before}) == len(before) == 500
    assert len(after) == 3
    assert rests == [403, 303, 203, 103, 3]


# Matrix


async def test_100_new_events_of_a_matrix_room_are_not_a_gap_but_101_are(serve):
    feed, url = declared("matrix")
    vendor = serve(Matrix(), url)
    start = (await feed.fetch(FetchRequest())).cursor
    vendor.publish(200)  # of two rooms
    page = await feed.fetch(FetchRequest(start))
    assert (len(page.messages), page.gap) == (200, "")
    vendor.publish(202)
    limited = await feed.fetch(FetchRequest(page.cursor))
    await feed.aclose()
    assert len(limited.messages) == 200
    assert limited.gap


async def test_the_newest_batch_of_matrix_is_asked_for_without_events(serve):
    feed, url = declared("matrix")
    vendor = serve(Matrix(20), url)
    cursor = await feed.latest()
    vendor.publish(2)
    since, _ = await walk(feed, cursor)
    await feed.aclose()
    asked = json.loads(vendor.requests[0].url.params["filter"])
    assert asked == {"room": {"timeline": {"limit": 0}}}
    assert len(since) == 2


@pytest.mark.parametrize(("pushkey", "sent"), [("s3cret", True), ("another", False)])
async def test_the_gateway_of_the_page_answers_a_matrix_server_in_its_format(pushkey, sent):
    hooks = of_push("matrix")
    channel = TimedChannel()
    url = "https://me.example/_matrix/push/v1/notify"
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(hooks)) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(hooks.listen, channel)
        await anyio.sleep(1)
        assert await notify(client, url, pushkey) is sent
        await anyio.sleep(1)
        tasks.cancel_scope.cancel()
    assert len(channel.pushes) == sent


async def test_a_matrix_server_takes_an_empty_answer_for_a_failure():
    hooks = WebhookListener(lambda request: True)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(hooks)) as client:
        assert not await notify(client, "https://me.example/_matrix/push/v1/notify", "s3cret")
    assert WebhookResponse().body == b""


# ntfy


async def hear(listener, vendor):
    """Count the wakes of an hour with a quiet topic and two messages."""
    listener._client._given_client = httpx.AsyncClient(transport=vendor.stream())
    listener._fraction = lambda: 0.5
    channel = TimedChannel()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.listen, channel)
        await anyio.sleep(1000)
        vendor.publish(2)
        await anyio.sleep(2600)
        tasks.cancel_scope.cancel()
    return channel


async def test_the_hint_of_the_page_accepts_messages_of_ntfy_and_no_keepalives():
    vendor = Ntfy()
    vendor.authorization = None
    channel = await hear(of_push("ntfy"), vendor)
    assert len(channel.pushes) == 2
    assert "down" not in {event for _, event in channel.events}


async def test_each_keepalive_of_ntfy_is_a_push_without_the_hint():
    channel = await hear(SSEListener("https://ntfy.sh/orders/sse"), Ntfy())
    assert len(channel.pushes) > 3600 / KEEPALIVE


async def test_the_hint_of_the_page_serves_the_websocket_of_ntfy_too():
    hint = JSONHint(only={"event": "message"})
    said = [json.dumps(event) for event in ({"event": "open"}, {"event": "keepalive"}, {"event": "message"})]
    assert [hint(text) is not None for text in said] == [False, False, True]
