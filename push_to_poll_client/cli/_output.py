"""What a command writes: lines, text that is safe for a terminal, and exit codes.

Beyond the control characters of ASCII there are those of C1 (U+009B begins a sequence in some terminals), those
that turn the direction of a line (U+202E), and those that nobody sees.
"""

import contextlib
import enum
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from push_to_poll_client import CloudEvent, Message, StopConsumer
from push_to_poll_client._exceptions import (
    FeedError,
    ListenerError,
    ProcessError,
    PushToPollError,
    StoreError,
    Throttled,
)

__all__ = [
    "EXIT_CODES",
    "EscapingFormatter",
    "Exit",
    "OutputError",
    "ReaderGone",
    "UsageError",
    "escape_unprintable",
    "exit_code_for",
    "flush_stdout",
    "format_time",
    "json_line",
    "print_lines",
    "shell_quoted",
    "unescape",
    "write_line",
]


_PIECE_LENGTH = 65_536
"""Characters that are looked at one by one together: an entry has millions, and each takes 50 times its room."""

_ESCAPES = re.compile(r"(?:\\u[0-9a-f]{4}|\\[bfnrt])+")


def escape_unprintable(text: str) -> str:
    r"""The text with `\uXXXX` for what is not printable, line ends among it; a pair of them beyond U+FFFF.

    A line of JSON means the same afterwards (RFC 8259 §7): in it such characters stand in strings alone.
    """
    if text.isprintable():
        return text
    return "".join(
        _escape_piece(text[begin : begin + _PIECE_LENGTH]) for begin in range(0, len(text), _PIECE_LENGTH)
    )


def shell_quoted(text: str) -> str:
    """A key or a cursor, harmless, and in such quotes that it can be given to a shell as it stands."""
    return shlex.quote(escape_unprintable(text))


def unescape(typed: str) -> str:
    """What somebody means who types what `escape_unprintable` shows."""
    return _ESCAPES.sub(lambda match: str(json.loads(f'"{match[0]}"')), typed)


def format_time(seconds: float) -> str:
    """A time in seconds since the epoch, in UTC; what is none is shown as the number that it is."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g}"


def _escape_piece(text: str) -> str:
    return text if text.isprintable() else "".join(map(_escape_character, text))


def _escape_character(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]


class EscapingFormatter(logging.Formatter):
    """Makes one line of a record. A traceback follows it, indented, so that no line of it looks like a record."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """The line."""
        return escape_unprintable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback if there is one."""
        return "\n  ".join(map(escape_unprintable, super().format(record).split("\n")))


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


def exit_code_for(error: PushToPollError) -> Exit:
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


class ReaderGone(BaseException):
    """Nobody reads the output any more. No failure of the message, which is not recorded, nor of anything."""


def json_line(message: Message) -> bytes:
    """The message as one line of JSON, with its end: a CloudEvent as it came, others as `id` and `data`.

    Raises:
        UndecodableMessage: Its data cannot be read.
    """
    return msgspec.json.encode(_members(message)) + b"\n"


def write_line(message: Message) -> None:
    """Write the line and see it leave, before the message is recorded as processed.

    Raises:
        ReaderGone: Standard output is a pipe that nobody reads.
        StopConsumer: It cannot be written to: no failure of the message, so no policy for those may go past it.
        UndecodableMessage: The data of the message cannot be read.
    """
    line = json_line(message)
    try:
        _write(line)
    except OutputError as error:
        raise StopConsumer(str(error)) from error


def print_lines(lines: Iterable[bytes]) -> None:
    """Write lines without their ends, of JSON or harmless, until nobody reads them any more.

    Raises:
        OutputError: Standard output cannot be written.
    """
    with contextlib.suppress(ReaderGone):
        for line in lines:
            _write(line + b"\n")


def flush_stdout() -> None:
    """Flush what a failed write left in the buffer, or discard it if it cannot be written.

    Python would try once more at its end, and exit with 120. Call it when a command is over: after a failure, what
    is written later is discarded too.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write(line: bytes) -> None:
    """A terminal gets it with nothing in it that it would obey, everybody else as it is; it means the same."""
    if sys.stdout.isatty():
        line = escape_unprintable(line[:-1].decode()).encode() + b"\n"
    try:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as error:
        raise OutputError(
            f"standard output cannot be written: {error.strerror}; what was written out ends there"
        ) from error


def _members(message: Message) -> dict[str, Any]:
    if not isinstance(message, CloudEvent):
        return {"id": message.id, "data": message.data}
    data = message.data
    if data is None:
        return message.attributes
    return {**message.attributes, "data_base64" if isinstance(data, bytes) else "data": data}
