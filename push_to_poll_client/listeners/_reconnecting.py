"""ONE CONNECTION AFTER THE OTHER: connect with headers and token, and pass on as a push what can be read."""

import abc
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

import anyio
import anyio.lowlevel

from push_to_poll_client._http.credentials import HeaderSource, ListenerCredentials, TokenSource
from push_to_poll_client._http.origins import without_secrets
from push_to_poll_client._protocols import Channel
from push_to_poll_client._types import Push
from push_to_poll_client._validation import check_number
from push_to_poll_client.listeners._failure import only
from push_to_poll_client.listeners._hints import Hints
from push_to_poll_client.listeners._living import LivingListener
from push_to_poll_client.listeners._reconnect import Reconnect, Verdict, lifetime

__all__ = ["ReconnectingListener"]

_MessageT = TypeVar("_MessageT")

MESSAGES_AT_ONCE = 100
"""Messages passed on before other tasks run. A server can send 30,000 events in one read of 256 KiB; a stop, and
the other consumers of the process, would wait for all of them."""


class ReconnectingListener(LivingListener, Generic[_MessageT]):
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
        self._hints = Hints(hint, kinds=(Push,), log=log)
        self._max_age = max_age
        self._max_silence = max_silence
        self._open_timeout = open_timeout

    @abc.abstractmethod
    def _connect(self, headers: Mapping[str, str]) -> AbstractAsyncContextManager[Any]:
        """Open a connection. Tests put another one in its place."""

    @abc.abstractmethod
    async def _read(self, connection: Any) -> Sequence[_MessageT]:
        """Wait for something to arrive. Empty: no message, but a sign of life."""

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
        self._log.debug("%s: renewing the connection at its age", self.name)
        return None

    def _opened(self, connection: Any, channel: Channel, reconnect: Reconnect) -> None:  # noqa: ARG002 - for others
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
        push = self._hints.of(message, self.name)
        if push is not None:
            channel.wake(push)
