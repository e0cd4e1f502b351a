"""The benchmarks run, in their short form; what they measure is for `make bench` to say."""

import contextlib
import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from push_to_poll_client.testing import serve_in_thread
from tests.support.forms import GUARD, LONG, form

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def typed(monkeypatch, capsys):
    """Runs a benchmark in this process: the imports of another one would cost more than the benchmark."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


@contextlib.contextmanager
def in_this_process():
    """A reference server in place of one in a process of its own."""
    with serve_in_thread() as server:
        yield {"url": server.url, "push_url": server.push_url, "base_url": server.base_url}


def test_the_benchmarks_run_and_print_a_ratio_for_each_row(typed, monkeypatch):
    """The server of the first two rows is a process, as it is for users. In the long form all four are."""
    sides = importlib.import_module("sides")
    started = sides.reference_server
    monkeypatch.setattr(
        sides,
        "reference_server",
        lambda backlog=0: started(backlog) if backlog or LONG else in_this_process(),
    )
    rows = typed("run.py", "--messages", "2000", "--repetitions", "1", "--events", form("3", "10"))
    patterns = [r"catch-up of 2,000 messages, .* [0-9.]+ x as fast"] * 2
    patterns += [r"latency of \d+ events, .* [0-9.]+ x as long", r"\d+ pairs of events .* later than 50 ms: \d+"]
    assert [bool(re.fullmatch(*both)) for both in zip(patterns, rows, strict=True)] == [True] * 4


def test_the_benchmark_of_feeds_runs_and_prints_a_ratio_for_each(typed):
    rows = typed("feeds.py", "--pages", form("1", "2"))
    assert len(rows) == 7
    for row in rows:
        assert re.fullmatch(r"a page of 1,000 by [\w ,]+: by hand .* ms, ours .* ms, [0-9.]+ x as fast", row)


def test_the_benchmark_of_importing_runs_and_prints_a_ratio(typed):
    (row,) = typed("imports.py", "--repetitions", "1")
    assert re.fullmatch(r"importing .*: its dependencies alone \d+ ms of CPU, .* \d+ ms, [0-9.]+ x as long", row)


def test_the_benchmark_of_many_consumers_runs_and_prints_a_row_for_each_way(typed, monkeypatch):
    sides = importlib.import_module("sides")
    monkeypatch.setattr(sides, "reference_server", lambda _: in_this_process())
    if not LONG:
        run, known = subprocess.run, {}

        def run_once(command, **options):
            """Measure one consumer once for each way; the benchmark measures all of them, and then a quarter."""
            if tuple(command) not in known:
                known[tuple(command)] = run(command, **options)
            return known[tuple(command)]

        monkeypatch.setattr(subprocess, "run", run_once)
    rows = typed("many.py", "--consumers", form("1", "100"))
    assert len(rows) == 4
    for row in rows:
        assert re.fullmatch(
            r"\d+ (consumers of one file|loops by hand), [\w =,._()]+: [0-9.]+ s of processor time, [0-9.]+ x as "
            r"much for each as with \d+, [0-9.]+ x as much as by hand; \d+ threads, [0-9,]+ switches, "
            r"-?\d+ KiB each",
            row,
        )


@pytest.mark.long_form  # the others show that benchmarks run; this one has a server that writes to the disk
def test_the_benchmark_of_postgres_runs_and_compares_each_side(typed):
    rows = typed("postgres.py", "--messages", "2000", "--effects", "20", "--repetitions", "1")
    catch_up, effects = rows[:4], rows[4:12]
    compared = r": [0-9.]+ s, [0-9,]+ a second(, [0-9.]+ x as fast as by hand[\w ]*)?"
    for row in catch_up:
        sides = r"(by hand|PostgresStore)"
        assert re.fullmatch(rf"catch-up of 2,000 messages with (ordered|UUIDv4) ids, {sides}{compared}", row)
    for row in effects:
        assert re.fullmatch(rf"20 messages whose handler writes a row, [\w ,=]+{compared}", row)
    assert sum("PostgresStore" in row for row in rows) == 5
    assert "pgqueuer" in rows[-1]


@pytest.mark.long_form  # the others show that benchmarks run; this one starts nine servers
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
