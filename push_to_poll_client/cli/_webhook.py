"""`tail --webhook`: serve a webhook next to the consumer.

Anyone who reaches the address may connect, so the number of connections is limited, and idle connections are
closed. The server leaves signals to the command (`until_signalled` in `_tail.py`). Of the command line only this
module and the demo need uvicorn, so `_tail.py` imports this module only with --webhook.
"""

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from push_to_poll_client._exceptions import ListenerError
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client.listeners.webhook import WebhookListener

__all__ = ["ServedWebhook", "parse_address", "serve_in_background"]


logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

MAX_CONNECTIONS = 1_000
"""Open at a time; one more gets a 503. A request head may take 64 KiB, so all together take 64 MiB at most."""

IDLE_TIMEOUT = 10.0
"""Seconds without a complete request after which a connection is closed. It may take twice as long."""

SHUTDOWN_GRACE = 2
"""Seconds for current requests when the command ends. They take microseconds, or are not worth the wait."""

DATE_INTERVAL = 1.0
"""Seconds between updates of the header `Date`."""


class _IdleTimeoutProtocol(H11Protocol):
    """Closes connections without a request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._checked_request: Any = None
        self._schedule_idle_check()

    def connection_lost(self, exc: Exception | None) -> None:
        self._idle_timer.cancel()
        super().connection_lost(exc)

    def _schedule_idle_check(self) -> None:
        self._idle_timer = self.loop.call_later(IDLE_TIMEOUT, self._close_if_idle)

    def _close_if_idle(self) -> None:
        request: Any = self.cycle
        if (request is None or request.response_complete) and request is self._checked_request:
            self.transport.close()
            return
        self._checked_request = request
        self._schedule_idle_check()


class _StoppableServer(uvicorn.Server):
    """Ends at once after `stop()`, and leaves signals to the command."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = anyio.Event()

    def stop(self) -> None:
        """End the server."""
        self.should_exit = True
        self._stopping.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none: the command handles them."""
        yield

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with anyio.move_on_after(DATE_INTERVAL):
                await self._stopping.wait()

    async def until_stopped(self, listening: socket.socket) -> None:
        """Serve until `stop()`, which follows a cancellation too: only then connections are closed in order."""
        with anyio.CancelScope(shield=True):
            await self.serve(sockets=[listening])


async def serve_in_background(app: Any, listening: socket.socket, follow: Callable[[], Awaitable[object]]) -> None:
    """Serve an ASGI application while something else runs.

    Args:
        app: The application.
        listening: The socket to serve on; it is closed at the end.
        follow: Runs meanwhile.

    Raises:
        Exception: What `follow` raised, without a group around it.
    """
    server = _StoppableServer(_config(app))
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
        http=_IdleTimeoutProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # a client that sends garbage must not write lines into our log
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=SHUTDOWN_GRACE,
    )


_ADDRESS = re.compile(r"(?:\[([0-9A-Za-z:.%]+)\]|([^\s:@\[\]]+)):([0-9]{1,5})")
MAX_PORT = 65_535


def parse_address(text: str) -> tuple[str, int]:
    """Split the value of --webhook into host and port.

    Raises:
        ValueError: It is not HOST:PORT.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[3]) > MAX_PORT:
        raise ValueError("--webhook must be HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080")
    return match[1] or match[2], int(match[3])


class ServedWebhook:
    """A webhook that this process serves.

    Args:
        listener: The webhook.
        host: The name or address to listen at.
        port: The port to listen at; 0 takes a free one.

    Attributes:
        listener: As given.
    """

    def __init__(self, listener: WebhookListener, host: str, port: int) -> None:
        self.listener = listener
        self._address = host, port

    async def serve(self, follow: Callable[[], Awaitable[object]]) -> None:
        """Serve the webhook while something else runs.

        Raises:
            ListenerError: It cannot listen at the address.
            Exception: What `follow` raised.
        """
        with _listen(*self._address) as listening:
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            logger.info("%s: listening at http://%s:%d/", self.listener.name, shown, port)
            await serve_in_background(self.listener, listening, follow)


def _listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        ListenerError: That is not possible, and why.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Name the protocol: otherwise asyncio lets small answers wait for acknowledgements (Nagle's algorithm).
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise _listen_error(error) from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        raise _listen_error(error) from None
    return listening


def _listen_error(error: Exception) -> ListenerError:
    why = error.strerror if isinstance(error, OSError) else "it is no name of a host"
    return ListenerError(f"--webhook: cannot listen there: {why}; choose another HOST:PORT")
