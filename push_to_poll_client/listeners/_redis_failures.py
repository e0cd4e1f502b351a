"""WHAT a failed connection to Redis or Valkey means: a verdict for the next, and a sentence for status."""

from push_to_poll_client.listeners._failure import Failure, by_type, causes, told
from push_to_poll_client.listeners._reconnect import Verdict

__all__ = ["failure_of"]


def failure_of(error: Exception) -> Failure:
    """What a failure means, and how it is told."""
    from redis import exceptions

    verdicts: tuple[tuple[type[Exception], Verdict], ...] = (
        (exceptions.AuthenticationError, Verdict.SLOW_RETRY),  # a kind of ConnectionError, as the next two are
        (exceptions.AuthorizationError, Verdict.SLOW_RETRY),
        (exceptions.ConnectionError, Verdict.RETRY),  # too many clients too, and BusyLoadingError
        (exceptions.ClusterDownError, Verdict.RETRY),  # a replica whose master is away
        (exceptions.ResponseError, Verdict.SLOW_RETRY),  # not permitted, no such database, not a Redis
        (exceptions.DataError, Verdict.SLOW_RETRY),
        (Exception, Verdict.RETRY),  # the network, silence, garbage, and what is unknown
    )
    speaking = (OSError, TimeoutError, exceptions.RedisError)
    return Failure(
        by_type([error], verdicts),
        told(causes(error), speaking),
        retry_after=None,
        unauthorized=False,
        hid_a_push=False,
        cause=error if isinstance(error, speaking) else None,
    )
