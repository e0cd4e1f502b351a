"""Classify the end of a connection: the next action, and a sentence for log and status.

The first part serves all channels, `http_failure_of` those that use HTTP. A browser gives up permanently after
every response that is not a stream (WHATWG HTML §9.2.3). A program that runs for months must not: 429 and 503 are
transient, and the next deployment may fix a 404. The rules are in `ERROR_ACTIONS`, and in `STATUS_ACTIONS` of
`_backoff.py`.
"""

import ssl
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple

import httpx

from push_to_poll_client._exceptions import ListenerError, PushToPollError
from push_to_poll_client._http.credentials import CredentialsFailed
from push_to_poll_client._http.headers import requested_delay
from push_to_poll_client._http.transport import ProxyUnusable, SocksUnusable, UnusableRedirect
from push_to_poll_client._secrets import error_chain, mask, shows_a_secret
from push_to_poll_client._validation import one_line, quoted
from push_to_poll_client.listeners._backoff import ReconnectAction, action_of_status
from push_to_poll_client.listeners._requests import UnusableResponse

MAX_TEXT = 200
"""Characters of a server's text quoted in a sentence, so that a log line stays short."""

REDIRECTS_NOT_FOLLOWED = (
    "redirects are not followed, to keep the credentials at their server: configure the new URL"
)
"""Part of a sentence. Any header may hold a secret, and secrets go only to their origin (G12)."""


class ConnectionEnded(PushToPollError):
    """Orderly end of a connection, by the server, the caller's function or a limit of this side."""


class Failure(NamedTuple):
    """End of a connection, or of an attempt to open one."""

    action: ReconnectAction
    sentence: str
    cause: Exception | None  # to show with its traceback; None if it may quote a secret
    retry_after: float | None = None
    unauthorized: bool = False  # new credentials may help
    hid_a_push: bool = False  # unread data may have been a push
    orderly: bool = False  # some servers end a connection after each push or some seconds

    def to_error(self, name: str, *, is_final: bool = False) -> PushToPollError:
        """Return the error to report, without secrets that the server repeated."""
        text = mask(f"{name}: {self.sentence}")
        final = f"{text}; a retry cannot help: correct the arguments of this listener, or remove it"
        error = ListenerError(final) if is_final else PushToPollError(text)
        error.__cause__ = None if self.cause is None or shows_a_secret(self.cause) else self.cause
        return error


MAX_CAUSES = 10
"""Errors in a chain of causes that are searched."""


def forget_frames(error: Exception, handled: BaseException | None) -> None:
    """Drop the tracebacks of an error and its causes, which hold headers and clients."""
    # The status keeps the error for a long time. `handled` was being handled when `listen` was called. It is the
    # context of each error, and is left alone.
    for one in error_chain(error):
        if one.__context__ is handled:
            one.__context__ = None
        one.__traceback__ = None


def failure_of_error(
    error: Exception,
    actions: Sequence[tuple[type[Exception], ReconnectAction]],
    quotable: tuple[type[BaseException], ...],
) -> Failure:
    """Classify an error by the first row of `actions` that fits its chain, without secrets."""
    # The text of an error that is not `quotable` may hold a secret: it is not shown, neither as a cause.
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and len(chain) < MAX_CAUSES:
        chain.append(current)
        # The context too: httpcore raises `from None`, which hides the reason of a failed TLS handshake.
        current = current.__cause__ or current.__context__
    sentence = one_line(str(error))
    if not isinstance(error, PushToPollError):
        found = next((cause for cause in chain if isinstance(cause, quotable) and str(cause)), None)
        sentence = f"failed with {type(error).__name__}"
        sentence = sentence if found is None else f"{type(found).__name__}: {quoted(found, MAX_TEXT)}"
    action = next(action for kind, action in actions if any(isinstance(cause, kind) for cause in chain))
    cause = error if isinstance(error, (PushToPollError, *quotable)) else None
    return Failure(action, sentence, cause, orderly=isinstance(error, ConnectionEnded))


ERROR_ACTIONS: tuple[tuple[type[Exception], ReconnectAction], ...] = (
    (UnusableResponse, ReconnectAction.SLOW_RETRY),  # the next response will be the same
    (CredentialsFailed, ReconnectAction.RETRY),  # whatever the provider's reason is
    (ssl.SSLCertVerificationError, ReconnectAction.SLOW_RETRY),  # a wrong certificate, or an eavesdropper
    (ProxyUnusable, ReconnectAction.SLOW_RETRY),
    (UnusableRedirect, ReconnectAction.SLOW_RETRY),
    (httpx.LocalProtocolError, ReconnectAction.SLOW_RETRY),  # the request has an invalid header
    (SocksUnusable, ReconnectAction.GIVE_UP),  # a library is missing
    (Exception, ReconnectAction.RETRY),  # the network, silence, malformed responses, and unknown errors
)
"""Actions after errors without an HTTP status. The first matching row counts."""

SAFE_TO_QUOTE = (
    OSError,
    httpx.TimeoutException,
    httpx.NetworkError,
    httpx.RemoteProtocolError,
    httpx.ProxyError,
)
"""Errors whose text holds no secret. (`LocalProtocolError` quotes a header.)"""


def http_failure_of(
    error: Exception, *, wanted: str, actions: Sequence[tuple[type[Exception], ReconnectAction]] = ()
) -> Failure:
    """Classify and describe an HTTP failure; `actions` are searched before `ERROR_ACTIONS`."""
    response = error_response(error)
    if response is not None:
        return failure_of_status(error, response.status_code, response.headers, wanted=wanted)
    return failure_of_error(error, (*actions, *ERROR_ACTIONS), SAFE_TO_QUOTE)


def failure_of_status(error: Exception, status: int, headers: Mapping[str, str], *, wanted: str) -> Failure:
    """Classify and describe a response with a wrong status."""
    sentence = f"the server answered HTTP {status} instead of {wanted}"
    return Failure(
        action_of_status(status),
        f"{sentence}; {REDIRECTS_NOT_FOLLOWED}" if httpx.codes.is_redirect(status) else sentence,
        error,
        retry_after=requested_delay(status, headers, time.time()),
        unauthorized=status == HTTPStatus.UNAUTHORIZED,
    )


def error_response(error: Exception) -> httpx.Response | None:
    """Return the response with a wrong status; None if something else failed."""
    return error.response if isinstance(error, httpx.HTTPStatusError) else None
