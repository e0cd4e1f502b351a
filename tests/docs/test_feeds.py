"""The programs of `docs/feeds.md` and `docs/vendors.md` run as they are, on servers that follow the protocols."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import httpx
import pytest
import respx

from push_to_poll_client import Consumer, CursorExpired, FeedError, FetchRequest, MemoryStore
from push_to_poll_client.feeds import paged
from push_to_poll_client.testing import FeedSuite, serve_in_thread
from push_to_poll_client.testing._feed_suite import walk as suite_walk
from tests.feeds.test_declared_suite import From
from tests.feeds.test_paged_vendors import inception, walk
from tests.support.consumers import Log
from tests.support.durable_streams_memory import MemoryStream
from tests.vendors.acme import Acme
from tests.vendors.atom import Atom
from tests.vendors.calendar import Calendar
from tests.vendors.couchdb import CouchDB
from tests.vendors.discord import Discord
from tests.vendors.drive import Drive
from tests.vendors.dropbox import Dropbox
from tests.vendors.github import GitHub
from tests.vendors.gmail import Gmail
from tests.vendors.graph import Graph
from tests.vendors.jmap import JMAP
from tests.vendors.matrix import Matrix
from tests.vendors.ntfy import Ntfy
from tests.vendors.okta import Okta
from tests.vendors.plaid import Plaid
from tests.vendors.remote_settings import RemoteSettings
from tests.vendors.shop import Orders, Stock
from tests.vendors.stripe import Stripe
from tests.vendors.syncthing import Syncthing
from tests.vendors.telegram import Telegram
from tests.vendors.vendor import SECRET, Wire
from tests.vendors.zendesk import Zendesk

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[2] / "docs"
PAGE, VENDORS_PAGE = ((DOCS / name).read_text() for name in ("feeds.md", "vendors.md"))
BLOCKS, VENDOR_BLOCKS = (re.findall(r"```python\n(.*?)```", page, re.DOTALL) for page in (PAGE, VENDORS_PAGE))
DECLARED = {
    found[1]: block
    for block in (*BLOCKS, *VENDOR_BLOCKS)
    if (found := re.search(r"^(\w+) = PagedFeed\(", block, re.MULTILINE))
}

VENDORS = {
    "acme": Acme,
    "events": GitHub,
    "orders": Orders,
    "stock": Stock,
    "stripe": Stripe,
    "github": GitHub,
    "graph": Graph,
    "plaid": Plaid,
    "couchdb": CouchDB,
    "telegram": Telegram,
    "dropbox": Dropbox,
    "calendar": Calendar,
    "drive": Drive,
    "gmail": Gmail,
    "ntfy": Ntfy,
    "remote_settings": RemoteSettings,
    "okta": Okta,
    "zendesk": Zendesk,
    "discord": Discord,
    "matrix": Matrix,
    "syncthing": Syncthing,
}

CREDENTIALS = {
    "ACME_KEY": SECRET,
    "GITHUB_TOKEN": SECRET,
    "STRIPE_KEY": f"sk_test_{SECRET}",
    "CLIENT_ID": "client",
    "SECRET": SECRET,
    "ACCESS_TOKEN": f"access-{SECRET}",
    "PASSWORD": SECRET,
    "BOT_TOKEN": Telegram.token,
    "DROPBOX_TOKEN": f"sl.{SECRET}",
    "OKTA_TOKEN": SECRET,
    "ZENDESK_TOKEN": SECRET,
    "DISCORD_TOKEN": SECRET,
    "MATRIX_TOKEN": f"syt_{SECRET}",
    "SYNCTHING_KEY": SECRET,
}


async def graph_token():
    return f"eyJ.{SECRET}"


async def google_token():
    return SECRET


def declared(name):
    """Return the feed that a block of the pages declares, and its URL."""
    names = {part: getattr(paged, part) for part in paged.__all__}
    names |= CREDENTIALS | {"graph_token": graph_token, "google_token": google_token}
    exec(DECLARED[name], names)  # noqa: S102  # it is ours
    return names[name], re.search(r'"(https://[^"]*)"', DECLARED[name])[1]


def block_with(text):
    """Return the block of the pages that contains a text."""
    (block,) = (block for block in (*BLOCKS, *VENDOR_BLOCKS) if text in block)
    return block


def run_block(text, server=None, **names):
    """Run the block that contains a text, and return its names; with the address of a reference server."""
    block = block_with(text)
    if server is not None:
        block = block.replace("https://shop.example/orders", server.url)
    exec(block, names)  # noqa: S102  # it is ours
    return names


@pytest.fixture
def serve():
    """A vendor's server at the real address, as far as this process can see."""
    with respx.mock(assert_all_called=False) as router:

        def start(vendor, url):
            parts = urlsplit(url)
            vendor.origin = f"{parts.scheme}://{parts.netloc}"
            vendor.path = parts.path.format(token=Telegram.token)
            router.route(host=parts.hostname).mock(side_effect=vendor.handle)
            return vendor

        yield start


def test_every_vendor_is_declared():
    """Kinto is the one that can be had: see `interop/test_kinto.py`."""
    assert DECLARED.keys() == VENDORS.keys() | {"kinto"}


@pytest.mark.parametrize("name", ["stripe", "events", "github", "graph", "plaid", "couchdb", "telegram"])
def test_a_declaration_takes_fifteen_lines_or_fewer(name):
    lines = [line for line in DECLARED[name].splitlines() if line.strip() and not line.startswith("from ")]
    assert len(lines) <= 15


@pytest.mark.parametrize("name", VENDORS)
async def test_a_declared_feed_reads_all_messages_and_then_only_new_ones(name, serve):
    feed, url = declared(name)
    vendor = serve(VENDORS[name](5), url)
    if name == "ntfy":  # which is public
        vendor.authorization = None
    before, cursors = await walk(feed, inception(vendor))
    vendor.publish(3)
    after, _ = await walk(feed, cursors[-1])
    await feed.aclose()
    assert len({message.dedupe_key for message in (*before, *after)}) == 8
    assert (len(before), len(after)) == (5, 3)


@pytest.mark.parametrize("body", ["{}", '{"error": "busy"}', "[]", "<p>busy</p>"])
@pytest.mark.parametrize("name", VENDORS)
async def test_an_answer_that_the_server_is_busy_says_nothing_about_the_cursor(name, body, serve):
    feed, url = declared(name)
    vendor = serve(VENDORS[name](5), url)
    if name == "ntfy":
        vendor.authorization = None
    _, cursors = await walk(feed, inception(vendor))
    vendor.script.append(httpx.Response(503, text=body))
    with pytest.raises(FeedError, match="503 Service Unavailable") as busy:
        await feed.fetch(FetchRequest(cursors[-1]))
    await feed.aclose()
    assert not isinstance(busy.value, CursorExpired)


@pytest.mark.parametrize("name", sorted(VENDORS.keys() - {"ntfy", "remote_settings"}))
async def test_a_declaration_shows_no_secret(name, serve):
    feed, url = declared(name)
    vendor = serve(VENDORS[name](1), url)
    vendor.authorization = "another one"
    vendor.body = {"client_id": "x", "secret": "y", "access_token": "z"}
    vendor.path = "/elsewhere"
    with pytest.raises(FeedError) as refused:
        await walk(feed, inception(vendor))
    await feed.aclose()
    assert SECRET not in f"{refused.value} {feed!r} {feed.identity}"


@pytest.mark.parametrize("code", [200, 429])
async def test_the_wait_of_a_vendors_own_header_is_heeded(code, serve):
    feed, url = declared("acme")
    vendor = serve(VENDORS["acme"](1), url)
    vendor.wait = 7
    if code == httpx.codes.OK:
        assert (await feed.fetch(FetchRequest())).retry_after == 7
    else:
        vendor.script.append(vendor.throttled(7))
        with pytest.raises(FeedError, match="asks for a pause") as throttled:
            await feed.fetch(FetchRequest())
        assert throttled.value.retry_after == 7
    await feed.aclose()


async def test_an_idle_consumer_of_syncthing_catches_up_and_sees_events_at_once(serve, running):
    """Syncthing holds each request for 60 seconds that does not ask for an answer at once."""
    feed, url = declared("syncthing")
    vendor = serve(Syncthing(3), url)
    consumer = running(Log(feed))
    await consumer.until(3)
    await anyio.sleep(200)
    assert consumer.status().counters.failed_polls == 0
    assert consumer.status().mode == "waiting"
    began = anyio.current_time()
    vendor.publish()
    await consumer.until(4)
    assert anyio.current_time() == began
    assert {request.url.params["timeout"] for request in vendor.requests} == {"0", "60"}


async def test_the_latest_event_of_syncthing_is_asked_for_without_a_wait(serve):
    feed, url = declared("syncthing")
    vendor = serve(Syncthing(), url)
    began = anyio.current_time()
    assert await feed.latest() is None
    vendor.publish(5)
    assert await feed.latest() == "5"
    assert anyio.current_time() == began
    await feed.aclose()


async def test_events_that_syncthing_no_longer_had_are_a_gap(serve):
    feed, url = declared("syncthing")
    vendor = serve(Syncthing(3), url)
    vendor.buffer = 4
    assert (await feed.fetch(FetchRequest())).gap == ""
    vendor.publish(4)
    assert (await feed.fetch(FetchRequest("3"))).gap == ""
    vendor.publish(1)
    page = await feed.fetch(FetchRequest("3"))
    await feed.aclose()
    assert page.gap == "Syncthing no longer had all events"
    assert [message.data["id"] for message in page.messages] == [5, 6, 7, 8]


async def test_syncthing_answers_a_cursor_that_lies_ahead_with_nothing_as_the_page_says(serve):
    feed, url = declared("syncthing")
    vendor = serve(Syncthing(5), url)
    before, cursors = await walk(feed, None)
    vendor.restart()
    vendor.publish(4)
    assert await walk(feed, cursors[-1]) == ([], [])
    again, _ = await walk(feed, None)
    await feed.aclose()
    assert len(again) == 4
    assert len(before) == 5


def jmap_feed(vendor):
    """Return the page's feed for JMAP, on this server."""
    names = run_block("class JMAPFeed")
    client = httpx.AsyncClient(transport=Wire(vendor.handle), base_url=vendor.origin, headers=vendor.headers)
    return names["JMAPFeed"](client, "a1")


@pytest.fixture
def own():
    vendor = JMAP(5)
    return vendor, jmap_feed(vendor)


class TestJMAPFeed(FeedSuite):
    """From the first state on: what there was before that the feed does not list."""

    secrets = (SECRET,)
    longest_fetch = 6

    async def make_feed(self, count):
        self.vendor = JMAP(count)
        return await self.reopen(None)

    async def reopen(self, feed):
        return From(jmap_feed(self.vendor), "0")

    async def publish(self, feed, count):
        self.vendor.publish(count)

    async def change(self, feed):
        self.vendor.change(0)

    async def break_next(self, feed):
        self.vendor.script.append(httpx.Response(500, text=SECRET))

    async def test_going_on_after_the_end_finds_what_came_since(self):
        """By other ids than from the first state, so what they say is compared."""
        async with self._caught_up() as (feed, cursor):
            await self.publish(feed, 2)
            everything, since = await suite_walk(feed), await suite_walk(feed, cursor)
        assert [message.data for message in since.messages] == [m.data for m in everything.messages[-2:]]


async def test_a_crash_while_mails_arrive_repeats_one_mail_at_most():
    vendor = JMAP(page_size=100)
    handled, dies_at = [], 30

    async def process(mail):
        handled.append(mail.data["id"])
        if len(handled) == dies_at:
            scope.cancel()
        await anyio.sleep(1)

    store = MemoryStore()
    with anyio.CancelScope() as scope:
        async with Consumer(jmap_feed(vendor), store=store, name="mails", process=process) as consumer:
            await consumer.poll_now()
            vendor.publish(30)
            await consumer.poll_now()
    vendor.publish(1)
    async with Consumer(jmap_feed(vendor), store=store, name="mails", process=process) as consumer:
        await consumer.poll_now()
    assert len(set(handled)) == 31
    assert len(handled) - len(set(handled)) <= 1


async def test_a_mail_that_changes_and_changes_back_is_three_messages():
    vendor = JMAP(1)
    feed, ids, cursor = jmap_feed(vendor), [], "0"
    for _ in range(3):
        messages, cursors = await walk(feed, cursor)
        ids += [message.id for message in messages]
        cursor = cursors[-1]
        vendor.change(0)
    assert len(set(ids)) == 3


async def test_a_mail_that_changes_before_a_page_is_fetched_again_is_another_message():
    vendor = JMAP(2)
    feed = jmap_feed(vendor)
    before, _ = await walk(feed, "0")
    vendor.change(0)
    after, _ = await walk(feed, "0")
    assert [one.id == other.id for one, other in zip(before, after, strict=False)] == [False, True]


async def test_the_jmap_feed_of_the_page_reads_new_changed_and_destroyed_entries(own):
    vendor, feed = own
    before, cursors = await walk(feed, None)
    vendor.publish(3)
    vendor.change(0)
    vendor.change(1, "destroyed")
    after, _ = await walk(feed, cursors[-1])
    assert before == []
    assert [message.data["id"] for message in after[:3]] == [entry["id"] for _, entry in vendor.entries[5:8]]
    assert after[-1].data == {"id": vendor.entries[1][1]["id"], "destroyed": True}
    assert len({message.dedupe_key for message in after}) == 5


async def test_the_jmap_feed_of_the_page_raises_cursor_expired(own):
    vendor, feed = own
    vendor.oldest = 3
    with pytest.raises(CursorExpired, match="cannotCalculateChanges"):
        await feed.fetch(FetchRequest("1"))


@pytest.mark.parametrize("type", ["serverUnavailable", "serverFail", "accountNotFound"])
async def test_the_jmap_feed_of_the_page_does_not_take_another_error_for_an_expired_cursor(own, type):
    """Else a server that has no time now would cost messages, where the consumer goes on at the latest state."""
    vendor, feed = own
    vendor.email_changes = lambda *_: ("error", {"type": type})
    with pytest.raises(FeedError, match=type) as error:
        await feed.fetch(FetchRequest("1"))
    assert not isinstance(error.value, CursorExpired)


async def test_the_atom_example_of_the_page_prints_new_and_deleted_entries(serve, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    block = block_with("AtomFeed(")
    assert len([line for line in block.splitlines() if line.strip()]) <= 15
    vendor = serve(Atom(2), "https://github.com/python/cpython/releases.atom")
    vendor.authorization = None
    async with run_block("AtomFeed(")["releases"] as releases:
        await releases.poll_now()
        vendor.delete()
        await releases.poll_now()
    assert capsys.readouterr().out.splitlines() == [
        "2023-11-14 22:13:20+00:00 Order 1 https://github.com/orders/1",
        "2023-11-14 22:13:21+00:00 Order 2 https://github.com/orders/2",
        f"gone: {vendor.entries[-1]['id']}",
    ]


async def test_the_typed_example_of_the_page_gives_the_handler_decoded_data(capsys):
    names = run_block("class Orders(Consumer[")
    sent = [
        {"id": "1", "source": "s", "type": "placed", "data": {"customer": "Ada", "cents": 995, "note": "new"}},
        {"id": "7", "source": "s", "type": "placed", "data": {"customer": "Ada", "cents": "a few"}},
    ]
    with respx.mock() as router:
        router.get("https://shop.example/orders", params={"lastEventId": "7"}).respond(json=[])
        router.get("https://shop.example/orders").respond(json=sent)
        await names["orders"].catch_up()
    assert capsys.readouterr().out == "placed Ada 995\n"
    (letter,) = await names["orders"].dead_letters.list()
    quoted = re.search(r"``(the data of message '7' .*?) ``", PAGE, re.DOTALL)[1].replace("\n", " ")
    assert quoted in letter.error


# Other blocks of the pages

RUN = [
    r"^from push_to_poll_client import Consumer, HTTPFeed, SQLiteStore$",
    r"^from push_to_poll_client import Consumer, SQLiteStore$",
    r"^orders = HTTPFeed\(",
    r"^releases = Releases\(",
    r"^orders = DurableStreamFeed\(",
    r"^listener = SSEListener\(",
    r"^class Orders\(Consumer\[",
    r"^class (TicketFeed|JMAPFeed|TestAcmeFeed)\b",
    r"^print\(anyio\.run\(acme\.fetch",
    r"^pages = OldestFirst\(",
]
"""The blocks that a test of this file runs, besides the declarations."""


@pytest.mark.parametrize("block", RUN)
def test_each_block_that_a_test_runs_is_on_a_page(block):
    assert any(re.search(block, one, re.MULTILINE) for one in (*BLOCKS, *VENDOR_BLOCKS))


@pytest.mark.parametrize("blocks", [BLOCKS, VENDOR_BLOCKS], ids=["feeds", "vendors"])
def test_every_block_of_the_pages_is_run(blocks):
    assert [
        block
        for block in blocks
        if block not in DECLARED.values() and not any(re.search(one, block, re.MULTILINE) for one in RUN)
    ] == []


def test_the_first_example_of_the_page_consumes_a_feed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with serve_in_thread(backlog=3) as server:
        orders = run_block('SQLiteStore("orders.db")', server, TOKEN="t0k3n")["orders"]
        anyio.run(orders.catch_up)
    assert capsys.readouterr().out.count("CloudEvent(") == 3


def test_the_http_feed_of_the_page_reads_a_server_and_can_wait():
    async def read():
        page = await feed.fetch(FetchRequest())
        await feed.aclose()
        return page.messages

    with serve_in_thread(backlog=3) as server:
        feed = run_block("orders = HTTPFeed(", server)["orders"]
        messages = anyio.run(read)
    assert len(messages) == 3
    assert feed.max_wait == 20


async def test_the_durable_stream_and_its_listener_of_the_page_belong_together():
    stream = MemoryStream(token="t0k3n", page_size=20)
    stream.append(b'"a"', b'"b"')
    names = run_block("orders = DurableStreamFeed(", TOKEN="t0k3n")
    with respx.mock() as router:
        router.route(host="shop.example", path="/streams/orders").mock(side_effect=stream._answer)
        messages, _ = await walk(names["orders"], None)
    await names["orders"].aclose()
    assert [(message.id, message.data) for message in messages] == [("0", "a"), ("1", "b")]
    listener = run_block("listener = SSEListener(", **names)["listener"]
    assert "https://shop.example/streams/orders" in repr(listener)


def test_the_page_prints_the_first_page_of_acme(serve, capsys):
    feed, url = declared("acme")
    serve(Acme(2), url)
    run_block("print(anyio.run(acme.fetch", acme=feed)
    assert capsys.readouterr().out.count("Entry(id=") == 2


async def test_the_error_that_the_page_quotes_is_the_error_of_a_wrong_declaration():
    quoted = re.search(r"```text\nFeedError: (.*?)\n```", PAGE, re.DOTALL)[1].replace("\n", " ")
    body = {"object": "list", "url": "/v1/events", "has_more": False, "data": [{}, {}]}
    with respx.mock() as router:
        router.get("https://api.stripe.com/v1/events").respond(json=body)
        feed = paged.PagedFeed(
            "https://api.stripe.com/v1/events",
            entries=paged.Entries("events"),
            pages=paged.NewestFirst(next=paged.from_last("id"), send=paged.to_query("starting_after")),
        )
        with pytest.raises(FeedError) as error:
            await feed.fetch(FetchRequest())
        await feed.aclose()
    assert str(error.value) == quoted


async def test_the_class_of_the_page_reads_all_pages():
    def answer(request):
        after = int(request.url.params["after"])
        numbers = range(after + 1, min(after + 2, 5) + 1)
        return httpx.Response(200, json={"changes": [{"number": n} for n in numbers], "more": after < 3})

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="https://desk.example")
    messages, cursors = await walk(run_block("class TicketFeed")["TicketFeed"](client), None)
    assert [message.id for message in messages] == ["1", "2", "3", "4", "5"]
    assert cursors[-1] == "5"


async def test_numbered_pages_as_on_the_page_save_the_number_of_the_last_page():
    entries = [{"id": number} for number in range(5)]

    def answer(request):
        number = int(request.url.params.get("page", "1"))
        following = str(number + 1) if number * 2 < len(entries) else ""
        some = entries[number * 2 - 2 : number * 2]
        return httpx.Response(200, json=some, headers={"x-page": str(number), "x-next-page": following})

    names = {part: getattr(paged, part) for part in paged.__all__}
    feed = paged.PagedFeed(
        "https://gitlab.example/events?sort=asc",
        entries=paged.Entries(),
        pages=run_block("x-next-page", **names)["pages"],
        client=httpx.AsyncClient(transport=httpx.MockTransport(answer)),
    )
    messages, cursors = await walk(feed, None)
    entries.append({"id": 5})
    again, _ = await walk(feed, cursors[-1])
    assert [message.id for message in messages] == ["0", "1", "2", "3", "4"]
    assert cursors[-1] == "3"
    assert [message.id for message in again] == ["4", "5"]


async def test_a_vendors_feed_is_consumed_as_on_the_page(serve, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    feed, url = declared("stripe")
    serve(Stripe(3), url)
    processed = []
    consumer = run_block("Consumer(stripe", stripe=feed, process=processed.append)["consumer"]
    await consumer.catch_up()
    assert len(processed) == 3


def acme_feed(client):
    """Return the declared feed with this client, as the page says."""
    names = {"ACME_KEY": "k3y", "client": client}
    exec(DECLARED["acme"].replace('limit=100",', 'limit=100", client=client,'), names)  # noqa: S102  # it is ours
    return names["acme"]


TestAcmeFeed = run_block("class TestAcmeFeed", acme_feed=acme_feed)["TestAcmeFeed"]
