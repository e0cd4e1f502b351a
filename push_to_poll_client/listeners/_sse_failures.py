"""WHAT a failed event stream means: a verdict for the next one, and a sentence for log and status."""

from push_to_poll_client.listeners._failure import Failure
from push_to_poll_client.listeners._http_failures import http_failure_of, refusal
from push_to_poll_client.listeners._reconnect import Verdict
from push_to_poll_client.listeners._sse_connection import NoEventStream
from push_to_poll_client.listeners._sse_parser import EventTooLarge

__all__ = ["failure_of", "refusal"]

ERROR_VERDICTS: tuple[tuple[type[Exception], Verdict], ...] = (
    (NoEventStream, Verdict.SLOW_RETRY),  # a login page, a compressing proxy
    (EventTooLarge, Verdict.SLOW_RETRY),  # the next one will be as large
)
"""What ends a stream, or an attempt at one, beside what HTTP knows. The stream's end and silence pass."""


def failure_of(error: Exception) -> Failure:
    """What a failure means, and how it is told."""
    failure = http_failure_of(error, wanted="an event stream", verdicts=ERROR_VERDICTS)
    return failure._replace(hid_a_push=isinstance(error, EventTooLarge))
