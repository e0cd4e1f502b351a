"""Virtual time advances only when no task is ready."""

import contextlib
import inspect
import os
import subprocess
import sys
import threading
import time
from unittest.mock import Mock

import anyio
import pytest

from push_to_poll_client.testing._virtual_time import virtual_time
from tests.support.forms import GUARD

pytestmark = pytest.mark.anyio


async def test_a_sleep_of_an_hour_takes_almost_no_real_time():
    began, real = anyio.current_time(), time.monotonic()
    await anyio.sleep(3600)
    assert anyio.current_time() - began == 3600
    assert time.monotonic() - real < 60


async def test_timers_fire_in_their_order():
    fired = []

    async def after(delay):
        await anyio.sleep(delay)
        fired.append((delay, anyio.current_time()))

    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for delay in (3, 1, 2):
            tasks.start_soon(after, delay)
    assert [delay for delay, _ in fired] == [1, 2, 3]
    assert [at - began for _, at in fired] == pytest.approx([1, 2, 3])


async def test_a_thread_is_waited_for_when_no_timer_is_set():
    assert await anyio.to_thread.run_sync(threading.get_ident) != threading.get_ident()


async def test_the_clock_starts_at_1000():
    assert anyio.current_time() == pytest.approx(1000)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_time_does_not_jump_while_a_thread_answers_within_the_threshold(backend):
    async def main():
        with anyio.fail_after(1000):
            return await anyio.to_thread.run_sync(threading.get_ident)

    name, options = virtual_time(backend, autojump_threshold=5)
    assert anyio.run(main, backend=name, backend_options=options) != threading.get_ident()


# With pytest-asyncio, which this project's own tests do not use

MODULE = """
import time
import anyio, pytest
from push_to_poll_client.testing import virtual_time

@pytest.fixture{scope}
def anyio_backend():
    return virtual_time("asyncio")

@pytest.mark.{marker}
async def test_sleep({fixtures}):
    began = anyio.current_time()
    await anyio.sleep(0.5)
    assert anyio.current_time() == began + 0.5  # exactly so in virtual time alone

def test_without_an_event_loop(anyio_backend):
    pass
"""

HOOK = """
from push_to_poll_client.testing import VirtualTimeLoop

def pytest_asyncio_loop_factories(config, item):
    return {"virtual_time": VirtualTimeLoop}
"""


@pytest.fixture
def pytest_asyncio(tmp_path):
    """Run pytest with pytest-asyncio, and return what it printed."""

    def run(mode, marker="anyio", *, fixtures="", scope="", hook=""):
        module = MODULE.format(marker=marker, fixtures=fixtures, scope=scope and f"(scope={scope!r})")
        (tmp_path / "test_sleep.py").write_text(module)
        (tmp_path / "conftest.py").write_text(hook)
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        plugins = ["-p", "anyio.pytest_plugin", "-p", "pytest_asyncio.plugin"]
        command = [sys.executable, "-m", "pytest", "-q", *plugins, "-p", "no:cacheprovider", "-W", "ignore"]
        return subprocess.run(
            [*command, f"--asyncio-mode={mode}", tmp_path],
            cwd=tmp_path,
            env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
            capture_output=True,
            text=True,
            timeout=GUARD,
            check=False,
        ).stdout

    return run


def test_virtual_time_works_with_pytest_asyncio_in_strict_mode(pytest_asyncio):
    assert "2 passed" in pytest_asyncio("strict")


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("auto", {}),
        ("auto", {"scope": "module"}),
        ("strict", {"marker": "asyncio", "fixtures": "anyio_backend"}),
    ],
)
def test_virtual_time_is_an_error_where_pytest_asyncio_would_ignore_it(pytest_asyncio, mode, options):
    out = pytest_asyncio(mode, **options)
    assert (
        "RuntimeError: virtual_time() has no effect on a test that pytest-asyncio runs: mark the test with" in out
    )
    assert "1 error" in out or "2 errors" in out  # with a wider scope the fixture fails for every test


def test_pytest_asyncio_can_be_given_a_loop_with_virtual_time(pytest_asyncio):
    assert "2 passed" in pytest_asyncio("auto", "asyncio", hook=HOOK)


async def asynchronous():
    pass


def synchronous():
    pass


@pytest.mark.parametrize(
    ("modes", "marked", "test", "refused"),
    [
        (("auto", "strict"), False, asynchronous, True),
        ((None, "auto"), False, asynchronous, True),
        ((None, "auto"), False, None, True),
        ((None, "strict"), True, asynchronous, True),
        ((None, "strict"), False, asynchronous, False),
        (("auto", "strict"), False, synchronous, False),
        (("off", None), True, asynchronous, False),
    ],
)
def test_only_a_test_that_pytest_asyncio_runs_is_refused_virtual_time(monkeypatch, modes, marked, test, refused):
    option, ini = modes
    monkeypatch.setitem(sys.modules, "pytest_asyncio", object())
    request = Mock(spec=pytest.FixtureRequest)  # found in this frame by its name
    request.config.getoption.side_effect = lambda name, default: default if option == "off" else option
    request.config.getini.return_value = ini
    request.node.obj = test
    request.node.get_closest_marker.return_value = marked
    with pytest.raises(RuntimeError) if refused else contextlib.nullcontext():
        virtual_time("asyncio")


def test_virtual_time_outside_of_pytest_looks_for_no_fixture(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytest_asyncio", object())
    monkeypatch.setattr(inspect, "currentframe", lambda: None)
    assert virtual_time("asyncio")[0] == "asyncio"
