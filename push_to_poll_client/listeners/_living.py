"""THE LIFE OF A CHANNEL, the same for all kinds: a connection, see why it ended, wait, another connection.

Nothing that arrives is data, so nothing that is lost is missed for good: every connect wakes, for what was pushed
before it is gone. A kind of channel says how a connection lives and what a failure means; when to connect again is
`_reconnect.py`'s.
"""

import abc
import logging
import random
from collections.abc import Callable

import anyio

from push_to_poll_client._exceptions import ListenerError, PushToPollError
from push_to_poll_client._protocols import Channel
from push_to_poll_client._types import Push
from push_to_poll_client.listeners._failure import Failure
from push_to_poll_client.listeners._reconnect import Reconnect, Verdict

__all__ = ["LeftAlone", "LivingListener"]


class LeftAlone(PushToPollError):
    """The server asks not to connect again. Raised by `_connect`."""


class LivingListener(abc.ABC):
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
    async def _one_connection(self, channel: Channel, reconnect: Reconnect) -> Exception | None:
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
        reconnect = Reconnect()
        while True:
            error = await self._one_connection(channel, reconnect)
            reconnect.ended(anyio.current_time())
            if isinstance(error, LeftAlone):
                self._log.info("%s: %s", self.name, error)
                channel.down(error)
                return
            if error is not None:
                await anyio.sleep(self._delay_after(error, channel, reconnect))

    def _delay_after(self, error: Exception, channel: Channel, reconnect: Reconnect) -> float:
        """Report the failure, and say how many seconds to wait after it."""
        failure = self._failure(error)
        if failure.hid_a_push:
            channel.wake(Push())
        verdict = self._judge(error, failure, reconnect)
        delay = reconnect.delay(verdict, fraction=self._fraction(), retry_after=failure.retry_after)
        what = f"{self.name}: {failure.sentence}"
        if delay is None:
            self._log.error("%s; giving up", what)
            broken = ListenerError(f"{what}; trying again cannot help: correct or remove it")
            raise _told(broken, failure, channel)
        self._log.info("%s; connecting again in %.1f s", what, delay)
        _told(PushToPollError(what), failure, channel)
        return delay

    def _judge(self, error: Exception, failure: Failure, reconnect: Reconnect) -> Verdict:
        verdict = self._users_verdict(error) or failure.verdict
        refused = verdict is Verdict.SLOW_RETRY and failure.unauthorized
        if refused and self._renewable and reconnect.renew():
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


def _told(error: PushToPollError, failure: Failure, channel: Channel) -> PushToPollError:
    error.__cause__ = failure.cause
    channel.down(error)
    return error
