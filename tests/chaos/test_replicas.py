"""Replicas of one consumer under faults: one owner, nothing lost, effects exactly once (G8, G10).

The verdicts are drawn from the history that triggers of the database write, not from what a client says.
"""

import pytest

from tests.chaos.bank_lives import balances
from tests.chaos.database_history import read_history
from tests.chaos.journals import elapse
from tests.chaos.processes import Load
from tests.chaos.replica_processes import Faults
from tests.support.forms import form

LEASE = form(1.0, 2.0)

HANDLERS = {"effects elsewhere": None, "coroutine": "coroutine", "function": "function"}


def handlers(*, short, long=tuple(HANDLERS)):
    """Parametrize a test by the kind of handler: one in the short form."""
    kinds = [pytest.param(HANDLERS[k], id=k, marks=() if k == short else pytest.mark.long_form) for k in long]
    return pytest.mark.parametrize("transfers", kinds)


@handlers(short="function")
def test_no_message_is_lost_or_recorded_twice_under_random_faults(replicas, started, chance, figures, transfers):
    replicas = replicas(transfers, count=5, lease=LEASE)
    load = started(Load, replicas.server, seed=chance.random(), rate=50)
    replicas.until_owned()
    faults = Faults(replicas, chance)
    faults.run(form(3, 200))
    load.pause()
    replicas.end()
    figures(f"{replicas.judge()}; {described(faults.counts)}")


@pytest.mark.long_form
@handlers(short="", long=("effects elsewhere", "coroutine"))
def test_no_message_is_lost_or_recorded_twice_through_a_pooler(replicas, started, chance, figures, transfers):
    replicas = replicas(transfers, count=5, lease=LEASE, pooled=True)
    load = started(Load, replicas.server, seed=chance.random(), rate=50)
    replicas.until_owned()
    faults = Faults(replicas, chance)
    faults.run(100)
    load.pause()
    replicas.end()
    figures(f"{replicas.judge()}; {described(faults.counts)}")


@handlers(short="coroutine")
def test_no_message_is_lost_or_recorded_twice_while_the_database_is_killed(
    replicas, started, chance, figures, transfers
):
    replicas = replicas(transfers, count=5, lease=LEASE)
    load = started(Load, replicas.server, seed=chance.random(), rate=200)
    replicas.until_owned()
    faults = Faults(replicas, chance, database=True, network=False)
    faults.run(form(3, 100))
    load.pause()
    replicas.end()
    figures(f"{replicas.judge()}; {described(faults.counts)}")


@handlers(short="function", long=("coroutine", "function"))
def test_each_transfer_is_done_exactly_once_when_its_owner_is_killed(replicas, chance, figures, transfers):
    kills = form(3, 250)
    replicas = replicas(transfers, count=3, lease=1.0, takes=0.0)
    for _ in range(kills):
        replicas.server.publish(20)
        owner = replicas.until_one_handles()
        elapse(chance.uniform(0, 0.1))
        owner.process.kill()
        owner.start()
    replicas.end()
    figures(f"{kills} killed; {replicas.judge()}")
    assert read_history(replicas.database.server.conninfo).balances == balances(replicas.server.published)


@handlers(short="effects elsewhere")
def test_a_commit_that_arrives_after_the_claim_of_another_replica_writes_nothing(
    replicas, started, chance, figures, transfers
):
    replicas, rounds = replicas(transfers, count=2, lease=1.0), form(1, 30)
    load = started(Load, replicas.server, seed=chance.random(), rate=200)
    for _ in range(rounds):
        owner = replicas.until_one_handles()
        before = replicas.claims()
        owner.store.delay(chance.uniform(1.5, 3.0))  # also what is under way
        replicas.until(lambda before=before: replicas.claims() > before, "another replica claims the name")
        owner.store.heal()
    load.pause()
    replicas.end()
    figures(f"{rounds} times late; {replicas.judge()}")


@handlers(short="coroutine")
def test_a_fail_over_that_loses_commits_loses_no_message(replicas, started, chance, figures, transfers):
    """The owner keeps its lease, so that its memory is ahead of the new primary."""
    replicas, rounds = replicas(transfers, count=3, lease=30.0), form(1, 20)
    database, load = replicas.database, started(Load, replicas.server, seed=chance.random(), rate=100)
    for _ in range(rounds):
        replicas.until_one_handles()
        standby = database.server.replica()
        standby.start()
        standby.catch_up()
        standby.disconnect()
        before = database.place()
        replicas.until(lambda before=before: database.place() > before, "the old primary has more commits")
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
