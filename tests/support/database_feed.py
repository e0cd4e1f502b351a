"""A feed over a table whose transactions commit in another order than their ids.

Every database with sequences behaves like this. A row gets its place when its transaction draws an id, and becomes
visible when that transaction commits. A fetch sees the rows that are visible at one moment between its request and
its response.
"""

from bisect import bisect_right
from dataclasses import dataclass, field

import anyio

from push_to_poll_client import Message, Page
from push_to_poll_client.testing._virtual_time import START


@dataclass(frozen=True)
class Row:
    """Times at which a transaction draws its row id and commits, in seconds of the virtual clock."""

    drawn: float
    committed: float


@dataclass
class DatabaseFeed:
    """A feed of `rows` in the order of their ids, which are their places counted from 1.

    `before` is the time in seconds from the request to the look at the table, `after` from there to the response.
    """

    rows: list[Row]
    page_size: int = 3
    cursors: str = "message"
    ends_empty: bool = False
    max_wait: float | None = None
    before: float = 0.0
    after: float = 0.0
    read_ahead: bool = False
    identity: str = "table"
    asked: list = field(default_factory=list)

    async def fetch(self, request):
        self.asked.append(request)
        start = int(request.cursor or 0)
        await anyio.sleep(self.before)
        with anyio.move_on_after(request.wait):
            while not self._visible(start):  # noqa: ASYNC110  # what it waits for is known
                await anyio.sleep_until(self._next(start))
        page = self._page(start, self._visible(start))
        await anyio.sleep(self.after)
        return page

    async def latest(self):
        seen = self._visible(0)
        return str(seen[-1]) if seen else None

    def _page(self, start, seen):
        some, more = seen[: self.page_size], len(seen) > self.page_size or (self.ends_empty and bool(seen))
        end = str(some[-1] if some else start)
        messages = [Message(str(n), cursor=str(n) if self.cursors == "message" else None) for n in some]
        at_end = None if end == "0" or (self.cursors == "message" and not some) else end
        return Page(messages, cursor=at_end, next_page=end if more else None)

    def _visible(self, start):
        now = anyio.current_time()
        drawn = bisect_right(self.rows, now, key=lambda row: START + row.drawn)
        return [n for n in range(start + 1, drawn + 1) if START + self.rows[n - 1].committed <= now]

    def _next(self, start):
        now = anyio.current_time()
        commits = [START + row.committed for row in self.rows[start:]]
        return min((commit for commit in commits if commit > now), default=float("inf"))


def rows_of(gaps, lengths):
    """Return rows drawn every `gaps` seconds by transactions of these `lengths`."""
    rows, now = [], 0.0
    for gap, length in zip(gaps, lengths, strict=True):
        now += gap
        rows.append(Row(now, now + length))
    return rows
