"""State files and processes: one owner, and a kill loses no committed record."""

import contextlib
import itertools
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys

import anyio
import pytest

from push_to_poll_client import StoreBusy
from push_to_poll_client.stores import SQLiteStore
from tests.support.forms import GUARD, form

pytestmark = pytest.mark.slow

# A child ends after a minute in any case, so that reading from it ends too.
HEAD = """
import os, signal, sys
import anyio
from push_to_poll_client import StoreBusy, StoreError
from push_to_poll_client._types import Record
from push_to_poll_client.stores import SQLiteStore

signal.alarm(60)
"""

COMMIT_FOR_EVER = """
async def main():
    session = await SQLiteStore(sys.argv[1]).claim("a", feed="f")
    page = 0
    while True:
        records = [Record(f"{page}-{number}") for number in range(int(sys.argv[2]))]
        await session.commit(cursor=str(page), records=records)
        print(page, flush=True)
        page += 1

anyio.run(main)
"""

MOVE_FOR_EVER = """
async def main():
    store = SQLiteStore(sys.argv[1], transactional=True)
    session = await store.claim("a", feed="f")
    number = int(session.cursor or 0)
    while True:
        for number in range(number + 1, number + 4):
            if not await session.unseen([str(number)]):
                continue  # the process before was killed between this record and its cursor
            async with session.transaction([Record(str(number))]):
                execute = store.connection.execute
                execute("UPDATE account SET cents = cents - 1 WHERE name = 'a'")
                execute("INSERT INTO transfer VALUES (?)", (number,))
                execute("UPDATE account SET cents = cents + 1 WHERE name = 'b'")
        await session.commit(cursor=str(number), records=[Record(str(n)) for n in range(number - 2, number + 1)])
        print(number, flush=True)

anyio.run(main)
"""

FORK = """
async def main():
    session = await SQLiteStore(sys.argv[1]).claim("a", feed="f")
    await session.commit(cursor="parent's", records=[])
    if os.fork():
        os._exit(0)
    for call in (session.commit(cursor="child's", records=[]), session.unseen(["new"])):
        try:
            await call
        except StoreError as error:
            print(type(error).__name__, flush=True)
    sys.stdin.read()  # outlive the parent
    os._exit(0)

anyio.run(main)
"""


def child(script, *args):
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + script, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


async def progress(path, keys):
    """Claim as the next process does; return the cursor and the recorded keys."""
    session = await SQLiteStore(path).claim("a", feed="f")
    try:
        return session.cursor, set(keys) - await session.unseen(keys)
    finally:
        await session.release()


@pytest.mark.parametrize(
    ("pages", "size"), form([(1, 20), (10, 1000)], list(itertools.product([1, 40], [1, 20, 1000])))
)
def test_a_killed_owner_leaves_a_contiguous_prefix(path, size, pages):
    """Each page is stored with its cursor or not at all, no reported page is missing, and the file is free."""
    with child(COMMIT_FOR_EVER, path, size) as owner:
        for _ in range(pages):
            reported = owner.stdout.readline()
        with pytest.raises(StoreBusy, match=f"in use by process {owner.pid};") as busy:
            anyio.run(progress, path, [])
        assert busy.value.owner == f"process {owner.pid}"
        owner.kill()
        reported = (reported + owner.stdout.read()).split()[-1]
    assert owner.returncode == -signal.SIGKILL
    cursor, _ = anyio.run(progress, path, [])
    assert int(cursor) >= int(reported)
    keys = [f"{page}-{number}" for page in range(int(cursor) + 2) for number in range(size)]
    _, recorded = anyio.run(progress, path, keys)
    assert recorded == set(keys[:-size])


@pytest.mark.long_form  # chaos/test_money.py checks the same with kills at more moments
def test_effects_of_a_killed_handler_are_committed_with_its_record_or_not_at_all(path):
    """After many kills each transfer is made exactly once, and never half (G8)."""
    ask(path, "CREATE TABLE account(name, cents)", "CREATE TABLE transfer(number PRIMARY KEY)")
    ask(path, "INSERT INTO account VALUES ('a', 0), ('b', 0)")
    for lines in range(10):
        with child(MOVE_FOR_EVER, path) as owner:
            reported = [owner.stdout.readline() for _ in range(1 + lines % 3)][-1]
            owner.kill()
            reported = (reported + owner.stdout.read()).split()[-1]
        made = [number for (number,) in ask(path, "SELECT number FROM transfer ORDER BY number")]
        assert made == list(range(1, len(made) + 1))
        assert len(made) >= int(reported)
        assert ask(path, "SELECT cents FROM account ORDER BY name") == [(-len(made),), (len(made),)]
        cursor, recorded = anyio.run(progress, path, [str(number) for number in range(len(made) + 5)])
        assert int(reported) <= int(cursor) <= len(made)  # each third transfer saves the cursor
        assert recorded == {str(number) for number in made}


def ask(path, *statements):
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_cannot_commit_and_does_not_keep_the_file_locked(path):
    """The child cannot write through the parent's session, and frees the file when the parent dies."""
    with child(FORK, path) as parent:
        assert [parent.stdout.readline() for _ in range(2)] == ["OwnershipLost\n"] * 2
        assert parent.wait(GUARD) == 0
        assert anyio.run(progress, path, []) == ("parent's", set())
        parent.stdin.close()


@pytest.mark.long_form  # the test above shows the same with a killed owner
def test_a_claim_by_a_second_process_is_a_store_busy_error_at_once(path):
    """Claiming fails without touching the database."""
    script = """
async def main():
    try:
        await SQLiteStore(sys.argv[1]).claim("b", feed="f")
    except StoreBusy as error:
        print(error)

anyio.run(main)
"""

    async def own():
        session = await SQLiteStore(path).claim("a", feed="f")
        try:
            second = child(script, path)
            answer, _ = await anyio.to_thread.run_sync(second.communicate)
            await session.commit(cursor="c1", records=[])
        finally:
            await session.release()
        return answer

    answer = anyio.run(own)
    assert (
        answer
        == f"{pathlib.Path(path).resolve()} is in use by process {os.getpid()}; stop it, or choose another file\n"
    )
