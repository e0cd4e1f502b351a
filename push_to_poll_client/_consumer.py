"""The only place where the parts meet: process, poll_now, wake, run, stop, status."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain, count
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import anyio
from tenacity import AsyncRetrying, stop_after_attempt, wait_exponential, wait_random

from push_to_poll_client._channel import ListenerChannel
from push_to_poll_client._event_loop import EventLoop, in_own_task
from push_to_poll_client._handler import Process, as_handler
from push_to_poll_client._inbox import Inbox
from push_to_poll_client._poller import Poller
from push_to_poll_client._polls import Polls
from push_to_poll_client._processor import Processor
from push_to_poll_client._progress import Progress
from push_to_poll_client._run import Run
from push_to_poll_client._schedule import Mode
from push_to_poll_client._settings import Settings
from push_to_poll_client._status import PollResult, Status, Tally
from push_to_poll_client._text import describe
from push_to_poll_client._types import Feed, Listener, Message, Push, Session, Store

__all__ = ["Consumer"]

logger = logging.getLogger("push_to_poll_client")

Part = TypeVar("Part")

RETRY: Final = AsyncRetrying(
    stop=stop_after_attempt(5), wait=wait_exponential(multiplier=0.5, max=30) + wait_random(0, 0.5)
)
"""Five attempts in 8 to 10 seconds: outlives a restart of what the handler calls, and is not yet an outage."""


CLOSE_TIMEOUT = 10.0
"""Seconds that a store or a feed gets to be closed: one that hangs must not hold whoever stops the consumer."""


class Consumer:
    """Consumes a feed: polls once, then whenever woken, then when it was quiet for the fallback interval.

    Subclass it and write `process`, or pass `process=`. Each message is processed once, in order, as long as its
    processing was recorded (G6); what was in hand at a crash is done again (G7).

    `run()` claims the name in the store, and gives it back. So does each bare `poll_now()`; `async with consumer`
    keeps it, and the feed's connections, over several.

    Args:
        feed: Where messages are read.
        store: Where progress is kept. `MemoryStore()` forgets with the process; there is no default.
        listeners: Push channels, any number. Without one, and without calls to `wake()`, this is a plain poller.
        process: Used in place of the method. A plain function runs in a worker thread.
        name: The consumer's name in the store; `None`: the feed's identity. Several consumers of one feed, each
            with its own progress, need names.
        fallback_interval: Longest quiet time, in seconds, before polling anyway; for a plain poller, its delay.
            `None`: poll only when woken, which listeners forbid. A minute costs a server 0.02 polls a second.
        degraded_interval: The same while a push channel is down or seems to lose pushes; `None`: no shorter.
        rate: Polls a second in the long run, whatever is pushed; `None`: no limit.
        burst: Polls that may be started at once after a quiet time.
        wake_delay: Seconds to gather further wakes after the first; 0: poll at once.
        max_poll_time: Seconds after which a poll that still finds pages ends at a page boundary and goes on as a
            new one, so that a feed which grows faster than its handler starves nobody.
        flush_interval: Seconds of work that may be uncommitted: what a crash costs. 0: each message is committed
            before the next begins.
        shutdown_timeout: Seconds that the message in hand gets to finish when `run()` is cancelled or stopped.
        retry: When to try a failed message again, and when to give up: tenacity's `stop`, `wait` and `retry`
            strategies in an `AsyncRetrying`. `None`: give up at once.

    Raises:
        TypeError: There is no `process`, or an argument is of the wrong kind.
        ValueError: A number is out of range, or two contradict each other.
    """

    def __init__(
        self,
        feed: Feed,
        *,
        store: Store,
        listeners: Sequence[Listener] = (),
        process: Process | None = None,
        name: str | None = None,
        fallback_interval: float | None = 60.0,
        degraded_interval: float | None = 10.0,
        rate: float | None = 5.0,
        burst: int = 10,
        wake_delay: float = 0.0,
        max_poll_time: float = 30.0,
        flush_interval: float = 0.05,
        shutdown_timeout: float = 10.0,
        retry: AsyncRetrying | None = RETRY,
    ) -> None:
        if process is None and type(self).process is Consumer.process:
            raise TypeError("override Consumer.process in a subclass, or pass process=")
        self._settings = Settings(
            fallback_interval=fallback_interval,
            degraded_interval=degraded_interval,
            rate=rate,
            burst=burst,
            wake_delay=wake_delay,
            max_poll_time=max_poll_time,
            flush_interval=flush_interval,
            shutdown_timeout=shutdown_timeout,
        )
        self._settings.check_listeners(len(listeners))
        self._feed = _having("fetch", feed)
        self._store = _having("claim", store)
        self._retry = _retrying(retry)
        self._feed_name = str(getattr(feed, "identity", type(feed).__qualname__))
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str or None, not {name!r}")
        self.name: str = self._feed_name if name is None else name
        self._handler = as_handler(self.process if process is None else process)
        self._channels: list[ListenerChannel] = []
        for listener in listeners:
            self._channels.append(self._channel(_having("listen", listener)))

        self._schedule = self._settings.schedule()
        self._tally = Tally()
        self._inbox = Inbox()
        self._loop: EventLoop | None = None
        self._gate = anyio.Lock()
        self._polls: Polls | None = None
        self._users = 0
        self._run: Run | None = None

    # What the user writes

    def process(self, message: Message) -> Awaitable[None] | None:
        """Process one message. Override it with `async def`, or with `def`, which runs in a worker thread.

        Not called again for a message whose processing was recorded. An exception means that it failed: it is
        tried again as `retry` says, and then stops the consumer (G9). `UndecodableMessage` is not tried again.
        """
        raise NotImplementedError

    # What the user calls

    async def run(self) -> None:
        """Consume until cancelled or `stop()`.

        Both let the message in hand finish (within `shutdown_timeout`), commit progress, and close the listeners.

        Raises:
            MessageFailed: A message failed for good; the cursor stands before it.
            CursorExpired: The feed no longer knows the cursor.
            FeedGone: The feed is gone for good.
            ListenerError: A push channel is broken for good.
            StoreError: The store is, or the name has another owner.
            RuntimeError: It runs already.
        """
        if self._run is not None:
            raise RuntimeError(f"{self.name}: run() is running already")
        self._run = Run(self._channels, shutdown_timeout=self._settings.shutdown_timeout)
        try:
            async with self:
                await self._run.until_stopped(self._opened)
        finally:
            self._run = None

    def stop(self) -> None:
        """Make `run()` return, from any thread. Does nothing when it does not run."""
        if (run := self._run) is not None and self._loop is not None:
            run.stop(self._loop)

    def wake(self, push: Push | None = None) -> None:
        """Poll soon, from any thread. Never blocks; without `run()` it is kept for it.

        Args:
            push: What arrived on a push channel; `None`: somebody simply wishes a poll.
        """
        self._inbox.put(push)

    def pause(self) -> None:
        """Poll no more but by `poll_now()`; in the event loop. Wakes are kept, listeners stay."""
        self._schedule.paused = True
        if self._polls is not None:
            self._polls.give_way()

    def resume(self) -> None:
        """Undo `pause()`; in the event loop."""
        self._schedule.paused = False
        self._look_again()

    async def poll_now(self, *, timeout: float | None = 10.0) -> PollResult:  # noqa: ASYNC109  # not that of the poll
        """Poll now, with or without `run()`, and say what was done.

        Answered by a poll that starts at or after this call, which may be one that somebody else leads (G2). It
        takes a token, and waits for what the server asked for and for the backoff after a failure (G3).

        Args:
            timeout: Seconds that it may have to wait until a poll may start; `None`: as long as it takes. The
                poll itself takes the time it takes, up to `max_poll_time` and a page.

        Raises:
            Throttled: A poll may not start within `timeout`.
            FeedError: The poll failed, for everybody who waited for it.
            MessageFailed: A message failed for good; the cursor stands before it.
            StoreError: The store failed, or the name has another owner.
            RuntimeError: Called while processing a message of this consumer: use `wake()` there.
        """
        if self._polls is not None and self._polls.inside:
            raise RuntimeError(f"{self.name}: poll_now() inside process would wait for itself; use wake()")
        async with self:
            return await self._opened.poll_now(timeout)

    def status(self) -> Status:
        """A snapshot, from any thread."""
        polls, schedule, tally = self._polls, self._schedule, self._tally
        return Status(
            name=self.name,
            feed=self._feed_name,
            mode=schedule.mode(self._loop.time()) if self._loop and polls else Mode.STOPPED,
            cursor=polls.session.cursor if polls else None,
            token=polls.session.token if polls else None,
            listeners=tuple(channel.status for channel in self._channels),
            last_poll=tally.last_poll,
            last_progress=tally.last_progress,
            last_caught_up=tally.last_caught_up,
            last_error=tally.last_error,
            lossy=schedule.lossy,
            counters=tally.counters(missed_pushes=schedule.missed_pushes),
        )

    # Open and closed

    async def __aenter__(self) -> Self:
        """Claim the name and keep it, and the feed's connections, until the last one leaves."""
        loop = self._enter(EventLoop())
        try:
            async with self._gate:
                if self._polls is None:
                    self._polls = self._open(await self._store.claim(self.name, feed=self._feed_name), loop)
                    self._inbox.open(loop, self._polls.wake)
        except BaseException:
            await in_own_task(self._leave)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back what `__aenter__` took."""
        await in_own_task(self._leave)

    def _enter(self, loop: EventLoop) -> EventLoop:
        """Each event loop has a clock of its own: a schedule goes on by that of the loop it is used in."""
        if self._loop != loop:
            if self._users:
                raise RuntimeError(f"{self.name}: in use in another event loop")
            if self._loop is not None:
                self._schedule.shift(loop.time() - self._loop.time())
            self._loop, self._gate = loop, anyio.Lock()
        self._users += 1
        return loop

    async def _leave(self) -> None:
        self._users -= 1
        async with self._gate:
            if not self._users and self._polls is not None:
                self._inbox.close()
                polls, self._polls = self._polls, None
                await self._close(polls.session.release)
                await self._close(getattr(self._feed, "aclose", None))

    async def _close(self, closing: Callable[[], Awaitable[None]] | None) -> None:
        """What cannot be closed is logged: it takes nothing back of what was done."""
        if closing is None:
            return
        try:
            with anyio.fail_after(CLOSE_TIMEOUT):
                await closing()
        except Exception as error:  # noqa: BLE001  # whatever a store or a feed raises
            logger.warning("%s: could not be closed: %s", self.name, describe(error))

    def _open(self, session: Session, loop: EventLoop) -> Polls:
        schedule = self._schedule
        progress = Progress(session, self._tally, flush_interval=self._settings.flush_interval, clock=loop.time)
        processor = Processor(progress, self._handler, self._tally, retry=self._retry, clock=loop.time)
        poller = Poller(
            self._feed,
            processor,
            progress,
            schedule,
            self._tally,
            max_poll_time=self._settings.max_poll_time,
            clock=loop.time,
        )
        return Polls(schedule, session, processor, poller, tally=self._tally, clock=loop.time)

    @property
    def _opened(self) -> Polls:
        assert self._polls is not None  # inside `async with self`  # noqa: S101
        return self._polls

    # Channels

    def _channel(self, listener: Listener) -> ListenerChannel:
        name, taken = str(getattr(listener, "name", type(listener).__name__)), {one.name for one in self._channels}
        name = next(free for free in chain([name], (f"{name} #{n}" for n in count(2))) if free not in taken)
        return ListenerChannel(listener, name, wake=self.wake, changed=self._channel_changed)

    def _channel_changed(self, channel: ListenerChannel) -> None:
        self._schedule.set_channel(channel.name, up=channel.status.up)
        self._look_again()

    def _look_again(self) -> None:
        if self._polls is not None:
            self._polls.look_again()


def _having(method: str, part: Part) -> Part:
    if isinstance(part, type) or not callable(getattr(part, method, None)):
        raise TypeError(f"{part!r} is no object with a method {method}()")
    return part


def _retrying(retry: Any) -> AsyncRetrying | None:
    if retry is not None and not isinstance(retry, AsyncRetrying):
        raise TypeError(f"retry must be a tenacity.AsyncRetrying or None, not {retry!r}")
    return retry
