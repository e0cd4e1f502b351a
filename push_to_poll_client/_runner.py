"""Run the listeners, own the name, and poll: the loop behind `Consumer.run()`.

    claim the name -> poll until stopped, wanted or lost -> release it -> claim it again

While another replica owns the name, the runner stands by. The listeners run the whole time, because a webhook has
to answer on each replica; `OpenSession` forwards their pushes. A session ends before the run in two cases. If
another replica asks for the name (`wanted`), the message in flight finishes and progress is committed before the
name is released. If the session is lost, the handler in flight is cancelled, and nothing is committed: another
replica may have processed its message.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import anyio
from anyio.abc import TaskGroup

from push_to_poll_client._channels import ListenerChannel
from push_to_poll_client._event_loop import (
    Background,
    EventLoop,
    asyncio_cancellation,
    error_for_cancellation,
    in_own_task,
    sole_cause,
)
from push_to_poll_client._exceptions import (
    CommitInDoubt,
    ListenerError,
    OwnershipLost,
    ProcessError,
    PushToPollError,
    StoreBusy,
    StoreError,
    StoreUnavailable,
)
from push_to_poll_client._hooks import RunLog
from push_to_poll_client._lifecycle import (
    FIRST_STORE_BACKOFF,
    MAX_STORE_BACKOFF,
    OpenSession,
    SessionParts,
    not_recorded,
    when_available,
)
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._options import Options
from push_to_poll_client._progress import Progress
from push_to_poll_client._protocols import is_leased
from push_to_poll_client._retry import StopSignal
from push_to_poll_client._validation import describe

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

HAND_OVER_PAUSE = 2.0
"""Seconds before a replica claims a name again after a hand-over. The other one claims it within milliseconds."""


@dataclass(eq=False, slots=True)
class OwnerWork:
    """A function of a listener that runs only while this consumer owns its name."""

    function: Callable[[], Awaitable[None]]
    ended: anyio.Event = field(default_factory=anyio.Event)
    error: BaseException | None = None


@dataclass(kw_only=True, eq=False, repr=False)
class Runner:
    """Run the listeners and the automatic polls until stopped, cancelled, or broken."""

    options: Options
    feed_name: str
    channels: Sequence[ListenerChannel]
    sessions: OpenSession
    loop: EventLoop | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._stop = StopSignal()
        self._session_stop = StopSignal()  # of the polls of the current session
        self._why_stopped = ""
        self._fatal: BaseException | None = None
        self._is_cancelled: Callable[[], bool] = lambda: False
        self._parts: SessionParts | None = None  # of the session that this run uses
        self._loss: StoreError | None = None  # the error by which the polls noticed that the session is lost
        self._log: RunLog | None = None
        self._owner_works: list[OwnerWork] = []
        self._new_work = anyio.Event()
        self._listens = False

    def stop(self) -> None:
        """Stop before the next message. Call it from any thread."""
        self._stop.requested = self._session_stop.requested = True
        if self.loop is not None:
            self.loop.call(partial(self._end, "stop() was called"))

    def _end(self, why: str) -> None:
        """Stop before the next message. The first reason is logged."""
        self._why_stopped = self._why_stopped or why
        self._stop.requested = True
        self._stop.event.set()
        self._end_polls()

    def _end_polls(self) -> None:
        self._session_stop.requested = True
        self._session_stop.event.set()

    def begin(self) -> bool:
        """Begin in the current event loop. Return False if it was stopped before."""
        self.loop = EventLoop()  # from here on `stop` reaches it
        return not self._stop.requested

    async def run(self) -> None:
        """Run until a stop, or until the feed has ended. Raise the error that stopped it."""
        self._is_cancelled = asyncio_cancellation()
        self.sessions.running = True
        error: BaseException | None = None
        try:
            await self._run_tasks()
        except BaseException as raised:
            error = raised
            raise
        finally:
            if self.loop is not None and not self.loop.has_ended:
                await in_own_task(partial(self._close, error))
            elif self._parts is not None:
                await self.sessions.leave(error, keep=True)
        if self._fatal is not None:
            raise self._fatal
        if self._log is None and (count := self.sessions.uncommitted_count):
            raise not_recorded(self.sessions.stats.last_error, count)

    async def _close(self, error: BaseException | None) -> None:
        if self._parts is not None:
            await self.sessions.leave(error, keep=True)
        await self.sessions.end_run()

    async def _run_tasks(self) -> None:
        deadline = -math.inf
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._own_name, tasks)
                try:
                    await self._stop.event.wait()
                finally:
                    self._end("run() was cancelled")
                    deadline = anyio.current_time() + self.options.shutdown_timeout
                    if self._parts is not None:
                        self._parts.polls.set_in_flight_deadline(deadline)
                        self._parts.progress.finish_by(deadline)
                tasks.cancel_scope.cancel()
        finally:
            if self._parts is not None:
                await self._commit(deadline, self._parts.progress)
            self._log_stop()

    async def _commit(self, deadline: float, progress: Progress) -> None:
        """Commit at the end of a session, at most until the deadline."""
        if progress.has_uncommitted:
            await in_own_task(partial(self._commit_by, deadline, progress))
        progress.finish_by(math.inf)

    def _log_stop(self) -> None:
        why = self._why_stopped if self._fatal is None else "because of an error"
        if self._log is not None and self._parts is not None:
            self._log.stopped(self._parts.session.cursor, why)
        elif self.sessions.standing_by:
            logger.info("stopped while standing by: %s", why)

    # Ownership

    async def _own_name(self, tasks: TaskGroup) -> None:
        try:
            while not self._stop.requested:
                parts = await self._enter(tasks)
                if not self._stop.requested:  # during the claim
                    self._start_listeners(tasks)
                    await self._serve(parts)
                if not self._stop.requested:
                    await self._leave_session(parts)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001  # raised by run(), without a group around it
            bug = None if isinstance(error, PushToPollError) else error
            # An error at the start is only raised.
            self._stop_with_error(error, bug=bug, is_logged=not self._listens)

    async def _enter(self, tasks: TaskGroup) -> SessionParts:
        """Claim the name, and stand by while another replica owns it or the store is unavailable."""
        delay, known_owner = FIRST_STORE_BACKOFF, ""
        while True:
            try:
                await self.sessions.enter(keep=True)
            except StoreBusy as busy:
                if not self.options.standby:
                    raise
                if known_owner != (known_owner := busy.owner or "another consumer"):
                    logger.info("standing by: %s", describe(busy))
                self.sessions.stand_by(busy.owner)
                delay = FIRST_STORE_BACKOFF
                self._start_listeners(tasks)
                await self._wait_until_free()
            except StoreUnavailable as error:
                self.sessions.stats.last_error = describe(error)
                logger.warning("store unavailable, retrying in %.1f s: %s", delay, describe(error))
                self.sessions.stand_by(None)
                self._start_listeners(tasks)
                await anyio.sleep(delay)
                delay = min(2 * delay, MAX_STORE_BACKOFF)
            else:
                assert self.sessions.parts is not None  # just opened  # noqa: S101
                self._parts = self.sessions.parts
                return self._parts

    async def _wait_until_free(self) -> None:
        try:
            await self.sessions.wait_until_free()
        except StoreError:  # the next claim raises it too
            await anyio.sleep(FIRST_STORE_BACKOFF)

    async def _serve(self, parts: SessionParts) -> None:
        """Poll until a stop, or until the session ends. Run the listeners' work for the owner meanwhile."""
        self._session_stop, self._loss = StopSignal(), None
        log = self._log = RunLog(parts.polls.stats, parts.polls.clock)
        log.started(parts.position.place, self.feed_name, self.options.fallback_interval, len(self.channels))
        parts.polls.begin(log)
        try:
            async with Background() as background:
                background.tasks.start_soon(self._run_owner_works, background.tasks)
                with anyio.CancelScope() as polling:
                    if is_leased(parts.session):
                        background.tasks.start_soon(self._watch, parts, polling)
                    await self._poll(parts)
        finally:
            parts.polls.run_log = None

    async def _poll(self, parts: SessionParts) -> None:
        """Poll until the polls of the session are told to stop, or until it is lost."""
        try:
            await parts.polls.poll_until_stopped(self._session_stop)
        except OwnershipLost as lost:
            if not self.options.standby:
                self._stop_with_error(lost)
            self._loss = lost
        except CommitInDoubt as doubt:
            self._loss = doubt
        except anyio.get_cancelled_exc_class():
            is_over = self._session_stop.requested or self._is_cancelled()
            if anyio.current_effective_deadline() > -math.inf and not is_over:
                # Not cancelled by the runner, by the caller of run(), nor by asyncio.run() at its end. Without
                # this error, polling would end silently.
                self._stop_with_error(
                    RuntimeError(
                        "the polling task was cancelled, perhaps by a handler; "
                        "a handler must not cancel its caller"
                    )
                )
            raise
        except BaseException as error:  # noqa: BLE001  # raised by run(), without a group around it
            bug = None if isinstance(error, PushToPollError) else error
            # `FailureLog` has logged a failed message.
            self._stop_with_error(error, bug=bug, is_logged=isinstance(error, ProcessError))
        if parts.polls.closed:
            self._end("the feed has ended, all messages are settled")

    async def _watch(self, parts: SessionParts, polling: anyio.CancelScope) -> None:
        """End the polls when the session is lost, or wanted by another replica."""
        while not (parts.is_over or (parts.is_wanted and self.options.standby)):
            await parts.changed.wait()
        self._end_polls()
        if parts.is_over:
            parts.polls.cancel_in_flight()
        else:
            parts.polls.set_in_flight_deadline(anyio.current_time() + self.options.shutdown_timeout)
        polling.cancel()

    async def _leave_session(self, parts: SessionParts) -> None:
        """Release the name after the end of a session, and wait if another replica has asked for it."""
        is_lost = self._loss is not None or parts.is_over
        if is_lost:
            why = "its lease has ended" if self._loss is None else describe(self._loss)
            logger.warning("session lost, claiming the name again: %s", why)
        else:
            deadline = anyio.current_time() + self.options.shutdown_timeout
            parts.progress.finish_by(deadline)
            await self._commit(deadline, parts.progress)
            logger.info("handing over to another replica, standing by")
        self._parts = None
        await self.sessions.leave(None, keep=True)
        if not is_lost:
            self.sessions.stand_by(None)
            await anyio.sleep(HAND_OVER_PAUSE)

    async def _commit_by(self, deadline: float, progress: Progress) -> None:
        """Retry the refused commits until the deadline."""
        try:
            if progress.refusal is None or anyio.current_time() < deadline:
                await when_available(progress.flush, progress.stats, until=deadline)
        except StoreUnavailable:
            pass  # kept in `refusal`
        except OwnershipLost as lost:
            # The lease ended during the retries. `Progress` has logged it, and the next owner does the rest.
            if self._fatal is None and not (self.options.standby and is_leased(progress.session)):
                self._stop_with_error(lost)
            return
        except Exception as error:  # noqa: BLE001  # raised by run_until_stopped
            if self._fatal is None:
                self._stop_with_error(error)
            return
        if progress.refusal is not None:
            count = progress.uncommitted_count
            self._stop_with_error(not_recorded(progress.refusal, count) if count else progress.refusal)

    # Listeners

    def _start_listeners(self, tasks: TaskGroup) -> None:
        if not self._listens:
            self._listens = True
            for channel in self.channels:
                tasks.start_soon(self._listen, channel)

    async def while_owner(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run a function of a listener in each session, until it returns or raises; see `Channel.while_owner`."""
        work = OwnerWork(function)
        self._owner_works.append(work)
        self._new_work.set()
        try:
            await work.ended.wait()
        finally:
            self._owner_works.remove(work)
        if work.error is not None:
            raise work.error

    async def _run_owner_works(self, tasks: TaskGroup) -> None:
        started = list[OwnerWork]()
        while True:
            for work in self._owner_works:
                if work not in started:
                    started.append(work)
                    tasks.start_soon(self._run_owner_work, work)
            self._new_work = anyio.Event()
            await self._new_work.wait()

    async def _run_owner_work(self, work: OwnerWork) -> None:
        try:
            await work.function()
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001  # raised by the listener
            work.error = error
        work.ended.set()

    async def _listen(self, channel: ListenerChannel) -> None:
        channel.started()
        try:
            await channel.listener.listen(channel)
            logger.info("%s: closed by the server, not reconnecting; polling continues", channel.name)
        except BaseException as raised:  # noqa: BLE001  # raised by run_until_stopped, without a group around it
            error = sole_cause(raised)
            if isinstance(error, anyio.get_cancelled_exc_class()):
                error = error_for_cancellation(error, "it")
            self._listener_failed(channel, error)
        finally:
            # A coroutine may be destroyed long after its event loop has ended. Then another run uses the channel.
            if self.loop is None or not self.loop.has_ended:
                channel.stopped()

    def _listener_failed(self, channel: ListenerChannel, error: BaseException) -> None:
        if not isinstance(error, Exception):  # such as SystemExit, which ends the program
            self._stop_with_error(error)
        elif self._stop.requested:
            logger.info("%s: failed while stopping: %s", channel.name, describe(error))
        elif isinstance(error, PushToPollError):
            self._stop_with_error(error)
        else:
            broken = ListenerError(f"listener {channel.name} failed: {describe(error)}")
            broken.__cause__ = error
            self._stop_with_error(broken, bug=error)

    def _stop_with_error(
        self, error: BaseException, *, bug: BaseException | None = None, is_logged: bool = False
    ) -> None:
        """Stop because of an error. Log it unless it is logged, with the traceback of `bug`."""
        if isinstance(error, Exception) and not is_logged:  # not SystemExit and similar
            logger.error("stopping: %s", describe(error), exc_info=bug)
        self._fatal = error if self._fatal is None else self._fatal
        self._end("because of an error")
