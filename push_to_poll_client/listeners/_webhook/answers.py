"""WHAT IS ANSWERED to what goes no further: constants, so that no answer tells one reason from another."""

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from push_to_poll_client._http.headers import is_header_name, is_header_value
from push_to_poll_client.listeners._webhook.request import WebhookAnswer

__all__ = [
    "ACCEPTED",
    "BUSY",
    "NOT_ALLOWED",
    "TOO_LARGE",
    "TOO_SLOW",
    "UNAUTHENTIC",
    "Outcome",
    "Refusal",
    "check_answer",
    "too_many",
]

Outcome: TypeAlias = Literal["refused", "too_large", "too_slow", "limited", "busy", "unasked"]
"""Why a request was refused: a field of `WebhookCounters`."""

ACCEPTED = WebhookAnswer()
"""An authentic request without a subscription that wants another answer."""

UNAUTHENTIC = WebhookAnswer(401)
"""Whatever is wrong with its signature: which it was would help whoever tries."""

NOT_ALLOWED = WebhookAnswer(405, headers={"Allow": "POST"})
"""Neither a push nor a question that is expected (RFC 9110 §15.5.6; CloudEvents webhooks §4.2)."""

TOO_LARGE = WebhookAnswer(413, headers={"Connection": "close"})
"""The rest of it is not read (RFC 9110 §15.5.14)."""

TOO_SLOW = WebhookAnswer(408, headers={"Connection": "close"})
"""Likewise (RFC 9110 §15.5.9)."""

BUSY = WebhookAnswer(503, headers={"Retry-After": "1"})
"""Bodies are in hand for a moment, unless somebody sends them slowly on purpose."""

FIRST_FINAL, LAST = 200, 599
NO_CONTENT = {204, 304}
"""Statuses whose answers have no body (RFC 9110 §6.4.1)."""


def too_many(wait: float) -> WebhookAnswer:
    """The answer beyond the rate; CloudEvents webhooks §2.2 wants it to say when to come back.

    Args:
        wait: Seconds.
    """
    return WebhookAnswer(429, headers={"Retry-After": str(math.ceil(wait))})


class Refusal(Exception):
    """A request goes no further.

    Args:
        answer: To it.
        outcome: As what it is counted.
        hides_pushes: Whether an authentic one could have met the same.
    """

    def __init__(self, answer: WebhookAnswer, outcome: Outcome, *, hides_pushes: bool = False) -> None:
        super().__init__(outcome)
        self.answer = answer
        self.outcome = outcome
        self.hides_pushes = hides_pushes


def check_answer(answer: Any) -> WebhookAnswer:
    """An answer that somebody else made, if it can be sent.

    Raises:
        TypeError: It is none, or a part of it is of the wrong type.
        ValueError: It cannot be sent as it is.
    """
    if not isinstance(answer, WebhookAnswer):
        raise TypeError(f"it is a WebhookAnswer, not {type(answer).__name__}")
    if not isinstance(answer.status, int) or not isinstance(answer.body, bytes):
        raise TypeError("the status is an int and the body is bytes")
    if not FIRST_FINAL <= answer.status <= LAST:
        raise ValueError(f"the status is {FIRST_FINAL} to {LAST}, not {answer.status}")
    if answer.body and answer.status in NO_CONTENT:
        raise ValueError(f"an answer of status {answer.status} has no body")
    _check_headers({**answer.headers, "Content-Type": answer.content_type})
    return answer


def _check_headers(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError("headers are a mapping of str to str")
        if not is_header_name(name) or not is_header_value(value):
            raise ValueError("a header has a character that may not stand in one")
