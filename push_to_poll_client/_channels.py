"""The way of a push, from a listener's channel to the event loop.

`ListenerChannel` is what a listener reports to. It keeps the channel's status, and puts pushes among the `Wakes`.
These may come from any thread; they are bounded, and none is lost. A wake is put into a list, and the event loop
is asked to empty the list, unless it was already asked. While no loop runs, wakes stay in the list until the next
one opens it.
"""

import logging
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial

from push_to_poll_client._event_loop import EventLoop
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._protocols import Listener
from push_to_poll_client._schedule import Schedule
from push_to_poll_client._status import ListenerStatus
from push_to_poll_client._types import NO_HINT, Push
from push_to_poll_client._validation import describe

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

CAPACITY = 64
"""Pushes kept one by one while the loop is busy or not running (G11). Any further ones become a single push
without a hint."""


class Wakes:
    """The wakes that are on their way to the event loop."""

    def __init__(self) -> None:
        self._deliver: Callable[[Push | None], None] | None = None
        self._lock = threading.RLock()  # a signal handler may run while its own thread holds the lock
        self._pushes: list[Push | None] = []
        self._loop: EventLoop | None = None
        self._drain_scheduled = False

    def put(self, push: Push | None) -> None:
        """Add a wake, from any thread. Never blocks on the event loop.

        Raises:
            TypeError: It is neither a `Push` nor `None`. It would fail in the event loop, and take others with it.
        """
        if not isinstance(push, Push | None):
            raise TypeError(f"a push is a Push or None, not {type(push).__name__}")
        with self._lock:
            if len(self._pushes) < CAPACITY:
                self._pushes.append(push)
            else:
                self._pushes[-1] = NO_HINT  # without a hint, so that the schedule cannot drop it
            if self._loop is None or self._drain_scheduled:
                return
            loop, self._drain_scheduled = self._loop, True
        if not loop.call(partial(self._drain, loop)):  # it has ended; the next one takes the pushes
            with self._lock:
                self._drain_scheduled = False

    def open(self, loop: EventLoop, deliver: Callable[[Push | None], None]) -> None:
        """From now on call `deliver` in this loop with each push, first with those that wait here."""
        with self._lock:
            self._loop, self._deliver, self._drain_scheduled = loop, deliver, False
        self._drain(loop)

    def close(self) -> None:
        """Deliver no more; later pushes are kept for the next loop."""
        with self._lock:
            self._loop = self._deliver = None

    def _drain(self, loop: EventLoop) -> None:
        with self._lock:
            if self._loop is not loop:  # it was asked before the wakes were closed, or opened in another loop
                return
            self._drain_scheduled = False
            deliver, pushes, self._pushes = self._deliver, self._pushes, []
        assert deliver is not None  # as long as there is a loop  # noqa: S101
        for push in pushes:
            deliver(push)


MAX_STATE = 16_384
"""Characters of state that a listener may save: a subscription takes a few hundred."""


@dataclass(kw_only=True, eq=False, repr=False)
class ListenerChannel:
    """The channel of one listener of a consumer.

    `wake` may be called from any thread, all other methods only in the event loop.

    Attributes:
        listener: The listener.
        name: Its name in status and log, unique among the channels of a consumer.
        wakes: Where pushes are put, for the consumer.
        schedule: Is told whether the channel is up, and counts the messages that no push announced.
        changed: Called whenever the channel comes up or goes down.
        saved_state: Returns the text that the store has under a name; `None` if it has none.
        save_state: Saves a text under a name, between two polls; `None` deletes it.
    """

    listener: Listener
    name: str
    wakes: Wakes
    schedule: Schedule
    changed: Callable[[], None]
    saved_state: Callable[[str], str | None]
    save_state: Callable[[str, str | None], Awaitable[None]]
    _running: bool = field(default=False, init=False)
    _pushes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._status = ListenerStatus(self.name)
        self._pushes_lock = threading.Lock()

    @property
    def status(self) -> ListenerStatus:
        """A snapshot of the listener's status."""
        return replace(self._status, pushes=self._pushes)

    def up(self) -> None:
        """Report that the channel is connected, and poll, since pushes before that are lost."""
        # A connection that is renewed, or that the server ends after each push, does not make the channel new.
        logger.log(logging.DEBUG if self._status.up else logging.INFO, "%s: up", self.name)
        self._update_status(up=self._running)
        self.wakes.put(None)

    def down(self, error: BaseException | None = None) -> None:
        """Report that the channel is not connected."""
        self._update_status(up=False, error=error)

    def wake(self, push: Push | None = None, /) -> None:
        """Report a push; `None` for one without metadata, which still means that there is something to poll."""
        with self._pushes_lock:
            self._pushes += 1
        self.wakes.put(NO_HINT if push is None else push)

    def request_poll(self) -> None:
        """Request a poll, though no push arrived."""
        self.wakes.put(None)

    def subscribed(self, until: float | None, /) -> None:
        """Report until when the server pushes, in seconds since the epoch; `None` if it does not."""
        self._status = replace(self._status, subscribed_until=until)

    @property
    def missed_in_a_row(self) -> int:
        """Timer polls in a row that found messages which no push had announced."""
        return self.schedule.missed_in_a_row

    @property
    def state(self) -> str | None:
        """The text that the listener has saved; `None` if it has saved none."""
        return self.saved_state(self._state_key)

    async def save(self, state: str | None, /) -> None:
        """Save a text that the listener needs after a restart; `None` deletes it.

        Raises:
            StoreError: The store failed. One that may recover (`StoreUnavailable`) is waited for.
            ValueError: The text is too long.
        """
        if state is not None and len(state) > MAX_STATE:
            raise ValueError(f"{self.name}: {len(state)} characters of state, of {MAX_STATE} at most")
        await self.save_state(self._state_key, state)

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
        self._status = replace(self._status, since=None, subscribed_until=None)

    def _update_status(self, *, up: bool, error: BaseException | None = None) -> None:
        old = self._status
        since = old.since if up == old.up and old.since is not None else time.time()
        last_error = old.last_error if error is None else describe(error)
        self._status = replace(old, up=up, since=since, last_error=last_error)
        self.schedule.set_channel(self.name, up=up)
        self.changed()
