"""Lives of replicas of a consumer on one shared store, drawn from numbers (G1, G5-G8, G10, G13)."""

import os

import pytest

from tests.simulation.replicas import live_replicas, replicas_story
from tests.support.forms import SEED, form

PARTS = form(4, 40)

LIVES = int(os.environ.get("SEEDS") or form(60, 10_000))

FIRST = SEED * 1_000_000

pytestmark = pytest.mark.no_cover  # lines are counted where it is quick


@pytest.mark.parametrize("part", range(PARTS))
def test_replicas_keep_the_guarantees_across_crashes_lost_leases_and_doubts(part):
    backend = ("asyncio", "trio")[part % 2]
    stories = []
    for seed in range(FIRST + part, FIRST + LIVES, PARTS):
        life = live_replicas(seed, backend)
        if life.oracle.violation is not None:
            stories.append(replicas_story(life))
    assert not stories, f"{len(stories)} lives fail, the first is this one:\n{stories[0]}"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_same_seed_repeats_the_same_run_of_replicas(backend):
    for seed in range(FIRST, FIRST + form(3, 100)):
        once, again = (list(map(str, live_replicas(seed, backend).journal.events)) for _ in range(2))
        assert once == again
