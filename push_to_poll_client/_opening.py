"""When is a consumer open, and in which event loop? From the first who uses it to the last."""

import logging
from collections.abc import Awaitable, Callable

import anyio

from push_to_poll_client._assembly import Parts
from push_to_poll_client._event_loop import EventLoop, in_own_task
from push_to_poll_client._inbox import Inbox
from push_to_poll_client._protocols import Feed, Session, Store
from push_to_poll_client._schedule import Schedule
from push_to_poll_client._text import describe

__all__ = ["Opening"]

logger = logging.getLogger("push_to_poll_client")

CLOSE_TIMEOUT = 10.0
"""Seconds that a store or a feed gets to be closed: one that hangs must not hold whoever stops the consumer."""


class Opening:
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
        inbox: Inbox,
        assemble: Callable[[Session, EventLoop], Parts],
    ) -> None:
        self.loop: EventLoop | None = None
        self.parts: Parts | None = None
        self._name = name
        self._feed = feed
        self._feed_name = feed_name
        self._store = store
        self._schedule = schedule
        self._inbox = inbox
        self._assemble = assemble
        self._gate = anyio.Lock()
        self._users = 0

    async def enter(self) -> None:
        """Open it, if nobody uses it.

        Raises:
            StoreError: The name could not be claimed.
            RuntimeError: It is in use in another event loop.
        """
        loop = self._use(EventLoop())
        try:
            async with self._gate:
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
            parts = self._assemble(session, loop)
            self._inbox.open(loop, parts.polls.wake)
        except BaseException:  # what the session keeps cannot be read: the name is not to stay claimed for that
            await self._close(session.release)
            raise
        self.parts = parts

    def _use(self, loop: EventLoop) -> EventLoop:
        """Each event loop has a clock of its own: a schedule goes on by that of the loop it is used in."""
        if self.loop != loop:
            if self._users:
                raise RuntimeError(f"{self._name}: in use in another event loop")
            if self.loop is not None:
                self._schedule.shift(loop.time() - self.loop.time())
            self.loop, self._gate = loop, anyio.Lock()
        self._users += 1
        return loop

    async def _leave(self) -> None:
        self._users -= 1
        async with self._gate:
            if not self._users and self.parts is not None:
                self._inbox.close()
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
