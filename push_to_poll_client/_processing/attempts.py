"""How often was each failing message tried, and when may it be again? Kept over restarts, as part of a commit.

On the disk are times of day, since no other clock outlives a process; here they are times of the event loop, which
do not jump. A clock that was set back between two runs lengthens no wait beyond what it was.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from push_to_poll_client._event_loop import TimeOfDay
from push_to_poll_client._exceptions import StoreError
from push_to_poll_client._json import Decoder

__all__ = ["Attempt", "Attempts"]

NAME: Final = "attempts"
"""What it is called in a session's state."""

MAX_FAILING: Final = 10_000
"""Messages of which it is kept, and as many may be under way or wait. Beyond, those go first that failed longest
ago: they did not come again."""


class Attempt(msgspec.Struct, array_like=True, frozen=True):
    """What is known of a failing message.

    Attributes:
        count: How often it was tried.
        first: When it failed first, in seconds since the epoch.
        again: When it may be tried again, likewise.
        delay: Seconds from its last failure to then.
    """

    count: int
    first: float
    again: float = 0.0
    delay: float = 0.0


_decode = Decoder(dict[str, Attempt]).decode


class Attempts:
    """The attempts of one session's failing messages, by dedupe key.

    Args:
        state: What the session kept.
        time_of_day: Of the event loop.

    Attributes:
        changed: Something was, since the last `change()`.

    Raises:
        StoreError: The session kept what this library does not write.
    """

    def __init__(self, state: Mapping[str, str], time_of_day: TimeOfDay) -> None:
        try:
            self._attempts = _decode(state.get(NAME, "{}"))
        except (ValueError, RecursionError) as error:
            raise StoreError(
                f"the attempts of failing messages cannot be read from the store: {error}; it is damaged, or was "
                "written by another version"
            ) from error
        self._time_of_day = time_of_day
        self.changed = False

    def __len__(self) -> int:
        return len(self._attempts)

    def knows(self, key: str) -> bool:
        """Whether it is a failing message."""
        return key in self._attempts

    def failed(self, key: str) -> Attempt:
        """It was tried once more and failed."""
        before = self._attempts.pop(key, None)
        now = self.now
        attempt = Attempt(1, now) if before is None else Attempt(before.count + 1, before.first)
        self._keep(key, attempt)
        return attempt

    def wait(self, key: str, delay: float) -> None:
        """It may be tried again in so many seconds."""
        attempt = self._attempts.get(key) or self.failed(key)  # more fail at a time than it is kept of
        self._keep(key, Attempt(attempt.count, attempt.first, self.now + delay, delay))

    def settled(self, key: str) -> None:
        """It is no failing message any more."""
        if self._attempts.pop(key, None) is not None:
            self.changed = True

    def forget(self) -> None:
        """The session has forgotten them: whatever comes is tried anew."""
        self._attempts.clear()
        self.changed = False

    def left(self, key: str) -> float:
        """Seconds until it may be tried; 0: now."""
        attempt = self._attempts.get(key)
        return 0.0 if attempt is None else min(max(attempt.again - self.now, 0.0), attempt.delay)

    def change(self) -> dict[str, str | None]:
        """What is to be committed as the session's state; empty when nothing changed since the last call."""
        if not self.changed:
            return {}
        self.changed = False
        return {NAME: msgspec.json.encode(self._attempts).decode() if self._attempts else None}

    @property
    def now(self) -> float:
        """Seconds since the epoch."""
        return self._time_of_day.now()

    def _keep(self, key: str, attempt: Attempt) -> None:
        self._attempts[key] = attempt
        self.changed = True
        if len(self._attempts) > MAX_FAILING:
            del self._attempts[next(iter(self._attempts))]
