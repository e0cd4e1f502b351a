"""From a cursor to the end of a feed, as a consumer goes, and what is to be seen on the way."""

from collections.abc import Sequence
from typing import NamedTuple

from push_to_poll_client._protocols import Feed
from push_to_poll_client._types import Cursor, FetchRequest, Message, Page

__all__ = ["MOST_PAGES", "Step", "Steps", "Walk", "walk"]

MOST_PAGES = 200
"""Of a feed with a handful of messages: one that has more never ends."""


class Step(NamedTuple):
    """One page.

    Attributes:
        at: Where it was asked for.
        page: What came.
    """

    at: Cursor | None
    page: Page


class Walk(NamedTuple):
    """From a cursor to the end.

    Attributes:
        steps: The pages, in the order in which they were fetched.
    """

    steps: Sequence[Step]

    @property
    def pages(self) -> Sequence[Page]:
        """As they came."""
        return [step.page for step in self.steps]

    @property
    def messages(self) -> list[Message]:
        """Of all pages."""
        return [message for page in self.pages for message in page.messages]

    @property
    def ids(self) -> list[str]:
        """Of all messages."""
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


class Steps:
    """Page after page, until there is no next one. No generator: nothing is left open by who stops half way."""

    def __init__(self, feed: Feed, cursor: Cursor | None = None) -> None:
        self._feed = feed
        self._first = self._at = cursor
        self._number = 0

    def __aiter__(self) -> "Steps":
        return self

    async def __anext__(self) -> Step:
        if self._number and self._at is None:
            raise StopAsyncIteration
        self._number += 1
        if self._number > MOST_PAGES:
            raise AssertionError(
                f"the walk from {self._first!r} found no end on {MOST_PAGES} pages; the last next is {self._at!r}"
            )
        at, page = self._at, await self._feed.fetch(FetchRequest(self._at))
        self._at = page.next
        return Step(at, page)


async def walk(feed: Feed, cursor: Cursor | None = None) -> Walk:
    """All of it."""
    return Walk([step async for step in Steps(feed, cursor)])
