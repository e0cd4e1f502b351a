"""WHEN a channel of two halves is up: when both are. Each half reports as if it were the whole."""

import anyio

from push_to_poll_client._protocols import Channel
from push_to_poll_client._types import Push

__all__ = ["Half", "halves_of"]


class Half:
    """What one of two reports to; a `Channel`.

    Args:
        whole: What both report to in the end.
        are_up: The halves that are up; both have the same set.
    """

    def __init__(self, whole: Channel, are_up: "set[Half]") -> None:
        self._whole = whole
        self._are_up = are_up
        self._event = anyio.Event()

    @property
    def is_up(self) -> bool:
        """Whether this one is."""
        return self._event.is_set()

    async def until_up(self) -> None:
        """Wait until this one is, if it is not."""
        await self._event.wait()

    def up(self) -> None:
        """This one is; with the other one too, the whole is."""
        self._event.set()
        self._are_up.add(self)
        if len(self._are_up) == 2:  # noqa: PLR2004 - halves
            self._whole.up()

    def down(self, error: BaseException | None = None) -> None:
        """So the whole is not."""
        self._event = anyio.Event() if self._event.is_set() else self._event
        self._are_up.discard(self)
        self._whole.down(error)

    def wake(self, push: Push | None = None, /) -> None:
        """As of the whole."""
        self._whole.wake(push)

    def poll(self) -> None:
        """As of the whole."""
        self._whole.poll()

    def registered(self, until: float | None, /) -> None:
        """As of the whole."""
        self._whole.registered(until)

    @property
    def state(self) -> str | None:
        """As of the whole."""
        return self._whole.state

    async def save(self, state: str | None, /) -> None:
        """As of the whole."""
        await self._whole.save(state)


def halves_of(whole: Channel) -> tuple[Half, Half]:
    """Two that are one channel."""
    are_up = set[Half]()
    return Half(whole, are_up), Half(whole, are_up)
