"""When not to ask: until when a feed that brought nothing can only bring nothing again."""

from collections import OrderedDict

import anyio

from push_to_poll_client._types import Cursor

__all__ = ["Fresh"]

MAX_CURSORS = 16
"""Remembered: one for each consumer of the feed."""


class Fresh:
    """Remembers it, by cursors that brought nothing (RFC 9111 §4.2). In an event loop."""

    def __init__(self) -> None:
        self._times: OrderedDict[Cursor | None, tuple[float, float]] = OrderedDict()

    def __contains__(self, cursor: Cursor | None) -> bool:
        """Whether asking what comes after this cursor could now only bring nothing again."""
        since, until = self._times.get(cursor, (0.0, 0.0))
        return since <= anyio.current_time() < until

    def note(self, cursor: Cursor | None, seconds: float) -> None:
        """It brought nothing, and would not for so long."""
        self._times.pop(cursor, None)
        if seconds > 0:
            now = anyio.current_time()
            self._times[cursor] = now, now + seconds
            if len(self._times) > MAX_CURSORS:
                self._times.popitem(last=False)

    def forget(self) -> None:
        """When the event loop may end by whose clock this is."""
        self._times.clear()
