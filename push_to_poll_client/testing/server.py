"""The reference server on a real socket: in a thread, or as `python -m push_to_poll_client.testing.server`.

It needs uvicorn (the extra `serve`).

When it accepts connections, it prints one JSON line on stdout, with the members `url` (the feed), `push_url` (the
websocket), `sse_url` (the event stream), `changes_url` (the long poll), `base_url` (for `/webhooks`, `/publish`,
`/faults`, `/stats`, `/pushes`) and `pid`. It ends at Ctrl-C and SIGTERM.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast

import anyio
from anyio.from_thread import BlockingPortal

from push_to_poll_client._validation import missing_dependency
from push_to_poll_client.testing._reference.app import ReferenceApp
from push_to_poll_client.testing._reference.control import Faults, PushRecord, Stats

__all__ = ["ReferenceServer", "main", "serve_in_thread"]


try:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
except ImportError as _error:  # pragma: no cover - the tests have it
    raise missing_dependency(
        "The reference server", "uvicorn", _error, remedy="pip install 'push-to-poll-client[serve]'"
    ) from _error

_T = TypeVar("_T")

STOP_TIMEOUT = 5
"""Seconds for open requests when the server stops. Held and stalled requests end at once."""


class _HangUpProtocol(H11Protocol):
    """Lets the application close a connection during an answer, which ASGI cannot express."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "hang_up": transport.close}


class _WebSocket(WebSocketsSansIOProtocol):
    """Ignores all data while `half_open` is set; an ASGI application cannot, because it sees no pings."""

    def data_received(self, data: bytes) -> None:
        app = cast("ReferenceApp", self.config.app)
        if not (self.handshake_complete and app.faults.half_open):
            super().data_received(data)


class _Server(uvicorn.Server):
    """Runs in a thread, takes calls from other threads, and stops at once."""

    def __init__(self, config: uvicorn.Config, listening: socket.socket) -> None:
        super().__init__(config)
        self._started: Future[BlockingPortal] = Future()
        self._stopped = asyncio.Event()
        # A process must end even if its server was not stopped. A portal of `start_blocking_portal` is closed with
        # the interpreter and would then wait for ever for its thread, which does not run any more.
        self._thread = threading.Thread(target=self._run, args=(listening,), daemon=True)
        self._thread.start()
        self.call = self._started.result().call

    def stop(self) -> None:
        self.call(self._stopped.set)
        self._thread.join()

    def _run(self, listening: socket.socket) -> None:
        failure = RuntimeError("the reference server did not start; see its log")
        try:
            with listening:
                self.run([listening])
        except BaseException as error:  # uvicorn also ends by SystemExit
            if self._started.done():
                raise
            failure.__cause__ = error
        if not self._started.done():
            self._started.set_exception(failure)

    async def main_loop(self) -> None:
        async with BlockingPortal() as portal:
            self._started.set_result(portal)
            while not (await self.on_tick(0) or self._stopped.is_set()):  # each second a new Date header
                with anyio.move_on_after(1):
                    await self._stopped.wait()


class ReferenceServer:
    """A `ReferenceApp` on 127.0.0.1. Its methods may be called from any thread.

    Args:
        app: The application. None creates a `ReferenceApp`.
        port: The port. 0 means a free port, which `restart()` keeps.

    Attributes:
        app: The application.
        faults: The faults; set them at any time.
        stats: The current counters.
        pushes: The push of each publication, oldest first.
    """

    def __init__(self, app: ReferenceApp | None = None, *, port: int = 0) -> None:
        self.app: ReferenceApp = ReferenceApp() if app is None else app
        self.faults: Faults = self.app.faults
        self.stats: Stats = self.app.stats
        self.pushes: Sequence[PushRecord] = self.app.pushes
        self._port = port
        self._server: _Server | None = None

    @property
    def base_url(self) -> str:
        """URL of the server, without a slash at the end."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """URL of the feed."""
        return f"{self.base_url}/feed"

    @property
    def push_url(self) -> str:
        """URL of the push channel as a websocket."""
        return f"ws://127.0.0.1:{self._port}/push"

    @property
    def sse_url(self) -> str:
        """URL of the push channel as server-sent events."""
        return f"{self.base_url}/events"

    @property
    def changes_url(self) -> str:
        """URL of the push channel as a long poll."""
        return f"{self.base_url}/changes"

    def publish(self, what: int | list[Any] = 1) -> list[str]:
        """Publish a number of events, or one per data of a list, then push once. Works while stopped too.

        Returns:
            The ids of the events.
        """
        return self._call(lambda: self.app.publish(what))

    def send_webhooks(self, url: str, secret: str | None) -> list[str]:
        """Send later pushes to this URL too, as signed webhooks.

        Args:
            url: The URL of the receiver.
            secret: The signing secret, "whsec_" and Base64; it replaces an earlier one. None stops the webhooks.

        Returns:
            The URLs that get webhooks now.

        Raises:
            ValueError: The URL or the secret is invalid.
        """
        return self._call(lambda: self.app.send_webhooks(url, secret))

    def close_websockets(self, code: int = 1012) -> None:
        """Close all open websockets with this code, end all event streams, and answer all long polls."""
        self._call(lambda: self.app.close_websockets(code))

    def start(self) -> None:
        """Serve on 127.0.0.1, in a thread. Connections are accepted as soon as it returns.

        Raises:
            OSError: The port is taken.
        """
        # Give the protocol: only then asyncio sets TCP_NODELAY. Without it, Nagle's algorithm and a client's
        # delayed acknowledgement delay each small answer by 40 ms.
        bound = socket.create_server(("127.0.0.1", self._port))
        listening = socket.socket(bound.family, bound.type, socket.IPPROTO_TCP, bound.detach())
        self._port = listening.getsockname()[1]
        self.app.open()
        config = uvicorn.Config(
            self.app,
            http=_HangUpProtocol,
            ws=_WebSocket,
            ws_ping_interval=None,  # the server must not notice a half-open connection either
            ws_per_message_deflate=False,
            lifespan="auto",  # a user's own application may not support it
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=STOP_TIMEOUT,
        )
        self._server = _Server(config, listening)

    def stop(self) -> None:
        """Stop serving: close websockets with 1012, end all other requests. A second call does nothing."""
        server, self._server = self._server, None
        if server is not None:
            server.call(self.app.shut)
            server.stop()

    def restart(self) -> None:
        """Stop and serve again on the same port, with the same messages."""
        self.stop()
        self.start()

    def _call(self, what: Callable[[], _T]) -> _T:
        """Call in the event loop of the server, or in this thread if the server is stopped."""
        return what() if self._server is None else self._server.call(what)


@contextmanager
def serve_in_thread(app: ReferenceApp | None = None, *, port: int = 0, **kwargs: Any) -> Iterator[ReferenceServer]:
    """Run the reference server in a thread.

        with serve_in_thread(backlog=100, page_size=10) as server:
            feed = HTTPFeed(server.url)  # the server follows the HTTP Feeds specification

    Args:
        app: The application. None creates a `ReferenceApp` from `kwargs`.
        port: The port. 0 means a free port.
        kwargs: Arguments for `ReferenceApp`.

    Yields:
        The server, which accepts connections.

    Raises:
        TypeError: `kwargs` are given together with an app, or `ReferenceApp` does not have them.
    """
    if app is not None and kwargs:
        raise TypeError(f"pass {', '.join(kwargs)} to ReferenceApp(…), not together with app=")
    server = ReferenceServer(ReferenceApp(**kwargs) if app is None else app, port=port)
    server.start()
    try:
        yield server
    finally:
        server.stop()


wait_for_ever: Callable[[], object] = threading.Event().wait


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM, and return the exit code 0.

    Args:
        argv: Command-line arguments. None means `sys.argv[1:]`.
    """
    parser = argparse.ArgumentParser(prog="python -m push_to_poll_client.testing.server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free port)")
    parser.add_argument(
        "--backlog", type=int, default=0, metavar="N", help="messages in the feed at the start (default: 0)"
    )
    parser.add_argument(
        "--page-size", type=int, default=1000, metavar="N", help="most messages on a page (default: 1000)"
    )
    parser.add_argument(
        "--until-eof", action="store_true", help="stop when standard input ends, as when the parent process ends"
    )
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        suppress(KeyboardInterrupt),
        serve_in_thread(port=options.port, backlog=options.backlog, page_size=options.page_size) as server,
    ):
        names = ("url", "push_url", "sse_url", "changes_url", "base_url")
        addresses = {name: getattr(server, name) for name in names}
        sys.stdout.write(json.dumps({**addresses, "pid": os.getpid()}) + "\n")
        sys.stdout.flush()
        if options.until_eof:
            sys.stdin.read()
        else:
            wait_for_ever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
