"""Consume a feed: the class that users subclass, run, wake and ask for its status.

`Consumer` checks its options, keeps what outlives a session (schedule, counters, wakes, channels), and opens a
session for each call that needs one.
"""

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
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
from push_to_poll_client._lifecycle import OpenSession, Runner, SessionParts, not_recorded, when_available
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
from push_to_poll_client._schedule import Mode, Schedule
from push_to_poll_client._secrets import known_secrets
from push_to_poll_client._status import MAX_SHOWN_FAILING, Counters, PollResult, Status
from push_to_poll_client._types import Cursor, M_co, Push
from push_to_poll_client._validation import check_number, describe

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

DEFAULT_RETRY: Final = AsyncRetrying(
    stop=stop_after_attempt(5), wait=wait_exponential(multiplier=0.5, max=30) + wait_random(0, 0.5)
)
"""Five attempts in 8 to 10 seconds: outlives a restart of what the handler calls, and is not yet an outage."""


Function = TypeVar("Function", bound=Callable[..., Any])


def _to_be_awaited(function: Function) -> Function:
    """Mark a function as one that returns a coroutine, so that frameworks await it (Python 3.12 and newer)."""
    mark: Callable[[Function], Function] = getattr(inspect, "markcoroutinefunction", lambda function: function)
    return mark(function)


class Consumer(Generic[M_co]):
    """Consumes a feed: polls once, then whenever woken, then when it was quiet for the fallback interval.

    Subclass it and write `process`, or pass `process=`. Each message is processed once, in order, as long as its
    processing was recorded (G6); what was in hand at a crash is done again (G7).

    `class Orders(Consumer[CloudEvent])` gives `process` the messages of a `Feed[CloudEvent]`, such as `HTTPFeed`;
    a bare `Consumer` takes any feed, and its messages are `Message`s.

    `run()` claims the name in the store, and gives it back. So does each bare `poll_now()` and `catch_up()`;
    `async with consumer` keeps it, and the feed's connections, over several.

    Args:
        feed: Where messages are read.
        store: Where progress is kept. `MemoryStore()` forgets with the process; there is no default.
        listeners: Push channels, any number. Without one, and without calls to `wake()`, this is a plain poller.
        process: Used in place of the method. A plain function runs in a worker thread.
        name: The consumer's name in the store. Give one, such as "orders": `None` is the feed's identity, so the
            consumer begins anew when that changes, as with the feed's URL. Several consumers of one feed, each
            with its own progress, need names.
        fallback_interval: Longest quiet time, in seconds, before polling anyway; for a plain poller, its delay.
            `None`: poll only when woken, which listeners forbid. A minute costs a server 0.02 polls a second.
        degraded_interval: The same while a push channel is down or seems to lose pushes; `None`: no shorter.
        rate: Polls a second in the long run, whatever is pushed; `None`: no limit.
        burst: Polls that may be started at once after a quiet time.
        wake_delay: Seconds to gather further wakes after the first; 0: poll at once.
        max_poll_time: Seconds after which a poll that still finds pages ends at a page boundary, and a new poll
            continues there, so that a feed which grows faster than its handler starves no caller. A `poll_now()`
            without `run()` or `async with` keeps no place, so it goes on to the first cursor that can be saved.
        commit_interval: Seconds of work that may be uncommitted: what a crash costs. 0: each message is committed
            before the next begins.
        shutdown_timeout: Seconds that the message in hand gets to finish when `run()` is cancelled or stopped. A
            commit gets as long, and 5 seconds at least.
        retry: When to try a failed message again, and when to give up: tenacity's `stop`, `wait` and `retry`
            strategies in an `AsyncRetrying`; nothing else of it is used. `None`: give up at once. A wait of more
            than a second, or several that come to more, ends the poll, which goes on at that message when its time
            has come.
        on_failure: What becomes of a message that failed for good: "stop" the consumer before it, keep it as a
            "dead_letter" (see `dead_letters`) or "skip" it, and go on; or a function of message and exception that
            returns one of the three, `async` or not.
        batch_size: Messages that `process_batch` gets at most.
        batch_wait: Seconds for which the first message of a batch may wait for the next page to fill it, where
            that is not there yet; 0: not at all. Only a feed with `read_ahead` is asked for a page before the one
            before it is processed.
        concurrency: Messages, or batches, that are processed at a time. More than 1 needs `ordering_key`. Plain
            functions are in as many threads.
        ordering_key: With `concurrency`: messages for which this function returns the same are processed in the
            feed's order, one after the other (or in one batch); others at the same time, also while one waits to
            be tried again. Not asked of an unreadable message; one for which it raises fails, likewise with the
            next two.
        dedupe_key: What "already processed" is asked of, a function of a message that returns a str of 1 to 4,096
            characters; `None`: `message.key`.
        fingerprint: What must not change under a dedupe key, a function of a message that returns bytes (as
            `lambda message: message.raw`): a message that comes back with other bytes fails, with
            `ContentChanged`. `None`: it is a duplicate.
        start: Where a new name begins: "inception", "latest" (a feed with `latest`), or a cursor. A name that has
            begun goes on from its saved cursor. A slip of these words ("lastest"), or another word for them
            ("earliest", "beginning", "start", "end"), is a `ValueError`.
        on_cursor_expired: What to do when the feed no longer knows the cursor: "stop", or go on as a `Resync`
            says, or as a function of the `CursorExpired` does (`None`: stop). Each resync is in status and log.
        overlap: Seconds by which polls start behind the saved cursor, for feeds on which messages become visible
            later than others that stand after them: as long as the longest transaction that writes the feed.
            Dedupe drops what is known.
        hooks: Told of the consumer's life.

    Raises:
        TypeError: There is no `process`, or an argument is of the wrong kind.
        ValueError: A number is out of range, or two contradict each other.
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
            hooks=safe_hooks,
        )
        if callable(getattr(listeners, "listen", None)):
            raise TypeError(f"listeners are several: give [{listeners!r}]")
        self._feed = _require_method("fetch", feed)
        self._store = _require_method("claim", store)
        self._options.check_parts(feed, store, listeners)
        self._feed_name = str(getattr(feed, "identity", type(feed).__qualname__))
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str or None, not {name!r}")
        if name == "":
            raise ValueError("name must not be empty; give a short one, such as 'orders', or None for the feed's")
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

    # What the user writes

    # Covariant all the same, so that what runs or wakes any `Consumer` takes one of any messages.
    def process(self, message: M_co) -> Awaitable[None] | None:  # type: ignore[misc]
        """Process one message. Override it with `async def`, or with `def`, which runs in a worker thread.

        Not called again for a message whose processing was recorded. An exception means that it failed: it is
        tried again as `retry` says, and then stops the consumer (G9). `DecodeError` is not tried again.
        """
        raise NotImplementedError

    def process_batch(self, messages: Sequence[M_co]) -> Awaitable[None] | None:
        """Process up to `batch_size` messages at once. Override it in place of `process`, `async` or not.

        When it raises, the batch is split in halves until the message that fails stands alone; that one is tried
        again as `retry` says, and what becomes of it then `on_failure`. So what it did before it raised may be
        done again for the others: they are processed at least once. With a transactional store all that a failed
        call wrote is undone, and each message that does not fail is processed exactly once.

        `RetryMessage` and `StopConsumer` are for the whole batch, which is not split; to skip or keep one message
        of it, raise `SkipMessage` or `DeadLetterMessage` when it stands alone.
        """
        raise NotImplementedError

    def should_poll(self, hint: Push, status: Status) -> bool:
        """Whether the hint of a push is worth a poll; as it is, unless it names the saved cursor.

        Override it, with a plain quick `def`, to leave out pushes that are of no interest here. A push that is
        not worth it is dropped when no poll runs and none is due (G1): it is one wake less, and nothing more. Not
        asked for pushes that say nothing, nor with an `overlap`. When it raises, the push counts, and that is
        logged, the first time as a warning.

        Args:
            hint: What the push said. Whoever may push can write anything into it.
            status: As it is now; `cursor` is the saved one.
        """
        return hint.cursor is None or hint.cursor != status.cursor

    # What the user calls

    @_to_be_awaited
    def run(self) -> Coroutine[Any, Any, None]:
        """Consume until cancelled, `stop()`, or the end of a feed that says that it has ended (`Page.closed`).

        All let the message in hand finish (within `shutdown_timeout`), commit progress, and close the listeners.

        A task that runs it has to be awaited, or stopped by `stop()`, before its event loop ends: `asyncio.run()`
        cancels the tasks that are left, and the message in hand with them, which is then processed again.

        Raises:
            ProcessError: A message failed for good, and the policy is to stop; the cursor stands before it.
            CursorExpired: The feed no longer knows the cursor.
            FeedGone: The feed is gone for good.
            ListenerError: A push channel is broken for good.
            StoreUnavailable: The store, for which it waits as long as it runs, did not recover within
                `shutdown_timeout` after it was to stop; this object commits what is left when it is used again.
            StoreError: The store is broken for good, or the name has another owner.
            RuntimeError: It runs already.
        """
        runner = Runner(options=self._options, feed_name=self._feed_name, channels=self._channels)
        # Weak: a coroutine that is never awaited leaves nothing behind.
        self._runners = (*(reference for reference in self._runners if reference() is not None), ref(runner))
        return self._run(runner)

    async def _run(self, runner: Runner) -> None:
        if self._runner is not None and not (self._runner.loop and self._runner.loop.has_ended):
            raise RuntimeError(f"{self.name}: run() is running already")
        if not runner.begin():
            return
        self._runner = runner
        try:
            async with AsyncExitStack() as stack:
                stack.enter_context(self._log_as_consumer())
                with runner.opening:
                    await when_available(partial(stack.enter_async_context, self), self._consumer_stats)
                if not runner.opening.cancelled_caught:
                    await runner.run_until_stopped(self._opened)
                elif count := self._open_session.uncommitted_count:
                    raise not_recorded(self._consumer_stats.last_error, count)
        finally:
            if self._runner is runner:
                self._runner = None

    def stop(self) -> None:
        """Make `run()` return, also if it was called and has not begun. A later `run()` works as usual.

        Call it from any thread.
        """
        for reference in self._runners:
            if (runner := reference()) is not None:
                runner.stop()

    def wake(self, push: Push | None = None) -> None:
        """Poll soon, from any thread. Never blocks; without `run()` it is kept for it.

        Args:
            push: What arrived on a push channel; `None`: somebody simply wishes a poll.

        Raises:
            TypeError: It is neither. It would fail in the event loop, and take others with it.
        """
        self._wakes.put(push)

    def pause(self) -> None:
        """Start no poll except by `poll_now()`. Wakes are kept, listeners stay. Call it from any thread."""
        self._schedule.paused = True
        self._call_soon(Polls.cancel_waiting_fetch)

    def resume(self) -> None:
        """Undo `pause()`. Call it from any thread."""
        self._schedule.paused = False
        self._call_soon(Polls.schedule_changed)

    async def poll_now(self, *, timeout: float | None = 10.0) -> PollResult:  # noqa: ASYNC109  # not that of the poll
        """Poll now, with or without `run()`, and say what was done.

        Answered by a poll that starts at or after this call, which may be one that somebody else leads (G2). It
        takes a token, and waits for what the server asked for and for the backoff after a failure (G3).

        Args:
            timeout: Seconds that it may have to wait until a poll may start; `None` means as long as it takes. The
                poll itself may take longer: up to `max_poll_time` and a page, and without `run()` or `async with`
                until a cursor can be saved.

        Returns:
            What was done, together for all polls of the call.

        Raises:
            Throttled: A poll may not start within `timeout`.
            FeedError: The poll failed, for each caller that waited for it. Without `run()` or `async with` a fetch
                that failed before a cursor can be saved is first tried again, within `timeout`.
            ProcessError: A message failed for good; the cursor stands before it.
            StoreUnavailable: The store may recover. What it could not save is kept in this object, and committed
                before anything is processed by the next call.
            StoreError: The store failed, or the name has another owner.
            RuntimeError: Called while processing a message of this consumer: use `wake()` there.
        """
        async with self._open("poll_now()", "; use wake()") as parts:
            return await parts.polls.poll_now(timeout)

    async def catch_up(self) -> PollResult:
        """Poll until caught up with the feed, without a limit of time. For scripts and cron jobs.

        It keeps its place in the feed, takes a token for each poll, and waits as long as the server asks and until
        a message that failed may be tried again. It works with and without `run()`, and joins the polls of other
        callers. A consumer never catches up with a feed that grows faster than its handler: limit the time with
        `anyio.move_on_after()`. What was processed until then is saved.

        Returns:
            What was done, together for all polls of the call. `caught_up` is False only if `standstill` says why
            the feed stands still. `closed`: nothing will ever follow.

        Raises:
            FeedError: A poll failed; what was processed before is saved. As with `poll_now()`, without `run()` or
                `async with` a fetch that failed before a cursor can be saved is first tried again.
            ProcessError: A message failed for good; the cursor stands before it.
            StoreUnavailable: As with `poll_now()`.
            StoreError: The store failed, or the name has another owner.
            RuntimeError: Called while processing a message of this consumer: use `wake()` there.
        """
        async with self._open("catch_up()", "; use wake()") as parts:
            return await parts.polls.catch_up()

    @property
    def dead_letters(self) -> DeadLetters:
        """The messages given up on, also while the consumer runs: `async for`, or get, retry, drop and export."""
        return DeadLetters(self._session_dead_letters, self)

    async def rewind(self, to: Cursor | None = None, *, ago: float | None = None, forget: bool = False) -> None:
        """Go on from another place of the feed, with the next poll, which is soon if the consumer runs.

        Waits for the poll that runs. What comes again is a duplicate and not processed, unless `forget` says so,
        or its record is older than the retention; to process it again all the same, `replay`.

        Args:
            to: "inception", "latest" (a feed with `latest`), or any cursor of the feed.
            ago: In place of `to`: the newest cursor that was saved so many seconds ago, or before.
            forget: Begin a new dedupe epoch: for a feed that was reset and may use ids again. Dead letters stay,
                until a message with the key of one is processed.

        Raises:
            TypeError: Neither `to` nor `ago`, or both.
            ValueError: No cursor is kept that is so old; the feed has no `latest`; `to` is most likely meant for
                "inception" or "latest".
            FeedError: The feed's end is not to be had.
            StoreError: The store failed, or somebody else has the name.
            RuntimeError: Called while processing a message of this consumer.
        """
        if (to is None) == (ago is None):
            raise TypeError("rewind() takes a place or ago=, one of the two")
        check_cursor("to", to, optional=True)
        check_number("ago", ago, optional=True)
        if to == LATEST:
            check_latest(self._feed)
        async with self._open("rewind()") as parts:
            if to == LATEST:  # wait for the server without the lock of polls, which others need meanwhile
                await anyio.sleep_until(self._schedule.server_not_before)
            async with parts.polls.exclusive():
                await parts.rewind(to, ago=ago, forget=forget)

    async def replay(self, start: Cursor, end: Cursor | None = None) -> PollResult:
        """Give a range of the feed to the handler again, whatever was processed of it.

        Waits for the poll that runs, and none runs meanwhile. Messages are processed one after the other, failing
        ones as ever. The saved cursor stays where it is.

        Args:
            start: Where to begin: "inception", "latest" (a feed with `latest`), or a cursor, whose message is not
                in the range.
            end: The cursor of the last message, or page, of the range; "latest": the newest one now; `None`: to
                the end of the feed.

        Returns:
            What was done. `caught_up`: the end of the feed was reached, and `end` not seen. `standstill`: the feed
                leads back to where it was, and the replay ended there.

        Raises:
            FeedError: A fetch failed. What was before it is replayed; likewise with the following.
            ProcessError: A message failed for good.
            StoreError: The store failed, or somebody else has the name.
            RuntimeError: Called while processing a message of this consumer.
            ValueError: "latest", and the feed has no `latest`; a position is most likely meant for "inception" or
                "latest".
        """
        check_cursor("start", start)
        check_cursor("end", end, optional=True)
        if LATEST in {start, end}:
            check_latest(self._feed)
        async with self._exclusive("replay()") as parts:
            return await parts.poller.replay(start, end)

    def status(self) -> Status:
        """A snapshot, from any thread."""
        loop, parts, schedule, stats = self._open_session.loop, self._parts, self._schedule, self._consumer_stats
        saved = self._open_session.saved
        return Status(
            name=self.name,
            feed=self._feed_name,
            mode=schedule.mode(loop.time()) if loop and parts else Mode.STOPPED,
            cursor=saved.cursor,
            fencing_token=parts.session.fencing_token if parts else None,
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
            raise TypeError("should_poll is a plain def: a push is not kept waiting")
        overrides_process = cls.process is not Consumer.process
        if cls.process_batch is not Consumer.process_batch:
            if overrides_process or process is not None:
                raise TypeError("override process or process_batch, or pass process=, one of them")
            batch = as_handler(self.process_batch, threads=threads)
            return batch_of_one(batch), batch
        if process is None and not overrides_process:
            raise TypeError("override process or process_batch of Consumer in a subclass, or pass process=")
        return as_handler(self.process if process is None else process, threads=threads), None

    # Open and closed

    def _log_as_consumer(self) -> AbstractContextManager[None]:
        """Name this consumer in the log, and mask what its feed and listeners must not show."""
        return log_as(self.name, self._known_secrets)

    async def __aenter__(self) -> Self:
        """Claim the name and keep it, and the feed's connections, until the last one leaves."""
        with self._log_as_consumer():
            await self._open_session.enter(keep=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back what `__aenter__` took."""
        with self._log_as_consumer():
            await self._open_session.leave(error, keep=True)

    @asynccontextmanager
    async def _open(self, what: str, instead: str = "") -> AsyncIterator[SessionParts]:
        """Open the session for one call, which cannot be made while processing a message."""
        if self._parts is not None and self._parts.polls.called_from_poll:
            raise RuntimeError(f"{self.name}: {what} inside process would wait for itself{instead}")
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
        """Open the session, and yield its parts while no poll runs."""
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
        )

    def _saved_state(self, key: str) -> str | None:
        return self._opened.session.state.get(key)

    async def _save_state(self, key: str, text: str | None) -> None:
        async def save() -> None:
            async with self._exclusive("save()") as parts:
                await parts.save_state(key, text)

        await when_available(save, self._consumer_stats)

    def _worth_a_poll(self, hint: Push) -> bool:
        try:
            return self.should_poll(hint, self.status())
        except Exception as error:  # whatever a user's override raises; the push counts
            # The sender of a push can make it fail at will: only the first failure is a warning.
            level = logging.DEBUG if self._should_poll_failed else logging.WARNING
            self._should_poll_failed = True
            with self._log_as_consumer():  # the push may come from another consumer's handler
                logger.log(level, "should_poll failed, the push counts: %s", describe(error), exc_info=error)
            return True

    def _schedule_changed(self) -> None:
        if self._parts is not None:
            self._parts.polls.schedule_changed()

    def _call_soon(self, method: Callable[[Polls], None]) -> None:
        """Call a method of the polls in the event loop, from any thread, if the session is open then."""

        def call() -> None:
            if self._parts is not None:
                method(self._parts.polls)

        if (loop := self._open_session.loop) is not None:
            loop.call(call)


Part = TypeVar("Part")


def _require_method(method: str, part: Part) -> Part:
    if isinstance(part, type) or not callable(getattr(part, method, None)):
        raise TypeError(f"{part!r} is no object with a method {method}()")
    return part
