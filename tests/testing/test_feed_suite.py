"""The fakes and the real feeds pass the feed suite, and the suite rejects each misbehaving feed."""

import inspect
import re
from dataclasses import replace

import anyio
import httpx
import pytest
from anyio.to_thread import run_sync

from push_to_poll_client import DecodeError, FeedError, Message, Page, UnreadableMessage
from push_to_poll_client.feeds.http_feed import HTTPFeed
from push_to_poll_client.testing import FakeFeed, FeedSuite, serve_in_thread

SECRET = "s3cr3t-c4n4ry"


class TestFakeFeed(FeedSuite):
    async def make_feed(self, count):
        feed = FakeFeed(page_size=2, max_wait=60, latency=0.1, read_ahead=True)
        feed.publish(count)
        return feed

    async def publish(self, feed, count):
        feed.publish(count)

    async def reopen(self, feed):
        other = FakeFeed(page_size=2)
        other.publish(len(feed._entries))
        return other

    async def break_next(self, feed):
        feed.fail(FeedError("broken", retry_after=1))

    async def change(self, feed):
        feed.publish("1, changed")


class TestFakeFeedWithCursorsOnPages(TestFakeFeed):
    async def make_feed(self, count):
        feed = await super().make_feed(count)
        feed.cursors, feed.ends_empty = "page", True
        return feed


class TestFakeFeedWithCursorsAtTheEndOfTheChain(TestFakeFeed):
    async def make_feed(self, count):
        feed = await super().make_feed(count)
        feed.cursors, feed.max_wait = "chain", None
        return feed


@pytest.fixture(scope="module")
def served():
    with serve_in_thread(page_size=2) as server:
        yield server


class TestHTTPFeed(FeedSuite):
    secrets = (SECRET,)
    longest_fetch = 5

    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request):
        return request.param

    @pytest.fixture(autouse=True)
    def server(self, served):
        served.app._state.events.clear()  # starting another server each time would take a tenth of a second
        served.faults.clear()
        served.faults.authorization = f"Bearer {SECRET}"
        self.server = served

    async def make_feed(self, count):
        self.server.publish(count)
        return HTTPFeed(self.server.url, auth=SECRET, max_wait=60)

    async def publish(self, feed, count):
        await run_sync(self.server.publish, count)

    async def held(self, feed):
        await run_sync(lambda: self.server.stats.wait_for(lambda stats: stats.held))

    async def reopen(self, feed):
        return await self.make_feed(0)

    async def break_next(self, feed):
        self.server.faults.cut_next = 1

    async def hang(self, feed):
        feed._http_client._timeout = 0.2
        self.server.faults.stall_next = 1


class Plain:
    """A user's feed that only has `fetch`."""

    def __init__(self, feed):
        self.fetch = feed.fetch


class TestAFeedWithFetchAlone(FeedSuite):
    secrets = (SECRET,)

    async def make_feed(self, count):
        self.fake = FakeFeed(page_size=2)
        self.fake.publish(count)
        return Plain(self.fake)

    async def publish(self, feed, count):
        self.fake.publish(count)


class Tickets:
    """A feed that only has `fetch`, and raises the errors of httpx."""

    def __init__(self, client):
        self.client = client

    async def fetch(self, request):
        answer = await self.client.get("/tickets", params={"after": request.cursor or ""})
        answer.raise_for_status()
        tickets = [Message(ticket["id"], ticket) for ticket in answer.json()]
        end = tickets[-1].id if tickets else None
        return Page(tickets, cursor=end, next_page=end)


class TestAFeedOfOnesOwn(FeedSuite):
    """Its transport answers before a cancellation can arrive, as in tests of applications."""

    async def make_feed(self, count):
        self.ids, self.next_answer = [], None
        await self.publish(None, count)
        transport = httpx.MockTransport(self.answer)
        return Tickets(httpx.AsyncClient(transport=transport, base_url="https://shop.example"))

    def answer(self, request):
        other, self.next_answer = self.next_answer, None
        if other is not None:
            return other(request)
        following = [number for number in self.ids if number > request.url.params["after"]]
        return httpx.Response(200, json=[{"id": number} for number in following[:2]])

    async def publish(self, feed, count):
        self.ids += [f"{number:05d}" for number in range(len(self.ids), len(self.ids) + count)]

    async def break_next(self, feed):
        self.next_answer = lambda request: httpx.Response(500)

    async def hang(self, feed):
        def too_slow(request):
            raise httpx.ReadTimeout("too slow", request=request)

        self.next_answer = too_slow


class Queue(FakeFeed):
    """Forgets the messages before each cursor that it receives."""

    def __init__(self):
        super().__init__(page_size=2)
        self.taken = 0

    def _place(self, cursor):
        self.taken = max(self.taken, super()._place(cursor))
        return self.taken


class TestAFeedThatAcknowledges(TestAFeedWithFetchAlone):
    acknowledges = True

    async def make_feed(self, count):
        self.fake = Queue()
        self.fake.publish(count)
        return self.fake


class Overlapping(FakeFeed):
    """Repeats the message before a saved cursor, as feeds do whose cursor is a time."""

    async def fetch(self, request):
        saved = request.cursor is not None and request.cursor.startswith("from ")
        self.overlap = int(saved)
        page = await super().fetch(
            replace(request, cursor=request.cursor.removeprefix("from ")) if saved else request
        )
        messages = [Message(message.id, cursor=f"from {message.cursor}") for message in page.messages]
        return replace(page, messages=messages, cursor=page.cursor and f"from {page.cursor}")


class TestAFeedThatRepeats(TestFakeFeed):
    repeats = True

    async def make_feed(self, count):
        feed = Overlapping(page_size=2)
        feed.publish(count)
        return feed

    async def reopen(self, feed):
        return await self.make_feed(len(feed._entries))


@pytest.mark.parametrize("ids", [["3"], ["0", "3", "4"], ["5", "3", "4"], ["2", "3"], ["3", "4", "1"], []])
def test_repeated_messages_must_be_known_and_come_before_new_ones(ids):
    class Repeating(FeedSuite):
        repeats = True

    assert not Repeating()._follows(ids, ["3", "4"], ["1", "2"])
    assert Repeating()._follows(["1", "2", "3", "4"], ["3", "4"], ["1", "2"])
    assert not FeedSuite()._follows(["2", "3", "4"], ["3", "4"], ["1", "2"])


class Unreadable(FakeFeed):
    async def fetch(self, request):
        page = await super().fetch(request)
        error = DecodeError("broken")
        found = [UnreadableMessage(m.id, error, cursor=m.cursor, raw=m.id.encode()) for m in page.messages]
        return Page(found, page.cursor, page.next_page)

    def restore(self, letter):
        return UnreadableMessage(letter.id, DecodeError("broken"), dedupe_key=letter.dedupe_key, raw=letter.raw)


class TestAFeedOfUnreadableMessages(TestAFeedWithFetchAlone):
    async def make_feed(self, count):
        self.fake = Unreadable(page_size=2)
        self.fake.publish(count)
        return self.fake


@pytest.mark.anyio
async def test_make_feed_and_publish_must_be_overridden():
    with pytest.raises(NotImplementedError):
        await FeedSuite().make_feed(1)
    with pytest.raises(NotImplementedError):
        await FeedSuite().publish(FakeFeed(), 1)


@pytest.mark.anyio
@pytest.mark.parametrize("hook", ["reopen", "break_next", "hang", "change", "publish_late"])
async def test_a_hook_that_is_not_overridden_skips_its_test(hook):
    with pytest.raises(pytest.skip.Exception, match=f"does not override {hook}"):
        await getattr(FeedSuite(), hook)(FakeFeed())


# Feeds that misbehave


class Liar(FakeFeed):
    """Feed with long polling and pages of two; `altered` gets each request and its correct page."""

    def __init__(self):
        super().__init__(page_size=2, max_wait=60, latency=0.1, read_ahead=True)

    async def fetch(self, request):
        return self.altered(request, await super().fetch(request))

    def altered(self, request, page):
        return page


class SkipsOne(Liar):
    def altered(self, request, page):
        return Page(page.messages[:-1], page.cursor, page.next_page)


class KeepsTheCursorToItself(Liar):
    def altered(self, request, page):
        return Page([Message(m.id) for m in page.messages], None, page.next_page)


class KeepsTheLastCursorToItself(Liar):
    def altered(self, request, page):
        last = page.next_page is None
        return Page([Message(m.id) for m in page.messages], None if last else page.cursor, page.next_page)


class GoesOnAtTheEnd(Liar):
    def altered(self, request, page):
        return page if page.messages else Page([], None, request.cursor)


class MovesAtTheEnd(Liar):
    def altered(self, request, page):
        return page if page.messages else Page([], "elsewhere")


class TurnsRound(Liar):
    def altered(self, request, page):
        walks = sum(asked.request.cursor is None for asked in self.requests)
        return Page(page.messages[:: (-1) ** walks], page.cursor, page.next_page)


class NeverEnds(Liar):
    def altered(self, request, page):
        return Page(page.messages, page.cursor, page.next_page or page.cursor or self.after(0))


class NewestFirst(Liar):
    def _message(self, place):
        return super()._message(len(self._entries) - 1 - place)


class RepeatsTheLast(Liar):
    def __init__(self):
        super().__init__()
        self.overlap = 1


class BeginsBefore(Liar):
    async def latest(self):
        return None


class BeginsBehindIfEmpty(Liar):
    async def latest(self):
        return await super().latest() or self.after(1)


class ForgetsWhatItWasAsked(Liar):
    """For example a feed that takes a validator for committed because it was sent."""

    def altered(self, request, page):
        before = sum(asked.request.cursor == request.cursor for asked in self.requests)
        return page if before == 1 else Page()


class TakesNoMore(Liar):
    def publish(self, *what):
        return [] if self._entries else super().publish(*what)


class NamesByTheHead(Liar):
    """For example a feed that uses the newest state, sent with each page, as version of the messages."""

    def altered(self, request, page):
        messages = [Message(f"{m.id}@{len(self._entries)}", m.data, cursor=m.cursor) for m in page.messages]
        return Page(messages, page.cursor, page.next_page)


class TrustsHints(Liar):
    def altered(self, request, page):
        return Page() if request.hint is not None and request.hint.topics else page


class KnowsBetter(Liar):
    """Continues where it stopped, whatever the cursor, unless the request asks for the beginning."""

    at = None

    def _place(self, cursor):
        place = 0 if cursor is None or self.at is None else super()._place(self.at)
        self.at = self.after(min(place + 2, len(self._entries)))
        return place


class MixesRequests(Liar):
    async def fetch(self, request):
        self.request = request
        await anyio.sleep(0.1)
        return await super().fetch(self.request)


class ReusesItsBuffer(Liar):
    buffer = ()

    def altered(self, request, page):
        feed, feed.buffer = self, [f"{m.id} of {len(self.requests)}" for m in page.messages]
        feed.first = page.messages[0].id if page.messages else None

        class Lazy(Message):
            @property
            def data(self):
                return feed.first

        return Page([Lazy(m.id, cursor=m.cursor) for m in page.messages], page.cursor, page.next_page)


class BreaksWhenCancelled(Liar):
    broken = False

    async def fetch(self, request):
        if self.broken:
            return Page()
        try:
            return await super().fetch(request)
        except BaseException:
            self.broken = True
            raise


class StaysClosed(Liar):
    def altered(self, request, page):
        return Page() if self.closed else page


class AlwaysWaits(Liar):
    async def fetch(self, request):
        await anyio.sleep(request.wait)
        return await super().fetch(request)


class FreezesWhatItHolds(Liar):
    async def fetch(self, request):
        self.requests.append(request)
        page = self._page(request)
        await anyio.sleep(request.wait)
        return page


class HoldsForEver(Liar):
    async def fetch(self, request):
        return await super().fetch(request) if not request.wait else await anyio.sleep_forever()


class DropsWhatFailed(Liar):
    failed = False

    def fail(self, error):
        super().fail(error)
        self.failed = True

    def altered(self, request, page):
        was, self.failed = self.failed, False
        return Page(page.messages[1:], page.cursor, page.next_page) if was else page


class FailsInItsOwnWay(Liar):
    def fail(self, error):
        super().fail(KeyError("mine"))


class AsksForAnEternity(Liar):
    def fail(self, error):
        super().fail(FeedError("broken", retry_after=float("inf")))


class Hangs(Liar):
    def hang(self, request):
        return request

    async def fetch(self, request):
        if not self.requests:
            self.requests.append(request)
            await anyio.sleep(self.hangs)
            raise FeedError("at last")
        return await super().fetch(request)

    hangs = float("inf")


class HangsLong(Hangs):
    hangs = 35


class ChokesOnGarbage(Liar):
    def _place(self, cursor):
        return int(re.findall(r"\d+", "0" if cursor is None else cursor)[0])


class AnswersGarbageWithGarbage(Liar):
    def altered(self, request, page):
        return page if request.cursor is None or "after" in request.cursor else None


class SaysItsSecret(Liar):
    def __repr__(self):
        return f"{type(self).__name__}({SECRET!r})"


class FailsWithItsSecret(Liar):
    def fail(self, error):
        super().fail(FeedError(f"broken by {SECRET}"))


class IsNamedByANumber(Liar):
    def __init__(self):
        super().__init__()
        self.identity = 5


class IsNamedAnew(Liar):
    def altered(self, request, page):
        self.identity += "'"
        return page


class WaitsForEver(Liar):
    def __init__(self):
        super().__init__()
        self.max_wait = float("inf")


class PutsInPages(Liar):
    """Adds invalid fields to pages."""

    what = {}  # noqa: RUF012

    def altered(self, request, page):
        return Page(**{"messages": page.messages, "cursor": page.cursor, "next": page.next_page, **self.what})


class MakesMessages(Liar):
    def altered(self, request, page):
        made = [self.make(m.id, cursor=m.cursor) for m in page.messages]
        return Page(made, page.cursor, page.next_page)

    def make(self, id, cursor):
        return Message("", cursor=cursor)


class MakesChangeableMessages(MakesMessages):
    class Changeable(Message):
        id = None

        def __init__(self, id, cursor):
            super().__init__(id, cursor=cursor)
            self.id = id

    make = Changeable


class MakesMessagesOfNumbers(MakesMessages):
    def make(self, id, cursor):
        return Message(int(id), cursor=cursor)


class MakesMessagesWithNUL(MakesMessages):
    def make(self, id, cursor):
        return Message(f"{id}\0", cursor=cursor)


class MakesMessagesThatNobodyKnows(MakesMessages):
    class Nameless(Message):
        def __repr__(self):
            return "a message"

    make = Nameless


class MakesMessagesOfObjects(MakesMessages):
    def make(self, id, cursor):
        return Message(id, (1, 2), cursor=cursor)


class RestoresAnother(Liar):
    def restore(self, letter):
        return Message(letter.id, dedupe_key=letter.id + "'")


class RestoresOtherData(Liar):
    def restore(self, letter):
        return Message(letter.id, "other", dedupe_key=letter.dedupe_key)


class RestoresByKey(Liar):
    def restore(self, letter):
        return {b"{}": None}[letter.raw]


class RestoresNothing(Liar):
    def restore(self, letter):
        return None


class RestoresAStranger(Liar):
    def restore(self, letter):
        return UnreadableMessage("stranger", DecodeError("broken"))


def put(**what):
    return type("PutsInPages", (PutsInPages,), {"what": what})


ENDS = "test_a_walk_ends_with_a_cursor_behind_all_messages_that_stays"
LATEST = "test_only_what_is_new_comes_after_the_latest_cursor"

LIES = [
    ("test_an_empty_feed_is_at_its_end", NeverEnds),
    ("test_the_inception_reads_everything_each_time_in_the_same_order", SkipsOne),
    ("test_the_inception_reads_everything_each_time_in_the_same_order", TurnsRound),
    ("test_the_inception_reads_everything_each_time_in_the_same_order", NewestFirst),
    ("test_every_cursor_that_may_be_saved_reads_exactly_the_rest", SkipsOne),
    ("test_a_saved_cursor_means_the_same_after_a_restart", SkipsOne),
    (ENDS, NeverEnds),
    (ENDS, SkipsOne),
    (ENDS, KeepsTheCursorToItself),
    (ENDS, KeepsTheLastCursorToItself),
    (ENDS, MovesAtTheEnd),
    (ENDS, GoesOnAtTheEnd),
    (ENDS, RepeatsTheLast),
    ("test_going_on_after_the_end_finds_what_came_since", RepeatsTheLast),
    (f"{LATEST}[3]", BeginsBefore),
    (f"{LATEST}[0]", BeginsBehindIfEmpty),
    ("test_an_entry_that_changes_is_a_new_message", RepeatsTheLast),
    ("test_a_message_that_appears_before_others_is_found", Liar),
    ("test_a_page_that_is_asked_for_again_is_there_again", ForgetsWhatItWasAsked),
    ("test_ids_do_not_depend_on_where_the_feed_ends", NamesByTheHead),
    ("test_ids_do_not_depend_on_where_the_feed_ends", TakesNoMore),
    ("test_a_push_and_a_way_past_caches_change_nothing", TrustsHints),
    ("test_two_walks_do_not_disturb_each_other", KnowsBetter),
    ("test_two_walks_at_once_do_not_disturb_each_other", MixesRequests),
    ("test_a_page_ahead_is_the_same_page", ReusesItsBuffer),
    ("test_a_cancelled_fetch_leaves_the_feed_usable", BreaksWhenCancelled),
    ("test_a_closed_feed_opens_again", StaysClosed),
    ("test_a_wait_with_news_is_answered_at_once", AlwaysWaits),
    ("test_a_held_answer_comes_with_the_publication", FreezesWhatItHolds),
    ("test_a_held_answer_comes_empty_when_the_wait_ends", HoldsForEver),
    ("test_a_held_fetch_that_is_cancelled_leaves_the_feed_usable", BreaksWhenCancelled),
    ("test_a_fetch_that_fails_loses_nothing", DropsWhatFailed),
    ("test_a_fetch_that_fails_loses_nothing", FailsInItsOwnWay),
    ("test_a_fetch_that_fails_loses_nothing", AsksForAnEternity),
    ("test_a_fetch_ends_although_the_server_hangs", Hangs),
    ("test_a_fetch_ends_although_the_server_hangs", HangsLong),
    ("test_a_cursor_that_is_garbage_is_answered_or_refused", ChokesOnGarbage),
    ("test_a_cursor_that_is_garbage_is_answered_or_refused", AnswersGarbageWithGarbage),
    ("test_secrets_stay_where_they_are", SaysItsSecret),
    ("test_secrets_stay_where_they_are", FailsWithItsSecret),
    ("test_what_it_says_of_itself_is_of_use", IsNamedByANumber),
    ("test_what_it_says_of_itself_is_of_use", IsNamedAnew),
    ("test_what_it_says_of_itself_is_of_use", WaitsForEver),
    ("test_pages_are_as_a_consumer_needs_them", put(retry_after=float("nan"))),
    ("test_pages_are_as_a_consumer_needs_them", put(retry_after=-1)),
    ("test_pages_are_as_a_consumer_needs_them", put(retry_after="1")),
    ("test_pages_are_as_a_consumer_needs_them", put(messages=iter(()))),
    ("test_pages_are_as_a_consumer_needs_them", put(cursor=5)),
    ("test_pages_are_as_a_consumer_needs_them", put(cursor="")),
    ("test_pages_are_as_a_consumer_needs_them", put(cursor="x" * 65_537)),
    ("test_pages_are_as_a_consumer_needs_them", put(messages=[Message("1", cursor="\0")])),
    ("test_messages_are_what_they_are_remembered_by", MakesMessages),
    ("test_messages_are_what_they_are_remembered_by", MakesChangeableMessages),
    ("test_messages_are_what_they_are_remembered_by", MakesMessagesOfNumbers),
    ("test_messages_are_what_they_are_remembered_by", MakesMessagesWithNUL),
    ("test_messages_are_what_they_are_remembered_by", MakesMessagesThatNobodyKnows),
    ("test_a_dead_letter_is_the_message_again", RestoresAnother),
    ("test_a_dead_letter_is_the_message_again", RestoresOtherData),
    ("test_a_dead_letter_is_the_message_again", MakesMessagesOfObjects),
    ("test_a_dead_letter_that_cannot_be_read_says_so", RestoresByKey),
    ("test_a_dead_letter_that_cannot_be_read_says_so", RestoresNothing),
    ("test_a_dead_letter_that_cannot_be_read_says_so", RestoresAStranger),
]

CAUGHT = (AssertionError, IndexError, TimeoutError, KeyError, TypeError, pytest.fail.Exception)


class Suite(TestFakeFeed):
    secrets = (SECRET,)

    async def publish_late(self, feed):
        feed.publish("late")
        entries = feed._entries
        entries.insert(0, entries.pop())

    async def hang(self, feed):
        pass


@pytest.mark.anyio
async def test_a_feed_with_overlap_passes_the_suite_test_of_late_messages():
    class Looking(Suite):
        async def make_feed(self, count):
            feed = await super().make_feed(count)
            feed.overlap = 2
            return feed

    await Looking().test_a_message_that_appears_before_others_is_found()


@pytest.mark.anyio
@pytest.mark.parametrize(("test", "lie"), LIES)
async def test_the_suite_fails_for_a_misbehaving_feed(test, lie, caplog):
    class Caught(Suite):
        async def make_feed(self, count):
            feed = lie()
            feed.publish(count)
            return feed

    test, *count = test.removesuffix("]").split("[")
    function = getattr(Caught(), test)
    wanted = inspect.signature(function).parameters
    arguments = {"caplog": caplog, "cursor": "a word", "raw": "nothing", "count": int(*count)}
    with pytest.raises(CAUGHT):
        await function(**{name: arguments[name] for name in wanted})


def test_every_test_of_the_suite_has_a_misbehaving_feed():
    tests = {
        name for name, _ in inspect.getmembers(FeedSuite, inspect.iscoroutinefunction) if name.startswith("test_")
    }
    assert {test.partition("[")[0] for test, _ in LIES} == tests


class MintsItsLinks(FakeFeed):
    """Its `next` link is different each time, and leads to the same page."""

    minted = 0

    async def fetch(self, request):
        cursor = request.cursor and request.cursor.partition("#")[0]
        page = await super().fetch(replace(request, cursor=cursor))
        self.minted += 1
        return replace(page, next_page=page.next_page and f"{page.next_page}#{self.minted}")


class MintsLinksElsewhere(MintsItsLinks):
    async def fetch(self, request):
        page = await super().fetch(request)
        return page if self.minted % 2 or page.next_page is None else replace(page, next_page="after 6")


class EndsTheSecondTime(MintsItsLinks):
    async def fetch(self, request):
        page = await super().fetch(request)
        return page if self.minted % 2 else replace(page, next_page=None)


class Minted(Suite):
    kind = MintsItsLinks

    async def make_feed(self, count):
        feed = self.kind(page_size=2)
        feed.publish(count)
        return feed


@pytest.mark.anyio
async def test_a_next_cursor_may_differ_each_time_if_it_leads_to_the_same_page():
    await Minted().test_a_page_that_is_asked_for_again_is_there_again()


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [MintsLinksElsewhere, EndsTheSecondTime])
async def test_a_next_cursor_that_leads_to_another_page_or_is_missing_fails_the_suite(kind):
    suite = Minted()
    suite.kind = kind
    with pytest.raises(AssertionError):
        await suite.test_a_page_that_is_asked_for_again_is_there_again()
