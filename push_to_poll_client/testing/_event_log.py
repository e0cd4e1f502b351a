"""What the reference server holds: events, encoded once, so that a page is a join."""

import time
from datetime import UTC, datetime
from typing import Any

import msgspec

__all__ = ["ORDER", "EventLog"]

ORDER = {"note": "x" * 80}
"""The data of an event when nobody says what it is; it brings the event to about 300 bytes."""

_DIGITS = 12


class EventLog:
    """Events in the order of their publication; ids are their places, padded so that they sort as text too.

    Args:
        source: The `source` of each event.
        type: The `type` of each event.
    """

    def __init__(self, *, source: str = "https://reference.example/orders", type: str = "example.order") -> None:
        self._source = source
        self._type = type
        self._events: list[bytes] = []

    def append(self, data: Any = ORDER, *, undecodable: bool = False) -> str:
        """Append an event.

        Args:
            data: What it carries. An object gets a member `sent`, if it has none: the time of its publication in
                seconds on the clock of `time.monotonic()`, which the processes of one machine share.
            undecodable: Make it a JSON object that is no CloudEvent, since its source is a number.

        Returns:
            Its id.
        """
        place = f"{len(self._events) + 1:0{_DIGITS}d}"
        event = {
            "specversion": "1.0",
            "id": place,
            "source": 7 if undecodable else self._source,
            "type": self._type,
            "time": datetime.now(UTC).isoformat(),
            "subject": f"orders/{place}",
            "region": "north",  # an extension attribute, which clients must keep
            "data": {"sent": time.monotonic(), **data} if isinstance(data, dict) else data,
        }
        self._events.append(msgspec.json.encode(event))
        return place

    @property
    def newest(self) -> str:
        """The id of the newest event; "" when there is none."""
        return f"{len(self._events):0{_DIGITS}d}" if self._events else ""

    def page(self, after: str | None, size: int) -> list[bytes]:
        """At most `size` encoded events after the id; from the first when there is no event of this id."""
        start = self._place(after)
        return self._events[start : start + size]

    def _place(self, id: str | None) -> int:
        if id is None or len(id) != _DIGITS or not id.isdecimal():
            return 0
        return int(id) if int(id) <= len(self._events) else 0
