"""`read_ahead`: the next page is fetched while one is processed, without other effects."""

import contextlib

import anyio
import pytest

from push_to_poll_client import (
    FeedError,
    HTTPFeed,
    MemoryStore,
    Message,
    Page,
    PagesChanged,
    ProcessError,
    Push,
    Throttled,
)
from push_to_poll_client.testing import FakeFeed
from tests.support.consumers import Log, times

pytestmark = pytest.mark.anyio


def feed_of(messages, *, read_ahead=True, **settings):
    feed = FakeFeed(read_ahead=read_ahead, **settings)
    feed.publish(messages)
    return feed


def hanging(feed):
    """Let the fetch of the second page hang."""

    def hang(request):
        feed.latency = 1e9

    feed.answer(None, hang)
    return feed


def ids(numbers):
    return [str(number) for number in numbers]


def cursors(feed):
    return [asked.request.cursor for asked in feed.requests]


async def test_the_next_page_is_fetched_while_one_is_processed():
    feed = feed_of(30, page_size=10, latency=1.0)
    async with Log(feed, takes=0.1) as log:
        began = anyio.current_time()
        result = await log.poll_now()
        # Three pages of a second's fetching and a second's processing, of which two and two are at the same time.
        assert anyio.current_time() - began == pytest.approx(4.0)
    assert log.processed == ids(range(1, 31))
    assert (result.messages, result.pages, result.caught_up) == (30, 3, True)


async def test_pages_fetched_ahead_are_requested_without_a_wait():
    """Only the last fetch of an idle consumer may be a long poll."""
    feed = feed_of(30, page_size=10, max_wait=1000.0)
    async with Log(feed) as log:
        await log.poll_now()
    assert [asked.request.wait for asked in feed.requests] == [0.0, 0.0, 0.0]


async def test_without_read_ahead_a_fetch_starts_after_the_commit():
    """Some feeds treat a fetch as an acknowledgement."""
    feed = feed_of(30, page_size=10, latency=1.0, read_ahead=False)
    async with Log(feed, takes=0.1) as log:
        began = anyio.current_time()
        await log.poll_now()
        assert anyio.current_time() - began == pytest.approx(6.0)


async def test_one_page_and_no_more_is_fetched_ahead():
    feed = feed_of(50, page_size=10)
    seen = []

    class Slow(Log):
        async def process(self, message):
            await super().process(message)
            seen.append(len(feed.requests) - (int(message.id) - 1) // 10)

    async with Slow(feed, takes=1.0, max_poll_time=1000) as log:
        await log.poll_now()
    assert max(seen) == 2
    assert len(feed.requests) == 5


async def test_a_failed_fetch_ahead_is_raised_after_the_page_before_it_is_settled():
    feed = feed_of(20, page_size=10)
    feed.answer(None, FeedError("not now"))
    async with Log(feed, takes=0.1) as log:
        with pytest.raises(FeedError, match="not now"):
            await log.poll_now()
        assert log.processed == ids(range(1, 11))
        assert log.status().cursor == feed.after(10)
        await log.poll_now(timeout=None)
        assert log.processed == ids(range(1, 21))


async def test_retry_after_of_a_page_fetched_ahead_counts_from_its_response():
    feed = feed_of(20, page_size=10)
    feed.answer(None, FeedError("not now", retry_after=100.0))
    async with Log(feed, takes=1.0) as log:
        began = anyio.current_time()
        with pytest.raises(FeedError, match="not now"):
            await log.poll_now()
        assert log.processed == ids(range(1, 11))
        await log.poll_now(timeout=None)
    assert 100 <= times(feed)[2] - began <= 121  # asked at 0, and jitter is drawn upwards


@pytest.mark.parametrize("ends", ["by its time", "by a failing message"])
async def test_retry_after_of_a_fetch_ahead_applies_even_if_the_poll_ends_first(ends):
    """G3: the rest of the answer is dropped."""

    class Failing(Log):
        async def process(self, message):
            await super().process(message)
            if ends == "by a failing message" and message.id == "5":
                raise ValueError

    feed = feed_of(20, page_size=10)
    feed.answer(None, FeedError("not now", retry_after=1000.0))
    async with Failing(feed, takes=1.0, max_poll_time=5.0, retry=None) as log:
        with contextlib.suppress(ProcessError):
            await log.poll_now()
        assert len(feed.requests) == 2
        with pytest.raises(Throttled):
            await log.poll_now(timeout=900)


async def test_retry_after_of_a_fetch_ahead_applies_even_if_the_poll_is_cancelled():
    """G3."""

    class Last(Log):
        async def process(self, message):
            await super().process(message)
            if message.id == "10":
                scope.cancel()

    feed = feed_of(20, page_size=10)
    feed.answer(None, FeedError("not now", retry_after=1000.0))
    async with Last(feed, takes=1.0) as log:
        with anyio.CancelScope() as scope, contextlib.suppress(FeedError):
            await log.poll_now()
        assert len(feed.requests) == 2
        with pytest.raises(Throttled):
            await log.poll_now(timeout=900)


async def test_retry_after_of_a_waiting_fetch_applies_even_if_a_wake_arrives_with_it():
    """G3: the answer of a long poll that is cancelled at the same moment."""

    class Busy:
        max_wait = 30.0
        requests = 0

        async def fetch(self, request):
            self.requests += 1
            if not request.wait:
                return Page([], cursor="c1")
            await anyio.sleep(1.0)
            log.wake()
            raise FeedError("429", retry_after=3600.0)

    feed = Busy()
    log = Log(feed)
    with anyio.move_on_after(1000):
        await log.run()
    assert feed.requests == 2


async def test_a_page_with_retry_after_is_settled_and_no_page_is_fetched_ahead():
    feed = feed_of(20, page_size=10, retry_after=50.0)
    async with Log(feed, takes=1.0) as log:
        result = await log.poll_now()
        assert (log.processed, result.caught_up) == (ids(range(1, 11)), False)
        await log.poll_now(timeout=None)
    assert log.processed == ids(range(1, 21))
    assert len(feed.requests) == 2


@pytest.mark.parametrize(("error", "raised"), [(ValueError("no"), ProcessError), (SystemExit(3), SystemExit)])
async def test_an_error_of_the_handler_cancels_the_fetch_ahead_and_is_raised_without_a_group(error, raised):
    class Failing(Log):
        async def process(self, message):
            await super().process(message)
            if message.id == "5":
                raise error

    feed = hanging(feed_of(20, page_size=10))
    async with Failing(feed, takes=1.0, retry=None) as log:
        with anyio.fail_after(100), pytest.raises(raised):
            await log.poll_now()
        assert log.status().cursor == feed.after(4)
    assert cursors(feed) == [None, feed.after(10)]


async def test_system_exit_of_a_fetch_ahead_is_raised_after_the_page_before_it_is_settled():
    feed = feed_of(20, page_size=10)
    feed.answer(None, SystemExit(3))
    async with Log(feed, takes=1.0) as log:
        with pytest.raises(SystemExit):
            await log.poll_now()
        assert log.status().cursor == feed.after(10)


async def test_a_chain_restart_of_a_fetch_ahead_applies_after_the_pages_before_it():
    feed = feed_of(30, page_size=10)
    feed.answer(None, None, PagesChanged("the pages changed"))
    async with Log(feed, takes=0.1) as log:
        result = await log.poll_now()
    assert log.processed == ids(range(1, 31))
    assert result.caught_up
    assert cursors(feed) == [None, feed.after(10), feed.after(20), feed.after(20)]


async def test_a_stop_cancels_the_fetch_ahead():
    feed = hanging(feed_of(20, page_size=10))
    log = Log(feed, takes=1.0)
    with anyio.fail_after(100):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.run)
            await log.until(3)
            log.stop()
    assert log.processed in (ids(range(1, 4)), ids(range(1, 5)))
    assert cursors(feed) == [None, feed.after(10)]


async def test_a_page_that_a_cancelled_poll_waited_for_is_fetched_again_by_the_next_poll():
    feed = hanging(feed_of(20, page_size=10))
    async with Log(feed, takes=1.0, max_poll_time=5.0) as log:
        with anyio.move_on_after(50) as scope:
            await log.poll_now()
        assert scope.cancelled_caught
        feed.latency = 0.0
        await log.poll_now()
    assert log.processed == ids(range(1, 21))
    assert cursors(feed)[2] == feed.after(10)


@pytest.mark.parametrize("settled", [3, 10], ids=["while a message is in hand", "while only the fetch is left"])
async def test_a_cancellation_cancels_the_fetch_ahead_and_keeps_settled_messages(settled):
    feed = hanging(feed_of(20, page_size=10))
    async with Log(feed, takes=1.0) as log:
        with anyio.move_on_after(settled + 0.5) as scope:
            await log.poll_now()
        assert scope.cancelled_caught
        feed.latency = 0.0
        await log.poll_now()
    assert log.processed == ids(range(1, 21))


async def test_a_poll_that_ends_between_pages_keeps_the_page_it_fetched_ahead():
    """If a page takes longer than a poll may take, each page would be fetched twice otherwise."""
    feed = feed_of(50, page_size=10)
    async with Log(feed, takes=1.0, max_poll_time=5.0) as log:
        while not (await log.poll_now()).caught_up:
            pass
    assert log.processed == ids(range(1, 51))
    assert len(feed.requests) == 6  # the last page once more: it was fetched before the poll that ended with it


async def test_a_last_page_fetched_by_an_earlier_poll_is_fetched_again():
    """G1: a poll finds messages published after the fetch ahead and before the poll."""
    feed = feed_of(20, page_size=10)
    async with Log(feed, takes=1.0, max_poll_time=5.0) as log:
        assert not (await log.poll_now()).caught_up
        feed.publish("news")
        while not (await log.poll_now()).caught_up:
            pass
    assert log.processed[-1] == "news"


async def test_no_page_is_fetched_ahead_when_the_cursor_does_not_change():
    feed = FakeFeed(read_ahead=True)
    messages = [Message(str(number)) for number in range(20)]
    feed.answer(*[Page(messages, cursor="here", next_page="here")] * 4)
    async with Log(feed, takes=1.0) as log:
        await log.poll_now()
    assert cursors(feed) == [None, "here"]


async def test_a_failed_commit_cancels_the_fetch_ahead():
    class Broken(MemoryStore):
        async def claim(self, name, *, feed):
            session = await super().claim(name, feed=feed)
            session.commit = refuse
            return session

    async def refuse(**progress):
        raise OSError("the disk is full")

    feed = hanging(feed_of(20, page_size=10))
    async with Log(feed, store=Broken(), takes=1.0) as log:
        with anyio.fail_after(100), pytest.raises(OSError, match="disk is full"):
            await log.poll_now()


# One page


class Counts(Log):
    """Record the number of requested pages when each message was processed, relative to its own page."""

    def __init__(self, feed, **settings):
        super().__init__(feed, **{"takes": 1.0, "max_poll_time": 1e6, **settings})
        self.ahead = []
        self.feed = feed

    async def process(self, message):
        await super().process(message)
        self.ahead.append(len(self.feed.requests) - 1 - (int(message.id) - 1) // 10)


@pytest.mark.parametrize("read_ahead", [False, True])
async def test_at_most_one_page_is_fetched_ahead_and_none_of_a_feed_without_read_ahead(read_ahead):
    feed = feed_of(100, page_size=10, latency=0.1)
    feed.read_ahead = read_ahead  # as a user sets it for any feed
    async with Counts(feed) as log:
        result = await log.poll_now()
    assert max(log.ahead) == read_ahead
    assert log.processed == ids(range(1, 101))
    assert (result.pages, len(feed.requests), result.caught_up) == (10, 10, True)
    assert cursors(feed) == [None, *(feed.after(10 * n) for n in range(1, 10))]


async def test_pages_of_a_slow_feed_are_requested_one_at_a_time():
    feed = feed_of(60, page_size=10, latency=2.0)
    async with Log(feed, takes=0.1) as log:
        began = anyio.current_time()
        await log.poll_now()
    assert [at - began for at in times(feed)] == pytest.approx([0, 2, 4, 6, 8, 10])


async def test_prefetch_is_ignored_for_a_feed_without_read_ahead():
    feed = feed_of(60, page_size=10, read_ahead=False)
    async with Counts(feed) as log:
        await log.poll_now()
    assert max(log.ahead) == 0


@pytest.mark.parametrize(
    ("second", "asked"),
    [
        (Page([Message("x")] * 20, cursor="c", next_page="c", retry_after=1e4), 2),
        (Page([Message("x")] * 20, cursor="c"), 2),
        (Page([Message("x")] * 9, cursor="c", next_page="d"), 2),
        (None, 3),
    ],
    ids=["a wish to be left alone", "an end", "a short page", "nothing"],
)
async def test_no_page_is_fetched_ahead_after_a_pause_a_last_page_or_a_short_one(second, asked):
    feed = feed_of(100, page_size=10)
    feed.answer(None, second)
    async with Counts(feed) as log:
        with anyio.move_on_after(10.5):
            await log.poll_now()
    assert len(feed.requests) == asked


async def test_no_page_is_fetched_ahead_after_max_poll_time():
    feed = feed_of(100, page_size=10, latency=2.0)
    async with Counts(feed, max_poll_time=5.0) as log:
        await log.poll_now()
    assert len(feed.requests) == 2, "at 0 and 2 seconds"


async def test_the_next_poll_uses_the_pages_fetched_ahead_and_fetches_beyond_them():
    feed = feed_of(80, page_size=10, latency=0.1)
    async with Counts(feed, max_poll_time=5.0) as log:
        asked = []
        while not (await log.poll_now()).caught_up:
            asked.append(len(feed.requests))
    assert log.processed == ids(range(1, 81))
    assert asked[:4] == [2, 3, 4, 5], "one page for each that was processed"
    assert len(feed.requests) == 8 + 1, "and the last one again, since it may not be the last by then"


async def test_fresh_and_hint_of_a_push_are_sent_when_its_poll_continues_with_kept_pages():
    """G1: a cache may not have the messages that a push announces."""
    feed = feed_of(80, page_size=10, latency=0.1)
    log = Counts(feed, max_poll_time=5.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(log.run)
        await log.until(3)
        log.wake(Push(topics=("orders",)))
        await log.until(15)
        tasks.cancel_scope.cancel()
    asked = [(one.request.bypass_cache, one.request.hint) for one in feed.requests]
    assert asked == [(False, None)] * 2 + [(True, Push(topics=("orders",)))]


@pytest.mark.parametrize("how", ["rewind", "cancel"])
async def test_a_rewind_or_a_cancellation_drops_the_pages_fetched_ahead(how):
    feed = feed_of(80, page_size=10, latency=0.1)
    async with Counts(feed, max_poll_time=5.0) as log:
        if how == "rewind":
            await log.poll_now()
            await log.rewind("inception")
        else:
            with anyio.move_on_after(5.5):
                await log.poll_now()
        before = len(feed.requests)
        log.takes = 0.0
        await log.poll_now()
    assert before == 2
    assert cursors(feed)[2] == (None if how == "rewind" else feed.after(5))
    assert log.processed == ids(range(1, 81))


async def test_retry_after_of_a_dropped_page_still_applies():
    """G3."""
    feed = feed_of(80, page_size=10)
    feed.answer(None, Page([Message("x")] * 20, cursor="c", next_page="c", retry_after=1_000.0))
    async with Counts(feed) as log:
        with anyio.move_on_after(5.5):
            await log.poll_now()
        with pytest.raises(Throttled):
            await log.poll_now(timeout=900)


def test_the_http_feed_reads_ahead():
    assert HTTPFeed("https://shop.example/orders").read_ahead
