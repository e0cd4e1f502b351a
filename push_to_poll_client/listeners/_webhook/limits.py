"""HOW MUCH a webhook takes on: requests a second, and bodies at a time. Pure; the time is an argument."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from push_to_poll_client.listeners._webhook.answers import BUSY, Refusal, too_many

__all__ = ["MAX_BODIES", "ROUNDING", "Slots", "TokenBucket"]

MAX_BODIES = 64
"""Bodies in hand at a time. With the default `max_body` they take 64 MiB, however slowly they are sent."""

ROUNDING = 1e-6
"""Seconds: a shorter wait is what is left when numbers that should cancel out are rounded. Nobody waits for it."""


class TokenBucket:
    """Lets so many pass in any window of T seconds as burst + rate·T; from any thread.

    As in the schedule of polls, all that is kept is when the bucket is full again (GCRA).

    Args:
        rate: A second, in the long run; `None`: no limit.
        burst: At once.
    """

    def __init__(self, rate: float | None, burst: int) -> None:
        self._spacing = 0.0 if rate is None else 1.0 / rate
        self._slack = self._spacing * (burst - 1)
        self._full_at = -math.inf
        self._lock = threading.Lock()

    def take(self, now: float) -> float:
        """Take a token.

        Args:
            now: Seconds on a clock that never goes back.

        Returns:
            0 if there was one; else the seconds until there is one, and none was taken.
        """
        with self._lock:
            wait = self._full_at - self._slack - now
            if wait > ROUNDING:
                return wait
            self._full_at = max(self._full_at, now) + self._spacing
            return 0.0

    def pass_one(self, now: float) -> None:
        """Take a token, or refuse.

        Raises:
            Refusal: There is none.
        """
        if wait := self.take(now):
            raise Refusal(too_many(wait), "limited", hides_pushes=True)


class Slots:
    """Those whose body is in hand; from any thread.

    Args:
        most: How many there may be.
    """

    def __init__(self, most: int = MAX_BODIES) -> None:
        self._free = most
        self._lock = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Have one for the length of the block.

        Raises:
            Refusal: There is none.
        """
        with self._lock:
            if not self._free:
                raise Refusal(BUSY, "busy", hides_pushes=True)
            self._free -= 1
        try:
            yield
        finally:
            with self._lock:
                self._free += 1
