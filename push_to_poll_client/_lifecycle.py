"""Build the parts of a session, open and close it, and run it.

`OpenSession` claims the consumer's name for its first user, which builds `SessionParts`, and releases it after its
last user. `Runner` runs the listeners and the automatic polls of an open session.
"""

import logging
import math
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar
from weakref import WeakSet

import anyio

from push_to_poll_client._channels import ListenerChannel
from push_to_poll_client._dead_letters import SessionDeadLetters
from push_to_poll_client._event_loop import (
    EventLoop,
    asyncio_cancellation,
    error_for_cancellation,
    in_own_task,
    sole_cause,
)
from push_to_poll_client._exceptions import (
    CursorExpired,
    FeedError,
    FeedGone,
    ListenerError,
    ProcessError,
    PushToPollError,
    StoreMismatch,
    StoreUnavailable,
)
from push_to_poll_client._failure_policy import FailureRules
from push_to_poll_client._fetching import Fetcher, Gaps
from push_to_poll_client._handlers import in_transaction
from push_to_poll_client._hooks import Hooks, with_start_hook
from push_to_poll_client._log import ConsumerLog, ExcInfo, handler_error
from push_to_poll_client._options import BatchHandler, Handler, ProcessingOptions, ScheduleOptions
from push_to_poll_client._overlap import Overlap
from push_to_poll_client._poller import Poller
from push_to_poll_client._polls import Polls
from push_to_poll_client._position import Position, Replay
from push_to_poll_client._processor import Dedupe, Processor
from push_to_poll_client._progress import Progress, Uncommitted
from push_to_poll_client._protocols import Feed, Session, Store, is_transactional
from push_to_poll_client._retry import Retry, StopSignal
from push_to_poll_client._schedule import Mode, PollOutcome, Schedule
from push_to_poll_client._status import ConsumerStats, RunLog, SavedProgress
from push_to_poll_client._types import Clock, Cursor, Push
from push_to_poll_client._validation import describe
from push_to_poll_client._wakes import Wakes
from push_to_poll_client._workers import Workers

__all__ = ["OpenSession", "Runner", "SessionParts", "not_recorded", "when_available"]


logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

T = TypeVar("T")


class SessionParts:
    """The parts that live as long as a session.

    Args:
        feed: The feed to consume.
        session: Keeps the progress.
        schedule: Decides when to poll; outlives the session.
        stats: Counts; outlives the session.
        settings: The user's options for the schedule.
        processing: The user's options for messages and positions.
        worth_a_poll: Returns whether the hint of a push is worth a poll.
        clock: The event loop's clock.

    Attributes:
        session: As given.
        progress: Progress that is not committed yet.
        processor: Settles pages.
        dead_letters: The messages that were given up on.
        position: Chooses where polls start.
        replay: Replays ranges of the feed.
        poller: Runs one poll.
        polls: Runs one poll at a time.
    """

    def __init__(  # noqa: PLR0917  # each is of another type
        self,
        feed: Feed,
        session: Session,
        schedule: Schedule,
        stats: ConsumerStats,
        settings: ScheduleOptions,
        processing: ProcessingOptions,
        worth_a_poll: Callable[[Push], bool],
        clock: Clock,
    ) -> None:
        hooks = processing.hooks or Hooks()
        progress = Progress(
            session,
            stats,
            flush_interval=settings.flush_interval,
            shutdown_timeout=settings.shutdown_timeout,
            clock=clock,
        )
        dedupe = Dedupe(
            progress,
            feed=f"{type(feed).__name__}.fetch()",
            dedupe_key=processing.dedupe_key,
            ordering_key=processing.key if processing.concurrency > 1 else None,
            fingerprint=processing.fingerprint,
        )
        handler, batch_handler = _wrap_handlers(processing, session, dedupe, hooks)
        rules = FailureRules(processing.retry, processing.on_failure)
        retry = Retry(handler, progress, rules, stats, hooks=hooks, clock=clock)
        workers = Workers(
            retry,
            progress,
            batch_handler,
            concurrency=processing.concurrency,
            batch_size=processing.batch_size,
            hooks=hooks,
            clock=clock,
        )
        self.session = session
        self.progress = progress
        self.processor = Processor(
            progress,
            handler,
            dedupe,
            retry,
            workers,
            stats,
            plain=processing.plain,
            batch_wait=processing.batch_wait,
            clock=clock,
        )
        self.dead_letters = SessionDeadLetters(session, feed, progress, retry)

        fetcher = Fetcher(feed, schedule, clock)
        gaps = Gaps(session, progress, stats, hooks)
        overlap = Overlap(
            session,
            seconds=processing.overlap,
            max_poll_time=settings.max_poll_time,
            clock=clock,
            time_of_day=progress.time_of_day,
        )
        self.position = Position(
            session,
            fetcher,
            progress,
            overlap,
            stats,
            hooks,
            start=processing.start,
            on_cursor_expired=processing.on_cursor_expired,
        )
        self.replay = Replay(fetcher, dedupe, retry, progress, gaps, stats)
        self.poller = Poller(
            fetcher,
            self.processor,
            progress,
            self.position,
            overlap,
            self.dead_letters,
            gaps,
            schedule,
            stats,
            max_poll_time=settings.max_poll_time,
            prefetch=processing.prefetch,
            clock=clock,
        )
        self.polls = Polls(
            schedule,
            session,
            self.processor,
            self.poller,
            fetcher,
            stats=stats,
            hooks=hooks,
            overlaps=processing.overlap > 0,
            worth_a_poll=worth_a_poll,
            clock=clock,
        )

    async def rewind(self, to: Cursor | None, *, ago: float | None, forget: bool) -> None:
        """See `Consumer.rewind`. Call it while no poll runs."""
        await self.progress.flush()
        await self.position.rewind(to, ago=ago, forget=forget)
        self.poller.discard_place()
        self.polls.position_changed()

    async def save_state(self, name: str, text: str | None) -> None:
        """Keep a text in the session's state; `None` removes it. Call it while no poll runs.

        Raises:
            StoreError: The store failed.
        """
        await self.progress.flush()
        await self.session.commit(cursor=None, records=[], state={name: text})


def _wrap_handlers(
    processing: ProcessingOptions, session: Session, dedupe: Dedupe, hooks: Hooks
) -> tuple[Handler, BatchHandler | None]:
    """Put the handlers in a transaction if the store has one, and announce calls to the hooks if there are any."""
    handler, batch_handler = processing.handler, processing.batch
    if is_transactional(session):
        handler = in_transaction(handler, session, lambda message: dedupe.records([message]))
        batch_handler = batch_handler and in_transaction(batch_handler, session, dedupe.records)
    if processing.hooks is not None:
        handler = with_start_hook(handler, hooks, lambda message: [message])
        batch_handler = batch_handler and with_start_hook(batch_handler, hooks, lambda messages: messages)
    return handler, batch_handler


FIRST_STORE_BACKOFF, MAX_STORE_BACKOFF = 0.25, 5.0
"""Seconds from a failed try to the next one, doubling, where nothing but the store is needed: for a claim, a
listener's state, the last commit. SQLite waits 5 s for a lock in each try, so these are 6 to 12 tries a minute."""

CLOSE_TIMEOUT = 10.0
"""Seconds for closing a store or a feed: one that hangs must not keep the consumer from stopping."""

_open_sessions: WeakSet["OpenSession"] = WeakSet()
"""Sessions that are open in this process, so that the last one on a feed closes it."""

_open_sessions_lock = threading.Lock()  # event loops run in several threads


def not_recorded(error: StoreUnavailable | str | None, count: int) -> StoreUnavailable:
    """Build the error for processed messages that could not be recorded before the consumer had to stop."""
    unsaved = StoreUnavailable(
        f"{error or 'stopped before the store was open'}; {count} processed messages are not recorded: this "
        "consumer object does that first when it is used again; without it they are processed again"
    )
    unsaved.__cause__ = error if isinstance(error, StoreUnavailable) else None
    return unsaved


async def when_available(function: Callable[[], Awaitable[T]], stats: ConsumerStats) -> T:
    """Call the function again, with backoff, as long as the store is unavailable.

    Args:
        function: Needs the store; what else it raises is raised.
        stats: Told of the errors.
    """
    delay = FIRST_STORE_BACKOFF
    while True:
        try:
            return await function()
        except StoreUnavailable as error:
            stats.last_error = describe(error)
            logger.warning("the store is unavailable, next try in %.1f s: %s", delay, describe(error))
        await anyio.sleep(delay)
        delay = min(2 * delay, MAX_STORE_BACKOFF)


class OpenSession:
    """Keeps the consumer's name claimed and its session open while it has users.

    Args:
        name: The consumer's name.
        feed: Closed with the last user, unless another consumer of this process uses it too.
        feed_name: What the feed calls itself; the name is bound to it.
        store: Claims the name.
        schedule: Follows the clock of the event loop in use.
        wakes: Keeps wakes while the session is closed.
        build_parts: Builds the parts of a session.

    Attributes:
        loop: The event loop of the last use; `None` before the first.
        parts: The parts of the session; `None` while it is closed.
    """

    def __init__(
        self,
        name: str,
        *,
        feed: Feed,
        feed_name: str,
        store: Store,
        schedule: Schedule,
        wakes: Wakes,
        build_parts: Callable[[Session, EventLoop], SessionParts],
    ) -> None:
        self.loop: EventLoop | None = None
        self.parts: SessionParts | None = None
        self._name = name
        self._feed = feed
        self._feed_name = feed_name
        former = getattr(feed, "former_identity", None) or ()
        self._former_names = (former,) if isinstance(former, str) else tuple(former)
        self._store = store
        self._schedule = schedule
        self._wakes = wakes
        self._build_parts = build_parts
        self._lock = anyio.Lock()
        self._users = self._keepers = self._lost_users = 0
        self._lost_session: Session | None = None
        self._uncommitted: Uncommitted | None = None  # by the last session, until the next one restores it
        self._last_saved = SavedProgress()

    @property
    def uncommitted_count(self) -> int:
        """Number of settled messages that the last session could not commit, while the session is closed."""
        return 0 if self._uncommitted is None else len(self._uncommitted.commit["records"])

    @property
    def saved(self) -> SavedProgress:
        """Saved progress of the session, or of the last one while it is closed. Call it from any thread."""
        parts = self.parts
        if parts is None:
            return self._last_saved
        return SavedProgress(parts.session.cursor, parts.session.size, parts.session.dead)

    @property
    def is_kept(self) -> bool:
        """Whether `run()` or the caller's `async with` keeps the session open."""
        return self._keepers > 0

    async def enter(self, *, keep: bool) -> None:
        """Add a user, and open the session for the first one.

        Args:
            keep: Whether the session is kept open for more than one call.

        Raises:
            StoreError: The name could not be claimed.
            RuntimeError: The session is in use in another event loop.
        """
        loop = EventLoop()
        if self.loop != loop:
            if self.loop is not None:
                self._leave_loop(self.loop)
                self._schedule.shift(loop.time() - self.loop.time())  # each event loop has a clock of its own
            self.loop, self._lock = loop, anyio.Lock()
        self._users += 1
        self._keepers += keep
        try:
            async with self._lock:
                if self.parts is None:
                    await self._open(loop)
        except BaseException:
            await self.leave(keep=keep)
            raise

    def _leave_loop(self, loop: EventLoop) -> None:
        """Leave an event loop for another one. If it ended while the session was open, that session is lost."""
        if not self._users:
            return
        if not loop.has_ended:
            raise RuntimeError(f"{self._name}: in use in another event loop")
        logger.warning("the event loop ended while the consumer was in use; claiming the name again")
        self._lost_users, self._users, self._keepers = self._lost_users + self._users, 0, 0
        self._wakes.close()
        if self._schedule.mode(loop.time()) in {Mode.POLLING, Mode.WAITING}:
            self._schedule.poll_ended(loop.time(), PollOutcome.ABANDONED)
        if self.parts is not None:
            self._uncommitted = self.parts.progress.uncommitted()
            self._last_saved = self.saved
            self._lost_session, self.parts = self.parts.session, None
            self._leave_feed()

    def forget_lost_user(self) -> bool:
        """Whether a coroutine that is destroyed was one of those whose event loop has ended."""
        if not self._lost_users:
            return False
        self._lost_users -= 1
        return True

    async def _claim(self) -> Session:
        """Claim the name, also if it was bound to what an earlier version called the feed."""
        former, rebind = self._former_names, getattr(self._store, "rebind", None)
        if not former or rebind is None:
            return await self._store.claim(self._name, feed=self._feed_name)
        if self._name == self._feed_name:  # then the name was the former identity too
            for name in former:
                with suppress(ValueError):  # the former name is unknown, or the new one has begun
                    await rebind(name, feed=self._feed_name, new_name=self._name)
                    self._log_rebind(name)
        try:
            return await self._store.claim(self._name, feed=self._feed_name)
        except StoreMismatch as mismatch:
            bound_to = mismatch.bound_to
            if bound_to is None or bound_to not in former:
                raise
        await rebind(self._name, feed=self._feed_name, new_name=None)
        self._log_rebind(bound_to)
        return await self._store.claim(self._name, feed=self._feed_name)

    def _log_rebind(self, former: str) -> None:
        logger.info("an earlier version called this feed %s; the name goes on", former)

    async def _open(self, loop: EventLoop) -> None:
        if (lost := self._lost_session) is not None:
            self._lost_session = None
            await self._close(lost.release)
        with _open_sessions_lock:  # before the claim: another consumer may close the feed meanwhile
            _open_sessions.add(self)
        try:
            session = await self._claim()
            self._former_names = ()  # the first claim has settled that
            try:
                parts = self._build_parts(session, loop)
                await self._restore_uncommitted(parts.progress)
                self._wakes.open(loop, parts.polls.wake)
            except BaseException:  # the session's state cannot be read: do not leave the name claimed
                await self._close(session.release)
                raise
        except BaseException:
            self._leave_feed()
            raise
        self.parts, self._uncommitted = parts, None

    async def _restore_uncommitted(self, progress: Progress) -> None:
        uncommitted = self._uncommitted
        if uncommitted is not None and not await progress.restore(uncommitted):
            logger.warning(
                "another consumer has used the name since a commit failed, so what that commit could not save is "
                "given up: %d processed messages, of which the other consumer may have processed some again",
                len(uncommitted.commit["records"]),
            )

    async def leave(self, *, keep: bool) -> None:
        """Remove a user, added with the same `keep`, and close the session after the last one."""
        self._keepers -= keep
        await in_own_task(self._leave)

    async def _leave(self) -> None:
        self._users -= 1
        if self._users:  # do not wait for one that opens the session
            return
        async with self._lock:
            if not self._users and self.parts is not None:
                self._wakes.close()
                self._last_saved = self.saved
                parts, self.parts = self.parts, None
                self._uncommitted = parts.progress.uncommitted()
                await self._close(parts.session.release)
                if self._leave_feed():
                    await self._close(getattr(self._feed, "aclose", None))

    def _leave_feed(self) -> bool:
        """Use the feed no longer; return whether no other session of this process uses it."""
        with _open_sessions_lock:
            _open_sessions.discard(self)
            return all(other._feed is not self._feed for other in _open_sessions)  # noqa: SLF001  # this class

    async def _close(self, close: Callable[[], Awaitable[None]] | None) -> None:
        """Close a store or a feed; a failure is only logged, since it undoes nothing."""
        if close is None:
            return
        try:
            with anyio.fail_after(CLOSE_TIMEOUT):
                await close()
        except Exception as error:  # noqa: BLE001  # whatever a store or a feed raises
            logger.warning("could not be closed: %s", describe(error))


class Runner:
    """Runs the listeners and the automatic polls until stopped, cancelled, or broken.

    Args:
        channels: One for each listener.
        shutdown_timeout: Seconds that the messages in flight and a commit get to finish.

    Attributes:
        loop: The event loop that it runs in; `None` before it has begun.
        opening: The cancel scope for opening the session, since a store may hang; made by `begin`.
    """

    def __init__(self, channels: Sequence[ListenerChannel], *, shutdown_timeout: float) -> None:
        self.loop: EventLoop | None = None
        self.opening: anyio.CancelScope
        self._channels = channels
        self._shutdown_timeout = shutdown_timeout
        self._stopped = anyio.Event()
        self._stop = StopSignal()
        self._fatal: BaseException | None = None
        self._is_cancelled: Callable[[], bool] = lambda: False

    def stop(self) -> None:
        """Begin no further message, and end. Call it from any thread."""
        self._stop.requested = True
        if self.loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self.loop.call(self._end)

    def _end(self) -> None:
        self._stopped.set()
        self.opening.cancel()

    def begin(self) -> bool:
        """Begin in the current event loop; return False if it was stopped before."""
        self.opening = anyio.CancelScope()
        self.loop = EventLoop()  # from here on `stop` reaches it
        return not self._stop.requested

    async def run_until_stopped(self, parts: SessionParts, log: RunLog) -> None:
        """Poll and listen.

        Args:
            parts: The parts of the open session.
            log: Told of the start, the polls and the end.

        Raises:
            PushToPollError: The error that stopped it, unless it ended by `stop()` or with a feed that has ended.
        """
        self._is_cancelled = asyncio_cancellation()
        if self._stop.requested:  # while the session was opened
            return
        log.started(parts.position.place)
        parts.polls.begin(log)
        try:
            await self._poll_and_listen(parts)
        finally:
            parts.polls.run_log = None
            log.stopped(parts.session.cursor, self._why_stopped(parts.polls))

    def _why_stopped(self, polls: Polls) -> str:
        if self._fatal is not None:
            return "because of an error"
        if polls.closed:
            return "the feed has ended, and all of it is settled"
        return "stop() was called" if self._stopped.is_set() else "run() was cancelled"

    async def _poll_and_listen(self, parts: SessionParts) -> None:
        deadline = -math.inf
        try:
            async with anyio.create_task_group() as tasks:
                for channel in self._channels:
                    tasks.start_soon(self._listen, channel)
                tasks.start_soon(self._poll, parts)
                try:
                    await self._stopped.wait()
                finally:
                    self._stop.requested = True
                    self._stop.event.set()
                    deadline = anyio.current_time() + self._shutdown_timeout
                    parts.polls.set_in_flight_deadline(deadline)
                    parts.progress.finish_by(deadline)
                tasks.cancel_scope.cancel()
        finally:
            if parts.progress.has_uncommitted:
                await in_own_task(partial(self._commit_by, deadline, parts.progress))
            parts.progress.finish_by(math.inf)
        if self._fatal is not None:
            raise self._fatal

    async def _commit_by(self, deadline: float, progress: Progress) -> None:
        """Try until the deadline to commit what a store that was unavailable has refused so far."""
        delay = FIRST_STORE_BACKOFF
        while progress.has_uncommitted:
            left = deadline - anyio.current_time()
            if progress.refusal is not None and left <= 0:
                count = progress.uncommitted_count
                self._stop_with_error(not_recorded(progress.refusal, count) if count else progress.refusal)
                return
            try:
                await progress.flush()
            except StoreUnavailable:
                await anyio.sleep(min(delay, max(left, 0.0)))
                delay = min(2 * delay, MAX_STORE_BACKOFF)
            except Exception as error:  # noqa: BLE001  # waiting does not help
                if self._fatal is None:
                    self._stop_with_error(error)
                return

    async def _poll(self, parts: SessionParts) -> None:
        polls = parts.polls
        try:
            while not self._stop.requested:
                await self._poll_once(parts)
                if polls.closed:
                    self._stop.requested = True
                    self._stopped.set()
        except anyio.get_cancelled_exc_class():
            if anyio.current_effective_deadline() > -math.inf and not self._is_cancelled():
                # Not by the caller of run(), nor by asyncio.run(), which cancels every task when it ends: without
                # this, polling would end and nothing would say so.
                self._stop_with_error(RuntimeError("the task that polls was cancelled, perhaps by a handler"))
            raise
        except ProcessError as error:
            self._stop_with_error(error, bug=handler_error(error.__cause__ or error))
        except BaseException as error:  # noqa: BLE001  # raised by run_until_stopped, without a group around it
            self._stop_with_error(error, bug=None if isinstance(error, PushToPollError) else error)

    async def _poll_once(self, parts: SessionParts) -> None:
        polls = parts.polls
        try:
            await polls.poll_when_due(self._stop)
        except (CursorExpired, FeedGone):
            raise
        except FeedError as error:
            logger.warning("poll failed, next in %.1f s: %s", polls.delay, describe(error))
            logger.debug("it failed here", exc_info=error)
        except StoreUnavailable as error:
            if self._stop.requested:  # `_commit_by` tries again
                return
            if count := parts.progress.uncommitted_count:
                logger.warning(
                    "the store is unavailable, next try in %.1f s; nothing is processed until %d processed "
                    "messages are recorded: %s",
                    polls.delay,
                    count,
                    describe(error),
                )
            else:
                logger.warning("the store is unavailable, next try in %.1f s: %s", polls.delay, describe(error))

    async def _listen(self, channel: ListenerChannel) -> None:
        channel.started()
        try:
            await channel.listener.listen(channel)
            logger.info("%s: ended, as its server asked; polling goes on", channel.name)
        except BaseException as raised:  # noqa: BLE001  # raised by run_until_stopped, without a group around it
            error = sole_cause(raised)
            if isinstance(error, anyio.get_cancelled_exc_class()):
                error = error_for_cancellation(error, "it")
            self._listener_failed(channel, error)
        finally:
            # A coroutine may be destroyed long after its event loop has ended: then the channel is of another run.
            if self.loop is None or not self.loop.has_ended:
                channel.stopped()

    def _listener_failed(self, channel: ListenerChannel, error: BaseException) -> None:
        if not isinstance(error, Exception):  # SystemExit and the like are meant to end the program
            self._stop_with_error(error)
        elif self._stop.requested:
            logger.info("%s: failed while it was stopped: %s", channel.name, describe(error))
        elif isinstance(error, PushToPollError):
            self._stop_with_error(error)
        else:
            broken = ListenerError(f"listener {channel.name} failed: {describe(error)}")
            broken.__cause__ = error
            self._stop_with_error(broken, bug=error)

    def _stop_with_error(self, error: BaseException, *, bug: BaseException | ExcInfo | None = None) -> None:
        """Stop, and log why, with the traceback of `bug` if there is one."""
        if isinstance(error, Exception):  # SystemExit and the like are not logged
            logger.error("stops: %s", describe(error), exc_info=bug)
        self._fatal = error if self._fatal is None else self._fatal
        self._stop.requested = True
        self._stopped.set()
