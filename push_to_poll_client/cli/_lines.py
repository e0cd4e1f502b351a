"""What is a message as a line, and what becomes of the line on standard output?"""

import contextlib
import os
import sys
from collections.abc import Iterable
from typing import Any

import msgspec

from push_to_poll_client import CloudEvent, Message, StopConsumer
from push_to_poll_client.cli._exit import OutputError
from push_to_poll_client.cli._terminal import harmless

__all__ = ["ReaderGone", "flush_stdout", "line_of", "print_lines", "write_line"]


class ReaderGone(BaseException):
    """Nobody reads the output any more. No failure of the message, which is not recorded, nor of anything."""


def line_of(message: Message) -> bytes:
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
    line = line_of(message)
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
        line = harmless(line[:-1].decode()).encode() + b"\n"
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
