"""Messages that a crash repeats, in each mode and at each step: the table of `docs/guarantees.md`, cell by cell.

The consumer kills itself at message 15, on the second page of 10. The first page is committed, and
`commit_interval` is so long that the second is committed at its end. A message is repeated if it begins in two
lives. Where effects and records are one transaction, the work of the first life was undone.
"""

import math
from pathlib import Path

import pytest

from push_to_poll_client import Consumer, MemoryStore, SQLiteStore
from push_to_poll_client.testing import FakeFeed
from tests.chaos.chaos_bank import ACCOUNTS

GUARANTEES = Path(__file__).parents[2] / "docs" / "guarantees.md"

COUNT, PAGE, LAST = 30, 10, "15"

STEPS = ("before", "in", "after", "in the commit", "after the commit")
"""Before the handler of the message, in it, after it, in the commit that records it, after that commit."""

NOTHING = "nothing"
UNCOMMITTED = "the uncommitted"
WITH_HAND = "the uncommitted, and the messages in flight"

ELSEWHERE = (WITH_HAND, WITH_HAND, UNCOMMITTED, UNCOMMITTED, NOTHING)
TOGETHER = (NOTHING,) * 5

MODES = {
    "one by one": ("Elsewhere", {}, (UNCOMMITTED, *ELSEWHERE[1:]), 1),
    "batches": ("BatchElsewhere", {"batch_size": 4}, ELSEWHERE, 4),
    "concurrency": ("Elsewhere", {"concurrency": 4}, ELSEWHERE, 4),
    "concurrency, batches": ("BatchElsewhere", {"concurrency": 2, "batch_size": 3}, ELSEWHERE, 6),
    "transactional": ("Coroutine", {}, TOGETHER, 1),
    "transactional, plain function": ("Function", {}, TOGETHER, 1),
    "transactional, batches": ("Batch", {"batch_size": 4}, TOGETHER, 4),
}
"""For each mode: the handler, the settings, the messages that a crash repeats at each step, and the most in
flight."""

CELLS = [pytest.param(mode, step, id=f"{mode}: {step}") for mode in MODES for step in STEPS]


@pytest.mark.parametrize(("mode", "step"), CELLS)
def test_a_crash_repeats_exactly_the_messages_listed_in_the_table(bank, chance, mode, step):
    handler, settings, says, most_in_hand = MODES[mode]
    bank = bank(
        handler=handler,
        takes=0.002,
        count=COUNT,
        by_message=True,
        feed={"page_size": PAGE, "read_ahead": False},
        consumer={"commit_interval": 1000, "rate": None, **settings},
    )
    assert not bank.live(chance.choice(["asyncio", "trio"]), crash=(step, LAST))
    assert bank.live(chance.choice(["asyncio", "trio"]))
    first, second = lives(bank.journal.read().handled)
    committed = {str(number) for number in range(1, PAGE * (2 if step == "after the commit" else 1) + 1)}
    done = {line.id for line in first if line.left < math.inf} - committed
    in_hand = {line.id for line in first if line.left == math.inf}
    repeated = {line.id for line in first} & {line.id for line in second}
    assert len(in_hand) <= most_in_hand
    if "transactional" in mode:
        assert says[STEPS.index(step)] == NOTHING
        assert [n for (n,) in bank.query("SELECT number FROM transfer ORDER BY rowid")] == list(
            range(1, COUNT + 1)
        )
    else:
        allowed = {NOTHING: set(), UNCOMMITTED: done, WITH_HAND: done | in_hand}
        assert repeated == allowed[says[STEPS.index(step)]]
    assert {line.id for line in first} | {line.id for line in second} == {str(n) for n in range(1, COUNT + 1)}


def lives(handled):
    return [line for line in handled if line.life == 1], [line for line in handled if line.life == 2]


def test_transactional_and_concurrency_are_refused_together_on_sqlite(tmp_path):
    """The table has no such cell: SQLite has one transaction at a time."""
    settings = {"concurrency": 2, "ordering_key": lambda message: int(message.id) % ACCOUNTS}
    store = SQLiteStore(tmp_path / "bank.db", transactional=True)
    with pytest.raises(ValueError, match="one transaction at a time"):
        Consumer(FakeFeed(), store=store, process=print, **settings)
    Consumer(FakeFeed(), store=MemoryStore(), process=print, **settings)


def rows():
    """Return the table of the docs."""
    yield "| mode | " + " | ".join(STEPS) + " |"
    yield "|---" * (1 + len(STEPS)) + "|"
    for mode, (_, _, says, _) in MODES.items():
        yield f"| {mode} | " + " | ".join(says) + " |"


def test_the_table_in_the_guarantees_page_matches_the_tested_modes():
    assert "\n".join(rows()) in GUARANTEES.read_text(), "docs/guarantees.md shows another table"
