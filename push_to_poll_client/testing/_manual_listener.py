"""A push channel that a test controls."""

from collections.abc import Callable
from operator import methodcaller

from push_to_poll_client._protocols import Channel
from push_to_poll_client._types import Push
from push_to_poll_client.testing._virtual_time import Bell


class ManualListener:
    """A listener driven by the test.

        listener = ManualListener()
        ...                                    # the consumer runs
        await listener.connected()
        listener.push()
        listener.disconnect(OSError("reset"))

    Events before `listen()` runs are kept until it runs. Use the listener inside one event loop; before the loop
    runs, everything except `connected()` works too.

    Args:
        connects: True if the channel is up as soon as `listen()` runs. If False, call `connect()`.
        name: Name of the listener in status and log.

    Attributes:
        listens: Number of calls of `listen()`.
    """

    def __init__(self, *, connects: bool = True, name: str = "manual") -> None:
        self.name = name
        self.listens: int = 0
        self._connects = connects
        self._up = False
        self._channel: Channel | None = None
        self._remembered: list[Callable[[Channel], None]] = []
        self._ended = False
        self._error: BaseException | None = None
        self._bell = Bell()

    def push(self, push: Push | None = None) -> None:
        """Deliver a push. None is a push without a hint."""
        self._tell(methodcaller("wake", push))

    def connect(self) -> None:
        """Bring the channel up."""
        self._tell(self._go_up)

    def disconnect(self, error: BaseException | None = None) -> None:
        """Bring the channel down, because of `error` if it is given."""
        self._tell(lambda channel: self._go_down(channel, error))

    def fail(self, error: BaseException) -> None:
        """Make the current or next call of `listen()` raise `error`, once."""
        self._error = error
        self.finish()

    def finish(self) -> None:
        """Make the current or next call of `listen()` return, once."""
        self._ended = True
        self._bell.ring()

    async def connected(self) -> None:
        """Return when `listen()` runs and the channel is up."""
        while not self._up:
            await self._bell.wait()

    async def listen(self, channel: Channel, /) -> None:
        """Report earlier events, and later ones as they happen."""
        self.listens += 1
        self._channel = channel
        try:
            remembered, self._remembered = self._remembered, []
            if self._connects:
                self._go_up(channel)
            for happen in remembered:
                happen(channel)
            while not self._ended:
                await self._bell.wait()
        finally:
            self._channel, self._up = None, False
        error, self._error, self._ended = self._error, None, False
        if error is not None:
            raise error

    def _tell(self, happen: Callable[[Channel], None]) -> None:
        if self._channel is None:
            self._remembered.append(happen)
        else:
            happen(self._channel)

    def _go_up(self, channel: Channel) -> None:
        self._up = True
        channel.up()
        self._bell.ring()

    def _go_down(self, channel: Channel, error: BaseException | None) -> None:
        self._up = False
        channel.down(error)
