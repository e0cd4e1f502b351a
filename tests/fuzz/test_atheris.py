"""Coverage-guided fuzzing of every parser, each in a process of its own (`atheris_run.py`).

`make test` checks that it finds a fault that only guided fuzzing finds. `make chaos` fuzzes every parser.
CHAOS_SEED repeats the inputs of a run. Add each fault that it finds to `found` in the row.
"""

import importlib.util
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.parsers import PARSERS
from tests.support.forms import SEED

LIBFUZZER_SEED = SEED % (1 << 31)

RUNS = 4_000
"""Inputs for each parser. A number, not a time: a run with the same seed does the same on any machine."""

GUARD = 600
"""Time limit of a run in seconds."""

FAULT = 77
"""Exit code of libFuzzer for a fault."""

ROOT = Path(__file__).parents[2]
THERE = importlib.util.find_spec("atheris") is not None
FOR_THIS = sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info < (3, 14)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOR_THIS, reason="atheris is for Linux on x86-64, and Python before 3.14"),
    pytest.mark.skipif(
        not THERE and "CI" not in os.environ, reason="atheris is not installed: .ci/requirements.txt has it"
    ),
]


def run(name, directory, *, runs, seed=LIBFUZZER_SEED):
    command = [sys.executable, "-m", "tests.fuzz.atheris_run", name]
    options = ["--runs", str(runs), "--seed", str(seed), "--directory", directory]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}  # sets are fuzzed in the same order
    return subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=GUARD, check=False, env=environment, cwd=ROOT
    )


def describe_faults(ran, directory):
    """Return the failing inputs and the first lines of the traceback."""
    found = [(path.name, path.read_bytes()) for path in directory.glob("fault-*")]
    said = ran.stdout + ran.stderr
    return "\n".join([*map(repr, found), *said[max(said.find("=== Uncaught"), 0) :].splitlines()[:60]])


@pytest.mark.long_form
@pytest.mark.parametrize("name", PARSERS)
def test_guided_fuzzing_finds_only_declared_errors_in_each_parser(name, tmp_path, record_property):
    ran = run(name, tmp_path, runs=RUNS)
    assert ran.returncode == 0, describe_faults(ran, tmp_path)
    runs, branches = re.search(r"#(\d+)\s+DONE\s+cov: (\d+)", ran.stderr).groups()
    record_property("figures", f"{int(runs):,} inputs, {branches} branches")
    assert int(runs) >= RUNS


def test_guided_fuzzing_finds_a_planted_undeclared_error(tmp_path):
    ran = run("planted", tmp_path, runs=1_000_000, seed=1)
    assert ran.returncode == FAULT
    assert "an error that is not declared" in describe_faults(ran, tmp_path)
    assert r"\x17\x99L\xe3" in describe_faults(ran, tmp_path)


@pytest.mark.long_form
def test_the_measured_memory_does_not_include_the_parent_process(tmp_path):
    ballast = b"x" * (300 << 20)
    ran = run("links", tmp_path, runs=1)
    peak = int(re.search(r"peak_rss_mb:\s+(\d+)", ran.stderr)[1])
    assert peak < len(ballast) >> 20
