"""The world of the model of ownership: a database, two replicas, and the network between them.

Times are relative to now, so two worlds that differ only in the time of day are equal. A lease is 60 s long, and
time moves in steps of a third of it.
"""

from typing import NamedTuple

LEASE = 60.0
STEP = LEASE / 3

STANDBY, CLAIMING, OWNER, COMMITTING = "STANDBY", "CLAIMING", "OWNER", "COMMITTING"
DOUBT, LOST, DOWN = "DOUBT", "LOST", "DOWN"
SESSION = {OWNER, COMMITTING, DOUBT}
"""States of a replica with a session. LEAVING is OWNER with `wanted`: it starts no handler, and releases."""


NAMES = "AB"
MAIN = ("claim", "again", "commit")
"""Requests of which a replica has one at a time. Heartbeats have a connection of their own."""


class Rules(NamedTuple):
    """The rules of the protocol. Each default is right, each other value is a bug."""

    compared: tuple[str, ...] = ("token", "owner", "commits")
    comparison_raises: bool = True
    compares: str = "last"  # or "first": the row stays locked; "first without a lock"
    in_doubt: str = "claim again"  # or "read the row"
    again_raises_token: bool = True
    memory_kept_in_doubt: str = ""  # or "as before the commit", "as after the commit"
    memory_kept_after_loss: bool = False
    reads_before_claim: bool = False
    claim_waits_for_lease: bool = True
    handler_checks_end: bool = True
    handler_checks_loss: bool = True
    heartbeat_compares: tuple[str, ...] = ("owner", "until")
    release_compares_owner: bool = True
    release_keeps_token: bool = True
    lease_counts_from: str = "request"  # or "answer"
    next_try_counts_from: str = "request"  # or "answer"
    standby_forwards_wakes: bool = True
    ended_session_forwards_wakes: bool = True
    claim_polls: bool = True
    reconnect_polls: bool = True


class Limits(NamedTuple):
    """How often each event can still happen, and the number of messages in the feed.

    The messages are there from the start. Each has one effect, written by its handler's transaction.
    """

    messages: int = 1
    claims: int = 2
    heartbeats: int = 0
    cuts: int = 0  # of commits and second claims
    lost_claims: int = 0
    pauses: int = 0
    crashes: int = 0
    failovers: int = 0
    handovers: int = 0
    wakes: int = 0


class Lease(NamedTuple):
    """The row of the lease. It has ended if `until` is 0."""

    until: float = 0.0
    token: int = 0
    owner: int = 0
    wanted: bool = False


class Progress(NamedTuple):
    """The row of the cursor: the number of messages done, and the three values of the fence."""

    cursor: int = 0
    token: int = 0
    owner: int = 0
    commits: int = 0


class Database(NamedTuple):
    lease: Lease = Lease()
    progress: Progress = Progress()
    records: tuple[int, ...] = (0, 0)
    effects: tuple[int, ...] = (0, 0)


class Reply(NamedTuple):
    """An answer of the database that the replica has not read yet."""

    kind: str
    owner: int = 0
    token: int = 0
    cursor: int = 0
    commits: int = 0
    seconds_left: float = 0.0
    sent: float = 0.0
    wanted: bool = False
    now: Progress | None = None  # the row as the claim left it; only the checks read it


class Replica(NamedTuple):
    state: str = STANDBY
    paused: bool = False
    owner: int = 0
    token: int = 0
    commits: int = 0
    cursor: int = 0
    ends: float = 0.0
    next_try: float = 0.0
    poll: bool = False
    wanted: bool = False
    reply: Reply | None = None
    heartbeat: Reply | None = None


class Message(NamedTuple):
    """A request on its way to the database, or a transaction that the database has begun.

    `live` is False once its sender has given up: it can still arrive, at any time.
    """

    kind: str
    replica: int = 0
    owner: int = 0
    token: int = 0
    cursor: int = 0
    commits: int = 0
    sent: float = 0.0
    phase: str = ""
    live: bool = True


class World(NamedTuple):
    """Everything, with what the checks have to remember.

    Attributes:
        claims: Number of claims that got the name; also the identity of the newest owner.
        token: The newest token, which the next claim has to exceed.
        copy: The database as it was when replication stopped: a fail-over returns to it.
        deadline: Time by which the name must be owned again: the longest lease that was granted, and a third more.
        owed: True after a wake, until a poll of the owner starts.
        excused: True if the network lost the forwarded wake: the fallback timer has to poll.
        broken: The assertion that the last event broke, and how.
    """

    left: Limits
    db: Database = Database()
    copy: Database | None = None
    replicas: tuple[Replica, Replica] = (Replica(), Replica())
    network: tuple[Message, ...] = ()
    claims: int = 0
    token: int = 0
    failed_over: bool = False
    deadline: float = STEP
    owed: bool = False
    excused: bool = False
    broken: tuple[int, str] | None = None

    def holder(self):
        """Return the replica that the database and its own clock call the owner, None if there is none."""
        for replica in self.replicas:
            if replica.state in SESSION and replica.ends > 0 and replica.owner == self.db.lease.owner:
                return replica
        return None

    def with_replica(self, r, replica):
        first, second = self.replicas
        return self._replace(replicas=(replica, second) if r == 0 else (first, replica))

    def put(self, r, **changes):
        """Return the world with changes of one replica."""
        return self.with_replica(r, self.replicas[r]._replace(**changes))

    def send(self, message):
        """Return the world with one more message in the network, which is sorted and has no other order."""
        return self._replace(network=tuple(sorted((*self.network, message))))

    def without(self, message):
        at = self.network.index(message)
        return self._replace(network=self.network[:at] + self.network[at + 1 :])

    def abandon(self, r, *kinds):
        """Return the world in which a replica no longer waits for its requests, which may still arrive."""
        network = [
            m._replace(live=False, sent=0.0) if m.live and m.replica == r and m.kind in kinds else m
            for m in self.network
        ]
        return self._replace(network=tuple(sorted(network)))

    def spend(self, event):
        """Return the world in which an event can happen once less."""
        return self._replace(left=self.left._replace(**{event: getattr(self.left, event) - 1}))

    def lengthens(self, lease):
        """Return the world with this row of the lease, and a deadline that allows for it."""
        deadline = max(self.deadline, lease.until + STEP)
        return self._replace(db=self.db._replace(lease=lease), deadline=deadline)

    def breaks(self, assertion, how):
        """Return the world with a broken assertion; the first one counts."""
        return self if self.broken else self._replace(broken=(assertion, how))

    def reduced(self):
        """Return the world without differences that no later event depends on."""
        world = self
        if not (world.left.wakes or world.owed):
            first, second = world.replicas
            if first.poll or second.poll:
                world = world._replace(replicas=(first._replace(poll=False), second._replace(poll=False)))
        if not world.left.claims:
            network = tuple(m for m in world.network if m.kind != "claim")
            replicas = tuple(replica._replace(next_try=0.0) for replica in world.replicas)
            world = world._replace(network=network, replicas=replicas, deadline=0.0)
        return world
