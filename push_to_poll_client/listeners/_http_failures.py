"""WHAT a request that failed means for a channel: a verdict for the next one, and a sentence for log and status.

A browser gives up for good on every answer that is no stream (WHATWG HTML §9.2.3). A program that runs for months
must not: 429 and 503 pass, and a 404 is mended by the next deployment. The verdicts stand in the table below and
in `STATUS_VERDICTS`.
"""

import ssl
import time
from collections.abc import Sequence
from http import HTTPStatus

import httpx

from push_to_poll_client._exceptions import PushToPollError
from push_to_poll_client._http.credentials import CredentialsFailed
from push_to_poll_client._http.headers import asked_to_wait
from push_to_poll_client.listeners._failure import REDIRECTS_STAY_HOME, Failure, by_type, causes, told
from push_to_poll_client.listeners._reconnect import Verdict, verdict_of_status
from push_to_poll_client.listeners._sending import ProxyUnusable, SocksUnusable, UnusableRedirect

__all__ = ["http_failure_of", "refusal"]

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

SPEAKING = (OSError, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)
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
    response = refusal(error)
    status = None if response is None else response.status_code
    chain, table = causes(error, hidden=True), (*verdicts, *ERROR_VERDICTS)
    return Failure(
        by_type(chain, table) if status is None else verdict_of_status(status),
        _sentence(error) if status is None else _what_it_answered(status, wanted),
        retry_after=None if response is None else asked_to_wait(status or 0, response.headers, time.time()),
        unauthorized=status == HTTPStatus.UNAUTHORIZED,
        hid_a_push=False,
        # A cause is printed with its text, and these quote what may hold a secret.
        cause=None if isinstance(error, httpx.LocalProtocolError) else error,
    )


def refusal(error: Exception) -> httpx.Response | None:
    """The answer that was none; `None`: something else failed."""
    return error.response if isinstance(error, httpx.HTTPStatusError) else None


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, PushToPollError) else told(causes(error, hidden=True), SPEAKING)


def _what_it_answered(status: int, wanted: str) -> str:
    what = f"the server answered HTTP {status} instead of {wanted}"
    return f"{what}; {REDIRECTS_STAY_HOME}" if httpx.codes.is_redirect(status) else what
