"""What a feed's suite has to be told of the feed and of the server behind it."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from push_to_poll_client._protocols import Feed
from push_to_poll_client._types import Cursor
from push_to_poll_client.testing._feed_walk import walk

__all__ = ["FeedHooks"]

_LONG = 30.0
"""Seconds after which a test gives up; what it waits for takes milliseconds."""


class FeedHooks:
    """To be overridden; `FeedSuite` says how.

    Attributes:
        secrets: What the feed was given that nobody may see.
        acknowledges: To fetch from a cursor takes away what stands before it, so nothing is read twice.
        repeats: What a cursor leads to may begin with some of what stands before it.
        longest_fetch: Seconds within which each fetch ends, also when the server hangs.
    """

    secrets: tuple[str, ...] = ()
    acknowledges: bool = False
    repeats: bool = False
    longest_fetch: float = _LONG

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

    async def reopen(self, feed: Feed) -> Feed:  # noqa: ARG002 - likewise
        """Make another feed of the same server, as after a restart. It is not closed by the suite."""
        pytest.skip("the feed's suite does not override reopen()")

    async def break_next(self, feed: Feed) -> None:  # noqa: ARG002 - likewise
        """Let the next fetch fail, as by an answer with status 500 or one that is cut."""
        pytest.skip("the feed's suite does not override break_next()")

    async def hang(self, feed: Feed) -> None:  # noqa: ARG002 - likewise
        """Let the server stop in the middle of its next answer."""
        pytest.skip("the feed's suite does not override hang()")

    async def change(self, feed: Feed) -> None:  # noqa: ARG002 - likewise
        """Let the entry of one message change that is there: a new version of it, and so a new message."""
        pytest.skip("the feed's suite does not override change()")

    async def publish_late(self, feed: Feed) -> None:  # noqa: ARG002 - likewise
        """Let one message appear before some that are there already."""
        pytest.skip("the feed's suite does not override publish_late()")

    @asynccontextmanager
    async def _opened(self, count: int) -> AsyncIterator[Feed]:
        with anyio.fail_after(_LONG):
            feed = await self.make_feed(count)
            try:
                yield feed
            finally:
                await self.close(feed)

    @asynccontextmanager
    async def _caught_up(self) -> AsyncIterator[tuple[Feed, Cursor]]:
        async with self._opened(2) as feed:
            yield feed, (await walk(feed)).cursors[-1][0]

    def _follows(self, ids: Sequence[str], expected: Sequence[str], known: Collection[str]) -> bool:
        """Whether these are the messages expected, behind some that are known if the feed repeats."""
        before = max(len(ids) - len(expected), 0)
        return ids[before:] == expected and (not before or (self.repeats and {*ids[:before]} <= {*known}))

    def _reads_twice(self) -> None:
        if self.acknowledges:
            pytest.skip("the feed acknowledges by being fetched: nothing is read twice")
