"""WHEN the next long poll may be sent. Pure: time is an argument, the seconds to wait are the answer.

A server that holds its answers sets the pace itself. One that does not (it cannot, it is misconfigured, a proxy
answers for it, it was told a cursor that is old) would be asked as fast as the network allows. So an answer that
comes early costs a pause, doubled by each further one in a row:

    early in a row       1      2     3    4    5    6    7    8    9 and on
    after news           0.25   0.5   1    2    4    5 and on
    after nothing        0.25   0.5   1    2    4    8    16   32   60

Without news that is 8 requests in the first 32 s and one a minute then; with news in each answer one in 5 s, which
wakes a consumer that is behind often enough. Who answers just not early is asked once a second with news, and once
in 5 s without.
"""

import math

from push_to_poll_client._types import MAX_NOT_BEFORE
from push_to_poll_client.listeners._reconnect import RETRY_AFTER_SPREAD

__all__ = ["EARLY", "EARLY_NEWS", "Pace"]

EARLY = 5.0
"""Seconds: an answer without news that was not held for as long, or half as long as it might, is early."""

EARLY_NEWS = 1.0
"""Seconds, likewise for an answer with news. What happens a second after the last news is news."""

FIRST_PAUSE = 0.25
"""Seconds after the first early answer: a poll that a push started has ended by then, and moved the cursor."""

LONGEST_WITH_NEWS = 5.0
"""Seconds: how late a push is at most, on a server that always has news."""

LONGEST_WITHOUT = 60.0
"""Seconds: as often as the consumer polls by itself, by default."""

LONGEST_DOUBLING = 8
"""Doublings of the pause after which no cap is above it."""


class Pace:
    """How long one channel waits between an answer and its next request.

    Args:
        wait: Seconds for which the server may hold an answer.
    """

    __slots__ = ("_early", "_early_in_a_row", "_not_before")

    def __init__(self, wait: float) -> None:
        self._early = min(EARLY, wait / 2)
        self._early_in_a_row = 0
        self._not_before = -math.inf

    def is_early(self, held: float, *, news: bool) -> bool:
        """Whether the server did not wait for news.

        Args:
            held: Seconds from the request to its answer.
            news: Whether there were any.
        """
        return held < (min(EARLY_NEWS, self._early) if news else self._early)

    def answered(self, now: float, *, held: float, news: bool, retry_after: float | None, fraction: float) -> None:
        """An answer came, or none in all the time that there was for it.

        Args:
            now: Seconds on a monotonic clock.
            held: As for `is_early`.
            news: Likewise.
            retry_after: Seconds for which the server asks to be left alone, obeyed for a day at most; `None`: it
                does not.
            fraction: A random number, 0 ≤ fraction < 1: a fifth of what was asked for is added at most.
        """
        self._early_in_a_row = self._early_in_a_row + 1 if self.is_early(held, news=news) else 0
        asked = min(retry_after or 0.0, MAX_NOT_BEFORE) * (1 + RETRY_AFTER_SPREAD * fraction)
        self._not_before = max(self._not_before, now + max(asked, self._pause(news=news)))

    def pause(self, now: float) -> float:
        """Seconds from now until the next request."""
        return max(0.0, self._not_before - now)

    def _pause(self, *, news: bool) -> float:
        if not self._early_in_a_row:
            return 0.0
        doubled = FIRST_PAUSE * 2.0 ** min(self._early_in_a_row - 1, LONGEST_DOUBLING)
        return min(doubled, LONGEST_WITH_NEWS if news else LONGEST_WITHOUT)
