"""Seeded lives of one to three replicas of a consumer on one shared store, in virtual time.

Each replica is a place where one process runs after the other. All run in one event loop. A frozen process stands
still at its next request, answer or step of the handler.
"""

import logging
from collections import Counter
from contextvars import ContextVar
from random import Random
from typing import Any

import anyio

from push_to_poll_client import Consumer, Message, Push, StoreUnavailable, _event_loop
from push_to_poll_client.testing import ManualListener
from push_to_poll_client.testing._virtual_time import Bell
from tests.simulation.feed import Server, SimulatedFeed
from tests.simulation.journal import Journal
from tests.simulation.loops import Backend, run
from tests.simulation.replicas_oracle import ReplicasOracle
from tests.simulation.replicas_plan import TROUBLE, Fault, ReplicasPlan, draw_replicas
from tests.support.shared_memory import EPOCH, LEASE, LeasedMemoryStore, SharedMemory

__all__ = ["ReplicasLife", "live_replicas", "replicas_story"]

NAME = "life"

MAX_EVENTS = 60_000

REPLICA: ContextVar[int] = ContextVar("replica", default=-1)
"""Number of the replica of this task."""


def live_replicas(seed: int, backend: Backend) -> "ReplicasLife":
    """Run one life until its end or its first violation."""
    life = ReplicasLife(draw_replicas(seed), backend)
    logger = logging.getLogger("push_to_poll_client")
    propagate, level, wall_clock = logger.propagate, logger.level, _event_loop.wall_clock
    logger.propagate = False
    logger.addHandler(log := _Log(life))
    logger.setLevel(logging.INFO)
    _event_loop.wall_clock = lambda: EPOCH / 2 + anyio.current_time()  # the hosts have wrong clocks
    try:
        run(life.main, seed, backend)
    finally:
        _event_loop.wall_clock = wall_clock
        logger.removeHandler(log)
        logger.setLevel(level)
        logger.propagate = propagate
    return life


class _Log(logging.Handler):
    """Pass the library's log lines to the journal."""

    def __init__(self, life: "ReplicasLife") -> None:
        super().__init__(logging.INFO)
        self._life = life

    def emit(self, record: logging.LogRecord) -> None:
        self._life.journal.add("log", REPLICA.get(), line=record.getMessage())


class ReplicasLife:
    """One life.

    Attributes:
        journal: Its events.
        oracle: Its violations.
    """

    journal: Journal
    oracle: ReplicasOracle

    def __init__(self, plan: ReplicasPlan, backend: Backend) -> None:
        self.plan = plan
        self.backend = backend
        self.processes = 0
        self.troubled = True
        self._chance = Random(f"trips {plan.seed}")  # noqa: S311  # not for secrets

    async def main(self) -> None:
        """Run the life."""
        plan = self.plan
        self.journal = Journal(anyio.current_time)
        self.server = Server(plan.feed, plan.seed, self.journal)
        self.shared = SharedMemory(transactional=plan.transactional)
        self.replicas = [Replica(self, number) for number in range(plan.replicas)]
        self.oracle = ReplicasOracle(plan, self.server, self.shared, self.journal, self.replicas)
        self.over = anyio.Event()
        self.journal.watchers.append(self._watch)
        async with anyio.create_task_group() as world:
            world.start_soon(self._end_when_broken, world.cancel_scope)
            await self._live()
            world.cancel_scope.cancel()

    def _watch(self, event: Any) -> None:
        if event.number > MAX_EVENTS:
            self.oracle.broken("G13", "the life does not come to an end")
        if self.oracle.violation is not None:
            self.over.set()

    async def _end_when_broken(self, scope: anyio.CancelScope) -> None:
        await self.over.wait()
        scope.cancel()

    async def _live(self) -> None:
        began = anyio.current_time()
        async with anyio.create_task_group() as world:
            for replica in self.replicas:
                world.start_soon(replica.live)
            world.start_soon(self._publish, began)
            for fault in self.plan.faults:
                world.start_soon(self._suffer, fault, began)
            world.start_soon(self.oracle.look_at_ownership)
            await anyio.sleep_until(began + TROUBLE + 1.0)
            await self._calm()
            world.cancel_scope.cancel()

    async def trip(self) -> None:
        """Let a request to the store travel."""
        await anyio.sleep(self._chance.random() * self.plan.trip)

    async def _publish(self, began: float) -> None:
        for pushed in self.plan.published:
            await anyio.sleep_until(began + pushed.at)
            self.server.publish(pushed.count)
            if pushed.replica >= 0:
                self.replicas[pushed.replica].push()

    async def _suffer(self, fault: Fault, began: float) -> None:
        await anyio.sleep_until(began + fault.at)
        owner = self.shared.owner_of(NAME)
        replica = self.replicas[fault.replica]
        if fault.replica < 0:
            replica = next((one for one in self.replicas if owner and one.store is owner.store), replica)
        self.journal.add("fault", replica.number, what=fault.what, lasts=fault.lasts)
        self.oracle.fault()
        await getattr(replica, fault.what.replace(" ", "_"))(fault)
        self.oracle.fault()

    async def _calm(self) -> None:
        """End all faults. Then everything must be settled within bounds."""
        for replica in self.replicas:
            replica.calm_down()
        self.server.calm_down()
        self.shared.lose_wakes = 0
        self.journal.add("calm")
        plan, count = self.plan, len(self.server.entries)
        requests = 2 * count + 20
        within = (
            2 * LEASE + 40.0 + 1.5 * plan.fallback_interval
            + 3 * count * (plan.takes + 4 * plan.trip) + requests * (plan.feed.latency + 0.25)
        )  # fmt: skip
        with anyio.move_on_after(within):
            while not self.oracle.settled():  # noqa: ASYNC110  # the oracle has no events
                await anyio.sleep(1.0)
        if not self.oracle.settled():
            self.oracle.broken("G13", "not all messages are settled after the faults have ended")
        await anyio.sleep(2 * LEASE + plan.commit_interval)  # backoffs and hand-overs end
        self.oracle.check_at_rest()
        for replica in self.replicas:
            await replica.end()
        self.oracle.check_end()


class Replica:
    """The processes that run one after the other at one place.

    Attributes:
        number: Its number, from 0.
        store: The store object of the current process.
        consumer: The consumer of the current process; `None` between two.
        healthy_since: Time since which nothing is wrong with it; infinite during a fault.
    """

    def __init__(self, life: ReplicasLife, number: int) -> None:
        self.number = number
        self.consumer: _Consumer | None = None
        self.store: LeasedMemoryStore = life.shared.replica(f"replica {number}")
        self._life = life
        self._faults = Counter[str]()
        self._down = 0.0
        self._thawed = Bell()
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._is_over = False

    @property
    def is_healthy(self) -> bool:
        """True if the process runs and reaches the store."""
        return self.consumer is not None and not self._faults.total() and not self.store.is_dead

    @property
    def is_connected(self) -> bool:
        """True if its listener is connected."""
        return self.consumer is not None and self.consumer.status().listeners[0].up

    async def live(self) -> None:
        """Run one process after the other."""
        REPLICA.set(self.number)
        while not self._is_over:
            await self._run()
            await anyio.sleep(self._down)

    async def _run(self) -> None:
        life, plan = self._life, self._life.plan
        self.store = life.shared.replica(f"replica {self.number}")
        self.store.trip = self.trip
        self.store.unreachable = self._faults["cut"] > 0
        self._renew()
        self.listener = ManualListener()
        self._scope, self._ended = anyio.CancelScope(), anyio.Event()
        life.processes += 1
        self.consumer = consumer = _Consumer(
            _Feed(life.server, self),
            store=self.store,
            name=NAME,
            listeners=[self.listener],
            concurrency=plan.concurrency,
            ordering_key=(lambda message: int(message.id) % 7) if plan.concurrency > 1 else None,
            commit_interval=plan.commit_interval,
            fallback_interval=plan.fallback_interval,
            shutdown_timeout=plan.shutdown_timeout,
        )
        consumer.replica, consumer.life = self, life
        life.journal.add("run", self.number)
        life.oracle.fault()
        error: Exception | None = None
        try:
            with self._scope:
                await consumer.run()
        except Exception as raised:  # noqa: BLE001  # judged by the oracle
            error = raised
        finally:
            life.journal.add("run ended", self.number, error=error and repr(error))
            life.oracle.fault()
            self.consumer = None
            self._ended.set()
        if error is not None and not self.store.is_dead and not isinstance(error, StoreUnavailable):
            life.oracle.broken("G9", "run() raises what it may not raise", repr(error))

    async def trip(self) -> None:
        """Let a request of this process travel; while it is frozen, nothing does."""
        await self._life.trip()
        await self.thawed()

    async def thawed(self) -> None:
        """Return while the process is not frozen."""
        await anyio.lowlevel.checkpoint()
        while self._faults["freeze"]:
            await self._thawed.wait()

    def push(self) -> None:
        """Let a push reach this replica."""
        if self.consumer is not None and not self._faults["freeze"] and self.is_connected:
            self._life.journal.add("push", self.number)
            self._life.oracle.pushed(self)
            self.listener.push(Push(cursor=self._life.server.newest))

    # Faults

    def _renew(self) -> None:
        if self._faults["freeze"] or self._faults["stall"]:
            self.store.pause()
        else:
            self.store.resume()

    async def _during(self, fault: Fault) -> None:
        self._faults[fault.what] += 1
        try:
            self._change()
            await anyio.sleep(fault.lasts)
        finally:
            self._faults[fault.what] = max(0, self._faults[fault.what] - 1)
            self._change()

    def _change(self) -> None:
        self._renew()
        if self.store.unreachable != (self._faults["cut"] > 0):
            self.store.unreachable = self._faults["cut"] > 0
        if not self._faults["freeze"]:
            self._thawed.ring()

    freeze = stall = cut = _during

    async def stop(self, fault: Fault) -> None:
        """Stop the process, as a deployment does, and start it again."""
        self._down = fault.lasts
        if self.consumer is None:
            return
        ended = self._ended
        self.consumer.stop()
        with anyio.move_on_after(self._life.plan.shutdown_timeout + 20.0):
            await ended.wait()
        if not ended.is_set() and not self._faults["freeze"]:
            self._life.oracle.broken("G13", "run() does not return after it was stopped")

    async def crash(self, fault: Fault) -> None:
        """Kill the process, and start it again."""
        self._down = fault.lasts
        self._life.oracle.lost(self.store)
        self.store.crash()
        self._scope.cancel()

    async def doubt(self, fault: Fault) -> None:
        """Let the outcome of the next commit be unknown."""
        store = self.store
        store.doubts.append(fault.outcome)
        with anyio.move_on_after(fault.lasts):
            while self._life.troubled and self.store is store:  # noqa: ASYNC110  # the end of a process is no event
                await anyio.sleep(1.0)
        store.doubts.clear()
        store.deliver()

    async def expire(self, fault: Fault) -> None:
        self._life.shared.expire(NAME, tells=True)

    async def want(self, fault: Fault) -> None:
        self._life.shared.want(NAME)

    async def lose_wakes(self, fault: Fault) -> None:
        self._life.shared.lose_wakes += 1

    def calm_down(self) -> None:
        """End all faults."""
        self._life.troubled = False
        self._faults.clear()
        self._down = 0.0
        self.store.doubts.clear()
        self.store.deliver()
        self._change()

    async def end(self) -> None:
        """Stop for good."""
        self._is_over = True
        if self.consumer is not None:
            self.consumer.stop()
            with anyio.move_on_after(self._life.plan.shutdown_timeout + 20.0):
                await self._ended.wait()
            if self.consumer is not None:
                self._life.oracle.broken("G13", "run() does not return after it was stopped at rest")


class _Feed(SimulatedFeed):
    """The feed of one process."""

    def __init__(self, server: Server, replica: Replica) -> None:
        super().__init__(server, replica.number)
        self._replica = replica

    async def fetch(self, request: Any) -> Any:
        await self._replica.thawed()
        try:
            return await super().fetch(request)
        finally:
            if not self._replica.store.is_dead:
                await self._replica.thawed()


class _Consumer(Consumer):
    """Records its work, and writes a text for each message if the store is transactional."""

    replica: Replica
    life: ReplicasLife

    async def process(self, message: Message) -> None:
        replica, life = self.replica, self.life
        call = life.oracle.begins(replica, message.id)
        try:
            await replica.thawed()
            if life.plan.transactional:
                replica.store.connection.write(message.id)
            await anyio.sleep(life.plan.takes)
            await replica.thawed()
            call.completed_at = anyio.current_time()
        finally:
            life.oracle.ends(call)


def replicas_story(life: ReplicasLife) -> str:
    """Return the plan, the last events, and the violation."""
    events = [event for event in life.journal.events if event.kind != "done"]
    end = next((index for index, event in enumerate(events) if event.kind == "BROKEN"), len(events) - 1) + 1
    lines = [f"    {event}" for event in events[max(0, end - 60) : end]]
    head = f"life {life.plan.seed} on {life.backend}: {life.oracle.violation}\n  {life.plan}"
    again = f"  again: python -m tests.simulation replicas {life.plan.seed} 1 {life.backend}"
    return "\n".join([head, *lines, again])
