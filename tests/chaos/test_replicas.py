"""Replicas of one consumer under faults: one owner, nothing lost, effects exactly once (G8, G10).

The verdicts are drawn from the history that triggers of the database write, not from what a client says.
"""

import pytest

from tests.chaos.processes import Load
from tests.chaos.replica_processes import LEASE, Faults, handlers
from tests.support.forms import form


# A suspended owner of the other kinds may keep rows locked for a minute, until the server ends its transaction.
@handlers(short="effects elsewhere")
def test_no_message_is_lost_or_recorded_twice_under_random_faults(replicas, started, chance, figures, transfers):
    replicas = replicas(transfers, count=form(3, 5), lease=LEASE)
    load = started(Load, replicas.server, seed=chance.random(), rate=50)
    replicas.until_owned()
    faults = Faults(replicas, chance)
    faults.run(form(3, 200))
    load.pause()
    replicas.end()
    figures(f"{replicas.judge()}; {faults}")


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
    figures(f"{replicas.judge()}; {faults}")
