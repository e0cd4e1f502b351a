"""Check processing and records: G5, G6, G7, G9 and G10."""

from collections import Counter

from push_to_poll_client import Page, Record, Settlement, Status
from tests.simulation.feed import Entry
from tests.simulation.journal import Event
from tests.simulation.oracle import Oracle, Watcher

__all__ = ["Records"]


class Records(Watcher):
    """Watch the handler and the store.

    Attributes:
        recorded: Keys with a record of this dedupe epoch in the store.
        base: Place where the consumer was told to begin; later messages must be settled.
        excused: Messages that need not be found, such as late ones without an overlap.
    """

    def __init__(self, oracle: Oracle) -> None:
        super().__init__(oracle)
        self.recorded: set[str] = set()
        self.dead: set[str] = set()
        self.base = 0
        self.delivered: set[str] = set()
        self.lines: list[str] = []
        self.last_page = Page()
        self.handled: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.may_wait: set[str] = set()
        self.unrecorded: dict[str, tuple[float, float]] = {}
        self.begun: dict[int, float] = {}
        self.forgiven: set[str] = set()
        self.trouble_since_commit = False
        self.refused_at: float | None = None
        self.caller_knows = False
        self.rewinding = 0
        self.expired_seen = False
        self.cursor: str | None = None
        self.crashed: set[int] = set()
        self.cursors_expired = False
        self.late_excused_until = -1.0

    def watch(self, event: Event) -> None:
        """Handle an event. Of a crashed consumer only the effects in the store count."""
        if event.client not in self.crashed or event.kind in {"commit", "reset"}:
            super().watch(event)

    # The message that all others wait for

    def on_consumer(self, event: Event) -> None:
        self.delivered.clear()
        self.lines.clear()
        self.last_page = Page()

    def on_error(self, event: Event) -> None:
        self.delivered.clear()  # the poll fails, and the log names that

    def on_request(self, event: Event) -> None:
        if event.facts.get("starts") == "yes":
            self.delivered.clear()
        page, following = self.last_page, event.facts["cursor"] is not None and event.facts["who"] != "replay"
        if following and page.next_page == event.facts["cursor"] and not self.plan.feed.read_ahead:
            left = [message.id for message in page.messages if message.id not in self.recorded]
            if left:
                self.oracle.broken("G5", "a page is asked for before the one in front of it is recorded", left[0])

    def on_answer(self, event: Event) -> None:
        self.delivered.update(message.id for message in event.facts["page"].messages)
        self.last_page = Page() if event.facts["who"] == "replay" else event.facts["page"]

    def on_log(self, event: Event) -> None:
        self.lines.append(event.facts["line"])

    on_info = on_log

    def check_named(self, status: Status) -> None:
        """Check that the obstacle on the way to the end is named (G9, G13)."""
        is_known = self.caller_knows or "disk full" in (status.last_error or "")
        if self.refused_at is not None and not is_known:
            self.oracle.broken("G13", "a store that refuses is not named in status", status.last_error or "")
        entries = (entry for entry in self.server.entries[self.base :] if entry.id in self.delivered)
        first = next((entry.id for entry in entries if entry.id not in self.recorded), None)
        if first not in self.may_wait or first in self.unrecorded:
            return
        named = {failing.id for failing in status.failing}
        lines = [*self.lines, status.last_error or ""]
        if first not in named and not any(f"'{first}'" in line for line in lines):
            self.oracle.broken(
                "G9", "a message that waits is named neither in status nor in the log", f"message {first}"
            )

    # The handler

    def on_handle(self, event: Event) -> None:
        self.begun[event.facts["call"]] = event.at
        if event.facts["who"] in {"replay", "dead letters"}:
            return
        # A commit in the background may have failed. The next one notices it, at most `commit_interval` later.
        # With concurrency a message may have failed just before, and stay in flight until its retry.
        in_flight = self.plan.consumer.concurrency > 1 and all(self.failed[name] for name in event.facts["ids"])
        noticed = (
            self.refused_at is not None and event.at > self.refused_at + self.plan.consumer.commit_interval + 1e-6
        )
        if noticed and not in_flight:
            self.oracle.broken(
                "G7", "a message is processed while others wait for a store that refuses", str(event.facts["ids"])
            )
        for name in event.facts["ids"]:
            if name in self.recorded and name not in self.dead:
                self.oracle.broken("G6", "a message is processed again that was recorded", f"message {name}")
            if name in self.unrecorded and name not in self.forgiven:
                self.oracle.broken("G6", "a message is processed again in one session", f"message {name}")

    def on_handled(self, event: Event) -> None:
        began = self.begun[event.facts["call"]]
        for name in event.facts["ids"]:
            self.handled[name] += 1
            if event.facts["who"] != "replay":
                self.unrecorded[name] = began, event.at
            self.forgiven.discard(name)

    def on_failed(self, event: Event) -> None:
        self.failed.update(event.facts["ids"])
        if event.facts["who"] != "replay":  # a replay raises the error, and no message waits
            self.may_wait.update(event.facts["ids"])

    # The store

    def on_claimed(self, event: Event) -> None:
        self.cursor = event.facts["cursor"]

    def on_store_fails(self, event: Event) -> None:
        self.delivered.clear()
        self.trouble_since_commit = True
        if event.facts.get("records") and self.refused_at is None:
            self.refused_at = event.at

    def on_commit(self, event: Event) -> None:
        facts = event.facts
        if not facts["_owner"]:
            self.oracle.broken("G10", "a session that is not the owner commits")
        for record in facts["_records"]:
            self._record(record)
        if facts["cursor"] is not None:
            self._save(facts["cursor"], event.at)
        if facts["records"]:
            self.trouble_since_commit, self.refused_at, self.caller_knows = False, None, False

    def _record(self, record: Record) -> None:
        key = record.key
        if record.state is Settlement.PROCESSED and not self.handled[key]:
            self.oracle.broken("G9", "a message is recorded that the handler did not process", f"message {key}")
        if record.state is not Settlement.PROCESSED and not self.failed[key]:
            self.oracle.broken("G9", "a message is given up on that did not fail", f"message {key}")
        if record.state is Settlement.SKIPPED and not any(f"'{key}'" in line for line in self.lines):
            self.oracle.broken("G9", "a message is skipped without a line in the log", f"message {key}")
        self.recorded.add(key)
        (self.dead.add if record.state is Settlement.DEAD_LETTERED else self.dead.discard)(key)
        self.unrecorded.pop(key, None)
        self.forgiven.discard(key)

    def _save(self, cursor: str, now: float) -> None:
        self.cursor = cursor
        place = self.server.places.get(cursor)
        if place is None:
            self.oracle.broken("G5", "a cursor is saved that no page has given", f"cursor {cursor}")
            return
        late = self.plan.feed.late > 0
        for entry in self.server.entries[self.base : place]:
            if entry.id and entry.id not in self.recorded and (not late or entry.visible <= entry.published):
                self.oracle.broken(
                    "G5", "a cursor is saved past a message that is not recorded",
                    f"message {entry.id} at place {entry.place}, cursor {cursor}",
                )  # fmt: skip
                return

    def on_call(self, event: Event) -> None:
        if event.facts["what"] == "rewind":
            self.rewinding += 1

    def on_returns(self, event: Event) -> None:
        if event.facts["what"] == "rewind":
            self.rewinding -= 1
        if event.facts["what"] == "replay" and "disk full" in (event.facts.get("error") or ""):
            self.caller_knows = True  # nothing waits for the store until the next poll, which commits first

    def on_expired(self, event: Event) -> None:
        self.expired_seen = True
        if self.cursors_expired:  # an overlap may begin later than it should
            self.late_excused_until = event.at

    def on_clock_jumps(self, event: Event) -> None:
        if event.facts["by"] > 0:
            self.late_excused_until = event.at

    def on_cursors_expire(self, event: Event) -> None:
        self.cursors_expired = True

    def on_reset(self, event: Event) -> None:
        facts = event.facts
        cursor, before = facts["cursor"], facts["before"]
        starts_latest = self.plan.consumer.start == "latest" and before is None and not self.recorded
        if not self.rewinding and not starts_latest:
            if not self.expired_seen:
                self.oracle.broken("G6", "the place is given up though no cursor has expired")
            elif self.server.knows(before):
                self.oracle.broken(
                    "G13", "the place is given up though the server knows the saved cursor", f"cursor {before}"
                )
        self.expired_seen = False
        self.last_page = Page()
        self.delivered.clear()
        self.base = 0 if cursor is None else self.server.places.get(cursor, 0)
        self.cursor = cursor
        if facts["forget"]:
            self.recorded.clear()
            self.dead.clear()
            self.handled.clear()
            self.forgiven.update(self.unrecorded)

    # Ends

    def end_of_session(self, *, graceful: bool, kept: bool = False) -> None:
        """Check the end of a session.

        Args:
            graceful: True if it had the time to record everything.
            kept: True if its consumer object is used again. Then unsaved messages are not processed again.
        """
        left = {name: times for name, times in self.unrecorded.items() if name not in self.forgiven}
        if left and not self.trouble_since_commit:
            if graceful:
                self.oracle.broken("G7", "processed messages are not recorded after a stop", ",".join(left))
            consumer, store = self.plan.consumer, self.plan.store
            spans = [ended - began for began, ended in set(left.values())]  # a batch took its time once
            at_once = consumer.concurrency * (consumer.batch_size if consumer.batches else 1)
            stalls = (store.slow_time + store.hanging_time) * 2 * consumer.concurrency
            if sum(spans) > consumer.commit_interval * consumer.concurrency + max(spans) * (at_once + 1) + stalls:
                self.oracle.broken(
                    "G7", "too much is to be done again after a crash", f"{sum(spans):.3f} s of work"
                )
        if not kept:
            self.begin_anew()

    def begin_anew(self) -> None:
        """Allow a new consumer object to repeat work that the last one could not record."""
        self.forgiven.update(self.unrecorded)
        self.refused_at, self.caller_knows = None, False

    def check_at_rest(self, status: Status) -> None:
        """Check the status of a consumer when everything is settled."""
        if status.failing:
            self.oracle.broken(
                "G11", "status() names failing messages though all are settled", str(status.failing)
            )

    # Unsettled messages

    def unsettled(self, now: float) -> list[str]:
        """Return the visible messages without a record that must be found."""
        return [
            entry.id
            for entry in self.server.entries[self.base :]
            if entry.id and entry.visible <= now and entry.id not in self.recorded and not self._excused(entry)
        ]

    def _excused(self, entry: Entry) -> bool:
        """Return True for a late message that no overlap covers."""
        if entry.visible <= entry.published:
            return False
        return self.plan.consumer.overlap < self.plan.feed.late or entry.published <= self.late_excused_until
