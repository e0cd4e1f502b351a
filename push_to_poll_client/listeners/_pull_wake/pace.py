"""HOW OFTEN may something be done that others cause? A few times at once, then evenly."""

__all__ = ["Pace"]


class Pace:
    """A bucket of tokens, told as the time at which it will be full again.

    Args:
        rate: Times a second, for good.
        burst: Times at once, after a pause.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._interval = 1.0 / rate
        self._burst = burst
        self._full_at = float("-inf")

    def spend(self, now: float) -> float:
        """Count one time, and say how many seconds from now the next may come.

        Args:
            now: Seconds on a monotonic clock.
        """
        self._full_at = max(self._full_at, now) + self._interval
        return max(0.0, self._full_at - self._interval * (self._burst - 1) - now)
