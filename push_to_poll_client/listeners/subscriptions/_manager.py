"""Keep a subscription alive: create it, renew it, replace it when it is lost, and end it.

When is `when.py`'s, what is known over a restart `book.py`'s, how what is left is stopped `leaving.py`'s. What the
server has to be told is the subscription's own.
"""

import logging
import math
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import anyio

from push_to_poll_client import _event_loop
from push_to_poll_client._event_loop import EventLoop, in_own_task
from push_to_poll_client._exceptions import ListenerError, PushToPollError, SubscriptionGone
from push_to_poll_client._protocols import Channel
from push_to_poll_client._validation import describe
from push_to_poll_client.listeners._backoff import ReconnectBackoff, Verdict
from push_to_poll_client.listeners._failures import unwrap_group
from push_to_poll_client.listeners._webhook.types import Control
from push_to_poll_client.listeners.subscriptions._renewal import (
    MAX_SLEEP,
    Now,
    Renewal,
    failure_of,
    is_gone,
    renewal_time,
)
from push_to_poll_client.listeners.subscriptions._state import SubscriptionState, check_registration
from push_to_poll_client.listeners.subscriptions._types import Registration, Subscription

__all__ = [
    "SubscriptionManager",
    "Unsubscriber",
]


STOP_TIMEOUT = 30.0
"""Seconds for the subscription to stop one."""

MAX_ATTEMPTS = 10
"""After which one that does not end by itself is left: after some 4 minutes if the server is
down, and 50 if it refuses."""


class Unsubscriber:
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
        self._reconnect = ReconnectBackoff()
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
        over = over or await self._try_stop(one, now, fraction)
        if over:
            self._begin()
        return over

    async def _try_stop(self, one: Registration, now: Now, fraction: float) -> bool:
        try:
            with anyio.fail_after(STOP_TIMEOUT):
                await self._subscription.stop(one)
        except Exception as failed:  # noqa: BLE001 - what is left ends by itself, or is answered that it is gone
            error = unwrap_group(failed).with_traceback(None)
            return is_gone(error) or self._give_up_or_wait(error, one, now, fraction)
        self._log.info("%s: stopped what was replaced", self._subscription.name)
        return True

    def _give_up_or_wait(self, error: Exception, one: Registration, now: Now, fraction: float) -> bool:
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


_T = TypeVar("_T")

CALL_TIMEOUT = 300.0
"""Seconds for the subscription to create or renew. What waits for a server ends by itself long before; what hangs
must not be the end of pushes."""

EXIT_TIMEOUT = 5.0
"""Seconds to stop all subscriptions at the end: less than what services get to shut down."""

MAX_OVERSLEEP = 30.0
"""Seconds that a sleep may last too long. More, and the process was suspended or the clock set: what was pushed
meanwhile may be lost."""


class SubscriptionManager:
    """Keeps one subscription alive, for as long as `run` runs.

    A restart goes on with what the channel's state says; it does not subscribe again, unless it asks for something
    else by now. Then it stops what was there, once it has the other.

    Args:
        subscription: What the server has to be told.
        stop_at_exit: Whether to ask the server to push no more when `run` ends, for five seconds at most; what is
            not stopped by then is stopped by the next run, once it has another.
        log: Where what happens is told.
    """

    def __init__(self, subscription: Subscription, *, stop_at_exit: bool = False, log: logging.Logger) -> None:
        self._subscription = subscription
        self._stop_at_exit = stop_at_exit
        self._identity = str(getattr(subscription, "identity", subscription.name))
        self._log = log
        self._fraction: Callable[[], float] = random.random
        self._channel: Channel
        self._loop: EventLoop | None = None
        self._control_event: anyio.Event | None = None
        self._controls: set[Control] = set()
        self._state = self._saved_state = SubscriptionState()
        self._is_requesting = False
        self._begin()
        if (bind := getattr(subscription, "bind", None)) is not None:
            bind(self.control)

    def _begin(self) -> None:
        self._renewal = Renewal()
        self._reconnect = ReconnectBackoff()
        self._unsubscriber = Unsubscriber(self._subscription, self._log)
        self._has_expired = False

    @property
    def name(self) -> str:
        """What the subscription is called."""
        return self._subscription.name

    @property
    def expects_handshake(self) -> bool:
        """Whether something was asked of the server that it may want to verify; from any thread."""
        return self._is_requesting or self._state.planned is not None

    def control(self, control: Control) -> None:
        """The server spoke of the subscription itself. Never blocks; from any thread.

        Args:
            control: `RENEW`: renew it now, 15 seconds after it was registered at the earliest. `RECREATE`: the
                server has dropped it, so create another, after a backoff. `MISSED`: poll. What comes while
                `run` does not run counts when it does.
        """
        self._controls.add(control)
        if (loop := self._loop) is not None:
            with suppress(RuntimeError):
                loop.call(self._notify_control)

    async def run(self, channel: Channel) -> None:
        """Run until cancelled: subscribe, and stay subscribed.

        Raises:
            ListenerError: The server refuses for good.
            StoreError: What is registered could not be saved.
            RuntimeError: It keeps it already, for another consumer.
        """
        if self._loop is not None:
            raise RuntimeError(f"{self.name}: another consumer keeps it; give each a listener of its own")
        self._channel = channel
        self._begin()
        self._loop = EventLoop()
        try:
            await self._restore()
            while True:
                await self._step()
        finally:
            self._loop = self._control_event = None
            if self._stop_at_exit or self._state != self._saved_state:
                await in_own_task(self._shut_down)

    # What to do next

    async def _step(self) -> None:
        heard = self._control_event = anyio.Event()
        await self._apply_controls()
        now, current = self._now(), self._state.current
        self._check_expiry(now)
        wait = self._renewal.wait(now)
        leave = self._unsubscriber.wait(self._state.leaving[0], now) if self._may_stop_replaced else math.inf
        if min(wait, leave) > 0:
            await self._sleep(min(wait, leave, MAX_SLEEP), heard)
        elif wait > 0:
            await self._stop_replaced()
        elif current is None or self._state.planned is not None:
            await self._create()
        else:
            await self._renew(current)

    @property
    def _may_stop_replaced(self) -> bool:
        """Not before there is another in its place."""
        return bool(self._state.leaving) and self._state.current is not None and self._state.planned is None

    async def _apply_controls(self) -> None:
        controls = {self._controls.pop() for _ in range(len(self._controls))}
        if Control.MISSED in controls:
            self._channel.poll()
        if self._state.current is None:
            return
        if Control.RECREATE in controls:
            await self._handle_loss("the server has dropped it")
        elif Control.RENEW in controls:
            self._renewal.make_due()

    def _notify_control(self) -> None:
        if self._control_event is not None:
            self._control_event.set()

    async def _sleep(self, seconds: float, heard: anyio.Event) -> None:
        began = self._now().wall
        with anyio.move_on_after(seconds):
            await heard.wait()
        away = self._now().wall - began - seconds
        if away > MAX_OVERSLEEP:
            self._log.info("%s: this process was suspended, or its clock set, by %.0f s: polling", self.name, away)
            self._channel.poll()

    def _check_expiry(self, now: Now) -> None:
        """Notice the end of what was not renewed in time."""
        if self._state.current is not None and self._renewal.is_over(now) and not self._has_expired:
            self._has_expired = True
            self._log.warning("%s: ended before it was renewed; nothing is pushed", self.name)
            self._channel.registered(None)
            self._channel.down(PushToPollError(f"{self.name}: the subscription has ended"))

    # What is known

    async def _restore(self) -> None:
        text = self._channel.state
        try:
            self._state = (
                SubscriptionState() if text is None else SubscriptionState.from_text(text, self._identity)
            )
        except ValueError:
            self._log.warning("%s: what was saved of it cannot be read; subscribing anew", self.name)
            self._state = SubscriptionState()
        self._saved_state = self._state
        self._adopt()
        if (current := self._state.current) is not None:
            due = math.inf if self._state.renew_at is None else self._state.renew_at
            self._resume(current, due)
        if self._state.planned is not None or getattr(self._subscription, "renewable", False):
            self._renewal.make_due()

    async def _save(self, book: SubscriptionState) -> None:
        """Write it down, before anything is done by it.

        Raises:
            StoreError: It could not be written.
            ListenerError: It is too long, or a text in it is none.
        """
        self._state = book
        self._adopt()
        try:
            await self._channel.save(book.to_text(self._identity))
        except ValueError as error:
            raise ListenerError(f"{self.name}: what is to be kept of it cannot be: {error}") from None
        self._saved_state = book

    def _adopt(self) -> None:
        if (adopt := getattr(self._subscription, "adopt", None)) is not None:
            adopt(self._state.registrations)

    def _resume(self, current: Registration, due: float) -> None:
        """It was registered in an earlier run."""
        now = self._now()
        self._renewal.registered(current.expires_at, due, now, just_now=False)
        if self._renewal.is_over(now):
            return
        self._log.info("%s: registered in an earlier run", self.name)
        self._report_up(current, now)

    def _report_registered(self, current: Registration, due: float) -> None:
        now = self._now()
        self._renewal.registered(current.expires_at, due, now, just_now=True)
        self._has_expired = self._renewal.is_over(now)
        if self._has_expired:
            self._log.warning("%s: registered until a time in the past; is this machine's clock right?", self.name)
        else:
            self._log.info("%s: registered, to be renewed %s", self.name, _describe_delay(due - now.wall))
        self._report_up(current, now)

    def _report_up(self, current: Registration, now: Now) -> None:
        self._reconnect.connected(now.steady)
        self._channel.registered(math.inf if current.expires_at is None else current.expires_at)
        self._channel.up()

    # What is asked of the server

    async def _create(self) -> None:
        planned = self._state.planned
        if planned is None:
            planned = self._subscription.plan()
            await self._save(self._state.plan(planned))
        try:
            registration = check_registration(await self._request(self._subscription.create, planned))
        except SubscriptionGone as error:
            await self._save(self._state.plan_failed())
            self._handle_failure(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the keeper goes on; the verdict tells how
            self._handle_failure(error)
        else:
            due = self._renewal_time(registration)
            await self._save(self._state.created(registration, due))
            self._report_registered(registration, due)

    async def _renew(self, current: Registration) -> None:
        try:
            answer = await self._request(self._subscription.renew, current)
            renewed = None if answer is None else check_registration(answer)
        except Exception as error:  # noqa: BLE001 - likewise
            if is_gone(unwrap_group(error)):
                await self._handle_loss(failure_of(unwrap_group(error)).sentence)
            else:
                self._handle_failure(error)
            return
        if renewed is None:
            self._renewal.make_due()
            await self._save(self._state.plan(self._subscription.plan()))
            return
        due = self._renewal_time(renewed)
        await self._save(self._state.renewed(renewed, due))
        self._report_registered(renewed, due)

    async def _request(self, what: Callable[[Registration], Awaitable[_T]], registration: Registration) -> _T:
        self._is_requesting = True
        try:
            with anyio.fail_after(CALL_TIMEOUT):
                return await what(registration)
        finally:
            self._is_requesting = False

    def _renewal_time(self, registration: Registration) -> float:
        return renewal_time(registration, self._now().wall, self._fraction())

    async def _handle_loss(self, why: str) -> None:
        await self._save(self._state.lost())
        now = self._now()
        self._reconnect.ended(now.steady)
        delay = self._reconnect.delay(Verdict.RETRY, fraction=self._fraction()) or 0.0
        self._log.info("%s: lost, creating another in %.1f s: %s", self.name, delay, why)
        self._renewal.lost()
        self._renewal.failed(delay, now)
        self._channel.registered(None)
        self._channel.down(PushToPollError(f"{self.name}: {why}"))

    def _handle_failure(self, error: Exception) -> None:
        """Tell it, and wait; what is in force goes on.

        Raises:
            ListenerError: Trying again cannot help.
        """
        failure, now = failure_of(unwrap_group(error)), self._now()
        self._reconnect.ended(now.steady)
        delay = self._reconnect.delay(failure.verdict, fraction=self._fraction(), retry_after=failure.retry_after)
        what = f"{self.name}: {failure.sentence}"
        told = PushToPollError(what) if delay is not None else ListenerError(f"{what}; trying again cannot help")
        told.__cause__ = failure.cause
        if self._state.current is None or self._renewal.is_over(now) or delay is None:
            self._channel.down(told)
        if delay is None:
            self._log.error("%s; giving up", what)
            raise told
        level = logging.WARNING if failure.verdict is Verdict.SLOW_RETRY else logging.INFO
        self._log.log(level, "%s; asking again in %.1f s", what, delay)
        self._renewal.failed(delay, now)

    # What is stopped

    async def _stop_replaced(self) -> None:
        one = self._state.leaving[0]
        self._is_requesting = True
        try:
            over = await self._unsubscriber.stop(one, self._now(), self._fraction())
        finally:
            self._is_requesting = False
        if over:
            await self._save(self._state.stopped(one))

    async def _shut_down(self) -> None:
        """Stop all, or save what was answered as the end came. A crash may come instead; so it is not for long."""
        with anyio.move_on_after(EXIT_TIMEOUT):
            try:
                await (self._stop_all() if self._stop_at_exit else self._save(self._state))
            except Exception as error:  # noqa: BLE001 - the end is no time to fail; the next run does what is left
                self._log.warning("%s: failed at the end: %s", self.name, describe(error))
            return
        self._log.warning("%s: not ended within %g s; the next run goes on", self.name, EXIT_TIMEOUT)

    async def _stop_all(self) -> None:
        await self._save(self._state.stop_all())
        self._is_requesting = True
        try:
            for one in self._state.leaving:
                if await self._unsubscriber.stop(one, self._now(), 0.0):
                    await self._save(self._state.stopped(one))
        finally:
            self._is_requesting = False

    def _now(self) -> Now:
        return Now(_event_loop.wall_clock(), anyio.current_time())


def _describe_delay(seconds: float) -> str:
    return "never" if math.isinf(seconds) else f"in {seconds:.0f} s"
