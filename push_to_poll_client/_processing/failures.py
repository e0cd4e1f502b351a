"""WHAT THEN: what becomes of a message that failed? Decides, and does nothing (G9).

What a handler raises to decide itself goes before `retry`, and that before `on_failure`.
"""

import enum
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from tenacity import AsyncRetrying, RetryCallState

from push_to_poll_client._arguments import check_number
from push_to_poll_client._exceptions import (
    ContentChanged,
    DeadLetterMessage,
    RetryMessage,
    SkipMessage,
    StopConsumer,
    UndecodableMessage,
)
from push_to_poll_client._processing.attempts import Attempt
from push_to_poll_client._types import Message

__all__ = ["Decision", "FailurePolicy", "Failures", "Fate", "OnFailure"]

FailurePolicy: TypeAlias = Literal["stop", "dead_letter", "skip"]
"""What becomes of a message that failed for good."""

OnFailure: TypeAlias = FailurePolicy | Callable[[Message, Exception], FailurePolicy | Awaitable[FailurePolicy]]
"""One for all messages, or a function that says it for each and its exception."""

HOPELESS = (UndecodableMessage, ContentChanged)
"""What trying again does not change."""


class Fate(enum.StrEnum):
    """What becomes of a message."""

    AGAIN = "again"
    STOP = "stop"
    DEAD_LETTER = "dead_letter"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a message, and for `AGAIN` in how many seconds."""

    fate: Fate
    delay: float = 0.0


VERDICTS = {DeadLetterMessage: Fate.DEAD_LETTER, SkipMessage: Fate.SKIP, StopConsumer: Fate.STOP}


class Failures:
    """The user's policy.

    Args:
        retry: When to try a message again: the strategies `retry`, `wait` and `stop` of it; `None`: never.
        on_failure: What becomes of a message that is not tried again.

    Raises:
        TypeError: One of them is of the wrong kind.
        ValueError: `on_failure` is no policy.
    """

    def __init__(self, retry: AsyncRetrying | None, on_failure: OnFailure) -> None:
        if retry is not None and not isinstance(retry, AsyncRetrying):
            raise TypeError(f"retry must be a tenacity.AsyncRetrying or None, not {retry!r}")
        if not callable(on_failure):
            _checked(on_failure)
        self._retry = retry
        self._on_failure = on_failure

    async def decide(
        self,
        message: Message,
        error: Exception,
        attempt: Attempt,
        now: float,
        before_wait: Callable[[], Awaitable[None]],
    ) -> Decision:
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
            return Decision(Fate.AGAIN, error.after)
        for verdict, fate in VERDICTS.items():
            if isinstance(error, verdict):
                return Decision(fate)
        if self._retry is not None and not isinstance(error, HOPELESS):
            delay = await _delay(self._retry, message, error, attempt, now, before_wait)
            if delay is not None:
                return Decision(Fate.AGAIN, delay)
        policy = self._on_failure
        said = await _said(policy(message, error), before_wait) if callable(policy) else policy
        return Decision(_checked(said))


def _checked(policy: object) -> Fate:
    if policy not in get_args(FailurePolicy):
        raise ValueError(
            f"on_failure must be or return one of {', '.join(map(repr, get_args(FailurePolicy)))}, not {policy!r}"
        )
    return Fate(str(policy))


async def _delay(  # noqa: PLR0917  # as for `decide`
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
    if not await _said(retry.retry(state), before_wait):
        return None
    state.upcoming_sleep = await _said(retry.wait(state), before_wait)
    check_number("what retry.wait returns", state.upcoming_sleep)
    return None if await _said(retry.stop(state), before_wait) else state.upcoming_sleep


async def _said(said: Any, before_wait: Callable[[], Awaitable[None]]) -> Any:
    """What a function of the user's returned, which may be a coroutine function."""
    if not inspect.isawaitable(said):
        return said
    await before_wait()
    return await said
