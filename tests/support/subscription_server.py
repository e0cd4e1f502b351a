"""A server of subscriptions in memory that records the number in force; and a channel with a store."""

import math
from collections import deque

import anyio
from msgspec.structs import replace

from push_to_poll_client import SubscriptionGone, _event_loop
from push_to_poll_client.listeners.subscriptions import Registration
from tests.support.clock import elapsed


class Crash:
    """End a life at a given step; that life then does nothing more."""

    def __init__(self, at=math.inf):
        self.at = at
        self.steps = 0
        self.scope = anyio.CancelScope()

    async def step(self):
        self.steps += 1
        if self.steps > self.at:
            raise ConnectionError("the process is gone")
        if self.steps == self.at:
            self.scope.cancel()
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()


class Server:
    """A server whose subscriptions live until they expire or are stopped, as at most vendors.

    Attributes:
        live: Expiry time, by the id of the plan.
        history: Number of subscriptions in force, with the time of each change.
        asked: The requests, with their time in seconds since the start of the clock.
        script: Errors, or None, for the next requests, by kind of request.
    """

    def __init__(self, *, lifetime=100.0, latency=0.1):
        self.lifetime = lifetime
        self.latency = latency
        self.live = {}
        self.asked = []
        self.history = []
        self.script = {"create": deque(), "renew": deque(), "stop": deque()}

    def sweep(self):
        now = _event_loop.wall_clock()
        for one in [one for one, until in self.live.items() if until <= now]:
            self._note(self.live.pop(one), len(self.live))

    def _note(self, at, count):
        self.history.append((at, count))

    def put(self, id):
        self.sweep()
        self.live[id] = _event_loop.wall_clock() + self.lifetime
        self._note(_event_loop.wall_clock(), len(self.live))
        return self.live[id]

    def drop(self, id):
        self.sweep()
        self.live.pop(id, None)
        self._note(_event_loop.wall_clock(), len(self.live))

    def counts(self, count):
        """Return, by number in force, the longest time with that number, from the first subscription on."""
        self.sweep()
        end = _event_loop.wall_clock()
        spans, since = [], None
        for at, now in [*sorted(self.history, key=lambda one: one[0]), (end, -1)]:
            if since is not None and not count(now):
                spans.append(at - since)
                since = None
            elif since is None and count(now):
                since = at
        return max(spans, default=0.0)


class Vendor:
    """A subscription at that server, as client code implements it."""

    name = "vendor"

    def __init__(self, server, crash=None, *, renews=True, expires=True):
        self.server = server
        self.crash = crash or Crash()
        self.renews = self.renewable = renews
        self.expires = expires
        self.adopted = []
        self.plans = 0

    def bind(self, control):
        self.control = control

    def adopt(self, registrations):
        self.adopted.append([one.details["plan"] for one in registrations])

    def plan(self):
        self.plans += 1
        name = f"{id(self):x}-{self.plans}"
        return Registration(id=name, details={"plan": name})

    async def _ask(self, what):
        self.server.asked.append((round(elapsed(), 3), what))
        await self.crash.step()
        await anyio.sleep(self.server.latency)
        ordered = self.server.script[what].popleft() if self.server.script[what] else None
        if isinstance(ordered, Exception):
            raise ordered
        return ordered

    async def create(self, planned, /):
        ordered = await self._ask("create")
        if ordered is not None:
            return ordered
        until = self.server.put(planned.details["plan"])
        await self.crash.step()
        return replace(planned, id=f"v{planned.id}", expires_at=until if self.expires else None)

    async def renew(self, registration, /):
        ordered = await self._ask("renew")
        if ordered is not None:
            return ordered
        if not self.renews:
            return None
        self.server.sweep()
        if registration.details["plan"] not in self.server.live:
            raise SubscriptionGone("no such subscription")
        until = self.server.put(registration.details["plan"])
        await self.crash.step()
        return replace(registration, expires_at=until)

    async def stop(self, registration, /):
        await self._ask("stop")
        self.server.drop(registration.details["plan"])
        await self.crash.step()


class Channel:
    """Record the reports, and keep the saved state."""

    missed_in_a_row = 0

    def __init__(self, state=None, crash=None):
        self.state = state
        self.crash = crash or Crash()
        self.events = []
        self.error = None
        self.until = None
        self.failing = None

    def _note(self, event):
        self.events.append((round(elapsed(), 3), event))

    def up(self):
        self._note("up")

    def down(self, error=None):
        self.error = error
        self._note("down")

    def wake(self, push=None, /):
        self._note(push)

    def request_poll(self):
        self._note("poll")

    def subscribed(self, until, /):
        self.until = until

    async def while_owner(self, work, /):
        await work()

    async def save(self, state, /):
        await self.crash.step()
        if self.failing is not None:
            raise self.failing
        self.state = state
        await self.crash.step()

    def said(self, *events):
        return [event for _, event in self.events if event in events]
