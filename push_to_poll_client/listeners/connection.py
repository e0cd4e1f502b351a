"""The listener for any other channel: a function of the user's runs one connection.

The function opens the connection, reports it and its pushes to a `Connection`, and ends with it. The reconnect
loop of `_base.py` calls the function again, so its author needs no code for delays, failures and status.
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
    """The function returned something that cannot be awaited."""


class Connection:
    """What the function of a `ConnectionListener` reports to, for as long as one connection lasts.

    Args:
        up: The channel is connected.
        wake: A push arrived.
    """

    def __init__(self, *, up: Callable[[], None], wake: Callable[[Push], None]) -> None:
        self._up = up
        self._wake = wake

    def up(self) -> None:
        """It is subscribed, and hears what is pushed from here on. The consumer polls: what was before is gone."""
        self._up()

    def wake(self, push: Push | None = None, /) -> None:
        """A push arrived. Never blocks; from any thread."""
        self._wake(Push() if push is None else push)


ERROR_ACTIONS = ((NotAsync, ReconnectAction.GIVE_UP), (Exception, ReconnectAction.RETRY))


Connect: TypeAlias = Callable[[Connection], Awaitable[None]]
"""Runs one connection: opens it, calls `up()`, calls `wake()` for each push, and closes it at the end."""


class ConnectionListener(BaseListener):
    """Makes a listener of a function that is one connection.

        async def orders(connection):
            async with aiomqtt.Client("broker.example") as client:
                await client.subscribe("orders/#")
                connection.up()
                async for message in client.messages:
                    connection.wake()

        ConnectionListener(orders, name="mqtt orders")

    However it ends, by an exception (whose text log and status show) or by returning, it is called again, with
    the delays of all listeners: after 0-1 s and then ever more slowly (at most 5 times in the first 10 seconds,
    once in 30-60 s later), until a connection has lived for 30 s. A return after a `wake()`, or after 5 s or more,
    is not a failure: it is called again after 0-1 s, 10 times in a row and then once a second at most. Dead
    connections it finds itself: most clients have a keep-alive to switch on. A client that connects again by
    itself is told not to.

    Args:
        connect: The function. It is cancelled to end it.
        name: By what status and log call it; without secrets.
        classify: What an error means; returns a `ReconnectAction`, or `None` to try again.
        max_age: Seconds after which a connection is renewed although nothing is wrong with it, drawn from half of
            this to all of it; with 600, a fleet of 1,000 makes 2.2 connections a second. `None`: never.
        open_timeout: Seconds in which it has to say `up()`.

    Raises:
        TypeError: `connect` cannot be called, or the name is no `str`.
        ValueError: A limit is not above 0.
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
            raise TypeError(f"connect is an async function of a Connection, not {connect!r}")
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
                raise NotAsync("connect is no async function, so there is no connection to wait for")
            await running
            raise ConnectionEnded("the connection ended")
        if not reconnect.is_connected:
            raise TimeoutError(f"not up within {self._open_timeout:g} s")

    def _opened(self, channel: Channel, reconnect: ReconnectBackoff, scope: anyio.CancelScope) -> None:
        # The deadline was that for `up()`; from here on it is that of the connection's age.
        scope.deadline = anyio.current_time() + self._draw_age()
        self._report_up(channel, reconnect)

    def _failure(self, error: Exception) -> Failure:
        failure = failure_of_error(error, ERROR_ACTIONS, (Exception,))
        # What it was raised from may be meant to be hidden, as by `from None`.
        return failure if str(error) else failure._replace(sentence=f"failed with {type(error).__name__}")
