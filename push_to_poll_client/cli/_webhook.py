"""`tail --webhook`: serve a webhook next to the consumer.

Anyone who reaches the address can connect and send nothing. Each connection takes a file descriptor, and without a
free one the consumer cannot connect to the feed. So this server accepts connections itself, a few at a time:
asyncio's server accepts thousands in a row and logs a traceback for each failure. At the limit, each new
connection closes the one that has been idle longest.

`until_signalled` in `_tail.py` handles signals, not this server. This module needs uvicorn, so `_tail.py` imports
it only with --webhook.
"""

import asyncio
import logging
import re
import resource
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice

import anyio
import anyio.lowlevel
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from push_to_poll_client._event_loop import Background
from push_to_poll_client._exceptions import ListenerError
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._validation import describe
from push_to_poll_client.listeners._webhook.limits import TokenBucket
from push_to_poll_client.listeners.webhook import WebhookListener

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

# Each takes 16 KiB with an incomplete request head, and 130 KiB if it sends requests faster than they are
# answered.
MAX_CONNECTIONS = 1_000
"""Open connections: 130 MiB in total."""

BACKLOG = 2_048
"""Connections that wait to be accepted. They take no file descriptors."""

ACCEPT_PAUSE = 0.1
"""Seconds until the next attempt after the system refused to accept a connection."""

IDLE_TIMEOUT = 10.0
"""Seconds until a connection without a request is closed."""

# Without this limit, a client that does not read responses would keep its connection for ever.
REQUEST_TIMEOUT = 30.0
"""Seconds of a request since the last response: 10 idle, 10 for the body and 8 to verify it."""

SHUTDOWN_GRACE = 2
"""Seconds for current requests when the command ends. A normal request takes microseconds."""

TICK = 1.0
"""Seconds between checks for idle connections, and between updates of the header `Date`."""

LOG_INTERVAL = 3_600.0
"""Seconds between two log lines of one kind, because strangers can cause them."""


def connection_limit() -> int:
    """Return the limit of open connections: at most half of the file descriptors (`ulimit -n`)."""
    # The other half is for polls, the state file, and commands of --exec.
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(min(descriptors // 2, MAX_CONNECTIONS), 1)


class _HTTPConnection(H11Protocol):
    """A connection that reports to `_Connections` when it is opened, answered and closed."""

    def __init__(self, config: uvicorn.Config, server: "_StoppableServer") -> None:
        super().__init__(config, server.server_state, server.lifespan.state)
        self._open = server.connections

    @property
    def in_request(self) -> bool:
        """True between the arrival of a request and the end of its response."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._open.add(self, self.loop.time())

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.remove(self)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        # A connection with more requests waiting keeps its age: pipelining must not protect it.
        if not self.conn.trailing_data[0]:
            self._open.note_response(self, self.loop.time())
        super().on_response_complete()


class _Connections:
    """The open connections, ordered by last response, or by start if there was none."""

    # The order does not depend on bytes that a client sends, so a slow client cannot keep its connection open.

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.batch = max(limit // 16, 1)
        self._limit = limit
        self._since: dict[_HTTPConnection, float] = {}
        self._log_limit = TokenBucket(1 / LOG_INTERVAL, 1)

    def add(self, connection: _HTTPConnection, now: float) -> None:
        """Add a new connection; at the limit, close another one first."""
        if len(self._since) >= self._limit:
            self.close_oldest()
            if not self._log_limit.take(now):
                logger.warning(
                    "%s: reached the limit of %d connections, each new connection closes the oldest idle one",
                    self.name,
                    self._limit,
                )
        self._since[connection] = now

    def note_response(self, connection: _HTTPConnection, now: float) -> None:
        """Move an answered connection to the end of the order."""
        if self._since.pop(connection, None) is not None:
            self._since[connection] = now

    def remove(self, connection: _HTTPConnection) -> None:
        self._since.pop(connection, None)

    def close_oldest(self) -> None:
        """Close the oldest idle connection of the older half, or the oldest one if none is idle."""
        # A real request takes milliseconds, so if the whole older half is in requests, most are held on purpose.
        # Spare the newer half: a real sender that has just connected has not sent its request yet.
        older = islice(self._since, (self._limit + 1) // 2)
        idle = (connection for connection in older if not connection.in_request)
        if (connection := next(idle, next(iter(self._since), None))) is not None:
            self._close(connection)

    def close_idle(self, now: float) -> None:
        """Close all connections that exceed `IDLE_TIMEOUT` or `REQUEST_TIMEOUT`."""
        for connection, since in list(self._since.items()):
            if now - since < IDLE_TIMEOUT:
                return
            if not connection.in_request or now - since >= REQUEST_TIMEOUT:
                self._close(connection)

    def _close(self, connection: _HTTPConnection) -> None:
        self.remove(connection)
        connection.transport.abort()  # close() would wait for a client that does not read


class _StoppableServer(uvicorn.Server):
    """A server that limits its connections, ends after `stop()`, and does not handle signals."""

    def __init__(self, config: uvicorn.Config, listening: socket.socket, connections: _Connections) -> None:
        super().__init__(config)
        self.connections = connections
        self._listening = listening
        self._stopping = anyio.Event()
        self._log_limit = TokenBucket(1 / LOG_INTERVAL, 1)

    def stop(self) -> None:
        self.should_exit = True
        self._stopping.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals: the command handles them."""
        yield

    async def main_loop(self) -> None:
        async with Background() as background:
            background.tasks.start_soon(self._accept_connections)
            while not await self.on_tick(0):
                self.connections.close_idle(anyio.current_time())
                with anyio.move_on_after(TICK):
                    await self._stopping.wait()
        self._listening.close()

    async def until_stopped(self) -> None:
        """Serve until `stop()`. Shielded from cancellation, so that connections are closed in order."""
        with anyio.CancelScope(shield=True), self._listening:
            await self.serve(sockets=[])  # `_accept_connections` accepts

    async def _accept_connections(self) -> None:
        loop = asyncio.get_running_loop()
        self._listening.settimeout(0)
        async with anyio.create_task_group() as tasks:
            while True:
                for _ in range(self.connections.batch):
                    try:
                        client, _ = await loop.sock_accept(self._listening)
                    except OSError as error:
                        await self._pause(error)
                    else:
                        tasks.start_soon(self._open_connection, client)
                # While connections wait, sock_accept() returns at once and never lets other tasks run.
                await anyio.lowlevel.checkpoint()

    async def _open_connection(self, client: socket.socket) -> None:
        with suppress(OSError):  # the client has closed it already
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(lambda: _HTTPConnection(self.config, self), client)

    async def _pause(self, error: OSError) -> None:
        self.connections.close_oldest()  # frees a file descriptor
        if not self._log_limit.take(anyio.current_time()):
            logger.warning("%s: cannot accept a connection: %s", self.connections.name, describe(error))
        await anyio.sleep(ACCEPT_PAUSE)


async def serve_in_background(
    listener: WebhookListener, listening: socket.socket, follow: Callable[[], Awaitable[object]]
) -> None:
    """Serve a webhook on a listening socket while `follow` runs, then close the socket."""
    # An exception of `follow` is raised without a group around it.
    config = uvicorn.Config(
        listener,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # a client that sends garbage must not fill our log
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_GRACE,
    )
    server = _StoppableServer(config, listening, _Connections(listener.name, connection_limit()))
    async with Background() as background:
        background.tasks.start_soon(server.until_stopped)
        try:
            await follow()
        finally:
            server.stop()


_ADDRESS = re.compile(r"(?:\[([0-9A-Za-z:.%]+)\]|([^\s:@\[\]]+)):([0-9]{1,5})")
MAX_PORT = 65_535


def parse_address(text: str) -> tuple[str, int]:
    """Split the value of --webhook into host and port."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[3]) > MAX_PORT:
        raise ValueError("--webhook must be HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080")
    return match[1] or match[2], int(match[3])


async def serve_webhook(
    listener: WebhookListener, host: str, port: int, follow: Callable[[], Awaitable[object]]
) -> None:
    """Listen on an address (port 0: a free port) and serve a webhook there while `follow` runs."""
    with _listen(host, port) as listening:
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        logger.info("%s: listening on http://%s:%d/", listener.name, shown, port)
        await serve_in_background(listener, listening, follow)


def _listen(host: str, port: int) -> socket.socket:
    with ExitStack() as stack:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            # Give the protocol: without it asyncio does not set TCP_NODELAY, and small answers are delayed.
            listening = stack.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "HOST is not a valid host name"
            raise ListenerError(
                f"--webhook: cannot listen on this address: {why}; choose another HOST:PORT"
            ) from None
        stack.pop_all()
    return listening
