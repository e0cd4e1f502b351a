"""WHAT a failed connection to PostgreSQL means: a verdict for the next one, and a sentence for log and status.

What goes wrong on an open connection has a SQLSTATE (PostgreSQL, appendix A). What goes wrong while connecting has
none: libpq gives the server's sentence alone, in the server's language. So a sentence that is known to last is
retried slowly, and one in another language as what passes.
"""

from push_to_poll_client.listeners._failure import Failure, causes, told
from push_to_poll_client.listeners._reconnect import Verdict

__all__ = ["failure_of"]

PASSING_STATES = ("08", "40", "53", "55", "57", "58", "XX")
"""Classes of SQLSTATE that pass: connections, rollbacks, resources (53300: too many clients), objects in use,
operator (57P01: shutdown, 57P03: starting), system, internal. Any other is retried slowly: 28 (who are you), 3D
(no such database), 42 (not permitted), 25 (a standby takes no LISTEN), 0A (not supported), …"""

LASTING_SENTENCES = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "does not exist",
    "permission denied",
    "is not permitted",
    "certificate verify failed",
    "does not support SSL",
    "invalid ",  # an option that libpq does not know, or a value
)
"""What only a human mends, of what a server and libpq say while connecting."""


def failure_of(error: Exception) -> Failure:
    """What a failure means, and how it is told."""
    import psycopg

    speaking = (OSError, TimeoutError, psycopg.OperationalError, psycopg.DatabaseError, psycopg.InterfaceError)
    is_told = isinstance(error, speaking) and not isinstance(error, psycopg.ProgrammingError)
    return Failure(
        _verdict(error, getattr(error, "sqlstate", None)),
        told(causes(error), speaking) if is_told else f"failed with {type(error).__name__}",
        retry_after=None,
        unauthorized=False,
        hid_a_push=isinstance(error, UnicodeDecodeError),  # a payload that is no text of the database's encoding
        cause=error if is_told else None,
    )


def _verdict(error: Exception, state: str | None) -> Verdict:
    import psycopg

    if not isinstance(error, psycopg.Error):
        return Verdict.RETRY  # the network, silence, and what is unknown
    if state is not None:
        return Verdict.RETRY if state.startswith(PASSING_STATES) else Verdict.SLOW_RETRY
    if isinstance(error, psycopg.OperationalError) and not any(text in str(error) for text in LASTING_SENTENCES):
        return Verdict.RETRY
    return Verdict.SLOW_RETRY
