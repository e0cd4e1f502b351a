"""Virtual time for tests on asyncio and trio, and a `Bell` to wait for events.

Trio has `MockClock`. The asyncio event loop below does the same: whenever no task is ready to run, its clock jumps
to the next timer.
"""

import asyncio
import inspect
import selectors
import sys
from types import FunctionType, MethodType
from typing import Any, Final, Literal

import anyio

from push_to_poll_client._validation import missing_dependency

START: Final = 1000.0
"""Start of virtual clocks, in seconds. Not 0, so that a test can see a time that was never set."""


class Bell:
    """Wakes all waiting tasks each time it rings. A task checks its condition, waits, and checks again."""

    def __init__(self) -> None:
        self._event: anyio.Event | None = None  # made in the event loop that waits, not where the bell was created

    def ring(self) -> None:
        """Wake all waiting tasks. Call it in the event loop, or before the loop runs."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for sockets for at most `threshold` real seconds, then jumps to the end of the wait."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.now = START
        self._threshold = threshold

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select()
        events = super().select(min(timeout, self._threshold))
        if not events:
            self.now += max(timeout, 0.0)
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop whose clock starts at 1,000 and jumps to the next timer when nothing is ready.

    Args:
        autojump_threshold: Real seconds without an event before a jump. Use 0 for tests without sockets and
            threads. Otherwise use more seconds than these need to answer, because the loop cannot see their work.
    """

    def __init__(self, autojump_threshold: float = 0.0) -> None:
        self._clock = _JumpingSelector(autojump_threshold)
        super().__init__(self._clock)

    def time(self) -> float:
        """Virtual seconds, 1,000 at the start of the loop."""
        return self._clock.now


def virtual_time(
    backend: Literal["asyncio", "trio"], *, autojump_threshold: float = 0.0
) -> tuple[str, dict[str, Any]]:
    """Return a backend with virtual time, for an `anyio_backend` fixture or `anyio.run`.

        @pytest.fixture(params=["asyncio", "trio"])
        def anyio_backend(request):
            return virtual_time(request.param)

        @pytest.mark.anyio
        async def test_an_hour():
            await anyio.sleep(3600)  # takes a millisecond

    The clock starts at 1,000.

    Only anyio's pytest plugin uses this fixture. pytest-asyncio may be installed too, in its default mode
    `strict`. In mode `auto`, pytest-asyncio runs every async test in its own event loop. In any mode it does so
    for a test marked `asyncio`. For such tests write in conftest.py (pytest-asyncio 1.4 or newer):

        def pytest_asyncio_loop_factories(config, item):
            return {"virtual_time": VirtualTimeLoop}

    Args:
        backend: The event loop to run on.
        autojump_threshold: Real seconds without an event before a jump; see `VirtualTimeLoop`.

    Returns:
        The backend's name and its options, for `anyio.run` or its pytest plugin.

    Raises:
        ImportError: trio is not installed.
        RuntimeError: pytest-asyncio runs the test, so virtual time would have no effect.
    """
    _refuse_pytest_asyncio()
    if backend == "trio":
        try:
            from trio.testing import MockClock
        except ImportError as error:
            raise missing_dependency("virtual_time('trio')", "trio", error, remedy="pip install trio") from error

        clock = MockClock(autojump_threshold=autojump_threshold)
        clock.jump(START)
        return "trio", {"clock": clock}
    return "asyncio", {"loop_factory": lambda: VirtualTimeLoop(autojump_threshold)}


def _refuse_pytest_asyncio() -> None:
    """Raise an error if a test would wait for hours of real time."""
    if "pytest_asyncio" not in sys.modules or (request := _fixture_request()) is None:
        return
    test = getattr(request.node, "obj", None)  # for a fixture of a wider scope a module, or nothing
    if isinstance(test, FunctionType | MethodType) and not inspect.iscoroutinefunction(test):
        return
    mode = request.config.getoption("asyncio_mode", "off")  # "off" if pytest-asyncio is imported but not a plugin
    if mode == "off":
        return
    if (mode or request.config.getini("asyncio_mode")) == "auto" or request.node.get_closest_marker("asyncio"):
        raise RuntimeError(
            "virtual_time() has no effect on a test that pytest-asyncio runs: mark the test with anyio and set "
            "asyncio_mode = strict, or return VirtualTimeLoop from the hook pytest_asyncio_loop_factories; "
            "see help(virtual_time)"
        )


def _fixture_request() -> Any:
    """Return pytest's request for the current fixture, or None."""
    # A function of pytest with the request calls the fixture, which calls virtual_time().
    pytest = sys.modules["pytest"]
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("request"), pytest.FixtureRequest):
        frame = frame.f_back
    return None if frame is None else frame.f_locals["request"]
