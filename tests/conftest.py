"""Every async test runs on asyncio and on trio, in virtual time unless its module says otherwise."""

import gc
import logging
import os
import random

import anyio
import pytest
from hypothesis import is_hypothesis_test, settings

from push_to_poll_client.testing._virtual_time import virtual_time

# A machine that is busy elsewhere is no failure, and the same examples everywhere are no flakiness.
LONG = os.environ.get("CHAOS_FORM") == "long"
settings.register_profile("ours", deadline=None, derandomize=True, max_examples=100 if LONG else 50)
settings.load_profile("ours")

os.environ["CHAOS_SEED"] = os.environ.get("CHAOS_SEED") or str(random.SystemRandom().randrange(10**9))


def pytest_report_header():
    return f"chaos: CHAOS_SEED={os.environ['CHAOS_SEED']} CHAOS_FORM={os.environ.get('CHAOS_FORM', 'short')}"


def pytest_collection_modifyitems(items):
    """Lines and branches are counted where a test names what it tries, not where examples come upon them."""
    for item in items:
        if is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker("no_cover")


def pytest_collection_finish():
    """Ten thousand tests and their modules stay to the end: no collection of garbage has to look at them again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Nobody reads the log of a test that passed; kept to the end, those of all take gigabytes."""
    report = yield
    if report.passed:
        report.sections = [(name, text) for name, text in report.sections if "log" not in name]
    return report


def pytest_terminal_summary(terminalreporter):
    """What tests under fire measured, wherever they ran."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    figures = [
        f"{report.nodeid.rpartition('::')[2]}: {text}"
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, text in report.user_properties
        if name == "figures"
    ]
    if figures:
        terminalreporter.section(f"under fire, CHAOS_SEED={os.environ['CHAOS_SEED']}")
        terminalreporter.write("\n".join([*figures, ""]))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_time(request.param)


@pytest.fixture
def virtual_day(monkeypatch):
    """Times of day go with virtual time, over restarts too: the library asks for them in the event loop."""
    monkeypatch.setattr("push_to_poll_client._event_loop.wall_clock", lambda: 1e9 + anyio.current_time())


@pytest.fixture
async def running():
    """Runs consumers in the background until the test ends."""
    async with anyio.create_task_group() as tasks:

        def start(consumer):
            tasks.start_soon(consumer.run)
            return consumer

        yield start
        tasks.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def _own_log():
    """The command line sets up the library's log; no test sees what another one set up."""
    logger = logging.getLogger("push_to_poll_client")
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
