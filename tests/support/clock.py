"""Virtual time, counted from where the clock starts."""

import anyio

from push_to_poll_client.testing._virtual_time import START

DAY = 1e9
"""Time of day when the virtual clock starts, in seconds since the epoch."""


def elapsed():
    """Seconds since the virtual clock started."""
    return anyio.current_time() - START


def time_of_day():
    """Return a time of day that follows the virtual clock."""
    return DAY + elapsed()
