"""The base of listeners: connect, pass on pushes, see why the connection ended, wait, connect again.

Nothing that arrives is data, so nothing that is lost is missed for good: every connect wakes, for what was pushed
before it is gone. A kind of channel says how a connection lives and what a failure means; when to connect again is
`_reconnect.py`'s.
"""

import abc
import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

import anyio
import anyio.lowlevel

from push_to_poll_client._exceptions import ListenerError, PushToPollError
from push_to_poll_client._http.credentials import HeaderSource, ListenerCredentials, TokenSource
from push_to_poll_client._http.origins import without_secrets
from push_to_poll_client._protocols import Channel
from push_to_poll_client._types import Push
from push_to_poll_client._validation import check_number
from push_to_poll_client.listeners._backoff import ReconnectBackoff, Verdict, lifetime
from push_to_poll_client.listeners._failures import Failure, unwrap_group
from push_to_poll_client.listeners._hints import HintReader

__all__ = [
    "BaseListener",
    "ReadLoopListener",
    "StopReconnecting",
    "refuse_trio",
    "unique_names",
]


def unique_names(what: str, names: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several, each once.

    Args:
        what: The argument's name.
        names: What was given.

    Raises:
        TypeError: It is neither.
        ValueError: One is empty.
    """
    several = (names,) if isinstance(names, str) else tuple(names)
    if not all(isinstance(name, str) for name in several):
        raise TypeError(f"{what} is a str or several")
    if not all(several):
        raise ValueError(f"{what} has an empty name")
    return tuple(dict.fromkeys(several))


def refuse_trio(name: str, library: str) -> None:
    """See that asyncio runs.

    Raises:
        ListenerError: It is trio.
    """
    if not isinstance(anyio.lowlevel.current_token().native_token, asyncio.AbstractEventLoop):
        raise ListenerError(
            f"{name}: {library} runs on asyncio alone; run the consumer there, or take another channel"
        )


class StopReconnecting(PushToPollError):
    """The server asks not to connect again. Raised by `_connect`."""


class BaseListener(abc.ABC):
    """What the listeners have in common that connect again by themselves.

    Args:
        name: By what log and status call it.
        classify: Asked first what a failure means; `None`: nobody knows better.
        log: Where what happens is told.
    """

    def __init__(
        self, name: str, *, classify: Callable[[Exception], Verdict | None] | None, log: logging.Logger
    ) -> None:
        self.name: str = name
        self._classify = classify
        self._log = log
        self._fraction: Callable[[], float] = random.random
        self._renewable = False  # whether asking for credentials again may bring others

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @abc.abstractmethod
    async def _run_connection(self, channel: Channel, reconnect: ReconnectBackoff) -> Exception | None:
        """Live through one. Returns why it is over, `None` if it only reached its age."""

    @abc.abstractmethod
    def _failure(self, error: Exception) -> Failure:
        """What an error means."""

    async def listen(self, channel: Channel, /) -> None:
        """Run until cancelled, connect again alone, report to `channel`.

        Returns when the server asks to be left alone, where the channel has a way to ask that.

        Raises:
            ListenerError: Trying again cannot help: the server said "for good", or `classify` did.
        """
        reconnect = ReconnectBackoff()
        while True:
            error = await self._run_connection(channel, reconnect)
            reconnect.ended(anyio.current_time())
            if isinstance(error, StopReconnecting):
                self._log.info("%s: %s", self.name, error)
                channel.down(error)
                return
            if error is not None:
                await anyio.sleep(self._delay_after(error, channel, reconnect))

    def _delay_after(self, error: Exception, channel: Channel, reconnect: ReconnectBackoff) -> float:
        """Report the failure, and say how many seconds to wait after it."""
        failure = self._failure(error)
        if failure.hid_a_push:
            channel.wake(Push())
        verdict = self._choose_verdict(error, failure, reconnect)
        delay = reconnect.delay(verdict, fraction=self._fraction(), retry_after=failure.retry_after)
        what = f"{self.name}: {failure.sentence}"
        if delay is None:
            self._log.error("%s; giving up", what)
            broken = ListenerError(f"{what}; trying again cannot help: correct or remove it")
            raise _report_down(broken, failure, channel)
        self._log.info("%s; connecting again in %.1f s", what, delay)
        _report_down(PushToPollError(what), failure, channel)
        return delay

    def _choose_verdict(self, error: Exception, failure: Failure, reconnect: ReconnectBackoff) -> Verdict:
        verdict = self._users_verdict(error) or failure.verdict
        refused = verdict is Verdict.SLOW_RETRY and failure.unauthorized
        if refused and self._renewable and reconnect.allow_renewal():
            return Verdict.RETRY
        return verdict

    def _users_verdict(self, error: Exception) -> Verdict | None:
        if self._classify is None:
            return None
        try:
            return self._classify(error)
        except Exception as failure:  # noqa: BLE001 - a wrong opinion must not end the listener
            self._log.warning("%s: classify failed with %s", self.name, type(failure).__name__)
            return None


def _report_down(error: PushToPollError, failure: Failure, channel: Channel) -> PushToPollError:
    error.__cause__ = failure.cause
    channel.down(error)
    return error


_MessageT = TypeVar("_MessageT")

MESSAGES_AT_ONCE = 100
"""Messages passed on before other tasks run. A server can send 30,000 events in one read of 256 KiB; a stop, and
the other consumers of the process, would wait for all of them."""


class ReadLoopListener(BaseListener, Generic[_MessageT]):
    """What the listeners have in common that read one message after the other.

    Args:
        url: Where to connect.
        headers: Sent at each connect; see `ListenerCredentials`.
        token: Likewise.
        hint: Makes a push of a message, or says that it is none; `None`: every message is a push.
        classify: Asked first what a failure means; `None`: nobody knows better.
        max_age: Seconds after which a connection is renewed; `None`: never.
        max_silence: Seconds without reading anything after which a connection is taken for dead; `None`: for ever.
        open_timeout: Seconds for headers and token to be given.
        log: Where what happens is told.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: HeaderSource | None,
        token: TokenSource | None,
        hint: Callable[[_MessageT], Push | None] | None,
        classify: Callable[[Exception], Verdict | None] | None,
        max_age: float | None,
        max_silence: float | None,
        open_timeout: float,
        log: logging.Logger,
    ) -> None:
        for name, limit in {"max_age": max_age, "max_silence": max_silence}.items():
            check_number(name, limit, above_zero=True, optional=True)
        check_number("open_timeout", open_timeout, above_zero=True)
        super().__init__(without_secrets(url), classify=classify, log=log)
        self._credentials = ListenerCredentials(headers, token)
        self._renewable = self._credentials.renewable
        self._hints = HintReader(hint, kinds=(Push,), log=log)
        self._max_age = max_age
        self._max_silence = max_silence
        self._open_timeout = open_timeout

    @abc.abstractmethod
    def _connect(self, headers: Mapping[str, str]) -> AbstractAsyncContextManager[Any]:
        """Open a connection. Tests put another one in its place."""

    @abc.abstractmethod
    async def _read(self, connection: Any) -> Sequence[_MessageT]:
        """Wait for something to arrive. Empty: no message, but a sign of life."""

    async def _run_connection(self, channel: Channel, reconnect: ReconnectBackoff) -> Exception | None:
        """Connect and pass pushes on. Returns why the connection is over, `None` if it only reached its age."""
        try:
            headers = await self._credentials.get_headers(within=self._open_timeout)
            async with self._connect(headers) as connection:
                self._opened(connection, channel, reconnect)
                await self._receive(connection, channel)
        except Exception as error:  # noqa: BLE001 - whatever it is, a listener goes on; the verdict tells how
            # The traceback holds the headers, and status keeps the error for long.
            return unwrap_group(error).with_traceback(None)
        self._log.debug("%s: renewing the connection at its age", self.name)
        return None

    def _opened(self, connection: Any, channel: Channel, reconnect: ReconnectBackoff) -> None:  # noqa: ARG002 - for others
        reconnect.connected(anyio.current_time())
        self._log.info("%s: connected", self.name)
        channel.up()

    async def _receive(self, connection: Any, channel: Channel) -> None:
        age = None if self._max_age is None else lifetime(self._max_age, self._fraction())
        passed_on = 0
        with anyio.move_on_after(age):
            while True:
                # Counted over all reads: one that finds a message waiting need not let other tasks run either.
                for message in await self._read_in_time(connection):
                    self._pass_on(message, channel)
                    passed_on += 1
                    if passed_on % MESSAGES_AT_ONCE == 0:
                        await anyio.lowlevel.checkpoint()

    async def _read_in_time(self, connection: Any) -> Sequence[_MessageT]:
        with anyio.move_on_after(self._max_silence):
            return await self._read(connection)
        raise TimeoutError(f"no message for {self._max_silence:g} s")

    def _pass_on(self, message: _MessageT, channel: Channel) -> None:
        push = self._hints.read(message, self.name)
        if push is not None:
            channel.wake(push)
