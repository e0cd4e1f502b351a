"""Meanings of a response besides its messages: expired, throttled, gone, a gap.

Each outcome is a condition and what to do when it holds. All outcomes of a feed are applied to each response, in
the order of their declaration. If several say that the response is an error, the first one counts.
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
    """The meaning of a response, or what one outcome says of it.

    Attributes:
        error: Why the response is not a page; `None` if it is one.
        empty: Nothing of the response is to be read.
        closed: As `Page.closed`.
        gap: As `Page.gap`.
        retry_after: As `Page.retry_after`.
    """

    error: FeedError | None = None
    empty: bool = False
    closed: bool = False
    gap: str = ""
    retry_after: float | None = None


class Outcome:
    """One of the things that an answer can mean.

    Args:
        when: Whether it does.
        meaning: What it means then.
        text: What it is called.
    """

    def __init__(self, when: Condition, meaning: Callable[[Reply], OutcomeResult], text: str) -> None:
        self._when = reader(when)
        self._meaning = meaning
        self._text = text

    def look(self, reply: Reply) -> OutcomeResult:
        """Look at an answer."""
        return self._meaning(reply) if self._when(reply) else OutcomeResult()

    def __repr__(self) -> str:
        return f"{self._text}({self._when})"


def apply_outcomes(outcomes: Sequence[Outcome], reply: Reply) -> OutcomeResult:
    """Apply all outcomes to a response."""
    found = [OutcomeResult()]
    for outcome in outcomes:
        if found[-1].error is None:  # of an error nothing else is asked, and reading it could fail
            found.append(outcome.look(reply))
    return OutcomeResult(
        error=found[-1].error,
        empty=any(one.empty for one in found),
        closed=any(one.closed for one in found),
        gap="; ".join(one.gap for one in found if one.gap),
        retry_after=longest_wait(*(one.retry_after for one in found)),
    )


def expired(when: Condition, *, start: Condition | None = None) -> Outcome:
    """The feed no longer knows the cursor: `CursorExpired`.

    Args:
        when: Whether that is so: `status(410)`, `from_body("error", "code").equals("syncStateNotFound")`.
        start: Reads the cursor that the feed offers to start from; `None`: it offers none.
    """
    read_start = reader(start or (lambda _: None))
    return _error_outcome(
        "expired",
        when,
        "no longer knows the cursor",
        lambda text, reply: CursorExpired(text, start=text_of(read_start(reply))),
    )


def restart(when: Condition) -> Outcome:
    """The pages changed under the walk: `PagesChanged`, from the saved cursor again, at once."""
    return _error_outcome("restart", when, "says that its pages changed", lambda text, _: PagesChanged(text))


def throttled(when: Condition, *, after: Condition | float | None = None) -> Outcome:
    """The server wants to be left alone. Where it says so by headers that are known, this is not needed.

    Args:
        when: Whether it does.
        after: Seconds, or reads them; `None`: as the headers say, else the consumer's backoff.
    """
    seconds = _seconds_reader(after)
    return _error_outcome(
        "throttled",
        when,
        "asks to be left alone for now",
        lambda text, reply: FeedError(text, retry_after=seconds(reply)),
    )


def gone(when: Condition) -> Outcome:
    """The feed is gone for good: `FeedGone`."""
    return _error_outcome("gone", when, "says that it is gone for good", lambda text, _: FeedGone(text))


def not_ready(when: Condition, *, after: Condition | float | None = None) -> Outcome:
    """The server has not prepared anything yet: nothing of the answer is looked at, and no cursor saved.

    Args:
        when: Whether that is so, whatever the status.
        after: Seconds until it is worth asking again, or reads them; `None`: as ever.
    """
    seconds = _seconds_reader(after)
    return Outcome(when, lambda reply: OutcomeResult(empty=True, retry_after=seconds(reply)), "not_ready")


def pause(after: Condition) -> Outcome:
    """The server asks to be left alone after a success, in its body or a header of its own; read in seconds."""
    seconds = _seconds_reader(reader(after))
    return Outcome(lambda _: True, lambda reply: OutcomeResult(retry_after=seconds(reply)), "pause")


def closed(when: Condition) -> Outcome:
    """The feed has ended: when this page is settled, nothing will ever follow. The status may be an error's."""
    return Outcome(when, lambda _: OutcomeResult(closed=True), "closed")


def gap(when: Condition, what: str = "the server says that it left messages out") -> Outcome:
    """Messages may be missing before those of this page, which the feed can no longer give.

    Args:
        when: Whether that is so.
        what: What is said of it in log and status.

    Raises:
        TypeError: It says nothing.
    """
    require_text("what", what)
    return Outcome(when, lambda _: OutcomeResult(gap=what), "gap")


def _error_outcome(name: str, when: Condition, says: str, error: Callable[[str, Reply], FeedError]) -> Outcome:
    def meaning(reply: Reply) -> OutcomeResult:
        return OutcomeResult(error=error(f"{reply.where} {says} (status {reply.status})", reply))

    return Outcome(when, meaning, name)


def _seconds_reader(after: Condition | float | None) -> Callable[[Reply], float | None]:
    """Make a function that reads seconds; it returns None if the response has no such number."""
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
