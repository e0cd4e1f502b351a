"""Run `push-to-poll`, in this process or in another one."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from push_to_poll_client.cli import main
from tests.support.forms import LONG

COMMAND = [sys.executable, "-m", "push_to_poll_client"]

BACKENDS = ["asyncio", "trio"] if LONG or os.environ.get("COUNT") == "all" else ["asyncio"]
"""The command itself runs on asyncio.

The long form runs it on trio too. So does `make coverage`, since CPython 3.11 loses trace events on asyncio
(gh-106749).
"""

with_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def stderr_lines(err):
    """Return the text on stderr, without the warning about an old SQLite."""
    return [line for line in err.splitlines() if ": SQLite " not in line]


def start(*arguments, **options):
    """Start `push-to-poll` in another process."""
    return subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def typed(*arguments):
    """Run `push-to-poll` in this process. Return its exit code, also when argparse exits."""
    try:
        return main(arguments)
    except SystemExit as ended:
        return ended.code


def tail(capture, *arguments):
    """Run `push-to-poll tail …` in this process. Return exit code, parsed lines and stderr."""
    code = typed("tail", *arguments)
    out, err = capture.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err.decode()


class Broken:
    """Standard output that rejects writes; `file` has its descriptor."""

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
    """Run the command on this backend, one of `BACKENDS`."""
    monkeypatch.setattr(anyio, "run", functools.partial(anyio.run, backend=backend))
