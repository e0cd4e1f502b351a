"""Reconnect times of a thousand clients that lose their server at the same moment. Run it to see the table."""

import random

from push_to_poll_client.listeners._backoff import ReconnectAction, ReconnectBackoff

CLIENTS = 1_000

AWAY = (0, 2, 10, 60)
"""Lengths of the outage in seconds."""


def arrivals(away, *, clients=CLIENTS):
    """Return each client's reconnect time, in seconds after the server's return. Deterministic."""
    draw = random.Random(away).random  # noqa: S311  # the same each time
    return sorted(_arrival(away, draw) for _ in range(clients))


def _arrival(away, draw):
    reconnect, now = ReconnectBackoff(), 0.0
    reconnect.connected(-3600.0)  # they were connected for a long time
    while True:
        reconnect.ended(now)
        now += reconnect.delay(ReconnectAction.RETRY, fraction=draw())
        if now >= away:
            return now - away


def most_in(moments, seconds):
    """Return the largest number of moments in any window of this many seconds."""
    return max(sum(1 for moment in moments if at <= moment < at + seconds) for at in moments)


def table():
    """Return the rows of the page's table, one for each length of the outage."""
    return "\n".join(map(_row, AWAY))


def _row(away):
    came = arrivals(away)
    half, last = came[CLIENTS // 2], came[-1]
    return f"| {away} s | {half:.1f} s | {last:.1f} s | {most_in(came, 1.0):,} |"


if __name__ == "__main__":
    print(table())  # noqa: T201
