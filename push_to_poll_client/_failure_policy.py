"""Decide what becomes of a message that failed, and count its attempts (G9).

The decision is made by the first of these that applies: an exception that the handler raises to decide itself
(`RetryMessage`, `DeadLetterMessage`, `SkipMessage`, `StopConsumer`), the option `retry`, the option `on_failure`.

Attempts are stored with times of day, since no other clock outlives a process. While a process runs, the time of
day is read from the event loop's clock, which does not jump. If the system's clock is set back between two runs, a
wait does not become longer than it was.
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

__all__ = ["Attempt", "Attempts", "FailureDecision", "FailureRules"]


ATTEMPTS_KEY: Final = "attempts"
"""Name of the attempts in a session's state."""

MAX_FAILING: Final = 10_000
"""Failing messages whose attempts are kept (G11); as many may be in progress or wait. Beyond that, the message
that failed longest ago is dropped first: it did not come again."""


class Attempt(msgspec.Struct, array_like=True, frozen=True):
    """The attempts of one failing message, as they are stored.

    Attributes:
        count: How often it was tried.
        first: When it failed first, in seconds since the epoch.
        again: When it may be tried again, in seconds since the epoch.
        delay: Seconds from its last failure to `again`.
    """

    count: int
    first: float
    again: float = 0.0
    delay: float = 0.0


_decode = Decoder(dict[str, Attempt]).decode


class Attempts:
    """The attempts of one session's failing messages, by dedupe key.

    Args:
        state: The session's state.
        time_of_day: The time of day by the event loop's clock.

    Attributes:
        changed: Whether anything has changed since the last `take_changes()`.

    Raises:
        StoreError: The state has a value that this library does not write.
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
        """Whether the key belongs to a failing message."""
        return key in self._attempts

    def record_failure(self, key: str) -> Attempt:
        """Count one more failed attempt."""
        before = self._attempts.pop(key, None)
        now = self.now
        attempt = Attempt(1, now) if before is None else Attempt(before.count + 1, before.first)
        self._set(key, attempt)
        return attempt

    def postpone(self, key: str, delay: float) -> None:
        """Allow the next attempt in `delay` seconds."""
        # The entry is missing if more than MAX_FAILING messages fail at a time.
        attempt = self._attempts.get(key) or self.record_failure(key)
        self._set(key, Attempt(attempt.count, attempt.first, self.now + delay, delay))

    def discard(self, key: str) -> None:
        """Forget the attempts of one message, which is settled or stops the consumer."""
        if self._attempts.pop(key, None) is not None:
            self.changed = True

    def forget(self) -> None:
        """Forget all attempts, since the session has forgotten them: every message is tried anew."""
        self._attempts.clear()
        self.changed = False

    def seconds_left(self, key: str) -> float:
        """Seconds until the message may be tried; 0 if it may be now."""
        attempt = self._attempts.get(key)
        return 0.0 if attempt is None else min(max(attempt.again - self.now, 0.0), attempt.delay)

    def take_changes(self) -> dict[str, str | None]:
        """Changes of the session's state to commit; empty if nothing has changed since the last call."""
        if not self.changed:
            return {}
        self.changed = False
        return {ATTEMPTS_KEY: msgspec.json.encode(self._attempts).decode() if self._attempts else None}

    @property
    def now(self) -> float:
        """Seconds since the epoch."""
        return self._time_of_day.now()

    def _set(self, key: str, attempt: Attempt) -> None:
        self._attempts[key] = attempt
        self.changed = True
        if len(self._attempts) > MAX_FAILING:
            del self._attempts[next(iter(self._attempts))]


NOT_RETRYABLE = (UndecodableMessage, ContentChanged)
"""Failures that another attempt does not change."""


@dataclass(frozen=True, slots=True)
class FailureDecision:
    """The fate of a message that failed, and for `AGAIN` the seconds until its next attempt."""

    fate: Fate
    delay: float = 0.0


HANDLER_DECISIONS = {DeadLetterMessage: Fate.DEAD_LETTER, SkipMessage: Fate.SKIP, StopConsumer: Fate.STOP}


class FailureRules:
    """The rules for messages that fail, as the user has set them.

    Args:
        retry: When to try a message again, by the strategies `retry`, `wait` and `stop` of this object; `None` for
            never.
        on_failure: The policy for a message that is not tried again.
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
        """Decide the fate of a message that failed.

        Args:
            message: The message.
            error: Why it failed.
            attempt: Its attempts, this one included.
            now: Seconds since the epoch.
            before_wait: Called before a coroutine of the user is awaited.

        Raises:
            Exception: A function of the user raised it.
        """
        if isinstance(error, RetryMessage):
            return FailureDecision(Fate.AGAIN, error.after)
        for decision, fate in HANDLER_DECISIONS.items():
            if isinstance(error, decision):
                return FailureDecision(fate)
        if self._retry is not None and not isinstance(error, NOT_RETRYABLE):
            delay = await _retry_delay(self._retry, message, error, attempt, now, before_wait)
            if delay is not None:
                return FailureDecision(Fate.AGAIN, delay)
        policy = self._on_failure
        chosen = await _resolve(policy(message, error), before_wait) if callable(policy) else policy
        return FailureDecision(check_failure_policy(chosen))


async def _retry_delay(  # noqa: PLR0917  # as for `decide`
    retry: AsyncRetrying,
    message: Message,
    error: Exception,
    attempt: Attempt,
    now: float,
    before_wait: Callable[[], Awaitable[None]],
) -> float | None:
    """Seconds until the next attempt, `None` if there is none, by the strategies of tenacity."""
    # Its own loop is not used, since it waits in place: nothing may be open while a message waits.
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


async def _resolve(result: Any, before_wait: Callable[[], Awaitable[None]]) -> Any:
    """Result of a function of the user, awaited if that is a coroutine function."""
    if not inspect.isawaitable(result):
        return result
    await before_wait()
    return await result
