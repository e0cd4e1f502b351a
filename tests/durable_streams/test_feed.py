"""Durable Streams from the reference server on real sockets. Waits for events, never for time."""

import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import anyio
import httpx
import pytest
from anyio.to_thread import run_sync

from push_to_poll_client import (
    Consumer,
    CursorExpired,
    FeedError,
    FeedGone,
    FeedRefused,
    FetchRequest,
    MemoryStore,
    Mode,
    ProcessError,
    Resync,
    SQLiteStore,
    SSEListener,
)
from push_to_poll_client.durable_streams import DurableStreamFeed
from push_to_poll_client.testing import FeedSuite
from tests.support.consumers import Log
from tests.support.durable_streams_server import serving
from tests.support.forms import GUARD

pytestmark = pytest.mark.anyio

EXAMPLE = Path(__file__).parents[2] / "examples" / "durable_streams.py"

NEVER = 3600.0
HOLD = int(NEVER * 1000)
"""Seconds between polls by the timer, and milliseconds for which the server holds a response: longer than the
guard."""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture(scope="module")
def server():
    with serving(longPollTimeout=HOLD) as server:
        yield server


@pytest.fixture(scope="module")
def paged_server():
    with serving(longPollTimeout=HOLD, pageSize=2) as server:
        yield server


@pytest.fixture(scope="module")
def slow_reader_server():
    """One appended piece in a response."""
    with serving(longPollTimeout=HOLD, pageSize=1) as server:
        yield server


@pytest.fixture(scope="module")
def impatient_server():
    """Holds a response only for a moment."""
    with serving(longPollTimeout=20) as server:
        yield server


@pytest.fixture
async def feed_of():
    """Makes feeds, which are closed after the test."""
    feeds = []

    def make(stream, **settings):
        feeds.append(DurableStreamFeed(stream.url, **settings))
        return feeds[-1]

    yield make
    for feed in feeds:
        await feed.aclose()


def reading(feed, **settings):
    return Log(feed, **{"fallback_interval": NEVER, "patience": GUARD, **settings})


async def fetch(feed, cursor=None, **how):
    with anyio.fail_after(GUARD):
        return await feed.fetch(FetchRequest(cursor, **how))


def numbers(*bounds):
    return [str(number) for number in range(*bounds)]


async def walk(feed, cursor=None):
    """All messages from the cursor to the end, with their data, and the last page."""
    seen, following = [], cursor
    while True:
        page = await fetch(feed, following)
        seen += [(message.id, message.data) for message in page.messages]
        if page.next_page is None:
            return seen, page
        following = page.next_page


class TestPagesOfTwo(FeedSuite):
    @pytest.fixture(autouse=True)
    def given(self, paged_server):
        self.server = paged_server

    async def make_feed(self, count):
        self.stream = self.server.stream(*range(count))
        return await self.reopen(None)

    async def reopen(self, feed):
        return DurableStreamFeed(self.stream.url)

    async def break_next(self, feed):
        self.server.fail(self.stream, status=500)

    async def publish(self, feed, count):
        for number in range(count):
            self.stream.append(number)

    async def held(self, feed):
        await run_sync(self.server.wait_until_held, self.stream)


class TestAsItIsServed(TestPagesOfTwo):
    """Read everything on one page: ids must not depend on the page."""

    @pytest.fixture(autouse=True)
    def given(self, server):
        self.server = server


async def test_messages_carry_the_values_of_single_and_batch_appends(server, feed_of):
    stream = server.stream({"a": 1}, "text")
    stream.append(None, [2, [3]], 4.5)
    page = await fetch(feed_of(stream))
    assert [(message.id, message.data) for message in page.messages] == [
        ("0", {"a": 1}),
        ("1", "text"),
        ("2", None),
        ("3", [2, [3]]),
        ("4", 4.5),
    ]


async def test_a_consumer_catches_up_page_by_page_and_in_order(paged_server, feed_of):
    stream = paged_server.stream(*range(7))
    consumer = reading(feed_of(stream))
    result = await consumer.poll_now()
    assert (result.messages, result.pages, result.caught_up) == (7, 4, True)
    stream.append(*range(3))
    stream.append(1)
    assert (await consumer.poll_now()).messages == 4
    assert consumer.processed == numbers(11)


async def test_each_message_is_processed_once_across_a_failure_in_the_middle_of_a_page(server, feed_of, tmp_path):
    """The same offset is read again, and has more messages by then."""
    stream, processed, fails = server.stream(*range(5)), [], [3]

    async def process(message):
        if message.data in fails:
            raise ZeroDivisionError
        processed.append(message.id)

    async def poll():
        async with Consumer(
            feed_of(stream), store=SQLiteStore(tmp_path / "state.db"), process=process, retry=None
        ) as consumer:
            return await consumer.poll_now()

    with pytest.raises(ProcessError):
        await poll()
    assert processed == numbers(3)
    fails.clear()
    stream.append(*range(5, 8))
    result = await poll()
    assert (result.messages, result.duplicates) == (5, 0)
    stream.append(8)
    assert (await poll()).messages == 1
    async with Consumer(feed_of(stream), store=SQLiteStore(tmp_path / "state.db"), process=process) as consumer:
        await consumer.rewind("inception")
        assert (await consumer.poll_now()).duplicates == 9
    assert processed == numbers(9)


async def test_a_long_poll_delivers_appended_messages_to_the_handler(server, feed_of, running):
    stream = server.stream(0)
    consumer = running(reading(feed_of(stream)))
    for number in range(1, 6):
        await run_sync(server.wait_until_held, stream)
        assert len(consumer.processed) == number
        stream.append(number)
        await consumer.until(number + 1)
    assert consumer.processed == numbers(6)


async def test_poll_now_cancels_a_long_poll_and_polls_at_once(server, feed_of, running):
    stream = server.stream(0)
    consumer = running(reading(feed_of(stream, max_wait=NEVER)))
    for _ in range(3):
        await run_sync(server.wait_until_held, stream)
        with anyio.fail_after(GUARD):
            await consumer.poll_now()


async def test_a_long_poll_without_new_messages_is_an_empty_page_with_the_same_cursor(impatient_server, feed_of):
    feed = feed_of(impatient_server.stream(0))
    cursor = (await fetch(feed)).cursor
    page = await fetch(feed, cursor, wait=GUARD)
    assert (list(page.messages), page.cursor, page.next_page) == ([], cursor, None)


async def test_a_long_poll_that_the_server_holds_too_long_ends_with_an_empty_page(server, feed_of):
    stream = server.stream(0)
    feed = feed_of(stream)
    cursor = (await fetch(feed)).cursor
    with anyio.fail_after(GUARD):
        page = await fetch(feed, cursor, wait=0.1)
    assert (list(page.messages), page.cursor, page.next_page) == ([], cursor, None)


async def test_early_empty_answers_to_long_polls_do_not_cause_a_busy_loop(impatient_server, feed_of, running):
    """Three early responses, then the timer takes over until another poll."""
    feed = feed_of(impatient_server.stream(0), max_wait=20.0)
    waits, answered = [], anyio.Event()

    class Watched:
        max_wait = feed.max_wait

        async def fetch(self, request):
            waits.append(request.wait)
            page = await feed.fetch(request)
            if len(waits) == 4:
                answered.set()
            return page

    consumer = running(reading(Watched()))
    with anyio.fail_after(GUARD):
        await answered.wait()
    await anyio.wait_all_tasks_blocked()
    assert consumer.status().mode is Mode.IDLE
    assert waits == [0.0, 20.0, 20.0, 20.0]


async def test_each_request_has_the_expected_query_cache_headers_and_timeout(impatient_server):
    """The last `Stream-Cursor` is sent back, query parameters are sorted, and the timeout grows with the wait."""
    asked, answered = [], []

    async def note_request(request):
        headers = [request.headers.get(name) for name in ("cache-control", "if-none-match")]
        asked.append((request.url.query.decode(), *headers, request.extensions["timeout"]["read"]))

    async def note_response(response):
        headers = [response.headers.get(name) for name in ("stream-cursor", "etag")]
        answered.append((response.status_code, *headers))

    hooks = {"request": [note_request], "response": [note_response]}
    async with httpx.AsyncClient(timeout=GUARD, event_hooks=hooks, trust_env=False) as client:
        feed = DurableStreamFeed(impatient_server.stream(0).url, client=client)
        cursor = (await fetch(feed)).cursor
        for how in ({"wait": 9.0}, {"wait": 9.0}, {"bypass_cache": True}, {}):
            assert (await fetch(feed, cursor, **how)).next_page is None
    offset, etag = cursor.partition("/")[0], answered[3][2]
    assert asked == [
        ("offset=-1", None, None, GUARD),
        (f"live=long-poll&offset={offset}", None, None, GUARD + 9.0),
        (f"cursor={answered[1][1]}&live=long-poll&offset={offset}", None, None, GUARD + 9.0),
        (f"offset={offset}", "no-cache", None, GUARD),
        (f"offset={offset}", None, etag, GUARD),
    ]
    assert [status for status, *_ in answered] == [200, 204, 204, 200, 304]


async def test_a_304_hides_neither_new_messages_nor_the_close_of_the_stream(server, feed_of):
    stream = server.stream(0)
    feed = feed_of(stream)
    cursor = (await fetch(feed)).cursor
    for _ in range(2):
        assert not (await fetch(feed, cursor)).messages
    stream.append(1)
    page = await fetch(feed, cursor)
    assert [message.id for message in page.messages] == ["1"]
    for _ in range(2):
        await fetch(feed, page.cursor)
    stream.end()
    assert (await fetch(feed, page.cursor)).closed


async def test_a_consumer_continues_after_its_server_is_killed_and_restarted(feed_of, running, tmp_path):
    with serving(dataDir=str(tmp_path), longPollTimeout=HOLD) as server:
        stream = server.stream(0)
        consumer = running(reading(feed_of(stream)))
        await consumer.until(1)
        await run_sync(server.wait_until_held, stream)
        await run_sync(server.kill)
        await run_sync(server.start)
        stream.append(1)
        await consumer.until(2)
        await run_sync(server.wait_until_held, stream)
        assert consumer.processed == numbers(2)


async def test_a_lost_stream_is_refused_and_a_shorter_recreated_stream_is_an_expired_cursor(feed_of):
    with serving() as server:
        stream = server.stream(0, 1)
        feed = feed_of(stream)
        consumer = reading(feed)
        await consumer.poll_now()
        await run_sync(server.kill)
        with pytest.raises(FeedError, match="ConnectError"):
            await consumer.poll_now()
        await run_sync(server.start)
        with pytest.raises(FeedRefused, match="answered 404 Not Found"):
            await reading(feed).poll_now()
        stream.create()
        stream.append(0)
        with (
            pytest.raises(CursorExpired, match=r"ends before offset .* it was deleted and created again"),
            anyio.fail_after(GUARD),
        ):
            await consumer.run()


async def test_a_deleted_stream_is_refused(server, feed_of):
    stream = server.stream(0)
    consumer = reading(feed_of(stream))
    await consumer.poll_now()
    stream.delete()
    with pytest.raises(FeedRefused, match="answered 404 Not Found: the stream does not exist, was deleted"):
        await consumer.poll_now()


async def test_a_stream_that_is_deleted_during_a_long_poll_is_refused(server, feed_of):
    stream = server.stream(0)
    feed = feed_of(stream)
    cursor = (await fetch(feed)).cursor

    async def delete():
        await run_sync(server.wait_until_held, stream)
        stream.delete()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(delete)
        with pytest.raises(FeedRefused, match="404 Not Found: the stream does not exist, was deleted"):
            await fetch(feed, cursor, wait=GUARD)


async def test_a_deleted_stream_with_forks_raises_feed_gone(server, feed_of):
    stream = server.stream(0)
    consumer = reading(feed_of(stream))
    await consumer.poll_now()
    stream.fork()
    stream.delete()
    with pytest.raises(FeedGone, match="410 Gone: the feed no longer exists"):
        await consumer.poll_now()
    with pytest.raises(FeedGone, match="410 Gone: the feed no longer exists"):
        await reading(feed_of(stream)).poll_now()


async def test_an_offset_that_the_server_cannot_read_is_refused(server, feed_of):
    feed = feed_of(server.stream(0))

    class Astray:
        async def fetch(self, request):
            return await feed.fetch(FetchRequest("nonsense/1"))

    with pytest.raises(FeedRefused, match="answered 400 Bad Request"):
        await reading(Astray()).poll_now()


@pytest.mark.parametrize(
    ("content_type", "messages", "text"),
    [
        ("text/plain", "json", "is a stream of 'text/plain'; check its URL, or pass messages='lines' or 'bytes'"),
        ("application/json", "lines", "is a stream of 'application/json'; check its URL, or pass messages='json'"),
        ("application/json", "bytes", "pass messages='json'"),
    ],
)
async def test_a_stream_with_an_unexpected_content_type_is_refused(server, feed_of, content_type, messages, text):
    stream = server.stream(content_type=content_type)
    with pytest.raises(FeedRefused, match=text):
        await fetch(feed_of(stream, messages=messages))


async def test_a_stream_with_a_json_suffix_type_is_read_as_ndjson_and_refused_as_json(server, feed_of):
    """To the server, a type with a +json suffix is bytes (§9)."""
    stream = server.stream(b'{"a": 1}\n', b'{"a": 2}\n', content_type="application/geo+json")
    assert (await walk(feed_of(stream, messages="ndjson")))[0] == [("0", {"a": 1}), ("9", {"a": 2})]
    with pytest.raises(FeedRefused, match="is a stream of 'application/geo\\+json'; check its URL, or pass"):
        await fetch(feed_of(stream))


async def test_a_gzip_encoded_answer_is_decoded(server, feed_of):
    encodings = []

    async def note(response):
        encodings.append(response.headers.get("content-encoding"))

    stream = server.stream("é" * 10_000)
    async with httpx.AsyncClient(timeout=GUARD, event_hooks={"response": [note]}, trust_env=False) as client:
        seen, _ = await walk(feed_of(stream, client=client))
    assert (seen, encodings) == ([("0", "é" * 10_000)], ["gzip"])


async def test_a_stream_that_has_expired_is_refused(feed_of, tmp_path):
    with serving(dataDir=str(tmp_path)) as server:
        expiries = [{"Stream_TTL": "3600"}, {"Stream_Expires_At": "2999-01-01T00:00:00Z"}]
        consumers = [reading(feed_of(server.stream(0, **expiry))) for expiry in expiries]
        for consumer in consumers:
            assert (await consumer.poll_now()).messages == 1
        await run_sync(server.kill)
        await run_sync(partial(server.start, clockAhead=1e14))  # milliseconds: 3,000 years
        for consumer in consumers:
            with pytest.raises(FeedRefused, match=r"answered 404 Not Found: .* or has expired"):
                await consumer.poll_now()


async def test_a_closed_stream_is_read_to_its_end_and_then_ends_the_consumer(server, feed_of):
    stream = server.stream(0, 1)
    stream.end()
    consumer = reading(feed_of(stream))
    with anyio.fail_after(GUARD):
        await consumer.run()
    assert consumer.processed == numbers(2)


async def test_a_stream_that_is_closed_during_a_long_poll_ends_the_consumer(server, feed_of):
    stream = server.stream(0)
    consumer = reading(feed_of(stream, max_wait=NEVER))

    async def end():
        await run_sync(server.wait_until_held, stream)
        stream.end()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end)
        with anyio.fail_after(GUARD):
            await consumer.run()


async def test_a_new_consumer_with_start_latest_ends_at_once_on_a_closed_stream(server, feed_of):
    stream = server.stream(0)
    stream.end()
    consumer = reading(feed_of(stream), start="latest")
    with anyio.fail_after(GUARD):
        await consumer.run()
    assert consumer.processed == []


async def test_a_stream_that_was_created_closed_ends_the_consumer(server, feed_of):
    for content_type, messages in (("application/json", "json"), ("text/plain", "lines")):
        stream = server.stream(content_type=content_type, Stream_Closed="true")
        consumer = reading(feed_of(stream, messages=messages))
        with anyio.fail_after(GUARD):
            await consumer.run()
        assert consumer.processed == []


@pytest.mark.parametrize(
    ("fault", "text", "retry_after"),
    [
        ({"status": 503}, "503 Service Unavailable; retrying later", None),
        ({"status": 429, "retryAfter": 7}, "429 Too Many Requests", 7),
        ({"dropConnection": True}, "RemoteProtocolError", None),
        ({"truncateBodyBytes": 3}, "did not send a JSON array: it must begin with", None),
        ({"truncateBodyBytes": 0}, "sent an empty body although messages follow offset '-1'", None),
    ],
)
async def test_a_temporary_fault_is_a_failed_poll_and_does_not_move_the_cursor(
    server, feed_of, fault, text, retry_after
):
    stream = server.stream(0, 1)
    server.fail(stream, **fault)
    consumer = reading(feed_of(stream))
    with pytest.raises(FeedError, match=text) as failed:
        await consumer.poll_now()
    assert type(failed.value) is FeedError
    assert failed.value.retry_after == retry_after
    assert consumer.status().cursor is None
    assert len((await fetch(feed_of(stream))).messages) == 2


# Positions


async def test_a_fork_has_the_messages_of_its_source_with_the_same_ids_and_then_its_own(server, feed_of):
    stream = server.stream(0, 1)
    fork = stream.fork()
    stream.append("not on the fork")
    fork.append("on the fork")
    seen, page = await walk(feed_of(fork))
    assert seen == [("0", 0), ("1", 1), ("2", "on the fork")]
    first, *_ = (await fetch(feed_of(stream))).messages
    assert (await walk(feed_of(fork), first.cursor))[0] == seen[1:]  # offsets are the same (§8)
    fork.end()
    assert (await fetch(feed_of(fork), page.cursor)).closed


async def test_a_fork_stays_readable_without_its_source_but_gets_no_new_messages(server, feed_of, running):
    stream = server.stream(0, 1)
    fork = stream.fork()
    consumer = running(reading(feed_of(fork)))
    await run_sync(server.wait_until_held, fork)
    stream.append("not on the fork")
    stream.delete()
    fork.append("on the fork")
    await consumer.until(3)
    assert consumer.processed == numbers(3)
    assert consumer.status().counters.polls <= 3
    fork.delete()
    with pytest.raises(FeedRefused, match="404 Not Found"):  # nothing keeps the source any more
        await fetch(feed_of(stream))


async def test_a_fork_of_a_fork_from_the_middle_of_an_append_continues_the_ids(server, feed_of):
    """Without an offset of the source, the fork has one, and the numbers continue (§4.2)."""
    stream = server.stream(0)
    offset = (await fetch(feed_of(stream))).cursor.partition("/")[0]
    stream.append(1, 2, 3)
    fork = stream.fork(Stream_Fork_Offset=offset, Stream_Fork_Sub_Offset="2")
    fork.append("a")
    second = fork.fork()
    second.append("b")
    assert [data for _, data in (await walk(feed_of(stream)))[0]] == [0, 1, 2, 3]
    seen, _ = await walk(feed_of(second))
    assert seen == [("0", 0), ("1", 1), ("2", 2), ("3", "a"), ("4", "b")]
    assert (await walk(feed_of(second), f"{offset}/1/1"))[0] == seen[2:]


async def test_a_new_consumer_with_start_latest_reads_only_later_messages(server, feed_of):
    stream = server.stream(0, 1)
    feed = feed_of(stream)
    consumer = reading(feed, start="latest")
    assert (await consumer.poll_now()).messages == 0
    stream.append("a", "b")
    stream.append("c")
    assert (await consumer.poll_now()).messages == 3
    offset = (await fetch(feed)).cursor
    start = consumer.processed[0].partition("+")[0]
    assert consumer.processed == [f"{start}+{number}" for number in range(3)]
    assert offset.endswith("/5")
    assert [data for _, data in (await walk(feed, start))[0]] == ["a", "b", "c"]  # a cursor as a user may pass it


async def test_a_consumer_long_polls_an_empty_stream(server, feed_of, running):
    stream = server.stream()
    consumer = running(reading(feed_of(stream)))
    await run_sync(server.wait_until_held, stream)
    stream.append("a")
    await consumer.until(1)
    assert consumer.processed == ["0"]


async def test_messages_of_a_recreated_stream_are_not_duplicates(feed_of):
    """The numbers start at 0 again, and must differ from those of processed messages."""
    with serving() as server:
        stream = server.stream("a", "b", "c")
        feed, store = feed_of(stream), MemoryStore()

        def go_on(error):
            return Resync(error.start, forget=False)

        consumer = reading(feed, store=store, on_cursor_expired=go_on)
        await consumer.poll_now()
        for reset, entries in enumerate((["a", "b"], ["a"]), 1):
            stream.delete()
            stream.create()
            stream.append(*entries)
            assert (await consumer.poll_now()).messages == len(entries)
            assert consumer.processed[-len(entries) :] == [f"{reset}:{n}" for n in range(len(entries))]


# Other kinds of streams


async def test_bytes_messages_have_the_boundaries_of_the_answers_of_the_server(
    slow_reader_server, server, feed_of
):
    pieces = [b"\x00\x01", b"\xff" * 1000, b"\n"]
    for one, expected in ((slow_reader_server, pieces), (server, [b"".join(pieces)])):
        stream = one.stream(*pieces, content_type="application/octet-stream")
        stream.end()
        feed = feed_of(stream, messages="bytes")
        seen, page = await walk(feed)
        assert [data for _, data in seen] == expected
        assert page.closed
        ends = [int(name.split("-")[1]) for name, _ in seen]
        assert [name for name, _ in seen] == [f"{a}-{b}" for a, b in zip([0, *ends], ends, strict=False)]
        assert ends[-1] == 1003


async def test_a_line_is_processed_only_after_its_newline_or_the_close_of_the_stream(server, feed_of, running):
    stream = server.stream(b"first\r\nsec", content_type="text/plain; charset=utf-8")
    consumer = running(reading(feed_of(stream, messages="lines")))
    await run_sync(server.wait_until_held, stream)
    assert consumer.processed == ["0"]
    stream.append(b"ond")
    await run_sync(server.wait_until_held, stream)
    assert consumer.processed == ["0"]
    stream.append(b"\nthird")
    await consumer.until(2)
    stream.end()
    await consumer.until(3)
    assert consumer.processed == ["0", "7", "14"]


async def test_a_partial_line_is_read_completely_after_a_restart(server, feed_of, tmp_path):
    stream = server.stream(b"first\nsec", content_type="text/plain")
    processed = []

    async def process(message):
        processed.append((message.id, message.data))

    for piece in (b"o", b"nd\n\n", b"last"):
        feed = feed_of(stream, messages="lines")
        await Consumer(feed, store=SQLiteStore(tmp_path / "state.db"), process=process).poll_now()
        stream.append(piece)
    stream.end()
    feed = feed_of(stream, messages="lines")
    with anyio.fail_after(GUARD):
        await Consumer(feed, store=SQLiteStore(tmp_path / "state.db"), process=process).run()
    assert processed == [("0", "first"), ("6", "second"), ("13", ""), ("14", "last")]


async def test_each_nonempty_line_of_ndjson_is_a_message(server, feed_of):
    stream = server.stream(b'{"a": 1}\n\n[2', b"]\n", content_type="application/ndjson")
    assert (await walk(feed_of(stream, messages="ndjson")))[0] == [("0", {"a": 1}), ("10", [2])]


# Pushes


def pushed(feed):
    """Listens to the stream's events, and sets an event when it listens."""
    listens = anyio.Event()

    def hint(event):
        listens.set()
        return feed.hint(event)

    return SSEListener(feed.push_url, hint=hint), listens


KINDS = {
    "json": ("application/json", [1, {"a": "b\n"}, None]),
    "lines": ("text/plain", [b"a\n", b"data: b\n", b"event: control\n"]),
    "bytes": ("application/octet-stream", [b"\x00", b"\xff" * 100, b"\n"]),
}


@pytest.mark.parametrize("messages", KINDS)
async def test_each_append_is_pushed_as_an_event_and_processed_once(server, feed_of, running, messages):
    content_type, pieces = KINDS[messages]
    stream = server.stream(content_type=content_type)
    feed = feed_of(stream, messages=messages, max_wait=None)
    listener, listens = pushed(feed)
    consumer = running(reading(feed, listeners=[listener]))
    await listens.wait()
    for count, piece in enumerate(pieces, 1):
        stream.append(piece)
        await consumer.until(count)
    assert len(set(consumer.processed)) == len(pieces)
    assert consumer.status().listeners[0].pushes == len(pieces)


async def test_an_event_stream_that_the_server_ends_is_reopened(server, feed_of, running):
    """As it does every minute (§5.8). The first event of each connection is a control event."""
    stream = server.stream()
    feed = feed_of(stream, max_wait=None)
    opened = [anyio.Event(), anyio.Event()]
    waiting = iter(opened)

    def hint(event):
        if event.event == "control" and (opens := next(waiting, None)):
            opens.set()
        return feed.hint(event)

    consumer = running(reading(feed, listeners=[SSEListener(feed.push_url, hint=hint)]))
    with anyio.fail_after(GUARD):
        await opened[0].wait()
        server.end_event_streams()
        await opened[1].wait()
    stream.append("a")
    await consumer.until(1)
    assert consumer.status().listeners[0].pushes == 1


async def test_control_events_that_keep_the_connection_open_are_not_pushes(impatient_server, feed_of, running):
    """A control event every 20 ms. None of these causes a poll."""
    feed = feed_of(impatient_server.stream(), max_wait=None)
    events, enough = [], anyio.Event()

    def hint(event):
        events.append(event.event)
        if len(events) == 10:
            enough.set()
        return feed.hint(event)

    consumer = running(reading(feed, listeners=[SSEListener(feed.push_url, hint=hint)]))
    with anyio.fail_after(GUARD):
        await enough.wait()
    assert set(events) == {"control"}
    assert consumer.status().listeners[0].pushes == 0
    assert consumer.status().counters.polls <= 2


async def test_the_close_of_a_stream_is_pushed_and_ends_the_consumer(server, feed_of, running):
    stream = server.stream(0)
    feed = feed_of(stream, max_wait=None)
    listener, listens = pushed(feed)
    consumer = reading(feed, listeners=[listener])

    async def end():
        await listens.wait()
        await run_sync(stream.end)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end)
        with anyio.fail_after(GUARD):
            await consumer.run()
    assert consumer.processed == ["0"]


# Command line


def run(*arguments):
    return subprocess.run(
        [sys.executable, EXAMPLE, *arguments], capture_output=True, text=True, check=False, timeout=GUARD
    )


def test_the_example_runs_from_a_shell_and_continues_from_its_state_file(server, tmp_path, capsys):
    """Run again in this process, which needs no start of Python."""
    stream, state = server.stream({"n": 0}), str(tmp_path / "state.db")
    stream.append("é")
    stream.end()
    first = run(stream.url, state)
    assert (first.stdout, first.returncode) == ('0 {"n": 0}\n1 "\\u00e9"\n', 0)
    assert "Error" not in first.stderr
    main = runpy.run_path(str(EXAMPLE))["main"]
    anyio.run(main, stream.url, state)
    assert not capsys.readouterr().out
    anyio.run(main, stream.url)
    assert capsys.readouterr().out == first.stdout


@pytest.mark.long_form  # two more processes; the errors of the feed itself are tested above
def test_the_example_prints_errors_without_a_traceback(server):
    stream = server.stream(0)
    stream.fork()
    stream.delete()
    gone, usage = run(stream.url), run()
    assert (gone.returncode, usage.returncode) == (1, 1)
    assert "410 Gone: the feed no longer exists" in gone.stderr
    assert "python examples/durable_streams.py" in usage.stderr
    assert "Traceback" not in gone.stderr + usage.stderr
