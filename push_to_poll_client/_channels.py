"""Carry pushes from a listener, in any thread, to the event loop.

`ListenerChannel` is the interface that a listener reports to. It keeps the channel's status and puts pushes into
`Wakes`: a bounded list that loses no wake. The event loop is asked to empty the list, unless it was already asked.
While no loop runs, wakes stay in the list for the next one.
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

# Pushes kept one by one while the loop is busy or not running (G11). Further ones are merged into one push without
# a hint.
CAPACITY = 64


class Wakes:
    """Wakes on their way to the event loop."""

    def __init__(self) -> None:
        self._deliver: Callable[[Push | None], None] | None = None
        self._lock = threading.RLock()  # a signal handler may run while its own thread holds the lock
        self._pushes: list[Push | None] = []
        self._loop: EventLoop | None = None
        self._drain_scheduled = False

    def put(self, push: Push | None) -> None:
        """Add a wake, from any thread. Never blocks on the event loop."""
        if not isinstance(push, Push | None):
            # Raised here: in the event loop the error would also stop the delivery of other pushes.
            raise TypeError(f"push must be a Push or None, got {type(push).__name__}")
        with self._lock:
            if len(self._pushes) < CAPACITY:
                self._pushes.append(push)
            else:
                self._pushes[-1] = NO_HINT  # without a hint, so that the schedule cannot drop it
            if self._loop is None or self._drain_scheduled:
                return
            loop, self._drain_scheduled = self._loop, True
        if not loop.call(partial(self._drain, loop)):  # the loop has ended; the next one takes the pushes
            with self._lock:
                self._drain_scheduled = False

    def open(self, loop: EventLoop, deliver: Callable[[Push | None], None]) -> None:
        """Call `deliver` in this loop for each push, waiting ones first."""
        with self._lock:
            self._loop, self._deliver, self._drain_scheduled = loop, deliver, False
        self._drain(loop)

    def close(self) -> None:
        """Stop delivering; keep later pushes for the next loop."""
        with self._lock:
            self._loop = self._deliver = None

    def _drain(self, loop: EventLoop) -> None:
        with self._lock:
            if self._loop is not loop:  # the wakes were closed meanwhile, or opened in another loop
                return
            self._drain_scheduled = False
            deliver, pushes, self._pushes = self._deliver, self._pushes, []
        assert deliver is not None  # as long as there is a loop  # noqa: S101
        for push in pushes:
            deliver(push)


# Characters of state that a listener may save; a subscription needs a few hundred.
MAX_STATE = 16_384


@dataclass(kw_only=True, eq=False, repr=False)
class ListenerChannel:
    """The channel of one listener. `wake` may be called from any thread, the rest in the event loop."""

    listener: Listener
    name: str  # unique among the channels of a consumer
    wakes: Wakes
    schedule: Schedule
    changed: Callable[[], None]
    saved_state: Callable[[str], str | None]
    save_state: Callable[[str, str | None], Awaitable[None]]  # between two polls; None deletes the text
    run_while_owner: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]
    _running: bool = field(default=False, init=False)
    _pushes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._status = ListenerStatus(self.name)
        self._pushes_lock = threading.Lock()

    @property
    def status(self) -> ListenerStatus:
        return replace(self._status, pushes=self._pushes)

    def up(self) -> None:
        """Report that the channel is connected, and poll, because earlier pushes are lost."""
        # DEBUG if it was up: some connections are renewed, or ended by the server after each push.
        logger.log(logging.DEBUG if self._status.up else logging.INFO, "%s: up", self.name)
        self._update_status(up=self._running)
        self.wakes.put(None)

    def down(self, error: BaseException | None = None) -> None:
        self._update_status(up=False, error=error)

    def wake(self, push: Push | None = None, /) -> None:
        """Report a push; `None` for a push without a hint."""
        with self._pushes_lock:
            self._pushes += 1
        self.wakes.put(NO_HINT if push is None else push)

    def request_poll(self) -> None:
        """Request a poll although no push arrived."""
        self.wakes.put(None)

    def subscribed(self, until: float | None, /) -> None:
        """Report the time until which the server pushes; `None` if it does not."""
        self._status = replace(self._status, subscribed_until=until)

    @property
    def missed_in_a_row(self) -> int:
        """Consecutive timer polls that found messages without a push."""
        return self.schedule.missed_in_a_row

    @property
    def state(self) -> str | None:
        """Text that the listener saved last; `None` if none."""
        return self.saved_state(self._state_key)

    async def save(self, state: str | None, /) -> None:
        """Save a text for later runs; `None` deletes it. Waits while the store is unavailable."""
        if state is not None and len(state) > MAX_STATE:
            raise ValueError(f"{self.name}: state must have at most {MAX_STATE} characters, got {len(state)}")
        await self.save_state(self._state_key, state)

    async def while_owner(self, work: Callable[[], Awaitable[None]], /) -> None:
        """Run a function whenever the consumer owns its name."""
        await self.run_while_owner(work)

    @property
    def _state_key(self) -> str:
        return f"listener:{self.name}"

    def started(self) -> None:
        """Record that the listener runs; it is not connected yet."""
        self._running = True
        self._update_status(up=False)

    def stopped(self) -> None:
        """Record that the listener has ended; later reports are ignored."""
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
