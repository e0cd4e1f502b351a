"""Lives of replicas of a consumer on one shared store, drawn from numbers (G1, G5-G8, G10, G13)."""

import contextlib
import os

import anyio
import pytest

from push_to_poll_client import _lifecycle
from tests.simulation.replicas import live_replicas, replicas_story
from tests.support.forms import SEED, form
from tests.support.shared_memory import LeasedMemorySession, LeasedMemoryStore, TransactionalMemorySession

PARTS = form(4, 40)

LIVES = int(os.environ.get("SEEDS") or form(40, 10_000))

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


def apply_without_a_fence(session, *given):
    session.fence = (session._lease.token, session._lease.owner, session._lease.commits)
    return APPLY(session, *given)


async def find_no_record(session, keys):
    return set(keys)


async def never(store, name):
    await anyio.sleep_forever()


APPLY = LeasedMemorySession._apply

PLANTED = {
    "the store does not compare": (LeasedMemorySession, "_apply", apply_without_a_fence, "G10", 14),
    "a session is never lost": (LeasedMemorySession, "lost", False, "G10", 10),
    "handlers start in lost sessions": (_lifecycle, "while_owner", lambda handler, session: handler, "G10", 68),
    "records are not found": (LeasedMemorySession, "unseen", find_no_record, "G6", 1),
    "wakes are not forwarded": (LeasedMemoryStore, "forward", lambda store, name, push: None, "G1", 1),
    "a standby is not told that the name is free": (LeasedMemoryStore, "freed", never, "G10", 19),
    "effects are committed without their records": (TransactionalMemorySession, "transaction", None, "G8", 14),
}
"""For each bug: what is replaced by what, the guarantee that it breaks, and a seed that lately showed it.

That seed is tried first. If it shows the bug no longer, the test only takes longer.
"""


@pytest.mark.parametrize("bug", PLANTED)
def test_the_oracle_reports_a_planted_bug(monkeypatch, bug):
    where, name, planted, guarantee, first = PLANTED[bug]
    if planted is None:
        planted = commit_effects_first(where.transaction)
    monkeypatch.setattr(where, name, planted)
    reported = set()
    for seed in (first, *range(400)):  # a bug needs a plan in which it matters
        violation = live_replicas(seed, ("asyncio", "trio")[seed % 2]).oracle.violation
        reported |= {violation.guarantee} if violation else set()
        if guarantee in reported:
            return
    pytest.fail(f"reported {sorted(reported)}, not {guarantee}")


def commit_effects_first(honest):
    @contextlib.asynccontextmanager
    async def transaction(session, records):
        async with honest(session, records):
            yield
            session._shared.effects.extend(session.store.connection.texts)
            session.store.connection.texts.clear()

    return transaction
