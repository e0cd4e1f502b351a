"""Types `push-to-poll`: in this process, or in one of its own."""

import functools
import json
import subprocess
import sys

import anyio

from push_to_poll_client.cli import main

COMMAND = [sys.executable, "-m", "push_to_poll_client"]


def said(err):
    """What was said on stderr, but for the warning about an old SQLite."""
    return [line for line in err.splitlines() if ": SQLite " not in line]


def start(*arguments, **options):
    """`push-to-poll` in a process of its own."""
    return subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def typed(*arguments):
    """Exit code of `push-to-poll` in this process, also when argparse ends it."""
    try:
        return main(arguments)
    except SystemExit as ended:
        return ended.code


def tail(capture, *arguments):
    """Runs `push-to-poll tail …` in this process; returns exit code, parsed lines, and stderr."""
    code = typed("tail", *arguments)
    out, err = capture.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err.decode()


class Broken:
    """Standard output that cannot be written to; `file` is what has its descriptor."""

    buffer = property(lambda self: self)

    def __init__(self, file, error):
        self._file = file
        self._error = error

    def isatty(self):
        return False

    def write(self, line):
        raise self._error

    def flush(self):
        raise self._error

    def fileno(self):
        return self._file.fileno()


def on(backend, monkeypatch):
    """Let it run on this backend.

    The command runs on asyncio; on trio here too, where CPython 3.11 does not lose trace events (gh-106749).
    """
    monkeypatch.setattr(anyio, "run", functools.partial(anyio.run, backend=backend))
