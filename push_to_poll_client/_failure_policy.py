"""Decide what becomes of a message that failed, and count its attempts (G9).

The decision is made by the first of these that applies: an exception that the handler raises to decide itself
(`RetryMessage`, `DeadLetterMessage`, `SkipMessage`, `StopConsumer`), the option `retry`, the option `on_failure`.

Attempts are stored with times of day, since no other clock outlives a process. While a process runs, the time of
day is read from the event loop's clock, which does not jump. A message whose next attempt is further away than its
delay shows that the system's clock was set back between two runs. It waits for its delay from then on, and the new
time is stored, so that the next run does not start the wait again.

Attempts of messages that do not come again are dropped, as when a feed replaces the failing version of an entry. A
walk to the end of the feed meets all messages that wait; one that ends at such a message may not have come to the
others, which get an hour. A feed that lags behind may leave a message out for a while, so attempts are dropped
only when the wait of their message is over.
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

MAX_ERROR: Final = 200
"""Characters of an error that are stored with the attempts."""

MAX_ERRORS: Final = 1_000
"""Attempts that are stored with an error. If more messages fail at a time, their errors are about the same."""

MAX_WRITTEN: Final = 1_000_000
"""Characters of attempts that may be written in a second, besides those at the end of each poll. All attempts are
one text, of a million characters for 10,000 ids of 36 characters. A poll in which 10,000 messages fail writes 5 MB
to a state file and takes 4 s; it wrote 4,200 MB and took 149 s when each change was written."""


OVERDUE: Final = 3_600.0
"""Seconds after its wait for which a message is remembered that does not come again, as an entry that was
replaced."""


class Attempt(msgspec.Struct, array_like=True, frozen=True):
    """The attempts of one failing message, as they are stored.

    Attributes:
        count: How often it was tried.
        first: When it failed first, in seconds since the epoch.
        again: When it may be tried again, in seconds since the epoch.
        delay: Seconds from its last failure to `again`.
        error: The start of the last error; empty if it is not kept, as by earlier versions.
    """

    count: int
    first: float
    again: float = 0.0
    delay: float = 0.0
    error: str = ""


_decode = Decoder(dict[str, Attempt]).decode


class Attempts:
    """The attempts of one session's failing messages, by dedupe key.

    Args:
        state: The session's state.
        time_of_day: The time of day by the event loop's clock.

    Attributes:
        changed: Whether there is anything that `take_changes()` has not returned.

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
        self._write_at = 0.0
        self.changed = False

    def __len__(self) -> int:
        return len(self._attempts)

    def knows(self, key: str) -> bool:
        """Whether the key belongs to a failing message."""
        return key in self._attempts

    def count(self, key: str) -> int:
        """Return how often a message has failed."""
        return self._attempts[key].count if key in self._attempts else 0

    def record_failure(self, key: str) -> Attempt:
        """Count one more failed attempt."""
        before = self._attempts.pop(key, None)
        now = self.now
        attempt = Attempt(1, now) if before is None else Attempt(before.count + 1, before.first)
        return self._set(key, attempt)

    def postpone(self, key: str, delay: float, error: str) -> Attempt:
        """Allow the next attempt in `delay` seconds, and keep the start of the error."""
        # The entry is missing if more than MAX_FAILING messages fail at a time.
        attempt = self._attempts.get(key) or self.record_failure(key)
        kept = error[:MAX_ERROR] if len(self) <= MAX_ERRORS else ""
        return self._set(key, Attempt(attempt.count, attempt.first, self.now + delay, delay, kept))

    def discard(self, key: str) -> None:
        """Forget the attempts of one message, which is settled or stops the consumer."""
        if self._attempts.pop(key, None) is not None:
            self.changed = True

    def forget(self) -> None:
        """Forget all attempts, since the session has forgotten them: every message is tried anew."""
        self._attempts.clear()
        self.changed = False

    def wait_of(self, key: str) -> Attempt | None:
        """Return the attempts of a message that must not be tried yet; `None` if it may be tried."""
        attempt, now = self._attempts.get(key), self.now
        if attempt is not None and attempt.again > now + attempt.delay:  # the clock was set back
            attempt = self._set(key, msgspec.structs.replace(attempt, again=now + attempt.delay))
        return None if attempt is None or attempt.again <= now else attempt

    def end_walk(self, *, caught_up: bool) -> None:
        """Drop the attempts of messages that are due and have not come again.

        At the end of the feed those are all that are due, since the messages that came are settled. A walk that
        ends at a message which waits may not have come to the others yet: they get `OVERDUE` seconds.
        """
        due_until = self.now - (0.0 if caught_up else OVERDUE)
        for key, attempt in list(self._attempts.items()):
            if attempt.again <= due_until:
                self.discard(key)

    def write_soon(self) -> None:
        """Let the next `take_changes()` return what has changed, however much was written just before."""
        self._write_at = 0.0

    def take_changes(self) -> dict[str, str | None]:
        """Changes of the session's state to commit; empty if there are none to write now."""
        if not self.writable:
            return {}
        self.changed = False
        text = msgspec.json.encode(self._attempts).decode() if self._attempts else None
        self._write_at = self.now + len(text or "") / MAX_WRITTEN
        return {ATTEMPTS_KEY: text}

    def restore(self, text: str | None) -> None:
        """Continue with attempts that an earlier session could not commit, as `take_changes()` returned them."""
        self._attempts = _decode(text or "{}")
        self.changed = True

    def put_back(self) -> None:
        """Leave the changes that were taken to the next commit, since theirs failed."""
        self.changed = True
        self.write_soon()

    @property
    def writable(self) -> bool:
        """Whether there are changes, and not too much was written just before."""
        return self.changed and self.now >= self._write_at

    @property
    def now(self) -> float:
        """Seconds since the epoch."""
        return self._time_of_day.now()

    def _set(self, key: str, attempt: Attempt) -> Attempt:
        self._attempts[key] = attempt
        self.changed = True
        if len(self._attempts) > MAX_FAILING:
            self.discard(next(iter(self._attempts)))
        return attempt


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
    try:
        await before_wait()
    except BaseException:
        if inspect.iscoroutine(result):
            result.close()  # without this Python warns that it was never awaited
        raise
    return await result
