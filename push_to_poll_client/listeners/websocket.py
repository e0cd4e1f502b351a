"""The websocket listener (RFC 6455): each message on the connection is a push.

The module has three parts, from the bottom up: open and close a connection with the `websockets` library, classify
and describe its failures, and the listener. `_base.py` connects again.

The verdicts on failures are in two tables, `CLOSE_VERDICTS` and `ERROR_VERDICTS`, and in `STATUS_VERDICTS` of
`_backoff.py`. Text from the server (close reasons, header values) may be hostile, so it is escaped and cut before
it becomes part of a sentence. An error that may hold a secret of the user's (the address of a proxy, an unknown
error) is named by its type alone.

A connection may be dead at any time without a sign. Protocol pings find a half-open connection; `max_silence`
finds one whose proxy answers pings but loses messages; `max_age` replaces any connection that neither of them
finds.
"""

import asyncio
import contextlib
import functools
import importlib
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

import anyio
import websockets.exceptions
import websockets.version
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidProxy,
    InvalidProxyStatus,
    InvalidStatus,
    InvalidURI,
    NegotiationError,
    ProxyError,
)
from websockets.frames import Close, CloseCode
from websockets.http11 import USER_AGENT
from websockets.uri import WebSocketURI, parse_uri

from push_to_poll_client._exceptions import PushToPollError
from push_to_poll_client._http.credentials import CredentialsFailed, HeaderSource, TokenSource
from push_to_poll_client._http.headers import requested_delay
from push_to_poll_client._http.origins import check_userinfo
from push_to_poll_client._http.transport import shared_tls_context, user_agent
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._protocols import Channel
from push_to_poll_client._types import Push
from push_to_poll_client._validation import check_number, quoted
from push_to_poll_client.listeners._backoff import ReconnectBackoff, Verdict, verdict_of_status
from push_to_poll_client.listeners._base import ReadLoopListener
from push_to_poll_client.listeners._failures import (
    MAX_TEXT,
    REDIRECTS_NOT_FOLLOWED,
    Failure,
    causes,
    describe_error,
    verdict_by_type,
)

__all__ = ["WebSocketListener"]

_log = ConsumerLog(logging.getLogger(__name__))

CLOSE_TIMEOUT = 2.0
"""Seconds for a server to answer a close frame; then the connection is dropped. A server that does not answer
delays a planned reconnect or a stop by this time, and by twice this time if it does not even read."""

MAX_QUEUE = 16
"""Frames that wait to be read before TCP holds the server up. With the default `max_size` they take 1 MiB at
most."""


class WebSocketConnection(Protocol):
    """The part of a connection that the listener uses."""

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the server chose; `None` if it chose none."""
        ...

    async def recv(self) -> str | bytes:
        """Wait for the next message."""
        ...


def parse_url(url: str) -> WebSocketURI:
    """Parse a websocket address.

    Raises:
        ValueError: The address is invalid. The text quotes neither it nor the parser, as both may hold a password.
    """
    try:
        parsed = parse_uri(url)
    except InvalidURI as error:
        reason = error.msg
    except ValueError:
        reason = "it cannot be parsed"
    else:
        check_userinfo(url)
        return parsed
    raise ValueError(f"url is no websocket address such as wss://host/path: {reason}")


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
) -> AsyncIterator[WebSocketConnection]:
    """Open a connection, and close it at the end of the block.

    No compression: it would take 50 KiB of buffers instead of 15, and a push carries no data. No redirects: the
    library would send every header but three to another origin (G12). The library's own iterator that reconnects
    is not used, since the delays are those of `_backoff.py`.

    Args:
        url: A websocket address.
        headers: Sent with the handshake.
        tls: The TLS settings for `wss://`. `None` means the certificates that the machine trusts.
        subprotocols: Offered to the server; may be empty.
        open_timeout: Seconds for connecting and the handshake.
        ping_interval: Seconds between pings. `None` means no pings.
        ping_timeout: Seconds to wait for the answer to a ping. `None` means no limit.
        max_size: The largest message, in bytes. `None` means no limit.

    Raises:
        Exception: The error that ended the attempt or the connection. `failure_of` classifies it.
    """
    client = _client(_backend())
    async with client.connect(
        url,
        create_connection=_Once(client.connection),
        additional_headers=headers,
        user_agent_header=user_agent(USER_AGENT),
        subprotocols=subprotocols or None,
        compression=None,
        ssl=(tls or shared_tls_context()) if parse_url(url).secure else None,
        open_timeout=open_timeout,
        close_timeout=CLOSE_TIMEOUT,
        ping_interval=ping_interval,
        ping_timeout=ping_timeout,
        max_size=max_size,
        max_queue=MAX_QUEUE,
        logger=_QuietLogger(_log.logger),
    ) as connection:
        try:
            yield connection
        finally:
            await _close(connection)


class _QuietLogger(ConsumerLog):
    """Keeps the library from logging frames and handshakes, with `Authorization`, at level DEBUG.

    Its errors (on trio a ping without an answer, with a traceback) become INFO without the traceback: they are
    passing failures, which the listener describes itself.
    """

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's name
        return level > logging.DEBUG and super().isEnabledFor(level)

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        super().log(min(level, logging.INFO), msg, *args, **{**kwargs, "exc_info": None, "extra": None})


class _NoRedirects:
    """Makes a redirect a failure instead of following it."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


class _Once:
    """Creates one connection for one `connect()`.

    If `websockets` no longer calls `process_redirect()`, a second connection follows a redirect. It is refused
    before anything is sent.
    """

    def __init__(self, connection: Callable[..., Any]) -> None:
        self._connection = connection
        self._created = False

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self._created:
            raise _unsupported("it follows redirects, with your credentials, and no longer lets us prevent that")
        self._created = True
        return self._connection(*args, **options)


class _AbortOnBackpressure:
    """Aborts the connection when the server does not read and the write buffer reaches 32 KiB.

    A push channel sends only pongs. On asyncio, the library would store the pongs to a flood of pings without a
    limit, and even a close would wait for room in the buffer without a timeout. On trio, TCP holds up the flood.
    """

    transport: Any

    def pause_writing(self) -> None:
        self.transport.abort()


READ_SIZE = 4096
"""Bytes that are read before other tasks run. asyncio reads 256 KiB at a time, which can be 87,000 frames; the
library parses them in 0.2 s without a break, and those of 4 KiB in 4 ms. With TLS on asyncio a record is read, of
16 KiB at most."""


class _SmallReads:
    """Reads little at a time.

    What it sets is not documented. Where it is missing, as in uvloop, nothing changes.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        stream = getattr(self, "stream", None)
        if stream is not None:  # trio's; the library does not say how much it wants
            stream.receive_some = functools.partial(stream.receive_some, READ_SIZE)

    def connection_made(self, transport: Any) -> None:
        tls: Any = getattr(transport, "_ssl_protocol", None)
        if hasattr(transport, "max_size"):
            transport.max_size = READ_SIZE
        elif hasattr(tls, "max_size") and hasattr(tls, "_ssl_buffer"):
            tls.max_size = READ_SIZE
            tls._ssl_buffer = bytearray()  # noqa: SLF001  # before the next read one of that size is made
        super().connection_made(transport)  # type: ignore[misc]


def _backend() -> str:
    return "asyncio" if anyio.get_cancelled_exc_class() is asyncio.CancelledError else "trio"


class _Client(NamedTuple):
    connect: Any
    connection: Any


@functools.cache
def _client(backend: str) -> _Client:
    """Return the library's classes for an event loop, with the protections that this module adds.

    Raises:
        ImportError: A protection would have no effect in the installed version of `websockets`.
    """
    module = importlib.import_module(f"websockets.{backend}.client")
    if not hasattr(websockets.exceptions, "TooManyFragments"):
        raise _unsupported("it stores the fragments of a message without a limit")
    if not callable(getattr(module.connect, "process_redirect", None)):
        raise _unsupported("it has no connect.process_redirect(), by which we keep credentials from other servers")
    if backend == "asyncio" and not issubclass(module.ClientConnection, asyncio.Protocol):
        raise _unsupported("its connection is not an asyncio.Protocol, so what waits to be sent has no limit")
    return _Client(
        type("connect", (_NoRedirects, module.connect), {}),
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
    """Send a close frame, and make sure that no socket stays open.

    Shielded, since a cancelled close would leave its socket to the garbage collector. The timeout is in addition
    to the library's own, since a server that does not read holds up even the sending of the close frame. On trio,
    a cancellation also reaches the library's tasks, so a stop there closes the socket without a close frame.
    """
    with anyio.move_on_after(2 * CLOSE_TIMEOUT, shield=True):
        await (connection.close if _backend() == "asyncio" else connection.aclose)(CloseCode.NORMAL_CLOSURE)
    if _backend() == "asyncio":
        connection.transport.abort()


class NoCommonSubprotocol(NegotiationError):
    """The server chose none of the subprotocols offered. Its messages may come from a proxy that knows none."""


CLOSE_VERDICTS = {
    1002: Verdict.SLOW_RETRY,  # protocol error
    1003: Verdict.SLOW_RETRY,  # unsupported data
    1007: Verdict.SLOW_RETRY,  # invalid data: text that is not UTF-8
    1008: Verdict.SLOW_RETRY,  # policy violation: often a token that ran out
    1009: Verdict.SLOW_RETRY,  # message too big
    1010: Verdict.SLOW_RETRY,  # an extension is missing
    3000: Verdict.SLOW_RETRY,  # unauthorized
    3003: Verdict.SLOW_RETRY,  # forbidden
}
"""Close codes (RFC 6455 §7.4 and the IANA registry) that a soon retry would meet again. All others are retried:
1000 and 1001 (a server is replaced), 1005 and 1006 (an empty close frame, or none), 1011 to 1014 (trouble of the
server), and all that this library does not know, such as 4000-4999, which the application defines
(`classify=`)."""

ERROR_VERDICTS: tuple[tuple[type[Exception], Verdict], ...] = (
    (CredentialsFailed, Verdict.RETRY),  # whatever the reason of the provider
    (ssl.SSLCertVerificationError, Verdict.SLOW_RETRY),  # a wrong certificate, or an eavesdropper
    (EOFError, Verdict.RETRY),  # the connection broke off before the response to the handshake
    (OSError, Verdict.RETRY),  # the network, a name not found, a timeout, silence
    (NoCommonSubprotocol, Verdict.GIVE_UP),  # one of the two sides has to be changed
    (ImportError, Verdict.GIVE_UP),  # a SOCKS proxy without python-socks, or `_unsupported`
    (ProxyError, Verdict.RETRY),  # the proxy is down or answers garbage
    (InvalidProxy, Verdict.SLOW_RETRY),  # the proxy's address in the environment is invalid
    (InvalidHandshake, Verdict.SLOW_RETRY),  # the response does not open a websocket
    (Exception, Verdict.RETRY),  # unknown: the listener must not stop for good because of it
)
"""The verdicts on all other errors. The first row whose type is found among the error and its causes counts: trio
hides the reason of a failed TLS handshake in the cause."""

UNAUTHORIZED_STATUS = 401
UNAUTHORIZED_CLOSE_CODES = frozenset({1008, 3000})
"""Refusals that new credentials may lift. A connection whose token expires is closed with one of these codes."""

ORDERLY_CLOSE_CODES = frozenset({1000, 1001})
"""Codes of a server that is done with a connection, or goes away."""

UNREADABLE_CLOSE_CODES = frozenset({1002, 1007, 1009})
"""Codes with which this side closes when it cannot read a message."""

REDIRECTS = range(300, 400)

SAFE_TO_QUOTE = (OSError, InvalidHandshake, ImportError)
"""Errors whose text holds no secret. (`InvalidProxy` quotes the proxy's password.)"""


def failure_of(error: Exception) -> Failure:
    """Classify and describe an error that ended a connection, or an attempt to open one."""
    requested = None  # Retry-After (RFC 9110 §10.2.3) of the server or the proxy
    if isinstance(error, InvalidStatus | InvalidProxyStatus):
        requested = requested_delay(error.response.status_code, error.response.headers, time.time())
    return Failure(
        verdict_of(error),
        describe_failure(error),
        retry_after=requested,
        unauthorized=_unauthorized(error),
        hid_a_push=closed_as_unreadable(error),
        orderly=closed_by_server(error),
        # A cause is printed with its traceback, and the one of `InvalidProxy` quotes the proxy's password.
        cause=None if isinstance(error, InvalidProxy) else error,
    )


def verdict_of(error: Exception) -> Verdict:
    """Return the verdict on a failure, as far as this library can know."""
    if isinstance(error, ConnectionClosed):
        return CLOSE_VERDICTS.get(_close_code(error), Verdict.RETRY)
    if isinstance(error, InvalidStatus):
        return verdict_of_status(error.response.status_code)
    if isinstance(error, InvalidProxyStatus):
        verdict = verdict_of_status(error.response.status_code)
        # A proxy cannot know that a channel behind it is gone for good.
        return Verdict.SLOW_RETRY if verdict is Verdict.GIVE_UP else verdict
    return verdict_by_type(causes(error), ERROR_VERDICTS)


def _unauthorized(error: Exception) -> bool:
    if isinstance(error, ConnectionClosed):
        return not _by_us(error) and _close_code(error) in UNAUTHORIZED_CLOSE_CODES
    return isinstance(error, InvalidStatus) and error.response.status_code == UNAUTHORIZED_STATUS


def closed_as_unreadable(error: Exception) -> bool:
    """Return whether this side closed because it could not read a message, which may have been a push."""
    return isinstance(error, ConnectionClosed) and _by_us(error) and _close_code(error) in UNREADABLE_CLOSE_CODES


def closed_by_server(error: Exception) -> bool:
    """Return whether the server closed the connection in an orderly way."""
    return isinstance(error, ConnectionClosed) and not _by_us(error) and _close_code(error) in ORDERLY_CLOSE_CODES


def describe_failure(error: Exception) -> str:
    """Describe a failure on one line, without secrets and control characters."""
    if isinstance(error, ConnectionClosed):
        return _describe_close(error)
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        sentence = f"the server answered HTTP {status} instead of opening a websocket"
        return f"{sentence}; {REDIRECTS_NOT_FOLLOWED}" if status in REDIRECTS else sentence
    if isinstance(error, PushToPollError):
        return str(error)
    if isinstance(error, InvalidProxy):
        return "the address of the proxy in the environment is not valid"
    return describe_error(causes(error), SAFE_TO_QUOTE)


def _describe_close(error: ConnectionClosed) -> str:
    close = error.sent if _by_us(error) else error.rcvd
    if close is None:
        return "the connection was lost without a close frame"
    who = "this side" if _by_us(error) else "the server"
    sentence = f"{who} closed the connection with {Close(close.code, '')}"
    return f"{sentence}: {quoted(close.reason, MAX_TEXT)}" if close.reason else sentence


def _by_us(error: ConnectionClosed) -> bool:
    return error.sent is not None and not error.rcvd_then_sent


def _close_code(error: ConnectionClosed) -> int:
    close = error.sent if _by_us(error) else error.rcvd
    return CloseCode.ABNORMAL_CLOSURE if close is None else close.code


class WebSocketListener(ReadLoopListener[str | bytes]):
    """Wakes on every message of a websocket, and on every connect.

    Connects again by itself, after 0-1 s and then ever more slowly (at most 5 connections in the first 10 seconds,
    one in 30-60 s later); after 5 to 7.5 minutes when the server refuses (401, 403, 404, close codes 1008, 3000,
    …); never when it says "for good" (410, no common subprotocol). `Retry-After` is obeyed. A connection that the
    server closes with 1000 or 1001 after a push, or after 5 s or more, is not a failure: the listener connects
    again after 0-1 s, 10 times in a row and then once a second at most. Redirects are not followed: credentials
    stay with the origin they were given for.

    A proxy is taken from the environment (`ws_proxy`, `wss_proxy`, `all_proxy` and their like, `no_proxy`). There
    is no compression: a push carries nothing worth 50 KiB of buffers.

    Args:
        url: A `ws://` or `wss://` address. User and password in it are sent as `Authorization: Basic`.
        headers: Sent with each handshake: a mapping, or a function (async, or plain and quick) that returns one
            and is asked at each connect. `None`: none.
        token: Sent as `Authorization: Bearer`: a string, or a function as for `headers`. When the server says 401
            (or closes with 1008 or 3000) the functions are asked once more soon, then the slow retries begin.
        hint: Makes a push of a message (`str` for text, `bytes` for binary): a `Push` with the cursor or topics
            that it speaks of, or `None` for a message that is no push (a hello, an acknowledgement, a keep-alive).
            One that raises is logged, and the message counts as a plain push. `None`: every message is a push.
        subprotocols: Offered to the server in order of preference; it has to choose one. `None`: none offered.
        classify: Asked first what a failure means (an exception of `websockets`, an `OSError`, …); returns a
            verdict, or `None` for the default. Close codes 4000-4999, the application's own, are retried by
            default.
        tls: Whom to trust for `wss://`. `None`: the certificates that the machine trusts.
        max_age: Seconds after which a connection is renewed although nothing is wrong with it, drawn from half of
            this to all of it; with 600, a fleet of 1,000 makes 2.2 connections a second. `None`: never.
        max_silence: Seconds without any message after which the connection is taken for dead; above the server's
            keep-alive interval, if it sends such messages. `None`: silence is not suspicious.
        ping_interval: Seconds between protocol pings (RFC 6455 §5.5.2), below the 30-120 s after which middleboxes
            drop what is idle. `None`: no pings.
        ping_timeout: Seconds to wait for the answer. With both at 20 a dead connection is found within 40 s, and
            reported 2 s later (4 s on a full network buffer), which a goodbye is given. `None`: for ever.
        open_timeout: Seconds for the headers and token to be given, and again for connecting and the handshake.
        max_size: Bytes of the largest message. A larger one counts as a push and ends the connection; it is
            retried slowly. `None`: no limit.

    Attributes:
        name: The address without user, password and the values of its query, by which log and status call the
            listener.

    Raises:
        ImportError: The installed version of `websockets` lacks something that keeps this listener safe.
        TypeError: An argument is of the wrong type.
        ValueError: The URL is no websocket address, a limit is not above 0, or there are two credentials.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: HeaderSource | None = None,
        token: TokenSource | None = None,
        hint: Callable[[str | bytes], Push | None] | None = None,
        subprotocols: Sequence[str] | None = None,
        classify: Callable[[Exception], Verdict | None] | None = None,
        tls: ssl.SSLContext | None = None,
        max_age: float | None = 600.0,
        max_silence: float | None = None,
        ping_interval: float | None = 20.0,
        ping_timeout: float | None = 20.0,
        open_timeout: float = 10.0,
        max_size: int | None = 65_536,
    ) -> None:
        if parse_url(url).user_info is not None and token is not None:
            raise ValueError("give either a token or a user and password in the URL: both make an Authorization")
        if isinstance(subprotocols, str):
            raise TypeError("subprotocols is a sequence of names, not one string")
        limits = {"ping_interval": ping_interval, "ping_timeout": ping_timeout, "max_size": max_size}
        for name, limit in limits.items():
            check_number(name, limit, above_zero=True, optional=True)
        _client("asyncio")  # raises at once if the installed version is unsuitable, also in a program on trio
        super().__init__(
            url,
            headers=headers,
            token=token,
            hint=hint,
            classify=classify,
            max_age=max_age,
            max_silence=max_silence,
            open_timeout=open_timeout,
            log=_log,
        )
        self._open = functools.partial(
            open_connection,
            url,
            tls=tls,
            subprotocols=tuple(subprotocols or ()),
            open_timeout=open_timeout,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            max_size=max_size,
        )
        self._subprotocols = tuple(subprotocols or ())

    def _connect(self, headers: Mapping[str, str]) -> AbstractAsyncContextManager[WebSocketConnection]:
        return self._open(headers=headers)

    def _opened(self, connection: WebSocketConnection, channel: Channel, reconnect: ReconnectBackoff) -> None:
        if self._subprotocols and connection.subprotocol is None:
            raise NoCommonSubprotocol(f"the server chose none of the subprotocols {', '.join(self._subprotocols)}")
        super()._opened(connection, channel, reconnect)

    async def _read(self, connection: WebSocketConnection) -> Sequence[str | bytes]:
        return (await connection.recv(),)

    def _failure(self, error: Exception) -> Failure:
        return failure_of(error)
