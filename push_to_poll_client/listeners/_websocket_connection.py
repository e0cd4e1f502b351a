"""HOW a websocket is opened and closed, on asyncio and on trio, with those of the library's manners that serve."""

import asyncio
import contextlib
import functools
import importlib
import logging
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

import anyio
from websockets.exceptions import InvalidURI
from websockets.frames import CloseCode
from websockets.http11 import USER_AGENT
from websockets.uri import WebSocketURI, parse_uri

from push_to_poll_client._http.transport import shared_tls_context, user_agent

__all__ = ["CLOSE_TIMEOUT", "Connection", "open_connection", "parsed"]

CLOSE_TIMEOUT = 2.0
"""Seconds for a server to answer a close frame, then the connection is dropped. So much may a server that does not
answer add to a planned reconnect or to a stop, twice if it does not even read."""

MAX_QUEUE = 16
"""Frames that wait to be read before TCP pushes back. With `max_size` it bounds what waits: 1 MiB."""

_log = logging.getLogger("push_to_poll_client.listeners.websocket")


class Connection(Protocol):
    """What a listener asks of a connection."""

    @property
    def subprotocol(self) -> str | None:
        """The one that the server chose."""
        ...

    async def recv(self) -> str | bytes:
        """Wait for the next message."""
        ...


def parsed(url: str) -> WebSocketURI:
    """Take a websocket address apart.

    Raises:
        ValueError: It is none. Neither the URL nor the parser's words, which may quote a password, are in it.
    """
    try:
        return parse_uri(url)
    except InvalidURI as error:
        why = error.msg
    except ValueError:
        why = "it cannot be parsed"
    raise ValueError(f"url is no websocket address such as wss://host/path: {why}")


@contextlib.asynccontextmanager
async def open_connection(
    url: str,
    *,
    headers: Mapping[str, str],
    tls: ssl.SSLContext | None,
    subprotocols: Sequence[str],
    open_timeout: float,
    ping_interval: float | None,
    ping_timeout: float | None,
    max_size: int | None,
) -> AsyncIterator[Connection]:
    """Open a connection, and close it at the end of the block.

    No compression: 50 KiB of buffers instead of 15 for pushes, which carry nothing. No redirects: the library
    would take every header but three to another origin (G12). No iterator that reconnects: the delays are ours.

    Args:
        url: A websocket address.
        headers: Sent with the handshake.
        tls: Whom to trust for `wss://`; `None`: the certificates that the machine trusts.
        subprotocols: Offered to the server; empty: none.
        open_timeout: Seconds for connecting and the handshake.
        ping_interval: Seconds between pings; `None`: no pings.
        ping_timeout: Seconds to wait for the answer; `None`: for ever.
        max_size: Bytes of the largest message; `None`: no limit.

    Raises:
        Exception: Whatever ended the attempt or the connection. `_websocket_failures.py` knows what it means.
    """
    async with _client(_backend())(
        url,
        additional_headers=headers,
        user_agent_header=user_agent(USER_AGENT),
        subprotocols=subprotocols or None,
        compression=None,
        ssl=(tls or shared_tls_context()) if parsed(url).secure else None,
        open_timeout=open_timeout,
        close_timeout=CLOSE_TIMEOUT,
        ping_interval=ping_interval,
        ping_timeout=ping_timeout,
        max_size=max_size,
        max_queue=MAX_QUEUE,
        logger=_Discreet(_log),
    ) as connection:
        try:
            yield connection
        finally:
            await _close(connection)


class _Discreet(logging.LoggerAdapter[logging.Logger]):
    """Keeps the library from logging frames and handshakes, with `Authorization`, which it does for DEBUG.

    What it takes for an error (on trio a ping without an answer, with a traceback) is a passing failure, of which
    the listener tells what it means.
    """

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's name
        return level > logging.DEBUG and super().isEnabledFor(level)

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        super().log(min(level, logging.INFO), msg, *args, **{**kwargs, "exc_info": None})


class _StayHome:
    """Makes a redirect the failure that it is, instead of an address to go to."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


class _Impatient:
    """Hangs up on a server that does not read, when what is written to it fills a buffer of 32 KiB.

    A push channel is answered with pongs alone. On asyncio the library would keep those to a flood of pings
    without end, and wait for room without a timeout even to close. On trio TCP holds the flood up.
    """

    transport: Any

    def pause_writing(self) -> None:
        self.transport.abort()


def _backend() -> str:
    return "asyncio" if anyio.get_cancelled_exc_class() is asyncio.CancelledError else "trio"


@functools.cache
def _client(backend: str) -> Any:
    module = importlib.import_module(f"websockets.{backend}.client")
    connect = type("connect", (_StayHome, module.connect), {})
    connection = type("ClientConnection", (_Impatient, module.ClientConnection), {})
    return functools.partial(connect, create_connection=connection)


async def _close(connection: Any) -> None:
    """Say goodbye, then see to it that nothing stays open.

    Shielded, since a close that is cancelled would leave its socket to the garbage collector; with a timeout
    beside the library's own, since a server that reads nothing holds up the sending of the close frame itself.
    On trio a cancellation reaches the library's tasks as well: a stop there closes the socket without a goodbye.
    """
    with anyio.move_on_after(2 * CLOSE_TIMEOUT, shield=True):
        await (connection.close if _backend() == "asyncio" else connection.aclose)(CloseCode.NORMAL_CLOSURE)
    if _backend() == "asyncio":
        connection.transport.abort()
