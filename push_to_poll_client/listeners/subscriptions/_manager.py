"""Keep a subscription alive: create it, renew it, replace it when it is lost, and stop it.

The saved state and the times of renewals are in `_state.py`. Replaced registrations are stopped one after the
other. Each attempt is repeated until the registration is stopped, has expired, or was tried ten times.
"""

import logging
import math
import random
import sys
import traceback
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

import anyio

from push_to_poll_client import _event_loop
from push_to_poll_client._event_loop import EventLoop, in_own_task, sole_cause
from push_to_poll_client._exceptions import ListenerError, PushToPollError, SubscriptionGone
from push_to_poll_client._json import DECODE_ERRORS
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._protocols import Channel
from push_to_poll_client._secrets import mask
from push_to_poll_client._validation import describe
from push_to_poll_client.listeners._backoff import ReconnectAction, ReconnectBackoff
from push_to_poll_client.listeners._failures import Failure, error_response, forget_frames, http_failure_of
from push_to_poll_client.listeners._webhook.types import Control
from push_to_poll_client.listeners.subscriptions._state import (
    MAX_SLEEP,
    MissedPushes,
    Now,
    Renewal,
    SubscriptionState,
    check_registration,
    is_over,
    renewal_time,
)
from push_to_poll_client.listeners.subscriptions._types import Registration, Subscription, SubscriptionRefused

_log = ConsumerLog(logging.getLogger("push_to_poll_client.listeners.subscriptions"))

STOP_TIMEOUT = 30.0
"""Seconds for the subscription to stop one registration."""

MAX_ATTEMPTS = 10
"""Attempts to stop a registration: about 4 minutes if the server is down, 50 if it refuses."""


_ACTIONS: tuple[tuple[type[Exception], ReconnectAction], ...] = (
    (ListenerError, ReconnectAction.GIVE_UP),
    (SubscriptionRefused, ReconnectAction.SLOW_RETRY),
)

_GONE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})


def failure_of(error: Exception) -> Failure:
    """Classify an error and describe it. `httpx.HTTPStatusError` is classified by its status."""
    error = sole_cause(error)
    failure = http_failure_of(error, wanted="a subscription", actions=_ACTIONS)
    sentence = failure.sentence
    # An error without an own description is probably a bug in the caller's function: name the line.
    if sentence == f"failed with {type(error).__name__}" and (frames := traceback.extract_tb(error.__traceback__)):
        sentence += f" in {frames[-1].name}, line {frames[-1].lineno} of {Path(frames[-1].filename).name}"
    return failure._replace(sentence=sentence)


def is_gone(error: Exception) -> bool:
    """Return True if the server no longer has the subscription."""
    error = sole_cause(error)
    response = error_response(error)
    return isinstance(error, SubscriptionGone) or (response is not None and response.status_code in _GONE)


_T = TypeVar("_T")

CALL_TIMEOUT = 300.0
"""Seconds to create or renew. A request times out long before. A call that hangs must not end the pushes."""

EXIT_TIMEOUT = 5.0
"""Seconds to stop all subscriptions at exit: less than a service manager waits before it kills."""


class SubscriptionManager:
    """Keeps one subscription alive while `run` runs."""

    # A restart continues with the saved state, without a new subscription. If the subscription's identity changed,
    # a new one is created first, then the old one is stopped. `unsubscribe_on_exit` takes at most 5 seconds. A
    # registration that is not stopped by then is stopped by the next run, once that has a new one.

    def __init__(self, subscription: Subscription, *, unsubscribe_on_exit: bool = False) -> None:
        self.name = subscription.name
        # True while `run` runs and the subscription knows the registrations in the store. Thread-safe.
        self.is_loaded = False
        self._subscription = subscription
        self._unsubscribe_on_exit = unsubscribe_on_exit
        self._identity = str(getattr(subscription, "identity", subscription.name))
        self._fraction: Callable[[], float] = random.random
        self._channel: Channel
        self._handled: BaseException | None
        self._waiting: tuple[EventLoop, anyio.Event] | None = None
        self._controls: set[Control] = set()
        self._is_requesting = False
        self._reset()
        self._adopt = getattr(subscription, "adopt", lambda _: None)
        getattr(subscription, "bind", lambda _: None)(self.control)

    def _reset(self) -> None:
        self._state = self._saved_state = SubscriptionState()
        self._renewal = Renewal()
        self._missed_pushes = MissedPushes()
        self._reconnect = ReconnectBackoff()
        self._has_expired = False
        self._reset_stop()

    def _reset_stop(self) -> None:
        self._stop_reconnect = ReconnectBackoff()
        self._stop_attempts = 0
        self._next_stop = -math.inf

    @property
    def expects_handshake(self) -> bool:
        """True while the server may send a handshake after a request. Thread-safe."""
        return self._is_requesting or self._state.planned is not None

    def control(self, control: Control) -> None:
        """Report what the server said about the subscription itself. Thread-safe, never blocks."""
        # `RENEW`: at least 15 seconds after the registration. `RECREATE`: after a backoff. `MISSED`: poll. A
        # control that comes while `run` is not running takes effect when it runs again.
        self._controls.add(control)
        if (waiting := self._waiting) is not None:
            loop, event = waiting
            loop.call(event.set)

    async def run(self, channel: Channel) -> None:
        """Keep the subscription alive until cancelled. Run for one consumer at a time."""
        self._channel, self._handled = channel, sys.exception()
        self._reset()
        try:
            self._restore()
            self.is_loaded = True
            while True:
                await self._step()
        finally:
            self._waiting, self.is_loaded = None, False
            if self._unsubscribe_on_exit or self._state != self._saved_state:
                await in_own_task(self._shut_down)

    # The next step

    async def _step(self) -> None:
        control_event = anyio.Event()
        self._waiting = EventLoop(), control_event
        await self._apply_controls()
        now, current, leaving = self._now(), self._state.current, self._state.leaving
        self._check_expiry(now)
        self._check_missed_pushes(now)
        wait, stop_wait = self._renewal.wait(now), math.inf
        # A replaced registration is stopped only when the new one is active.
        if leaving and current is not None and self._state.planned is None:
            stop_wait = 0.0 if is_over(leaving[0], now) else self._next_stop - now.steady
        if min(wait, stop_wait) > 0:
            with anyio.move_on_after(min(wait, stop_wait, MAX_SLEEP)):
                await control_event.wait()
        elif wait > 0:
            await self._stop(leaving[0])
        elif current is None or self._state.planned is not None:
            await self._create()
        else:
            await self._renew(current)

    async def _apply_controls(self) -> None:
        controls = {self._controls.pop() for _ in range(len(self._controls))}
        if Control.MISSED in controls:
            self._channel.request_poll()
        if self._state.current is None:
            return
        if Control.RECREATE in controls:
            await self._handle_loss("the server has dropped the subscription")
        elif Control.RENEW in controls:
            self._renewal.make_due()

    def _check_expiry(self, now: Now) -> None:
        """Report once that the subscription expired before it was renewed."""
        if is_over(self._state.current, now) and not self._has_expired:
            self._has_expired = True
            _log.warning("%s: expired before it could be renewed; no pushes arrive, still retrying", self.name)
            self._channel.subscribed(None)
            self._channel.down(PushToPollError(f"{self.name}: the subscription has expired"))

    def _check_missed_pushes(self, now: Now) -> None:
        """Renew early if polls find messages that no push announced."""
        if self._state.current is None or self._state.planned is not None or self._has_expired:
            return
        if self._missed_pushes.is_renewal_due(self._channel.missed_in_a_row, now):
            _log.warning(
                "%s: polls found messages that no push announced; renewing the subscription, since the server "
                "may have forgotten it",
                self.name,
            )
            self._renewal.make_due()

    # The state

    def _restore(self) -> None:
        if (text := self._channel.state) is not None:
            try:
                self._state = SubscriptionState.from_text(text, self._identity)
            except DECODE_ERRORS:
                _log.warning("%s: the saved subscription state cannot be read; subscribing again", self.name)
        self._saved_state = self._state
        self._adopt(self._state.registrations)
        if (current := self._state.current) is not None:
            now = self._now()
            due = math.inf if self._state.renew_at is None else self._state.renew_at
            self._renewal.registered(current, due, now, just_now=False)
            if not is_over(current, now):
                _log.info("%s: using the registration of an earlier run", self.name)
                self._report_up(current, now)
        if self._state.planned is not None or getattr(self._subscription, "renewable", False):
            self._renewal.make_due()

    async def _save(self, state: SubscriptionState) -> None:
        """Save the state, before any action that depends on it."""
        self._state = state
        self._adopt(state.registrations)
        try:
            await self._channel.save(state.to_text(self._identity))
        except ValueError as error:
            raise ListenerError(f"{self.name}: cannot save the subscription state: {error}") from None
        self._saved_state = state

    async def _registered(
        self, in_state: Callable[[Registration, float], SubscriptionState], current: Registration
    ) -> None:
        due = renewal_time(current, self._now().wall, self._fraction())
        await self._save(in_state(current, due))
        now = self._now()
        self._renewal.registered(current, due, now, just_now=True)
        self._has_expired = is_over(current, now)
        if self._has_expired:
            _log.warning("%s: registered until a time in the past; check this machine's clock", self.name)
        else:
            delay = due - now.wall
            when = "never" if math.isinf(delay) else f"in {delay:.0f} s"
            _log.info("%s: registered; next renewal: %s", self.name, when)
        self._report_up(current, now)

    def _report_up(self, current: Registration, now: Now) -> None:
        self._reconnect.connected(now.steady)
        self._missed_pushes.registered(self._channel.missed_in_a_row)
        self._channel.subscribed(math.inf if current.expires_at is None else current.expires_at)
        self._channel.up()

    # Requests to the server

    async def _create(self) -> None:
        planned = self._state.planned
        if planned is None:
            planned = self._subscription.plan()
            await self._save(self._state.plan(planned))
        try:
            registration = check_registration(await self._request(self._subscription.create, planned), "create")
        except Exception as error:  # noqa: BLE001 - the failure's action decides what happens next
            if isinstance(sole_cause(error), SubscriptionGone):
                await self._save(self._state.plan_failed())
            self._handle_failure(failure_of(error))
        else:
            await self._registered(self._state.created, registration)

    async def _renew(self, current: Registration) -> None:
        try:
            answer = await self._request(self._subscription.renew, current)
            renewed = None if answer is None else check_registration(answer, "renew")
        except Exception as error:  # noqa: BLE001 - as in `_create`
            if is_gone(error):
                await self._handle_loss(failure_of(error).sentence)
            else:
                self._handle_failure(failure_of(error))
            return
        if renewed is None:
            self._renewal.make_due()
            await self._save(self._state.plan(self._subscription.plan()))
        else:
            await self._registered(self._state.renewed, renewed)

    async def _request(self, call: Callable[[Registration], Awaitable[_T]], registration: Registration) -> _T:
        self._is_requesting = True
        try:
            with anyio.fail_after(CALL_TIMEOUT):
                return await call(registration)
        finally:
            self._is_requesting = False

    async def _handle_loss(self, why: str) -> None:
        await self._save(self._state.lost())
        self._renewal.make_due()
        self._channel.subscribed(None)
        self._handle_failure(Failure(ReconnectAction.RETRY, f"lost: {why}", None))

    def _handle_failure(self, failure: Failure) -> None:
        """Report a failure and schedule the next attempt, or raise `ListenerError`."""
        now = self._now()
        self._reconnect.ended(now.steady)
        delay = self._reconnect.delay(failure.action, fraction=self._fraction(), retry_after=failure.retry_after)
        if failure.cause is not None:
            forget_frames(failure.cause, self._handled)
        report = failure.to_error(self.name, is_final=delay is None)
        if self._state.current is None or is_over(self._state.current, now) or delay is None:
            self._channel.down(report)
        if delay is None:
            _log.error("%s: %s; stopping the consumer", self.name, mask(failure.sentence))
            raise report
        level = logging.WARNING if failure.action is ReconnectAction.SLOW_RETRY else logging.INFO
        _log.log(level, "%s; retrying in %.1f s", report, delay)
        self._renewal.failed(delay, now)

    # Stopping

    async def _stop(self, registration: Registration) -> None:
        """Ask the server to stop pushing, unless the registration has expired."""
        if not is_over(registration, self._now()):
            try:
                with anyio.fail_after(STOP_TIMEOUT):
                    await self._subscription.stop(registration)
                _log.info("%s: stopped the replaced registration", self.name)
            except Exception as error:  # noqa: BLE001 - retried, unless the server no longer has it
                if not is_gone(error) and not self._leaves(failure_of(error)):
                    return
        self._reset_stop()
        await self._save(self._state.stopped(registration))

    def _leaves(self, failure: Failure) -> bool:
        """Return True if stopping is not retried; the registration then expires."""
        delay = self._stop_reconnect.delay(
            failure.action, fraction=self._fraction(), retry_after=failure.retry_after
        )
        self._stop_attempts += 1
        if delay is None or self._stop_attempts >= MAX_ATTEMPTS:
            _log.warning("%s: cannot stop the old registration, leaving it: %s", self.name, failure.sentence)
            return True
        _log.info(
            "%s: cannot stop the old registration, retrying in %.1f s: %s", self.name, delay, failure.sentence
        )
        self._next_stop = self._now().steady + delay
        return False

    async def _shut_down(self) -> None:
        """Stop all subscriptions, or save the latest state, within `EXIT_TIMEOUT`."""
        with anyio.move_on_after(EXIT_TIMEOUT):
            try:
                await self._save(self._state.stop_all() if self._unsubscribe_on_exit else self._state)
                for registration in self._state.leaving if self._unsubscribe_on_exit else ():
                    self._reset_stop()  # the attempts were for another registration
                    await self._stop(registration)
            except Exception as error:  # noqa: BLE001 - the next run does the rest
                _log.warning("%s: failed while shutting down: %s", self.name, describe(error))
            return
        _log.warning("%s: shutdown not finished within %g s; the next run continues", self.name, EXIT_TIMEOUT)

    def _now(self) -> Now:
        return Now(_event_loop.wall_clock(), anyio.current_time())
