"""What happens at the database of the model of ownership: requests arrive, and a fail-over takes commits back."""

from tests.support.ownership_world import LEASE, NAMES, SESSION, STANDBY, Lease, Reply


def is_locked(world):
    """Return True if an open transaction holds the row of the cursor."""
    return any(m.phase in {"compared", "holds the row"} for m in world.network)


def fits(message, progress):
    """Return True if the comparison of all three values finds the row."""
    return (message.token, message.owner, message.commits) == progress[1:]


def arrivals(world, message, rules):
    """Yield what can happen next with a message in the network, in words, and the world afterwards."""
    name = f"{NAMES[message.replica]}'s "
    name += {"claim": "claim", "again": "second claim"}.get(message.kind, message.kind)
    name += "" if message.live or message.kind == "release" else ", late,"
    if message.kind == "commit":
        yield from commit_steps(world, message, name, rules)
    elif message.kind == "claim" and world.left.claims and not is_locked(world):
        yield claim_arrives(world, message, name, rules)
    elif message.kind == "again" and not is_locked(world):
        yield again_arrives(world, message, name, rules)
    elif message.kind == "heartbeat":
        yield heartbeat_arrives(world, message, name, rules)
    elif message.kind == "release":
        yield from release_arrives(world, message, name, rules)
    elif message.kind == "wake":
        yield from wake_arrives(world, message)


def answer(world, message, reply):
    """Return the world in which a request is done, and its sender can read the answer."""
    after = world.without(message)
    if not message.live:
        return after
    reply = reply._replace(sent=message.sent)
    slot = "heartbeat" if message.kind == "heartbeat" else "reply"
    return after.put(message.replica, **{slot: reply})


def granted(world, owner, token):
    """Return the world in which the database gives the lease to an owner, in both rows."""
    progress = world.db.progress._replace(token=token, owner=owner)
    after = world._replace(db=world.db._replace(progress=progress), token=token)
    after = after.lengthens(Lease(LEASE, token, owner))
    if token <= world.token:
        return after.breaks(3, f"a claim got token {token} after token {world.token}")
    return after


def claim_arrives(world, message, name, rules):
    """Return what a claim does: both rows change and are read in one transaction."""
    lease = world.db.lease
    if lease.until > 0 and rules.claim_waits_for_lease:
        return f"{name} finds the name owned", answer(world, message, Reply("busy", seconds_left=lease.until))
    owner = world.claims + 1
    after = granted(world, owner, lease.token + 1)._replace(claims=owner).spend("claims")
    row = after.db.progress
    read = (message.cursor, message.commits) if rules.reads_before_claim else (row.cursor, row.commits)
    reply = Reply("row", owner, lease.token + 1, *read, now=row)
    return f"{name} gets the name with token {lease.token + 1}", answer(after, message, reply)


def again_arrives(world, message, name, rules):
    """Return what a second claim does. It compares the owner only: an earlier one may have raised the token."""
    lease = world.db.lease
    if lease.owner != message.owner or lease.until <= 0:
        return f"{name} finds no lease", answer(world, message, Reply("no row"))
    if rules.again_raises_token:
        after = granted(world, message.owner, lease.token + 1)
    else:
        after = world.lengthens(lease._replace(until=LEASE))
    row = after.db.progress
    reply = Reply("row", message.owner, row.token, row.cursor, row.commits, now=row)
    return f"{name} gets the name with token {row.token}", answer(after, message, reply)


def heartbeat_arrives(world, message, name, rules):
    lease = world.db.lease
    current = lease.owner == message.owner, lease.until > 0
    compared = "owner" in rules.heartbeat_compares, "until" in rules.heartbeat_compares
    if any(asked and not right for asked, right in zip(compared, current, strict=True)):
        return f"{name} finds no lease", answer(world, message, Reply("no row", message.owner))
    after = world.lengthens(lease._replace(until=LEASE))
    if not all(current):
        after = after.breaks(6, f"{name} renewed a lease that is not its own any more")
    return f"{name} renews the lease", answer(after, message, Reply("row", message.owner, wanted=lease.wanted))


def release_arrives(world, message, name, rules):
    lease, after = world.db.lease, world.without(message)
    mine = lease.owner == message.owner
    if lease.until <= 0 or (rules.release_compares_owner and not mine):
        yield f"{name} changes nothing", after
        return
    freed = lease._replace(until=0.0, wanted=False)
    progress = world.db.progress
    if not rules.release_keeps_token:
        freed, progress = freed._replace(token=0), progress._replace(token=0, owner=0)
    after = after._replace(db=world.db._replace(lease=freed, progress=progress))
    if not mine:
        after = after.breaks(6, f"{name} freed the lease of another owner")
    yield f"{name} frees the name, and no replica hears it", after
    for r, replica in enumerate(world.replicas):
        if replica.state == STANDBY and not replica.paused and r != message.replica:
            yield f"{name} frees the name, and {NAMES[r]} hears it", after.put(r, next_try=0.0)


def wake_arrives(world, message):
    after = world.without(message)
    yield "the forwarded wake is lost", after._replace(excused=world.owed)
    holder = world.holder()
    if holder is None or not holder.paused:
        for r, replica in enumerate(world.replicas):
            if replica.state in SESSION and not replica.paused:
                after = after.put(r, poll=True)
        yield "the forwarded wake arrives", after


def commit_steps(world, message, name, rules):
    """Yield what can happen to a transaction: its comparison, its COMMIT, or a lost connection before it."""
    name += f" of message {message.cursor + 1}"
    if message.phase == "sent":
        if not is_locked(world):
            yield compares(world, message, name, rules, "compared")
    elif message.phase == "compares first":
        if not is_locked(world):
            yield compares(
                world, message, name, rules, "holds the row" if rules.compares == "first" else "checked"
            )
    else:
        sender = world.replicas[message.replica]
        if message.phase in {"holds the row", "checked"} and message.live and sender.paused:
            return  # the handler has not come to its end
        yield committed(world, message, name)
        if not message.live:
            yield f"{name} is rolled back: its connection is gone", world.without(message)


def compares(world, message, name, rules, phase):
    row = world.db.progress
    if all(getattr(message, value) == getattr(row, value) for value in rules.compared):
        return f"the comparison of {name} finds the row", world.without(message).send(
            message._replace(phase=phase)
        )
    if not rules.comparison_raises:
        after = world.without(message).send(message._replace(phase="unfenced"))
        return f"the comparison of {name} finds no row, and raises nothing", after
    kind = "other values" if row.owner == message.owner else "other owner"
    return f"the comparison of {name} finds no row, and raises", answer(world, message, Reply(kind))


def committed(world, message, name):
    db, done = world.db, message.cursor
    effects = tuple(n + (i == done) for i, n in enumerate(db.effects))
    records = tuple(int(n or i == done) for i, n in enumerate(db.records))
    row, reply = db.progress, Reply("other owner")
    if message.phase != "unfenced":
        row, reply = row._replace(cursor=done + 1, commits=row.commits + 1), Reply("committed")
    after = world._replace(db=db._replace(progress=row, effects=effects, records=records))
    newest = db.progress.token, db.progress.owner
    if (message.token, message.owner) != newest:
        how = f"{name} wrote with token {message.token}; the newest claim has token {newest[0]}"
        after = after.breaks(2, how + ("" if message.owner == newest[1] else " and another owner"))
    if row[1::2] < db.progress[1::2]:
        after = after.breaks(3, f"{name} lowered the number of commits")
    return f"COMMIT of {name} is done", answer(after, message, reply)


def operations(world, rules):
    """Yield what happens to the database as a whole, and what its operators do."""
    if world.left.handovers and world.db.lease.until > 0 and not world.db.lease.wanted:
        lease = world.db.lease._replace(wanted=True)
        after = world._replace(db=world.db._replace(lease=lease)).spend("handovers")
        yield "an operator asks the owner to hand over", after
        for r, replica in enumerate(world.replicas):
            if replica == world.holder() and not replica.paused:
                yield (
                    f"an operator asks the owner to hand over, and {NAMES[r]} hears it",
                    after.put(r, wanted=True),
                )
    if world.left.failovers and world.copy is None:
        yield "replication stops", world._replace(copy=world.db)
    if world.copy is not None and world.copy != world.db:
        yield "fail-over: the database returns to the moment when replication stopped", failed_over(world, rules)


def failed_over(world, rules):
    """Return the world after a lossy fail-over. Open transactions are gone; requests may still arrive."""
    after = world
    for message in world.network:
        if message.kind == "wake":
            after = after.without(message)
        elif message.kind == "commit" and message.phase not in {"sent", "compares first"}:
            after = answer(after, message, Reply("connection lost"))
    for r, replica in enumerate(world.replicas):
        if replica.state in SESSION and rules.reconnect_polls:
            after = after.put(r, poll=True)
    after = after._replace(db=world.copy, copy=None, token=world.copy.lease.token, failed_over=True)
    return after.lengthens(world.copy.lease).spend("failovers")
