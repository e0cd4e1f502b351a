"""Text from other systems cannot control the terminal, neither in messages nor in log lines."""

import io
import json
import logging
import os
import shlex
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push_to_poll_client import Message
from push_to_poll_client.cli import _main
from push_to_poll_client.cli._output import escape_unprintable, format_time, shell_quoted, unescape, write_line

EVIL = "\x1b[31m\r\nERROR all is lost\x00\x7f\x9b\u202e\u2066\u200b\U000e0001"

SHOWN = r"\u001b[31m\r\nERROR all is lost\u0000\u007f\u009b\u202e\u2066\u200b\udb40\udc01"


def test_harmless_escapes_unprintable_characters_as_json_does():
    assert escape_unprintable(EVIL) == SHOWN
    assert json.loads(f'"{SHOWN}"') == EVIL


def test_harmless_leaves_printable_characters_unchanged():
    assert escape_unprintable('{"a": "größe, 量, 😀"}') == '{"a": "größe, 量, 😀"}'


@given(st.text())
def test_an_escaped_json_line_decodes_to_the_same_value(text):
    line = json.dumps({text: text}, ensure_ascii=False)
    assert escape_unprintable(line).isprintable()
    assert json.loads(escape_unprintable(line)) == {text: text}


@given(st.text())
def test_text_printed_by_typeable_can_be_typed_in_a_shell(text):
    (typed,) = shlex.split(shell_quoted(text))
    assert typed == escape_unprintable(text)
    if "\\" not in text:
        assert unescape(typed) == text


@given(st.characters(categories=["Cs"]))
def test_the_escaped_form_of_a_lone_surrogate_can_be_typed(half):
    assert unescape(escape_unprintable(half)) == half


def test_harmless_escapes_a_long_text():
    long = "x\n" * 100_000 + "é" * 100_000
    assert escape_unprintable(long) == r"x\n" * 100_000 + "é" * 100_000


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(1e9, "2001-09-09 01:46:40"), (1e300, "1e+300"), (-1e300, "-1e+300"), (float("inf"), "inf"), (1e15, "1e+15")],
)
def test_moment_shows_any_number_of_seconds(seconds, shown):
    assert format_time(seconds) == shown


class Stdout(io.TextIOWrapper):
    def __init__(self, *, terminal):
        super().__init__(io.BytesIO())
        self.isatty = lambda: terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_line_is_escaped_for_a_terminal_and_unchanged_for_a_pipe(terminal, monkeypatch):
    stdout = Stdout(terminal=terminal)
    monkeypatch.setattr(sys, "stdout", stdout)
    write_line(Message("größe", data={"x": EVIL}))
    line = stdout.buffer.getvalue().decode()
    assert line.endswith("\n")
    assert line[:-1].isprintable() is terminal
    assert "größe" in line
    assert json.loads(line) == {"id": "größe", "data": {"x": EVIL}}


def test_a_line_is_escaped_on_a_real_terminal(monkeypatch):
    leader, follower = os.openpty()
    with open(follower, "w", encoding="utf-8") as terminal:  # noqa: PTH123  # by its descriptor
        monkeypatch.setattr(sys, "stdout", terminal)
        write_line(Message("1", data="\x9b\U0001f600\U000e0001"))
    assert os.read(leader, 1000).decode() == '{"id":"1","data":"\\u009b😀\\udb40\\udc01"}\r\n'
    os.close(leader)


@pytest.fixture
def logger():
    logger = logging.getLogger("push_to_poll_client")
    before = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:], level = before
    logger.setLevel(level)


def logged(logger, monkeypatch, *args, verbose=0, **options):
    """Log an error as the command line does, and return its text on stderr."""
    stderr = io.StringIO()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stderr)
        _main._log_to_stderr(verbose)
    logger.error(*args, **options)
    return stderr.getvalue().removesuffix("\n").split("\n")


def test_a_log_record_is_one_escaped_line(logger, monkeypatch):
    (line,) = logged(logger, monkeypatch, "%s and %s", EVIL, "more")
    assert line.endswith(f" ERROR {SHOWN} and more")


def test_traceback_lines_in_the_log_are_escaped_and_indented(logger, monkeypatch):
    error = ValueError(f"{EVIL}\n2026-01-01 ERROR forged")
    assert len(logged(logger, monkeypatch, "failed", exc_info=error)) == 1
    first, *others = logged(logger, monkeypatch, "failed", exc_info=error, verbose=2)
    assert first.endswith(" ERROR failed")
    assert all(line.startswith("  ") and line.isprintable() for line in others)
    assert r"  ValueError: \u001b[31m\r" in others
    assert "  2026-01-01 ERROR forged" in others
