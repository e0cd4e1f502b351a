"""WHAT ended a connection: the one form in which every kind of channel tells it."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from push_to_poll_client._validation import quoted
from push_to_poll_client.listeners._reconnect import Verdict

__all__ = ["MAX_TEXT", "REDIRECTS_STAY_HOME", "Failure", "by_type", "causes", "only", "told"]

MAX_TEXT = 200
"""Characters of foreign text in a sentence: a log line stays a line."""

MAX_CAUSES = 10
"""Links of a chain of causes that are looked at."""

REDIRECTS_STAY_HOME = "redirects are not followed, since credentials stay with their origin: use the new address"
"""Headers of any name may hold a secret, and secrets go only to the origin they were given for (G12)."""


class Failure(NamedTuple):
    """A connection, or an attempt at one, that failed.

    Attributes:
        verdict: What it means for the next one, as far as this library can know.
        sentence: What happened, on one line, without secrets and with nothing that a terminal would obey.
        retry_after: Seconds that the server asked to be left alone; `None`: it did not.
        unauthorized: Whether fresh credentials may mend it.
        hid_a_push: Whether it kept something unread that may have been a push.
        cause: What may be shown with its traceback; `None`: nothing, since it may quote a secret.
    """

    verdict: Verdict
    sentence: str
    retry_after: float | None
    unauthorized: bool
    hid_a_push: bool
    cause: Exception | None


def only(error: Exception) -> Exception:
    """The one error in a group, or the error itself: trio's nurseries wrap what passes through them."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def causes(error: BaseException, *, hidden: bool = False) -> tuple[BaseException, ...]:
    """The error, its cause, the cause's cause, and a few more.

    Args:
        error: What happened.
        hidden: Whether to follow also what was only being handled at the time: httpcore says `from None`, and so
            hides the reason of a failed TLS handshake.
    """

    def chain() -> Iterator[BaseException]:
        link: BaseException | None = error
        while link is not None:
            yield link
            link = link.__cause__ or (link.__context__ if hidden else None)

    return tuple(itertools.islice(chain(), MAX_CAUSES))


def by_type(chain: Sequence[BaseException], table: Sequence[tuple[type[Exception], Verdict]]) -> Verdict:
    """The verdict of the first row that is found among an error and its causes; the last row is for all."""
    return next(verdict for kind, verdict in table if any(isinstance(cause, kind) for cause in chain))


def told(chain: Sequence[BaseException], speaking: tuple[type[BaseException], ...]) -> str:
    """An error that has no sentence of its own: by type and text, or by its type alone.

    Args:
        chain: The error and its causes.
        speaking: Errors whose text holds nothing that was entrusted to us.
    """
    known = next((cause for cause in chain if isinstance(cause, speaking) and str(cause)), None)
    what = type(chain[0] if known is None else known).__name__
    return f"failed with {what}" if known is None else f"{what}: {quoted(known, MAX_TEXT)}"
