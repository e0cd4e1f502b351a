"""Every interleaving of a small world, six or eight events deep, keeps G1-G4.

Interleavings that lead to the same state (with times relative to now) are followed once. The records of the world
are part of the state, so no difference that a check could see is merged.
"""

import pytest

from push_to_poll_client._schedule import PollOutcome
from tests.support.forms import form
from tests.support.schedule_world import World

DEPTH = form(6, 8)


def moves(world):
    """Return the possible next events, each as a function of a world."""
    yield lambda w: w.wake(push=True)
    yield lambda w: w.wake(push=True, known=True)
    yield World.tick
    yield lambda w: w.set_channel(not w.up)
    yield lambda w: setattr(w.schedule, "paused", not w.schedule.paused)
    if world.resume_at > world.now:
        yield World.resume_now
    if world.running:
        yield from ENDS
    elif world.due():
        yield World.start
    if world.may_start_by_hand():
        yield World.start_by_hand


ENDS = (
    lambda w: w.end(PollOutcome.CAUGHT_UP, found=0),
    lambda w: w.end(PollOutcome.CAUGHT_UP, found=1),
    lambda w: w.end(PollOutcome.CAUGHT_UP, found=1, poll_within=2.0),
    lambda w: w.end(PollOutcome.MORE, found=1, free=True),
    lambda w: w.end(PollOutcome.MORE),
    lambda w: w.end(PollOutcome.MORE, found=1, resume_in=2.0),
    lambda w: w.end(PollOutcome.FAILED),
    lambda w: w.end(PollOutcome.FAILED, retry_after=3.0),
    lambda w: w.end(PollOutcome.ABANDONED),
)


SETTINGS = {"fallback", "degraded", "rate", "burst", "wake_delay", "jitter", "can_wait", "schedule"}
"""Settings of the world, which do not change."""

DURATIONS = {"_backoff", "_shortening", "_wait", "_spacing", "_slack", "_wake_delay", "_fallback", "_degraded"}
DURATIONS |= {"_poll_within", "poll_within"}
"""Of the schedule and the world; every other float is a time."""


def state(world):
    """Return everything as one value, with times relative to now. It runs after each event, so it must be fast."""
    now, parts = world.now, []
    for name, value in (*vars(world).items(), *vars(world.schedule).items()):
        kind = type(value)
        if name in SETTINGS:
            continue
        if kind is float:
            parts.append(value if name in DURATIONS else value - now)
        elif kind is list:
            parts.append(tuple([at - now for at in value]))
        elif kind is dict:
            parts.append(tuple(sorted(value.items())))
        else:
            parts.append(value)
    return tuple(parts)


def explore(root):
    frontier = [root]
    seen = {state(root)}
    transitions = 0
    for _ in range(DEPTH):
        following = []
        for world in frontier:
            for move in moves(world):
                after = world.fork()
                move(after)
                transitions += 1
                if (reached := state(after)) not in seen:
                    after.check()
                    seen.add(reached)
                    following.append(after)
        frontier = following
    return transitions


@pytest.mark.slow
@pytest.mark.no_cover  # lines are counted where it is quick
@pytest.mark.parametrize(("wake_delay", "can_wait"), [(0.0, False), (1.0, True)])
def test_every_short_interleaving_of_schedule_events_keeps_g1_to_g4(wake_delay, can_wait):
    root = World(wake_delay=wake_delay, can_wait=can_wait)
    root.check()
    transitions = explore(root)
    assert transitions > form(10_000, 150_000)
