"""The database of replicas is killed, or replaced by a standby that lacks commits, under load (G8, G10)."""

from tests.chaos.journals import elapse
from tests.chaos.processes import Load
from tests.chaos.replica_processes import LEASE, Faults, handlers
from tests.support.forms import form


@handlers(short="coroutine")
def test_no_message_is_lost_or_recorded_twice_while_the_database_is_killed(
    replicas, started, chance, figures, transfers
):
    replicas = replicas(transfers, count=form(3, 5), lease=LEASE)
    load = started(Load, replicas.server, seed=chance.random(), rate=form(50, 200))
    replicas.until_owned()
    faults = Faults(replicas, chance, database=True, network=False)
    faults.run(form(3, 100))
    load.pause()
    replicas.end()
    figures(f"{replicas.judge()}; {faults}")


@handlers(short="coroutine")
def test_a_fail_over_that_loses_commits_loses_no_message(replicas, started, chance, figures, transfers):
    """The owner keeps its lease, so that its memory is ahead of the new primary."""
    replicas, rounds = replicas(transfers, count=form(2, 3), lease=30.0), form(1, 20)
    database, load = replicas.database, started(Load, replicas.server, seed=chance.random(), rate=50)
    for _ in range(rounds):
        replicas.until_one_handles()
        standby = database.start_standby()
        standby.catch_up()
        standby.disconnect()
        before = database.place()
        replicas.until(lambda before=before: database.place() > before, "the old primary has more commits")
        elapse(chance.uniform(0, 0.2))
        database.server.kill()
        database.follow_standby()
        replicas.lead_to(standby)  # still read-only
        elapse(chance.uniform(0, 0.5))
        standby.promote()
    load.pause()
    replicas.end()
    figures(f"{rounds} fail-overs that lost commits; {replicas.judge()}")
