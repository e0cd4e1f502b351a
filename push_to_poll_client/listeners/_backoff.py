"""Decide when a listener reconnects or sends its next long poll. Pure: times and random fractions are arguments.

This module decides the load of many clients on a server. All clients of a restarted server come back at once. A
server that accepts a connection and closes it immediately is as overloaded as one that refuses. So this library
chooses the delays itself, every delay is random, and a connection counts as a success only after `STABLE_AFTER`
seconds.

    failure in a row    1      2      3      4      5       6        7 and later
    seconds to wait     0-1    1-2    2-4    4-8    8-16    16-32    30-60

A server that accepts and closes gets at most 5 connections from a client in the first 10 seconds (at 0, 0, 1, 3
and 7, if every draw is the smallest), and then one or two a minute. If it refuses in a way that only a person can
fix, it gets one connection in 5 to 7.5 minutes.

Some servers end each connection in an orderly way: after a push, such as JMAP's event source with
`closeafter=state` (RFC 8620 §7.3), or after some seconds, as a long poll does. This is not a failure if the
connection brought a push or lasted for `MIN_LIFE` seconds: the client reconnects after 0-1 s. `NewsPace` limits
the load, as it does for long polls: 10 such connections as fast as the draws allow, then one a second; without
pushes, one in `MIN_LIFE` seconds. An earlier end, or one that was not orderly, is a failure. Such connections end
a streak of failures together, after `STABLE_AFTER` seconds without a failure. So if one of two servers behind an
address fails, it does not get more connections than it would get alone.

The first delay is short and entirely random. RFC 6455 §7.2.3 proposes 0-5 s "as a reasonable initial delay". But
the usual cause is a replaced server, or a proxy that cuts connections, and each second of delay is a second
without pushes. With 0-1 s, 1,000 clients of a restarted server return spread over a second.
"""

import enum
import math

from push_to_poll_client._types import MAX_NOT_BEFORE

FIRST_DELAY = 1.0
"""Seconds. The first delay is drawn from 0 to this: 1,000 clients of a restarted server return within it."""

BASE_DELAY = 1.0
"""Seconds after the second failure in a row; doubled by each further one."""

# A delay from [30, 60) gives a server that is down 0.022 connections/s per client, as client-go's reflector.
MAX_DELAY = 30.0
"""Longest delay in seconds, before jitter, which at most doubles it."""

SLOW_DELAY = 300.0
"""Seconds before the next attempt if only a person can help: 8 to 12 connections an hour, never zero."""

SLOW_JITTER = 0.5
"""Share of `SLOW_DELAY` added at random: 1,000 clients whose key was revoked return over 150 seconds."""

RETRY_AFTER_JITTER = 0.2
"""Share of a `Retry-After` added at random, never subtracted: the server sends the same value to all clients."""

# Equal to MAX_DELAY: a server that closes each connection just after this time gets no extra connections. Not the
# 2 minutes of client-go: many proxies cut each connection after a minute, and pushes would be down half the time.
STABLE_AFTER = 30.0
"""Seconds after which a connection ends a streak of failures."""

BURST = 10
"""Responses with news, or connections with a push, that may follow each other without a pause."""

NEWS_SPACING = 1.0
"""Average seconds between these, and so the longest delay of a push. Between connections at most twice this."""

MIN_LIFE = 5.0
"""Seconds after which an orderly end without a push is not a failure: at most 12 connections a minute."""

DOWN_AFTER = 5.0
"""Seconds. During a longer pause between two requests or connections with news, the channel is down."""

LONGEST_DOUBLING = 10
"""Doublings after which the power is not computed: the delay reached its maximum long before."""


class ReconnectAction(enum.Enum):
    """Action after a failed connection."""

    RETRY = "retry"
    """Transient: reconnect soon, with growing delays."""

    SLOW_RETRY = "slow retry"
    """Likely to fail until a person acts: reconnect every few minutes."""

    GIVE_UP = "give up"
    """Permanent: the listener raises `ListenerError`."""


STATUS_ACTIONS = {
    # Transient although 4xx: the server was too slow, too early or too busy for this request.
    408: ReconnectAction.RETRY,  # Request Timeout (RFC 9110 §15.5.9)
    425: ReconnectAction.RETRY,  # Too Early (RFC 8470 §5.2)
    429: ReconnectAction.RETRY,  # Too Many Requests (RFC 6585 §4)
    # The only status that means "permanently".
    410: ReconnectAction.GIVE_UP,  # Gone (RFC 9110 §15.5.11)
    # Lasting although 5xx: the server does not support this.
    501: ReconnectAction.SLOW_RETRY,  # Not Implemented (RFC 9110 §15.6.2)
    505: ReconnectAction.SLOW_RETRY,  # HTTP Version Not Supported (RFC 9110 §15.6.6)
}
"""Exceptions from the rule: any other 5xx is retried, any other status is retried slowly."""

FIRST_SERVER_ERROR = 500


def action_of_status(status: int) -> ReconnectAction:
    """Classify an HTTP status (100 to 599) that did not open a channel."""
    by_class = ReconnectAction.RETRY if status >= FIRST_SERVER_ERROR else ReconnectAction.SLOW_RETRY
    return STATUS_ACTIONS.get(status, by_class)


def lifetime(max_age: float, fraction: float) -> float:
    """Draw the seconds after which to renew a healthy connection: `max_age` / 2 to `max_age`."""
    # Drawn for each connection, so that clients that a restart synchronised spread out again.
    return max_age * (0.5 + 0.5 * fraction)


class NewsPace:
    """Limits requests to a server that has news: `BURST` at once, then one in `NEWS_SPACING` (GCRA)."""

    def __init__(self) -> None:
        self._full_at = -math.inf

    def take(self, now: float) -> float:
        """Take a token, and return the seconds to wait before the next request."""
        self._full_at = max(self._full_at, now) + NEWS_SPACING
        return max(0.0, self._full_at - NEWS_SPACING * BURST - now)


class ReconnectBackoff:
    """Reconnect delays of one channel. All times are seconds on one monotonic clock."""

    def __init__(self) -> None:
        self._failures = 0
        self._connected_at: float | None = None
        self._well_since: float | None = None  # when the first connection after a failure opened
        self._renewed = False
        self._pace = NewsPace()
        self._has_pushed = False
        self.was_useful: bool = False  # the last connection brought a push or lasted for `MIN_LIFE` seconds
        self.is_routine: bool = False  # it also ended in an orderly way: the next one does not follow a failure

    @property
    def is_connected(self) -> bool:
        return self._connected_at is not None

    def connected(self, now: float) -> None:
        """Note that the channel opened. This does not end the streak: the connection must last first."""
        self._connected_at = now
        self._well_since = now if self._well_since is None else self._well_since
        self._has_pushed = False

    def pushed(self) -> None:
        """Note that the connection brought a push. Thread-safe."""
        self._has_pushed = True

    def ended(self, now: float) -> None:
        """Note the end of a connection or attempt. A connection of `STABLE_AFTER` seconds ends the streak."""
        lasted = -math.inf if self._connected_at is None else now - self._connected_at
        if lasted >= STABLE_AFTER:
            self._failures, self._renewed = 0, False
        self.was_useful = lasted >= MIN_LIFE or (self._has_pushed and self._connected_at is not None)
        self.is_routine = False
        self._connected_at = None

    def allow_renewal(self) -> bool:
        """Return True if rejected credentials may be replaced at once."""
        # Once per stable connection: a function that keeps returning rejected credentials must not cause a loop.
        renewed, self._renewed = self._renewed, True
        return not renewed

    def delay(self, action: ReconnectAction, *, fraction: float, retry_after: float | None = None) -> float | None:
        """Count a failure, and return the seconds to wait; None for `GIVE_UP`."""
        # `retry_after` (RFC 9110 §10.2.3) is obeyed up to a day. `fraction` is random, 0 ≤ fraction < 1.
        if action is ReconnectAction.GIVE_UP:
            return None
        self._well_since = None
        if action is ReconnectAction.SLOW_RETRY:
            delay = SLOW_DELAY * (1 + SLOW_JITTER * fraction)
        elif self._failures == 0:
            delay = FIRST_DELAY * fraction
        else:
            doublings = min(self._failures - 1, LONGEST_DOUBLING)
            delay = min(BASE_DELAY * 2.0**doublings, MAX_DELAY) * (1 + fraction)
        self._failures += 1
        return max(delay, _requested(retry_after, fraction))

    def delay_after_end(self, now: float, *, fraction: float, retry_after: float | None = None) -> float:
        """Return the seconds to wait after the orderly end of a useful connection."""
        self.is_routine = True
        if self._well_since is not None and now - self._well_since >= STABLE_AFTER:
            self._failures, self._renewed = 0, False
        # Added, not the longer of both: otherwise clients woken by the same push would stay together.
        return max(FIRST_DELAY * fraction + self._pace.take(now), _requested(retry_after, fraction))


def _requested(retry_after: float | None, fraction: float) -> float:
    return min(retry_after or 0.0, MAX_NOT_BEFORE) * (1 + RETRY_AFTER_JITTER * fraction)


# A server that holds responses for exactly this time gets 12 requests a minute.
MIN_HOLD = 5.0
"""Seconds. A response without news is early below this and below half of the time allowed."""

FIRST_PAUSE = 0.25
"""Seconds after the first early response: one alone costs little."""

LONGEST_PAUSE = 60.0
"""Seconds: the consumer's default fallback interval."""


class LongPollPace:
    """Pauses of one channel between two long polls."""

    # A server that holds its responses sets the pace. One that does not (it cannot, a proxy responds for it, the
    # client sent an old cursor) would get requests as fast as the network allows. So a response with news costs a
    # token of a `NewsPace`, and an early response without news costs a pause: 0.25 s, doubled with each further
    # one in a row, at most 60 s. A server that never holds a response gets 8 requests in the first 32 s, then one
    # a minute.

    def __init__(self, wait: float) -> None:
        self._early = min(MIN_HOLD, wait / 2)
        self._early_in_a_row = 0
        self._news = NewsPace()
        self._not_before = -math.inf

    def is_early(self, held: float) -> bool:
        """Return True if a response without news is early after this time."""
        return held < self._early

    def answered(self, now: float, *, held: float, news: bool, retry_after: float | None, fraction: float) -> None:
        """Note a response that was held for `held` seconds, or that none came in time."""
        # `retry_after` is obeyed up to a day, and at most a fifth is added.
        early = self.is_early(held)
        if not early:
            self._early_in_a_row = 0
        pause = 0.0
        if news:
            pause = self._news.take(now)
        elif early:
            self._early_in_a_row += 1
            pause = min(FIRST_PAUSE * 2.0 ** min(self._early_in_a_row - 1, LONGEST_DOUBLING), LONGEST_PAUSE)
        self._not_before = max(self._not_before, now + max(_requested(retry_after, fraction), pause))

    def pause(self, now: float) -> float:
        return max(0.0, self._not_before - now)
