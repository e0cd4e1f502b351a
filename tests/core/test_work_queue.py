"""The work queue: messages that may start, and the settled prefix. Without tasks."""

import heapq
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from push_to_poll_client import Message
from push_to_poll_client import _work_queue as module
from push_to_poll_client._work_queue import WorkItem, WorkQueue
from tests.support.forms import form


def item(name, lane=None, *, settled=False, cursor=True, read_at=0.0, arrived=0.0):
    at = f"after {name}" if cursor is True else cursor
    return WorkItem(name, Message(name), at, read_at, arrived, lane=lane, settled=settled)


def work_of(*lanes, **page):
    """Create a page whose messages are named by lane and place: a1, b1, a2."""
    seen, items = defaultdict(int), []
    for lane in lanes:
        seen[lane] += 1
        items.append(item(f"{lane}{seen[lane]}", lane))
    work = WorkQueue()
    work.add(items, 1.0, **page)
    return work


def names(items):
    return [one.key for one in items]


def settle(work, items):
    for one in items:
        work.mark_settled(one)
    work.free(items)


# What is next


def test_one_message_per_ordering_key_is_in_flight_in_feed_order():
    work = work_of("a", "a", "b", "c", "b")
    taken = [work.take(1) for _ in range(3)]
    assert [names(items) for items in taken] == [["a1"], ["b1"], ["c1"]]
    assert work.take(1) == []
    assert work.left == 2


def test_a_message_waits_until_the_one_before_it_with_its_ordering_key_is_settled():
    work = work_of("a", "a", "b", "b")
    first, second = work.take(1), work.take(1)
    settle(work, second)
    assert names(work.take(1)) == ["b2"]
    settle(work, first)
    assert names(work.take(1)) == ["a2"]
    assert work.left == 0


def test_messages_of_a_freed_ordering_key_come_in_feed_order():
    work = work_of("a", "b", "a", "c", "c")
    first = work.take(1)
    settle(work, first)
    assert [names(work.take(1)) for _ in range(3)] == [["b1"], ["a2"], ["c1"]]


def test_one_take_can_return_several_messages_of_an_ordering_key_in_order():
    work = work_of("a", "a", "b", "a", "c", "a")
    assert names(work.take(5)) == ["a1", "a2", "b1", "a3", "c1"]
    assert work.take(5) == [], "the rest of a lane waits for what is under way of it"


def test_ordering_keys_of_one_take_are_freed_together():
    work = work_of("a", "a", "b", "a")
    items = work.take(3)
    work.mark_settled(items[0])
    assert work.take(3) == []
    settle(work, items[1:])
    assert names(work.take(3)) == ["a3"]


def test_an_unsettled_message_blocks_only_its_own_ordering_key():
    work = work_of("a", "b", "a", "b", "b")
    items = work.take(2)
    work.mark_settled(items[1])
    work.free(items)
    assert names(work.take(5)) == ["b2", "b3"]
    assert work.left == 1


def test_a_message_added_later_waits_for_its_ordering_key_in_flight():
    work = work_of("a")
    first = work.take(1)
    work.add([item("a2", "a"), item("b1", "b")], 2.0)
    assert names(work.take(5)) == ["b1"]
    settle(work, first)
    assert names(work.take(5)) == ["a2"]


def test_an_empty_work_queue_returns_no_messages():
    work = WorkQueue()
    assert (work.take(3), work.left, work.waiting_since, list(work.unsettled)) == ([], 0, None, [])


def test_ordering_keys_are_compared_like_dict_keys_and_need_no_order():
    nan = float("nan")
    lanes = [None, "1", 1, 1.0, (1,), frozenset({1}), nan, nan, object(), True]
    work = WorkQueue()
    work.add([item(str(n), lane) for n, lane in enumerate(lanes)], 0.0)
    assert names(work.take(20)) == names(work.unsettled), "all of them, in the feed's order"
    work = WorkQueue()
    work.add([item(str(n), lane) for n, lane in enumerate(lanes)], 0.0)
    assert [names(work.take(1)) for _ in range(7)] == [[name] for name in ("0", "1", "2", "4", "5", "6", "8")]


# How far


def test_the_cursor_stays_before_the_first_unsettled_message():
    work = work_of("a", "b", "c")
    a, b, c = (work.take(1)[0] for _ in range(3))
    work.mark_settled(c)
    assert (work.cursor, work.read_at) == (None, 0.0)
    work.mark_settled(a)
    assert work.cursor == "after a1"
    work.mark_settled(b)
    assert work.cursor == "after c1"
    assert list(work.unsettled) == []


def test_a_page_without_message_cursors_has_a_cursor_at_its_end():
    work = WorkQueue()
    work.add([item("1", cursor=None), item("2", cursor=None)], 5.0, cursor="page")
    items = work.take(2)
    work.mark_settled(items[0])
    assert work.cursor is None
    work.mark_settled(items[1])
    assert (work.cursor, work.read_at) == ("page", 5.0)


@pytest.mark.parametrize("names_of", [[], ["1", "2"]], ids=["an empty page", "a page of duplicates"])
def test_the_cursor_of_a_page_that_is_settled_may_be_saved_at_once(names_of):
    work = WorkQueue()
    work.add([item(name, settled=True) for name in names_of], 5.0, cursor="page")
    assert (work.cursor, work.read_at, work.left) == ("page", 5.0, 0)


@pytest.mark.parametrize("names_of", [[], ["2", "3"]], ids=["an empty page", "a page of duplicates"])
def test_the_cursor_of_a_settled_page_waits_for_unsettled_earlier_pages(names_of):
    work = WorkQueue()
    work.add([item("1")], 5.0, cursor="first")
    work.add([item(name, settled=True) for name in names_of], 6.0, cursor="second")
    assert work.cursor is None
    settle(work, work.take(1))
    assert (work.cursor, work.read_at) == ("second", 6.0)


def test_a_cursor_has_the_arrival_time_of_its_page():
    work = WorkQueue()
    work.add([item("1", "a", read_at=5.0)], 5.0, cursor="first")
    work.add([item("2", "b", read_at=6.0), item("3", "c", read_at=6.0)], 6.0, cursor="second")
    first, second, third = (work.take(1) for _ in range(3))
    settle(work, second)
    settle(work, first)
    assert (work.cursor, work.read_at) == ("after 2", 6.0)
    settle(work, third)
    assert (work.cursor, work.read_at) == ("second", 6.0)


def test_a_message_without_a_cursor_keeps_the_cursor_of_the_message_before_it():
    work = WorkQueue()
    work.add([item("1", "a"), item("2", "b", cursor=None)], 0.0)
    settle(work, work.take(2))
    assert work.cursor == "after 1"


def test_waits_since_is_the_arrival_time_of_the_oldest_waiting_message():
    work = WorkQueue()
    work.add([item("1", arrived=3.0)], 0.0)
    work.add([item("2", arrived=4.0)], 0.0)
    assert work.waiting_since == 3.0
    settle(work, work.take(1))
    assert work.waiting_since == 4.0
    work.take(1)
    assert work.waiting_since is None


# Whatever happens

LANES = st.integers(0, 4) | st.sampled_from(["x", None, (1,)])
PAGES = st.lists(st.tuples(st.lists(st.tuples(LANES, st.booleans()), max_size=12), st.booleans()), max_size=5)


class Model:
    """Model of the queue that looks at all messages each time."""

    def __init__(self):
        self.order = []
        self.ends = {}
        self.begun = set()
        self.settled = set()
        self.under_way = []

    def may_be_begun(self, most):
        busy = {self.order[place].lane for items in self.under_way for place in items}
        free = [
            place
            for place, one in enumerate(self.order)
            if place not in self.begun and place not in self.settled and one.lane not in busy
        ]
        return free[:most]

    def prefix(self):
        """Cursor of the longest run of settled messages from the start."""
        cursor = self.ends.get(-1)
        for place, one in enumerate(self.order):
            if place not in self.settled:
                break
            cursor = self.ends.get(place, one.cursor)
        return cursor


@settings(max_examples=form(20, 60))
@given(PAGES, st.data())
def test_any_pages_are_taken_in_order_per_key_and_the_cursor_covers_a_settled_prefix(pages, data):
    work, model = WorkQueue(), Model()
    pages = list(pages)
    while pages or work.left or model.under_way:
        step = data.draw(st.sampled_from(["page"] * bool(pages) + ["take"] + ["end"] * bool(model.under_way)))
        if step == "page":
            messages, has_cursor = pages.pop(0)
            items = []
            for lane, settled in messages:
                place = len(model.order)
                items.append(item(str(place), lane, settled=settled))
                model.order.append(items[-1])
                model.settled.update({place} if settled else ())
            cursor = f"end {len(model.order)}" if has_cursor else None
            if cursor:
                model.ends[len(model.order) - 1] = cursor
            work.add(items, 0.0, cursor=cursor)
        elif step == "take":
            most = data.draw(st.integers(1, 5))
            expected = model.may_be_begun(most)
            taken = [int(one.key) for one in work.take(most)]
            assert taken == expected
            model.begun.update(taken)
            if taken:
                model.under_way.append(taken)
        else:
            places = model.under_way.pop(data.draw(st.integers(0, len(model.under_way) - 1)))
            for place in data.draw(st.permutations(places)):
                work.mark_settled(model.order[place])
                model.settled.add(place)
                assert work.cursor == model.prefix()
            work.free([model.order[place] for place in places])
        assert work.left == len(model.order) - len(model.begun | model.settled)
        assert names(work.unsettled) == [str(n) for n in range(len(model.order)) if n not in model.settled]
        assert work.cursor == model.prefix()
    assert model.settled == set(range(len(model.order)))


# What it costs


@pytest.mark.parametrize("lanes", [1, 3, 1000])
@pytest.mark.parametrize("most", [1, 7, 5000])
def test_the_cost_of_a_message_does_not_grow_with_the_page(lanes, most, monkeypatch):
    """Counted, not timed: two heap entries for each message, however many wait."""
    counts = defaultdict(int)
    for name in ("heappush", "heappop"):

        def counted(*args, name=name):
            counts[name] += 1
            return getattr(heapq, name)(*args)

        monkeypatch.setattr(module, name, counted)
    work, under_way = WorkQueue(), []
    work.add([item(str(n), n % lanes) for n in range(2_000)], 0.0)
    assert counts["heappush"] <= 2_000
    while work.left or under_way:
        while len(under_way) < 16 and (items := work.take(most)):
            under_way.append(items)
        settle(work, under_way.pop(0))
    assert counts["heappush"] <= 2 * 2_000
    assert counts["heappop"] <= counts["heappush"]
    assert not work._lanes
    assert not work._busy
