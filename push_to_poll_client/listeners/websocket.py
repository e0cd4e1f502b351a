"""WHO SAID SO, by websocket (RFC 6455): each message on the connection is a push.

Nothing that arrives is data, so nothing that is lost is missed for good: every connect wakes, for what was pushed
before it is gone. The connection is suspected at all times. Protocol pings find the half-open one, `max_silence`
the one whose proxy answers pings and swallows messages, and `max_age` whatever neither of them finds.

When to connect again is `_reconnect.py`'s, what a failure means `_websocket_failures.py`'s, how to open and close
`_websocket_connection.py`'s.
"""

import functools
import logging
import random
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

import anyio
from websockets.exceptions import InvalidProxy, NegotiationError

from push_to_poll_client._arguments import check_number
from push_to_poll_client._exceptions import ListenerError, PushToPollError
from push_to_poll_client._http import without_secrets
from push_to_poll_client._types import Channel, Push
from push_to_poll_client.listeners._credentials import Credentials, HeaderSource, TokenSource
from push_to_poll_client.listeners._reconnect import Reconnect, Verdict, lifetime
from push_to_poll_client.listeners._websocket_connection import Connection, open_connection, parsed
from push_to_poll_client.listeners._websocket_failures import (
    hid_a_push,
    only,
    retry_after,
    sentence,
    unauthorized,
    verdict_of,
)

__all__ = ["WebSocketListener"]

_log = logging.getLogger(__name__)


class WebSocketListener:
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
        ping_timeout: Seconds to wait for the answer. With both at 20 a dead connection is found within 40 s.
            `None`: for ever.
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
        limits = {"max_age": max_age, "max_silence": max_silence, "ping_interval": ping_interval}
        for name, limit in {**limits, "ping_timeout": ping_timeout, "max_size": max_size}.items():
            check_number(name, limit, above_zero=True, optional=True)
        check_number("open_timeout", open_timeout, above_zero=True)
        self.name: str = without_secrets(url)
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
        self._credentials = Credentials(headers, token)
        self._hint = hint
        self._hint_failed = False
        self._subprotocols = tuple(subprotocols or ())
        self._classify = classify
        self._max_age = max_age
        self._max_silence = max_silence
        self._open_timeout = open_timeout
        self._fraction: Callable[[], float] = random.random

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    async def listen(self, channel: Channel, /) -> None:
        """Run until cancelled, connect again alone, report to `channel`.

        Raises:
            ListenerError: Trying again cannot help: 410 Gone, no common subprotocol, or `classify` said so.
        """
        reconnect = Reconnect()
        while True:
            error = await self._one_connection(channel, reconnect)
            reconnect.ended(anyio.current_time())
            if error is not None:
                await anyio.sleep(self._delay_after(error, channel, reconnect))

    async def _one_connection(self, channel: Channel, reconnect: Reconnect) -> Exception | None:
        """Connect and pass pushes on. Returns why the connection is over, `None` if it only reached its age."""
        try:
            headers = await self._credentials.ask(within=self._open_timeout)
            async with self._connect(headers) as connection:
                self._opened(connection, channel, reconnect)
                await self._receive(connection, channel)
        except Exception as error:  # noqa: BLE001 - whatever it is, a listener goes on; the verdict tells how
            # The traceback holds the headers, and status keeps the error for long.
            return only(error).with_traceback(None)
        _log.debug("%s: renewing the connection at its age", self.name)
        return None

    def _opened(self, connection: Connection, channel: Channel, reconnect: Reconnect) -> None:
        if self._subprotocols and connection.subprotocol is None:
            raise NegotiationError(f"the server chose none of the subprotocols {', '.join(self._subprotocols)}")
        reconnect.connected(anyio.current_time())
        _log.info("%s: connected", self.name)
        channel.up()

    async def _receive(self, connection: Connection, channel: Channel) -> None:
        age = None if self._max_age is None else lifetime(self._max_age, self._fraction())
        with anyio.move_on_after(age):
            while True:
                message = await self._next_message(connection)
                push = self._read(message)
                if push is not None:
                    channel.wake(push)

    async def _next_message(self, connection: Connection) -> str | bytes:
        with anyio.move_on_after(self._max_silence):
            return await connection.recv()
        raise TimeoutError(f"no message for {self._max_silence:g} s")

    def _read(self, message: str | bytes) -> Push | None:
        if self._hint is None:
            return Push()
        try:
            return _checked_push(self._hint(message))
        except Exception as error:  # noqa: BLE001 - a hint may be wrong in any way; the push must not be lost by it
            level = logging.DEBUG if self._hint_failed else logging.WARNING
            self._hint_failed = True
            _log.log(level, "%s: hint failed with %s, taken for a plain push", self.name, type(error).__name__)
            return Push()

    def _delay_after(self, error: Exception, channel: Channel, reconnect: Reconnect) -> float:
        """Report the failure, and say how many seconds to wait after it."""
        if hid_a_push(error):
            channel.wake(Push())
        verdict = self._judge(error, reconnect)
        delay = reconnect.delay(verdict, fraction=self._fraction(), retry_after=retry_after(error))
        what = f"{self.name}: {sentence(error)}"
        if delay is None:
            _log.error("%s; giving up", what)
            raise _told(ListenerError(f"{what}; trying again cannot help: correct or remove it"), error, channel)
        _log.info("%s; connecting again in %.1f s", what, delay)
        _told(PushToPollError(what), error, channel)
        return delay

    def _judge(self, error: Exception, reconnect: Reconnect) -> Verdict:
        verdict = self._users_verdict(error) or verdict_of(error)
        refused = verdict is Verdict.SLOW_RETRY and unauthorized(error)
        if refused and self._credentials.renewable and reconnect.renew():
            return Verdict.RETRY
        return verdict

    def _users_verdict(self, error: Exception) -> Verdict | None:
        if self._classify is None:
            return None
        try:
            return self._classify(error)
        except Exception as failure:  # noqa: BLE001 - a wrong opinion must not end the listener
            _log.warning("%s: classify failed with %s", self.name, type(failure).__name__)
            return None

    def _connect(self, headers: Mapping[str, str]) -> AbstractAsyncContextManager[Connection]:
        """Open a connection. Tests put another one in its place."""
        return self._open(headers=headers)


def _told(failure: PushToPollError, error: Exception, channel: Channel) -> PushToPollError:
    # A cause is printed with its traceback, and that of a proxy's address quotes the password in it.
    failure.__cause__ = None if isinstance(error, InvalidProxy) else error
    channel.down(failure)
    return failure


def _checked_push(push: object) -> Push | None:
    if push is not None and not isinstance(push, Push):
        raise TypeError(f"a hint is a Push or None, not {type(push).__name__}")
    return push
