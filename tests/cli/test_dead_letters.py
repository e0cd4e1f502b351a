"""`push-to-poll dead-letters`: list at any time, change while no consumer runs, escape hostile content."""

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from push_to_poll_client import DeadLetter, Record, Settlement, SQLiteStore
from push_to_poll_client.cli._output import Exit
from push_to_poll_client.stores._sqlite.reader import SQLiteReader
from push_to_poll_client.stores.reader import all_dead_letters
from push_to_poll_client.testing import serve_in_thread
from tests.support import command_line
from tests.support.command_line import BACKENDS, Broken, on, stderr_lines, typed
from tests.support.forms import GUARD, form

EVIL = "\x1b[2J\r\nERROR \x9b\u202e"
TRACEBACK = f"Traceback (most recent call last):\n  here\nValueError: {EVIL}\n"
GOOD = DeadLetter(
    dedupe_key="12:https://shop42",
    id="42",
    raw=b'{"id":"42"}',
    error="ValueError: no such account",
    traceback=TRACEBACK,
    attempts=5,
    first_failed=1e9,
    last_failed=1e9 + 20,
)
BAD = DeadLetter(
    dedupe_key=f"{EVIL}ö", id=EVIL, raw=b"\xff\n\x00", error=EVIL * 100, attempts=0, last_failed=1e300
)
HALF = DeadLetter(dedupe_key="\ud800", id="\ud800", raw=b"", error="\ud800", retry_requested=True)


@pytest.fixture(autouse=True)
def _backend(request, monkeypatch):
    on(getattr(request, "param", "trio"), monkeypatch)


on_both = pytest.mark.parametrize("_backend", BACKENDS, indirect=True)


@pytest.fixture
def state(tmp_path):
    return str(tmp_path / "state.db")


def keep(path, *letters, name="orders", fingerprint=None, **store):
    """Write dead letters to the file."""

    async def commit():
        session = await SQLiteStore(path, **store).claim(name, feed="feed")
        dead = [Record(letter.dedupe_key, Settlement.DEAD_LETTERED, fingerprint) for letter in letters]
        await session.commit(cursor="c", records=dead, dead_letters=letters)
        await session.release()

    anyio.run(commit)


def process(path, key, name="orders"):
    """Record a message as processed, as a consumer does."""

    async def commit():
        session = await SQLiteStore(path).claim(name, feed="feed")
        await session.commit(cursor="c", records=[Record(key)])
        await session.release()

    anyio.run(commit)


def kept(path, name="orders"):
    """Return the dead letters in the file after a change."""
    return list(all_dead_letters(SQLiteReader(path), name))


@pytest.fixture(scope="module")
def owned(tmp_path_factory):
    """Return the path of a file with a dead letter, and the id of the process that owns it.

    One process is enough: no test that looks at the file may change it.
    """
    path = str(tmp_path_factory.mktemp("owned") / "state.db")
    keep(path, GOOD)
    program = (
        "import anyio, sys\nfrom push_to_poll_client import SQLiteStore\n"
        "async def own():\n    session = await SQLiteStore(sys.argv[1]).claim('orders', feed='feed')\n"
        "    print('.', flush=True)\n    sys.stdin.read()\n    await session.release()\nanyio.run(own)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with owner:
        owner.stdout.readline()
        yield path, owner.pid
        owner.stdin.close()
        assert owner.wait(GUARD) == 0


def run_dead_letters(capsys, *arguments):
    """Return the exit code, the lines on stdout and the text on stderr."""
    code = typed("dead-letters", "--store", *arguments)
    out, err = capsys.readouterr()
    return code, out.splitlines(), stderr_lines(err)


# Listing


def test_list_prints_a_table(state, capsys):
    keep(state, GOOD, BAD, HALF)
    code, lines, err = run_dead_letters(capsys, state, "list")
    error = (EVIL * 100)[:500].replace("\r\n", " ").translate(dict.fromkeys(map(ord, "\x1b\x9b\u202e"), "\ufffd"))
    assert lines == [
        "last failed (UTC)    attempts  marked  key                                       error",
        rf"1e+300                      0          '\u001b[2J\r\nERROR \u009b\u202eö'        {error}",
        f"2001-09-09 01:47:00         5          {GOOD.dedupe_key:<40}  ValueError: no such account",
        r"1970-01-01 00:00:00         1  retry   '\ud800'                                  " + "\ufffd",
    ]
    assert (code, err) == (Exit.DONE, [])


def test_list_with_json_prints_one_json_object_for_each_dead_letter(state, capsys):
    keep(state, GOOD, BAD)
    code, lines, _ = run_dead_letters(capsys, state, "list", "--json")
    assert code == Exit.DONE
    assert [json.loads(line) for line in lines] == [
        {
            "dedupe_key": BAD.dedupe_key,
            "id": EVIL,
            "error": EVIL * 100,
            "attempts": 0,
            "first_failed": 0,
            "last_failed": 1e300,
            "retry_requested": False,
            "drop_requested": False,
        },
        {
            "dedupe_key": "12:https://shop42",
            "id": "42",
            "error": "ValueError: no such account",
            "attempts": 5,
            "first_failed": 1e9,
            "last_failed": 1e9 + 20,
            "retry_requested": False,
            "drop_requested": False,
        },
    ]


def test_the_list_help_names_each_json_member(state, capsys):
    keep(state, GOOD)
    _, (line,), _ = run_dead_letters(capsys, state, "list", "--json")
    typed("dead-letters", "--store", state, "list", "--help")
    help_ = capsys.readouterr().out
    for name in json.loads(line):
        assert name in help_


def test_the_file_may_be_named_behind_the_action(state, capsys):
    keep(state, GOOD)
    assert typed("dead-letters", "list", "--store", state) == Exit.DONE
    assert "no such account" in capsys.readouterr().out


def test_a_missing_file_name_is_a_usage_error(capsys):
    assert typed("dead-letters", "retry", "--all") == Exit.USAGE
    assert stderr_lines(capsys.readouterr().err) == [
        "push-to-poll: --store is missing; give a file or a postgresql:// URL, or set PUSH_TO_POLL_STORE"
    ]


def test_list_and_export_succeed_without_any_dead_letter(state, capsys):
    keep(state)
    assert run_dead_letters(capsys, state, "list") == (Exit.DONE, ["no dead letters"], [])
    assert run_dead_letters(capsys, state, "list", "--json") == (Exit.DONE, [], [])
    assert run_dead_letters(capsys, state, "export") == (Exit.DONE, [], [])


def test_a_long_key_is_shortened_in_the_table_and_complete_in_json(state, capsys):
    keep(state, DeadLetter(dedupe_key="k" * 100_000, id="1", raw=b"", error=""))
    _, (_, line), _ = run_dead_letters(capsys, state, "list")
    assert f"{'k' * 1000}...  " in line
    assert len(line) < 1100
    _, (line,), _ = run_dead_letters(capsys, state, "list", "--json")
    assert json.loads(line)["dedupe_key"] == "k" * 100_000


def test_show_prints_every_field_of_a_dead_letter(state, capsys):
    keep(state, GOOD, BAD, HALF)
    assert run_dead_letters(capsys, state, "show", GOOD.dedupe_key) == (
        Exit.DONE,
        [
            "key           12:https://shop42",
            "id            42",
            "error         ValueError: no such account",
            "attempts      5",
            "first failed  2001-09-09 01:46:40 UTC",
            "last failed   2001-09-09 01:47:00 UTC",
            "marked        no",
            "entry         11 bytes",
            "",
            "  Traceback (most recent call last):",
            "    here",
            r"  ValueError: \u001b[2J\r",
            r"  ERROR \u009b\u202e",
            "",
            '{"id":"42"}',
        ],
        [],
    )


@pytest.mark.parametrize("key", [BAD.dedupe_key, r"\u001b[2J\r\nERROR \u009b\u202eö"])
def test_show_accepts_a_key_as_stored_or_as_printed(state, capsys, key):
    keep(state, BAD, HALF)
    code, lines, _ = run_dead_letters(capsys, state, "show", key)
    assert code == Exit.DONE
    assert lines[1] == r"id            '\u001b[2J\r\nERROR \u009b\u202e'"
    assert lines[-2:] == [r"\xff", r"\u0000"]
    assert "".join(lines).isprintable()


def test_show_accepts_the_escaped_form_of_a_lone_surrogate_key(state, capsys):
    keep(state, HALF)
    code, lines, _ = run_dead_letters(capsys, state, "show", r"\ud800")
    assert code == Exit.DONE
    assert lines[6] == "marked        retry"


@pytest.mark.parametrize("option", [("export",), ("show", GOOD.dedupe_key, "--json")])
def test_export_and_show_with_json_print_every_field(state, capsys, option):
    keep(state, GOOD)
    _, (line,), _ = run_dead_letters(capsys, state, *option)
    assert json.loads(line) == {
        "dedupe_key": "12:https://shop42",
        "id": "42",
        "raw": '{"id":"42"}',
        "error": "ValueError: no such account",
        "traceback": TRACEBACK,
        "attempts": 5,
        "first_failed": 1e9,
        "last_failed": 1e9 + 20,
        "retry_requested": False,
        "drop_requested": False,
    }


def test_export_prints_all_dead_letters(state, capsys):
    keep(state, *(DeadLetter(dedupe_key=f"{number:04}", id="1", raw=b"", error="") for number in range(250)))
    _, lines, _ = run_dead_letters(capsys, state, "export")
    assert [json.loads(line)["dedupe_key"] for line in lines] == [f"{number:04}" for number in range(250)]


@pytest.mark.slow
def test_export_keeps_only_some_dead_letters_in_memory(state):
    size = form(4, 15) << 20
    keep(state, *(DeadLetter(dedupe_key=str(number), id="1", raw=b"x" * size, error="") for number in range(12)))
    program = (
        "import sys\nfrom push_to_poll_client.cli import main\n"
        "from push_to_poll_client.stores import _retention\n"
        "from tests.support.processes import peak_memory\n"
        "size = int(sys.argv[2])\n"
        "most_bytes = _retention.MAX_DEAD_LETTER_BYTES\n"
        "_retention.MAX_DEAD_LETTER_BYTES = most_bytes * size // (15 << 20)  # of smaller entries as many\n"
        "begun = peak_memory()\n"
        "code = main(['dead-letters', '--store', sys.argv[1], 'export'])\n"
        "sys.exit(code or peak_memory() - begun > 10 * size)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, state, str(size)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        timeout=GUARD,
        check=False,
    )
    assert done.returncode == 0
    assert len(done.stdout) > 12 * size


def test_show_prints_a_large_entry_completely(state, capsys):
    raw = ("é\x1b" * (1 << 17)).encode()
    keep(state, DeadLetter(dedupe_key="1", id="1", raw=raw, error=""))
    _, lines, _ = run_dead_letters(capsys, state, "show", "1")
    assert lines[-1] == r"é\u001b" * (1 << 17)


def test_list_show_and_export_work_while_a_process_owns_the_store(owned, capsys):
    state, _ = owned
    for action in (["list"], ["show", GOOD.dedupe_key], ["show", GOOD.id], ["export"]):
        assert run_dead_letters(capsys, state, *action)[0] == Exit.DONE
    assert typed("rewind", "--store", state, "--list") == Exit.DONE


def test_a_closed_output_pipe_is_not_an_error(state):
    keep(
        state, *(DeadLetter(dedupe_key=str(number), id="1", raw=b"x" * 100_000, error="") for number in range(50))
    )
    with command_line.start("dead-letters", "--store", state, "export") as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=GUARD) == Exit.DONE
        assert process.stderr.read() == ""


def test_a_broken_pipe_error_in_this_process_is_not_an_error(state, monkeypatch, tmp_path):
    keep(state, GOOD)
    with (tmp_path / "stdout").open("w") as file:
        monkeypatch.setattr(sys, "stdout", Broken(file, BrokenPipeError()))
        assert typed("dead-letters", "--store", state, "list") == Exit.DONE
        assert os.fstat(file.fileno()).st_rdev == os.stat(os.devnull).st_rdev  # noqa: PTH116


def test_a_full_disk_is_reported_in_one_sentence(state, monkeypatch, capsys, tmp_path):
    keep(state, GOOD)
    with (tmp_path / "stdout").open("w") as file:
        monkeypatch.setattr(sys, "stdout", Broken(file, OSError(errno.ENOSPC, "No space left on device")))
        assert typed("dead-letters", "--store", state, "export") == Exit.MESSAGE
        assert os.fstat(file.fileno()).st_rdev == os.stat(os.devnull).st_rdev  # noqa: PTH116
    assert capsys.readouterr().err == (
        "push-to-poll: OutputError: cannot write to standard output: No space left on device; the output "
        "is incomplete\n"
    )


# Changing


@on_both
def test_retry_marks_the_given_dead_letters(state, capsys):
    keep(state, GOOD, BAD, HALF)
    assert run_dead_letters(capsys, state, "retry", GOOD.dedupe_key, GOOD.dedupe_key) == (
        Exit.DONE,
        ["1 dead letter is marked; the next run retries it"],
        [],
    )
    assert [letter.retry_requested for letter in kept(state)] == [False, True, True]
    assert kept(state)[1].raw == GOOD.raw


@on_both
def test_retry_all_marks_every_dead_letter(state, capsys):
    keep(state, *(DeadLetter(dedupe_key=f"{number:04}", id="1", raw=b"x", error="e") for number in range(250)))
    assert run_dead_letters(capsys, state, "retry", "--all")[:2] == (
        Exit.DONE,
        ["250 dead letters are marked; the next run retries them"],
    )
    assert all(letter.retry_requested for letter in kept(state))
    keep(state, name="none")
    assert run_dead_letters(capsys, state, "retry", "--all", "--name", "none")[1] == [
        "0 dead letters are marked; the next run retries them"
    ]


@on_both
def test_drop_removes_dead_letters_and_records_them_as_skipped(state, capsys):
    keep(state, GOOD, BAD, HALF)
    assert run_dead_letters(capsys, state, "drop", GOOD.dedupe_key, r"\ud800") == (
        Exit.DONE,
        ["2 dead letters are deleted and will not be retried"],
        [],
    )
    assert [letter.dedupe_key for letter in kept(state)] == [BAD.dedupe_key]
    with sqlite3.connect(state) as file:
        states = file.execute("SELECT state FROM push_to_poll_record WHERE key = ?", (GOOD.dedupe_key,)).fetchall()
    file.close()
    assert ("skipped",) in states


def test_drop_keeps_the_fingerprint_of_the_failed_message(state, capsys):
    keep(state, GOOD, fingerprint=7)
    assert run_dead_letters(capsys, state, "drop", GOOD.dedupe_key)[0] == Exit.DONE

    async def read():
        session = await SQLiteStore(state).claim("orders", feed="feed")
        known = await session.fingerprints([GOOD.dedupe_key])
        await session.release()
        return known

    assert anyio.run(read) == {GOOD.dedupe_key: 7}


@pytest.mark.parametrize("action", ["retry", "drop"])
def test_an_unknown_key_is_an_error_and_changes_nothing(state, capsys, action):
    keep(state, GOOD, HALF)
    before = kept(state)
    code, lines, err = run_dead_letters(capsys, state, action, GOOD.dedupe_key, "canary")
    assert (code, lines) == (Exit.USAGE, [])
    why = (
        "argument 2 is neither the key nor the id of a dead letter; nothing was changed; "
        "push-to-poll dead-letters list shows the keys"
    )
    assert err == [f"push-to-poll: {why}"]
    assert kept(state) == before


@pytest.mark.parametrize(
    ("typed_id", "key"),
    [("42", GOOD.dedupe_key), (EVIL, BAD.dedupe_key), (r"\u001b[2J\r\nERROR \u009b\u202e", BAD.dedupe_key)],
)
def test_show_finds_a_dead_letter_by_the_id_of_its_message(state, capsys, typed_id, key):
    keep(state, GOOD, BAD, HALF)
    code, (line,), _ = run_dead_letters(capsys, state, "show", typed_id, "--json")
    assert (code, json.loads(line)["dedupe_key"]) == (Exit.DONE, key)


def test_show_prefers_the_dead_letter_whose_key_was_given(state, capsys):
    keep(state, GOOD, DeadLetter(dedupe_key="42", id="other", raw=b"", error="e"))
    _, (line,), _ = run_dead_letters(capsys, state, "show", "42", "--json")
    assert json.loads(line)["id"] == "other"


def test_retry_and_drop_find_dead_letters_by_the_ids_of_their_messages(state, capsys):
    keep(state, GOOD, BAD, HALF)
    code, lines, _ = run_dead_letters(capsys, state, "retry", "42", GOOD.dedupe_key)
    assert (code, lines) == (Exit.DONE, ["1 dead letter is marked; the next run retries it"])
    assert [letter.retry_requested for letter in kept(state)] == [False, True, True]
    code, lines, _ = run_dead_letters(capsys, state, "drop", "42", r"\ud800")
    assert (code, lines) == (Exit.DONE, ["2 dead letters are deleted and will not be retried"])
    assert [letter.dedupe_key for letter in kept(state)] == [BAD.dedupe_key]


@pytest.mark.parametrize("action", ["show", "retry", "drop"])
def test_an_id_of_several_dead_letters_is_an_error_that_names_their_keys(state, capsys, action):
    keep(
        state, *(DeadLetter(dedupe_key=f"{number} of\n1", id="1", raw=b"", error="e") for number in range(7)), HALF
    )
    before = kept(state)
    code, lines, err = run_dead_letters(capsys, state, action, "1")
    assert (code, lines) == (Exit.USAGE, [])
    keys = r"'0 of\n1', '1 of\n1', '2 of\n1', '3 of\n1', '4 of\n1', or another key that list shows"
    why = f"argument 1 is the id of several dead letters; give a key instead: {keys}"
    assert err == [f"push-to-poll: {why}"]
    assert kept(state) == before


@pytest.mark.parametrize(
    ("action", "result"),
    [
        ("show", (Exit.USAGE, [])),
        ("retry", (Exit.DONE, ["1 dead letter is marked; the next run retries it"])),
        ("drop", (Exit.DONE, ["1 dead letter is deleted and will not be retried"])),
    ],
)
def test_a_dead_letter_settled_during_the_command_is_left_out(state, capsys, monkeypatch, action, result):
    keep(state, GOOD, HALF)
    find = SQLiteReader.find_dead_letters

    def find_and_let_a_consumer_run(*arguments):
        found = find(*arguments)
        process(state, GOOD.dedupe_key)
        return found

    monkeypatch.setattr(SQLiteReader, "find_dead_letters", find_and_let_a_consumer_run)
    keys = [GOOD.dedupe_key] if action == "show" else [GOOD.dedupe_key, HALF.dedupe_key]
    code, lines, err = run_dead_letters(capsys, state, action, *keys)
    assert (code, lines) == result
    assert not err or "argument 1 is neither the key nor the id" in err[0]
    with sqlite3.connect(state) as file:
        states = file.execute("SELECT state FROM push_to_poll_record WHERE key = ?", (GOOD.dedupe_key,)).fetchall()
    file.close()
    assert ("skipped",) not in states


def test_show_of_an_unknown_key_is_a_usage_error(state, capsys):
    keep(state)
    assert run_dead_letters(capsys, state, "show", "canary")[:2] == (Exit.USAGE, [])


@pytest.mark.parametrize("arguments", [["retry"], ["retry", "--all", "key"]])
def test_retry_takes_keys_or_all(state, capsys, arguments):
    assert run_dead_letters(capsys, state, *arguments) == (
        Exit.USAGE,
        [],
        ["push-to-poll: retry needs either keys or --all"],
    )


@pytest.mark.parametrize(
    ("action", "instead"),
    [
        (["dead-letters", "--store", "{}", "retry", GOOD.dedupe_key], "dead_letters.retry()"),
        (["dead-letters", "--store", "{}", "retry", "--all"], "dead_letters.retry()"),
        (["dead-letters", "--store", "{}", "drop", GOOD.dedupe_key], "dead_letters.drop()"),
        (["rewind", "--store", "{}", "--to", "inception"], "rewind()"),
    ],
)
def test_retry_drop_and_rewind_refuse_a_store_owned_by_a_process(owned, capsys, action, instead):
    state, process = owned
    before = kept(state)
    assert [(letter.dedupe_key, letter.retry_requested) for letter in before] == [(GOOD.dedupe_key, False)]
    code = typed(*(word.format(state) for word in action))
    out, err = capsys.readouterr()
    assert (code, out) == (Exit.STATE, "")
    assert stderr_lines(err) == [
        (
            f"push-to-poll: StoreBusy: {os.path.realpath(state)} is in use by process {process}; "
            f"stop it first, or call {instead} of its consumer there"
        )
    ]
    assert kept(state) == before


def test_an_unknown_owner_is_reported_as_another_process(owned, capsys, monkeypatch):
    monkeypatch.setattr("push_to_poll_client.cli._stores.lock_holder", lambda _: None)
    assert "is in use by another process;" in run_dead_letters(capsys, owned[0], "retry", "--all")[2][0]


def test_retry_and_drop_do_not_delete_old_records(state, capsys):
    """The command does not know the consumer's retention, so it deletes nothing."""

    async def commit():
        store = SQLiteStore(state, retention=None, max_records=None, clock=lambda: 1e9)
        session = await store.claim("orders", feed="feed")
        for number in range(5):
            await session.commit(cursor=str(number), records=[Record(f"{number}-{one}") for one in range(3000)])
        await session.commit(
            cursor="c", records=[Record(GOOD.dedupe_key, Settlement.DEAD_LETTERED)], dead_letters=[GOOD]
        )
        await session.release()

    anyio.run(commit)
    assert run_dead_letters(capsys, state, "retry", "--all")[0] == Exit.DONE
    assert run_dead_letters(capsys, state, "drop", GOOD.dedupe_key)[0] == Exit.DONE
    typed("status", "--store", state, "--json")
    assert json.loads(capsys.readouterr().out)["consumers"][0]["records"] >= 15_001


@on_both
def test_commands_work_on_a_database_shared_with_an_application(state, capsys):
    with sqlite3.connect(state) as file:
        file.execute("CREATE TABLE account(balance)")
        file.execute("CREATE VIEW rich AS SELECT * FROM account WHERE balance > 9")
    file.close()
    keep(state, GOOD, transactional=True)
    assert run_dead_letters(capsys, state, "list")[0] == Exit.DONE
    assert run_dead_letters(capsys, state, "drop", GOOD.dedupe_key)[0] == Exit.DONE
    assert typed("rewind", "--store", state, "--to", "inception") == Exit.DONE


# Choosing a consumer


def test_name_is_required_when_the_file_has_several_consumers(state, capsys):
    for number in range(7):
        keep(state, DeadLetter(dedupe_key=f"k{number}", id="1", raw=b"", error=""), name=f"{number}{EVIL}")
    code, lines, (sentence,) = run_dead_letters(capsys, state, "list")
    assert (code, lines) == (Exit.USAGE, [])
    assert sentence.startswith(
        r"push-to-poll: --name is missing; choose one of '0\x1b[2J\r\nERROR \x9b\u202e', '1"
    )
    assert sentence.endswith("and 2 more")
    for place in (["--name", f"3{EVIL}", "list"], ["list", "--name", r"3\x1b[2J\r\nERROR \x9b\u202e"]):
        _, (_, line), _ = run_dead_letters(capsys, state, *place)
        assert " k3 " in line


def test_the_error_for_an_unknown_name_does_not_repeat_it(state, capsys):
    keep(state)
    assert run_dead_letters(capsys, state, "list", "--name", "canary") == (
        Exit.USAGE,
        [],
        ["push-to-poll: --name is not a consumer of the store; choose one of 'orders'"],
    )


def test_a_file_without_a_consumer_is_reported_in_one_sentence(state, capsys):
    SQLiteStore(state)
    open(state, "w").close()  # noqa: PTH123
    code, lines, (sentence,) = run_dead_letters(capsys, state, "list")
    assert (code, lines) == (Exit.STATE, [])
    assert sentence.endswith(" contains no consumer yet; run a consumer with this store first")


# Invalid files


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Return a file to copy, which is cheaper than a new file."""
    path = str(tmp_path_factory.mktemp("good") / "state.db")
    keep(path, GOOD)
    return path


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE push_to_poll_dead_letter SET error = 5",
        "UPDATE push_to_poll_dead_letter SET attempts = 'x'",
        "UPDATE push_to_poll_dead_letter SET id = x'ff'",
        "UPDATE push_to_poll_dead_letter SET raw = 'text'",
        "UPDATE push_to_poll_dead_letter SET key = x'ff' || key",
        "DROP TABLE push_to_poll_dead_letter",
        "UPDATE push_to_poll_consumer SET cursor = 5",
        "UPDATE push_to_poll_schema SET version = 99",
        "CREATE TRIGGER t AFTER UPDATE ON push_to_poll_consumer BEGIN SELECT 1; END",
    ],
)
@pytest.mark.parametrize(
    "action",
    [
        ["dead-letters", "--store", "{}", "list"],
        ["dead-letters", "--store", "{}", "show", "12:https://shop42"],
        ["dead-letters", "--store", "{}", "export"],
        ["dead-letters", "--store", "{}", "retry", "--all"],
        ["dead-letters", "--store", "{}", "drop", "12:https://shop42"],
        ["rewind", "--store", "{}", "--list"],
        ["rewind", "--store", "{}", "--to", "inception"],
    ],
    ids=lambda action: " ".join(action[::2])[:20],
)
def test_a_damaged_file_is_reported_in_one_sentence(state, good, capsys, damage, action):
    shutil.copy(good, state)
    with sqlite3.connect(state) as file:
        file.execute(damage)
    file.close()
    code = typed(*(word.format(state) for word in action))
    err = stderr_lines(capsys.readouterr().err)
    assert code in {Exit.DONE, Exit.STATE, Exit.USAGE}  # the command may not read the damaged part
    assert len(err) == (code != Exit.DONE)
    assert all(line.isprintable() and "bug" not in line for line in err)


@pytest.mark.parametrize("size", [1, 100, 4096, 5000, 20_000])
@pytest.mark.parametrize("action", [["list"], ["export"], ["retry", "--all"]])
def test_a_truncated_file_is_reported_in_one_sentence(state, good, capsys, size, action):
    shutil.copy(good, state)
    os.truncate(state, size)
    code, lines, err = run_dead_letters(capsys, state, *action)
    assert (code, lines) == (Exit.STATE, [])
    assert len(err) == 1
    assert "bug" not in err[0]


# End to end


def test_a_dead_letter_marked_by_retry_is_processed_by_the_next_run(tmp_path, state, capfd):
    program = tmp_path / "program.py"
    program.write_text("import sys, json\nsys.exit(json.load(sys.stdin)['id'].endswith('2'))")
    with serve_in_thread(backlog=3) as server:
        tail = ["tail", server.url, "--once", "--store", state, "--exec-attempts=1"]
        tail += ["--exec", f"{sys.executable} -S -E {program}", "--on-failure", "dead-letter"]

        def run(*arguments):
            code = typed(*arguments)
            out, err = capfd.readouterr()
            return code, out, "\n".join(stderr_lines(err))

        code, _, err = run(*tail)
        assert code == Exit.DONE
        assert "kept as a dead letter: CommandFailed" in err
        (line,) = run("dead-letters", "--store", state, "list", "--json")[1].splitlines()
        assert json.loads(line)["id"].endswith("2")
        assert run("dead-letters", "--store", state, "retry", json.loads(line)["dedupe_key"])[0] == Exit.DONE
        program.write_text("print('done')")
        assert run(*tail) == (Exit.DONE, "done\n", "")
        assert run("dead-letters", "--store", state, "list")[1] == "no dead letters\n"
