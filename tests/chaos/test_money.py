"""A consumer that is killed again and again moves money between accounts in its store's database (G8).

The sums are right, and each transfer is done exactly once. The same consumer with effects outside of the database
loses nothing, and repeats only what G7 allows after a kill.
"""

import json

import pytest

from push_to_poll_client.stores._sqlite.reader import SQLiteReader
from tests.chaos.bank_lives import balances
from tests.chaos.processes import Child
from tests.chaos.verdicts import beyond_g7, beyond_g7_together, lost, redone
from tests.support.forms import form

COMMIT_INTERVAL = 0.02

KILLS = form(4, 100)

LONGEST_LIFE = 0.12
"""Most seconds until a life is killed. Some are killed before they begin, some within a page."""


def kill_again_and_again(bank, chance, *, kills=KILLS):
    """Kill it often enough or until it is done; then let it do the rest."""
    while len(bank.killed) < kills:
        if bank.live(chance.choice(["asyncio", "trio"]), until=chance.uniform(0, LONGEST_LIFE)):
            break
    assert bank.live("asyncio")


def world(handler, takes, *, by_message, count, marks=pytest.mark.long_form):
    place = "messages" if by_message else "pages"
    settings = {"handler": handler, "takes": takes, "by_message": by_message, "count": count}
    return pytest.param(settings, id=f"{handler}, {takes} s, cursors on {place}", marks=marks)


@pytest.mark.parametrize(
    "world",
    [
        world("Coroutine", 0.0, by_message=True, count=form(1_500, 100_000), marks=()),
        world("Coroutine", 0.002, by_message=False, count=3_000),
        world("Function", 0.0, by_message=True, count=20_000),
        world("Batch", 0.001, by_message=True, count=50_000),
        world("Batch", 0.001, by_message=False, count=50_000),
    ],
)
def test_each_transfer_is_done_exactly_once(bank, chance, figures, world):
    consumer = {"commit_interval": COMMIT_INTERVAL, "batch_size": 20, "rate": None}
    bank, count = bank(**world, consumer=consumer), world["count"]
    kill_again_and_again(bank, chance)
    done = [number for (number,) in bank.query("SELECT number FROM transfer ORDER BY rowid")]
    again = sum(redone(bank.journal.read().handled).values())
    figures(
        f"{len(bank.killed)} killed; {count} transfers, {len(done)} done; {again} were begun and undone before"
    )
    assert done == list(range(1, count + 1))
    assert dict(bank.query("SELECT number, balance FROM account")) == balances(count)
    assert SQLiteReader(bank.database).snapshot().progress[0].cursor == str(count)


def test_each_transfer_is_done_exactly_once_beside_another_program_that_writes(bank, chance, figures, tmp_path):
    count = form(300, 60_000)
    consumer = {"commit_interval": COMMIT_INTERVAL, "rate": None}
    bank = bank(handler="Coroutine", takes=0.0005, by_message=True, count=count, consumer=consumer)
    with (tmp_path / "writer.log").open("ab") as log:
        writer = Child("chaos_writer", bank.database, log=log)
        assert writer.line() == b"writes\n", (tmp_path / "writer.log").read_text()
        kill_again_and_again(bank, chance, kills=form(2, 500))
        writer.write("enough")
        visits = json.loads(writer.line())
        writer.end(kill=False)
    done = [number for (number,) in bank.query("SELECT number FROM transfer ORDER BY rowid")]
    figures(
        f"{len(bank.killed)} killed; {count} transfers, {len(done)} done, beside {visits['committed']} "
        f"transactions of another program, which was locked out {visits['locked_out']} times"
    )
    assert done == list(range(1, count + 1))
    assert dict(bank.query("SELECT number, balance FROM account")) == balances(count)
    assert SQLiteReader(bank.database).snapshot().progress[0].cursor == str(count)
    assert bank.query("SELECT number FROM visit ORDER BY rowid") == [(n,) for n in range(visits["committed"])]


@pytest.mark.long_form
@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_killed_consumer_without_a_transaction_loses_no_message_and_repeats_few(
    bank, chance, figures, concurrency
):
    count = 20_000 * concurrency
    bank = bank(
        handler="Elsewhere",
        takes=0.001,
        count=count,
        by_message=True,
        consumer={"commit_interval": COMMIT_INTERVAL, "concurrency": concurrency, "rate": None},
    )
    kill_again_and_again(bank, chance)
    handled = bank.journal.read().handled
    ids = [str(number) for number in range(1, count + 1)]
    again = redone(handled)
    figures(
        f"{len(bank.killed)} killed; {count} published, {len(lost(ids, handled))} lost, "
        f"{sum(again.values())} done again, at most {max(again.values())} after one kill"
    )
    assert lost(ids, handled) == []
    excused = {"killed": bank.killed, "commit_interval": COMMIT_INTERVAL}
    assert beyond_g7_together(handled, concurrency=concurrency, **excused) == []
    if concurrency == 1:
        assert beyond_g7(handled, **excused) == []
