"""What the exit code of `push-to-poll` says, whichever its command: the one table."""

import enum

from push_to_poll_client._exceptions import (
    FeedError,
    ListenerError,
    ProcessError,
    PushToPollError,
    StoreError,
    Throttled,
)

__all__ = ["EXIT_CODES", "Exit", "OutputError", "UsageError", "exit_of"]


class Exit(enum.IntEnum):
    """The exit codes, documented by `EXIT_CODES`."""

    DONE = 0
    BUG = 1
    USAGE = 2
    FEED = 3
    MESSAGE = 4
    STATE = 5
    PUSH = 6
    INTERRUPTED = 130
    TERMINATED = 143


EXIT_CODES = """\
exit codes:
  0    done: with --once the end of the feed, or it has ended for good, or whoever read the output went away
  1    a bug; of the demo also: a message was lost, or processed twice without excuse
  2    the arguments are wrong, or need something that is not installed
  3    the feed failed (with --once), is gone, or no longer knows the cursor; or --once must wait too long
  4    a message could not be read or written out, or its command failed; the state stands before it
  5    the state file cannot be used, or another process uses it
  6    a push channel is broken for good, or --webhook cannot be listened at
  130  interrupted (Ctrl-C); what was written out is recorded
  143  terminated; what was written out is recorded
"""
"""For the help of each command."""


class UsageError(Exception):
    """An argument has no meaning."""


class OutputError(PushToPollError):
    """Standard output cannot be written."""


def exit_of(error: PushToPollError) -> Exit:
    """The exit code for an error that ended the command."""
    kinds = (
        (FeedError, Exit.FEED),
        (Throttled, Exit.FEED),
        (ProcessError, Exit.MESSAGE),
        (OutputError, Exit.MESSAGE),
        (StoreError, Exit.STATE),
    )
    for kind, code in kinds:
        if isinstance(error, kind):
            return code
    return Exit.PUSH if isinstance(error, ListenerError) else Exit.BUG
