"""Virtual time for tests, on asyncio and on trio, and a bell for what a test waits for.

Trio brings `MockClock`. For asyncio the event loop below does the same: whenever nothing is ready to run, its
clock jumps to the next timer.
"""

import asyncio
import selectors
from typing import Any, Final, Literal

import anyio

__all__ = ["START", "Bell", "VirtualTimeLoop", "virtual_time"]


START: Final = 1000.0
"""Seconds at which virtual clocks start. At 0 a test would not see a time that was never set and is still 0."""


class Bell:
    """Wakes all who wait, each time it rings. Who waits for a state looks at it, waits, and looks again."""

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

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
    """What to return from an `anyio_backend` fixture, for tests whose time is virtual.

    The clock starts at 1,000.

    Args:
        backend: The event loop to run on.
        autojump_threshold: Real seconds of quiet before the clock jumps; see `VirtualTimeLoop`.

    Returns:
        The backend's name and its options, for `anyio.run` or its pytest plugin.
    """
    if backend == "trio":
        import trio.testing

        clock = trio.testing.MockClock(autojump_threshold=autojump_threshold)
        clock.jump(START)
        return "trio", {"clock": clock}
    return "asyncio", {"loop_factory": lambda: VirtualTimeLoop(autojump_threshold)}
