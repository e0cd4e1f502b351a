"""HOW a webhook is served by itself: by uvicorn, beside the consumer and in its event loop.

The address is open to whoever reaches it, so connections are few, and none is kept on which nothing is asked.
Signals are the command's own (`_signals.py`). This is the one place of the command line that needs uvicorn.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["serve_beside"]

MAX_CONNECTIONS = 1_000
"""At a time; one more is answered 503. A head may take 64 KiB, so that all take 64 MiB at most."""

IDLE = 10.0
"""Seconds without a request, or with half of one, after which a connection is closed; twice that at most."""

GRACE = 2
"""Seconds for requests in hand when the command ends. They take microseconds, or are not worth waiting for."""

DATE = 1.0
"""Seconds after which the header `Date` is another."""


class _Http(H11Protocol):
    """Hangs up on whoever asks nothing."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._answered: Any = None
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        self._looking.cancel()
        super().connection_lost(exc)

    def _look_later(self) -> None:
        self._looking = self.loop.call_later(IDLE, self._look)

    def _look(self) -> None:
        request: Any = self.cycle
        if (request is None or request.response_complete) and request is self._answered:
            self.transport.close()
            return
        self._answered = request
        self._look_later()


class _Server(uvicorn.Server):
    """Ends when it is told to, at once, and leaves signals alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = anyio.Event()

    def stop(self) -> None:
        """End."""
        self.should_exit = True
        self._stopping.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are the command's."""
        yield

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with anyio.move_on_after(DATE):
                await self._stopping.wait()

    async def until_stopped(self, listening: socket.socket) -> None:
        """Serve. A cancellation is followed by `stop()`, by which connections are given back."""
        with anyio.CancelScope(shield=True):
            await self.serve(sockets=[listening])


async def serve_beside(app: Any, listening: socket.socket, follow: Callable[[], Awaitable[object]]) -> None:
    """Serve an ASGI application for as long as something else runs.

    Args:
        app: The application.
        listening: Where; it is closed in the end.
        follow: What runs.

    Raises:
        Exception: What `follow` raised, without a group around it.
    """
    server = _Server(_config(app))
    error: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.until_stopped, listening)
        try:
            await follow()
        except Exception as caught:  # noqa: BLE001  # raised below, without a group around it
            error = caught
        finally:
            server.stop()
    if error is not None:
        raise error


def _config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_Http,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # whoever sends garbage writes no lines into our log
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
    )
