"""The oracle: find violations of the guarantees in a life.

It knows the feed's contents, the server's requests, the arguments of the store, the handler's calls, and the calls
of the callers. It does not look into the consumer.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.simulation.feed import Server
from tests.simulation.journal import Event, Journal
from tests.simulation.plan import Plan

__all__ = ["POLLING_CALLS", "Oracle", "Violation", "Watcher"]

POLLING_CALLS = {"poll_now", "catch_up"}
"""Calls that wait for polls, or run them."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A violated guarantee.

    Attributes:
        guarantee: Its name, such as "G1".
        sentence: The problem, in the same words for each life.
        detail: Values seen in this life.
    """

    guarantee: str
    sentence: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.guarantee}: {self.sentence}" + (f" ({self.detail})" if self.detail else "")


class Oracle:
    """Collect violations in a life; only the first one counts.

    Attributes:
        violation: The first violation; `None` if there is none.
        after: An earlier event that explains much, for the sentence.
        idle: Called when the consumer has been idle for a while.
    """

    def __init__(self, plan: Plan, server: Server, journal: Journal) -> None:
        self.plan = plan
        self.server = server
        self.journal = journal
        self.violation: Violation | None = None
        self.after = ""
        self.idle: Callable[[], None] = lambda: None

    def broken(self, guarantee: str, sentence: str, detail: str = "") -> None:
        """Report a violation."""
        if self.violation is None:
            self.violation = Violation(guarantee, sentence + self.after, detail)
            self.journal.add("BROKEN", what=str(self.violation))


class Watcher:
    """Watch events; each kind has its own method."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.plan = oracle.plan
        self.server = oracle.server
        oracle.journal.watchers.append(self.watch)
        self._methods = {
            name[3:].replace("_", " "): getattr(self, name) for name in dir(self) if name.startswith("on_")
        }

    def watch(self, event: Event) -> None:
        """Handle an event."""
        method = self._methods.get(event.kind)
        if method is not None:
            method(event)
