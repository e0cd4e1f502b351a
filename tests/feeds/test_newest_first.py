"""Newest-first feeds return messages oldest first, and lose none on the way."""

from collections import Counter
from dataclasses import replace

import anyio
import httpx
import pytest

from push_to_poll_client import (
    CursorExpired,
    FeedError,
    FeedGone,
    FeedRefused,
    FetchRequest,
    PagesChanged,
)
from push_to_poll_client._http.caching import Validators
from push_to_poll_client._types import MAX_CURSOR
from push_to_poll_client.feeds import _newest_first_cursor, _newest_first_walk
from push_to_poll_client.feeds._newest_first import NewestFirstReader
from push_to_poll_client.feeds._newest_first_cursor import MAX_OLDER_DIGESTS, MAX_TOP_DIGESTS, SeenEntries, digest
from push_to_poll_client.feeds._newest_first_walk import Document
from push_to_poll_client.feeds.paged import (
    Entries,
    NewestFirst,
    PagedFeed,
    as_url,
    closed,
    from_header,
    from_link,
    full_page,
    gap,
    not_ready,
    pause,
)
from tests.support.consumers import Log
from tests.support.declared import feed_of
from tests.support.newest_first_server import WHERE, Archived, Following, Numbered, Reader, reader
from tests.vendors.github import GitHub
from tests.vendors.stripe import Stripe

pytestmark = pytest.mark.anyio

KINDS = pytest.mark.parametrize("kind", [Numbered, Following, Archived], ids=lambda kind: kind.__name__)


def names(first, last):
    return [f"{number:03}" for number in range(first, last + 1)]


# Oldest first


@KINDS
@pytest.mark.parametrize("most", [1, 5, 100])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 20])
async def test_messages_are_read_oldest_first_with_any_message_limit(kind, count, most):
    one = reader(kind(count), max_messages=most)
    assert await one.poll() == names(1, count)
    assert await one.poll() == []


@KINDS
@pytest.mark.parametrize("most", [1, 5, 100])
async def test_new_messages_are_read_by_the_next_poll(kind, most):
    documents = kind(5)
    one = reader(documents, max_messages=most)
    await one.poll()
    for count in (1, 2, 3, 10):
        published = documents.publish(count)
        assert await one.poll() == published


@KINDS
@pytest.mark.parametrize("most", [1, 5, 100])
async def test_a_quiet_poll_is_one_request(kind, most):
    documents = kind(20)
    one = reader(documents, max_messages=most)
    await one.poll()
    for _ in range(3):
        documents.asked.clear()
        assert await one.poll() == []
        assert documents.asked == [None]


async def test_a_small_message_limit_fetches_each_document_about_twice():
    documents = Following(300)
    one = reader(documents, max_messages=33)
    assert await one.poll() == names(1, 300)
    assert len(documents.asked) <= 2 * 100 + 10 + 2


async def test_an_order_sorts_messages_across_documents():
    documents = Following(9)
    documents.entries.sort(key=lambda name: (int(name) % 3, name))
    one = reader(documents, order=lambda message: message.id)
    assert await one.poll() == names(1, 9)


async def test_an_order_does_not_sort_messages_of_a_single_document():
    documents = Following(0)
    documents.entries = ["1", "3", "2"]
    assert await reader(documents, order=lambda message: message.id).poll() == ["2", "3", "1"]


async def test_a_start_at_the_latest_cursor_reads_only_later_messages():
    documents = Numbered(20)
    walk = NewestFirstReader(documents.look, WHERE)
    one = Reader(walk, await walk.latest())
    assert await one.poll() == []
    published = documents.publish(2)
    assert await one.poll() == published


async def test_latest_fails_while_the_newest_document_is_not_shown():
    walk = NewestFirstReader(Numbered(2, unchanged=True).look, WHERE)
    with pytest.raises(FeedError, match="has no newest document yet"):
        await walk.latest()


# Failures during a walk


@KINDS
async def test_a_failed_fetch_asks_for_the_same_document_again(kind):
    documents = kind(9)
    one = reader(documents)
    await one.step()
    [again] = documents.asked
    at = one.walk._walks.get(None).at
    documents.errors[at] = [FeedError("garbage")]
    with pytest.raises(FeedError, match="garbage"):
        await one.step()
    while await one.step():
        pass
    assert documents.asked[:3] == [again, at, at]
    assert one.settled == names(1, 9)


@KINDS
async def test_repeated_failures_of_a_document_restart_the_page_chain_at_the_newest(kind):
    documents = kind(9)
    one = reader(documents)
    await one.step()
    at = one.walk._walks.get(None).at
    documents.errors[at] = [FeedError("garbage") for _ in range(_newest_first_walk.MAX_TRIES)]
    for _ in range(_newest_first_walk.MAX_TRIES):
        with pytest.raises(FeedError, match="garbage"):
            await one.poll()
    documents.asked.clear()
    assert await one.poll() == names(1, 9)
    assert documents.asked[:2] == [None, at]


async def test_tries_are_counted_for_each_document():
    documents = Following(30)
    one = reader(documents)
    for name in documents.entries[2:-1:3]:
        documents.errors[name] = [FeedError("weather") for _ in range(_newest_first_walk.MAX_TRIES - 1)]
    while one.saved is None:
        try:
            await one.poll()
        except FeedError:
            continue
    assert one.settled == names(1, 30)
    assert documents.asked.count(None) == 2


async def test_an_unexpected_error_counts_as_a_failure_of_the_document():
    documents = Numbered(9)
    one = reader(documents)
    documents.errors["2"] = [KeyError("bug") for _ in range(_newest_first_walk.MAX_TRIES)]
    for _ in range(_newest_first_walk.MAX_TRIES):
        with pytest.raises(KeyError):
            await one.poll()
    assert await one.poll() == names(1, 9)
    assert documents.asked.count(None) == 3


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (FeedRefused("no"), FeedRefused),
        (PagesChanged("no"), PagesChanged),
        (CursorExpired("no"), PagesChanged),
        (FeedGone("no"), PagesChanged),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
async def test_an_invalid_document_address_restarts_the_page_chain_at_once(raised, seen):
    documents = Numbered(9)
    documents.errors["2"] = [raised]
    one = reader(documents)
    with pytest.raises(seen) as error:
        await one.poll()
    assert type(error.value) is seen
    documents.asked.clear()
    assert await one.poll() == names(1, 9)
    assert documents.asked[0] is None


@pytest.mark.parametrize("raised", [CursorExpired("no"), FeedGone("no"), FeedRefused("no")])
async def test_an_error_of_the_newest_document_is_raised_unchanged(raised):
    documents = Numbered(9)
    documents.errors[None] = [raised]
    with pytest.raises(type(raised)) as error:
        await reader(documents).poll()
    assert error.value is raised


async def test_retry_after_of_a_gone_document_is_kept():
    documents = Numbered(9)
    documents.errors["2"] = [FeedGone("no", retry_after=7)]
    with pytest.raises(PagesChanged) as error:
        await reader(documents).poll()
    assert error.value.retry_after == 7


@KINDS
async def test_a_consumer_reads_every_message_despite_failed_fetches(kind):
    documents = kind(40)
    weather = [FeedError("weather"), TimeoutError(), FeedRefused("login"), PagesChanged("again")]
    for address in [None, *(str(page) for page in range(2, 14)), *documents.entries, "archive 3", "archive 7"]:
        documents.errors[address] = weather[:1]
    documents.errors["archive 5"] = documents.errors["7"] = documents.errors["020"] = weather
    consumer = Log(NewestFirstReader(documents.look, WHERE, max_messages=10), fallback_interval=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await consumer.until(40)
        documents.publish(4)
        await consumer.until(44)
        tasks.cancel_scope.cancel()
    assert consumer.processed == names(1, 44)


async def test_documents_that_link_in_a_cycle_fail_the_poll():
    async def look(address, request, known):
        return Document(older={None: "a", "a": "b", "b": "c", "c": "a"}[address])

    one = Reader(NewestFirstReader(look, WHERE))
    for _ in range(2):
        with pytest.raises(FeedError, match=r"https://h\.example/feed has no end after \d+ documents"):
            await one.poll()


async def test_a_document_that_links_to_itself_fails_the_poll():
    async def look(address, request, known):
        return Document(older="a")

    with pytest.raises(FeedError, match="its links form a cycle"):
        await Reader(NewestFirstReader(look, WHERE)).poll()


async def test_a_document_address_that_is_too_long_fails_the_poll():
    async def look(address, request, known):
        return Document(older="a" * (MAX_CURSOR + 1))

    with pytest.raises(FeedError, match="more than 65536 characters"):
        await Reader(NewestFirstReader(look, WHERE)).poll()


async def test_a_feed_without_an_end_fails_the_poll(monkeypatch):
    monkeypatch.setattr(_newest_first_walk, "MAX_DOCUMENTS", 50)

    async def look(address, request, known):
        return Document(older=f"{address}x")

    with pytest.raises(FeedError, match="no end after 50 documents"):
        await Reader(NewestFirstReader(look, WHERE)).poll()


# Repeated positions


@KINDS
async def test_a_repeated_request_returns_the_same_page_without_a_fetch(kind):
    documents = kind(9)
    walk = NewestFirstReader(documents.look, WHERE)
    position, found = None, []
    while True:
        page = await walk.fetch(FetchRequest(position))
        asked = len(documents.asked)
        if page.next_page is None:
            break
        again = await walk.fetch(FetchRequest(position))
        assert (again, len(documents.asked)) == (page, asked)
        found += page.messages
        position = page.next_page
    assert [message.id for message in found] == names(1, 9)


async def test_a_page_is_kept_until_its_cursor_is_requested():
    documents = Numbered(9)
    one = reader(documents)
    while await one.step() and not one.settled:
        pass
    asked, cursor = len(documents.asked), one.saved
    for position in (None, " 1", " 2"):
        page = await one.walk.fetch(FetchRequest(position))
        assert (page.cursor, len(page.messages), len(documents.asked)) == (cursor, 9, asked)
    await one.step()
    page = await one.walk.fetch(FetchRequest(None))
    assert (page.messages, len(documents.asked)) == ((), asked + 2)


async def test_a_kept_page_is_forgotten_when_the_feed_is_closed():
    """The publisher may have corrected the page meanwhile."""
    documents = Numbered(9)
    one = reader(documents)
    for position in (None, " 1", " 2"):
        page = await one.walk.fetch(FetchRequest(position))
    assert len(page.messages) == 9
    asked = len(documents.asked)
    one.walk.forget()
    assert (await one.walk.fetch(FetchRequest(None))).messages == ()
    assert len(documents.asked) == asked + 1


@KINDS
@pytest.mark.parametrize("steps", range(1, 6))
async def test_a_lost_page_chain_restarts_without_repeating_a_position(kind, steps):
    documents = kind(9)
    one = reader(documents, max_messages=4)
    for _ in range(steps):
        await one.step()
    other = Reader(NewestFirstReader(documents.look, WHERE), one.saved)
    other.position, positions = one.position, [one.position]
    while await other.step():
        positions.append(other.position)
    assert one.settled + other.settled == names(1, 9)
    assert len(set(positions)) == len(positions)


@KINDS
@pytest.mark.parametrize("steps", range(4))
async def test_a_cancelled_fetch_neither_loses_nor_repeats_messages(kind, steps):
    documents = kind(9)
    one = reader(documents)
    for _ in range(steps):
        await one.step()
    documents.latency = 2.0
    with anyio.move_on_after(1):
        await one.step()
    documents.latency = 0.0
    await one.poll()
    assert one.settled == names(1, 9)


@KINDS
@pytest.mark.parametrize("most", [1, 100])
@pytest.mark.parametrize("late", range(8))
async def test_two_consumers_of_one_feed_do_not_disturb_each_other(kind, late, most):
    documents = kind(12)
    walk = NewestFirstReader(documents.look, WHERE, max_messages=most)
    one, other = Reader(walk), Reader(walk)
    for _ in range(late):
        await one.step()
    going_on = [one, other]
    for _ in range(200):
        going_on = [each for each in going_on if await each.step()]
    assert not going_on
    for each in (one, other):
        assert list(dict.fromkeys(each.settled)) == names(1, 12)


@KINDS
@pytest.mark.parametrize("most", [1, 100])
async def test_concurrent_polls_of_one_feed_do_not_disturb_each_other(kind, most):
    documents = kind(12)
    walk = NewestFirstReader(documents.look, WHERE, max_messages=most)
    readers = [Reader(walk) for _ in range(4)]
    async with anyio.create_task_group() as tasks:
        for each in readers:
            tasks.start_soon(each.poll)
    for each in readers:
        assert list(dict.fromkeys(each.settled)) == names(1, 12)


async def test_two_consumers_at_different_cursors_each_read_every_message():
    documents = Numbered(5)
    walk = NewestFirstReader(documents.look, WHERE, max_messages=1)
    one, other = Reader(walk), Reader(walk)
    await one.poll()
    documents.publish(7)
    while await other.step() | await one.step():
        pass
    assert one.settled == other.settled == names(1, 12)


async def test_a_consumer_joins_the_page_chain_of_another_one_at_the_same_cursor():
    documents = Numbered(0, size=2)
    walk = NewestFirstReader(documents.look, WHERE)
    one, other = Reader(walk), Reader(walk)
    await one.poll()
    documents.publish(3)
    await one.step()  # page 1 has 003 and 002
    documents.drop(3)
    assert await other.poll() == []  # at the same cursor from now on
    assert await other.poll() == ["002", "003"]
    assert await other.poll() == await one.poll() == []


async def test_more_page_chains_than_are_kept_restart_without_loss():
    documents = Numbered(9)
    walk = NewestFirstReader(documents.look, WHERE)
    readers = [
        Reader(walk, None if not n else await cursor_of(documents, n))
        for n in range(_newest_first_walk.MAX_WALKS + 1)
    ]
    documents.publish(9)
    for each in readers:
        await each.step()
    assert len(walk._walks) == _newest_first_walk.MAX_WALKS
    for number, each in enumerate(readers):
        while await each.step():
            pass
        assert each.settled == names(10 if number else 1, 18)


async def cursor_of(documents, number):
    """Return another cursor with the same content."""
    documents.says = {"note": str(number)}
    walk = NewestFirstReader(documents.look, WHERE)
    cursor = await walk.latest()
    documents.says = {}
    return cursor


# A walk without progress


async def stood_still(documents, steps, *, seconds=_newest_first_walk.STALE_AFTER + 1, **options):
    one = reader(documents, **options)
    for _ in range(steps):
        await one.step()
    await anyio.sleep(seconds)
    documents.asked.clear()
    return one


@pytest.mark.parametrize("begins_again", [False, True])
@pytest.mark.parametrize("deleted", [1, 2])
@pytest.mark.parametrize("steps", [1, 2, 3])
async def test_deletions_during_a_paused_page_chain_hide_no_messages(steps, deleted, begins_again):
    documents = Numbered(12)
    one = await stood_still(documents, steps)
    del documents.entries[:deleted]
    if begins_again:
        one.begin()
    while await one.step():
        pass
    assert set(one.settled) >= set(names(1, 12 - deleted))


async def test_the_last_document_is_fetched_again_once_and_only_after_a_long_pause():
    documents = Numbered(12)
    one = await stood_still(documents, 2)
    await one.step()
    await anyio.sleep(_newest_first_walk.STALE_AFTER + 1)
    await one.step()
    assert documents.asked == ["2", "3"]
    await anyio.sleep(_newest_first_walk.STALE_AFTER)
    await one.step()
    assert documents.asked == ["2", "3", "4"]


async def test_a_page_chain_restarts_if_its_last_document_shows_other_messages():
    documents = Numbered(12)
    one = await stood_still(documents, 2)
    del documents.entries[:6]
    with pytest.raises(PagesChanged, match="changed while a poll was interrupted"):
        await one.step()
    assert await one.poll() == names(1, 6)


async def test_a_newest_document_that_is_fetched_again_replaces_its_older_version():
    documents = Numbered(9)
    one = await stood_still(documents, 1)
    documents.publish(5)
    assert await one.poll() == names(1, 14)
    assert documents.asked == [None, "2", "3", "4", "5", None]
    assert one.pages[-1].cursor is None


async def test_an_empty_document_does_not_break_a_paused_page_chain():
    class Holes(Numbered):
        def document(self, address):
            leaf = super().document(address)
            return leaf._replace(messages=()) if address == "2" else leaf

    one = await stood_still(Holes(9), 2)
    assert await one.poll() == ["001", "002", "003", "007", "008", "009"]


async def test_an_archive_is_not_fetched_again_after_a_pause():
    documents = Archived(12)
    one = await stood_still(documents, 2)
    assert await one.poll() == names(1, 12)
    assert documents.asked == ["archive 1", "archive 0", None]


async def test_a_clock_that_went_backwards_counts_as_a_long_pause():
    documents = Numbered(9)
    one = reader(documents)
    await one.step()
    one.walk._walks.get(None)._fetched_at = anyio.current_time() + 100
    assert await one.poll() == names(1, 9)
    assert documents.asked == [None, None, "2", "3", None]


@pytest.mark.parametrize("seconds", [0, _newest_first_walk.STALE_AFTER + 1])
async def test_two_consumers_can_continue_one_page_chain_at_the_same_time(seconds):
    documents = Numbered(9)
    one = await stood_still(documents, 2, seconds=seconds)
    other = Reader(one.walk)
    other.position, documents.latency = one.position, 1.0
    async with anyio.create_task_group() as tasks:
        for each in (one, other):
            tasks.start_soon(to_the_end, each)
    for each in (one, other):
        assert list(dict.fromkeys(each.settled)) == names(1, 9)


async def to_the_end(one):
    while await one.step():
        pass


@KINDS
@pytest.mark.parametrize("pause", [1, _newest_first_walk.STALE_AFTER + 1])
async def test_polls_of_one_request_each_reach_the_end_of_the_feed(kind, pause):
    """Applies where each response asks for a pause, and each poll starts at the saved cursor."""
    documents = kind(12, retry_after=pause)
    consumer = Log(NewestFirstReader(documents.look, WHERE, max_messages=4))
    for _ in range(60):
        if (await consumer.poll_now(timeout=None)).caught_up:
            break
    assert consumer.processed == names(1, 12)


# Archives


@pytest.mark.parametrize("most", [1, 4, 100])
async def test_an_archive_without_an_older_one_is_read_once(most):
    documents = Archived(12)
    one = reader(documents, max_messages=most)
    await one.poll()
    for _ in range(2):
        documents.asked.clear()
        assert await one.poll() == []
        assert documents.asked == [None]
        documents.publish(0)


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("most", [1, 4, 7])
async def test_messages_of_archives_are_read_once_across_restarts_and_small_limits(most, restarts):
    documents, saved, settled = Archived(40), None, []
    for _ in range(40):
        one = reader(documents, saved, max_messages=most)
        while await one.step() and (not one.settled or not restarts):
            pass
        saved, settled = one.saved, settled + one.settled
    assert settled == names(1, 40)
    assert restarts or max(Counter(documents.asked[:-40]).values()) <= 2


async def test_a_known_message_does_not_mark_its_archive_as_read():
    """A document that was read as the newest may have got entries below the known one."""
    documents = Archived(3)
    one = reader(documents)
    await one.poll()
    documents.publish(1)
    documents.archives[0] = ["late", *documents.archives[0]]
    assert await one.poll() == ["late", "004"]
    documents.archives, documents.entries = [["from before"]], ["005", "004", "003"]
    one = reader(documents, one.saved.replace('"read"', '"note"'))
    assert await one.poll() == ["from before", "005"]


async def test_archives_older_than_the_latest_cursor_are_not_read():
    documents = Archived(12)
    walk = NewestFirstReader(documents.look, WHERE)
    one = Reader(walk, await walk.latest())
    documents.publish(4)
    assert await one.poll() == names(13, 16)
    assert "archive 2" not in documents.asked


# Work left for later polls


@KINDS
async def test_documents_without_new_messages_do_not_stop_a_page_chain(kind):
    documents = kind(12)
    one = reader(documents, max_messages=1)
    while await one.step() and not one.settled:
        pass
    assert len(one.settled) < 12
    del documents.entries[: 3 if kind is Numbered else 0]
    await one.poll()
    assert set(one.settled) >= set(names(1, 9))
    assert one.settled == sorted(one.settled)


async def test_a_page_chain_without_new_messages_continues_to_newer_documents():
    documents = Numbered(30)
    one = reader(documents, max_messages=1)
    while await one.step() and not one.settled:
        pass
    later = one.walk._walks.get(None).next_walk
    assert len(later.above) > 2
    documents.entries = [*names(100, 103), *names(1, 6)[::-1]]
    while await one.step():
        pass
    assert one.settled[6:] == names(100, 103)[::-1]
    assert "".join(one.gaps) == ""


@pytest.mark.no_cover  # lines are counted in the faster tests
async def test_a_long_page_chain_keeps_a_limited_number_of_addresses(monkeypatch):
    monkeypatch.setattr(_newest_first_walk, "MAX_ADDRESSES", 10)
    documents = Following(600)
    one = reader(documents, max_messages=30)
    while await one.step() and not one.settled:
        pass
    above = one.walk._walks.get(None).above
    assert len(above) <= 10
    assert above[0].at is None
    await one.poll()
    assert one.settled == names(1, 600)
    assert len(documents.asked) < 4 * 200


def test_addresses_passed_on_to_a_later_page_chain_are_limited():
    above = [_newest_first_walk.Address(str(number)) for number in range(2 * _newest_first_walk.MAX_ADDRESSES)]
    assert _newest_first_walk.Walk(SeenEntries(), 1, _newest_first_walk.TOP, above).above == above[::2]


async def test_a_gone_address_of_a_postponed_document_restarts_the_page_chain():
    documents = Following(30)
    one = reader(documents, max_messages=1)
    while await one.step() and not one.settled:
        pass
    documents.entries.remove(one.walk._walks.get(None).next_walk.at)
    with pytest.raises(FeedRefused, match="no such entry"):
        await one.step()
    await one.poll()
    assert one.settled == sorted({*one.settled, *documents.entries})


async def test_two_large_documents_are_held_despite_the_message_limit():
    documents = Numbered(40, size=10)
    walk = NewestFirstReader(documents.look, WHERE, max_messages=1)
    one = Reader(walk)
    await one.poll()
    assert max(len(page.messages) for page in one.pages) == 20


async def test_a_document_without_new_messages_does_not_count_towards_the_byte_limit(monkeypatch):
    documents = Following(3, size=3)
    one = reader(documents)
    await one.poll()
    documents.publish(6)
    documents.says = {"size": 100}
    monkeypatch.setattr(_newest_first_walk, "MAX_BYTES", 200)
    await one.poll()
    assert [len(page.messages) for page in one.pages if page.messages] == [3, 6]


async def test_documents_are_held_up_to_the_byte_limit(monkeypatch):
    monkeypatch.setattr(_newest_first_walk, "MAX_BYTES", 500)
    documents = Numbered(30, size=3)
    documents.says = {"size": 100}
    one = reader(documents)
    assert await one.poll() == names(1, 30)
    assert max(len(page.messages) for page in one.pages) == 15


# Skipped requests


async def test_a_poll_without_news_is_not_repeated_while_the_response_is_fresh():
    documents = Numbered(2, fresh_for=100)
    one = reader(documents)
    await one.poll()
    assert await one.poll() == []
    asked = len(documents.asked)
    documents.publish(1)
    await anyio.sleep(99)
    assert await one.poll() == []
    assert len(documents.asked) == asked
    await anyio.sleep(1)
    assert await one.poll() == ["003"]


@pytest.mark.parametrize("options", [{"bypass_cache": True}, {"wait": 1.0}], ids=["fresh", "wait"])
async def test_a_push_or_a_long_poll_ignores_freshness(options):
    documents = Numbered(2, fresh_for=100)
    one = reader(documents)
    await one.poll()
    await one.poll()
    documents.publish(1)
    assert await one.poll(**options) == ["003"]


async def test_freshness_is_respected_without_validators():
    async def look(address, request, known):
        return documents.document(address)._replace(fresh_for=100.0)

    documents = Numbered(2)
    one = Reader(NewestFirstReader(look, WHERE))
    await one.poll()
    await one.poll()
    documents.publish(1)
    assert await one.poll() == []
    assert await one.poll(bypass_cache=True) == ["003"]


async def test_freshness_does_not_hide_messages_that_are_not_settled():
    documents = Numbered(2, fresh_for=100)
    one = reader(documents)
    await one.poll()
    await one.poll()
    documents.publish(1)
    request = FetchRequest(one.saved, bypass_cache=True)
    assert len((await one.walk.fetch(request)).messages) == 1
    assert await one.poll() == ["003"]


async def test_messages_that_do_not_fit_in_the_cursor_are_read_again_despite_freshness(monkeypatch):
    monkeypatch.setattr(_newest_first_cursor, "MAX_TOP_DIGESTS", 2)
    monkeypatch.setattr(_newest_first_cursor, "MAX_OLDER_DIGESTS", 0)

    async def look(address, request, known):
        return documents.document(address)._replace(fresh_for=100.0)

    documents = Numbered(3)
    one = Reader(NewestFirstReader(look, WHERE))
    assert [await one.poll() for _ in range(3)] == [names(1, 3), ["001"], ["001"]]


async def test_freshness_by_the_clock_of_another_event_loop_is_ignored(monkeypatch):
    documents = Numbered(2, fresh_for=100)
    one = reader(documents)
    await one.poll()
    await one.poll()
    documents.publish(1)
    now = anyio.current_time()
    monkeypatch.setattr("push_to_poll_client.feeds._newest_first.anyio.current_time", lambda: now - 1)
    assert await one.poll() == ["003"]


async def test_freshness_is_forgotten_when_the_feed_is_closed():
    documents = Numbered(2, fresh_for=100)
    one = reader(documents)
    await one.poll()
    await one.poll()
    one.walk.forget()
    documents.publish(1)
    assert await one.poll() == ["003"]


async def test_freshness_is_remembered_for_a_limited_number_of_cursors(monkeypatch):
    documents = Numbered(2, fresh_for=100)
    cursors = [await cursor_of(documents, number) for number in range(18)]
    documents.says = {"fresh_for": 100}
    walk = NewestFirstReader(documents.look, WHERE)
    for cursor in cursors:
        await Reader(walk, cursor).poll()
    documents.asked.clear()
    for cursor in reversed(cursors):
        await Reader(walk, cursor).poll()
    assert len(documents.asked) == 2


# Complete feeds, gaps, ends


async def test_a_complete_feed_ends_the_page_chain_without_a_gap():
    documents = Numbered(9, whole=True)
    one = reader(documents)
    await one.poll()
    documents.publish(9)
    assert await one.poll() == names(16, 18)
    assert (documents.asked, one.gaps) == ([None, None], [])


@KINDS
async def test_a_gap_is_reported_if_no_known_message_is_left_in_the_feed(kind):
    documents = kind(9)
    one = reader(documents)
    await one.poll()
    documents.publish(9)
    if kind is Archived:
        documents.archives[:4] = [None] * 4
    else:
        del documents.entries[6:]
    brought = await one.poll()
    assert len(brought) == len(set(brought))
    assert set(brought) <= set(names(10, 18))
    assert len(one.gaps) == 1
    assert "none of the last seen messages" in one.gaps[0]


@KINDS
async def test_a_new_quiet_or_continuing_feed_has_no_gap(kind):
    documents = kind(0)
    one = reader(documents, max_messages=2)
    for count in (0, 9, 0, 1, 30, 2):
        documents.publish(count)
        await one.poll()
    assert one.gaps == []


async def test_a_pinned_message_does_not_hide_a_gap():
    documents = Numbered(9)
    documents.pin("002")
    one = reader(documents)
    await one.poll()
    documents.publish(9)
    del documents.entries[6:]
    await one.poll()
    assert len(one.gaps) == 1


async def test_messages_that_the_feed_declares_missing_are_a_gap():
    documents = Numbered(2, missing="2025 is not there any more")
    one = reader(documents)
    await one.poll()
    assert one.gaps == ["2025 is not there any more"]


async def test_a_closed_feed_is_reported_only_at_the_end_of_a_page_chain():
    assert (await NewestFirstReader(Numbered(2, closed=True).look, WHERE).fetch(FetchRequest())).closed
    documents = Numbered(7)
    one = reader(documents)
    await one.poll()
    documents.publish(9)
    documents.says = {"closed": True}
    for _ in range(2):
        await one.poll()
        assert [page.closed for page in one.pages if page.next_page is None][-1] is True
        one = Reader(NewestFirstReader(documents.look, WHERE), one.saved)
    assert not any(page.closed for page in one.pages if page.next_page is not None)


# Requests of the server


@KINDS
@pytest.mark.parametrize("most", [1, 100])
async def test_the_poll_interval_applies_only_at_the_end_of_a_page_chain(kind, most):
    documents = kind(12, poll_interval=60)
    one = reader(documents, max_messages=most)
    await one.poll()
    waits = [page.retry_after for page in one.pages]
    handed = [page.retry_after for page in one.pages if page.messages]
    assert (waits[-1], handed[-1]) == (60, 60)
    assert {*waits[:-2], *handed[:-1]} == {None}


async def test_time_spent_in_a_page_chain_counts_towards_the_poll_interval():
    documents = Numbered(9, poll_interval=60)
    one = reader(documents)
    for seconds in (20, 15, 0):
        await one.step()
        documents.says = {}
        await anyio.sleep(seconds)
    assert [page.retry_after for page in one.pages] == [None, None, 25]
    assert len(one.settled) == 9


async def test_a_clock_that_went_backwards_does_not_lengthen_the_poll_interval(monkeypatch):
    documents = Numbered(6, poll_interval=60)
    one = reader(documents)
    await one.step()
    earlier = anyio.current_time() - 1000
    monkeypatch.setattr(anyio, "current_time", lambda: earlier)
    documents.says = {}
    await one.step()
    await one.step()
    assert [page.retry_after for page in one.pages] == [None, None, 60]


async def test_retry_after_applies_within_a_page_chain():
    documents = Numbered(7, retry_after=5, poll_interval=60)
    one = reader(documents)
    await one.poll()
    assert [page.retry_after for page in one.pages] == [5, 5, 60, 60]


# Pinned, deleted and late entries


@pytest.mark.parametrize("size", [2, 3, 4, 10])
async def test_a_pinned_message_does_not_hide_a_backlog(size):
    documents = Numbered(20, size=size)
    documents.pin("001")
    one = reader(documents)
    await one.poll()
    documents.publish(3 * size)
    assert set(await one.poll()) == set(names(21, 20 + 3 * size))


async def test_a_new_pinned_message_beside_others_does_not_hide_a_backlog():
    documents = Numbered(20, size=6)
    documents.pin("001", "002")
    one = reader(documents)
    await one.poll()
    documents.publish(15)
    documents.pin("030", "001", "002")
    assert set(await one.poll()) == set(names(21, 35))


async def test_deleted_newest_messages_cause_no_repeat_and_no_gap():
    documents = Numbered(20)
    one = reader(documents)
    await one.poll()
    del documents.entries[:2]
    assert await one.poll() == []
    assert one.gaps == []
    published = documents.publish(2)
    assert await one.poll() == published


async def test_a_message_that_appears_late_is_found():
    documents = Numbered(9)
    one = reader(documents)
    await one.poll()
    documents.entries.insert(1, "late")
    assert await one.poll() == ["late"]


async def test_documents_that_shift_during_a_page_chain_hide_no_messages():
    documents = Numbered(9)
    one = reader(documents, max_messages=4)
    while await one.step():
        if documents.published < 20:
            documents.publish(1)
    await one.poll()
    assert list(dict.fromkeys(one.settled)) == names(1, 20)


async def test_counted_pages_lose_only_the_place_of_a_message_that_is_dropped_during_a_page_chain():
    documents = Numbered(5, size=3)
    one = reader(documents)
    await one.step()  # page 1 has 005, 004 and 003
    documents.publish(2)
    documents.drop(3)  # page 2 has 004 again, and 003 is gone
    while await one.step():
        pass
    assert one.settled == ["004", "003", "005", "006", "007"]


# Cursors


def seen_of(count, *, note="", validators=None, archives=0):
    keys = [digest(str(number)) for number in range(count)]
    seen = SeenEntries().updated(
        keys, map(digest, map(str, range(count, count + 5000))), map(str, range(archives))
    )
    return replace(seen, note=note, validators=validators)


@pytest.mark.parametrize("count", [0, 1, 100, MAX_TOP_DIGESTS, 20_000])
def test_a_cursor_is_read_as_it_was_written_and_is_short_enough(count):
    longest = Validators("\\" * 1024, '"' * 1024)
    seen = seen_of(count, note="\n" * 3000, validators=longest, archives=1000)
    assert len(seen.messages) == min(count, MAX_TOP_DIGESTS) + MAX_OLDER_DIGESTS
    assert len(seen.archives) == MAX_OLDER_DIGESTS
    assert len(seen.cursor()) <= MAX_CURSOR
    assert SeenEntries.parse(seen.cursor(), WHERE) == seen
    assert list(SeenEntries.parse(seen.cursor(), WHERE).messages) == list(seen.messages)


@pytest.mark.parametrize("length", [15_000, 40_000, MAX_CURSOR - 5_000])
def test_a_long_note_leaves_out_the_oldest_digests(length):
    seen = seen_of(MAX_TOP_DIGESTS, note="n" * length)
    read = SeenEntries.parse(seen.cursor(), WHERE)
    assert MAX_CURSOR - 20 <= len(seen.cursor()) <= MAX_CURSOR
    assert read.note == seen.note
    assert list(read.messages) == list(seen.messages)[: len(read.messages)]


def test_a_note_longer_than_a_cursor_makes_the_cursor_too_long():
    assert len(seen_of(10, note="n" * MAX_CURSOR).cursor()) > MAX_CURSOR


def test_the_order_of_a_document_does_not_change_the_cursor():
    keys = [digest(str(number)) for number in range(400)]
    seen = SeenEntries().updated(keys, [], [])
    assert seen.updated(keys[::-1], [], []).cursor() == seen.cursor()
    assert seen.updated(keys[100:], [], []).cursor() == seen.cursor()
    assert seen.updated(keys[300:], [], []).cursor() != seen.cursor()


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        " ",
        "x 5",
        "null",
        "[]",
        "{}",
        "[" * 10_000,
        '{"seen": 1}',
        '{"seen":"x"}',
        '{"seen":"","read":"====AAAAAAAA"}',
        '{"seen":"AAAAAAAAAAA="}',
        '{"seen":"","other":1}',
        '{"seen":"","etag":7}',
        '{"seen":"\\ud800"}',
        "\ud800",
        "9" * 400,
        'page {"start":"1"}',
    ],
)
async def test_a_malformed_cursor_raises_cursor_expired(cursor):
    documents = Numbered(3)
    with pytest.raises(CursorExpired, match=r"not belong to https://h\.example/feed"):
        await reader(documents, cursor).poll()
    assert documents.asked == []


@pytest.mark.parametrize("etag", ["*", "a\r\nb: c", "é" * 9])
async def test_an_invalid_etag_in_a_cursor_is_not_sent(etag):
    def answer(request):
        assert "if-none-match" not in request.headers
        return httpx.Response(200, json=[{"id": "1"}])

    page = await paged(answer).fetch(FetchRequest(SeenEntries(validators=Validators(etag)).cursor()))
    assert len(page.messages) == 1


# Declared feeds


def paged(answer, *, more=None, **options):
    return PagedFeed(
        "https://h.example/feed",
        entries=Entries(),
        pages=NewestFirst(next=from_link("next"), send=as_url(), more=more),
        client=httpx.AsyncClient(transport=httpx.MockTransport(answer)),
        **options,
    )


def pages(*answers):
    """Serve pages that link to the next by place. A page is a list of ids or a response; `asked` has places."""

    def answer(request):
        place = int(request.url.params.get("page", 0))
        asked.append(place)
        if not isinstance(answers[place], list):
            return answers[place]
        link = {"link": f"<?page={place + 1}>; rel=next"} if place + 1 < len(answers) else {}
        return httpx.Response(200, json=[{"id": name} for name in answers[place]], headers=link)

    asked = []
    answer.asked = asked
    return answer


async def test_the_poll_interval_of_github_does_not_apply_within_a_page_chain():
    vendor = GitHub(6)
    one = Reader(feed_of(vendor))
    await one.poll()
    assert [page.retry_after for page in one.pages] == [None, None, 60, 60]


async def test_retry_after_of_a_declared_feed_applies_within_a_page_chain():
    headers = {"link": "<?page=2>; rel=next", "retry-after": "7", "x-poll-interval": "60"}
    one = Reader(paged(pages(["3"], httpx.Response(200, json=[{"id": "2"}], headers=headers), ["1"])))
    await one.poll()
    assert [page.retry_after for page in one.pages] == [None, 7, 60, None]


async def test_a_declared_pause_applies_within_a_page_chain():
    one = Reader(paged(pages(["3"], ["2"], ["1"]), outcomes=[pause(lambda reply: 8.0)]))
    await one.poll()
    assert [page.retry_after for page in one.pages] == [8.0] * 4


async def test_declared_outcomes_closed_and_gap_are_reported_by_the_page():
    outcomes = [closed(lambda reply: reply.entries), gap(lambda reply: reply.entries, "the rest")]
    one = Reader(paged(pages(["3"], ["2"]), outcomes=outcomes))
    await one.poll()
    assert [page.closed for page in one.pages] == [False, False, True]
    assert set(one.gaps) == {"the rest"}


@pytest.mark.parametrize("place", [0, 1])
async def test_a_document_that_is_not_ready_saves_no_cursor(place):
    answers = [["3"], ["2"], ["1"]]
    answers[place] = httpx.Response(200, json=[], headers={"x-not-ready": "yes", "retry-after": "9"})
    answer = pages(*answers)
    one = Reader(paged(answer, outcomes=[not_ready(from_header("x-not-ready"))]))
    if place:
        with pytest.raises(FeedError, match="not ready to return an older page") as error:
            await one.poll()
        assert error.value.retry_after == 9
    else:
        assert await one.poll() == []
        assert one.pages[0].retry_after == 9
    assert one.saved is None


async def test_latest_fails_while_a_declared_feed_is_not_ready():
    answer = pages(httpx.Response(200, json=[], headers={"x-not-ready": "yes"}))
    with pytest.raises(FeedError, match="has no newest document yet"):
        await paged(answer, outcomes=[not_ready(from_header("x-not-ready"))]).latest()


async def test_http_204_means_an_empty_feed_or_no_news():
    one = Reader(paged(pages(["2"])))
    assert await one.poll() == ["2"]
    one.walk = paged(pages(httpx.Response(204)))
    cursor = one.saved
    assert await one.poll() == []
    assert one.saved == cursor
    one.walk = paged(pages(httpx.Response(204)))
    latest = await one.walk.latest()
    assert await Reader(paged(pages(["2"])), latest).poll() == ["2"]


@pytest.mark.parametrize("more", [None, from_header("link")], ids=str)
async def test_http_204_fails_the_poll_if_the_page_before_links_to_more(more):
    one = Reader(paged(pages(["3"], ["2"], httpx.Response(204)), more=more))
    with pytest.raises(FeedError, match=r"returned no content \(204\) for a page"):
        await one.poll()
    assert one.saved is None


async def test_http_204_after_a_full_page_is_the_end_of_the_feed():
    one = Reader(paged(pages(["3"], ["2"], httpx.Response(204)), more=full_page(1)))
    assert await one.poll() == ["2", "3"]


async def test_a_fresh_response_is_not_fetched_again_until_the_feed_is_closed():
    answer = pages(httpx.Response(200, json=[{"id": "1"}], headers={"cache-control": "max-age=100"}))
    feed = paged(answer)
    one = Reader(feed)
    for _ in range(4):
        await one.poll()
    assert len(answer.asked) == 2
    await feed.aclose()
    await one.poll()
    assert len(answer.asked) == 3


async def test_a_newest_page_without_a_link_to_older_pages_is_logged_once(caplog):
    caplog.set_level("INFO", "push_to_poll_client")
    for answer in (pages([]), pages(["2"], ["1"])):
        await Reader(paged(answer)).poll()
    assert caplog.messages == []
    one = Reader(paged(pages(["2", "1"])))
    for _ in range(2):
        await one.poll()
    [line] = caplog.messages
    assert line.startswith("the newest page of https://h.example/feed has 2 entries and no link to an older page")


async def test_a_newest_page_is_not_logged_if_the_server_declares_it_the_last(caplog):
    caplog.set_level("INFO", "push_to_poll_client")
    await Reader(feed_of(Stripe(1))).poll()
    assert caplog.messages == []


async def test_a_link_to_another_origin_fails_the_poll_and_restarts_the_page_chain():
    link = {"link": "<https://evil.example/>; rel=next"}
    answers = [["4"], httpx.Response(200, json=[{"id": "3"}], headers=link)]
    answer = pages(*answers)
    one = Reader(paged(answer))
    for _ in range(2 * _newest_first_walk.MAX_TRIES):
        with pytest.raises(FeedError, match=r"evil\.example"):
            await one.poll()
    assert answer.asked.count(0) >= 2
    assert one.saved is None
