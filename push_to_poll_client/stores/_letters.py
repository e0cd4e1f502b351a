"""How many dead letters are handed out at a time? One answer for every store."""

from collections.abc import Iterable

from push_to_poll_client._types import DeadLetter

__all__ = ["some_of"]

_MOST = 100

_BYTES = 16 << 20
"""Each may be as large as the largest entry of the feed."""


def some_of(letters: Iterable[DeadLetter]) -> list[DeadLetter]:
    """The first of them: 100 at most, or fewer that have 16 MiB together, but one at least."""
    some: list[DeadLetter] = []
    size = 0
    for letter in letters:
        size += len(letter.raw) + len(letter.traceback)
        if some and size > _BYTES:
            break
        some.append(letter)
        if len(some) == _MOST:
            break
    return some
