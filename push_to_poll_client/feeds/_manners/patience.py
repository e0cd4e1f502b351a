"""How long an answer may take: as a whole, and to go on once it has begun.

One cancel scope for both, whose deadline moves: a scope for each piece of a body would cost more than its reading.
"""

import anyio

__all__ = ["FLOOR", "STILL", "Patience"]

STILL = 10.0
"""Seconds in which `FLOOR` bytes of a body have to come. TCP sends a lost packet again within 3 of them."""

FLOOR = 1024
"""Bytes that have to come in `STILL` seconds: a tenth of what modems did. A drip of less is no transfer."""


class Patience:
    """The time for one answer. Made when it is asked for.

    Args:
        timeout: Seconds for the whole answer.
        wait: Seconds for which the server may hold it, on top. So long its body may stand still, too: CouchDB
            sends a newline now and then.

    Attributes:
        scope: What it all happens in.
    """

    def __init__(self, timeout: float, wait: float) -> None:
        now = anyio.current_time()
        self._held = now + wait
        self._end = self._held + timeout
        self._missing = 0
        self.scope = anyio.CancelScope(deadline=self._end)

    def begin(self) -> None:
        """The headers are here."""
        self._missing = FLOOR
        self.scope.deadline = min(self._end, max(self._held, anyio.current_time()) + STILL)

    def came(self, size: int) -> None:
        """So many bytes of the body came."""
        self._missing -= size
        if self._missing <= 0:
            self.begin()

    def ask_again(self) -> None:
        """Another answer is asked for in the same time."""
        self.scope.deadline = self._end

    @property
    def stood_still(self) -> bool:
        """Whether that was it, when the scope was cancelled."""
        return self.scope.deadline < self._end
