"""How soon another replica polls after its owner was killed, was stopped, or was asked to hand over.

The figures depend on the machine and are only shown. A planned hand-over must not wait for the end of the lease.
"""

import statistics
import time

import pytest

from tests.chaos.journals import elapse
from tests.chaos.processes import Load
from tests.support.forms import form


def described(seconds):
    worst = max(seconds) * 1000
    return f"{len(seconds)} times, median {statistics.median(seconds) * 1000:.0f} ms, worst {worst:.0f} ms"


def test_another_replica_polls_after_its_owner_was_killed(replicas, started, chance, figures):
    lease = form(1.0, 3.0)
    replicas, seconds = replicas(None, count=form(2, 3), lease=lease), []
    load = started(Load, replicas.server, seed=chance.random(), rate=50)
    for _ in range(form(1, 30)):
        owner = replicas.until_one_handles()
        elapse(chance.uniform(0, lease))
        killed = time.monotonic()
        owner.process.kill()
        seconds.append(replicas.next_poll(owner, killed) - killed)
        owner.start()
    load.pause()
    replicas.end()
    figures(f"killed, lease {lease:g} s: {described(seconds)}; {replicas.judge()}")


LONG_LEASE = 120.0
"""Seconds. Nothing in these tests takes so long unless it waits for the end of the lease."""


@pytest.mark.parametrize("how", ["asked", pytest.param("stopped", marks=pytest.mark.long_form)])
def test_a_planned_hand_over_repeats_no_message_and_does_not_wait_for_the_lease(
    replicas, started, chance, figures, how
):
    replicas, seconds = replicas(None, count=form(2, 3), lease=LONG_LEASE), []
    load = started(Load, replicas.server, seed=chance.random(), rate=50)
    for _ in range(form(2, 50)):
        owner = replicas.until_one_handles()
        asked = time.monotonic()
        replicas.request_handover() if how == "asked" else owner.process.terminate()
        seconds.append(replicas.next_poll(owner, asked) - asked)
        if how == "stopped":
            owner.process.stop()
            owner.start()
    load.pause()
    replicas.end()
    figures(f"{how}: {described(seconds)}; {replicas.judge()}")
    assert max(seconds) < LONG_LEASE / 2
    assert replicas.repeated == 0
