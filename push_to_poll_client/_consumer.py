"""The `Consumer` class: the public entry point of the library.

It checks its options and keeps everything that outlives a session: schedule, counters, wakes, channels. Each call
that reads or writes progress opens a session in the store.
"""

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from itertools import chain, count
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar
from weakref import ref

import anyio
from tenacity import AsyncRetrying, stop_after_attempt, wait_exponential, wait_random

from push_to_poll_client._channels import ListenerChannel, Wakes
from push_to_poll_client._dead_letters import DeadLetters, SessionDeadLetters
from push_to_poll_client._handlers import as_handler, batch_of_one
from push_to_poll_client._hooks import ConsumerStats, Hooks, SafeHooks
from push_to_poll_client._lifecycle import OpenSession, SessionParts, when_available
from push_to_poll_client._log import ConsumerLog, log_as
from push_to_poll_client._options import (
    LATEST,
    BatchHandler,
    DedupeKey,
    Fingerprint,
    Handler,
    OnCursorExpired,
    OnFailure,
    Options,
    OrderingKey,
    ProcessFunction,
    check_cursor,
    check_latest,
)
from push_to_poll_client._polls import Polls
from push_to_poll_client._protocols import Feed, Listener, Store
from push_to_poll_client._runner import Runner
from push_to_poll_client._schedule import Mode, Schedule
from push_to_poll_client._secrets import known_secrets
from push_to_poll_client._status import MAX_SHOWN_FAILING, Counters, PollResult, Status
from push_to_poll_client._types import Cursor, M_co, Push
from push_to_poll_client._validation import check_number, describe

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

# Five attempts in 8 to 10 seconds: long enough for a restart of a service that the handler calls.
DEFAULT_RETRY: Final = AsyncRetrying(
    stop=stop_after_attempt(5), wait=wait_exponential(multiplier=0.5, max=30) + wait_random(0, 0.5)
)


Function = TypeVar("Function", bound=Callable[..., Any])


def _to_be_awaited(function: Function) -> Function:
    """Mark a function so that frameworks await its result (Python 3.12)."""
    mark: Callable[[Function], Function] = getattr(inspect, "markcoroutinefunction", lambda function: function)
    return mark(function)


class Consumer(Generic[M_co]):
    """Poll a feed, call a handler for each message, and save progress.

    It polls at the start, after each wake, and at the latest after `fallback_interval` seconds without a poll.

    Subclass it and define `process`, or pass `process=`. Messages are processed one at a time in the order of the
    feed, unless `concurrency` is above 1. A message whose processing was recorded is not processed again (G6).
    After a crash, the work of the last `commit_interval` seconds and the messages in flight are processed again
    (G7).

    `class Orders(Consumer[CloudEvent])` takes a `Feed[CloudEvent]`, such as `HTTPFeed`, and `process` gets
    `CloudEvent` messages. A bare `Consumer` takes any feed; its messages are of type `Message`.

    `run()` claims the consumer's name in the store and releases it at the end. So does each single call of
    `poll_now()` or `catch_up()`. Use `async with consumer` to keep the name and the feed's connections over
    several calls.

    Args:
        feed: The feed to read messages from.
        store: Where progress is saved. There is no default. `MemoryStore()` loses the progress when the process
            ends.
        listeners: Push channels, any number. Without listeners and without calls of `wake()`, the consumer only
            polls by its timer.
        process: A handler to use instead of the method `process`. A plain function runs in a worker thread.
        name: The name of this consumer in the store, such as "orders". Give one: with `None` the name is the
            feed's identity, so the consumer starts anew if that changes, for example with the feed's URL.
            Consumers that read the same feed with separate progress need different names.
        fallback_interval: Poll after this many seconds without a poll, even if no push arrived. `None` means: poll
            only when woken; not allowed together with listeners. The default costs the server one poll a minute.
        degraded_interval: Use this interval instead, if it is shorter, while a push channel is down or seems to
            lose pushes. `None` means: always use `fallback_interval`.
        rate: Highest number of polls per second over a long time, whatever is pushed. `None` means no limit.
        burst: Number of polls that may start at once after a quiet time.
        wake_delay: Seconds to wait after a wake for further wakes, before one poll answers all of them. 0 means:
            poll at once.
        max_poll_time: Seconds after which a poll ends at the next page boundary although the feed has more. A new
            poll continues there at once, so callers of `poll_now()` do not wait forever for a feed that grows
            faster than its handler. `poll_now()` without `run()` or `async with` goes on to the first cursor that
            can be saved.
        commit_interval: Seconds of work that may be uncommitted, and so may be repeated after a crash. 0 means:
            commit each message before the next one starts.
        shutdown_timeout: Seconds that the messages in flight may take to finish when `run()` is stopped or
            cancelled. The last commit may take as long, and at least 5 seconds.
        retry: When to retry a failed message: the `stop`, `wait` and `retry` strategies of a tenacity
            `AsyncRetrying`. Its other settings are not used. The default makes 5 attempts in about 10 seconds.
            `None` means no retry. If the waits for one message add up to more than a second, the poll ends; a
            later poll continues at that message when it may be retried.
        on_failure: What to do with a message after its last attempt: "stop" the consumer before it, keep it as a
            "dead_letter" (see `dead_letters`), or "skip" it. Or a function of the message and the exception that
            returns one of these, `async` or not.
        batch_size: Largest number of messages in one call of `process_batch`.
        batch_wait: Seconds that the first message of a batch may wait for the next page to fill the batch. 0
            means: do not wait. Has an effect only for feeds with `read_ahead`, which are read one page ahead.
        concurrency: Number of messages, or batches, processed at the same time. More than 1 requires
            `ordering_key`. Plain functions run in as many threads.
        ordering_key: For `concurrency`: a function of a message. Messages with the same result are processed one
            after the other, or in one batch, in the order of the feed. Other messages do not wait for them, not
            even while one waits for its retry. It is not called for unreadable messages. If it raises, the message
            fails.
        dedupe_key: A function of a message that returns its dedupe key, by which a processed message is
            recognised: a `str` of 1 to 4,096 characters. `None` means `message.dedupe_key`. If it raises, the
            message fails.
        fingerprint: A function of a message that returns bytes, such as `lambda message: message.raw`. If a
            message comes again with the same dedupe key and other bytes, it fails with `ContentChanged`. `None`
            means: it is a duplicate whatever its content. If the function raises, the message fails.
        start: Where a new name starts: "inception" (the beginning of the feed), "latest" (its end; only for a feed
            with `latest()`), or a cursor. A name with saved progress continues from its saved cursor. A misspelt
            word ("lastest") or a word of other libraries ("earliest", "beginning", "start", "end") raises
            `ValueError`.
        on_cursor_expired: What to do when the feed no longer knows the cursor: "stop", or a `Resync`, which says
            where to continue. Or a function of the `CursorExpired` that returns a `Resync`, or `None` to stop.
            Each resync is logged and shown in the status.
        overlap: Start each poll this many seconds behind the saved cursor. For feeds in which a message can become
            visible after a message that comes later in the feed: set it to the longest duration of a transaction
            that writes to the feed. Messages that are read again and were processed are dropped as duplicates.
        standby: What `run()` does while another replica owns the name. True means: stand by until the name is
            free, with the listeners connected; their pushes are forwarded to the owner, if the store can do that.
            False means: raise `StoreBusy`, and `OwnershipLost` if the name is lost later.
        hooks: Methods to call when something happens, for telemetry and tests.

    Raises:
        TypeError: The handler is missing, or an argument has the wrong type.
        ValueError: An argument is out of range, or two arguments contradict each other.
    """

    def __init__(
        self,
        feed: Feed[M_co],
        *,
        store: Store,
        listeners: Sequence[Listener] = (),
        process: ProcessFunction[M_co] | None = None,
        name: str | None = None,
        fallback_interval: float | None = 60.0,
        degraded_interval: float | None = 10.0,
        rate: float | None = 5.0,
        burst: int = 10,
        wake_delay: float = 0.0,
        max_poll_time: float = 30.0,
        commit_interval: float = 0.05,
        shutdown_timeout: float = 10.0,
        retry: AsyncRetrying | None = DEFAULT_RETRY,
        on_failure: OnFailure[M_co] = "stop",
        batch_size: int = 100,
        batch_wait: float = 0.0,
        concurrency: int = 1,
        ordering_key: OrderingKey[M_co] | None = None,
        dedupe_key: DedupeKey[M_co] | None = None,
        fingerprint: Fingerprint[M_co] | None = None,
        start: Cursor = "inception",
        on_cursor_expired: OnCursorExpired = "stop",
        overlap: float = 0.0,
        standby: bool = True,
        hooks: Hooks[M_co] | None = None,
    ) -> None:
        handler, batch_handler = self._make_handlers(process, concurrency)
        safe_hooks = None if hooks is None else SafeHooks(hooks)
        self._options = Options(
            handler=handler,
            batch_handler=batch_handler,
            fallback_interval=fallback_interval,
            degraded_interval=degraded_interval,
            rate=rate,
            burst=burst,
            wake_delay=wake_delay,
            max_poll_time=max_poll_time,
            commit_interval=commit_interval,
            shutdown_timeout=shutdown_timeout,
            retry=retry,
            on_failure=on_failure,
            batch_size=batch_size,
            batch_wait=batch_wait,
            concurrency=concurrency,
            ordering_key=ordering_key,
            dedupe_key=dedupe_key,
            fingerprint=fingerprint,
            start=start,
            on_cursor_expired=on_cursor_expired,
            overlap=overlap,
            standby=standby,
            hooks=safe_hooks,
        )
        if callable(getattr(listeners, "listen", None)):
            raise TypeError(f"listeners must be a sequence, got one listener; pass listeners=[{listeners!r}]")
        self._feed = _require_method("fetch", feed)
        self._store = _require_method("claim", store)
        self._options.check_parts(feed, store, listeners)
        self._feed_name = str(getattr(feed, "identity", type(feed).__qualname__))
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str or None, got {name!r}")
        if name == "":
            raise ValueError(
                "name must not be empty; pass a name such as 'orders', or None for the feed's identity"
            )
        self.name: str = self._feed_name if name is None else name
        self._known_secrets = known_secrets((feed, *listeners))
        self._schedule = Schedule(
            fallback_interval=fallback_interval,
            degraded_interval=degraded_interval,
            rate=rate,
            burst=burst,
            wake_delay=wake_delay,
        )
        self._consumer_stats = ConsumerStats(safe_hooks or Hooks())
        self._wakes = Wakes()
        self._channels: list[ListenerChannel] = []
        for listener in listeners:
            self._channels.append(self._make_channel(_require_method("listen", listener)))
        self._open_session = OpenSession(
            options=self._options,
            name=self.name,
            feed=feed,
            feed_name=self._feed_name,
            store=store,
            schedule=self._schedule,
            stats=self._consumer_stats,
            wakes=self._wakes,
            worth_a_poll=self._worth_a_poll,
        )
        self._runner: Runner | None = None
        self._runners: tuple[ref[Runner], ...] = ()
        self._should_poll_failed = False

    # Methods to override

    # Covariant in spite of this argument: code that runs or wakes a `Consumer` takes one of any message type.
    def process(self, message: M_co) -> Awaitable[None] | None:  # type: ignore[misc]
        """Process one message; override with `async def` or `def`.

        A plain `def` runs in a worker thread. If it raises, the attempt has failed: the message is retried as
        `retry` says, and then `on_failure` decides (G9). A `DecodeError` is not retried. A message whose
        processing was recorded is not passed to it again.
        """
        raise NotImplementedError

    def process_batch(self, messages: Sequence[M_co]) -> Awaitable[None] | None:
        """Process up to `batch_size` messages; override instead of `process`.

        It may be `async def` or `def`. If it raises, the batch is split in halves until the failing message is
        alone. That message is retried as `retry` says, and then `on_failure` decides. The other messages may be
        processed twice, because the failed call may have done part of its work: delivery is at least once. With a
        transactional store, everything that a failed call wrote is rolled back, so each message that does not fail
        is processed exactly once.

        `RetryMessage` and `StopConsumer` apply to the whole batch, which is not split. To skip or dead-letter one
        message of a batch, raise `SkipMessage` or `DeadLetterMessage` when the message is alone.
        """
        raise NotImplementedError

    def should_poll(self, hint: Push, status: Status) -> bool:
        """Return True if the hint of a push should cause a poll.

        By default: True unless the hint names the saved cursor. Override it with a fast plain `def` to ignore
        pushes that do not concern this consumer. False only drops this one wake, and only if no poll is running or
        due (G1). It is not called for pushes without a hint, nor with `overlap`. If it raises, the push counts as
        a wake, and the error is logged: the first one as a warning, later ones at DEBUG.

        Args:
            hint: The push with its metadata. Not trustworthy: anyone who can push can write anything into it.
            status: The current status; `status.cursor` is the saved cursor.
        """
        return hint.cursor is None or hint.cursor != status.cursor

    # Methods to call

    @_to_be_awaited
    def run(self) -> Coroutine[Any, Any, None]:
        """Consume until cancelled or stopped, or until the feed has ended (`Page.closed`).

        In each case the messages in flight finish (within `shutdown_timeout`), progress is committed and the
        listeners are closed.

        Before its event loop ends, call `stop()` and await the task that runs it. Otherwise `asyncio.run()`
        cancels the handler together with all other tasks, and the next run processes its message again.

        Raises:
            ProcessError: A message failed for good and `on_failure` is "stop". The saved cursor is before that
                message.
            CursorExpired: The feed no longer knows the cursor.
            FeedGone: The feed was removed for good.
            ListenerError: A push channel cannot work and retrying does not help.
            StoreUnavailable: The store did not recover within `shutdown_timeout` after the stop. Until then the
                consumer waits for it. Unsaved progress stays in this object and is committed when it is used
                again.
            StoreBusy: The name has another owner, and `standby` is False.
            StoreError: The store failed for good.
            RuntimeError: It is already running.
        """
        runner = Runner(
            options=self._options,
            feed_name=self._feed_name,
            channels=self._channels,
            sessions=self._open_session,
        )
        # Weak references: a coroutine that is never awaited does not stay in memory.
        self._runners = (*(reference for reference in self._runners if reference() is not None), ref(runner))
        return self._run(runner)

    async def _run(self, runner: Runner) -> None:
        if self._runner is not None and not (self._runner.loop and self._runner.loop.has_ended):
            raise RuntimeError(f"{self.name}: run() is already running; call stop() first")
        if not runner.begin():
            return
        self._runner = runner
        try:
            with self._log_as_consumer():
                await runner.run()
        finally:
            if self._runner is runner:
                self._runner = None

    def stop(self) -> None:
        """Make `run()` return. Callable from any thread.

        This also works if the coroutine of `run()` has not started yet. You can call `run()` again afterwards.
        """
        for reference in self._runners:
            if (runner := reference()) is not None:
                runner.stop()

    def wake(self, push: Push | None = None) -> None:
        """Request a poll soon. Never blocks; callable from any thread.

        If `run()` is not running, the wake is kept for the next run.

        Args:
            push: The push that arrived on a push channel; `None` for a wake without a push.

        Raises:
            TypeError: `push` is neither a `Push` nor `None`.
        """
        self._wakes.put(push)

    def pause(self) -> None:
        """Stop polling, except by `poll_now()`. Callable from any thread.

        Wakes are kept and listeners stay connected.
        """
        self._schedule.paused = True
        self._call_soon(Polls.cancel_waiting_fetch)

    def resume(self) -> None:
        """Undo `pause()`. Callable from any thread."""
        self._schedule.paused = False
        self._call_soon(Polls.schedule_changed)

    async def poll_now(self, *, timeout: float | None = 10.0) -> PollResult:  # noqa: ASYNC109  # limits the wait
        """Poll now and return the result. Works with and without `run()`.

        The result comes from a poll that starts at or after this call; concurrent callers can share one poll (G2).
        The poll obeys the rate limit, a wait that the server asked for, and the backoff after a failure (G3).

        Args:
            timeout: Seconds to wait until the poll may start. `None` means no limit. The poll itself may take
                longer: up to `max_poll_time` plus one page, and without `run()` or `async with` until a cursor can
                be saved.

        Returns:
            The summed counts of all polls of this call.

        Raises:
            Throttled: The poll may not start within `timeout`.
            FeedError: The poll failed. All callers that wait for it get the error. Without `run()` or `async
                with`, a fetch that fails before a cursor can be saved is first retried, within `timeout`.
            ProcessError: A message failed for good. The saved cursor is before that message.
            StoreUnavailable: The store failed and may recover. Unsaved progress stays in this object and is
                committed by the next call, before anything else is processed.
            StoreError: The store failed, or the name has another owner.
            RuntimeError: Called from the handler of this consumer: call `wake()` there.
        """
        async with self._open("poll_now()", "; call wake() instead") as parts:
            return await parts.polls.poll_now(timeout)

    async def catch_up(self) -> PollResult:
        """Poll until the end of the feed. For scripts and cron jobs.

        It takes as long as needed and keeps its place in the feed between its polls. Each poll obeys the rate
        limit, a wait that the server asked for, and the waiting time of a failed message. It works with and
        without `run()`, and shares polls with other callers. It never returns if the feed grows faster than its
        handler: limit the time with `anyio.move_on_after()`. Messages processed until then are saved.

        Returns:
            The summed counts of all polls of this call. `caught_up` is False only if the feed does not advance;
            then `standstill` has the reason. `closed` is True if the feed has ended.

        Raises:
            FeedError: A poll failed. What was processed before is saved. Without `run()` or `async with`, a fetch
                that fails before a cursor can be saved is first retried.
            ProcessError: A message failed for good. The saved cursor is before that message.
            StoreUnavailable: As for `poll_now()`.
            StoreError: The store failed, or the name has another owner.
            RuntimeError: Called from the handler of this consumer: call `wake()` there.
        """
        async with self._open("catch_up()", "; call wake() instead") as parts:
            return await parts.polls.catch_up()

    @property
    def dead_letters(self) -> DeadLetters:
        """The dead letters of this consumer: list, get, retry, drop and export them.

        Usable while the consumer runs. `async for dead_letter in consumer.dead_letters` lists all of them.
        """
        return DeadLetters(self._session_dead_letters, self)

    async def rewind(self, to: Cursor | None = None, *, ago: float | None = None, forget: bool = False) -> None:
        """Continue from another place of the feed.

        The next poll starts there, soon if the consumer runs. The call first waits until the running poll ends.
        Messages that come again are duplicates and not processed, unless `forget` is True or the store no longer
        has their record. Use `replay()` to process messages again.

        Args:
            to: "inception", "latest" (only for a feed with `latest()`), or a cursor of the feed.
            ago: Instead of `to`: use the newest cursor that was saved at least this many seconds ago.
            forget: Start a new dedupe epoch: ignore all records of processed messages. For a feed that was reset
                and may use ids again. Dead letters are kept until a message with the same key is processed.

        Raises:
            TypeError: Neither or both of `to` and `ago` are given.
            ValueError: The store has no cursor that is old enough; the feed has no `latest()`; or `to` is probably
                a misspelt "inception" or "latest".
            FeedError: The feed could not return the cursor of its end.
            StoreError: The store failed, or the name has another owner.
            RuntimeError: Called from the handler of this consumer.
        """
        if (to is None) == (ago is None):
            raise TypeError(
                "rewind() needs either a position or ago=, got " + ("neither" if to is None else "both")
            )
        check_cursor("to", to, optional=True)
        check_number("ago", ago, optional=True)
        if to == LATEST:
            check_latest(self._feed)
        async with self._open("rewind()") as parts:
            if to == LATEST:  # wait without holding the lock of the polls: others need it
                await anyio.sleep_until(self._schedule.server_not_before)
            async with parts.polls.exclusive():
                await parts.rewind(to, ago=ago, forget=forget)

    async def replay(self, start: Cursor, end: Cursor | None = None) -> PollResult:
        """Process a range of the feed again, processed or not.

        The call waits until the running poll ends, and no poll runs meanwhile. Messages are processed one at a
        time; failing messages are treated as always. The saved cursor does not change.

        Args:
            start: Where to begin: "inception", "latest" (only for a feed with `latest()`), or a cursor. The
                message of that cursor itself is not replayed.
            end: The cursor of the last message or page to replay; "latest" for the newest one at the time of the
                call. `None` means: up to the end of the feed.

        Returns:
            The counts of the replay. `caught_up` is True if the end of the feed was reached before `end` was
            found. `standstill` is set if the replay stopped because the feed led back to a place already read.

        Raises:
            FeedError: A fetch failed. As with the next two errors, everything before it is already replayed.
            ProcessError: A message failed for good.
            StoreError: The store failed, or the name has another owner.
            RuntimeError: Called from the handler of this consumer.
            ValueError: "latest" was given and the feed has no `latest()`; or a position is probably a misspelt
                "inception" or "latest".
        """
        check_cursor("start", start)
        check_cursor("end", end, optional=True)
        if LATEST in {start, end}:
            check_latest(self._feed)
        async with self._exclusive("replay()") as parts:
            return await parts.poller.replay(start, end)

    def status(self) -> Status:
        """Return a snapshot of the consumer's state. Callable from any thread."""
        sessions, schedule, stats = self._open_session, self._schedule, self._consumer_stats
        loop, parts, saved = sessions.loop, sessions.parts, sessions.saved
        return Status(
            name=self.name,
            feed=self._feed_name,
            mode=schedule.mode(loop.time()) if loop and (parts or sessions.standing_by) else Mode.STOPPED,
            cursor=saved.cursor,
            fencing_token=parts.session.fencing_token if parts else None,
            owner=sessions.owner,
            listeners=tuple(channel.status for channel in self._channels),
            last_poll=stats.last_poll,
            last_progress=stats.last_progress,
            last_caught_up=stats.last_caught_up,
            last_error=stats.last_error,
            losing_pushes=schedule.losing_pushes,
            dead_letters=saved.dead_letters,
            records=saved.records,
            failing=tuple(stats.failing.values())[-MAX_SHOWN_FAILING:],
            failing_count=len(stats.failing),
            last_resync=stats.last_resync,
            last_gap=stats.last_gap,
            standstill=stats.standstill,
            counters=Counters(**stats.counts, missed_pushes=schedule.missed_pushes),
        )

    # Options

    def _make_handlers(
        self, process: ProcessFunction[M_co] | None, threads: int
    ) -> tuple[Handler[M_co], BatchHandler[M_co] | None]:
        cls = type(self)
        if inspect.iscoroutinefunction(cls.should_poll):
            raise TypeError(
                "should_poll must be a plain def, got an async def: it is called for each push and is not awaited"
            )
        overrides_process = cls.process is not Consumer.process
        if cls.process_batch is not Consumer.process_batch:
            if overrides_process or process is not None:
                raise TypeError(
                    "got more than one handler: define only one of process, process_batch and process="
                )
            batch = as_handler(self.process_batch, threads=threads)
            return batch_of_one(batch), batch
        if process is None and not overrides_process:
            raise TypeError(
                "got no handler: override process or process_batch in a subclass of Consumer, or pass process="
            )
        return as_handler(self.process if process is None else process, threads=threads), None

    # Session

    def _log_as_consumer(self) -> AbstractContextManager[None]:
        return log_as(self.name, self._known_secrets)

    async def __aenter__(self) -> Self:
        """Claim the name and keep it until its last user leaves."""
        with self._log_as_consumer():
            await self._open_session.enter(keep=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release what `__aenter__` acquired."""
        with self._log_as_consumer():
            await self._open_session.leave(error, keep=True)

    @asynccontextmanager
    async def _open(self, what: str, instead: str = "") -> AsyncIterator[SessionParts]:
        """Open the session for one call; refuse calls from the handler."""
        if self._parts is not None and self._parts.polls.called_from_poll:
            raise RuntimeError(
                f"{self.name}: {what} was called from the handler and would wait for itself{instead}"
            )
        with self._log_as_consumer():
            await self._open_session.enter(keep=False)
            error: BaseException | None = None
            try:
                yield self._opened
            except BaseException as raised:
                error = raised
                raise
            finally:
                await self._open_session.leave(error, keep=False)

    @property
    def _parts(self) -> SessionParts | None:
        return self._open_session.parts

    @property
    def _opened(self) -> SessionParts:
        parts = self._open_session.parts
        assert parts is not None  # inside `async with self`  # noqa: S101
        return parts

    @asynccontextmanager
    async def _exclusive(self, what: str) -> AsyncIterator[SessionParts]:
        """Open the session and yield its parts while no poll runs."""
        async with self._open(what) as parts, parts.polls.exclusive():
            yield parts

    @asynccontextmanager
    async def _session_dead_letters(self) -> AsyncIterator[SessionDeadLetters]:
        async with self._exclusive("dead_letters") as parts:
            yield parts.dead_letters

    # Channels

    def _make_channel(self, listener: Listener) -> ListenerChannel:
        name = str(getattr(listener, "name", type(listener).__name__))
        taken = {channel.name for channel in self._channels}
        name = next(free for free in chain([name], (f"{name} #{n}" for n in count(2))) if free not in taken)
        return ListenerChannel(
            listener=listener,
            name=name,
            wakes=self._wakes,
            schedule=self._schedule,
            changed=self._schedule_changed,
            saved_state=self._saved_state,
            save_state=self._save_state,
            run_while_owner=self._run_while_owner,
        )

    def _saved_state(self, key: str) -> str | None:
        parts = self._parts
        return None if parts is None else parts.session.state.get(key)

    async def _run_while_owner(self, work: Callable[[], Awaitable[None]]) -> None:
        assert self._runner is not None  # it runs the listener  # noqa: S101
        await self._runner.while_owner(work)

    async def _save_state(self, key: str, text: str | None) -> None:
        async def save() -> None:
            async with self._exclusive("save()") as parts:
                await parts.save_state(key, text)

        await when_available(save, self._consumer_stats)

    def _worth_a_poll(self, hint: Push) -> bool:
        try:
            return self.should_poll(hint, self.status())
        except Exception as error:  # an override can raise anything; poll anyway
            # A sender can make it fail with every push, so only the first failure is a warning.
            level = logging.DEBUG if self._should_poll_failed else logging.WARNING
            self._should_poll_failed = True
            with self._log_as_consumer():  # the push may come from another consumer's handler
                logger.log(level, "should_poll failed, polling anyway: %s", describe(error), exc_info=error)
            return True

    def _schedule_changed(self) -> None:
        if self._parts is not None:
            self._parts.polls.schedule_changed()

    def _call_soon(self, method: Callable[[Polls], None]) -> None:
        """Call a method of the open session's polls, from any thread."""

        def call() -> None:
            if self._parts is not None:
                method(self._parts.polls)

        if (loop := self._open_session.loop) is not None:
            loop.call(call)


Part = TypeVar("Part")


def _require_method(method: str, part: Part) -> Part:
    if isinstance(part, type) or not callable(getattr(part, method, None)):
        raise TypeError(f"expected an object with a method {method}(), got {part!r}")
    return part
