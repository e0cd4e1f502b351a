"""Arbitrary feeds, servers and readers: all visible messages are returned, and lost ones are reported.

Fetches are suspended at arbitrary points, so that readers overtake each other. CHAOS_FORM=long tries many more.
"""

import types
from contextlib import ExitStack
from functools import partial
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from push_to_poll_client import FeedError, FeedGone, FeedRefused, FetchRequest, PagesChanged
from push_to_poll_client.feeds import _newest_first_cursor, _newest_first_walk
from push_to_poll_client.feeds._newest_first import NewestFirstReader
from push_to_poll_client.feeds._newest_first_cursor import SeenEntries
from tests.support.forms import form
from tests.support.newest_first_server import WHERE, Archived, Following, Numbered

FAILURES = (FeedError("weather"), FeedRefused("login"), FeedGone("gone"), PagesChanged("changed"), KeyError("bug"))

EXAMPLES = form(60, 5_000)

FEW = {(_newest_first_walk, "MAX_ADDRESSES"): 4, (_newest_first_cursor, "MAX_OLDER_DIGESTS"): 3}
"""Limits small enough for so few messages."""


@types.coroutine
def in_the_air():
    """Suspend until the test resumes the fetch, with an error or None."""
    error = yield
    if error is not None:
        raise error


class Person:
    """A reader: processes the messages that it gets, and saves cursors.

    Attributes:
        settled: The processed messages.
        owed: Messages that the feed dropped before they were processed, and has not reported yet.
    """

    def __init__(self, saved=None, settled=()):
        self.saved, self.settled, self.owed = saved, set(settled), set()
        self.flight = None
        self.begin()

    def begin(self):
        """Start another poll."""
        if self.flight is not None:
            self.flight.close()
        self.flight, self.position = None, self.saved

    def take_off(self, walk, *, bypass_cache=False):
        """Request a page. Return None if the fetch is suspended."""
        self.flight = walk.fetch(FetchRequest(self.position, bypass_cache=bypass_cache))
        return self._moved(None)

    def land(self, error=None):
        return self._moved(error)

    def _moved(self, error):
        try:
            self.flight.send(error)
        except StopIteration as landed:
            self.flight = None
            return landed.value
        except BaseException:
            self.flight = None
            self.begin()
            raise
        return None

    def settle(self, page, upto=None):
        """Process the page, or so many of its messages until one fails."""
        ids = [message.id for message in page.messages]
        self.owed = set() if page.gap else self.owed
        self.settled.update(ids[:upto])
        self.owed -= self.settled
        if upto is not None and upto < len(ids):
            return self.begin()
        self.saved = page.cursor or self.saved
        self.position = self.saved if page.next_page is None else page.next_page
        return None


class WalkBackMachine(RuleBasedStateMachine):
    @initialize(
        kind=st.sampled_from([Numbered, Following, Archived]),
        size=st.integers(2, 4),
        most=st.integers(1, 12),
        readers=st.integers(1, 3),
        count=st.integers(0, 12),
        tagged=st.booleans(),
        fresh_for=st.sampled_from([0.0, 40.0]),
        latest=st.booleans(),
    )
    def open(self, *, kind, size, most, readers, count, tagged, fresh_for, latest):
        self.now, self.patches = 1000.0, ExitStack()
        self.patches.enter_context(mock.patch("anyio.current_time", side_effect=lambda: self.now))
        for (module, name), few in FEW.items():
            self.patches.enter_context(mock.patch.object(module, name, few))
        self.documents, self.most, self.tagged = kind(count, size=size), most, tagged
        self.documents.says = {"fresh_for": fresh_for}
        self.pinned_ever = False
        self.published_in_walk, self.dropped_in_walk = False, set()
        self.start_process()
        self.people = [Person() for _ in range(readers)]
        if latest:
            flight = self.walk.latest()
            flight.send(None)
            try:
                flight.send(None)
            except StopIteration as landed:
                self.people[0] = Person(landed.value, self.documents.there)

    def teardown(self):
        if hasattr(self, "patches"):
            with self.patches:
                for person in self.people:
                    self.reads_to_the_end(person)

    def start_process(self):
        self.walk = NewestFirstReader(self.look, WHERE, max_messages=self.most)

    async def look(self, address, request, known):
        documents = self.documents
        documents.asked.append(address)
        leaf = documents.answer(address, known) if self.tagged else documents.document(address)
        await in_the_air()
        return leaf

    # Feed

    @rule(count=st.integers(1, 7))
    def publish(self, count):
        self.documents.publish(count)
        self.published_in_walk = not self.all_idle

    @precondition(lambda self: self.may_shift)
    @rule(die=st.randoms(use_true_random=False), count=st.integers(1, 4))
    def delete(self, die, count):
        entries = self.documents.entries
        gone = die.sample(entries, min(count, len(entries)))
        self.documents.entries = [name for name in entries if name not in gone]
        self.documents.pinned = [name for name in self.documents.pinned if name not in gone]
        for person in self.people:
            person.owed.difference_update(gone)
        self.now += _newest_first_walk.STALE_AFTER + 1

    @rule(count=st.integers(1, 12))
    def drop(self, count):
        """Drop the oldest entries."""
        dropped = set(self.documents.drop(count))
        if not self.all_idle:
            self.dropped_in_walk |= dropped
        for person in self.people:
            if SeenEntries.parse(person.saved, WHERE).messages:  # a reader that has seen nothing misses nothing
                person.owed |= dropped - person.settled

    @precondition(lambda self: self.all_idle and not isinstance(self.documents, Archived))
    @rule(die=st.randoms(use_true_random=False), pinned=st.booleans())
    def pin(self, die, pinned):
        entries = self.documents.entries
        self.documents.pinned = die.sample(entries, 1) if pinned and entries else []
        self.pinned_ever = True

    @rule(seconds=st.sampled_from([1.0, _newest_first_walk.STALE_AFTER + 1, 100.0]))
    def pause(self, seconds):
        self.now += seconds

    @rule()
    def restart(self):
        self.start_process()
        for person in self.people:
            person.begin()

    # Readers

    @rule(data=st.data(), fresh=st.booleans())
    def ask(self, data, fresh):
        person = data.draw(st.sampled_from(self.people))
        if person.flight is None:
            self.fetched(person, lambda: person.take_off(self.walk, bypass_cache=fresh), None)

    @rule(data=st.data(), error=st.one_of(st.none(), st.none(), st.sampled_from(FAILURES)), upto=st.integers(0, 9))
    def answer(self, data, error, upto):
        person = data.draw(st.sampled_from(self.people))
        if person.flight is not None:
            self.fetched(person, lambda: person.land(error), upto if upto < 3 else None)

    @rule(data=st.data())
    def begin_another_poll(self, data):
        data.draw(st.sampled_from(self.people)).begin()

    @rule(data=st.data())
    def read_to_the_end(self, data):
        self.reads_to_the_end(data.draw(st.sampled_from(self.people)))

    def fetched(self, person, fetch, upto):
        if self.all_idle:
            self.published_in_walk = False
        try:
            page = fetch()
        except (FeedError, KeyError):
            return None
        if page is not None:
            self.is_in_order(page)
            person.settle(page, upto)
        return page

    def reads_to_the_end(self, person):
        """Check that the reader reaches the end, where another poll is one request without messages."""
        before, begun = len(person.settled), set(self.walk._walks)
        person.begin()
        self.polls(person)
        while person.saved in begun and person.saved in self.walk._walks:
            # Another reader began a walk at this cursor. It is shared, and may have messages that were dropped
            # since.
            begun.remove(person.saved)
            person.begin()
            self.polls(person)
        assert person.settled >= self.documents.there
        assert not person.owed or len(person.settled) == before
        self.documents.asked.clear()
        person.begin()
        pages = self.polls(person)
        assert [len(page.messages) for page in pages] == [0]
        assert self.documents.asked == [None]

    def polls(self, person):
        """Poll to the end, restarting after errors. Each request bypasses caches, as after a push."""
        pages, passed = [], set()
        for _ in range(1000):
            page = self.fetched(person, partial(person.take_off, self.walk, bypass_cache=True), None)
            if page is None and person.flight is not None:
                page = self.fetched(person, person.land, None)
            if page is None:
                passed = set()
                continue
            pages.append(page)
            if page.next_page is None:
                return pages
            assert page.next_page not in passed
            passed.add(page.next_page)
        raise AssertionError("the walk does not end")

    def is_in_order(self, page):
        ids = [message.id for message in page.messages]
        assert len(set(ids)) == len(ids)
        assert len(ids) <= self.bound
        ids = [name for name in ids if name not in self.without_place]
        assert self.pinned_ever or ids == sorted(ids)

    # Invariants

    @property
    def ways(self):
        return self.walk._walks.values()

    @property
    def bound(self):
        return max(self.most, _newest_first_walk.MIN_DOCUMENTS * (self.documents.size + 1))

    @property
    def all_idle(self):
        return not any(person.flight for person in self.people) and not self.ways

    @property
    def may_shift(self):
        """True if a deletion may shift pages. During a walk over numbered pages it hides other entries."""
        if not isinstance(self.documents, Numbered):
            return True
        in_the_air = any(person.flight for person in self.people)
        return not in_the_air and not any(way._refetched for way in self.ways if way.page is None)

    @property
    def without_place(self):
        """Entries that numbered pages no longer show; newer entries may be shown again and come first."""
        counted = isinstance(self.documents, Numbered) and self.published_in_walk
        return self.dropped_in_walk if counted else set()

    @invariant()
    def memory_is_bounded(self):
        if hasattr(self, "walk"):
            assert len(self.ways) <= 8
            assert all(each._messages <= self.bound and len(each.above) <= 2 * 4 for each in self.ways)


WalkBackMachine.TestCase.settings = settings(
    settings.get_profile("ours"), max_examples=EXAMPLES, stateful_step_count=40
)
TestWalkBack = WalkBackMachine.TestCase
