"""Limit how many first polls run when many consumers of a process start at once.

A page that arrives takes as much memory as the consumer that it is for, or ten times as much, and a request that
waits takes a connection. So the first poll of a consumer begins only when few others are in their first poll.
A server that does not answer, a body that stalls and a slow handler delay the others for `MAX_SHARE` at most.
"""

from collections import deque
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
        self._began: dict[object, float] = {}  # of each that is counted, the oldest first
        self._one_ended = anyio.Event()
        self._waiting = deque[anyio.Event]()  # the first of them waits for an end, and wakes the next

    async def begin(self, poll: object) -> None:
        turn = anyio.Event()
        self._waiting.append(turn)
        try:
            if self._waiting[0] is not turn:
                await turn.wait()
            while len(self._began) >= MAX_FIRST_POLLS:
                oldest, began = next(iter(self._began.items()))
                self._one_ended = anyio.Event()
                with anyio.move_on_after(began + MAX_SHARE - anyio.current_time()) as scope:
                    await self._one_ended.wait()
                if scope.cancelled_caught:
                    self._began.pop(oldest, None)
        finally:
            is_first = self._waiting[0] is turn
            self._waiting.remove(turn)
            if is_first:
                self._one_ended = anyio.Event()  # one that was waited for keeps its event loop in memory
                if self._waiting:
                    self._waiting[0].set()
        self._began[poll] = anyio.current_time()

    def end(self, poll: object) -> None:
        self._began.pop(poll, None)
        self._one_ended.set()


_first_polls = RunVar[_FirstPolls | None]("first polls of push_to_poll_client", None)


@asynccontextmanager
async def first_poll() -> AsyncIterator[None]:
    """Wait until few other first polls run, and count the block as one."""
    if (polls := _first_polls.get()) is None:
        polls = _FirstPolls()
        _first_polls.set(polls)
    poll = object()
    await polls.begin(poll)
    try:
        yield
    finally:
        polls.end(poll)
