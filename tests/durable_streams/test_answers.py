"""Responses of Durable Streams servers, valid and hostile, in memory and virtual time."""

import itertools
import json
import re
from contextlib import suppress

import anyio
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from push_to_poll_client import (
    CursorExpired,
    DeadLetter,
    DecodeError,
    FeedError,
    FeedGone,
    FeedRefused,
    FetchRequest,
    Resync,
    ServerSentEvent,
)
from push_to_poll_client.durable_streams import DurableStreamFeed
from push_to_poll_client.durable_streams._framing import (
    FRAMINGS,
    ReadStart,
    StreamHeaders,
    StreamPosition,
    StreamResponse,
)
from push_to_poll_client.testing import FeedSuite
from tests.support.consumers import Log
from tests.support.durable_streams_memory import HOLD, MemoryStream

pytestmark = pytest.mark.anyio

URL = "https://user:secret@shop.example/orders?key=hidden"
WHERE = "https://shop.example/orders?key=…"
JSON = {"content-type": "application/json"}
TEXT = {"content-type": "text/plain"}


def answer(content=b"[]", offset="9", *, status=200, kind=JSON, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    told = {} if offset is None else {"stream-next-offset": offset}
    return httpx.Response(status, headers={**kind, **told, **named}, content=content)


def end(content=b"[]", offset="9", **rest):
    return answer(content, offset, stream_up_to_date="true", **rest)


class Server:
    """Sends the given responses one after the other, and records the requests."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.calls = []
        self.known = []

    async def __call__(self, request):
        self.calls.append(f"{request.method} {request.url.query.decode()}".replace("key=hidden&", ""))
        self.known.append(request.headers.get("if-none-match"))
        step = self.answers.pop(0)
        if isinstance(step, float):
            await anyio.sleep(step)
            step = self.answers.pop(0)
        return step


@pytest.fixture
async def feed_of():
    """Make a feed and its server. A number is a delay in seconds before the next response."""
    async with anyio.create_task_group():
        clients = []

        def make(*answers, **settings):
            server = Server(*answers)
            client = httpx.AsyncClient(transport=httpx.MockTransport(server), timeout=1000.0)
            clients.append(client)
            return DurableStreamFeed(URL, client=client, **settings), server

        yield make
        for client in clients:
            await client.aclose()


def named(page):
    return [(message.id, message.data) for message in page.messages]


# Headers


@pytest.mark.parametrize(
    ("offset", "text"),
    [
        (None, "sent no Stream-Next-Offset header; check that the URL is a Durable Stream"),
        *((bad, "sent an invalid Stream-Next-Offset") for bad in ["", "-1", "now", "a/b", "a,b", "a&b"]),
        *((bad, "sent an invalid Stream-Next-Offset") for bad in ["a=b", "a?b", "a b", "é", "9" * 1025]),
    ],
)
async def test_a_missing_or_invalid_stream_next_offset_is_a_feed_error(feed_of, offset, text):
    offset = offset if offset is None else offset.encode("latin-1")
    feed, _ = feed_of(end(b"[1]", offset))
    with pytest.raises(FeedError, match=re.escape(text)) as failed:
        await feed.fetch(FetchRequest())
    assert type(failed.value) is FeedError
    assert WHERE in str(failed.value)
    assert len(str(failed.value)) < 500


@pytest.mark.parametrize("value", ["true", "TRUE", " True "])
async def test_boolean_headers_accept_true_in_any_case(feed_of, value):
    feed, _ = feed_of(answer(b"[1]", stream_up_to_date=value), answer(b"[1]", stream_closed=value))
    first, second = await feed.fetch(FetchRequest()), await feed.fetch(FetchRequest())
    assert (first.next_page, first.closed) == (None, False)
    assert (second.next_page, second.closed) == (None, True)


@pytest.mark.parametrize("value", ["", "yes", "1", "false", "true, true"])
async def test_any_other_value_of_a_boolean_header_is_false(feed_of, value):
    feed, _ = feed_of(answer(b"[1]", stream_up_to_date=value, stream_closed=value))
    page = await feed.fetch(FetchRequest())
    assert (page.next_page, page.closed) == ("9/1", False)


@pytest.mark.parametrize(
    ("cursor", "echoed"), [("17", "cursor=17&"), ("a b", "cursor=a%20b&"), ("é", ""), ("7" * 257, ""), ("", "")]
)
async def test_a_valid_stream_cursor_is_echoed_in_the_next_long_poll(feed_of, cursor, echoed):
    feed, server = feed_of(end(stream_cursor=cursor.encode("latin-1")), answer(b"", status=204, offset="9"))
    await feed.fetch(FetchRequest())
    await feed.fetch(FetchRequest("9/0", wait=5))
    assert server.calls[1] == f"GET {echoed}live=long-poll&offset=9"


async def test_retry_after_and_backoff_headers_are_reported_on_pages_and_errors(feed_of):
    feed, _ = feed_of(
        end(retry_after="7"), answer(b"", status=404, retry_after="8"), answer(status=503, backoff="9")
    )
    assert (await feed.fetch(FetchRequest())).retry_after == 7
    with pytest.raises(FeedRefused) as refused:
        await feed.fetch(FetchRequest())
    with pytest.raises(FeedError) as failed:
        await feed.fetch(FetchRequest())
    assert (refused.value.retry_after, failed.value.retry_after) == (8, 9)


async def test_messages_without_a_new_offset_are_a_feed_error(feed_of):
    """Otherwise they would be repeated for ever under new ids."""
    feed, _ = feed_of(answer(b"[1]", "9"), answer(b"[1]", "9"))
    page = await feed.fetch(FetchRequest())
    with pytest.raises(FeedError, match="sent messages, but its Stream-Next-Offset is still the requested '9'"):
        await feed.fetch(FetchRequest(page.next_page))


async def test_an_empty_page_without_a_new_offset_ends_the_poll(feed_of):
    feed, server = feed_of(answer(b"[1]", "9"), answer(b"[]", "9"))
    result = await Log(feed).poll_now()
    assert (result.messages, result.caught_up, len(server.calls)) == (1, False, 2)
    assert result.standstill


async def test_empty_pages_with_new_offsets_are_followed(feed_of):
    feed, _ = feed_of(answer(b"[]", "1"), answer(b"[]", "2"), end(b"[7]", "3"))
    consumer = Log(feed)
    assert (await consumer.poll_now()).pages == 3
    assert consumer.processed == ["0"]


async def test_an_offset_that_sorts_before_minus_one_is_accepted(feed_of):
    """Also an offset that sorts before "-1", the beginning (§8)."""
    feed, _ = feed_of(end(b"[1]", "!1"))
    assert (await feed.fetch(FetchRequest())).cursor == "!1/1"


@pytest.mark.parametrize(
    ("messages", "cursor", "empty"),
    [
        ("json", "5/3", answer(b"", "9")),
        ("json", "5/3", end(b"", "9", status=204)),
        ("json", None, end(b"", "9")),
        ("json", None, answer(b"", "9", status=204)),
        ("lines", "5/3", end(b"", "9", kind=TEXT)),
        ("bytes", "5/3", answer(b"", "9", kind=TEXT)),
        ("bytes", None, answer(b"", "9", kind=TEXT)),
    ],
)
async def test_an_empty_body_with_a_later_offset_is_a_feed_error(feed_of, messages, cursor, empty):
    feed, _ = feed_of(empty, messages=messages)
    with pytest.raises(FeedError, match=r"sent an empty body although messages follow offset '(5|-1)'") as failed:
        await feed.fetch(FetchRequest(cursor))
    assert type(failed.value) is FeedError


@pytest.mark.parametrize(
    ("messages", "cursor", "empty"),
    [
        ("json", "9/3", answer(b"", "9")),
        ("json", "9/3", end(b"", "9")),
        ("json", "9/3", answer(b"", "9", status=204)),
        ("json", None, end(b"[]", "9")),
        ("json", None, end(b"", "9", status=204)),
        ("bytes", None, end(b"", "9", kind=TEXT)),
        ("lines", None, answer(b"", "9", kind=TEXT, stream_closed="true")),
        ("lines", "9/3", answer(b"", "9", kind=TEXT)),
    ],
)
async def test_an_answer_without_new_messages_may_have_an_empty_body(feed_of, messages, cursor, empty):
    feed, server = feed_of(empty, messages=messages)
    page = await feed.fetch(FetchRequest(cursor))
    assert (list(page.messages), page.cursor, len(server.calls)) == ([], cursor or "9/0", 1)
    assert page.next_page in {None, cursor}  # which ends the poll


@pytest.mark.parametrize("offset", ["a+b", "a%2Fb", "a#b", "a;b", "!~'\"<>"])
async def test_an_offset_reaches_the_server_as_it_was_given(feed_of, offset):
    feed, server = feed_of(answer(b"[1]", offset), end(b"[]", offset))
    page = await feed.fetch(FetchRequest())
    assert (await feed.fetch(FetchRequest(page.next_page))).next_page is None
    assert httpx.QueryParams(server.calls[1].removeprefix("GET "))["offset"] == offset


# Caching


async def test_the_etag_of_an_answer_with_messages_is_not_sent_again(feed_of):
    """After a 304, a crash would lose it."""
    feed, server = feed_of(*[end(b"[1]", etag='"1"')] * 2)
    for _ in range(2):
        assert named(await feed.fetch(FetchRequest())) == [("0", 1)]
    assert server.known == [None, None]


async def test_the_etag_of_a_closed_stream_is_not_sent_again(feed_of):
    feed, server = feed_of(*[end(b"[]", etag='"1:c"', stream_closed="true")] * 2)
    for _ in range(2):
        assert (await feed.fetch(FetchRequest("9/1"))).closed
    assert server.known == [None, None]


async def test_long_polls_do_not_replace_the_stored_etag(feed_of):
    held = [end(b"[]", "9", etag=f'"{n}"', stream_cursor=str(n)) for n in range(20)]
    feed, server = feed_of(end(b"[]", "9", etag='"here"'), *held, httpx.Response(304))
    await feed.fetch(FetchRequest("9/1"))
    for _ in held:
        await feed.fetch(FetchRequest("9/1", wait=5))
    page = await feed.fetch(FetchRequest("9/1"))
    assert (list(page.messages), page.cursor, page.next_page, page.closed) == ([], None, None, False)
    assert server.known == [None] * 21 + ['"here"']


async def test_max_age_never_saves_a_request_at_the_end_of_a_stream(feed_of):
    """The protocol has servers cache all responses (§10.1), so the end may be a minute old."""
    feed, server = feed_of(*[end(b"[]", "9", cache_control="public, max-age=60")] * 2)
    for _ in range(2):
        await feed.fetch(FetchRequest("9/1"))
    assert len(server.calls) == 2


async def test_a_closed_feed_forgets_its_etags(feed_of):
    feed, server = feed_of(*[end(b"[]", "9", etag='"here"')] * 2)
    await feed.fetch(FetchRequest("9/1"))
    await feed.aclose()
    await feed.fetch(FetchRequest("9/1"))
    assert server.known == [None, None]


# Cursors


@pytest.mark.parametrize("cursor", ["", "/", "a/b", "9/", "9/1/2/3", "9/-1", "now/0", "9/٣", "a b/0", "9" * 1100])
async def test_an_invalid_cursor_raises_cursor_expired(feed_of, cursor):
    feed, server = feed_of()
    with pytest.raises(CursorExpired, match="is not a cursor of a Durable Stream") as expired:
        await feed.fetch(FetchRequest(cursor))
    assert (expired.value.start, server.calls) == (None, [])
    assert len(str(expired.value)) < 300


@pytest.mark.parametrize(
    ("cursor", "name"),
    [(None, "0"), ("-1", "0"), ("9", "9+0"), ("a:b+c/7", "7"), ("9/a:b+7", "a:b+7"), ("9/2:7/1", "2:8")],
)
async def test_the_id_of_the_next_message_follows_from_the_cursor(feed_of, cursor, name):
    feed, _ = feed_of(end(b'["a", "b"]', "a:c"))
    page = await feed.fetch(FetchRequest(cursor))
    assert page.messages[0].id == name
    assert StreamPosition.from_cursor(page.cursor).cursor == page.cursor


async def test_a_saved_cursor_works_when_the_server_sends_shorter_answers_than_before(feed_of):
    """The saved cursor skips three messages, which now come in two responses."""
    feed, _ = feed_of(answer(b"[0, 1]", "2"), end(b"[2, 3]", "4"))
    first = await feed.fetch(FetchRequest("-1/0/3"))
    assert (list(first.messages), first.cursor) == ([], "2/2/1")
    assert named(await feed.fetch(FetchRequest(first.next_page))) == [("3", 3)]


async def test_a_stream_that_ends_before_the_cursor_raises_cursor_expired(feed_of):
    feed, _ = feed_of(end(b"[0]", "9"), end(b"[]", "4"))
    for cursor in ("3/0/2", "5/2"):
        with pytest.raises(CursorExpired, match="it was deleted and created again") as expired:
            await feed.fetch(FetchRequest(cursor))
        assert expired.value.start == "-1/1:0"


# 404 and 410


@pytest.mark.parametrize(
    ("head", "kind", "text"),
    [
        (answer(b"", offset="9"), CursorExpired, "no longer has the messages after offset '5': some are missing"),
        (answer(b"", status=405, offset=None), CursorExpired, "no longer has the messages after offset '5'"),
        (answer(b"", status=501, offset=None), CursorExpired, "no longer has the messages after offset '5'"),
        (answer(b"", status=410, offset=None), FeedGone, "no longer exists"),
        (answer(b"", status=404, offset=None), FeedRefused, "the stream does not exist"),
        (answer(b"", status=503, offset=None), FeedError, "retrying later"),
    ],
)
async def test_a_head_request_decides_the_meaning_of_a_410(feed_of, head, kind, text):
    feed, server = feed_of(answer(b"", status=410), head)
    with pytest.raises(kind, match=text) as failed:
        await feed.fetch(FetchRequest("5/3:17"))
    assert server.calls == ["GET offset=5", "HEAD key=hidden"]
    assert type(failed.value) is kind
    assert getattr(failed.value, "start", "-1/4:0") == "-1/4:0"


MOVED = httpx.Response(308, headers={"location": "/maintenance"})


@pytest.mark.parametrize("there", [answer(b"", status=410), answer(b"", status=404), answer(offset=None)])
async def test_a_redirect_to_a_url_without_a_stream_is_a_feed_error_and_not_remembered(feed_of, there):
    feed, server = feed_of(MOVED, there, end(b"[1]", "6"), MOVED, there, end(b"[]", "6"))
    with pytest.raises(FeedError) as failed:
        await feed.fetch(FetchRequest("5/3:17"))
    assert type(failed.value) is FeedError
    assert len((await feed.fetch(FetchRequest("5/3:17"))).messages) == 1
    with pytest.raises(FeedError):
        await feed.latest()
    await feed.latest()
    assert server.calls == ["GET offset=5", "GET ", "GET offset=5", "GET offset=now", "GET ", "GET offset=now"]


async def test_a_redirect_that_led_to_the_stream_is_remembered(feed_of):
    moved = httpx.Response(308, headers={"location": "/v2?offset=now"})
    feed, server = feed_of(moved, end(b"[]", "6"), end(b"[]", "6"), end(b"[]", "6"))
    for _ in range(2):
        await feed.latest()
    await feed.fetch(FetchRequest("5/3:17"))
    assert server.calls == ["GET offset=now"] * 3 + ["GET offset=5"]


async def test_a_410_for_the_beginning_of_a_stream_raises_feed_gone(feed_of):
    feed, server = feed_of(answer(b"", status=410))
    with pytest.raises(FeedGone):
        await feed.fetch(FetchRequest())
    assert len(server.calls) == 1


async def test_latest_raises_an_error_while_the_stream_is_missing_or_invalid(feed_of):
    feed, server = feed_of(answer(b"", status=404), answer(b"[]", None), end(b"[]", "7"))
    with pytest.raises(FeedRefused, match="the stream does not exist"):
        await feed.latest()
    with pytest.raises(FeedError, match="no Stream-Next-Offset"):
        await feed.latest()
    assert (await feed.latest(), set(server.calls)) == ("7/7+0", {"GET offset=now"})


# Bodies


@pytest.mark.parametrize(
    "body", [b"{}", b"[1, 2", b"1", b"[1,,2]", b"[1]2]", b"null", b" ", b'{"secret": [1]}', b"[1, 2}", b"<html>"]
)
async def test_a_body_that_is_not_a_json_array_is_a_feed_error_without_its_content(feed_of, body):
    feed, _ = feed_of(end(body))
    with pytest.raises(FeedError, match=r"did not send a JSON array: .* \(\d+ bytes\)") as failed:
        await feed.fetch(FetchRequest())
    assert "secret" not in str(failed.value)


async def test_undecodable_elements_do_not_affect_the_other_messages(feed_of):
    deep = b"[" * 10_000 + b"]" * 10_000
    feed, _ = feed_of(end(b'[1, tru, "\xff", ' + deep + b', 1e999, {"a": "]"}, ]}'.replace(b", ]}", b"]")))
    messages = (await feed.fetch(FetchRequest())).messages
    assert [message.id for message in messages] == ["0", "1", "2", "3", "4", "5"]
    assert (messages[0].data, messages[5].data) == (1, {"a": "]"})
    assert [message.raw for message in messages][:3] == [b"1", b"tru", b'"\xff"']
    for message in messages[1:5]:
        with pytest.raises(DecodeError, match=f"message '{message.id}' cannot be read"):
            message.data  # noqa: B018  # it raises
        assert message.error is None


async def test_the_data_of_a_message_is_decoded_once(feed_of):
    feed, _ = feed_of(end(b"[[1]]"))
    (message,) = (await feed.fetch(FetchRequest())).messages
    assert message.data is message.data
    assert repr(message) == "StreamMessage(id='0')"


@pytest.mark.parametrize(
    ("element", "thread"),
    [("1", False), (str(list(range(12))), False), ('"' + "x" * 100 + '"', True)],
    ids=["decoded", "split", "in a thread"],
)
async def test_a_long_answer_is_split_into_pages_of_limited_size(feed_of, element, thread):
    """The same response is requested again, and its settled messages are skipped."""
    body = f"[{','.join([element] * 25_000)}]".encode()
    assert (len(body) > 1 << 20) == thread
    feed, server = feed_of(*[end(body)] * 3, max_body=3_000_000)
    most = feed._max_messages = 10_000
    pages, cursor = [], None
    for _ in range(3):
        pages.append(await feed.fetch(FetchRequest(cursor)))
        cursor = pages[-1].next_page
    assert [len(page.messages) for page in pages] == [most, most, 5_000]
    assert [page.cursor for page in pages] == ["-1/0/10000", "-1/0/20000", "9/25000"]
    assert [message.id for page in pages for message in page.messages] == [str(n) for n in range(25_000)]
    assert pages[2].messages[-1].data == json.loads(element)
    assert server.calls == ["GET offset=-1"] * 3


async def test_a_split_answer_of_a_closed_stream_is_closed_only_on_its_last_page(feed_of):
    for kind, body in (("json", b"[1, 2, 3]"), ("lines", b"1\n2\n3")):
        whole = answer(body, kind=JSON if kind == "json" else TEXT, stream_closed="true")
        feed, _ = feed_of(*[whole] * 2, messages=kind)
        feed._max_messages = 2
        first = await feed.fetch(FetchRequest())
        second = await feed.fetch(FetchRequest(first.next_page))
        assert [len(page.messages) for page in (first, second)] == [2, 1]
        assert [page.closed for page in (first, second)] == [False, True]


async def test_a_body_larger_than_max_body_is_a_feed_error(feed_of):
    feed, _ = feed_of(end(b"[" + b"1," * 600 + b"1]"), max_body=1000)
    with pytest.raises(FeedError, match="more than 1000 bytes; raise max_body="):
        await feed.fetch(FetchRequest())


# Lines


async def test_one_fetch_reads_a_line_across_several_answers(feed_of):
    feed, server = feed_of(
        answer(b"a\nbc", "1", kind=TEXT),
        answer(b"de", "2", kind=TEXT),
        answer(b"f", "3", kind=TEXT),
        end(b"g\nh", "4", kind=TEXT),
        messages="lines",
    )
    first = await feed.fetch(FetchRequest())
    second = await feed.fetch(FetchRequest(first.next_page))
    assert (named(first), named(second)) == ([("0", "a")], [("2", "bcdefg")])
    assert (first.cursor, second.messages[0].cursor, second.cursor) == ("-1/0/2", "3/7/2", "3/7/2")
    assert second.next_page is None
    assert server.calls == [f"GET offset={offset}" for offset in ("-1", "1", "2", "3")]


async def test_a_partial_line_is_kept_and_not_requested_again(feed_of):
    feed, server = feed_of(
        end(b"a\nb", "1", kind=TEXT), end(b"", "1", kind=TEXT), end(b"c\n", "2", kind=TEXT), messages="lines"
    )
    cursor = (await feed.fetch(FetchRequest())).cursor
    assert not (await feed.fetch(FetchRequest(cursor))).messages
    assert named(await feed.fetch(FetchRequest(cursor))) == [("2", "bc")]
    assert server.calls == ["GET offset=-1", "GET offset=1", "GET offset=1"]


async def test_a_partial_line_is_kept_after_a_304(feed_of):
    known = {"etag": '"1"', "kind": TEXT}
    feed, server = feed_of(
        end(b"a\nb", "1", **known),
        end(b"", "1", **known),
        httpx.Response(304),
        end(b"c\n", "2", kind=TEXT),
        messages="lines",
    )
    cursor = (await feed.fetch(FetchRequest())).cursor
    for _ in range(2):
        assert not (await feed.fetch(FetchRequest(cursor))).messages
    assert named(await feed.fetch(FetchRequest(cursor))) == [("2", "bc")]
    assert len(server.calls) == 4


async def test_a_long_poll_that_does_not_complete_the_line_is_followed_by_another(feed_of):
    feed, server = feed_of(
        end(b"a", "1", kind=TEXT),
        10.0,
        end(b"b", "2", kind=TEXT),
        10.0,
        end(b"c\n", "3", kind=TEXT),
        messages="lines",
    )
    cursor = (await feed.fetch(FetchRequest())).cursor
    assert cursor == "-1/0"
    page = await feed.fetch(FetchRequest(cursor, wait=30))
    assert named(page) == [("0", "abc")]
    assert server.calls[1:] == ["GET live=long-poll&offset=1", "GET live=long-poll&offset=2"]


async def test_an_empty_answer_to_a_long_poll_ends_the_wait_for_the_rest_of_a_line(feed_of):
    feed, server = feed_of(end(b"a", "1", kind=TEXT), end(b"", "1", kind=TEXT), messages="lines")
    await feed.fetch(FetchRequest())
    page = await feed.fetch(FetchRequest("-1/0", wait=30))
    assert (list(page.messages), page.cursor, page.next_page) == ([], "-1/0", None)
    assert len(server.calls) == 2


async def test_a_partial_line_is_used_only_for_its_own_cursor(feed_of):
    feed, server = feed_of(*[end(b"a\nb", "1", kind=TEXT)] * 2, messages="lines")
    assert (await feed.fetch(FetchRequest())).cursor == "-1/0/2"
    assert named(await feed.fetch(FetchRequest())) == [("0", "a")]
    assert server.calls == ["GET offset=-1"] * 2


async def test_a_line_longer_than_max_body_is_a_feed_error(feed_of):
    feed, _ = feed_of(*[answer(b"x" * 600, str(n), kind=TEXT) for n in range(3)], messages="lines", max_body=1000)
    with pytest.raises(FeedError, match="has a line of more than 1000 bytes; raise max_body="):
        await feed.fetch(FetchRequest())


async def test_an_undecodable_line_does_not_affect_the_other_lines(feed_of):
    body = b"a\n\xff\n\n{\n3\n"
    feed, _ = feed_of(*[end(body, kind=TEXT)] * 2, messages="lines")
    lines = (await feed.fetch(FetchRequest())).messages
    assert [line.id for line in lines] == ["0", "2", "4", "5", "7"]
    with pytest.raises(DecodeError, match="message '2' cannot be read"):
        lines[1].data  # noqa: B018  # it raises
    feed._framing = FRAMINGS["ndjson"]
    feed._decoders = FRAMINGS["ndjson"].decode, None
    values = (await feed.fetch(FetchRequest())).messages
    assert [value.id for value in values] == ["0", "2", "5", "7"]
    assert values[3].data == 3


# Waiting


async def test_a_long_poll_held_longer_than_the_wait_is_followed_by_a_plain_request(feed_of):
    feed, server = feed_of(60.0, answer(b"", status=204), end(b"[1]"))
    server.answers.pop(1)
    began = anyio.current_time()
    page = await feed.fetch(FetchRequest("8/0", wait=20))
    assert anyio.current_time() - began == 20
    assert named(page) == [("0", 1)]
    assert server.calls == ["GET live=long-poll&offset=8", "GET offset=8"]


async def test_a_fetch_is_a_long_poll_only_if_max_wait_is_set(feed_of):
    for max_wait, expected in ((5.0, "GET live=long-poll&offset=8"), (None, "GET offset=8")):
        feed, server = feed_of(end(b"[]", "8"), max_wait=max_wait)
        await feed.fetch(FetchRequest("8/0", wait=20))
        assert server.calls == [expected]


async def test_the_close_of_a_stream_ends_a_long_poll(feed_of):
    feed, _ = feed_of(1.0, answer(b"", "8", status=204, kind={}, stream_closed="true"))
    page = await feed.fetch(FetchRequest("8/3", wait=20))
    assert (list(page.messages), page.cursor, page.next_page, page.closed) == ([], "8/3", None, True)


# Pushes


@pytest.mark.parametrize(
    ("event", "data", "is_push"),
    [
        ("data", "[1]", True),
        ("data", "", True),
        ("control", '{"streamNextOffset":"9","streamCursor":"1","upToDate":true}', False),
        ("control", '{"streamNextOffset":"9","streamClosed":true}', True),
        ("control", "garbage", False),
        ("message", "another server's", True),
    ],
)
async def test_every_event_is_a_push_except_a_control_event_without_a_close(event, data, is_push):
    push = DurableStreamFeed.hint(ServerSentEvent(event, data, ""))
    assert (push is not None) == is_push


# The feed itself


async def test_repr_and_identity_of_a_feed_show_no_secret():
    feed = DurableStreamFeed(URL, messages="lines")
    assert repr(feed) == f"DurableStreamFeed('{WHERE}')"
    assert feed.identity.startswith(f"{WHERE}#")
    assert feed.identity.endswith(" as lines")
    assert feed.push_url == "https://shop.example/orders?key=hidden&live=sse&offset=now"
    assert feed.identity != DurableStreamFeed(URL).identity
    await feed.aclose()


@pytest.mark.parametrize(
    ("settings", "kind", "text"),
    [
        ({"messages": "xml"}, ValueError, "messages must be 'json', 'ndjson', 'lines', 'bytes', got 'xml'"),
        ({"max_wait": 0}, ValueError, "max_wait"),
        ({"max_body": 0}, ValueError, "max_body"),
        (
            {"url": "https://shop.example/?offset=1&live=sse"},
            ValueError,
            "remove live and offset from the query of url",
        ),
        ({"url": "ftp://shop.example/"}, ValueError, "http"),
    ],
)
def test_invalid_arguments_are_refused_at_construction(settings, kind, text):
    with pytest.raises(kind, match=text):
        DurableStreamFeed(**{"url": "https://shop.example/orders", **settings})


@pytest.mark.parametrize(
    ("messages", "raw", "data"),
    [
        ("json", b'{"a": 1}', {"a": 1}),
        ("ndjson", b"[2]", [2]),
        ("lines", "é".encode(), "é"),
        ("bytes", b"\xff", b"\xff"),
    ],
)
def test_restore_rebuilds_the_message_of_a_dead_letter(messages, raw, data):
    letter = DeadLetter(dedupe_key="k", id="7", raw=raw, error="e")
    message = DurableStreamFeed("https://shop.example/orders", messages=messages).restore(letter)
    assert (message.id, message.dedupe_key, message.raw, message.data) == ("7", "k", raw, data)


# Tests of all feeds


class TestJSON(FeedSuite):
    secrets = ("t0k3n",)
    longest_fetch = 5.0
    kind, piece, messages = "application/json", [b"1"], "json"
    page_size = 2

    async def make_feed(self, count):
        self.stream = MemoryStream(self.kind, token="t0k3n", page_size=self.page_size)
        self.stream.append(*self.piece * count)
        self.settings = {
            "messages": self.messages,
            "auth": "t0k3n",
            "timeout": 4.0,
            "client": self.stream.client(),
        }
        return await self.reopen(None)

    async def reopen(self, feed):
        return DurableStreamFeed("https://shop.example/orders", **self.settings)

    async def publish(self, feed, count):
        self.stream.append(*self.piece * count)

    async def break_next(self, feed):
        self.stream.fail_next()

    async def hang(self, feed):
        self.stream.hang_next()


class TestLines(TestJSON):
    """Its cursors are within responses."""

    kind, piece, messages = "text/plain", [b"a l", b"in", b"e\n"], "lines"


class TestNDJSON(TestJSON):
    kind, piece, messages = "application/ndjson", [b"[1,", b"2]\n"], "ndjson"


class TestBytes(TestJSON):
    kind, piece, messages, page_size = "application/octet-stream", [b"\0\xff"], "bytes", 1


# Consumers


async def test_dropped_messages_are_reported_and_the_remaining_messages_are_processed(running):
    """Retention (§4): messages after the gap have other ids, so dedupe does not skip them."""
    stream = MemoryStream()
    stream.append(b"0", b"1", b"2")
    feed = DurableStreamFeed("https://shop.example/orders", client=stream.client(), max_wait=None)
    consumer = Log(feed, on_cursor_expired=lambda error: Resync(error.start, forget=False))
    assert (await consumer.poll_now()).messages == 3
    stream.append(b"3", b"4", b"5", b"6")
    stream.drop(5)
    assert (await consumer.poll_now()).messages == 2
    assert consumer.processed == ["0", "1", "2", "1:0", "1:1"]
    assert "no longer has the messages after offset 'o000003'" in consumer.status().last_resync.why
    stream.append(b"7")
    stream.close()
    with anyio.fail_after(100):
        await consumer.run()
    assert consumer.processed[-1] == "1:2"


async def test_a_consumer_polls_slowly_until_a_missing_stream_exists():
    stream = MemoryStream()
    stream.status = 404
    consumer = Log(DurableStreamFeed("https://shop.example/orders", client=stream.client()))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await anyio.sleep(3600)
        assert 12 <= len(stream.requests) <= 30  # slowly
        stream.status = None
        stream.append(b"0")
        await consumer.until(1)
        consumer.stop()


async def test_long_polls_follow_each_other_and_deliver_a_message_at_once():
    stream = MemoryStream()
    consumer = Log(DurableStreamFeed("https://shop.example/orders", client=stream.client()))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await anyio.sleep(3600)
        assert 3600 / HOLD <= len(stream.requests) <= 3600 / HOLD + 5
        before = anyio.current_time()
        stream.append(b"0")
        await consumer.until(1)
        assert anyio.current_time() == before
        stream.close()
    assert anyio.current_time() == before


async def test_prefetched_pages_are_processed_in_order_and_once():
    stream = MemoryStream(page_size=20)
    stream.append(*[b"{}"] * 200)
    stream.close()
    feed = DurableStreamFeed("https://shop.example/orders", client=stream.client())
    consumer = Log(feed, takes=1.0, max_poll_time=1000.0)
    with anyio.fail_after(1000):
        await consumer.run()
    assert consumer.processed == [str(number) for number in range(200)]
    assert len(stream.requests) == 10


# Responses of any size


class Stream:
    """A stream of pieces. Each response has some of them."""

    def __init__(self, kind, pieces, *, closed):
        self.kind, self.pieces, self.closed = kind, pieces, closed

    def answer(self, offset, size):
        start = 0 if offset == "-1" else int(offset)
        some = self.pieces[start : start + size]
        at_end = start + len(some) == len(self.pieces)
        body = b"[" + b",".join(some) + b"]" if self.kind == "json" else b"".join(some)
        return body, StreamHeaders(f"{start + len(some):04}", up_to_date=at_end, closed=at_end and self.closed)


def read_all(stream, sizes, stops, most):
    """Read up to some message, then continue there with responses of another size."""
    seen, begin, sizes, stops = [], ReadStart(StreamPosition()), itertools.cycle(sizes), iter(stops)
    for _ in range(1000):
        body, said = stream.answer(begin.position.offset, next(sizes))
        framing = FRAMINGS[stream.kind]
        read = framing.read(StreamResponse(body, begin, said, "it", (framing.decode, None)), most)
        stop = next(stops, len(read.messages))
        messages = read.messages[: stop + 1]
        seen += [(message.id, message.raw) for message in messages]
        if stop < len(read.messages):
            begin = ReadStart(StreamPosition.from_cursor(messages[-1].cursor))
        elif said.ends and not read.cut:
            return seen, read
        else:
            begin = read.next_start or ReadStart(StreamPosition.from_cursor(read.end.cursor))
    raise AssertionError("it does not end")


a_cut = st.lists(st.integers(1, 4), min_size=1, max_size=4)
stops = st.lists(st.integers(0, 5), max_size=6)


@settings(max_examples=100)
@given(
    st.lists(st.sampled_from([b"1", b'"]"', b"{}", b"tru", b'[1, "\xff"]']), max_size=9),
    a_cut,
    stops,
    st.integers(1, 4),
)
def test_json_messages_do_not_depend_on_the_lengths_of_the_answers(elements, sizes, stops, most):
    stream = Stream("json", elements, closed=False)
    assert read_all(stream, sizes, stops, most)[0] == [(str(n), raw) for n, raw in enumerate(elements)]


@settings(max_examples=100)
@given(
    st.lists(st.sampled_from([b"a", b"\n", b"bc\n", b"\r\n", b"d\ne", b"\xff"]), max_size=9),
    a_cut,
    stops,
    st.integers(1, 4),
    st.booleans(),
)
def test_lines_do_not_depend_on_the_lengths_of_the_answers(pieces, sizes, stops, most, closed):
    whole, at, expected = b"".join(pieces), 0, []
    for line in whole.split(b"\n"):
        expected.append((str(at), line.removesuffix(b"\r")))
        at += len(line) + 1
    last = expected.pop()
    if closed and last[1] + whole[-1:].strip(b"\n"):
        expected.append(last)
    seen, read = read_all(Stream("lines", pieces, closed=closed), sizes, stops, most)
    assert seen == expected
    assert (read.next_start is None) == (closed or whole.endswith(b"\n") or not whole)


@settings(max_examples=100)
@given(st.lists(st.binary(min_size=1, max_size=3), max_size=9), a_cut)
def test_bytes_messages_contain_every_byte_once_for_any_lengths_of_the_answers(pieces, sizes):
    seen, _ = read_all(Stream("bytes", pieces, closed=False), sizes, [], 1)
    assert b"".join(raw for _, raw in seen) == b"".join(pieces)
    ends = [tuple(map(int, name.split("-"))) for name, _ in seen]
    assert all(end - start == len(raw) for (start, end), (_, raw) in zip(ends, seen, strict=True))
    assert [start for start, _ in ends] == [0, *(end for _, end in ends)][: len(ends)]


bodies = st.one_of(st.binary(max_size=40), st.text('[]{},"1\\\n', max_size=30).map(str.encode))
cursors = st.one_of(
    st.none(), st.from_regex(r"(a|-1|9)(/(a\+|1:)?[0-9]{1,3}(/[0-9])?)?", fullmatch=True), st.text()
)


@settings(max_examples=150)
@given(st.sampled_from(sorted(FRAMINGS)), bodies, cursors, st.sampled_from(["9", "a", "zz"]), st.booleans())
def test_any_body_gives_valid_messages_or_a_feed_error(kind, body, cursor, offset, ends):
    try:
        headers = {"stream-next-offset": offset, "stream-up-to-date": str(ends)}
        begin = ReadStart(StreamPosition.from_cursor(cursor))
        said = StreamHeaders.from_headers(headers, "it", begin.position)
        read = FRAMINGS[kind].read(StreamResponse(body, begin, said, "it", (FRAMINGS[kind].decode, None)), 3)
    except FeedError:
        return
    assert len(read.messages) <= 3
    assert len({message.id for message in read.messages}) == len(read.messages)
    for message in read.messages:
        assert StreamPosition.from_cursor(message.cursor).cursor == message.cursor
        with suppress(DecodeError):
            message.data  # noqa: B018  # or it raises
