"""The benchmarks run, in their short form; what they measure is for `make bench` to say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from forms import GUARD

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_the_benchmarks_run_and_print_a_ratio_for_each_row():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "run.py", "--messages", "2000", "--repetitions", "1", "--events", "10"],
        capture_output=True,
        text=True,
        timeout=GUARD,
        check=True,
    )
    rows = done.stdout.splitlines()
    patterns = [r"catch-up of 2,000 messages, .* [0-9.]+ x as fast"] * 2
    patterns += [r"latency of 10 events, .* [0-9.]+ x as long", r"10 pairs of events .* later than 50 ms: \d+"]
    assert [bool(re.fullmatch(*both)) for both in zip(patterns, rows, strict=True)] == [True] * 4


def test_the_benchmark_of_feeds_runs_and_prints_a_ratio_for_each():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "feeds.py", "--pages", "2"],
        capture_output=True,
        text=True,
        timeout=GUARD,
        check=True,
    )
    for row in done.stdout.splitlines():
        assert re.fullmatch(r"a page of 1,000 by [\w ,]+: by hand .* ms, ours .* ms, [0-9.]+ x as fast", row)


@pytest.mark.long_form  # the other two show that benchmarks run; this one starts nine servers
def test_the_benchmark_of_channels_runs_and_prints_a_ratio_for_each():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "push.py", "--pushes", "2"],
        capture_output=True,
        text=True,
        timeout=2 * GUARD,
        check=True,
    )
    rows = done.stdout.splitlines()
    assert len(rows) == 9
    for row in rows:
        assert re.fullmatch(
            r"\d+ pushes by [\w -]+: received by .* ms, in the handler .* ms, [0-9.]+ x as long", row
        )
