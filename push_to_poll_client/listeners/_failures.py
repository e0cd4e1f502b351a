"""Why a connection ended: a verdict for the next attempt, and a sentence for log and status.

A browser gives up for good on every answer that is no stream (WHATWG HTML §9.2.3). A program that runs for months
must not: 429 and 503 pass, and a 404 is mended by the next deployment. The verdicts stand in the table below and
in `STATUS_VERDICTS`.
"""

import itertools
import ssl
import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import NamedTuple

import httpx

from push_to_poll_client._exceptions import PushToPollError
from push_to_poll_client._http.credentials import CredentialsFailed
from push_to_poll_client._http.headers import requested_delay
from push_to_poll_client._validation import quoted
from push_to_poll_client.listeners._backoff import Verdict, verdict_of_status
from push_to_poll_client.listeners._requests import ProxyUnusable, SocksUnusable, UnusableRedirect

__all__ = [
    "MAX_TEXT",
    "REDIRECTS_NOT_FOLLOWED",
    "Failure",
    "causes",
    "describe_error",
    "error_response",
    "http_failure_of",
    "unwrap_group",
    "verdict_by_type",
]


MAX_TEXT = 200
"""Characters of foreign text in a sentence: a log line stays a line."""

MAX_CAUSES = 10
"""Links of a chain of causes that are looked at."""

REDIRECTS_NOT_FOLLOWED = (
    "redirects are not followed, since credentials stay with their origin: use the new address"
)
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


def unwrap_group(error: Exception) -> Exception:
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


def verdict_by_type(chain: Sequence[BaseException], table: Sequence[tuple[type[Exception], Verdict]]) -> Verdict:
    """The verdict of the first row that is found among an error and its causes; the last row is for all."""
    return next(verdict for kind, verdict in table if any(isinstance(cause, kind) for cause in chain))


def describe_error(chain: Sequence[BaseException], speaking: tuple[type[BaseException], ...]) -> str:
    """An error that has no sentence of its own: by type and text, or by its type alone.

    Args:
        chain: The error and its causes.
        speaking: Errors whose text holds nothing that was entrusted to us.
    """
    known = next((cause for cause in chain if isinstance(cause, speaking) and str(cause)), None)
    what = type(chain[0] if known is None else known).__name__
    return f"failed with {what}" if known is None else f"{what}: {quoted(known, MAX_TEXT)}"


ERROR_VERDICTS: tuple[tuple[type[Exception], Verdict], ...] = (
    (CredentialsFailed, Verdict.RETRY),  # whatever the provider's own reason was
    (ssl.SSLCertVerificationError, Verdict.SLOW_RETRY),  # somebody must mend the certificate, or is listening in
    (ProxyUnusable, Verdict.SLOW_RETRY),
    (UnusableRedirect, Verdict.SLOW_RETRY),  # the next answer will be like it
    (httpx.LocalProtocolError, Verdict.SLOW_RETRY),  # what was to be sent cannot be sent
    (SocksUnusable, Verdict.GIVE_UP),  # a library is missing
    (Exception, Verdict.RETRY),  # the network, silence, garbage, and what is unknown
)
"""What ends a request other than a status."""

SAFE_TO_QUOTE = (OSError, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)
"""Errors whose text holds nothing that was entrusted to us. (`LocalProtocolError` quotes a header.)"""


def http_failure_of(
    error: Exception, *, wanted: str, verdicts: Sequence[tuple[type[Exception], Verdict]] = ()
) -> Failure:
    """What a failure means, and how it is told.

    Args:
        error: What happened; an `httpx.HTTPStatusError` for an answer that was none.
        wanted: What the server should have answered, as "an event stream".
        verdicts: What errors of the caller's own mean; asked first.
    """
    response = error_response(error)
    status = None if response is None else response.status_code
    chain, table = causes(error, hidden=True), (*verdicts, *ERROR_VERDICTS)
    return Failure(
        verdict_by_type(chain, table) if status is None else verdict_of_status(status),
        _describe_failure(error) if status is None else _describe_status(status, wanted),
        retry_after=None if response is None else requested_delay(status or 0, response.headers, time.time()),
        unauthorized=status == HTTPStatus.UNAUTHORIZED,
        hid_a_push=False,
        # A cause is printed with its text, and these quote what may hold a secret.
        cause=None if isinstance(error, httpx.LocalProtocolError) else error,
    )


def error_response(error: Exception) -> httpx.Response | None:
    """The answer that was none; `None`: something else failed."""
    return error.response if isinstance(error, httpx.HTTPStatusError) else None


def _describe_failure(error: Exception) -> str:
    return (
        str(error)
        if isinstance(error, PushToPollError)
        else describe_error(causes(error, hidden=True), SAFE_TO_QUOTE)
    )


def _describe_status(status: int, wanted: str) -> str:
    what = f"the server answered HTTP {status} instead of {wanted}"
    return f"{what}; {REDIRECTS_NOT_FOLLOWED}" if httpx.codes.is_redirect(status) else what
