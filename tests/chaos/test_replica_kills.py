"""Owners that are killed while they move money, and commits that arrive after another claim (G8, G10)."""

from tests.chaos.bank_lives import balances
from tests.chaos.database_history import read_history
from tests.chaos.journals import elapse
from tests.chaos.replica_processes import handlers
from tests.support.forms import form


@handlers(short="function", long=("coroutine", "function"))
def test_each_transfer_is_done_exactly_once_when_its_owner_is_killed(replicas, chance, figures, transfers):
    kills = form(2, 250)
    replicas = replicas(transfers, count=form(2, 3), lease=1.0, takes=0.0)
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
    replicas, chance, figures, transfers
):
    """The other replica cannot read the feed then, else its own records would refuse the late ones."""
    replicas, rounds = replicas(transfers, count=2, lease=1.0, takes=0.2), form(1, 20)
    for _ in range(rounds):
        replicas.server.publish(2)
        owner = replicas.until_one_handles()
        [other] = [replica for replica in replicas.all if replica is not owner]
        before, late = replicas.claims(), chance.uniform(1.0, 1.5)
        other.feed.blackhole()
        owner.store.delay(late)  # what it sends next is the commit
        replicas.until(lambda before=before: replicas.claims() > before, "another replica claims the name")
        elapse(2 * late)  # the statements of a commit arrive in two pieces
        owner.store.heal()
        other.feed.heal()
    replicas.end()
    figures(f"{rounds} times late; {replicas.judge()}")
