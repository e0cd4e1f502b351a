"""What every feed must do, so that what holds with a fake holds with the real thing."""
# ruff: noqa: S101, PLR2004 - a suite asserts, and the figures of an example are the example

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import anyio
import pytest

from push_to_poll_client._protocols import Feed
from push_to_poll_client._types import Cursor, FetchRequest, Message, Page, Push

__all__ = ["FeedSuite"]

_LONG = 30.0
"""Seconds after which a test gives up; what it waits for takes milliseconds."""

_WAIT = 10.0
"""Seconds for which a feed is asked to hold an answer, if it can for so long."""


class _Walk(NamedTuple):
    """From a cursor to the end."""

    pages: Sequence[Page]

    @property
    def messages(self) -> list[Message]:
        return [message for page in self.pages for message in page.messages]

    @property
    def ids(self) -> list[str]:
        return [message.id for message in self.messages]

    @property
    def cursors(self) -> list[tuple[Cursor, int]]:
        """Each cursor that may be saved, and how many messages are settled then."""
        found: list[tuple[Cursor, int]] = []
        settled = 0
        for page in self.pages:
            for message in page.messages:
                settled += 1
                found += [(message.cursor, settled)] if message.cursor is not None else []
            found += [(page.cursor, settled)] if page.cursor is not None else []
        return found


async def _walk(feed: Feed, cursor: Cursor | None = None) -> _Walk:
    pages = [await feed.fetch(FetchRequest(cursor))]
    while pages[-1].next is not None:
        pages.append(await feed.fetch(FetchRequest(pages[-1].next)))
    return _Walk(pages)


class FeedSuite:
    """Derive a test class from it, write `make_feed` and `publish`, and pytest does the rest.

    The tests run on each backend of your `anyio_backend` fixture.

        class TestMyFeed(FeedSuite):
            async def make_feed(self, count):
                ...
            async def publish(self, feed, count):
                ...
    """

    pytestmark: pytest.MarkDecorator = pytest.mark.anyio

    async def make_feed(self, count: int) -> Feed:
        """Make a feed with `count` messages in it; best on pages of less than three."""
        raise NotImplementedError

    async def publish(self, feed: Feed, count: int) -> None:
        """Let `count` more messages appear."""
        raise NotImplementedError

    async def held(self, feed: Feed) -> None:  # noqa: ARG002 - for those who override it
        """Return when the server holds an answer. As it is, for feeds that live in the same event loop."""
        await anyio.wait_all_tasks_blocked()

    async def close(self, feed: Feed) -> None:
        """Close the feed when a test is over. As it is, by `aclose()` if it has one."""
        if hasattr(feed, "aclose"):
            await feed.aclose()

    async def test_an_empty_feed_is_at_its_end(self) -> None:
        """Nothing, and nowhere to go on."""
        async with self._opened(0) as feed:
            page = await feed.fetch(FetchRequest())
        assert (list(page.messages), page.next) == ([], None)

    async def test_the_inception_reads_everything_each_time_in_the_same_order(self) -> None:
        """Ids and dedupe keys name messages: none is there twice, and they stay."""
        async with self._opened(7) as feed:
            first, second = await _walk(feed), await _walk(feed)
        assert len(set(first.ids)) == len({message.key for message in first.messages}) == len(first.ids) == 7
        assert second.ids == first.ids

    async def test_what_is_published_comes_after_what_was_there(self) -> None:
        """A feed grows at its end."""
        async with self._opened(3) as feed:
            before = await _walk(feed)
            await self.publish(feed, 2)
            after = await _walk(feed)
        assert after.ids[:3] == before.ids
        assert len(after.ids) == 5

    async def test_every_cursor_that_may_be_saved_reads_exactly_the_rest(self) -> None:
        """Whether it stands on a message or on a page."""
        async with self._opened(7) as feed:
            walk = await _walk(feed)
            rests = [(await _walk(feed, cursor)).ids for cursor, _ in walk.cursors]
        assert rests
        assert rests == [walk.ids[settled:] for _, settled in walk.cursors]

    async def test_a_walk_that_found_something_ends_with_a_cursor_behind_it(self) -> None:
        """Else the same messages would come for ever."""
        async with self._opened(5) as feed:
            walk = await _walk(feed)
        assert walk.cursors[-1][1] == 5

    async def test_at_the_end_the_cursor_stays(self) -> None:
        """An empty page has no cursor, or the one it was asked with."""
        async with self._caught_up() as (feed, cursor):
            page = await feed.fetch(FetchRequest(cursor))
        assert (list(page.messages), page.next) == ([], None)
        assert page.cursor in {None, cursor}

    async def test_going_on_after_the_end_finds_what_came_since(self) -> None:
        """And nothing else."""
        async with self._caught_up() as (feed, cursor):
            await self.publish(feed, 2)
            everything, since = await _walk(feed), await _walk(feed, cursor)
        assert since.ids == everything.ids[-2:]

    async def test_a_push_and_a_way_past_caches_change_nothing(self) -> None:
        """`hint` and `fresh` may make an answer newer, never another."""
        async with self._opened(2) as feed:
            walk = await _walk(feed)
            hinted = await feed.fetch(FetchRequest(hint=Push(walk.cursors[-1][0]), fresh=True))
        assert [message.id for message in hinted.messages] == [message.id for message in walk.pages[0].messages]

    async def test_a_held_answer_comes_with_the_publication(self) -> None:
        """Long polling, for feeds that have `max_wait`."""
        pages: list[Page] = []

        async def fetch() -> None:
            pages.append(await feed.fetch(FetchRequest(cursor, wait=_WAIT)))

        async with self._caught_up(can_wait=True) as (feed, cursor), anyio.create_task_group() as tasks:
            tasks.start_soon(fetch)
            await self.held(feed)
            assert pages == []
            await self.publish(feed, 1)
        assert len(pages[0].messages) == 1

    async def test_a_held_answer_comes_empty_when_the_wait_ends(self) -> None:
        """Long polling, for feeds that have `max_wait`."""
        async with self._caught_up(can_wait=True) as (feed, cursor):
            page = await feed.fetch(FetchRequest(cursor, wait=0.05))
        assert (list(page.messages), page.next) == ([], None)

    async def test_a_held_fetch_that_is_cancelled_leaves_the_feed_usable(self) -> None:
        """As every wake does with it."""
        async with self._caught_up(can_wait=True) as (feed, cursor):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(feed.fetch, FetchRequest(cursor, wait=_WAIT))
                await self.held(feed)
                tasks.cancel_scope.cancel()
            await self.publish(feed, 1)
            since = await _walk(feed, cursor)
        assert len(since.ids) == 1

    async def test_a_cancelled_fetch_leaves_the_feed_usable(self) -> None:
        """As a stop does with it."""
        async with self._opened(3) as feed:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await feed.fetch(FetchRequest())
            walk = await _walk(feed)
        assert scope.cancelled_caught
        assert len(walk.ids) == 3

    async def test_a_closed_feed_opens_again(self) -> None:
        """A consumer that ran may run again."""
        async with self._opened(3) as feed:
            before = await _walk(feed)
            await self.close(feed)
            after = await _walk(feed)
        assert after.ids == before.ids

    @asynccontextmanager
    async def _opened(self, count: int) -> AsyncIterator[Feed]:
        with anyio.fail_after(_LONG):
            feed = await self.make_feed(count)
            try:
                yield feed
            finally:
                await self.close(feed)

    @asynccontextmanager
    async def _caught_up(self, *, can_wait: bool = False) -> AsyncIterator[tuple[Feed, Cursor]]:
        async with self._opened(2) as feed:
            if can_wait and not getattr(feed, "max_wait", None):
                pytest.skip("the feed has no max_wait: it cannot hold an answer")
            yield feed, (await _walk(feed)).cursors[-1][0]
