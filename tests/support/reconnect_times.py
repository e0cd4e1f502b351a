"""A thousand clients lose their server at the same moment: when do they come back? Run it to see the curve."""

import random
from collections import Counter

from push_to_poll_client.listeners._backoff import ReconnectAction, ReconnectBackoff

CLIENTS = 1_000

AWAY = (0, 2, 10, 60)
"""Seconds for which the server is away."""

WIDTH = 60
"""Characters of the longest bar."""


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


def curve():
    """The curves, one for each time that the server is away."""
    return "\n\n".join(map(_curve, AWAY))


def _curve(away):
    came = arrivals(away)
    step = 0.1 if came[-1] <= 1 else 1.0 if came[-1] <= 20 else 5.0
    counts = Counter(int(moment / step) for moment in came)
    most = max(counts.values())
    rows = [
        f"{place * step:6.1f} s {counts[place]:4}  {'#' * round(WIDTH * counts[place] / most)}".rstrip()
        for place in range(max(counts) + 1)
    ]
    half, last = came[CLIENTS // 2], came[-1]
    return "\n".join([f"away for {away} s: half are back after {half:.1f} s, all after {last:.1f} s", *rows])


if __name__ == "__main__":
    print(curve())  # noqa: T201
