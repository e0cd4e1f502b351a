"""A declared feed as a whole: requests, responses, rejected declarations. In virtual time."""

import json
import logging
import re
import threading
from urllib.parse import parse_qs

import anyio
import httpx
import msgspec
import pytest
import respx

from push_to_poll_client import (
    CursorExpired,
    FeedError,
    FeedGone,
    FeedRefused,
    FetchRequest,
    Page,
    PagesChanged,
    Push,
    UnreadableMessage,
)
from push_to_poll_client._types import DeadLetter
from push_to_poll_client.feeds import _decoding
from push_to_poll_client.feeds.paged import (
    LINES,
    Entries,
    Latest,
    LongPoll,
    NewestFirst,
    OldestFirst,
    PagedFeed,
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
from tests.support.consumers import Log

pytestmark = pytest.mark.anyio

URL = "https://api.vendor.example/v1/events"
SECRET = "s3cr3t-c4n4ry"


class Server:
    """Send the given responses in turn, the last one for ever; record the requests."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer(request) if callable(answer) else answer

    @property
    def last(self):
        return self.requests[-1]

    @property
    def query(self):
        return dict(self.last.url.params)

    @property
    def body(self):
        return json.loads(self.last.content)


def says(body=None, status=200, **headers):
    """Return a response: JSON, or the bytes unchanged."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.Response(status, content=content, headers={"content-type": "application/json", **named})


def page(*ids, **more):
    return {"data": [{"id": name} for name in ids], **more}


FORWARD = {"cursor": from_body("cursor"), "send": to_query("since"), "more": from_body("more")}


def feed_on(*answers, url=URL, entries=None, pages=None, **options):
    """Return a feed and its server."""
    server = Server(*answers)
    options.setdefault("client", httpx.AsyncClient(transport=httpx.MockTransport(server)))
    entries, pages = entries or Entries("data"), pages or OldestFirst(**FORWARD)
    return PagedFeed(url, entries=entries, pages=pages, **options), server


async def fetched(*answers, cursor=None, request=None, **options):
    """Return one page, and its server."""
    feed, server = feed_on(*answers, **options)
    return await feed.fetch(request or FetchRequest(cursor)), server


async def refused(*answers, kind=FeedError, **options):
    with pytest.raises(kind) as failed:
        await fetched(*answers, **options)
    assert type(failed.value) is kind
    return failed.value


def ids(found):
    return [message.id for message in found.messages]


# Requests


async def test_the_query_of_the_url_is_repeated_on_every_page():
    feed, server = feed_on(
        says(page("1", cursor="c", next="p2")),
        says(page("2", cursor="c2")),
        url=f"{URL}?types=a%2Cb&limit=2",
        pages=OldestFirst(
            cursor=at_end(from_body("cursor")),
            send=to_query("since"),
            next=from_body("next"),
            send_next=to_query("page"),
        ),
    )
    first = await feed.fetch(FetchRequest("c0"))
    second = await feed.fetch(FetchRequest(first.next_page))
    assert [str(request.url) for request in server.requests] == [
        f"{URL}?types=a%2Cb&limit=2&since=c0",
        f"{URL}?types=a%2Cb&limit=2&since=c0&page=p2",
    ]
    assert (first.cursor, second.cursor, second.next_page) == (None, "c2", None)


async def test_a_get_request_has_no_body_and_accepts_json():
    _, server = await fetched(says(page()), cursor="a&b=c")
    assert (server.last.method, server.last.content) == ("GET", b"")
    assert server.last.headers["accept"].startswith("application/json,")
    assert "content-type" not in server.last.headers
    assert "cache-control" not in server.last.headers
    assert server.query == {"since": "a&b=c"}


async def test_a_fresh_request_bypasses_http_caches():
    _, server = await fetched(says(page()), request=FetchRequest(bypass_cache=True))
    assert server.last.headers["cache-control"] == "no-cache"


async def test_a_cursor_is_read_from_and_sent_in_a_header():
    options = {"pages": OldestFirst(cursor=from_header("x-next"), send=to_header("X-Since"))}
    found, server = await fetched(says(page("1"), x_next="c1"), cursor="c0", **options)
    assert server.last.headers["x-since"] == "c0"
    assert (found.cursor, found.next_page) == ("c1", "c1")


async def test_a_cursor_is_added_to_the_posted_json_body():
    options = {
        "json": {"secret": SECRET, "options": {"count": 2}},
        "pages": OldestFirst(**FORWARD | {"send": to_body("options", "cursor")}),
    }
    _, server = await fetched(says(page()), cursor="c0", **options)
    assert server.body == {"secret": SECRET, "options": {"count": 2, "cursor": "c0"}}
    assert (server.last.method, server.last.headers["content-type"]) == ("POST", "application/json")
    _, server = await fetched(says(page()), **options)
    assert server.body == {"secret": SECRET, "options": {"count": 2}}
    assert (server.last.method, server.last.headers["content-type"]) == ("POST", "application/json")


async def test_a_json_cursor_is_sent_back_unchanged():
    options = {"json": {}, "pages": OldestFirst(**FORWARD | {"send": to_body("after", as_json=True)})}
    feed, server = feed_on(says(page("1", cursor=[3, {"x": "y"}])), **options)
    found = await feed.fetch(FetchRequest())
    await feed.fetch(FetchRequest(found.cursor))
    assert server.body == {"after": [3, {"x": "y"}]}


async def test_a_cursor_is_added_to_the_posted_form():
    options = {"form": {"token": SECRET}, "pages": OldestFirst(**FORWARD | {"send": to_body("cursor")})}
    _, server = await fetched(says(page()), cursor="a&b ä", **options)
    assert parse_qs(server.last.content.decode()) == {"token": [SECRET], "cursor": ["a&b ä"]}
    assert (server.last.method, server.last.headers["content-type"]) == (
        "POST",
        "application/x-www-form-urlencoded",
    )


async def test_a_given_http_method_is_sent_in_upper_case():
    _, server = await fetched(says(page()), method="report", json={})
    assert server.last.method == "REPORT"


async def test_a_cursor_can_be_sent_to_another_url_as_the_only_field_of_the_body():
    send = to_body("cursor", at=f"{URL}/continue", alone=True)
    options = {"json": {"path": ""}, "pages": OldestFirst(**FORWARD | {"send": send})}
    _, server = await fetched(says(page()), cursor="c", **options)
    assert (str(server.last.url), server.body) == (f"{URL}/continue", {"cursor": "c"})


async def test_a_hint_is_sent_in_its_query_field_or_else_the_otherwise_value():
    options = {"hint": to_query("_expected", otherwise="0")}
    _, server = await fetched(says(page()), request=FetchRequest(hint=Push("42")), **options)
    assert server.query == {"_expected": "42"}
    for request in (FetchRequest(), FetchRequest(hint=Push(None, ("a topic",)))):
        _, server = await fetched(says(page()), request=request, **options)
        assert server.query == {"_expected": "0"}


@pytest.mark.parametrize("sender", [to_query("seen", otherwise="0"), to_header("X-Seen", otherwise="0")])
async def test_a_hint_that_cannot_be_sent_is_replaced_by_the_otherwise_value(sender):
    """An attacker who can push may send any text."""
    request = FetchRequest(hint=Push("\r\nx: \ud800"))
    _, server = await fetched(says(page()), request=request, hint=sender)
    assert "0" in {server.query.get("seen"), server.last.headers.get("x-seen")}


async def test_a_request_refused_with_a_hint_is_sent_again_without_the_hint():
    feed, server = feed_on(says({}, 400), says(page("1", cursor="c", more=0)), hint=to_query("seen"))
    assert ids(await feed.fetch(FetchRequest(hint=Push("elsewhere")))) == ["1"]
    assert [dict(request.url.params) for request in server.requests] == [{"seen": "elsewhere"}, {}]
    for options, request, asked in [
        ({"hint": to_query("seen")}, FetchRequest(), 1),
        ({}, FetchRequest(hint=Push("elsewhere")), 1),
        ({"hint": to_query("seen")}, FetchRequest(hint=Push("elsewhere")), 2),
    ]:
        feed, server = feed_on(says({}, 400), **options)
        with pytest.raises(FeedRefused):
            await feed.fetch(request)
        assert len(server.requests) == asked


@pytest.mark.parametrize(
    ("options", "cursor"),
    [
        ({}, "\ud800"),
        ({"pages": OldestFirst(**FORWARD | {"send": to_header("a")})}, "ä"),
        ({"pages": OldestFirst(**FORWARD | {"send": as_url()})}, "c"),
        ({"pages": OldestFirst(**FORWARD | {"send": as_url()})}, "https://[x"),
        ({"pages": OldestFirst(**FORWARD | {"send": as_url()})}, "page 7"),
        ({"json": {}, "pages": OldestFirst(**FORWARD | {"send": to_body("a")})}, "\ud800"),
    ],
)
async def test_a_cursor_that_cannot_be_sent_raises_cursor_expired_without_a_request(options, cursor):
    feed, server = feed_on(says(page()), **options)
    with pytest.raises(CursorExpired, match=f"^the cursor does not belong to {re.escape(URL)}: "):
        await feed.fetch(FetchRequest(cursor))
    assert server.requests == []


async def test_credentials_and_headers_are_sent():
    _, server = await fetched(says(page()), auth=SECRET, headers={"accept": "application/vnd.x+json"})
    assert server.last.headers["authorization"] == f"Bearer {SECRET}"
    assert server.last.headers["accept"] == "application/vnd.x+json"


async def test_a_secret_in_the_url_is_sent_but_not_shown_in_repr_identity_or_errors():
    options = {"url": "https://api.vendor.example/bot{token}/updates", "url_secrets": {"token": SECRET}}
    feed, server = feed_on(says({"error": 1}), **options)
    with pytest.raises(FeedError) as failed:
        await feed.fetch(FetchRequest())
    assert SECRET in str(server.last.url)
    assert SECRET not in f"{feed!r} {feed.identity} {failed.value}"
    assert "bot{token}" in repr(feed)


async def test_a_secret_in_the_url_is_not_in_the_log(caplog):
    caplog.set_level(logging.DEBUG)
    with respx.mock() as router:
        router.route().mock(return_value=says(page("1", cursor="c", more=0)))
        feed, _ = feed_on(
            client=None, url="https://api.vendor.example/bot{token}/u", url_secrets={"token": SECRET}
        )
        await feed.fetch(FetchRequest())
        await feed.aclose()
    assert "api.vendor.example" in caplog.text
    assert SECRET not in caplog.text


# Long polling


async def test_a_long_poll_requests_at_most_the_longest_wait_of_the_server():
    hold = LongPoll(to_query("timeout"), longest=50, per_second=1000, also={"feed": "longpoll"})
    feed, server = feed_on(says(page()), long_poll=hold)
    assert feed.max_wait == 50
    for wait, query in [(0, {}), (20, {"timeout": "20000"}), (500, {"timeout": "50000"})]:
        await feed.fetch(FetchRequest("c", wait=wait))
        assert server.query == {"since": "c"} | query | ({"feed": "longpoll"} if query else {})


async def test_a_request_that_must_not_be_held_says_so_where_otherwise_is_declared():
    hold = LongPoll(to_query("timeout", otherwise="0"), longest=50, also={"feed": "longpoll"})
    feed, server = feed_on(says(page(cursor="c")), long_poll=hold, latest=Latest({"since": "now"}))
    await feed.fetch(FetchRequest("c"))
    assert server.query == {"since": "c", "timeout": "0"}
    await feed.fetch(FetchRequest("c", wait=20))
    assert server.query == {"since": "c", "timeout": "20", "feed": "longpoll"}
    await feed.latest()
    assert server.query == {"since": "now", "timeout": "0"}


async def test_a_request_for_a_linked_page_says_that_it_must_not_be_held():
    pages = OldestFirst(cursor=from_body("next"), send=as_url())
    hold = LongPoll(to_query("wait", otherwise="0"), longest=30)
    feed, server = feed_on(says(page()), pages=pages, long_poll=hold)
    await feed.fetch(FetchRequest(f"{URL}?c=2&wait=20"))
    assert str(server.last.url) == f"{URL}?c=2&wait=0"


async def test_a_redirect_that_drops_the_wait_is_followed():
    """The dropped wait costs latency, but not a message."""
    hold = LongPoll(to_query("timeout", otherwise="0"), longest=50)
    moved = httpx.Response(302, headers={"location": "/v2/events?since=c"})
    feed, _ = feed_on(moved, says(page("1", cursor="d")), long_poll=hold)
    assert ids(await feed.fetch(FetchRequest("c"))) == ["1"]


async def test_no_wait_is_sent_to_a_feed_without_long_polling():
    feed, server = feed_on(says(page()))
    assert feed.max_wait is None
    await feed.fetch(FetchRequest("c", wait=20))
    assert server.query == {"since": "c"}


async def test_the_wait_in_a_next_link_is_replaced_and_not_repeated():
    """A server may repeat all parameters of the request in its next link."""
    pages = OldestFirst(cursor=from_body("next"), send=as_url())
    hold = LongPoll(to_query("wait"), longest=30)
    feed, server = feed_on(
        lambda request: says(page("1", next=str(request.url.copy_set_param("c", "n%2Fm")))),
        pages=pages,
        long_poll=hold,
    )
    found = await feed.fetch(FetchRequest(wait=20))
    for _ in range(2):
        found = await feed.fetch(FetchRequest(found.cursor, wait=10))
    assert server.last.url.params.multi_items() == [("c", "n%2Fm"), ("wait", "10")]
    await feed.fetch(FetchRequest(f"{URL}?wait=20", wait=10))
    assert str(server.last.url) == f"{URL}?wait=10"


async def test_the_wait_in_a_saved_link_is_not_repeated_where_an_answer_is_wanted_at_once():
    """The response would be held for longer than a request may take, at each poll."""
    pages = OldestFirst(cursor=from_body("next"), send=as_url())
    options = {"long_poll": LongPoll(to_query("timeout"), 50, also={"feed": "longpoll"}), "hint": to_query("seen")}
    cursor = f"{URL}?page=2&timeout=50&feed=longpoll&seen=7"
    _, server = await fetched(says(page()), cursor=cursor, pages=pages, **options)
    assert server.query == {"page": "2"}


# Pages


async def test_json_lines_are_read_with_the_cursor_of_each_line():
    body = b'{"id": "1", "seq": 7}\n{"id": "2", "seq": 8}\n'
    pages = OldestFirst(cursor=from_each("seq"), send=to_query("since"))
    found, _ = await fetched(says(body), entries=Entries(LINES), pages=pages)
    assert [(message.id, message.cursor) for message in found.messages] == [("1", "7"), ("2", "8")]
    assert (found.cursor, found.next_page) == ("8", "8")


async def test_entries_can_have_cursors_besides_the_cursor_of_the_page():
    pages = OldestFirst(**FORWARD, each=from_each("seq"))
    body = {"data": [{"id": 1, "seq": 10}, {"id": 2, "seq": None}], "cursor": "end", "more": True}
    found, _ = await fetched(says(body), pages=pages)
    assert [message.cursor for message in found.messages] == ["10", None]
    assert (found.cursor, found.next_page) == ("end", "end")


async def test_several_lists_are_read_oldest_first_with_their_types_and_deletions():
    entries = Entries("gone", "new", newest_first=True, deletions="gone")
    body = {"new": [{"id": 2}, {"id": 1}], "gone": [{"id": 3}], "cursor": "c", "more": False}
    found, _ = await fetched(says(body), entries=entries)
    assert [(message.id, message.type, message.deleted) for message in found.messages] == [
        ("1", "new", False),
        ("2", "new", False),
        ("3", "gone", True),
    ]


async def test_an_answer_without_new_entries_is_an_empty_last_page():
    for answer in (says(b"", 204), says(page(cursor="c", more=False))):
        found, _ = await fetched(answer, cursor="c")
        assert (found.messages, found.next_page) == ([], None) or (found.messages, found.next_page) == ((), None)
        assert found.cursor in {None, "c"}


async def test_a_repeated_entry_with_the_same_version_keeps_its_dedupe_key():
    feed, _ = feed_on(
        says({"data": [{"id": 1, "v": 1}], "cursor": "c", "more": 0}), entries=Entries("data", version="v")
    )
    first, again = [await feed.fetch(FetchRequest(cursor)) for cursor in (None, "c")]
    assert first.messages[0].dedupe_key == again.messages[0].dedupe_key


# Links


@pytest.mark.parametrize(
    ("link", "saved"),
    [
        (f"{URL}?c=a%2Bb", f"{URL}?c=a%2Bb"),
        ("/v2/events?c=2", "https://api.vendor.example/v2/events?c=2"),
        ("?c=2", f"{URL}?c=2"),
        ("//api.vendor.example/x", "https://api.vendor.example/x"),
        (f"https://user:{SECRET}@api.vendor.example/x#here", "https://api.vendor.example/x"),
        ("https://api.vendor.example:443/x", "https://api.vendor.example/x"),
        ("https://cdn.example/x", "https://cdn.example/x"),
    ],
)
@pytest.mark.parametrize("place", ["cursor", "next"])
async def test_a_link_is_saved_as_an_absolute_url(link, saved, place):
    pages = {
        "cursor": OldestFirst(cursor=from_body("link"), send=as_url()),
        "next": OldestFirst(cursor=at_end(from_body("link")), send=as_url(), next=from_body("link")),
    }[place]
    feed, server = feed_on(says(page("1", link=link)), pages=pages, trusted_origins=["https://cdn.example"])
    found = await feed.fetch(FetchRequest())
    assert (found.cursor or msgspec.json.decode(found.next_page.removeprefix("page "))[1]) == saved
    await feed.fetch(FetchRequest(found.next_page))
    assert str(server.last.url) == saved


@pytest.mark.parametrize(
    "link",
    [
        "https://evil.example/x",
        "//evil.example/x",
        "http://api.vendor.example/v1/events",
        "https://api.vendor.example:8443/v1/events",
        "https://api.vendor.example@evil.example/",
        "http://a:b:c/",
        "ftp://api.vendor.example/x",
        "mailto:someone@vendor.example",
    ],
)
@pytest.mark.parametrize(
    "pages",
    [
        OldestFirst(cursor=from_body("link"), send=as_url()),
        OldestFirst(
            cursor=from_body("cursor"), send=to_query("since"), next=from_body("link"), send_next=as_url()
        ),
        OldestFirst(cursor=at_end(from_body("link")), send=as_url(), more=from_body("more")),
        NewestFirst(next=from_body("link"), send=as_url()),
    ],
    ids=["cursor", "next", "at_end", "newest_first"],
)
async def test_an_untrusted_or_invalid_link_fails_the_poll_and_is_not_saved(link, pages):
    """If it were saved, every later poll would fail."""
    answer = says(page("1", link=link, cursor="c", more=True))
    feed, server = feed_on(answer, pages=pages, auth=SECRET)
    async with Log(feed) as consumer:
        for _ in range(2):
            with pytest.raises(FeedError, match=r"links to|is not a URL|invalid URL"):
                await consumer.poll_now()
        assert (consumer.status().cursor, consumer.processed) == (None, [])
    assert {request.url.host for request in server.requests} == {"api.vendor.example"}


async def test_a_posted_body_is_not_sent_to_a_linked_trusted_origin():
    pages = OldestFirst(cursor=from_body("link"), send=as_url())
    answer = says(page("1", link="https://cdn.example/x"))
    error = await refused(answer, pages=pages, json={"secret": SECRET}, trusted_origins=["https://cdn.example"])
    assert "must not get the request body" in str(error)


async def test_an_error_names_the_trusted_origin_that_answered():
    pages = OldestFirst(cursor=from_body("link"), send=as_url())
    answers = [says(page("1", link="https://cdn.example/x?sig=1")), says({"oops": 1})]
    feed, _ = feed_on(*answers, pages=pages, trusted_origins=["https://cdn.example"])
    found = await feed.fetch(FetchRequest())
    with pytest.raises(FeedError) as failed:
        await feed.fetch(FetchRequest(found.next_page))
    assert str(failed.value) == (
        f"{URL}, which led to https://cdn.example/x?sig=…, does not match its declaration: "
        "there is no list at 'data'; found {'oops': number}"
    )


async def test_a_relative_link_header_is_resolved_against_the_redirected_url():
    pages = OldestFirst(cursor=from_link(), send=as_url())
    moved = httpx.Response(302, headers={"location": "/v2/events"})
    found, server = await fetched(moved, says(page("1"), link='<?c=2>; rel="next"'), pages=pages)
    assert found.cursor == "https://api.vendor.example/v2/events?c=2"
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [301, 302, 307])
async def test_a_redirect_without_the_cursor_field_fails_and_is_not_remembered(status):
    """Without `since` this server returns the newest messages. Such a redirect is not remembered either."""
    pages = OldestFirst(**FORWARD | {"send": to_query("since", otherwise="0")})
    moved = httpx.Response(status, headers={"location": "/v2/events"})
    feed, server = feed_on(moved, says(page("9", cursor="9")), pages=pages)
    for asked in (2, 4):
        with pytest.raises(FeedError, match="redirects to a URL without the cursor parameter 'since'"):
            await feed.fetch(FetchRequest("1"))
        server.answers[:0] = [moved]
        assert len(server.requests) == asked


@pytest.mark.parametrize("outcome", [expired(status(410)), gone(status(410)), closed(status(410))])
async def test_an_outcome_for_410_does_not_apply_after_a_redirect(outcome):
    moved = httpx.Response(308, headers={"location": "/maintenance"})
    feed, server = feed_on(moved, says({}, 410), says(page("1", cursor="1")), outcomes=[outcome])
    with pytest.raises(FeedError, match=r"was redirected to https://api\.vendor\.example/maintenance") as error:
        await feed.fetch(FetchRequest("1"))
    assert type(error.value) is FeedError
    assert [message.id for message in (await feed.fetch(FetchRequest("1"))).messages] == ["1"]
    assert server.last.url.path == "/v1/events"


async def test_a_redirect_to_a_page_that_cannot_be_read_is_not_remembered():
    moved = httpx.Response(308, headers={"location": "/maintenance?since=1"})
    feed, server = feed_on(moved, says({"back": "soon"}), says(page("1", cursor="1")))
    with pytest.raises(FeedError, match="there is no list"):
        await feed.fetch(FetchRequest("1"))
    assert [message.id for message in (await feed.fetch(FetchRequest("1"))).messages] == ["1"]
    assert server.last.url.path == "/v1/events"


async def test_a_redirect_to_a_page_that_was_read_is_remembered():
    moved = httpx.Response(308, headers={"location": "/v2/events?since=1"})
    feed, server = feed_on(moved, says(page("1", cursor="1")))
    for _ in range(2):
        await feed.fetch(FetchRequest("1"))
    assert [request.url.path for request in server.requests] == ["/v1/events", "/v2/events", "/v2/events"]


@pytest.mark.parametrize(
    ("otherwise", "location"), [(None, "/v2/events"), ("0", "/v2/events?since=1"), ("0", "?a=b&since=1")]
)
async def test_a_redirect_that_keeps_the_cursor_or_may_omit_it_is_followed(otherwise, location):
    pages = OldestFirst(**FORWARD | {"send": to_query("since", otherwise=otherwise)})
    moved = httpx.Response(302, headers={"location": location})
    found, _ = await fetched(moved, says(page("2", cursor="2")), cursor="1", pages=pages)
    assert (found.messages[0].id, found.cursor) == ("2", "2")


# End of the feed


@pytest.mark.parametrize(
    ("latest", "answer", "asked", "cursor"),
    [
        (Latest({"since": "now"}), says(page(cursor="c")), f"{URL}?limit=2&since=now", "c"),
        (Latest(at=f"{URL}/end", cursor=from_body("start")), says({"start": 7}), f"{URL}/end", "7"),
        (
            Latest(at="end", cursor=from_header("x-end")),
            says({}, x_end="h"),
            "https://api.vendor.example/v1/end",
            "h",
        ),
        (
            Latest({"order": "desc"}, cursor=from_first("id")),
            says(page("9", "8")),
            f"{URL}?limit=2&order=desc",
            "9",
        ),
        (Latest({"order": "desc"}, cursor=from_first("id")), says(page()), f"{URL}?limit=2&order=desc", None),
        (
            Latest(cursor=from_last("id").then(lambda last: last + "+")),
            says(page("8", "9")),
            f"{URL}?limit=2",
            "9+",
        ),
    ],
)
async def test_latest_returns_the_cursor_at_the_end_of_the_feed(latest, answer, asked, cursor):
    feed, server = feed_on(answer, url=f"{URL}?limit=2", latest=latest)
    assert await feed.latest() == cursor
    assert str(server.last.url) == asked
    assert server.last.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (
            says({"cur": 1}),
            "there is no cursor for the end of the feed: from_body('cursor') found nothing in {'cur': number}",
        ),
        (says(b"", 204), f"{URL} has no cursor for the end of the feed yet; retrying later"),
        (says({}, 503), "answered 503"),
    ],
)
async def test_latest_raises_a_feed_error_when_it_cannot_read_a_cursor(answer, text):
    feed, _ = feed_on(answer, latest=Latest({"since": "now"}))
    with pytest.raises(FeedError) as failed:
        await feed.latest()
    assert text in str(failed.value)


async def test_latest_resolves_a_link_and_refuses_another_origin():
    pages = OldestFirst(cursor=from_body("link"), send=as_url())
    feed, _ = feed_on(says({"link": "?token=1"}), pages=pages, latest=Latest())
    assert await feed.latest() == f"{URL}?token=1"
    feed, _ = feed_on(says({"link": "https://evil.example/"}), pages=pages, latest=Latest())
    with pytest.raises(FeedError, match="another origin"):
        await feed.latest()


async def test_a_feed_has_latest_only_if_it_is_declared_or_newest_first():
    assert not hasattr(feed_on(says({}))[0], "latest")
    pages = NewestFirst(next=from_link(), send=as_url())
    feed, _ = feed_on(says(page("2", "1")), pages=pages)
    end = await feed.latest()
    assert ids(await feed.fetch(FetchRequest(end))) == []


# Outcomes


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [(expired, CursorExpired), (restart, PagesChanged), (gone, FeedGone), (throttled, FeedError)],
)
@pytest.mark.parametrize("status_code", [200, 400, 410, 503])
async def test_an_outcome_takes_precedence_over_the_http_status(outcome, kind, status_code):
    when = from_body("error", "code").equals("X")
    error = await refused(
        says({"error": {"code": "X"}}, status_code, retry_after="7"), outcomes=[outcome(when)], kind=kind
    )
    assert str(error).startswith(f"{URL} ")
    assert error.retry_after == 7


async def test_the_http_status_decides_the_error_without_an_outcome():
    assert "503" in str(await refused(says({}, 503)))
    await refused(says({}, 404), kind=FeedRefused)
    await refused(says({}, 410), kind=FeedGone)


@pytest.mark.parametrize(
    ("headers", "after", "seconds"),
    [({}, None, None), ({}, 5, 5), ({"retry_after": "9"}, None, 9), ({"retry_after": "9"}, from_body("s"), 3)],
)
async def test_retry_after_of_throttled_comes_from_its_argument_or_the_header(headers, after, seconds):
    error = await refused(says({"s": 3}, 429, **headers), outcomes=[throttled(status(429), after=after)])
    assert error.retry_after == seconds


async def test_the_longer_of_pause_and_retry_after_applies_after_a_success():
    answer = page("1", cursor="c", backoff=30, more=False)
    for headers, seconds in [({}, 30), ({"retry_after": "9"}, 30), ({"retry_after": "90"}, 90)]:
        found, _ = await fetched(says(answer, **headers), outcomes=[pause(from_body("backoff"))])
        assert (ids(found), found.retry_after) == (["1"], seconds)


@pytest.mark.parametrize(
    ("offered", "start"),
    [
        ("https://api.vendor.example/v1/fresh?t=1", "https://api.vendor.example/v1/fresh?t=1"),
        ("fresh", "https://api.vendor.example/v1/fresh"),
        ("https://evil.example/", None),
        ("http://a:b:c", None),
        (None, None),
    ],
)
async def test_the_start_of_an_expired_cursor_is_dropped_if_it_is_untrusted_or_invalid(offered, start):
    headers = {} if offered is None else {"location": offered}
    error = await refused(
        says({}, 410, **headers),
        pages=OldestFirst(cursor=from_link(), send=as_url()),
        outcomes=[expired(status(410), start=from_header("location"))],
        kind=CursorExpired,
        cursor=f"{URL}?old",
    )
    assert error.start == start


async def test_a_number_offered_as_start_becomes_a_text_cursor():
    outcome = expired(status(410), start=from_body("start"))
    error = await refused(says({"start": 7}, 410), outcomes=[outcome], kind=CursorExpired, cursor="c")
    assert error.start == "7"


async def test_a_newest_first_feed_ignores_the_start_offered_by_the_server():
    outcome = expired(status(410), start=from_body("start"))
    pages = NewestFirst(next=from_link(), send=as_url())
    error = await refused(says({"start": 7}, 410), outcomes=[outcome], pages=pages, kind=CursorExpired)
    assert error.start is None


@pytest.mark.parametrize("status_code", [200, 204, 304, 404, 409, 503])
async def test_a_not_ready_answer_is_an_empty_page_with_its_pause(status_code):
    outcome = not_ready(status(status_code), after=from_body("s"))
    found, _ = await fetched(
        says({"s": 3} if status_code not in {204, 304} else b"", status_code), outcomes=[outcome]
    )
    assert found == Page(retry_after=None if status_code in {204, 304} else 3)


async def test_a_closed_feed_returns_its_last_messages_and_no_next_page():
    outcomes = [closed(from_body("closed"))]
    answer = page("1", cursor="c", more=True, closed=True)
    found, _ = await fetched(says(answer), outcomes=outcomes)
    assert (ids(found), found.cursor, found.next_page, found.closed) == (["1"], "c", None, True)


@pytest.mark.parametrize("status_code", [204, 404, 410])
async def test_a_feed_can_be_closed_by_an_http_status(status_code):
    found, _ = await fetched(says(b"", status_code), outcomes=[closed(status(status_code))], cursor="c")
    assert found == Page(closed=True)


async def test_a_gap_is_reported_on_the_page_with_its_description():
    found, _ = await fetched(
        says(page("1", cursor="c", more=False, limited=True)),
        outcomes=[gap(from_body("limited"), "limited rooms")],
    )
    assert (ids(found), found.gap) == (["1"], "limited rooms")
    found, _ = await fetched(says(b"", 204), outcomes=[gap(status(204))])
    assert found.gap == "the server says that it left messages out"


async def test_an_outcome_can_read_the_entries():
    """Some servers send an error as an entry of their list, as the watch of Kubernetes."""
    outcome = expired(from_last("type").equals("ERROR"))
    error = await refused(
        says(b'{"id": "1", "type": "ADDED"}\n{"type": "ERROR"}\n'),
        entries=Entries(LINES),
        outcomes=[outcome],
        kind=CursorExpired,
    )
    assert "(status 200)" in str(error)


async def test_an_outcome_can_depend_on_an_empty_page():
    found, _ = await fetched(says(page(cursor="c", more=False)), outcomes=[closed(~full_page(1))])
    assert found.closed


# Wrong declarations


@pytest.mark.parametrize(
    ("answer", "options", "text"),
    [
        (says({"items": [1]}), {}, "there is no list at 'data'; found {'items': array of 1}"),
        (says(b"<html>"), {}, "there is no list at 'data'; found no JSON"),
        (
            says(page("1", cur="c", more=0)),
            {},
            "there is no cursor: from_body('cursor') found nothing in {'data': array",
        ),
        (
            says(page("1", more=True)),
            {},
            (
                "there is no link to the next page: from_body('cursor') found "
                "nothing in {'data': array of 1, 'more': boolean}"
            ),
        ),
        (
            says({"data": [{"uuid": "1"}]}),
            {},
            "no entry of the first page can be read; the first is {'uuid': string}: an entry has no id at 'id'",
        ),
        (says(page(*"12345")), {"max_body": 100_000}, None),
    ],
)
async def test_an_answer_that_does_not_match_the_declaration_is_described_in_the_error(answer, options, text):
    if text is None:
        text = "a page has more than 10000 entries"
        answer = says({"data": [1] * 10_001})
    error = await refused(answer, **options)
    assert str(error).startswith(f"{URL} does not match its declaration: {text}")


@pytest.mark.parametrize(
    "options",
    [
        {"pages": OldestFirst(cursor=lambda said: said.body["x"], send=to_query("c"))},
        {"outcomes": [gone(lambda said: said.body["x"])]},
        {"outcomes": [pause(lambda said: said.body["x"])]},
        {"entries": Entries(lambda body: body["x"])},
    ],
)
async def test_an_exception_in_a_declared_function_becomes_a_feed_error(options):
    error = await refused(says({"data": [{"id": 1}]}, retry_after="7"), **options)
    assert str(error) == (
        f"{URL} does not match its declaration: its function raised KeyError: 'x' for the response "
        "{'data': array of 1}"
    )
    assert error.retry_after == 7


@pytest.mark.parametrize(("status_code", "kind"), [(503, FeedError), (404, FeedRefused), (410, FeedGone)])
async def test_an_error_response_unreadable_by_an_outcome_is_reported_by_its_status(status_code, kind):
    """A proxy's page is not JSON. Its Retry-After still applies."""
    outcomes = [gap(lambda said: said.body["x"])]
    error = await refused(says("<p>", status_code, retry_after="7"), outcomes=outcomes, kind=kind)
    assert str(error).startswith(f"{URL} answered {status_code} ")
    assert error.retry_after == 7


MADE = Entries(lambda body: body.get("data", []))
LEFT_OUT = Entries("data", optional=True)


@pytest.mark.parametrize("entries", [LEFT_OUT, MADE, Entries("data", "more data", optional=True)])
@pytest.mark.parametrize("body", [{}, {"error": "internal"}])
@pytest.mark.parametrize(
    ("cursor", "seen"),
    [
        (from_body("cursor"), "from_body('cursor') found nothing in "),
        (at_end(from_body("cursor")), "from_body('cursor') found nothing in "),
        (from_header("x-cursor").then(str.strip), "from_header('x-cursor').then(strip) found nothing in "),
        (
            from_body("cursor") | from_header("x-cursor"),
            "(from_body('cursor') | from_header('x-cursor')) found nothing in ",
        ),
    ],
)
async def test_an_answer_with_neither_a_list_nor_a_cursor_is_an_error(entries, body, cursor, seen):
    error = await refused(says(body), entries=entries, pages=OldestFirst(cursor=cursor, send=to_query("c")))
    text = str(error).partition(" its declaration: ")[2]
    assert text.startswith(f"there is neither a list nor a cursor: {seen}")
    assert text.endswith("; if this response means that nothing is new, declare it by not_ready(…)")


@pytest.mark.parametrize(
    ("entries", "body", "options"),
    [
        (LEFT_OUT, {"data": []}, {}),
        (LEFT_OUT, {"data": None}, {}),
        (MADE, {"cursor": None}, {}),
        (LEFT_OUT, {"cursor": ""}, {}),
        (LEFT_OUT, {}, {"pages": OldestFirst(cursor=from_each("id"), send=to_query("c"))}),
        (LEFT_OUT, {}, {"pages": OldestFirst(cursor=from_link("next"), send=as_url())}),
        (
            LEFT_OUT,
            {},
            {"pages": OldestFirst(cursor=from_body("cursor") | from_last("id"), send=to_query("c"))},
        ),
        (LEFT_OUT, {}, {"outcomes": [not_ready(lambda said: said.body == {})]}),
        (LEFT_OUT, {"closed": True}, {"outcomes": [closed(from_body("closed"))]}),
    ],
)
async def test_an_empty_page_without_a_cursor_may_be_the_end(entries, body, options):
    found, _ = await fetched(says(body), entries=entries, **options)
    assert (list(found.messages), found.cursor, found.next_page) == ([], None, None)


@pytest.mark.parametrize("media_type", ["text/html; charset=utf-8", "application/xhtml+xml", "IMAGE/png"])
async def test_an_html_or_image_answer_is_an_error_that_names_its_media_type(media_type):
    answer = httpx.Response(200, content=b"[]", headers={"content-type": media_type})
    error = await refused(answer, entries=Entries())
    assert str(error) == (
        f"{URL} sent {media_type!r}, no JSON; check that the URL leads to the feed and not to a login page"
    )


@pytest.mark.parametrize("media_type", ["", "text/plain", "application/x-ndjson", "application/vnd.x+json"])
async def test_json_is_accepted_under_other_media_types(media_type):
    answer = httpx.Response(200, content=b'{"data": []}', headers={"content-type": media_type})
    found, _ = await fetched(answer)
    assert ids(found) == []


async def test_the_cursor_is_kept_when_an_answer_does_not_match_the_declaration():
    feed, _ = feed_on(says(page("1", cursor="c1", more=0)), says({"oops": 1}))
    async with Log(feed) as consumer:
        await consumer.poll_now()
        with pytest.raises(FeedError):
            await consumer.poll_now()
        assert (consumer.status().cursor, consumer.processed) == ("c1", ["1"])


async def test_a_full_page_with_an_unreadable_entry_still_leads_to_the_older_page():
    """An unreadable entry counts for the size of a full page, so there are more pages behind it."""
    pages = NewestFirst(next=from_last("id"), send=to_query("before"), more=full_page(2))
    feed, _ = feed_on(
        says({"data": [{"id": 4}, {"id": 3}]}),
        says({"data": [{}, {"id": 2}]}),
        says({"data": [{"id": 1}]}),
        pages=pages,
    )
    found = await feed.fetch(FetchRequest())
    while found.next_page and not found.messages:
        found = await feed.fetch(FetchRequest(found.next_page))
    assert [message.error is None for message in found.messages] == [True, True, False, True, True]


# Unreadable entries and dead letters


async def test_a_dead_letter_is_restored():
    feed, _ = feed_on(says(b'{"data": [{"id": 1}, nonsense], "cursor": "c"}'))
    found = await feed.fetch(FetchRequest())
    for message in found.messages:
        again = feed.restore(DeadLetter(dedupe_key=message.dedupe_key, id=message.id, raw=message.raw, error=""))
        assert (again.id, again.dedupe_key, again.raw, again.error is None) == (
            message.id,
            message.dedupe_key,
            message.raw,
            message.error is None,
        )
    assert isinstance(again, UnreadableMessage)


# No new entries


async def test_an_empty_last_page_is_requested_again_with_its_etag():
    feed, server = feed_on(
        says(page("1", cursor="c", more=0), etag='"1"'), says(page(cursor="c"), etag='"2"'), says(b"", 304)
    )
    for cursor in (None, "c", "c"):
        found = await feed.fetch(FetchRequest(cursor))
    assert [request.headers.get("if-none-match") for request in server.requests] == [None, None, '"2"']
    assert found == Page(())


@pytest.mark.parametrize(
    "answer",
    [page(cursor="d", more=0), page("1", cursor="c", more=0), page(cursor="c", more=1), page(cursor="c", gap=1)],
    ids=["the cursor moves", "a message", "more", "a gap"],
)
async def test_no_etag_is_sent_for_a_page_with_unsettled_messages(answer):
    """If the page is lost before the commit, a 304 must not hide it."""
    feed, server = feed_on(says(answer, etag='"1"'), outcomes=[gap(from_body("gap"))])
    for _ in range(2):
        await feed.fetch(FetchRequest("c"))
    assert "if-none-match" not in server.last.headers


async def test_the_etag_is_sent_for_a_lower_case_get_method():
    feed, server = feed_on(says(page(cursor="c"), etag='"1"'), method="get")
    for _ in range(2):
        await feed.fetch(FetchRequest("c"))
    assert server.last.headers["if-none-match"] == '"1"'


async def test_an_empty_page_is_reused_for_max_age_unless_fresh_or_wait_is_requested():
    feed, server = feed_on(
        says(page(cursor="c"), cache_control="max-age=60"), long_poll=LongPoll(to_query("t"), longest=9)
    )
    for _ in range(3):
        assert ids(await feed.fetch(FetchRequest("c"))) == []
    assert len(server.requests) == 1
    await feed.fetch(FetchRequest("c", bypass_cache=True))
    await feed.fetch(FetchRequest("c", wait=5))
    await feed.fetch(FetchRequest("d"))
    assert len(server.requests) == 4
    await anyio.sleep(61)
    await feed.fetch(FetchRequest("c"))
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("send", "options"),
    [
        (to_header("X-Since"), {}),
        (to_body("since"), {"json": {}}),
        (to_body("since"), {"json": {}, "method": "GET"}),
    ],
)
async def test_a_cached_answer_is_not_used_for_another_cursor_at_the_same_url(send, options):
    answer = says(page(cursor="c"), etag='"1"', cache_control="max-age=60")
    feed, server = feed_on(answer, pages=OldestFirst(**FORWARD | {"send": send}), **options)
    await feed.fetch(FetchRequest("c"))
    await feed.fetch(FetchRequest("b"))
    assert len(server.requests) == 2
    assert "if-none-match" not in server.last.headers


async def test_a_304_without_a_conditional_request_is_an_error():
    assert "304" in str(await refused(says(b"", 304)))


# Large responses


async def test_a_large_answer_is_read_in_a_thread(monkeypatch):
    monkeypatch.setattr(_decoding, "_LARGE_BODY", 10)
    threads = []

    def noting(said):
        threads.append(threading.current_thread())
        return said.at("cursor")

    options = {
        "entries": Entries("data", type=lambda entry: threads.append(threading.current_thread())),
        "outcomes": [closed(lambda said: noting(said) and False)],
        "pages": OldestFirst(cursor=noting, send=to_query("c")),
    }
    found, _ = await fetched(says(page("1", cursor="c")), **options)
    assert (ids(found), found.cursor) == (["1"], "c")
    assert len(threads) >= 3
    assert threading.main_thread() not in threads


async def test_a_large_answer_raises_the_same_error_from_its_thread(monkeypatch):
    monkeypatch.setattr(_decoding, "_LARGE_BODY", 10)
    assert "there is no list at 'data'" in str(await refused(says({"items": [1, 2, 3]})))


async def test_an_answer_that_is_too_large_is_refused():
    assert "raise max_body=" in str(await refused(says(page(*map(str, range(100)))), max_body=100))


# Opening and closing


async def test_closing_a_feed_clears_its_cached_answers_and_the_feed_stays_usable():
    feed, server = feed_on(says(page(cursor="c"), etag='"1"', cache_control="max-age=60"))
    await feed.fetch(FetchRequest("c"))
    await feed.aclose()
    await feed.fetch(FetchRequest("c"))
    assert len(server.requests) == 2
    assert "if-none-match" not in server.last.headers


@pytest.mark.parametrize("pages", [OldestFirst(**FORWARD), NewestFirst(next=from_link(), send=as_url())])
def test_a_closed_feed_works_in_another_event_loop(pages):
    feed, server = feed_on(says(page("1", cursor="c", more=0)), pages=pages)

    async def once():
        found = await feed.fetch(FetchRequest())
        await feed.aclose()
        return ids(found)

    assert [anyio.run(once), anyio.run(once)] == [["1"], ["1"]]
    assert len(server.requests) == 2


# Identity


def test_the_identity_of_a_feed_tells_urls_apart_without_showing_secrets():
    feed, _ = feed_on(says({}), url=f"{URL}?token={SECRET}")
    other, _ = feed_on(says({}), url=f"{URL}?token=another")
    assert repr(feed) == f"PagedFeed('{URL}?token=…')"
    assert SECRET not in feed.identity
    assert feed.identity != other.identity
    assert feed_on(says({}), identity="plaid of item 17")[0].identity == "plaid of item 17"
    assert feed_on(says({}))[0].read_ahead is False
    assert feed_on(says({}), read_ahead=True)[0].read_ahead is True


# Rejected arguments


POSTED = OldestFirst(cursor=from_body("c"), send=to_body("cursor"))


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"entries": "data"}, TypeError, "entries must be Entries(…), got str"),
        ({"pages": from_link()}, TypeError, "pages must be OldestFirst(…) or NewestFirst(…), got Reader"),
        (
            {"outcomes": expired(status(410))},
            TypeError,
            "outcomes must be a list such as [expired(…)], got Outcome",
        ),
        (
            {"outcomes": [status(410)]},
            TypeError,
            "each of outcomes must be an outcome such as expired(…), got Reader",
        ),
        ({"long_poll": to_query("t")}, TypeError, "long_poll must be LongPoll(…), got Sender"),
        ({"latest": {"since": "now"}}, TypeError, "latest must be Latest(…), got dict"),
        ({"hint": "seen"}, TypeError, "hint must be to_query(…), to_header(…) or to_body(…), got str"),
        ({"json": {}, "form": {}}, ValueError, "pass json= or form=, not both: a request has one body"),
        ({"json": [1]}, TypeError, "json must be a mapping of the members of the body, got list"),
        (
            {"json": {"a": object()}},
            TypeError,
            "json= cannot be encoded as JSON: TypeError: Encoding objects of type object is unsupported",
        ),
        ({"form": {"a": 1}}, TypeError, "form must be a mapping of str to str"),
        ({"form": "a=1"}, TypeError, "form must be a mapping of str to str"),
        ({"method": "GE T"}, TypeError, "method must be an HTTP method such as 'POST', got 'GE T'"),
        ({"method": 1}, TypeError, "method must be an HTTP method such as 'POST', got 1"),
        ({"read_ahead": 1}, TypeError, "read_ahead must be True or False, got int"),
        ({"identity": ""}, ValueError, "identity must be a str of 1 to 1,000 characters, got ''"),
        ({"identity": 7}, TypeError, "identity must be a str of 1 to 1,000 characters, got '7'"),
        ({"pages": POSTED}, ValueError, "to_body('cursor') needs a body; pass json={} or form={}"),
        (
            {"pages": OldestFirst(cursor=from_body("c"), send=to_body("a", "b")), "form": {}},
            ValueError,
            "to_body('a', 'b') has a nested path, but a form has only single names",
        ),
        (
            {"pages": OldestFirst(cursor=from_body("c"), send=to_body("a", 1)), "json": {"a": [1]}},
            ValueError,
            "to_body('a', 1) does not fit json=: it leads to a list index or name that json= does not have",
        ),
        (
            {"pages": OldestFirst(cursor=from_body("c"), send=to_body("a", 0)), "json": {"a": 1}},
            ValueError,
            "to_body('a', 0) does not fit json=",
        ),
        (
            {"pages": OldestFirst(cursor=from_body("c"), send=to_body("a", 0, alone=True)), "json": {"a": [1]}},
            ValueError,
            "to_body('a', 0) does not fit json=",
        ),
        ({"hint": to_body("seen")}, ValueError, "to_body('seen') needs a body"),
        (
            {"hint": as_url()},
            ValueError,
            "hint= cannot be sent by as_url(); use to_query(…), to_header(…) or to_body(…)",
        ),
        ({"long_poll": LongPoll(as_url(), 9)}, ValueError, "long_poll= cannot be sent by as_url()"),
        ({"url": f"{URL}?since=0"}, ValueError, "remove 'since' from the query of url: pages= sends it"),
        (
            {"url": f"{URL}?t=0", "long_poll": LongPoll(to_query("t"), 9)},
            ValueError,
            "remove 't' from the query of url: long_poll= sends it",
        ),
        (
            {"url": f"{URL}?f=n", "long_poll": LongPoll(to_query("t"), 9, also={"f": "l"})},
            ValueError,
            "remove 'f' from the query of url: long_poll= sends it",
        ),
        (
            {"url": f"{URL}?o=a", "latest": Latest({"o": "d"})},
            ValueError,
            "remove 'o' from the query of url: latest= sends it",
        ),
        ({"url": f"{URL}?seen=1", "hint": to_query("seen")}, ValueError, "remove 'seen' from the query of url"),
        (
            {"hint": to_query("since")},
            ValueError,
            "hint= is sent by to_query('since'), like the cursor, and would replace it",
        ),
        (
            {"json": {}, "pages": POSTED, "hint": to_body("cursor", as_json=True)},
            ValueError,
            "hint= is sent by to_body('cursor'), like the cursor, and would replace it",
        ),
        (
            {"long_poll": LongPoll(to_query("since", otherwise="0"), 9)},
            ValueError,
            "long_poll= is sent by to_query('since'), like the cursor, and would replace it",
        ),
        (
            {"long_poll": LongPoll(to_query("t"), 9, also={"since": "0"})},
            ValueError,
            "long_poll= is sent by to_query('since'), like the cursor, and would replace it",
        ),
        (
            {"headers": {"x-since": "0"}, "pages": OldestFirst(cursor=from_body("c"), send=to_header("X-Since"))},
            ValueError,
            "remove 'X-Since' from headers: pages= sends it",
        ),
        (
            {"headers": {"PREFER": "wait=1"}, "long_poll": LongPoll(to_header("Prefer", "wait={}"), 9)},
            ValueError,
            "remove 'Prefer' from headers: long_poll= sends it",
        ),
        (
            {"pages": NewestFirst(next=from_link(), send=as_url()), "latest": Latest()},
            ValueError,
            "remove latest=: with NewestFirst the first page is already the end of the feed",
        ),
        ({"url": "ftp://x"}, ValueError, "http"),
        ({"timeout": 0}, ValueError, "timeout"),
        ({"max_body": 0}, ValueError, "max_body"),
        ({"url_secrets": {"token": "x"}}, ValueError, "url must contain {token}"),
        ({"trusted_origins": ["x"]}, ValueError, "trusted_origins"),
        ({"auth": 7}, TypeError, "auth"),
    ],
)
def test_invalid_options_are_refused_at_construction(options, kind, text):
    with pytest.raises(kind) as failed:
        feed_on(says({}), **options)
    assert text in str(failed.value)


def test_headers_may_come_from_a_function_beside_a_cursor_in_a_header():
    pages = OldestFirst(cursor=from_body("c"), send=to_header("X-Since"))
    feed_on(says({}), headers=lambda: {"x-tenant": "a"}, pages=pages)


def test_a_query_field_sent_to_another_url_may_be_in_the_url_of_the_feed():
    send = to_query("start", at="more")
    pages = OldestFirst(cursor=from_body("c"), send=send)
    feed_on(says({}), url=f"{URL}?start=0", pages=pages, latest=Latest({"start": "now"}, at="end"))
