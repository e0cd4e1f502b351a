"""WHEN the next long poll may be sent. Pure: time is an argument, the seconds to wait are the answer.

A server that holds its answers sets the pace itself. One that does not (it cannot, it is misconfigured, a proxy
answers for it, it was told a cursor that is old) would be asked as fast as the network allows. So:

An answer with news costs a token, of which there are ten and one more each second (GCRA, as in `_schedule.py`):
ten pushes in a row are passed on at once, and a server that has news in every answer is asked once a second.

An answer without news that comes early costs a pause, doubled by each further one until one was held:

    early in a row       1      2     3    4    5    6    7     8     9 and on
    seconds              0.25   0.5   1    2    4    8    16    32    60

A server that never holds an answer gets 8 requests in the first 32 s and one a minute then.
"""

import math

from push_to_poll_client._types import MAX_NOT_BEFORE
from push_to_poll_client.listeners._reconnect import RETRY_AFTER_SPREAD

__all__ = ["Pace"]

EARLY = 5.0
"""Seconds: an answer without news that was not held for as long, or half as long as it might, is early. A server
that holds for just that long is asked 12 times a minute."""

BURST = 10
"""Answers with news that follow each other as fast as they come."""

NEWS_SPACING = 1.0
"""Seconds from one token to the next: how late a push is at most on a server that has news all the time."""

FIRST_PAUSE = 0.25
"""Seconds after the first early answer: a slip costs little."""

LONGEST_PAUSE = 60.0
"""Seconds: as often as the consumer polls by itself, by default."""

LONGEST_DOUBLING = 8
"""Doublings of the pause after which it is above the longest."""


class Pace:
    """How long one channel waits between an answer and its next request.

    Args:
        wait: Seconds for which the server may hold an answer.
    """

    __slots__ = ("_early", "_early_in_a_row", "_full_at", "_not_before")

    def __init__(self, wait: float) -> None:
        self._early = min(EARLY, wait / 2)
        self._early_in_a_row = 0
        self._full_at = -math.inf
        self._not_before = -math.inf

    def is_early(self, held: float) -> bool:
        """Whether the server did not wait, if it has no news after so many seconds."""
        return held < self._early

    def answered(self, now: float, *, held: float, news: bool, retry_after: float | None, fraction: float) -> None:
        """An answer came, or none in all the time that there was for it.

        Args:
            now: Seconds on a monotonic clock.
            held: Seconds from the request to its answer.
            news: Whether there were any.
            retry_after: Seconds for which the server asks to be left alone, obeyed for a day at most; `None`: it
                does not.
            fraction: A random number, 0 ≤ fraction < 1: a fifth of what was asked for is added at most.
        """
        if not self.is_early(held):
            self._early_in_a_row = 0
        asked = min(retry_after or 0.0, MAX_NOT_BEFORE) * (1 + RETRY_AFTER_SPREAD * fraction)
        own = self._after_news(now) if news else self._after_nothing(held)
        self._not_before = max(self._not_before, now + max(asked, own))

    def pause(self, now: float) -> float:
        """Seconds from now until the next request."""
        return max(0.0, self._not_before - now)

    def _after_news(self, now: float) -> float:
        self._full_at = max(self._full_at, now) + NEWS_SPACING
        return self._full_at - NEWS_SPACING * BURST - now

    def _after_nothing(self, held: float) -> float:
        if not self.is_early(held):
            return 0.0
        self._early_in_a_row += 1
        return min(FIRST_PAUSE * 2.0 ** min(self._early_in_a_row - 1, LONGEST_DOUBLING), LONGEST_PAUSE)
