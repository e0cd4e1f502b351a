"""The parent's side: sends cases to the attacked process, and checks every report in the same way."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

MIB = 1 << 20

EVIL = "\x1b[31m\r\nERROR all is lost\x00\u202e\u2066\x9b\x07"
"""Characters that control a terminal or begin a line: ESC, CR LF, NUL, bidi, C1, bell."""

EVIL_BYTES = EVIL.replace("\r\n", "").replace("\x00", "").encode()
"""The same without the characters that end a header."""

RATE, BURST = 5, 10
"""The consumer's defaults."""

LONGEST_LINE = 1_000
"""Characters of an error or a log line: some lines of a terminal."""


class Case(NamedTuple):
    """An attack and its permitted effects.

    Attributes:
        name: Its name, also at the server.
        attack: See `attackers.py`.
        error: Pattern of the error.
        limit: Bytes by which the memory of the attacked process may grow.
        kind: Class of the error.
        options: Options of the attacked feed or listener.
    """

    name: str
    attack: Callable[..., None]
    error: str
    limit: int
    kind: str
    options: dict[str, Any]

    @property
    def path(self):
        return re.sub(r"\W+", "-", self.name)


def attacks(cases):
    """Return the cases by the path at which a server has them."""
    by_path = {case.path: case.attack for case in cases}
    assert len(by_path) == len(cases)
    return by_path


def matrix(cases, short):
    """Return parameters for a test of `backend` and `case`.

    Args:
        cases: All cases. The long form runs each on both event loops.
        short: Names of the cases that the short form runs too, each on one event loop in turn.
    """
    assert set(short) <= {case.name for case in cases}
    backends = ("asyncio", "trio")
    return pytest.mark.parametrize(
        ("backend", "case"),
        [
            pytest.param(
                backend,
                case,
                id=f"{case.path}-{backend}",
                marks=() if case.name in short and turn == 0 else pytest.mark.long_form,
            )
            for number, case in enumerate(cases)
            for turn, backend in enumerate((backends[number % 2], backends[1 - number % 2]))
        ],
    )


class Victims:
    """The process that forks an attacked process for each case."""

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.victim"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_):
        self._process.communicate()

    def attacked(self, by, backend, **consumer):
        """Attack "feed", "push", "store" or "status", and return the report; see `victim.py`."""
        self._process.stdin.write(json.dumps({"by": by, "backend": backend, "consumer": consumer}) + "\n")
        self._process.stdin.flush()
        report = json.loads(self._process.stdout.readline())
        assert "died" not in report, report["died"]
        return report


def check_lines(report):
    """Check that no error and no log line controls a terminal or fills it."""
    for kind, text, length in report["errors"]:
        assert text.isprintable(), (kind, text)
        assert length < LONGEST_LINE, (kind, length)
    for line in report["lines"]:
        assert line.isprintable(), line
        assert len(line) < LONGEST_LINE, line
    assert report["status"].isprintable()
    assert len(report["status"]) < 3 * LONGEST_LINE


def check_recovery(report, *, cursor="3"):
    """Check that the cursor stayed during the attack and moved afterwards."""
    assert report["cursor"] in cursor
    assert report["processed"] == ["1", "2", "3", "4"]
    assert report["at_end"] == "4"


def check_feed(report, case):
    """Check that there was one error, and that the consumer recovered."""
    check_lines(report)
    kind, text, _ = report["errors"][0]
    assert kind == case.kind
    assert re.search(case.error, text)
    check_recovery(report)
    assert report["peak"] <= case.limit, f"{report['peak'] / MIB:.1f} MiB"


def check_channel(report, case):
    """Check that a hostile channel caused only polls within the rate."""
    check_lines(report)
    assert re.search(case.error, report["errors"][-1][1])
    # A channel comes back within a moment, so it may have brought the news already.
    check_recovery(report, cursor=("3", "4"))
    assert report["peak"] <= case.limit, f"{report['peak'] / MIB:.1f} MiB"
    assert report["polls"] <= BURST + 1 + RATE * (report["took"] + 1)


def shown(case, report):
    """Print a line of figures, which `pytest -rP` shows."""
    peak, kept = report["peak"] / MIB, report["kept"] / MIB
    print(  # noqa: T201
        f"{case.name}: peak {peak:.1f} MiB, kept {kept:.1f} MiB, blocked {report['blocked']:.2f} s, "
        f"took {report['took']:.2f} s, {report['polls']} polls: {report['errors'][-1][1]}; "
        f"others logged {report['foreign']}"
    )
