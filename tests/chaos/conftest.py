"""The marker, the figures that are shown at the end, and what ends whatever a test started."""

import chaos_form
import pytest
from processes import Load

_figures = pytest.StashKey[list[str]]()


def pytest_configure(config):
    config.stash[_figures] = []


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "chaos":
            item.add_marker("chaos")


def pytest_report_header():
    return f"chaos: CHAOS_SEED={chaos_form.SEED} CHAOS_FORM={chaos_form.form('short', 'long')}"


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[_figures]:
        terminalreporter.section(f"under fire, CHAOS_SEED={chaos_form.SEED}")
        for figure in config.stash[_figures]:
            terminalreporter.write_line(figure)


@pytest.fixture
def figures(request):
    """Call it with what to show at the end."""

    def show(text):
        request.config.stash[_figures].append(f"{request.node.name}: {text}")

    return show


@pytest.fixture
def chance(request):
    """The random numbers of this test."""
    return chaos_form.chance(request.node.name)


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
