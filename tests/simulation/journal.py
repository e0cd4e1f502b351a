"""Journal of one life: its events in order."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from push_to_poll_client import Page

__all__ = ["Event", "Journal"]


@dataclass(slots=True)
class Event:
    """An event of a life.

    Attributes:
        number: Orders events of the same time.
        at: Time of the event loop's clock.
        kind: Kind of the event.
        client: Number of its consumer object; 0 for the world.
        facts: Further data.
    """

    number: int
    at: float
    kind: str
    client: int
    facts: dict[str, Any]

    def __str__(self) -> str:
        facts = " ".join(
            f"{name}={_short(value)}" for name, value in self.facts.items() if value is not None and name[0] != "_"
        )
        return f"{self.at:10.3f} [{self.client}] {self.kind} {facts}"


def _short(value: Any) -> str:
    if isinstance(value, Page):
        asks = "" if value.retry_after is None else f" retry_after={value.retry_after:g}"
        ids = _short(tuple(message.id for message in value.messages))
        return f"[{ids} cursor={value.cursor} next={value.next_page}{asks}]"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, tuple) and len(value) > 6:
        return f"{value[0]}..{value[-1]} ({len(value)})"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return str(value)[:160]


class Journal:
    """Record the events of a life, and pass them to watchers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.events: list[Event] = []
        self.watchers: list[Callable[[Event], None]] = []
        self.clock = clock

    def add(self, kind: str, client: int = 0, **facts: Any) -> Event:
        """Record an event at the current time."""
        event = Event(len(self.events), self.clock(), kind, client, facts)
        self.events.append(event)
        for watch in self.watchers:
            watch(event)
        return event
