"""Wrong declarations, on servers whose pages look valid. In virtual time.

Each of them would end before the end of the feed without an error. A warning or error names the evidence; a
correct declaration causes none.
"""

import logging
from contextlib import suppress
from operator import itemgetter

import anyio
import httpx
import pytest

from push_to_poll_client import FeedError, FetchRequest, HTTPFeed, MemoryStore
from push_to_poll_client.cli._tail import _run_once
from push_to_poll_client.feeds.paged import (
    Entries,
    NewestFirst,
    OldestFirst,
    PagedFeed,
    as_url,
    at_end,
    from_body,
    from_each,
    from_header,
    from_last,
    full_page,
    to_query,
)
from tests.support.consumers import Log
from tests.vendors.vendor import Wire

pytestmark = pytest.mark.anyio

URL = "https://api.vendor.example/events"


def rows(count, time=lambda number: number, start=1):
    return [{"id": str(number), "n": number, "time": time(number)} for number in range(start, start + count)]


class Server:
    """Entries with the cursor above `since`, or from it on; pages of `size`, newest first if `newest`.

    `answer` builds the body from a page and True if another page follows.
    """

    def __init__(self, entries, *, size=100, by="n", inclusive=False, newest=False, answer=None, heeds=True):
        self.entries = entries
        self.size = size
        self.by = by
        self.inclusive = inclusive
        self.newest = newest
        self.answer = answer or (lambda page, more: {"items": page})
        self.heeds = heeds
        self.requests = []

    async def __call__(self, request):
        self.requests.append(request)
        since, before = (request.url.params.get(name) for name in ("since", "before"))
        there = sorted(self.entries, key=itemgetter(self.by))
        keys = [str(entry[self.by]) for entry in there]
        if since in keys and self.heeds:
            there = there[keys.index(since) if self.inclusive else len(keys) - keys[::-1].index(since) :]
        if before in keys:
            there = there[: keys.index(before)]
        if self.newest:
            there.reverse()
        page = there[: self.size]
        return httpx.Response(200, json=self.answer(page, len(there) > self.size))


def feed_on(server, *, url=URL, entries=None, pages):
    client = httpx.AsyncClient(transport=Wire(server))
    return PagedFeed(url, entries=entries or Entries("items"), pages=pages, client=client)


def forward(cursor=None, **options):
    return OldestFirst(cursor=cursor or from_last("n"), send=to_query("since"), **options)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# A page that links to itself


def one_time(number):
    return "2024-01-01T00:00:00Z" if 9 < number <= 500 else f"2024-02-{number:06}"


def ties(url=URL, more=None, cursor=from_last, size=100):
    """491 entries with the same time on pages of 100, and some later ones."""
    server = Server(rows(500, one_time), size=size, by="time", inclusive=True)
    return feed_on(server, url=url, pages=forward(cursor("time"), more=more)), server


TIES = pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="undeclared"),
        pytest.param({"more": full_page(100)}, id="full_page"),
        pytest.param({"cursor": from_each}, id="from_each"),
        pytest.param({"url": f"{URL}?limit=70", "size": 70}, id="the URL says the size"),
    ],
)


@TIES
async def test_more_entries_of_one_time_than_fit_on_a_page_are_a_standstill_also_after_a_restart(
    options, running, caplog
):
    feed, _ = ties(**options)
    store = MemoryStore()
    for _ in range(2):
        caplog.clear()
        consumer = running(Log(feed, store=store))
        await anyio.sleep(1_000)
        status = consumer.status()
        assert "leads back to cursor '2024-01-01T00:00:00Z'" in status.standstill
        assert status.last_caught_up is None
        assert warnings(caplog) == [f"{feed.identity}: the end of the feed is not reached: {status.standstill}"]
        consumer.stop()
        await anyio.sleep(1)


@TIES
async def test_more_entries_of_one_time_than_fit_on_a_page_are_never_called_caught_up(options):
    consumer = Log(ties(**options)[0])
    for call in (consumer.poll_now, consumer.catch_up):
        result = await call()
        assert not result.caught_up
        assert "leads back to cursor" in result.standstill
    with pytest.raises(FeedError, match=r"leads back to cursor .* may ignore the cursor"):
        await _run_once(consumer)


@pytest.mark.parametrize("number", [20, 25, 50])
async def test_entries_of_one_time_that_fill_no_page_as_large_as_others_are_the_end(number):
    server = Server(rows(100) + rows(number, lambda _: 1_000, start=101), by="time", inclusive=True)
    result = await Log(feed_on(server, pages=forward(from_last("time")))).catch_up()
    assert (result.caught_up, result.messages) == (True, 100 + number)


async def test_feeds_that_share_a_declaration_learn_nothing_from_each_other():
    pages = forward(from_last("time"))
    large = Server(rows(300), by="time", inclusive=True)
    assert (await Log(feed_on(large, pages=pages)).catch_up()).caught_up
    small = Server(rows(200, lambda _: 9), size=50, by="time", inclusive=True)
    result = await Log(feed_on(small, pages=pages)).catch_up()
    assert (result.caught_up, result.messages) == (False, 50)


async def test_a_first_page_without_a_readable_entry_is_an_error_in_each_feed_of_a_declaration():
    entries = Entries("items")
    right, wrong = (Server([{name: "1", "n": 1}]) for name in ("id", "uuid"))
    assert (await Log(feed_on(right, entries=entries, pages=forward(from_last("n")))).catch_up()).messages == 1
    with pytest.raises(FeedError, match="no entry of the first page can be read"):
        await feed_on(wrong, entries=entries, pages=forward(from_last("n"))).fetch(FetchRequest())


async def test_lag_grows_while_a_feed_does_not_advance(running, virtual_day):
    server = Server(rows(3), size=100, by="time", inclusive=True)
    consumer = running(Log(feed_on(server, pages=forward(from_last("time")))))
    await anyio.sleep(100)
    reached = consumer.status().last_caught_up
    assert reached is not None
    server.entries += rows(300, lambda _: 9, start=4)
    await anyio.sleep(1_000)
    assert consumer.status().last_caught_up < reached + 100
    assert consumer.status().standstill is not None


@pytest.mark.parametrize("url", [URL, f"{URL}?limit=100"])
@pytest.mark.parametrize("last", [1, 2, 19, 33, 99])
async def test_the_last_entries_again_are_the_end_of_a_feed(url, last):
    server = Server(rows(100) + rows(last, lambda _: 1000, start=101), size=100, by="time", inclusive=True)
    consumer = Log(feed_on(server, url=url, pages=forward(from_last("time"))))
    assert (await consumer.catch_up()).caught_up
    assert len(consumer.processed) == 100 + last


async def test_a_full_page_is_known_by_the_url_where_that_says_its_size():
    server = Server(rows(50, lambda _: 7), size=200, by="time", inclusive=True)
    consumer = Log(feed_on(server, url=f"{URL}?limit=200", pages=forward(from_last("time"))))
    assert (await consumer.catch_up()).caught_up


async def test_a_server_that_does_not_heed_the_cursor_is_a_standstill():
    server = Server(rows(500), heeds=False)
    result = await Log(feed_on(server, pages=forward())).catch_up()
    assert "leads back to cursor '100'" in result.standstill


@pytest.mark.parametrize(("count", "caught_up"), [(1, True), (2, False), (100, False)])
async def test_an_http_feed_whose_server_does_not_heed_the_cursor_is_a_standstill(count, caught_up):
    """If the feed ends with this event, a correct server also sends just that one event."""

    def answer(_request):
        return httpx.Response(200, json=[{"id": str(n), "source": "s"} for n in range(count)])

    consumer = Log(HTTPFeed(URL, client=httpx.AsyncClient(transport=httpx.MockTransport(answer))))
    result = await consumer.poll_now()
    assert (result.messages, result.caught_up) == (count, caught_up)
    assert (result.standstill is None) is caught_up


# `more` reads a field that no response has


def with_more(page, more):
    return {"items": page, "hasMore": more}


MISNAMED = [
    pytest.param(from_body("has_more"), id="body"),
    pytest.param(from_header("x-more"), id="header"),
    pytest.param(from_body("has_more").equals("yes"), id="equals"),
    pytest.param(lambda reply: reply.at("has_more"), id="function"),
]


@pytest.mark.parametrize("more", MISNAMED)
@pytest.mark.parametrize("size", [2, 7, 100])
async def test_a_more_that_no_answer_has_is_named_and_costs_no_message(more, size, caplog):
    server = Server(rows(3 * size + 1), size=size, answer=with_more)
    consumer = Log(feed_on(server, pages=forward(more=more)))
    result = await consumer.poll_now()
    assert (len(consumer.processed), result.caught_up) == (3 * size + 1, True)
    (warning,) = warnings(caplog)
    assert f"{URL} does not match its declaration: more= (" in warning
    assert "found nothing in a page, but another page followed" in warning
    server.entries += rows(3 * size, start=len(server.entries) + 1)
    assert (await consumer.poll_now()).messages == 3 * size
    assert len(warnings(caplog)) == 1


async def test_a_more_that_no_answer_has_is_named_with_what_the_answer_has(caplog):
    server = Server(rows(250), answer=with_more)
    await Log(feed_on(server, pages=forward(more=from_body("has_more")))).poll_now()
    (warning,) = warnings(caplog)
    assert "more= (from_body('has_more')) found nothing in a page" in warning
    assert "{'items': array of 100, 'hasMore': boolean}" in warning
    assert "correct more=" in warning


async def test_a_more_that_no_answer_has_is_named_after_a_restart_in_the_middle_of_a_backlog(caplog):
    server = Server(rows(400), answer=with_more)
    feed = feed_on(server, pages=forward(more=from_body("has_more")))
    page = await feed.fetch(FetchRequest("100"))
    assert page.next_page == "200"
    assert (await feed.fetch(FetchRequest("200"))).next_page == "300"
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("size", [5, 70])
async def test_a_more_that_no_answer_has_costs_no_message_after_a_restart(size, caplog):
    """The full page size is unknown, and the first page of this process is not the first of a new consumer."""
    server, store = Server(rows(1), size=size, answer=with_more), MemoryStore()
    for _ in range(2):
        consumer = Log(feed_on(server, pages=forward(more=from_body("has_more"))), store=store, name="orders")
        assert (await consumer.poll_now()).caught_up
        assert len(consumer.processed) in {1, 3 * size}
        server.entries += rows(3 * size, start=2)
    assert len(warnings(caplog)) == 1


async def test_a_more_that_no_answer_has_costs_no_message_after_a_small_page(caplog):
    server = Server(rows(1), size=70, answer=with_more)
    consumer = Log(feed_on(server, pages=forward(more=from_body("has_more"))))
    await consumer.poll_now()
    for count in (3, 60, 220):
        server.entries += rows(count, start=len(server.entries) + 1)
        assert (await consumer.poll_now()).messages == count
    assert len(warnings(caplog)) == 1


async def test_a_more_that_no_answer_has_at_the_end_of_a_chain_costs_no_message(caplog):
    server = Server(rows(301), answer=with_more)
    pages = forward(at_end(from_last("n")), more=from_body("has_more"))
    consumer = Log(feed_on(server, pages=pages))
    assert (await consumer.catch_up()).messages == 301
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("count", [1, 2, 60, 99, 100, 101, 200, 250])
@pytest.mark.parametrize("inclusive", [False, True])
async def test_a_server_that_leaves_out_more_at_the_end_is_not_reported(count, inclusive, caplog):
    def sometimes(page, more):
        return {"items": page} | ({"next": page[-1]["n"]} if more else {})

    server = Server(rows(count), answer=sometimes, inclusive=inclusive)
    consumer = Log(feed_on(server, pages=forward(more=from_body("next"))))
    assert (await consumer.poll_now()).caught_up
    assert len(consumer.processed) == count
    requests = len(server.requests)
    for _ in range(5):
        server.entries += rows(3, start=len(server.entries) + 1)
        assert (await consumer.poll_now()).messages == 3
    # The doubt adds no request, except one after the first page that is larger than each earlier one.
    assert len(server.requests) == requests + 5 + (count < 3)
    assert warnings(caplog) == []


async def test_a_server_that_leaves_out_more_is_not_reported_for_entries_that_arrived_later(caplog):
    server = Server(rows(3), answer=lambda page, more: {"items": page} | ({"next": "…"} if more else {}))

    class Slow(Log):
        async def process(self, message):
            await super().process(message)
            if message.id == "3":
                server.entries += rows(3, start=4)

    consumer = Slow(feed_on(server, pages=forward(more=from_body("next"))))
    assert (await consumer.poll_now()).messages == 6
    assert warnings(caplog) == []


@pytest.mark.parametrize("more", [from_body("has_more") | full_page(100), from_body("hasMore")])
async def test_a_more_that_is_stated_takes_no_further_request(more, caplog):
    server = Server(rows(160), answer=with_more)
    consumer = Log(feed_on(server, pages=forward(more=more)))
    assert (await consumer.poll_now()).caught_up
    assert len(server.requests) == 2
    assert warnings(caplog) == []


def backward(more, **options):
    return NewestFirst(next=from_last("n"), send=to_query("before"), more=more, **options)


@pytest.mark.parametrize("size", [10, 70, 100])
async def test_a_more_that_no_answer_has_does_not_make_newest_first_a_feed_of_one_page(size, caplog):
    """Stripe sends 10 entries on a page by default."""
    server = Server(rows(250), size=size, newest=True, answer=with_more)
    consumer = Log(feed_on(server, pages=backward(from_body("has_more"))))
    assert (await consumer.poll_now()).caught_up
    assert consumer.processed == [str(number) for number in range(1, 251)]
    assert "more= (from_body('has_more'))" in warnings(caplog)[0]


@pytest.mark.parametrize(
    "next",
    [
        lambda reply: reply.at("next") + 1,
        from_body("nowhere"),
        lambda _: "https://elsewhere.example/",
    ],
)
async def test_newest_first_reads_nothing_that_leads_on_from_the_last_page(next, caplog):
    pages = NewestFirst(next=next, send=as_url(), more=from_body("more"))
    consumer = Log(feed_on(Server(rows(100), newest=True), pages=pages))
    assert (await consumer.poll_now()).messages == 100
    assert warnings(caplog) == []


@pytest.mark.parametrize("status", [200, 204, 400, 404, 410])
async def test_newest_first_takes_a_refusal_of_a_page_in_doubt_for_the_end(status, caplog):
    server = Server(rows(100), newest=True)

    async def answer(request):
        if "before" in request.url.params and status != 200:
            return httpx.Response(status)
        return await server(request)

    consumer = Log(feed_on(answer, pages=backward(from_body("next"))))
    assert (await consumer.poll_now()).caught_up
    assert len(consumer.processed) == 100
    assert warnings(caplog) == []


@pytest.mark.parametrize("status", [401, 403, 429, 503])
async def test_newest_first_does_not_take_an_answer_about_something_else_for_the_end(status):
    """Older entries would be lost if the token expired just then."""
    server, answers = Server(rows(400), newest=True, answer=with_more), iter([None, None, status])

    async def answer(request):
        other = next(answers, None)
        return await server(request) if other is None else httpx.Response(other)

    consumer = Log(feed_on(answer, pages=backward(from_body("has_more"))))
    with suppress(FeedError):
        await consumer.poll_now()
    await anyio.sleep(1_000)
    await consumer.poll_now()
    assert len(consumer.processed) == 400


async def test_newest_first_does_not_take_a_refusal_of_a_page_that_was_stated_for_the_end():
    server = Server(rows(250), newest=True, answer=with_more)

    async def answer(request):
        return httpx.Response(400) if "before" in request.url.params else await server(request)

    with pytest.raises(FeedError, match="400"):
        await Log(feed_on(answer, pages=backward(from_body("hasMore")))).poll_now()


# Reversed order


TIMES = {
    "numbers": lambda number: number,
    "text numbers": lambda number: f"1700000000.{number:06}",
    "UTC": lambda number: f"2024-01-01T00:{number // 60:02}:{number % 60:02}Z",
    "fractions": lambda number: f"2024-01-01T00:00:{number // 10:02}.{number % 10}00Z",
    "zones": lambda number: f"2024-01-01T{number % 2 + 1:02}:{number:02}:00+0{number % 2}:00",
    "no zone": lambda number: f"2024-01-01 00:00:{number:02}",
    "ties": lambda number: number // 2,
}
ORDER = "its entries are "


@pytest.mark.parametrize("time", TIMES.values(), ids=TIMES)
async def test_newest_first_for_a_server_that_is_oldest_first_is_an_error(time):
    server = Server(rows(12, time))
    feed = feed_on(server, entries=Entries("items", time="time"), pages=backward(None))
    with pytest.raises(FeedError, match=f"{ORDER}oldest first by time, but declared newest first"):
        await feed.fetch(FetchRequest())


@pytest.mark.parametrize("time", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("cursor", [from_last, from_each])
async def test_oldest_first_for_a_server_that_is_newest_first_is_an_error(time, cursor):
    server = Server(rows(12, time), newest=True)
    feed = feed_on(server, entries=Entries("items", time="time"), pages=forward(cursor("n")))
    with pytest.raises(FeedError, match=f"{ORDER}newest first by time, but declared oldest first") as error:
        await feed.fetch(FetchRequest())
    assert str(error.value).startswith(f"{URL} does not match its declaration: ")
    assert "declare NewestFirst(…), or Entries(newest_first=True), or remove time=" in str(error.value)


@pytest.mark.parametrize("pages", [forward(), backward(None)], ids=["oldest first", "newest first"])
async def test_the_wrong_order_of_a_feed_that_was_read_before_is_one_warning(pages, caplog):
    """Weak evidence does not stop a consumer that has run before."""
    right = not isinstance(pages, OldestFirst)
    server = Server(rows(3), newest=right)
    consumer = Log(feed_on(server, entries=Entries("items", time="time"), pages=pages))
    await consumer.poll_now()
    server.newest = not right
    server.entries += rows(30, start=40)
    await consumer.poll_now()
    server.entries += rows(30, start=80)
    await consumer.poll_now()
    (warning,) = warnings(caplog)
    assert ORDER in warning


def shuffled(number):
    return number * 7 % 13


@pytest.mark.parametrize(
    "time",
    [
        *(lambda number, order=order: order(number) for order in TIMES.values()),
        lambda _: 5,
        lambda _: None,
        lambda _: "yesterday",
        lambda number: [number],
        lambda number: number > 6,
        lambda _: "nan",
        lambda _: 10**400,
        lambda number: min(number, 3),
        shuffled,
        lambda number: -number if number != 7 else number,
        lambda number: -number if number != 7 else None,
    ],
)
@pytest.mark.parametrize("newest", [False, True])
async def test_times_in_no_clear_order_are_not_an_error(time, newest, caplog):
    """Correct order; equal, missing or mixed times; and too few times."""
    server = Server(rows(12, lambda _: None), newest=newest)
    for entry in server.entries:
        entry["time"] = time(entry["n"])
    pages = backward(None) if newest else forward()
    feed = feed_on(server, entries=Entries("items", time="time"), pages=pages)
    assert (await Log(feed).poll_now()).messages == 12
    assert warnings(caplog) == []


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_a_few_entries_show_no_order(count):
    feed = feed_on(Server(rows(count)), entries=Entries("items", time="time"), pages=backward(lambda _: False))
    assert len((await feed.fetch(FetchRequest())).messages) == count


async def test_pages_may_go_forward_while_each_has_its_newest_entry_first():
    """Discord's order: pages go forward, and each has its newest entry first."""

    def reverse(page, _more):
        return {"items": page[::-1]}

    server = Server(rows(250), answer=reverse)
    feed = feed_on(server, entries=Entries("items", time="time", newest_first=True), pages=forward())
    consumer = Log(feed)
    assert (await consumer.poll_now()).caught_up
    assert consumer.processed == [str(number) for number in range(1, 251)]


async def test_the_order_of_entries_that_have_no_part_in_the_cursor_is_not_looked_at():
    """The body has the cursor, so nothing is lost."""

    def reverse(page, more):
        return {"items": page[::-1], "cursor": page[-1]["n"] if page else "", "more": more}

    pages = forward(from_body("cursor"), more=from_body("more"))
    feed = feed_on(Server(rows(250), answer=reverse), entries=Entries("items", time="time"), pages=pages)
    assert (await Log(feed).poll_now()).messages == 250


async def test_the_entries_of_several_lists_show_no_order():
    def two(page, _more):
        return {"a": page[:2], "b": page[2:][::-1]}

    server = Server(rows(8, lambda number: -number), answer=two)
    feed = feed_on(server, entries=Entries("a", "b", time="time"), pages=forward())
    assert len((await feed.fetch(FetchRequest())).messages) == 8


async def test_an_entry_that_cannot_be_read_does_not_hide_the_order():
    server = Server(rows(12))
    del server.entries[5]["id"]
    feed = feed_on(server, entries=Entries("items", time="time"), pages=backward(None))
    with pytest.raises(FeedError, match=ORDER):
        await feed.fetch(FetchRequest())
