"""Any arguments: an exit code of the table, one sentence, no traceback, no secret, no control character."""

import os
import subprocess
import sys

import anyio
import pytest

from push_to_poll_client import SQLiteStore
from push_to_poll_client.cli._output import EXIT_CODES, Exit
from tests.support.command_line import COMMAND, stderr_lines, typed, with_dev_full
from tests.support.forms import GUARD, form

CANARY = "canary-secret"
FEED = f"http://user:{CANARY}@127.0.0.1:1/feed?key={CANARY}"
LONG = "x" * form(200_000, 1_000_000)  # Linux limits an argument to 128 KiB
ACTS = "\x1b[2J\r\n\x07\x9b\u202e"
BYTES = "\udcff\udc80"  # Python's form of bytes that are not UTF-8
ALL_NUMBERS = ["soon", "nan", "inf", "-1", "1e999", "", " ", ACTS, BYTES, LONG, FEED, CANARY]
NUMBERS = form(["soon", "nan", "-1", BYTES, CANARY], ALL_NUMBERS)
"""Values for the options that are read like `--fallback-interval`."""

URLS = [
    "",
    " ",
    CANARY,
    f"user:{CANARY}",
    f"ftp://user:{CANARY}@shop.example/",
    f"http://user:{CANARY}@",
    f"http://user:{CANARY}/x@shop.example/",
    f"http://user:{CANARY}@shop.example:{CANARY}/",
    f"http://user:{CANARY}@[::1/",
    f"http:/user:{CANARY}@shop.example/",
    f"http://user:{CANARY}@shop.example/{ACTS}",
    f"//user:{CANARY}@shop.example/",
    f"{ACTS}",
    f"http://{BYTES}/",
]
"""URLs that cannot be the URL of a feed."""

FILES = {
    "": Exit.USAGE,
    ".": Exit.STATE,
    "/": Exit.STATE,
    "missing/state.db": Exit.STATE,
    "file/state.db": Exit.STATE,
    "file": Exit.STATE,
    LONG: Exit.STATE,
    f"missing{ACTS}/state.db": Exit.STATE,
    f"missing{BYTES}/state.db": Exit.STATE,
    "~" + "../" * 2000: Exit.STATE,
}
"""Paths of files that cannot store state, with their exit codes."""

SOME_FILES = form(["file", LONG, f"missing{BYTES}/state.db"], list(FILES))
"""Paths for the commands that read a file as `status` does."""

USAGE = [
    [],
    [""],
    [ACTS],
    [BYTES],
    [LONG],
    [CANARY],
    [FEED],
    [FEED, "--once"],
    ["--store", CANARY],
    ["tail"],
    ["status"],
    ["status", "--store"],
    ["status", "--stat", CANARY],
    ["status", "--store", "file", CANARY],
    ["status", "--store", "file", f"--json={CANARY}"],
    ["status", "--store", "file", "--json", FEED],
    ["dead-letters"],
    ["dead-letters", CANARY],
    ["dead-letters", "--name", CANARY],
    ["dead-letters", "--store", "file", CANARY],
    ["dead-letters", "--store", "file", "list", CANARY],
    ["dead-letters", "--store", "file", "list", f"--json={CANARY}"],
    ["dead-letters", "--store", "file", "show"],
    ["dead-letters", "--store", "file", "show", CANARY, CANARY],
    ["dead-letters", "--store", "file", "retry"],
    ["dead-letters", "--store", "file", "retry", "--all", CANARY],
    ["dead-letters", "--store", "file", "drop"],
    ["dead-letters", "--store", "file", "drop", "--all"],
    ["dead-letters", "--store", "file", "export", CANARY],
    ["rewind"],
    ["rewind", "--store", "file"],
    ["rewind", "--store", "file", CANARY],
    ["rewind", "--store", "file", "--to"],
    ["rewind", "--store", "file", "--list", "--to", CANARY],
    ["rewind", "--store", "file", "--list", "--forget"],
    *(["rewind", "--store", "file", "--ago", number] for number in NUMBERS),
    *(["rewind", "--store", "file", "--to", cursor] for cursor in ["", BYTES, LONG, "latest"]),
    ["demo", CANARY],
    ["demo", "--token", CANARY],
    ["demo", f"--token={CANARY}"],
    ["demo", "--backlog"],
    ["tail", FEED, FEED],
    ["tail", FEED, CANARY, ACTS, BYTES],
    ["tail", FEED, "--token", CANARY],
    ["tail", FEED, f"--token={CANARY}"],
    ["tail", FEED, f"--{CANARY * 100}"],
    ["tail", FEED, f"--{ACTS}"],
    ["tail", FEED, "--x" + LONG],
    ["tail", FEED, f"-{CANARY.upper()}"],
    ["tail", FEED, f"--once={CANARY}"],
    ["tail", FEED, f"--e={CANARY}"],
    ["tail", FEED, "--store"],
    ["tail", FEED, "--once", "--push", FEED],
    *(["tail", FEED, "--fallback-interval", number] for number in ALL_NUMBERS),
    *(["tail", FEED, "--max-wait", number] for number in NUMBERS),
    *(["tail", FEED, "--exec", "true", "--exec-timeout", number] for number in NUMBERS),
    *(
        ["tail", FEED, "--exec", "true", "--exec-attempts", number]
        for number in [*NUMBERS, "1.5", "0", "9" * 5000]
    ),
    *(["demo", "--backlog", number] for number in [*ALL_NUMBERS, "1.5", "9" * 5000]),
    *(["demo", "--live", number] for number in [*NUMBERS, "1.5", "0"]),
    *(["tail", url] for url in URLS),
    *(["tail", FEED, "--push", url] for url in URLS),
    *(["tail", FEED, "--token-env", name] for name in ["", CANARY, "A=B", ACTS, BYTES, LONG, "WITH_CONTROLS"]),
    ["tail", FEED, "--token-env", "TOKEN"],  # two credentials
    ["tail", "https://shop.example/", "--token-env", "TOKEN", "--push", f"wss://u:{CANARY}@shop.example/"],
    *(
        ["tail", FEED, "--exec", command]
        for command in ["", "''", "'", "\\", ACTS, f"./{BYTES}", LONG[: form(10_000, 100_000)], ".", "/"]
    ),
    ["tail", FEED, "--exec", f"./missing {CANARY}"],
    *(
        ["tail", FEED, "--once", "--on-failure", policy]
        for policy in ["", "dead_letter", CANARY, ACTS, BYTES, LONG]
    ),
    ["tail", FEED, "--once", "--on-failure", "dead-letter"],
    *(["tail", FEED, "--once", "--start", cursor] for cursor in ["", BYTES, LONG, "latest"]),
]

FAILS = [
    *((["tail", FEED, "--once", "--store", file], code) for file, code in FILES.items()),
    *((["status", "--store", file], code) for file, code in FILES.items()),
    *((["status", "--json", "--store", file], Exit.STATE) for file in SOME_FILES),
    *(
        (["dead-letters", "--store", file, *action], Exit.STATE)
        for file in SOME_FILES
        for action in (["list"], ["show", CANARY], ["retry", CANARY], ["drop", ACTS, BYTES, LONG], ["export"])
    ),
    *(
        (["rewind", "--store", file, *where], Exit.STATE)
        for file in SOME_FILES
        for where in (["--list"], ["--to", ACTS])
    ),
    (["tail", FEED, "--once"], Exit.FEED),
    (["tail", FEED, "--once", "--exec", "true"], Exit.FEED),
    (["tail", f"http://user:{CANARY}@127.0.0.1:1/{'x' * 60_000}", "--once"], Exit.FEED),
    (["tail", f"http://no-such-host.invalid/?key={CANARY}", "--once", "--token-env", "TOKEN"], Exit.FEED),
]

ALL = [*((arguments, Exit.USAGE) for arguments in USAGE), *FAILS]


def short(value):
    return ascii(" ".join(value))[:60] if isinstance(value, list) else None


def check(err):
    (sentence,) = err.split("\n")[:-1]
    assert sentence.startswith("push-to-poll")
    assert sentence.isprintable()
    assert CANARY not in sentence.lower()
    assert "Traceback" not in sentence
    assert "this is a bug" not in sentence
    assert len(sentence) < 700


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no database" * 100)
    (tmp_path / CANARY).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANGUAGE", "C")  # otherwise argparse searches the disk for a translation of each word
    monkeypatch.setenv("TOKEN", CANARY)
    monkeypatch.setenv("WITH_CONTROLS", f"{CANARY}\r\nX: y")


@pytest.mark.parametrize(("arguments", "code"), ALL, ids=short)
def test_a_command_line_error_has_an_exit_code_and_one_sentence_without_secrets(arguments, code, capfd, tmp_path):
    assert typed(*arguments) == code
    out, err = capfd.readouterr()
    assert out == ""
    check("".join(f"{line}\n" for line in stderr_lines(err)))
    assert {path.name for path in tmp_path.iterdir()} <= {"file", CANARY, "file.lock"}


BYTES_TYPED = [
    ([b"tail", b"http://\xff\x80/"], Exit.USAGE),
    ([b"\xff\x80\x1b[2J\n"], Exit.USAGE),
    ([b"tail", FEED.encode(), b"--\xff\x1b[2J"], Exit.USAGE),
    ([b"status", b"--store", b"\xff\x80\x1b[2J/x" + b"y" * 100_000], Exit.STATE),
    ([b"tail", FEED.encode(), b"--once", b"--store", b"\xff\x80\x1b[2J/x"], Exit.STATE),
    ([b"tail", FEED.encode(), b"--exec", b"./\xff\x80"], Exit.USAGE),
]

RUN_EACH = """
import sys
from tests.support.command_line import typed

arguments = []
for argument in sys.argv[1:]:
    if argument != "next command":
        arguments.append(argument)
        continue
    print(int(typed(*arguments)))
    print(file=sys.stderr)
    arguments = []
"""
"""Program that runs the commands in its arguments. One process runs all of them, because a process costs much."""


@pytest.mark.parametrize("locale", form(["C"], ["C", "C.UTF-8"]))
def test_undecodable_arguments_are_reported_in_one_sentence_with_an_exit_code(locale):
    """As the system passes them, with any encoding of the terminal."""
    environment = {**os.environ, "LC_ALL": locale, "PYTHONIOENCODING": "ascii" if locale == "C" else ""}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    arguments = [argument for typed, _ in BYTES_TYPED for argument in (*typed, b"next command")]
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=GUARD,
        check=True,
    )
    assert list(map(int, done.stdout.splitlines())) == [code for _, code in BYTES_TYPED]
    *errors, rest = done.stderr.split("\n\n")
    assert (len(errors), rest) == (len(BYTES_TYPED), "")
    for err in errors:
        check("".join(f"{line}\n" for line in stderr_lines(err)))


@pytest.mark.parametrize("typo", ["--onec", "--onec=5"])
def test_an_option_that_was_mistyped_is_named(typo, capsys):
    assert typed("tail", FEED, typo, CANARY) == Exit.USAGE
    assert capsys.readouterr().err == (
        "push-to-poll tail: unrecognized arguments: --onec and 1 more; see push-to-poll tail --help\n"
    )


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ([], ["--help", "--version", "tail", "status", "dead-letters", "rewind", "demo"]),
        (
            ["tail"],
            [
                "URL",
                "--push",
                "--store",
                "--once",
                "--fallback-interval",
                "--max-wait",
                "--token-env",
                "--verbose",
            ],
        ),
        (["tail"], ["--exec CMD", "--exec-timeout", "--exec-attempts"]),
        (["tail"], ["--on-failure WHAT", "stop", "dead-letter", "skip", "--start CURSOR"]),
        (["status"], ["--store STORE", "--json"]),
        (["dead-letters"], ["--store STORE", "--name NAME", "list", "show", "retry", "drop", "export"]),
        (["dead-letters", "--store", "FILE", "list"], ["--json"]),
        (["dead-letters", "--store", "FILE", "show"], ["KEY", "--json"]),
        (["dead-letters", "--store", "FILE", "retry"], ["KEY", "--all"]),
        (["dead-letters", "--store", "FILE", "drop"], ["KEY"]),
        (["dead-letters", "--store", "FILE", "export"], ["raw_base64"]),
        (["rewind"], ["--store STORE", "--name NAME", "--to CURSOR", "--ago S", "--list", "--forget"]),
        (["demo"], ["--backlog N", "--live N"]),
    ],
)
def test_the_help_lists_each_option_and_the_exit_codes(command, options, capsys):
    """Each option, and the whole table of exit codes."""
    assert typed(*command, "--help") == 0
    help_ = capsys.readouterr().out
    assert EXIT_CODES in help_
    for option in options:
        assert option in help_


def test_every_exit_code_is_in_the_table():
    for code in Exit:
        assert f"\n  {code.value:<5}" in EXIT_CODES


def shell_run(command, redirections):
    """Run `push-to-poll` from a shell; return the exit code, standard output and standard error."""
    script = ["/bin/sh", "-c", f'exec "$@" {redirections}', "sh", *COMMAND, *command]
    done = subprocess.run(script, check=False, capture_output=True, text=True, timeout=GUARD)
    return done.returncode, done.stdout, stderr_lines(done.stderr)


def test_a_closed_standard_output_is_reported_in_one_sentence(tmp_path):
    state = str(tmp_path / "state.db")

    async def commit():
        session = await SQLiteStore(state).claim("orders", feed="feed")
        await session.release()

    anyio.run(commit)
    code, _, (line,) = shell_run(["status", "--store", state], ">&-")
    assert code == Exit.MESSAGE
    assert line.startswith("push-to-poll: OutputError: cannot write to standard output: Bad file descriptor")


def test_an_error_is_not_written_to_standard_output_if_standard_error_is_closed(tmp_path):
    assert shell_run(["status", "--store", str(tmp_path / "missing")], "2>&-") == (Exit.STATE, "", [])


def test_a_process_without_standard_output_and_error_has_the_exit_code_of_its_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert typed("status", "--store", str(tmp_path / "missing")) == Exit.STATE
    for stream in (sys.stdout, sys.stderr):
        stream.close()


@pytest.mark.parametrize("redirections", [">&-", pytest.param(">/dev/full", marks=with_dev_full)])
def test_help_that_cannot_be_written_is_not_a_bug(redirections):
    assert shell_run(["--help"], redirections) == (0, "", [])
