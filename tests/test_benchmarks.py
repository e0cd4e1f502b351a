"""The benchmarks run, in their short form; what they measure is for `make bench` to say."""

import re
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_the_benchmarks_run_and_print_a_ratio_for_each_row():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "run.py", "--messages", "2000", "--repetitions", "1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    rows = done.stdout.splitlines()
    assert len(rows) == 2
    assert all(re.fullmatch(r"catch-up of 2,000 messages, .* [0-9.]+ x as fast", row) for row in rows)
