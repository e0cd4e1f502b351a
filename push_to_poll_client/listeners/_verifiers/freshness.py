"""WHETHER A REQUEST IS NEW: the second that its sender signed, by the receiver's clock."""

import re

__all__ = ["TOLERANCE", "Freshness"]

TOLERANCE = 300.0
"""Seconds: what Stripe, Slack, Svix and the libraries of Standard Webhooks have. What is repeated later is refused
by its timestamp, so this is for how long repetitions have to be remembered."""

_read_number = re.compile(r"[1-9][0-9]{0,15}").fullmatch
"""`int()` takes signs, spaces, underscores and digits of every script too, and `float()` "nan"."""


class Freshness:
    """Refuses what is too old, and what comes from the future: it could be repeated for longer than is remembered.

    Args:
        tolerance: Seconds that a timestamp may lie before the receiver's clock, or after it.
        unit: Seconds that one of it stands for.
    """

    def __init__(self, tolerance: float, unit: float) -> None:
        self._tolerance = tolerance
        self._unit = unit

    def until(self, timestamp: str, now: float) -> float | None:
        """When this timestamp will be refused, in seconds since the epoch; `None`: it is refused now.

        Args:
            timestamp: As somebody wrote it: digits and nothing else, no zero before them, at most 16.
            now: In seconds since the epoch.
        """
        if not _read_number(timestamp):
            return None
        signed_at = int(timestamp) * self._unit
        # It still passes at the very end of the tolerance. One second later it does not.
        return signed_at + self._tolerance + 1 if abs(now - signed_at) <= self._tolerance else None
