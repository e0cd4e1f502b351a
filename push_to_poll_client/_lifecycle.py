"""Open and close the session of a consumer.

`OpenSession` claims the consumer's name for its first user, builds the parts of a session, and releases the name
after its last user. If the store says that the session has ended by itself (another owner, a lease that ran out, a
commit in doubt), the next user gets a new session, and nothing that was in memory is used again.

While `run()` stands by, `OpenSession` forwards wakes to the owner.
"""

import logging
import math
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakSet

import anyio

from push_to_poll_client._channels import Wakes
from push_to_poll_client._dead_letters import SessionDeadLetters
from push_to_poll_client._event_loop import EventLoop, in_own_task
from push_to_poll_client._exceptions import OwnershipLost, StoreMismatch, StoreUnavailable
from push_to_poll_client._fetching import Fetcher
from push_to_poll_client._handlers import in_transaction, while_owner, with_start_hook
from push_to_poll_client._hooks import ConsumerStats
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._options import Handler, Options
from push_to_poll_client._poller import Poller
from push_to_poll_client._polls import Polls
from push_to_poll_client._position import Position
from push_to_poll_client._processor import Dedupe, Processor
from push_to_poll_client._progress import Progress, Uncommitted
from push_to_poll_client._protocols import Feed, LeasedSession, Session, Store, is_leased, is_transactional
from push_to_poll_client._retry import Retry
from push_to_poll_client._schedule import Mode, PollOutcome, Schedule
from push_to_poll_client._status import SavedProgress
from push_to_poll_client._types import Clock, Cursor, Push
from push_to_poll_client._validation import describe

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

T = TypeVar("T")


@dataclass(eq=False, repr=False)
class SessionParts:
    session: Session
    progress: Progress
    dead_letters: SessionDeadLetters
    position: Position
    poller: Poller
    polls: Polls
    # Set, and replaced, when the store reports that `lost` or `wanted` of the session may have changed.
    changed: anyio.Event = field(default_factory=anyio.Event)

    @property
    def is_over(self) -> bool:
        """True if the session has ended by itself: a new one is needed."""
        return is_leased(self.session) and self.session.lost

    @property
    def is_wanted(self) -> bool:
        """True if another replica asks for the name."""
        return is_leased(self.session) and self.session.wanted

    def changed_from(self, loop: EventLoop) -> Callable[[], None]:
        """Return a function that calls `session_changed` in this event loop, from any thread."""

        def changed() -> None:
            loop.call(self.session_changed)

        return changed

    def session_changed(self) -> None:
        """Let the runner read the session again, and drop what a lost session must not commit."""
        if self.is_over:
            self.progress.abandon()
        self.changed.set()
        self.changed = anyio.Event()

    async def rewind(self, to: Cursor | None, *, ago: float | None, forget: bool) -> None:
        """See `Consumer.rewind`. Call it while no poll runs."""
        await self.progress.flush()
        await self.position.rewind(to, ago=ago, forget=forget)
        self.poller.discard_place()
        self.polls.position_changed()

    async def save_state(self, name: str, text: str | None) -> None:
        """Save a text in the session's state; `None` deletes it. Call it while no poll runs."""
        await self.progress.flush()
        await self.session.commit(cursor=None, records=[], state={name: text})


# SQLite waits up to 5 s for a lock in each try, so this makes 6 to 12 tries a minute.
FIRST_STORE_BACKOFF, MAX_STORE_BACKOFF = 0.25, 5.0
"""First and longest delay, in seconds, between two tries of calls that need only the store."""

STANDBY_INTERVAL = 1.0
"""Seconds between two claims while standing by, for a store that cannot tell when a name is free."""

CLOSE_TIMEOUT = 10.0
"""Most seconds for closing a store or a feed: if the call hangs, the consumer must stop anyway."""

_open_sessions: WeakSet["OpenSession"] = WeakSet()
"""Open sessions of this process. The last session of a feed closes the feed."""

_open_sessions_lock = threading.Lock()  # event loops run in several threads


def not_recorded(error: StoreUnavailable | str | None, count: int) -> StoreUnavailable:
    """Create the error for processed messages that are not recorded."""
    unsaved = StoreUnavailable(
        f"{error or 'stopped before the store was open'}; {count} processed messages are not saved: "
        "use this consumer object again to save them, otherwise they are processed again"
    )
    unsaved.__cause__ = error if isinstance(error, StoreUnavailable) else None
    return unsaved


async def when_available(
    function: Callable[[], Awaitable[T]], stats: ConsumerStats, *, until: float = math.inf
) -> T:
    """Call a function, and retry while the store is unavailable, until the loop's clock reaches `until`."""
    delay = FIRST_STORE_BACKOFF
    while True:
        try:
            return await function()
        except StoreUnavailable as error:
            stats.last_error = describe(error)
            delay = min(delay, until - anyio.current_time())
            if delay <= 0:
                raise
            logger.warning("store unavailable, retrying in %.1f s: %s", delay, describe(error))
        await anyio.sleep(delay)
        delay = min(2 * delay, MAX_STORE_BACKOFF)


def _is_destroyed(error: BaseException | None) -> bool:
    """Return True if Python destroyed the coroutine that ended with this error."""
    # Its event loop has ended. If it cannot release a lock or set an event any more, it ends with a RuntimeError.
    while error is not None and not isinstance(error, GeneratorExit):
        error = error.__context__
    return error is not None


@dataclass(kw_only=True, eq=False, repr=False)
class OpenSession:
    """Claim the consumer's name, and keep the session open for its users."""

    options: Options
    name: str
    feed: Feed  # closed after the last user, unless another consumer of this process uses it
    feed_name: str  # identity of the feed, to which the name is bound
    store: Store
    schedule: Schedule
    stats: ConsumerStats
    wakes: Wakes  # keeps wakes while the session is closed
    worth_a_poll: Callable[[Push], bool]
    loop: EventLoop | None = field(default=None, init=False)
    parts: SessionParts | None = field(default=None, init=False)
    # True while `run()` runs: between two sessions it keeps the feed open, and a session that ended by itself.
    running: bool = field(default=False, init=False)
    standing_by: bool = field(default=False, init=False)
    owner: str | None = field(default=None, init=False)  # the other replica that owns the name, if known

    def __post_init__(self) -> None:
        former = getattr(self.feed, "former_identity", None) or ()
        self._former_names = (former,) if isinstance(former, str) else tuple(former)
        self._lock = anyio.Lock()
        self._users = self._keepers = self._lost_users = 0
        self._lost_session: Session | None = None  # its event loop has ended; to be released
        self._ended_session: LeasedSession | None = None  # it ended by itself; to be continued by `again()`
        self._uncommitted: Uncommitted | None = None  # by the last session, until the next one restores it
        self._last_saved = SavedProgress()

    @property
    def uncommitted_count(self) -> int:
        """Number of settled messages that the last session could not commit."""
        return 0 if self._uncommitted is None else len(self._uncommitted.commit["records"])

    @property
    def saved(self) -> SavedProgress:
        """Saved progress of the current or last session. Call it from any thread."""
        parts = self.parts
        if parts is None:
            return self._last_saved
        return SavedProgress(parts.session.cursor, parts.session.record_count, parts.session.dead_letter_count)

    async def enter(self, *, keep: bool) -> None:
        """Add a user, and open the session for the first one. `keep`: it stays open for more than one call."""
        loop = EventLoop()
        if self.loop != loop:
            if self.loop is not None:
                self._leave_loop(self.loop)
                self.schedule.shift(loop.time() - self.loop.time())  # each event loop has its own clock
            self.loop, self._lock = loop, anyio.Lock()
        self._users += 1
        self._keepers += keep
        try:
            async with self._lock:
                if self.parts is not None and self.parts.is_over:
                    self._set_aside(self.parts)
                if self.parts is None:
                    await self._open(loop)
        except BaseException as error:
            await self.leave(error, keep=keep)
            raise

    def _leave_loop(self, loop: EventLoop) -> None:
        """Leave an event loop. If it ended while the session was open, the session is lost."""
        if not self._users and not self.running:
            return
        if not loop.has_ended:
            raise RuntimeError(f"{self.name}: in use in another event loop; stop it there first")
        self.running = self.standing_by = self.schedule.standby = False
        logger.warning("the event loop ended while the consumer was in use, claiming the name again")
        self._lost_users, self._users, self._keepers = self._lost_users + self._users, 0, 0
        if self.schedule.mode(loop.time()) in {Mode.POLLING, Mode.WAITING}:
            self.schedule.poll_ended(loop.time(), PollOutcome.ABANDONED)
        if self.parts is not None:
            self._lost_session = self._end_parts(self.parts)
            self._leave_feed()

    # Standby

    def stand_by(self, owner: str | None) -> None:
        """Forward wakes to the owner until the name is claimed, or until `end_run`."""
        assert self.loop is not None  # a claim has failed in it  # noqa: S101
        if not self.standing_by and hasattr(self.feed, "prepare"):  # to poll soon after a take-over
            with suppress(Exception):  # the first fetch raises it too
                self.feed.prepare()
        self.owner, self.standing_by, self.schedule.standby = owner, True, True
        if self.parts is None and hasattr(self.store, "forward"):
            self.wakes.open(self.loop, self._forward)

    def _forward(self, push: Push | None) -> None:
        self.stats.counts["forwarded"] += 1
        self.store.forward(self.name, push)  # type: ignore[attr-defined]

    async def wait_until_free(self) -> None:
        """Return when another claim may succeed."""
        if hasattr(self.store, "freed"):
            await self.store.freed(self.name)
        else:
            await anyio.sleep(STANDBY_INTERVAL)

    async def end_run(self) -> None:
        """Stop standing by, and release or close the things that `run()` kept between two sessions."""
        self.running = self.standing_by = self.schedule.standby = False
        self.owner = None
        async with self._lock:
            if self.parts is None:
                self.wakes.close()
                await self._release_ended()
                if hasattr(self.store, "forwarded"):  # the process may end after this
                    await self._close(self.store.forwarded)
                await self._close_feed()

    # Opening

    async def _claim(self) -> Session:
        """Claim the name. Rebind it first if it is bound to a former identity of the feed."""
        if (ended := self._ended_session) is not None:
            try:
                session = await ended.again()
            except OwnershipLost:
                self._ended_session = None
            else:
                self._ended_session = None
                return session
        former = self._former_names if hasattr(self.store, "rebind") else ()
        if self.name == self.feed_name:  # no name= was given: the former name was the former identity
            for name in former:
                with suppress(ValueError):  # the former name is unknown, or the new one has begun
                    await self._rebind(name, former=name)
        try:
            return await self.store.claim(self.name, feed=self.feed_name)
        except StoreMismatch as mismatch:
            if mismatch.bound_to not in former:
                raise
            await self._rebind(self.name, former=mismatch.bound_to)
        return await self.store.claim(self.name, feed=self.feed_name)

    async def _rebind(self, name: str, *, former: object) -> None:
        new_name = None if name == self.name else self.name
        await self.store.rebind(name, feed=self.feed_name, new_name=new_name)  # type: ignore[attr-defined]
        logger.info(
            "continuing with the progress of an earlier version, saved under the former identity %s of the feed",
            former,
        )

    async def _open(self, loop: EventLoop) -> None:
        if (lost := self._lost_session) is not None:
            self._lost_session = None
            await self._close(lost.release)
        async with AsyncExitStack() as undo:
            with _open_sessions_lock:  # before the claim: another consumer may close the feed meanwhile
                _open_sessions.add(self)
            undo.callback(self._leave_feed_unless_running)
            session = await self._claim()
            self._former_names = ()  # only the first claim needs them
            undo.push_async_callback(self._close, session.release)  # if its state is invalid
            parts = self._build(session, loop.time)
            await self._restore_uncommitted(parts.progress)
            self.wakes.open(loop, parts.polls.wake)
            self.parts, self._uncommitted = parts, None
            self.standing_by = self.schedule.standby = False
            self.owner = None
            if is_leased(session):
                session.subscribe(changed=parts.changed_from(loop), wake=self.wakes.put)
            undo.pop_all()

    def _build(self, session: Session, clock: Clock) -> SessionParts:
        options = self.options
        shared = (options, session, self.stats, clock)
        fetcher = Fetcher(feed=self.feed, schedule=self.schedule, clock=clock)
        progress = Progress(*shared)
        dedupe = Dedupe(*shared, progress=progress, feed_name=fetcher.name)

        def wrap(handler: Handler[Any]) -> Handler[Any]:
            if is_leased(session):
                handler = while_owner(handler, session)
            if is_transactional(session):  # around that check, because the lease may end while it begins
                handler = in_transaction(handler, session, dedupe.records)
            return handler if options.hooks is None else with_start_hook(handler, options.hooks)

        handler, batch_handler = wrap(options.handler), options.batch_handler and wrap(options.batch_handler)
        retry = Retry(*shared, handler=handler, progress=progress)
        processor = Processor(*shared, progress=progress, batch_handler=batch_handler, dedupe=dedupe, retry=retry)
        dead_letters = SessionDeadLetters(*shared, feed=self.feed, progress=progress, retry=retry)
        position = Position(*shared, fetcher=fetcher, progress=progress)
        poller = Poller(
            *shared,
            fetcher=fetcher,
            processor=processor,
            progress=progress,
            position=position,
            dead_letters=dead_letters,
        )
        polls = Polls(
            *shared,
            schedule=self.schedule,
            poller=poller,
            worth_a_poll=self.worth_a_poll,
            place_is_kept=lambda: self._keepers > 0,  # by run() or the caller's `async with`
        )
        return SessionParts(session, progress, dead_letters, position, poller, polls)

    async def _restore_uncommitted(self, progress: Progress) -> None:
        uncommitted = self._uncommitted
        if uncommitted is not None and not await progress.restore(uncommitted):
            logger.warning(
                "another consumer has used the name since a commit failed, discarding that commit of %d processed "
                "messages; some of them may have been processed twice",
                len(uncommitted.commit["records"]),
            )

    async def leave(self, error: BaseException | None, *, keep: bool) -> None:
        """Remove a user with the same `keep`. Close the session after the last one."""
        # Python destroys the coroutines of a discarded event loop. They cannot await anything.
        if self._lost_users and _is_destroyed(error):
            self._lost_users -= 1
            return
        self._keepers -= keep
        await in_own_task(self._leave)

    async def _leave(self) -> None:
        self._users -= 1
        if self._users:  # do not wait for a user that opens the session
            return
        async with self._lock:
            if self._users or self.parts is None:
                return
            if self.running and self.parts.is_over:
                self._set_aside(self.parts)
                return
            await self._close(self._end_parts(self.parts).release)
            if not self.running:
                await self._close_feed()

    def _set_aside(self, parts: SessionParts) -> None:
        """Keep a session that ended by itself, for `again()`."""
        session = self._end_parts(parts)
        self._ended_session = session if is_leased(session) else None

    def _end_parts(self, parts: SessionParts) -> Session:
        """Keep the data that outlives the session. Return the session, to be released."""
        self.wakes.close()
        if parts.is_over and self.schedule.owes:  # the wake may have come when another replica was the owner (G1)
            self.wakes.put(None)
        self._last_saved, self._uncommitted = self.saved, parts.progress.uncommitted()
        self.parts = None
        if self.standing_by:  # the session was another call's
            self.stand_by(self.owner)
        return parts.session

    async def _release_ended(self) -> None:
        ended, self._ended_session = self._ended_session, None
        if ended is not None:
            await self._close(ended.release)

    def _leave_feed_unless_running(self) -> None:
        if not self.running:
            self._leave_feed()

    async def _close_feed(self) -> None:
        if self._leave_feed() and hasattr(self.feed, "aclose"):
            await self._close(self.feed.aclose)

    def _leave_feed(self) -> bool:
        """Unregister from the feed. Return True if it can be closed: no other session of this process uses it."""
        with _open_sessions_lock:
            was_open = self in _open_sessions
            _open_sessions.discard(self)
            return was_open and all(other.feed is not self.feed for other in _open_sessions)

    async def _close(self, close: Callable[[], Awaitable[None]]) -> None:
        """Close a store or a feed. A failure is only logged, since no progress is lost by it."""
        try:
            with anyio.fail_after(CLOSE_TIMEOUT):
                await close()
        except Exception as error:  # noqa: BLE001  # whatever a store or a feed raises
            logger.warning("cannot close the store or the feed: %s", describe(error))
