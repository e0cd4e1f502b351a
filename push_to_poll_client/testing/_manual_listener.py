"""A push channel that does what the test says, when the test says it."""

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

    What happens while nobody listens is remembered and happens when somebody does. To be used from inside one
    event loop; before it runs, everything but `connected()` works too.

    Args:
        connects: Whether the channel is up as soon as somebody listens; else only after `connect()`.
        name: By what status and log call it.

    Attributes:
        listens: How often `listen()` was called.
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
        """Let a push arrive; `None` is one that says nothing."""
        self._tell(methodcaller("wake", push))

    def connect(self) -> None:
        """Let the channel come up."""
        self._tell(self._go_up)

    def disconnect(self, error: BaseException | None = None) -> None:
        """Let the channel go down, because of `error` if there is one."""
        self._tell(lambda channel: self._go_down(channel, error))

    def fail(self, error: BaseException) -> None:
        """Let `listen()` raise `error`: once, the one that runs or the next."""
        self._error = error
        self.finish()

    def finish(self) -> None:
        """Let `listen()` return: once, the one that runs or the next."""
        self._ended = True
        self._bell.ring()

    async def connected(self) -> None:
        """Return when somebody listens and the channel is up."""
        while not self._up:
            await self._bell.wait()

    async def listen(self, channel: Channel, /) -> None:
        """Report what happened already, and what happens from now on."""
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
