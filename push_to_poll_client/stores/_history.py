"""Which of the cursors that were saved are remembered? One answer for every store."""

from push_to_poll_client._types import SavedCursor

__all__ = ["MOST", "with_saved"]

MOST = 256
"""Cursors before the saved one: four minutes of a busy consumer, years of one whose feed moves once a week. Of the
longest cursors they take 16 MiB."""

_APART = 1.0
"""Seconds. A busy consumer, which saves hundreds a second, remembers one of them."""


def with_saved(remembered: tuple[SavedCursor, ...], saved: SavedCursor) -> tuple[SavedCursor, ...]:
    """What is remembered when another cursor is saved: the same object if the saved one is not to be added."""
    if remembered and 0 <= saved.at - remembered[-1].at < _APART:  # also when the clock went back
        return remembered
    return (*remembered[1 - MOST :], saved)
