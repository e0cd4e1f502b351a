"""Virtual time for tests, on asyncio and on trio, and a bell for what a test waits for.

Trio brings `MockClock`. For asyncio the event loop below does the same: whenever nothing is ready to run, its
clock jumps to the next timer.
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
"""Seconds at which virtual clocks start. At 0 a test would not see a time that was never set and is still 0."""


class Bell:
    """Wakes all who wait, each time it rings. Who waits for a state looks at it, waits, and looks again."""

    def __init__(self) -> None:
        self._event: anyio.Event | None = None  # of the event loop that waits: the bell may be made in another one

    def ring(self) -> None:
        """Wake all who wait now. From inside the event loop, or before it runs."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Return when it rings the next time."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for sockets for `threshold` real seconds at most, then jumps to the end of the wait."""

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
        autojump_threshold: Real seconds of quiet before a jump. 0 for tests without sockets and threads, whose
            work the loop cannot tell from idleness; else more than they need to answer.
    """

    def __init__(self, autojump_threshold: float = 0.0) -> None:
        self._clock = _JumpingSelector(autojump_threshold)
        super().__init__(self._clock)

    def time(self) -> float:
        """Virtual seconds; 1,000 when the loop is made."""
        return self._clock.now


def virtual_time(
    backend: Literal["asyncio", "trio"], *, autojump_threshold: float = 0.0
) -> tuple[str, dict[str, Any]]:
    """Return a backend whose time is virtual, for an `anyio_backend` fixture or for `anyio.run`.

        @pytest.fixture(params=["asyncio", "trio"])
        def anyio_backend(request):
            return virtual_time(request.param)

        @pytest.mark.anyio
        async def test_an_hour():
            await anyio.sleep(3600)  # takes a millisecond

    The clock starts at 1,000.

    Only anyio's plugin for pytest uses this fixture. pytest-asyncio may be installed too, in its default mode
    `strict`. In mode `auto` it runs every async test itself, in an event loop of its own, and so it does in any
    mode with a test that is marked `asyncio`. For such tests write in conftest.py (pytest-asyncio 1.4 or newer):

        def pytest_asyncio_loop_factories(config, item):
            return {"virtual_time": VirtualTimeLoop}

    Args:
        backend: The event loop to run on.
        autojump_threshold: Real seconds of quiet before the clock jumps; see `VirtualTimeLoop`.

    Returns:
        The backend's name and its options, for `anyio.run` or its pytest plugin.

    Raises:
        ImportError: The backend is trio, which is not installed.
        RuntimeError: The fixture is for a test that pytest-asyncio runs, where virtual time would have no effect.
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
    """Raise an error instead of letting a test wait for hours of real time."""
    if "pytest_asyncio" not in sys.modules or (request := _fixture_request()) is None:
        return
    test = getattr(request.node, "obj", None)  # for a fixture of a wider scope a module, or nothing
    if isinstance(test, FunctionType | MethodType) and not inspect.iscoroutinefunction(test):
        return
    mode = request.config.getoption("asyncio_mode", "off")  # "off" if it is imported and no plugin
    if mode == "off":
        return
    if (mode or request.config.getini("asyncio_mode")) == "auto" or request.node.get_closest_marker("asyncio"):
        raise RuntimeError(
            "virtual_time() has no effect on a test that pytest-asyncio runs: mark the test with anyio and set "
            "asyncio_mode = strict, or return VirtualTimeLoop from the hook pytest_asyncio_loop_factories; "
            "see help(virtual_time)"
        )


def _fixture_request() -> Any:
    """Return pytest's request for the fixture that is being set up, or None."""
    # virtual_time() is called by a fixture, and that by a function of pytest that has the request.
    pytest = sys.modules["pytest"]
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("request"), pytest.FixtureRequest):
        frame = frame.f_back
    return None if frame is None else frame.f_locals["request"]
