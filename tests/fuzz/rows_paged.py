"""Rows for declared feeds: single parts, and the feeds of all vendors in the tests."""

import re
from functools import partial

import httpx

from push_to_poll_client import FeedError
from push_to_poll_client.feeds._decoding import elements, members
from push_to_poll_client.feeds._paged.body import DeclarationMismatch, Reply, outline, text_of
from push_to_poll_client.feeds._paged.entries import check_order
from push_to_poll_client.feeds._paged.outcomes import apply_outcomes
from push_to_poll_client.feeds._paged.pagination import PagePosition
from push_to_poll_client.feeds._paged.senders import RequestParts
from push_to_poll_client.feeds.paged import (
    CONTENTS,
    LINES,
    Entries,
    NewestFirst,
    OldestFirst,
    as_url,
    at_end,
    closed,
    expired,
    from_body,
    from_each,
    from_first,
    from_header,
    from_last,
    from_link,
    full_page,
    gap,
    gone,
    not_ready,
    pause,
    restart,
    status,
    throttled,
    to_body,
    to_header,
    to_query,
)
from tests.fuzz.answers import answer_of, check_error, direct_client, look_at, walk, written
from tests.fuzz.fuzzed import Fuzzed, around, nested, words
from tests.fuzz.fuzzed import text_of as anything
from tests.fuzz.rows_feeds import JSON_HOSTILE, JSON_TOKENS, NOTHING, reference, restored_from
from tests.support.declared import DECLARED, feed_of
from tests.vendors.couchdb import CouchDB
from tests.vendors.github import GitHub
from tests.vendors.graph import Graph
from tests.vendors.plaid import Plaid
from tests.vendors.vendor import Wire

__all__ = ["ROWS"]

PATHS = ((), ("a",), ("a", "b"), ("a", 0), (0,), (-1, "a"), ("a", "b", 1, "c"))


def read_reply(data):
    """Parse a part of the body; the result is the same as within the whole body."""
    reply = Reply(answer_of(b"200\n\n" + data))
    value = reference(data)
    for path in PATHS:
        found = reply.at(*path)
        if value is not NOTHING:
            assert found == _at(value, path), path
        raw = reply.raw_at(*path)
        if raw is not None:
            assert outline(raw).isprintable()
            assert len(outline(raw)) < 1000
        text = text_of(found)
        assert text is None or text
    if value is not NOTHING:
        assert reply.body == value
    _ = members(data), reply.link("next")
    try:
        assert all(elements(data))
    except ValueError:
        assert not isinstance(value, list)


def _at(value, path):
    for step in path:
        try:
            value = value[step] if isinstance(value, dict if isinstance(step, str) else list) else None
        except LookupError:
            return None
    return value


ENTRIES = {
    "a list": lambda: Entries(type="type", time=("a", 0), deleted="gone"),
    "a list in an object": lambda: Entries(("a", "b"), id=("id", 0), version="v"),
    "several lists": lambda: Entries("a", "b", version=CONTENTS, deletions="b", optional=True, newest_first=True),
    "lines": lambda: Entries(LINES, version="v", only=lambda entry: entry["a"]),
}


def read_entries(data, where):
    entries = ENTRIES[where]()
    reply = Reply(answer_of(b"200\n\n" + data))
    parts = entries.find(reply, 200)
    for message in entries.read(parts, each=from_each("c").of, start="s"):
        look_at(message)
        assert len(message.dedupe_key) <= 1100
        restored_from(entries, message)
    assert len(reply.entries) <= reply.size <= 200


def read_times(data):
    """Check the order of entries; at most one order is right."""
    entries = Entries(id=lambda _: "1", time="t")
    messages = entries.read(entries.find(Reply(answer_of(b"200\n\n" + data)), 200), each=None, start=None)
    wrong = []
    for order in ("oldest first", "newest first"):
        try:
            assert check_order(messages, order, "the feed", first=True)
        except FeedError as error:
            wrong.append(error)
    assert len(wrong) < 2


OUTCOMES = (
    expired(status(410), start=from_body("start") | from_header("location")),
    restart(from_body("error", "code").equals("restart", 7)),
    throttled(status(429) & ~from_body("a"), after=from_body("after")),
    gone(from_header("gone")),
    not_ready(from_body("ready").equals("no"), after=from_header("after")),
    pause(from_body("pause")),
    pause(from_header("pause")),
    closed(from_body("closed")),
    gap(from_body("limited")),
)


def read_outcomes(data):
    reply = Reply(answer_of(data))
    found = apply_outcomes(OUTCOMES, reply)
    assert found.retry_after is None or found.retry_after >= 0
    if found.error is not None:
        check_error(found.error)


PAGES = (
    OldestFirst(cursor=from_last("id"), send=to_query("after")),
    OldestFirst(cursor=from_body("cursor"), send=as_url(), next=from_link("next")),
    OldestFirst(cursor=at_end(from_body("cursor")), send=to_body("a", "b", as_json=True), more=from_body("more")),
    OldestFirst(cursor=from_first("id"), send=to_header("Last-Seen"), more=full_page(2), each=from_each("id")),
)
BACK = (
    NewestFirst(next=from_link(), send=as_url()),
    NewestFirst(next=from_body("next"), send=to_query("before"), more=from_body("more")),
)


def read_orders(data):
    """Read the declared parts; each gives the next request or an error with a reason."""
    reply = Reply(answer_of(data))
    reply.entries = [reply.at("entries", 0), reply.at("entries", 1)]
    for pages in PAGES:
        for place in (PagePosition(None), PagePosition("s", "p")):
            _tried(partial(_lead, pages, place), reply)
    for pages in BACK:
        _tried(pages.older, reply)


def _tried(function, reply):
    try:
        function(reply)
    except (DeclarationMismatch, FeedError) as error:
        assert len(str(error)) < 2000  # noqa: PT017  # it need not be raised


def _lead(pages, place, reply):
    cursor, following = pages.leads_to(reply, place)
    for position in (cursor, following):
        assert position is None or position
        if position is not None and following is not None:
            assert PagePosition.of(PagePosition(place.start, position).as_cursor) == PagePosition(
                place.start, position
            )


def read_position(data):
    """Put any saved cursor into a request, or reject it."""
    position = anything(data)
    place = PagePosition.of(position)
    assert PagePosition.of(place.as_cursor) == place or place.page is None
    for pages in PAGES:
        try:
            asking = pages.put(RequestParts(body={"a": {"c": 1}}), place)
        except ValueError:
            continue
        assert all(isinstance(value, str) for value in asking.query.values())


def feed_by(vendor, answers):
    """Return the feed of a vendor, with these responses."""
    return feed_of(vendor, client=direct_client(answers), headers={}, max_body=4096)


def read_vendor(data, vendor):
    feed = feed_by(vendor, data)
    for message in walk(feed):
        restored_from(feed, message)


def read_cursor(data):
    """Read feeds of each kind from a cursor that they did not return."""
    for kind in (Graph, Plaid, CouchDB, GitHub):
        walk(feed_by(VENDORS[kind], b"204\n"), anything(data) or None)


VENDORS = {kind: kind(5) for kind in DECLARED}


def walked(vendor):
    """Return the responses of a vendor to a client that reads the whole feed."""
    answers = []

    async def handle(request):
        response = await vendor.handle(request)
        await response.aread()
        head = b"".join(b"%b: %b\n" % field for field in response.headers.raw)
        answers.append(b"%d\n%b\n%b" % (response.status_code, head, response.content))
        return response

    walk(feed_of(vendor, client=httpx.AsyncClient(transport=Wire(handle))))
    return written(*answers)


def named_in(answers):
    """Return the names of members."""
    return tuple(sorted({*re.findall(rb'"[^" ]{1,30}":', answers)}))


ANSWER_TOKENS = (
    *words(r"200\n 410\n 429\n 304\n link:\x20 location:\x20 retry-after:\x20 \n\n \n=====\n"),
    *JSON_TOKENS,
)

ROWS = (
    Fuzzed(
        name="replies",
        modules=("feeds._paged.body", "feeds._decoding"),
        read=read_reply,
        examples=(
            b'{"a": {"b": [1, {"c": "x"}]}}',
            b'{"a": {"b": [1, {"c": nonsense}], "x": "y"}}',
            b'[{"a": 1}, {"a": [[}, 3]',
            b'{"a": [true, 1.5, 99999999999999999999999999, "\\ud83d\\ude00"], "a": []}',
            b'{"a" : [}',
        ),
        tokens=(
            *words(r'"a" "b" "c"'),
            *JSON_TOKENS,
        ),
        frame=(b'{"a":', b"}"),
        hostile={
            "members": around(b"{", b'"a": {,', b"}}"),
            "in places": nested(b'{"a":{"b":', b"}}"),
            **JSON_HOSTILE,
        },
        found=(b'{"a": ["\\ude00"], "a": []}',),
    ),
    *(
        Fuzzed(
            name=f"entries of {where}",
            modules=("feeds._paged.entries", "feeds._paged.body", "feeds._paged.readers"),
            read=partial(read_entries, where=where),
            errors=(DeclarationMismatch,),
            examples=(
                b'[{"id": "1", "type": "t", "a": [1], "c": 5}, {"id": 2, "gone": true}, {"id": 1.5}]',
                b'{"a": {"b": [{"id": ["x"], "v": {"w": 1}, "k": true}, {"id": ["y"], "k": "z"}]}}',
                b'{"a": [{"id": "1"}], "b": [{"id": "1"}, {"id": "2", "x": 1e5}]}',
                b'{"id": "1", "a": 1}\n\n{"id": "2", "a": 0}\n{"id": "3"',
                b'{"a": [{"id": "1"}, {]}]}',
                b'{"id": "1", "a": 1, "v": 2}\n{"id": "2", "a": 0}\n\n{"id": "3", "a": [1], "v": "x"}\r\n',
            ),
            tokens=(
                *words(r'"id" "v" "k" "a" "b" "c" {"id":"1"}, {"id":"1"}\n'),
                *JSON_TOKENS,
            ),
            frame=(b'{"a":[', b"]}"),
            hostile={
                "lines": around(b"", b'{"id":"1","a":1}\n'),
                "entries": around(b"[", b'{"id":"1"},', b'{"id":"2"}]'),
                "entries, one broken": around(b"[", b'{"id":"1"},', b"{]"),
                "entries in a list": around(b'{"a":[', b'{"id":"1"},', b"{]}"),
                **JSON_HOSTILE,
            },
            found=(
                b"\x0b",
                b'{"id": "1", "a": 1, "v": 2\n}{"id": "2", "a": 0}\n{"id": "3", "a": 1, "v": "x"}\n',
            ),
        )
        for where in ENTRIES
    ),
    Fuzzed(
        name="times of entries",
        modules=("feeds._paged.entries",),
        read=read_times,
        errors=(DeclarationMismatch,),
        examples=(
            b'[{"t": 1}, {"t": 2.5}, {"t": "3"}, {"t": 4}]',
            b'[{"t": "2024-01-01T00:00:03Z"}, {"t": "2024-01-01T00:00:02+00:00"}, {"t": "2024-01-01"}, {"t": 0}]',
            b'[{"t": "4"}, {"t": null}, {"t": [1]}, {"t": true}]',
            b'[{"t": "0001-01-01T00:00:00+23:59"}, {"t": "9999-12-31T23:59:59-23:59"}, {"t": "nan"}, {"t": 1}]',
        ),
        tokens=(
            *words(r'"t" {"t":1}, {"t":"1"}, {"t":"2024-01-01T00:00:00Z"}, nan inf +00:00 Z'),
            *JSON_TOKENS,
        ),
        frame=(b'[{"t":"', b'"},{"t":2},{"t":3},{"t":4}]'),
        hostile={"digits": around(b'[{"t":1', b"0", b'},{"t":2},{"t":3},{"t":4}]')},
        found=(),
    ),
    Fuzzed(
        name="outcomes",
        modules=("feeds._paged.outcomes", "feeds._paged.readers", "feeds._paged.body"),
        read=read_outcomes,
        examples=(
            b'410\nlocation: https://api.vendor.example/start\n\n{"start": ""}',
            b'429\n\n{"after": 5}',
            b'200\npause: 1.5\n\n{"pause": "60", "closed": true, "limited": 1, "error": {"code": "restart"}}',
            b'200\nafter: 9\ngone: 1\n\n{"ready": "no"}',
        ),
        tokens=(
            *words(r'"after" "pause" "start" "ready" "closed" "error" "code" pause:\x20 after:\x20 nan inf _'),
            *ANSWER_TOKENS,
        ),
        frame=(b'429\n\n{"after":', b"}"),
        hostile={
            "digits": around(b'429\n\n{"after":1', b"0", b"}"),
            "a header": around(b"200\npause: ", b"9", b"\n\n"),
        },
        found=(b'200\n\n{"pause": 1' + b"0" * 400 + b"}",),
    ),
    Fuzzed(
        name="orders",
        modules=("feeds._paged.pagination", "feeds._paged.readers"),
        read=read_orders,
        examples=(
            (
                b'200\nlink: </2>; rel=next\n\n{"entries": [{"id": 1}, {"id": "2"}], "cursor": {"x": 1}, '
                b'"more": true, "next": "n"}'
            ),
            b'200\n\n{"entries": [null, 1], "more": 1}',
            b'200\n\n{"cursor": "page 1", "entries": [{"id": [1.5]}]}',
        ),
        tokens=(
            *words(r'"entries" "id" "cursor" "more" "next" page\x20'),
            *ANSWER_TOKENS,
        ),
        frame=(b'200\n\n{"entries":[', b"]}"),
        found=(b'200\nlink: <\x0e2>; rel=next\n\n{"entries": [{"id": 1}], "cursor": 1}',),
    ),
    Fuzzed(
        name="positions",
        modules=("feeds._paged.pagination", "feeds._paged.senders"),
        read=read_position,
        examples=(b'page ["start","next"]', b'page [null,"https://a.example/"]', b"page x", b"12", b'{"a": 1}'),
        tokens=(
            *words(r"page\x20"),
            *JSON_TOKENS,
        ),
        frame=(b'page ["', b'","x"]'),
        hostile={"nested": nested(b"[", b"]", b"page "), "a third": around(b'page ["a","b"', b",1", b"]")},
    ),
    *(
        Fuzzed(
            name=f"the feed of {kind.__name__}",
            modules=("feeds.paged", "feeds._paged.request", "feeds._paged.pagination", "feeds._paged.senders"),
            read=partial(read_vendor, vendor=vendor),
            examples=(answers, b"410\n", b"200\ncontent-type: text/html\n\n<html>"),
            tokens=(*named_in(answers), *ANSWER_TOKENS),
            frame=(b"200\n\n[", b"]"),
        )
        for kind, vendor in VENDORS.items()
        for answers in [walked(vendor)]
    ),
    Fuzzed(
        name="foreign cursors",
        modules=("feeds.paged", "feeds._paged.senders", "feeds._newest_first"),
        read=read_cursor,
        examples=(
            b"12",
            b"https://graph.vendor.example/d",
            b'page [null,"x"]',
            b'{"seen":""}',
            b"/relative",
            b"a\x7fb",
        ),
        tokens=words(r'page\x20 https:// // [ ] : ? # % \x20 \n \xc3\xbc \xff @ {"seen":""}'),
        frame=(b"https://", b""),
        found=(b"http://[", b"\xff", b'page [null,"//[::1"]'),
    ),
)
