"""Open a session, build its parts, run it, and release it."""

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property

import anyio

from push_to_poll_client._channels import ListenerChannel
from push_to_poll_client._dead_letters import SessionDeadLetters
from push_to_poll_client._event_loop import EventLoop, error_for_cancellation, in_own_task
from push_to_poll_client._exceptions import CursorExpired, FeedError, FeedGone, ListenerError, PushToPollError
from push_to_poll_client._failure_policy import FailureRules
from push_to_poll_client._fetching import Fetcher, Gaps
from push_to_poll_client._handlers import in_transaction
from push_to_poll_client._hooks import Hooks, SafeHooks, with_start_hook
from push_to_poll_client._options import BatchHandler, Handler, ProcessingOptions, ScheduleOptions
from push_to_poll_client._overlap import OverlapStart
from push_to_poll_client._poller import Poller
from push_to_poll_client._polls import Polls
from push_to_poll_client._position import Position, Replay
from push_to_poll_client._processor import Dedupe, Processor
from push_to_poll_client._progress import Progress
from push_to_poll_client._protocols import Feed, Session, Store, is_transactional
from push_to_poll_client._retry import Retry, StopSignal
from push_to_poll_client._schedule import Schedule
from push_to_poll_client._status import ConsumerStats
from push_to_poll_client._types import Clock, Cursor, Push
from push_to_poll_client._validation import describe
from push_to_poll_client._wakes import Wakes
from push_to_poll_client._workers import Workers

__all__ = [
    "OpenSession",
    "Runner",
    "SessionParts",
]


class SessionParts:
    """The parts that live as long as a session, each made of those that it needs when it is asked for first.

    Args:
        feed: What is consumed.
        session: Where progress is kept.
        schedule: Decides when to poll, also after this session.
        tally: Counts, likewise.
        settings: The numbers that the user gave.
        processing: What he said of messages and positions.
        worth_a_poll: Whether the hint of a push is.
        clock: The event loop's.

    Attributes:
        session: As given.
    """

    def __init__(  # noqa: PLR0917  # each is of another type
        self,
        feed: Feed,
        session: Session,
        schedule: Schedule,
        tally: ConsumerStats,
        settings: ScheduleOptions,
        processing: ProcessingOptions,
        worth_a_poll: Callable[[Push], bool],
        clock: Clock,
    ) -> None:
        self.session = session
        self._feed = feed
        self._schedule = schedule
        self._stats = tally
        self._settings = settings
        self._processing = processing
        self._worth_a_poll = worth_a_poll
        self._clock = clock

    async def rewind(self, to: Cursor | None, *, ago: float | None, forget: bool) -> None:
        """See `Consumer.rewind`. While no poll runs."""
        await self.progress.flush()
        await self.position.rewind(to, ago=ago, forget=forget)
        self.poller.discard_continuation()
        self.polls.position_changed()

    async def save_state(self, name: str, text: str | None) -> None:
        """Keep a text in the session's state; `None` takes it away. While no poll runs.

        Raises:
            StoreError: The store failed.
        """
        await self.progress.flush()
        await self.session.commit(cursor=None, records=[], state={name: text})

    # Processing

    @cached_property
    def progress(self) -> Progress:
        """What is settled and not yet committed."""
        interval = self._settings.flush_interval
        return Progress(self.session, self._stats, flush_interval=interval, clock=self._clock)

    @cached_property
    def processor(self) -> Processor:
        """Settles pages."""
        return Processor(
            self.progress,
            self._handlers[0],
            self._dedupe,
            self._retry,
            self._workers,
            self._stats,
            plain=self._processing.plain,
            batch_wait=self._processing.batch_wait,
            clock=self._clock,
        )

    @cached_property
    def dead_letters(self) -> SessionDeadLetters:
        """What was given up on."""
        return SessionDeadLetters(self.session, self._feed, self.progress, self._retry)

    @cached_property
    def _workers(self) -> Workers:
        return Workers(
            self._retry,
            self.progress,
            self._handlers[1],
            concurrency=self._processing.concurrency,
            batch_size=self._processing.batch_size,
            hooks=self._hooks,
            clock=self._clock,
        )

    @cached_property
    def _retry(self) -> Retry:
        failures = FailureRules(self._processing.retry, self._processing.on_failure)
        handler, _ = self._handlers
        return Retry(handler, self.progress, failures, self._stats, hooks=self._hooks, clock=self._clock)

    @cached_property
    def _dedupe(self) -> Dedupe:
        return Dedupe(
            self.progress,
            dedupe_key=self._processing.dedupe_key,
            ordering_key=self._processing.key if self._processing.concurrency > 1 else None,
            fingerprint=self._processing.fingerprint,
        )

    @cached_property
    def _hooks(self) -> Hooks:
        return Hooks() if self._processing.hooks is None else SafeHooks(self._processing.hooks)

    @cached_property
    def _handlers(self) -> tuple[Handler, BatchHandler | None]:
        """Those of the user, within a transaction if the store has one, and announced to hooks if any are."""
        handler, batch, intake = self._processing.handler, self._processing.batch, self._dedupe
        if is_transactional(self.session):
            both = self.session, self.progress
            handler = in_transaction(handler, *both, lambda message: intake.records([message]))
            batch = batch and in_transaction(batch, *both, intake.records)
        if self._processing.hooks is not None:
            handler = with_start_hook(handler, self._hooks, lambda message: [message])
            batch = batch and with_start_hook(batch, self._hooks, lambda messages: messages)
        return handler, batch

    # Polling

    @cached_property
    def polls(self) -> Polls:
        """Polls, one at a time."""
        return Polls(
            self._schedule,
            self.session,
            self.processor,
            self.poller,
            tally=self._stats,
            hooks=self._hooks,
            overlaps=self._processing.overlaps,
            worth_a_poll=self._worth_a_poll,
            clock=self._clock,
        )

    @cached_property
    def poller(self) -> Poller:
        """Does one poll."""
        return Poller(
            self._fetcher,
            self.processor,
            self.progress,
            self.position,
            self._overlap_start,
            self.dead_letters,
            self._gaps,
            self._schedule,
            self._stats,
            max_poll_time=self._settings.max_poll_time,
            prefetch=self._processing.prefetch,
            clock=self._clock,
        )

    @cached_property
    def position(self) -> Position:
        """Where the name begins, and where it goes on."""
        return Position(
            self.session,
            self._fetcher,
            self.progress,
            self._overlap_start,
            self._stats,
            self._hooks,
            start=self._processing.start,
            on_cursor_expired=self._processing.on_cursor_expired,
        )

    @cached_property
    def replay(self) -> Replay:
        """Gives a range of the feed to the handler again."""
        return Replay(self._fetcher, self._dedupe, self._retry, self.progress, self._gaps)

    @cached_property
    def _gaps(self) -> Gaps:
        return Gaps(self.session, self.progress, self._stats, self._hooks)

    @cached_property
    def _overlap_start(self) -> OverlapStart:
        return OverlapStart(
            self.session,
            self._stats,
            seconds=self._processing.overlap,
            cursors=self._processing.overlap_cursors,
            clock=self._clock,
            time_of_day=self.progress.time_of_day,
        )

    @cached_property
    def _fetcher(self) -> Fetcher:
        return Fetcher(self._feed, self._schedule, self._clock)


logger = logging.getLogger("push_to_poll_client")

CLOSE_TIMEOUT = 10.0
"""Seconds that a store or a feed gets to be closed: one that hangs must not hold whoever stops the consumer."""


class OpenSession:
    """The claimed name, and all that is made when it is claimed.

    Args:
        name: Of the consumer.
        feed: Closed with the last user.
        feed_name: What the name is bound to.
        store: Where it is claimed.
        schedule: Goes on by the clock of the event loop.
        inbox: Where wakes are while it is closed.
        assemble: Makes the parts of a session.

    Attributes:
        loop: The event loop of the last use; `None`: there was none.
        parts: Those of the session; `None`: it is closed.
    """

    def __init__(
        self,
        name: str,
        *,
        feed: Feed,
        feed_name: str,
        store: Store,
        schedule: Schedule,
        inbox: Wakes,
        assemble: Callable[[Session, EventLoop], SessionParts],
    ) -> None:
        self.loop: EventLoop | None = None
        self.parts: SessionParts | None = None
        self._name = name
        self._feed = feed
        self._feed_name = feed_name
        self._store = store
        self._schedule = schedule
        self._wakes = inbox
        self._build_parts = assemble
        self._lock = anyio.Lock()
        self._users = 0

    async def enter(self) -> None:
        """Open it, if nobody uses it.

        Raises:
            StoreError: The name could not be claimed.
            RuntimeError: It is in use in another event loop.
        """
        loop = self._add_user(EventLoop())
        try:
            async with self._lock:
                if self.parts is None:
                    await self._open(loop)
        except BaseException:
            await self.leave()
            raise

    async def leave(self) -> None:
        """Close it, if nobody else uses it."""
        await in_own_task(self._leave)

    async def _open(self, loop: EventLoop) -> None:
        session = await self._store.claim(self._name, feed=self._feed_name)
        try:
            parts = self._build_parts(session, loop)
            self._wakes.open(loop, parts.polls.wake)
        except BaseException:  # what the session keeps cannot be read: the name is not to stay claimed for that
            await self._close(session.release)
            raise
        self.parts = parts

    def _add_user(self, loop: EventLoop) -> EventLoop:
        """Each event loop has a clock of its own: a schedule goes on by that of the loop it is used in."""
        if self.loop != loop:
            if self._users:
                raise RuntimeError(f"{self._name}: in use in another event loop")
            if self.loop is not None:
                self._schedule.shift(loop.time() - self.loop.time())
            self.loop, self._lock = loop, anyio.Lock()
        self._users += 1
        return loop

    async def _leave(self) -> None:
        self._users -= 1
        async with self._lock:
            if not self._users and self.parts is not None:
                self._wakes.close()
                parts, self.parts = self.parts, None
                await self._close(parts.session.release)
                await self._close(getattr(self._feed, "aclose", None))

    async def _close(self, closing: Callable[[], Awaitable[None]] | None) -> None:
        """What cannot be closed is logged: it takes nothing back of what was done."""
        if closing is None:
            return
        try:
            with anyio.fail_after(CLOSE_TIMEOUT):
                await closing()
        except Exception as error:  # noqa: BLE001  # whatever a store or a feed raises
            logger.warning("%s: could not be closed: %s", self._name, describe(error))


class Runner:
    """Runs the listeners and the automatic polls until stopped, cancelled, or broken.

    Args:
        channels: One for each listener.
        shutdown_timeout: Seconds that the message in hand gets to finish.
    """

    def __init__(self, channels: Sequence[ListenerChannel], *, shutdown_timeout: float) -> None:
        self._channels = channels
        self._shutdown_timeout = shutdown_timeout
        self._stopped = anyio.Event()
        self._stop = StopSignal()
        self._fatal: BaseException | None = None

    def stop(self, loop: EventLoop) -> None:
        """Begin no further message, and end; from any thread."""
        self._stop.requested = True
        loop.call(self._stopped.set)

    async def run_until_stopped(self, polls: Polls) -> None:
        """Poll and listen.

        Raises:
            PushToPollError: What stopped it, if it was neither `stop()` nor the end of a closed feed.
        """
        polls.begin()
        async with anyio.create_task_group() as tasks:
            for channel in self._channels:
                tasks.start_soon(self._listen, channel)
            tasks.start_soon(self._poll, polls)
            try:
                await self._stopped.wait()
            finally:
                self._stop.requested = True
                self._stop.event.set()
                polls.set_in_flight_deadline(anyio.current_time() + self._shutdown_timeout)
            tasks.cancel_scope.cancel()
        if self._fatal is not None:
            raise self._fatal

    async def _poll(self, polls: Polls) -> None:
        try:
            while not self._stop.requested:
                await self._poll_once(polls)
                if polls.closed:
                    self._feed_ended()
        except anyio.get_cancelled_exc_class():
            if anyio.current_effective_deadline() > -math.inf:  # not by who runs this: it would end without a word
                self._stop_with_error(RuntimeError("the task that polls was cancelled, perhaps by a handler"))
            raise
        except BaseException as error:  # noqa: BLE001  # raised by until_stopped, without a group around it
            self._stop_with_error(error)

    async def _poll_once(self, polls: Polls) -> None:
        try:
            await polls.poll_when_due(self._stop)
        except (CursorExpired, FeedGone):
            raise
        except FeedError as error:
            logger.warning("poll failed, next in %.1f s: %s", polls.delay, describe(error))
            logger.debug("it failed here", exc_info=error)

    def _feed_ended(self) -> None:
        logger.info("the feed has ended and all of it is settled: run() returns")
        self._stop.requested = True
        self._stopped.set()

    async def _listen(self, channel: ListenerChannel) -> None:
        channel.started()
        try:
            await channel.listener.listen(channel)
            logger.info("%s: ended, as its server asked; polling goes on", channel.name)
        except anyio.get_cancelled_exc_class() as cancelled:
            self._listener_failed(channel, error_for_cancellation(cancelled, "it"))
        except Exception as error:  # noqa: BLE001  # raised by until_stopped as what it means for the user
            self._listener_failed(channel, error)
        finally:
            channel.stopped()

    def _listener_failed(self, channel: ListenerChannel, error: Exception) -> None:
        if self._stop.requested:
            logger.info("%s: failed while it was stopped: %s", channel.name, describe(error))
        elif isinstance(error, PushToPollError):
            self._stop_with_error(error)
        else:
            broken = ListenerError(f"listener {channel.name} failed: {describe(error)}")
            broken.__cause__ = error
            self._stop_with_error(broken)

    def _stop_with_error(self, error: BaseException) -> None:
        if isinstance(error, Exception):  # others, such as SystemExit, are somebody's way to leave
            logger.error("stops: %s", describe(error))
        self._fatal = error if self._fatal is None else self._fatal
        self._stop.requested = True
        self._stopped.set()
