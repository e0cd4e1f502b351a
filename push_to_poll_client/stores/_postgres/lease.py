"""The lease of a claimed name, as the process of its owner sees it.

The server decides who owns a name, by its own clock. The owner stops earlier: at the time before its last request
was sent, plus the length of the lease.
"""

import time
from collections.abc import Callable

from push_to_poll_client._event_loop import EventLoop
from push_to_poll_client._types import Push

SPREAD = 0.05
"""Part of a lease over which the replicas that stand by spread their next try: 0.5 s of 10 s."""

MAX_SILENCE = 60.0
"""Seconds. A lease is not renewed if the event loop of its consumer has not run for this time."""

_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)  # on Linux


def lease_clock() -> float:
    """Return seconds of a clock that also counts while the machine is suspended, where the system has one."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


def lease_end(requested: float, lease: float) -> float:
    """Return the time at which the owner must stop using its lease.

    The server counts from the moment at which it granted the lease. That is after the request was sent, so the
    owner stops before another replica can claim the name, however long the request or its answer took.

    Args:
        requested: Time before the claim or the heartbeat was sent.
        lease: Length of the lease in seconds.
    """
    return requested + lease


def next_try(requested: float, seconds_left: float, lease: float, jitter: float) -> float:
    """Return the time at which a replica that stands by tries to claim the name again.

    Counted from the request, not from its answer: a slow answer must not delay the take-over. If the request was
    the slow part, the try comes early, and the next answer corrects it.

    Args:
        requested: Time before the request was sent that found the name owned.
        seconds_left: Time until the end of the other owner's lease, as the server answered.
        lease: Length of the lease in seconds.
        jitter: Random number from 0 to 1, so that not all replicas try at the same time.
    """
    return requested + seconds_left + SPREAD * lease * jitter


class Lease:
    """The lease of one claim. Read and changed by any thread."""

    def __init__(
        self, consumer: int, digest: bytes, owner: bytes, *, ends: float, clock: Callable[[], float]
    ) -> None:
        self.consumer: int = consumer  # id of the row
        self.digest: bytes = digest  # of the name
        self.owner: bytes = owner
        self.ends: float = ends  # on the clock
        self.wanted: bool = False
        self.is_over: bool = False  # released, refused by the server, or ended by a commit in doubt
        self.is_released: bool = False  # or claimed again
        self.is_dropped: bool = False  # its session was dropped without a release
        self.changed: Callable[[], None] | None = None
        self.wake: Callable[[Push | None], None] | None = None
        self._clock = clock
        self._loop = EventLoop()
        self._asked_at: float | None = None  # since when the event loop has not answered
        self._told_lost = False

    @property
    def lost(self) -> bool:
        """True if the owner must not use the name any more."""
        return self.is_over or self._clock() >= self.ends

    @property
    def may_be_renewed(self) -> bool:
        """True if the consumer is still running: its event loop answers within `MAX_SILENCE`."""
        # Counted from the first question without an answer: two renewals of a long lease can be further apart.
        now, asked_at = self._clock(), self._asked_at
        if asked_at is None:
            asked_at = self._asked_at = now
        return self._loop.call(self._note_answer) and now - asked_at < MAX_SILENCE

    def _note_answer(self) -> None:
        self._asked_at = None

    def want(self) -> None:
        """Note that the owner is to hand over, and tell it once."""
        if not self.wanted:
            self.wanted = True
            self.tell()

    def end(self) -> None:
        """Note that the session has ended, and tell its consumer once."""
        self.is_over = True
        self.tell_loss()

    def tell_loss(self) -> None:
        """Tell the consumer once that the session is lost."""
        if not self._told_lost:
            self._told_lost = True
            self.tell()

    def tell(self) -> None:
        """Tell the consumer that the session is lost or wanted."""
        if (changed := self.changed) is not None:
            changed()

    def pass_on(self, push: Push | None) -> None:
        """Pass a forwarded wake on, if the session is not lost."""
        if (wake := self.wake) is not None and not self.lost:
            wake(push)
