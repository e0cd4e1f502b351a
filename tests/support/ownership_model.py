"""A model of two replicas that share one consumer name, explored in all orders of events.

`steps` returns every possible next event of a world. `explore` follows them all, breadth first, until an assertion
is broken or no new state is left. A test plants a bug by changing one of the `Rules`.
"""

from typing import NamedTuple

from tests.support.ownership_database import arrivals, is_locked, operations
from tests.support.ownership_replica import ACTIONS, interruptions, pushes
from tests.support.ownership_world import CLAIMING, DOWN, LEASE, NAMES, STANDBY, STEP, World

ASSERTIONS = {
    1: "each effect is written once, with its record, and without a gap",
    2: "only the newest claim writes",
    3: "token and commits grow, except over a fail-over",
    4: "no handler starts in doubt, after a loss, or after the end of the lease",
    5: "no memory outlives a doubt or a loss",
    6: "old heartbeats and releases change nothing",
    7: "a poll follows each wake",
    8: "with a replica standing by, the name is owned again within a lease and a third",
}


class Explored(NamedTuple):
    """What an exploration found.

    Attributes:
        states: Number of different states.
        transitions: Number of events that were followed.
        broken: Number of the broken assertion; None if all hold.
        report: The broken assertion, and the shortest sequence of events that breaks it.
        reached: Names of the states of replicas that occurred.
    """

    states: int
    transitions: int
    broken: int | None
    report: str
    reached: frozenset[str]


def explore(rules, limits, *, asserted=frozenset(ASSERTIONS)):
    """Follow all orders of events until one of the assertions is broken or no new state is left."""
    root = World(limits)
    came_from = {root: None}
    frontier, transitions = [root], 0
    while frontier:
        following = []
        for world in frontier:
            for event, after in steps(world, rules):
                transitions += 1
                broken = after.broken or broken_in(after)
                if broken and broken[0] in asserted:
                    return explored(came_from, transitions, broken[0], report(came_from, world, event, broken))
                state = (after._replace(broken=None) if after.broken else after).reduced()
                known = len(came_from)
                came_from.setdefault(state, (world, event))  # hashes the state once, which takes a while
                if len(came_from) > known:
                    following.append(state)
        frontier = following
    return explored(came_from, transitions, None, "")


def explored(states, transitions, broken, text):
    reached = {replica.state for world in states for replica in world.replicas}
    return Explored(len(states), transitions, broken, text, frozenset(reached))


def broken_in(world):
    """Return the assertion that a state breaks, and how; None if all hold."""
    db = world.db
    for number in range(world.left.messages):
        done = number < db.progress.cursor
        if db.effects[number] != done or db.records[number] != done:
            state = f"has {db.effects[number]} effects and {db.records[number]} records"
            return 1, f"message {number + 1} {state}, and the cursor is at {db.progress.cursor}"
    if world.owed and not world.excused:
        holder = world.holder()
        forwarded = any(message.kind == "wake" for message in world.network)
        if holder and not holder.poll and not forwarded:
            return 7, "the owner does not know of a wake"
    return None


def report(came_from, world, event, broken):
    """Return the assertion, what broke it, and the events that led there, in plain words."""
    events = [event]
    while came_from[world]:
        world, event = came_from[world]
        events.append(event)
    lines = [f"{number:2}. {event}" for number, event in enumerate(reversed(events), 1)]
    number, how = broken
    return "\n".join([f"({number}) {ASSERTIONS[number]}: {how}", *lines])


def steps(world, rules):
    """Yield each possible next event, in words, and the world after it."""
    yield from time_passes(world)
    for r in (0, 1):
        replica = world.replicas[r]
        if replica.paused:
            yield f"{NAMES[r]} continues", world.put(r, paused=False)
        elif replica.state == DOWN:
            yield f"{NAMES[r]} is started again", world.put(r, state=STANDBY)
        else:
            for name, after in ACTIONS[replica.state](world, r, replica, rules):
                yield f"{NAMES[r]} {name}", after
            yield from pushes(world, r, replica, rules)
        yield from interruptions(world, r, replica)
    previous = None
    for message in world.network:
        if message != previous:  # equal messages have equal effects
            yield from arrivals(world, message, rules)
        previous = message
    yield from operations(world, rules)


# Time: it does not pass while something is due that takes no time.


def time_passes(world):
    if any(m.phase in {"compared", "unfenced"} for m in world.network):
        return  # COMMIT arrives with the comparison
    present = [r for r in (0, 1) if stands_by(world, r)]
    if world.deadline <= 0 and world.left.claims:
        if any(can_claim_now(world, r) for r in present):
            return  # what is due happens before time passes
        if present:
            world = world.breaks(8, f"{NAMES[present[0]]} stands by, and the name is not owned in time")
    yield f"{STEP:.0f} s pass", later(world)


def stands_by(world, r):
    replica = world.replicas[r]
    return replica.state in {STANDBY, CLAIMING} and not replica.paused


def can_claim_now(world, r):
    replica = world.replicas[r]
    if replica.state == STANDBY:
        return replica.next_try <= 0
    waiting = any(m.kind == "claim" and m.replica == r and m.live for m in world.network)
    return not (waiting and is_locked(world))


def later(world):
    """Return the world after a step of time. Times that have passed stay at 0."""

    def sooner(time):
        return max(time - STEP, 0.0)

    def aged(item):
        counts = item and item.kind in {"claim", "again", "heartbeat", "row", "busy"}
        return item._replace(sent=max(item.sent - STEP, -LEASE - STEP)) if counts else item

    def lapsed(db):
        return db and db._replace(lease=db.lease._replace(until=sooner(db.lease.until)))

    replicas = tuple(
        replica._replace(
            ends=sooner(replica.ends),
            next_try=sooner(replica.next_try),
            reply=aged(replica.reply),
            heartbeat=aged(replica.heartbeat),
        )
        for replica in world.replicas
    )
    return world._replace(
        db=lapsed(world.db),
        copy=lapsed(world.copy),
        replicas=replicas,
        network=tuple(sorted(aged(m) if m.live else m for m in world.network)),
        deadline=max(world.deadline - STEP, 0.0),
    )
