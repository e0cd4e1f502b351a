"""`push-to-poll rewind`: the operator chooses where a consumer continues."""

import functools

import anyio
import pytest

from push_to_poll_client import Record, SQLiteStore
from push_to_poll_client.cli import _state
from push_to_poll_client.cli._output import Exit
from push_to_poll_client.testing import serve_in_thread
from tests.support import command_line
from tests.support.command_line import BACKENDS, on, stderr_lines, typed

EVIL = "b\x1b[2J\n c"


@pytest.fixture(autouse=True)
def _backend(request, monkeypatch):
    on(getattr(request, "param", "trio"), monkeypatch)


on_both = pytest.mark.parametrize("_backend", BACKENDS, indirect=True)


@pytest.fixture
def state(tmp_path, monkeypatch):
    """A file with cursors saved at 1e9, 1e9 + 100 and 1e9 + 200; the clock is a hundred seconds later."""
    path = str(tmp_path / "state.db")

    async def commit():
        store = SQLiteStore(path, clock=lambda: 1e9 - 100)
        session = await store.claim("orders", feed="feed")
        for number, cursor in enumerate(["a", EVIL, "d"]):
            await session.commit(cursor=cursor, records=[Record(cursor)], read_at=1e9 + 100 * number)
        await session.release()

    anyio.run(commit)
    monkeypatch.setattr(_state.time, "time", lambda: 1e9 + 300)
    return path


def place(path):
    """Return the saved cursor and the recorded messages."""

    async def read():
        session = await SQLiteStore(path, retention=None).claim("orders", feed="feed")
        unseen = await session.unseen(["a", EVIL, "d"])
        await session.release()
        return session.cursor, {"a", EVIL, "d"} - unseen, session.state

    return anyio.run(read)


def rewind(capsys, *arguments):
    code = typed("rewind", "--store", *arguments)
    out, err = capsys.readouterr()
    return code, out, stderr_lines(err)


KEPT = "then    messages that were processed are not processed again while their records are kept\n"
FORGOTTEN = "then    all messages after this cursor are processed again\n"


def test_the_saved_cursors_are_listed(state, capsys):
    assert rewind(capsys, state, "--list") == (
        Exit.DONE,
        r"""saved (UTC)          cursor
2001-09-09 01:45:00  inception
2001-09-09 01:46:40  a
2001-09-09 01:48:20  'b\u001b[2J\n c'
2001-09-09 01:50:00  d
""",
        [],
    )
    assert place(state)[0] == "d"


@on_both
@pytest.mark.parametrize(
    ("arguments", "cursor", "now"),
    [
        (["--to", "inception"], None, "inception"),
        (["--to", "a"], "a", "a"),
        (["--to", "anywhere else"], "anywhere else", "'anywhere else'"),
        (["--to", r"b\u001b[2J\n c"], EVIL, r"'b\u001b[2J\n c'"),
        (["--to", EVIL], EVIL, r"'b\u001b[2J\n c'"),
        (["--to", "größe"], "größe", "'größe'"),
        (["--ago", "0"], "d", "d"),
        (["--ago", "100"], "d", "d"),
        (["--ago", "100.5"], EVIL, r"'b\u001b[2J\n c'"),
        (["--ago", "300"], "a", "a"),
        (["--ago", "400"], None, "inception"),
    ],
)
def test_rewind_moves_the_cursor_and_keeps_the_dedupe_records(state, capsys, arguments, cursor, now):
    assert rewind(capsys, state, *arguments) == (Exit.DONE, f"before  d\nnow     {now}\n{KEPT}", [])
    assert place(state) == (cursor, {"a", EVIL, "d"}, {"started": "yes"})


def test_rewind_with_forget_removes_the_dedupe_records(state, capsys):
    assert rewind(capsys, state, "--name", "orders", "--to", "a", "--forget") == (
        Exit.DONE,
        f"before  d\nnow     a\n{FORGOTTEN}",
        [],
    )
    assert place(state)[:2] == ("a", set())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "one of the arguments --to --ago --list is required"),
        (["--to", "a", "--ago", "1"], "not allowed with argument"),
        (["--list", "--forget"], "--list changes nothing; leave out --forget"),
        (["--to", "latest"], "--to latest is not possible here, because only the feed knows its end"),
        (["--to", "Inception"], "--to must be 'inception', 'latest' or a cursor of the feed, got 'Inception'"),
        (["--to", "lastest"], "--to latest is not possible here, because only the feed knows its end"),
        (["--to", ""], "--to must be a cursor of the feed, with 1 to 65,536 characters"),
        (["--to", "x" * 65_537], "--to must be a cursor of the feed, with 1 to 65,536 characters"),
        (["--to", "\udcff"], "--to must be a cursor of the feed, with 1 to 65,536 characters"),
        (["--ago", "-1"], "--ago must be finite and at least 0"),
        (["--ago", "nan"], "--ago must be finite and at least 0"),
        (["--ago", "soon"], "argument --ago: invalid float value;"),
        (["--ago", "400.5"], "--ago: no saved cursor is that old; the oldest is from 2001-09-09 01:45:00 UTC"),
    ],
)
def test_invalid_arguments_are_reported_in_one_sentence_and_change_nothing(state, capsys, arguments, says):
    before = place(state)
    code, out, err = rewind(capsys, state, *arguments)
    assert (code, out) == (Exit.USAGE, "")
    assert len(err) == 1
    assert says in err[0]
    assert place(state) == before


def test_the_next_run_continues_at_the_cursor_set_by_rewind(tmp_path, capfdbinary):
    state = str(tmp_path / "state.db")
    with serve_in_thread(backlog=3) as server:
        tail = functools.partial(command_line.tail, capfdbinary, server.url, "--once", "--store", state)
        _, first, _ = tail()
        assert typed("rewind", "--store", state, "--to", first[0]["id"]) == Exit.DONE
        capfdbinary.readouterr()
        assert tail()[1] == []  # all messages were processed
        assert typed("rewind", "--store", state, "--to", first[0]["id"], "--forget") == Exit.DONE
        capfdbinary.readouterr()
        assert tail()[1] == first[1:]
