"""A thousand clients lose their server at the same moment: when do they come back? Run it to see the table."""

import random

from push_to_poll_client.listeners._backoff import ReconnectAction, ReconnectBackoff

CLIENTS = 1_000

AWAY = (0, 2, 10, 60)
"""Seconds for which the server is away."""


def arrivals(away, *, clients=CLIENTS):
    """Seconds after its return at which each client is connected again. The same at each call."""
    draw = random.Random(away).random  # noqa: S311  # the same each time
    return sorted(_arrival(away, draw) for _ in range(clients))


def _arrival(away, draw):
    reconnect, now = ReconnectBackoff(), 0.0
    reconnect.connected(-3600.0)  # they were connected for long
    while True:
        reconnect.ended(now)
        now += reconnect.delay(ReconnectAction.RETRY, fraction=draw())
        if now >= away:
            return now - away


def most_in(moments, seconds):
    """The most of them in any window of so many seconds."""
    return max(sum(1 for moment in moments if at <= moment < at + seconds) for at in moments)


def table():
    """The rows of the page's table, one for each time that the server is away."""
    return "\n".join(map(_row, AWAY))


def _row(away):
    came = arrivals(away)
    half, last = came[CLIENTS // 2], came[-1]
    return f"| {away} s | {half:.1f} s | {last:.1f} s | {most_in(came, 1.0):,} |"


if __name__ == "__main__":
    print(table())  # noqa: T201
