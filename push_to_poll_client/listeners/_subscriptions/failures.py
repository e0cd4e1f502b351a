"""WHAT a failure to subscribe means: when to ask again, or that the server does not have it any more."""

import traceback
from http import HTTPStatus
from pathlib import Path

from push_to_poll_client._exceptions import ListenerError, SubscriptionGone
from push_to_poll_client.listeners._asking import ANSWER_VERDICTS
from push_to_poll_client.listeners._failure import Failure
from push_to_poll_client.listeners._http_failures import http_failure_of, refusal
from push_to_poll_client.listeners._reconnect import Verdict
from push_to_poll_client.listeners._subscriptions.nouns import SubscriptionRefused

__all__ = ["failure_of", "is_gone"]

_VERDICTS: tuple[tuple[type[Exception], Verdict], ...] = (
    (ListenerError, Verdict.GIVE_UP),
    (SubscriptionRefused, Verdict.SLOW_RETRY),
    *ANSWER_VERDICTS,
)

_GONE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})


def failure_of(error: Exception) -> Failure:
    """What it means for the next attempt. `httpx.HTTPStatusError` is understood by its status.

    What has no words of its own is told with its place: most likely a mistake in a function of the user's. The
    error loses its traceback, which holds secrets, since status keeps it for long.
    """
    failure = http_failure_of(error, wanted="a subscription", verdicts=_VERDICTS)
    wordless = failure.sentence == f"failed with {type(error).__name__}"
    sentence = f"{failure.sentence}{_place_of(error)}" if wordless else failure.sentence
    error.with_traceback(None)
    return failure._replace(sentence=sentence)


def _place_of(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" in {frames[-1].name}, line {frames[-1].lineno} of {Path(frames[-1].filename).name}" if frames else ""


def is_gone(error: Exception) -> bool:
    """Whether the server says that it does not have what it was asked to renew or stop."""
    response = refusal(error)
    return isinstance(error, SubscriptionGone) or (response is not None and response.status_code in _GONE)
