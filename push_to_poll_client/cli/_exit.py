"""What the exit code of `push-to-poll` says."""

import enum

from push_to_poll_client._exceptions import (
    FeedError,
    ListenerError,
    MessageFailed,
    PushToPollError,
    StoreError,
    Throttled,
)

__all__ = ["Exit", "UsageError", "exit_of"]


class Exit(enum.IntEnum):
    """The exit codes, documented in `push-to-poll tail --help`."""

    DONE = 0
    BUG = 1
    USAGE = 2
    FEED = 3
    MESSAGE = 4
    STATE = 5
    PUSH = 6
    INTERRUPTED = 130
    TERMINATED = 143


class UsageError(Exception):
    """An argument has no meaning."""


def exit_of(error: PushToPollError) -> Exit:
    """The exit code for an error that ended the command."""
    kinds = (
        (FeedError, Exit.FEED),
        (Throttled, Exit.FEED),
        (MessageFailed, Exit.MESSAGE),
        (StoreError, Exit.STATE),
    )
    for kind, code in kinds:
        if isinstance(error, kind):
            return code
    return Exit.PUSH if isinstance(error, ListenerError) else Exit.BUG
