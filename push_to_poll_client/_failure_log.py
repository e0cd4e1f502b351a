"""Log the failures of the user's handler: one line for each failure.

A line is about a message, a dead letter or a batch.
"""

import logging
import traceback
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from tenacity import AsyncRetrying, stop_after_attempt

from push_to_poll_client._exceptions import HandlerDecision, RetryMessage
from push_to_poll_client._log import ConsumerLog, ExcInfo
from push_to_poll_client._secrets import error_chain
from push_to_poll_client._types import Clock, FailureAction, Message
from push_to_poll_client._validation import quoted

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

# Seconds until the traceback of the same error is logged again. A bug that fails every message costs one or two
# tracebacks in ten minutes, and one line per attempt.
TRACEBACK_INTERVAL: Final = 600.0

# Tracebacks of different errors in that time (G11).
MAX_TRACEBACKS: Final = 100

# Packages between the consumer and the user's handler, which may run in a thread.
MACHINERY: Final = {"push_to_poll_client", "anyio", "asyncio", "outcome", "trio"}


def handler_error(error: BaseException) -> ExcInfo:
    """Return `exc_info` with a traceback that begins in the user's handler."""
    start = error.__traceback__
    while start and start.tb_frame.f_globals.get("__name__", "").partition(".")[0] in MACHINERY:
        start = start.tb_next
    return type(error), error, start or error.__traceback__


class HandlerFailure(NamedTuple):
    """Failure of a message, a dead letter, or a batch, which has the fields of its first message."""

    key: str
    id: str
    attempt: int
    why: str
    error: Exception | None  # None if only its text was kept
    message: Message


class FailureLog:
    """Log each failure, with a traceback for the first of each kind in ten minutes, or for all at DEBUG."""

    # Errors are of one kind if they, and the errors that caused them, have the same classes and lines of code.

    def __init__(self, clock: Clock, retry: AsyncRetrying | None) -> None:
        self._clock = clock
        # A strategy of the user's may stop at a time or by an error: then the number is not known beforehand.
        stop = retry.stop if retry else None
        self._attempts = f" of {stop.max_attempt_number}" if isinstance(stop, stop_after_attempt) else ""
        self._logged: dict[int, float] = {}

    def message_failed(self, failure: HandlerFailure, action: FailureAction, delay: float = 0.0) -> None:
        """Log that a message failed; `delay` is the time until its retry."""
        at: tuple[str, object] = (quoted(failure.id), failure.attempt)
        why, details = failure.why, self._record_fields(failure, action)
        if action is FailureAction.RETRY:
            attempts = "" if isinstance(failure.error, RetryMessage) else self._attempts  # it has no limit
            at = (quoted(failure.id), f"{failure.attempt}{attempts}")
            logger.warning("message %s failed (attempt %s), retrying in %.1f s: %s", *at, delay, why, **details)
        elif action is FailureAction.SKIP:
            logger.warning("message %s failed (attempt %d), skipped: %s", *at, why, **details)
        elif action is FailureAction.DEAD_LETTER:
            logger.warning("message %s failed (attempt %d), kept as a dead letter: %s", *at, why, **details)
        else:
            logger.error("message %s failed (attempt %d), stopping the consumer: %s", *at, why, **details)

    def failed_before_this_run(self, failure: HandlerFailure, delay: float) -> None:
        """Log that a message which failed in an earlier run still waits."""
        logger.warning(
            "message %s failed before this run (attempt %d), retrying in %.1f s: %s",
            quoted(failure.id),
            failure.attempt,
            delay,
            failure.why,
            **self._record_fields(failure, "waiting"),
        )

    def batch_failed(self, failure: HandlerFailure, size: int) -> None:
        """Log that a batch failed; each of its messages may still succeed."""
        details = self._record_fields(failure, "batch")
        logger.warning("batch of %d messages failed, retrying its halves: %s", size, failure.why, **details)

    def dead_letter_failed(self, failure: HandlerFailure) -> None:
        at, details = (quoted(failure.id), failure.attempt), self._record_fields(failure, "dead letter")
        logger.warning("dead letter %s failed again (attempt %d): %s", *at, failure.why, **details)

    def _record_fields(self, failure: HandlerFailure, outcome: object) -> dict[str, Any]:
        # Pass a server's text through `quoted` for a line, and through `one_line` for `extra`: both shorten it
        # (G11) and mask secrets (G12).
        return {"exc_info": self._traceback(failure.error, outcome)}

    def _traceback(self, error: Exception | None, outcome: object) -> ExcInfo | None:
        if error is None:
            return None
        # A `HandlerDecision` is not a bug, unless another error caused it.
        if raised_from(error) is None and (isinstance(error, HandlerDecision) or error.__traceback__ is None):
            return None
        if logger.isEnabledFor(logging.DEBUG):
            return handler_error(error)
        # The same error with another outcome is another kind.
        kind, now = hash((outcome, *_places(error))), self._clock()
        self._logged = {one: at for one, at in self._logged.items() if now < at + TRACEBACK_INTERVAL}
        if kind in self._logged or len(self._logged) >= MAX_TRACEBACKS:
            return None
        self._logged[kind] = now
        return handler_error(error)


def raised_from(error: BaseException) -> BaseException | None:
    """Return the cause that a traceback shows for an error, or None."""
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _places(error: BaseException) -> Iterator[tuple[object, ...]]:
    """Yield class and lines of code of an error and its causes."""
    for one in error_chain(error):
        kind, _, start = handler_error(one)
        lines = ((frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(start))
        yield (kind.__module__, kind.__qualname__, *lines)
