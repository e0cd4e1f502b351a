"""Order the messages to process, and move the cursor behind them.

The queue only decides; it calls no handler and saves nothing. It guarantees:

- Messages of the same lane (with the same ordering key) start in the feed's order, one after the other. Messages
  of different lanes may be processed at the same time.
- The cursor never passes a message that is not settled, in whichever order the messages finish (G5).

Each lane that is not busy has its first message in a heap, so the next message in the feed's order is found
without a search. An outdated entry is skipped later.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from push_to_poll_client._types import Cursor, Message


@dataclass(slots=True, eq=False)
class WorkItem:
    """A message of a page. Times are of the event loop's clock."""

    key: str
    message: Message
    cursor: Cursor | None  # may be saved when this message and all before it are settled
    read_at: float  # arrival of its page
    arrived: float  # time when it was added to the queue
    lane: Hashable = None  # messages of the same lane must not overtake each other
    error: Exception | None = None  # why the handler must not get it
    fingerprint: int | None = None  # digest of its content; None if contents are not compared
    settled: bool = False
    number: int = 0  # its place among the messages that were unsettled when added


@dataclass(slots=True, eq=False)
class WorkQueue:
    """Messages of one page, or of several consecutive pages."""

    cursor: Cursor | None = None  # the newest one before which everything is settled
    read_at: float = 0.0  # arrival of the page of this cursor
    left: int = 0  # messages that have not started
    _items: deque[WorkItem] = field(default_factory=deque)
    _lanes: dict[Hashable, deque[WorkItem]] = field(default_factory=dict)
    _heads: list[tuple[int, WorkItem]] = field(default_factory=list)
    _busy: set[Hashable] = field(default_factory=set)
    _added: int = 0

    @property
    def unsettled(self) -> Iterable[WorkItem]:
        return (item for item in self._items if not item.settled)

    @property
    def waiting_since(self) -> float | None:
        """Arrival of the first message that has not started; `None` without one."""
        return self._items[0].arrived if self.left else None

    def add(self, items: Iterable[WorkItem], read_at: float, *, cursor: Cursor | None = None) -> None:
        """Add the messages of a page, in the feed's order. Some may be settled already."""
        for item in items:
            self._items.append(item)
            if not item.settled:
                self._added += 1
                self.left += 1
                item.number = self._added
                waiting = self._lanes.setdefault(item.lane, deque())
                waiting.append(item)
                if len(waiting) == 1:
                    self._offer(item.lane)
        if cursor is not None and self._items:
            self._items[-1].cursor, self._items[-1].read_at = cursor, read_at
        elif cursor is not None:
            self.cursor, self.read_at = cursor, read_at
        self._advance()

    def take(self, limit: int) -> Sequence[WorkItem]:
        """Take up to `limit` messages that need not wait for others, in the feed's order."""
        # Several may be of one lane.
        taken: list[WorkItem] = []
        while self._heads and len(taken) < limit:
            _, item = heappop(self._heads)
            waiting = self._lanes.get(item.lane)
            # A message of a busy lane is offered again when the lane is free.
            if waiting and waiting[0] is item and item.lane not in self._busy:
                taken.append(waiting.popleft())
                if len(taken) < limit:
                    self._offer(item.lane)
        self._busy.update([item.lane for item in taken])
        self.left -= len(taken)
        return taken

    def mark_settled(self, item: WorkItem) -> None:
        """Mark a message as settled. Its lane stays busy, since others may have been taken with it."""
        item.settled = True
        self._advance()

    def free(self, items: Sequence[WorkItem]) -> None:
        """Free the lanes of messages that were taken together."""
        # A lane with an unsettled message stays busy, since the messages after it must wait.
        waiting = {item.lane for item in items if not item.settled}
        for lane in {item.lane for item in items} - waiting:
            self._busy.discard(lane)
            self._offer(lane)

    def _offer(self, lane: Hashable) -> None:
        """Put the first message of a lane into the heap. `take` skips it if it is outdated then."""
        if waiting := self._lanes.get(lane):
            heappush(self._heads, (waiting[0].number, waiting[0]))
        else:
            self._lanes.pop(lane, None)

    def _advance(self) -> None:
        while self._items and self._items[0].settled:
            item = self._items.popleft()
            if item.cursor is not None:
                self.cursor, self.read_at = item.cursor, item.read_at
