"""Limit the first polls that run at once when many consumers start.

An arriving page takes as much memory as its consumer, or ten times as much, and a waiting request takes a
connection. So a consumer's first poll begins only when few others are in their first poll. A server that does not
answer, a body that stalls or a slow handler delays the others for at most `MAX_SHARE`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
from anyio.lowlevel import RunVar

# First polls at a time in each event loop: 16 connections, and 10 MB of pages of the usual 1,000 messages.
MAX_FIRST_POLLS: Final = 16

# Seconds after which a first poll no longer counts. If all are slow, 64 begin each second.
MAX_SHARE: Final = 0.25


class _FirstPolls:
    """The first polls of one event loop."""

    def __init__(self) -> None:
        self.began: dict[object, float] = {}  # start times of those that count, oldest first
        self.one_ended = anyio.Event()
        self.turn = anyio.Lock(fast_acquire=True)  # held by the first one in the queue


_first_polls = RunVar[_FirstPolls | None]("first polls of push_to_poll_client", None)


@asynccontextmanager
async def first_poll() -> AsyncIterator[None]:
    """Wait until few other first polls run, and count the block as one."""
    if (polls := _first_polls.get()) is None:
        polls = _FirstPolls()
        _first_polls.set(polls)
    poll = object()
    async with polls.turn:
        while len(polls.began) >= MAX_FIRST_POLLS:
            oldest, began = next(iter(polls.began.items()))
            with anyio.move_on_after(began + MAX_SHARE - anyio.current_time()) as scope:
                try:
                    await polls.one_ended.wait()
                finally:
                    polls.one_ended = anyio.Event()  # an event that was waited for keeps its event loop in memory
            if scope.cancelled_caught:
                polls.began.pop(oldest, None)
        polls.began[poll] = anyio.current_time()
    try:
        yield
    finally:
        polls.began.pop(poll, None)
        polls.one_ended.set()
