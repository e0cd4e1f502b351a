"""The oracle: says which guarantee a life breaks.

It knows the feed's contents, the requests that the server saw, what the store was given, the handler's calls, and
what callers did. It does not look into the consumer.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.simulation.feed import Server
from tests.simulation.journal import Event, Journal
from tests.simulation.plan import Plan

__all__ = ["POLLING_CALLS", "Oracle", "Violation", "Watcher"]

POLLING_CALLS = {"poll_now", "catch_up"}
"""Calls that wait for polls, and lead them if nobody else does."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A guarantee that does not hold.

    Attributes:
        guarantee: Its name, as "G1".
        sentence: What is wrong, the same words for each life that it happens in.
        detail: What was seen in this life.
    """

    guarantee: str
    sentence: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.guarantee}: {self.sentence}" + (f" ({self.detail})" if self.detail else "")


class Oracle:
    """Collects what is wrong with a life; only the first thing counts.

    Args:
        plan: The life.
        server: Its server.
        journal: What happens.

    Attributes:
        violation: The first thing that is wrong; `None` if nothing is.
        after: What has happened that explains much, for the sentence.
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
        """Say that a guarantee does not hold."""
        if self.violation is None:
            self.violation = Violation(guarantee, sentence + self.after, detail)
            self.journal.add("BROKEN", what=str(self.violation))


class Watcher:
    """Looks at events, each kind in a method of its name."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.plan = oracle.plan
        self.server = oracle.server
        oracle.journal.watchers.append(self.watch)
        self._methods = {
            name[3:].replace("_", " "): getattr(self, name) for name in dir(self) if name.startswith("on_")
        }

    def watch(self, event: Event) -> None:
        """Look at an event."""
        method = self._methods.get(event.kind)
        if method is not None:
            method(event)
