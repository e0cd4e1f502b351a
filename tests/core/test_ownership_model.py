"""Two replicas share a consumer name: all orders of events keep eight assertions, and each rule is needed for one.

The model is in tests/support/ownership_model.py. Each world limits how often the events can happen, so that it has
a bounded number of states. The long form has larger worlds, which combine the events.
"""

from typing import NamedTuple

import pytest

from tests.support.forms import form
from tests.support.ownership_model import ASSERTIONS, explore
from tests.support.ownership_world import CLAIMING, COMMITTING, DOUBT, DOWN, LOST, OWNER, STANDBY, Limits, Rules

ALL = frozenset(ASSERTIONS)

WORLDS = {
    "a commit is cut twice": (Limits(claims=1, cuts=2), 6_000),
    "a claim is lost, or arrives late": (Limits(messages=0, lost_claims=1), 4_000),
    "a heartbeat arrives late": (Limits(messages=0, heartbeats=1), 6_000),
    "a replica is stopped past its lease": (Limits(pauses=1), 20_000),
    "a replica is killed": (Limits(claims=1, cuts=1, crashes=1), 4_000),
    "the owner hands over": (Limits(messages=0, handovers=1), 5_000),
    "a fail-over takes commits back": (Limits(claims=1, messages=2, failovers=1), 2_000),
    "a commit is cut before or after a fail-over": (Limits(claims=1, cuts=1, failovers=1), 7_000),
    "a wake arrives": (Limits(messages=0, wakes=1), 8_000),
}

LONG_WORLDS = {
    "commits of two messages are cut twice": (Limits(claims=1, messages=2, cuts=2), 10_000),
    "two heartbeats arrive late": (Limits(messages=0, heartbeats=2), 15_000),
    "the owner hands over, and three claims get the name": (Limits(messages=0, claims=3, handovers=1), 10_000),
    "commits of two messages are cut during a fail-over": (
        Limits(claims=1, messages=2, cuts=1, failovers=1),
        20_000,
    ),
    "a commit is cut, and another replica claims": (Limits(cuts=1), 60_000),
    "a commit is cut during a fail-over": (Limits(cuts=1, failovers=1), 700_000),
    "a claim is lost during a fail-over": (Limits(messages=0, lost_claims=1, failovers=1), 20_000),
    "heartbeats arrive late, after a fail-over": (Limits(messages=0, heartbeats=2, failovers=1), 100_000),
    "a replica with heartbeats is stopped past its lease": (Limits(heartbeats=1, pauses=1), 100_000),
    "a replica is killed, and another one hands over": (Limits(crashes=1, handovers=1), 70_000),
    "the owner hands over twice": (Limits(claims=3, handovers=2), 150_000),
    "a fail-over takes commits of two owners back": (Limits(messages=2, failovers=1), 150_000),
    "a wake arrives during a hand-over": (Limits(wakes=1, handovers=1), 100_000),
    "a wake arrives during a fail-over": (Limits(messages=0, wakes=1, failovers=1), 40_000),
}


@pytest.mark.slow
@pytest.mark.no_cover  # lines are counted where it is quick
@pytest.mark.parametrize("world", WORLDS)
def test_all_orders_of_events_keep_every_assertion(world):
    keeps_every_assertion(*WORLDS[world])


@pytest.mark.long_form
@pytest.mark.slow
@pytest.mark.no_cover  # lines are counted where it is quick
@pytest.mark.parametrize("world", LONG_WORLDS)
def test_all_orders_of_combined_events_keep_every_assertion(world):
    keeps_every_assertion(*LONG_WORLDS[world])


def keeps_every_assertion(limits, least_states):
    found = explore(Rules(), limits)
    assert found.broken is None, found.report
    assert found.states > least_states


def test_the_model_reaches_every_state_of_the_table():
    found = explore(Rules(), Limits(claims=1, cuts=1, crashes=1))
    assert found.reached == {STANDBY, CLAIMING, OWNER, COMMITTING, DOUBT, LOST, DOWN}


def test_the_three_values_protect_the_database_even_if_a_doubt_is_not_resolved():
    # Assertion 4 breaks: a handler runs while its commit can still take effect. What it writes outside the
    # transaction then exists twice.
    limits = Limits(claims=form(1, 2), messages=2, cuts=form(2, 1))
    found = explore(Rules(in_doubt="read the row"), limits, asserted={1, 2, 3})
    assert found.broken is None, found.report


class Bug(NamedTuple):
    """A broken rule, the smallest world that shows it, and the assertion that it breaks.

    With `asserted`, only these assertions are checked: the bug also breaks one that is checked later.
    """

    rules: Rules
    limits: Limits
    breaks: int
    asserted: frozenset[int] = ALL


DATA = frozenset({1, 2, 3})

BUGS = {
    "no comparison": Bug(Rules(compared=()), Limits(), 2),
    "the comparison raises nothing, so COMMIT succeeds": Bug(Rules(comparison_raises=False), Limits(), 2),
    "token alone": Bug(Rules(compared=("token",)), Limits(failovers=1), 2),
    "owner alone": Bug(Rules(compared=("owner",)), Limits(claims=1, cuts=1), 2),
    "token and owner without commits": Bug(
        Rules(compared=("token", "owner")), Limits(claims=1, messages=2, failovers=1), 1
    ),
    "the comparison is the first statement, and keeps the row locked": Bug(
        Rules(compares="first"), Limits(pauses=1), 8
    ),
    "the comparison is the first statement, without a lock": Bug(
        Rules(compares="first without a lock"), Limits(pauses=1), 2
    ),
    "in doubt, the row is read again": Bug(Rules(in_doubt="read the row"), Limits(claims=1, cuts=1), 4),
    "in doubt, the row is read again, and commits are not compared": Bug(
        Rules(in_doubt="read the row", compared=("token", "owner")), Limits(claims=1, cuts=1), 1, DATA
    ),
    "in doubt, the name is claimed with the same token": Bug(
        Rules(again_raises_token=False), Limits(claims=1, cuts=1), 4
    ),
    "memory from before the commit is kept over a doubt": Bug(
        Rules(memory_kept_in_doubt="as before the commit"), Limits(claims=1, cuts=1), 5
    ),
    "memory from before the commit is kept, and an effect comes twice": Bug(
        Rules(memory_kept_in_doubt="as before the commit"), Limits(claims=1, cuts=1), 1, DATA
    ),
    "memory from after the commit is kept over a doubt": Bug(
        Rules(memory_kept_in_doubt="as after the commit"), Limits(claims=1, cuts=1), 5
    ),
    "memory from after the commit is kept, and a message is skipped": Bug(
        Rules(memory_kept_in_doubt="as after the commit"), Limits(claims=1, messages=2, cuts=1), 1, DATA
    ),
    "memory is kept over a loss": Bug(Rules(memory_kept_after_loss=True), Limits(claims=3), 5),
    "the cursor is read before the claim": Bug(Rules(reads_before_claim=True), Limits(), 5),
    "a claim does not wait for the lease": Bug(Rules(claim_waits_for_lease=False), Limits(), 4),
    "a handler starts after the end of the lease": Bug(Rules(handler_checks_end=False), Limits(), 4),
    "a handler starts after a heartbeat has found no lease": Bug(
        Rules(handler_checks_loss=False), Limits(claims=1, heartbeats=1, failovers=1), 4
    ),
    "an old heartbeat revives an ended lease": Bug(
        Rules(heartbeat_compares=("owner",)), Limits(claims=1, heartbeats=1), 6
    ),
    "an old heartbeat renews the lease of the new owner": Bug(
        Rules(heartbeat_compares=("until",)), Limits(heartbeats=1), 6
    ),
    "an old release frees the lease of the new owner": Bug(
        Rules(release_compares_owner=False), Limits(handovers=1), 6
    ),
    "a release deletes the row, and tokens start again": Bug(
        Rules(release_keeps_token=False), Limits(handovers=1), 3
    ),
    "the lease counts from the answer": Bug(Rules(lease_counts_from="answer"), Limits(claims=1), 4),
    "a replica that stands by counts from the answer": Bug(Rules(next_try_counts_from="answer"), Limits(), 8),
    "a wake is dropped while standing by": Bug(Rules(standby_forwards_wakes=False), Limits(wakes=1), 7),
    "a session whose lease has ended keeps a wake": Bug(
        Rules(ended_session_forwards_wakes=False), Limits(wakes=1), 7
    ),
    "no poll after a claim": Bug(Rules(claim_polls=False), Limits(wakes=1), 7),
    "no poll after the connection is made again": Bug(
        Rules(reconnect_polls=False), Limits(claims=1, wakes=1, failovers=1), 7
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_each_planted_bug_breaks_its_assertion(name):
    bug = BUGS[name]
    found = explore(bug.rules, bug.limits, asserted=bug.asserted)
    assert found.broken == bug.breaks, found.report


def test_every_rule_has_a_planted_bug_and_every_assertion_is_broken_by_one():
    right = Rules()
    planted = {
        rule for bug in BUGS.values() for rule in Rules._fields if getattr(bug.rules, rule) != getattr(right, rule)
    }
    assert planted == set(Rules._fields)
    assert {bug.breaks for bug in BUGS.values()} == ALL


def test_a_broken_assertion_is_reported_with_the_shortest_sequence_of_events():
    bug = BUGS["token and owner without commits"]
    assertion, *events = explore(bug.rules, bug.limits).report.splitlines()
    assert assertion.startswith(
        "(1) each effect is written once, with its record, and without a gap: message 1 has 0"
    )
    assert events == [
        " 1. A sends a claim",
        " 2. A's claim gets the name with token 1",
        " 3. A reads that it owns the name",
        " 4. A starts the handler of message 1",
        " 5. the comparison of A's commit of message 1 finds the row",
        " 6. replication stops",
        " 7. COMMIT of A's commit of message 1 is done",
        " 8. A reads that its commit took effect",
        " 9. A starts the handler of message 2",
        "10. fail-over: the database returns to the moment when replication stopped",
        "11. the comparison of A's commit of message 2 finds the row",
        "12. COMMIT of A's commit of message 2 is done",
    ]
