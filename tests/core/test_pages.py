"""The hardest shapes of feeds, through a whole consumer: nothing lost, nothing twice, no loop.

The cases are of real vendors, on servers that follow their protocols, in virtual time.
"""

from collections import Counter
from dataclasses import replace

import anyio
import anyio.lowlevel
import httpx
import pytest

from push_to_poll_client import CursorExpired, Resync
from push_to_poll_client.feeds.paged import (
    LINES,
    Entries,
    OldestFirst,
    PagedFeed,
    from_body,
    from_each,
    to_query,
)
from tests.feeds.test_paged_vendors import inception
from tests.support.consumers import Log
from tests.support.declared import DECLARED, feed_of
from tests.support.forms import form
from tests.support.in_flight import Ledger
from tests.vendors.graph import Graph
from tests.vendors.ntfy import Ntfy
from tests.vendors.plaid import Plaid
from tests.vendors.remote_settings import RemoteSettings
from tests.vendors.telegram import Telegram
from tests.vendors.vendor import Vendor, token

pytestmark = pytest.mark.anyio


class From:
    """A feed whose server needs a place to begin."""

    def __init__(self, vendor, **options):
        self.vendor, self.feed = vendor, feed_of(vendor, **options)

    async def fetch(self, request):
        start = inception(self.vendor) if request.cursor is None else request.cursor
        return await self.feed.fetch(replace(request, cursor=start))


async def to_the_end(consumer):
    while not (result := await consumer.poll_now(timeout=None)).caught_up:
        pass
    return result


class Mortal(Log):
    """Crash in the middle of a message; `ledger` is what its process leaves."""

    def __init__(self, feed, ledger, *, dies_at=None, **settings):
        super().__init__(feed, store=ledger, commit_interval=0.0, **settings)
        self.ledger, self.dies_at = ledger, dies_at
        self.life = anyio.CancelScope()

    async def process(self, message):
        if len(self.processed) == self.dies_at:
            self.ledger, self.dies_at = self.ledger.as_of_now(), None
            self.life.cancel()
            await anyio.lowlevel.checkpoint()
        await super().process(message)

    async def live(self):
        """Run to the crash or the end of the feed. Return the processed messages and the store."""
        with self.life:
            await to_the_end(self)
        return self.processed, self.ledger


@pytest.mark.parametrize("dies_at", form([1, 4], range(6)))
@pytest.mark.parametrize("kind", DECLARED, ids=lambda kind: kind.__name__)
async def test_a_crash_at_any_message_neither_loses_nor_repeats_a_message(kind, dies_at):
    vendor = kind(6)
    first, ledger = await Mortal(From(vendor), Ledger(), dies_at=dies_at).live()
    vendor.publish(3)
    second, _ = await Mortal(From(vendor), ledger).live()
    assert len(first) == dies_at
    assert len(first) + len(second) == len({*first, *second}) == 9


@pytest.mark.parametrize("kind", DECLARED, ids=lambda kind: kind.__name__)
async def test_a_caught_up_feed_is_read_on_from_its_end(kind):
    vendor, ledger = kind(5), Ledger()
    async with Log(From(vendor), store=ledger) as consumer:
        await to_the_end(consumer)
        asked = len(vendor.requests)
        vendor.publish()
        await to_the_end(consumer)
    assert len(consumer.processed) == len(set(consumer.processed)) == 6
    assert len(vendor.requests) - asked <= 3


# The cursor stands at the end of a chain alone, and the chain begins again


@pytest.mark.parametrize("mutations", [1, 2, 3])
async def test_a_page_chain_that_changes_restarts_at_its_first_cursor(mutations):
    vendor, ledger = Plaid(5), Ledger()
    consumer = Log(feed_of(vendor), store=ledger)
    vendor.mutate_next = mutations
    await to_the_end(consumer)
    cursors = [httpx.Response(200, content=request.content).json().get("cursor") for request in vendor.requests]
    assert len(consumer.processed) == len(set(consumer.processed)) == 5
    assert cursors.count(None) == 1 + mutations
    assert [cursor for cursor, _ in ledger.commits if cursor] == [token(at=5, of=None)]


async def test_a_cursor_in_the_middle_of_a_page_chain_is_not_saved():
    vendor, ledger = Plaid(5), Ledger()
    await Mortal(feed_of(vendor), ledger, dies_at=4).live()
    assert {cursor for cursor, _ in ledger.commits} == {None}


# A cursor that expired, with and without a new start


@pytest.mark.parametrize(
    "policy", [lambda error: Resync(error.start, forget=True), Resync("inception", forget=True)]
)
async def test_an_expired_cursor_is_replaced_by_the_start_that_the_server_or_the_user_gives(policy):
    vendor = Graph(3)
    async with Log(feed_of(vendor), on_cursor_expired=policy) as consumer:
        await to_the_end(consumer)
        vendor.expire()
        vendor.publish()
        await to_the_end(consumer)
    assert [message.split("@")[0] for message in consumer.processed[3:]] == [
        entry["id"] for entry in vendor.entries
    ]


async def test_an_expired_cursor_stops_a_consumer_without_a_policy():
    vendor = Graph(3)
    async with Log(feed_of(vendor)) as consumer:
        await to_the_end(consumer)
        vendor.expire(status=400, code="syncStateNotFound", location=False)
        with pytest.raises(CursorExpired) as expired:
            await consumer.poll_now()
    assert expired.value.start is None


# A silent replay of everything


async def replayed(vendor, forget, *, new):
    async with Log(feed_of(vendor)) as consumer:
        await to_the_end(consumer)
        forget()
        vendor.publish()
        result = await to_the_end(consumer)
    assert len(consumer.processed) == len(set(consumer.processed)) == 5 + new
    return result


async def test_messages_that_a_server_replays_after_an_unknown_id_are_duplicates():
    vendor = Ntfy(5)

    def forget():
        vendor.entries[-1] = vendor.entry(50)

    result = await replayed(vendor, forget, new=2)
    assert result.duplicates == 4


async def test_messages_that_a_server_replays_after_a_redirect_without_the_cursor_are_duplicates():
    vendor = RemoteSettings(5)

    def forget():
        vendor.oldest = vendor.timestamp + 1

    result = await replayed(vendor, forget, new=1)
    assert result.duplicates >= 5


# Cursors that move, stay, or go back


async def test_the_cursor_moves_past_entries_that_are_not_messages():
    """The cursor passes entries that no handler gets."""
    vendor = Ntfy(4)
    entries = Entries(LINES, only=lambda event: False)
    feed = PagedFeed(
        f"{vendor.url}?poll=1",
        entries=entries,
        pages=OldestFirst(cursor=from_each("id"), send=to_query("since")),
        client=vendor.client(),
        headers=vendor.headers,
    )
    ledger = Ledger()
    consumer = Log(feed, store=ledger)
    await to_the_end(consumer)
    assert ledger.commits[-1][0] == vendor.entries[-1]["id"]
    assert consumer.processed == []


async def test_an_empty_page_does_not_end_the_poll_if_more_pages_follow():
    vendor = Graph(5)
    vendor.empty_pages = 2
    consumer = Log(feed_of(vendor))
    result = await to_the_end(consumer)
    assert len(consumer.processed) == 5
    assert result.pages > 5


class Scripted(Vendor):
    """Return scripted answers, whatever the request."""

    def __init__(self, *pages):
        super().__init__()
        self.pages = pages

    def answer(self, request):
        page = self.pages[min(len(self.requests), len(self.pages)) - 1]
        return httpx.Response(200, json=page)

    def feed(self):
        pages = OldestFirst(cursor=from_body("cursor"), send=to_query("since"), more=from_body("more"))
        options = {"client": self.client(), "headers": self.headers}
        return PagedFeed(self.url, entries=Entries("events"), pages=pages, **options)


def page(cursor, *ids, more=True):
    return {"events": [{"id": name} for name in ids], "cursor": cursor, "more": more}


async def test_the_same_page_with_the_same_cursor_ends_the_poll():
    vendor = Scripted(page("c", "1", "2"))
    consumer = Log(vendor.feed())
    result = await consumer.poll_now()
    assert (consumer.processed, result.caught_up) == (["1", "2"], False)
    assert result.standstill.startswith("the feed announces more pages, but leads back to cursor 'c'")
    assert len(vendor.requests) == 2


def standing(caplog):
    """Cursors at which a standstill of the feed was reported."""
    text = "the end of the feed is not reached: the feed announces more pages, but leads back to cursor "
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert all(text in line for line in lines)
    return [line.partition(text)[2].partition(" ")[0] for line in lines]


async def test_a_feed_without_progress_is_logged_once_for_each_cursor(caplog):
    vendor = Scripted(page("c", "1", "2"))
    async with Log(vendor.feed()) as consumer:
        for cursor in "ccdd":
            vendor.pages = [page(cursor, "1", "2")]
            assert (await consumer.poll_now()).standstill
    assert standing(caplog) == ["'c'", "'d'"]


async def test_an_empty_page_that_leads_to_itself_is_logged_as_a_feed_without_progress(caplog):
    vendor = Scripted(page("c", "1"), page("c"))
    await Log(vendor.feed()).poll_now()
    assert standing(caplog) == ["'c'"]


async def test_new_messages_at_an_unchanged_cursor_count_as_progress(caplog):
    vendor = Scripted(page("c", "1"), page("c", "2"), page("c", "3"), page("d", more=False))
    consumer = Log(vendor.feed())
    await consumer.poll_now()
    assert consumer.processed == ["1", "2", "3"]
    assert standing(caplog) == []


@pytest.mark.parametrize("cursor", [from_each("at"), from_body("at")])
async def test_a_repeated_page_at_the_requested_cursor_is_the_end_without_a_warning(cursor, caplog):
    """Feeds that are read by a time, inclusive, repeat the last page."""
    vendor = Scripted({"events": [{"id": "1", "at": 7}, {"id": "2", "at": 7}], "at": 7})
    options = {"client": vendor.client(), "headers": vendor.headers}
    pages = OldestFirst(cursor=cursor, send=to_query("since"))
    feed = PagedFeed(vendor.url, entries=Entries("events"), pages=pages, **options)
    consumer = Log(feed)
    assert (await consumer.poll_now()).caught_up
    assert consumer.processed == ["1", "2"]
    assert len(vendor.requests) == 2
    assert standing(caplog) == []


async def test_a_circle_of_pages_ends_the_poll():
    vendor = Scripted(*[page(cursor, "1", "2") for cursor in "abc" * 20])
    consumer = Log(vendor.feed())
    await consumer.poll_now()
    assert consumer.processed == ["1", "2"]
    assert len(vendor.requests) < 12


async def test_a_cursor_that_goes_back_is_saved_and_no_message_is_lost():
    vendor = Scripted(
        page("3", "1", "2", "3"), page("2", "2", "3", "4"), page("5", "3", "4", "5"), page("5", more=False)
    )
    ledger = Ledger()
    consumer = Log(vendor.feed(), store=ledger)
    await to_the_end(consumer)
    assert Counter(consumer.processed) == Counter("12345")
    assert [cursor for cursor, _ in ledger.commits if cursor] == ["3", "2", "5"]


# Fetching acknowledges


async def test_a_fetch_acknowledges_only_committed_messages():
    vendor, ledger = Telegram(7), Ledger()
    deleted = []

    class Watched(Log):
        async def process(self, message):
            deleted.append((vendor.deleted, len(ledger.recorded)))

    await to_the_end(Watched(feed_of(vendor), store=ledger))
    assert len(deleted) == 7
    assert all(gone <= committed for gone, committed in deleted)
    assert vendor.deleted == 7
