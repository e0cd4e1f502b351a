"""Listener for any other channel: the caller's function runs one connection.

The function opens the connection and reports its state and pushes to a `Connection`. It runs as long as the
connection. The reconnect loop of `_base.py` calls it again, and handles delays, failures and status.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio

from push_to_poll_client._exceptions import PushToPollError
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._protocols import Channel
from push_to_poll_client._types import Push
from push_to_poll_client._validation import check_str
from push_to_poll_client.listeners._backoff import ReconnectAction, ReconnectBackoff
from push_to_poll_client.listeners._base import BaseListener, ChannelOptions
from push_to_poll_client.listeners._failures import ConnectionEnded, Failure, failure_of_error

__all__ = ["Connection", "ConnectionListener"]


class NotAsync(PushToPollError):
    """The caller's function returned something that cannot be awaited."""


class Connection:
    """Reports the state and the pushes of one connection, from the function of a `ConnectionListener`.

    Args:
        up: Called when the channel is connected.
        wake: Called with each push.
    """

    def __init__(self, *, up: Callable[[], None], wake: Callable[[Push], None]) -> None:
        self._up = up
        self._wake = wake

    def up(self) -> None:
        """Report that the channel is subscribed. The consumer then polls, since earlier pushes were missed."""
        self._up()

    def wake(self, push: Push | None = None, /) -> None:
        """Report a push. Never blocks. Thread-safe."""
        self._wake(Push() if push is None else push)


ERROR_ACTIONS = ((NotAsync, ReconnectAction.GIVE_UP), (Exception, ReconnectAction.RETRY))


Connect: TypeAlias = Callable[[Connection], Awaitable[None]]
"""Runs one connection: opens it, calls `up()`, calls `wake()` for each push, and closes it."""


class ConnectionListener(BaseListener):
    """Runs a function as a listener; each call of the function is one connection.

        async def orders(connection):
            async with aiomqtt.Client("broker.example") as client:
                await client.subscribe("orders/#")
                connection.up()
                async for message in client.messages:
                    connection.wake()

        ConnectionListener(orders, name="mqtt orders")

    When the function raises or returns, it is called again after a delay. The text of an exception appears in log
    and status. The first delay is 0-1 s, and delays grow: at most 5 calls in the first 10 seconds, later one in
    30-60 s. A connection that lasts 30 s resets them. A return after a `wake()`, or after 5 s or more, is not a
    failure: the next call comes after 0-1 s, 10 times in a row and then at most once a second. The function must
    detect dead connections itself: most clients have a keep-alive option. If the client reconnects by itself, turn
    that off.

    Args:
        connect: The function. It is cancelled to end the connection.
        name: Name in status and log, without secrets.
        classify: Classifies an error: returns a `ReconnectAction`, or `None` to retry.
        max_age: Seconds after which a healthy connection is renewed, drawn from half of this to all of it. With
            600, a fleet of 1,000 makes 2.2 connections a second. `None` means never.
        open_timeout: Seconds within which the function must call `up()`.

    Raises:
        TypeError: `connect` is not callable, or the name is not a `str`.
        ValueError: A limit is not positive.
    """

    _log = ConsumerLog(logging.getLogger(__name__))

    def __init__(
        self,
        connect: Connect,
        *,
        name: str,
        classify: Callable[[Exception], ReconnectAction | None] | None = None,
        max_age: float | None = 600.0,
        open_timeout: float = 10.0,
    ) -> None:
        if not callable(connect):
            raise TypeError(f"connect must be an async function that takes a Connection, got {connect!r}")
        check_str("name", name)
        options = ChannelOptions(classify=classify, max_age=max_age, open_timeout=open_timeout)
        super().__init__(name, options)
        self._connect = connect

    async def _run_connection(self, channel: Channel, reconnect: ReconnectBackoff) -> None:
        def wake(push: Push) -> None:
            reconnect.pushed()
            channel.wake(push)

        connection = Connection(up=lambda: self._opened(channel, reconnect, scope), wake=wake)
        scope = anyio.CancelScope(deadline=anyio.current_time() + self._open_timeout)
        with scope:
            running = self._connect(connection)
            if not inspect.isawaitable(running):
                raise NotAsync("connect must be an async function: it returned something that cannot be awaited")
            await running
            raise ConnectionEnded("the connection ended")
        if not reconnect.is_connected:
            raise TimeoutError(f"up() was not called within {self._open_timeout:g} s")

    def _opened(self, channel: Channel, reconnect: ReconnectBackoff, scope: anyio.CancelScope) -> None:
        # Until now the deadline of `up()`; from here on the connection's maximum age.
        scope.deadline = anyio.current_time() + self._draw_age()
        self._report_up(channel, reconnect)

    def _failure(self, error: Exception) -> Failure:
        failure = failure_of_error(error, ERROR_ACTIONS, (Exception,))
        # Do not show its cause, which may be hidden on purpose (`from None`).
        return failure if str(error) else failure._replace(sentence=f"failed with {type(error).__name__}")
