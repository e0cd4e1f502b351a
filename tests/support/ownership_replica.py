"""What a replica does in each state of the model of ownership, and what can happen to it.

The states are those of the ownership table; the times of a lease are computed by the package.
"""

from push_to_poll_client.stores._postgres.lease import lease_end, next_try
from tests.support.ownership_database import fits
from tests.support.ownership_world import (
    CLAIMING,
    COMMITTING,
    DOUBT,
    DOWN,
    LEASE,
    LOST,
    MAIN,
    NAMES,
    OWNER,
    SESSION,
    STANDBY,
    STEP,
    Message,
    Replica,
)

# Each function of an action yields the possible actions in one state, and the world after each.


def standing_by(world, r, replica, rules):
    # A and B are alike, so A sends the first claim.
    first = r == 0 or world.claims or world.network or world.replicas[0] != Replica()
    if replica.next_try <= 0 and world.left.claims and first:
        claim = Message("claim", r)
        if rules.reads_before_claim:
            claim = claim._replace(cursor=world.db.progress.cursor, commits=world.db.progress.commits)
        yield "sends a claim", world.send(claim).put(r, state=CLAIMING)


def claiming(world, r, replica, rules):
    reply = replica.reply
    if reply is None:
        return
    if reply.kind == "row":
        yield "reads that it owns the name", owns(world, r, reply, rules)
        return
    sent = reply.sent if rules.next_try_counts_from == "request" else 0.0
    at = max(next_try(sent, reply.seconds_left, LEASE, jitter=1.0), 0.0)
    after = world.put(r, state=STANDBY, next_try=at, reply=None)
    yield f"reads that the name is owned, and tries again in {at:.0f} s", after


def owns(world, r, reply, rules):
    """Return the world in which a replica starts to work with what a claim has read."""
    sent = reply.sent if rules.lease_counts_from == "request" else 0.0
    replica = world.replicas[r]
    cursor, commits = reply.cursor, reply.commits
    if replica.state == DOUBT and rules.memory_kept_in_doubt:
        cursor = replica.cursor + (rules.memory_kept_in_doubt == "as after the commit")
    if replica.state == CLAIMING and rules.memory_kept_after_loss and replica.token:
        cursor = replica.cursor
    after = world.put(
        r,
        state=OWNER,
        owner=reply.owner,
        token=reply.token,
        commits=commits,
        cursor=cursor,
        ends=max(lease_end(sent, LEASE), 0.0),
        next_try=0.0,
        poll=rules.claim_polls,
        reply=None,
    )
    if cursor != reply.now.cursor:
        return after.breaks(
            5, f"{NAMES[r]} starts at {cursor} messages done; the claimed row has {reply.now.cursor}"
        )
    return after


def owning(world, r, replica, rules):
    yield from renewing(world, r, replica, rules)
    if replica.ends <= 0 and rules.handler_checks_end:
        return
    if replica.wanted:
        left = world.send(Message("release", r, replica.owner, live=False))
        yield "hands over: releases, and stands by", ended(left, r, replica, rules, next_try=STEP)
        return
    if replica.poll:
        after = world.put(r, poll=False)
        if replica.owner == world.db.lease.owner:
            after = after._replace(owed=False, excused=False)
        yield "polls", after
        return
    if replica.cursor < world.left.messages:
        yield f"starts the handler of message {replica.cursor + 1}", starts(world, r, replica, rules)


def starts(world, r, replica, rules):
    """Return the world in which a handler runs. Its transaction ends with the commit."""
    phase = "sent" if rules.compares == "last" else "compares first"
    commit = Message("commit", r, replica.owner, replica.token, replica.cursor, replica.commits, phase=phase)
    after = world.send(commit).put(r, state=COMMITTING)
    name = f"{NAMES[r]} starts a handler"
    if replica.state == LOST:
        return after.breaks(4, f"{name} after it lost the name")
    if replica.ends <= 0:
        return after.breaks(4, f"{name} after the end of its lease")
    if world.failed_over:
        return after  # the replica cannot know yet what the database has forgotten
    if any(m.kind == "commit" and m.owner == replica.owner and fits(m, world.db.progress) for m in world.network):
        return after.breaks(4, f"{name} while a commit in doubt can still take effect")
    if replica != world.holder() or world.db.lease.until <= 0:
        return after.breaks(4, f"{name} although the database does not call it the owner")
    return after


def renewing(world, r, replica, rules):
    """Yield what the housekeeping of a session does, in each of its states."""
    reply = replica.heartbeat
    if reply:
        after = world.put(r, heartbeat=None)
        if reply.owner != replica.owner:
            yield "ignores the answer to the heartbeat of an old session", after
        elif reply.kind == "no row":
            yield "reads that its heartbeat found no lease", lost(world, r)
        else:
            sent = reply.sent if rules.lease_counts_from == "request" else 0.0
            ends = max(replica.ends, lease_end(sent, LEASE))
            yield "reads that its lease is renewed", after.put(r, ends=ends, wanted=replica.wanted or reply.wanted)
    elif world.left.heartbeats and not any(
        m.kind == "heartbeat" and m.replica == r and m.live for m in world.network
    ):
        yield "sends a heartbeat", world.send(Message("heartbeat", r, replica.owner)).spend("heartbeats")
    if replica.ends <= 0 and rules.handler_checks_end:
        yield "sees that its lease has ended", lost(world, r)


def lost(world, r):
    return world.abandon(r, *MAIN, "heartbeat").put(r, state=LOST, reply=None, heartbeat=None)


def committing(world, r, replica, rules):
    yield from renewing(world, r, replica, rules)
    reply = replica.reply
    if reply is None:
        return
    if reply.kind == "committed":
        yield (
            "reads that its commit took effect",
            world.put(r, state=OWNER, reply=None, cursor=replica.cursor + 1, commits=replica.commits + 1),
        )
    elif reply.kind == "other owner":
        yield "reads that its commit was refused: the name has another owner", lost(world, r)
    else:
        yield "reads that its commit failed, and is in doubt", world.put(r, state=DOUBT, reply=None)


def doubting(world, r, replica, rules):
    yield from renewing(world, r, replica, rules)
    if replica.reply:
        if replica.reply.kind == "row":
            yield "reads that it owns the name again", owns(world, r, replica.reply, rules)
        else:
            yield "reads that it has lost the name", lost(world, r)
        return
    if replica.ends <= 0 or any(m.kind == "again" and m.replica == r and m.live for m in world.network):
        return
    released = world.send(Message("release", r, replica.owner, live=False))
    yield "releases in doubt, and stands by", ended(released, r, replica, rules, next_try=STEP)
    if rules.in_doubt == "claim again":
        yield "claims again", world.send(Message("again", r, replica.owner, replica.token))
        return
    progress = world.db.progress
    if progress.owner != replica.owner:
        yield "reads the row: another owner", lost(world, r)
    else:
        yield (
            f"reads the row: {progress.cursor} messages done",
            world.put(r, state=OWNER, cursor=progress.cursor, commits=progress.commits),
        )


def losing(world, r, replica, rules):
    yield "has ended the session", ended(world, r, replica, rules, next_try=0.0)
    if not rules.handler_checks_loss and replica.cursor < world.left.messages and replica.ends > 0:
        yield f"starts the handler of message {replica.cursor + 1}", starts(world, r, replica, rules)


def ended(world, r, replica, rules, *, next_try):
    """Return the world in which a replica stands by and has dropped its session."""
    world = world.abandon(r, *MAIN, "heartbeat")
    memory = {"cursor": replica.cursor, "token": replica.token} if rules.memory_kept_after_loss else {}
    return world.with_replica(r, Replica(next_try=next_try, **memory))


ACTIONS = {
    STANDBY: standing_by,
    CLAIMING: claiming,
    OWNER: owning,
    COMMITTING: committing,
    DOUBT: doubting,
    LOST: losing,
}


def interruptions(world, r, replica):
    """Yield each way in which a replica can be stopped or killed, or lose its connection."""
    if world.left.crashes and replica.state in {CLAIMING, *SESSION}:
        gone = world.abandon(r, *MAIN, "heartbeat").spend("crashes")
        yield f"{NAMES[r]} is killed", gone.with_replica(r, Replica(state=DOWN))
    if replica.paused:
        return
    if world.left.pauses and replica.state in {CLAIMING, *SESSION}:
        yield f"{NAMES[r]} is stopped", world.put(r, paused=True).spend("pauses")
    waits = replica.reply or any(m.replica == r and m.live and m.kind in MAIN for m in world.network)
    if replica.state == CLAIMING and waits and world.left.lost_claims:
        after = world.abandon(r, *MAIN).spend("lost_claims").put(r, state=STANDBY, reply=None)
        yield f"{NAMES[r]}'s connection is cut during the claim", after
    elif replica.state in SESSION and waits and world.left.cuts:
        when = "while it claims again" if replica.state == DOUBT else "during the commit"
        after = world.abandon(r, *MAIN).spend("cuts").put(r, state=DOUBT, reply=None)
        yield f"{NAMES[r]}'s connection is cut {when}", after


def pushes(world, r, replica, rules):
    """Yield what a replica does with a push that arrives at it."""
    if not world.left.wakes:
        return
    after = world.spend("wakes")._replace(owed=True)
    if replica.state in SESSION and (replica.ends > 0 or not rules.ended_session_forwards_wakes):
        after = after.put(r, poll=True)
        if world.failed_over and replica != world.holder():
            after = after._replace(excused=True)  # it cannot know yet that the database forgot it
        yield f"a wake arrives at {NAMES[r]}", after
    elif rules.standby_forwards_wakes:
        yield f"a wake arrives at {NAMES[r]}, which forwards it", after.send(Message("wake", live=False))
    else:
        yield f"a wake arrives at {NAMES[r]}, which stands by", after
