"""Connect, pass pushes on, and reconnect: the shared part of all reconnecting listeners.

A push carries no data, so a lost push costs only time: every connect wakes the consumer, and the poll finds
messages that were pushed without a connection.

`BaseListener` is the reconnect loop. A subclass runs one connection and classifies failures; `_backoff.py` decides
when to reconnect. `ReadLoopListener` is for channels that read messages one by one: it adds credentials, hints,
the maximum age of a connection and the longest silence. `DatabaseListener` is for databases.
"""

import abc
import asyncio
import logging
import math
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Generic, TypeVar

import anyio
import anyio.lowlevel
import msgspec

from push_to_poll_client._event_loop import sole_cause
from push_to_poll_client._exceptions import ListenerError, PushToPollError
from push_to_poll_client._http.credentials import Credentials
from push_to_poll_client._http.transport import CLOSE_TIMEOUT
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._protocols import Channel
from push_to_poll_client._secrets import Secrets, hidden, mask
from push_to_poll_client._types import Push
from push_to_poll_client._validation import check_number
from push_to_poll_client.listeners._backoff import DOWN_AFTER, ReconnectAction, ReconnectBackoff, lifetime
from push_to_poll_client.listeners._failures import Failure, forget_frames
from push_to_poll_client.listeners._hints import HintReader, Notification


class StopReconnecting(PushToPollError):
    """The server asks not to reconnect. Raised by `_connect`."""


class ChannelOptions(msgspec.Struct, frozen=True):
    """The checked arguments that listeners share. Times are in seconds, and None disables a limit."""

    hint: Callable[[Any], Push | None] | None = None
    classify: Callable[[Exception], ReconnectAction | None] | None = None
    max_age: float | None = None
    max_silence: float | None = None
    open_timeout: float = 10.0

    def __post_init__(self) -> None:
        check_number("max_age", self.max_age, above_zero=True, optional=True)
        check_number("max_silence", self.max_silence, above_zero=True, optional=True)
        check_number("open_timeout", self.open_timeout, above_zero=True)


class BaseListener(abc.ABC):
    """The reconnect loop of a listener."""

    _log: ConsumerLog  # the logger of the listener's module

    def __init__(self, name: str, options: ChannelOptions) -> None:
        self.name: str = name
        self._classify = options.classify
        self._max_age = options.max_age
        self._open_timeout = options.open_timeout
        self._known_secrets = Secrets()
        self._fraction: Callable[[], float] = random.random
        self._renewable = False  # True if the credentials may change when they are fetched again
        self._ended_in_order = False  # True after it was logged that the server ends connections

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @abc.abstractmethod
    async def _run_connection(self, channel: Channel, reconnect: ReconnectBackoff) -> None:
        """Run one connection until it reaches its maximum age; raise if it ends for another reason."""
        # An end that may come soon after the connect must raise `ConnectionEnded` with an orderly `Failure`. After
        # ten such ends in a row there is one connect a second. An end within 5 s without a push is a normal
        # failure.

    @abc.abstractmethod
    def _failure(self, error: Exception) -> Failure:
        """Classify and describe an error that ended a connection."""

    async def listen(self, channel: Channel, /) -> None:
        """Run until cancelled: connect, report to `channel`, and reconnect.

        Returns if the server asks the client not to reconnect, on channels that support this.

        Raises:
            ListenerError: A retry cannot help: the server's response is permanent, or `classify` gave up.
        """
        reconnect, handled = ReconnectBackoff(), sys.exception()
        with hidden(self._known_secrets):
            while True:
                error: Exception | None = None
                try:
                    await self._run_connection(channel, reconnect)
                    self._log.debug("%s: renewing the connection, which reached its maximum age", self.name)
                except Exception as raised:  # noqa: BLE001 - the failure's action decides what happens next
                    error = sole_cause(raised)
                    forget_frames(error, handled)
                reconnect.ended(anyio.current_time())
                if isinstance(error, StopReconnecting):
                    self._log.info("%s: %s", self.name, error)
                    channel.down(error)
                    return
                if error is not None:
                    await anyio.sleep(self._delay_after(error, channel, reconnect))

    def _delay_after(self, error: Exception, channel: Channel, reconnect: ReconnectBackoff) -> float:
        """Report a failure, and return the seconds to wait before the next attempt."""
        failure = self._failure(error)
        if failure.hid_a_push:
            channel.wake(Push())
        action = self._users_action(error) or failure.action
        if failure.orderly and reconnect.was_useful and action is ReconnectAction.RETRY:
            return self._delay_after_end(failure, channel, reconnect)
        refused = action is ReconnectAction.SLOW_RETRY and failure.unauthorized
        if refused and self._renewable and reconnect.allow_renewal():
            action = ReconnectAction.RETRY
        delay = reconnect.delay(action, fraction=self._fraction(), retry_after=failure.retry_after)
        report = failure.to_error(self.name, is_final=delay is None)
        channel.down(report)
        if delay is None:
            self._log.error("%s: %s; stopping the consumer", self.name, mask(failure.sentence))
            raise report
        self._log.info("%s; reconnecting in %.1f s", report, delay)
        return delay

    def _delay_after_end(self, failure: Failure, channel: Channel, reconnect: ReconnectBackoff) -> float:
        """Return the seconds to wait after an orderly end. The channel stays up during a short pause."""
        delay = reconnect.delay_after_end(
            anyio.current_time(), fraction=self._fraction(), retry_after=failure.retry_after
        )
        level = logging.DEBUG if self._ended_in_order else logging.INFO
        self._log.log(level, "%s: %s; reconnecting (logged once)", self.name, failure.sentence)
        self._ended_in_order = True
        if delay > DOWN_AFTER:
            channel.down(failure.to_error(self.name))
        return delay

    def _report_up(self, channel: Channel, reconnect: ReconnectBackoff) -> None:
        """Report that the channel is connected. Logged at DEBUG after an orderly end."""
        level = logging.DEBUG if reconnect.is_routine else logging.INFO
        reconnect.connected(anyio.current_time())
        self._log.log(level, "%s: connected", self.name)
        channel.up()

    def _draw_age(self) -> float:
        return math.inf if self._max_age is None else lifetime(self._max_age, self._fraction())

    def _users_action(self, error: Exception) -> ReconnectAction | None:
        if self._classify is None:
            return None
        try:
            return self._classify(error)
        except Exception as failure:  # noqa: BLE001 - a bug in the caller's function must not end the listener
            self._log.warning("%s: classify failed with %s, using the default", self.name, type(failure).__name__)
            return None


_MessageT = TypeVar("_MessageT")

# A server can send 30,000 events in one read of 256 KiB. A stop and other consumers would wait for all of them.
MESSAGES_AT_ONCE = 100
"""Messages passed on before other tasks run."""


class ReadLoopListener(BaseListener, Generic[_MessageT]):
    """Base of listeners that read messages one by one."""

    # Subclasses take their own arguments first, then the shared ones in the order of
    # tests/listeners/test_arguments.py.

    def __init__(self, name: str, options: ChannelOptions, credentials: Credentials | None = None) -> None:
        super().__init__(name, options)
        if credentials is not None:
            self._renewable = credentials.renewable
            self._known_secrets.include(credentials.secrets)
        self._hints = HintReader(options.hint, kinds=(Push,), log=self._log)
        self._max_silence = options.max_silence

    @abc.abstractmethod
    def _connect(self) -> AbstractAsyncContextManager[Any]:
        """Open a connection that the block closes properly, also after an error. Tests replace this."""

    @abc.abstractmethod
    async def _read(self, connection: Any) -> Sequence[_MessageT]:
        """Wait for data. An empty result means that no message arrived, but the connection works."""

    async def _run_connection(self, channel: Channel, reconnect: ReconnectBackoff) -> None:
        passed_on = 0
        async with self._connect() as connection:
            self._opened(channel, reconnect)
            with anyio.move_on_after(self._draw_age()):
                while True:
                    # Counted over all reads: a read with a message waiting may not let other tasks run.
                    for message in await self._read_in_time(connection):
                        if self._pass_on(message, channel):
                            reconnect.pushed()
                        passed_on += 1
                        if passed_on % MESSAGES_AT_ONCE == 0:
                            await anyio.lowlevel.checkpoint()

    def _opened(self, channel: Channel, reconnect: ReconnectBackoff) -> None:
        self._report_up(channel, reconnect)

    async def _read_in_time(self, connection: Any) -> Sequence[_MessageT]:
        with anyio.move_on_after(self._max_silence):
            return await self._read(connection)
        raise TimeoutError(f"no message for {self._max_silence:g} s")

    def _pass_on(self, message: _MessageT, channel: Channel) -> bool:
        """Wake if the message is a push, and return True if so."""
        # A push counts after the return: raise the end of a connection in the next `_read`, not here.
        push = self._hints.read(message, self.name)
        if push is not None:
            channel.wake(push)
        return push is not None


class DatabaseListener(ReadLoopListener[Notification]):
    """Base of listeners for databases, whose libraries run only on asyncio."""

    # `_read` itself limits its wait to `max_silence`: cancelling a read could lose a message.

    _library: str  # name of its package

    @abc.abstractmethod
    async def _open(self, closing: AsyncExitStack) -> Any:
        """Connect and subscribe. Register cleanup in `closing`, with `close_in_time`."""

    @abc.abstractmethod
    async def _ping(self, connection: Any) -> Sequence[Notification]:
        """Test the connection, and return messages that arrived meanwhile."""

    async def listen(self, channel: Channel, /) -> None:
        """Run until cancelled: connect, report to `channel`, and reconnect.

        Raises:
            ListenerError: As for `BaseListener`, or the program runs on trio, which the library does not support.
        """
        if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
            raise ListenerError(
                f"{self.name}: {self._library} runs only on asyncio; run the consumer on asyncio, or use another "
                "channel"
            )
        await super().listen(channel)

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[Any]:
        async with AsyncExitStack() as closing:
            with anyio.move_on_after(self._open_timeout) as opening:
                connection = await self._open(closing)
            if opening.cancelled_caught:
                raise TimeoutError(f"not subscribed within {self._open_timeout:g} s")
            yield connection

    async def _read_in_time(self, connection: Any) -> Sequence[Notification]:
        if messages := await self._read(connection):
            return messages
        with anyio.move_on_after(self._open_timeout):
            return await self._ping(connection)
        raise TimeoutError(f"no response to a ping within {self._open_timeout:g} s")


async def close_in_time(close: Callable[[], Awaitable[object]]) -> None:
    """Close a connection or pool, also after a cancellation."""
    with anyio.move_on_after(CLOSE_TIMEOUT, shield=True), suppress(Exception):
        await close()


def unique_names(argument: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names in an argument, each once; raise if one is not a `str` or is empty."""
    names = (given,) if isinstance(given, str) else tuple(given)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"{argument} must be a str or a sequence of str, got {given!r}")
    if not all(names):
        raise ValueError(f"{argument} must not have an empty name, got {given!r}")
    return tuple(dict.fromkeys(names))
