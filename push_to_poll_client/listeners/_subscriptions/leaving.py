"""HOW WHAT WAS REPLACED IS STOPPED: until the server has said so, or it has ended by itself."""

import logging
import math

import anyio

from push_to_poll_client.listeners._failure import only
from push_to_poll_client.listeners._reconnect import Reconnect
from push_to_poll_client.listeners._subscriptions.failures import failure_of, is_gone
from push_to_poll_client.listeners._subscriptions.nouns import Registration, Subscription
from push_to_poll_client.listeners._subscriptions.when import Now

__all__ = ["Leaving"]

STOP_TIMEOUT = 30.0
"""Seconds for the subscription to stop one."""

MAX_ATTEMPTS = 10
"""After which one that does not end by itself is left: after some 4 minutes if the server is
down, and 50 if it refuses."""


class Leaving:
    """Stops subscriptions, one after the other, each again until it is over.

    Args:
        subscription: What stops them.
        log: Where it is told.
    """

    def __init__(self, subscription: Subscription, log: logging.Logger) -> None:
        self._subscription = subscription
        self._log = log
        self._begin()

    def _begin(self) -> None:
        self._reconnect = Reconnect()
        self._not_before = -math.inf
        self._attempts = 0

    def wait(self, one: Registration, now: Now) -> float:
        """Seconds until the next attempt, or until there is no more to stop."""
        ends = math.inf if one.expires_at is None else one.expires_at - now.wall
        return max(min(self._not_before - now.steady, ends), 0.0)

    async def stop(self, one: Registration, now: Now, fraction: float) -> bool:
        """Ask the server to push no more.

        Args:
            one: Of what.
            now: This moment.
            fraction: A random number, 0 ≤ fraction < 1.

        Returns:
            Whether that is over and done: it was stopped, it ended, or nothing helps.
        """
        over = one.expires_at is not None and one.expires_at <= now.wall
        over = over or await self._is_stopped(one, now, fraction)
        if over:
            self._begin()
        return over

    async def _is_stopped(self, one: Registration, now: Now, fraction: float) -> bool:
        try:
            with anyio.fail_after(STOP_TIMEOUT):
                await self._subscription.stop(one)
        except Exception as failed:  # noqa: BLE001 - what is left ends by itself, or is answered that it is gone
            error = only(failed).with_traceback(None)
            return is_gone(error) or self._is_given_up(error, one, now, fraction)
        self._log.info("%s: stopped what was replaced", self._subscription.name)
        return True

    def _is_given_up(self, error: Exception, one: Registration, now: Now, fraction: float) -> bool:
        failure = failure_of(error)
        delay = self._reconnect.delay(failure.verdict, fraction=fraction, retry_after=failure.retry_after)
        self._attempts += 1
        endless = one.expires_at is None and self._attempts >= MAX_ATTEMPTS
        if delay is None or endless:
            self._log.warning(
                "%s: could not be stopped, and is left: %s", self._subscription.name, failure.sentence
            )
            return True
        self._log.info(
            "%s: not stopped, trying again in %.1f s: %s", self._subscription.name, delay, failure.sentence
        )
        self._not_before = now.steady + delay
        return False
