"""The channel of one listener: its state, for the schedule and the status, and its way to wake the consumer."""

import logging
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._protocols import Listener
from push_to_poll_client._status import ListenerStatus
from push_to_poll_client._types import Push
from push_to_poll_client._validation import describe

__all__ = ["ListenerChannel"]


logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

MAX_STATE = 16_384
"""Characters of state that a listener may save: a subscription takes a few hundred."""


class ListenerChannel:
    """The channel of one listener of a consumer.

    `wake` may be called from any thread, all other methods only in the event loop.

    Args:
        listener: The listener.
        name: Its name in status and log, unique among the channels of a consumer.
        wake: Wakes the consumer.
        changed: Called whenever the channel comes up or goes down.
        saved: Returns the text that the store has under a name; `None` if it has none.
        save: Saves a text under a name, between two polls; `None` deletes it.
        missed: Returns how many timer polls in a row found messages that no push had announced.
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
        missed: Callable[[], int],
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
        self._missed = missed

    @property
    def status(self) -> ListenerStatus:
        """A snapshot of the listener's status."""
        return replace(self._status, pushes=self._pushes)

    def up(self) -> None:
        """Report that the channel is connected, and poll, since pushes before that are lost."""
        # A connection that is renewed, or that the server ends after each push, does not make the channel new.
        logger.log(logging.DEBUG if self._status.up else logging.INFO, "%s: up", self.name)
        self._update_status(up=self._running)
        self._wake(None)

    def down(self, error: BaseException | None = None) -> None:
        """Report that the channel is not connected."""
        self._update_status(up=False, error=error)

    def wake(self, push: Push | None = None, /) -> None:
        """Report a push; `None` for one without metadata, which still means that there is something to poll."""
        with self._pushes_lock:
            self._pushes += 1
        self._wake(Push() if push is None else push)

    def poll(self) -> None:
        """Request a poll, though no push arrived."""
        self._wake(None)

    def registered(self, until: float | None, /) -> None:
        """Report until when the server pushes, in seconds since the epoch; `None` if it does not."""
        self._status = replace(self._status, registered_until=until)

    @property
    def missed_in_a_row(self) -> int:
        """Timer polls in a row that found messages which no push had announced."""
        return self._missed()

    @property
    def state(self) -> str | None:
        """The text that the listener has saved; `None` if it has saved none."""
        return self._saved(self._state_key)

    async def save(self, state: str | None, /) -> None:
        """Save a text that the listener needs after a restart; `None` deletes it.

        Raises:
            StoreError: The store failed. One that may recover (`StoreUnavailable`) is waited for.
            ValueError: The text is too long.
        """
        if state is not None and len(state) > MAX_STATE:
            raise ValueError(f"{self.name}: {len(state)} characters of state, of {MAX_STATE} at most")
        await self._save(self._state_key, state)

    @property
    def _state_key(self) -> str:
        return f"listener:{self.name}"

    def started(self) -> None:
        """Record that the listener was started; it is not connected yet."""
        self._running = True
        self._update_status(up=False)

    def stopped(self) -> None:
        """Record that the listener has ended. Whatever it reports later, the channel is down."""
        self._running = False
        self._update_status(up=False)
        self._status = replace(self._status, since=None, registered_until=None)

    def _update_status(self, *, up: bool, error: BaseException | None = None) -> None:
        old = self._status
        since = old.since if up == old.up and old.since is not None else time.time()
        last_error = old.last_error if error is None else describe(error)
        self._status = replace(old, up=up, since=since, last_error=last_error)
        self._changed(self)
