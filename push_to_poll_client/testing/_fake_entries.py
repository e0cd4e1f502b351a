"""What a fake feed holds, and what of it can be seen when.

A message keeps the place at which it was published, also while it is not visible yet. One that becomes visible
late, behind a later one that was read, is therefore skipped by who goes on from there, as in a database whose
transactions commit in another order than they take their ids.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import anyio

from push_to_poll_client._exceptions import UndecodableMessage
from push_to_poll_client._types import Cursor, Message, UnreadableMessage

__all__ = ["Entries"]


@dataclass(slots=True)
class _Entry:
    what: str | Message
    data: Any
    error: UndecodableMessage | None
    visible_at: float
    hidden_until: int

    def message(self, cursor: Cursor | None = None) -> Message:
        if isinstance(self.what, Message):
            return self.what
        if self.error is not None:
            return UnreadableMessage(self.what, self.error, cursor=cursor)
        return Message(self.what, self.data, cursor=cursor)


class Entries:
    """Messages in the order of their publication, each visible from its own moment on."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(
        self,
        what: Iterable[int | str | Message],
        data: Any,
        error: UndecodableMessage | None,
        *,
        lag: float,
        hidden_until: int,
    ) -> list[str]:
        """Append; visible after `lag` seconds to fetches whose number is above `hidden_until`."""
        visible_at = anyio.current_time() + lag if lag else -math.inf
        first = len(self)
        for one in self._names(what):
            self._entries.append(_Entry(one, data, error, visible_at, hidden_until))
        return [entry.message().id for entry in self._entries[first:]]

    def _names(self, what: Iterable[int | str | Message]) -> Iterator[str | Message]:
        for one in what:
            if isinstance(one, int):
                for _ in range(one):
                    yield str(len(self) + 1)
            else:
                yield one

    def visible(self, start: int, end: int, *, fetch: int) -> Iterator[int]:
        """The places from `start` to before `end` that the fetch of this number sees now."""
        now = anyio.current_time()
        for place in range(start, end):
            entry = self._entries[place]
            if entry.visible_at <= now and entry.hidden_until < fetch:
                yield place

    def next_visible(self) -> float:
        """When the next one becomes visible; infinity when none will."""
        now = anyio.current_time()
        return min((entry.visible_at for entry in self._entries if entry.visible_at > now), default=math.inf)

    def message(self, place: int, cursor: Cursor | None) -> Message:
        """The message at this place, with this cursor unless it was published with its own."""
        return self._entries[place].message(cursor)
