"""What one listener reports to: the state of its channel, kept for the schedule and for the operator."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from push_to_poll_client._status import ListenerStatus
from push_to_poll_client._text import describe
from push_to_poll_client._types import Listener, Push

__all__ = ["ListenerChannel"]

logger = logging.getLogger("push_to_poll_client")


class ListenerChannel:
    """The channel of one listener of a consumer. Its methods belong to the event loop, `wake` to any thread.

    Args:
        listener: Who reports.
        name: What it is called in status and log; no two channels of a consumer share it.
        wake: Wakes the consumer.
        changed: Told whenever the channel comes up or goes down.
    """

    def __init__(
        self,
        listener: Listener,
        name: str,
        *,
        wake: Callable[[Push | None], None],
        changed: Callable[["ListenerChannel"], None],
    ) -> None:
        self.listener = listener
        self.status = ListenerStatus(name)
        self._wake = wake
        self._changed = changed

    def up(self) -> None:
        """The channel is connected: poll, for what was pushed before is gone."""
        logger.info("%s: up", self.status.name)
        self._set(up=True)
        self._wake(None)

    def down(self, error: BaseException | None = None) -> None:
        """The channel is not connected."""
        self._set(up=False, error=error)

    def wake(self, push: Push | None = None, /) -> None:
        """A push arrived; `None`: one that said nothing, which promises all the same that there is something."""
        self.status = replace(self.status, pushes=self.status.pushes + 1)
        self._wake(Push() if push is None else push)

    def started(self) -> None:
        """The listener was started; nothing is connected yet."""
        self._set(up=False)

    def stopped(self) -> None:
        """The listener does not run."""
        self._set(up=False)
        self.status = replace(self.status, since=None)

    def _set(self, *, up: bool, error: BaseException | None = None) -> None:
        since = self.status.since if up == self.status.up and self.status.since is not None else time.time()
        last_error = self.status.last_error if error is None else describe(error)
        self.status = replace(self.status, up=up, since=since, last_error=last_error)
        self._changed(self)
