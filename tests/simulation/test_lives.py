"""Lives of a consumer, drawn from numbers, and judged by the guarantees of DESIGN section 3.

`make chaos SEEDS=n` runs n lives. A failed life is reported with the command that repeats it.
"""

import os

import pytest

from tests.simulation.life import live
from tests.simulation.story import story
from tests.support.forms import SEED, form

PARTS = form(10, 40)
"""Number of tests among which the lives are divided, for several processes."""

LIVES = int(os.environ.get("SEEDS") or form(120, 20_000))

FIRST = SEED * 1_000_000

pytestmark = pytest.mark.no_cover  # lines are counted where it is quick


@pytest.mark.parametrize("part", range(PARTS))
def test_consumers_keep_their_guarantees_across_restarts(part):
    backend = ("asyncio", "trio")[part % 2]
    stories = []
    for seed in range(FIRST + part, FIRST + LIVES, PARTS):
        life = live(seed, backend)
        if life.oracle.violation is not None:
            stories.append(story(life))
    assert not stories, f"{len(stories)} lives fail, the first is this one:\n{stories[0]}"


@pytest.mark.long_form
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_consumers_with_a_file_keep_their_guarantees_across_restarts(backend, tmp_path):
    for seed in range(FIRST, FIRST + max(LIVES // 50, 1)):
        life = live(seed, backend, path=tmp_path / f"{seed}.db")
        assert life.oracle.violation is None, story(life)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_same_seed_repeats_the_same_run(backend):
    for seed in range(FIRST, FIRST + form(3, 200)):
        once, again = (list(map(str, live(seed, backend).journal.events)) for _ in range(2))
        assert once == again
