"""The fake feed fails only where the test asks for it."""

import anyio
import pytest

from push_to_poll_client._exceptions import CursorExpired, DecodeError, FeedError
from push_to_poll_client._types import FetchRequest, Message, Page
from push_to_poll_client.testing._fake_feed import FakeFeed

pytestmark = pytest.mark.anyio


async def ids(feed, cursor=None, **request):
    page = await feed.fetch(FetchRequest(cursor, **request))
    return [message.id for message in page.messages]


async def walk(feed, cursor=None):
    """Fetch all pages from the cursor to the end."""
    pages = [await feed.fetch(FetchRequest(cursor))]
    while pages[-1].next_page is not None:
        pages.append(await feed.fetch(FetchRequest(pages[-1].next_page)))
    return pages


async def test_a_new_feed_returns_an_empty_page_without_a_cursor():
    assert await FakeFeed().fetch(FetchRequest()) == Page([])


async def test_messages_come_in_order_and_each_cursor_reads_the_rest():
    feed = FakeFeed()
    assert feed.publish(2) == ["1", "2"]
    assert feed.publish("a", "b", data={"total": 12}) == ["a", "b"]
    page = await feed.fetch(FetchRequest())
    assert [message.id for message in page.messages] == ["1", "2", "a", "b"]
    assert page.messages[2].data == {"total": 12}
    assert page.cursor == page.messages[-1].cursor == feed.newest == feed.after(4)
    assert await ids(feed, page.messages[1].cursor) == ["a", "b"]


async def test_publish_without_arguments_publishes_one_message():
    assert FakeFeed().publish() == ["1"]


async def test_a_published_message_object_is_returned_unchanged():
    feed, own = FakeFeed(), Message("own", dedupe_key="k", cursor="here")
    feed.publish(own)
    assert (await feed.fetch(FetchRequest())).messages == [own]


async def test_an_unreadable_message_carries_its_error_and_its_cursor():
    feed, error = FakeFeed(), DecodeError("not JSON")
    feed.publish("bad", error=error)
    (message,) = (await feed.fetch(FetchRequest())).messages
    assert (message.id, message.error, message.cursor) == ("bad", error, feed.after(1))


async def test_a_page_has_a_cursor_too_if_cursors_is_message():
    feed = FakeFeed(page_size=2, cursors="message")
    feed.publish(3)
    first, last = await walk(feed)
    assert [message.cursor for message in first.messages] == [feed.after(1), feed.after(2)]
    assert (first.cursor, first.next_page, last.cursor, last.next_page) == (
        feed.after(2),
        feed.after(2),
        feed.after(3),
        None,
    )


async def test_messages_have_no_cursor_if_cursors_is_page():
    feed = FakeFeed(page_size=2, cursors="page")
    feed.publish(3)
    first, last = await walk(feed)
    assert [message.cursor for message in (*first.messages, *last.messages)] == [None] * 3
    assert (first.cursor, last.cursor) == (feed.after(2), feed.after(3))


async def test_only_the_last_page_has_a_cursor_if_cursors_is_chain():
    feed = FakeFeed(page_size=2, cursors="chain")
    feed.publish(5)
    pages = await walk(feed)
    assert [page.cursor for page in pages] == [None, None, feed.after(5)]
    assert [len(page.messages) for page in pages] == [2, 2, 1]


async def test_a_full_last_page_is_the_end_unless_ends_empty_is_set():
    feed = FakeFeed(page_size=2)
    feed.publish(2)
    assert len(await walk(feed)) == 1
    feed.ends_empty = True
    assert [len(page.messages) for page in await walk(feed)] == [2, 0]


async def test_requests_are_recorded_with_their_times():
    feed = FakeFeed(latency=3)
    began = anyio.current_time()
    await ids(feed)
    await ids(feed, "c", bypass_cache=True)
    assert [asked.at - began for asked in feed.requests] == [0, pytest.approx(3)]
    assert [asked.request for asked in feed.requests] == [FetchRequest(), FetchRequest("c", bypass_cache=True)]


async def test_a_message_published_during_a_fetch_is_not_in_its_page():
    """Otherwise the answer would contain it, and no test could detect a lost wake-up."""
    feed = FakeFeed(latency=1)
    answers = []

    async def fetch():
        answers.append(await ids(feed))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fetch)
            await feed.asked(1)
            await anyio.wait_all_tasks_blocked()
            feed.publish()
    assert answers == [[]]
    assert await ids(feed) == ["1"]


async def test_an_ordered_failure_is_raised_after_the_latency():
    feed = FakeFeed(latency=2)
    feed.fail(FeedError("503"))
    began = anyio.current_time()
    with pytest.raises(FeedError):
        await ids(feed)
    assert anyio.current_time() - began == pytest.approx(2)


async def test_lagging_messages_become_visible_later():
    feed = FakeFeed()
    feed.publish("slow", lag=5)
    assert await ids(feed) == []
    await anyio.sleep(5)
    assert await ids(feed) == ["slow"]


async def test_the_newest_cursor_includes_messages_that_are_not_visible_yet():
    feed = FakeFeed()
    feed.publish(lag=5)
    assert feed.newest == feed.after(1)
    assert (await feed.fetch(FetchRequest())).cursor is None


async def test_a_message_that_becomes_visible_before_the_cursor_is_not_read_from_that_cursor():
    """Commit order differs from id order: a consumer that continues from the larger id misses the smaller one."""
    feed = FakeFeed()
    feed.publish("smaller", lag=1)
    feed.publish("larger")
    page = await feed.fetch(FetchRequest())
    assert [message.id for message in page.messages] == ["larger"]
    await anyio.sleep(1)
    assert await ids(feed, page.cursor) == []
    assert await ids(feed) == ["smaller", "larger"]


async def test_overlap_repeats_messages_before_the_cursor():
    feed = FakeFeed(overlap=2, page_size=1)
    feed.publish(4)
    assert await ids(feed, feed.after(1)) == ["1", "2"]
    assert await ids(feed, feed.after(3)) == ["2", "3", "4"]
    page = await feed.fetch(FetchRequest(feed.newest))
    assert ([message.id for message in page.messages], page.cursor, page.next_page) == (
        ["3", "4"],
        feed.newest,
        None,
    )


async def test_an_id_can_be_published_twice():
    feed = FakeFeed()
    feed.publish("a", "a")
    assert await ids(feed) == ["a", "a"]


async def test_fail_raises_the_given_error_the_given_number_of_times():
    feed, error = FakeFeed(), FeedError("429", retry_after=7)
    feed.publish()
    feed.fail(error, times=2)
    for _ in range(2):
        with pytest.raises(FeedError) as caught:
            await ids(feed)
        assert caught.value is error
    assert await ids(feed) == ["1"]


async def test_fail_without_a_limit_raises_until_recover():
    feed = FakeFeed()
    feed.fail(OSError("no route"), times=None)
    for _ in range(3):
        with pytest.raises(OSError, match="no route"):
            await ids(feed)
    feed.recover()
    assert await ids(feed) == []


async def test_recover_cancels_ordered_failures():
    feed = FakeFeed(page_size=1)
    feed.publish(2)
    feed.fail(FeedError("503"), times=5)
    feed.recover()
    assert len(await walk(feed)) == 2


async def test_scripted_answers_decide_the_next_fetches_one_by_one():
    feed = FakeFeed()
    feed.publish()
    scripted = Page([Message("scripted")])
    asked = []

    def decide(request):
        asked.append(request)
        return FeedError("called")

    feed.answer(scripted, None, decide, lambda _: None)
    assert await ids(feed) == ["scripted"]
    assert await ids(feed) == ["1"]
    with pytest.raises(FeedError, match="called"):
        await ids(feed)
    assert await ids(feed) == ["1"]
    assert asked == [FetchRequest()]


async def test_forgotten_cursors_read_everything_again_without_an_error():
    feed = FakeFeed()
    feed.publish(2)
    old = feed.newest
    feed.forget()
    assert await ids(feed, old) == ["1", "2"]
    assert await ids(feed, feed.newest) == []


async def test_an_expired_cursor_reads_everything_after_forget():
    feed = FakeFeed()
    feed.publish()
    feed.expire()
    feed.forget()
    assert await ids(feed, "after-1.0") == ["1"]


@pytest.mark.parametrize("cursor", ["nonsense", "after-99.0", "after-1.7", ""])
async def test_an_unknown_cursor_reads_everything(cursor):
    feed = FakeFeed()
    feed.publish(2)
    assert await ids(feed, cursor) == ["1", "2"]


async def test_an_expired_cursor_raises_cursor_expired_with_the_given_start():
    feed = FakeFeed()
    feed.publish(3)
    old = feed.newest
    feed.expire(start=2)
    with pytest.raises(CursorExpired) as caught:
        await ids(feed, old)
    assert await ids(feed, caught.value.start) == ["3"]
    assert await ids(feed) == ["1", "2", "3"]


async def test_cursor_expired_has_no_start_if_none_was_given():
    feed = FakeFeed()
    feed.publish()
    old = feed.newest
    feed.expire()
    with pytest.raises(CursorExpired) as caught:
        await ids(feed, old)
    assert caught.value.start is None


async def test_a_page_carries_the_retry_after_of_the_feed():
    feed = FakeFeed(retry_after=9)
    assert (await feed.fetch(FetchRequest())).retry_after == 9


async def held(feed, wait, **publication):
    """Return the ids that a long poll brings and its seconds; optionally publish after two of them."""
    began, found = anyio.current_time(), []

    async def fetch():
        found.extend(await ids(feed, wait=wait))
        found.append(anyio.current_time() - began)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fetch)
        await anyio.sleep(2)
        if publication:
            feed.publish("new", **publication)
    return found


async def test_a_long_poll_is_answered_when_a_message_is_published():
    assert await held(FakeFeed(max_wait=30), 30, lag=0) == ["new", pytest.approx(2)]


async def test_a_long_poll_is_answered_when_a_lagging_message_becomes_visible():
    assert await held(FakeFeed(max_wait=30), 30, lag=5) == ["new", pytest.approx(7)]


async def test_a_long_poll_ends_empty_when_the_wait_ends():
    assert await held(FakeFeed(max_wait=30), 20) == [pytest.approx(20)]


async def test_a_feed_holds_a_long_poll_for_max_wait_at_most():
    assert await held(FakeFeed(max_wait=10), 60) == [pytest.approx(10)]
    assert await held(FakeFeed(), 60) == [pytest.approx(0)]


async def test_a_long_poll_ends_empty_at_once_if_answers_early_is_set():
    assert await held(FakeFeed(max_wait=30, answers_early=True), 30) == [pytest.approx(0)]


async def test_a_long_poll_is_answered_at_once_if_messages_are_available():
    feed = FakeFeed(max_wait=30)
    feed.publish("old")
    assert await held(feed, 30) == ["old", pytest.approx(0)]


async def test_a_long_poll_from_the_newest_cursor_is_held():
    feed = FakeFeed(max_wait=30)
    feed.publish("old")
    began = anyio.current_time()
    assert await ids(feed, feed.newest, wait=30) == []
    assert anyio.current_time() - began == pytest.approx(30)


async def test_a_cancelled_fetch_leaves_the_feed_usable():
    feed = FakeFeed(latency=10)
    feed.publish()
    with anyio.move_on_after(1) as scope:
        await ids(feed)
    assert scope.cancelled_caught
    assert await ids(feed) == ["1"]


async def test_a_feed_counts_its_closes_and_can_be_used_again():
    feed = FakeFeed(identity="orders")
    await feed.aclose()
    assert (feed.closed, feed.identity, await ids(feed)) == (1, "orders", [])


async def test_a_test_can_wait_for_the_nth_fetch():
    feed, reached = FakeFeed(), []

    async def wait():
        await feed.asked(2)
        reached.append(len(feed.requests))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            for _ in range(2):
                assert reached == []
                await anyio.wait_all_tasks_blocked()
                await ids(feed)
    assert reached == [2]


def test_messages_can_be_published_before_the_event_loop_runs():
    feed = FakeFeed()
    feed.publish(2)
    assert anyio.run(ids, feed) == ["1", "2"]


async def test_the_latest_cursor_is_frozen_before_the_latency():
    feed, found = FakeFeed(latency=1.0), []
    feed.publish()

    async def ask():
        found.append(await feed.latest())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await anyio.sleep(0.5)
        feed.publish()
    assert found == [feed.after(1)]
