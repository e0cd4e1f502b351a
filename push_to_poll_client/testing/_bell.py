"""How the fakes tell a waiting test that something happened."""

import anyio

__all__ = ["Bell"]


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
