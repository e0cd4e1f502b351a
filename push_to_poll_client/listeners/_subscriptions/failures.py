"""WHAT a failure to subscribe means: when to ask again, or that the server does not have it any more."""

from http import HTTPStatus

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
    """What it means for the next attempt. `httpx.HTTPStatusError` is understood by its status."""
    return http_failure_of(error, wanted="a subscription", verdicts=_VERDICTS)


def is_gone(error: Exception) -> bool:
    """Whether the server says that it does not have what it was asked to renew or stop."""
    response = refusal(error)
    return isinstance(error, SubscriptionGone) or (response is not None and response.status_code in _GONE)
