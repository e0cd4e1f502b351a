"""Output of the commands: lines, text that is safe for a terminal, and exit codes.

Text from a feed may hold characters that a terminal obeys: the control characters of ASCII and of C1 (U+009B
begins a sequence in some terminals), those that turn the direction of a line (U+202E), and invisible ones. They
are shown as escapes.
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

_ESCAPES = re.compile(r"(?:\\u[0-9a-f]{4}|\\[bfnrt])+")


class _Escapes:
    def __getitem__(self, code: int) -> str:
        char = chr(code)
        return char if char.isprintable() else json.dumps(char)[1:-1]


def escape_unprintable(text: str) -> str:
    r"""Replace each unprintable character, line ends too, by `\uXXXX`, or by two of them beyond U+FFFF.

    A line of JSON keeps its meaning (RFC 8259 §7): in JSON such characters stand only in strings.
    """
    return text if text.isprintable() else text.translate(_Escapes())


def shell_quoted(text: str) -> str:
    """Escape a key or a cursor and quote it, so that it can be pasted into a shell."""
    return shlex.quote(escape_unprintable(text))


def unescape(typed: str) -> str:
    """Undo `escape_unprintable` in an argument that was copied from our output."""
    return _ESCAPES.sub(lambda match: str(json.loads(f'"{match[0]}"')), typed)


def format_time(seconds: float) -> str:
    """Format seconds since the epoch in UTC; a number outside the range of dates stays a number."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g}"


class EscapingFormatter(logging.Formatter):
    """Formats a record as one line. A traceback follows, indented so that no line of it looks like a record.

    Args:
        format: As of `logging.Formatter`.
        tracebacks: Whether tracebacks are shown.
    """

    def __init__(self, format: str, *, tracebacks: bool) -> None:
        super().__init__(format)
        self._tracebacks = tracebacks

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """The line."""
        return escape_unprintable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback if there is one and it is shown."""
        if not self._tracebacks:  # the handler is a command, whose failures say all in their line
            record = logging.makeLogRecord({**vars(record), "exc_info": None, "exc_text": None})
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
    """Choose the exit code for an error that ended the command."""
    match error:
        case FeedError() | Throttled():
            return Exit.FEED
        case ProcessError() | OutputError():
            return Exit.MESSAGE
        case StoreError():
            return Exit.STATE
        case ListenerError():
            return Exit.PUSH
        case _:
            return Exit.BUG


class ReaderGone(BaseException):
    """The reader of our output has gone. This is not a failure, and the message is not recorded."""


def json_line(message: Message) -> bytes:
    """Encode a message as one line of JSON: a CloudEvent with all its members, another one as `id` and `data`.

    Raises:
        DecodeError: Its data cannot be read.
    """
    members: dict[str, Any] = {"id": message.id, "data": message.data}
    if isinstance(message, CloudEvent):
        members = dict(message.attributes)
        if (data := message.data) is not None:
            members["data_base64" if isinstance(data, bytes) else "data"] = data
    return msgspec.json.encode(members) + b"\n"


def write_line(message: Message) -> None:
    """Write and flush the line of a message, before the message is recorded as processed.

    Raises:
        ReaderGone: Standard output is a pipe whose reader has gone.
        StopConsumer: Standard output cannot be written. This is not a failure of the message, so no policy for
            failing messages may go past it.
        DecodeError: The data of the message cannot be read.
    """
    line = json_line(message)
    try:
        _write(line)
    except OutputError as error:
        raise StopConsumer(str(error)) from error


def print_lines(lines: Iterable[str | bytes]) -> None:
    """Write lines, given without their ends, until the reader has gone. The caller escapes them or writes JSON.

    Raises:
        OutputError: Standard output cannot be written.
    """
    with contextlib.suppress(ReaderGone):
        for line in lines:
            _write((line.encode() if isinstance(line, str) else line) + b"\n")


def flush_stdout() -> None:
    """Flush the rest that a failed write left in the buffer, or discard it if it cannot be written.

    Without this call Python would try once more at its end, and exit with 120. To be called when a command is
    over: after a failure, later output is discarded too.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write(line: bytes) -> None:
    if sys.stdout.isatty():  # a terminal gets the same JSON with escapes
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
