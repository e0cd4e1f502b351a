"""What is a message as a line, and what becomes of the line on standard output?"""

import os
import sys
from typing import Any

import msgspec

from push_to_poll_client import CloudEvent, Message
from push_to_poll_client.cli._terminal import harmless

__all__ = ["ReaderGone", "close_stdout", "line_of", "write_line"]


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

    A terminal gets it with nothing in it that it would obey, everybody else as it is; it means the same.

    Raises:
        ReaderGone: Standard output is a pipe that nobody reads.
        UndecodableMessage: The data of the message cannot be read.
    """
    line = line_of(message)
    if sys.stdout.isatty():
        line = harmless(line[:-1].decode()).encode() + b"\n"
    try:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise ReaderGone from None


def close_stdout() -> None:
    """Keep the interpreter from flushing at exit what nobody will read."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _members(message: Message) -> dict[str, Any]:
    if not isinstance(message, CloudEvent):
        return {"id": message.id, "data": message.data}
    data = message.data
    if data is None:
        return message.attributes
    return {**message.attributes, "data_base64" if isinstance(data, bytes) else "data": data}
