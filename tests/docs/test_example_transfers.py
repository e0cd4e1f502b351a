"""The example that moves money moves it exactly once."""

import contextlib
import importlib.util
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from push_to_poll_client import SQLiteStore
from push_to_poll_client.testing import FakeFeed
from tests.support.forms import GUARD

pytestmark = pytest.mark.anyio

PATH = Path(__file__).parents[2] / "examples" / "transfers.py"
SPEC = importlib.util.spec_from_file_location("transfers", PATH)
example = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(example)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param  # worker threads take real time


@pytest.fixture
def bank(tmp_path):
    path = str(tmp_path / "bank.db")
    example.make_tables(path)
    ask(path, "INSERT INTO account VALUES ('ann', 1000), ('bob', 0)")
    return path


def ask(path, statement):
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement).fetchall()


def consumer(feed, bank):
    return example.Transfers(feed, SQLiteStore(bank, transactional=True))


async def test_a_transfer_that_the_feed_repeats_is_made_once(bank):
    feed = FakeFeed(page_size=4, overlap=3)
    for number in range(20):
        feed.publish(f"t{number}", data={"from": "ann", "to": "bob" if number % 2 else "cem", "cents": 10})
    for _ in range(3):
        await consumer(feed, bank).poll_now()
        feed.publish("t3", data={"from": "ann", "to": "bob", "cents": 10})
    assert ask(bank, "SELECT * FROM account ORDER BY name") == [("ann", 800), ("bob", 100), ("cem", 100)]
    assert ask(bank, "SELECT count(*), sum(cents) FROM transfer") == [(20, 200)]


async def test_a_failed_transfer_moves_no_money_and_the_others_are_made(bank):
    feed = FakeFeed()
    feed.publish("t1", data={"from": "ann", "to": "bob", "cents": 100})
    feed.publish("dear", data={"from": "ann", "to": "bob", "cents": 5000})
    feed.publish("stray", data={"from": "nobody", "to": "bob", "cents": 1})
    feed.publish("t2", data={"from": "bob", "to": "ann", "cents": 40})
    async with consumer(feed, bank) as transfers:
        await transfers.poll_now()
        assert [letter.id for letter in await transfers.dead_letters.list()] == ["dear", "stray"]
    assert ask(bank, "SELECT * FROM account ORDER BY name") == [("ann", 940), ("bob", 60)]
    assert ask(bank, "SELECT id FROM transfer ORDER BY id") == [("t1",), ("t2",)]


def test_the_example_without_arguments_prints_its_usage():
    usage = subprocess.run([sys.executable, PATH], capture_output=True, text=True, check=False, timeout=GUARD)
    assert usage.returncode == 1
    assert "python examples/transfers.py" in usage.stderr
