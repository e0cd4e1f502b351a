"""The demo counts soberly: what it calls lost or repeated is, and a kill excuses no more than G7 says."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "examples" / "demo_figures.py"
SPEC = importlib.util.spec_from_file_location("demo_figures", PATH)
figures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(figures)

KILLED, NEXT = 1, 2


def line(id, entered, pid=KILLED, published=0.0):
    return figures.Handled(id, published, entered, pid)


def beyond(*lines):
    return figures.beyond_g7(lines, killed=KILLED, flush_interval=0.05)


def test_whole_lines_are_read_as_they_come(tmp_path):
    handled = figures.HandlerFile(tmp_path / "handled")
    handled.read()
    assert handled.lines == []
    for piece in ("a 1.0 2.5 7\nb 1.", "5 2.0 7\n", "c 3"):
        with handled.path.open("a") as file:
            file.write(piece)
        handled.read()
    assert handled.lines == [line("a", 2.5, 7, 1.0), line("b", 2.0, 7, 1.5)]
    assert handled.ids == {"a", "b"}
    assert handled.lines[0].latency == 1.5


def test_what_came_once_is_no_repetition():
    assert figures.processed_twice([line("a", 1), line("b", 2)]) == set()
    assert beyond(line("a", 1), line("b", 2)) == set()


def test_the_end_of_what_was_killed_may_come_again():
    lines = [line("a", 1.0), line("b", 1.04), line("a", 2, NEXT), line("b", 2, NEXT)]
    assert figures.processed_twice(lines) == {"a", "b"}
    assert beyond(*lines) == set()


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([line("a", 1.0), line("b", 1.06), line("a", 2, NEXT)], id="older than the flush interval"),
        pytest.param([line("a", 1.0), line("a", 1.01)], id="twice by one process"),
        pytest.param([line("a", 1.0, NEXT), line("a", 1.01, NEXT)], id="by one that was not killed"),
        pytest.param([line("a", 1.0), line("a", 2, NEXT), line("a", 2, NEXT)], id="a third time"),
    ],
)
def test_anything_else_may_not(lines):
    assert beyond(*lines) == {"a"}


def test_each_message_is_put_down_to_what_brought_it():
    lines = [
        line("own", 1.5, published=1.0),
        line("later", 3.0, published=2.0),
        line("timer", 5.0, published=4.0),
        line("broken", 7.0, published=6.0),
        line("again", 8.25, published=8.0),
        line("again", 9.0, published=8.0),
    ]
    pushes = [
        figures.Pushed("own", 1.0, 1),
        figures.Pushed("later", 2.0, 0),
        figures.Pushed("other", 2.9, 1),
        figures.Pushed("timer", 4.5, 0),
        figures.Pushed("broken", 6.0, 1),
        figures.Pushed("again", 8.0, 1),
    ]
    found = figures.latencies(lines, pushes, [figures.Fault(6.5, 6.6)])
    assert found == figures.Latencies(push=[0.25, 0.5], later_push=[1.0], fallback=[1.0], fault=[1.0])


@pytest.mark.parametrize(
    ("count", "p50", "p99"), [(1, 1, 1), (2, 1, 2), (100, 50, 99), (200, 100, 198), (3, 2, 3)]
)
def test_percentiles_are_values_that_were_measured(count, p50, p99):
    values = list(range(1, count + 1))
    assert (figures.percentile(values, 50), figures.percentile(values, 99)) == (p50, p99)
