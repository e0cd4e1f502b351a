"""`push-to-poll demo`: interrupt a consumer in many ways, and count the messages that it lost."""

import argparse
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from push_to_poll_client.cli._output import Exit, UsageError
from push_to_poll_client.cli._parser import Commands
from push_to_poll_client.cli.demo._conductor import Demo

__all__ = ["add_to"]

MIN_LIVE = 10
"""Fewer live messages leave no room for four faults."""


def add_to(commands: Commands) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add(
        "demo",
        run,
        help="see it work: a server, a consumer, and everything that goes wrong between them",
        description="Start a server with a backlog and a consumer that catches up. Then live messages follow "
        "while the server drops a fifth of the pushes, cuts the connection twice and answers one 503, and the "
        "consumer is killed and started again. What the consumer wrote down is counted. It takes half a minute, "
        "and needs the extra `serve`.",
    )
    parser.add_argument(
        "--backlog", metavar="N", type=int, default=20_000, help="messages to catch up with (default: 20000)"
    )
    parser.add_argument(
        "--live", metavar="N", type=int, default=200, help="messages that are published then (default: 200)"
    )


def run(options: argparse.Namespace) -> int:
    """Run the demo.

    Raises:
        UsageError: A number is too small, or uvicorn is not installed.
    """
    if options.backlog < 0 or options.live < MIN_LIVE:
        raise UsageError(f"--backlog must be at least 0 and --live at least {MIN_LIVE}")
    if find_spec("uvicorn") is None:
        raise UsageError("the demo needs a server: pip install 'push-to-poll-client[serve]'")
    directory = Path(tempfile.mkdtemp(prefix="push-to-poll-demo-"))
    code = _run_demo(directory, options)
    if code is Exit.BUG:
        print(f"FAILED; what the consumer logged and the handler wrote is in {directory}")
    else:
        shutil.rmtree(directory)
    return code


def _run_demo(directory: Path, options: argparse.Namespace) -> Exit:
    try:
        with _sigterm_raises(), Demo(directory, backlog=options.backlog, live=options.live) as demo:
            return Exit.DONE if demo.run() else Exit.BUG
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except _Terminated:
        return Exit.TERMINATED


class _Terminated(BaseException):
    """Raised at SIGTERM, as `KeyboardInterrupt` is at SIGINT."""


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def terminated(*_: object) -> NoReturn:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
