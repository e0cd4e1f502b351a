"""WHO SAID SO, by websocket (RFC 6455): each message on the connection is a push.

The connection is suspected at all times. Protocol pings find the half-open one, `max_silence` the one whose proxy
answers pings and swallows messages, and `max_age` whatever neither of them finds.

The life of the channel is `_reconnecting.py`'s, what a failure means `_websocket_failures.py`'s, how to open and
close `_websocket_connection.py`'s.
"""

import functools
import logging
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from push_to_poll_client._http.credentials import HeaderSource, TokenSource
from push_to_poll_client._protocols import Channel
from push_to_poll_client._types import Push
from push_to_poll_client._validation import check_number
from push_to_poll_client.listeners._failure import Failure
from push_to_poll_client.listeners._reconnect import Reconnect, Verdict
from push_to_poll_client.listeners._reconnecting import ReconnectingListener
from push_to_poll_client.listeners._websocket_connection import Connection, open_connection, parsed
from push_to_poll_client.listeners._websocket_failures import NoCommonSubprotocol, failure_of

__all__ = ["WebSocketListener"]

_log = logging.getLogger(__name__)


class WebSocketListener(ReconnectingListener[str | bytes]):
    """Wakes on every message of a websocket, and on every connect.

    Connects again by itself, after 0-1 s and then ever more slowly (at most 5 connections in the first 10 seconds,
    one in 30-60 s later); after 5 to 7.5 minutes when the server refuses (401, 403, 404, close codes 1008, 3000,
    …); never when it says "for good" (410, no common subprotocol). `Retry-After` is obeyed. Redirects are not
    followed: credentials stay with the origin they were given for.

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
        if parsed(url).user_info is not None and token is not None:
            raise ValueError("give either a token or a user and password in the URL: both make an Authorization")
        if isinstance(subprotocols, str):
            raise TypeError("subprotocols is a sequence of names, not one string")
        limits = {"ping_interval": ping_interval, "ping_timeout": ping_timeout, "max_size": max_size}
        for name, limit in limits.items():
            check_number(name, limit, above_zero=True, optional=True)
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

    def _connect(self, headers: Mapping[str, str]) -> AbstractAsyncContextManager[Connection]:
        return self._open(headers=headers)

    def _opened(self, connection: Connection, channel: Channel, reconnect: Reconnect) -> None:
        if self._subprotocols and connection.subprotocol is None:
            raise NoCommonSubprotocol(f"the server chose none of the subprotocols {', '.join(self._subprotocols)}")
        super()._opened(connection, channel, reconnect)

    async def _read(self, connection: Connection) -> Sequence[str | bytes]:
        return (await connection.recv(),)

    def _failure(self, error: Exception) -> Failure:
        return failure_of(error)
