"""Limit how many first pages are in memory when many consumers of a process start at once.

A page that arrives takes ten times the memory of the consumer that it is for. So the body of a consumer's first
answer is read only when few others are being worked off. A consumer waits with the headers of its answer in hand,
so a server that does not answer delays no other consumer. A slow handler, or a body that stalls, delays the others
for `MAX_SHARE` at most.
"""

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Final

import anyio
from anyio.lowlevel import RunVar

MAX_FIRST_PAGES: Final = 32
"""First pages in memory for each event loop: 20 MB of the usual 1,000 messages. 1,000 consumers had 600 MB."""

MAX_SHARE: Final = 0.25
"""Seconds after which a page is not counted any more. The slowest handlers let 128 others begin each second."""


class _Pages:
    """The first pages of one event loop."""

    def __init__(self) -> None:
        self._counted: dict[_FirstPage, float] = {}  # when each was let in, the oldest first
        self._waiting = deque[anyio.Event]()  # the first of them looks at the others, and wakes the next

    async def let_in(self, page: "_FirstPage") -> None:
        turn = anyio.Event()
        self._waiting.append(turn)
        try:
            if self._waiting[0] is not turn:
                await turn.wait()
            while len(self._counted) >= MAX_FIRST_PAGES:
                oldest, since = next(iter(self._counted.items()))
                with anyio.move_on_after(since + MAX_SHARE - anyio.current_time()):
                    await oldest.over.wait()
                self._counted.pop(oldest, None)
        finally:
            is_first = self._waiting[0] is turn
            self._waiting.remove(turn)
            if is_first and self._waiting:
                self._waiting[0].set()
        self._counted[page] = anyio.current_time()

    def leave(self, page: "_FirstPage") -> None:
        self._counted.pop(page, None)
        page.over.set()


_pages = RunVar[_Pages | None]("first pages of push_to_poll_client", None)


class _FirstPage:
    """The first page of a consumer, from the answer to the end of its poll."""

    def __init__(self) -> None:
        self.over = anyio.Event()
        self.pages: _Pages | None = None


_current: ContextVar[_FirstPage | None] = ContextVar("push_to_poll_client_first_page", default=None)


@contextmanager
def counted_as_first() -> Iterator[None]:
    """Count the pages that are read in the block as one first page."""
    page = _FirstPage()
    token = _current.set(page)
    try:
        yield
    finally:
        with suppress(ValueError):  # a coroutine that is destroyed after the end of its event loop
            _current.reset(token)
        if page.pages is not None:
            page.pages.leave(page)


async def wait_for_first_page(scope: anyio.CancelScope) -> float:
    """Wait until there is room for a first page. For any other page it returns at once.

    Args:
        scope: The deadline of the answer, which does not count while this waits.

    Returns:
        Seconds that it waited.
    """
    page = _current.get()
    if page is None or page.pages is not None:
        return 0.0
    if (pages := _pages.get()) is None:
        pages = _Pages()
        _pages.set(pages)
    page.pages = pages
    began, deadline = anyio.current_time(), scope.deadline
    scope.deadline = math.inf
    await pages.let_in(page)
    waited = anyio.current_time() - began
    scope.deadline = deadline + waited
    return waited
