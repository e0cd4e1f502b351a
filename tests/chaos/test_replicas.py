"""Replicas of one consumer under faults: one owner, nothing lost, effects exactly once (G8, G10).

The verdicts are drawn from the history that triggers of the database write, not from what a client says.
"""

import pytest

from tests.chaos.journals import elapse, until
from tests.chaos.processes import GUARD, Load
from tests.chaos.replica_processes import Faults
from tests.support.forms import form

LEASE = form(1.0, 2.0)

HANDLERS = [
    pytest.param(None, id="effects elsewhere", marks=()),
]


@pytest.mark.parametrize("transfers", HANDLERS)
def test_no_message_is_lost_or_recorded_twice_under_random_faults(replicas, started, chance, figures, transfers):
    replicas = replicas(transfers, count=5, lease=LEASE)
    load = started(Load, replicas.server, seed=chance.random(), rate=50)
    replicas.until_owned()
    faults = Faults(replicas, chance)
    faults.run(form(4, 600))
    load.pause()
    replicas.end()
    figures(f"{replicas.judge()}; {described(faults.counts)}")


@pytest.mark.parametrize("transfers", HANDLERS)
def test_no_message_is_lost_or_recorded_twice_while_the_database_is_killed(
    replicas, started, chance, figures, transfers
):
    replicas = replicas(transfers, count=5, lease=LEASE)
    load = started(Load, replicas.server, seed=chance.random(), rate=200)
    replicas.until_owned()
    faults = Faults(replicas, chance, database=True, network=False)
    faults.run(form(4, 300))
    load.pause()
    replicas.end()
    figures(f"{replicas.judge()}; {described(faults.counts)}")


@pytest.mark.parametrize("transfers", HANDLERS)
def test_a_commit_that_arrives_after_the_claim_of_another_replica_writes_nothing(
    replicas, started, chance, figures, transfers
):
    replicas, rounds = replicas(transfers, count=2, lease=1.0), form(2, 50)
    load = started(Load, replicas.server, seed=chance.random(), rate=200)
    for _ in range(rounds):
        owner = replicas.until_owned()
        owner.until_handled()
        before = replicas.claims()
        owner.store.delay(chance.uniform(1.5, 3.0))  # also what is under way
        until(lambda before=before: replicas.claims() > before, GUARD, "another replica claims the name")
        owner.store.heal()
    load.pause()
    replicas.end()
    figures(f"{rounds} times late; {replicas.judge()}")


@pytest.mark.parametrize("transfers", HANDLERS)
def test_a_fail_over_that_loses_commits_loses_no_message(replicas, started, chance, figures, transfers):
    """The owner keeps its lease, so that its memory is ahead of the new primary."""
    replicas, rounds = replicas(transfers, count=3, lease=30.0), form(1, 20)
    database, load = replicas.database, started(Load, replicas.server, seed=chance.random(), rate=100)
    for _ in range(rounds):
        replicas.until_owned().until_handled()
        standby = database.server.replica()
        standby.start()
        standby.catch_up()
        standby.disconnect()
        before = database.place()
        until(lambda before=before: database.place() > before, GUARD, "the old primary has more commits")
        elapse(chance.uniform(0, 0.2))
        database.server.kill()
        database.follow(standby)
        replicas.lead_to(standby)  # still read-only
        elapse(chance.uniform(0, 0.5))
        standby.promote()
    load.pause()
    replicas.end()
    figures(f"{rounds} fail-overs that lost commits; {replicas.judge()}")


def described(counts):
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
