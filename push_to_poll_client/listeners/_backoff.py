"""When to connect again. Pure: times and random fractions are arguments.

The load that a fleet makes is decided here. A restarted server meets all its clients at once, and a server that
accepts and closes at once is as overloaded as one that refuses; so the delay is this library's own, every delay is
random, and a connection must have lived before it counts as a success.

    failure in a row    1      2      3      4      5       6        7 and on
    seconds to wait     0-1    1-2    2-4    4-8    8-16    16-32    30-60

A server that accepts and closes sees at most 5 connections of a client in the first 10 seconds (at 0, 0, 1, 3
and 7, if every draw is the smallest) and one or two a minute later on. A refusal that only a human can lift costs
it one connection in 5 to 7.5 minutes.

The first delay is short and wholly random. RFC 6455 §7.2.3 proposes 0-5 s "as a reasonable initial delay"; the
common cause is a server that was replaced or a proxy that cuts connections now and then, and each second here is
a second without pushes. With 0-1 s, 1,000 clients of a restarted server return over a second and not at once.
"""

import enum

from push_to_poll_client._types import MAX_NOT_BEFORE

__all__ = [
    "STABLE_AFTER",
    "ReconnectBackoff",
    "Verdict",
    "lifetime",
    "verdict_of_status",
]


FIRST_DELAY = 1.0
"""Seconds: the first delay is drawn from 0 to this, in which 1,000 clients of a restarted server return."""

BASE_DELAY = 1.0
"""Seconds after the second failure in a row, doubled by each further one."""

MAX_DELAY = 30.0
"""Seconds that the delay grows to, before jitter doubles it at most: drawn from [30, 60), a server that is down
gets 0.022 connections a second from each client (client-go's reflector chose the same)."""

SLOW_DELAY = 300.0
"""Seconds before trying again what only a human can lift: 8 to 12 connections an hour, and never none."""

SLOW_JITTER = 0.5
"""The share of `SLOW_DELAY` added at random: 1,000 clients whose key was revoked return over 150 seconds."""

RETRY_AFTER_JITTER = 0.2
"""The share of a `Retry-After` added at random, never taken away: all clients were told the same figure."""

STABLE_AFTER = 30.0
"""Seconds that a connection has to last to end a streak of failures. Equal to `MAX_DELAY`, so that a server which
closes every connection just after that long sees no more connections than the backoff at its cap would make: one
in 30 seconds. (client-go waits 2 minutes. But a proxy that cuts each connection after a minute is common, and
would leave a client without pushes half the time if that counted as failing.)"""

LONGEST_DOUBLING = 10
"""Doublings after which the delay is not computed any further: the cap was reached long before."""


class Verdict(enum.Enum):
    """What a failed connection means for the next one."""

    RETRY = "retry"
    """Passing: connect again soon, with a delay that grows."""

    SLOW_RETRY = "slow retry"
    """Likely to fail until somebody acts: connect again every few minutes, since somebody may."""

    GIVE_UP = "give up"
    """Cannot succeed any more: the listener raises `ListenerError`."""


STATUS_VERDICTS = {
    # Passing although 4xx: the server was too slow, too early or too busy for this request.
    408: Verdict.RETRY,  # Request Timeout (RFC 9110 §15.5.9)
    425: Verdict.RETRY,  # Too Early (RFC 8470 §5.2)
    429: Verdict.RETRY,  # Too Many Requests (RFC 6585 §4)
    # The one status that says "for good".
    410: Verdict.GIVE_UP,  # Gone (RFC 9110 §15.5.11)
    # Lasting although 5xx: the server does not speak this.
    501: Verdict.SLOW_RETRY,  # Not Implemented (RFC 9110 §15.6.2)
    505: Verdict.SLOW_RETRY,  # HTTP Version Not Supported (RFC 9110 §15.6.6)
}
"""Statuses that differ from their class. Any other 5xx is retried; anything else (an answer where a channel should
have opened, a redirect, 401, 403, 404, 407, …) is retried slowly."""

FIRST_SERVER_ERROR = 500


def verdict_of_status(status: int) -> Verdict:
    """What an HTTP status that opened no channel means.

    Args:
        status: The status, 100 to 599.

    Returns:
        The entry of `STATUS_VERDICTS`, else `RETRY` for 5xx, else `SLOW_RETRY`.
    """
    by_class = Verdict.RETRY if status >= FIRST_SERVER_ERROR else Verdict.SLOW_RETRY
    return STATUS_VERDICTS.get(status, by_class)


def lifetime(max_age: float, fraction: float) -> float:
    """Seconds after which to renew a connection that is well, half of `max_age` to all of it.

    Drawn for each connection: clients that a restart brought back together part again.

    Args:
        max_age: The longest that a connection may last, seconds.
        fraction: A random number, 0 ≤ fraction < 1.
    """
    return max_age * (0.5 + 0.5 * fraction)


class ReconnectBackoff:
    """How long one channel waits before it connects again. Knows the streak of failures and nothing else."""

    __slots__ = ("_connected_at", "_failures", "_renewed")

    def __init__(self) -> None:
        self._failures = 0
        self._connected_at: float | None = None
        self._renewed = False

    @property
    def is_connected(self) -> bool:
        """Whether the channel opened and has not ended yet."""
        return self._connected_at is not None

    def connected(self, now: float) -> None:
        """The channel opened. The streak goes on all the same, until the connection has lived.

        Args:
            now: Seconds on a monotonic clock.
        """
        self._connected_at = now

    def ended(self, now: float) -> None:
        """Note the end of a connection or of an attempt. One that was up for `STABLE_AFTER` ends the streak.

        Args:
            now: Seconds on the clock of `connected()`.
        """
        if self._connected_at is not None and now - self._connected_at >= STABLE_AFTER:
            self._failures, self._renewed = 0, False
        self._connected_at = None

    def allow_renewal(self) -> bool:
        """Whether credentials that were refused may be asked for again at once.

        Returns:
            True once, and once more after each connection that lived. A provider that keeps giving what the
            server refuses must not become a loop.
        """
        renewed, self._renewed = self._renewed, True
        return not renewed

    def delay(self, verdict: Verdict, *, fraction: float, retry_after: float | None = None) -> float | None:
        """Count a failure, and say how long to wait after it.

        Args:
            verdict: What the failure means.
            fraction: A random number, 0 ≤ fraction < 1. All jitter is drawn upwards, so the smallest figure of
                each range is what the server is promised.
            retry_after: Seconds that the server asked to be left alone (RFC 9110 §10.2.3), counted from now;
                obeyed for a day at most. `None`: it did not ask.

        Returns:
            Seconds from now; `None` when the verdict is to give up.
        """
        if verdict is Verdict.GIVE_UP:
            return None
        own = self._own_delay(verdict, fraction)
        self._failures += 1
        asked = min(retry_after or 0.0, MAX_NOT_BEFORE)
        return max(own, asked * (1 + RETRY_AFTER_JITTER * fraction))

    def _own_delay(self, verdict: Verdict, fraction: float) -> float:
        if verdict is Verdict.SLOW_RETRY:
            return SLOW_DELAY * (1 + SLOW_JITTER * fraction)
        if self._failures == 0:
            return FIRST_DELAY * fraction
        doublings = min(self._failures - 1, LONGEST_DOUBLING)
        return min(BASE_DELAY * 2.0**doublings, MAX_DELAY) * (1 + fraction)
