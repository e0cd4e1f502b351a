"""The example feed against a server that nobody here wrote, on real sockets. Waits for events, never for time."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import anyio
import httpx
import pytest
from anyio.to_thread import run_sync
from consumers import Log
from durable_streams_server import PATIENCE, serving

from push_to_poll_client import (
    Consumer,
    CursorExpired,
    FeedError,
    FeedGone,
    FeedRefused,
    FetchRequest,
    Mode,
    ProcessError,
    SQLiteStore,
)
from push_to_poll_client.testing import FeedSuite

pytestmark = pytest.mark.anyio

PATH = Path(__file__).parents[1] / "examples" / "durable_streams.py"
SPEC = importlib.util.spec_from_file_location("durable_streams", PATH)
example = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(example)

NEVER = 3600.0
"""Seconds between polls by the timer: what comes before comes by long polling."""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture(scope="module")
def server():
    with serving(longPollTimeout=20_000) as server:
        yield server


@pytest.fixture(scope="module")
def paged_server():
    with serving(longPollTimeout=20_000, pageSize=2) as server:
        yield server


@pytest.fixture(scope="module")
def impatient_server():
    """Holds an answer for a moment only."""
    with serving(longPollTimeout=20) as server:
        yield server


@pytest.fixture
async def client():
    async with httpx.AsyncClient(trust_env=False) as client:
        yield client


@pytest.fixture
def feed_of(client):
    return lambda stream, **settings: example.DurableStreamFeed(stream.url, client, **settings)


def reading(feed, **settings):
    return Log(feed, **{"fallback_interval": NEVER, "patience": PATIENCE, **settings})


async def fetch(feed, cursor=None, **how):
    with anyio.fail_after(PATIENCE):
        return await feed.fetch(FetchRequest(cursor, **how))


def numbers(*bounds):
    return [str(number) for number in range(*bounds)]


class TestDurableStreamFeed(FeedSuite):
    """Pages of two."""

    @pytest.fixture(autouse=True)
    def given(self, paged_server, client):
        self.server, self.client = paged_server, client

    async def make_feed(self, count):
        self.stream = self.server.stream(*range(count))
        return example.DurableStreamFeed(self.stream.url, self.client)

    async def publish(self, feed, count):
        for number in range(count):
            self.stream.append(number)

    async def held(self, feed):
        await run_sync(self.server.wait_until_held, self.stream)


class TestDurableStreamFeedAsItIsServed(TestDurableStreamFeed):
    """Everything on one page, however long: what comes later is named alike on whatever page it is."""

    @pytest.fixture(autouse=True)
    def given(self, server, client):
        self.server, self.client = server, client


async def test_messages_carry_what_was_appended_one_by_one_or_many_at_once(server, feed_of):
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
    """The page that is read again begins at the same offset and is longer by then."""
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
    assert (result.messages, result.duplicates) == (5, 3)
    stream.append(8)
    assert (await poll()).messages == 1
    assert processed == numbers(9)


async def test_what_is_appended_reaches_the_handler_by_a_held_answer(server, feed_of, running):
    stream = server.stream(0)
    consumer = running(reading(feed_of(stream)))
    for number in range(1, 6):
        await run_sync(server.wait_until_held, stream)
        assert len(consumer.processed) == number
        stream.append(number)
        await consumer.until(number + 1)
    assert consumer.processed == numbers(6)


async def test_a_wake_cancels_a_held_answer_and_is_answered_at_once(server, feed_of, running):
    stream = server.stream(0)
    consumer = running(reading(feed_of(stream)))
    for _ in range(3):
        await run_sync(server.wait_until_held, stream)
        with anyio.fail_after(9):  # the server would hold for twenty
            await consumer.poll_now()


async def test_a_held_answer_without_news_is_no_error_and_moves_nothing(impatient_server, feed_of):
    feed = feed_of(impatient_server.stream(0))
    cursor = (await fetch(feed)).cursor
    page = await fetch(feed, cursor, wait=PATIENCE)
    assert (list(page.messages), page.cursor, page.next) == ([], cursor, None)


async def test_a_server_that_holds_too_long_is_asked_again_without_waiting(server, feed_of):
    stream = server.stream(0)
    feed = feed_of(stream)
    cursor = (await fetch(feed)).cursor
    with anyio.fail_after(9):  # the server would hold for twenty
        page = await fetch(feed, cursor, wait=0.1)
    assert (list(page.messages), page.cursor, page.next) == ([], cursor, None)


async def test_answers_without_news_do_not_make_a_busy_loop(impatient_server, feed_of, running):
    """Three that come early, and the timer takes over until there is a poll of another cause."""
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
    with anyio.fail_after(PATIENCE):
        await answered.wait()
    await anyio.wait_all_tasks_blocked()
    assert consumer.status().mode is Mode.IDLE
    assert waits == [0.0, 20.0, 20.0, 20.0]


async def test_what_is_asked(impatient_server, feed_of):
    """The last `Stream-Cursor` is echoed, queries are in alphabetical order, and patience goes with the wait."""
    feed = feed_of(impatient_server.stream(0))
    asked, echoes = [], []

    async def note_request(request):
        patience = request.extensions["timeout"]["read"]
        asked.append((request.url.query.decode(), request.headers.get("cache-control"), patience))

    async def note_response(response):
        echoes.append(response.headers.get("stream-cursor"))

    feed.client.event_hooks = {"request": [note_request], "response": [note_response]}
    cursor = (await fetch(feed)).cursor
    offset = cursor.partition("/")[0]
    for how in ({"wait": 9.0}, {"wait": 9.0}, {"fresh": True}):
        await fetch(feed, cursor, **how)
    assert asked == [
        ("offset=-1", None, 10.0),
        (f"live=long-poll&offset={offset}", None, 19.0),
        (f"cursor={echoes[1]}&live=long-poll&offset={offset}", None, 19.0),
        (f"offset={offset}", "no-cache", 10.0),
    ]


async def test_a_consumer_survives_the_servers_death(feed_of, running, tmp_path):
    with serving(dataDir=str(tmp_path), longPollTimeout=20_000) as server:
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


async def test_a_server_that_forgot_the_stream_is_named_and_one_made_anew_stops_the_consumer(feed_of):
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
            pytest.raises(CursorExpired, match="beyond the end of the stream: it was deleted and made anew"),
            anyio.fail_after(9),
        ):
            await consumer.run()


async def test_a_deleted_stream_is_refused(server, feed_of):
    stream = server.stream(0)
    consumer = reading(feed_of(stream))
    await consumer.poll_now()
    stream.delete()
    with pytest.raises(FeedRefused, match="answered 404 Not Found; check the URL"):
        await consumer.poll_now()


async def test_a_stream_that_is_deleted_while_an_answer_is_held_is_refused(server, feed_of):
    stream = server.stream(0)
    feed = feed_of(stream)
    cursor = (await fetch(feed)).cursor

    async def delete():
        await run_sync(server.wait_until_held, stream)
        stream.delete()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(delete)
        with pytest.raises(httpx.HTTPStatusError, match="404 Not Found"):
            await fetch(feed, cursor, wait=PATIENCE)


async def test_a_deleted_stream_that_has_forks_is_gone(server, feed_of):
    stream = server.stream(0)
    consumer = reading(feed_of(stream))
    await consumer.poll_now()
    stream.fork()
    stream.delete()
    with pytest.raises(CursorExpired, match="no longer kept, or the stream was deleted"):
        await consumer.poll_now()
    with pytest.raises(FeedGone, match="410 Gone: the feed is gone for good"):
        await reading(feed_of(stream)).poll_now()


async def test_an_offset_that_the_server_cannot_read_is_refused(server, feed_of):
    feed = feed_of(server.stream(0))

    class Astray:
        async def fetch(self, request):
            return await feed.fetch(FetchRequest("nonsense/1"))

    with pytest.raises(FeedRefused, match="answered 400 Bad Request"):
        await reading(Astray()).poll_now()


async def test_a_stream_of_something_else_is_refused(server, feed_of):
    stream = server.stream("text", content_type="text/plain")
    with pytest.raises(FeedRefused, match="one of 'text/plain', not JSON"):
        await fetch(feed_of(stream))


async def test_a_closed_stream_is_read_to_its_end_and_then_stops_the_consumer(server, feed_of):
    stream = server.stream(0, 1)
    stream.end()
    consumer = reading(feed_of(stream))
    with pytest.raises(example.StreamClosed, match="closed by its writer"), anyio.fail_after(9):
        await consumer.run()
    assert consumer.processed == numbers(2)


async def test_a_stream_that_is_closed_while_an_answer_is_held_stops_the_consumer(server, feed_of):
    stream = server.stream(0)
    consumer = reading(feed_of(stream))

    async def end():
        await run_sync(server.wait_until_held, stream)
        stream.end()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end)
        with pytest.raises(example.StreamClosed, match="closed by its writer"), anyio.fail_after(9):  # not twenty
            await consumer.run()


@pytest.mark.parametrize(
    ("fault", "text", "retry_after"),
    [
        ({"status": 503}, "503 Service Unavailable; it is asked again later", None),
        ({"status": 429, "retryAfter": 7}, "429 Too Many Requests", 7),
        ({"dropConnection": True}, "RemoteProtocolError", None),
        ({"truncateBodyBytes": 3}, "JSONDecodeError", None),
    ],
)
async def test_what_passes_is_a_failed_poll_and_the_cursor_stays(server, feed_of, fault, text, retry_after):
    stream = server.stream(0, 1)
    server.fail(stream, **fault)
    consumer = reading(feed_of(stream))
    with pytest.raises(FeedError, match=text) as failed:
        await consumer.poll_now()
    assert type(failed.value) is FeedError
    assert failed.value.retry_after == retry_after
    assert consumer.status().cursor is None
    assert len((await fetch(feed_of(stream))).messages) == 2


def run(*arguments):
    return subprocess.run(
        [sys.executable, PATH, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE
    )


def test_it_runs_from_a_shell(server, tmp_path):
    stream, state = server.stream({"n": 0}), str(tmp_path / "state.db")
    stream.append("é")
    stream.end()
    first, again, without = run(stream.url, state), run(stream.url, state), run(stream.url)
    assert (first.stdout, first.returncode) == ('0 {"n": 0}\n1 "\\u00e9"\n', 0)
    assert first.stderr.endswith("closed by its writer, and this is its end\n")
    assert (again.stdout, again.returncode) == ("", 0)
    assert without.stdout == first.stdout


def test_from_a_shell_every_error_is_a_sentence(server):
    stream = server.stream(0)
    stream.fork()
    stream.delete()
    gone, usage = run(stream.url), run()
    assert (gone.returncode, usage.returncode) == (1, 1)
    assert "410 Gone: the feed is gone for good" in gone.stderr
    assert "python examples/durable_streams.py" in usage.stderr
    assert "Traceback" not in gone.stderr + usage.stderr
