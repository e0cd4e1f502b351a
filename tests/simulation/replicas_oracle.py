"""Oracle of the lives of replicas: it knows the feed, the rows of the store, and the handler's calls."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from push_to_poll_client import Mode
from tests.simulation.feed import Server
from tests.simulation.journal import Event, Journal
from tests.simulation.oracle import Violation
from tests.simulation.replicas_plan import ReplicasPlan
from tests.support.shared_memory import LeasedMemorySession, LeasedMemoryStore, SharedMemory

__all__ = ["ReplicasOracle"]

NAME = "life"

UNOWNED = 12.0
"""Most seconds without an owner, beside a healthy replica. Backoffs after a failure of the store take 5."""

PUSHED = 3.0
"""Seconds within which a push leads to a poll, if nothing else happens."""


@dataclass(eq=False)
class Call:
    """A call of the handler. `token` is that of the session that made it."""

    id: str
    token: int
    began: float
    completed_at: float = math.inf


class ReplicasOracle:
    """Find violations of the guarantees. Only the first one counts."""

    def __init__(
        self,
        plan: ReplicasPlan,
        server: Server,
        shared: SharedMemory,
        journal: Journal,
        replicas: Sequence[Any],
    ) -> None:
        self.violation: Violation | None = None
        self._plan = plan
        self._server = server
        self._shared = shared
        self._journal = journal
        self._replicas = replicas
        self._calls: dict[str, list[Call]] = defaultdict(list)
        self._running: set[Call] = set()
        self._clean = dict[int, bool]()  # tokens whose session ended by a release, with all its work recorded
        self._newest_token = 0
        self._place = 0
        self._last_fault = self._last_request = self._last_work = -math.inf
        self._pushes: list[float] = []
        shared.watch = self._row
        journal.watchers.append(self._watch)

    def broken(self, guarantee: str, sentence: str, detail: str = "") -> None:
        """Report a violation."""
        if self.violation is None:
            self.violation = Violation(guarantee, sentence, detail)
            self._journal.add("BROKEN", what=str(self.violation))

    def fault(self) -> None:
        """Note that a fault begins or ends."""
        self._last_fault = self._journal.clock()

    def lost(self, store: LeasedMemoryStore) -> None:
        """Note that a process was killed."""
        for session in store.sessions:
            self._clean[session.fencing_token] = False

    # The rows of the store

    def _row(self, kind: str, session: LeasedMemorySession, **facts: Any) -> None:
        token, at = session.fencing_token, session.store.instance
        self._journal.add(kind, int(at.split()[-1]), token=token, **facts)
        if kind == "claimed":
            if token <= self._newest_token:
                self.broken("G10", "the token of a claim is not larger than the one before", str(token))
            self._newest_token = token
        elif kind == "released":
            self._clean.setdefault(token, not session.doubted)
        elif kind == "commit":
            if token != self._newest_token:
                self.broken("G10", "a former owner has committed", f"token {token}, newest {self._newest_token}")
            if facts["cursor"] is not None:
                self._check_cursor(facts["cursor"])

    def _check_cursor(self, cursor: str) -> None:
        place = self._server.places[cursor]
        if place < self._place:
            self.broken("G5", "the cursor moves back", f"from {self._place} to {place}")
        self._place = max(self._place, place)
        records = self._shared.progress[NAME].records
        missing = [entry.id for entry in self._server.entries[:place] if entry.id and entry.id not in records]
        if missing:
            self.broken(
                "G5", "the cursor is saved before a message that has no record", f"{cursor}: {missing[:3]}"
            )

    # The handler

    def begins(self, replica: Any, name: str) -> Call:
        """Judge the start of a call of the handler."""
        owner = self._shared.owner_of(NAME)
        token = max((session.fencing_token for session in replica.store.sessions), default=0)
        self._journal.add("handle", replica.number, id=name, token=token)
        self._last_work = self._journal.clock()
        if owner is None or owner.store is not replica.store or owner.lost:
            self.broken("G10", "a handler starts although its session is lost", f"message {name}")
        if name in self._shared.progress[NAME].records:
            self.broken("G6", "a message with a record is processed again", f"message {name}")
        for call in [] if self._plan.transactional else self._calls[name]:  # failed transactions are rolled back
            if call.completed_at < math.inf and self._clean.get(call.token, call.token == token):
                self.broken("G7", "a message is processed twice although nothing was lost", f"message {name}")
        call = Call(name, token, self._journal.clock())
        self._calls[name].append(call)
        self._running.add(call)
        return call

    def ends(self, call: Call) -> None:
        """Note the end of a call."""
        self._running.discard(call)
        self._last_work = self._journal.clock()
        self._journal.add("done" if call.completed_at < math.inf else "interrupted", id=call.id, token=call.token)

    # Wakes and owners

    def pushed(self, replica: Any) -> None:
        """Note a push that reached a replica: a poll must follow."""
        if replica.is_healthy and not self._shared.lose_wakes:
            self._pushes.append(self._journal.clock())

    def _watch(self, event: Event) -> None:
        if event.kind == "request":
            self._last_request = event.at

    async def look_at_ownership(self) -> None:
        """Check twice a second that pushes are followed by polls, and that the name is not without an owner."""
        unowned_since, healthy_since = math.inf, math.inf
        while True:
            await anyio.sleep(0.5)
            now = self._journal.clock()
            unowned_since = now if self._shared.owner_of(NAME) is not None else min(unowned_since, now)
            healthy_since = min(healthy_since, now) if any(one.is_healthy for one in self._replicas) else math.inf
            quiet = now - max(self._last_fault, self._last_work)
            if now - max(unowned_since, self._last_fault) > UNOWNED and now - healthy_since > UNOWNED:
                self.broken("G10", "a healthy replica does not take over")
            self._check_pushes(now, quiet)

    def _check_pushes(self, now: float, quiet: float) -> None:
        for at in [at for at in self._pushes if now - at >= PUSHED + 4 * self._plan.feed.latency]:
            self._pushes.remove(at)
            owner = self._shared.owner_of(NAME)
            calm = quiet > now - at + 15.0 and not self._running and not self._plan.feed.failing
            well = owner is not None and all(one.is_healthy for one in self._replicas)
            if calm and well and self._last_request < at:
                self.broken("G1", "a push that reached a replica is not followed by a poll", f"at {at:.3f}")

    # The end

    def settled(self) -> bool:
        """Return True if each message has a record and the cursor is behind all of them."""
        progress = self._shared.progress.get(NAME)
        if progress is None:
            return not self._server.entries
        saved = progress.cursor_state.saved.cursor
        place = 0 if saved is None else self._server.places[saved]
        return place == len(self._server.entries)

    def check_at_rest(self) -> None:
        """Check that one replica owns the name, and that the others stand by and know the owner."""
        shown = [one.consumer.status() for one in self._replicas if one.consumer is not None]
        owners = [status for status in shown if status.is_owner]
        if len(shown) < len(self._replicas) or len(owners) != 1:
            self.broken("G10", "not exactly one replica owns the name at rest", str([s.mode for s in shown]))
        for status in shown:
            if not status.is_owner and (status.mode is not Mode.STANDBY or status.owner is None):
                self.broken("G10", "a replica does not say that it stands by", f"{status.mode} {status.owner}")

    def check_end(self) -> None:
        """Check the records, and the effects of a transactional store."""
        records = self._shared.progress[NAME].records if NAME in self._shared.progress else {}
        ids = {entry.id for entry in self._server.entries if entry.id}
        if records.keys() != ids:
            self.broken("G5", "the records are not those of the messages", str(sorted(records.keys() ^ ids)[:3]))
        if self._plan.transactional and sorted(self._shared.effects) != sorted(ids):
            self.broken("G8", "the effects are not those of the messages, each once")
