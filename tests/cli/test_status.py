"""`push-to-poll status`: output for people and programs, without disturbing the consumer."""

import json
import os
import sys
import time

import anyio
import pytest

from push_to_poll_client._types import DeadLetter, Record
from push_to_poll_client.cli._output import Exit
from push_to_poll_client.stores import SQLiteStore
from push_to_poll_client.testing import serve_in_thread
from tests.support import command_line
from tests.support.command_line import Broken, stderr_lines, typed
from tests.support.forms import GUARD


@pytest.fixture
def state(tmp_path, monkeypatch):
    """A file that this process owns, an hour and a second after its last commit."""
    path = tmp_path / "state.db"

    async def own():
        store = SQLiteStore(path, clock=lambda: 1e9)
        fresh = await store.claim("fresh\x1b[2J", feed="https://shop.example/orders")
        busy = await store.claim("busy", feed="feed")
        letter = DeadLetter(dedupe_key="0", id="0", raw=b"raw", error="broken")
        records = [Record(str(number)) for number in range(2000)]
        state = {
            "attempts": '{"1":[1,0.0],"2":[3,0.0,5.0,1.0]}',
            "gap": '{"what":"the \\u001b of 7","at":1000000001.0}',
        }
        await busy.commit(cursor="c1", records=records, dead_letters=[letter], state=state)
        await busy.release()
        await fresh.release()

    anyio.run(own)
    monkeypatch.setattr(time, "time", lambda: 1e9 + 3601)
    return path


def test_status_prints_a_table(state, capsys):
    assert typed("status", "--store", str(state)) == Exit.DONE
    assert capsys.readouterr() == (
        f"""\
store     {str(state)!r}
size      {state.stat().st_size:,} bytes

name      'busy'
feed      'feed'
cursor    'c1'
records   2,000
dead      1
failing   2
gap       'the \\x1b of 7', at 2001-09-09 01:46:41 UTC
progress  3,601.0 s ago, at 2001-09-09 01:46:40 UTC
owner     none
token     1

name      'fresh\\x1b[2J'
feed      'https://shop.example/orders'
cursor    the beginning
records   0
dead      0
failing   0
gap       none
progress  none yet
owner     none
token     1
""",
        "",
    )


def test_status_with_json_prints_one_json_object(state, capsys):
    assert typed("status", "--json", "--store", str(state)) == Exit.DONE
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    busy = {
        "name": "busy",
        "feed": "feed",
        "cursor": "c1",
        "records": 2000,
        "dead_letters": 1,
        "failing": 2,
        "gap": "the \x1b of 7",
        "gap_at": 1e9 + 1,
        "fencing_token": 1,
        "age": 3601.0,
    }
    fresh = {
        "name": "fresh\x1b[2J",
        "feed": "https://shop.example/orders",
        "cursor": None,
        "records": 0,
        "dead_letters": 0,
        "failing": 0,
        "gap": None,
        "gap_at": None,
        "fencing_token": 1,
    }
    assert json.loads(out) == {
        "store": str(state),
        "bytes": state.stat().st_size,
        "consumers": [
            {**busy, "last_progress": 1e9, "owner": None},
            {**fresh, "last_progress": None, "age": None, "owner": None},
        ],
    }


def test_the_age_is_not_negative_when_the_clock_is_behind(state, capsys, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0)
    typed("status", "--store", str(state))
    assert "0.0 s ago" in capsys.readouterr().out


def test_the_help_names_each_json_member(state, capsys):
    typed("status", "--json", "--store", str(state))
    status = json.loads(capsys.readouterr().out)
    typed("status", "--help")
    help_ = capsys.readouterr().out
    for name in {*status, *status["consumers"][0]}:
        assert name in help_


@pytest.mark.slow
def test_status_shows_the_process_of_a_running_consumer_and_does_not_disturb_it(tmp_path, capsys):
    state = str(tmp_path / "state.db")
    with (
        serve_in_thread(backlog=3) as server,
        command_line.start("tail", server.url, "--store", state) as tail,
    ):
        for _ in range(3):
            tail.stdout.readline()
        assert typed("status", "--store", state, "--json") == Exit.DONE
        out, err = capsys.readouterr()
        tail.terminate()
        _, tail_err = tail.communicate(timeout=GUARD)
    (consumer,) = json.loads(out)["consumers"]
    assert (consumer["owner"], err) == (f"process {tail.pid}", "")
    assert (tail.returncode, stderr_lines(tail_err)) == (Exit.TERMINATED, [])


def test_a_missing_state_file_gives_exit_code_5_and_is_not_created(tmp_path, capsys):
    path = tmp_path / "missing"
    assert typed("status", "--store", str(path)) == Exit.STATE
    assert capsys.readouterr() == (
        "",
        f"push-to-poll: StoreError: no state file at {path}; give the file of a consumer\n",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_closed_output_pipe_is_not_an_error(state, monkeypatch, tmp_path):
    with (tmp_path / "stdout").open("w") as file:
        monkeypatch.setattr(sys, "stdout", Broken(file, BrokenPipeError()))
        assert typed("status", "--store", str(state)) == Exit.DONE
        assert os.fstat(file.fileno()).st_rdev == os.stat(os.devnull).st_rdev  # noqa: PTH116
