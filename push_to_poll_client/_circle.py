"""Does a walk through a feed's pages go in circles? In constant memory (Brent's algorithm)."""

from push_to_poll_client._types import Cursor

__all__ = ["Circle"]


class Circle:
    """Notices it, after three rounds at most."""

    def __init__(self) -> None:
        self._mark: Cursor | None = None
        self._steps, self._limit = 0, 1

    def closes_at(self, position: Cursor) -> bool:
        """Whether the walk was at this position before."""
        if position == self._mark:
            return True
        self._steps += 1
        if self._steps == self._limit:
            self._mark, self._steps, self._limit = position, 0, self._limit * 2
        return False
