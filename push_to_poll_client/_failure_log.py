"""Log what fails in the user's handler: each line that says so is written here, and each failure has one.

A line is about a message, a dead letter or a batch, and the line of a message that stops the consumer is one of
them. What `FailureLog._record_fields` returns is in all their records; `ConsumerLog` adds the consumer's name to
its `extra`.
"""

import logging
import traceback
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from push_to_poll_client._exceptions import HandlerDecision
from push_to_poll_client._log import ConsumerLog, ExcInfo
from push_to_poll_client._secrets import error_chain
from push_to_poll_client._types import Clock, FailureAction, Message
from push_to_poll_client._validation import quoted

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

TRACEBACK_INTERVAL: Final = 600.0
"""Seconds for which the traceback of an error is not logged again. A bug that fails each message at each attempt
costs a traceback or two in ten minutes, and one line an attempt."""

MAX_TRACEBACKS: Final = 100
"""Tracebacks in that time, of as many different errors (G11)."""

MACHINERY: Final = {"push_to_poll_client", "anyio", "asyncio", "outcome", "trio"}
"""Packages that stand between the consumer and the user's handler, which may run in a thread."""


def handler_error(error: BaseException) -> ExcInfo:
    """Return an error for `exc_info`, with a traceback that begins in the user's handler."""
    start = error.__traceback__
    while start and start.tb_frame.f_globals.get("__name__", "").partition(".")[0] in MACHINERY:
        start = start.tb_next
    return type(error), error, start or error.__traceback__


class HandlerFailure(NamedTuple):
    """What the line about a failure can say: of a message or a dead letter, or of a batch by its first message.

    Attributes:
        key: The dedupe key.
        id: The id in the feed; of a dead letter the id that it has kept.
        attempt: The number of the attempt.
        why: The error in one bounded line.
        error: The error, or None if only its text was kept.
        message: The message; that of a dead letter is as the feed restored it.
    """

    key: str
    id: str
    attempt: int
    why: str
    error: Exception | None
    message: Message


class FailureLog:
    """Write a line for each failure, and choose which of them have tracebacks.

    Those are the first of each kind in ten minutes. Errors are of one kind if they have the same class and went
    through the same lines of code, and so did the errors that they were raised from. At level DEBUG it is each.

    Args:
        clock: The event loop's clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._logged: dict[int, float] = {}

    def message_failed(self, failure: HandlerFailure, action: FailureAction, delay: float = 0.0) -> None:
        """Log that a message failed, and what becomes of it; `delay` is the time to its next attempt."""
        at, why, details = (
            (quoted(failure.id), failure.attempt),
            failure.why,
            self._record_fields(failure, action),
        )
        if action is FailureAction.RETRY:
            logger.warning("message %s failed (attempt %d), retrying in %.1f s: %s", *at, delay, why, **details)
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
        """Log that a batch failed, of which no message may fail alone."""
        details = self._record_fields(failure, "batch")
        logger.warning("batch of %d messages failed, retrying its halves: %s", size, failure.why, **details)

    def dead_letter_failed(self, failure: HandlerFailure) -> None:
        """Log that a dead letter failed again."""
        at, details = (quoted(failure.id), failure.attempt), self._record_fields(failure, "dead letter")
        logger.warning("dead letter %s failed again (attempt %d): %s", *at, failure.why, **details)

    def _record_fields(self, failure: HandlerFailure, outcome: object) -> dict[str, Any]:
        """Return what each record of a failure has besides its line, such as `extra`.

        Text of a server goes through `quoted` into a line, and through `one_line` into `extra`: both cut it (G11)
        and mask secrets (G12).
        """
        return {"exc_info": self._traceback(failure.error, outcome)}

    def _traceback(self, error: Exception | None, outcome: object) -> ExcInfo | None:
        """Return the error if its traceback is to be logged. With another outcome it is another kind of error."""
        if error is None:
            return None
        # A handler that decides itself has no bug, unless it decided so because of another error.
        if raised_from(error) is None and (isinstance(error, HandlerDecision) or error.__traceback__ is None):
            return None
        if logger.isEnabledFor(logging.DEBUG):
            return handler_error(error)
        kind, now = hash((outcome, *_places(error))), self._clock()
        self._logged = {one: at for one, at in self._logged.items() if now < at + TRACEBACK_INTERVAL}
        if kind in self._logged or len(self._logged) >= MAX_TRACEBACKS:
            return None
        self._logged[kind] = now
        return handler_error(error)


def raised_from(error: BaseException) -> BaseException | None:
    """Return the error that an error was raised from, as its traceback shows it; None if there is none."""
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _places(error: BaseException) -> Iterator[tuple[object, ...]]:
    """Yield the class and the lines of code of an error, and of those that it was raised from."""
    for one in error_chain(error):
        kind, _, start = handler_error(one)
        lines = ((frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(start))
        yield (kind.__module__, kind.__qualname__, *lines)
