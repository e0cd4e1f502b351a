"""Plan of one life of several replicas of a consumer, drawn from a number."""

from dataclasses import dataclass, field
from random import Random

from tests.simulation.plan import Described, FeedPlan

__all__ = ["Fault", "Pushed", "ReplicasPlan", "draw_replicas"]

TROUBLE = 150.0
"""Seconds until the faults end."""


@dataclass
class Fault:
    """A fault, at a time in seconds after the start.

    Attributes:
        what: "stop" and "crash" (then started again), "freeze" (nothing runs in the process), "stall" (its leases
            are not renewed), "cut" (it cannot reach the store), "doubt" (its next commit), "expire" (its lease),
            "want" (the owner is asked for a hand-over), or "lose wakes".
        replica: Number of the replica; the owner if -1.
        lasts: Seconds.
        outcome: Of a commit in doubt.
    """

    at: float
    what: str
    replica: int
    lasts: float
    outcome: str = "lost"

    def __str__(self) -> str:
        return f"{self.what} {self.replica} at {self.at:.1f} for {self.lasts:.1f}"


@dataclass
class Pushed:
    """Messages that are published together, and the replica that their push reaches; -1 for no push."""

    at: float
    count: int
    replica: int


@dataclass
class ReplicasPlan(Described):
    """Plan of one life.

    Attributes:
        takes: Seconds of each call of the handler.
        trip: Most seconds of a request to the store, and of its answer.
        transactional: True if the handler writes in the transaction of its record.
    """

    seed: int
    feed: FeedPlan
    replicas: int = 2
    takes: float = 0.0
    trip: float = 0.0
    transactional: bool = False
    concurrency: int = 1
    commit_interval: float = 0.05
    fallback_interval: float = 60.0
    shutdown_timeout: float = 10.0
    faults: list[Fault] = field(default_factory=list)
    published: list[Pushed] = field(default_factory=list)

    def __str__(self) -> str:
        faults = "; ".join(map(str, self.faults))
        return f"{super().__str__()} feed({self.feed}) faults({faults})".replace("faults=", "", 1)


FAULTS = {
    "stop": (0.0, 20.0), "crash": (0.0, 20.0), "freeze": (0.5, 30.0), "stall": (0.5, 30.0), "cut": (0.5, 30.0),
    "doubt": (0.0, 20.0), "expire": (0.0, 0.0), "want": (0.0, 0.0), "lose wakes": (0.0, 0.0),
}  # fmt: skip
"""Shortest and longest duration of each fault."""


def draw_replicas(seed: int) -> ReplicasPlan:
    """Draw the plan of one life."""
    chance = Random(f"replicas {seed}")  # noqa: S311  # not for secrets
    replicas = chance.choice((1, 2, 2, 3))
    feed = FeedPlan(
        cursors=chance.choice(("message", "page", "chain")),
        page_size=chance.choice((1, 5, 20)),
        latency=chance.choice((0.0, 0.05, 1.0)),
        repeats=chance.choice((0.0, 0.0, 0.1)),
        read_ahead=chance.random() < 0.3,
        failing=chance.choice((0.0, 0.0, 0.1)),
    )
    plan = ReplicasPlan(
        seed,
        feed,
        replicas,
        takes=chance.choice((0.0, 0.01, 0.2, 2.0)),
        trip=chance.choice((0.0, 0.002, 0.2)),
        transactional=chance.random() < 0.3,
        concurrency=chance.choice((1, 1, 1, 4)),
        commit_interval=chance.choice((0.0, 0.05, 1.0)),
        fallback_interval=chance.choice((10.0, 60.0, 600.0)),
        shutdown_timeout=chance.choice((0.5, 10.0)),
    )
    known = chance.sample(sorted(FAULTS), chance.randint(1, len(FAULTS)))
    for _ in range(chance.choice((0, 1, 2, 5, 12))):
        what = chance.choice(known)
        shortest, longest = FAULTS[what]
        plan.faults.append(
            Fault(
                at=chance.uniform(0.0, TROUBLE),
                what=what,
                replica=chance.choice((-1, -1, chance.randrange(replicas))),
                lasts=shortest + (longest - shortest) * chance.random() ** 2,
                outcome=chance.choice(("lost", "landed", "late")),
            )
        )
    plan.faults.sort(key=lambda fault: fault.at)
    most = 3 if plan.takes > 1 else 12
    for _ in range(chance.randint(1, 25)):
        at = chance.choice((0.0, chance.uniform(0.0, TROUBLE), chance.uniform(0.0, TROUBLE)))
        if plan.faults and chance.random() < 0.4:  # around a fault
            at = max(0.0, chance.choice(plan.faults).at + chance.uniform(-1.0, 1.0))
        plan.published.append(Pushed(at, chance.randint(1, most), chance.choice((-1, *range(replicas)))))
    plan.published.sort(key=lambda pushed: pushed.at)
    return plan
