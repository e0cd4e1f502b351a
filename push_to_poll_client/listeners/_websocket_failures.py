"""WHAT a failed websocket connection means: a verdict for the next one, and a sentence for log and status.

The verdicts stand in the two tables below and in `STATUS_VERDICTS`. What the server wrote (close reasons, header
values) is hostile text: it is escaped and cut before it reaches a sentence. What may hold a secret of ours (the
address of a proxy, an error we do not know) is named by its type alone.
"""

import ssl
import time

from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidProxy,
    InvalidProxyStatus,
    InvalidStatus,
    NegotiationError,
    ProxyError,
)
from websockets.frames import Close, CloseCode

from push_to_poll_client._exceptions import PushToPollError
from push_to_poll_client._http.credentials import CredentialsFailed
from push_to_poll_client._http.headers import asked_to_wait
from push_to_poll_client._validation import quoted
from push_to_poll_client.listeners._failure import MAX_TEXT, REDIRECTS_STAY_HOME, Failure, by_type, causes, told
from push_to_poll_client.listeners._reconnect import Verdict, verdict_of_status

__all__ = ["NoCommonSubprotocol", "failure_of", "hid_a_push", "sentence", "verdict_of"]


class NoCommonSubprotocol(NegotiationError):
    """The server chose none of the subprotocols that were offered. What it answers unasked may be a proxy's."""


CLOSE_VERDICTS = {
    1002: Verdict.SLOW_RETRY,  # protocol error
    1003: Verdict.SLOW_RETRY,  # unsupported data
    1007: Verdict.SLOW_RETRY,  # invalid data: text that is not UTF-8
    1008: Verdict.SLOW_RETRY,  # policy violation: often a token that ran out
    1009: Verdict.SLOW_RETRY,  # message too big
    1010: Verdict.SLOW_RETRY,  # an extension is missing
    3000: Verdict.SLOW_RETRY,  # unauthorized
    3003: Verdict.SLOW_RETRY,  # forbidden
}
"""Close codes (RFC 6455 §7.4 and the IANA registry) that no soon retry mends. All others are retried: 1000 and
1001 (a server is replaced), 1005 and 1006 (an empty close frame, or none), 1011 to 1014 (the server's trouble),
and what this library cannot know, 4000-4999 among it, whose meaning is the application's (`classify=`)."""

ERROR_VERDICTS: tuple[tuple[type[Exception], Verdict], ...] = (
    (CredentialsFailed, Verdict.RETRY),  # whatever the provider's own reason was
    (ssl.SSLCertVerificationError, Verdict.SLOW_RETRY),  # somebody must mend the certificate, or is listening in
    (EOFError, Verdict.RETRY),  # the connection broke off before the handshake's answer
    (OSError, Verdict.RETRY),  # the network, a name not found, a timeout, silence
    (NoCommonSubprotocol, Verdict.GIVE_UP),  # one of the two sides has to be changed
    (ImportError, Verdict.GIVE_UP),  # a SOCKS proxy without python-socks
    (ProxyError, Verdict.RETRY),  # the proxy is down or answers garbage
    (InvalidProxy, Verdict.SLOW_RETRY),  # the proxy's address in the environment is none
    (InvalidHandshake, Verdict.SLOW_RETRY),  # the answer opens no websocket
    (Exception, Verdict.RETRY),  # unknown: the listener must not stop for good because of it
)
"""What else ends a connection, or an attempt at one. The first row that is found among the error and its causes
counts: trio hides the reason of a failed TLS handshake in the cause."""

UNAUTHORIZED_STATUS = 401
UNAUTHORIZED_CLOSE_CODES = frozenset({1008, 3000})
"""Refusals that fresh credentials may mend: so ends a connection whose token runs out while it lasts."""

UNREADABLE_CLOSE_CODES = frozenset({1002, 1007, 1009})
"""Codes with which this side closes when it cannot read what arrived."""

REDIRECTS = range(300, 400)

SPEAKING = (OSError, InvalidHandshake, ImportError)
"""Errors whose text holds nothing that was entrusted to us. (`InvalidProxy` quotes the proxy's password.)"""


def failure_of(error: Exception) -> Failure:
    """What a failure means, and how it is told."""
    return Failure(
        verdict_of(error),
        sentence(error),
        retry_after=_retry_after(error),
        unauthorized=_unauthorized(error),
        hid_a_push=hid_a_push(error),
        # A cause is printed with its traceback, and that of a proxy's address quotes the password in it.
        cause=None if isinstance(error, InvalidProxy) else error,
    )


def verdict_of(error: Exception) -> Verdict:
    """What a failure means, as far as this library can know."""
    if isinstance(error, ConnectionClosed):
        return CLOSE_VERDICTS.get(_close_code(error), Verdict.RETRY)
    if isinstance(error, InvalidStatus):
        return verdict_of_status(error.response.status_code)
    if isinstance(error, InvalidProxyStatus):
        return _verdict_of_proxy_status(error.response.status_code)
    return by_type(causes(error), ERROR_VERDICTS)


def _verdict_of_proxy_status(status: int) -> Verdict:
    verdict = verdict_of_status(status)
    # A proxy cannot know that a channel behind it is gone for good.
    return Verdict.SLOW_RETRY if verdict is Verdict.GIVE_UP else verdict


def _unauthorized(error: Exception) -> bool:
    """Whether fresh credentials may mend it."""
    if isinstance(error, ConnectionClosed):
        return not _by_us(error) and _close_code(error) in UNAUTHORIZED_CLOSE_CODES
    return isinstance(error, InvalidStatus) and error.response.status_code == UNAUTHORIZED_STATUS


def _retry_after(error: Exception) -> float | None:
    """Seconds that the server, or the proxy, asked to be left alone (RFC 9110 §10.2.3); `None`: it did not."""
    if not isinstance(error, InvalidStatus | InvalidProxyStatus):
        return None
    return asked_to_wait(error.response.status_code, error.response.headers, time.time())


def hid_a_push(error: Exception) -> bool:
    """Whether this side closed because it could not read a message. It may have been a push all the same."""
    return isinstance(error, ConnectionClosed) and _by_us(error) and _close_code(error) in UNREADABLE_CLOSE_CODES


def sentence(error: Exception) -> str:
    """What happened, on one line, without secrets and with nothing in it that a terminal would obey."""
    if isinstance(error, ConnectionClosed):
        return _how_it_closed(error)
    if isinstance(error, InvalidStatus):
        return _what_it_answered(error.response.status_code)
    if isinstance(error, PushToPollError):
        return str(error)
    if isinstance(error, InvalidProxy):
        return "the address of the proxy in the environment is not valid"
    return told(causes(error), SPEAKING)


def _how_it_closed(error: ConnectionClosed) -> str:
    close = error.sent if _by_us(error) else error.rcvd
    if close is None:
        return "the connection was lost without a close frame"
    who = "this side" if _by_us(error) else "the server"
    what = f"{who} closed the connection with {Close(close.code, '')}"
    return f"{what}: {quoted(close.reason, MAX_TEXT)}" if close.reason else what


def _what_it_answered(status: int) -> str:
    what = f"the server answered HTTP {status} instead of opening a websocket"
    return f"{what}; {REDIRECTS_STAY_HOME}" if status in REDIRECTS else what


def _by_us(error: ConnectionClosed) -> bool:
    return error.sent is not None and not error.rcvd_then_sent


def _close_code(error: ConnectionClosed) -> int:
    close = error.sent if _by_us(error) else error.rcvd
    return CloseCode.ABNORMAL_CLOSURE if close is None else close.code
