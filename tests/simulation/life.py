"""Run one life: consumers one after the other on one store, until everything is settled."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio

from push_to_poll_client import (
    Consumer,
    CursorExpired,
    Hooks,
    MemoryStore,
    Message,
    PollResult,
    ProcessError,
    Push,
    SQLiteStore,
    StoreError,
    StoreUnavailable,
    _event_loop,
)
from push_to_poll_client.testing import ManualListener
from tests.simulation.callers import PASSING, Callers, Run
from tests.simulation.draw import draw_plan
from tests.simulation.feed import Server, SimulatedFeed
from tests.simulation.handler import Handler
from tests.simulation.journal import Event, Journal
from tests.simulation.loops import Backend, run
from tests.simulation.oracle import Oracle
from tests.simulation.plan import Action, Plan, Publication, SessionPlan
from tests.simulation.progress import Progress
from tests.simulation.records import Records
from tests.simulation.store import CLIENT, SimulatedStore
from tests.simulation.timing import Timing

__all__ = ["Life", "live"]

EPOCH = 1_800_000_000.0
"""Time of day at 0 of the clock."""

MAX_EVENTS = 60_000
"""Largest number of events of a life."""

MAX_PATIENCE = 3600.0
"""Seconds after which a poll of a cron job is cancelled. With faults, a long chain may begin again and again,
and the faults end only after the last session."""


def live(seed: int, backend: Backend, *, path: Path | None = None) -> "Life":
    """Run one life until its end or its first violation.

    Args:
        seed: Its number.
        backend: The event loop.
        path: The file of a `SQLiteStore`; `None` for a `MemoryStore`.
    """
    life = Life(draw_plan(seed), backend, path)
    logger = logging.getLogger("push_to_poll_client")
    level, propagate, wall_clock = logger.level, logger.propagate, _event_loop.wall_clock
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(life.log)
    _event_loop.wall_clock = life.wall_clock
    try:
        run(life.main, seed, backend)
    finally:
        _event_loop.wall_clock = wall_clock
        logger.removeHandler(life.log)
        logger.setLevel(level)
        logger.propagate = propagate
    return life


class _Log(logging.Handler):
    """Pass the library's log lines to the journal."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.tell: Callable[[str, int], object] = lambda line, level: None

    def emit(self, record: logging.LogRecord) -> None:
        self.tell(record.getMessage(), record.levelno)


class Life:
    """One life.

    Attributes:
        journal: Its events.
        oracle: Its violations.
    """

    journal: Journal
    oracle: Oracle

    def __init__(self, plan: Plan, backend: Backend, path: Path | None) -> None:
        self.path = path
        self.plan = plan
        self.backend = backend
        self.log = _Log()
        self.skew = 0.0
        self.clients = 0
        self.current: Consumer | None = None
        self.listener: ManualListener | None = None

    def wall_clock(self) -> float:
        """Return the time of day."""
        return EPOCH + anyio.current_time() + self.skew

    async def main(self) -> None:
        """Run the life."""
        plan = self.plan
        self.journal = journal = Journal(anyio.current_time)
        self.server = Server(plan.feed, plan.seed, journal)
        day = self.wall_clock
        inner = MemoryStore(clock=day) if self.path is None else SQLiteStore(self.path, clock=day)
        self.store = SimulatedStore(inner, plan.store, plan.seed, journal)
        timeout = plan.consumer.shutdown_timeout
        self.handler = Handler(plan.handler, plan.seed, journal, shutdown_timeout=timeout)
        self.oracle = Oracle(plan, self.server, journal)
        self.timing = Timing(self.oracle)
        self.records = Records(self.oracle)
        self.progress = Progress(self.oracle, self.timing, self.records)
        self.oracle.idle = self._look_at_idle_consumer
        self.callers = Callers(journal, self.oracle, self.server, self.store)
        self.log.tell = self._log
        self.over = anyio.Event()
        journal.watchers.append(self._watch)
        async with anyio.create_task_group() as world:
            world.start_soon(self._end_when_broken, world.cancel_scope)
            await self._live()
            world.cancel_scope.cancel()

    def _log(self, line: str, level: int) -> None:
        self.journal.add("log" if level >= logging.WARNING else "info", self.clients, line=line)

    def _look_at_idle_consumer(self) -> None:
        if self.current is not None:
            self.records.check_named(self.current.status())

    def _watch(self, event: Event) -> None:
        if event.number > MAX_EVENTS:
            self.oracle.broken("G13", "the life does not come to an end")
        if self.oracle.violation is not None:
            self.over.set()

    async def _end_when_broken(self, scope: anyio.CancelScope) -> None:
        await self.over.wait()
        scope.cancel()

    async def _live(self) -> None:
        if self.plan.backlog:
            self.server.publish(self.plan.backlog)
        async with anyio.create_task_group() as world:
            world.start_soon(self._publish)
            for session in self.plan.sessions:
                await self._session(session)
        await self._calm()

    # The world

    async def _publish(self) -> None:
        began = anyio.current_time()
        moments: list[tuple[float, int, Publication]] = []
        for publication in self.plan.publications:
            moments.append((publication.at, 1, publication))
            if publication.push is not None:
                early = publication.push < 0
                moments.append((max(publication.at + publication.push, 0.0), 0 if early else 2, publication))
        for at, step, publication in sorted(moments, key=lambda moment: moment[:2]):
            await anyio.sleep_until(began + at)
            if step == 1:
                self.server.publish(publication.count, lag=publication.lag)
            else:
                self._push(publication, beats=publication.at - at if step == 0 else None)

    def _push(self, publication: Publication, *, beats: float | None) -> None:
        if self.current is None:
            return
        push = Push(cursor=self.server.newest) if publication.hint else Push()
        self.journal.add("wake", self.clients, by="a push", hint=publication.hint or None, beats=beats)
        if self.listener is None:
            self.current.wake(push)
        else:
            self.listener.push(push)

    # Sessions

    def _make_consumer(self) -> tuple[Consumer, int]:
        """Create the next consumer object. Return it with its number."""
        plan = self.plan.consumer
        self.clients += 1
        CLIENT.set(self.clients)
        self.timing.begin(self.clients, anyio.current_time())
        self.listener = ManualListener() if plan.listener else None
        consumer = (_Batches if plan.batches else _Single)(
            SimulatedFeed(self.server, self.clients),
            store=self.store,
            listeners=[] if self.listener is None else [self.listener],
            name="life",
            hooks=_Told(self.journal, self.clients) if plan.hooks else None,
            **plan.options(),
        )
        consumer.handler, consumer.client = self.handler, self.clients
        self.journal.add("consumer", self.clients)
        return consumer, self.clients

    async def _session(self, session: SessionPlan) -> None:
        if session.clock_jump:
            self.skew += session.clock_jump
            self.journal.add("clock jumps", by=session.clock_jump)
        until, actions = anyio.current_time() + session.lasts, session.actions
        consumer: tuple[Consumer, int] | None = None
        while anyio.current_time() < until:
            if session.how == "cron":
                await self._cron(session, until)
            else:
                consumer = await self._run(session, until, actions, consumer or self._make_consumer())
            actions = []
            await anyio.sleep(min(2.0, max(until - anyio.current_time(), 0.0)))
        self.records.begin_anew()

    async def _run(
        self, session: SessionPlan, until: float, actions: Sequence[Action], made: tuple[Consumer, int]
    ) -> tuple[Consumer, int] | None:
        """Run a consumer until this time. Return it if it should run again."""
        consumer, client = made
        ends = "cancel" if session.ends == "native" and self.backend == "trio" else session.ends
        running = Run(consumer, client, ends, self.journal, self._crash)
        async with anyio.create_task_group() as tasks:
            began = anyio.current_time()
            for action in actions:
                tasks.start_soon(self.callers.act, action, began + action.at, consumer, client, self.listener)
            self.current = consumer
            running.start(tasks)
            with anyio.move_on_at(until):
                await running.ended.wait()
            if running.ended.is_set() and isinstance(running.error, StoreUnavailable):
                self.oracle.broken("G7", "run() ends because of a store that may recover", repr(running.error))
            await self._end(running)
            self.current = None
            tasks.cancel_scope.cancel()
        kept = session.same_object and isinstance(running.error, StoreError) and client not in self.records.crashed
        self.records.end_of_session(graceful=ends != "crash" or running.error is not None, kept=kept)
        await self._after(running.error)
        return made if kept else None

    async def _end(self, running: Run) -> None:
        store = self.plan.store
        patience = self.plan.consumer.shutdown_timeout + 15.0 + 4 * store.hanging_time + 20 * store.slow_time
        if not await running.end(patience):
            self.oracle.broken("G13", "run() does not return after it was stopped")

    def _crash(self, client: int) -> None:
        self.journal.add("crash", client)
        self.store.dead.add(client)
        self.records.crashed.add(client)

    async def _after(self, error: Exception | None) -> None:
        """React to an error as an operator would."""
        if isinstance(error, CursorExpired):
            if self.server.knows(self.records.cursor):
                if self.progress.moved < self.timing.answered:  # unless a rewind waited for the poll
                    self.oracle.broken(
                        "G13",
                        "it stops with CursorExpired though the server knows the saved cursor",
                        f"cursor {self.records.cursor}",
                    )
                return
            consumer, client = self._make_consumer()
            await self.callers.call(client, "rewind", lambda: consumer.rewind(error.start or "inception"))
        elif error is not None and not isinstance(error, PASSING):
            self.oracle.broken("G9", "run() raises what it may not raise", repr(error))

    async def _cron(self, session: SessionPlan, until: float) -> None:
        consumer, client = self._make_consumer()
        while anyio.current_time() < until:
            patience = MAX_PATIENCE if session.patience is None else session.patience
            if session.catches_up:
                error = await self.callers.catch_up(consumer, client, patience=until - anyio.current_time())
            else:
                error = await self.callers.poll_now(consumer, client, waits=session.timeout, patience=patience)
            kept = session.same_object and not isinstance(error, CursorExpired)
            self.records.end_of_session(graceful=True, kept=kept)
            if isinstance(error, CursorExpired):
                await self._after(error)
            if not kept:
                consumer, client = self._make_consumer()
            await anyio.sleep(max(0.0, min(session.every, until - anyio.current_time())))

    # The end

    async def _calm(self) -> None:
        """End all faults. Then everything must be settled within bounds."""
        self.server.calm_down()
        self.store.troubled = self.handler.troubled = False
        self.journal.add("calm")
        self.progress.calm(anyio.current_time(), self.timing.postponed)
        await (self._calm_cron() if self.plan.last.how == "cron" else self._calm_run())

    async def _calm_run(self) -> None:
        step = max(1.0, (self.progress.until - anyio.current_time()) / 200)
        error: Exception | None = CursorExpired("none yet")
        while isinstance(error, CursorExpired):
            consumer, client = self._make_consumer()
            running = Run(consumer, client, "stop", self.journal, self._crash)
            async with anyio.create_task_group() as tasks:
                self.current = consumer
                running.start(tasks)
                while not running.ended.is_set() and not self.progress.settled():
                    with anyio.move_on_after(step):
                        await running.ended.wait()
                if not running.ended.is_set():
                    await anyio.sleep(self.plan.consumer.fallback_interval * 1.2 + self.plan.feed.latency + 1.0)
                    self.records.check_at_rest(consumer.status())
                await self._end(running)
                self.current = None
            self.records.end_of_session(graceful=True)
            error = running.error
            await self._after(error)
        if error is not None:
            self.oracle.broken("G13", "it stops though feed, store and handler work", repr(error))

    async def _calm_cron(self) -> None:
        if self.timing.postponed > anyio.current_time() + 100.0:  # calls show nothing new until then
            await anyio.sleep_until(self.timing.postponed)
        consumer, client = self._make_consumer()
        while not self.progress.settled():
            if self.plan.last.catches_up:
                error = await self.callers.catch_up(consumer, client, patience=MAX_PATIENCE)
            else:
                error = await self.callers.poll_now(consumer, client, waits=None)
            self.records.end_of_session(graceful=True)
            if isinstance(error, ProcessError | StoreError):
                self.oracle.broken("G13", "it stops though feed, store and handler work", repr(error))
            if isinstance(error, CursorExpired):
                await self._after(error)
            if isinstance(error, CursorExpired) or not self.plan.last.same_object:
                consumer, client = self._make_consumer()
            await anyio.sleep(self.plan.last.every)


class _Single(Consumer):
    """Pass messages to the handler one by one."""

    handler: Handler
    client: int

    async def process(self, message: Message) -> None:
        await self.handler.handle([message], self.client)


class _Batches(Consumer):
    """Pass batches to the handler."""

    handler: Handler
    client: int

    async def process_batch(self, messages: Sequence[Message]) -> None:
        await self.handler.handle(messages, self.client)


class _Told(Hooks):
    """Record in the journal when a consumer reports that it has caught up."""

    def __init__(self, journal: Journal, client: int) -> None:
        self._journal = journal
        self._client = client

    def caught_up(self, result: PollResult) -> None:
        self._journal.add("caught up", self._client)
