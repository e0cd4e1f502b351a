"""Owners that are killed while they move money, and commits that arrive after another claim (G8, G10)."""

from tests.chaos.bank_lives import balances
from tests.chaos.database_history import read_history
from tests.chaos.journals import elapse
from tests.chaos.processes import Load
from tests.chaos.replica_processes import handlers
from tests.support.forms import form


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
    replicas, rounds = replicas(transfers, count=2, lease=1.0), form(1, 20)
    load = started(Load, replicas.server, seed=chance.random(), rate=form(50, 200))
    for _ in range(rounds):
        owner = replicas.until_one_handles()
        before = replicas.claims()
        owner.store.delay(chance.uniform(1.5, 3.0))  # also what is under way
        replicas.until(lambda before=before: replicas.claims() > before, "another replica claims the name")
        owner.store.heal()
    load.pause()
    replicas.end()
    figures(f"{rounds} times late; {replicas.judge()}")
