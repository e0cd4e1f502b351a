"""WHAT A SERVER'S ENGINE PUBLISHES on a channel of its own; and where such channels can be heard."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import anyio.lowlevel

from push_to_poll_client._exceptions import ListenerError

__all__ = ["Notification", "names_of", "refuse_trio"]


class Notification(NamedTuple):
    """What was published.

    Attributes:
        channel: Where.
        data: What, `str` from PostgreSQL and `bytes` from Redis.
    """

    channel: str
    data: str | bytes


def names_of(what: str, names: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several, each once.

    Args:
        what: The argument's name.
        names: What was given.

    Raises:
        TypeError: It is neither.
        ValueError: One is empty.
    """
    several = (names,) if isinstance(names, str) else tuple(names)
    if not all(isinstance(name, str) for name in several):
        raise TypeError(f"{what} is a str or several")
    if not all(several):
        raise ValueError(f"{what} has an empty name")
    return tuple(dict.fromkeys(several))


def refuse_trio(name: str, library: str) -> None:
    """See that asyncio runs.

    Raises:
        ListenerError: It is trio.
    """
    if not isinstance(anyio.lowlevel.current_token().native_token, asyncio.AbstractEventLoop):
        raise ListenerError(
            f"{name}: {library} runs on asyncio alone; run the consumer there, or take another channel"
        )
