"""A feed in memory that fails on command.

A message has a fixed place from its publication, even before it is visible. If it becomes visible after a later
message was read, a reader that continues after the later message skips it. Databases do the same if transactions
commit in another order than they take their ids.

An answer is frozen *before* the simulated latency, like the answer of a server that has read its database.
Messages published during the latency are not in it. A fake that reads after the latency would hide lost wake-ups.
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
"""Result of a fetch: a page, an error to raise, or None for the regular answer."""

_CURSOR = re.compile(r"(?:after|more)-(\d+)\.(\d+)")


class Asked(NamedTuple):
    """One request that the feed received.

    Attributes:
        at: Time of the request, on the clock of `anyio.current_time()`.
        request: The request.
    """

    at: float
    request: FetchRequest


@dataclass(kw_only=True, eq=False, repr=False)
class FakeFeed(Generic[M]):
    """A feed in memory that a test controls. Its arguments are also attributes that may change at any time.

        feed = FakeFeed(page_size=2)
        feed.publish(3)                                # ids "1", "2", "3"
        feed.fail(FeedError("503", retry_after=30))    # the next fetch
        feed.publish("late", lag=5)                    # the push beats the data

    `FakeFeed[Entry]()` is for a `Consumer[Entry]`: publish entries, `feed.publish(Entry("1", type="paid"))`.

    Use it inside one event loop. Before the loop runs, everything without `lag` works too.

    Args:
        page_size: Most messages on a page.
        latency: Seconds between the freezing of an answer and its arrival.
        cursors: Places of the cursors: "message" (each message and each page), "page" (each page), or "chain"
            (only the last page; the others have only `next_page`).
        overlap: Number of messages before the cursor that each page repeats.
        ends_empty: True if each page with messages has a `next_page`, so that only an empty page is the end, as
            in HTTP Feeds.
        max_wait: Seconds for which the feed can hold an answer. None means no long polling.
        answers_early: True if the feed answers a held request at once with an empty page.
        retry_after: Seconds until the next poll that each page requests. None requests nothing.
        read_ahead: True if a page may be fetched while the page before it is processed.
        identity: Identity of the feed, to which a store binds the consumer's name.

    Attributes:
        requests: The requests received, oldest first.
        closed: Number of calls of `aclose()`.
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
            what: A number of messages, whose ids count from 1; or ids, which may repeat; or messages, which are
                returned unchanged, with their own cursors. Without arguments, one message.
            data: Data of each message.
            error: If given, the messages are unreadable and have this error.
            lag: Seconds until the messages become visible, at the place that they have now.

        Returns:
            The ids of the messages.
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
        """Stop publishing: the last page is closed (`Page.closed`), and a held answer is sent at once."""
        self._ended = True
        self._published.ring()

    def after(self, count: int) -> Cursor:
        """Return the cursor after the first `count` messages, visible or not."""
        return f"after-{count}.{self._era}"

    @property
    def newest(self) -> Cursor:
        """Cursor after all messages, visible or not, as a push would hint at."""
        return self.after(len(self._entries))

    def fail(self, error: BaseException, *, times: int | None = 1) -> None:
        """Make the next `times` fetches raise `error`. None means all fetches until `recover()`."""
        if times is None:
            self._failing = error
        else:
            self.answer(*[error] * times)

    def answer(self, *answers: Answer[M] | Callable[[FetchRequest], Answer[M]]) -> None:
        """Decide what the next fetches meet, one after the other.

        Args:
            answers: Each is a page, an error to raise, None for the regular answer, or a function that gets the
                request and returns one of these.
        """
        self._script.extend(answers)

    def recover(self) -> None:
        """Remove all failures and answers that have not happened yet."""
        self._script.clear()
        self._failing = None

    def forget(self) -> None:
        """Make the feed treat all earlier cursors as unknown and read from the beginning."""
        self._era += 1
        self._expired = None

    def expire(self, *, start: int | None = None) -> None:
        """Make all cursors handed out so far raise `CursorExpired`.

        Args:
            start: Number of messages before the start that the error offers. None offers no start.
        """
        self._era += 1
        offer = None if start is None else self.after(start)
        self._expired = CursorExpired("The fake feed was told to expire its cursors.", start=offer)

    async def asked(self, times: int) -> None:
        """Return when `times` fetches have begun, counted from the first."""
        while len(self.requests) < times:
            await self._asked.wait()

    async def latest(self) -> Cursor | None:
        """Return the cursor after all visible messages, or None."""
        visible = list(self._visible(0, len(self._entries)))
        cursor = self.after(visible[-1] + 1) if visible else None
        await anyio.sleep(self.latency)
        return cursor

    async def fetch(self, request: FetchRequest, /) -> Page[M]:
        """Answer the request, or fail as ordered."""
        self.requests.append(Asked(anyio.current_time(), request))
        self._asked.ring()
        try:
            return self._ordered(request) or await self._held(request)
        finally:
            await anyio.sleep(self.latency)

    async def aclose(self) -> None:
        """Count the call. The feed can be used again."""
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
        """Yield the visible places from `start` to before `end`."""
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

    def _place(self, cursor: Cursor | None) -> int:  # the number of messages before the cursor
        if cursor is None:
            return 0
        known = _CURSOR.fullmatch(cursor)
        if known and int(known[2]) == self._era and int(known[1]) <= len(self._entries):
            return int(known[1])
        if self._expired is not None:
            raise self._expired
        return 0
