"""Every async test runs on asyncio and on trio, in virtual time unless its module says otherwise."""

import gc
import importlib
import logging
import os
import pkgutil
import random
import re
import shutil
import signal
import tempfile
import time
import zlib
from pathlib import Path

import anyio
import anyio.lowlevel
import hypothesis
import pytest
import trio
from coverage import Coverage
from hypothesis import Phase, is_hypothesis_test, settings
from respx.mocks import HTTPCoreMocker

import push_to_poll_client
from push_to_poll_client import _lifecycle, _runner, _schedule
from push_to_poll_client.stores._sqlite.errors import wrap_sqlite_errors
from push_to_poll_client.testing._virtual_time import virtual_time
from tests.support.clock import time_of_day
from tests.support.forms import LONG, SEED, form
from tests.support.summary import summarise

BEGAN = time.monotonic()

# No test connects to the internet. Reading the certificates of all authorities takes 15 ms for each client, so
# clients, also in child processes, get an empty directory.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)

# The command line reads them.
os.environ.pop("PUSH_TO_POLL_STORE", None)
os.environ.pop("PUSH_TO_POLL_SCHEMA", None)

# SQLite waits for the disk in each commit, which took half the time of tests of stores. The folder is in memory.
IN_MEMORY = "/dev/shm"  # noqa: S108  # of Linux
if Path(IN_MEMORY).is_dir() and shutil.disk_usage(IN_MEMORY).free > 2**31:
    os.environ["TMPDIR"] = IN_MEMORY
    tempfile.tempdir = None  # read it again

# A shell starts background jobs with SIGINT ignored, and child processes would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The library's own clients use httpcore2, which respx does not patch by default.
HTTPCoreMocker.add_targets("httpcore2._async.connection_pool.AsyncConnectionPool")

gc.disable()  # until all tests are collected, which saves a fifth of the time

# No time limits: a busy machine is not a failure. No database: one run must not affect the next one.
settings.register_profile(
    "ours",
    deadline=None,
    database=None,
    max_examples=form(30, 100),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
# A mutant only has to be detected. Shrinking its example takes minutes.
settings.register_profile("planted", settings.get_profile("ours"), phases=[Phase.explicit, Phase.generate])
settings.load_profile("ours")
hypothesis.core.global_force_seed = SEED


def pytest_report_header():
    return f"CHAOS_SEED={SEED} CHAOS_FORM={form('short', 'long')}"


ADAPTERS = {"docs", "durable_streams", "feeds", "interop", "listeners", "stores", "web"}
"""Folders of tests of feeds, listeners, servers, and of stores, which work in threads."""

ON_BOTH_LOOPS = re.compile(
    r"test_(\w+_sockets|connection|direct_client|httpx2|memory|postgres|redis|transport|websocket"
    r"|same_transaction|\w+_transactions?|sqlite_claims|postgres_standby)\.py"
)
"""Files in these folders that run on both loops, because the tested code depends on the event loop."""

REFERENCE = re.compile(r"test_(feed_suite|reference_\w+)\.py")
"""Files of `testing` that test a feed and a server."""


@pytest.hookimpl(tryfirst=True)  # before pytest reads the marker added here
def pytest_generate_tests(metafunc):
    """Run a test of an adapter on one of the two event loops in the short form.

    All other tests run on both. The functions of a module alternate.
    """
    path = metafunc.definition.path
    of_an_adapter = path.parent.name in ADAPTERS or REFERENCE.fullmatch(path.name)
    if LONG or not of_an_adapter or ON_BOTH_LOOPS.fullmatch(path.name):
        return
    if "anyio_backend" not in metafunc.fixturenames or "anyio_backend" in parametrized(metafunc.definition):
        return
    backend = ("asyncio", "trio")[zlib.crc32(metafunc.definition.nodeid.encode()) % 2]
    metafunc.definition.add_marker(pytest.mark.parametrize("anyio_backend", [backend], indirect=True))


def parametrized(definition):
    """Return the names of the arguments that a test's own markers set."""
    names = [marker.args[0] for marker in definition.iter_markers("parametrize")]
    return {part.strip() for name in names for part in (name.split(",") if isinstance(name, str) else name)}


COUNT_ALL = os.environ.get("COUNT") == "all"
"""Set by `make coverage`, which counts the lines of every test."""

counted = set()
"""The tests that are traced to count lines; tracing doubles the time of a test.

`make test` counts lines in the first case of each test function. Neither form counts lines in tests with random
examples: a line counts as tested only where a test names its case.
"""


def pytest_collection_modifyitems(config, items):
    """Leave out the long form in the short one, and choose the tests whose lines count."""
    if not LONG:
        chosen = [item for item in items if not item.get_closest_marker("long_form")]
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long_form")])
        items[:] = chosen
    functions = set()
    for item in items:
        function = getattr(item, "function", item)  # the same function in each class that inherits it
        first = function not in functions
        functions.add(function)
        if (COUNT_ALL or first) and not is_hypothesis_test(getattr(item, "obj", None)):
            counted.add(item.nodeid)


def tracing(config):
    """Return the object that starts and stops line counting, or None without coverage."""
    plugin = config.pluginmanager.getplugin("_cov")
    return plugin and plugin.cov_controller


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session):
    """Import the whole package, so that its lines count, and count no others until the first test runs."""
    if tracing(session.config):
        for module in pkgutil.walk_packages(push_to_poll_client.__path__, "push_to_poll_client."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        tracing(session.config).pause()
        while left := Coverage.current():  # pytest-cov starts a second one in each worker, which would continue
            left.stop()


def pytest_collection_finish():
    """Enable garbage collection."""
    gc.freeze()  # tests and their modules stay until the end: the collector need not look at them again
    gc.enable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Trace a test with its fixtures if its lines count."""
    tracer = tracing(item.config)
    if tracer and item.nodeid in counted:
        tracer.resume()
    try:
        return (yield)
    finally:
        if tracer:
            tracer.pause()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Drop the log of passed tests; kept until the end, the logs take gigabytes."""
    report = yield
    if report.passed:
        report.sections = [(name, text) for name, text in report.sections if "log" not in name]
    return report


def pytest_terminal_summary(terminalreporter):
    """Write the figures of the tests under faults, from all workers, and the summary of the run."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    figures = [
        f"{report.nodeid.rpartition('::')[2]}: {text}"
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, text in report.user_properties
        if name == "figures"
    ]
    if figures:
        terminalreporter.section("under fire")
        terminalreporter.write("\n".join([*figures, ""]))
    terminalreporter.section("summary")
    summarise(terminalreporter.write_line, terminalreporter.stats, time.monotonic() - BEGAN)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_time(request.param)


@pytest.fixture(scope="module")
def _frozen():
    """Make `gc.collect()` look only at new objects.

    A collection takes 0.1 s for all objects of a worker. Existing garbage is collected first; later it would stay.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def nothing_is_left_unclosed(_frozen):
    """Collect garbage after a test: an unclosed socket is then an error of this test, not of a later one."""
    yield
    gc.collect()


@pytest.fixture
def virtual_day(monkeypatch):
    """Make times of day follow virtual time, also over restarts: the library reads them in the event loop."""
    monkeypatch.setattr("push_to_poll_client._event_loop.wall_clock", time_of_day)


@pytest.fixture
def inline_threads(monkeypatch):
    """Run worker-thread calls in the event loop.

    A virtual clock treats a running thread as idle time and jumps ahead, as often as the machine lets it.
    """

    async def run_sync(function, *args, **_):
        await anyio.lowlevel.checkpoint()
        return function(*args)

    async def run(thread, work, *_, **__):
        await anyio.lowlevel.checkpoint()
        with wrap_sqlite_errors(thread._path):
            return work()

    monkeypatch.setattr("anyio.to_thread.run_sync", run_sync)
    monkeypatch.setattr("push_to_poll_client.stores._sqlite.thread.StoreThread.run", run)


@pytest.fixture
def quick_backoff(monkeypatch):
    """Shorten the delays after failures, for tests in real time that do not check these delays."""
    monkeypatch.setattr(_schedule, "FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(_lifecycle, "FIRST_STORE_BACKOFF", 0.01)
    monkeypatch.setattr(_runner, "FIRST_STORE_BACKOFF", 0.01)
    monkeypatch.setattr("push_to_poll_client.listeners._backoff.FIRST_DELAY", 0.01)
    monkeypatch.setattr("push_to_poll_client.listeners._backoff.BASE_DELAY", 0.01)


@pytest.fixture
async def running():
    """Run consumers in the background until the test ends."""
    async with anyio.create_task_group() as tasks:

        def start(consumer):
            tasks.start_soon(consumer.run)
            return consumer

        yield start
        tasks.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def _chances(request):
    """Draw jitter, and the order in which trio runs tasks, from the seed and the name of the test."""
    random.seed(f"{request.node.nodeid} {SEED}")
    trio._core._run._r.seed(f"{request.node.nodeid} {SEED}")


@pytest.fixture(autouse=True)
def _own_log():
    """Restore the library's log after a test: the command line configures it."""
    logger = logging.getLogger("push_to_poll_client")
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
