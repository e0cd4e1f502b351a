"""`push-to-poll tail`: follow a feed, one JSON line per message on standard output."""

import argparse
import functools
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import anyio
import msgspec
from anyio.abc import TaskStatus

from push_to_poll_client import (
    CloudEvent,
    Consumer,
    HTTPFeed,
    MemoryStore,
    Message,
    SQLiteStore,
    WebSocketListener,
)
from push_to_poll_client.cli._exit import Exit, UsageError

__all__ = ["add_to"]

DEGRADED = 10.0
"""Seconds between polls while a push channel is down, unless `--interval` is shorter: the library's default."""

PATIENCE = 60.0
"""Seconds that `--once` waits when the server asks to be left alone; beyond that, whoever runs it decides."""

EPILOG = """\
exit codes:
  0    --once reached the end of the feed, or whoever read the output went away
  1    a bug
  2    the arguments are wrong
  3    the feed failed (with --once), is gone, or no longer knows the cursor
  4    a message could not be read or written out; the state stands before it
  5    the state file cannot be used, or another process uses it
  6    a push channel is broken for good
  130  interrupted (Ctrl-C); what was written out is recorded
  143  terminated; what was written out is recorded
"""


class ReaderGone(BaseException):
    """Nobody reads the output any more. No failure of the message, which is not recorded, nor of anything."""


def add_to(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "tail",
        help="follow a feed, one JSON line per message",
        description="Follow a feed by the HTTP Feeds specification: one JSON line per message on standard output, "
        "everything else on standard error. Without --push it is a plain poller.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("url", metavar="URL", help="the feed")
    add(
        "--push",
        metavar="URL",
        action="append",
        default=[],
        help="a websocket whose messages say when to poll; may be repeated",
    )
    add(
        "--state",
        metavar="FILE",
        help="remember there what was written out; without it, begin at the beginning each time",
    )
    add("--once", action="store_true", help="stop at the end of the feed")
    add(
        "--interval",
        metavar="S",
        type=float,
        default=60.0,
        help="longest quiet time in seconds before polling anyway (default: 60)",
    )
    add(
        "--wait",
        metavar="S",
        type=float,
        help="let the server hold its answer for this many seconds (long polling)",
    )
    add(
        "--token-env",
        metavar="NAME",
        help="the environment variable with a bearer token for the feed, and for pushes from the same server",
    )
    add("-v", "--verbose", action="count", default=0, help="log what is done; twice: in detail")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Follow the feed until its end (`--once`), a signal, or an error.

    Raises:
        PushToPollError: What ended it.
        UsageError: An argument has no meaning.
    """
    try:
        consumer = _consumer(options)
    except (TypeError, ValueError) as error:  # of the library's own constructors
        raise UsageError(str(error)) from error
    code = Exit.DONE
    try:
        code = anyio.run(_until_signalled, functools.partial(_drain, consumer) if options.once else consumer.run)
    except* ReaderGone:
        _close_stdout()
    return code


def _consumer(options: argparse.Namespace) -> Consumer:
    if options.once and options.push:
        raise ValueError("--once does not wait for pushes, leave out --push")
    token = _token(options.token_env)
    return Consumer(
        HTTPFeed(options.url, auth=token, max_wait=options.wait),
        store=SQLiteStore(options.state) if options.state is not None else MemoryStore(),
        listeners=[
            WebSocketListener(url, token=token if _same_server(url, options.url) else None) for url in options.push
        ],
        process=_write,
        fallback_interval=options.interval,
        degraded_interval=min(DEGRADED, options.interval),
        retry=None,
    )


def _token(name: str | None) -> str | None:
    if name is None:
        return None
    if not (token := os.environ.get(name)):
        raise ValueError(f"--token-env: the environment variable {name} is not set")
    return token


def _same_server(push: str, feed: str) -> bool:
    """Whether the feed's token may go to the push channel: secrets stay with whom they were given for (G12)."""
    ports = {"http": 80, "ws": 80, "https": 443, "wss": 443}
    one, other = urlsplit(push), urlsplit(feed)
    return (one.hostname, one.port or ports.get(one.scheme)) == (
        other.hostname,
        other.port or ports.get(other.scheme),
    )


async def _drain(consumer: Consumer) -> None:
    async with consumer:
        while not (await consumer.poll_now(timeout=PATIENCE)).caught_up:
            pass


async def _until_signalled(follow: Callable[[], Awaitable[None]]) -> Exit:
    code = Exit.DONE
    error: Exception | None = None

    async def watch(body: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
        nonlocal code
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                if code is not Exit.DONE:
                    os._exit(code)  # asked twice: output that nobody reads must not hold us
                code = Exit.INTERRUPTED if number == signal.SIGINT else Exit.TERMINATED
                body.cancel()

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as body:
            await tasks.start(watch, body)
            try:
                await follow()
            except Exception as caught:  # noqa: BLE001  # raised below, without a group around it
                error = caught
        tasks.cancel_scope.cancel()
    if error is not None:
        raise error
    return code


def _write(message: Message) -> None:
    """Write the line and see it leave, before the message is recorded as processed."""
    line = msgspec.json.encode(_line(message)) + b"\n"
    try:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise ReaderGone from None


def _line(message: Message) -> dict[str, Any]:
    if not isinstance(message, CloudEvent):
        return {"id": message.id, "data": message.data}
    data = message.data
    if data is None:
        return message.attributes
    return {**message.attributes, "data_base64" if isinstance(data, bytes) else "data": data}


def _close_stdout() -> None:
    """Keep the interpreter from flushing at exit what nobody will read."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
