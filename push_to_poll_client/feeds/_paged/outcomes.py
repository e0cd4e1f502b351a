"""Special meanings of a response besides its messages: expired, throttled, gone, a gap.

An outcome is a condition and an effect. All outcomes of a feed are applied to each response, in the order of their
declaration. If several make the response an error, the first one counts.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from push_to_poll_client._exceptions import CursorExpired, FeedError, FeedGone, PagesChanged
from push_to_poll_client._validation import check_number
from push_to_poll_client.feeds._base import longest_wait
from push_to_poll_client.feeds._paged.body import Reply, text_of
from push_to_poll_client.feeds._paged.readers import Condition, reader
from push_to_poll_client.feeds._paged.senders import require_text


class OutcomeResult(NamedTuple):
    """Meaning of a response; `closed`, `gap` and `retry_after` are as in `Page`."""

    error: FeedError | None = None
    empty: bool = False  # the content of the response is ignored
    closed: bool = False
    gap: str = ""
    retry_after: float | None = None


class Outcome:
    """Condition on a response, and its effect. Made by `expired(…)` and the like.

    Args:
        when: Condition on the response.
        meaning: Returns the effect if the condition holds.
        text: Name of the outcome in errors.
    """

    def __init__(self, when: Condition, meaning: Callable[[Reply], OutcomeResult], text: str) -> None:
        self._when = reader(when)
        self._meaning = meaning
        self._text = text

    def look(self, reply: Reply) -> OutcomeResult:
        """Return the effect on a response; an empty result if the condition does not hold."""
        return self._meaning(reply) if self._when(reply) else OutcomeResult()

    def __repr__(self) -> str:
        return f"{self._text}({self._when})"


def apply_outcomes(outcomes: Sequence[Outcome], reply: Reply) -> OutcomeResult:
    """Apply all outcomes to a response."""
    found = [OutcomeResult()]
    for outcome in outcomes:
        if found[-1].error is None:  # other outcomes may be unable to read an error
            found.append(outcome.look(reply))
    return OutcomeResult(
        error=found[-1].error,
        empty=any(one.empty for one in found),
        closed=any(one.closed for one in found),
        gap="; ".join(one.gap for one in found if one.gap),
        retry_after=longest_wait(*(one.retry_after for one in found)),
    )


def expired(when: Condition, *, start: Condition | None = None) -> Outcome:
    """Raise `CursorExpired`: the server no longer accepts the cursor.

    Args:
        when: True if it expired, as `status(410)` or `from_body("error", "code").equals("syncStateNotFound")`.
        start: Reads the cursor that the server offers as a new start; `None` if it offers none.
    """
    read_start = reader(start or (lambda _: None))
    return _error_outcome(
        "expired",
        when,
        "no longer knows the cursor",
        lambda text, reply: CursorExpired(text, start=text_of(read_start(reply))),
    )


def restart(when: Condition) -> Outcome:
    """Raise `PagesChanged`: the pages changed during the poll, which restarts at the saved cursor at once."""
    return _error_outcome("restart", when, "reports that its pages changed", lambda text, _: PagesChanged(text))


def throttled(when: Condition, *, after: Condition | float | None = None) -> Outcome:
    """Fail the poll because the server asks for a pause. Standard headers such as `Retry-After` work without this.

    Args:
        when: True if the server asks for a pause.
        after: Seconds, or a reader of seconds. `None` means as the headers say, else the consumer's backoff.
    """
    seconds = _seconds_reader(after)
    return _error_outcome(
        "throttled",
        when,
        "asks for a pause",
        lambda text, reply: FeedError(text, retry_after=seconds(reply)),
    )


def gone(when: Condition) -> Outcome:
    """Raise `FeedGone`: the feed no longer exists."""
    return _error_outcome("gone", when, "reports that it no longer exists", lambda text, _: FeedGone(text))


def not_ready(when: Condition, *, after: Condition | float | None = None) -> Outcome:
    """Ignore a response that the server has not prepared yet; no cursor is saved.

    Args:
        when: True if the server is not ready, whatever the status.
        after: Seconds until the next request, or a reader of seconds. `None` means the usual schedule.
    """
    seconds = _seconds_reader(after)
    return Outcome(when, lambda reply: OutcomeResult(empty=True, retry_after=seconds(reply)), "not_ready")


def pause(after: Condition) -> Outcome:
    """Pause after a success, for the seconds that the body or a custom header names."""
    seconds = _seconds_reader(reader(after))
    return Outcome(lambda _: True, lambda reply: OutcomeResult(retry_after=seconds(reply)), "pause")


def closed(when: Condition) -> Outcome:
    """End the consumer once this page is settled: no message will follow. Error statuses are allowed."""
    return Outcome(when, lambda _: OutcomeResult(closed=True), "closed")


def gap(when: Condition, what: str = "the server says that it left messages out") -> Outcome:
    """Report that messages before this page may be missing, and that the feed can no longer return them.

    Args:
        when: True if messages may be missing.
        what: Text for the log and the status.

    Raises:
        TypeError: `what` is empty or not a string.
    """
    require_text("what", what)
    return Outcome(when, lambda _: OutcomeResult(gap=what), "gap")


def _error_outcome(name: str, when: Condition, says: str, error: Callable[[str, Reply], FeedError]) -> Outcome:
    def meaning(reply: Reply) -> OutcomeResult:
        return OutcomeResult(error=error(f"{reply.where} {says} (status {reply.status})", reply))

    return Outcome(when, meaning, name)


def _seconds_reader(after: Condition | float | None) -> Callable[[Reply], float | None]:
    """Make a function that reads seconds; it returns None if the response has no valid number."""
    if callable(after):
        read = reader(after)
        return lambda reply: _non_negative_number(read(reply))
    check_number("after", after, optional=True)
    return lambda _reply: after


def _non_negative_number(value: Any) -> float | None:
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None
