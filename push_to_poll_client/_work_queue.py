"""What is left to do of a page, in which order, and up to where everything is settled.

Decides, and does nothing. Messages with the same key come one after the other in the feed's order, those with
different keys in any; the cursor stands before the first that is not settled, whoever finishes first (G5).
"""

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from push_to_poll_client._types import Cursor, Message

__all__ = [
    "WorkItem",
    "WorkQueue",
]


@dataclass(slots=True, eq=False)
class WorkItem:
    """A message of a page.

    Attributes:
        key: Its dedupe key.
        message: The message.
        cursor: Safe to save when it and all before it are settled; `None`: there is none.
        lane: What it shares with the messages that it must not overtake.
        error: Why it is not to come to the handler.
        read_at: When its page arrived, on the event loop's clock.
        arrived: When it came to hand, likewise.
        fingerprint: Stands for its content; `None`: that is not looked at.
        settled: It is.
        number: Its place among what is not settled when it comes.
    """

    key: str
    message: Message
    cursor: Cursor | None
    read_at: float
    arrived: float
    lane: Hashable = None
    error: Exception | None = None
    fingerprint: int | None = None
    settled: bool = False
    number: int = 0


class WorkQueue:
    """The messages in hand, of one page or of several that follow each other.

    Attributes:
        cursor: Safe to save: all before it is settled. `None`: nothing new is.
        read_at: When the page arrived that it is of, on the event loop's clock.
        left: How many are not begun.
    """

    def __init__(self) -> None:
        self.cursor: Cursor | None = None
        self.read_at = 0.0
        self.left = 0
        self._items: deque[WorkItem] = deque()
        self._lanes: dict[Hashable, deque[WorkItem]] = {}
        self._heads: list[tuple[int, WorkItem]] = []
        self._busy: set[Hashable] = set()
        self._added = 0

    @property
    def unsettled(self) -> Iterable[WorkItem]:
        """What is in hand and not settled, in the feed's order."""
        return (item for item in self._items if not item.settled)

    @property
    def waiting_since(self) -> float | None:
        """When the first arrived that is not begun, while nothing is under way; `None`: there is none."""
        return self._items[0].arrived if self.left else None

    def add(self, items: Iterable[WorkItem], read_at: float, *, cursor: Cursor | None = None) -> None:
        """The messages of a page, in the feed's order; some may be settled already.

        Args:
            items: The messages.
            read_at: When its page arrived, on the event loop's clock.
            cursor: Safe to save when all of them are settled; `None` leaves it to theirs.
        """
        for item in items:
            self._items.append(item)
            if not item.settled:
                self._enqueue(item)
        if cursor is not None:
            self._end_page(cursor, read_at)
        self._advance()

    def take(self, most: int) -> Sequence[WorkItem]:
        """Begin the next, in the feed's order, none of which must wait for what is under way.

        Args:
            most: How many, at most. Of one lane there may be several, in their order.
        """
        taken: list[WorkItem] = []
        while self._heads and len(taken) < most:
            _, item = heappop(self._heads)
            waiting = self._lanes.get(item.lane)
            if waiting and waiting[0] is item and item.lane not in self._busy:  # else it is offered again
                taken.append(waiting.popleft())
                if len(taken) < most:
                    self._offer(item.lane)
        self._busy.update([item.lane for item in taken])
        self.left -= len(taken)
        return taken

    def mark_settled(self, item: WorkItem) -> None:
        """It is settled. Its lane is still not free: it may have been taken with others."""
        item.settled = True
        self._advance()

    def free(self, items: Sequence[WorkItem]) -> None:
        """What was taken together is no longer under way. The next in their lanes may be begun.

        Where one is not settled, it and what comes after it have to wait.
        """
        waiting = {item.lane for item in items if not item.settled}
        for lane in {item.lane for item in items} - waiting:
            self._busy.discard(lane)
            self._offer(lane)

    def _enqueue(self, item: WorkItem) -> None:
        self._added += 1
        self.left += 1
        item.number = self._added
        waiting = self._lanes.setdefault(item.lane, deque())
        waiting.append(item)
        if len(waiting) == 1:
            self._offer(item.lane)

    def _offer(self, lane: Hashable) -> None:
        """The first in the lane is the next in it. An entry that has become wrong is passed over when it comes."""
        if waiting := self._lanes.get(lane):
            heappush(self._heads, (waiting[0].number, waiting[0]))
        else:
            self._lanes.pop(lane, None)

    def _end_page(self, cursor: Cursor, read_at: float) -> None:
        if self._items:
            self._items[-1].cursor, self._items[-1].read_at = cursor, read_at
        else:
            self.cursor, self.read_at = cursor, read_at

    def _advance(self) -> None:
        while self._items and self._items[0].settled:
            item = self._items.popleft()
            if item.cursor is not None:
                self.cursor, self.read_at = item.cursor, item.read_at
