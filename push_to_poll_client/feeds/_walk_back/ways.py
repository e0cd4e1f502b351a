"""The walks that are under way, in memory."""

from collections import OrderedDict

from push_to_poll_client._types import Cursor
from push_to_poll_client.feeds._walk_back.way import Way

__all__ = ["Ways"]

MOST_WALKS = 8
"""Kept: one for each consumer of the feed. If more than these have a backlog, they begin again and again."""


class Ways:
    """Those of one feed, by the cursors that they began with."""

    def __init__(self) -> None:
        self._ways: OrderedDict[Cursor | None, Way] = OrderedDict()

    def get(self, start: Cursor | None) -> Way | None:
        """The walk that began there; `None`: none did, or it is lost."""
        way = self._ways.get(start)
        if way is not None:
            self._ways.move_to_end(start)
        return way

    def keep(self, start: Cursor | None, way: Way) -> None:
        """Keep it, in place of another one that began there."""
        self._ways[start] = way
        if len(self._ways) > MOST_WALKS:
            self._ways.popitem(last=False)

    def drop(self, start: Cursor | None) -> None:
        """Forget the walk that began there."""
        self._ways.pop(start, None)

    def settled(self, cursor: Cursor | None) -> None:
        """A cursor comes back: what led to it need not be handed out again, and what it leads to begins there."""
        for start, way in list(self._ways.items()):
            if way.page is not None and way.page.cursor == cursor:
                del self._ways[start]
                if way.later is not None:
                    self.keep(cursor, way.later)

    def forget(self) -> None:
        """Each begins again."""
        self._ways.clear()
