"""Try one message until it is settled: call the handler, wait, and apply the failure policy (G9).

Nothing is open while a message waits to be tried again: what was done before it is committed first. A wait of more
than a second ends the poll, which goes on at that message when its time has come.
"""

import logging
import traceback
from typing import Final

import anyio
import msgspec

from push_to_poll_client._event_loop import error_for_cancellation
from push_to_poll_client._exceptions import ProcessError
from push_to_poll_client._failure_policy import Attempt, FailureDecision, FailureRules
from push_to_poll_client._handlers import TransactionFailed
from push_to_poll_client._hooks import Hooks
from push_to_poll_client._options import Handler
from push_to_poll_client._progress import Progress
from push_to_poll_client._status import ConsumerStats
from push_to_poll_client._types import Clock, DeadLetter, Fate, Message, RecordState
from push_to_poll_client._validation import describe, quoted

__all__ = [
    "Postponed",
    "Retry",
    "StopSignal",
    "failure_of_message",
    "make_dead_letter",
]


logger = logging.getLogger("push_to_poll_client")

MAX_WAIT_IN_POLL: Final = 1.0
"""Seconds. A longer wait, or several that come to more, ends the poll, so that neither loop, lease, shutdown nor
status wait with it, nor what waits for a poll to end."""

MAX_DEAD_LETTERS: Final = 10_000
"""Dead letters of a name. With more it is not the messages that are broken; the consumer stops."""

MAX_TRACEBACK: Final = 16_384
"""Characters of a traceback that a dead letter keeps: the end, where the error is."""


class Postponed(Exception):  # no error: a message waits, and with it what comes after it
    """A message is to be tried again later than this poll waits.

    Args:
        until: When, on the event loop's clock.
    """

    def __init__(self, until: float) -> None:
        super().__init__(until)
        self.until = until


class StopSignal:
    """Whether somebody asked to begin no further message.

    Attributes:
        asked: Set from any thread.
        heard: Set in the event loop, somewhat later; what waits for nothing but time ends with it.
    """

    __slots__ = ("event", "requested")

    def __init__(self) -> None:
        self.requested = False
        self.event = anyio.Event()


class Retry:
    """Settles messages one by one.

    Args:
        handler: Processes one message.
        progress: Keeps attempts and dead letters, and is committed before a wait.
        failures: Decides.
        tally: Told of what happens.
        hooks: Told of what fails.
        clock: The event loop's.
    """

    def __init__(
        self,
        handler: Handler,
        progress: Progress,
        failures: FailureRules,
        tally: ConsumerStats,
        *,
        hooks: Hooks,
        clock: Clock,
    ) -> None:
        self._handler = handler
        self._progress = progress
        self._rules = failures
        self._stats = tally
        self._hooks = hooks
        self._clock = clock

    async def try_one(
        self, key: str, message: Message, stop: StopSignal, *, error: Exception | None = None
    ) -> RecordState:
        """Try the message until it is settled.

        Args:
            key: Its dedupe key.
            message: What to process.
            stop: Ends a wait.
            error: Why it does not come to the handler; `None`: it does, unless it cannot be read.

        Raises:
            Postponed: It has to wait.
            ProcessError: It failed for good, and the policy is to stop.
            StoreError: What was done before could not be committed.
        """
        attempts = self._progress.attempts
        if attempts.knows(key):
            if left := attempts.seconds_left(key):
                await self._wait(left, stop, since=self._clock())
            self._stats.counts["retries"] += 1
        failure = error or message.error or await self.attempt(message)
        if failure is not None:
            return await self.handle_failure(key, message, failure, stop)
        return self._finish(key, message, RecordState.PROCESSED)

    async def retry_dead_letter(self, message: Message, *, attempt: int) -> Exception | None:
        """Try a dead letter; why it is still one, if it is.

        Args:
            message: Made of it.
            attempt: The number of this one.

        Raises:
            BaseException: As for `handle_failure`.
        """
        failure = message.error or await self.attempt(message)
        if failure is None:
            self._hooks.message_settled(message, RecordState.PROCESSED)
            return None
        error = failure_of_message(message, failure)
        self._hooks.message_failed(message, error, attempt, Fate.DEAD_LETTER)
        return error

    async def attempt(self, message: Message) -> BaseException | None:
        """Process it once; why that failed, if it did."""
        try:
            await self._handler(message)
        except BaseException as error:  # noqa: BLE001  # what it means is decided elsewhere
            return error
        return None

    async def handle_failure(
        self, key: str, message: Message, error: BaseException, stop: StopSignal
    ) -> RecordState:
        """Go on with a message that failed, until it is settled.

        Raises:
            BaseException: The failure is none of the message: a cancellation, `SystemExit` and the like.
            Postponed: As for `try_one`.
            ProcessError: As for `try_one`.
            StoreError: As for `try_one`.
        """
        failure: BaseException | None = error
        state, since = RecordState.PROCESSED, self._clock()
        while failure is not None:
            decision = await self._decide(key, message, failure_of_message(message, failure))
            if decision.fate is not Fate.AGAIN:
                state = SETTLED_AS[decision.fate]
                break
            await self._wait(decision.delay, stop, since=since)
            self._stats.counts["retries"] += 1
            failure = await self.attempt(message)
        return self._finish(key, message, state)

    def _finish(self, key: str, message: Message, state: RecordState) -> RecordState:
        self._forget(key)
        self._hooks.message_settled(message, state)
        return state

    def _forget(self, key: str) -> None:
        """It is no failing message any more. One that stops the consumer neither: the next run tries anew."""
        self._stats.failing.pop(key, None)
        self._progress.attempts.discard(key)

    async def _decide(self, key: str, message: Message, error: Exception) -> FailureDecision:
        """Decide, and do all of it but the waiting."""
        attempts = self._progress.attempts
        attempt = attempts.record_failure(key)
        try:
            flush = self._progress.flush
            decision = await self._rules.decide(message, error, attempt, attempts.now, flush)
        except Exception as broken:  # noqa: BLE001  # whatever the user's function raises
            raise _stop_error(key, message, f"{describe(error)}; its policy failed: {describe(broken)}") from error
        self._hooks.message_failed(message, error, attempt.count, decision.fate)
        if decision.fate is Fate.STOP:
            self._forget(key)
            raise _stop_error(key, message, describe(error)) from error
        if decision.fate is Fate.DEAD_LETTER:
            self._add_dead_letter(key, message, error, attempt)
        self._report(key, message, error, attempt, decision)
        return decision

    def _add_dead_letter(self, key: str, message: Message, error: Exception, attempt: Attempt) -> None:
        progress = self._progress
        if progress.dead_letter_count >= MAX_DEAD_LETTERS:
            raise _stop_error(
                key, message, f"there are {progress.dead_letter_count} dead letters already: {describe(error)}"
            )
        try:
            letter = make_dead_letter(key, message.id, message.raw, error, progress.attempts.now)
        except Exception as broken:  # noqa: BLE001  # likewise
            raise _stop_error(key, message, f"{describe(error)}; it cannot be kept: {describe(broken)}") from error
        tried = 0 if message.error is not None else attempt.count
        progress.dead_letters.append(msgspec.structs.replace(letter, attempts=tried, first_failed=attempt.first))

    def _report(
        self, key: str, message: Message, error: Exception, attempt: Attempt, decision: FailureDecision
    ) -> None:
        name, count, why = quoted(message.id), attempt.count, describe(error)
        if decision.fate is Fate.AGAIN:
            self._progress.attempts.postpone(key, decision.delay)
            self._stats.message_failed(key, message.id, count, why, decision.delay)
            logger.warning(
                "message %s failed at attempt %d, again in %.1f s: %s", name, count, decision.delay, why
            )
        elif decision.fate is Fate.SKIP:
            self._stats.counts["skipped"] += 1
            logger.warning("message %s failed at attempt %d and is skipped: %s", name, count, why)
        else:
            logger.warning("message %s failed at attempt %d and is a dead letter now: %s", name, count, why)

    async def _wait(self, seconds: float, stop: StopSignal, *, since: float) -> None:
        until = self._clock() + seconds
        await self._progress.flush()
        if until > since + MAX_WAIT_IN_POLL:
            raise Postponed(until)
        with anyio.CancelScope(deadline=until):
            await stop.event.wait()
            raise Postponed(until)


SETTLED_AS: Final = {Fate.DEAD_LETTER: RecordState.DEAD, Fate.SKIP: RecordState.SKIPPED}


def failure_of_message(message: Message, error: BaseException) -> Exception:
    """What failed, when a handler raised.

    Raises:
        BaseException: It is no failure of the message: its task was cancelled, or it leaves by `SystemExit`.
    """
    if isinstance(error, TransactionFailed):
        raise error.__cause__ or error
    if isinstance(error, anyio.get_cancelled_exc_class()):
        error = _cancellation_failure(message, error)
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:  # of a task group around one task
        error = error.exceptions[0]
    if not isinstance(error, Exception):  # SystemExit and the like are somebody's way to leave
        raise error
    return error


def _cancellation_failure(message: Message, cancelled: BaseException) -> Exception:
    try:
        return error_for_cancellation(cancelled, "the handler")
    except BaseException:
        logger.info("cancelled while message %s was in hand: it will be done again", quoted(message.id))
        raise


def make_dead_letter(key: str, id: str, raw: bytes, error: Exception, now: float) -> DeadLetter:
    """A message that failed now, for the first time, for good.

    Args:
        key: Its dedupe key.
        id: What the feed calls it.
        raw: The entry as it came.
        error: Why it failed.
        now: Seconds since the epoch.
    """
    return DeadLetter(
        key=key,
        id=id,
        raw=raw,
        error=describe(error),
        traceback="".join(traceback.format_exception(error))[-MAX_TRACEBACK:],
        first_failed=now,
        last_failed=now,
    )


def _stop_error(key: str, message: Message, why: str) -> ProcessError:
    return ProcessError(
        f"message {quoted(message.id)} failed and stops the consumer: {why}. "
        "It and all after it are not settled; mend the handler or the message, and run again.",
        id=message.id,
        key=key,
    )
