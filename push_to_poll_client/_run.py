"""One call of `run()`: polls when due, listens, and ends in an orderly way."""

import logging
import math
from collections.abc import Sequence

import anyio

from push_to_poll_client._channel import ListenerChannel
from push_to_poll_client._event_loop import EventLoop, failure_of
from push_to_poll_client._exceptions import CursorExpired, FeedError, FeedGone, ListenerError, PushToPollError
from push_to_poll_client._polling.polls import Polls
from push_to_poll_client._processing.trials import Stop
from push_to_poll_client._text import describe

__all__ = ["Run"]

logger = logging.getLogger("push_to_poll_client")


class Run:
    """Runs the listeners and the automatic polls until stopped, cancelled, or broken.

    Args:
        channels: One for each listener.
        shutdown_timeout: Seconds that the message in hand gets to finish.
    """

    def __init__(self, channels: Sequence[ListenerChannel], *, shutdown_timeout: float) -> None:
        self._channels = channels
        self._shutdown_timeout = shutdown_timeout
        self._stopped = anyio.Event()
        self._stop = Stop()
        self._fatal: BaseException | None = None

    def stop(self, loop: EventLoop) -> None:
        """Begin no further message, and end; from any thread."""
        self._stop.asked = True
        loop.call(self._stopped.set)

    async def until_stopped(self, polls: Polls) -> None:
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
                self._stop.asked = True
                self._stop.heard.set()
                polls.finish_until(anyio.current_time() + self._shutdown_timeout)
            tasks.cancel_scope.cancel()
        if self._fatal is not None:
            raise self._fatal

    async def _poll(self, polls: Polls) -> None:
        try:
            while not self._stop.asked:
                await self._poll_once(polls)
                if polls.closed:
                    self._feed_ended()
        except anyio.get_cancelled_exc_class():
            if anyio.current_effective_deadline() > -math.inf:  # not by who runs this: it would end without a word
                self._break(RuntimeError("the task that polls was cancelled, perhaps by a handler"))
            raise
        except BaseException as error:  # noqa: BLE001  # raised by until_stopped, without a group around it
            self._break(error)

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
        self._stop.asked = True
        self._stopped.set()

    async def _listen(self, channel: ListenerChannel) -> None:
        channel.started()
        try:
            await channel.listener.listen(channel)
            logger.info("%s: ended, as its server asked; polling goes on", channel.name)
        except anyio.get_cancelled_exc_class() as cancelled:
            self._listener_failed(channel, failure_of(cancelled, "it"))
        except Exception as error:  # noqa: BLE001  # raised by until_stopped as what it means for the user
            self._listener_failed(channel, error)
        finally:
            channel.stopped()

    def _listener_failed(self, channel: ListenerChannel, error: Exception) -> None:
        if self._stop.asked:
            logger.info("%s: failed while it was stopped: %s", channel.name, describe(error))
        elif isinstance(error, PushToPollError):
            self._break(error)
        else:
            broken = ListenerError(f"listener {channel.name} failed: {describe(error)}")
            broken.__cause__ = error
            self._break(broken)

    def _break(self, error: BaseException) -> None:
        if isinstance(error, Exception):  # others, such as SystemExit, are somebody's way to leave
            logger.error("stops: %s", describe(error))
        self._fatal = error if self._fatal is None else self._fatal
        self._stop.asked = True
        self._stopped.set()
