"""Decide what becomes of a message that failed, and count its attempts (G9).

On the disk are times of day, since no other clock outlives a process; here they are times of the event loop, which
do not jump. A clock that was set back between two runs lengthens no wait beyond what it was.

What a handler raises to decide itself goes before `retry`, and that before `on_failure`.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from tenacity import AsyncRetrying, RetryCallState

from push_to_poll_client._event_loop import TimeOfDay
from push_to_poll_client._exceptions import (
    ContentChanged,
    DeadLetterMessage,
    RetryMessage,
    SkipMessage,
    StopConsumer,
    StoreError,
    UndecodableMessage,
)
from push_to_poll_client._json import Decoder
from push_to_poll_client._options import OnFailure, check_failure_policy
from push_to_poll_client._types import Fate, Message
from push_to_poll_client._validation import check_number

__all__ = [
    "Attempt",
    "Attempts",
    "FailureDecision",
    "FailureRules",
]


ATTEMPTS_KEY: Final = "attempts"
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
        changed: Something was, since the last `take_changes()`.

    Raises:
        StoreError: The session kept what this library does not write.
    """

    def __init__(self, state: Mapping[str, str], time_of_day: TimeOfDay) -> None:
        try:
            self._attempts = _decode(state.get(ATTEMPTS_KEY, "{}"))
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

    def record_failure(self, key: str) -> Attempt:
        """It was tried once more and failed."""
        before = self._attempts.pop(key, None)
        now = self.now
        attempt = Attempt(1, now) if before is None else Attempt(before.count + 1, before.first)
        self._keep(key, attempt)
        return attempt

    def postpone(self, key: str, delay: float) -> None:
        """It may be tried again in so many seconds."""
        attempt = self._attempts.get(key) or self.record_failure(key)  # more fail at a time than it is kept of
        self._keep(key, Attempt(attempt.count, attempt.first, self.now + delay, delay))

    def discard(self, key: str) -> None:
        """It is no failing message any more."""
        if self._attempts.pop(key, None) is not None:
            self.changed = True

    def forget(self) -> None:
        """The session has forgotten them: whatever comes is tried anew."""
        self._attempts.clear()
        self.changed = False

    def seconds_left(self, key: str) -> float:
        """Seconds until it may be tried; 0: now."""
        attempt = self._attempts.get(key)
        return 0.0 if attempt is None else min(max(attempt.again - self.now, 0.0), attempt.delay)

    def take_changes(self) -> dict[str, str | None]:
        """What is to be committed as the session's state; empty when nothing changed since the last call."""
        if not self.changed:
            return {}
        self.changed = False
        return {ATTEMPTS_KEY: msgspec.json.encode(self._attempts).decode() if self._attempts else None}

    @property
    def now(self) -> float:
        """Seconds since the epoch."""
        return self._time_of_day.now()

    def _keep(self, key: str, attempt: Attempt) -> None:
        self._attempts[key] = attempt
        self.changed = True
        if len(self._attempts) > MAX_FAILING:
            del self._attempts[next(iter(self._attempts))]


NOT_RETRYABLE = (UndecodableMessage, ContentChanged)
"""What trying again does not change."""


@dataclass(frozen=True, slots=True)
class FailureDecision:
    """What becomes of a message, and for `AGAIN` in how many seconds."""

    fate: Fate
    delay: float = 0.0


HANDLER_DECISIONS = {DeadLetterMessage: Fate.DEAD_LETTER, SkipMessage: Fate.SKIP, StopConsumer: Fate.STOP}


class FailureRules:
    """The user's policy.

    Args:
        retry: When to try a message again: the strategies `retry`, `postpone` and `stop` of it; `None`: never.
        on_failure: What becomes of a message that is not tried again.
    """

    def __init__(self, retry: AsyncRetrying | None, on_failure: OnFailure) -> None:
        self._retry = retry
        self._on_failure = on_failure

    async def decide(
        self,
        message: Message,
        error: Exception,
        attempt: Attempt,
        now: float,
        before_wait: Callable[[], Awaitable[None]],
    ) -> FailureDecision:
        """Decide.

        Args:
            message: What failed.
            error: Why.
            attempt: What is known of its attempts, this one included.
            now: Seconds since the epoch.
            before_wait: Called before a coroutine of the user's is awaited.

        Raises:
            Exception: What a callable of the user's raises.
        """
        if isinstance(error, RetryMessage):
            return FailureDecision(Fate.AGAIN, error.after)
        for verdict, fate in HANDLER_DECISIONS.items():
            if isinstance(error, verdict):
                return FailureDecision(fate)
        if self._retry is not None and not isinstance(error, NOT_RETRYABLE):
            delay = await _retry_delay(self._retry, message, error, attempt, now, before_wait)
            if delay is not None:
                return FailureDecision(Fate.AGAIN, delay)
        policy = self._on_failure
        said = await _resolve(policy(message, error), before_wait) if callable(policy) else policy
        return FailureDecision(Fate(check_failure_policy(said)))


async def _retry_delay(  # noqa: PLR0917  # as for `decide`
    retry: AsyncRetrying,
    message: Message,
    error: Exception,
    attempt: Attempt,
    now: float,
    before_wait: Callable[[], Awaitable[None]],
) -> float | None:
    """What tenacity's loop would do, from its strategies alone: that loop waits where nothing may be open.

    Returns:
        Seconds until the next attempt; `None`: no further one.
    """
    state = RetryCallState(retry, None, (message,), {})
    state.attempt_number = attempt.count
    state.set_exception((type(error), error, error.__traceback__))
    assert state.outcome_timestamp is not None  # just set  # noqa: S101
    state.start_time = state.outcome_timestamp - max(0.0, now - attempt.first)
    if not await _resolve(retry.retry(state), before_wait):
        return None
    state.upcoming_sleep = await _resolve(retry.wait(state), before_wait)
    check_number("what retry.wait returns", state.upcoming_sleep)
    return None if await _resolve(retry.stop(state), before_wait) else state.upcoming_sleep


async def _resolve(said: Any, before_wait: Callable[[], Awaitable[None]]) -> Any:
    """What a function of the user's returned, which may be a coroutine function."""
    if not inspect.isawaitable(said):
        return said
    await before_wait()
    return await said
