"""Simulated server of one life, and the feed that reads from it.

An answer is fixed before the simulated latency, as a server reads its database before the answer travels. A
message gets its place when it is published, and becomes visible at its own time.
"""

import math
import re
from contextvars import ContextVar
from dataclasses import dataclass
from random import Random

import anyio

from push_to_poll_client import (
    CursorExpired,
    FeedError,
    FeedRefused,
    FetchRequest,
    Message,
    Page,
    PagesChanged,
)
from push_to_poll_client.testing._virtual_time import Bell
from tests.simulation.journal import Journal
from tests.simulation.plan import FeedPlan, share

__all__ = ["CALLER", "Entry", "Server", "SimulatedFeed"]

CALLER: ContextVar[str] = ContextVar("caller", default="run")
"""Caller of a request: "run", "poll_now", "replay" and so on. A request runs in the task of its caller."""

_CURSOR = re.compile(r"([ct])(\d+)\.(\d+)(?:\.\d+)?")


@dataclass(slots=True)
class Entry:
    """An entry of the feed.

    Attributes:
        place: Its place, from 0 on.
        id: Id of its message; empty if the server filters it out.
        published: Time at which it got its place.
        visible: Time from which it can be read.
    """

    place: int
    id: str
    published: float
    visible: float


class Server:
    """The simulated server.

    Args:
        plan: Its behaviour.
        seed: Decides which requests meet faults.
        journal: Records requests and answers.

    Attributes:
        entries: The entries, in their order.
        places: Place behind each cursor that a page or `latest()` has returned.
        troubled: True while the plan has faults.
    """

    def __init__(self, plan: FeedPlan, seed: int, journal: Journal) -> None:
        self.plan = plan
        self.entries: list[Entry] = []
        self.places: dict[str, int] = {}
        self.troubled = True
        self.requests = 0
        self.began = journal.clock()
        self._seed = seed
        self._journal = journal
        self._bell = Bell()
        self._chance = Random(f"server {seed}")  # noqa: S311  # not for secrets
        self._ids = 0
        self._era = self._oldest_era = self._token_era = self._oldest = 0
        self._expiries = list(plan.expires)
        self._token_expiries = list(plan.tokens_expire)

    # Entries

    def publish(self, count: int, *, lag: float = 0.0) -> list[Entry]:
        """Append messages that become visible `lag` seconds later."""
        now, first = self._journal.clock(), len(self.entries)
        for _ in range(count):
            while self._chance.random() < self.plan.filtered:
                self._append("", now, now)
                if len(self.entries) > first + 60:
                    break
            repeated = self._chance.random() < self.plan.repeats and self._ids
            if not repeated:
                self._ids += 1
            name = str(self._chance.randint(1, self._ids)) if repeated else str(self._ids)
            self._append(name, now, now + lag)
        new = [entry for entry in self.entries[first:] if entry.id]
        self._journal.add("publish", ids=tuple(entry.id for entry in new), lag=lag or None)
        self._bell.ring()
        return new

    def _append(self, name: str, published: float, visible: float) -> None:
        self.entries.append(Entry(len(self.entries), name, published, visible))

    @property
    def newest(self) -> str:
        """Cursor behind all entries."""
        return self._cursor(len(self.entries)) or "c0.0"

    def calm_down(self) -> None:
        """End all faults."""
        self.troubled = False

    # Requests

    def knows(self, cursor: str | None) -> bool:
        """Return True if the server can read from this cursor now."""
        if cursor is None:
            return True
        self._pass_time()
        found = _CURSOR.fullmatch(cursor)
        if not found:
            return False
        kind, place, era = found[1], int(found[2]), int(found[3])
        if kind == "t":
            return era == self._token_era
        return era == self._era or (era >= self._oldest_era and place >= self._oldest)

    async def fetch(self, request: FetchRequest, client: "SimulatedFeed") -> Page:
        """Answer a request, or fail."""
        self.requests += 1
        number = self.requests
        journal = self._journal
        who = CALLER.get()
        journal.add("request", client.number, n=number, cursor=request.cursor, wait=request.wait or None, who=who)
        answered = False
        try:
            answer = await self._answer(request, number)
            frozen = journal.clock()
            slow = self.troubled and share(self._seed, number, "slow") < self.plan.slow
            await anyio.sleep(self.plan.slow_latency if slow else self.plan.latency)
            answered = True
        finally:
            if not answered:
                journal.add("cut", client.number, n=number, wait=request.wait or None)
        if isinstance(answer, Page):
            journal.add(
                "answer", client.number, n=number, page=answer, frozen=frozen, wait=request.wait or None, who=who
            )
            return answer
        journal.add(
            "error", client.number, n=number, error=answer, asks=getattr(answer, "retry_after", None), who=who
        )
        raise answer

    async def latest(self, client: "SimulatedFeed") -> str | None:
        """Return the cursor behind all visible entries."""
        self._journal.add("asks latest", client.number, who=CALLER.get())
        now = self._journal.clock()
        end = next((entry.place + 1 for entry in reversed(self.entries) if entry.visible <= now), 0)
        cursor = self._cursor(end)
        await anyio.sleep(self.plan.latency)
        self._journal.add("tells latest", client.number, cursor=cursor)
        return cursor

    async def _answer(self, request: FetchRequest, number: int) -> Page | Exception:
        error = self._trouble(request, number)
        if error is not None:
            return error
        if not self.knows(request.cursor):
            self._journal.add("expired", cursor=request.cursor)
            found = _CURSOR.fullmatch(request.cursor or "")
            place = int(found[2]) if found else 0
            offered = any(offer for at, _, offer in self.plan.expires)
            start = self._cursor(place) if offered else None
            expired = CursorExpired("the server no longer knows it", start=start)
            expired.retry_after = self.plan.expired_asks
            return expired
        ends = self._journal.clock() + min(request.wait, self.plan.max_wait or 0.0)
        if self.plan.holding != "hold":
            ends = 0.0
        while True:
            page = self._page(request, number)
            now = self._journal.clock()
            if page.messages or now >= ends:
                return page
            soon = min((entry.visible for entry in self.entries if entry.visible > now), default=math.inf)
            with anyio.CancelScope(deadline=min(ends, soon)):
                await self._bell.wait()

    def _trouble(self, request: FetchRequest, number: int) -> Exception | None:
        plan, now = self.plan, self._journal.clock() - self.began

        def happens(what: str, often: float) -> bool:
            return often > 0 and share(self._seed, number, what) < often

        down = self.troubled and any(begin <= now < end for begin, end in plan.outages)
        if down or happens("fails", max(plan.failing if self.troubled else 0.0, plan.weather)):
            asks = plan.failing_asks if self.troubled and happens("asks", 0.5) else None
            if self.troubled and happens("refuses", plan.refused):
                return FeedRefused("401", retry_after=asks)
            return OSError("connection reset") if happens("breaks", 0.2) else FeedError("503", retry_after=asks)
        if request.wait and plan.holding == "refuse" and self.troubled:
            return FeedError("400: no long polling")
        token = request.cursor is not None and request.cursor.startswith("t")
        if token and self.troubled and happens("restarts", plan.restarts):
            return PagesChanged("the pages have changed")
        return None

    def _page(self, request: FetchRequest, number: int) -> Page:
        plan, now = self.plan, self._journal.clock()
        start = 0 if request.cursor is None else int(_CURSOR.fullmatch(request.cursor)[2])  # type: ignore[index]
        taken: list[Entry] = []
        more = False
        for entry in self.entries[start:]:
            if entry.visible > now:
                continue
            if len(taken) == plan.page_size:
                more = True
                break
            taken.append(entry)
        messages = [entry for entry in taken if entry.id]
        more = more or (plan.ends_empty and bool(messages))
        end = taken[-1].place + 1 if taken else start
        own = plan.cursors == "message"
        cursor = None if more and plan.cursors == "chain" else self._cursor(end)
        following = None
        if more:
            following = f"t{end}.{self._token_era}.{number}" if plan.tokens else self._cursor(end)
        asks = plan.poll_interval if self.troubled else None
        return Page(
            [Message(entry.id, cursor=self._cursor(entry.place + 1) if own else None) for entry in messages],
            cursor=cursor,
            next_page=following,
            retry_after=asks,
        )

    def _cursor(self, place: int) -> str | None:
        if not place:
            return None
        cursor = f"c{place}.{self._era}"
        self.places[cursor] = place
        return cursor

    def _pass_time(self) -> None:
        now = self._journal.clock() - self.began
        while self.troubled and self._expiries and self._expiries[0][0] <= now:
            _, which, _ = self._expiries.pop(0)
            self._era += 1
            if which == "all":
                self._oldest_era = self._era
            else:
                self._oldest = len(self.entries) // 2
            self._journal.add("cursors expire", which=which)
        while self.troubled and self._token_expiries and self._token_expiries[0] <= now:
            self._token_expiries.pop(0)
            self._token_era += 1
            self._journal.add("tokens expire")


class SimulatedFeed:
    """The feed of one consumer object."""

    identity = "simulated"

    def __init__(self, server: Server, number: int) -> None:
        self.server = server
        self.number = number
        self.max_wait = server.plan.max_wait
        self.read_ahead = server.plan.read_ahead

    async def fetch(self, request: FetchRequest) -> Page:
        """Fetch from the server."""
        return await self.server.fetch(request, self)

    async def latest(self) -> str | None:
        """Fetch the cursor of the end from the server."""
        return await self.server.latest(self)
