"""A feed in memory that fails on command.

A message keeps the place at which it was published, also while it is not visible yet. If it becomes visible after
a later message was read, a reader that goes on from that later message skips it, as in a database whose
transactions commit in another order than they take their ids.

An answer is frozen *before* the simulated latency. A server reads its database, and then the answer travels;
messages published meanwhile are not in it. A fake that reads after the latency would hide every lost wake-up.
"""

import math
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, Literal, NamedTuple, TypeAlias

import anyio

from push_to_poll_client._exceptions import CursorExpired, DecodeError
from push_to_poll_client._types import Cursor, FetchRequest, M, Message, Page, UnreadableMessage
from push_to_poll_client._validation import check_identity
from push_to_poll_client.testing._virtual_time import Bell


@dataclass(slots=True)
class _PublishedMessage:
    what: str | Message
    data: Any
    error: DecodeError | None
    visible_at: float

    def message(self, cursor: Cursor | None = None) -> Message:
        """Make the message, with this cursor unless it was published with its own."""
        if isinstance(self.what, Message):
            return self.what
        if self.error is not None:
            return UnreadableMessage(self.what, self.error, cursor=cursor)
        return Message(self.what, self.data, cursor=cursor)


Answer: TypeAlias = Page[M] | BaseException | None
"""What a fetch meets: a page, an error that it raises, or `None`, what it would have met anyway."""

_CURSOR = re.compile(r"(?:after|more)-(\d+)\.(\d+)")


class Asked(NamedTuple):
    """One request that the feed received.

    Attributes:
        at: When, on the clock of `anyio.current_time()`.
        request: What was asked.
    """

    at: float
    request: FetchRequest


@dataclass(kw_only=True, eq=False, repr=False)
class FakeFeed(Generic[M]):
    """A feed to script. All keyword arguments are attributes too, and may be changed at any time.

        feed = FakeFeed(page_size=2)
        feed.publish(3)                                # ids "1", "2", "3"
        feed.fail(FeedError("503", retry_after=30))    # the next fetch
        feed.publish("late", lag=5)                    # the push beats the data

    `FakeFeed[Entry]()` is for a `Consumer[Entry]`: publish entries, `feed.publish(Entry("1", type="paid"))`.

    To be used from inside one event loop; before it runs, everything without `lag` works too.

    Args:
        page_size: Messages on a page, at most.
        latency: Seconds between the freezing of an answer and its arrival.
        cursors: Where the cursors are: on each "message" and on the page, on each "page", or only at the end of
            the "chain", whose other pages have `next` alone.
        overlap: How many messages before the cursor each page repeats.
        ends_empty: Whether a page with messages always has a `next`, so that only an empty page is the end, as in
            HTTP Feeds.
        max_wait: Seconds for which the feed can hold an answer; `None`: no long polling.
        answers_early: Whether a held answer comes back at once and empty all the same.
        retry_after: Seconds that each page asks to be left alone; `None`: it does not.
        read_ahead: A page may be fetched while the one before it is processed.
        identity: What the store calls the feed, to which it binds the consumer's name.

    Attributes:
        requests: What was asked and when, oldest first.
        closed: How often `aclose()` was called.
    """

    page_size: int = 100
    latency: float = 0.0
    cursors: Literal["message", "page", "chain"] = "message"
    overlap: int = 0
    ends_empty: bool = False
    max_wait: float | None = None
    answers_early: bool = False
    retry_after: float | None = None
    read_ahead: bool = False
    identity: str = "fake-feed"
    requests: list[Asked] = field(default_factory=list, init=False)
    closed: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        check_identity(self.identity)
        self._entries: list[_PublishedMessage] = []
        self._script: deque[Answer[M] | Callable[[FetchRequest], Answer[M]]] = deque()
        self._failing: BaseException | None = None
        self._era = 0
        self._expired: CursorExpired | None = None
        self._ended = False
        self._published = Bell()
        self._asked = Bell()

    def publish(
        self,
        *what: int | str | M,
        data: Any = None,
        error: DecodeError | None = None,
        lag: float = 0.0,
    ) -> list[str]:
        """Append messages.

        Args:
            what: A number of messages, whose ids are their places counted from 1; or ids, which may repeat; or
                messages, which are handed out as they are, with the cursor they have. Nothing: one message.
            data: What each carries.
            error: Makes them unreadable messages.
            lag: Seconds until they become visible, at the place they have now.

        Returns:
            Their ids.
        """
        visible_at = anyio.current_time() + lag if lag else -math.inf
        first = len(self._entries)
        for one in what or (1,):
            for _ in range(one if isinstance(one, int) else 1):
                named = str(len(self._entries) + 1) if isinstance(one, int) else one
                self._entries.append(_PublishedMessage(named, data, error, visible_at))
        self._published.ring()
        return [entry.message().id for entry in self._entries[first:]]

    def end(self) -> None:
        """Nothing is published any more: the last page is closed (`Page.closed`). A held answer comes at once."""
        self._ended = True
        self._published.ring()

    def after(self, count: int) -> Cursor:
        """The cursor behind the first `count` messages, visible or not."""
        return f"after-{count}.{self._era}"

    @property
    def newest(self) -> Cursor:
        """The cursor behind all messages, visible or not: what a push would hint at."""
        return self.after(len(self._entries))

    def fail(self, error: BaseException, *, times: int | None = 1) -> None:
        """Let the next `times` fetches raise `error`; `None`: all of them until `recover()`."""
        if times is None:
            self._failing = error
        else:
            self.answer(*[error] * times)

    def answer(self, *answers: Answer[M] | Callable[[FetchRequest], Answer[M]]) -> None:
        """Decide what the next fetches meet, one after the other.

        Args:
            answers: Each a page, an error to raise, `None` for what it would have met anyway, or a callable that
                is given the request and returns one of these.
        """
        self._script.extend(answers)

    def recover(self) -> None:
        """Take back all failures and answers that were ordered and did not happen yet."""
        self._script.clear()
        self._failing = None

    def forget(self) -> None:
        """Make all cursors handed out so far unknown: they read from the beginning, without a word."""
        self._era += 1
        self._expired = None

    def expire(self, *, start: int | None = None) -> None:
        """Make all cursors handed out so far raise `CursorExpired`.

        Args:
            start: How many messages lie before the start that the error offers; `None`: it offers none.
        """
        self._era += 1
        offer = None if start is None else self.after(start)
        self._expired = CursorExpired("The fake feed was told to expire its cursors.", start=offer)

    async def asked(self, times: int) -> None:
        """Return when `times` fetches have begun, counted from the first."""
        while len(self.requests) < times:
            await self._asked.wait()

    async def latest(self) -> Cursor | None:
        """The cursor behind all that is visible; `None`: nothing is."""
        visible = list(self._visible(0, len(self._entries)))
        cursor = self.after(visible[-1] + 1) if visible else None
        await anyio.sleep(self.latency)
        return cursor

    async def fetch(self, request: FetchRequest, /) -> Page[M]:
        """Answer, or misbehave as ordered."""
        self.requests.append(Asked(anyio.current_time(), request))
        self._asked.ring()
        try:
            return self._ordered(request) or await self._held(request)
        finally:
            await anyio.sleep(self.latency)

    async def aclose(self) -> None:
        """Count it; the feed can be used again."""
        self.closed += 1

    def _ordered(self, request: FetchRequest) -> Page[M] | None:
        step = self._script.popleft() if self._script else self._failing
        answer = step(request) if callable(step) else step
        if isinstance(answer, BaseException):
            raise answer.with_traceback(None)  # else the traceback grows with each raise
        return answer

    async def _held(self, request: FetchRequest) -> Page[M]:
        wait = 0.0 if self.answers_early else min(request.wait, self.max_wait or 0.0)
        ends = anyio.current_time() + wait
        while True:
            page = self._page(request)
            if page.messages or page.closed or anyio.current_time() >= ends:
                return page
            now = anyio.current_time()
            later = min((entry.visible_at for entry in self._entries if entry.visible_at > now), default=math.inf)
            with anyio.CancelScope(deadline=min(ends, later)):
                await self._published.wait()

    def _visible(self, start: int, end: int) -> Iterator[int]:
        """Yield the places from `start` to before `end` that a fetch sees now."""
        now = anyio.current_time()
        return (place for place in range(start, end) if self._entries[place].visible_at <= now)

    def _page(self, request: FetchRequest) -> Page[M]:
        start = self._place(request.cursor)
        everything = len(self._entries)
        seen = list(islice(self._visible(start, everything), self.page_size + 1))
        new = seen[: self.page_size]
        more = len(seen) > len(new) or (self.ends_empty and bool(new))
        end = new[-1] + 1 if new else start
        places = (*self._visible(max(start - self.overlap, 0), start), *new)
        has_cursor = end > 0 and not (more and self.cursors == "chain")
        next_cursor = None
        if more:
            next_cursor = f"more-{end}.{self._era}" if self.cursors == "chain" else self.after(end)
        return Page(
            [self._message(place) for place in places],
            cursor=self.after(end) if has_cursor else None,
            next_page=next_cursor,
            retry_after=self.retry_after,
            closed=self._ended and not more and len([*self._visible(0, everything)]) == everything,
        )

    def _message(self, place: int) -> Any:  # an `M`, or a plain message that the feed made itself
        return self._entries[place].message(self.after(place + 1) if self.cursors == "message" else None)

    def _place(self, cursor: Cursor | None) -> int:
        """Count the messages before `cursor`."""
        if cursor is None:
            return 0
        known = _CURSOR.fullmatch(cursor)
        if known and int(known[2]) == self._era and int(known[1]) <= len(self._entries):
            return int(known[1])
        if self._expired is not None:
            raise self._expired
        return 0
