"""Limit how many first polls run when many consumers of a process start at once.

A page that arrives takes as much memory as the consumer that it is for, or ten times as much, and a request that
waits takes a connection. So the first poll of a consumer begins only when few others are in their first poll.
A server that does not answer, a body that stalls and a slow handler delay the others for `MAX_SHARE` at most.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
from anyio.lowlevel import RunVar

MAX_FIRST_POLLS: Final = 16
"""First polls at a time for each event loop: 10 MB of pages of the usual 1,000 messages, and 16 connections."""

MAX_SHARE: Final = 0.25
"""Seconds after which a first poll is not counted any more. Where all are slow, 64 begin each second."""


class _FirstPolls:
    """The first polls of one event loop."""

    def __init__(self) -> None:
        self.began: dict[object, float] = {}  # of each that is counted, the oldest first
        self.one_ended = anyio.Event()
        self.turn = anyio.Lock(fast_acquire=True)  # the first that waits has it


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
                    polls.one_ended = anyio.Event()  # one that was waited for keeps its event loop in memory
            if scope.cancelled_caught:
                polls.began.pop(oldest, None)
        polls.began[poll] = anyio.current_time()
    try:
        yield
    finally:
        polls.began.pop(poll, None)
        polls.one_ended.set()
