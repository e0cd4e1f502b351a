"""Process one message until it is settled (G9).

Three rules decide about a failed message; the first that applies wins: an exception with which the handler decides
(`RetryMessage`, `DeadLetterMessage`, `SkipMessage`, `StopConsumer`), the option `retry`, the option `on_failure`.

No transaction or commit is open while a message waits for its retry: earlier messages are committed first. A wait
of more than a second ends the poll, and a later poll continues at that message.
"""

import inspect
import logging
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeVar

import anyio
from tenacity import AsyncRetrying, RetryCallState

from push_to_poll_client._event_loop import error_for_cancellation, sole_cause
from push_to_poll_client._exceptions import (
    ContentChanged,
    DeadLetterMessage,
    DecodeError,
    ProcessError,
    RetryMessage,
    SkipMessage,
    StopConsumer,
    StoreError,
)
from push_to_poll_client._failure_log import FailureLog, HandlerFailure, handler_error
from push_to_poll_client._handlers import TransactionFailed
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._options import Handler, SessionPart, check_final_action
from push_to_poll_client._progress import Attempt, Progress
from push_to_poll_client._status import MAX_SHOWN_FAILING, FailingMessage
from push_to_poll_client._types import DeadLetter, FailureAction, Message, Settlement
from push_to_poll_client._validation import check_number, describe, quoted

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

# A longer wait ends the poll, so that lease, shutdown, status and callers do not wait with it.
MAX_WAIT_IN_POLL: Final = 1.0
"""Longest total wait for retries within a poll, in seconds."""

MAX_DEAD_LETTERS: Final = 10_000
"""Dead letters of a consumer name (G11). With more, the messages are hardly the cause: the consumer stops."""

SETTLED_AS: Final = {FailureAction.DEAD_LETTER: Settlement.DEAD_LETTERED, FailureAction.SKIP: Settlement.SKIPPED}


class Postponed(Exception):  # control flow, not an error
    """A message must wait longer than a poll does. `until` is on the event loop's clock."""

    def __init__(self, until: float) -> None:
        super().__init__(until)
        self.until = until


class StopSignal:
    """Request to start no further message."""

    __slots__ = ("event", "requested")

    def __init__(self) -> None:
        self.requested = False  # set from any thread
        self.event = anyio.Event()  # set in the event loop a little later; it ends waits for a retry


NOT_RETRYABLE = (DecodeError, ContentChanged)

HANDLER_DECISIONS = {
    DeadLetterMessage: FailureAction.DEAD_LETTER,
    SkipMessage: FailureAction.SKIP,
    StopConsumer: FailureAction.STOP,
}


class FailureDecision(NamedTuple):
    """Action for a failed message, and the delay in seconds for `RETRY`."""

    action: FailureAction
    delay: float = 0.0


@dataclass(kw_only=True, eq=False, repr=False)
class Retry(SessionPart):
    handler: Handler
    progress: Progress

    def __post_init__(self) -> None:
        self.failure_log = FailureLog(self.clock, self.options.retry)

    async def try_one(
        self, key: str, message: Message, stop: StopSignal, *, error: Exception | None = None
    ) -> Settlement:
        """Process a message until it is settled. `error` is a failure already known, instead of a first call."""
        attempts = self.progress.attempts
        if attempts.knows(key):
            if waiting := attempts.wait_of(key):
                self._show_waiting(key, message, waiting)
                await self._wait(waiting.again - attempts.now, stop, since=self.clock())
            self.stats.counts["retries"] += 1
        failure = error or message.error or await call_handler(self.handler, message)
        if failure is not None:
            return await self.handle_failure(key, message, failure, stop)
        return self._finish(key, message, Settlement.PROCESSED)

    async def retry_dead_letter(self, dead_letter: DeadLetter, message: Message) -> HandlerFailure | None:
        """Process a dead letter once. Return its failure, or `None` if it succeeded."""
        attempt = dead_letter.attempts + (0 if message.error else 1)
        failure = message.error or await call_handler(self.handler, message)
        if failure is None:
            self.stats.hooks.message_settled(message, Settlement.PROCESSED)
            logger.info("dead letter %s processed (attempt %d)", quoted(message.id), attempt)
            return None
        error = failure_of_message(message, failure)
        self.stats.hooks.message_failed(message, error, attempt, FailureAction.DEAD_LETTER)
        failed = HandlerFailure(dead_letter.dedupe_key, dead_letter.id, attempt, describe(error), error, message)
        self.failure_log.dead_letter_failed(failed)
        return failed

    async def handle_failure(
        self, key: str, message: Message, error: BaseException, stop: StopSignal
    ) -> Settlement:
        """Apply the failure policy to a failed message until it is settled."""
        failure: BaseException | None = error
        state, since = Settlement.PROCESSED, self.clock()
        while failure is not None:
            decision = await self._decide(key, message, failure_of_message(message, failure))
            if decision.action is not FailureAction.RETRY:
                state = SETTLED_AS[decision.action]
                break
            await self._wait(decision.delay, stop, since=since)
            self.stats.counts["retries"] += 1
            failure = await call_handler(self.handler, message)
        return self._finish(key, message, state)

    def end_walk(self, *, caught_up: bool) -> None:
        """Drop the failures of messages that do not come again."""
        attempts, failing = self.progress.attempts, self.stats.failing
        attempts.end_walk(caught_up=caught_up)
        self.stats.failing = {key: one for key, one in failing.items() if attempts.knows(key)}

    def _show_waiting(self, key: str, message: Message, attempt: Attempt) -> None:
        """Show a waiting message that failed in an earlier run. Update it if the clock was set back."""
        failing = self.stats.failing
        if key in failing:
            failing[key] = replace(failing[key], retry_at=attempt.again)
            return
        why = attempt.error or "its error was not kept"
        failing[key] = FailingMessage(message.id, key, attempt.count, why, attempt.again, attempt.first)
        if len(failing) <= MAX_SHOWN_FAILING:
            failure = HandlerFailure(key, message.id, attempt.count, why, None, message)
            self.failure_log.failed_before_this_run(failure, attempt.again - self.progress.attempts.now)
        self.stats.hooks.message_postponed(message, failing[key])

    def _finish(self, key: str, message: Message, state: Settlement) -> Settlement:
        if state is Settlement.PROCESSED and (failures := self.progress.attempts.count(key)):
            logger.info("message %s processed (attempt %d)", quoted(message.id), failures + 1)
        self._forget(key)
        self.stats.hooks.message_settled(message, state)
        return state

    def _forget(self, key: str) -> None:
        # Also for a message that stops the consumer: the next run starts with attempt 1.
        self.stats.failing.pop(key, None)
        self.progress.attempts.discard(key)

    async def _decide(self, key: str, message: Message, error: Exception) -> FailureDecision:
        """Decide about a failed message, and record the decision. The caller waits for a retry."""
        attempts, counts = self.progress.attempts, self.stats.counts
        attempt = attempts.record_failure(key)
        failure = HandlerFailure(key, message.id, attempt.count, describe(error), error, message)
        try:
            decision = await self._apply_rules(message, error, attempt)
        except StoreError:  # from the commit before a user's coroutine
            raise
        except Exception as policy_error:  # noqa: BLE001  # the user's function can raise anything
            why = f"{failure.why}; on_failure= or retry= failed: {describe(policy_error)}"
            raise self._stop(failure._replace(error=policy_error), why) from error
        self.stats.hooks.message_failed(message, error, attempt.count, decision.action)
        if decision.action is FailureAction.STOP:
            self._forget(key)
            raise self._stop(failure, failure.why) from error
        if decision.action is FailureAction.RETRY:
            retry_at = attempts.postpone(key, decision.delay, failure.why).again
            failing = FailingMessage(message.id, key, attempt.count, failure.why, retry_at, attempt.first)
            self.stats.message_failed(key, failing)
        elif decision.action is FailureAction.SKIP:
            counts["skipped"] += 1
        else:
            self._add_dead_letter(failure, attempt)
            counts["dead_lettered"] += 1
        self.failure_log.message_failed(failure, decision.action, decision.delay)
        return decision

    async def _apply_rules(self, message: Message, error: Exception, attempt: Attempt) -> FailureDecision:
        """Decide by the handler's exception, `retry=` or `on_failure=`. The user's functions may raise."""
        if isinstance(error, RetryMessage):
            return FailureDecision(FailureAction.RETRY, error.after)
        for decision, action in HANDLER_DECISIONS.items():
            if isinstance(error, decision):
                return FailureDecision(action)
        retry, policy = self.options.retry, self.options.on_failure
        if retry is not None and not isinstance(error, NOT_RETRYABLE):
            delay = await self._retry_delay(retry, message, error, attempt)
            if delay is not None:
                return FailureDecision(FailureAction.RETRY, delay)
        chosen = await self._resolve(policy(message, error)) if callable(policy) else policy
        return FailureDecision(check_final_action(chosen))

    async def _retry_delay(
        self, retry: AsyncRetrying, message: Message, error: Exception, attempt: Attempt
    ) -> float | None:
        """Return tenacity's delay until the next attempt; `None` for no attempt."""
        # Do not use its own loop: it waits in place, and nothing may be open while a message waits.
        state = RetryCallState(retry, None, (message,), {})
        state.attempt_number = attempt.count
        state.set_exception((type(error), error, error.__traceback__))
        assert state.outcome_timestamp is not None  # just set  # noqa: S101
        state.start_time = state.outcome_timestamp - max(0.0, self.progress.attempts.now - attempt.first)
        if not await self._resolve(retry.retry(state)):
            return None
        state.upcoming_sleep = await self._resolve(retry.wait(state))
        check_number("the result of retry.wait", state.upcoming_sleep)
        return None if await self._resolve(retry.stop(state)) else state.upcoming_sleep

    async def _resolve(self, result: Any) -> Any:
        """Return the result of a user's function. Commit before awaiting a coroutine."""
        if not inspect.isawaitable(result):
            return result
        try:
            await self.progress.flush()
        except BaseException:
            if inspect.iscoroutine(result):
                result.close()  # without this Python warns that it was never awaited
            raise
        return await result

    def _add_dead_letter(self, failure: HandlerFailure, attempt: Attempt) -> None:
        progress, message, why = self.progress, failure.message, failure.why
        if (count := progress.dead_letter_count) >= MAX_DEAD_LETTERS:
            raise self._stop(
                failure, f"cannot keep more than {count} dead letters, retry or delete some: {why}"
            ) from failure.error
        tried = failure if message.error is None else failure._replace(attempt=0)
        try:
            dead_letter = make_dead_letter(tried, message.raw, first=attempt.first, now=progress.attempts.now)
        except Exception as broken:  # noqa: BLE001  # a user's exception can fail in __str__
            raise self._stop(
                failure, f"{why}; cannot keep it as a dead letter: {describe(broken)}"
            ) from failure.error
        progress.dead_letters.append(dead_letter)

    def _stop(self, failure: HandlerFailure, why: str) -> ProcessError:
        """Log that a message stops the consumer. Return the error."""
        self.failure_log.message_failed(failure._replace(why=why), FailureAction.STOP)
        return ProcessError(
            f"message {quoted(failure.id)} failed and stops the consumer: {why}. "
            "It and all later messages are not settled. Correct the handler or the message, then run again.",
            id=failure.id,
            dedupe_key=failure.key,
        )

    async def _wait(self, seconds: float, stop: StopSignal, *, since: float) -> None:
        until = self.clock() + seconds
        await self.progress.flush()
        if until > since + MAX_WAIT_IN_POLL:
            raise Postponed(until)
        with anyio.CancelScope(deadline=until):
            await stop.event.wait()
            raise Postponed(until)


Work = TypeVar("Work")  # a message, or a batch of them


async def call_handler(handler: Callable[[Work], Awaitable[None]], work: Work) -> BaseException | None:
    """Call a handler once. Return its error, to be classified by `failure_of_message`."""
    try:
        await handler(work)
    except BaseException as error:  # noqa: BLE001
        return error
    return None


def failure_of_message(message: Message, error: BaseException) -> Exception:
    """Return the failure of the message behind a handler's error, or raise the error if there is none."""
    # Not failures of the message: a cancellation, a store error, `SystemExit` and similar.
    error = sole_cause(error)
    if isinstance(error, TransactionFailed):
        raise error.__cause__ or error
    if isinstance(error, anyio.get_cancelled_exc_class()):
        try:
            error = error_for_cancellation(error, "the handler")
        except BaseException:
            logger.info("cancelled while message %s was in flight, it will be processed again", quoted(message.id))
            raise
    if not isinstance(error, Exception):  # such as SystemExit, which ends the program
        raise error
    return error


MAX_TRACEBACK: Final = 16_384
"""Last characters of a traceback that a dead letter keeps. The end has the error."""


def make_dead_letter(failure: HandlerFailure, raw: bytes, *, first: float, now: float) -> DeadLetter:
    """Create the dead letter of a failed message. Times are in seconds since the epoch."""
    assert failure.error is not None  # noqa: S101
    return DeadLetter(
        dedupe_key=failure.key,
        id=failure.id,
        raw=raw,
        error=failure.why,
        traceback="".join(traceback.format_exception(*handler_error(failure.error)))[-MAX_TRACEBACK:],
        attempts=failure.attempt,
        first_failed=first,
        last_failed=now,
    )
