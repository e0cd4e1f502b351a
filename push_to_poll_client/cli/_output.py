"""Output of the commands: lines, text that is safe for a terminal, and exit codes.

Text from a feed may contain characters that a terminal obeys: control characters of ASCII and C1 (U+009B starts a
control sequence in some terminals), characters that reverse the direction of a line (U+202E), and invisible ones.
The output shows them as escapes.
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
    r"""Replace each unprintable character by `\uXXXX`, or by two of these above U+FFFF.

    Line ends are replaced too. A line of JSON keeps its meaning (RFC 8259 §7): JSON has such characters only in
    strings.
    """
    return text if text.isprintable() else text.translate(_Escapes())


def shell_quoted(text: str) -> str:
    """Escape and quote a key or a cursor so that it can be pasted into a shell."""
    return shlex.quote(escape_unprintable(text))


def unescape(typed: str) -> str:
    """Undo `escape_unprintable` in an argument copied from our output."""
    return _ESCAPES.sub(lambda match: str(json.loads(f'"{match[0]}"')), typed)


def format_time(seconds: float) -> str:
    """Format seconds since the epoch in UTC; outside the range of dates, as a number."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g}"


class EscapingFormatter(logging.Formatter):
    """Formats a log record as one line, and an indented traceback if `tracebacks` is True."""

    def __init__(self, format: str, *, tracebacks: bool) -> None:
        super().__init__(format)
        self._tracebacks = tracebacks

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        return escape_unprintable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        if not self._tracebacks:  # with --exec, the line says everything about a failure
            record = logging.makeLogRecord({**vars(record), "exc_info": None, "exc_text": None})
        return "\n  ".join(map(escape_unprintable, super().format(record).split("\n")))


class Exit(enum.IntEnum):
    """Exit codes; `EXIT_CODES` documents them."""

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
  0    done: the end of the feed (with --once), the feed ended for good, or the reader of the output closed it
  1    a bug; for demo also: a message was lost, or was processed twice for no known reason
  2    wrong arguments, or a package that they need is not installed
  3    the feed failed (with --once), is gone, or no longer knows the cursor; or --once would wait too long
  4    a message could not be read or printed, or its command failed; the saved state ends before this message
  5    the store cannot be used, or another process owns the file or the name
  6    a push channel failed for good, or --webhook cannot listen on its address
  130  interrupted (Ctrl-C); messages processed before are recorded
  143  terminated (SIGTERM); messages processed before are recorded
"""
"""Shown in the help of each command."""


class UsageError(Exception):
    """The arguments are wrong."""


class OutputError(PushToPollError):
    """Writing to standard output failed."""


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
    """The reader of our output closed it. Not a failure; the message is not recorded."""


def json_line(message: Message) -> bytes:
    """Encode a message as one line of JSON: all members of a CloudEvent, else `id` and `data`."""
    members: dict[str, Any] = {"id": message.id, "data": message.data}
    if isinstance(message, CloudEvent):
        members = dict(message.attributes)
        if (data := message.data) is not None:
            members["data_base64" if isinstance(data, bytes) else "data"] = data
    return msgspec.json.encode(members) + b"\n"


def write_line(message: Message) -> None:
    """Write and flush the line of a message, before the message is recorded as processed."""
    # If writing fails, the message is not at fault, so `--on-failure` must not skip it: raise `StopConsumer`.
    line = json_line(message)
    try:
        _write(line)
    except OutputError as error:
        raise StopConsumer(str(error)) from error


def print_lines(lines: Iterable[str | bytes]) -> None:
    """Write lines until the reader closes the output. The caller escapes them or writes JSON."""
    with contextlib.suppress(ReaderGone):
        for line in lines:
            _write((line.encode() if isinstance(line, str) else line) + b"\n")


def flush_stdout() -> None:
    """Flush standard output when a command is over, or discard the rest if that fails."""
    # Without this call Python would try to flush at exit, fail, and exit with 120.
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
            f"cannot write to standard output: {error.strerror}; the output is incomplete"
        ) from error
