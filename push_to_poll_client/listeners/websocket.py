"""Websocket listener (RFC 6455): each message on the connection is a push.

`_websocket_client.py` opens connections and closes them with code 1000. `_base.py` reconnects: it calls `_connect`
and `_opened`, then `_read` and `_pass_on` in turn.

The actions after failures are in the tables `CLOSE_ACTIONS` and `ERROR_ACTIONS`, and in `STATUS_ACTIONS` of
`_backoff.py`. Text from the server (close reasons, header values) may be hostile, so it is escaped and shortened.
An error that may hold a secret of the caller (the URL of a proxy, an unknown error) is named only by its type.

A connection can die without a sign. Protocol pings find a half-open connection. `max_silence` finds one whose
proxy answers pings but loses messages. `max_age` replaces any other dead connection.
"""

import functools
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidProxy,
    InvalidProxyStatus,
    InvalidStatus,
    NegotiationError,
    ProxyError,
)
from websockets.frames import Close

from push_to_poll_client._http.credentials import Auth, Credentials, CredentialsFailed, HeaderSource
from push_to_poll_client._http.headers import requested_delay
from push_to_poll_client._http.origins import without_secrets
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._types import Push
from push_to_poll_client._validation import check_count, check_number, quoted
from push_to_poll_client.listeners._backoff import ReconnectAction, action_of_status
from push_to_poll_client.listeners._base import ChannelOptions, ReadLoopListener
from push_to_poll_client.listeners._failures import MAX_TEXT, Failure, failure_of_error, failure_of_status
from push_to_poll_client.listeners._websocket_client import check_websockets, open_connection, parse_url

__all__ = ["WebSocketListener"]


class NoCommonSubprotocol(NegotiationError):
    """The server chose no offered subprotocol. A proxy without subprotocols may have answered."""


# All others are retried soon: 1000 and 1001 (a server is replaced), 1005 and 1006 (an empty close frame, or none),
# 1011 to 1014 (server errors), and unknown codes such as 4000-4999, which the application defines (`classify=`).
CLOSE_ACTIONS = {
    1002: ReconnectAction.SLOW_RETRY,  # protocol error
    1003: ReconnectAction.SLOW_RETRY,  # unsupported data
    1007: ReconnectAction.SLOW_RETRY,  # invalid data: text that is not UTF-8
    1008: ReconnectAction.SLOW_RETRY,  # policy violation: often an expired token
    1009: ReconnectAction.SLOW_RETRY,  # message too big
    1010: ReconnectAction.SLOW_RETRY,  # an extension is missing
    3000: ReconnectAction.SLOW_RETRY,  # unauthorized
    3003: ReconnectAction.SLOW_RETRY,  # forbidden
}
"""Close codes (RFC 6455 §7.4 and the IANA registry) that an early retry would meet again."""

# The first row whose type is among the error and its causes counts: trio hides the reason of a failed TLS
# handshake in the cause.
ERROR_ACTIONS: tuple[tuple[type[Exception], ReconnectAction], ...] = (
    (CredentialsFailed, ReconnectAction.RETRY),  # whatever the provider's reason is
    (ssl.SSLCertVerificationError, ReconnectAction.SLOW_RETRY),  # a wrong certificate, or an eavesdropper
    (EOFError, ReconnectAction.RETRY),  # the connection ended before the response to the handshake
    (OSError, ReconnectAction.RETRY),  # the network, an unknown name, a timeout, silence
    (NoCommonSubprotocol, ReconnectAction.GIVE_UP),  # client or server must be changed
    (ImportError, ReconnectAction.GIVE_UP),  # a SOCKS proxy without python-socks, or `_unsupported`
    (ProxyError, ReconnectAction.RETRY),  # the proxy is down or its response is malformed
    (InvalidProxy, ReconnectAction.SLOW_RETRY),  # the proxy's URL in the environment is invalid
    (InvalidHandshake, ReconnectAction.SLOW_RETRY),  # the response does not open a websocket
    (Exception, ReconnectAction.RETRY),  # an unknown error must not stop the listener permanently
)
"""Actions after all other errors."""

UNAUTHORIZED_CLOSE_CODES = frozenset({1008, 3000})
"""Codes after which new credentials may help: servers close with these when a token expires."""

ORDERLY_CLOSE_CODES = frozenset({1000, 1001})
"""Codes of a server that no longer needs a connection, or shuts down."""

UNREADABLE_CLOSE_CODES = frozenset({1002, 1007, 1009})
"""Codes that this side sends if it cannot read a message."""

SAFE_TO_QUOTE = (OSError, InvalidHandshake, ImportError)
"""Errors whose text never holds a secret. (`InvalidProxy` quotes the proxy's password.)"""


def failure_of(error: Exception) -> Failure:
    if isinstance(error, ConnectionClosed):
        return _failure_of_close(error)
    if isinstance(error, InvalidStatus):
        return failure_of_status(error, error.response.status_code, error.response.headers, wanted="a websocket")
    failure = failure_of_error(error, ERROR_ACTIONS, SAFE_TO_QUOTE)
    if isinstance(error, InvalidProxy):
        return failure._replace(sentence="the address of the proxy in the environment is not valid")
    if isinstance(error, InvalidProxyStatus):
        action = action_of_status(error.response.status_code)
        # A proxy cannot know that a channel behind it is permanently gone.
        action = ReconnectAction.SLOW_RETRY if action is ReconnectAction.GIVE_UP else action
        requested = requested_delay(error.response.status_code, error.response.headers, time.time())
        return failure._replace(action=action, retry_after=requested)
    return failure


def _failure_of_close(error: ConnectionClosed) -> Failure:
    by_us = error.sent is not None and not error.rcvd_then_sent
    close = error.sent if by_us else error.rcvd
    if close is None:
        return Failure(ReconnectAction.RETRY, "the connection was lost without a close frame", error)
    who = "this side" if by_us else "the server"
    sentence = f"{who} closed the connection with {Close(close.code, '')}"
    return Failure(
        CLOSE_ACTIONS.get(close.code, ReconnectAction.RETRY),
        f"{sentence}: {quoted(close.reason, MAX_TEXT)}" if close.reason else sentence,
        error,
        unauthorized=not by_us and close.code in UNAUTHORIZED_CLOSE_CODES,
        hid_a_push=by_us and close.code in UNREADABLE_CLOSE_CODES,
        orderly=not by_us and close.code in ORDERLY_CLOSE_CODES,
    )


class WebSocketListener(ReadLoopListener[str | bytes]):
    """Wakes on every message of a websocket, and on every connect.

    Reconnects after 0-1 s, then after growing delays: at most 5 connections in the first 10 seconds, later one in
    30-60 s. If the server refuses (401, 403, 404, close codes 1008, 3000, …), the delay is 5 to 7.5 minutes. After
    410, or without a common subprotocol, it gives up. `Retry-After` is obeyed. A connection that the server closes
    with 1000 or 1001 after a push, or after 5 s or more, is not a failure: the listener reconnects after 0-1 s, 10
    times in a row and then at most once a second. Redirects are not followed, since credentials stay with their
    origin.

    A proxy is taken from the environment (`ws_proxy`, `wss_proxy`, `all_proxy`, `no_proxy`, …). There is no
    compression: it would take 50 KiB of buffers, and a push carries no data.

    Args:
        url: A `ws://` or `wss://` URL. A user and password in it are sent as `Authorization: Basic`.
        subprotocols: Offered to the server in order of preference; the server must choose one. `None` offers none.
        ping_interval: Seconds between protocol pings (RFC 6455 §5.5.2). Keep it below the 30-120 s after which
            middleboxes drop idle connections. `None` sends no pings.
        ping_timeout: Seconds to wait for the pong. With both at 20, a dead connection is found within 40 s, and
            reported 2 s later (4 s with a full network buffer), after the attempt to close. `None` waits for ever.
        auth: Credentials: a bearer token, a pair of user and password, or a function (async, or plain and quick)
            that returns a token and is called at each connect. After a 401, or a close with 1008 or 3000, the
            function is called once more soon; after that come the slow retries. `None` uses the user and password
            of the URL, if any.
        headers: Headers of each handshake: a mapping, or a function (async, or plain and quick) that returns one
            and is called at each connect. `None` sends none.
        hint: Turns a message (`str` for text, `bytes` for binary) into a `Push` with cursor or topics, or into
            `None` if it is not a push (a greeting, an acknowledgement, a keep-alive). If it raises, the error is
            logged and the message counts as a plain push. `None` means that every message is a push.
        classify: Classifies a failure first (an exception of `websockets`, an `OSError`, …): returns a
            `ReconnectAction`, or `None` for the default. The default retries close codes 4000-4999, which
            applications define.
        ssl_context: TLS settings. `None` uses the machine's trusted certificates.
        max_age: Seconds after which a healthy connection is renewed, drawn from half of this to all of it. With
            600, a fleet of 1,000 makes 2.2 connections a second. `None` means never.
        max_silence: Seconds without a message after which the connection counts as dead. Set it above the interval
            of the server's keep-alive messages. `None` disables the check.
        open_timeout: Seconds to get headers and token, and again to connect and complete the handshake.
        max_body: Bytes of the largest message. A larger one counts as a push, ends the connection, and is retried
            slowly.

    Attributes:
        name: Name in log and status: the URL without user, password and query values.

    Raises:
        ImportError: The installed version of `websockets` lacks a protection that this listener needs.
        TypeError: An argument has the wrong type.
        ValueError: The URL is not a websocket URL, a limit is not positive, or there are two credentials.
    """

    _log = ConsumerLog(logging.getLogger(__name__))

    def __init__(
        self,
        url: str,
        *,
        subprotocols: Sequence[str] | None = None,
        ping_interval: float | None = 20.0,
        ping_timeout: float | None = 20.0,
        auth: Auth | None = None,
        headers: HeaderSource | None = None,
        hint: Callable[[str | bytes], Push | None] | None = None,
        classify: Callable[[Exception], ReconnectAction | None] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_age: float | None = 600.0,
        max_silence: float | None = None,
        open_timeout: float = 10.0,
        max_body: int = 65_536,
    ) -> None:
        parsed = parse_url(url)
        if isinstance(subprotocols, str):
            raise TypeError("subprotocols must be a sequence of names, not a single str")
        check_number("ping_interval", ping_interval, above_zero=True, optional=True)
        check_number("ping_timeout", ping_timeout, above_zero=True, optional=True)
        self._credentials = Credentials(auth, headers, parsed)
        if self._credentials.auth_flow is not None:
            raise TypeError("auth must be a token, a pair or a function: a websocket cannot use an httpx.Auth")
        check_websockets()  # raises at once if the installed version is unsuitable, also in a program on trio
        options = ChannelOptions(hint, classify, max_age, max_silence, open_timeout)
        super().__init__(without_secrets(url), options, self._credentials)
        self._open = functools.partial(
            open_connection,
            str(parsed.copy_with(userinfo=b"", fragment=None)),
            ssl_context=ssl_context,
            subprotocols=tuple(subprotocols or ()) or None,
            open_timeout=open_timeout,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            max_size=check_count("max_body", max_body),
        )
        self._subprotocols = tuple(subprotocols or ())

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[Any]:
        self._credentials.forget()
        headers = await self._credentials.get(within=self._open_timeout)
        async with self._open(headers=headers) as connection:
            if self._subprotocols and connection.subprotocol is None:
                raise NoCommonSubprotocol(
                    f"the server chose none of the subprotocols {', '.join(self._subprotocols)}"
                )
            yield connection

    async def _read(self, connection: Any) -> Sequence[str | bytes]:
        return (await connection.recv(),)

    _failure = staticmethod(failure_of)
