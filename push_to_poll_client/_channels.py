"""What one listener reports to: the state of its channel, for the schedule and for the status."""

import logging
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from push_to_poll_client._protocols import Listener
from push_to_poll_client._status import ListenerStatus
from push_to_poll_client._types import Push
from push_to_poll_client._validation import describe

__all__ = [
    "ListenerChannel",
]


logger = logging.getLogger("push_to_poll_client")

MAX_STATE = 16_384
"""Characters that a listener may keep: a subscription is a few hundred."""


class ListenerChannel:
    """The channel of one listener of a consumer. Its methods belong to the event loop, `wake` to any thread.

    Args:
        listener: Who reports.
        name: What it is called in status and log; no two channels of a consumer share it.
        wake: Wakes the consumer.
        changed: Told whenever the channel comes up or goes down.
        saved: What the store has under a name; `None`: nothing.
        save: Keeps a text there, between two polls; `None` takes it away.
    """

    def __init__(
        self,
        listener: Listener,
        name: str,
        *,
        wake: Callable[[Push | None], None],
        changed: Callable[["ListenerChannel"], None],
        saved: Callable[[str], str | None],
        save: Callable[[str, str | None], Awaitable[None]],
    ) -> None:
        self.listener = listener
        self.name = name
        self._status = ListenerStatus(name)
        self._running = False
        self._pushes = 0
        self._pushes_lock = threading.Lock()
        self._wake = wake
        self._changed = changed
        self._saved = saved
        self._save = save

    @property
    def status(self) -> ListenerStatus:
        """A snapshot."""
        return replace(self._status, pushes=self._pushes)

    def up(self) -> None:
        """The channel is connected: poll, for what was pushed before is gone."""
        logger.info("%s: up", self.name)
        self._update_status(up=self._running)
        self._wake(None)

    def down(self, error: BaseException | None = None) -> None:
        """The channel is not connected."""
        self._update_status(up=False, error=error)

    def wake(self, push: Push | None = None, /) -> None:
        """A push arrived; `None`: one that said nothing, which promises all the same that there is something."""
        with self._pushes_lock:
            self._pushes += 1
        self._wake(Push() if push is None else push)

    def poll(self) -> None:
        """Poll, though no push arrived."""
        self._wake(None)

    def registered(self, until: float | None, /) -> None:
        """The server pushes until then, in seconds since the epoch; `None`: it does not."""
        self._status = replace(self._status, registered_until=until)

    @property
    def state(self) -> str | None:
        """What the listener saved."""
        return self._saved(self._state_key)

    async def save(self, state: str | None, /) -> None:
        """Keep what the listener has to know after a restart.

        Raises:
            StoreError: It could not be kept.
            ValueError: It is too long.
        """
        if state is not None and len(state) > MAX_STATE:
            raise ValueError(f"{self.name}: {len(state)} characters of state, of {MAX_STATE} at most")
        await self._save(self._state_key, state)

    @property
    def _state_key(self) -> str:
        return f"listener:{self.name}"

    def started(self) -> None:
        """The listener was started; nothing is connected yet."""
        self._running = True
        self._update_status(up=False)

    def stopped(self) -> None:
        """The listener does not run: whatever it says from here on, the channel is down."""
        self._running = False
        self._update_status(up=False)
        self._status = replace(self._status, since=None, registered_until=None)

    def _update_status(self, *, up: bool, error: BaseException | None = None) -> None:
        old = self._status
        since = old.since if up == old.up and old.since is not None else time.time()
        last_error = old.last_error if error is None else describe(error)
        self._status = replace(old, up=up, since=since, last_error=last_error)
        self._changed(self)
