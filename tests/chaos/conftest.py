"""The form of the tests under fire, their seed, and the figures that are shown at the end.

`make test` runs the short form, `make chaos` (CHAOS_FORM=long) the long one. CHAOS_SEED repeats the choices of a
run; processes and sockets have a timing of their own, so not every failure comes back with its seed.
"""

import os
import random

import pytest
from processes import Load

LONG = os.environ.get("CHAOS_FORM", "short") == "long"
SEED = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**9))

_figures = pytest.StashKey[list[str]]()


def pytest_configure(config):
    config.stash[_figures] = []


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "chaos":
            item.add_marker("chaos")


def pytest_report_header():
    return f"chaos: CHAOS_SEED={SEED} CHAOS_FORM={'long' if LONG else 'short'}"


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[_figures]:
        terminalreporter.section(f"under fire, CHAOS_SEED={SEED}")
        for figure in config.stash[_figures]:
            terminalreporter.write_line(figure)


@pytest.fixture
def figures(request):
    """Call it with what to show at the end."""

    def show(text):
        request.config.stash[_figures].append(f"{request.node.name}: {text}")

    return show


@pytest.fixture(scope="session")
def form():
    """`form(short, long)` is the one that was chosen."""
    return lambda short, long: long if LONG else short


@pytest.fixture
def chance(request):
    """The random numbers of this test: its name and the seed decide them."""
    return random.Random(f"{request.node.name} {SEED}")  # noqa: S311


@pytest.fixture
def started(tmp_path):
    """Starts servers, loads and consumers in the test's directory, and ends them all."""
    things = []

    def start(kind, *args, **settings):
        thing = kind(*args, **settings) if kind is Load else kind(tmp_path, *args, **settings)
        things.append(thing)
        return thing

    yield start
    for thing in reversed(things):
        thing.close()
