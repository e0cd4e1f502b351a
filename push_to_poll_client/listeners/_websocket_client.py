"""Open websocket connections with the `websockets` library, protected against hostile servers.

Everything that depends on internals of `websockets` and asyncio is here. If the installed version lacks something
that a protection needs, creating a listener raises `ImportError`. Only the smaller reads are optional.
"""

import asyncio
import contextlib
import functools
import importlib
import itertools
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio
import httpx
import websockets.exceptions
import websockets.version
from websockets.exceptions import InvalidURI
from websockets.frames import CloseCode
from websockets.http11 import USER_AGENT
from websockets.uri import parse_uri

from push_to_poll_client._http.origins import check_userinfo
from push_to_poll_client._http.transport import shared_tls_context, user_agent
from push_to_poll_client._log import ConsumerLog

# The logger of the listener's module, whose name users configure.
_log = ConsumerLog(logging.getLogger("push_to_poll_client.listeners.websocket"))

CLOSE_TIMEOUT = 2.0
"""Seconds for a server to answer a close frame. If it does not read either, a stop takes twice as long."""

MAX_QUEUE = 16
"""Frames waiting to be read before TCP slows the server down: at most 1 MiB with the default `max_size`."""


def parse_url(url: str) -> httpx.URL:
    """Parse a websocket URL; raise a `ValueError` that does not quote it, since it may hold a password."""
    try:
        parse_uri(url)
        parsed = httpx.URL(url)
    except InvalidURI as error:
        reason = error.msg
    except (ValueError, httpx.InvalidURL):
        reason = "it cannot be parsed"
    else:
        check_userinfo(url)
        return parsed
    raise ValueError(f"url must be a websocket URL such as wss://host/path: {reason}")


@contextlib.asynccontextmanager
async def open_connection(
    url: str, *, headers: Mapping[str, str], ssl_context: ssl.SSLContext | None, **options: Any
) -> AsyncIterator[Any]:
    """Open a connection of `websockets` in a block. Without `ssl_context`, the machine's certificates count."""
    # Compression is off: it takes 50 KiB of buffers instead of 15, and a push carries no data. Redirects are not
    # followed: the library would send all headers but three to another origin (G12). Its reconnecting iterator is
    # not used: the delays come from `_backoff.py`.
    connect, connection_class = check_websockets(_backend())
    connections = itertools.count()

    def create_once(*args: Any, **options: Any) -> Any:
        # If a future `websockets` does not call `process_redirect()`, a second connection means a redirect.
        # Nothing has been sent on it yet.
        if next(connections):
            raise _unsupported("it follows redirects with credentials, and this cannot be prevented")
        return connection_class(*args, **options)

    async with connect(
        url,
        create_connection=create_once,
        additional_headers=headers,
        user_agent_header=user_agent(USER_AGENT),
        compression=None,
        ssl=(ssl_context or shared_tls_context()) if url.startswith("wss:") else None,
        close_timeout=CLOSE_TIMEOUT,
        max_queue=MAX_QUEUE,
        logger=_QuietLogger(_log.logger),
        **options,
    ) as connection:
        try:
            yield connection
        finally:
            await _close(connection)


class _QuietLogger(ConsumerLog):
    """Suppresses the library's DEBUG records, which show frames and handshakes with `Authorization`."""

    # Its errors become INFO without a traceback: they are transient, and the listener describes them itself.

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's name
        return level > logging.DEBUG and super().isEnabledFor(level)

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        super().log(min(level, logging.INFO), msg, *args, **{**kwargs, "exc_info": None, "extra": None})


class _AbortOnBackpressure:
    """Aborts the connection if the server does not read and the write buffer reaches 32 KiB."""

    # A push channel sends only pongs. On asyncio, the library would store the pongs to a flood of pings without a
    # limit, and a close would wait for the buffer without a timeout. On trio, TCP slows the flood down.

    transport: Any

    def pause_writing(self) -> None:
        self.transport.abort()


# asyncio reads 256 KiB at a time, which can be 87,000 frames. The library parses these in 0.2 s without a break,
# and 4 KiB in 4 ms. With TLS on asyncio, one record of at most 16 KiB is read.
READ_SIZE = 4096
"""Bytes read before other tasks run."""


class _SmallReads:
    """Reads small pieces, with undocumented settings. If they are missing, as in uvloop, nothing changes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        stream = getattr(self, "stream", None)
        if stream is not None:  # on trio the library does not limit the size of a read
            stream.receive_some = functools.partial(stream.receive_some, READ_SIZE)

    def connection_made(self, transport: Any) -> None:
        tls: Any = getattr(transport, "_ssl_protocol", None)
        if hasattr(transport, "max_size"):
            transport.max_size = READ_SIZE
        elif hasattr(tls, "max_size") and hasattr(tls, "_ssl_buffer"):
            tls.max_size = READ_SIZE
            tls._ssl_buffer = bytearray()  # noqa: SLF001  # the next read creates one of the new size
        super().connection_made(transport)  # type: ignore[misc]


def _backend() -> str:
    return "asyncio" if anyio.get_cancelled_exc_class() is asyncio.CancelledError else "trio"


@functools.cache
def check_websockets(backend: str = "asyncio") -> tuple[Any, Any]:
    """Return `connect` and the connection class with protections, or raise if they do not work."""
    module = importlib.import_module(f"websockets.{backend}.client")
    if not hasattr(websockets.exceptions, "TooManyFragments"):
        raise _unsupported("it stores the fragments of a message without a limit")
    if not callable(getattr(module.connect, "process_redirect", None)):
        raise _unsupported("it has no connect.process_redirect(), which keeps credentials from other servers")
    if backend == "asyncio" and not issubclass(module.ClientConnection, asyncio.Protocol):
        raise _unsupported("its connection is not an asyncio.Protocol, so the write buffer has no limit")
    return (
        type("connect", (module.connect,), {"process_redirect": lambda _self, error: error}),  # no redirects
        type("ClientConnection", (_AbortOnBackpressure, _SmallReads, module.ClientConnection), {}),
    )


TESTED = "17.4"
"""The version of `websockets` that an error recommends: the lowest that pyproject.toml permits."""


def _unsupported(reason: str) -> ImportError:
    return ImportError(
        f"WebSocketListener cannot use websockets {websockets.version.version}: {reason}; "
        f"update push-to-poll-client, or pip install 'websockets=={TESTED}'"
    )


async def _close(connection: Any) -> None:
    """Send a close frame, and make sure that the socket is closed."""
    # Shielded, since a cancelled close would leave its socket open until it is garbage-collected. The timeout
    # covers a server that does not read: then even sending the close frame blocks. On trio, a cancellation also
    # stops the library's tasks, so the socket is closed without a close frame.
    with anyio.move_on_after(2 * CLOSE_TIMEOUT, shield=True):
        await (connection.close if _backend() == "asyncio" else connection.aclose)(CloseCode.NORMAL_CLOSURE)
    if _backend() == "asyncio":
        connection.transport.abort()
